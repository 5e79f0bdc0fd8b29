"""Fixtures: the matrix of servers, servers of a test's own, and the fault proxy."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

import kraken_nonce_redis
from tests.support.faces import FACES, Face
from tests.support.helpers import new_process
from tests.support.proxy import SCRIPTS, Proxy
from tests.support.servers import (
    FAKETIME_MISSING,
    KINDS,
    REAL_KINDS,
    VALKEY,
    AnyServer,
    FakeServer,
    Kind,
    Server,
    faketime_library,
    require,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tests.support.topologies import ClusterTopology, SentinelTopology, TlsTopology, Topology

S = TypeVar("S", bound=AnyServer)


class PrivateServer(Protocol):
    """Starts a server that one test may kill, pause and restart."""

    def __call__(self, kind: Kind = VALKEY, *arguments: str, faketime: bool = False) -> Server:
        """Pass `arguments` to the binary: `"--maxmemory", "2mb"`."""
        ...


class MakeProxy(Protocol):
    """Puts a fault proxy before a server."""

    def __call__(self, server: Server, *, counted: frozenset[str] = SCRIPTS) -> Proxy:
        """Name in `counted` the commands that faults can hit."""
        ...


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that keeps a test out of CI's second run."""
    config.addinivalue_line("markers", "once: depends neither on redis-py nor on its version; the newest run is enough")


@pytest.fixture(autouse=True)
def _as_a_new_process() -> Iterator[None]:
    """Forget after a test what a process keeps as long as it lives: connections, and the nonces that it has seen."""
    yield
    kraken_nonce_redis.close()
    new_process()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Callable[[Kind], Any]]:
    """Give the session's one server of a kind, started when it is first asked for."""
    servers: dict[Kind, AnyServer] = {}
    with ExitStack() as stack:

        def give(kind: Kind) -> AnyServer:
            require(kind.unavailable)
            if kind not in servers:
                server = FakeServer() if kind.is_fake else Server(kind)
                stack.callback(server.stop)
                server.start()
                servers[kind] = server
            return servers[kind]

        yield give


def _clean(server: S) -> Iterator[S]:
    server.reset()
    yield server
    server.close_clients()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest, shared_server: Callable[[Kind], Any]) -> Iterator[AnyServer]:
    """Every server of the matrix in turn, fakeredis as well; empty and with default settings."""
    yield from _clean(shared_server(request.param))


@pytest.fixture(params=REAL_KINDS, ids=lambda kind: kind.name)
def real_server(request: pytest.FixtureRequest, shared_server: Callable[[Kind], Any]) -> Iterator[Server]:
    """Every server of the matrix that is a process, for tests with processes of their own."""
    yield from _clean(shared_server(request.param))


@pytest.fixture
def valkey(shared_server: Callable[[Kind], Any]) -> Iterator[Server]:
    """Valkey 9 alone, for tests too expensive to run on the whole matrix."""
    yield from _clean(shared_server(VALKEY))


@pytest.fixture(scope="session")
def shared_topology() -> Iterator[Callable[[str], Any]]:
    """Give the session's one topology of a kind, started when it is first asked for."""
    started: dict[str, Topology] = {}
    with ExitStack() as stack:

        def give(name: str) -> Topology:
            from tests.support import topologies  # noqa: PLC0415 - most tests do without

            kind, make = topologies.KINDS[name]
            require(kind.unavailable)
            if name not in started:
                topology = make()
                stack.callback(topology.stop)
                topology.start()
                started[name] = topology
            started[name].reset()
            return started[name]

        yield give


@pytest.fixture
def sentinel(shared_topology: Callable[[str], Any]) -> Iterator[SentinelTopology]:
    """Give a master, two replicas and three Sentinels, empty and well."""
    topology = shared_topology("sentinel")
    yield topology
    topology.close_clients()


@pytest.fixture
def cluster(shared_topology: Callable[[str], Any]) -> Iterator[ClusterTopology]:
    """Give a Redis Cluster of three masters with a replica each, empty and well."""
    topology = shared_topology("cluster")
    yield topology
    topology.close_clients()


@pytest.fixture
def tls(shared_topology: Callable[[str], Any]) -> Iterator[TlsTopology]:
    """Give a server with TLS that asks for client certificates, empty and well."""
    topology = shared_topology("tls")
    yield topology
    topology.close_clients()


@pytest.fixture
def redis_client(server: AnyServer) -> redis.Redis:
    """Connect to `server`."""
    return server.client()


@pytest.fixture
def private_server() -> Iterator[PrivateServer]:
    """Start servers that one test may kill, pause and restart."""
    with ExitStack() as stack:

        def start(kind: Kind = VALKEY, *arguments: str, faketime: bool = False) -> Server:
            require(kind.unavailable)
            server = Server(kind, *arguments, faketime=faketime)
            stack.callback(server.stop)
            server.start()
            return server

        yield start


@pytest.fixture
def faketime_server(private_server: PrivateServer) -> Server:
    """Start a Valkey whose clock the test sets with `clock_offset`."""
    require(None if faketime_library() else FAKETIME_MISSING)
    return private_server(VALKEY, faketime=True)


@pytest.fixture
def proxy() -> Iterator[MakeProxy]:
    """Put fault proxies before servers."""
    with ExitStack() as stack:

        def place(server: Server, *, counted: frozenset[str] = SCRIPTS) -> Proxy:
            return stack.enter_context(Proxy(server.port, counted=counted))

        yield place


@pytest.fixture(params=FACES.values(), ids=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Use the library by threads and by asyncio in turn."""
    with request.param() as face:
        yield face
