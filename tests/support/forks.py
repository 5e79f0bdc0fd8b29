"""Programs that fork in every way there is; their processes hold one lock again and again, and note each turn.

Each is started by `run` as ``python -m tests.support.forks WAY URL RECORD``; RECORD is the file that gets a line for
each turn: the process, when it had the lock and when it was done with its work, and the nonce.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import logging
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from requests.adapters import HTTPAdapter

from kraken_nonce_redis import CallLock, CallLockError, HoldTimeout, NonceAllocator, StoreUnavailable, StoreUnsupported
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from tests.support.faces import KEY
from tests.support.helpers import ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROCESSES: Final = 4
TURNS: Final = 15
ORDERS: Final = 4
TTL: Final = 5.0

FORK_OF_THREADS: Final = "ignore:This process:DeprecationWarning"
"""Since 3.12 Python says that a fork beside threads may deadlock; here it must not."""
OF_CCXT: Final = "ignore:enable_cleanup_closed:DeprecationWarning"
"""ccxt asks aiohttp for what a newer Python does by itself."""

_PATCHED: Final = """
from gevent import monkey
monkey.patch_all({})
import runpy
runpy.run_module("tests.support.forks", run_name="__main__")
"""
PATCHES: Final = {
    "gevent": _PATCHED.format(""),
    "gevent without threads": _PATCHED.format("thread=False"),
    "gevent owners": _PATCHED.format(""),
    "gevent owners with a loop": _PATCHED.format(""),
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
        [sys.executable, "-W", "error", "-W", FORK_OF_THREADS, "-W", OF_CCXT, *start, way, url, str(record)],
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


def begin_children(fork: Callable[[], int], work: Callable[[int], object]) -> list[int]:
    """Fork children that do some work, each with its number, and then end; return them."""
    children = []
    for number in range(PROCESSES - 1):
        child = fork()
        if child == 0:
            code = 1
            try:
                work(number)
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def wait_for(children: list[int]) -> None:
    """Wait until children have ended, and assert that none has failed."""
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert not any(codes), codes


def in_children(fork: Callable[[], int], work: Callable[[], object]) -> None:
    """Do some work in children and in this process at once."""
    children = begin_children(fork, lambda _: work())
    work()
    wait_for(children)


def libc_fork() -> int:
    """Fork as C code does, of which Python does not hear."""
    # No child of such a fork can live if a thread waited for the interpreter's lock at that moment. By then the thread
    # for the chores has nothing to do any more.
    time.sleep(0.6)
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
            others = [asyncio.create_task(async_turn(lock, record), context=Context()) for _ in range(3)]
            await asyncio.sleep(0.1)
            children = begin_children(fork, lambda _: asyncio.run(_hold_often(lock, record)))
        await _hold_often(lock, record)
        await asyncio.gather(*others)
        await asyncio.to_thread(wait_for, children)

    asyncio.run(main())


def between_loop_runs(fork: Callable[[], int], url: str, record: str) -> None:
    """Fork between two uses of a loop, beside a task that waits; parent and children go on with that loop at once."""
    loop = asyncio.new_event_loop()
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


def greenlet_owners(url: str, _: str) -> None:
    """Let one greenlet wait for the hold of another, which nests, and goes on meanwhile."""
    import gevent  # noqa: PLC0415

    lock = CallLock.from_url(url, KEY, ttl=TTL)

    def nonce_after_waiting() -> int:
        with lock.hold(timeout=20) as lease:
            return lease.nonce

    with lock.hold() as lease:
        waiting = gevent.spawn(nonce_after_waiting)
        gevent.sleep(0.1)
        assert not waiting.ready()
        with lock.hold(timeout=0) as inner:
            assert lease.nonce < inner.nonce
        last = lease.next_nonce()
    assert waiting.get(timeout=5) > last


def greenlet_owners_with_a_loop(url: str, record: str) -> None:
    """Do the same while a loop of asyncio runs in one greenlet, whose tasks may not wait for each other."""
    import gevent  # noqa: PLC0415

    lock = CallLock.from_url(url, KEY, ttl=TTL)

    async def intrude() -> str:
        try:
            with lock.hold(timeout=20):
                return ""
        except CallLockError as error:
            return str(error)

    async def main() -> None:
        with lock.hold():
            assert "event loop" in await asyncio.create_task(intrude())

    gevent.spawn(asyncio.run, main()).get(timeout=10)
    greenlet_owners(url, record)


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


# Clients of Kraken. SIMULATOR is its address, API_KEY and API_SECRET are for it; the record gets orders.


class Client(NamedTuple):
    """A client of Kraken."""

    session: Callable[[], Any]
    order: Callable[[dict[str, str]], Any]
    """Places an order and returns what Kraken answers; of a client for asyncio, a coroutine that does."""
    public: Callable[[], Any]


def _ccxt_config(url: str) -> dict[str, Any]:
    uri, key, secret = _access()
    urls = {"api": {"public": uri, "private": uri}}
    return {"apiKey": key, "secret": secret, "urls": urls, "rateLimit": 10, "redis": url}


def _access() -> tuple[str, str, str]:
    """Return the simulator and an API key there. Where calls go is the test's own wish, so nothing is said of it."""
    logging.getLogger("kraken_nonce_redis").addFilter(lambda record: "instead of Kraken" not in record.msg)
    return os.environ["SIMULATOR"], os.environ["API_KEY"], os.environ["API_SECRET"]


def _clients(url: str) -> Iterator[Client]:
    import kraken_nonce_redis.ccxt  # noqa: PLC0415
    from kraken_nonce_redis.kraken_sdk import SpotClient  # noqa: PLC0415
    from kraken_nonce_redis.krakenex import API  # noqa: PLC0415

    uri, key, secret = _access()
    api = API(key, secret, redis=url)
    api.uri = uri
    yield Client(
        lambda: api.session,
        lambda order: api.query_private("AddOrder", order)["result"],
        lambda: api.query_public("Time"),
    )
    sdk = SpotClient(key, secret, url=uri, redis=url)
    yield Client(
        lambda: sdk._SpotClient__session,
        lambda order: sdk.request("POST", "/0/private/AddOrder", order),
        lambda: sdk.request("GET", "/0/public/Time", auth=False),
    )
    exchange = kraken_nonce_redis.ccxt.kraken({**_ccxt_config(url), "validateServerSsl": os.environ["SSL_CERT_FILE"]})
    yield Client(
        lambda: exchange.session,
        lambda order: exchange.private_post_addorder(order)["result"],
        exchange.public_get_time,
    )


def _async_clients(url: str) -> Iterator[tuple[Client, Callable[[], Any]]]:
    """Yield each client and what closes it; in a running loop."""
    from kraken_nonce_redis.ccxt.async_support import kraken  # noqa: PLC0415
    from kraken_nonce_redis.kraken_sdk import SpotAsyncClient  # noqa: PLC0415

    uri, key, secret = _access()
    sdk = SpotAsyncClient(key, secret, url=uri, redis=url)
    yield (
        Client(
            lambda: sdk._SpotAsyncClient__session,
            lambda order: sdk.request("POST", "/0/private/AddOrder", order),
            lambda: sdk.request("GET", "/0/public/Time", auth=False),
        ),
        sdk.close if hasattr(sdk, "close") else sdk.async_close,
    )
    exchange = kraken({**_ccxt_config(url), "cafile": os.environ["SSL_CERT_FILE"]})
    exchange.timeout_on_exit = 1

    async def order(order: dict[str, str]) -> Any:
        return (await exchange.private_post_addorder(order))["result"]

    yield Client(lambda: exchange.session, order, lambda: exchange.load_markets(reload=True)), exchange.close


_numbers: Final = itertools.count()


def _new_order() -> dict[str, str]:
    cl_ord_id = f"{os.getpid()}-{next(_numbers)}"
    order = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "20000", "volume": "0.0001"}
    return {**order, "cl_ord_id": cl_ord_id}


def _note_order(record: str, order: dict[str, str], answer: Any) -> None:
    with open(record, "a", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f"{order['cl_ord_id']} {answer['txid'][0]}\n")


def orders(record: Path) -> list[tuple[str, str]]:
    """Return the cl_ord_id and the txid of each order that a client was told of."""
    return [(words[0], words[1]) for words in map(str.split, record.read_text().splitlines())]


def _ports(session: Any) -> set[int]:
    """Return where the connections that a session of requests keeps come from."""
    pools = session.get_adapter(os.environ["SIMULATOR"]).poolmanager.pools
    return {
        connection.sock.getsockname()[1]
        for pool in [pools[key] for key in pools.keys()]  # noqa: SIM118 - it can't be iterated over
        for connection in pool.pool.queue
        if connection is not None and connection.sock is not None
    }


def sessions(fork: Callable[[], int], url: str, record: str) -> None:
    """Fork after calls to Kraken; the children's sessions have connections of their own, and settings as before."""
    for client in _clients(url):
        session, uri = client.session(), os.environ["SIMULATOR"]
        session.headers["X-Mine"] = "kept"
        session.verify = "/a/file"  # REQUESTS_CA_BUNDLE goes before it
        session.mount(uri, HTTPAdapter(pool_maxsize=3))
        _place(client, record)
        _share(fork, client, record)
        _place(client, record)


def _place(client: Client, record: str) -> None:
    order = _new_order()
    _note_order(record, order, client.order(order))


def _share(fork: Callable[[], int], client: Client, record: str) -> None:
    session, parent = client.session(), os.getpid()
    ports = _ports(session)
    assert len(ports) == 1

    def work() -> None:
        for number in range(ORDERS):
            if (os.getpid() + number) % 2:
                client.public()
            _place(client, record)
            assert (_ports(session) == ports) == (os.getpid() == parent)
            assert len(_ports(session)) == 1
        assert (session.headers["X-Mine"], session.verify) == ("kept", "/a/file")
        assert session.get_adapter(os.environ["SIMULATOR"]).poolmanager.connection_pool_kw["maxsize"] == 3

    in_children(fork, work)
    assert _ports(session) == ports


def _async_ports(session: Any) -> set[int]:
    """Return where the connections of a session of aiohttp come from, in use or not."""
    connector = session.connector
    kept = [protocol for connections in connector._conns.values() for protocol, _ in connections]
    transports = [protocol.transport for protocol in (*kept, *connector._acquired)]
    return {transport.get_extra_info("sockname")[1] for transport in transports if transport is not None}


async def _async_place(client: Client, record: str) -> None:
    order = _new_order()
    _note_order(record, order, await client.order(order))


async def _async_work(client: Client, record: str) -> None:
    for number in range(ORDERS):
        await _async_place(client, record)
        if (os.getpid() + number) % 2:
            await client.public()


def async_sessions(fork: Callable[[], int], url: str, record: str) -> None:
    """Fork in a coroutine, beside calls to Kraken; the children begin loops of their own, and close the clients."""

    async def in_child(client: Client, close: Callable[[], Any], ports: set[int], *, use: bool) -> None:
        if use:
            await _async_work(client, record)
            assert not _async_ports(client.session()) & ports
        await close()

    async def main() -> None:
        for client, close in _async_clients(url):
            await _async_place(client, record)
            others = [asyncio.create_task(_async_place(client, record)) for _ in range(3)]
            others.append(asyncio.create_task(client.public()))
            await asyncio.sleep(0.03)  # so that one is under way
            ports = _async_ports(client.session())
            assert ports
            work = partial(in_child, client, close, ports)
            children = begin_children(fork, lambda number: asyncio.run(work(use=number > 0)))  # noqa: B023 - used at once
            await _async_work(client, record)
            await asyncio.gather(*others)
            await asyncio.to_thread(wait_for, children)
            assert ports <= _async_ports(client.session())
            await _async_place(client, record)
            await close()

    asyncio.run(main())


def async_sessions_between_loop_runs(fork: Callable[[], int], url: str, record: str) -> None:
    """Fork between two uses of a loop; parent and children go on with that loop at once."""
    loop, parent = asyncio.new_event_loop(), os.getpid()

    async def begin() -> list[tuple[Client, Callable[[], Any]]]:
        clients = list(_async_clients(url))
        for client, _ in clients:
            await _async_place(client, record)
        await asyncio.sleep(0.1)  # no reply may be on its way: whichever process looks first would take it
        return clients

    async def go_on(client: Client, close: Callable[[], Any]) -> None:
        await _async_work(client, record)
        if os.getpid() != parent:
            await close()

    for client, close in loop.run_until_complete(begin()):
        ports = _async_ports(client.session())
        in_children(fork, lambda: loop.run_until_complete(go_on(client, close)))  # noqa: B023 - called at once
        loop.run_until_complete(asyncio.sleep(0.1))
        assert ports <= _async_ports(client.session())
        loop.run_until_complete(close())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def between_uvloop_runs(url: str, record: str) -> None:
    """Fork between two uses of a loop of uvloop; the children begin such loops of their own."""
    import uvloop  # noqa: PLC0415

    new_runner, parent = partial(asyncio.Runner, loop_factory=uvloop.new_event_loop), os.getpid()
    lock = AsyncCallLock.from_url(url, KEY, ttl=TTL)
    with new_runner() as runner:
        runner.run(_hold_often(lock, record))
        in_children(os.fork, lambda: (runner if os.getpid() == parent else new_runner()).run(_hold_often(lock, record)))


WAYS: Final[dict[str, Callable[[str, str], None]]] = {
    "libc fork": partial(threads, libc_fork),
    "os.fork": partial(threads, os.fork),
    "fork in a running loop": partial(in_running_loop, os.fork),
    "fork between two runs of a loop": partial(between_loop_runs, os.fork),
    "fork between two runs of uvloop": between_uvloop_runs,
    "fork": partial(by_multiprocessing, "fork"),
    "spawn": partial(by_multiprocessing, "spawn"),
    "forkserver": partial(by_multiprocessing, "forkserver"),
    "sessions": partial(sessions, os.fork),
    "sessions, libc fork": partial(sessions, libc_fork),
    "asyncio sessions": partial(async_sessions, os.fork),
    "asyncio sessions, libc fork": partial(async_sessions, libc_fork),
    "asyncio sessions, the same loop": partial(async_sessions_between_loop_runs, os.fork),
    "gevent": greenlets,
    "gevent without threads": half_patched,
    "gevent owners": greenlet_owners,
    "gevent owners with a loop": greenlet_owners_with_a_loop,
}

if __name__ == "__main__":
    WAYS[sys.argv[1]](*sys.argv[2:])
