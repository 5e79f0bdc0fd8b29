"""What an answer of Kraken, or none, says about a call: was it carried out, and what may follow? No I/O.

What Kraken's errors mean is in `kraken_nonce_redis._kraken`. An answer that is not Kraken's JSON counts as none,
whatever its HTTP status: a gateway that says 502 may have passed the call on, and one that says 404 may have lost the
answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis._kraken import Outcome, Remedy, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

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
"""Exceptions from before there was a connection to send over. After any other one the outcome is unknown."""


def changes(method: str, params: Mapping[str, Any]) -> bool:
    """Return whether a call changes anything at Kraken."""
    known = kraken.method_named(method)
    validates = known.validates and str(params.get("validate", "")).lower() in {"true", "1"}
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
    errors = answer.get("error")
    if not isinstance(errors, list | tuple):
        return ()
    return tuple(error for error in errors if isinstance(error, str) and error.startswith("E"))


def of_failure(failure: BaseException | None) -> Verdict:
    """Return what it says about a call that there is no answer of Kraken, but this exception or one that led to it."""
    return kraken.REFUSED_FOR_NOW if failure is not None and _never_sent(failure) else kraken.UNKNOWN


def _never_sent(failure: BaseException) -> bool:
    seen: list[BaseException] = []
    todo: list[object] = [failure]
    while todo:
        error = todo.pop()
        if not isinstance(error, BaseException) or error in seen:
            continue
        seen.append(error)
        names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
        if names & NEVER_SENT:
            return True
        # urllib3 keeps what led to an error as its reason, requests as its argument. Not the context: that may be an
        # earlier call's failure, which the caller handles by making this one.
        todo += [error.__cause__, getattr(error, "reason", None), *error.args]
    return False
