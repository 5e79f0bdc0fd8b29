"""Programs that fork in every way there is; their processes hold one lock again and again, and note each turn.

Each is started by `run` as ``python -m tests.support.forks WAY URL RECORD``; RECORD is the file that gets a line for
each turn: the process, when it had the lock and when it was done with its work, and the nonce.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from requests.adapters import HTTPAdapter

from kraken_nonce_redis import CallLock, HoldTimeout, NonceAllocator, StoreUnavailable, StoreUnsupported
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from tests.support.faces import KEY
from tests.support.helpers import ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROCESSES: Final = 4
TURNS: Final = 15
TTL: Final = 5.0

FORK_OF_THREADS: Final = "ignore:This process:DeprecationWarning"
"""Since 3.12 Python says that a fork beside threads may deadlock; here it must not."""

_PATCHED: Final = """
from gevent import monkey
monkey.patch_all({})
import runpy
runpy.run_module("tests.support.forks", run_name="__main__")
"""
PATCHES: Final = {
    "gevent": _PATCHED.format(""),
    "gevent without threads": _PATCHED.format("thread=False"),
}
"""What has to be patched before anything else is imported."""

Turn = tuple[int, float, float, int]


def turn(lock: CallLock, record: str) -> None:
    """Hold the lock for a moment, and note it."""
    with lock.hold(timeout=20) as lease:
        there = time.monotonic()
        time.sleep(0.002)
        _note(record, there, lease.nonce)


async def async_turn(lock: AsyncCallLock, record: str) -> None:
    """Do the same in asyncio."""
    async with lock.hold(timeout=20) as lease:
        there = time.monotonic()
        await asyncio.sleep(0.002)
        _note(record, there, lease.nonce)


def _note(record: str, there: float, nonce: int) -> None:
    line = f"{os.getpid()} {there} {time.monotonic()} {nonce}\n"
    file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


def turns(record: Path) -> list[Turn]:
    """Return what was noted."""
    words = [line.split() for line in record.read_text().splitlines()]
    return [(int(process), float(there), float(done), int(nonce)) for process, there, done, nonce in words]


def run(way: str, url: str, record: Path, *, seconds: float = 60, **more: str) -> str:
    """Run a program to its end; return what it said. It must say nothing on stderr."""
    start = ["-m", "tests.support.forks"] if way not in PATCHES else ["-c", PATCHES[way]]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", FORK_OF_THREADS, *start, way, url, str(record)],
        cwd=ROOT,
        env=environment() | more,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# The ways.


def in_children(fork: Callable[[], int], work: Callable[[], object]) -> None:
    """Fork so many children that do some work, do it as well, and wait for them."""
    children = []
    for _ in range(PROCESSES - 1):
        child = fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    work()
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert not any(codes), codes


def libc_fork() -> int:
    """Fork as C code does, of which Python does not hear."""
    return ctypes.PyDLL(None).fork()


def threads(fork: Callable[[], int], url: str, record: str) -> None:
    """Fork after the lock was used, with an older lease still held."""
    lock, held = CallLock.from_url(url, KEY, ttl=TTL), CallLock.from_url(url, "another key")
    turn(lock, record)
    before = NonceAllocator.from_url(url, KEY).next()
    parent = os.getpid()
    with held.hold() as lease:

        def work() -> None:
            assert lease.lost == (os.getpid() != parent)
            assert (held.lease is None) == (os.getpid() != parent)
            assert NonceAllocator.from_url(url, KEY).next() > before
            for _ in range(TURNS):
                turn(lock, record)

        in_children(fork, work)


async def _hold_often(lock: AsyncCallLock, record: str) -> None:
    for _ in range(TURNS):
        await async_turn(lock, record)


def in_running_loop(fork: Callable[[], int], url: str, record: str) -> None:
    """Fork in a coroutine, beside tasks that wait for the lock; the children begin loops of their own."""

    async def main() -> None:
        lock = AsyncCallLock.from_url(url, KEY, ttl=TTL)
        await async_turn(lock, record)
        async with lock.hold():
            others = [asyncio.create_task(async_turn(lock, record)) for _ in range(3)]
            await asyncio.sleep(0.1)
            children = []
            for _ in range(PROCESSES - 1):
                child = fork()
                if child == 0:
                    code = 1
                    try:
                        asyncio.run(_hold_often(lock, record))
                        code = 0
                    finally:
                        sys.stderr.flush()
                        os._exit(code)
                children.append(child)
        await _hold_often(lock, record)
        await asyncio.gather(*others)
        codes = [(await asyncio.to_thread(os.waitpid, child, 0))[1] for child in children]
        assert not any(codes), codes

    asyncio.run(main())


def between_loop_runs(
    fork: Callable[[], int], url: str, record: str, new_loop: Callable[[], Any] = asyncio.new_event_loop
) -> None:
    """Fork between two uses of a loop, beside a task that waits; parent and children go on with that loop at once."""
    loop = new_loop()
    lock = AsyncCallLock.from_url(url, KEY, ttl=TTL)
    over = asyncio.Event()

    async def hold() -> None:
        async with lock.hold():
            await over.wait()

    async def begin() -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(hold())]
        await asyncio.sleep(0.1)
        tasks.append(asyncio.create_task(async_turn(lock, record)))
        await asyncio.sleep(0.1)
        return tasks

    holder, waiter = loop.run_until_complete(begin())
    parent = os.getpid()

    async def go_on() -> None:
        if os.getpid() == parent:
            over.set()
            await holder
            await waiter
            await _hold_often(lock, record)
            return
        await _hold_often(lock, record)
        with contextlib.suppress(StoreUnavailable):
            await asyncio.wait_for(waiter, 5)
            raise AssertionError("a task of the parent got the lock in its child")

    in_children(fork, lambda: loop.run_until_complete(go_on()))
    loop.run_until_complete(_hold_often(lock, record))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def by_multiprocessing(method: str, url: str, record: str) -> None:
    """Start processes by multiprocessing, after use in the parent."""
    lock = CallLock.from_url(url, KEY, ttl=TTL)
    turn(lock, record)
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=_many_turns, args=(url, record)) for _ in range(PROCESSES)]  # type: ignore[attr-defined]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes)


def _many_turns(url: str, record: str) -> None:
    lock = CallLock.from_url(url, KEY, ttl=TTL)
    for _ in range(TURNS):
        turn(lock, record)


def greenlets(url: str, record: str) -> None:
    """Hold the lock in many greenlets of one process."""
    import gevent  # noqa: PLC0415

    lock = CallLock.from_url(url, KEY, ttl=TTL)
    ticks = []

    def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            time.sleep(0.01)

    gevent.spawn(tick)
    jobs = [gevent.spawn(_many_turns, url, record) for _ in range(PROCESSES)]
    gevent.joinall(jobs, raise_error=True)
    with lock.hold():
        assert gevent.spawn(_timed_out, lock).get(timeout=5)
    assert max(later - earlier for earlier, later in itertools.pairwise(ticks)) < 1, "all greenlets stood still"


def _timed_out(lock: CallLock) -> bool:
    try:
        with lock.hold(timeout=0.3):
            return False
    except HoldTimeout:
        return True


def half_patched(url: str, record: str) -> None:
    """Use the library where gevent has left out threads."""
    try:
        turn(CallLock.from_url(url, KEY, ttl=TTL), record)
    except StoreUnsupported as error:
        print(error)


def _ports(session: Any) -> set[int]:
    """Return where the connections that a session of requests keeps come from."""
    pools = session.get_adapter("http://").poolmanager.pools
    return {
        connection.sock.getsockname()[1]
        for pool in [pools[key] for key in pools.keys()]  # noqa: SIM118 - it can't be iterated over
        for connection in pool.pool.queue
        if connection is not None and connection.sock is not None
    }


def _clients(url: str) -> Iterator[tuple[Any, Callable[[], object], Callable[[], object]]]:
    """Return the session of each client, a private call and a public one."""
    import kraken_nonce_redis.ccxt  # noqa: PLC0415
    from kraken_nonce_redis.kraken_sdk import SpotClient  # noqa: PLC0415
    from kraken_nonce_redis.krakenex import API  # noqa: PLC0415

    uri, key, secret = (os.environ[name] for name in ("SIMULATOR", "API_KEY", "API_SECRET"))
    api = API(key, secret, redis=url)
    api.uri = uri
    yield api.session, lambda: api.query_private("Balance"), lambda: api.query_public("Time")
    sdk = SpotClient(key, secret, url=uri, redis=url)
    yield (
        sdk._SpotClient__session,
        lambda: sdk.request("POST", "/0/private/Balance"),
        lambda: sdk.request("GET", "/0/public/Time", auth=False),
    )
    exchange = kraken_nonce_redis.ccxt.kraken(
        {
            "apiKey": key,
            "secret": secret,
            "enableRateLimit": False,
            "urls": {"api": {"public": uri, "private": uri}},
            "redis": url,
        }
    )
    yield exchange.session, exchange.private_post_balance, exchange.public_get_time


def sessions(url: str) -> None:
    """Fork after calls to Kraken; the children's sessions have connections of their own, and settings as before."""
    for session, private, public in _clients(url):
        session.headers["X-Mine"] = "kept"
        session.verify = "/a/file"
        session.mount("http://", HTTPAdapter(pool_maxsize=3))
        private()
        _share(session, (public, private))
        private()


def _share(session: Any, calls: tuple[Callable[[], object], ...]) -> None:
    parent, ports = os.getpid(), _ports(session)
    assert len(ports) == 1

    def work() -> None:
        for call in calls if os.getpid() % 2 else reversed(calls):
            call()
            assert (_ports(session) == ports) == (os.getpid() == parent)
            assert len(_ports(session)) == 1
        assert (session.headers["X-Mine"], session.verify) == ("kept", "/a/file")
        assert session.get_adapter("http://").poolmanager.connection_pool_kw["maxsize"] == 3

    in_children(os.fork, work)
    assert _ports(session) == ports


def main(way: str, url: str, record: str) -> None:
    """Go one way."""
    match way:
        case "libc fork":
            threads(libc_fork, url, record)
        case "os.fork":
            threads(os.fork, url, record)
        case "fork in a running loop":
            in_running_loop(os.fork, url, record)
        case "fork between two runs of a loop":
            between_loop_runs(os.fork, url, record)
        case "fork between two runs of uvloop":
            import uvloop  # noqa: PLC0415

            between_loop_runs(os.fork, url, record, uvloop.new_event_loop)
        case "fork" | "spawn" | "forkserver":
            by_multiprocessing(way, url, record)
        case "sessions":
            sessions(url)
        case "gevent":
            greenlets(url, record)
        case "gevent without threads":
            half_patched(url, record)
        case _:
            raise ValueError(way)


if __name__ == "__main__":
    main(*sys.argv[1:])
