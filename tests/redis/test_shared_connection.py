"""One connection for all callers of a process: each gets its own reply, and nothing that befalls one harms another."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from redis import credentials

from kraken_nonce_redis import CallLock, NonceAllocator, StoreUnavailable
from kraken_nonce_redis._redis.commands import BLOCK
from kraken_nonce_redis._redis.pipeline import Slot
from kraken_nonce_redis._redis.resp import pack
from kraken_nonce_redis._threads.pipe import Pipe
from kraken_nonce_redis._threads.store import Store
from kraken_nonce_redis.asyncio._pipe import Pipe as AsyncPipe
from tests.support.faces import KEY
from tests.support.helpers import Rival, View, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import MakeProxy, PrivateServer
    from tests.support.faces import Face
    from tests.support.servers import Server
    from tests.support.topologies import TlsTopology

# redis-py before 5.3 has none.
StreamingCredentialProvider: Any = getattr(credentials, "StreamingCredentialProvider", credentials.CredentialProvider)
CALLERS = 50
TIMES = 40


def echo(number: int) -> tuple[bytes, bytes]:
    """Return a request and what it must bring."""
    word = f"{number}-{random.random()}-{'x' * random.randrange(3000)}"
    return pack(("ECHO", word)), word.encode()


def callers(pipe: Pipe, count: int, ask: Callable[[Pipe, int], object] | None = None) -> list[threading.Thread]:
    """Start threads that ask for echoes; a wrong one is an error of the thread, which fails the test."""

    def once(pipe: Pipe, number: int) -> None:
        request, word = echo(number)
        assert pipe.ask(Slot(request)) == [word]

    def work(number: int) -> None:
        for _ in range(TIMES):
            (ask or once)(pipe, number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def pipe_to(client: redis.Redis) -> Pipe:
    """Return a pipe with a client's settings."""
    pool = client.connection_pool
    return Pipe(lambda: pool.connection_class(**pool.connection_kwargs))


def connections_made(client: redis.Redis) -> int:
    """Return how many connections a server has accepted."""
    return int(client.info("stats")["total_connections_received"])


@pytest.mark.parametrize("options", [{}, {"protocol": 2}, {"protocol": 3}, {"decode_responses": True}], ids=str)
def test_each_thread_gets_its_own_reply(valkey: Server, options: dict[str, Any]) -> None:
    """Fifty threads at once on one connection, whatever the client's settings."""
    made = connections_made(valkey.client())
    pipe = pipe_to(valkey.client(**options))
    for thread in callers(pipe, CALLERS):
        thread.join()
    assert connections_made(valkey.client()) - made <= 2  # the looks are one
    pipe.close()


def test_over_tls(tls: TlsTopology) -> None:
    """The same with TLS, where reading and writing at once from two threads is not allowed."""
    pipe = pipe_to(tls.client())
    for thread in callers(pipe, 20):
        thread.join()
    pipe.close()


def test_connections_that_are_cut(valkey: Server) -> None:
    """While the connection is cut again and again, each caller gets its own reply or an error, and never another's."""
    pipe = pipe_to(valkey.client(client_name="cut"))
    failed: list[Exception] = []

    def ask(pipe: Pipe, number: int) -> None:
        request, word = echo(number)
        try:
            assert pipe.ask(Slot(request)) == [word]
        except redis.ConnectionError as error:
            failed.append(error)

    threads = callers(pipe, 20, ask)
    admin = valkey.client(decode_responses=True)
    cuts = 0
    while any(thread.is_alive() for thread in threads):
        for each in admin.client_list():
            if each["name"] == "cut":
                admin.client_kill_filter(_id=each["id"])
                cuts += 1
        time.sleep(0.02)
    assert cuts
    assert len(failed) < cuts * 20  # a request fails when it was cut twice
    request, word = echo(0)
    assert pipe.ask(Slot(request)) == [word]
    pipe.close()


class Interrupted(BaseException):
    """What a thread is struck by."""


def test_interrupted_callers(valkey: Server) -> None:
    """Exceptions that strike threads anywhere, reading and writing for others too, give nobody another's reply."""
    pipe = pipe_to(valkey.client())
    struck = [0]

    def ask(pipe: Pipe, number: int) -> None:
        try:
            request, word = echo(number)
            assert pipe.ask(Slot(request)) == [word]
        except Interrupted:
            struck[0] += 1

    threads = callers(pipe, 12, ask)
    while any(thread.is_alive() for thread in threads):
        thread = random.choice(threads)
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted))
        time.sleep(0.01)
    request, word = echo(0)
    assert pipe.ask(Slot(request)) == [word]
    pipe.close()


def test_cancelled_tasks_leave_their_slots(valkey: Server) -> None:
    """Tasks that are cancelled while they wait cost nobody anything: no other reply is lost, nothing reconnects."""
    made = connections_made(valkey.client())

    async def main() -> int:
        pool = redis.asyncio.Redis(port=valkey.port).connection_pool
        pipe = AsyncPipe(lambda: pool.connection_class(**pool.connection_kwargs))

        async def work(number: int) -> None:
            for _ in range(TIMES):
                request, word = echo(number)
                assert await pipe.ask(request, 1) == [word]

        async def hurry(number: int) -> None:
            for _ in range(TIMES):
                task = asyncio.create_task(work(number))
                await asyncio.sleep(random.random() * 0.003)
                task.cancel()
                await asyncio.wait([task])

        await asyncio.gather(*(work(number) for number in range(20)), *(hurry(number) for number in range(20)))
        pipe.close()
        await asyncio.sleep(0)
        return 1

    asyncio.run(main())
    assert connections_made(valkey.client()) - made <= 2


def test_a_stalled_server_takes_the_socket_timeout(face: Face, private_server: PrivateServer) -> None:
    """When no reply comes for the socket timeout, all callers hear of it, and the next ones get a new connection."""
    server = private_server()
    nonces = face.allocator(face.client(server, socket_timeout=0.5))
    last = nonces.next()
    server.pause()
    started = [face.start(nonces.next) for _ in range(10)]
    for caller in started:
        with pytest.raises(StoreUnavailable):
            caller.result()
    server.resume()
    assert nonces.next() > last


def test_a_slow_reply_is_late_only_after_silence(face: Face, valkey: Server, proxy: MakeProxy) -> None:
    """The socket timeout counts from the last byte: many slow replies that come one by one are no failure."""
    way = proxy(valkey)
    nonces = face.allocator(face.client_at(f"{way.url}?socket_timeout=1"))
    nonces.next()
    assert len(set(face.together(lambda _: nonces.next(), 30))) == 30


class Renewing(StreamingCredentialProvider):
    """A credential provider with which redis-py logs in anew, on connections that are open, when a token is new."""

    def __init__(self) -> None:
        self.listeners: list[object] = []

    def get_credentials(self) -> tuple[str, str]:
        """Return what a server without a password accepts."""
        return "default", "any"

    async def get_credentials_async(self) -> tuple[str, str]:
        """Return the same."""
        return self.get_credentials()

    def on_next(self, callback: object) -> None:
        """Add one who wants to hear of new tokens."""
        self.listeners.append(callback)

    def on_error(self, callback: object) -> None:
        """Add one who wants to hear of errors."""

    def is_streaming(self) -> bool:
        """Say that there will be new tokens."""
        return True


def speaking() -> dict[str, dict[str, Any]]:
    """Return settings with which redis-py says or reads something by itself, as far as its version has them."""
    found: dict[str, dict[str, Any]] = {"checks of health": {"health_check_interval": 1}}
    with contextlib.suppress(ImportError):
        from redis.cache import CacheConfig  # noqa: PLC0415

        found["caching"] = {"cache_config": CacheConfig(), "protocol": 3}
    with contextlib.suppress(ImportError):
        from redis.maint_notifications import MaintNotificationsConfig  # noqa: PLC0415

        found["notices"] = {"maint_notifications_config": MaintNotificationsConfig(enabled="auto"), "protocol": 3}
    if hasattr(credentials, "StreamingCredentialProvider"):
        found["new logins"] = {"credential_provider": Renewing(), "protocol": 3}
    return found


@pytest.mark.parametrize("what", speaking())
def test_settings_of_redis_py_that_speak_by_themselves(face: Face, valkey: Server, what: str) -> None:
    """What redis-py says by itself on a connection is not said where the next reply is another caller's.

    Given 50 callers with commands in flight, and one that waits for an offer, then each gets its own reply.
    """
    options = speaking()[what]
    if what == "caching" and face.name == "asyncio":
        pytest.skip("redis.asyncio has none")
    client, view = face.client(valkey, **options), View(valkey.client())
    provider = options.get("credential_provider")
    registered = list(provider.listeners) if provider is not None else []
    nonces, lock = face.allocator(client), face.lock(client)
    nonces.next()
    view.client.config_resetstat()
    rival = Rival(view.client)
    rival.take()
    waiter = face.start(lock.acquire)
    view.until_waiting(1)
    time.sleep(1.1 if what == "checks of health" else 0)
    given = face.together(lambda _: [nonces.next() for _ in range(5)], CALLERS)
    assert len({nonce for some in given for nonce in some}) == CALLERS * 5
    rival.release()
    assert waiter.result()
    stats = view.client.info("commandstats")
    assert not {"cmdstat_ping", "cmdstat_client|tracking", "cmdstat_client|maint_notifications"} & set(stats)
    if provider is not None:
        assert provider.listeners == registered


def test_takes_none_of_the_pool(face: Face, valkey: Server) -> None:
    """A pool of one connection is enough, and the caller may use that one."""
    client = face.client(valkey, max_connections=1)
    lock = face.lock(client)
    with lock.hold() as lease:
        caller = face.start(lambda: lock.acquire() and lock.release())
        assert lease.nonce
    caller.result()
    assert not client.connection_pool._in_use_connections
    assert not client.connection_pool._available_connections


def test_equal_settings_share_two_connections(face: Face, valkey: Server) -> None:
    """Two hundred objects of clients with the same settings have two connections, and share leases."""
    name = f"shared-{face.name}"
    for _ in range(100):
        client = face.client(valkey, client_name=name)
        face.allocator(client).next()
        lock = face.lock(client)
        with lock.hold():
            pass
    admin = valkey.client()
    assert len([each for each in admin.client_list() if each["name"] == name]) == 1
    one, other = (face.lock(face.client(valkey, client_name=name)) for _ in range(2))
    with one.hold() as outer, other.hold(timeout=0) as inner:
        assert 0 < inner.nonce - outer.nonce < BLOCK


def test_threads_that_make_locks_at_the_same_moment_share_one(valkey: Server) -> None:
    """Locks for one URL that many threads make at once share connections, so that a nested hold is one."""
    url = f"{valkey.url}?client_name=same-moment"
    ready = threading.Barrier(16)
    made: list[CallLock] = []

    def make() -> None:
        ready.wait()
        made.append(CallLock.from_url(url, KEY))

    threads = [threading.Thread(target=make) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with made[0].hold():
        for lock in made:
            with lock.hold(timeout=0):
                pass
    assert len([each for each in valkey.client().client_list() if each["name"] == "same-moment"]) == 1


def test_a_signal_handler_gets_an_error_at_once(valkey: Server, private_server: PrivateServer) -> None:
    """A handler that makes a call in the middle of one of its own thread hears so, and the call goes on."""
    server = private_server()
    nonces = NonceAllocator(server.client(socket_timeout=3), KEY)
    nonces.next()
    heard: list[BaseException] = []

    def handler(*_: object) -> None:
        try:
            nonces.next()
        except StoreUnavailable as error:
            heard.append(error)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        server.pause()
        threading.Timer(0.5, server.resume).start()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert nonces.next()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "signal handler" in str(heard[0])


def test_unused_connections_close(face: Face, valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has used for long is closed, and opened again when it is needed."""
    for module in ("kraken_nonce_redis._threads.store", "kraken_nonce_redis.asyncio._store"):
        monkeypatch.setattr(f"{module}._IDLE", 0.3)
    name = f"idle-{face.name}"
    nonces = face.allocator(face.client(valkey, client_name=name))
    nonces.next()
    admin = valkey.client()
    eventually(lambda: not [each for each in admin.client_list() if each["name"] == name])
    assert nonces.next()


def test_unused_connections_close_although_the_thread_for_chores_was_late(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened after that thread has looked, and before it would end, is closed as well."""
    keep_up = Store._keep_up

    def keep_up_slowly(store: Store) -> float | None:
        rest = keep_up(store)
        time.sleep(0.1)
        return rest

    monkeypatch.setattr(Store, "_keep_up", keep_up_slowly)
    monkeypatch.setattr("kraken_nonce_redis._threads.store._IDLE", 0.3)
    NonceAllocator(valkey.client(client_name="late"), KEY).next()
    admin = valkey.client()
    eventually(lambda: not [each for each in admin.client_list() if each["name"] == "late"])


@pytest.mark.parametrize("resend", [True, False])
def test_only_callers_wait_for_a_node_of_a_cluster(*, resend: bool) -> None:
    """What is done beside callers connects to a server on its own, and not to a node, which may be silent for long."""
    connections: list[str] = []

    def make() -> object:
        connections.append("made")
        raise redis.ConnectionError("it is away")

    pipe = Pipe(make, resend=resend)
    pipe._pipeline.put(Slot(b"PING\r\n", 1))  # of a caller that is about to connect
    pipe.tend()
    assert connections == ["made"] * resend
