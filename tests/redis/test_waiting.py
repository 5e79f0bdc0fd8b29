"""Waiting for the lock: in order, without polling, and with nothing left behind."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis import CallLock, HoldTimeout
from kraken_nonce_redis._core import waiters
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._core.steps import Pause, Run
from kraken_nonce_redis._core.waiting import acquiring
from kraken_nonce_redis._core.wishes import Wishes
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from tests.support.faces import KEY, Interrupted
from tests.support.helpers import KEYS, ON_VALKEY, OneAtATime, Rival, Stopwatch, View, eventually, fails
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import Priority
    from tests.conftest import MakeProxy
    from tests.support.faces import Caller, Face
    from tests.support.servers import AnyServer, Server


class Queue:
    """Callers that wait for a lock which a rival holds, each in its place before the next one comes."""

    def __init__(self, face: Face, view: View) -> None:
        self.order: list[object] = []
        self.callers: list[Caller[None]] = []
        self._face = face
        self._view = view
        self._alone = OneAtATime()

    def add(
        self, lock: CallLock, name: object = None, *, priority: Priority = "normal", timeout: float | None = None
    ) -> Caller[None]:
        """Add a caller, and wait until it has its place."""
        places = self._view.places
        name = len(self.callers) if name is None else name

        def wait() -> None:
            with lock.hold(timeout, priority=priority), self._alone.inside(name):
                self.order.append(name)

        self.callers.append(self._face.start(wait))
        self._view.until_places(places + 1)
        return self.callers[-1]

    def results(self) -> None:
        """Wait for all of them."""
        for caller in self.callers:
            caller.result()


@pytest.fixture
def queue(face: Face, view: View) -> Queue:
    """Let callers queue up."""
    return Queue(face, view)


@pytest.fixture
def rare_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute go by between two heartbeats, so that what is noticed sooner was not noticed by them."""
    monkeypatch.setattr(waiters, "HEARTBEAT", 60.0)


# Order.


def test_first_come_first_served(face: Face, server: AnyServer, queue: Queue, rival: Rival, view: View) -> None:
    """Over threads, tasks and processes, callers get the lock in the order in which they asked for it."""
    rival.take()
    locks = [face.lock(face.client(server)) for _ in range(3)]
    for number in (0, 0, 1, 2, 1, 0, 2, 2, 1):
        queue.add(locks[number])
    rival.release()
    queue.results()
    assert queue.order == list(range(9))
    view.assert_nothing_left()


def test_a_newcomer_does_not_overtake(face: Face, server: AnyServer, queue: Queue, rival: Rival) -> None:
    """Between one holder and the next there is no gap to slip into, whoever asks at that moment."""
    rival.take()
    queue.add(face.lock(face.client(server)))
    rival.release()
    assert isinstance(rival.ask(2, ticket=None), commands.Busy) or queue.callers[0].done
    queue.results()


@ON_VALKEY
def test_a_newcomer_does_not_profit_from_an_end(server: AnyServer, rival: Rival, view: View) -> None:
    """When a lease runs out, whoever asks first notices it, and the first in the queue gets the lock all the same."""
    first, newcomer = Rival(view.client), Rival(view.client)
    rival.take(ttl=1)
    first.queue_up()
    eventually(lambda: view.state.left == 0)
    assert isinstance(newcomer.ask(ticket=None), commands.Busy)
    assert view.state.holder == first.member()


@pytest.mark.usefixtures("rare_heartbeats")
def test_hand_over_is_prompt(face: Face, server: AnyServer, queue: Queue, rival: Rival) -> None:
    """The next waiter has the lock a moment after its release, not at its next look."""
    lock = face.lock(face.client(server))
    for turn in range(3):
        eventually(lambda turn=turn: isinstance(rival.ask(turn, ticket=None), commands.Granted))
        caller = queue.add(lock)
        time.sleep(0.05 * turn)
        rival.release(turn)
        caller.result()


@ON_VALKEY
def test_who_begins_to_wait_does_not_wait_for_the_listener(
    server: Server, rival: Rival, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers that come while another one subscribes go on as soon as it has, however long one of them then listens."""
    monkeypatch.setattr("kraken_nonce_redis._threads.store._LOOK_UP", 30.0)
    rival.take()
    lock = CallLock(server.client(), KEY)
    waiter = threading.Thread(target=lambda: lock.acquire() and lock.release())
    waiter.start()
    view.until_waiting(1)
    time.sleep(0.5)  # then it listens, and looks up after 30 s
    watch = Stopwatch()
    lock.store._listener.open()
    assert watch() < 5
    rival.release()
    waiter.join()


def test_high_priority_goes_first(face: Face, server: AnyServer, queue: Queue, rival: Rival) -> None:
    """An order with priority="high" overtakes waiting queries, and orders keep their own order."""
    rival.take()
    locks = [face.lock(face.client(server)) for _ in range(2)]
    priorities: list[Priority] = ["normal", "high", "normal", "high", "high"]
    for number, priority in enumerate(priorities):
        queue.add(locks[number % 2], priority=priority)
    rival.release()
    queue.results()
    assert queue.order == [1, 3, 4, 0, 2]


def test_normal_never_starves(face: Face, server: AnyServer, queue: Queue, rival: Rival) -> None:
    """However many orders come, a waiting query is overtaken ten times in a row at most."""
    rival.take()
    lock = face.lock(face.client(server))
    queue.add(lock, "first query")
    queue.add(lock, "second query")
    for number in range(25):
        queue.add(lock, number, priority="high")
    rival.release()
    queue.results()
    assert queue.order.index("first query") == 10
    assert queue.order.index("second query") == 21
    assert [name for name in queue.order if isinstance(name, int)] == list(range(25))


@ON_VALKEY
def test_fair_within_a_process(face: Face, server: AnyServer, view: View) -> None:
    """Callers that come back for more have the lock in turn, also those of different processes."""
    locks = [face.lock(face.client(server)) for _ in range(2)]
    alone = OneAtATime()

    def work(number: int) -> None:
        for turn in range(25):
            with locks[number % 2].hold(20), alone.inside(number):
                if turn < 24:
                    view.until_waiting(3)

    face.together(work, 4)
    assert sorted(alone.order[:4]) == [0, 1, 2, 3]
    assert alone.order == alone.order[:4] * 25
    view.assert_nothing_left()


# Leaving the queue.


@pytest.mark.usefixtures("rare_heartbeats")
def test_a_timeout_leaves_nothing(face: Face, server: AnyServer, queue: Queue, rival: Rival, view: View) -> None:
    """A waiter that gives up is out of the queue at once, and those behind it lose no time."""
    rival.take()
    lock = face.lock(face.client(server))
    first = queue.add(lock)
    impatient = queue.add(lock, timeout=0.2)
    last = queue.add(face.lock(face.client(server)))
    with fails(HoldTimeout):
        impatient.result()
    assert view.waiting == 2
    rival.release()
    first.result()
    last.result()
    assert queue.order == [0, 2]
    view.assert_nothing_left()


def test_the_last_timeout_leaves_no_queue(
    face: Face, server: AnyServer, queue: Queue, rival: Rival, view: View
) -> None:
    """When the only waiter gives up, Redis holds no queue."""
    rival.take()
    with fails(HoldTimeout):
        queue.add(face.lock(face.client(server)), timeout=0.1).result()
    assert view.client.keys("*") == [KEYS.state.encode()]
    rival.release()
    view.assert_nothing_left()


def test_a_release_at_the_timeout(face: Face, server: AnyServer, rival: Rival, view: View) -> None:
    """When the offer comes just as the waiter gives up, it has the lock or leaves it; it never stays taken."""
    lock = face.lock(face.client(server))
    for number in range(12):
        rival.take(number=number)
        places = view.places
        waiter = face.start(lambda: lock.acquire(blocking_timeout=0.06) and (True, lock.release())[0])
        view.until_places(places + 1)
        time.sleep(0.045 + number * 0.002)
        rival.release(number)
        assert waiter.result() in (True, False)
        view.until_free()
    view.assert_nothing_left()


@pytest.fixture
def tasks_only(face: Face) -> None:
    """Leave out threads, which can't be cancelled."""
    if face.name == "threads":
        pytest.skip("a thread has no cancellation; Ctrl-C is in test_processes")


@pytest.mark.usefixtures("tasks_only", "rare_heartbeats")
def test_cancelled_while_it_waits(face: Face, server: AnyServer, queue: Queue, rival: Rival, view: View) -> None:
    """A cancelled task is out of the queue at once, and its place costs nobody anything."""
    rival.take()
    lock = face.lock(face.client(server))
    cancelled, other = queue.add(lock), queue.add(lock)
    cancelled.cancel()
    with pytest.raises(Interrupted):
        cancelled.result()
    view.until_waiting(1)
    rival.release()
    other.result()
    view.assert_nothing_left()


@pytest.mark.usefixtures("tasks_only")
@pytest.mark.parametrize("after", range(0, 20, 2), ids=lambda ms: f"{ms} ms")
def test_cancelled_at_any_point(face: Face, valkey: Server, proxy: MakeProxy, after: int) -> None:
    """Wherever a task is in getting the lock, cancelling it leaves nothing behind and hands over at once.

    Given a network so slow that each step takes 3 ms, and a lock that becomes free 8 ms after it was asked for,
    if the task is cancelled that many ms after it asked,
    then somebody else can have the lock.
    """
    way = proxy(valkey)
    lock = face.lock(face.client_at(way.url))
    with lock:
        pass
    way.delay(0.003)
    view = View(valkey.client())
    rival = Rival(view.client)
    rival.take()
    hold = lock.hold()
    caller = face.start(hold.__enter__)
    threading.Timer(0.008, rival.release).start()
    time.sleep(after / 1000)
    caller.cancel()
    try:
        caller.result()
    except Interrupted:
        eventually(lambda: view.state.holder == "" and view.waiting == 0)
        assert isinstance(rival.ask(2, ticket=None), commands.Granted)
    else:
        assert view.state.leased, "it was cancelled too late"


# What waiting costs.


@pytest.mark.long
@pytest.mark.parametrize("callers", [1, 30])
def test_waiting_does_not_poll(face: Face, valkey: Server, proxy: MakeProxy, callers: int) -> None:
    """However many callers wait, their process says one command a second and key, and has two connections."""
    way = proxy(valkey)
    client = face.client_at(way.url, client_name=f"waiting-{face.name}")
    keys = {api_key: Keyspace.of("kraken-nonce", api_key) for api_key in (KEY, "another key")}
    admin, watch = valkey.client(decode_responses=True), Stopwatch()
    rivals = [Rival(admin, one) for one in keys.values()]
    started = []
    for rival, (api_key, one) in zip(rivals, keys.items(), strict=True):
        rival.take(ttl=60)
        lock = face.lock(client, api_key)
        started += [face.start(lambda lock=lock: (lock.acquire(), lock.release())) for _ in range(callers)]
        View(admin, one).until_waiting(callers)
    time.sleep(3)
    mine = [c for c in admin.client_list() + admin.client_list(_type="pubsub") if c["name"] == f"waiting-{face.name}"]
    assert len({c["id"] for c in mine}) <= 2
    run, seconds = list(way.log), watch()
    for one in keys.values():
        # Each asks, perhaps once more when its process listens, and the first use of a script sends its source.
        scripts = sum(one.state.encode() in command.arguments for command in run)
        assert scripts <= 2 * callers + 1 + seconds + 1
    assert sum(not command.counted for command in run) < 20, "what sets up two connections"
    for rival in rivals:
        rival.release()
    for caller in started:
        caller.result()


@pytest.mark.parametrize("callers", [2, 10])
def test_a_turn_is_three_commands(face: Face, valkey: Server, proxy: MakeProxy, callers: int) -> None:
    """Under contention a caller asks, takes the lock when it is offered, and gives it back; no more than that."""
    way = proxy(valkey)
    lock = face.lock(face.client_at(way.url))
    rival, view = Rival(valkey.client()), View(valkey.client())

    def turn() -> None:
        with lock.hold():
            pass

    for _ in range(2):
        lock.locked()  # which comes after the releases
        rival.take()
        before, watch = way.commands, Stopwatch()
        started = [face.start(turn) for _ in range(callers)]
        view.until_waiting(callers)
        rival.release()
        for caller in started:
            caller.result()
        rival = Rival(valkey.client())
    # The second time everything is warm; heartbeats may fall into it.
    assert way.commands - before <= 3 * callers + 1 + watch()


def test_a_thousand_callers(face: Face, valkey: Server) -> None:
    """1,000 threads or tasks of one process wait over two connections, without a storm, and all get their turn."""
    number = by_tier(250, 1000, 1000)
    name = f"thousand-{face.name}"
    lock = face.lock(face.client(valkey, client_name=name))
    admin = valkey.client(decode_responses=True)
    rival, view, alone = Rival(admin), View(admin), OneAtATime()
    rival.take(ttl=60)

    def turn() -> None:
        with lock.hold(60), alone.inside(None):
            pass

    callers = [face.start(turn) for _ in range(number)]
    eventually(lambda: view.waiting == number, 60)
    connections = {c["id"] for c in admin.client_list() if c["name"] == name}
    assert len(connections) <= 2
    rival.release()
    for caller in callers:
        caller.result(60)
    assert len(alone.order) == number
    view.assert_nothing_left()


# Those who do not answer.


@pytest.mark.long
@ON_VALKEY
@pytest.mark.parametrize("places", [1, 5])
def test_a_dead_waiter_costs_an_offer(face: Face, server: AnyServer, queue: Queue, rival: Rival, places: int) -> None:
    """A process that dies while its callers wait costs the others an offer, however many callers it had."""
    dead = Rival(queue._view.client)
    rival.take()
    for number in range(places):
        dead.queue_up(number)
    queue.add(face.lock(face.client(server)))
    rival.release()
    queue.results()
    queue._view.assert_nothing_left()


@pytest.mark.long
@ON_VALKEY
def test_a_stopped_waiter_comes_back_to_its_place(face: Face, server: AnyServer, rival: Rival, view: View) -> None:
    """A process that let its call pass and then goes on is first again, before those who came after it."""
    stopped, third = Rival(view.client), Rival(view.client)
    rival.take()
    ticket = stopped.queue_up()
    lock = face.lock(face.client(server))
    second = face.start(lambda: lock.acquire() and lock.extend(60, replace_ttl=True))
    view.until_waiting(2)
    rival.release()
    assert second.result()
    third.queue_up()
    assert stopped.live().joined == "-", "it hears that its place is gone"
    assert isinstance(stopped.ask(ticket=ticket), commands.Waiting)
    view.unlock()
    assert view.state.holder == stopped.member()


@ON_VALKEY
def test_a_queue_of_the_dead_is_forgotten(server: AnyServer, rival: Rival, view: View) -> None:
    """When nobody who waits is alive, Redis drops the queue by itself, and the next caller gets the lock."""
    rival.take(ttl=1)
    for number in range(2):
        Rival(view.client).queue_up(number)
    assert 0 < view.client.pttl(KEYS.queue) <= 10_000
    view.client.pexpire(KEYS.queue, 1)
    eventually(lambda: not view.client.exists(KEYS.queue))
    eventually(lambda: isinstance(rival.ask(2, ticket=None), commands.Granted))


@pytest.mark.usefixtures("rare_heartbeats")
def test_waiters_of_many_keys(face: Face, valkey: Server) -> None:
    """One process can wait for many API keys at once; each is handed over by itself, over the same two connections."""
    admin = valkey.client(decode_responses=True)
    client = face.client(valkey, client_name=f"keys-{face.name}")
    spaces = {f"key {n}": Keyspace.of("kraken-nonce", f"key {n}") for n in range(20)}
    with ExitStack() as stack:
        callers: dict[str, Caller[object]] = {}
        for api_key, keys in spaces.items():
            rival = Rival(admin, keys)
            rival.take()
            stack.callback(rival.release)
            lock = face.lock(client, api_key)
            callers[api_key] = face.start(lambda lock=lock: (lock.acquire(), lock.release()))
            View(admin, keys).until_waiting(1)
        assert len({c["id"] for c in admin.client_list() if c["name"] == f"keys-{face.name}"}) <= 2
        assert not any(caller.done for caller in callers.values())
    for caller in callers.values():
        caller.result()


@pytest.mark.once
def test_a_call_before_another_caller_began_to_listen() -> None:
    """Whoever had asked before its process listened asks again, though another caller has begun to listen meanwhile."""
    process_state = ProcessState(Agenda(lambda: None))
    flow = acquiring(process_state, KEYS, process_state.new_member(), Wishes(), ttl=30.0)
    assert isinstance(next(flow), Run)
    process_state.listening = True
    waiting = commands.Waiting(1, "1", left=30.0, cool_down=0.0, heard=False, reason="")
    assert isinstance(flow.send(waiting), Run)
    assert isinstance(flow.send(waiting), Pause)
    flow.close()
