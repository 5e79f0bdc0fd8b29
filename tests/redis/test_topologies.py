"""What users rely on, behind Sentinels, in a Redis Cluster, with TLS: by URL and by clients of their own."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from click.testing import CliRunner

from kraken_nonce_redis import LeaseLost, StoreError, StoreReadOnly, StoreUnavailable
from kraken_nonce_redis._core import waiters
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.cli.app import app
from tests.support.faces import KEY
from tests.support.helpers import KEYS, OneAtATime, View, eventually, fails
from tests.support.topologies import cut_replication

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kraken_nonce_redis import CallLock, NonceAllocator
    from tests.support.faces import Face
    from tests.support.servers import Server
    from tests.support.topologies import ClusterTopology, SentinelTopology, TlsTopology, Topology

T = TypeVar("T")
FAILOVER = 30.0
"""Seconds in which another master is there."""
SILENCE = 8.0
"""Seconds after which a node counts as silent."""

_names = itertools.count()


@pytest.fixture(params=["sentinel", "cluster", "tls"])
def topology(request: pytest.FixtureRequest, shared_topology: Callable[[str], Any]) -> Iterator[Topology]:
    """Give each topology in turn, empty and well."""
    topology = shared_topology(request.param)
    yield topology
    topology.close_clients()


def own_url(topology: Topology, **options: object) -> str:
    """Return a URL that nothing else has: whoever uses it is a process of its own, as far as the library goes."""
    words = "&".join(f"{name}={value}" for name, value in {"client_name": f"test-{next(_names)}", **options}.items())
    return f"{topology.url}{'&' if '?' in topology.url else '?'}{words}"


def when_back(call: Callable[[], T]) -> T:
    """Return what a call gives once Redis is back."""
    deadline = time.monotonic() + FAILOVER
    while True:
        try:
            return call()
        except (StoreUnavailable, StoreReadOnly):  # a replica that is to be the master is none yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def both_ways(face: Face, topology: Topology) -> list[tuple[NonceAllocator, CallLock]]:
    """Make an allocator and a lock by URL, and others with a client of the user's."""
    url, client = own_url(topology), face.client(topology)
    return [
        (face.allocator_from_url(url), face.lock_from_url(url)),
        (face.allocator(client), face.lock(client)),
    ]


# Everywhere.


def test_nonces_rise(face: Face, topology: Topology) -> None:
    """Whoever asks, and in whatever way, gets a nonce above all before."""
    taken: list[int] = []
    for _ in range(3):
        for nonces, lock in both_ways(face, topology):
            taken.append(nonces.next())
            taken.extend(nonces.reserve(3))
            taken.append(nonces.jump_forward(10**9))
            with lock.hold() as lease:
                taken.extend((lease.nonce, lease.next_nonce()))
                lease.extend(5)
                taken.append(lease.next_nonce())
            taken.append(nonces.advance_to(nonces.last() + 1))  # type: ignore[operator]
    assert taken == sorted(set(taken))


def test_one_at_a_time(face: Face, topology: Topology) -> None:
    """Callers of several processes are never inside together, and all get in."""
    alone = OneAtATime()
    locks = [lock for _, lock in both_ways(face, topology)]

    def work(number: int) -> None:
        for _ in range(5):
            with locks[number % 2].hold(), alone.inside(number):
                pass

    face.together(work, 6)
    assert sorted(alone.order) == sorted([*range(6)] * 5)


def test_the_lock_is_offered(face: Face, topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter gets the lock because Redis offers it: its own next look would come long after the test has failed."""
    monkeypatch.setattr(waiters, "HEARTBEAT", 300.0)
    (_, first), (_, second) = both_ways(face, topology)
    view = View(topology.client())
    for number, (holder, other) in enumerate(((first, second), (second, first)), 1):
        with holder.hold():
            waiter = face.start(hold_once, other)
            view.until_waiting(1)
            eventually(lambda number=number: subscribers(topology) == number)
            time.sleep(0.1)  # in which it has asked once more, as it does when it has begun to listen
        waiter.result()


def hold_once(lock: CallLock) -> int:
    """Return the nonce of a lease."""
    with lock.hold(60) as lease:
        return lease.nonce


def subscribers(topology: Topology) -> int:
    """Return how many processes listen for calls."""
    return sum(listening(server) for server in topology.servers if server.is_running)


def listening(server: Server) -> int:
    """Return how many processes listen for calls on a server."""
    with server.admin() as admin:
        return len(admin.pubsub_channels("kraken-nonce:wake:*"))


def test_a_lost_reply(face: Face, topology: Topology) -> None:
    """When the reply to an acquire or release is lost, it is sent again, and nothing stays locked."""
    url = own_url(topology, socket_timeout=0.4)
    lock, rival = face.lock_from_url(url), face.lock(face.client(topology))
    with lock.hold() as lease:
        first = lease.nonce  # and both connections have proved good
    with slow(topology, 0.6), lock.hold() as lease:
        assert lease.nonce > first
        assert not rival.acquire(blocking=False)
    lock.acquire()
    with slow(topology, 0.6):
        lock.release()
    with rival.hold(timeout=0) as lease:
        assert lease.nonce > first


@contextlib.contextmanager
def slow(topology: Topology, seconds: float) -> Iterator[None]:
    """Stop the key's server for a while: what was sent to it runs when the sender has given up."""
    master = topology.master(KEYS.state)
    master.pause()
    timer = threading.Timer(seconds, master.resume)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_a_pause_of_all_writes(face: Face, topology: Topology) -> None:
    """While an operator has paused writes, as before a planned failover, callers are told that Redis is away."""
    url = own_url(topology, socket_timeout=0.4)
    nonces, lock = face.allocator_from_url(url), face.lock_from_url(url)
    before = nonces.next()
    with topology.master(KEYS.state).admin() as admin:
        admin.client_pause(60_000, all=False)
        with fails(StoreUnavailable):
            nonces.next()
        with fails(StoreUnavailable):
            lock.acquire()
        admin.client_unpause()
    assert nonces.next() > before
    with lock.hold():
        pass


def test_few_connections(face: Face, topology: Topology) -> None:
    """A process has two connections to the servers of one API key, however many callers it has."""
    url = own_url(topology)
    name = url.partition("client_name=")[2].partition("&")[0]
    lock = face.lock_from_url(url)
    face.together(lambda _: hold_once(lock), 8)
    found = []
    for server in topology.servers:
        with server.admin() as admin:
            found += [client["name"] for client in admin.client_list() if client["name"] == name]
    # In a cluster, one more may be there: to the node that was asked where the key is.
    assert len(found) <= (3 if topology.url.startswith("redis+cluster") else 2)


def test_the_command_line(topology: Topology) -> None:
    """`kraken-nonce` takes every kind of URL."""
    said = []
    for words in (["next"], ["last"], ["status"]):
        result = CliRunner().invoke(app, [*words, "--redis", own_url(topology)], env={"KRAKEN_API_KEY": KEY})
        assert result.exit_code == 0, result.output
        said.append(result.stdout)
    assert said[0] == said[1]


# Failover.


def test_a_planned_failover(face: Face, replicated: Any) -> None:
    """When a replica takes over in order, callers go on, with all nonces above all before, and nothing is lost."""
    ways = both_ways(face, replicated)
    (nonces, lock), (_, other) = ways
    lead = nonces.jump_forward(600 * 10**9)
    with lock.hold(30) as lease:
        waiter = face.start(lambda: when_back(lambda: hold_once(other)))
        View(replicated.client()).until_waiting(1)
        failover(replicated)
        lease.check()
        last = lease.next_nonce()
        when_back(lambda: lease.extend(5))
        assert lease.next_nonce() > last > lead
    assert waiter.result(FAILOVER) > last
    assert all(when_back(nonces.next) > last for nonces, _ in ways)


def failover(topology: Any) -> None:
    """Let a replica take the place of the server that has the key."""
    if isinstance(topology.url, str) and topology.url.startswith("redis+cluster"):
        topology.failover(KEYS.state)
    else:
        topology.failover()


def test_a_failover_that_loses_writes(face: Face, replicated: Any) -> None:
    """When the master dies before its last writes have reached the replica, nonces still rise.

    Given a caller whose last nonces no replica knows, far ahead of the clock;
    if the master is killed and a replica takes over,
    then the caller hears that Redis is away, until it is back, and its next nonce is above all before.
    """
    (nonces, lock), (others, _) = both_ways(face, replicated)
    others.jump_forward(60 * 10**9)
    cut_replication(replicated.master(KEYS.state))
    last = nonces.jump_forward(600 * 10**9)
    old = replicated.kill_master(KEYS.state)
    with fails(StoreUnavailable):
        nonces.next()
    promote(replicated, old)
    assert when_back(lambda: hold_once(lock)) > last
    assert when_back(others.next) > last


def promote(topology: Any, old: Any) -> None:
    """Wait until another server has the key; Sentinels are told to hurry."""
    if topology.url.startswith("redis+cluster"):
        topology.until_promoted(old, KEYS.state)
    else:
        topology.failover()


def test_waiters_outlive_the_master(face: Face, replicated: Any) -> None:
    """Callers that waited when the master was killed get in, one after the other, when they ask again."""
    alone = OneAtATime()
    (_, lock), (_, other) = both_ways(face, replicated)

    def wait(which: CallLock) -> None:
        with which.hold(60), alone.inside("waiter"):
            pass

    with contextlib.suppress(LeaseLost), lock.hold(30):
        waiters = [face.start(lambda which=which: when_back(lambda: wait(which))) for which in (lock, other, other)]
        View(replicated.client()).until_waiting(3)
        with alone.inside("holder"):
            old = replicated.kill_master(KEYS.state)
            promote(replicated, old)
    for waiter in waiters:
        waiter.result(FAILOVER)
    assert len(alone.order) == 4


# Sentinel.


def test_sentinels_that_are_away(face: Face, sentinel: SentinelTopology) -> None:
    """One Sentinel that answers is enough; with none, a new client hears that Redis is away, and an old one goes on."""
    old = face.allocator_from_url(own_url(sentinel))
    before = old.next()
    sentinel.watchers[0].kill()
    sentinel.watchers[1].kill()
    assert face.allocator_from_url(own_url(sentinel)).next() > before
    sentinel.watchers[2].kill()
    new = face.allocator_from_url(own_url(sentinel))
    with fails(StoreUnavailable, "the-master"):
        new.next()
    assert old.next() > before


def test_a_service_that_sentinels_do_not_know(face: Face, sentinel: SentinelTopology) -> None:
    """A wrong name in the URL is told as such."""
    nonces = face.allocator_from_url(f"redis+sentinel://{sentinel.addresses}/another")
    with fails(StoreUnavailable, "'another'"):
        nonces.next()


def test_the_failover_that_sentinels_decide(face: Face, sentinel: SentinelTopology) -> None:
    """Nobody has to do anything when the master dies: the Sentinels choose another, and callers find it."""
    nonces = face.allocator_from_url(own_url(sentinel))
    before = nonces.next()
    old = sentinel.kill_master()
    assert when_back(nonces.next) > before
    assert sentinel.until_promoted(old) is not old


# Cluster.


def test_keys_on_all_nodes(face: Face, cluster: ClusterTopology) -> None:
    """API keys are spread over the nodes, and a process with many of them waits for all on one connection."""
    client = face.client(cluster)
    names = [f"api key {number}" for number in range(12)]
    locks = [face.lock(client, name) for name in names]
    holders = [face.lock(face.client(cluster), name) for name in names]
    assert len({cluster.master(Keyspace.of("kraken-nonce", name).state).port for name in names}) == 3
    for holder in holders:
        holder.acquire()
    callers = [face.start(hold_once, lock) for lock in locks]
    view = View(cluster.client())
    for name in names:
        view.keys = Keyspace.of("kraken-nonce", name)
        view.until_waiting(1)
    assert subscribers(cluster) == 1
    for holder in holders:
        holder.release()
    for caller in callers:
        caller.result()


def test_a_slot_that_moves(face: Face, cluster: ClusterTopology) -> None:
    """When a key's slot moves to another node, callers follow, and its state goes along."""
    ways = both_ways(face, cluster)
    last = ways[0][0].jump_forward(600 * 10**9)
    for _ in range(3):
        cluster.migrate_slot(KEYS.state)
        for nonces, lock in ways:
            assert nonces.next() > last
            last = hold_once(lock)


def test_in_the_middle_of_a_move(face: Face, cluster: ClusterTopology) -> None:
    """While a slot is on its way, nonces go on; the lock, which needs two keys, waits, and says why in the end."""
    (nonces, lock), _ = both_ways(face, cluster)
    last = nonces.next()
    hold_once(lock)
    source, target = cluster.begin_migration(KEYS.state)
    assert nonces.next() > last
    with fails(StoreUnavailable, "moving"):
        lock.acquire()
    cluster.move_keys(KEYS.state, source, target)
    last = nonces.next()
    with fails(StoreUnavailable, "moving"):
        lock.acquire()
    caller = face.start(hold_once, lock)
    time.sleep(0.2)
    cluster.end_migration(KEYS.state, target)
    assert caller.result() > last


def test_only_its_commands_wait_while_a_slot_moves(face: Face, cluster: ClusterTopology) -> None:
    """While a slot moves, its callers wait for it, each within its own timeout, and nobody else does.

    Given a process with a caller in the queue of a key, and a lease on another key of the same node;
    if the slot of the first key is on its way for long,
    then a caller that doesn't wait and one with a short timeout hear of it, while those with a long timeout wait on;
    all other keys go on meanwhile, and so does the renewal of the lease;
    and when the slot has arrived, those who waited get in.
    """
    url = own_url(cluster, socket_timeout=0.5)
    lock, holder = face.lock_from_url(url), face.lock_from_url(own_url(cluster))
    names = {master: a_key_on(cluster, master) for master in cluster.masters()}
    others = [face.lock_from_url(url, name) for name in names.values()]
    neighbour = face.lock_from_url(url, f"{names[cluster.master(KEYS.state)]} again", ttl=3)
    holder.acquire()
    queued = face.start(hold_once, lock)
    View(cluster.client()).until_waiting(1)
    with neighbour.hold(auto_renew=True) as lease:
        source, target = cluster.begin_migration(KEYS.state)
        cluster.move_keys(KEYS.state, source, target, most=1)
        newcomer = face.start(hold_once, lock)
        with fails(StoreUnavailable, "moving"):
            lock.acquire(blocking=False)
        with fails(StoreUnavailable, "moving"):
            lock.acquire(blocking_timeout=1.0)
        latecomer = face.start(hold_once, lock)  # what the two may have left comes before it
        for other in others:
            for _ in range(10):
                hold_once(other)
        until_renewed(lease)
        until_renewed(lease)
        assert not queued.done
        assert not newcomer.done
        assert not latecomer.done
        cluster.move_keys(KEYS.state, source, target)
        cluster.end_migration(KEYS.state, target)
    holder.release()
    assert len({queued.result(), newcomer.result(), latecomer.result()}) == 3


def a_key_on(cluster: ClusterTopology, master: Server) -> str:
    """Return an API key that a node has, and with " again" behind it as well."""
    for number in itertools.count():
        name = f"api key {number}"
        found = [cluster.master(Keyspace.of("kraken-nonce", key).state) for key in (name, f"{name} again")]
        if found == [master, master]:
            return name
    raise AssertionError


def until_renewed(lease: Any) -> None:
    """Wait until the process has renewed a lease beside its callers."""
    before = lease.remaining()

    def renewed() -> bool:
        nonlocal before
        left, before = before, lease.remaining()
        return before > left

    eventually(renewed)


def test_a_node_that_falls_silent(face: Face, cluster: ClusterTopology) -> None:
    """Nobody waits for a node that answers nothing any more but those whose keys it has.

    Given a process that uses keys on all nodes and listens on one of them, and leases that are renewed;
    if that node stops, with its connections open,
    then callers get in and leases are renewed on the other nodes, while those of the silent node wait;
    these hear that Redis is away, and when the node goes on, all is well.
    """
    masters = cluster.masters()
    seeds = ",".join(f"{server.url.removeprefix('redis://').partition('/')[0]}" for server in masters)
    url = f"redis+cluster://{seeds}?client_name=test-{next(_names)}&socket_timeout={SILENCE}"
    names = {master: a_key_on(cluster, master) for master in masters}
    locks = {master: face.lock_from_url(url, name) for master, name in names.items()}
    leased = {master: face.lock_from_url(url, f"{name} again", ttl=3) for master, name in names.items()}
    for lock in locks.values():
        hold_once(lock)
    with locks[masters[0]].hold():
        waiter = face.start(hold_once, locks[masters[0]])
        silent = eventually(lambda: next((server for server in cluster.servers if listening(server)), None))
    waiter.result()
    assert silent in masters
    well = [master for master in masters if master is not silent]
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.without_failover())
        stack.enter_context(contextlib.suppress(LeaseLost))  # of the silent node's
        leases = {master: stack.enter_context(lock.hold(auto_renew=True)) for master, lock in leased.items()}
        silent.pause()
        stuck = [
            face.start(hold_once, locks[silent]),
            face.start(face.allocator_from_url(url, names[silent]).next),
        ]

        def work(number: int) -> None:
            for _ in range(10):
                hold_once(locks[well[number % 2]])

        face.together(work, 6)
        for master in well:
            until_renewed(leases[master])
            until_renewed(leases[master])
        assert not any(caller.done for caller in stuck)
        for caller in stuck:
            with fails(StoreUnavailable):
                caller.result(5 * SILENCE)  # three timeouts at the most
        for master in well:
            leases[master].check()
        silent.resume()
        when_back(lambda: hold_once(locks[silent]))
    hold_once(leased[silent])


def test_nodes_that_are_away(face: Face, cluster: ClusterTopology) -> None:
    """A URL is good as long as one of its nodes lives; with none of all nodes, callers hear that Redis is away."""
    before = face.allocator_from_url(own_url(cluster)).next()
    elsewhere = [server for server in cluster.masters() if server is not cluster.master(KEYS.state)]
    elsewhere[0].kill()
    url = cluster.url.replace(str(cluster.servers[0].port), str(elsewhere[0].port))
    nonces = face.allocator_from_url(f"{url}?client_name=away")
    assert nonces.next() > before
    for server in cluster.servers:
        if server.is_running:
            server.kill()
    with fails(StoreUnavailable):
        nonces.next()
    for server in cluster.servers:
        server.start()
    assert when_back(nonces.next) > before


def test_the_node_on_which_a_process_listens_dies(
    face: Face, cluster: ClusterTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiters get their offers all the same: their process listens on another node."""
    monkeypatch.setattr(waiters, "HEARTBEAT", 300.0)
    (_, lock), (_, other) = both_ways(face, cluster)
    hold_once(other)
    with lock.hold(60):
        waiter = face.start(hold_once, other)
        eventually(lambda: subscribers(cluster) == 1)
        post = next(server for server in cluster.servers if listening(server))
        if post is cluster.master(KEYS.state):
            with post.admin() as admin:
                admin.client_kill_filter(_type="pubsub", skipme=True)
            eventually(lambda: not listening(post))
        else:
            post.kill()
        eventually(lambda: subscribers(cluster) == 1)
        time.sleep(0.1)
    waiter.result()


def test_a_cluster_that_is_none(face: Face, tls: TlsTopology, cluster: ClusterTopology) -> None:
    """A URL of a cluster for a single server, and the other way round, are told apart."""
    plain = tls.servers[0].url
    with fails(StoreError, "redis://"):
        face.allocator_from_url(plain.replace("redis://", "redis+cluster://")).next()
    stranger = next(server for server in cluster.masters() if server is not cluster.master(KEYS.state))
    with fails(StoreError, "redis+cluster://"):
        face.allocator_from_url(stranger.url).next()


# TLS.


@pytest.fixture
def collected() -> Iterator[None]:
    """Leave nothing to the garbage collector of a later test, also when the loop of a face is closed."""
    yield
    gc.collect()


# The transport of a client that was refused for its certificate may be left to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("missing", ["trust", "identity"])
def test_certificates_are_asked_for(face: Face, tls: TlsTopology, missing: str) -> None:
    """A client that doesn't know the server's authority, or has no certificate where one is asked for, gets nothing."""
    options = {"trust": tls.certificates.trust, "identity": tls.certificates.identity}
    del options[missing]
    nonces = face.allocator_from_url(f"rediss://{tls.address}?{'&'.join(options.values())}")
    with fails(StoreUnavailable):
        nonces.next()
    assert face.allocator_from_url(tls.url).next()
