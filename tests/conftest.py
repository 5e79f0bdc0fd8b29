"""Fixtures: the matrix of servers, servers of a test's own, and the fault proxy."""

from __future__ import annotations

import functools
import itertools
import signal
import zlib
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

import kraken_nonce_redis
from kraken_nonce_redis.testing import KrakenSimulator
from kraken_nonce_redis.testing._limits import Limits
from tests.support.children import stop_forking
from tests.support.faces import FACES, Face
from tests.support.helpers import new_process
from tests.support.own_keys import OwnKeys
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
from tests.support.tiers import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tests.support.topologies import ClusterTopology, SentinelTopology, TlsTopology, Topology

S = TypeVar("S", bound=AnyServer)

SIMULATOR = {
    "accounts": ("account-1",),
    "seed": 0,
    "own": False,
    "latency": (0.0, 0.0),
    "nonce_window": 0,
    "listing_delay": (0.0, 0.0),
    "clock_offset": 0.0,
    "faults": (),
    **asdict(Limits()),
}
"""What the mark `simulator` can set, as it is without it."""


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on every server of the matrix, or in `make test` on Valkey alone unless it is marked `matrix`."""
    chosen = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    matrix = EVERYTHING or metafunc.definition.get_closest_marker("matrix") is not None
    for fixture, kinds in (("server", KINDS), ("real_server", REAL_KINDS)):
        if fixture in metafunc.fixturenames and fixture not in chosen:
            metafunc.parametrize(fixture, kinds if matrix else [VALKEY], indirect=True, ids=lambda kind: kind.name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out of `make test` what is marked `test_all` or starts several servers; run one variant of `long` ones."""
    if EVERYTHING:
        return

    def is_left_out(item: pytest.Item) -> bool:
        assert isinstance(item, pytest.Function)
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        topologies = [*item.fixturenames, parameters.get("topology"), parameters.get("replicated")]
        return "sentinel" in topologies or "cluster" in topologies or bool(item.get_closest_marker("test_all"))

    left_out = {item for item in items if is_left_out(item)}
    long = [item for item in items if item not in left_out and item.get_closest_marker("long")]
    for _, variants in itertools.groupby(long, lambda item: item.nodeid.partition("[")[0]):
        left_out |= _all_but_one(list(variants))
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _all_but_one(variants: list[pytest.Item]) -> set[pytest.Item]:
    """Return all variants of a test but one: always the same one, and not always the first."""
    one = zlib.crc32(variants[0].nodeid.partition("[")[0].encode()) % len(variants)
    return {*variants[:one], *variants[one + 1 :]}


def pytest_configure() -> None:
    """Take Ctrl-C, also in a run in the background: there it is ignored, and would be by all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Leave no process behind."""
    stop_forking()


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
                server = FakeServer(kind) if kind.is_fake else Server(kind)
                stack.callback(server.stop)
                server.start()
                servers[kind] = server
            return servers[kind]

        yield give


def _clean(server: S) -> Iterator[S]:
    server.reset()
    yield server
    server.close_clients()


@pytest.fixture
def server(request: pytest.FixtureRequest, shared_server: Callable[[Kind], Any]) -> Iterator[AnyServer]:
    """Each server that the tier has for a test, fakeredis as well; empty and with default settings."""
    yield from _clean(shared_server(request.param))


@pytest.fixture
def real_server(request: pytest.FixtureRequest, shared_server: Callable[[Kind], Any]) -> Iterator[Server]:
    """Each server that the tier has for a test and that is a process, for tests with processes of their own."""
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


@pytest.fixture(scope="session")
def shared_simulator() -> Iterator[Callable[[tuple[str, ...], int], KrakenSimulator]]:
    """Give the session's one simulator with some accounts and a seed, started when it is first asked for."""
    with ExitStack() as stack:

        @functools.cache
        def give(accounts: tuple[str, ...], seed: int) -> KrakenSimulator:
            return stack.enter_context(KrakenSimulator(accounts, seed=seed))

        yield give


@pytest.fixture(scope="session")
def simulator_with_own_keys() -> Iterator[Callable[[tuple[str, ...], int], OwnKeys]]:
    """Give the same, and for each accounts one API key that nobody had before."""
    numbers = itertools.count()
    with ExitStack() as stack:

        @functools.cache
        def shared(accounts: tuple[str, ...], seed: int, _nth: int) -> KrakenSimulator:
            return stack.enter_context(KrakenSimulator(accounts, keys=OwnKeys.MOST, seed=seed))

        def give(accounts: tuple[str, ...], seed: int) -> OwnKeys:
            nth, number = divmod(next(numbers), OwnKeys.MOST)
            return OwnKeys(shared(accounts, seed, nth), number)

        yield give


@pytest.fixture
def sim(request: pytest.FixtureRequest) -> KrakenSimulator:
    """Give a simulator as good as new, with the settings that the mark `simulator` names.

    With `own=True` its API keys are those of one test: what this process knows of a key's nonces stays.
    """
    mark = request.node.get_closest_marker("simulator")
    settings = SIMULATOR | (mark.kwargs if mark else {})
    accounts, seed, own = (settings.pop(name) for name in ("accounts", "seed", "own"))
    give = request.getfixturevalue("simulator_with_own_keys" if own else "shared_simulator")
    sim: KrakenSimulator = give(accounts, seed)
    sim.configure(**settings)
    sim.reset()
    return sim


@pytest.fixture(params=FACES.values(), ids=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """Use the library by threads and by asyncio in turn."""
    with request.param() as face:
        yield face
