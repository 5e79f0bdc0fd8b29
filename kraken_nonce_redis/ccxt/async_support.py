"""`kraken_nonce_redis.ccxt` for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ccxt.async_support

from kraken_nonce_redis import _process
from kraken_nonce_redis._calls import leaving
from kraken_nonce_redis._calls.aiohttp import leave_to_parent, watch
from kraken_nonce_redis._calls.guards import AsyncGuard
from kraken_nonce_redis.ccxt._adapter import Adapter, Unsigned, asking
from kraken_nonce_redis.ccxt.errors import as_ccxt
from kraken_nonce_redis.errors import IncompatibleClient

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._calls.call import Heard
    from kraken_nonce_redis._core.steps import Send

__all__ = ["kraken"]


class AsyncAdapter(Adapter):
    """The methods of ccxt's Kraken classes for asyncio that differ. Comes before such a class."""

    _guard_type = AsyncGuard
    session: Any
    socks_proxy_sessions: Any
    clients: Any

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self._process = _process.current()
        super().__init__(config)

    @as_ccxt()
    def _take_into_use(self) -> None:
        """Let ccxt begin anew with connections, loop and throttling if this process was forked from the client's.

        Raises `IncompatibleClient` for a session that is not ccxt's own, which can't be made anew.
        """
        if not self._process.is_parent:
            return
        if self.session is not None and not self.own_session:
            raise IncompatibleClient(
                type(self).__qualname__,
                "its session was made before this process was forked; make client and session after the fork",
            )
        self._guard.leave_to_parent()
        for session in (self.session, *(self.socks_proxy_sessions or {}).values()):
            if session is not None:
                leave_to_parent(session)
        self.session = self.tcp_connector = self.socks_proxy_sessions = self.aiohttp_socks_connector = None
        self.asyncio_loop = self.markets_loading = None
        self.reloading_markets = False
        self.clients = {}
        self.init_throttler()
        self._process = _process.current()

    def open(self, *args: Any, **kwargs: Any) -> None:
        """Make what calls need, as ccxt does."""
        self._take_into_use()
        super().open(*args, **kwargs)
        if self.session is not None:
            watch(self.session)

    def get_socks_proxy_session(self, *args: Any, **kwargs: Any) -> Any:
        """Return the session for a proxy, as ccxt does."""
        session = super().get_socks_proxy_session(*args, **kwargs)
        watch(session)
        return session

    async def close(self, *args: Any, **kwargs: Any) -> None:
        """Close what calls needed, as ccxt does."""
        self._take_into_use()
        await super().close(*args, **kwargs)

    async def throttle(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the turn of a call, as ccxt does."""
        self._take_into_use()
        await super().throttle(*args, **kwargs)

    async def load_markets(self, *args: Any, **kwargs: Any) -> Any:
        """Load the markets once, as ccxt does."""
        self._take_into_use()
        return await super().load_markets(*args, **kwargs)

    def _longest(self) -> float:
        return self._timeout() + 1  # aiohttp rounds up to a full second of the loop's clock

    async def fetch2(self, *args: Any, **kwargs: Any) -> Any:
        """Throttle and make a call, as ccxt does."""
        with asking():
            return await super().fetch2(*args, **kwargs)

    async def fetch(self, url: Any, method: Any = "GET", headers: Any = None, body: Any = None) -> Any:
        """Send a request and return the decoded answer; a private one under the lock."""
        self._take_into_use()
        if not isinstance(body, Unsigned):
            return await super().fetch(url, method, headers, body)
        stock = super().fetch

        async def send(step: Send) -> Heard:
            with leaving.Request(self, self.apiKey, call, step) as request:
                signed = self._signed(body, step)
                request.entered = True
                try:
                    value = await stock(*signed)
                except Exception as failure:  # noqa: BLE001 - whatever it is, it is heard
                    return request.heard(failure=failure)
                request.hear(value if isinstance(value, dict) else None)
                return request.heard(value)

        with as_ccxt():
            call = self._call(body)
            return await self._guard.make(self.apiKey, call, send)


class kraken(AsyncAdapter, ccxt.async_support.kraken):  # type: ignore[misc] # noqa: N801 - as ccxt names it
    """A ``ccxt.async_support.kraken`` whose private calls run under the lock.

    As `kraken_nonce_redis.ccxt.kraken`, with a URL or a client of redis.asyncio as ``redis``; ``timeout`` counts once,
    for the whole request. Nothing blocks the event loop.
    """

    _stock = ccxt.async_support.kraken
