"""python-kraken-sdk with its private calls under the lock: one at a time per API key, in nonce order, in all processes.

Needs the extra ``kraken-sdk``. `User`, `Trade`, `Funding`, `Earn`, `Market` and `SpotClient` are those of
``kraken.spot``. `SpotAsyncClient`, `SpotWSClient` and the classes that begin with ``Async`` are for asyncio: every
method is awaited. All take `kraken_nonce_redis.clients.Options` as keywords, besides their own arguments. The mixins do
the same for your own classes.

A private call raises, besides what the SDK does: `HoldTimeout` when it timed out waiting for the lock, `LeaseLost`,
`StoreError` and `NoncePoisoned`; in each of these cases nothing was carried out. For a call that changes something and
got no answer: `OutcomeUnknown` or `NotCarriedOut`.
"""

from __future__ import annotations

import asyncio
import functools
import json
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, cast

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _process
from kraken_nonce_redis._calls import leaving
from kraken_nonce_redis._calls.aiohttp import leave_to_parent, watch
from kraken_nonce_redis._calls.call import LONGEST_CALL, Call, Heard
from kraken_nonce_redis._calls.guards import AsyncGuard, Guard
from kraken_nonce_redis._calls.requests import bounded, longest, refuse_repeats, take_into_use
from kraken_nonce_redis.clients import Options
from kraken_nonce_redis.errors import CallLockError, IncompatibleClient

try:
    from kraken import base_api, spot
except ImportError as error:
    raise ImportError("python-kraken-sdk is not installed: pip install 'kraken-nonce-redis[kraken-sdk]'") from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kraken_nonce_redis._calls.requests import Timeout
    from kraken_nonce_redis._core.steps import Send

__all__ = [
    "AsyncEarn",
    "AsyncFunding",
    "AsyncKrakenNonceMixin",
    "AsyncMarket",
    "AsyncTrade",
    "AsyncUser",
    "Earn",
    "Funding",
    "KrakenNonceMixin",
    "Market",
    "SpotAsyncClient",
    "SpotClient",
    "SpotWSClient",
    "Trade",
    "User",
]

_SDK_TIMEOUT: Final = 10  # seconds; what the SDK's methods pass on when they are given none
_PRIVATE: Final = "/0/private/"
_HTTP_OK: Final = 200
_ROUNDED_UP: Final = 1.0  # second; so much later than asked for may aiohttp give up


def _incompatible(problem: str) -> IncompatibleClient:
    try:
        version = metadata.version("python-kraken-sdk")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    return IncompatibleClient(f"python-kraken-sdk {version}", f"{problem}; known to work: 3.0.0 to 3.5.1")


if not hasattr(spot, "SpotAsyncClient"):
    raise _incompatible("it has no SpotAsyncClient")


class _AnswerListener(base_api.ErrorHandler):
    """Hears Kraken's answers before the SDK makes results and exceptions of them."""

    def check(self, data: dict[str, Any]) -> Any:
        request = leaving.current()
        if request is not None:
            request.hear(data)
        return super().check(data)


def _address(verb: str, uri: str, step: Send) -> tuple[str, str, dict[str, Any]]:
    """Return the first arguments of the SDK's ``request`` for a step of a call."""
    own = uri == _PRIVATE + step.method
    return verb if own else "POST", _PRIVATE + step.method, dict(step.params)


def _all_params(params: Mapping[str, Any] | None, rest: dict[str, Any]) -> dict[str, Any]:
    """Return a call's parameters together with its ``extra_params``, taken from the other arguments, as the SDK does.

    There may be a ``cl_ord_id`` or ``userref`` among them.
    """
    extra = rest.pop("extra_params", None) or {}
    return {**(params or {}), **(json.loads(extra) if isinstance(extra, str) else extra)}


def _extras(uri: str, step: Send, rest: dict[str, Any]) -> dict[str, Any]:
    """Return the call's other arguments for the call itself, and none for a question that settles it."""
    return rest if uri == _PRIVATE + step.method else {}


def _raw_answer(method: str, status: int, content: bytes) -> Mapping[str, Any] | None:
    """Return Kraken's answer in a response that the SDK passes on as it is; the file of RetrieveExport is one, too."""
    if method == "RetrieveExport" and status == _HTTP_OK:
        return leaving.decoded(content) or {"error": [], "result": True}
    return leaving.decoded(content)


class _Signing(spot.SpotClient):
    """What the mixins have in common: the settings, where nonces come from, and the last look at the lease."""

    _guard_type: type[Guard | AsyncGuard]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_seam()
        options = {name: kwargs.pop(name) for name in Options.__annotations__ if name in kwargs}
        self._guard = self._guard_type(**options)
        if "call_timeout" in options:
            self.TIMEOUT = cast("int", self._guard.call_timeout)
        given = list(args)
        for place, (name, checked) in enumerate((("key", arguments.stripped), ("secret", arguments.secret))):
            if name in kwargs:
                kwargs[name] = checked(name, kwargs[name])
            elif place < len(given):
                given[place] = checked(name, given[place])
        urls = *given[2:3], kwargs.get("url"), kwargs.get("rest_url")
        own = next((url for url in urls if url and isinstance(url, str)), None)
        url = self._guard.address(own or self.URL, explicit=own is not None)
        super().__init__(*given, **kwargs)
        self.URL = url
        self._err_handler = _AnswerListener()

    def get_nonce(self) -> str:
        """Return the next nonce of the call under way: ns since 1970, 19 digits.

        Raises `CallLockError` outside of `request`: a nonce is good for nothing but a request under the same lease.
        """
        request = leaving.current()
        if request is None:
            raise CallLockError("nonces are for private requests only: call request()")
        return str(request.step.nonce)

    def _prepare_request(self, **arguments: Any) -> Any:
        prepared = super()._prepare_request(**arguments)
        request = leaving.current()
        if request is not None:
            request.entered = True
        return prepared

    def _call(self, uri: str, params: Mapping[str, Any] | None, seconds: float, rest: Mapping[str, Any]) -> Call:
        method, present = uri.removeprefix(_PRIVATE), cast("Callable[..., Any]", self._err_handler.check)
        form = not rest.get("do_json")
        return Call.of(self._key, method, params or {}, seconds, present, secret=self._secret, form=form)

    def _is_private(self, uri: str, auth: bool) -> bool:  # noqa: FBT001
        return (
            auth and uri.startswith(_PRIVATE) and bool(self._key and self._secret)
        )  # without them, the SDK says what is missing


class KrakenNonceMixin(_Signing):
    """Puts the private calls of a client under the lock: ``class User(KrakenNonceMixin, kraken.spot.User)``.

    Args:
        args: what the client takes.
        kwargs: what the client takes, and `kraken_nonce_redis.clients.Options`. ``call_timeout`` sets the client's
            ``TIMEOUT``, which the SDK uses where a call has no timeout of its own; it counts for connecting and
            again for reading.

    Raises `InvalidArgument`, and `IncompatibleClient` for a version of the SDK whose internals differ.
    """

    _guard: Guard
    _guard_type = Guard

    def request(
        self,
        method: str,
        uri: str,
        params: Mapping[str, Any] | None = None,
        timeout: float | None = _SDK_TIMEOUT,
        *,
        auth: bool = True,
        **rest: Any,
    ) -> Any:
        """Make a call, under the lock if it is private; arguments and result as in the SDK."""
        stock = cast("Callable[..., Any]", super().request)
        if not self._is_private(uri, auth):
            return stock(method, uri, params, timeout, auth=auth, **rest)
        timeout, at_most = self._timeouts(timeout)
        params = _all_params(params, rest)
        refuse_repeats(self._SpotClient__session, self.URL)
        call = self._call(uri, params, at_most, rest)

        def send(step: Send) -> Heard:
            with leaving.Request(self, self._key, call, step) as request:
                try:
                    value = stock(*_address(method, uri, step), timeout, auth=auth, **_extras(uri, step, rest))
                    if hasattr(value, "status_code"):
                        request.hear(_raw_answer(step.method, value.status_code, value.content))
                except Exception as failure:  # noqa: BLE001 - whatever it is, it is heard
                    return request.heard(failure=failure)
                return request.heard(value)

        return self._guard.make(self._key, call, send)

    def _timeouts(self, timeout: Timeout) -> tuple[Timeout, float]:
        """Return the timeout to give to the SDK, and the longest that it makes of it in seconds.

        Before 3.5, the SDK takes its ``TIMEOUT`` instead of any timeout but its default.
        """
        own = bounded(self.TIMEOUT, self._guard.call_timeout)
        self.TIMEOUT = cast("int", own)  # which the SDK takes by itself
        chosen = own if timeout in (None, _SDK_TIMEOUT) else bounded(timeout, self._guard.call_timeout)
        return chosen, max(longest(chosen), longest(own))

    @property
    def _SpotClient__session(self) -> Any:  # noqa: N802 - the SDK's attribute, also where it sends and renews it
        """The session, as it is to be used now."""
        take_into_use(self._session)
        return self._session

    @_SpotClient__session.setter
    def _SpotClient__session(self, session: Any) -> None:  # noqa: N802
        self._session = session


class AsyncKrakenNonceMixin(_Signing, spot.SpotAsyncClient):
    """Puts the private calls of a client for asyncio under the lock, the token of a websocket client among them.

    It goes first: ``class Client(AsyncKrakenNonceMixin, kraken.spot.SpotWSClient)``. With one of the SDK's clients
    that are not for asyncio, ``SpotAsyncClient`` goes last:
    ``class Client(AsyncKrakenNonceMixin, kraken.spot.Earn, kraken.spot.SpotAsyncClient)``.

    Arguments and errors are those of `KrakenNonceMixin`; ``redis`` is a client of redis.asyncio, or a URL.
    """

    _guard: AsyncGuard
    _guard_type = AsyncGuard

    @property
    def _SpotAsyncClient__session(self) -> Any:  # noqa: N802 - the SDK's attribute, also where it closes
        """The session of this process: a forked child gets one of its own at its next use."""
        process, session = self._session
        if process.is_parent:
            self._guard.leave_to_parent()
            leave_to_parent(session)
            proxy = getattr(self, "_SpotAsyncClient__proxy", None)  # 3.0.0 has none
            session = type(session)(headers=self.HEADERS, **({"proxy": proxy} if proxy else {}))
            self._SpotAsyncClient__session = session
        watch(session)
        return session

    @_SpotAsyncClient__session.setter
    def _SpotAsyncClient__session(self, session: Any) -> None:  # noqa: N802
        self._session = _process.current(), session

    async def request(  # type: ignore[override] # the SDK's own asyncio client is one of its others, too
        self,
        method: str,
        uri: str,
        params: Mapping[str, Any] | None = None,
        timeout: float | None = _SDK_TIMEOUT,  # noqa: ASYNC109 - as the SDK has it
        *,
        auth: bool = True,
        **rest: Any,
    ) -> Any:
        """Make a call, under the lock if it is private; arguments and result as in the SDK."""
        stock = cast("Callable[..., Awaitable[Any]]", super().request)
        _ = self._SpotAsyncClient__session  # a child that waits for the lock must not hear what its parent is told
        if not self._is_private(uri, auth):
            return await stock(method, uri, params, timeout, auth=auth, **rest)
        timeout, at_most = self._timeouts(timeout)
        params = _all_params(params, rest)
        call = self._call(uri, params, at_most, rest)

        async def send(step: Send) -> Heard:
            with leaving.Request(self, self._key, call, step) as request:
                try:
                    value = await stock(*_address(method, uri, step), timeout, auth=auth, **_extras(uri, step, rest))
                    if hasattr(value, "read"):
                        request.hear(_raw_answer(step.method, value.status, await value.read()))
                except Exception as failure:  # noqa: BLE001 - whatever it is, it is heard
                    return request.heard(failure=failure)
                return request.heard(value)

        return await self._guard.make(self._key, call, send)

    def _timeouts(self, timeout: Any) -> tuple[Any, float]:
        """Return the timeout to give to the SDK, and the longest that it makes of it in seconds, as without asyncio."""
        own = self.TIMEOUT = cast("int", self._limited(self.TIMEOUT))
        if timeout in (None, _SDK_TIMEOUT):
            return own, own + _ROUNDED_UP
        total = getattr(timeout, "total", timeout)  # aiohttp's ClientTimeout has one, and urllib3's Timeout
        at_most = self._limited(total)
        chosen = timeout if hasattr(timeout, "sock_read") and total is not None else at_most
        return chosen, max(at_most, own) + _ROUNDED_UP

    def _limited(self, timeout: float | None) -> float:
        if timeout is None:
            return self._guard.call_timeout
        return arguments.seconds("timeout", timeout, 0.001, LONGEST_CALL)


class SpotClient(KrakenNonceMixin, spot.SpotClient):
    """``kraken.spot.SpotClient`` under the lock."""


class User(KrakenNonceMixin, spot.User):
    """``kraken.spot.User`` under the lock."""


class Trade(KrakenNonceMixin, spot.Trade):
    """``kraken.spot.Trade`` under the lock."""


class Funding(KrakenNonceMixin, spot.Funding):
    """``kraken.spot.Funding`` under the lock."""


class Earn(KrakenNonceMixin, spot.Earn):
    """``kraken.spot.Earn`` under the lock."""


class Market(KrakenNonceMixin, spot.Market):
    """``kraken.spot.Market``, whose calls are public and so not under the lock, with the same options."""


class SpotAsyncClient(AsyncKrakenNonceMixin, spot.SpotAsyncClient):
    """``kraken.spot.SpotAsyncClient`` under the lock."""


class SpotWSClient(AsyncKrakenNonceMixin, spot.SpotWSClient):
    """``kraken.spot.SpotWSClient`` that gets its token, and a new one for each connection, under the lock."""


# The SDK has no types for these as they are here, where every method gives an awaitable.
_spot: Any = spot


class _StandIn:
    """Stands in for a client in a method of the SDK that uses only these members of its client."""

    def __init__(self, **has: Any) -> None:
        vars(self).update(has)


class AsyncUser(AsyncKrakenNonceMixin, _spot.User, spot.SpotAsyncClient):  # type: ignore[misc]
    """``kraken.spot.User`` for asyncio, under the lock."""

    async def get_balance(self, currency: str) -> Any:
        """Return the balance of a currency and what of it is available, as in the SDK."""
        balances = await self.get_balances()
        return _spot.User.get_balance(_StandIn(get_balances=lambda: balances), currency)


class AsyncTrade(AsyncKrakenNonceMixin, _spot.Trade, spot.SpotAsyncClient):  # type: ignore[misc]
    """``kraken.spot.Trade`` for asyncio, under the lock. Only its `truncate` is not a coroutine, and blocks."""

    async def create_order(self, *args: Any, **kwargs: Any) -> Any:
        """Place an order, as in the SDK."""
        prepare = cast("Callable[..., Awaitable[Any]]", super().create_order)
        if not kwargs.get("truncate"):
            return await prepare(*args, **kwargs)
        # The SDK asks for the pair now, and blocks; the order itself goes out only when it is awaited.
        return await (await asyncio.to_thread(prepare, *args, **kwargs))


class AsyncFunding(AsyncKrakenNonceMixin, _spot.Funding, spot.SpotAsyncClient):  # type: ignore[misc]
    """``kraken.spot.Funding`` for asyncio, under the lock."""


class AsyncEarn(AsyncKrakenNonceMixin, _spot.Earn, spot.SpotAsyncClient):  # type: ignore[misc]
    """``kraken.spot.Earn`` for asyncio, under the lock."""


class AsyncMarket(AsyncKrakenNonceMixin, _spot.Market, spot.SpotAsyncClient):  # type: ignore[misc]
    """``kraken.spot.Market`` for asyncio; its answers are not cached."""

    # The SDK caches by client what these return, here a coroutine, which can be awaited only once.

    def get_assets(self, *args: Any, **kwargs: Any) -> Any:
        """Return the assets, as in the SDK."""
        return _spot.Market.get_assets(_StandIn(request=self.request), *args, **kwargs)

    def get_asset_pairs(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pairs, as in the SDK."""
        return _spot.Market.get_asset_pairs(_StandIn(request=self.request), *args, **kwargs)


class _Prepared(Exception):
    """Holds a prepared request."""


@functools.cache
def _check_seam() -> None:
    """Make sure, without a request, that this SDK's calls take their nonce from `get_nonce` in `_prepare_request`."""

    def probe(client: type[spot.SpotClient], method: str) -> object:
        class Probe(client):  # type: ignore[valid-type, misc]
            _key, _secret = "key", "c2VjcmV0"

            def get_nonce(self) -> str:
                return "1"

            def _prepare_request(self, **request: Any) -> Any:
                _, url, headers, params, _ = super()._prepare_request(**request)
                raise _Prepared(url.rpartition("/")[2], params, headers.get("API-Key"), "API-Sign" in headers)

        try:
            # No __init__, since that of asyncio's clients wants a loop; no await, since the first step gets there.
            getattr(Probe.__new__(Probe), method)().send(None)
        except _Prepared as prepared:
            return prepared.args
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, it isn't the SDK that we know
            return error
        return None

    seen = probe(spot.User, "get_account_balance"), probe(spot.SpotWSClient, "get_ws_token")
    if seen != tuple((method, {"nonce": "1"}, "key", True) for method in ("Balance", "GetWebSocketsToken")):
        raise _incompatible("its calls do not take their nonce from get_nonce() in _prepare_request()")
