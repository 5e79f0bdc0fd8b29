"""ccxt's Kraken with its private calls under the lock: one at a time per API key, in nonce order, in all processes.

`kraken` here is for threads; `kraken_nonce_redis.ccxt.async_support` and `kraken_nonce_redis.ccxt.pro` have the others.
`patch` puts all three where frameworks look. Needs the extra ``ccxt``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kraken_nonce_redis._calls import leaving
from kraken_nonce_redis._calls.guards import Guard
from kraken_nonce_redis._calls.requests import is_watched, longest, refuse_repeats, take_into_use

try:
    import ccxt
except ImportError as error:
    raise ImportError("ccxt is not installed: pip install 'kraken-nonce-redis[ccxt]'") from error

from kraken_nonce_redis.ccxt._adapter import Adapter, Unsigned, asking
from kraken_nonce_redis.ccxt.errors import as_ccxt

if TYPE_CHECKING:
    from kraken_nonce_redis._calls.call import Heard
    from kraken_nonce_redis._core.steps import Send

__all__ = ["kraken", "patch"]


class kraken(Adapter, ccxt.kraken):  # type: ignore[misc] # noqa: N801 - as ccxt names it
    """A ``ccxt.kraken`` whose private calls run under the lock.

    ``config`` is that of ccxt, and beside ccxt's keys takes those of `kraken_nonce_redis.clients.Options`:
    ``kraken({"apiKey": ..., "secret": ..., "redis": "redis://..."})``. Public calls are unchanged.

    A private call is throttled first, as ccxt does it; then it waits for the lock, gets a nonce, is signed and sent.
    Each attempt that ``maxRetriesOnFailure`` allows does this again; it never repeats a call that changes something.
    The lease is made long enough for ccxt's ``timeout`` (milliseconds; it counts for connecting and again for reading),
    which is ``call_timeout`` if only that is given.

    With a ``pace``, set ccxt's ``enableRateLimit`` to False, or calls are counted twice. Refusals that ask for a pause
    stop all processes of the key. ccxt's errors have Kraken's own errors, a list of str, as ``kraken_errors``.

    ``sign`` of a private call does not sign: its result is only for ``fetch``.

    Raises `InvalidArgument`, and `IncompatibleClient` for a version of ccxt whose internals differ. Private
    calls raise, besides what ccxt does: `HoldTimeout` when it timed out waiting for the lock (`CoolDown` when Kraken
    wants a pause), `LeaseLost`, `StoreError`, and `InvalidArgument` when ``timeout`` is 0 or too long for a lease, with
    nothing sent; `NoncePoisoned`, `OutcomeUnknown` and `NotCarriedOut`. All of these are errors of ccxt, too:
    `kraken_nonce_redis.ccxt.errors` says which.
    """

    _stock = ccxt.kraken
    _guard_type = Guard

    def _longest(self) -> float:
        return longest(self._timeout())

    def fetch2(self, *args: Any, **kwargs: Any) -> Any:
        """Throttle and make a call, as ccxt does."""
        with asking():
            return super().fetch2(*args, **kwargs)

    @as_ccxt()
    def fetch(self, url: Any, method: Any = "GET", headers: Any = None, body: Any = None) -> Any:
        """Send a request and return the decoded answer; a private one under the lock."""
        take_into_use(self.session)
        if not isinstance(body, Unsigned):
            return super().fetch(url, method, headers, body)
        refuse_repeats(self.session, str(self.urls["api"]["private"]))
        stock, call = super().fetch, self._call(body)

        def send(step: Send) -> Heard:
            with leaving.Request(self, self.apiKey, call, step) as request:
                signed = self._signed(body, step)
                request.entered = True
                if not is_watched(self.session, signed[0]):
                    request.leave(leaving.fields_of(signed[-1]))
                try:
                    value = stock(*signed)
                except Exception as failure:  # noqa: BLE001 - whatever it is, it is heard
                    return request.heard(failure=failure)
                request.hear(value if isinstance(value, dict) else None)
                return request.heard(value)

        return self._guard.make(self.apiKey, call, send)


def patch() -> None:
    """Put our three classes in the place of ccxt's, so that ``getattr(ccxt, "kraken")`` gives them.

    For programs that make their client by its name: ``ccxt.kraken``, ``ccxt.async_support.kraken`` and
    ``ccxt.pro.kraken`` are ours from now on, as often as this is called. Call it before the program imports a class.
    Options that its config doesn't have come from the environment, such as ``KRAKEN_NONCE_REDIS_URL``.
    """
    # All are imported before one is changed: ccxt's own derive from each other.
    import ccxt.async_support  # noqa: PLC0415 - these two take a second that others need not wait
    import ccxt.pro  # noqa: PLC0415

    from kraken_nonce_redis.ccxt import async_support, pro  # noqa: PLC0415

    ccxt.kraken, ccxt.async_support.kraken, ccxt.pro.kraken = kraken, async_support.kraken, pro.kraken
