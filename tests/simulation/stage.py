"""A stage for what a test wants to see: processes, a server and a network in virtual time, where nothing is by chance.

Every message takes `MESSAGE` seconds, and nothing else takes any time. What goes wrong is the test's to say.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004 - redis-py has named them so

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.allocator import AllocatorCore
from kraken_nonce_redis._core.lease import LeaseCore, logger
from kraken_nonce_redis._core.lock import LockCore
from kraken_nonce_redis._core.wishes import Wishes
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.errors import KrakenNonceError
from kraken_nonce_redis.urls import SOCKET_TIMEOUT
from tests.simulation.history import History
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.scheduler import Scheduler
from tests.simulation.server import Server, library
from tests.simulation.world import BEGIN, NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kraken_nonce_redis import Pace
    from kraken_nonce_redis._arguments import Priority
    from tests.simulation.network import Connection
    from tests.simulation.pipe import Order
    from tests.simulation.scheduler import Moment, Task

API_KEY = "key"
MESSAGE = 0.001
"""Seconds that a message takes, each way."""
ROUND_TRIP = 2 * MESSAGE
LONGEST = 3600.0


class Even(Random):
    """Chance that never favours anything: every delay is its mean, and what is unlikely doesn't happen."""

    def random(self) -> float:
        """Return the middle."""
        return 0.5

    def randrange(self, start: int, *_: Any, **__: Any) -> int:
        """Return the first."""
        del start
        return 0


class Log(History):
    """Knows what was sent when, and judges what goes over the connections, not what it is for."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler, traced=False)
        self.commands: list[tuple[float, Process, str]] = []

    def sent(self, process: Process, order: Order) -> None:
        """Note a command."""
        super().sent(process, order)
        self.commands.append((self._scheduler.now, process, order.command.name))

    def ran(self, process: Process, order: Order, reply: str, seen: int) -> None:
        """Let it be."""

    def published(self, message: str) -> None:
        """Let it be."""


class Way(Network):
    """A network that loses the messages that a test names; that is heard of at once unless it is silent."""

    def __init__(self, scheduler: Scheduler, random: Random, server: Server, history: History) -> None:
        super().__init__(scheduler, random, server, history)
        self._fates: dict[int, str] = {}
        self._requests = 0
        self.silent = False

    def lose(self, n: int, what: str) -> None:
        """Let the n-th request from now on have a fate: ``request lost`` or ``reply lost``."""
        self._fates = {self._requests + n: what}

    def fate(self, process: Process, orders: Sequence[Order]) -> tuple[str, int]:
        """Return what happens to requests on their way, and to which reply."""
        del process
        for number in range(len(orders)):
            self._requests += 1
            fate = self._fates.get(self._requests)
            if fate is not None:
                return fate, number if fate == "reply lost" else -1
        return "ok", -1

    def _end(self, connection: Connection) -> None:
        if not self.silent:
            self._scheduler.at(self._scheduler.now + MESSAGE, lambda: self._come(connection, b"", ended=True))

    def _fail(self, moment: Moment) -> None:
        seconds, error = (SOCKET_TIMEOUT, TimeoutError) if self.silent else (MESSAGE, ConnectionError)
        self._scheduler.at(self._scheduler.now + seconds, lambda: moment.fail(error("no answer")))


@dataclass
class Turn:
    """One caller's turn at the lock.

    Attributes:
        asked: when it asked.
        granted: when it knew that it had the lock, None if it never did.
        released: when it began to give the lock back.
        ended: when it came back, with the lock or without.
        error: what it raised.
    """

    asked: float
    granted: float | None = None
    released: float | None = None
    ended: float | None = None
    error: BaseException | None = None

    @property
    def waited(self) -> float:
        """Seconds until it had the lock."""
        assert self.granted is not None, self.error
        return self.granted - self.asked


class Stage:
    """A server and the way to it."""

    def __init__(self, *, ttl: float = 30.0, pace: Pace | None = None) -> None:
        even = Even()
        self.scheduler = Scheduler(even)
        self.log = Log(self.scheduler)
        self.server = self.log.server = Server(library(), self._publish)
        self.network = Way(self.scheduler, even, self.server, self.log)
        self.network.slowest = 2 * MESSAGE
        self.network.clock = lambda now: round((BEGIN + now) * 1e6)
        self._random = even
        self._ttl = ttl
        self._pace = pace
        self._locks: dict[Process, LockCore[LeaseCore]] = {}

    def _publish(self, channel: str, message: str) -> int:
        return self.network.publish(channel, message)

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.scheduler.now

    def process(self) -> Process:
        """Start a process, which connects when it sends its first command."""
        process = Process(f"p{len(self._locks)}", self.scheduler, self._random, self.network, self.log)
        lock: LockCore[LeaseCore] = LockCore(
            lambda: process.process_state,
            API_KEY,
            ttl=self._ttl,
            pace=self._pace,
            namespace=NAMESPACE,
        )
        lock._lease = lambda acquired, owner: LeaseCore(lock, acquired, owner)  # type: ignore[method-assign]
        self._locks[process] = lock
        return process

    def lock_of(self, process: Process) -> LockCore[LeaseCore]:
        """Return the lock that a process uses."""
        return self._locks[process]

    def turn(
        self,
        process: Process,
        *,
        at: float = 0.0,
        keep: float = 0.0,
        timeout: float | None = None,
        cost: float = 0,
        priority: Priority = "normal",
    ) -> Turn:
        """Let a caller of a process take the lock at a time and keep it for so many seconds."""
        turn = Turn(at)
        self.start(process, self._take(process, turn, keep, timeout=timeout, cost=cost, priority=priority))
        return turn

    def start(self, process: Process, coroutine: Any) -> Task:
        """Start a task in a process."""
        return process.start(coroutine)

    async def _take(self, process: Process, turn: Turn, keep: float, **wishes: Any) -> None:
        await process.sleep(turn.asked - self.now)
        turn.asked = self.now
        await self.hold(process, turn, keep, **wishes)

    async def hold(self, process: Process, turn: Turn, keep: float = 0.0, *, wait: bool = False, **wishes: Any) -> None:
        """Hold the lock for so many seconds, and note it; ``wait`` for the answer to the release."""
        owner, lock = object(), self._locks[process]
        try:
            lease = await process.drive(lock._holding(owner, Wishes(**wishes)))
            turn.granted = self.now
            await process.sleep(keep)
            turn.released = self.now
            await process.drive(lock._leaving(lease, failed=False, wait=wait))
        except KrakenNonceError as error:
            turn.error = error
        if not process.crashed:
            turn.ended = self.now

    async def nonce(self, process: Process, turn: Turn) -> None:
        """Take a nonce without the lock."""
        allocator = AllocatorCore(Keyspace.of(NAMESPACE, API_KEY), 3_600 * 10**9, durable=False)
        try:
            await process.run(allocator._reserve(1))
            turn.granted = self.now
        except KrakenNonceError as error:
            turn.error = error
        turn.ended = self.now

    def at(self, when: float, action: Any) -> None:
        """Let something happen at a time."""
        self.scheduler.at(when, action)

    def run(self, until: float = LONGEST) -> None:
        """Let everything happen that happens before a time."""
        with library_on(self.scheduler):
            while self.scheduler._heap and self.scheduler._heap[0][0] <= until:
                self.scheduler.step()
            for process in self._locks:
                process.crashed = True
                for task in process.tasks:
                    task.close()

    def commands_of(self, process: Process, name: str = "") -> list[float]:
        """Return when a process sent commands, or those of one name."""
        return [when for when, who, what in self.log.commands if who is process and what.startswith(name)]

    @property
    def queue(self) -> dict[str, float]:
        """What the server holds of the queue."""
        return self.server.sets.get(Keyspace.of(NAMESPACE, API_KEY).queue, {})


@contextmanager
def library_on(scheduler: Scheduler) -> Iterator[None]:
    """Let the library see a schedule's time."""
    real_clock, silent = clock.now, logger.disabled
    clock.now = lambda: scheduler.now
    logger.disabled = True
    try:
        yield
    finally:
        clock.now, logger.disabled = real_clock, silent
