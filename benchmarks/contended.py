"""Processes that want one lock without a break, each holding it for 5 ms: how fair it is, and how long they wait.

Beside `CallLock`: redis-py's Lock as it comes and polling every 5 ms, python-redis-lock, pottery's Redlock. The same
processes use each lock in turn. They all contend before the time that counts begins, and go on until it is over; a
wait that is not over by then counts as long as it lasted.

The ideal is that each process waits for each of the others once: (N - 1) x hold.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import common
import redis

from kraken_nonce_redis import CallLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection

    Hold = Callable[[], AbstractContextManager[object]]

TTL = 30
OURS = "kraken-nonce-redis"
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
        lock = LOCKS[kind](client, name)
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
    options = common.parser(__doc__, rounds=3)
    options.add_argument("--processes", type=int, default=8, help="how many contend (%(default)s)")
    options.add_argument("--turns", type=int, default=30, help="sections of each process a round (%(default)s)")
    options.add_argument("--hold", type=float, default=0.005, metavar="SECONDS", help="(%(default)s)")
    options.add_argument("--only", choices=list(LOCKS), help="leave the others out")
    args = options.parse_args()
    ideal = (args.processes - 1) * args.hold
    with common.running(args.redis) as bench, ExitStack() as stack:
        bench.caveats.append(
            "the worst wait includes every pause that the machine imposes on any holder: busy machines, long waits"
        )
        kinds = [args.only] if args.only else list(LOCKS)
        for kind in [kind for kind in kinds if not common.version_of(PACKAGES.get(kind, "redis"))]:
            bench.caveats.append(f"{kind} is not installed")
            kinds.remove(kind)
        workers = start_workers(stack, bench.url, args.processes)
        rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
        for number, kind in itertools.product(range(args.rounds), kinds):
            order = (kind, f"{bench.namespace}-{number}", args.hold)
            rounds[kind].append(play(workers, order, args.turns * args.processes * args.hold))
        for kind, played in rounds.items():
            bench.note(f"{kind}: typical wait", "ms", [r.typical * 1000 for r in played])
            bench.note(f"{kind}: worst wait", "ms", [r.worst * 1000 for r in played])
        for kind, played in rounds.items():
            goals = (">= 0.95", "<= 1.25", "= 0") if kind == OURS else ("", "", "")
            fairness = statistics.median(r.fairness for r in played)
            worst = statistics.median(r.worst for r in played) / ideal
            bench.ratios.append(common.Ratio(f"{kind}: least / most sections", fairness, goals[0]))
            bench.ratios.append(common.Ratio(f"{kind}: worst wait / ideal", worst, goals[1]))
            bench.ratios.append(common.Ratio(f"{kind}: overlaps", sum(r.overlaps for r in played), goals[2]))
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
