"""The ends of loops, of interpreters and of objects: what nobody is inside of any more is given back at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.asyncio import Connection, ConnectionPool

import kraken_nonce_redis
import kraken_nonce_redis.asyncio
from kraken_nonce_redis import CallLock, NonceAllocator, _process
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from kraken_nonce_redis.asyncio import NonceAllocator as AsyncNonceAllocator
from kraken_nonce_redis.asyncio._connections import Target
from kraken_nonce_redis.asyncio._pipe import Pipe
from kraken_nonce_redis.asyncio._store import _OfferListener, store_for
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.testing import KrakenSimulator
from tests.support.faces import KEY
from tests.support.helpers import ROOT, SECOND, Rival, View, environment, eventually
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.conftest import PrivateServer
    from tests.support.servers import Server

AT_ONCE = 1.5
"""Seconds: the one within which all is given back, and a busy machine's."""
HALF_AN_HOUR = 1800 * SECOND


@pytest.fixture
def view(valkey: Server) -> View:
    """Look into Redis."""
    return View(valkey.client())


# Loops.


@pytest.mark.parametrize("cancelled", [0, 1, 2, 3], ids=lambda times: f"cancelled {times} times")
def test_end_of_a_loop(valkey: Server, view: View, cancelled: int) -> None:
    """`asyncio.run` ends while tasks wait, and while they are cancelled in the middle of giving back."""
    rival = Rival(valkey.client())
    rival.take()
    lock = AsyncCallLock.from_url(valkey.url, KEY)

    async def wait() -> None:
        async with lock.hold():
            pass

    async def main() -> float:
        tasks = [asyncio.create_task(wait()) for _ in range(20)]
        await asyncio.to_thread(view.until_waiting, 20)
        for _ in range(cancelled):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        return time.monotonic()

    assert time.monotonic() - asyncio.run(main()) < AT_ONCE
    assert view.waiting == 0
    rival.release()
    view.assert_nothing_left()


def test_end_of_a_loop_that_connects(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is made although the attempt was cancelled, as wait_for lets it be, is closed all the same."""
    connect = Connection.connect

    async def stubborn(connection: Connection) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        await connect(connection)

    async def main() -> None:
        monkeypatch.setattr(Connection, "connect", stubborn)
        pipe = Pipe(ConnectionPool.from_url(valkey.url).make_connection)
        asking = asyncio.create_task(pipe.ask(b"PING\r\n", 1))
        await asyncio.sleep(0.05)
        await pipe.end()
        with pytest.raises(redis.ConnectionError, match="the event loop ends"):
            await asking
        assert not pipe.is_open

    asyncio.run(main())
    gc.collect()  # which shows what is still open


def test_end_of_a_loop_that_begins_to_listen(valkey: Server) -> None:
    """The connection for offers is closed wherever the one who opens it is cancelled."""

    async def main(turns: int) -> None:
        listener = _OfferListener(store_for(Target.of_url(valkey.url)))
        for _ in range(turns):
            await asyncio.sleep(0)
        listener.task.cancel()
        await asyncio.wait([listener.task])

    for turns in range(50):
        asyncio.run(main(turns))
    gc.collect()  # which shows what is still open


def test_end_of_a_loop_with_a_holder(valkey: Server, view: View) -> None:
    """A task that holds the lock is cancelled with the loop, and cancelled once more while it releases."""
    lock = AsyncCallLock.from_url(valkey.url, KEY)

    async def hold() -> None:
        async with lock.hold():
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(hold())
        await asyncio.to_thread(eventually, lambda: view.state.leased)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    view.assert_nothing_left()


def test_aclose_in_the_middle(valkey: Server, view: View) -> None:
    """After `aclose` whoever waits goes on to wait, and leases are renewed."""
    rival = Rival(valkey.client())
    rival.take()

    async def wait() -> None:
        async with AsyncCallLock.from_url(valkey.url, KEY).hold(timeout=20):
            pass

    async def main() -> None:
        async with AsyncCallLock.from_url(valkey.url, "other", ttl=1).hold(auto_renew=True) as lease:
            waiting = asyncio.create_task(wait())
            await asyncio.to_thread(view.until_waiting, 1)
            await kraken_nonce_redis.asyncio.aclose()
            await asyncio.to_thread(view.until_waiting, 1)
            rival.release()
            await asyncio.wait_for(waiting, 5)
            await asyncio.sleep(1.5)
            assert lease.remaining() > 0.1

    asyncio.run(main())


def test_close_in_the_middle(valkey: Server, view: View) -> None:
    """After `close` whoever waits goes on to wait, and leases are renewed."""
    rival = Rival(valkey.client())
    rival.take()
    lock = CallLock.from_url(valkey.url, KEY)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    def wait() -> None:
        with lock.hold(timeout=20):
            pass

    with (
        ThreadPoolExecutor(1) as executor,
        CallLock.from_url(valkey.url, "other", ttl=1).hold(auto_renew=True) as lease,
    ):
        waiting = executor.submit(wait)
        view.until_waiting(1)
        kraken_nonce_redis.close()
        rival.release()
        waiting.result(5)
        time.sleep(1.5)
        assert lease.remaining() > 0.1


# Interpreters.

WAIT = """
import sys, threading
from kraken_nonce_redis import CallLock

def wait():
    with CallLock.from_url(sys.argv[1], sys.argv[2]).hold():
        pass

for _ in range(5):
    threading.Thread(target=wait, daemon=True).start()
sys.stdin.readline()
sys.exit(3)
"""
WAIT_IN_A_CHILD = """
import multiprocessing, sys, threading, time
from kraken_nonce_redis import CallLock

def wait():
    with CallLock.from_url(sys.argv[1], sys.argv[2]).hold():
        pass

def work(over):
    for _ in range(5):
        threading.Thread(target=wait, daemon=True).start()
    over.wait()

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    over = context.Event()
    child = context.Process(target=work, args=(over,))
    child.start()
    sys.stdin.readline()
    over.set()
    child.join()
    sys.exit(3)
"""
ORDER = """
import sys, threading
from kraken_nonce_redis.krakenex import API

api = API(sys.argv[2], sys.argv[3], redis=sys.argv[1])
api.uri = sys.argv[4]
order = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "20000", "volume": "0.001"}
threading.Thread(target=api.query_private, args=("AddOrder", order), daemon=True).start()
sys.stdin.readline()
"""


@contextlib.contextmanager
def program(source: str, *arguments: str, tmp_path: Path) -> Iterator[Callable[[], float]]:
    """Start a program; give what lets it end, and returns the seconds until it has."""
    (tmp_path / "program.py").write_text(source)
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:This process:DeprecationWarning",
            tmp_path / "program.py",
            *arguments,
        ],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
    )

    def end() -> float:
        began = time.monotonic()
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
        return time.monotonic() - began

    try:
        yield end
    finally:
        process.kill()
        process.wait()


SUSPENDED = """
import sys
from kraken_nonce_redis import CallLock

lock = CallLock.from_url(sys.argv[1], sys.argv[2])

def working():
    with lock.hold():
        yield

work = working()
next(work)
sys.stdin.readline()
"""


def test_end_of_an_interpreter_with_a_suspended_hold(valkey: Server, view: View, tmp_path: Path) -> None:
    """A generator that was left in the middle of its block ends when no thread can be started any more."""
    with program(SUSPENDED, valkey.url, KEY, tmp_path=tmp_path) as end:
        eventually(lambda: view.state.leased, 20)
        end()  # which fails if that takes long


@pytest.mark.parametrize("source", [WAIT, WAIT_IN_A_CHILD], ids=["interpreter", "child of multiprocessing"])
def test_end_of_a_process(valkey: Server, view: View, tmp_path: Path, source: str) -> None:
    """`sys.exit` while daemon threads wait: their places are gone when the process is."""
    rival = Rival(valkey.client())
    rival.take()
    with program(source, valkey.url, KEY, tmp_path=tmp_path) as end:
        eventually(lambda: view.waiting == 5, 20)
        end()
        assert view.waiting == 0
    rival.release()
    view.assert_nothing_left()


def test_end_of_a_process_whose_first_command_is_not_answered_yet(valkey: Server, view: View, tmp_path: Path) -> None:
    """What it is about to get is given back as well."""
    with CallLock.from_url(valkey.url, KEY).hold():
        pass  # the server knows the scripts, so that one reply is awaited, and not two
    view.until_free()
    rival = Rival(valkey.client())
    rival.take()
    with Proxy(valkey.port) as proxy:
        proxy.delay(0, replies=0.2)
        with program(WAIT.replace("range(5)", "range(1)"), proxy.url, KEY, tmp_path=tmp_path) as end:
            eventually(lambda: view.waiting == 1, 20)
            end()
            assert view.waiting == 0
    rival.release()
    view.assert_nothing_left()


def test_end_of_an_interpreter_while_redis_hangs(private_server: PrivateServer, tmp_path: Path) -> None:
    """A Redis that doesn't answer holds up the end for a second, not for the timeouts of its sockets."""
    server = private_server()
    view = View(server.client())
    Rival(server.client()).take()
    with program(WAIT, server.url, KEY, tmp_path=tmp_path) as end:
        eventually(lambda: view.waiting == 5, 20)
        server.pause()
        assert end() < 2.5


def test_end_of_an_interpreter_in_the_middle_of_an_order(valkey: Server, tmp_path: Path) -> None:
    """A daemon thread is still in its call: its lease is left to its TTL, and so is what was noted of the order."""
    with KrakenSimulator(latency=(10.0, 10.0)) as sim:
        view = View(valkey.client(), _keys(sim.key))
        with program(ORDER, valkey.url, sim.key, sim.secret, sim.url, tmp_path=tmp_path) as end:
            eventually(lambda: view.state.leased, 20)
            holder = view.state.holder
            end()
            assert view.state.leased
            assert view.state.holder == holder
            assert view.client.hget(view.keys.state, "intent")


def _keys(api_key: str) -> Any:
    from kraken_nonce_redis._redis.keyspace import Keyspace  # noqa: PLC0415

    return Keyspace.of("kraken-nonce", api_key)


# Objects.


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _memory() -> int:
    """Return the bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _names(valkey: Server, name: str) -> int:
    with valkey.client() as client:
        return len([each for each in client.client_list() if each["name"] == name])


@pytest.mark.parametrize("kind", ["locks", "clients"])
def test_ten_thousand_objects(valkey: Server, sim_less_api: Callable[[str], Any], kind: str) -> None:
    """Locks or clients, made, used and dropped: one connection, one store, no descriptor and no memory kept."""
    url = f"{valkey.url}?client_name={kind}"

    def make(number: int) -> None:
        if kind == "locks":
            lock = CallLock.from_url(url, f"key {number % 50}")
            if number % 20 == 0:
                with lock.hold():
                    pass
        else:
            sim_less_api(url).lock.locked() if number % 20 == 0 else sim_less_api(url)

    for number in range(1000):
        make(number)
    assert _names(valkey, kind) <= 2
    gc.collect()
    memory, descriptors = _memory(), _descriptors()
    for number in range(9000):
        make(number)
    gc.collect()
    assert _names(valkey, kind) <= 2
    assert len(_process.current().stores) == 1
    assert _descriptors() <= descriptors
    assert _memory() - memory < 8_000_000


@pytest.fixture
def sim_less_api() -> Callable[[str], Any]:
    """Make clients of krakenex that make no call to Kraken."""

    class Api(API):
        @property
        def lock(self) -> CallLock:
            return self._guard.lock("a key")

    return lambda url: Api("a-key", "c2VjcmV0", redis=url)


def _loops() -> list[asyncio.AbstractEventLoop]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, asyncio.AbstractEventLoop)]


@pytest.mark.parametrize("times", [200, pytest.param(5000, marks=pytest.mark.test_all)])
def test_many_loops(valkey: Server, times: int) -> None:
    """`asyncio.run` again and again, on one lock: no loop, no connection and no descriptor is left."""
    lock = AsyncCallLock.from_url(f"{valkey.url}?client_name=loops", KEY)

    async def main() -> None:
        async with lock.hold():
            pass

    asyncio.run(main())
    _names(valkey, "loops")
    earlier = _loops()  # another test may have left one to an object that lives
    descriptors = _descriptors()
    for _ in range(times):
        asyncio.run(main())
    assert [loop for loop in _loops() if loop not in earlier] == []
    eventually(lambda: _names(valkey, "loops") == 0)
    assert _descriptors() <= descriptors


# Floors.


def _run(coroutine: Coroutine[Any, Any, int]) -> int:
    return asyncio.run(coroutine)


@pytest.mark.parametrize("first", ["threads", "asyncio"])
@pytest.mark.parametrize("second", ["threads", "asyncio"])
def test_floors_are_of_the_process(valkey: Server, first: str, second: str) -> None:
    """Redis loses its data after a jump: whoever asks next in this process, by whatever object, gets a higher nonce.

    Threads and asyncio, two runs of a loop and two clients of redis-py know what the other has seen.
    """
    import redis  # noqa: PLC0415
    import redis.asyncio  # noqa: PLC0415

    def jump() -> int:
        if first == "threads":
            return NonceAllocator(redis.Redis("127.0.0.1", valkey.port), KEY).jump_forward(HALF_AN_HOUR)
        return _run(AsyncNonceAllocator.from_url(valkey.url, KEY).jump_forward(HALF_AN_HOUR))

    def following() -> int:
        if second == "threads":
            return NonceAllocator.from_url(valkey.url, KEY).next()
        return _run(AsyncNonceAllocator.from_url(valkey.url, KEY).next())

    jumped = jump()
    valkey.client().flushall()
    assert following() > jumped


def test_floors_of_two_runs(valkey: Server) -> None:
    """One allocator in two runs of `asyncio.run`."""
    nonces = AsyncNonceAllocator.from_url(valkey.url, KEY)
    jumped = _run(nonces.jump_forward(HALF_AN_HOUR))
    valkey.client().flushall()
    assert _run(nonces.next()) > jumped


_KILLED = """
import os, signal, sys
import redis
from kraken_nonce_redis import CallLock
with CallLock(redis.Redis.from_url(sys.argv[1]), sys.argv[2]).hold():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_right_behind_a_hold(valkey: Server) -> None:
    """The release is with the kernel when the block ends: who is killed on the next line keeps no lock."""
    view = View(valkey.client())
    subprocess.run([sys.executable, "-c", _KILLED, valkey.url, KEY], cwd=ROOT, env=environment(), check=False)
    assert view.state.last is not None
    view.until_free()
