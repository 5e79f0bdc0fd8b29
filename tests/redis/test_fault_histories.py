"""Processes at work while something goes wrong: what each was given is noted, and the whole history is judged.

Whatever happens: no nonce twice, none below one that had been there before it was asked for, never two holders whose
leases both ran unless state was lost between the two, and every caller is served or told. What each fault costs is
printed; docs/faults.md has it as a table.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.helpers import KEYS, SECOND, as_stored, eventually
from tests.support.histories import untold
from tests.support.mishaps import AWAY, LATE, MISHAPS, Mishap, mixture
from tests.support.servers import FAKETIME_MISSING, HOST, VALKEY, faketime_library, require
from tests.support.stages import LEAD, PROCESSES, SOCKET_TIMEOUT, Crew, ServerStage, Stage
from tests.support.tiers import by_tier, in_test_all
from tests.support.topologies import ClusterTopology, cut_replication

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import MakeProxy, PrivateServer
    from tests.support.topologies import Topology

SEEDS = range(by_tier(1, 2, 12))
LENGTH = by_tier(5, 5, 10)
BEFORE_EACH_COMMIT = {
    "FLUSHALL",
    "server killed, back with nothing",
    "network: every fourth reply lost",
}

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Start the processes once for all runs."""
    with Crew() as crew:
        yield crew


@pytest.fixture
def judged(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Print what came of a run, and judge it."""

    def judged(stage: Stage, name: str, told: frozenset[str]) -> None:
        report = stage.report(name)
        report.publish()
        with capsys.disabled():
            print(report)
        assert report.verdict.faultless, report
        assert report.verdict.told.keys() <= told, report

    return judged


@pytest.mark.parametrize(
    "mishap",
    [mishap if mishap.name in BEFORE_EACH_COMMIT else in_test_all(mishap)[0] for mishap in MISHAPS],
    ids=lambda mishap: mishap.name,
)
def test_one_fault(
    crew: Crew,
    private_server: PrivateServer,
    proxy: MakeProxy,
    tmp_path: Path,
    judged: Callable[..., None],
    mishap: Mishap,
) -> None:
    """What goes wrong with a server, its network and its clients, one thing at a time."""
    server = private_server(VALKEY, *mishap.arguments)
    stage = ServerStage(crew, tmp_path, server, proxy(server))
    with stage.running(socket_timeout=mishap.socket_timeout, to_the_end=mishap.to_the_end):
        for _ in range(mishap.rounds):
            stage.happen(lambda: mishap.happen(stage))
    if mishap.name == "FLUSHALL":
        assert not untold(stage.calls(), stage.losses)
    judged(stage, mishap.name, mishap.told)


@pytest.mark.test_all
@pytest.mark.parametrize("seed", SEEDS)
def test_a_mixture(
    crew: Crew, private_server: PrivateServer, proxy: MakeProxy, tmp_path: Path, judged: Callable[..., None], seed: int
) -> None:
    """Things that go wrong one after the other and two at a time, in an order that the seed says."""
    server = private_server()
    stage = ServerStage(crew, tmp_path, server, proxy(server))
    with stage.running(socket_timeout=SOCKET_TIMEOUT, to_the_end=0.05):
        stage.notes += mixture(stage, seed, LENGTH)
    judged(stage, f"mixture {seed}", AWAY | LATE)


# Failovers.


@pytest.fixture
def at_work(crew: Crew, tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Stage]]:
    """Have processes at work on a topology, with nonces that are ahead of the clock."""

    @contextlib.contextmanager
    def at_work(topology: Topology, **options: float) -> Iterator[Stage]:
        topology.client().hset(KEYS.state, "nonce", as_stored(time.time_ns() + LEAD * SECOND))
        stage = Stage(crew, tmp_path)
        query = "&".join(f"{name}={value}" for name, value in options.items())
        with stage.at_work([f"{topology.url}?{query}"] * PROCESSES):
            stage.flow()
            yield stage

    return at_work


def test_lost_writes(at_work: Any, replicated: Any, judged: Callable[..., None]) -> None:
    """A master is killed whose last writes no replica has, and a replica is made the master by those who watch."""

    def happen() -> None:
        with stage.losing():
            cut_replication(replicated.master(KEYS.state))
            stage.flow()  # every process has nonces that no replica knows
            stage.begins()
            old = replicated.kill_master(KEYS.state)
            is_cluster = isinstance(replicated, ClusterTopology)
            replicated.until_promoted(old, *([KEYS.state] if is_cluster else []))

    with at_work(replicated, socket_timeout=SOCKET_TIMEOUT) as stage:
        stage.happen(happen)
    kind = type(replicated).__name__.removesuffix("Topology")
    judged(stage, f"master killed, writes lost, replica promoted ({kind})", AWAY | LATE)


def test_a_failover_in_order(at_work: Any, replicated: Any, judged: Callable[..., None]) -> None:
    """An operator lets a replica take the master's place."""

    def happen() -> None:
        if isinstance(replicated, ClusterTopology):
            replicated.failover(KEYS.state)
        else:
            with stage.losing():  # what the old master accepts until it hears that it is none any more
                replicated.failover()

    with at_work(replicated, socket_timeout=SOCKET_TIMEOUT) as stage:
        stage.happen(happen)
    kind = type(replicated).__name__.removesuffix("Topology")
    judged(stage, f"failover by an operator ({kind})", AWAY | LATE | {"StoreReadOnly"})


def test_a_slot_that_moves(at_work: Any, cluster: ClusterTopology, judged: Callable[..., None]) -> None:
    """The slot of the keys is moved to another node, which takes half a second."""

    def happen() -> None:
        source, target = cluster.begin_migration(KEYS.state)
        time.sleep(0.5)
        cluster.move_keys(KEYS.state, source, target)
        cluster.end_migration(KEYS.state, target)

    with at_work(cluster, socket_timeout=3) as stage:
        for _ in range(2):
            stage.happen(happen)
    judged(stage, "slot moved to another node, 0.5 s (Cluster)", LATE)


# Clocks.


@pytest.mark.test_all
def test_a_replica_with_a_slow_clock(
    crew: Crew, private_server: PrivateServer, proxy: MakeProxy, tmp_path: Path, judged: Callable[..., None]
) -> None:
    """A replica takes over at once whose clock is half a second slow, and which lacks the last writes."""
    require(None if faketime_library() else FAKETIME_MISSING)
    master = private_server(VALKEY, "--repl-diskless-sync-delay", "0")
    replica = private_server(VALKEY, faketime=True)
    replica.clock_offset(-0.5)
    with replica.admin() as admin:
        admin.replicaof(HOST, master.port)
        eventually(lambda: admin.info("replication")["master_link_status"] == "up", 10)
    way = proxy(master)
    stage = Stage(crew, tmp_path)

    def happen() -> None:
        with stage.losing():
            cut_replication(master)
            stage.flow()
            stage.begins()
            master.kill()
            with replica.admin() as admin:
                admin.replicaof("NO", "ONE")
            way.target_port = replica.port
            way.cut_all()

    with stage.at_work([f"{way.url}?socket_timeout={SOCKET_TIMEOUT}"] * PROCESSES):
        stage.flow()
        stage.happen(happen)
    judged(stage, "writes lost, replica with a clock 0.5 s slow takes over at once", AWAY | LATE)


@pytest.mark.test_all
def test_clock_steps_on_client_machines(
    crew: Crew, private_server: PrivateServer, proxy: MakeProxy, tmp_path: Path, judged: Callable[..., None]
) -> None:
    """The wall clocks of half of the processes, as Python shows them, are set back and forth: they don't matter."""
    server = private_server()
    stage = ServerStage(crew, tmp_path, server, proxy(server))

    def happen(hours: int) -> None:
        for place in (0, 3):
            shown = crew.workers[place].do("set_clock", seconds=3600 * hours)
            assert round((shown - time.time()) / 3600) == hours

    with stage.running(socket_timeout=None):
        for hours in (-1, 1, 0):
            stage.happen(partial(happen, hours))
    judged(stage, "clocks of client machines set back and forth by an hour", frozenset())
