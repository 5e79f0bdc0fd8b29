"""Cancelling tasks, over and over."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from kraken_nonce_redis.asyncio import CallLock

if TYPE_CHECKING:
    from tests.support.servers import Server

ROUNDS = 80


def test_no_cancellation_is_swallowed(valkey: Server) -> None:
    """A task that is cancelled in the first milliseconds of its wait ends, and the one behind it gets the lock.

    Each round has a loop and connections of its own, since most can go wrong while these are made.
    """
    pauses = random.Random(7)

    async def turn(lock: CallLock) -> None:
        async with lock.hold():
            pass

    async def one_round(number: int) -> None:
        lock = CallLock.from_url(valkey.url, f"key {number}")
        async with lock.hold():
            cancelled, other = asyncio.create_task(turn(lock)), asyncio.create_task(turn(lock))
            await asyncio.sleep(pauses.random() * 0.01)
            cancelled.cancel()
            ended, _ = await asyncio.wait({cancelled}, timeout=5)
            assert ended, f"round {number}"
            assert cancelled.cancelled()
        async with asyncio.timeout(5):
            await other

    for number in range(ROUNDS):
        asyncio.run(one_round(number))
