"""One schedule: a seed decides who does what and what goes wrong when."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, TypeVar

from kraken_nonce_redis import Pace
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.lease import logger
from kraken_nonce_redis._core.lock import LockCore
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from tests.simulation import faults
from tests.simulation.callers import Caller, Lease
from tests.simulation.history import History
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.scheduler import Scheduler
from tests.simulation.server import Lua, Server, library

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.command import Command
    from tests.simulation.scheduler import Task
    from tests.simulation.server import Snapshot

T = TypeVar("T")

BEGIN = 1_800_000_000.0
"""The server's time at the beginning, in seconds since 1970."""
NAMESPACE = "ns"
LONGEST = 3600.0
"""Seconds in which everyone must be done."""
PACES = [Pace(min_interval=0.05, startup_rate=0), Pace(min_interval=0.2, startup_rate=2, tier="pro")]


class World:
    """Processes with callers, a server, and the network between them."""

    def __init__(self, seed: int, lua: Lua, *, traced: bool = False) -> None:
        self.random = choice = random.Random(seed)
        self.scheduler = Scheduler(choice)
        self.history = History(self.scheduler, traced=traced)
        self.server = self.history.server = Server(lua, self._publish)
        self.network = Network(self.scheduler, choice, self.server, self.history)
        self.history.connections = self.network.connections
        self.network.clock = self._server_clock
        self.clock_offset = BEGIN
        self._clock_rate = self.history.clock_rate = choice.choice([1.0, 1.0, 0.999, 1.0009])
        self.snapshots: list[Snapshot] = []
        self.longest_ttl = choice.choice([1.0, 2.0, 5.0, 30.0])
        self.processes: list[Process] = []
        self.callers: list[Caller] = []
        self.tasks: list[Task] = []
        mix = choice.choice(faults.MIXES)
        self.api_keys = [f"key {number}" for number in range(choice.choice([1, 1, 2]))]
        self.keys = [Keyspace.of(NAMESPACE, api_key) for api_key in self.api_keys]
        self._people(
            raises=mix in (faults.LOSSES, faults.EVERYTHING) or choice.random() < 0.2,
            paced=choice.random() < (0.5 if mix is faults.CLOCKS else 0.2),
            crowded=choice.random() < (0.5 if mix is faults.PROCESSES else 0.07),
        )
        self.history.patience = 0.2 + 4 * len(self.callers) * (self.network.slowest + 0.001)
        for _ in range(choice.choice([1, 2, 3, 6])):
            what = choice.choice(mix)
            self.scheduler.at(choice.random() * 6, lambda what=what: what(self))

    def _people(self, *, raises: bool, paced: bool, crowded: bool) -> None:
        """Let processes with callers begin."""
        choice = self.random
        pace = choice.choice(PACES) if paced else None
        if pace is not None:
            self.history.paced = {keys.state: pace.min_interval for keys in self.keys}
        high = choice.choice([0.0, 0.5, 0.8] if crowded else [0.0, 0.0, 0.2, 0.8])
        spread = choice.choice([0.01, 1.0, 3.0])
        for number in range(choice.choice([1, 2, 3, 3, 4])):
            process = Process(f"p{number}", self.scheduler, choice, self.network, self.history)
            self.processes.append(process)
            for thread in range(choice.choice([1, 1, 2, 3]) if not crowded else 6):
                lock: LockCore[Lease] = LockCore(
                    lambda process=process: process.process_state,
                    choice.choice(self.api_keys),
                    ttl=self.longest_ttl,
                    pace=pace,
                    namespace=NAMESPACE,
                )
                caller = Caller(f"p{number}.t{thread}", process, lock, choice, self.history, raises=raises)
                self.callers.append(caller)
                self.tasks.append(process.start(caller.live(choice.choice([1, 1, 2, 3]), spread, high)))

    def _publish(self, channel: str, message: str) -> int:
        return self.network.publish(channel, message)

    def _server_clock(self, now: float) -> int:
        return round((self.clock_offset + now * self._clock_rate) * 1e6)

    def command(self, command: Command[T]) -> T:
        """Run a command at the server itself."""
        self.server.now = self._server_clock(self.scheduler.now)
        floor = () if command.highest is None else (0,)
        return command.result(self.server.run(command.name, command.keys, (*floor, *command.args)))

    def run(self) -> None:
        """Let everything happen, and check that it ends well."""
        history = self.history
        while self.scheduler.step():
            if self.scheduler.now > LONGEST:
                waiting = [caller.name for caller, task in zip(self.callers, self.tasks, strict=True) if not task.over]
                history.violation(f"not over after {LONGEST:g} s: {waiting}")
        for caller, task in zip(self.callers, self.tasks, strict=True):
            if not (task.over or caller.process.crashed):
                history.violation(f"{caller.name} waits for ever")
        history.check_all()
        if history.orderly:
            history.finish()
        self.scheduler.now += 100 * self.longest_ttl
        for keys in self.keys:
            last = commands.acquire(keys, "last:1", 1.0, ticket=None, priority="normal", pace="")
            answer = self.command(last)
            for _ in range(4):
                if isinstance(answer, commands.Busy):  # the clock was set back, and nobody has noticed before
                    self.scheduler.now += answer.left * 1.002
                    answer = self.command(last)
            if not isinstance(answer, commands.Granted):
                history.violation(f"{keys.state} is not free in the end: {answer}")
            self.command(commands.release(keys, "last:1", answer.nonces[0]))
        history.finish()

    def run_to_the_end(self) -> None:
        """Run, with the library on the time of the schedule, and let go of those who were killed."""
        real_clock, real_random, silent = clock.now, os.urandom, logger.disabled
        clock.now = lambda: self.scheduler.now
        os.urandom = self.random.randbytes
        logger.disabled = True
        try:
            self.run()
        finally:
            self.history.over = True
            for process in self.processes:
                process.crashed = True
            for task in [task for process in self.processes for task in process.tasks]:
                task.close()
            clock.now, os.urandom, logger.disabled = real_clock, real_random, silent


def simulate(seed: int, lua: Lua | None = None) -> None:
    """Run the schedule of a seed, with the library's scripts or others. Raises `Violation` when a promise is broken."""
    World(seed, lua or library()).run_to_the_end()
