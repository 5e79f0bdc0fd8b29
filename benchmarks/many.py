"""What large numbers cost: of API keys, of waiting tasks and threads, of waiters in the queue.

1. Bytes in Redis for each API key: one that only had nonces, and one whose lock is held with a pace.
2. Tasks, then threads, of this process that all wait for one lock: the connections that the server counts, and how
   long it takes until each has had its turn.
3. The server's time for each script, by the number of waiters in the queue.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from typing import TYPE_CHECKING

import common
import redis
import redis.asyncio

from kraken_nonce_redis import CallLock, NonceAllocator, Pace
from kraken_nonce_redis import asyncio as nonce_asyncio
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._threads.store import store_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kraken_nonce_redis._redis.command import Command

PACE = Pace(min_interval=0.2, tier="pro")
TTL = 30.0
PATIENCE = 60.0  # seconds for all to come or to go
DEPTHS = (0, 100, 1_000, 10_000)
PROCESSES = 100  # of the waiters in a queue
STACK = 256 * 1024


def measure_keys(bench: common.Bench, count: int) -> None:
    """Note the bytes of each API key."""
    before = bench.client.info("memory")["used_memory"]
    allocators = [NonceAllocator(bench.client, f"key {n}", namespace=bench.namespace) for n in range(count)]
    for allocator in allocators:
        allocator.next()
    nonces = bench.client.info("memory")["used_memory"]
    for number in range(count):
        CallLock(bench.client, f"key {number}", ttl=TTL, pace=PACE, namespace=bench.namespace).acquire()
    locks = bench.client.info("memory")["used_memory"]
    bench.note("API key with nonces: used_memory", "bytes", [(nonces - before) / count])
    bench.note("API key, held with a pace: used_memory", "bytes", [(locks - before) / count])
    usage = [bench.client.memory_usage(key) for key in bench.keys()[:1000]]
    bench.note("API key, held with a pace: MEMORY USAGE", "bytes", usage)


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {PATIENCE:g} s: {condition}")
        time.sleep(0.05)


def measure_threads(bench: common.Bench, count: int) -> None:
    """Note the connections of threads that wait, and the time that they take to get through."""
    others = len(bench.client.client_list())
    with redis.Redis.from_url(bench.url) as client:
        lock = CallLock(client, "threads", ttl=TTL, namespace=bench.namespace)

        def take_part() -> None:
            with lock.hold():
                pass

        threading.stack_size(STACK)
        threads = [threading.Thread(target=take_part) for _ in range(count)]
        with lock.hold():
            for thread in threads:
                thread.start()
            _eventually(lambda: bench.client.zcard(lock.keys.queue) == count + 1)
            _note_connections(bench, f"{count} threads", others)
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        _note_turn(bench, f"{count} threads", count, start)


async def measure_tasks(bench: common.Bench, count: int) -> None:
    """Note the connections of tasks that wait, and the time that they take to get through."""
    others = len(bench.client.client_list())
    async with redis.asyncio.Redis.from_url(bench.url) as client:
        lock = nonce_asyncio.CallLock(client, "tasks", ttl=TTL, namespace=bench.namespace)

        async def take_part() -> None:
            async with lock.hold():
                pass

        async with lock.hold():
            tasks = [asyncio.create_task(take_part()) for _ in range(count)]
            await asyncio.to_thread(_eventually, lambda: bench.client.zcard(lock.keys.queue) == count + 1)
            _note_connections(bench, f"{count} tasks", others)
        start = time.perf_counter()
        await asyncio.gather(*tasks)
        _note_turn(bench, f"{count} tasks", count, start)


def _note_connections(bench: common.Bench, who: str, others: int) -> None:
    connections = len(bench.client.client_list()) - others
    bench.ratios.append(common.Ratio(f"{who} waiting: connections", connections, "= 2"))


def _note_turn(bench: common.Bench, who: str, count: int, start: float) -> None:
    bench.note(f"{who}: time of a turn", "µs", [(time.perf_counter() - start) / count * 1e6])


class Crowd:
    """A lock that is held, and a queue of waiters in it; they are entries only, nobody sleeps."""

    def __init__(self, bench: common.Bench, size: int) -> None:
        self._bench = bench
        self._store = store_for(bench.client)
        self._keys = Keyspace.of(bench.namespace, f"crowd of {size}")
        self._numbers = itertools.count()
        self._queue: list[str] = []
        self._ask(self._join())
        for _ in range(size):
            self._ask(self._join())

    def _join(self) -> str:
        number = next(self._numbers)
        self._queue.append(f"{self._bench.namespace}-{number % PROCESSES}:{number}")
        return self._queue[-1]

    def _ask(self, member: str) -> float:
        command = commands.acquire(self._keys, member, TTL, ticket=0, priority="normal", pace="")
        return self._microseconds(command)

    def _microseconds(self, command: Command[object]) -> float:
        """Run a command and return the server's own time for it."""
        before = self._spent()
        self._store.run(command)
        return self._spent() - before

    def _spent(self) -> float:
        stats = self._bench.client.info("commandstats")
        return float(sum(stats[name]["usec"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats))

    def times(self) -> Iterator[tuple[str, float]]:
        """Let the holder go, the next one in and a new one queue up; yield the time of each script."""
        holder = self._queue.pop(0)
        yield "release", self._microseconds(commands.release(self._keys, holder))
        if self._queue:
            yield "acquire, granted", self._ask(self._queue[0])
            yield "acquire, queued", self._ask(self._join())
        else:
            yield "acquire, granted", self._ask(self._join())
        if len(self._queue) > 1:
            member = self._queue[1]
            yield "heartbeat", self._microseconds(commands.heartbeat(self._keys, member.partition(":")[0], member))


def measure_scripts(bench: common.Bench, rounds: int) -> None:
    """Note the server's time for each script with so many waiters in the queue."""
    crowds = {depth: Crowd(bench, depth) for depth in DEPTHS}
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for depth, crowd in crowds.items():
            for script, microseconds in crowd.times():
                found.setdefault((script, depth), []).append(microseconds)
    for (script, depth), values in sorted(found.items()):
        bench.note(f"{script}, {depth:,} waiting", "µs", values)
    for script in ("release", "acquire, granted", "acquire, queued", "heartbeat"):
        bench.compare(f"{script}: 10,000 waiting, by 100", found[script, 10_000], found[script, 100])


def main() -> None:
    """Measure and report."""
    options = common.parser(__doc__, rounds=100)
    options.add_argument("--keys", type=int, default=10_000, help="API keys (%(default)s)")
    options.add_argument("--waiting", type=int, default=1_000, help="tasks, and threads (%(default)s)")
    args = options.parse_args()
    with common.running(args.redis) as bench:
        bench.caveats.append("used_memory and connections are the whole server's: nobody else may use it meanwhile")
        bench.caveats.append("the server counts whole microseconds of wall time, so pauses of the machine are included")
        measure_keys(bench, args.keys)
        asyncio.run(measure_tasks(bench, args.waiting))
        measure_threads(bench, args.waiting)
        measure_scripts(bench, args.rounds)
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
