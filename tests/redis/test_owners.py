"""Who holds the lock where one thread has several callers: tasks, child tasks inside a hold, greenlets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import kraken_nonce_redis
from kraken_nonce_redis import CallLockError, HoldTimeout, LeaseLost, compat
from kraken_nonce_redis.asyncio import CallLock
from tests.support import forks
from tests.support.faces import KEY
from tests.support.helpers import KEYS, OneAtATime, View, eventually, fails

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from kraken_nonce_redis.asyncio import Lease
    from tests.support.servers import Server


@pytest.fixture
def lock(valkey: Server) -> CallLock:
    """Make a lock for asyncio."""
    return CallLock.from_url(valkey.url, KEY)


@pytest.fixture
def view(valkey: Server) -> View:
    """Look into Redis."""
    return View(valkey.client())


@pytest.fixture
def for_threads(valkey: Server) -> kraken_nonce_redis.CallLock:
    """Make a lock for threads, which the tests use in coroutines all the same."""
    return kraken_nonce_redis.CallLock.from_url(valkey.url, KEY)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; none of them may hang."""
    asyncio.run(asyncio.wait_for(main, 20))


async def call(lock: CallLock, alone: OneAtATime, *, seconds: float = 0.0, patience: float = 10) -> Lease:
    """Hold the lock for a moment, as a client's call does."""
    async with lock.hold(patience) as lease:
        with alone.inside(lease.nonce):
            await asyncio.sleep(seconds)
    return lease


# The lock for threads in coroutines.


def test_a_second_task_of_a_thread_is_refused(for_threads: kraken_nonce_redis.CallLock) -> None:
    """Waiting would stop the loop that the first task needs, so the second one gets an error that says what to use.

    Given a task that holds the lock for threads,
    if another task of the same thread asks for it, through any object,
    then it fails at once, whether it would wait for long or not at all; and the first one, undisturbed, nests.
    """

    async def intrude() -> None:
        with fails(CallLockError, KEYS.state, "event loop", "kraken_nonce_redis.asyncio") as caught, for_threads.hold():
            pass
        assert not isinstance(caught.value, HoldTimeout)
        with fails(CallLockError, "event loop"):
            for_threads.acquire(blocking_timeout=5)
        with fails(HoldTimeout), for_threads.hold(0):
            pass
        assert not for_threads.acquire(blocking=False)
        assert for_threads.lease is None
        with fails(CallLockError, "does not hold it"):
            for_threads.release()
        assert not for_threads.owned()

    async def main() -> None:
        with for_threads.hold() as lease:
            await asyncio.create_task(intrude())
            with for_threads.hold(0) as inner:
                assert lease.nonce < inner.nonce < lease.next_nonce()
            assert for_threads.owned()
        await asyncio.create_task(use(for_threads))

    run(main())
    with for_threads.hold(0):
        pass


async def use(lock: kraken_nonce_redis.CallLock) -> None:
    """Hold a lock that is free."""
    with lock.hold(0):
        await asyncio.sleep(0)


def test_a_hold_around_a_loop_is_not_its_tasks(for_threads: kraken_nonce_redis.CallLock) -> None:
    """A thread that holds the lock and then runs a loop is not one of the loop's tasks, nor is a callback."""
    errors = []

    def callback() -> None:
        with fails(CallLockError, "event loop") as caught, for_threads.hold():
            pass
        errors.append(caught.value)

    async def main() -> None:
        callback()
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0.01)

    with for_threads.hold():
        run(main())
    assert len(errors) == 2


def test_other_threads_wait_for_a_task(for_threads: kraken_nonce_redis.CallLock) -> None:
    """A call that a coroutine gives to a thread waits there, while the loop goes on; so in another thread's loop."""

    def other() -> int:
        with for_threads.hold(10) as lease:
            return lease.nonce

    async def in_another_loop() -> int:
        return other()

    async def main() -> None:
        with for_threads.hold() as lease:
            waiting = [
                asyncio.create_task(asyncio.to_thread(other)),
                asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(in_another_loop()))),
            ]
            await asyncio.sleep(0.1)
            assert not any(task.done() for task in waiting)
            last = lease.next_nonce()
        assert min(await asyncio.gather(*waiting)) > last

    run(main())


def test_a_lost_lease_of_a_task_is_waited_for_by_nobody(valkey: Server) -> None:
    """A second task of the thread may ask once the first one's lease has run out: it need not wait for that task."""
    lock = kraken_nonce_redis.CallLock.from_url(valkey.url, KEY, ttl=1)

    async def main() -> None:
        with fails(LeaseLost), lock.hold() as lease:
            await asyncio.sleep(lease.remaining() + 0.01)
            assert lease.lost
            await asyncio.create_task(use_later(lock))

    run(main())


async def use_later(lock: kraken_nonce_redis.CallLock) -> None:
    """Hold a lock that becomes free within moments."""
    with lock.hold(5):
        pass


def test_api_lock_of_compat(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of single-process nonce managers tells tasks apart as well."""
    monkeypatch.setenv("KRAKEN_NONCE_REDIS_URL", valkey.url)
    lock = compat.get_kraken_api_lock()

    async def intrude() -> None:
        assert not lock.acquire(blocking=False)
        with fails(CallLockError, "event loop"):
            lock.acquire()
        with fails(CallLockError, "does not hold it"):
            lock.release()

    async def main() -> None:
        with lock:
            await asyncio.create_task(intrude())
            assert lock.lease is not None

    run(main())


@pytest.mark.parametrize("way", ["gevent owners", "gevent owners with a loop"])
def test_greenlets(valkey: Server, tmp_path: Path, way: str) -> None:
    """A greenlet is an owner of its own: it waits for another one's hold, nested holds are its own, others go on."""
    forks.run(way, valkey.url, tmp_path / "record")


# Child tasks.


def test_a_child_task_shares_the_hold(lock: CallLock, view: View) -> None:
    """A call in a child task of the holder is made under its lease, as by `asyncio.wait_for`, which makes one on 3.11.

    The parent's nonce stays as it was, and its next one is above the child's.
    """

    async def main() -> None:
        async with lock.hold() as lease:
            before, holder = lease.nonce, view.state.holder
            inner = await asyncio.create_task(call(lock, OneAtATime(), patience=0))
            assert before == lease.nonce < inner.nonce < lease.next_nonce()
            assert inner.lost
            assert not lease.lost
            assert (view.state.holder, view.state.leased) == (holder, True)
            await asyncio.wait_for(call(lock, OneAtATime(), patience=0), 5)
        assert not await lock.locked()

    run(main())


def test_child_tasks_take_turns(lock: CallLock, view: View) -> None:
    """Calls inside one hold are made one after the other, whoever makes them, in the order in which they were begun."""
    alone = OneAtATime()

    async def main() -> None:
        async with lock.hold():
            children = [asyncio.create_task(call(lock, alone, seconds=0.002)) for _ in range(5)]
            await asyncio.sleep(0.001)
            own = await call(lock, alone)
            leases = [await child for child in children]
            assert alone.order == [*(lease.nonce for lease in leases), own.nonce]
            await asyncio.gather(*(call(lock, alone) for _ in range(5)))
        assert alone.order == sorted(set(alone.order))
        assert len(alone.order) == 11

    run(main())
    view.assert_nothing_left()


def test_nobody_goes_before_those_who_wait_for_a_turn(lock: CallLock) -> None:
    """A parent that nests again at once goes behind the child that has waited meanwhile."""
    alone = OneAtATime()

    async def main() -> None:
        async with lock.hold():
            child = asyncio.create_task(call(lock, alone))
            async with lock.hold():
                await asyncio.sleep(0.01)
            own = await call(lock, alone)
            assert alone.order == [(await child).nonce, own.nonce]

    run(main())


def test_who_waits_for_a_child_holds_it_up_at_no_depth(lock: CallLock) -> None:
    """A parent may wait for its child in a nested hold, and that one for its own child."""
    depth = 0

    async def nest(level: int) -> None:
        nonlocal depth
        async with lock.hold(5), lock.hold(5):
            depth += 1
            if level:
                await asyncio.create_task(nest(level - 1))

    run(nest(3))
    assert depth == 4


def test_a_turn_has_a_timeout(lock: CallLock) -> None:
    """Who waits for a turn inside a hold waits as long as it says, and those behind it are served."""
    alone = OneAtATime()

    async def main() -> None:
        async with lock.hold():
            long = asyncio.create_task(call(lock, alone, seconds=0.2))
            await asyncio.sleep(0.01)
            short = [asyncio.create_task(call(lock, alone, patience=timeout)) for timeout in (0, 0.05)]
            cancelled = asyncio.create_task(call(lock, alone))
            last = asyncio.create_task(call(lock, alone))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            for child in short:
                with fails(HoldTimeout, KEYS.state):
                    await child
            assert not long.done()
            assert await long
            assert await last
            assert cancelled.cancelled()

    run(main())


def test_the_first_in_line_is_cancelled_when_its_turn_has_come(lock: CallLock) -> None:
    """The next one gets the turn of a child that is cancelled after it was woken and before it ran."""
    alone = OneAtATime()

    async def main() -> None:
        async with lock.hold():
            first, second = (asyncio.create_task(call(lock, alone)) for _ in range(2))
            async with lock.hold():
                await asyncio.sleep(0.01)
            first.cancel()
            await second
        assert first.cancelled()

    run(main())


def test_a_child_that_outlives_the_hold_asks_for_itself(lock: CallLock, view: View) -> None:
    """After the hold a child is a caller as any other, also one that has waited for its turn.

    Given a hold that ends while a child is in the middle of a call, and another child waits for its turn,
    then the lock is released when that call is over, and the other child gets a lease of its own;
    a child that begins later waits for whoever holds the lock then.
    """
    alone = OneAtATime()
    may_begin = asyncio.Event()

    async def later() -> None:
        await may_begin.wait()
        with fails(HoldTimeout):
            await call(lock, alone, patience=0)

    async def main() -> None:
        async with lock.hold() as lease:
            holder = view.state.holder
            busy = asyncio.create_task(call(lock, alone, seconds=0.5))
            await asyncio.sleep(0.01)
            waits = asyncio.create_task(call(lock, alone, seconds=0.1))
            late = asyncio.create_task(later())
            await asyncio.sleep(0.01)
        assert lease.lost
        assert lock.lease is None
        assert (view.state.holder, view.state.leased) == (holder, True)
        await asyncio.to_thread(view.until_waiting, 1)
        assert not busy.done()
        await busy
        eventually(lambda: view.state.holder != holder)
        await waits
        async with lock.hold():
            assert view.state.holder != holder
            may_begin.set()
            await late

    run(main())
    view.until_free()


def test_a_child_waits_with_its_own_timeout_when_the_hold_ends(lock: CallLock) -> None:
    """The time that a child has waited for its turn counts when it then waits for the lock."""

    async def main() -> None:
        async with lock.hold():
            busy = asyncio.create_task(call(lock, OneAtATime(), seconds=0.4))
            await asyncio.sleep(0.01)
            child = asyncio.create_task(call(lock, OneAtATime(), patience=0.3))
            await asyncio.sleep(0.2)
        began = asyncio.get_running_loop().time()
        with fails(HoldTimeout):
            await child
        assert asyncio.get_running_loop().time() - began < 0.25
        await busy

    run(main())


def test_a_nested_hold_of_a_child_is_lost_with_the_lease(lock: CallLock, view: View) -> None:
    """What is lost is lost for the children, too."""

    async def main() -> None:
        async with lock.hold() as lease:
            view.client.flushall()
            with fails(LeaseLost):
                await lease.extend(5)
            with fails(LeaseLost, KEYS.state):
                await asyncio.create_task(call(lock, OneAtATime()))
            with fails(LeaseLost, KEYS.state):
                await call(lock, OneAtATime())

    with fails(LeaseLost):
        run(main())


# What a lock object has acquired.


def test_any_task_releases_what_the_object_acquired(lock: CallLock, valkey: Server, view: View) -> None:
    """`asyncio.wait_for` may acquire in a task of its own, and a fixture is torn down in another than it was set up in.

    As redis-py's token, the lease belongs to the lock object: not to another object, and not if `hold` has taken it.
    """
    other = CallLock.from_url(valkey.url, KEY)

    async def main() -> None:
        assert await asyncio.create_task(lock.acquire())
        assert await lock.owned()
        assert not await other.owned()
        with fails(CallLockError, "does not hold it"):
            await other.release()
        await lock.extend(60)
        assert view.state.left > 80
        await lock.reacquire()
        assert view.state.left <= 30
        assert not await lock.acquire(blocking=False)
        await asyncio.create_task(lock.release())
        assert not view.state.leased
        with fails(CallLockError, "does not hold it"):
            await lock.release()
        assert await asyncio.wait_for(lock.acquire(), 5)
        await lock.release()
        await asyncio.create_task(lock.__aenter__())
        await asyncio.create_task(lock.__aexit__(None, None, None))
        async with lock.hold():
            with fails(CallLockError, "does not hold it"):
                await asyncio.create_task(lock.release())

    run(main())
    view.assert_nothing_left()


def test_a_hold_ends_in_another_task(lock: CallLock, view: View) -> None:
    """A ``with`` block of a fixture may be entered in one task and left in another one."""

    async def main() -> None:
        hold = lock.hold()
        lease = await asyncio.create_task(hold.__aenter__())
        assert not lease.lost
        await asyncio.create_task(hold.__aexit__(None, None, None))
        assert lease.lost

    run(main())
    view.assert_nothing_left()
