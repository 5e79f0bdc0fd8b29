"""Different clients in different processes on one API key."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import kraken_nonce_redis.ccxt.async_support
from kraken_nonce_redis.kraken_sdk import User
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.testing import KrakenSimulator
from tests.support.children import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.servers import Server

CALLS = 30


def ccxt_config(key: str, secret: str, uri: str, redis: str) -> dict[str, object]:
    """Return a config for ccxt's classes."""
    return {
        "apiKey": key,
        "secret": secret,
        "enableRateLimit": False,
        "urls": {"api": {"public": uri, "private": uri}},
        "redis": redis,
    }


def with_krakenex(key: str, secret: str, uri: str, redis: str) -> None:
    """Make calls with krakenex."""
    api = API(key, secret, redis=redis)
    api.uri = uri
    for _ in range(CALLS):
        assert api.query_private("Balance")["error"] == []
    api.close()


def with_ccxt(*access: str) -> None:
    """Make calls with ccxt."""
    exchange = kraken_nonce_redis.ccxt.kraken(ccxt_config(*access))
    for _ in range(CALLS):
        exchange.private_post_balance()
    exchange.session.close()


def with_ccxt_async(*access: str) -> None:
    """Make calls with ccxt for asyncio, several at once."""

    async def call() -> None:
        exchange = kraken_nonce_redis.ccxt.async_support.kraken(ccxt_config(*access))
        try:
            for _ in range(CALLS // 5):
                await asyncio.gather(*(exchange.private_post_balance() for _ in range(5)))
        finally:
            await exchange.close()

    asyncio.run(call())


def with_kraken_sdk(key: str, secret: str, uri: str, redis: str) -> None:
    """Make calls with python-kraken-sdk."""
    user = User(key=key, secret=secret, url=uri, redis=redis)
    for _ in range(CALLS):
        user.get_account_balance()


@pytest.mark.test_all
@pytest.mark.once
def test_four_kinds_of_clients(valkey: Server) -> None:
    """krakenex, ccxt, ccxt with asyncio and python-kraken-sdk share a key: none is refused, one call at a time."""
    kinds: list[Callable[..., None]] = [with_krakenex, with_ccxt, with_ccxt_async, with_kraken_sdk]
    with KrakenSimulator(latency=(0.0005, 0.008)) as sim:
        processes = [CONTEXT.Process(target=kind, args=(sim.key, sim.secret, sim.url, valkey.url)) for kind in kinds]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0, 0, 0]
        arrived = sim.requests()
    assert len(arrived) == 4 * CALLS
    assert not any(request.error for request in arrived)
    assert all((a.nonce or 0) < (b.nonce or 0) for a, b in pairwise(arrived))
    assert max(request.in_flight for request in arrived) == 1
