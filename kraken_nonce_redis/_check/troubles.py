"""Why a call of a check has no result. Needs requests, which comes with krakenex."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, cast

import requests

from kraken_nonce_redis._check.findings import Cause, cause_of
from kraken_nonce_redis._texts import span
from kraken_nonce_redis.errors import (
    CoolDown,
    HoldTimeout,
    InvalidArgument,
    KrakenNonceError,
    LeaseLost,
    NonceTooFarAhead,
    StoreError,
)

EXPECTED: Final = (KrakenNonceError, requests.RequestException, ValueError, TypeError, RecursionError)
"""What a call can raise. The last three come from answers that are not Kraken's."""

_LOST: Final = (requests.ConnectionError, requests.ReadTimeout, requests.exceptions.ChunkedEncodingError)
"""What a call raises whose answer got lost."""
_NOT_SENT: Final = (requests.ConnectTimeout, requests.exceptions.SSLError, requests.exceptions.ProxyError)
"""Of these, what says that there was no connection to Kraken at all."""

_OURS: Final[tuple[tuple[type[KrakenNonceError], Cause], ...]] = (
    (HoldTimeout, "lock"),
    (LeaseLost, "lock"),
    (StoreError, "redis"),
    (NonceTooFarAhead, "nonce"),
    (InvalidArgument, "configuration"),  # such as a cost above what the pace allows
)
_LONGEST_SHOWN: Final = 200
_NOT_KRAKEN: Final = "what answers there is not Kraken's API"


class Trouble(Exception):
    """Why a step failed; the advice is empty where the usual one for the cause will do.

    ``lost`` is set when Kraken's answer may have got lost on its way, so that the same question may get one.
    """

    def __init__(self, cause: Cause, text: str, advice: str = "", *, lost: bool = False) -> None:
        super().__init__(text)
        self.lost: Final = lost
        self.cause: Final[Cause] = cause
        self.text: Final = text
        self.advice: Final = advice


def not_kraken() -> Trouble:
    """Return the trouble with an answer in another form than Kraken's."""
    return Trouble("network", _NOT_KRAKEN)


def trouble_of(error: Exception) -> Trouble:
    """Return what is wrong when a call has raised one of `EXPECTED`."""
    if isinstance(error, CoolDown):
        return Trouble(cause_of([error.reason]), f"no calls for another {span(error.seconds)}: {error.reason}")
    if isinstance(error, KrakenNonceError):
        causes: list[Cause] = [cause for kind, cause in _OURS if isinstance(error, kind)]
        cause = causes[0] if causes else "kraken"
        return Trouble(cause, str(error), "replace the API key at Kraken" if cause == "nonce" else "")
    lost = isinstance(error, _LOST) and not isinstance(error, _NOT_SENT)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _trouble_of_status(error.response.status_code)
    if isinstance(error, requests.Timeout):
        return Trouble("network", "no answer in time", lost=lost)
    if isinstance(error, ValueError | TypeError | RecursionError):
        return not_kraken()
    reason, deeper = "", error.__cause__ or error.__context__
    while deeper is not None:
        reason = (deeper.strerror if isinstance(deeper, OSError) else None) or str(deeper)
        deeper = deeper.__cause__ or deeper.__context__
    return Trouble("network", f"Kraken can't be reached: {reason or type(error).__name__}"[:_LONGEST_SHOWN], lost=lost)


def _trouble_of_status(status: int) -> Trouble:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Trouble("rate limit", f"HTTP status {status}")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Trouble("kraken", f"HTTP status {status}")
    return Trouble("network", f"HTTP status {status}: {_NOT_KRAKEN}, or a firewall refuses this machine")


def result_of(answer: Any) -> dict[str, Any]:
    """Return the result in Kraken's answer. Raises `Trouble`."""
    errors = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(errors, list) or not all(isinstance(error, str) for error in errors):
        raise not_kraken()
    serious = [error for error in errors if not error.startswith("W")]
    if serious:
        raise Trouble(cause_of(serious), "; ".join(serious)[:_LONGEST_SHOWN])
    result = answer.get("result")
    if not isinstance(result, dict):
        raise not_kraken()
    return cast("dict[str, Any]", result)
