"""Cancelling tasks, over and over; interrupting a thread at every step of what it does."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import sys
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kraken_nonce_redis
from kraken_nonce_redis import StoreUnavailable
from kraken_nonce_redis.asyncio import CallLock
from tests.support.faces import KEY
from tests.support.helpers import View

if TYPE_CHECKING:
    from types import FrameType

    from tests.support.servers import Server

ROUNDS = 80
PLACES = (str(Path(kraken_nonce_redis.__file__).parent), contextlib.__file__)


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
            # Other callers, and no child tasks within the hold.
            cancelled, other = (asyncio.create_task(turn(lock), context=Context()) for _ in range(2))
            await asyncio.sleep(pauses.random() * 0.01)
            cancelled.cancel()
            ended, _ = await asyncio.wait({cancelled}, timeout=5)
            assert ended, f"round {number}"
            assert cancelled.cancelled()
        async with asyncio.timeout(5):
            await other

    for number in range(ROUNDS):
        asyncio.run(one_round(number))


class TimeLimit(Exception):
    """What a signal handler raises, such as celery's for its soft time limit."""


INTERRUPTIONS = (KeyboardInterrupt, TimeLimit)
# In the middle of a command's bytes, the connection is lost, and an `Exception` is told as that.
ENDINGS = (*INTERRUPTIONS, StoreUnavailable)


class Interruption:
    """Ctrl-C, or what else a signal handler raises, when the library's functions were entered and left so often."""

    def __init__(self, number: int, kind: type[BaseException] = KeyboardInterrupt) -> None:
        self.left = number
        self._kind = kind

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PLACES):
            return None
        frame.f_trace_lines = False
        # Python looks for signals when a function is entered and when it has returned, but not when one yields.
        if event == "call" or (event == "return" and not frame.f_code.co_flags & inspect.CO_GENERATOR):
            self.left -= 1
            if self.left == 0:
                raise self._kind
        return self._trace


@pytest.mark.parametrize("kind", INTERRUPTIONS)
def test_interrupted_at_any_point(valkey: Server, kind: type[BaseException]) -> None:
    """Wherever an interruption strikes in a hold, the lock is free for others at once, and the thread has nothing."""
    client, view = valkey.client(), View(valkey.client())
    lock = kraken_nonce_redis.CallLock(client, KEY)
    number, interrupted = 0, True
    while interrupted:
        number += 1
        interruption = Interruption(number, kind)
        try:
            with interruption, lock.hold(5):
                pass
        except ENDINGS:
            pass
        interrupted = interruption.left <= 0
        assert lock.lease is None, f"after {number} steps"
        view.until_free()
    assert number > 200


@pytest.mark.parametrize("kind", INTERRUPTIONS)
def test_a_nested_hold_interrupted_at_any_point(valkey: Server, kind: type[BaseException]) -> None:
    """Wherever an interruption strikes in a nested hold, the outer one is as before, and its end frees the lock."""
    view = View(valkey.client())
    lock = kraken_nonce_redis.CallLock(valkey.client(), KEY)
    number, interrupted = 0, True
    while interrupted:
        number += 1
        interruption = Interruption(number, kind)
        with lock.hold(5) as outer:
            with contextlib.suppress(*ENDINGS), interruption, lock.hold(5):
                pass
            interrupted = interruption.left <= 0
            assert lock.lease is outer, f"after {number} steps"
            with lock.hold(0) as inner:
                assert outer.nonce < inner.nonce
            assert view.state.leased
        view.until_free()
    assert number > 20
