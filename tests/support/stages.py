"""Processes at work on a Redis, in which something goes wrong, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.faces import FACES
from tests.support.helpers import KEYS, SECOND, eventually
from tests.support.histories import Call, History, Loss, Recovery, Verdict, judge, recovery
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import redis

    from tests.support.proxy import Proxy
    from tests.support.servers import Server

NOWHERE = "redis://127.0.0.1:1"
PROCESSES = 4
TTL = 1.0
SOCKET_TIMEOUT = 0.5
"""Seconds, where a fault is one that callers are told of."""
LEAD = 100
"""Seconds for which nonces run ahead of the clock: lost state shows then, where otherwise the clock would heal it."""
RECOVERY = 25.0
"""Seconds in which all is well again, or something hangs."""
ROWS = "KRAKEN_NONCE_FAULTS"
"""The environment variable that names a file which takes what was measured, a line of JSON for each run."""


class Crew:
    """Processes that take nonces and leases, the same for one run after the other; half of them by asyncio."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._begin: dict[int, dict[str, Any]] = {}
        self.at_work: dict[int, str] = {}
        self.workers = [self._start(place) for place in range(PROCESSES)]

    def _start(self, place: int) -> Worker:
        faces = tuple(FACES)
        return Worker(NOWHERE, faces[place % len(faces)])

    def begin(self, folder: Path, urls: Sequence[str], ttl: float, to_the_end: float) -> None:
        """Let them begin, each by a URL of its own; the first half keeps some leases (0 to 1) to their end."""
        self._folder = folder
        self._begin = {
            place: {"url": url, "ttl": ttl, "to_the_end": to_the_end if place < len(urls) / 2 else 0}
            for place, url in enumerate(urls)
        }
        for place in range(len(urls)):
            self._work(place)

    def _work(self, place: int) -> None:
        number = next(self._numbers)
        settings = dict(self._begin[place])
        # A URL that nothing else has: it knows nothing of earlier runs.
        settings["url"] += f"{'&' if '?' in settings['url'] else '?'}client_name=run-{number}"
        self.at_work[place] = f"{number:03}"
        self.workers[place].do("record", path=str(self._folder / f"{number:03}.notes"), **settings)

    def end(self) -> None:
        """Let them end what they are doing."""
        for place in self.at_work:
            self.workers[place].tell("stop_recording")
        for place in self.at_work:
            self.workers[place].hear(60)
        self.at_work = {}

    def kill(self, place: int) -> str:
        """Kill -9 one; return what its notes are under."""
        self.workers[place].kill()
        return self.at_work.pop(place)

    def replace_killed(self) -> bool:
        """Let new processes go on in the places of those that were killed; return whether there were any."""
        empty = self._begin.keys() - self.at_work.keys()
        for place in empty:
            self.workers[place].close()
            self.workers[place] = self._start(place)
            self._work(place)
        return bool(empty)

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Report:
    """What came of a run."""

    fault: str
    verdict: Verdict
    recoveries: tuple[Recovery, ...]
    notes: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        row = asdict(self)
        row["verdict"]["forgotten"] = len(self.verdict.forgotten)
        return row

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [
            f"  {one.lasted:6.2f} s; next nonce {one.nonce_from_begin:.3f} s after its begin, {one.nonce:.3f} s after "
            f"its end; next lease {one.lease:.3f} s, everyone {one.everyone:.3f} s after its end"
            for one in self.recoveries
        ]
        v = self.verdict
        told = ", ".join(f"{name} {number}" for name, number in sorted(v.told.items())) or "nothing"
        lines.append(
            f"  {v.nonces} nonces, {v.leases} leases: {v.duplicates} duplicates, {v.backward} backward, "
            f"{v.two_holders} pairs of holders, {v.excused} after lost state, {len(v.forgotten)} forgotten; "
            f"callers heard: {told}"
        )
        return "\n".join([f"\n{self.fault}", *lines, *(f"  {note}" for note in self.notes)])

    def publish(self) -> None:
        """Append it to the file that the environment names, if any."""
        name = os.environ.get(ROWS)
        if name:
            with Path(name).open("a") as file:
                file.write(json.dumps(self.row()) + "\n")


class Stage:
    """A Redis, the processes at work on it, and a way by which half of them reach it, if there is one.

    Attributes:
        crew: the processes.
        losses: when state was lost.
        killed: which processes were killed, and when.
        notes: what a fault has to say for the report.
    """

    def __init__(self, crew: Crew, folder: Path) -> None:
        self.crew = crew
        self.losses: list[Loss] = []
        self.killed: dict[str, float] = {}
        self.notes: list[str] = []
        self.history = History(folder)
        self._begin = 0.0
        self._recoveries: list[Recovery] = []

    @contextlib.contextmanager
    def at_work(self, urls: Sequence[str], *, ttl: float = TTL, to_the_end: float = 0) -> Iterator[Self]:
        """Have the processes at work in the block."""
        self.crew.begin(self.history.folder, urls, ttl, to_the_end)
        try:
            yield self
        finally:
            self.crew.end()

    def flow(self) -> None:
        """Wait until every process has had a nonce and a lease that it asked for from now on."""
        now = time.monotonic()
        self._recovered(now, now)

    def happen(self, fault: Callable[[], object]) -> None:
        """Let something go wrong, and wait until all is well again."""
        self.begins()
        fault()
        self._recoveries.append(self._recovered(self._begin, time.monotonic()))
        if self.crew.replace_killed():
            self.flow()

    def begins(self) -> None:
        """Take note that the fault begins here: what was before it is its preparation."""
        self._begin = time.monotonic()

    def _recovered(self, begin: float, end: float) -> Recovery:
        def look() -> Recovery | None:
            time.sleep(0.02)
            return recovery(self.calls(), self.crew.at_work.values(), begin, end)

        found = eventually(look, RECOVERY)
        assert found is not None
        return found

    def calls(self) -> list[Call]:
        """Return all calls so far."""
        return self.history.update()

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
        """Say that state is lost in the block."""
        begin = time.monotonic()
        yield
        self.losses.append(Loss(begin, time.monotonic()))

    def report(self, fault: str) -> Report:
        """Judge what happened; the processes must have ended their work."""
        verdict = judge(self.calls(), self.losses, self.killed)
        return Report(fault, verdict, tuple(self._recoveries), tuple(self.notes))

    # What can happen to the processes.

    def kill_process(self, place: int) -> None:
        """Kill -9 one that holds the lock; a new one takes its place when all is well again."""
        self._until_it_holds(place)
        name = self.crew.kill(place)
        self.killed[name] = time.monotonic()

    def stop_process(self, place: int, seconds: float) -> None:
        """SIGSTOP one that holds the lock, for a while."""
        self._until_it_holds(place)
        worker = self.crew.workers[place]
        worker.send(signal.SIGSTOP)
        time.sleep(seconds)
        worker.send(signal.SIGCONT)

    def _until_it_holds(self, place: int) -> None:
        def holds() -> bool:
            time.sleep(0.005)
            now, name = time.monotonic(), self.crew.at_work[place]
            return any(
                call.process == name and call.had and not call.left and now < call.until for call in self.calls()
            )

        # Those that keep no lease to its end are hard to catch.
        with contextlib.suppress(AssertionError):
            eventually(holds, 3)
        self.begins()


class ServerStage(Stage):
    """A stage with one server, and a fault proxy between it and the first half of the processes."""

    def __init__(self, crew: Crew, folder: Path, server: Server, way: Proxy) -> None:
        super().__init__(crew, folder)
        self.server = server
        self.way = way

    @contextlib.contextmanager
    def running(self, *, socket_timeout: float | None, to_the_end: float = 0) -> Iterator[Self]:
        """Have the processes at work in the block, with nonces that are ahead of the clock."""
        with self.server.admin() as admin:
            admin.hset(KEYS.state, "nonce", time.time_ns() + LEAD * SECOND)
        option = "" if socket_timeout is None else f"?socket_timeout={socket_timeout}"
        urls = [f"{where.url}{option}" for where in (self.way, self.way, self.server, self.server)]
        with self.at_work(urls, to_the_end=to_the_end):
            self.flow()
            yield self

    def say(self, *words: str | int) -> Any:
        """Say something to the server."""
        with self.server.admin() as admin:
            return admin.execute_command(*words)

    @contextlib.contextmanager
    def admin(self) -> Iterator[redis.Redis]:
        """Give a client for the server's own care."""
        with self.server.admin() as admin:
            yield admin
