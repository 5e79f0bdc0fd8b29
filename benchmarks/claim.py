"""The claim: ten million nonces from several processes, through faults, none twice and none backward.

    python benchmarks/claim.py --nonces 10000000 --processes 4 --faults

Processes take nonces one by one, in blocks, and in leases, and note each with the time before they asked and after they
had it. With --faults the server forgets, stalls, is killed and comes back empty or with older data, drops connections
and scripts, and workers are killed and stopped, one thing every few seconds, by --seed. In the end all notes of all
processes, also of those killed, are put together: no nonce was given twice, and none that was asked for after another
was there is below it. Exit code 1 if any was.

The faults lie at least 2.5 s apart. After lost data nonces run up to a second ahead of the clock, so that a process
which is new, and therefore knows of no nonce, could be given one again if all were lost twice within that second.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis

from kraken_nonce_redis import CallLock, KrakenNonceError, NonceAllocator
from kraken_nonce_redis.cli import embedded

sys.path.insert(0, str(Path(__file__).parents[1]))  # the judge is that of the tests
from tests.support.nonces import Note, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

API_KEY: Final = "claim"
APART: Final = 2.5  # seconds
BLOCK: Final = 2_000
NOTE: Final = struct.Struct("<ddQQ")  # a `Note`


# The workers


def work(url: str, notes: str, rest: str) -> None:
    """Take nonces until stdin closes, and note them; what goes wrong is tried again."""
    allocator, lock = NonceAllocator.from_url(url, API_KEY), CallLock.from_url(url, API_KEY, ttl=2)
    chance = random.Random()
    os.set_blocking(0, False)
    failures: Counter[str] = Counter()

    def one() -> tuple[int, int]:
        nonce = allocator.next()
        return nonce, nonce

    def block() -> tuple[int, int]:
        nonces = allocator.reserve(chance.randint(2, BLOCK))
        return nonces[0], nonces[-1]

    def lease() -> tuple[int, int]:
        with lock.hold(timeout=5) as held:
            last = held.nonce
            for _ in range(chance.randint(1, 100)):
                last = held.next_nonce()
            return held.nonce, last

    with Path(notes).open("ab", buffering=0) as file:
        while _goes_on():
            take = chance.choice((one, one, block, block, block, lease))
            asked = time.monotonic()
            try:
                first, last = take()
            except KrakenNonceError as error:
                failures[type(error).__name__] += 1
                time.sleep(0.01)
                continue
            file.write(NOTE.pack(asked, time.monotonic(), first, last))
            time.sleep(float(rest))
    print(json.dumps(failures))


def _goes_on() -> bool:
    try:
        return os.read(0, 1) != b""
    except BlockingIOError:
        return True


class Workers:
    """The processes that take nonces."""

    def __init__(self, url: str, folder: Path, number: int, rest: float) -> None:
        self._url = url
        self._rest = rest
        self._folder = folder
        self._count = itertools.count()
        self.failures: Counter[str] = Counter()
        self.running = [self._start() for _ in range(number)]

    def _start(self) -> subprocess.Popen[bytes]:
        notes = self._folder / f"{next(self._count)}.notes"
        command = [sys.executable, __file__, "--work", self._url, str(notes), str(self._rest)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def replace(self, place: int) -> None:
        """Kill one and start a new one, which knows nothing."""
        self.running[place].kill()
        self.running[place].communicate()
        self.running[place] = self._start()

    def stop(self) -> None:
        """Let them end, and hear what went wrong for them."""
        for worker in self.running:
            said, _ = worker.communicate()
            with contextlib.suppress(ValueError):
                self.failures.update(json.loads(said))

    def taken(self) -> int:
        """Return how many nonces are noted so far."""
        return sum(last - first + 1 for _, _, first, last in self.notes())

    def notes(self) -> Iterator[Note]:
        """Yield the notes of all."""
        for file in self._folder.glob("*.notes"):
            content = file.read_bytes()
            yield from NOTE.iter_unpack(content[: len(content) - len(content) % NOTE.size])


# The server and the faults


class Server:
    """A Valkey that can be killed and comes back on the same port."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._count = itertools.count()
        self._port: int | None = None
        self._start(folder / "data")

    def _start(self, data: Path) -> None:
        data.mkdir(exist_ok=True)
        self._data = data
        self._run = self._stack.enter_context(contextlib.ExitStack())
        self.url = self._run.enter_context(embedded.running(self._port, str(data))).url
        self._port = int(self.url.rpartition(":")[2].partition("/")[0])
        self.client = redis.Redis.from_url(self.url)
        self.pid = int(self.client.info("server")["process_id"])

    def kill(self, data: Path) -> None:
        """Kill it and start it again with other data."""
        os.kill(self.pid, signal.SIGKILL)
        self._run.close()
        self._start(data)

    def copy(self) -> Path:
        """Return a copy of what it has on disk now."""
        return Path(shutil.copytree(self._data, self._folder / f"copy-{next(self._count)}"))

    def empty(self) -> Path:
        """Return a folder with nothing in it."""
        return self._folder / f"empty-{next(self._count)}"


@dataclass
class Faults:
    """What goes wrong, in an order that the seed says."""

    server: Server
    workers: Workers
    seed: int
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._kinds: dict[str, Callable[[], object]] = {
            "all data flushed": lambda: self._say("FLUSHALL"),
            "scripts flushed": lambda: self._say("SCRIPT", "FLUSH"),
            "all connections killed": self._kill_connections,
            "writes paused for 0.5 s": lambda: self._say("CLIENT", "PAUSE", "500", "WRITE"),
            "server stopped for 1 s": lambda: _stop_for(self.server.pid, 1),
            "server killed, back with its data": lambda: self.server.kill(self.server.copy()),
            "server killed, back with older data": self._older,
            "server killed, back with nothing": lambda: self.server.kill(self.server.empty()),
            "process killed, a new one started": lambda: self.workers.replace(self._place()),
            "process stopped for 3 s": lambda: _stop_for(self.workers.running[self._place()].pid, 3),
        }
        self._order: list[str] = []

    @property
    def rounds(self) -> int:
        """How often every kind has come at least."""
        return min(self.done[kind] for kind in self._kinds)

    def inject(self) -> None:
        """Let the next one happen."""
        if not self._order:
            self._order = self._chance.sample(list(self._kinds), len(self._kinds))
        kind = self._order.pop()
        self._kinds[kind]()
        self.done[kind] += 1

    def _say(self, *words: str) -> None:
        self.server.client.execute_command(*words)

    def _place(self) -> int:
        return self._chance.randrange(len(self.workers.running))

    def _kill_connections(self) -> None:
        client = self.server.client
        for other in client.client_list():
            # Not the plain connection by which the server's minder sees that it lives.
            if other.get("lib-name") and int(other["id"]) != client.client_id():
                client.client_kill_filter(_id=other["id"])

    def _older(self) -> None:
        older = self.server.copy()
        time.sleep(0.5)
        self.server.kill(older)


def _stop_for(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def main() -> int:
    """Make the claim true, or find out that it is not."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--nonces", type=int, default=10_000_000, help="how many at least (%(default)s)")
    options.add_argument("--processes", type=int, default=4, help="processes that take them (%(default)s)")
    options.add_argument("--faults", action="store_true", help="let things go wrong meanwhile")
    options.add_argument("--seed", type=int, default=0, help="of the faults (%(default)s)")
    options.add_argument("--rounds", type=int, default=1, help="how often each fault comes at least (%(default)s)")
    options.add_argument("--rest", type=float, default=0.0, help="seconds between two takes of a process (%(default)s)")
    options.add_argument("--json", action="store_true", help="print the figures as JSON")
    options.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.work:
        work(*args.work)
        return 0
    with tempfile.TemporaryDirectory(prefix="kraken-nonce-claim-") as name, contextlib.ExitStack() as stack:
        began, folder = time.monotonic(), Path(name)
        server = Server(stack, folder)
        workers = Workers(server.url, folder, args.processes, args.rest)
        faults = Faults(server, workers, args.seed)
        while workers.taken() < args.nonces or (args.faults and faults.rounds < args.rounds):
            time.sleep(APART if args.faults else 0.5)
            if args.faults:
                faults.inject()
        workers.stop()
        verdict = judge(workers.notes())
        seconds = time.monotonic() - began
    report = {
        "nonces": verdict.nonces,
        "duplicates": verdict.duplicates,
        "backward": verdict.backward,
        "processes": args.processes,
        "seconds": round(seconds, 1),
        "longest time in which nobody got a nonce, s": round(verdict.longest_silence, 2),
        **{f"fault: {kind}": count for kind, count in sorted(faults.done.items())},
        **{f"callers were told {kind}": count for kind, count in sorted(workers.failures.items())},
    }
    lines = (f"{value:>12,}  {what}" for what, value in report.items())
    print(json.dumps(report, indent=2) if args.json else "\n".join(lines))
    return 1 if verdict.duplicates or verdict.backward else 0


if __name__ == "__main__":
    sys.exit(main())
