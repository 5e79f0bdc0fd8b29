"""`kraken_nonce_redis.ccxt` for asyncio."""

from __future__ import annotations

from typing import Any

import ccxt.async_support

from kraken_nonce_redis.ccxt._calls import Calls, Unsigned
from kraken_nonce_redis.clients import AsyncGuard

__all__ = ["kraken"]


class AsyncCalls(Calls):
    """The methods of ccxt's Kraken classes for asyncio that differ. Comes before such a class."""

    _guard_type = AsyncGuard

    def _longest(self) -> float:
        return self._timeout() + 1  # aiohttp rounds up to a full second of the loop's clock

    async def fetch(self, url: Any, method: Any = "GET", headers: Any = None, body: Any = None) -> Any:
        """Send a request and return the decoded answer; a private one under the lock."""
        if not isinstance(body, Unsigned):
            return await super().fetch(url, method, headers, body)
        async with self._guard.call(self.apiKey, self._longest(), body.method) as lease:
            request = self._signed(body, lease.next_nonce())
            lease.check(self._longest())
            try:
                return await super().fetch(*request)
            except ccxt.BaseError as error:
                await self._guard.learn(self.apiKey, getattr(error, "kraken_errors", ()))
                raise


class kraken(AsyncCalls, ccxt.async_support.kraken):  # type: ignore[misc] # noqa: N801 - as ccxt names it
    """A ``ccxt.async_support.kraken`` whose private calls run under the lock.

    As `kraken_nonce_redis.ccxt.kraken`, with a URL or a client of redis.asyncio as ``redis``; ``timeout`` counts once,
    for the whole request. Nothing blocks the event loop.
    """

    _stock = ccxt.async_support.kraken
