"""What `durable` promises: a result only when so many replicas have it, and otherwise a clear word."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import Durability, InvalidArgument, NotDurable, StoreError
from tests.support.helpers import SECOND, View, eventually, fails
from tests.support.servers import REDIS_7, VALKEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeProxy, PrivateServer
    from tests.support.faces import Face
    from tests.support.servers import Server

ON_DISK = Durability(replicas=1, fsync=True)
EVERY = Durability(every_nonce=True, timeout=0.3)


@pytest.fixture
def master(private_server: PrivateServer) -> Server:
    """Start a server without replicas."""
    return private_server(VALKEY, "--repl-diskless-sync-delay", "0")


@pytest.fixture
def replica(private_server: PrivateServer, master: Server) -> Iterator[Server]:
    """Start a replica of it; wait until it has caught up."""
    server = private_server(VALKEY)
    client = server.client()
    client.replicaof("127.0.0.1", master.port)
    eventually(lambda: client.info("replication")["master_link_status"] == "up", 20)
    yield server
    os.kill(server.pid, signal.SIGCONT)


def test_raised_on_the_replica(face: Face, master: Server, replica: Server) -> None:
    """When a durable raise returns, a replica has it, so a failover to it loses nothing."""
    nonces = face.allocator(face.client(master), durable=True)
    for _ in range(20):
        last = nonces.jump_forward(SECOND)
        assert View(replica.client()).state.last == last
    target = last + SECOND
    assert nonces.advance_to(target) == target
    assert View(replica.client()).state.last == target


def test_no_replica(face: Face, master: Server) -> None:
    """Without a replica that has it the caller is told so, and the nonce stays raised."""
    nonces = face.allocator(face.client(master), durable=Durability(timeout=0.05))
    before = nonces.next()
    with fails(NotDurable, "0 of 1 replicas", "stays raised"):
        nonces.jump_forward(60 * SECOND)
    assert nonces.next() > before + 60 * SECOND


@pytest.mark.long
def test_a_replica_that_hangs(face: Face, master: Server, replica: Server) -> None:
    """A replica that does not take it in time does not count; the connection is good for more."""
    nonces = face.allocator(face.client(master), durable=Durability(timeout=0.05))
    os.kill(replica.pid, signal.SIGSTOP)
    with fails(NotDurable, "0 of 1 replicas"):
        nonces.jump_forward(SECOND)
    os.kill(replica.pid, signal.SIGCONT)
    eventually(lambda: _succeeds(lambda: nonces.jump_forward(SECOND)))


def _succeeds(call: Any) -> bool:
    try:
        call()
    except NotDurable:
        return False
    return True


def test_ordinary_nonces_do_not_wait(face: Face, master: Server) -> None:
    """A nonce that follows the clock needs no replica, unless it is asked for."""
    nonces = face.allocator(face.client(master), durable=True)
    assert len(nonces.reserve(5)) == 5
    with face.lock(face.client(master), durable=True).hold() as lease:
        assert lease.next_nonce() > lease.nonce


@pytest.mark.long
def test_every_nonce(face: Face, master: Server, private_server: PrivateServer) -> None:
    """If asked for, no nonce and no lease is had that a replica has not; the lock is given back then."""
    nonces = face.allocator(face.client(master), durable=EVERY)
    lock = face.lock(face.client(master), durable=EVERY)
    view = View(master.client())
    with fails(NotDurable):
        nonces.next()
    with fails(NotDurable), lock.hold(5):
        pytest.fail("a lease that no replica knows of")
    view.until_free()
    replica = private_server(VALKEY)
    replica.client().replicaof("127.0.0.1", master.port)
    eventually(lambda: master.client().info("replication")["connected_slaves"] == 1, 20)
    eventually(lambda: _succeeds(nonces.next), 20)
    with lock.hold(5) as lease:
        assert View(replica.client()).state.last > lease.nonce


def test_on_disk(face: Face, private_server: PrivateServer) -> None:
    """With fsync the result counts once it is in the append-only file."""
    server = private_server(VALKEY, "--appendonly", "yes")
    nonces = face.allocator(face.client(server), durable=Durability(replicas=0, fsync=True))
    last = nonces.jump_forward(60 * SECOND)
    server.kill()
    server.start()
    assert View(server.client()).state.last == last


def test_on_disk_without_a_file(face: Face, master: Server) -> None:
    """A server that keeps no append-only file says so."""
    nonces = face.allocator(face.client(master), durable=ON_DISK)
    with fails(StoreError, "appendonly"):
        nonces.jump_forward(SECOND)
    assert nonces.next() > 0


def test_a_server_that_is_too_old(face: Face, private_server: PrivateServer) -> None:
    """Redis 7.0 has no WAITAOF, and the error names it."""
    nonces = face.allocator(face.client(private_server(REDIS_7)), durable=ON_DISK)
    with fails(StoreError, "WAITAOF"):
        nonces.jump_forward(SECOND)


def test_lost_scripts_and_replies(face: Face, master: Server, replica: Server, proxy: MakeProxy) -> None:
    """A lost script or connection does not make one believe in replicas that were not asked."""
    way = proxy(master)
    nonces = face.allocator(face.client_at(way.url), durable=True)
    nonces.jump_forward(SECOND)
    master.client().script_flush()
    assert nonces.jump_forward(SECOND) == View(replica.client()).state.last
    master.client().client_kill_filter(_type="normal", skipme=True)
    assert nonces.jump_forward(SECOND) == View(replica.client()).state.last


@pytest.mark.parametrize(
    "durable", ["yes", 1, {"replicas": 1}, lambda: Durability(replicas=0), lambda: Durability(timeout=0)]
)
def test_wrong(face: Face, valkey: Server, durable: Any) -> None:
    """A wrong wish is named."""
    with pytest.raises(InvalidArgument, match=r"durable|replicas|timeout"):
        face.allocator(face.client(valkey), durable=durable() if callable(durable) else durable)
