"""Redis and the network fail; the lock and the nonces hold, and go on when they are back."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pytest

from kraken_nonce_redis import HoldTimeout, LeaseLost, StoreUnavailable
from kraken_nonce_redis._redis import commands
from tests.support.helpers import (
    KEYS,
    SECOND,
    OneAtATime,
    Rival,
    Stopwatch,
    View,
    assert_distinct_and_in_order,
    eventually,
    fails,
)
from tests.support.proxy import SUBSCRIBING

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis import CallLock
    from tests.conftest import MakeProxy, PrivateServer
    from tests.support.faces import Face
    from tests.support.proxy import Proxy
    from tests.support.servers import Server

LEASE = 30.0
"""Seconds that a lease lasts here. What takes less on a busy machine has not waited for the end of one."""
TIMEOUT = 0.4
"""Seconds, the clients' socket timeout where a test waits for it."""
FAULTS = pytest.mark.parametrize("fault", ["cut_request", "drop_reply", "half_reply"])


@pytest.fixture
def way(valkey: Server, proxy: MakeProxy) -> Proxy:
    """Put a fault proxy before Valkey."""
    return proxy(valkey)


@pytest.fixture
def view(valkey: Server) -> View:
    """Look into Redis, past the proxy."""
    return View(valkey.client())


def turn(lock: CallLock, timeout: float | None = None) -> int:
    """Hold the lock once, until its release was answered; return its nonce."""
    with lock.hold(timeout) as lease:
        nonce = lease.nonce
    answers(lock.locked)  # which comes after the release
    return nonce


def answers(call: Callable[[], object]) -> bool:
    """Return whether a call gets through to Redis."""
    with suppress(StoreUnavailable):
        call()
        return True
    return False


# One message is lost: that costs a retry, never a TTL.


@FAULTS
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_lost_message_of_a_free_lock(face: Face, way: Proxy, view: View, fault: str, n: int) -> None:
    """Whichever message of taking a free lock and giving it back is lost, nobody notices but for the retry.

    Given two turns in a row, of two commands each, if the n-th message is lost, then both turns succeed, on rising
    nonces, and right after them the lock is free for everybody.
    """
    lock = face.lock(face.client_at(way.url))
    first = turn(lock)
    getattr(way, fault)(n)
    watch = Stopwatch()
    nonces = [first, turn(lock), turn(lock, 0)]
    assert watch() < LEASE
    assert nonces == sorted(set(nonces))
    view.assert_nothing_left()


@FAULTS
@pytest.mark.parametrize("n", range(1, 7))
def test_a_lost_message_of_a_contended_lock(face: Face, way: Proxy, view: View, fault: str, n: int) -> None:
    """Whichever message of waiting, the offer and giving the lock back is lost, the waiter gets its turn in time.

    Given a lock that another process holds, if the n-th message of a waiter is lost, then it waits all the same, gets
    the lock when it is released, and leaves nothing behind.
    """
    lock = face.lock(face.client_at(way.url))
    turn(lock)
    rival = Rival(view.client)
    rival.take()
    getattr(way, fault)(n)
    waiter = face.start(turn, lock)
    view.until_waiting(1)
    time.sleep(0.02)
    rival.release()
    waiter.result()
    view.assert_nothing_left()
    assert turn(lock, 0)


@FAULTS
@pytest.mark.parametrize("n", [1, 2])
def test_a_lost_message_of_a_release_with_waiters(face: Face, way: Proxy, view: View, fault: str, n: int) -> None:
    """When a release is sent twice, the lock is handed over once: the waiter that has it keeps it."""
    lock = face.lock(face.client_at(way.url))
    turn(lock)
    waiters = [Rival(view.client) for _ in range(2)]
    getattr(way, fault)(n)
    with lock.hold():
        for waiter in waiters:
            waiter.queue_up()
    eventually(lambda: view.state.holder == waiters[0].member())
    assert view.waiting == 1


@FAULTS
@pytest.mark.parametrize("call", ["next", "reserve", "advance_to", "jump_forward", "last"])
def test_a_lost_message_of_an_allocator(face: Face, way: Proxy, view: View, fault: str, call: str) -> None:
    """A nonce whose reply is lost is skipped, never handed out again; a jump whose reply is lost jumps once."""
    nonces = face.allocator(face.client_at(way.url))
    start = nonces.jump_forward(1000 * SECOND)
    argument = {"reserve": 10, "advance_to": start + SECOND, "jump_forward": SECOND}.get(call)
    for n in (1, 3):  # the second is the retry, and a jump takes two commands
        getattr(way, fault)(n)
    result = getattr(nonces, call)(*([] if argument is None else [argument]))
    expected: dict[str, set[Any]] = {
        "next": {start + 1, start + 2},
        "reserve": {range(start + 1, start + 11), range(start + 11, start + 21)},
        "advance_to": {start + SECOND},
        "jump_forward": {start + SECOND},
        "last": {start},
    }
    assert result in expected[call]
    way._faults.clear()
    assert nonces.next() > (result[-1] if isinstance(result, range) else result)


@FAULTS
def test_a_lost_message_of_an_extension(face: Face, way: Proxy, view: View, fault: str) -> None:
    """An extension that is sent twice ends when it was asked to, and its nonces go on rising."""
    lock = face.lock(face.client_at(way.url))
    with lock.hold() as lease:
        before = lease.next_nonce()
        getattr(way, fault)()
        lease.extend(30)
        assert 59 < view.state.left <= 60
        assert lease.next_nonce() > before
    view.assert_nothing_left()


@FAULTS
def test_a_lost_message_of_a_subscription(face: Face, valkey: Server, proxy: MakeProxy, view: View, fault: str) -> None:
    """The same for the message by which a process begins to listen for calls."""
    way = proxy(valkey, counted=SUBSCRIBING)
    lock = face.lock(face.client_at(way.url))
    rival = Rival(view.client)
    rival.take()
    getattr(way, fault)()
    waiter = face.start(turn, lock)
    eventually(lambda: (way.commands and view.waiting == 1) or waiter.done)
    rival.release()
    waiter.result()
    view.assert_nothing_left()
    assert turn(lock, 0)


# The retry fails, too.


@pytest.mark.parametrize("fault", ["cut_request", "drop_reply"])
def test_a_failed_acquire_is_given_back(face: Face, way: Proxy, view: View, fault: str) -> None:
    """A caller that could not hear that it has the lock gets an error, and the others get the lock."""
    lock = face.lock(face.client_at(way.url))
    turn(lock)
    for n in (1, 2):
        getattr(way, fault)(n)
    with fails(StoreUnavailable, "acquire", KEYS.state), lock.hold():
        pass
    view.until_free()
    view.assert_nothing_left()


@pytest.mark.parametrize("fault", ["cut_request", "drop_reply"])
def test_a_failed_release_is_made_up_for(face: Face, way: Proxy, view: View, fault: str) -> None:
    """A failure at the end of a block does not hide what the block did, and the lock is given back soon."""
    lock = face.lock(face.client_at(way.url))
    with lock.hold():
        for n in (1, 2):
            getattr(way, fault)(n)
    eventually(lambda: view.state.holder == "" and answers(lock.locked))
    view.assert_nothing_left()
    assert turn(lock, 0)


def test_a_failed_release_raises(face: Face, way: Proxy, view: View) -> None:
    """release() by hand says that Redis failed; the lock is given back all the same."""
    lock = face.lock(face.client_at(way.url))
    lock.acquire()
    for n in (1, 2):
        way.cut_request(n)
    with fails(StoreUnavailable, "release"):
        lock.release()
    assert not lock.owned()
    view.until_free()


@pytest.mark.long
def test_a_token_after_a_failed_release(face: Face, way: Proxy, view: View) -> None:
    """A token that is used again after its release failed gets a lease of its own, with nonces of its own.

    Given an acquisition by token whose release did not reach Redis,
    if the same token is acquired again at once,
    then its nonces are new, and the release that is made up for later does not take the lock away.
    """
    client = face.client_at(way.url)
    lock = face.lock(client)
    assert lock.acquire(token="mine")
    with lock.hold() as lease:
        nonces = [lease.nonce, lease.next_nonce()]
    failures = way.commands + 3
    for n in (1, 2, 3):  # the release, its retry, and what makes up for it
        way.cut_request(n)
    with fails(StoreUnavailable):
        lock.release()
    eventually(lambda: way.commands >= failures and answers(lock.locked))
    assert lock.acquire(blocking_timeout=5, token="mine")
    with lock.hold() as lease:
        nonces += [lease.nonce, lease.next_nonce()]
        time.sleep(1.5)
        assert view.state.leased
    lock.release()
    assert nonces == sorted(set(nonces))
    view.assert_nothing_left()


# Redis is away.


def test_redis_is_down(face: Face, private_server: PrivateServer) -> None:
    """Without Redis there is a StoreUnavailable at once, never a nonce; when it is back, all works as before."""
    server = private_server()
    client = face.client(server, retry=None, socket_timeout=60)
    nonces, lock = face.allocator(client), face.lock(client)
    last = nonces.jump_forward(1000 * SECOND)
    server.kill()
    watch = Stopwatch()
    for call in (nonces.next, lambda: nonces.reserve(5), nonces.last, lambda: turn(lock), lock.locked):
        with fails(StoreUnavailable, KEYS.state):
            call()
    assert watch() < 60, "it did not wait for the socket timeout"
    server.start()
    assert nonces.next() > last
    assert turn(lock) > last


def test_redis_was_down_from_the_start(face: Face, private_server: PrivateServer) -> None:
    """A bot may start before its Redis: making the objects asks nothing, and the first call that can works."""
    server = private_server()
    server.kill()
    client = face.client(server, retry=None)
    nonces, lock = face.allocator(client), face.lock(client)
    with fails(StoreUnavailable):
        nonces.next()
    with fails(StoreUnavailable):
        turn(lock)
    server.start()
    assert turn(lock) < nonces.next()


def test_a_black_hole_takes_the_socket_timeout(face: Face, way: Proxy, view: View) -> None:
    """When nothing comes back any more, callers get a StoreUnavailable in the time of their socket timeout.

    It takes that time once more at most, for the retry. Those in line behind the first don't wait again, which would
    take 100 callers more than a minute.
    """
    client = face.client_at(way.url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
    nonces, lock = face.allocator(client), face.lock(client)
    last = nonces.next()
    way.black_hole()
    watch = Stopwatch()
    callers = [face.start(nonces.next) for _ in range(50)] + [face.start(turn, lock) for _ in range(50)]
    for caller in callers:
        with fails(StoreUnavailable, KEYS.state):
            caller.result()
    assert watch() < 100 * 2 * TIMEOUT / 2
    way.cut_all()
    way.heal()
    # What is owed from then goes out first, and may meet a connection that is just being cut.
    eventually(lambda: answers(nonces.next))
    assert nonces.next() > last
    assert turn(lock, 5) > last
    view.until_free()


def test_what_was_under_way_arrives_late(face: Face, way: Proxy, view: View) -> None:
    """A request that reaches Redis after its caller gave up leaves no lock behind."""
    client = face.client_at(way.url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
    lock = face.lock(client)
    turn(lock)
    way.black_hole()
    with fails(StoreUnavailable):
        turn(lock)
    way.heal()
    eventually(lambda: view.state.holder == "" and turn(lock, 3), 20)
    view.assert_nothing_left()


@pytest.mark.long
@pytest.mark.parametrize("loss", ["kill", "black hole"])
def test_redis_goes_away_from_waiters(face: Face, private_server: PrivateServer, proxy: MakeProxy, loss: str) -> None:
    """Those who wait are told within seconds that Redis is away, instead of waiting for ever."""
    server = private_server()
    way = proxy(server)
    lock = face.lock(face.client_at(way.url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT))
    view = View(server.client())
    Rival(view.client).take()
    callers = [face.start(turn, lock) for _ in range(3)]
    view.until_waiting(3)
    eventually(lambda: view.client.pubsub_channels("kraken-nonce:wake:*"))
    time.sleep(0.1)
    if loss == "kill":
        server.kill()
        way.cut_all()
    else:
        way.black_hole()
    for caller in callers:
        with fails(StoreUnavailable):
            caller.result()
    if loss == "kill":
        server.start()
    else:
        view.unlock()
        way.cut_all()
        way.heal()
    assert turn(lock, 10)
    eventually(lambda: (view.state.holder, view.waiting) == ("", 0))


@pytest.mark.long
def test_a_place_outlives_a_short_lease(face: Face, way: Proxy, view: View) -> None:
    """Who was told that Redis is away gives up the place when it is back, also if that takes longer than a lease."""
    ttl = 1.0
    lock = face.lock(face.client_at(way.url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT), ttl=ttl)
    Rival(view.client).take()
    waiter = face.start(turn, lock)
    view.until_waiting(1)
    way.black_hole()
    with fails(StoreUnavailable):
        waiter.result()
    time.sleep(ttl + 0.5)
    assert view.waiting == 1
    way.cut_all()
    way.heal()
    eventually(lambda: view.waiting == 0)


@pytest.mark.long
@pytest.mark.parametrize("timeout", [None, 0.3])
def test_a_subscription_without_an_answer(face: Face, way: Proxy, view: View, timeout: float | None) -> None:
    """When the network goes dark just as a caller begins to listen, it is told so as well.

    Given a lock that is held, if nothing comes back from the moment in which a waiter subscribes, then the waiter gets
    an error in the time of a socket timeout.
    """
    note = way._note

    def go_dark(name: str, arguments: tuple[bytes, ...]) -> Any:
        if name in SUBSCRIBING:
            way._passable.clear()
        return note(name, arguments)

    way._note = go_dark  # type: ignore[method-assign]
    lock = face.lock(face.client_at(way.url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT))
    Rival(view.client).take()
    waiter = face.start(turn, lock, timeout)
    try:
        with pytest.raises((StoreUnavailable, HoldTimeout)):
            waiter.result()
    finally:
        way.cut_all()
        way.heal()


# Redis is there, but not the same.


def _kill_clients(view: View) -> None:
    view.client.client_kill_filter(_type="normal", skipme=True)


def _kill_listeners(view: View) -> None:
    view.client.client_kill_filter(_type="pubsub")


def _kill_all(view: View) -> None:
    _kill_clients(view)
    _kill_listeners(view)


def _flush_scripts(view: View) -> None:
    view.client.script_flush()


def _flush_all(view: View) -> None:
    view.client.flushall()


MISHAPS = pytest.mark.parametrize(
    "mishap", [_kill_clients, _kill_listeners, _kill_all, _flush_scripts, _flush_all], ids=lambda f: f.__name__[1:]
)


@MISHAPS
def test_between_two_calls(face: Face, valkey: Server, view: View, mishap: Callable[[View], None]) -> None:
    """Connections killed, scripts or data flushed: the next call works, and nonces go on rising."""
    client = face.client(valkey)
    nonces, lock = face.allocator(client), face.lock(client)
    last = nonces.jump_forward(1000 * SECOND)
    turn(lock)
    mishap(view)
    assert last < nonces.next() < turn(lock) < nonces.next()
    mishap(view)
    assert last < turn(lock)


@MISHAPS
def test_while_callers_wait(face: Face, valkey: Server, view: View, mishap: Callable[[View], None]) -> None:
    """The same while callers of two processes wait: each gets its turn, in the order in which they came.

    Given five callers that wait for a holder, if that happens, then they keep their places, and go on when the lock
    is free.
    """
    locks = [face.lock(face.client(valkey)) for _ in range(2)]
    alone = OneAtATime()
    rival = Rival(view.client)
    rival.take()

    def wait(number: int) -> None:
        with locks[number % 2].hold(), alone.inside(number):
            pass

    callers = []
    for number in range(5):
        callers.append(face.start(wait, number))
        view.until_waiting(number + 1)
    eventually(lambda: len(view.client.pubsub_channels("kraken-nonce:wake:*")) == len(locks))
    mishap(view)
    if mishap is not _flush_all:
        rival.release()
    for caller in callers:
        caller.result()
    # With the state the order is lost between the processes, though not who is alone. Who does not listen again within
    # the time of an offer lets another one go first; tests/simulation/test_bounds.py has that in virtual time.
    assert sorted(alone.order) == [0, 1, 2, 3, 4]
    assert alone.order == [0, 1, 2, 3, 4] or mishap in (_flush_all, _kill_listeners, _kill_all)
    view.assert_nothing_left()


class Traffic:
    """Callers of several processes that take nonces and hold the lock, until the block ends; then all is checked."""

    def __init__(self, face: Face, server: Server, callers: int = 4) -> None:
        self._taken: list[list[tuple[float, float, int]]] = [[] for _ in range(callers)]
        self._going = True
        self._callers = [face.start(self._take, face, server, number) for number in range(callers)]

    def _take(self, face: Face, server: Server, number: int) -> None:
        client = face.client(server, retry=None)
        # A short TTL, since an older state may name a holder who has long left.
        nonces, lock = face.allocator(client), face.lock(client, ttl=1)
        while self._going:
            asked = time.monotonic()
            try:
                if number % 2:
                    self._took(number, asked, nonces.next())
                else:
                    with lock.hold(5) as lease:
                        self._took(number, asked, lease.next_nonce())
                time.sleep(0.001)
            except (StoreUnavailable, LeaseLost):
                time.sleep(0.005)

    def _took(self, number: int, asked: float, nonce: int) -> None:
        self._taken[number].append((asked, time.monotonic(), nonce))

    def flow(self) -> None:
        """Wait until every caller has had its turn a few times: a margin covers those who act within it."""
        before = [len(taken) for taken in self._taken]
        eventually(lambda: all(len(taken) > n + 5 for taken, n in zip(self._taken, before, strict=True)), 10)

    def __enter__(self) -> Self:
        self.flow()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flow()
        finally:
            self._going = False
        for caller in self._callers:
            caller.result()
        assert_distinct_and_in_order(one for taken in self._taken for one in taken)


def test_flushall_in_the_middle_of_a_run(face: Face, valkey: Server, view: View) -> None:
    """A FLUSHALL while several processes take nonces: none comes twice, none is below one that was there before."""
    with Traffic(face, valkey) as traffic:
        for _ in range(3):
            view.client.flushall()
            traffic.flow()


def test_restart_without_persistence_in_the_middle_of_a_run(face: Face, private_server: PrivateServer) -> None:
    """A Redis that comes back empty: the same."""
    server = private_server()
    with Traffic(face, server) as traffic:
        face.allocator(face.client(server)).jump_forward(100 * SECOND)
        traffic.flow()
        server.restart(persist=False)


def test_older_state_in_the_middle_of_a_run(face: Face, valkey: Server, view: View) -> None:
    """A failover to a replica that lagged behind: the same."""
    with Traffic(face, valkey) as traffic:
        for _ in range(3):
            old = view.client.dump(KEYS.state)
            traffic.flow()
            view.client.restore(KEYS.state, 0, old, replace=True)
            traffic.flow()


def test_clock_back_an_hour_in_the_middle_of_a_run(face: Face, faketime_server: Server) -> None:
    """A server whose clock goes back an hour: the same, and forth again."""
    with Traffic(face, faketime_server) as traffic:
        for offset in (-3600, 0, -3600):
            faketime_server.clock_offset(offset)
            traffic.flow()


@pytest.mark.long
def test_clock_back_an_hour_makes_no_lease_longer(face: Face, faketime_server: Server) -> None:
    """When the server's clock goes back while somebody holds the lock, a dead holder still costs a TTL and no hour."""
    view = View(faketime_server.client())
    lock = face.lock(face.client(faketime_server))
    Rival(view.client).take(ttl=1.5)
    waiter = face.start(turn, lock)
    view.until_waiting(1)
    faketime_server.clock_offset(-3600)
    waiter.result()
    view.assert_nothing_left()


def test_clock_back_does_not_end_a_lease(face: Face, faketime_server: Server) -> None:
    """A living holder keeps the lock over a clock that goes back, and can extend it."""
    view = View(faketime_server.client())
    with face.lock(face.client(faketime_server)).hold() as lease:
        before = lease.next_nonce()
        faketime_server.clock_offset(-3600)
        assert isinstance(Rival(view.client).ask(ticket=None), commands.Busy)
        lease.extend(5)
        assert lease.next_nonce() > before
    view.assert_nothing_left()


def test_clock_ahead_an_hour_takes_no_harm(
    face: Face, faketime_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock that leaps ahead ends leases early: the next one gets the lock, and the holder is told at its end."""
    client = face.client(faketime_server)
    rival = Rival(faketime_server.client())
    lock = face.lock(client)
    with lock.hold() as lease:
        faketime_server.clock_offset(3600)
        assert rival.take().nonces[0] > lease.next_nonce()
    eventually(lambda: "was lost while it was held" in caplog.text)
    faketime_server.clock_offset(0)
    rival.release()
    turn(lock, 0)


def test_a_paused_failover(face: Face, valkey: Server, view: View) -> None:
    """CLIENT PAUSE WRITE, as in a planned failover, delays calls and loses none."""
    client = face.client(valkey)
    nonces, lock = face.allocator(client), face.lock(client)
    last = turn(lock)
    view.client.client_pause(300, all=False)
    watch = Stopwatch()
    assert nonces.next() > last
    assert turn(lock) > last
    assert watch() > 0.2
