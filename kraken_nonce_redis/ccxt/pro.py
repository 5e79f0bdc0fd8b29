"""`kraken_nonce_redis.ccxt` for ccxt's websocket client."""

from __future__ import annotations

import ccxt.pro

from kraken_nonce_redis.ccxt.async_support import AsyncAdapter

__all__ = ["kraken"]


class kraken(AsyncAdapter, ccxt.pro.kraken):  # type: ignore[misc] # noqa: N801 - as ccxt names it
    """A ``ccxt.pro.kraken`` whose private calls run under the lock; the one for the websocket's token is one of them.

    As `kraken_nonce_redis.ccxt.async_support.kraken`. What goes over the websocket needs no nonce and no lock.
    """

    _stock = ccxt.pro.kraken
