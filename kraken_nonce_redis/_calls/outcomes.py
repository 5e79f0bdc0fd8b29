"""What an answer of Kraken, or none, says about a call: was it carried out, and what may follow? No I/O.

What Kraken's errors mean is in `kraken_nonce_redis._kraken`. An answer that is not Kraken's JSON counts as none,
whatever its HTTP status: a gateway that says 502 may have passed the call on, and one that says 404 may have lost the
answer. So may Cloudflare's page with the status 429, which also says that Kraken is to be left alone for a while.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any, Final

from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis._kraken import Outcome, Remedy, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._calls.call import Heard

_CARRIED_OUT: Final = Verdict(Outcome.CARRIED_OUT, Remedy.NONE)

NEVER_SENT: Final = frozenset(
    {
        "urllib3.exceptions.NewConnectionError",
        "urllib3.exceptions.ConnectTimeoutError",
        "requests.exceptions.ConnectTimeout",
        "aiohttp.client_exceptions.ClientConnectorError",
        "aiohttp.client_exceptions.ConnectionTimeoutError",
        "builtins.ConnectionRefusedError",
        "socket.gaierror",
    }
)
"""Exceptions from before there was a connection to send over; it may be there later."""

_HOPELESS: Final = frozenset(
    {
        "ssl.SSLCertVerificationError",  # Kraken's, or that of a proxy that looks inside
        "requests.exceptions.InvalidHeader",
        "requests.exceptions.InvalidSchema",  # also a SOCKS proxy without PySocks
        "requests.exceptions.InvalidURL",
        "requests.exceptions.MissingSchema",
        "aiohttp.client_exceptions.ClientConnectorCertificateError",
        "aiohttp.client_exceptions.ClientHttpProxyError",  # the proxy's answer to CONNECT, such as 407
        "aiohttp.client_exceptions.InvalidURL",
        "ccxt.base.errors.InvalidProxySettings",
        "ccxt.base.errors.NotSupported",  # a SOCKS proxy without what that needs
    }
)
"""Exceptions that say that nothing could be sent, and that the next attempt would end in the same way."""
_TUNNEL: Final = "Tunnel connection failed"  # how http.client words a proxy's refusal of CONNECT, such as 407


_TOO_MANY: Final = 429
_SECONDS: Final = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A page with the status 429 in place of Kraken's answer: Cloudflare, in front of Kraken, wants fewer requests.

    Attributes:
        retry_after: seconds for which it wants none; None if it doesn't say.
    """

    retry_after: float | None

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str]) -> TurnedAway | None:
        """Return what an answer is if Kraken did not give it; None for another status."""
        if status != _TOO_MANY:
            return None
        said = headers.get("Retry-After", "").strip()
        if _SECONDS.fullmatch(said):
            return cls(float(said))
        # Of a date only its distance from the answer's own counts: this machine's clock may be wrong.
        then, now = seconds_at(said), seconds_at(headers.get("Date", ""))
        return cls(None if then is None or now is None else max(0.0, then - now))

    def __str__(self) -> str:
        asked = "no Retry-After" if self.retry_after is None else f"Retry-After: {self.retry_after:g} s"
        return f"{kraken.TOO_MANY_REQUESTS} ({asked})"


def seconds_at(date: str) -> float | None:
    """Return the time of an HTTP date, in seconds since 1970; None if it is none."""
    parsed = parsedate_tz(date)
    try:
        return None if parsed is None else mktime_tz((*parsed[:9], parsed[9] or 0))
    except (ValueError, OverflowError):
        return None


def changes(method: str, params: Mapping[str, Any]) -> bool:
    """Return whether a call changes anything at Kraken."""
    known = kraken.method_named(method)
    # Kraken documents ``validate`` as a boolean. Of anything else nobody knows whether the order is placed.
    validate = params.get("validate")
    validates = known.validates and (validate is True or validate == "true")
    return known.effect != "reads" and not validates


def of_answer(answer: Mapping[str, Any]) -> Verdict:
    """Return what an answer, decoded from JSON, says about its call. One that Kraken would not give says nothing."""
    errors = answer.get("error")
    if not isinstance(errors, list | tuple) or not all(str(error).startswith(("E", "W")) for error in errors):
        return kraken.UNKNOWN
    verdicts = [kraken.meaning_of(error).verdict for error in errors_in(answer)]
    for verdict in verdicts:
        if verdict.outcome is Outcome.UNKNOWN:
            return verdict
    return verdicts[0] if verdicts else _CARRIED_OUT


def errors_in(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the errors in Kraken's answer, as Kraken has them; without the warnings, which begin with W."""
    return _beginning("E", answer)


def warnings_in(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the warnings in Kraken's answer, as Kraken has them."""
    return _beginning("W", answer)


def _beginning(letter: str, answer: Mapping[str, Any]) -> tuple[str, ...]:
    errors = answer.get("error")
    if not isinstance(errors, list | tuple):
        return ()
    return tuple(error for error in errors if isinstance(error, str) and error.startswith(letter))


def without_warnings(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer without its warnings, of which clients make exceptions; one with errors as it is."""
    if of_answer(answer) != _CARRIED_OUT or not warnings_in(answer):
        return answer
    return {**answer, "error": []}


def lacks_result(answer: Mapping[str, Any]) -> bool:
    """Return whether an answer has neither an error nor a result."""
    return of_answer(answer) == _CARRIED_OUT and answer.get("result") is None


def is_final_refusal(heard: Heard) -> bool:
    """Return whether Kraken's answer to a question is that it does not answer it, and not for the time being only.

    That is a result without what was asked for, or an error about the method or the API key, not one about orders.
    """
    if heard.answer is None or heard.lacks_result:
        return False
    meanings = [kraken.meaning_of(error) for error in heard.errors]
    final = all(meaning.verdict == kraken.REFUSED and meaning.cool_down is None for meaning in meanings)
    return final and all(error.startswith(("EGeneral:", "EAPI:")) for error in heard.errors)


def is_refused_for_deadline(heard: Heard) -> bool:
    """Return whether Kraken has refused a call since its deadline is over, or not within what Kraken takes."""
    return any(
        error.startswith("EService:Deadline elapsed")
        or (error.startswith("EGeneral:Invalid arguments") and "deadline" in error)
        for error in map(kraken.plain, heard.errors)
    )


def window_in(heard: Heard) -> int | None:
    """Return the nonce window in an answer to GetApiKeyInfo, in nonce ticks; None if there is none."""
    result = None if heard.answer is None or heard.errors else heard.answer.get("result")
    window = result.get("nonceWindow") if isinstance(result, dict) else None
    if isinstance(window, str) and window.isascii() and window.isdigit():
        return int(window)
    return window if isinstance(window, int) and not isinstance(window, bool) and window >= 0 else None


def of_failure(failure: BaseException | None) -> Verdict:
    """Return what it says about a call that there is no answer of Kraken, but this exception or one that led to it.

    That the exception came before there was a connection says so only of the attempt that it ended.
    """
    if failure is None:
        return kraken.UNKNOWN
    if is_hopeless(failure):
        return kraken.REFUSED
    led = led_to(failure)
    return kraken.REFUSED_FOR_NOW if any(_names(error) & NEVER_SENT for error in led) else kraken.UNKNOWN


def is_hopeless(failure: BaseException) -> bool:
    """Return whether nothing was sent, and the next attempt would end in the same way."""
    return any(
        _names(error) & _HOPELESS or (type(error) is OSError and str(error).startswith(_TUNNEL))
        for error in led_to(failure)
    )


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def led_to(failure: BaseException) -> list[BaseException]:
    """Return an exception and those that led to it."""
    seen: list[BaseException] = []
    todo: list[object] = [failure]
    while todo:
        error = todo.pop()
        if not isinstance(error, BaseException) or error in seen:
            continue
        seen.append(error)
        # urllib3 keeps what led to an error as its reason, requests as its argument. Not the context: that may be an
        # earlier call's failure, which the caller handles by making this one.
        todo += [error.__cause__, getattr(error, "reason", None), *error.args]
    return seen
