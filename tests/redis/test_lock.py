"""The lock and its lease: one holder, its nonces, its end."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import LockError

from kraken_nonce_redis import CallLockError, HoldTimeout, LeaseLost, NoncesUsedUp, events
from kraken_nonce_redis._redis import commands
from tests.support.helpers import KEYS, ON_VALKEY, SECOND, OneAtATime, Rival, Stopwatch, View, eventually, fails, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from kraken_nonce_redis import CallLock, Lease
    from tests.conftest import MakeProxy
    from tests.support.faces import Face
    from tests.support.servers import AnyServer, Server


@pytest.fixture
def lock(face: Face, server: AnyServer) -> CallLock:
    """Make a lock on every server."""
    return face.lock(face.client(server))


@contextmanager
def running_out(lock: CallLock) -> Iterator[Lease]:
    """Hold a lock with the shortest TTL until its lease has run out; what its end raises is the test's."""
    with lock.hold() as lease:
        assert not lease.lost
        eventually(lambda: lease.lost)
        yield lease


# Holding.


def test_hold_gives_lock_and_nonce(lock: CallLock, view: View, rival: Rival) -> None:
    """Inside the block the lock is held and a nonce is there; after it, nothing but the last nonce stays in Redis."""
    with lock.hold() as lease:
        assert len(str(lease.nonce)) == 19
        assert lock.locked()
        assert isinstance(rival.ask(ticket=None), commands.Busy)
    assert not lock.locked()
    view.assert_nothing_left()
    assert view.state.last is not None
    assert view.state.last >= lease.nonce


def test_a_free_lock_is_one_round_trip(face: Face, valkey: Server, proxy: MakeProxy) -> None:
    """Lock and nonces come in one command, and giving the lock back is a second one; more nonces are none."""
    way = proxy(valkey)
    lock = face.lock(face.client_at(way.url))
    with lock.hold():
        pass
    assert not lock.locked()
    before = way.commands
    with lock.hold() as lease:
        assert way.commands - before == 1
        for _ in range(100):
            lease.next_nonce()
    assert not lock.locked()
    assert way.commands - before == 3


def test_nonces_of_a_lease(face: Face, server: AnyServer, lock: CallLock) -> None:
    """A lease gives rising nonces, above all that anyone had before it and below all that anyone gets after it."""
    others = face.allocator(face.client(server))
    before = others.reserve(1000)[-1]
    with lock.hold() as lease:
        nonces = [lease.nonce, *(lease.next_nonce() for _ in range(1000))]
    assert nonces == sorted(set(nonces))
    assert before < nonces[0]
    assert others.next() > nonces[-1]


def test_one_lease_after_the_other(face: Face, server: AnyServer, lock: CallLock) -> None:
    """The nonces of a lease are above all of the one before, also when that used all of its own."""
    other = face.lock(face.client(server))
    last = 0
    for one in (lock, other, lock):
        with one.hold() as lease:
            assert lease.nonce > last
            last = list(islice(iter(lease.next_nonce, None), 2000))[-1]


def test_the_block_of_a_lease_ends(lock: CallLock) -> None:
    """After 100,000 nonces the lease says that they are used up, instead of repeating one; extend() brings more."""
    with lock.hold() as lease:
        nonces = [lease.next_nonce() for _ in range(commands.BLOCK - 1)]
        with fails(NoncesUsedUp, "extend"):
            lease.next_nonce()
        lease.extend(1)
        assert lease.next_nonce() > nonces[-1]


def test_a_block_takes_no_lead(lock: CallLock, face: Face, server: AnyServer) -> None:
    """Leases in quick succession don't push the nonces ahead of the clock, so lost state stays harmless."""
    for _ in range(50):
        with lock.hold():
            pass
    state = View(server.client()).state
    assert state.last is not None
    assert state.last - state.now < SECOND // 10


def test_remaining_counts_down(lock: CallLock) -> None:
    """remaining() never says more than there is: at most the TTL, less and less."""
    with lock.hold() as lease:
        first = lease.remaining()
        assert 29 < first < 30
        assert lease.remaining() < first
        assert not lease.lost
    assert lease.remaining() == 0.0
    assert lease.lost


def test_check_asks_for_time(lock: CallLock) -> None:
    """A request that may take longer than what is left of the lease is stopped before it is signed."""
    with lock.hold() as lease:
        lease.check()
        lease.check(20)
        with fails(LeaseLost, KEYS.state, "sign and send nothing"):
            lease.check(31)
    with fails(LeaseLost):
        lease.check()


def test_nothing_of_a_lease_outlives_its_block(lock: CallLock) -> None:
    """After the block the lease gives no nonce and can't be extended, so a late call can't slip out."""
    with lock.hold() as lease:
        pass
    with fails(LeaseLost):
        lease.next_nonce()
    with fails(LeaseLost):
        lease.extend(1)


def test_an_error_in_the_block_gives_the_lock_back(lock: CallLock, view: View) -> None:
    """Whatever goes wrong in the block is raised as it is, and the lock is free."""
    with pytest.raises(ZeroDivisionError), lock.hold():
        raise ZeroDivisionError
    view.assert_nothing_left()


def test_locks_of_different_keys_are_apart(face: Face, server: AnyServer, lock: CallLock) -> None:
    """Another API key or another namespace has its own lock."""
    client = face.client(server)
    others = [face.lock(client, "another key"), face.lock(client, namespace="another")]
    with lock.hold():
        for other in others:
            with other.hold(0):
                assert other.locked()


def test_global_scope_is_one_lock_for_all_keys(face: Face, server: AnyServer) -> None:
    """With scope="global" one call runs at a time over all API keys, on one rising sequence."""
    client = face.client(server)
    one, other = face.lock(client, scope="global"), face.lock(face.client(server), "another key", scope="global")
    with one.hold() as lease:
        with fails(HoldTimeout), other.hold(0):
            pass
        with face.lock(client, namespace="another", scope="global").hold(0):
            pass
        last = lease.next_nonce()
    with other.hold(5) as lease:
        assert lease.nonce > last


def test_cost_and_priority_are_taken(lock: CallLock) -> None:
    """The settings of a call are accepted without a pace and change nothing then."""
    with lock.hold(1, cost=4, priority="high") as lease:
        assert lease.nonce


# Not getting it.


@pytest.mark.parametrize("timeout", [0, 0.01, 0.3])
def test_timeout(lock: CallLock, rival: Rival, view: View, timeout: float) -> None:
    """A lock that does not become free in time is an error of ours, of redis-py's and Python's kind."""
    rival.take()
    before = view.everything()
    watch = Stopwatch()
    with fails(HoldTimeout, KEYS.state) as caught, lock.hold(timeout):
        pass
    assert timeout <= watch()
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, LockError)
    assert view.waiting == 0
    assert KEYS.queue.encode() not in view.everything()
    if not timeout:
        assert view.everything() == before
    rival.release()
    view.assert_nothing_left()


def test_not_waiting_is_one_command(face: Face, valkey: Server, proxy: MakeProxy) -> None:
    """timeout=0 asks once, takes no place in the queue and no second connection."""
    way = proxy(valkey)
    lock = face.lock(face.client_at(way.url))
    Rival(valkey.client()).take()
    before = way.commands
    with fails(HoldTimeout), lock.hold(0):
        pass
    # The very first use of a script sends its source after its hash was not known.
    assert way.commands - before <= 2
    assert not any(command.name == "SUBSCRIBE" for command in way.log)


# A lease that runs out.


def test_a_dead_holder_costs_its_ttl(lock: CallLock, rival: Rival, view: View) -> None:
    """A holder that died is over with its TTL, and the first waiter gets the lock at that moment."""
    watch = Stopwatch()
    rival.take(ttl=1.2)
    with lock.hold():
        assert watch() > 1.2
    view.assert_nothing_left()


@ON_VALKEY
def test_a_lease_that_ran_out_gives_no_nonces(face: Face, server: AnyServer, rival: Rival) -> None:
    """A holder that was too slow learns it before it signs, and at the latest at the end of its block.

    Given a lease that ran out, and another holder since,
    if the slow one goes on,
    then nonces, check and extend raise LeaseLost, and the other one keeps the lock.
    """
    lock = face.lock(face.client(server), ttl=1)
    with fails(LeaseLost, "longer ttl"), running_out(lock) as lease:
        assert lease.remaining() == 0.0
        eventually(lambda: isinstance(rival.ask(ticket=None), commands.Granted), 1)
        for late in (lease.next_nonce, lease.check, lambda: lease.extend(5)):
            with fails(LeaseLost, KEYS.state):
                late()
        assert not lock.owned()
    assert View(server.client()).state.holder == rival.member()


@ON_VALKEY
def test_a_lost_lease_does_not_hide_an_error(face: Face, server: AnyServer, rival: Rival) -> None:
    """When the block fails by itself, that error is the one that is raised."""
    lock = face.lock(face.client(server), ttl=1)

    def fail() -> None:
        with running_out(lock):
            eventually(lambda: isinstance(rival.ask(ticket=None), commands.Granted), 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@ON_VALKEY
def test_a_lease_that_ran_out_unnoticed_is_no_error(face: Face, server: AnyServer, view: View) -> None:
    """When nobody has taken the lock since, ending late does no harm and raises nothing."""
    with running_out(face.lock(face.client(server), ttl=1)):
        pass
    view.assert_nothing_left()


@pytest.mark.long
@ON_VALKEY
@pytest.mark.parametrize("since", [1, 2])
def test_a_lease_that_was_lost_longer_ago(
    face: Face, server: AnyServer, rival: Rival, redis_client: redis.Redis, since: int
) -> None:
    """The end of a block tells that the lease was lost, also after several others had the lock since.

    Given a lease that ran out and others that had the lock since and released it,
    if the slow one ends its block,
    then it learns that its calls may have crossed theirs.
    """
    lock = face.lock(face.client(server), ttl=1)
    with fails(LeaseLost), running_out(lock):
        for _ in range(since):
            other = Rival(redis_client)
            eventually(lambda other=other: isinstance(other.ask(ticket=None), commands.Granted), 1)
            other.release()


@pytest.mark.long
@ON_VALKEY
def test_a_lease_that_was_lost_after_another_was(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """The same when the next holder's lease ran out as well."""
    lock = face.lock(face.client(server), ttl=1)
    with fails(LeaseLost), running_out(lock):
        for ttl in (1.0, 30.0):
            other = Rival(redis_client)
            eventually(lambda other=other, ttl=ttl: isinstance(other.ask(ttl=ttl, ticket=None), commands.Granted), 3)


@pytest.mark.parametrize("taken", [False, True], ids=["free since", "taken since"])
def test_state_lost_while_holding(
    lock: CallLock,
    view: View,
    rival: Rival,
    caplog: pytest.LogCaptureFixture,
    taken: bool,  # noqa: FBT001
) -> None:
    """After a FLUSHALL the lock may be another's, or is: the holder is told, by an error where it waits for that."""

    def lose() -> None:
        view.client.flushall()
        if taken:
            rival.take()

    with lock.hold():
        lose()
    eventually(lambda: "was lost while it was held" in caplog.text)
    assert view.state.holder == (rival.member() if taken else "")
    if taken:
        rival.release()
    with fails(LeaseLost), lock:
        lose()
    assert view.state.holder == (rival.member() if taken else "")


# Extending.


def test_extend_adds(lock: CallLock, view: View) -> None:
    """extend() lets the lease end that much later, for its holder and for Redis, and nonces go on rising."""
    with lock.hold() as lease:
        nonce = lease.next_nonce()
        lease.extend(60)
        assert 89 < lease.remaining() < 90
        assert 89 < view.state.left <= 90
        assert lease.next_nonce() > nonce


@pytest.mark.long
@ON_VALKEY
def test_extend_holds_waiters_back(lock: CallLock, face: Face, server: AnyServer, view: View) -> None:
    """Those who wait for an extended lease don't get the lock at its first end."""
    short = face.lock(face.client(server), ttl=1)
    with short.hold() as lease:
        lease.extend(20)
        watch = Stopwatch()
        waiter = face.start(lambda: lock.acquire() and (watch(), lock.release())[0])
        view.until_waiting(1)
        eventually(lambda: watch() > 1.4)
        assert not waiter.done
        assert not lease.lost
    assert waiter.result() > 1.4


@ON_VALKEY
def test_extend_revives(face: Face, server: AnyServer, rival: Rival) -> None:
    """A lease that ran out goes on with extend(), as long as nobody has taken the lock."""
    with running_out(face.lock(face.client(server), ttl=1)) as lease:
        lease.extend(5)
        assert 4.5 < lease.remaining() <= 5
        assert not lease.lost
        assert lease.next_nonce() > lease.nonce
        assert isinstance(rival.ask(ticket=None), commands.Busy)


@pytest.mark.long
@ON_VALKEY
def test_auto_renew(face: Face, server: AnyServer, rival: Rival, view: View) -> None:
    """auto_renew keeps a long hold from ending, and nothing renews it once the block is over."""
    lock = face.lock(face.client(server), ttl=1)
    watch = Stopwatch()
    with lock.hold(auto_renew=True) as lease:
        last = lease.nonce
        while watch() < 1.6:
            assert not lease.lost
            nonce = lease.next_nonce()
            assert nonce > last
            last = nonce
            assert isinstance(rival.ask(ticket=None), commands.Busy)
    view.assert_nothing_left()
    before = view.everything()
    threading.Event().wait(0.5)
    assert view.everything() == before


@pytest.mark.long
@ON_VALKEY
def test_auto_renew_notices_a_lost_lease(face: Face, server: AnyServer, view: View) -> None:
    """A renewal that comes too late marks the lease as lost before its own clock would."""
    lock = face.lock(face.client(server), ttl=4.5)
    with fails(LeaseLost), lock.hold(auto_renew=True) as lease:
        view.client.flushall()
        watch = Stopwatch()
        eventually(lambda: lease.lost, 20)
        assert watch() < 4


# Re-entrance.


def test_a_nested_hold_is_within_the_same_lease(face: Face, server: AnyServer, view: View) -> None:
    """A hold within a hold, also through another lock object, shares the lease and does not wait for itself."""
    client = face.client(server)
    one, other = face.lock(client), face.lock(client)
    with one.hold() as outer:
        holder = view.state.holder
        with other.hold(0) as inner:
            assert inner != outer
            inner.extend(60)
            assert outer.remaining() == pytest.approx(inner.remaining(), abs=1)
            assert outer.remaining() > 80
            with one.hold(0):
                pass
            assert not inner.lost
        assert inner.lost
        with fails(LeaseLost):
            inner.next_nonce()
        assert (view.state.holder, view.state.leased) == (holder, True)
        assert outer.next_nonce()
    view.assert_nothing_left()


def test_a_nested_hold_has_a_nonce_of_its_own(face: Face, server: AnyServer) -> None:
    """Each hold has its first nonce, which stays as it is; `next_nonce` is above those of all holds before."""
    lock = face.lock(face.client(server))
    with lock.hold() as outer:
        first = outer.nonce
        with lock.hold() as inner:
            own = inner.nonce
            assert first < own < inner.next_nonce() < outer.next_nonce() < inner.next_nonce()
            assert (outer.nonce, inner.nonce) == (first, own)
        last = outer.next_nonce()
        with lock.hold() as another:
            assert last < another.nonce
        assert another.nonce < outer.next_nonce()


def test_a_nested_hold_brings_nonces(face: Face, server: AnyServer) -> None:
    """When all nonces of the lease are used up, a nested hold still has its own."""
    lock = face.lock(face.client(server))
    with lock.hold() as outer:
        last = [outer.next_nonce() for _ in range(commands.BLOCK - 1)][-1]
        with lock.hold() as inner:
            assert last < inner.nonce < outer.next_nonce()


@ON_VALKEY
def test_a_nested_hold_of_a_lost_lease(face: Face, server: AnyServer, rival: Rival) -> None:
    """Within a hold whose lease has run out, a nested one raises `LeaseLost`, and the outer one can still be left."""
    lock = face.lock(face.client(server), ttl=1)
    with fails(LeaseLost), running_out(lock):
        for nested in (lock.hold, lambda: lock):
            with fails(LeaseLost, KEYS.state), nested():
                pass
        eventually(lambda: isinstance(rival.ask(ticket=None), commands.Granted), 1)
    rival.release()
    with lock.hold(5) as lease:
        assert not lease.lost


def test_a_nested_hold_survives_an_error(face: Face, server: AnyServer, view: View) -> None:
    """An error that is caught between two holds leaves the outer one as it is."""
    lock = face.lock(face.client(server))
    with lock.hold() as lease:
        with pytest.raises(ZeroDivisionError), lock.hold():
            raise ZeroDivisionError
        assert view.state.leased
        assert not lease.lost
    view.assert_nothing_left()


def test_others_do_not_share_a_hold(face: Face, lock: CallLock) -> None:
    """Another thread, or another task of the same loop, does not get in by the re-entrance."""

    def intrude() -> None:
        with lock.hold(0):
            pass

    with lock.hold(), fails(HoldTimeout):
        face.start(intrude).result()


def test_only_one_at_a_time(face: Face, server: AnyServer, view: View) -> None:
    """Callers of several processes hold the lock one after the other, with rising nonces over all of them."""
    locks = [face.lock(face.client(server)) for _ in range(3)]
    alone = OneAtATime()

    def work(number: int) -> list[int]:
        nonces = []
        for _ in range(5):
            with locks[number % 3].hold(20) as lease, alone.inside(lease.nonce):
                nonces += [lease.nonce, lease.next_nonce()]
        return nonces

    nonces = [nonce for some in face.together(work, 6) for nonce in some]
    assert len(alone.order) == 30
    assert alone.order == sorted(alone.order)
    assert len(set(nonces)) == 60
    view.assert_nothing_left()


# By force.


def test_unlock_ends_a_lease_by_force(
    lock: CallLock, view: View, rival: Rival, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator can end a lease that hangs: the next waiter gets the lock, and the former holder is told.

    Another's lease that came meanwhile is left alone.
    """
    with lock.hold():
        holder = view.state.holder
        rival.queue_up()
        assert run(view.client, commands.unlock(KEYS, holder))
        assert (view.state.holder, view.state.leased) == (rival.member(), False)
        assert not run(view.client, commands.unlock(KEYS, holder))
        assert isinstance(rival.ask(), commands.Granted)
        assert not lock.owned()
    eventually(lambda: "was lost while it was held" in caplog.text)
    assert view.state.holder == rival.member()


def test_misuse_is_an_error_of_ours(lock: CallLock) -> None:
    """Giving back or extending what one does not hold says so, in redis-py's words as well."""
    for misuse in (lock.release, lambda: lock.extend(5), lock.reacquire):
        with fails(CallLockError, KEYS.state, "does not hold it") as caught:
            misuse()
        assert isinstance(caught.value, LockError)


# What is told.


def test_a_lease_lost_within_its_term_is_an_event(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """An object's hook and the process's hear of it, once each; a hook that fails keeps nobody from hearing."""
    told: list[events.Event] = []
    others: list[events.Event] = []

    def fail(event: events.Event) -> None:
        others.append(event)
        raise ZeroDivisionError

    lock = face.lock(face.client(server), on_event=told.append)
    events.set_hook(fail)
    try:
        began = time.time()
        with lock.hold() as lease:
            redis_client.flushall()
        eventually(lambda: told and others)
    finally:
        events.set_hook(None)
    assert told == others
    [event] = told
    assert isinstance(event, events.LeaseEndedEarly)
    assert (event.key, event.nonce) == (KEYS.tag, lease.nonce)
    assert began <= event.time <= time.time()
    assert event.id
