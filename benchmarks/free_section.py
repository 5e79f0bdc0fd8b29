"""The price of one undisturbed call: lock, pace, nonce and release while nobody else wants the lock.

Beside it what one would put together otherwise: redis-py's Lock, a GCRA limiter of throttled-py and a nonce script,
all on the same kind of client. Both count the call against a limit that it never reaches.

The second part is the time to acquire alone against a bare INCR of the same redis-py client. Everything is measured
by threads and by asyncio.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import common
import redis
import redis.asyncio

from kraken_nonce_redis import CallLock, Pace, Tier
from kraken_nonce_redis import asyncio as nonce_asyncio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kraken_nonce_redis._arguments import Trail

ENOUGH = 1_000_000  # calls a second, a limit out of reach
PACE = Pace(startup_rate=0, tier=Tier(maximum=ENOUGH, decay=ENOUGH))

NONCE = """
local time = redis.call('TIME')
local now = time[1] .. ('00000' .. time[2]):sub(-6) .. '000'
local last = redis.call('GET', KEYS[1])
if not last or #now > #last or (#now == #last and now > last) then
  redis.call('SET', KEYS[1], now)
  return now
end
redis.call('INCR', KEYS[1])
return redis.call('GET', KEYS[1])
"""


def ours(bench: common.Bench, trail: Trail = "rare") -> Callable[[], None]:
    """Return one section with this library."""
    lock = CallLock(bench.client, common.API_KEY, pace=PACE, namespace=bench.namespace, trail=trail)

    def section() -> None:
        with lock.hold(cost=1) as lease:
            assert lease.nonce

    return section


def put_together(bench: common.Bench) -> Callable[[], None]:
    """Return one section with the other libraries."""
    from throttled import RateLimiterType, RedisStore, Throttled, per_sec  # noqa: PLC0415 - it may be missing

    client = redis.Redis.from_url(bench.url)
    lock = client.lock(f"{bench.namespace}:lock", timeout=30)
    limiter = Throttled(
        key=f"{bench.namespace}:limit",
        using=RateLimiterType.GCRA.value,
        quota=per_sec(ENOUGH, burst=ENOUGH),
        store=RedisStore(server=bench.url),
        timeout=60,
    )
    next_nonce = client.register_script(NONCE)
    keys = [f"{bench.namespace}:nonce"]

    def section() -> None:
        with lock:
            assert not limiter.limit().limited
            assert next_nonce(keys)

    return section


def microseconds(section: Callable[[], None], count: int) -> Callable[[], float]:
    """Return a case that measures a section's time."""

    def case() -> float:
        start = time.perf_counter()
        for _ in range(count):
            section()
        return (time.perf_counter() - start) / count * 1e6

    return case


def acquiring(lock: CallLock, count: int, cost: float) -> Callable[[], float]:
    """Return a case that measures the time from asking to having a lease, without the release."""

    def case() -> float:
        total = 0.0
        for _ in range(count):
            start = time.perf_counter()
            hold = lock.hold(cost=cost)
            hold.__enter__()
            total += time.perf_counter() - start
            hold.__exit__(None, None, None)
        return total / count * 1e6

    return case


def ours_in_a_task(
    bench: common.Bench, client: redis.asyncio.Redis, trail: Trail = "rare"
) -> Callable[[], Awaitable[None]]:
    """Return one section with this library, by asyncio."""
    lock = nonce_asyncio.CallLock(client, common.API_KEY, pace=PACE, namespace=bench.namespace, trail=trail)

    async def section() -> None:
        async with lock.hold(cost=1) as lease:
            assert lease.nonce

    return section


def put_together_in_a_task(bench: common.Bench, client: redis.asyncio.Redis) -> Callable[[], Awaitable[None]]:
    """Return one section with the other libraries, by asyncio."""
    from throttled.asyncio import RateLimiterType, RedisStore, Throttled, per_sec  # noqa: PLC0415 - it may be missing

    lock = client.lock(f"{bench.namespace}:lock", timeout=30)
    limiter = Throttled(
        key=f"{bench.namespace}:limit",
        using=RateLimiterType.GCRA.value,
        quota=per_sec(ENOUGH, burst=ENOUGH),
        store=RedisStore(server=bench.url),
        timeout=60,
    )
    next_nonce = client.register_script(NONCE)
    keys = [f"{bench.namespace}:nonce"]

    async def section() -> None:
        async with lock:
            assert not (await limiter.limit()).limited
            assert await next_nonce(keys)

    return section


def in_tasks(runner: asyncio.Runner, section: Callable[[], Awaitable[object]], count: int) -> Callable[[], float]:
    """Return a case that measures a section's time, by asyncio."""

    async def sections() -> float:
        start = time.perf_counter()
        for _ in range(count):
            await section()
        return (time.perf_counter() - start) / count * 1e6

    return lambda: runner.run(sections())


def acquiring_in_a_task(
    runner: asyncio.Runner, lock: nonce_asyncio.CallLock, count: int, cost: float
) -> Callable[[], float]:
    """Return a case that measures the time from asking to having a lease, by asyncio."""

    async def acquire() -> float:
        total = 0.0
        for _ in range(count):
            start = time.perf_counter()
            hold = lock.hold(cost=cost)
            await hold.__aenter__()
            total += time.perf_counter() - start
            await hold.__aexit__(None, None, None)
        return total / count * 1e6

    return lambda: runner.run(acquire())


def report_sections(bench: common.Bench, face: str, rounds: int, sections: Mapping[str, Callable[[], float]]) -> None:
    """Measure this library's sections without and with the full trail and, when it is installed, the rival's."""
    values = list(bench.measure("µs", rounds, {f"{face}: {name}": case for name, case in sections.items()}).values())
    bench.compare(f"{face}: time of a section with the full trail, by one without", values[1], values[0], "<= 1.05")
    if len(values) > 2:
        bench.compare(f"{face}: sections a second, by the rival's", values[2], values[0], ">= 3.0")


def report_acquiring(bench: common.Bench, face: str, rounds: int, cases: Mapping[str, Callable[[], float]]) -> None:
    """Measure acquiring, without and with a pace, against INCR."""
    named = {f"{face}: {name}": case for name, case in cases.items()}
    incr, acquire, with_pace = bench.measure("µs", rounds, named).values()
    bench.compare(f"{face}: time to acquire, by INCR", acquire, incr, "<= 1.3")
    bench.compare(f"{face}: time to acquire with a pace, by INCR", with_pace, incr)


def measure_threads(bench: common.Bench, rounds: int, count: int) -> None:
    """Measure all of it by threads."""
    sections = {
        "section": microseconds(ours(bench), count),
        "section with the full trail": microseconds(ours(bench, "all"), count),
    }
    if common.version_of("throttled-py"):
        sections["Lock + throttled-py + script"] = microseconds(put_together(bench), count)
    report_sections(bench, "threads", rounds, sections)

    plain = CallLock(bench.client, "without a pace", namespace=bench.namespace)
    paced = CallLock(bench.client, "with a pace", pace=PACE, namespace=bench.namespace)
    counter = f"{bench.namespace}:counter"
    cases = {
        "INCR": microseconds(lambda: bench.client.incr(counter), count),
        "acquire": acquiring(plain, count, 0),
        "acquire with a pace": acquiring(paced, count, 1),
    }
    report_acquiring(bench, "threads", rounds, cases)


def measure_tasks(bench: common.Bench, rounds: int, count: int) -> None:
    """Measure all of it by asyncio."""
    with asyncio.Runner() as runner:
        client = redis.asyncio.Redis.from_url(bench.url)
        sections = {
            "section": in_tasks(runner, ours_in_a_task(bench, client), count),
            "section with the full trail": in_tasks(runner, ours_in_a_task(bench, client, "all"), count),
        }
        if common.version_of("throttled-py"):
            sections["Lock + throttled-py + script"] = in_tasks(runner, put_together_in_a_task(bench, client), count)
        report_sections(bench, "asyncio", rounds, sections)

        plain = nonce_asyncio.CallLock(client, "without a pace", namespace=bench.namespace)
        paced = nonce_asyncio.CallLock(client, "with a pace", pace=PACE, namespace=bench.namespace)
        counter = f"{bench.namespace}:counter"
        cases = {
            "INCR": in_tasks(runner, lambda: client.incr(counter), count),
            "acquire": acquiring_in_a_task(runner, plain, count, 0),
            "acquire with a pace": acquiring_in_a_task(runner, paced, count, 1),
        }
        report_acquiring(bench, "asyncio", rounds, cases)
        runner.run(client.aclose())


def main() -> None:
    """Measure and report."""
    options = common.parser(__doc__, rounds=100)
    options.add_argument("--count", type=int, default=40, help="sections a round (%(default)s)")
    args = options.parse_args()
    with common.running(args.redis) as bench:
        bench.caveats.append("one process on loopback: round trips are short, so every microsecond of a client shows")
        if not common.version_of("throttled-py"):
            bench.caveats.append("throttled-py is not installed, so there is no rival")
        measure_threads(bench, args.rounds, args.count)
        measure_tasks(bench, args.rounds, args.count)
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
