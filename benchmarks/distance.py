"""What distance costs: many callers of one process, and processes far away, by threads and by asyncio.

A proxy in a process of its own makes every round trip longer. The rivals are the leanest commands on redis-py's pool
with a connection for each caller: an INCR for a nonce; SET NX and a script that deletes for a lock.

    crowd    50 callers, each with a key of its own, 0, 5 and 50 ms away; a hold counts as two commands.
    alone    one caller, 0 ms away.
    calls    two callers on each of 50 keys, whose calls take 200 ms, 5 ms away. Ideal is that a key's next call begins
             200 ms and two round trips after the one before.
    many     1,000 callers on 200 keys, 5 ms away: commands a second, and the connections that the server counts.
    fair     a process far away beside a near one with one caller, all on one key with holds of 1 ms. A fair order
             serves each caller alike, so that the far process has its callers' share of all holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import resource
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import common
import redis
import redis.asyncio

from kraken_nonce_redis import CallLock, NonceAllocator
from kraken_nonce_redis import asyncio as nonce_asyncio

sys.path.insert(0, str(Path(__file__).parents[1]))  # the distance is that of the tests
from tests.support.distance import away

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

Call = Any
"""A function of a caller, of a coroutine for asyncio."""

CROWD: Final = 50  # callers, and keys
DISTANCES: Final = {0.0: ">= 1.3", 0.005: ">= 1.3", 0.05: ">= 1.0"}  # seconds: goal
NEAR: Final = 0.005
CALL: Final = 0.2  # seconds
IDEAL: Final = CALL + 2 * NEAR
CALLS: Final = 10  # ideal calls of a key in a round
SETTLE: Final = 1.0  # seconds before the time that counts
ROUND_TRIPS_TO_BEGIN: Final = 10  # two connections, a place in the queue, and the end of an offer that nobody heard
MANY, MANY_KEYS = 1_000, 200
FAIR: Final = [(10, 0.1), (50, 0.05), (150, 0.3)]
ALL_FAIR: Final = list(itertools.product((10, 50, 150), (0.01, 0.05, 0.1, 0.3)))
HOLD: Final = 0.001
STACK: Final = 256 * 1024
TTL_MS: Final = 30_000

RELEASE: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"


@dataclass(frozen=True)
class Run:
    """What callers did: calls that ended, and when they began and ended, of `time.monotonic`."""

    calls: int
    start: float
    end: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / (self.end - self.start)


class Threads:
    """Callers that are threads."""

    name = "threads"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def all_at_once(self, calls: Sequence[Call], seconds: float) -> Run:
        """Let each caller make its call again and again for a time; the last ones end later."""
        start = end = 0.0

        def begin() -> None:
            nonlocal start, end
            start = time.monotonic()
            end = start + seconds

        barrier = threading.Barrier(len(calls), begin)

        def go_on(call: Call) -> int:
            barrier.wait()
            count = 0
            while time.monotonic() < end:
                call()
                count += 1
            return count

        with ThreadPoolExecutor(len(calls)) as pool:
            return Run(sum(pool.map(go_on, calls)), start, time.monotonic())

    @contextlib.contextmanager
    def client(self, url: str, connections: int | None = None) -> Iterator[Any]:
        """Give a client of redis-py."""
        with redis.Redis.from_url(url, max_connections=connections) as client:
            yield client

    def nonces(self, client: Any, key: str, namespace: str) -> Call:
        """Return a call that takes a nonce."""
        return NonceAllocator(client, key, namespace=namespace).next

    def holds(self, client: Any, key: str, namespace: str, then: Callable[[], float] = lambda: 0) -> Call:
        """Return a call that holds the lock as long as `then` says, which is called first."""
        lock = CallLock(client, key, namespace=namespace)

        def hold() -> None:
            with lock.hold():
                if seconds := then():
                    time.sleep(seconds)

        return hold

    def late(self, seconds: float, call: Call) -> Call:
        """Return a call that waits before the first time."""
        rest = [seconds]

        def late() -> None:
            if rest:
                time.sleep(rest.pop())
            call()

        return late

    def counts(self, client: Any, key: str) -> Call:
        """Return the rival of a nonce."""
        return lambda: client.incr(key)

    def locks(self, client: Any, key: str) -> Call:
        """Return the rival of a hold and its release."""
        release = client.register_script(RELEASE)
        release(["no lock"], ["nobody"])

        def lock() -> None:
            assert client.set(key, "me", nx=True, px=TTL_MS)
            assert release([key], ["me"])

        return lock


class Tasks:
    """Callers that are tasks of one loop."""

    name = "asyncio"

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def all_at_once(self, calls: Sequence[Call], seconds: float) -> Run:
        """Let each caller make its call again and again for a time; the last ones end later."""
        return self._runner.run(self._all_at_once(calls, seconds))

    async def _all_at_once(self, calls: Sequence[Call], seconds: float) -> Run:
        start = time.monotonic()
        end = start + seconds

        async def go_on(call: Call) -> int:
            count = 0
            while time.monotonic() < end:
                await call()
                count += 1
            return count

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(go_on(call)) for call in calls]
        return Run(sum(task.result() for task in tasks), start, time.monotonic())

    @contextlib.contextmanager
    def client(self, url: str, connections: int | None = None) -> Iterator[Any]:
        """Give a client of redis-py."""
        client = redis.asyncio.Redis.from_url(url, max_connections=connections)
        try:
            yield client
        finally:
            self._runner.run(client.aclose())

    def nonces(self, client: Any, key: str, namespace: str) -> Call:
        """Return a call that takes a nonce."""
        return nonce_asyncio.NonceAllocator(client, key, namespace=namespace).next

    def holds(self, client: Any, key: str, namespace: str, then: Callable[[], float] = lambda: 0) -> Call:
        """Return a call that holds the lock as long as `then` says, which is called first."""
        lock = nonce_asyncio.CallLock(client, key, namespace=namespace)

        async def hold() -> None:
            async with lock.hold():
                if seconds := then():
                    await asyncio.sleep(seconds)

        return hold

    def late(self, seconds: float, call: Call) -> Call:
        """Return a call that waits before the first time."""
        rest = [seconds]

        async def late() -> None:
            if rest:
                await asyncio.sleep(rest.pop())
            await call()

        return late

    def counts(self, client: Any, key: str) -> Call:
        """Return the rival of a nonce."""
        return lambda: client.incr(key)

    def locks(self, client: Any, key: str) -> Call:
        """Return the rival of a hold and its release."""
        release = client.register_script(RELEASE)
        self._runner.run(release(["no lock"], ["nobody"]))

        async def lock() -> None:
            assert await client.set(key, "me", nx=True, px=TTL_MS)
            assert await release([key], ["me"])

        return lock


Face = Threads | Tasks
FACES: Final = {"threads": Threads, "asyncio": Tasks}


@contextlib.contextmanager
def at(bench: common.Bench, distance: float) -> Iterator[str]:
    """Give the URL of the server at a distance, and note how far that really is."""
    if not distance:
        yield bench.url
        return
    with away(bench.url, distance) as url:
        name = f"PING, {milliseconds(distance)} away"
        if name not in {figure.name for figure in bench.figures}:
            with redis.Redis.from_url(url) as client:
                client.ping()
                bench.note(name, "ms", [timed(client.ping) * 1000 for _ in range(10)])
        yield url


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def milliseconds(seconds: float) -> str:
    """Return a time as it stands in the tables."""
    return f"{seconds * 1000:g} ms"


def measure_crowd(bench: common.Bench, face: Face, args: argparse.Namespace) -> None:
    """Note the commands a second of callers with keys of their own."""
    for distance, goal in DISTANCES.items():
        seconds = args.seconds + 4 * distance
        with at(bench, distance) as url, face.client(url) as client, face.client(url, CROWD) as pool:
            keys = [f"crowd-{face.name}-{number}" for number in range(CROWD)]
            where = f"{CROWD} {face.name}, {milliseconds(distance)}"
            cases = {
                "next": turn(face, [face.nonces(client, key, bench.namespace) for key in keys], seconds),
                "INCR": turn(face, [face.counts(pool, f"{bench.namespace}:{key}") for key in keys], seconds),
                "hold": turn(face, [face.holds(client, key, bench.namespace) for key in keys], seconds, 2),
                "SET NX + script": turn(
                    face, [face.locks(pool, f"{bench.namespace}:{key}:lock") for key in keys], seconds, 2
                ),
            }
            rates = bench.measure("commands/s", args.rounds, {f"{where}: {name}": cases[name] for name in cases})
            nexts, incrs, holds, locks = rates.values()
        bench.compare(f"{where}: next, by INCR", nexts, incrs, goal)
        bench.compare(f"{where}: hold, by SET NX + script", holds, locks, goal)


def turn(face: Face, calls: Sequence[Call], seconds: float, commands: int = 1) -> Callable[[], float]:
    """Return a case that measures commands a second, so many for each call."""
    return lambda: face.all_at_once(calls, seconds).rate * commands


def measure_alone(bench: common.Bench, face: Face, args: argparse.Namespace) -> None:
    """Note the nonces a second of one caller."""
    with face.client(bench.url) as client, face.client(bench.url) as pool:
        nonce = [face.nonces(client, f"alone-{face.name}", bench.namespace)]
        count = [face.counts(pool, f"{bench.namespace}:alone")]
        where = f"alone, {face.name}"
        ours, theirs = bench.measure(
            "commands/s",
            args.rounds * 10,
            {
                f"{where}: next": turn(face, nonce, args.seconds / 10),
                f"{where}: INCR": turn(face, count, args.seconds / 10),
            },
        ).values()
        bench.compare(f"{where}: next, by INCR", ours, theirs, ">= 1.2")


def measure_calls(bench: common.Bench, face: Face, args: argparse.Namespace) -> None:
    """Note how many calls two callers on each of many keys make."""
    with at(bench, NEAR) as url, face.client(url) as client:
        shares = []
        for number in range(args.rounds):
            began: list[float] = []

            def begin(began: list[float] = began) -> float:
                began.append(time.monotonic())
                return CALL

            calls = []
            for key in range(CROWD):
                hold = face.holds(client, f"calls-{face.name}-{number}-{key}", bench.namespace, begin)
                # Spread evenly, so that a time of whole ideal calls has as many beginnings of each key.
                calls += [face.late(IDEAL * key / CROWD, hold) for _ in range(2)]
            run = face.all_at_once(calls, SETTLE + CALLS * IDEAL)
            start = run.start + SETTLE
            counted = sum(start <= moment < start + CALLS * IDEAL for moment in began)
            shares.append(counted / (CROWD * CALLS))
        where = f"{CROWD} keys x 2 {face.name}, calls of {milliseconds(CALL)}, {milliseconds(NEAR)}"
        bench.note(f"{where}: calls", "of the ideal", shares)
        bench.ratios.append(common.Ratio(f"{where}: calls, by the ideal", statistics.median(shares), ">= 0.95"))


def measure_many(bench: common.Bench, face: Face, args: argparse.Namespace) -> None:
    """Note the commands a second of very many callers, and their connections."""
    with at(bench, NEAR) as url, face.client(url) as client:
        keys = [f"many-{face.name}-{number % MANY_KEYS}" for number in range(MANY)]
        ours = bench.namespace
        nonces = [face.nonces(client, key, ours) for key in keys[:MANY_KEYS]] * (MANY // MANY_KEYS)
        holds = [face.holds(client, key, ours) for key in keys[:MANY_KEYS]] * (MANY // MANY_KEYS)
        where = f"{MANY:,} {face.name} over {MANY_KEYS} keys, {milliseconds(NEAR)}"

        # Before the rival has its own.
        others = len(bench.client.client_list())
        counted: list[int] = []
        sample = threading.Timer(args.seconds / 2, lambda: counted.append(len(bench.client.client_list()) - others))
        sample.start()
        face.all_at_once(holds, args.seconds)
        face.all_at_once(nonces, args.seconds)
        sample.join()
        counted.append(len(bench.client.client_list()) - others)
        bench.ratios.append(common.Ratio(f"{where}: connections", max(counted), "= 2"))

        with face.client(url, MANY) as pool:
            counts = [face.counts(pool, f"{ours}:{key}") for key in keys]
            nexts, incrs, held = bench.measure(
                "commands/s",
                args.rounds,
                {
                    f"{where}: next": turn(face, nonces, args.seconds),
                    f"{where}: INCR": turn(face, counts, args.seconds),
                    f"{where}: hold": turn(face, holds, args.seconds, 2),
                },
            ).values()
        bench.compare(f"{where}: next, by INCR", nexts, incrs, ">= 0.9")
        bench.ratios.append(common.Ratio(f"{where}: next a second", statistics.median(nexts), ">= 10000"))
        bench.compare(f"{where}: hold, by INCR", held, incrs)


def take_part(orders: Connection) -> None:
    """Be one of the processes that want the same lock: hold it again and again, say when; the parent ends it."""
    face_name, url, key, namespace, callers = orders.recv()
    began: list[float] = []

    def begin() -> float:
        began.append(time.monotonic())
        return HOLD

    def answer() -> None:
        until = orders.recv()
        time.sleep(until - time.monotonic())
        orders.send(began)

    threading.stack_size(STACK)
    with FACES[face_name]() as face, face.client(url) as client:
        calls = [face.holds(client, key, namespace, begin)] * callers
        orders.send("ready")
        orders.recv()
        threading.Thread(target=answer, daemon=True).start()
        face.all_at_once(calls, 3600)


def measure_fair(bench: common.Bench, face: Face, args: argparse.Namespace) -> None:
    """Note the share of a far process beside a near one."""
    for callers, distance in ALL_FAIR if args.full else FAIR:
        where = f"{callers} {face.name}, {milliseconds(distance)} away, beside a near one"
        settle = SETTLE + ROUND_TRIPS_TO_BEGIN * distance
        with at(bench, distance) as url:
            rounds = [
                contend(bench, face, settle, args.fair_seconds, f"{where}, {number}", (url, callers), (bench.url, 1))
                for number in range(args.fair_rounds)
            ]
        bench.note(f"{where}: its holds", "holds", [far for far, _ in rounds])
        bench.note(f"{where}: the near one's", "holds", [near for _, near in rounds])
        shares = [far / max(far + near, 1) * (callers + 1) / callers for far, near in rounds]
        bench.ratios.append(common.Ratio(f"{where}: holds, by its share", statistics.median(shares), ">= 0.9"))


def contend(
    bench: common.Bench, face: Face, settle: float, seconds: float, key: str, *processes: tuple[str, int]
) -> list[int]:
    """Let processes want one lock; return how often each had it in the time that counts."""
    context: Any = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pipes = []
        for url, callers in processes:
            here, there = context.Pipe()
            process = context.Process(target=take_part, args=(there,), daemon=True)
            process.start()
            there.close()  # its end is then heard as the end of the pipe
            stack.callback(process.join)
            stack.callback(process.kill)
            here.send((face.name, url, key, bench.namespace, callers))
            pipes.append(here)
        for pipe in pipes:
            assert pipe.recv() == "ready"
        for pipe in pipes:
            pipe.send("go")
        start = time.monotonic() + settle
        for pipe in pipes:
            pipe.send(start + seconds)
        return [sum(start <= moment < start + seconds for moment in pipe.recv()) for pipe in pipes]


PARTS: Final = {
    "crowd": measure_crowd,
    "alone": measure_alone,
    "calls": measure_calls,
    "many": measure_many,
    "fair": measure_fair,
}


def main() -> None:
    """Measure and report."""
    options = common.parser(__doc__, rounds=3)
    options.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="leave the others out")
    options.add_argument("--faces", nargs="+", choices=list(FACES), default=list(FACES), help="(%(default)s)")
    options.add_argument("--seconds", type=float, default=0.4, help="of a turn, and four round trips (%(default)s)")
    options.add_argument("--fair-seconds", type=float, default=4, help="of a turn of `fair` (%(default)s)")
    options.add_argument("--fair-rounds", type=int, default=1, help="turns of `fair` (%(default)s)")
    options.add_argument("--full", action="store_true", help="`fair` for all distances and numbers of callers")
    args = options.parse_args()
    # Very many connections of the rival.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    threading.stack_size(STACK)
    with common.running(args.redis) as bench:
        bench.caveats.append("the rivals' commands are the leanest: no nonce that never goes back, no queue, no pace")
        bench.caveats.append("the proxy needs processor time for every connection that has something to say")
        bench.caveats.append(f"{MANY:,} callers: 0.9 of the rival or 10,000 commands a second, one of both is enough")
        bench.caveats.append("connections are the whole server's: nobody else may use it meanwhile")
        for part, face in itertools.product(args.only, args.faces):
            with FACES[face]() as callers:
                PARTS[part](bench, callers, args)
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
