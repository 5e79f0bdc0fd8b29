"""krakenex with its private calls under the lock: one at a time per API key, in nonce order, in all processes.

Needs the extra ``krakenex``.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis._calls import leaving
from kraken_nonce_redis._calls.call import Call, Heard
from kraken_nonce_redis._calls.guards import Guard
from kraken_nonce_redis._calls.requests import bounded, is_watched, longest, refuse_repeats, take_into_use
from kraken_nonce_redis.errors import CallLockError, IncompatibleClient, InvalidArgument

try:
    import krakenex
except ImportError as error:
    raise ImportError("krakenex is not installed: pip install 'kraken-nonce-redis[krakenex]'") from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._calls.requests import Timeout
    from kraken_nonce_redis._core.steps import Send
    from kraken_nonce_redis.clients import Options


class _Guarded(krakenex.API):  # type: ignore[misc] # it has no types
    """The calls of a krakenex.API that differ."""

    _guard: Guard

    def query_private(self, method: str, data: Mapping[str, Any] | None = None, timeout: Timeout | None = None) -> Any:
        """Make a private call under the lock; arguments and result as in krakenex, ``data`` stays as it was.

        ``timeout`` is what requests takes; the lease is made long enough for it. What has no limit gets the guard's
        ``call_timeout``. A refusal that may be over soon and a reading call without an
        answer are tried again, as ``retries`` says; the result is that of the last attempt.

        Raises, besides what krakenex does: `HoldTimeout` when it timed out waiting for the lock, `LeaseLost` and
        `StoreError`, with nothing carried out; `NoncePoisoned`; for a call that changes something and got no answer
        `OutcomeUnknown` or `NotCarriedOut`, and what krakenex does only if nothing was sent. What
        other code raises after the answer (a hook of the session) comes as it is; the event `OrderSettled` tells then.
        """
        if not self.key or not self.secret:
            return super().query_private(method, data, timeout)  # which says what is missing
        timeout = bounded(timeout, self._guard.call_timeout)
        refuse_repeats(self.session, self.uri)
        query = super().query_private
        call = Call.of(self.key, method, data or {}, longest(timeout), secret=self.secret, form=True)

        def send(step: Send) -> Heard:
            with leaving.Request(self, self.key, call, step) as request:
                try:
                    answer = query(step.method, dict(step.params), timeout)
                except Exception as failure:  # noqa: BLE001 - whatever it is, it is heard
                    return request.heard(failure=failure)
                return request.heard(answer)

        return self._guard.make(self.key, call, send)

    def _nonce(self) -> int:
        request = leaving.current()
        if request is None:
            raise CallLockError("nonces are for private requests only: call query_private()")
        return request.step.nonce

    def _query(self, urlpath: str, data: Any, headers: Any = None, timeout: Timeout | None = None) -> Any:
        take_into_use(self.session)
        request = leaving.current()
        if request is None:
            return super()._query(urlpath, data, headers, timeout)
        request.entered = True
        if not is_watched(self.session, self.uri):
            if str(data.get("nonce")) != str(request.step.nonce):
                request.refuse_foreign()
            request.leave(data)
        answer = super()._query(urlpath, data, headers, timeout)
        request.take(answer)
        return answer


class API(_Guarded):
    """A `krakenex.API` whose private calls run under the lock. Works inside ``pykrakenapi.KrakenAPI``, too.

    Args:
        key: the API key; empty for public calls alone.
        secret: its secret, base64 as Kraken shows it; empty if the key is.
        options: `kraken_nonce_redis.clients.Options`; ``call_timeout`` counts for connecting and again for reading.

    Raises `InvalidArgument`, and `IncompatibleClient` for a version of krakenex whose internals differ.
    """

    def __init__(self, key: str = "", secret: str = "", **options: Unpack[Options]) -> None:
        _check_seam()
        super().__init__(key, secret)
        _prepare(self, Guard(**options))


A = TypeVar("A", bound=krakenex.API)


def install(api: A, **options: Unpack[Options]) -> A:
    """Put the private calls of an existing ``krakenex.API`` (or of a subclass) under the lock; return it.

    Options and errors are those of `API`.
    """
    if not isinstance(api, krakenex.API):
        raise IncompatibleClient(type(api).__qualname__, "is no krakenex.API, so its nonces can't be replaced")
    _check_seam()
    guard = Guard(**options)
    if not isinstance(api, _Guarded):
        kind: Any = type(api)
        api.__class__ = _guarding(kind)
    _prepare(cast("_Guarded", api), guard)
    return api


@functools.cache
def _guarding(kind: Any) -> Any:
    """Return the class that `install` makes of another."""

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        # It can't be found by its name.
        _, (_, *args), *rest = super(_Guarded, self).__reduce_ex__(max(protocol, 2))
        return _made_again, (kind, *args), *rest

    return type(kind.__name__, (_Guarded, kind), {"__module__": kind.__module__, "__reduce_ex__": reduce})


def _made_again(kind: Any, *args: Any) -> Any:
    made = _guarding(kind)
    return made.__new__(made, *args)


def _prepare(api: _Guarded, guard: Guard) -> None:
    """Give an API its guard and address, its key and secret without white space. Raises `InvalidArgument`."""
    key, secret = arguments.stripped("key", api.key), arguments.secret("secret", api.secret)
    if bool(key) != bool(secret):
        missing, given = ("secret", "key") if key else ("key", "secret")
        raise InvalidArgument(missing, f"is empty, but the {given} is not")
    api._guard = guard  # noqa: SLF001 - in place of its constructor
    api.uri = guard.address(api.uri)
    api.key, api.secret = key, secret


@functools.cache
def _check_seam() -> None:
    """Make sure, without a request, that this krakenex asks `_nonce` for its nonces and sends through `_query`."""

    class Probe(krakenex.API):  # type: ignore[misc] # it has no types
        def _nonce(self) -> int:
            return 1

        def _query(self, urlpath: str, data: Any, headers: Any = None, timeout: Any = None) -> Any:
            return urlpath, data["nonce"], bool(headers), timeout

    try:
        seen = Probe("key", "c2VjcmV0").query_private("Balance", {}, timeout=2)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong, it isn't the krakenex that we know
        seen = error
    if seen != ("/0/private/Balance", 1, True, 2):
        version = getattr(getattr(krakenex, "version", None), "__version__", "of unknown version")
        raise IncompatibleClient(
            f"krakenex {version}",
            "its query_private does not take its nonce from _nonce() and send through _query(); "
            "known to work: 2.2.0 to 2.2.2",
        )
