"""What is told of the lock, of nonces and of Redis, and to whom."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

import kraken_nonce_redis
from kraken_nonce_redis import (
    CoolDown,
    HoldTimeout,
    InvalidArgument,
    LeaseLost,
    StoreError,
    StoreUnavailable,
    events,
)
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis._core import closing
from kraken_nonce_redis._redis import commands
from tests.redis.test_topologies import failover, own_url, when_back
from tests.support.faces import KEY
from tests.support.helpers import KEYS, ON_VALKEY, SECOND, Rival, View, eventually, fails
from tests.support.listening import Listener, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from kraken_nonce_redis import CallLock
    from tests.conftest import MakeProxy, PrivateServer
    from tests.support.faces import Face
    from tests.support.servers import AnyServer, Server

NAME = "grid bot 1"
CAUSE = "EAPI:Rate limit exceeded"


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Hear of all events; each one must have exactly the attributes of its kind, and a time that fits."""
    began = time.time()
    with listening() as listener:
        yield listener
    for event in listener.told:
        assert set(vars(event)) == {each.name for each in fields(event)}
        assert began <= event.time <= time.time()
        assert event.since is None or event.since <= event.time + 0.001


@pytest.fixture
def lock(face: Face, server: AnyServer) -> CallLock:
    """Make a lock with a name on every server."""
    return face.lock(face.client(server), name=NAME)


# The lock.


def test_a_hold(lock: CallLock, listener: Listener) -> None:
    """A grant and a release are told, with who it was, since when, and one name for the lease; a nested hold is not."""
    with lock.hold() as lease:
        assert listener.kinds() == [events.LockGranted]
        with lock.hold():
            time.sleep(0.02)
    assert listener.kinds() == [events.LockGranted, events.LockReleased]
    granted, released = listener.one(events.LockGranted), listener.one(events.LockReleased)
    for event in (granted, released):
        assert (event.key, event.name, event.method, event.nonce) == (KEYS.tag, NAME, "", lease.nonce)
    assert granted.lease == released.lease
    assert granted.since == pytest.approx(granted.time - granted.wait)
    assert released.held > 0.02
    assert released.since == pytest.approx(granted.time, abs=0.01)
    assert listener.news == []


def test_each_way_to_release(lock: CallLock, listener: Listener) -> None:
    """A release is told once, however the lease ends."""
    lock.acquire()
    lock.release()
    with lock:
        pass
    with pytest.raises(ZeroDivisionError), lock.hold():
        raise ZeroDivisionError
    assert listener.kinds() == [events.LockGranted, events.LockReleased] * 3


def test_the_name_of_a_process(face: Face, valkey: Server, listener: Listener) -> None:
    """Without a name it is that of the process."""
    with face.lock(face.client(valkey)).hold():
        pass
    assert listener.one(events.LockReleased).name == f"{socket.gethostname()}:{os.getpid()}"


def test_waiting(face: Face, lock: CallLock, rival: Rival, view: View, listener: Listener) -> None:
    """The beginning of a wait is told while the caller waits, and the wait with the grant."""
    rival.take()

    def wait() -> None:
        with lock.hold(10):
            pass

    caller = face.start(wait)
    view.until_waiting(1)
    began = listener.one(events.WaitingBegan)
    assert (began.key, began.name, began.cause) == (KEYS.tag, NAME, "held")
    assert 25 < began.left <= 30
    time.sleep(0.1)
    rival.release()
    caller.result()
    assert listener.kinds() == [events.WaitingBegan, events.LockGranted, events.LockReleased]
    granted = listener.one(events.LockGranted)
    assert granted.wait > 0.1
    assert granted.lease == began.lease


@pytest.mark.long
@ON_VALKEY
def test_still_waiting(face: Face, lock: CallLock, rival: Rival, listener: Listener) -> None:
    """A wait of more than a second is told once more while it goes on."""
    rival.take()
    with fails(HoldTimeout), lock.hold(2.5):
        pass
    still = listener.one(events.StillWaiting)
    assert 1.0 <= still.wait <= 2.5
    assert still.cause == "held"
    ended = listener.one(events.WaitTimedOut)
    assert ended.wait == pytest.approx(2.5, abs=0.5)
    assert (ended.error, ended.lease, ended.name) == ("HoldTimeout", still.lease, NAME)


def test_not_waiting(lock: CallLock, rival: Rival, listener: Listener) -> None:
    """A caller that does not wait is told to have timed out, after no time."""
    rival.take()
    with fails(HoldTimeout), lock.hold(0):
        pass
    assert listener.kinds() == [events.WaitTimedOut]
    assert listener.one(events.WaitTimedOut).wait == 0.0


def test_cool_downs(face: Face, server: AnyServer, lock: CallLock, listener: Listener) -> None:
    """A cool-down is told by who sets it, by another process that hears of it, and when it is over."""
    other = face.lock(face.client(server), name="other")
    lock.cool_down(0.5, CAUSE)
    lock.cool_down(0.5, CAUSE)
    began = listener.one(events.CoolDownBegan)
    assert (began.key, began.reason) == (KEYS.tag, CAUSE)
    assert began.seconds == pytest.approx(0.5, abs=0.1)
    with fails(CoolDown), other.hold(0):
        pass
    assert [event.reason for event in listener.of(events.CoolDownBegan)] == [CAUSE] * 2
    assert listener.one(events.WaitTimedOut).error == "CoolDown"
    for each in (other, lock):
        with each.hold():
            pass
    over = listener.of(events.CoolDownOver)
    assert [event.key for event in over] == [KEYS.tag] * 2
    assert {event.since for event in over} == {event.since for event in listener.of(events.CoolDownBegan)}
    assert listener.of(events.WaitingBegan)[0].cause == f"cool-down {CAUSE}"
    eventually(lambda: len(listener.news) == 4)


def test_a_cool_down_that_is_ended(lock: CallLock, listener: Listener) -> None:
    """Whoever ends a cool-down is told that it is over; one that is made longer is told again."""
    lock.cool_down(0, "")
    lock.cool_down(30, CAUSE)
    lock.cool_down(60, CAUSE)
    lock.cool_down(0, "")
    assert listener.kinds() == [events.CoolDownBegan, events.CoolDownBegan, events.CoolDownOver]


def outlive(lock: CallLock, rival: Rival, error: Exception | None) -> None:
    """Hold the lock until another one has it, and end with an error."""
    with lock.hold() as lease:
        eventually(lambda: lease.lost)
        eventually(lambda: isinstance(rival.ask(ticket=None), commands.Granted), 1)
        with fails(LeaseLost):
            lease.extend(5)
        if error is not None:
            raise error


@pytest.mark.long
def test_a_lease_that_runs_out(face: Face, server: AnyServer, rival: Rival, listener: Listener) -> None:
    """A holder that outlives its lease is told of with the error, once; so is one whose block fails by itself."""
    told: list[events.News] = []
    lock = face.lock(face.client(server), ttl=1, name=NAME, on_event=told.append)
    for error in (LeaseLost, ZeroDivisionError):
        with pytest.raises(error):
            outlive(lock, rival, ZeroDivisionError() if error is ZeroDivisionError else None)
        rival.release()
    eventually(lambda: len(told) == 2)
    assert told == listener.news == listener.of(events.LeaseRanOut)
    for event in listener.of(events.LeaseRanOut):
        assert (event.key, event.name) == (KEYS.tag, NAME)
        assert event.held > 0.9
        assert event.since == pytest.approx(event.time - event.held, abs=0.01)


@pytest.mark.parametrize("how", ["hold", "with", "auto_renew"])
def test_a_lease_that_is_lost(
    face: Face, server: AnyServer, redis_client: redis.Redis, how: str, listener: Listener
) -> None:
    """A lease that Redis has lost is told once, whoever notices: the release, or a renewal before it."""
    lock = face.lock(face.client(server), ttl=1, name=NAME)
    if how == "hold":
        with lock.hold():
            redis_client.flushall()
    elif how == "with":
        with fails(LeaseLost), lock:
            redis_client.flushall()
    else:
        with fails(LeaseLost), lock.hold(auto_renew=True) as lease:
            redis_client.flushall()
            eventually(lambda: lease.lost)
    event, granted = listener.one(events.LeaseEndedEarly), listener.one(events.LockGranted)
    assert (event.name, event.nonce, event.lease) == (NAME, granted.nonce, granted.lease)
    eventually(lambda: listener.news == [event])


def test_a_lease_that_is_given_up(valkey: Server, listener: Listener) -> None:
    """When a process ends its calls, a lock that it gives up is told as released, once, and not as lost."""
    lock = kraken_nonce_redis.CallLock.from_url(own_url(valkey), KEY)
    with contextlib.suppress(LeaseLost), lock.hold():
        assert closing.give_up(lock.store.process_state) == 1
        assert listener.kinds() == [events.LockGranted, events.LockReleased]
    assert listener.kinds() == [events.LockGranted, events.LockReleased]


# Nonces.


def test_lost_state(face: Face, server: AnyServer, redis_client: redis.Redis, listener: Listener) -> None:
    """That Redis had lost nonces is told by whoever gets the ones above them, once."""
    client = face.client(server)
    nonces, lock = face.allocator(client), face.lock(client)
    seen = nonces.jump_forward(100 * SECOND)
    assert nonces.next() == seen + 1
    redis_client.flushall()
    with lock.hold() as lease:
        pass
    nonces.next()
    event = listener.one(events.StateLost)
    assert (event.key, event.seen, event.nonce) == (KEYS.tag, seen + 1, lease.nonce)
    eventually(lambda: listener.news == [event])


# Redis.


def test_redis_away_and_back(face: Face, private_server: PrivateServer, listener: Listener) -> None:
    """That Redis is away is told once, each failure is, and so is that it is back, with how long it was away."""
    server = private_server()
    lock = face.lock(face.client(server), name=NAME)
    with lock.hold():
        pass
    server.kill()
    for _ in range(2):
        with fails(StoreUnavailable), lock.hold():
            pass
    away = listener.one(events.RedisAway)
    assert (away.key, away.redis) == ("", f"127.0.0.1:{server.port}/0")
    assert "can't be reached" in away.reason
    failed = listener.of(events.StoreFailed)
    assert {(event.error, event.key) for event in failed} == {("StoreUnavailable", KEYS.tag)}
    assert {event.operation for event in failed} <= {"acquire", "release"}
    assert len(failed) >= 2
    time.sleep(0.1)
    server.start()
    with lock.hold():
        pass
    back = listener.one(events.RedisBack)
    assert (back.key, back.redis, back.since) == ("", away.redis, away.since)
    assert 0.1 < back.seconds < 10
    eventually(lambda: away in listener.news and back in listener.news)
    with lock.hold():
        pass
    assert len(listener.of(events.RedisBack)) == 1


def test_a_connection_that_is_made_again(face: Face, valkey: Server, proxy: MakeProxy, listener: Listener) -> None:
    """A connection that was lost and made again at once is no news."""
    link = proxy(valkey)
    nonces = face.allocator_from_url(link.url)
    nonces.next()
    link.cut_all()
    nonces.next()
    assert listener.told == []


@pytest.mark.test_all
def test_another_master(face: Face, replicated: Any, listener: Listener) -> None:
    """That another server has taken over is told: the one that Sentinels have elected, or a node of a cluster."""
    before = replicated.master(KEYS.state).port
    nonces = face.allocator_from_url(own_url(replicated))
    nonces.next()
    failover(replicated)
    eventually(lambda: when_back(nonces.next) and listener.of(events.MasterChanged), 30)  # the old one answers a while
    event = listener.one(events.MasterChanged)
    after = replicated.master(KEYS.state).port
    assert (event.former, event.master) == (f"127.0.0.1:{before}", f"127.0.0.1:{after}")
    assert event.key == (KEYS.tag if "cluster" in replicated.url else "")
    for away in listener.of(events.RedisAway):
        assert away.key == event.key
        assert str(before) in away.redis or "the-master" in away.redis


# Who is told.


def test_nobody_listens(lock: CallLock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without an observer, and with a log that takes no DEBUG, no step is made."""
    made: list[object] = []
    monkeypatch.setattr(telling, "note", made.append)
    for level, number in ((logging.INFO, 0), (logging.DEBUG, 2)):
        with caplog.at_level(level, "kraken_nonce_redis"), lock.hold():
            pass
        assert len(made) == number


def test_an_observer_that_fails(lock: CallLock, listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; neither the caller nor other observers come to harm."""

    def fail(event: events.Event) -> None:
        raise ZeroDivisionError

    events.add_observer(fail)
    events.add_observer(fail)
    try:
        with lock.hold():
            pass
    finally:
        events.remove_observer(fail)
    events.remove_observer(fail)
    with lock.hold():
        pass
    assert listener.kinds() == [events.LockGranted, events.LockReleased] * 2
    assert caplog.text.count("An observer failed for a Lock") == 2
    assert "ZeroDivisionError" in caplog.text


STRAY = [ValueError, SystemExit, asyncio.CancelledError]


@pytest.mark.parametrize("kind", STRAY)
def test_nothing_that_an_observer_or_hook_raises(
    face: Face,
    server: AnyServer,
    redis_client: redis.Redis,
    listener: Listener,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
) -> None:
    """It strikes neither the holder, nor what else the process does, whatever its type."""

    def fail(event: events.Event) -> None:
        raise kind

    lock = face.lock(face.client(server), on_event=fail)
    events.add_observer(fail)
    events.set_hook(fail)
    try:
        with fails(LeaseLost), lock.hold():
            redis_client.delete(KEYS.state)
            lock.extend(1)
        eventually(lambda: caplog.text.count("on_event failed for a LeaseEndedEarly") == 2)
        with lock.hold(timeout=5):
            pass
    finally:
        events.remove_observer(fail)
        events.set_hook(None)
    assert "An observer failed for a LeaseEndedEarly" in caplog.text
    assert listener.kinds().count(events.LeaseEndedEarly) == 1


@pytest.mark.once
def test_a_keyboard_interrupt_in_an_observer() -> None:
    """Ctrl-C goes on to the caller, whatever it strikes."""

    def interrupt(event: events.Event) -> None:
        raise KeyboardInterrupt

    event = events.CoolDownOver(key="key")
    with pytest.raises(KeyboardInterrupt):
        telling.tell(event, interrupt)
    events.add_observer(interrupt)
    try:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                telling.note(event)
    finally:
        events.remove_observer(interrupt)


@pytest.mark.once
@pytest.mark.parametrize("kind", STRAY)
@pytest.mark.parametrize("always", [True, False])
def test_a_log_that_fails(
    lock: CallLock,
    listener: Listener,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
    always: bool,  # noqa: FBT001
) -> None:
    """What a filter raises strikes nobody; it is logged where that is possible."""

    def filtering(record: logging.LogRecord) -> bool:
        if always or hasattr(record, "kraken_nonce_event"):
            raise kind
        return True

    caplog.set_level(logging.DEBUG, telling.logger.name)
    telling.logger.addFilter(filtering)
    try:
        with lock.hold():
            pass
        telling.tell(events.CoolDownOver(key="key"), lambda _: int("x"))
    finally:
        telling.logger.removeFilter(filtering)
    assert listener.kinds() == [events.LockGranted, events.LockReleased]
    assert caplog.text.count("The log failed for a Lock") == (0 if always else 2)


def test_an_observer_that_uses_the_lock(face: Face, valkey: Server, view: View, listener: Listener) -> None:
    """It is refused, so that it cannot take a nonce under another's lease or wait for itself; its caller goes on."""
    own = kraken_nonce_redis.CallLock.from_url(valkey.url, KEY)  # an observer is no coroutine: it has this face alone
    refused: list[str] = []

    def call(event: events.Event) -> None:
        for use in (own.acquire, own.locked):
            try:
                use()
            except StoreError as error:
                refused.append(str(error))

    lock = face.lock(face.client(valkey))
    events.add_observer(call)
    try:
        with lock.hold() as lease:
            assert lease.next_nonce() == lease.nonce + 1
    finally:
        events.remove_observer(call)
    assert refused
    assert all("observer of events" in text for text in refused)
    assert set(listener.kinds()) == {events.LockGranted, events.LockReleased}
    with own.hold(5):
        pass


def test_a_hook_hears_no_steps(face: Face, valkey: Server) -> None:
    """Hooks get news alone."""
    told: list[events.News] = []
    with listening() as listener, face.lock(face.client(valkey), on_event=told.append).hold():
        pass
    assert len(listener.told) == 2
    assert listener.news == told == []


def test_what_is_no_observer() -> None:
    """It is refused when it is added."""
    with fails(InvalidArgument, "observer"):
        events.add_observer(None)  # type: ignore[arg-type]
    events.remove_observer(print)
