"""What events cost a free section, without a listener, with one that does nothing, and with metrics of many processes.

Before that stands the section without any events: what tells of a grant and a release is taken out. The metrics are
those of Prometheus in multiprocess mode, which keeps them in files. Everything is measured by threads and by asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from typing import TYPE_CHECKING, Any
from unittest import mock

import common
import redis.asyncio
from free_section import in_tasks, microseconds, ours, ours_in_a_task

from kraken_nonce_redis import events
from kraken_nonce_redis._core.lock import LockCore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kraken_nonce_redis.events import Observer

BARE = "no events"
NOBODY = "no listener"
NOTHING = "an observer that does nothing"
METRICS = "metrics, multiprocess mode"
GOALS = {NOBODY: "<= 1.01", NOTHING: "<= 1.02", METRICS: "<= 1.10"}


def do_nothing(*_: object) -> None:
    """Take an event, or stand in the place of what tells of one."""


def without_events() -> contextlib.AbstractContextManager[Any]:
    """Take out what tells of a grant and a release."""
    return mock.patch.multiple(LockCore, _granted=do_nothing, _let_go=do_nothing)


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Let an observer have all events."""
    events.add_observer(observer)
    try:
        yield
    finally:
        events.remove_observer(observer)


def variants(case: Callable[[], float], recorder: Observer) -> Mapping[str, Callable[[], float]]:
    """Return the ways in which a case is measured."""

    def within(make: Callable[[], contextlib.AbstractContextManager[Any]]) -> Callable[[], float]:
        def measured() -> float:
            with make():
                return case()

        return measured

    return {
        BARE: within(without_events),
        NOBODY: case,
        NOTHING: within(lambda: observed(do_nothing)),
        METRICS: within(lambda: observed(recorder)),
    }


def report(bench: common.Bench, face: str, rounds: int, cases: Mapping[str, Callable[[], float]]) -> None:
    """Measure the variants and compare them with the first one."""
    named = {f"{face}: {name}": case for name, case in cases.items()}
    values = dict(zip(cases, bench.measure("µs", rounds, named).values(), strict=True))
    for name, goal in GOALS.items():
        bench.compare(f"{face}: {name}, by {BARE}", values[name], values[BARE], goal)


def main() -> None:
    """Measure and report."""
    options = common.parser(__doc__, rounds=400)
    options.add_argument("--count", type=int, default=40, help="sections a round (%(default)s)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, common.running(args.redis) as bench, asyncio.Runner() as runner:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when prometheus_client is imported
        from prometheus_client import CollectorRegistry  # noqa: PLC0415

        from kraken_nonce_redis import prometheus  # noqa: PLC0415

        recorder = prometheus.install(CollectorRegistry())
        events.remove_observer(recorder)
        bench.caveats.append("one process on loopback: round trips are short, so every microsecond of a client shows")
        report(bench, "threads", args.rounds, variants(microseconds(ours(bench), args.count), recorder))
        client = redis.asyncio.Redis.from_url(bench.url)
        section = ours_in_a_task(bench, client)
        report(bench, "asyncio", args.rounds, variants(in_tasks(runner, section, args.count), recorder))
        runner.run(client.aclose())
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
