"""The price of one undisturbed call: lock, pace, nonce and release while nobody else wants the lock.

Beside it what one would put together otherwise: redis-py's Lock, a GCRA limiter of throttled-py and a nonce script,
all on the same kind of client. Both count the call against a limit that it never reaches.

The second part is the time to acquire alone against a bare INCR of the same redis-py client.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import common
import redis

from kraken_nonce_redis import CallLock, Pace, Tier

if TYPE_CHECKING:
    from collections.abc import Callable

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


def ours(bench: common.Bench) -> Callable[[], None]:
    """Return one section with this library."""
    lock = CallLock(bench.client, common.API_KEY, pace=PACE, namespace=bench.namespace)

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


def main() -> None:
    """Measure and report."""
    options = common.parser(__doc__, rounds=200)
    options.add_argument("--count", type=int, default=40, help="sections a round (%(default)s)")
    args = options.parse_args()
    with common.running(args.redis) as bench:
        bench.caveats.append("one process on loopback: round trips are short, so every microsecond of a client shows")
        sections = {"section: kraken-nonce-redis": microseconds(ours(bench), args.count)}
        if common.version_of("throttled-py"):
            sections["section: Lock + throttled-py + script"] = microseconds(put_together(bench), args.count)
        else:
            bench.caveats.append("throttled-py is not installed, so there is no rival")
        values = list(bench.measure("µs", args.rounds, sections).values())
        if len(values) > 1:
            bench.compare("sections a second, by the rival's", values[1], values[0], ">= 2.5")

        plain = CallLock(bench.client, "without a pace", namespace=bench.namespace)
        paced = CallLock(bench.client, "with a pace", pace=PACE, namespace=bench.namespace)
        counter = f"{bench.namespace}:counter"
        incr, acquire, with_pace = bench.measure(
            "µs",
            args.rounds,
            {
                "INCR": microseconds(lambda: bench.client.incr(counter), args.count),
                "acquire": acquiring(plain, args.count, 0),
                "acquire with a pace": acquiring(paced, args.count, 1),
            },
        ).values()
        bench.compare("time to acquire, by INCR", acquire, incr, "<= 1.3")
        bench.compare("time to acquire with a pace, by INCR", with_pace, incr)
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
