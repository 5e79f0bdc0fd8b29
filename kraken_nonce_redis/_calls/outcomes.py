"""What an answer of Kraken, or none, says about a call: was it carried out, and what may follow? Data and no I/O.

Sources are Kraken's own pages on errors and what its support says; nothing was tried against the live exchange. An
answer that is not Kraken's JSON counts as none, whatever its HTTP status: a gateway that says 502 may have passed the
call on, and one that says 404 may have lost the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kraken_nonce_redis import _arguments as arguments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Outcome(Enum):
    """Whether Kraken carried a call out."""

    CARRIED_OUT = "carried out"
    NOT_CARRIED_OUT = "not carried out"
    UNKNOWN = "unknown"


class Remedy(Enum):
    """What may help a call that was not carried out, or a reading one with an unknown outcome."""

    NONE = "none"
    NONCE = "a higher nonce"
    LATER = "to wait"


class Verdict(NamedTuple):
    """What one attempt at a call came to."""

    outcome: Outcome
    remedy: Remedy


_REFUSED: Final = Verdict(Outcome.NOT_CARRIED_OUT, Remedy.NONE)
_REFUSED_FOR_NOW: Final = Verdict(Outcome.NOT_CARRIED_OUT, Remedy.LATER)
_CARRIED_OUT: Final = Verdict(Outcome.CARRIED_OUT, Remedy.NONE)
_UNKNOWN: Final = Verdict(Outcome.UNKNOWN, Remedy.LATER)

ERRORS: Final[tuple[tuple[str, Verdict], ...]] = (
    ("EAPI:Invalid nonce", Verdict(Outcome.NOT_CARRIED_OUT, Remedy.NONCE)),
    ("EAPI:Rate limit exceeded", _REFUSED_FOR_NOW),
    ("EOrder:Rate limit exceeded", _REFUSED_FOR_NOW),
    ("EService:Throttled", _REFUSED_FOR_NOW),
    ("EService:Deadline elapsed", _REFUSED),
    ("EService:Market in", _REFUSED),  # cancel_only mode, post_only mode, limit_only mode
    ("EService:", _UNKNOWN),  # Unavailable, Busy, Timeout
    ("EGeneral:Internal error", _UNKNOWN),
    ("EGeneral:Unknown error", _UNKNOWN),
    # Keys, signatures, permissions, a lockout, arguments, funds, unknown orders, ...
    *((family, _REFUSED) for family in ("EAPI:", "EAuth:", "EGeneral:", "EOrder:", "ETrade:", "EFunding:", "EQuery:")),
    *((family, _REFUSED) for family in ("EAccount:", "ESession:", "EEarnings:")),
    ("E", _UNKNOWN),  # EDatabase:Internal error, and what we know nothing of
)
"""How Kraken's errors begin, without white space after the first colon; the first entry that fits counts."""

_VALIDATED: Final = frozenset({"AddOrder", "AddOrderBatch", "EditOrder"})
"""Methods that take ``validate``, and then change nothing."""

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

READS: Final = frozenset(
    {
        "Balance",
        "BalanceEx",
        "ClosedOrders",
        "CreditLines",
        "DepositMethods",
        "DepositStatus",
        "Earn/AllocateStatus",
        "Earn/Allocations",
        "Earn/DeallocateStatus",
        "Earn/Strategies",
        "ExportStatus",
        "GetApiKeyInfo",
        "GetWebSocketsToken",
        "Ledgers",
        "OpenOrders",
        "OpenPositions",
        "OrderAmends",
        "QueryLedgers",
        "QueryOrders",
        "QueryTrades",
        "RetrieveExport",
        "TradeBalance",
        "TradeVolume",
        "TradesHistory",
        "WithdrawAddresses",
        "WithdrawInfo",
        "WithdrawMethods",
        "WithdrawStatus",
    }
)
"""Methods that change nothing, so that they may be made again. One that is not named here counts as a change."""

CANCELS: Final = frozenset({"CancelOrder", "CancelOrderBatch", "CancelAll", "CancelAllOrdersAfter"})
"""Methods that change nothing when they are made a second time right after the first, under the same lease."""


def changes(method: str, params: Mapping[str, Any]) -> bool:
    """Return whether a call changes anything at Kraken."""
    validates = method in _VALIDATED and str(params.get("validate", "")).lower() in {"true", "1"}
    return method not in READS and not validates


def of_answer(answer: Mapping[str, Any]) -> Verdict:
    """Return what an answer, decoded from JSON, says about its call. One that Kraken would not give says nothing."""
    errors = answer.get("error")
    if not isinstance(errors, list | tuple) or not all(str(error).startswith(("E", "W")) for error in errors):
        return _UNKNOWN
    verdicts = [_of_error(error) for error in errors_in(answer)]
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


def _of_error(error: str) -> Verdict:
    said = _plain(error)
    return next(verdict for beginning, verdict in ERRORS if said.startswith(beginning))


def _plain(error: str) -> str:
    """Return an error without white space after its first colon, where Kraken is not consistent."""
    return re.sub(r":\s+", ":", error, count=1)


def of_failure(failure: BaseException | None) -> Verdict:
    """Return what it says about a call that there is no answer of Kraken, but this exception or one that led to it."""
    return _REFUSED_FOR_NOW if failure is not None and _never_sent(failure) else _UNKNOWN


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


# Kraken writes "EService: Throttled: 1700000000" and "EService:Throttled".
_THROTTLED: Final = re.compile(r"EService:Throttled(?::\s*(\d+))?")


@dataclass(frozen=True)
class CoolDowns:
    """How many seconds nobody calls after Kraken has refused a call for one of these reasons.

    Args:
        rate_limit: ``EAPI:Rate limit exceeded``: the key's REST counter is full, and further calls keep it so.
        throttled: ``EService:Throttled`` without a time; with one, until then.
        lockout: ``EGeneral:Temporary lockout``, which Kraken gives for about 15 minutes.

    Raises `InvalidArgument`.
    """

    rate_limit: float = 15.0
    throttled: float = 5.0
    lockout: float = 900.0

    def __post_init__(self) -> None:
        for name in ("rate_limit", "throttled", "lockout"):
            arguments.seconds(name, getattr(self, name), 0, arguments.LONGEST_COOL_DOWN)

    def after(self, errors: Iterable[str], now: float) -> tuple[float, str]:
        """Return for how many seconds nobody should call after these errors, and for which; ``(0.0, "")`` for none.

        ``now`` is the time in seconds since 1970, for Kraken's time of day in ``Throttled``.
        """
        longest = (0.0, "")
        for error in errors:
            throttled = _THROTTLED.match(_plain(error))
            if throttled is not None:
                until = throttled[1]
                seconds = self.throttled if until is None else min(float(until) - now, arguments.LONGEST_COOL_DOWN)
            elif error.startswith("EAPI:Rate limit exceeded"):
                seconds = self.rate_limit
            elif error.startswith("EGeneral:Temporary lockout"):
                seconds = self.lockout
            else:
                continue
            longest = max(longest, (seconds, error))
        return longest
