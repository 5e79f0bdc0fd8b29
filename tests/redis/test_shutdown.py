"""The end of a process: no new calls, those under way end, the others are given up and their locks released."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import kraken_nonce_redis
import kraken_nonce_redis.asyncio
from kraken_nonce_redis import CallLockError, InvalidArgument, Retries
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import ROOT, Stopwatch, environment, run
from tests.support.order_bots import Krakenex
from tests.support.servers import free_port, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Server

WAYS = ["threads", "tasks"]
HOWS = ["signal", "call"]

pytestmark = [pytest.mark.once, pytest.mark.simulator(seed=4)]


class Stage:
    """A bot that can be stopped, and what the others see of it."""

    def __init__(self, sim: KrakenSimulator, valkey: Server) -> None:
        self.sim, self._valkey = sim, valkey
        self._bots: list[subprocess.Popen[str]] = []

    def start(self, way: str, how: str, seconds: float) -> subprocess.Popen[str]:
        """Start the bot; return when one of its callers places an order and another one waits."""
        access = (self._valkey.url, self.sim.url, self.sim.key, self.sim.secret)
        bot = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stopping", way, how, str(seconds), *access],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        self._bots.append(bot)
        assert bot.stdout is not None
        assert bot.stdout.readline() == "ready\n"
        return bot

    def stop(self, bot: subprocess.Popen[str]) -> dict[str, str]:
        """Stop it; return what became of its callers and what `shutdown` returned, and its exit code as ``code``."""
        bot.send_signal(signal.SIGTERM)
        said, _ = bot.communicate(timeout=20)
        return dict(line.split(" ", 1) for line in said.splitlines()) | {"code": str(bot.returncode)}

    def next_bot(self, events: list[Any]) -> float:
        """Make a call as another process; return how long that took."""
        duration = Stopwatch()
        options: dict[str, Any] = {"redis": self._valkey.url, "retries": Retries(settle_waits=(0.1, 0.2))}
        with Krakenex(self.sim.url, self.sim.key, self.sim.secret, on_event=events.append, **options) as bot:
            assert bot.balance()["error"] == []
        return duration()

    def pending(self) -> int:
        """Return how many calls are in the journal."""
        return len(run(self._valkey.client(), journal.pending(Keyspace.of("kraken-nonce", self.sim.key))))

    def close(self) -> None:
        """End the bots."""
        for bot in self._bots:
            bot.kill()
            bot.wait()
            assert bot.stdout is not None
            bot.stdout.close()


@pytest.fixture
def stage(sim: KrakenSimulator, valkey: Server) -> Iterator[Stage]:
    """Set the stage."""
    stage = Stage(sim, valkey)
    yield stage
    stage.close()


@pytest.mark.long
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", WAYS)
def test_calls_end(stage: Stage, way: str, how: str) -> None:
    """An order under way ends and its caller hears of it; who waits, and who comes later, is told; the lock is free."""
    stage.sim.configure(faults=[Fault("slow", "answering", methods=["AddOrder"], seconds=2.0)])
    bot = stage.start(way, how, 10)
    duration = Stopwatch()
    said = stage.stop(bot)
    assert duration() < 6
    assert next(iter(said)) == "waiting"  # at once
    code = said.pop("code")
    assert code == ("0" if how == "call" else str(-signal.SIGTERM))
    shown = {"shutdown": "True"} if how == "call" else {}
    assert said == {"order": "answered", "waiting": "ShuttingDown False", "later": "ShuttingDown False"} | shown
    assert stage.pending() == 0
    events: list[Any] = []
    assert stage.next_bot(events) < 1
    assert events == []
    assert len(stage.sim.orders()) == 1


@pytest.mark.test_all
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", WAYS)
def test_calls_are_given_up(stage: Stage, way: str, how: str) -> None:
    """A call that takes too long stays in the journal, and its lock is free at once: the next bot settles it."""
    stage.sim.configure(faults=[Fault("slow", "answering", methods=["AddOrder"], seconds=8.0)])
    bot = stage.start(way, how, 0.5)
    said = stage.stop(bot)
    assert said.get("shutdown", "False") == "False"
    assert said["waiting"] == "ShuttingDown False"
    assert stage.pending() == 1
    events: list[Any] = []
    assert stage.next_bot(events) < 3  # of 30 s that the lease would have lasted
    (event,) = events
    assert (event.outcome, event.inherited) == ("found", True)
    assert len(stage.sim.orders()) == 1
    assert stage.pending() == 0


def in_child(program: str, *arguments: str) -> str:
    """Run a program in a process of its own, since it can't be undone; return what it says."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


OWN = """
import sys, time
from contextlib import contextmanager
import kraken_nonce_redis
from kraken_nonce_redis import CallLock, LeaseLost, NonceAllocator, ShuttingDown
lock = CallLock.from_url(sys.argv[1], "key")
@contextmanager
def losing():
    try:
        yield
    except LeaseLost as error:
        print("lost" if "is shutting down" in str(error) and "ttl" not in str(error) else error)
with losing(), lock.hold() as lease:
    start = time.monotonic()
    print(kraken_nonce_redis.shutdown(20), time.monotonic() - start < 5, lease.lost)
    with losing():
        lease.next_nonce()
try:
    lock.acquire()
except ShuttingDown:
    print("refused")
print(NonceAllocator.from_url(sys.argv[1], "key").next() > 0)
"""


def test_in_the_thread_that_holds(valkey: Server) -> None:
    """What the caller itself holds can't end meanwhile, so it is given up at once. Nonces alone are still given."""
    assert in_child(OWN, valkey.url) == "False True True\nlost\nlost\nrefused\nTrue\n"
    with kraken_nonce_redis.CallLock.from_url(valkey.url, "key").hold(timeout=0):
        pass


GRANTED = """
import sys, threading, time
import kraken_nonce_redis
from kraken_nonce_redis import CallLock, ShuttingDown
lock = CallLock.from_url(sys.argv[1], "key")
def call():
    try:
        with lock.hold():
            print("makes a call", flush=True)
            sys.stdin.readline()
    except ShuttingDown:
        print("refused", flush=True)
with lock.hold():
    pass
print("ready", flush=True)
sys.stdin.readline()
thread = threading.Thread(target=call)
thread.start()
time.sleep(0.3)
getattr(kraken_nonce_redis, sys.argv[2])()
thread.join()
"""
GRANTED_IN_A_TASK = """
import asyncio, sys
import kraken_nonce_redis.asyncio as library
from kraken_nonce_redis import ShuttingDown
async def call(lock):
    try:
        async with lock.hold():
            print("makes a call", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
    except ShuttingDown:
        print("refused", flush=True)
async def main():
    lock = library.CallLock.from_url(sys.argv[1], "key")
    async with lock.hold():
        pass
    print("ready", flush=True)
    sys.stdin.readline()
    task = asyncio.create_task(call(lock))
    await asyncio.sleep(0.3)
    await getattr(library, sys.argv[2])()
    await task
asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "how"),
    [(GRANTED, "shutdown"), (GRANTED, "close"), (GRANTED_IN_A_TASK, "shutdown"), (GRANTED_IN_A_TASK, "aclose")],
)
def test_granted_at_this_moment(valkey: Server, program: str, how: str) -> None:
    """Who is granted the lock while the process ends is refused; who is while connections close really has it."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, valkey.url, how],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as bot:
        assert bot.stdin is not None
        assert bot.stdout is not None
        assert bot.stdout.readline() == "ready\n"
        valkey.client().client_pause(3000, all=False)  # so the grant comes when the end has begun
        bot.stdin.write("\n")
        bot.stdin.flush()
        said = bot.stdout.readline()
        lock = kraken_nonce_redis.CallLock.from_url(valkey.url, "key")
        if how == "shutdown":
            assert said == "refused\n"
        else:
            assert said == "makes a call\n"
            assert lock.locked()
            bot.stdin.close()
        bot.wait(20)
    with lock.hold(timeout=1):
        pass
    assert bot.returncode == 0


FORKED = """
import os, sys
import kraken_nonce_redis
from kraken_nonce_redis import CallLock
lock = CallLock.from_url(sys.argv[1], "key")
with lock.hold():
    pass
print(kraken_nonce_redis.shutdown(0), flush=True)
if os.fork() == 0:
    with lock.hold(timeout=5):
        print("held", flush=True)
    os._exit(0)
os.wait()
"""


def test_a_child_begins_anew(valkey: Server) -> None:
    """A process that is forked after the end of its parent's calls makes calls."""
    assert in_child(FORKED, valkey.url) == "True\nheld\n"


FIRST = """
import os, signal, sys, time
import kraken_nonce_redis
kraken_nonce_redis.shutdown_on_signal(1)
assert os.getpid() == 1
os.kill(1, signal.SIGTERM)
time.sleep(30)
"""


def test_the_first_process_of_a_container() -> None:
    """The system keeps signals from such a process, but one that has ended its calls ends."""
    alone = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        require("this user can't make a namespace of processes (Linux: root can)")
    done = subprocess.run([*alone, sys.executable, "-c", FIRST], cwd=ROOT, env=environment(), timeout=30, check=False)
    assert done.returncode == 128 + signal.SIGTERM


NOBODY = """
import sys, time
import kraken_nonce_redis
from kraken_nonce_redis import CallLock
lock = CallLock.from_url(sys.argv[1] + "?socket_timeout=0.3", "key")
try:
    lock.acquire()
except Exception as error:
    print(type(error).__name__)
start = time.monotonic()
print(kraken_nonce_redis.shutdown(20), time.monotonic() - start < 5)
"""


def test_without_redis() -> None:
    """Where no Redis answers, nothing hangs."""
    assert in_child(NOBODY, f"redis://127.0.0.1:{free_port()}") == "StoreUnavailable\nTrue True\n"


@pytest.mark.parametrize("seconds", [-1, 3601, float("nan"), "10", None])
def test_wrong_seconds(seconds: Any) -> None:
    """A wrong number of seconds is refused, and nothing ends."""
    for end in (kraken_nonce_redis.shutdown, kraken_nonce_redis.shutdown_on_signal):
        with pytest.raises(InvalidArgument, match="seconds"):
            end(seconds)


@pytest.mark.parametrize(
    "signals",
    [signal.SIGTERM, None, [signal.SIGUSR1, signal.SIGKILL], [signal.SIGUSR1, 999], "SIGUSR1", [None]],
    ids=repr,
)
def test_wrong_signals(signals: Any) -> None:
    """What is no list of signals, or has one that can have no handler, is refused, and no handler is set."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    try:
        with pytest.raises(InvalidArgument, match=r"^signals: ") as caught:
            kraken_nonce_redis.shutdown_on_signal(signals=signals)
        assert caught.value.parameter == "signals"
        assert [signal.getsignal(number) for number in numbers] == before
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_in_the_wrong_place() -> None:
    """In a thread that runs a loop, and for handlers in another thread than the main one, an error says what to do."""

    async def stop() -> None:
        with pytest.raises(CallLockError, match=r"asyncio\.shutdown"):
            kraken_nonce_redis.shutdown()

    asyncio.run(stop())
    failures: list[str] = []

    def handle() -> None:
        try:
            kraken_nonce_redis.shutdown_on_signal()
        except InvalidArgument as error:
            failures.append(str(error))

    thread = threading.Thread(target=handle)
    thread.start()
    thread.join()
    assert "main thread" in failures[0]
