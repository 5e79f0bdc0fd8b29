"""Processes that want one lock without a break, each holding it for 5 ms: how fair it is, and how long they wait.

Beside `CallLock`, by threads and by asyncio: redis-py's Lock as it comes and polling every 5 ms, python-redis-lock,
pottery's Redlock. The same processes use each lock in turn. They all contend before the time that counts begins, and go
on until it is over; a wait that is not over by then counts as long as it lasted. Rivals take part with the first number
of processes only.

The ideal is that each process waits for each of the others once: (N - 1) x hold. The worst wait is the median of the
rounds' worst waits.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import common
import redis
import redis.asyncio

from kraken_nonce_redis import CallLock
from kraken_nonce_redis import asyncio as nonce_asyncio

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection

    Hold = Callable[[], AbstractContextManager[object]]

TTL = 30
OURS = "CallLock, threads"
OURS_IN_TASKS = "CallLock, asyncio"
SETTLE = 0.3  # seconds of contention before the time that counts


def _ours(client: redis.Redis, name: str) -> Hold:
    return CallLock(client, name, ttl=TTL, namespace=name).hold


def _redis_py(client: redis.Redis, name: str) -> Hold:
    lock = client.lock(name, timeout=TTL)
    return lambda: lock


def _redis_py_fast(client: redis.Redis, name: str) -> Hold:
    lock = client.lock(name, timeout=TTL, sleep=0.005)
    return lambda: lock


def _python_redis_lock(client: redis.Redis, name: str) -> Hold:
    import redis_lock  # noqa: PLC0415 - it may be missing

    return lambda: redis_lock.Lock(client, name, expire=TTL)


def _pottery(client: redis.Redis, name: str) -> Hold:
    from pottery import Redlock  # noqa: PLC0415 - it may be missing

    return lambda: Redlock(key=name, masters={client}, auto_release_time=TTL)


LOCKS: dict[str, Callable[[redis.Redis, str], Hold]] = {
    OURS: _ours,
    "redis-py Lock": _redis_py,
    "redis-py Lock, sleep 5 ms": _redis_py_fast,
    "python-redis-lock": _python_redis_lock,
    "pottery": _pottery,
}
OUR_KINDS = (OURS, OURS_IN_TASKS)
KINDS = [*OUR_KINDS, *(kind for kind in LOCKS if kind not in OUR_KINDS)]
PACKAGES = {"python-redis-lock": "python-redis-lock", "pottery": "pottery"}


@dataclass(frozen=True)
class Section:
    """One time that a process held a lock: times of `time.monotonic`, which all processes share."""

    asked: float
    began: float
    ended: float


def work(url: str, orders: Connection) -> None:
    """Take part in rounds until there are no more."""
    client = redis.Redis.from_url(url)
    for kind, name, hold in iter(orders.recv, None):
        if kind == OURS_IN_TASKS:
            asyncio.run(contend_in_a_task(url, name, hold, orders))
        else:
            contend(LOCKS[kind](client, name), hold, orders)


def contend(lock: Hold, hold: float, orders: Connection) -> None:
    """Want the lock again and again until the time that is told; say when it was asked for and held."""
    with lock():
        pass
    orders.send("ready")
    end = orders.recv()
    sections = []
    while (asked := time.monotonic()) < end:
        with lock():
            began = time.monotonic()
            time.sleep(hold)
            ended = time.monotonic()
        sections.append(Section(asked, began, ended))
    orders.send(sections)


async def contend_in_a_task(url: str, name: str, hold: float, orders: Connection) -> None:
    """Do the same by asyncio."""
    async with redis.asyncio.Redis.from_url(url) as client:
        lock = nonce_asyncio.CallLock(client, name, ttl=TTL, namespace=name)
        async with lock.hold():
            pass
        orders.send("ready")
        end = orders.recv()
        sections = []
        while (asked := time.monotonic()) < end:
            async with lock.hold():
                began = time.monotonic()
                time.sleep(hold)  # noqa: ASYNC251 - a loop's sleep is up to a millisecond longer
                ended = time.monotonic()
            sections.append(Section(asked, began, ended))
        orders.send(sections)


@dataclass(frozen=True)
class Round:
    """What came of one round."""

    fairness: float
    worst: float
    typical: float
    overlaps: int

    @classmethod
    def of(cls, workers: list[list[Section]], start: float, end: float) -> Round:
        """Look at what happened from start to end."""
        grants = [sum(start <= s.began < end for s in sections) for sections in workers]
        everything = sorted(itertools.chain.from_iterable(workers), key=lambda s: s.began)
        waits = [min(s.began, end) - s.asked for s in everything if s.asked < end and s.began >= start]
        overlaps = sum(later.began < earlier.ended for earlier, later in itertools.pairwise(everything))
        return cls(min(grants) / max(grants), max(waits), statistics.median(waits), overlaps)


def play(workers: list[Connection], order: tuple[str, str, float], seconds: float) -> Round:
    """Let the workers contend for a lock."""
    for worker in workers:
        worker.send(order)
    for worker in workers:
        assert worker.recv() == "ready"
    start = time.monotonic() + SETTLE
    end = start + seconds
    for worker in workers:
        worker.send(end)
    return Round.of([worker.recv() for worker in workers], start, end)


def start_workers(stack: ExitStack, url: str, count: int) -> list[Connection]:
    """Start processes, which the stack ends."""
    context: Any = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(count):
        here, there = context.Pipe()
        process = context.Process(target=work, args=(url, there), daemon=True)
        process.start()
        stack.callback(process.join)
        stack.callback(here.send, None)
        workers.append(here)
    return workers


def main() -> None:
    """Measure and report."""
    options = common.parser(__doc__, rounds=5)
    options.add_argument("--processes", type=int, nargs="+", default=[8, 32], help="how many contend (%(default)s)")
    options.add_argument("--turns", type=int, default=30, help="sections of each process a round (%(default)s)")
    options.add_argument("--hold", type=float, default=0.005, metavar="SECONDS", help="(%(default)s)")
    options.add_argument("--only", choices=KINDS, nargs="+", default=KINDS, help="leave the others out")
    args = options.parse_args()
    with common.running(args.redis) as bench, ExitStack() as stack:
        bench.caveats.append(
            "the worst wait includes every pause that the machine imposes on any holder: busy machines, long waits"
        )
        installed = [kind for kind in args.only if common.version_of(PACKAGES.get(kind, "redis"))]
        bench.caveats += [f"{kind} is not installed" for kind in args.only if kind not in installed]
        workers = start_workers(stack, bench.url, max(args.processes))
        for processes in args.processes:
            kinds = installed if processes == args.processes[0] else [k for k in installed if k in OUR_KINDS]
            rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
            for number, kind in itertools.product(range(args.rounds), kinds):
                order = (kind, f"{bench.namespace}-{processes}-{number}-{KINDS.index(kind)}", args.hold)
                rounds[kind].append(play(workers[:processes], order, args.turns * processes * args.hold))
            for kind, played in rounds.items():
                note(bench, f"{processes} x {kind}", played, (processes - 1) * args.hold, ours=kind in OUR_KINDS)
        bench.report(as_json=args.json)


def note(bench: common.Bench, what: str, played: list[Round], ideal: float, *, ours: bool) -> None:
    """Note what came of a lock's rounds."""
    bench.note(f"{what}: typical wait", "ms", [r.typical * 1000 for r in played])
    bench.note(f"{what}: worst wait", "ms", [r.worst * 1000 for r in played])
    goals = (">= 0.95", "<= 1.25", "= 0") if ours else ("", "", "")
    fairness = statistics.median(r.fairness for r in played)
    worst = statistics.median(r.worst for r in played) / ideal
    bench.ratios.append(common.Ratio(f"{what}: least / most sections", fairness, goals[0]))
    bench.ratios.append(common.Ratio(f"{what}: worst wait / ideal", worst, goals[1]))
    bench.ratios.append(common.Ratio(f"{what}: overlaps", sum(r.overlaps for r in played), goals[2]))


if __name__ == "__main__":
    main()
