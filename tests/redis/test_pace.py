"""Calls start no more often than the pace allows, over processes, and whoever may go first does.

The tests with many processes print their figures (pytest -s); `make soak` measures as long as the figures in the
documentation were measured.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import CoolDown, HoldTimeout, InvalidArgument, Pace
from kraken_nonce_redis._core.waiters import LONGEST_WAY, OFFER
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.pace import CoolDowns, Tier, priority_of
from kraken_nonce_redis.testing import Fault
from tests.support.faces import KEY
from tests.support.helpers import KEYS, SECOND, Rival, Stopwatch, View, eventually, fails, run
from tests.support.pace_workers import Worker, all_at_once
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis import CallLock
    from kraken_nonce_redis._arguments import Priority
    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.conftest import MakeProxy
    from tests.support.faces import Caller, Face
    from tests.support.servers import AnyServer, Server

LATENCY = (0.002, 0.012)
THREE = Pace(startup_rate=0, tier=Tier(4, 1.0))
"""Three calls at once, and then one a second."""
PATIENT = Pace(startup_rate=0, tier=Tier(4, 0.01))
"""Three calls at once, and then one in 100 s."""

pytestmark = pytest.mark.simulator(latency=LATENCY)


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Show a figure."""
    with capsys.disabled():
        print(f"\n  {text}", end="")


class Fleet:
    """Processes that make calls to the simulator."""

    def __init__(self, server: Server, sim: KrakenSimulator) -> None:
        self.server = server
        self.sim = sim
        self._workers: list[Worker] = []

    def add(self, number: int, pace: Pace, **what: Any) -> None:
        """Add processes that make calls in a loop."""
        common = {
            "redis": self.server.url,
            "simulator": self.sim.url,
            "key": self.sim.key,
            "secret": self.sim.secret,
            "pace": pace,
            "calls": 10**9,
            "seconds": 10**9,
            "methods": ["Balance"],
            "rest": (0, 0),
            "data": {},
        }
        self._workers += [Worker("calls", number=len(self._workers) + n, **(common | what)) for n in range(number)]

    def run(self) -> list[dict[str, Any]]:
        """Let all begin at once; return what each has to say, none of which is a refusal."""
        said = all_at_once(self._workers)
        assert not any(worker["errors"] for worker in said)
        assert not any(request.error for request in self.sim.requests())
        assert all(request.in_flight == 1 for request in self.sim.requests())
        return said

    def clear(self) -> None:
        """End the processes, and forget what they did."""
        while self._workers:
            self._workers.pop().close()
        self.server.client().flushall()
        self.sim.reset()


@pytest.fixture
def fleet(valkey: Server, sim: KrakenSimulator) -> Iterator[Fleet]:
    """Give processes on Valkey, ended with the test."""
    fleet = Fleet(valkey, sim)
    yield fleet
    fleet.clear()


def arrivals(sim: KrakenSimulator) -> list[float]:
    """Return when requests came, in seconds from the first."""
    times = [request.received for request in sim.requests()]
    return [at - times[0] for at in times]


def grants(sim: KrakenSimulator) -> list[float]:
    """Return when calls had the lock, by the server's clock, in seconds from the first: its time is in the nonce.

    Unlike arrivals, these do not depend on how late a busy machine lets a process send.
    """
    nonces = [request.nonce or 0 for request in sim.requests()]
    return [(nonce - nonces[0]) / SECOND for nonce in nonces]


def shortest_gap(times: list[float]) -> float:
    """Return the least time between two."""
    return min(late - early for early, late in pairwise(times))


def most_in_a_second(times: list[float]) -> int:
    """Return the most starts in any one second."""
    return max(sum(start <= other < start + 1 for other in times) for start in times)


# Many processes.


@pytest.mark.test_all
@pytest.mark.once
def test_a_deploy_of_ten(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten processes that start at once make at most 20 calls in any second of the first ten, all together."""
    fleet.add(10, Pace(startup_rate=0), seconds=2)
    fleet.run()
    burst = most_in_a_second(arrivals(fleet.sim))
    fleet.clear()
    fleet.add(10, Pace(), seconds=by_tier(2, 3, 10))
    fleet.run()
    paced = [at for at in grants(fleet.sim) if at < 10]
    say(
        capsys,
        f"most starts in a second, ten processes: {most_in_a_second(paced)} with startup protection "
        f"({len(paced)} in {paced[-1]:.1f} s), {burst} without",
    )
    assert most_in_a_second(paced) <= 20


@pytest.mark.test_all
@pytest.mark.once
def test_minimum_interval_over_processes(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight processes keep 0.2 s between any two calls."""
    fleet.add(8, Pace(min_interval=0.2, startup_rate=0), calls=by_tier(2, 4, 13))
    fleet.run()
    times = grants(fleet.sim)
    ratio = times[-1] / (0.2 * (len(times) - 1))
    say(capsys, f"0.2 s between calls: shortest gap {shortest_gap(times):.6f} s, total time {ratio:.4f} of the ideal")
    assert shortest_gap(times) >= 0.2 - 1e-6


@pytest.mark.test_all
@pytest.mark.once
def test_pro_tier_over_processes(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Busy processes use up the counter and are never refused, and orders go between their calls."""
    processes, seconds = by_tier((3, 4), (8, 10), (8, 60))
    pace = Pace(tier="pro")
    costs = {"Balance": 1, "TradesHistory": 2, "AddOrder": 0}

    fleet.sim.configure(tier="pro")
    fleet.add(processes, pace, methods=["Balance", "TradesHistory"], seconds=seconds)
    order = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "30000", "volume": "0.0001"}
    fleet.add(1, pace, methods=["AddOrder"], data=order, rest=(0.1, 0.6), seconds=seconds)
    *queries, orders = fleet.run()
    requests = [request for request in fleet.sim.requests() if request.method != "AddOrder"]
    elapsed = requests[-1].received - requests[0].received
    share = sum(costs[request.method] for request in requests) / (20 + elapsed)
    waits = [sent - asked for _, asked, sent, _ in orders["calls"]]
    flights = [done - sent for worker in queries for _, _, sent, done in worker["calls"]]
    say(
        capsys,
        f"pro tier, {seconds} s: {share:.1%} of what the counter allows, none refused; longest wait of {len(waits)} "
        f"orders {max(waits) * 1000:.1f} ms, longest call in flight {max(flights) * 1000:.1f} ms",
    )
    assert waits


# Processes that die.


def held(lock: CallLock, cost: float = 0, priority: Priority = "normal", timeout: float | None = 20) -> int:
    """Hold a lock for a moment; return its nonce, in which is when that was by the server's clock."""
    with lock.hold(timeout, cost, priority) as lease:
        return lease.nonce


def wait_since(view: View, nonce: int, cost: float) -> float:
    """Return how long after a grant a call under `THREE` would have had to wait, and don't make it."""
    pace = THREE.settings(cost, startup_protection=True)
    answer = run(view.client, commands.acquire(KEYS, "probe:1", 30, ticket=None, priority="normal", pace=pace))
    passed = (view.state.now - nonce) / SECOND
    if isinstance(answer, commands.Granted):
        run(view.client, commands.release(KEYS, "probe:1", answer.nonces[0]))
        return passed
    assert isinstance(answer, commands.Busy), answer
    assert answer.cause == "counter"
    return answer.left + passed


def dying(server: Server, *, cost: float, ttl: float) -> Worker:
    """Start a process that gets the lock under `THREE` and keeps it until it is killed."""
    return Worker("holds", redis=server.url, key=KEY, ttl=ttl, cost=cost, pace=THREE)


@pytest.mark.long
@pytest.mark.once
def test_kill_of_a_process_that_waits_for_tokens(face: Face, valkey: Server) -> None:
    """A process killed while it is first in line takes no tokens with it, and the next one comes a moment later."""
    lock, view = face.lock(face.client(valkey), pace=THREE), View(valkey.client())
    with dying(valkey, cost=2, ttl=30) as dead:
        assert dead.hear() == "ready"
        first = held(lock, 3)
        view.until_free()
        dead.begin()
        eventually(lambda: view.state.holder)
        next_one = face.start(held, lock, 2)
        view.until_waiting(1)
        dead.kill()
        nonce = next_one.result()
    assert nonce - first >= 2 * SECOND
    # Had the dead one taken its two, it would be three.
    assert wait_since(view, nonce, 3) < 2.75


@pytest.mark.long
@pytest.mark.once
def test_kill_of_a_holder(face: Face, valkey: Server) -> None:
    """A process killed while it holds the lock costs the others its lease and its own call's tokens, no more."""
    lock, view = face.lock(face.client(valkey), pace=THREE), View(valkey.client())
    with dying(valkey, cost=1, ttl=2) as dead:
        assert dead.hear() == "ready"
        dead.begin()
        dead_nonce = dead.hear()
        next_one = face.start(held, lock, 2)
        view.until_waiting(1)
        dead.kill()
        nonce = next_one.result()
    assert nonce - dead_nonce >= 2 * SECOND
    # The dead one's token has come back during its lease.
    assert wait_since(view, nonce, 3) < 2.25


# One round trip, no polling.


def test_no_extra_round_trip(face: Face, valkey: Server, proxy: MakeProxy) -> None:
    """With every rule of the pace on, a call that need not wait is still one command, and its release another."""
    way = proxy(valkey)
    pace = Pace(min_interval=0.001, tier="pro")
    lock = face.lock(face.client_at(way.url), pace=pace)
    held(lock)
    for cost in (1, 2, 0):
        time.sleep(0.002)
        assert not lock.locked()  # which comes after the release
        before = way.commands
        with lock.hold(cost=cost):
            assert way.commands - before == 1
        assert not lock.locked()
        assert way.commands - before == 3


@pytest.mark.long
def test_nobody_polls(face: Face, valkey: Server, proxy: MakeProxy) -> None:
    """A process whose call waits for the counter sends nothing, and one command a second if others wait behind it."""
    way = proxy(valkey)
    lock, view = face.lock(face.client_at(way.url), pace=THREE), View(valkey.client())
    held(lock, 3)
    assert not lock.locked()  # which comes after the release
    before = way.commands
    held(lock, 3)  # 3 s later
    assert not lock.locked()
    assert way.commands - before <= 5
    before, watch = way.commands, Stopwatch()
    first = face.start(held, lock, 3)
    eventually(lambda: view.state.holder)
    others = [face.start(held, lock) for _ in range(20)]
    for caller in (first, *others):
        caller.result()
    # For each its question, perhaps another one since it listens, its turn and its release; and the heartbeats.
    assert way.commands - before <= 4 * 21 + 1 + watch()


def test_waiting_is_exact(face: Face, valkey: Server) -> None:
    """Who waits for the pace comes no sooner than it says, by the server's clock."""
    lock = face.lock(face.client(valkey), pace=Pace(min_interval=0.3, startup_rate=0))
    nonces = [held(lock) for _ in range(4)]
    assert all(late - early >= 0.3 * SECOND - 1000 for early, late in pairwise(nonces))


def test_a_wait_that_is_too_long(face: Face, server: AnyServer, view: View) -> None:
    """A caller whose timeout ends before the pace lets it go is told when it ends, and what it waited for."""
    lock = face.lock(face.client(server), pace=THREE)
    held(lock, 3)
    for timeout in (0, 0.2):
        watch = Stopwatch()
        with fails(HoldTimeout, "counter"), lock.hold(timeout, 1):
            pass
        assert watch() >= timeout
    view.until_free()
    assert view.waiting == 0
    held(lock, 0)


# Startup protection.


def test_startup_protection_by_call(face: Face, server: AnyServer) -> None:
    """A call can opt out of startup protection, and the window can be opened anew by hand."""
    lock = face.lock(face.client(server), pace=Pace(startup_rate=3))
    for _ in range(3):
        held(lock)
    with fails(HoldTimeout, "startup"), lock.hold(0):
        pass
    with lock.hold(0, startup_protection=False):
        pass
    lock.reset_startup()
    for _ in range(3):
        with lock.hold(0):
            pass
    with fails(HoldTimeout, "startup"), lock.hold(0):
        pass


def test_startup_protection_can_be_off(face: Face, server: AnyServer) -> None:
    """With a rate of 0 calls start as often as the lock is free."""
    lock = face.lock(face.client(server), pace=Pace(startup_rate=0))
    for _ in range(50):
        with lock.hold(0):
            pass


# Who goes first.


@pytest.mark.long
def test_an_order_overtakes(face: Face, valkey: Server) -> None:
    """Orders go first while queries wait for the counter, and cost these nothing."""
    lock, view = face.lock(face.client(valkey), pace=THREE), View(valkey.client())
    first = held(lock, 3)
    view.until_free()
    queries = [face.start(held, lock, 3)]
    eventually(lambda: view.state.holder)
    queries.append(face.start(held, lock, 1))
    view.until_waiting(1)
    orders = [held(lock, 0, "high") for _ in range(3)]
    nonces = sorted(query.result() for query in queries)
    assert max(orders) < nonces[0]
    assert nonces[0] - first >= 3 * SECOND - 1000
    assert nonces[1] - nonces[0] >= SECOND - 1000


def test_orders_do_not_starve_a_query(face: Face, valkey: Server) -> None:
    """While orders come without end, a query has to let ten of them go before it, and then has its turn."""
    lock, view = face.lock(face.client(valkey), pace=Pace(min_interval=0.03, startup_rate=0)), View(valkey.client())
    order: list[str] = []

    def loop() -> None:
        while "query" not in order:
            with lock.hold(20, priority="high"):
                order.append("order")

    def ask() -> int:
        with lock.hold(20):
            order.append("query")
        return order.index("query")

    def queued() -> bool:
        waiters = run(view.client, commands.inspect(KEYS, "waiters")).waiters
        return "query" in order or any(waiter.priority == "normal" for waiter in waiters)

    placing = [face.start(loop) for _ in range(2)]
    eventually(lambda: len(order) > 3)
    asking = face.start(ask)
    eventually(queued)
    before = len(order)
    assert asking.result() - before <= 11
    for caller in placing:
        caller.result()
    view.until_free()


def booked_behind_an_order(view: View, rival: Rival) -> tuple[Rival, int]:
    """Let a query be booked for in five minutes, and an order wait that came after the lock was offered to the query.

    Return the order's process and ticket. It has just been told that it may go before the query.
    """
    first, pace = Rival(view.client), PATIENT.settings(3, startup_protection=True)
    assert isinstance(first.ask(pace=pace), commands.Granted)
    rival.queue_up()
    first.release()
    ticket = first.queue_up(2, "high")
    assert isinstance(rival.ask(ticket=1, pace=pace), commands.Booked)
    return first, ticket


@pytest.mark.matrix
def test_a_newcomer_does_not_go_before_an_order(server: AnyServer, view: View, rival: Rival) -> None:
    """Of orders that go before a booked query the first to come goes first, though a later one asks before it does."""
    del server
    first, ticket = booked_behind_an_order(view, rival)
    later, pace = Rival(view.client), PATIENT.settings(0, startup_protection=True)
    assert first.live(2).offered == first.member(2), "a lost message is made up for"
    assert isinstance(later.ask(priority="high", ticket=None, pace=pace), commands.Busy)
    waiting = later.ask(priority="high", pace=pace)
    assert isinstance(waiting, commands.Waiting)
    assert waiting.left <= OFFER + LONGEST_WAY, "after which the first one's chance is over"
    assert later.live().offered == "-"
    assert isinstance(first.ask(2, ticket=ticket, priority="high", pace=pace), commands.Granted)
    first.release(2)
    assert isinstance(later.ask(ticket=waiting.ticket, priority="high", pace=pace), commands.Granted)


@pytest.mark.matrix
def test_an_order_that_may_not_go_first_holds_up_no_other(server: AnyServer, view: View, rival: Rival) -> None:
    """After ten that cost a query time, one more has to wait for it; those that cost it nothing still go first."""
    del server
    first, ticket = booked_behind_an_order(view, rival)
    view.client.hset(KEYS.state, "overtaken", 10)
    costly, free = (PATIENT.settings(cost, startup_protection=True) for cost in (1, 0))
    refused = [(first, 2, ticket), (Rival(view.client), 1, 0)]
    for process, number, place in refused:
        answer = process.ask(number, ticket=place, priority="high", pace=costly)
        assert isinstance(answer, commands.Waiting)
        assert answer.left > OFFER + LONGEST_WAY, "nobody is asked next"
        assert process.live(number).offered == "-"
    for _ in range(2):
        order = Rival(view.client)
        answer = order.ask(priority="high", pace=free)
        assert isinstance(answer, commands.Granted)
        order.release()
        assert view.state.holder == rival.member(), "it is the query's turn"
        assert isinstance(rival.ask(ticket=1, pace=PATIENT.settings(3, startup_protection=True)), commands.Booked)
        for process, number, place in refused:
            answer = process.ask(number, ticket=place or ticket + 1, priority="high", pace=costly)
            assert isinstance(answer, commands.Waiting)


# Cool-downs.


def test_a_cool_down_reaches_every_waiter(face: Face, valkey: Server) -> None:
    """Those who would not wait so long hear of it at once, with the time and the reason; also who is first in line."""
    lock, other = (face.lock(face.client(valkey), pace=THREE) for _ in range(2))
    view = View(valkey.client())
    held(lock, 3)
    view.until_free()
    first = face.start(held, lock, 3, "normal", 30)
    eventually(lambda: view.state.holder)
    impatient = [face.start(held, lock, 0, "normal", 30) for lock in (lock, other) for _ in range(3)]
    view.until_waiting(6)
    assert other.cool_down(100, "EGeneral:Temporary lockout") == 100
    for caller in (first, *impatient):
        with fails(CoolDown, "EGeneral:Temporary lockout") as caught:
            caller.result()
        assert 30 < caught.value.seconds <= 100
        assert caught.value.reason == "EGeneral:Temporary lockout"
    view.until_free()
    state = view.state
    assert state.waiting == 0
    assert state.reason == "EGeneral:Temporary lockout"


def test_their_turn_after_a_cool_down(face: Face, valkey: Server) -> None:
    """Those who wait longer than the cool-down have their turns after it, in order, and nobody before."""
    lock, view = face.lock(face.client(valkey)), View(valkey.client())
    order: list[int] = []

    def turn(number: int) -> int:
        with lock.hold(30) as lease:
            order.append(number)
            return lease.nonce

    with lock.hold():
        callers: list[Caller[int]] = []
        for number in range(4):
            callers.append(face.start(turn, number))
            view.until_waiting(number + 1)
        now = view.state.now
        face.start(lock.cool_down, 1, "EAPI:Rate limit exceeded").result()
        time.sleep(0.1)
    nonces = [caller.result() for caller in callers]
    assert order == [0, 1, 2, 3]
    assert min(nonces) >= now + SECOND


def test_a_cool_down_ended_by_hand(face: Face, valkey: Server) -> None:
    """Ending a cool-down by hand wakes those who wait for its end."""
    lock, view = face.lock(face.client(valkey)), View(valkey.client())
    lock.cool_down(600, "EGeneral:Temporary lockout")
    callers = [face.start(held, lock, 0, "normal", None) for _ in range(3)]
    view.until_waiting(2)
    assert lock.cool_down(0, "") == 0
    for caller in callers:
        caller.result()
    assert view.state.cool_down == 0


@pytest.mark.matrix
@pytest.mark.parametrize("priority", ["normal", "high"])
def test_a_booking_ends_with_its_cool_down(server: AnyServer, view: View, rival: Rival, priority: Priority) -> None:
    """A cool-down that is ended by hand leaves the one that was first in line the time of an offer to come."""
    del server
    run(view.client, commands.cool_down(KEYS, 900, "EGeneral:Temporary lockout"))
    assert isinstance(rival.ask(priority=priority), commands.Booked)
    run(view.client, commands.cool_down(KEYS, 0, ""))
    assert view.state.left <= OFFER + LONGEST_WAY
    busy = Rival(view.client).ask(ticket=None)
    assert isinstance(busy, commands.Busy)
    assert busy.left <= OFFER + LONGEST_WAY


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_coming_during_a_cool_down(face: Face, server: AnyServer, view: View, timeout: float) -> None:
    """Who comes during a cool-down and won't wait for its end hears so, however short its timeout."""
    client = face.client(server)
    lock = face.lock(client)
    lock.cool_down(60, "EService: Throttled: 1790000000")
    for _ in range(2):
        with fails(CoolDown, "Throttled: 1790000000", "no calls on"), lock.hold(timeout):
            pass
        if not view.state.holder:
            face.start(held, lock, 0, "normal", None)
            eventually(lambda: view.state.holder)
    lock.cool_down(0, "")
    view.until_free()


def test_a_cool_down_stops_orders_too(face: Face, server: AnyServer) -> None:
    """Nothing goes during a cool-down, whatever its priority and with whatever pace."""
    client = face.client(server)
    face.lock(client).cool_down(60, "EGeneral:Temporary lockout")
    for lock in (face.lock(client), face.lock(client, pace=THREE)):
        with fails(CoolDown), lock.hold(0, priority="high"):
            pass
    with face.lock(client, "another key").hold(0):
        pass


# What Kraken says.

LIMITS = [
    "EAPI:Rate limit exceeded",
    "EGeneral:Too many requests",
    "EAuth:Too many requests",
    "EAuth:Rate limit exceeded",
    "EOrder:Domain rate limit exceeded",
]


@pytest.fixture
def api(valkey: Server, sim: KrakenSimulator) -> Iterator[API]:
    """Yield a krakenex client under the lock."""
    api = API(sim.key, sim.secret, redis=valkey.url, wait_timeout=0)
    api.uri = sim.url
    yield api
    api.close()


@pytest.mark.once
def test_a_full_counter_stops_everybody(api: API, sim: KrakenSimulator) -> None:
    """The process that is told so stops the others for 15 s, orders too, and nothing more is sent."""
    sim.configure(counter=(1, 1))
    assert api.query_private("Balance")["error"] == []
    assert api.query_private("Balance")["error"] == ["EAPI:Rate limit exceeded"]
    for method in ("Balance", "AddOrder"):
        with pytest.raises(CoolDown, match="EAPI:Rate limit exceeded") as caught:
            api.query_private(method)
        assert 14 < caught.value.seconds <= 15
    assert len(sim.requests()) == 2


@pytest.mark.once
@pytest.mark.parametrize("error", LIMITS)
def test_every_limit_stops_everybody(api: API, sim: KrakenSimulator, error: str) -> None:
    """Whichever of its limits Kraken names, the others hear of it and stay away."""
    sim.configure(faults=[Fault(error, before="acting", calls=[1])])
    assert api.query_private("Balance")["error"] == [error]
    for method in ("Balance", "AddOrder"):
        with pytest.raises(CoolDown, match=error):
            api.query_private(method)
    assert len(sim.requests()) == 1


@pytest.mark.once
@pytest.mark.parametrize("error", ["EOrder:Rate limit exceeded", "EBM:limit exceeded:CAL"])
def test_the_limits_of_one_order_stop_nobody(api: API, sim: KrakenSimulator, error: str) -> None:
    """A limit on one pair, or on what an account may buy, is no reason to hold back other calls."""
    sim.configure(faults=[Fault(error, before="acting", calls=[1])])
    assert api.query_private("AddOrder", {"pair": "XBTUSD"})["error"] == [error]
    assert api.query_private("Balance")["error"] == []
    assert len(sim.requests()) == 2


@pytest.mark.once
def test_throttled_until_its_time(api: API, sim: KrakenSimulator) -> None:
    """After "Throttled" with a time, calls start again at that time and not before."""
    sim.configure(most_per_second=1, throttle_seconds=1.5)
    asked = time.time()
    errors = [error for _ in range(2) for error in api.query_private("Balance")["error"]]
    (error,) = errors
    until = int(error.removeprefix("EService: Throttled: "))
    with pytest.raises(CoolDown) as caught:
        api.query_private("Balance")
    assert until - time.time() - 0.01 <= caught.value.seconds <= until - asked + 0.01
    assert caught.value.reason == error
    api._guard._calls._wait_timeout = 10
    assert api.query_private("Balance")["error"] == []
    assert time.time() >= until
    assert len(sim.requests()) == 3


@pytest.mark.once
@pytest.mark.parametrize(("ahead", "seconds"), [(300, 300), (7200, 900)])
def test_throttled_by_the_servers_clock(
    api: API, sim: KrakenSimulator, monkeypatch: pytest.MonkeyPatch, ahead: int, seconds: float
) -> None:
    """On a machine whose clock is two hours slow, a pause is as long as elsewhere; 15 minutes at most."""
    right = time.time
    until = int(right()) + ahead
    sim.configure(faults=[Fault(f"EService: Throttled: {until}", before="acting", calls=[1])])
    monkeypatch.setattr(time, "time", lambda: right() - 7200)
    assert api.query_private("Balance")["error"] == [f"EService: Throttled: {until}"]
    with pytest.raises(CoolDown) as caught:
        api.query_private("Balance")
    assert seconds - 120 < caught.value.seconds <= seconds  # less what the machine stood still


@pytest.mark.once
def test_a_lockout_stops_everybody_for_a_quarter_of_an_hour(api: API, sim: KrakenSimulator) -> None:
    """After a lockout nobody calls for 15 minutes, until somebody ends that by hand."""
    sim.configure(lockout_after=1, lockout_seconds=0.3)
    good, api.secret = api.secret, "YQ=="
    assert api.query_private("Balance")["error"] == ["EAPI:Invalid signature"]
    api.secret = good
    assert api.query_private("Balance")["error"] == ["EGeneral:Temporary lockout"]
    with pytest.raises(CoolDown, match="EGeneral:Temporary lockout") as caught:
        api.query_private("Balance")
    assert 899 < caught.value.seconds <= 900
    time.sleep(0.3)
    api._guard.lock(sim.key).cool_down(0, "")
    assert api.query_private("Balance")["error"] == []
    assert len(sim.requests()) == 3


NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([], (0, "")),
        (["EAPI:Invalid nonce", "EOrder:Rate limit exceeded", "EService:Busy"], (0, "")),
        (["EBM:limit exceeded:CAL"], (0, "")),
        *(([error], (15, error)) for error in LIMITS),
        (["EService:Throttled"], (5, "EService:Throttled")),
        (["EService: Throttled: 1790000007"], (7, "EService: Throttled: 1790000007")),
        (["EService:Throttled: 1790000007"], (7, "EService:Throttled: 1790000007")),
        (["EService: Throttled: 1789999999"], (0, "")),
        (["EService: Throttled: 99999999999999999999"], (900, "EService: Throttled: 99999999999999999999")),
        (["EAPI:Rate limit exceeded", "EGeneral:Temporary lockout"], (900, "EGeneral:Temporary lockout")),
    ],
)
@pytest.mark.once
def test_what_kraken_says(errors: list[str], expected: tuple[float, str]) -> None:
    """Of all that Kraken answers, what asks for a pause brings one as long as it asks for, the longest of several."""
    assert CoolDowns().after(errors, NOW) == expected


@pytest.mark.once
def test_without_a_clock() -> None:
    """As long as the time is unknown, the setting counts in place of Kraken's time."""
    assert CoolDowns().after(["EService: Throttled: 1790000007"], None) == (5, "EService: Throttled: 1790000007")


@pytest.mark.once
def test_cool_downs_can_be_set() -> None:
    """How long a pause is can be set, down to none."""
    cool_downs = CoolDowns(rate_limit=1, throttled=0, lockout=60)
    assert cool_downs.after(["EAPI:Rate limit exceeded"], NOW) == (1, "EAPI:Rate limit exceeded")
    assert cool_downs.after(["EService:Throttled"], NOW)[0] == 0
    assert cool_downs.after(["EGeneral:Temporary lockout"], NOW)[0] == 60


@pytest.mark.once
def test_pages() -> None:
    """A page says how long the pause is, 15 minutes at most; else the setting does."""
    assert [CoolDowns().after_page(said) for said in (None, 0.0, 7.0, 86_400.0, float("inf"))] == [15, 0, 7, 900, 900]
    assert CoolDowns(rate_limit=1).after_page(None) == 1


# Settings.


@pytest.mark.once
@pytest.mark.parametrize("setting", ["min_interval", "startup_window", "startup_rate", "startup_interval"])
@pytest.mark.parametrize("value", [-1, 10**6, "1", None, float("nan"), True])
def test_numbers_that_make_no_sense(setting: str, value: Any) -> None:
    """A number that makes no sense is refused by its name when the pace is made."""
    with pytest.raises(InvalidArgument) as caught:
        Pace(**{setting: value})
    assert caught.value.parameter == setting


@pytest.mark.once
@pytest.mark.parametrize(
    "tier",
    [
        "gold",
        "PRO",
        "",
        5,
        ["pro"],
        (20, 1),
        Tier(1, 1),
        Tier(20, 0),
        Tier(20, -1),
        Tier(float("nan"), 1),
        Tier("20", 1),
        Tier(20, None),
        Tier(float("inf"), 1),
        Tier(20, 1e-9),
        Pace,
    ],
)
def test_tiers_that_make_no_sense(tier: Any) -> None:
    """A tier that does not exist, or figures that can't be a counter's, are refused by name."""
    with pytest.raises(InvalidArgument) as caught:
        Pace(tier=tier)
    assert caught.value.parameter == "tier"


@pytest.mark.once
@pytest.mark.parametrize("costs", [{"Balance": -1}, {"Balance": "1"}, {"Balance": None}, None, 1, ["Balance"]])
def test_costs_that_make_no_sense(costs: Any) -> None:
    """A cost that is none is refused by the name of its method."""
    with pytest.raises(InvalidArgument) as caught:
        Pace(costs=costs)
    assert caught.value.parameter.startswith("costs")


def test_calls_that_make_no_sense(face: Face, server: AnyServer) -> None:
    """A cost that no counter could ever take is refused at once, instead of waiting for ever; so is a priority."""
    lock = face.lock(face.client(server), pace=THREE)
    for options in ({"cost": 3.1}, {"cost": -1}, {"cost": None}, {"priority": "urgent"}):
        (name,) = options
        with fails(InvalidArgument, name), lock.hold(0, **options):  # type: ignore[arg-type]
            pass
    for seconds in (-1, 86_401, None, "1"):
        with fails(InvalidArgument, "seconds"):
            lock.cool_down(seconds, "reason")  # type: ignore[arg-type]
    with fails(InvalidArgument, "pace"):
        face.lock(face.client(server), pace="pro")


@pytest.mark.once
def test_costs_and_priorities() -> None:
    """Methods cost what Kraken's page says, unknown ones 1; orders and cancels go first, whatever they cost."""
    pace = Pace(costs={"Ledgers": 4, "AddOrder": 1})
    assert [pace.cost_of(method) for method in ("Balance", "TradesHistory", "CancelOrder", "NewMethod")] == [1, 2, 0, 1]
    assert [pace.cost_of(method) for method in ("Ledgers", "AddOrder")] == [4, 1]
    assert [pace.cost_of(method) for method in ("CancelAll", "CancelAllOrdersAfter", "AddStrategy")] == [1, 1, 1]
    assert [priority_of(method) for method in ("AddOrder", "CancelAll", "Balance", "NewMethod")] == [
        "high",
        "high",
        "normal",
        "normal",
    ]
