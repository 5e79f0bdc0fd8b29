"""The price of a nonce: `NonceAllocator.next` against a bare INCR, `Lease.next_nonce` against a manager in memory.

The INCR is one of the same redis-py client. A manager in memory is what a bot of a single process uses: a re-entrant
lock around the clock and the last nonce. The goal is by the barest one; the one with statistics also counts, in all
and in the last second, as those that bots use do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import common

from kraken_nonce_redis import CallLock, NonceAllocator

if TYPE_CHECKING:
    from collections.abc import Callable

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


def main() -> None:
    """Measure and report."""
    options = common.parser(__doc__, rounds=200)
    options.add_argument("--count", type=int, default=100, help="nonces from Redis a round (%(default)s)")
    args = options.parse_args()
    with common.running(args.redis) as bench:
        bench.caveats.append("one thread of one process: neither Redis nor the manager's lock is contended")
        allocator = NonceAllocator(bench.client, common.API_KEY, namespace=bench.namespace)
        lock = CallLock(bench.client, common.API_KEY, namespace=bench.namespace)
        manager, counting = Manager(), CountingManager()
        counter = f"{bench.namespace}:counter"

        incr, from_redis = bench.measure(
            "/s",
            args.rounds,
            {
                "INCR": lambda: rate(lambda: bench.client.incr(counter), args.count),
                "NonceAllocator.next": lambda: rate(allocator.next, args.count),
            },
        ).values()
        bench.compare("NonceAllocator.next, by INCR", from_redis, incr, ">= 0.8")

        def in_a_lease() -> float:
            with lock.hold() as lease:
                return rate(lease.next_nonce, IN_MEMORY)

        barest, with_statistics, from_lease = bench.measure(
            "/s",
            args.rounds,
            {
                "manager in memory": lambda: rate(manager.next_nonce, IN_MEMORY),
                "manager in memory, with statistics": lambda: rate(counting.next_nonce, IN_MEMORY),
                "Lease.next_nonce": in_a_lease,
            },
        ).values()
        bench.compare("Lease.next_nonce, by the manager", from_lease, barest, ">= 3")
        bench.compare("Lease.next_nonce, by the manager with statistics", from_lease, with_statistics)
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
