"""What several test files need: other processes command by command, looks into Redis, orders and times."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from kraken_nonce_redis import _process
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._redis.places import Places
from tests.support.faces import KEY
from tests.support.nonces import judge
from tests.support.servers import VALKEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import redis

    from kraken_nonce_redis._arguments import Priority
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.commands import Answer, Granted, Heard, Heartbeat
    from kraken_nonce_redis.errors import KrakenNonceError

T = TypeVar("T")
E = TypeVar("E", bound="KrakenNonceError")

KEYS = Keyspace.of("kraken-nonce", KEY)
ON_VALKEY = pytest.mark.parametrize("server", [VALKEY], indirect=True, ids=["valkey"])
"""For a test that takes a second or more: the fixture `server` is Valkey alone."""
SECOND = 10**9
ROOT = Path(__file__).parents[2]


def as_stored(nonce: int) -> str:
    """Return how the last nonce is stored."""
    return f"2:{nonce}"


def environment() -> dict[str, str]:
    """Return the environment for a program that finds what the test run found."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}


def new_process() -> None:
    """Let what comes now know nothing of what came before, as in another process."""
    _process._current = _process.Process(Places(), {})


def eventually(condition: Callable[[], T], timeout: float = 5.0) -> T:
    """Return what a condition gives as soon as it is true; fail when it does not become so."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout:g} s: {condition}")
        time.sleep(0.002)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self) -> float:
        """Return the seconds."""
        return time.monotonic() - self._start


@contextlib.contextmanager
def fails(kind: type[E], *parts: str) -> Iterator[pytest.ExceptionInfo[E]]:
    """Expect an error of a kind whose text has these parts and nowhere the API key."""
    with pytest.raises(kind) as caught:
        yield caught
    error: BaseException | None = caught.value
    for part in parts:
        assert part in str(error)
    while error is not None:
        assert KEY not in f"{error} {error!r} {error.args} {vars(error)}"
        error = error.__cause__ or error.__context__


def run(client: redis.Redis, command: Command[T], floor: int = 0) -> T:
    """Run a command by EVAL, with a floor where it takes one."""
    arguments = command.args if command.highest is None else (floor, *command.args)
    reply: Any = client.eval(command.script.source, len(command.keys), *command.keys, *map(str, arguments))
    return command.result(reply)


class Rival:
    """Another process that does what the test says, command by command, and nothing else.

    So it may die or stop at any point: the test just has it do no more.
    """

    def __init__(self, client: redis.Redis, keys: Keyspace = KEYS) -> None:
        self.process = secrets.token_hex(8)
        self._client = client
        self._keys = keys

    def member(self, number: int = 1) -> str:
        """Return the id of its number-th acquisition."""
        return f"{self.process}:{number}"

    def take(self, ttl: float = 30.0, number: int = 1) -> Granted:
        """Take the lock, which must be free."""
        answer = self.ask(number, ttl=ttl, ticket=None)
        assert isinstance(answer, commands.Granted), answer
        return answer

    def ask(
        self,
        number: int = 1,
        *,
        ttl: float = 30.0,
        ticket: int | None = 0,
        priority: Priority = "normal",
        pace: str = "",
        heard: Heard = "0",
    ) -> Answer:
        """Ask for the lock or a place in the queue."""
        return run(
            self._client,
            commands.acquire(
                self._keys, self.member(number), ttl, ticket=ticket, priority=priority, pace=pace, heard=heard
            ),
        )

    def queue_up(self, number: int = 1, priority: Priority = "normal") -> int:
        """Get a place in the queue, since the lock is not free; return the ticket."""
        answer = self.ask(number, priority=priority)
        assert isinstance(answer, commands.Waiting), answer
        return answer.ticket

    def release(self, number: int = 1, lease: int = 0) -> commands.Release:
        """Give up what the number-th acquisition has."""
        return run(self._client, commands.release(self._keys, self.member(number), lease))

    def live(self, number: int = 1) -> Heartbeat:
        """Send a heartbeat."""
        return run(self._client, commands.heartbeat(self._keys, self.process, self.member(number)))

    def extend(self, seconds: float, number: int = 1) -> range | None:
        """Let the lease end so many seconds from now."""
        return run(self._client, commands.extend(self._keys, self.member(number), seconds))


class View:
    """What Redis holds, seen by a client of the test's own."""

    def __init__(self, client: redis.Redis, keys: Keyspace = KEYS) -> None:
        self.client = client
        self.keys = keys

    @property
    def state(self) -> commands.State:
        """The state as the library reads it."""
        return run(self.client, commands.inspect(self.keys))

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self.state.waiting

    def until_waiting(self, number: int) -> None:
        """Wait until so many wait."""
        eventually(lambda: self.waiting == number)

    @property
    def places(self) -> int:
        """The last place in the queue that was given out; each is above the one before."""
        return int(self.client.hget(self.keys.state, "ticket") or 0)

    def until_places(self, number: int) -> None:
        """Wait for a later place to be given out: unlike the number of those who wait, it only ever goes up."""
        eventually(lambda: self.places >= number)

    def until_free(self) -> None:
        """Wait until nobody holds the lock: a release may still be on its way when `hold()` has ended."""
        eventually(lambda: not self.state.holder)

    def unlock(self) -> None:
        """End the current lease by force, as an operator may."""
        assert run(self.client, commands.unlock(self.keys, self.state.holder))

    def everything(self) -> dict[bytes, bytes]:
        """Return all keys and values of the database, as dumps."""
        return {key: self.client.dump(key) for key in sorted(self.client.keys("*"))}

    def assert_nothing_left(self) -> None:
        """Assert that no lock, no place and no key but the state is there, and that this one has no TTL."""
        self.until_free()
        assert self.state.waiting == 0
        left = {_text(key) for key in self.client.keys("*")}
        assert left - {self.keys.log} == {self.keys.state}
        assert self.client.ttl(self.keys.state) == -1
        fields = {_text(field) for field in self.client.hkeys(self.keys.state)}
        assert fields <= {"nonce", "ticket", "lost", "gone"}, fields


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def assert_distinct_and_in_order(taken: Iterable[tuple[float, float, int]]) -> None:
    """Assert that nonces are distinct, and each above all that were there when it was asked for.

    Args:
        taken: when it was asked for, when it was there, and the nonce.
    """
    verdict = judge((asked, there, nonce, nonce) for asked, there, nonce in taken)
    assert verdict.duplicates == 0, "a nonce came twice"
    assert verdict.backward == 0, "a nonce was there before a lower one was asked for"


class OneAtATime:
    """Notices when two are inside at once."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self._inside = threading.Semaphore()

    @contextlib.contextmanager
    def inside(self, who: Any) -> Iterator[None]:
        """Be inside, alone, and be noted."""
        assert self._inside.acquire(blocking=False), f"{who} came in while {self.order[-1]} was inside"
        try:
            self.order.append(who)
            yield
        finally:
            self._inside.release()
