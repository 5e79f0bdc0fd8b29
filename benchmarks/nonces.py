"""The price of a nonce: `NonceAllocator.next` against a bare INCR, `Lease.next_nonce` against a manager in memory.

The INCR is one of the same redis-py client. A manager in memory is what a bot of a single process uses: a re-entrant
lock around the clock and the last nonce. The goal is by the barest one; the one with statistics also counts, in all
and in the last second, as those that bots use do. Everything is measured by threads and by asyncio.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import common
import redis.asyncio

from kraken_nonce_redis import CallLock, NonceAllocator
from kraken_nonce_redis import asyncio as nonce_asyncio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

IN_MEMORY = 1_000  # nonces a round


class Manager:
    """A nonce manager for one process, the barest."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._last = 0

    def next_nonce(self) -> int:
        """Return the time in nanoseconds, or one more than the last nonce when that is higher."""
        with self._lock:
            nonce = time.time_ns()
            if nonce <= self._last:
                nonce = self._last + 1
            self._last = nonce
            return nonce


class CountingManager(Manager):
    """A nonce manager with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.recent: deque[int] = deque()

    def next_nonce(self) -> int:
        """Return the next nonce and count it."""
        with self._lock:
            nonce = super().next_nonce()
            self.total += 1
            self.recent.append(nonce)
            while self.recent[0] < nonce - 10**9:
                self.recent.popleft()
            return nonce


def rate(take: Callable[[], object], count: int) -> float:
    """Return calls a second."""
    start = time.perf_counter()
    for _ in range(count):
        take()
    return count / (time.perf_counter() - start)


async def rate_in_a_task(take: Callable[[], Awaitable[object]], count: int) -> float:
    """Return calls a second, by asyncio."""
    start = time.perf_counter()
    for _ in range(count):
        await take()
    return count / (time.perf_counter() - start)


def report(
    bench: common.Bench,
    face: str,
    rounds: int,
    *,
    incr: Callable[[], float],
    next_nonce: Callable[[], float],
    in_a_lease: Callable[[], float],
) -> None:
    """Measure the rates of one face, and those of the managers beside its leases."""
    incrs, nexts = bench.measure("/s", rounds, {f"{face}: INCR": incr, f"{face}: next": next_nonce}).values()
    bench.compare(f"{face}: NonceAllocator.next, by INCR", nexts, incrs, ">= 1.2")

    manager, counting = Manager(), CountingManager()
    barest, with_statistics, from_lease = bench.measure(
        "/s",
        rounds,
        {
            f"{face}: manager in memory": lambda: rate(manager.next_nonce, IN_MEMORY),
            f"{face}: manager in memory, with statistics": lambda: rate(counting.next_nonce, IN_MEMORY),
            f"{face}: Lease.next_nonce": in_a_lease,
        },
    ).values()
    bench.compare(f"{face}: Lease.next_nonce, by the manager", from_lease, barest, ">= 3")
    bench.compare(f"{face}: Lease.next_nonce, by the manager with statistics", from_lease, with_statistics)


def measure_threads(bench: common.Bench, rounds: int, count: int) -> None:
    """Measure by threads."""
    allocator = NonceAllocator(bench.client, common.API_KEY, namespace=bench.namespace)
    lock = CallLock(bench.client, common.API_KEY, namespace=bench.namespace)
    counter = f"{bench.namespace}:counter"

    def in_a_lease() -> float:
        with lock.hold() as lease:
            return rate(lease.next_nonce, IN_MEMORY)

    report(
        bench,
        "threads",
        rounds,
        incr=lambda: rate(lambda: bench.client.incr(counter), count),
        next_nonce=lambda: rate(allocator.next, count),
        in_a_lease=in_a_lease,
    )


def measure_tasks(bench: common.Bench, rounds: int, count: int) -> None:
    """Measure by asyncio."""
    with asyncio.Runner() as runner:
        client = redis.asyncio.Redis.from_url(bench.url)
        allocator = nonce_asyncio.NonceAllocator(client, common.API_KEY, namespace=bench.namespace)
        lock = nonce_asyncio.CallLock(client, common.API_KEY, namespace=bench.namespace)
        counter = f"{bench.namespace}:counter"

        async def in_a_lease() -> float:
            async with lock.hold() as lease:
                return rate(lease.next_nonce, IN_MEMORY)

        report(
            bench,
            "asyncio",
            rounds,
            incr=lambda: runner.run(rate_in_a_task(lambda: client.incr(counter), count)),
            next_nonce=lambda: runner.run(rate_in_a_task(allocator.next, count)),
            in_a_lease=lambda: runner.run(in_a_lease()),
        )
        runner.run(client.aclose())


def main() -> None:
    """Measure and report."""
    options = common.parser(__doc__, rounds=200)
    options.add_argument("--count", type=int, default=100, help="nonces from Redis a round (%(default)s)")
    args = options.parse_args()
    with common.running(args.redis) as bench:
        bench.caveats.append("one thread of one process: neither Redis nor the manager's lock is contended")
        measure_threads(bench, args.rounds, args.count)
        measure_tasks(bench, args.rounds, args.count)
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
