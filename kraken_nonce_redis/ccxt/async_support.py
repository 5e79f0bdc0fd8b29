"""`kraken_nonce_redis.ccxt` for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ccxt.async_support

from kraken_nonce_redis._calls.guards import AsyncGuard
from kraken_nonce_redis.ccxt._adapter import Adapter, Unsigned, of_failure, of_value

if TYPE_CHECKING:
    from kraken_nonce_redis._calls.call import Heard
    from kraken_nonce_redis._core.steps import Send

__all__ = ["kraken"]


class AsyncAdapter(Adapter):
    """The methods of ccxt's Kraken classes for asyncio that differ. Comes before such a class."""

    _guard_type = AsyncGuard

    def _longest(self) -> float:
        return self._timeout() + 1  # aiohttp rounds up to a full second of the loop's clock

    async def fetch(self, url: Any, method: Any = "GET", headers: Any = None, body: Any = None) -> Any:
        """Send a request and return the decoded answer; a private one under the lock."""
        if not isinstance(body, Unsigned):
            return await super().fetch(url, method, headers, body)
        stock = super().fetch

        async def send(step: Send) -> Heard:
            request = self._signed(body, step)
            step.check()
            try:
                return of_value(await stock(*request))
            except Exception as failure:  # noqa: BLE001 - whatever it is, it is heard
                return of_failure(failure)

        return await self._guard.make(self.apiKey, self._call(body), send)


class kraken(AsyncAdapter, ccxt.async_support.kraken):  # type: ignore[misc] # noqa: N801 - as ccxt names it
    """A ``ccxt.async_support.kraken`` whose private calls run under the lock.

    As `kraken_nonce_redis.ccxt.kraken`, with a URL or a client of redis.asyncio as ``redis``; ``timeout`` counts once,
    for the whole request. Nothing blocks the event loop.
    """

    _stock = ccxt.async_support.kraken
