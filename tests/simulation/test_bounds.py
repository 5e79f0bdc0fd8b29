"""What waiting, failing and leaving may cost: the bounds that docs/guarantees.md promises, in virtual time.

On a real machine such a bound would also measure how busy it is. There the tests look at the order of events; how long
things take in seconds is what the benchmarks measure.
"""

from __future__ import annotations

import bisect
import contextlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import HoldTimeout, Pace, StoreUnavailable
from kraken_nonce_redis._core import waiters
from kraken_nonce_redis._core.waiters import HEARTBEAT, LONGEST_WAY, OFFER
from kraken_nonce_redis.pace import Tier
from kraken_nonce_redis.urls import SOCKET_TIMEOUT
from tests.simulation.callers import Interrupted
from tests.simulation.records import DEAD_WAITER
from tests.simulation.stage import MESSAGE, ROUND_TRIP, Stage, Turn
from tests.support.tiers import by_tier, in_test_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis._arguments import Priority
    from tests.simulation.process import Process

HAND_OVER = 4 * MESSAGE + 1e-5
"""The release, the offer, the question of the waiter whose turn it is, and the answer."""
RETRY = 2 * ROUND_TRIP + ROUND_TRIP
"""A message heard to be lost, a new connection, and the question again."""

pytestmark = pytest.mark.once


def kept(stage: Stage, until: float) -> Turn:
    """Let a process hold the lock until a time, at which it gives it back."""
    return stage.turn(stage.process(), keep=until - 3 * ROUND_TRIP)


def released(turn: Turn) -> float:
    """Return when a turn's holder began to give the lock back."""
    assert turn.released is not None
    return turn.released


# Waiting.


def test_a_hand_over_is_four_messages() -> None:
    """Whoever is next has the lock as soon as messages can be exchanged, not at its next look."""
    stage = Stage()
    turns = [kept(stage, 1.3), *(stage.turn(stage.process(), at=0.1 * n) for n in range(1, 9))]
    stage.run()
    for before, after in pairwise(turns):
        assert after.granted is not None
        assert after.granted - released(before) <= HAND_OVER
    assert stage.queue == {}


@pytest.mark.parametrize("callers", [1, 30])
def test_a_process_that_waits_sends_one_command_a_second(callers: int) -> None:
    """However many of its callers wait, and for as long as they do."""
    stage = Stage(ttl=600)
    kept(stage, 100)
    process = stage.process()
    for _ in range(callers):
        stage.turn(process, at=1)
    stage.run(99)
    sent = [when for when in stage.commands_of(process) if when > 3]
    assert 90 < len(sent) <= 97
    assert min(after - before for before, after in pairwise(sent)) >= HEARTBEAT - 1e-6


@pytest.mark.parametrize(("processes", "seconds"), [(8, 2.0), *in_test_all((32, 6.5))])
def test_everybody_gets_the_same(processes: int, seconds: float) -> None:
    """Processes that want the lock all the time get it equally often, and wait for one turn of each of the others."""
    stage = Stage()
    hold = 0.005
    turns: list[list[Turn]] = [[] for _ in range(processes)]

    async def work(process: Process, mine: list[Turn]) -> None:
        while stage.now < seconds:
            mine.append(Turn(stage.now))
            await stage.hold(process, mine[-1], hold)

    for mine in turns:
        process = stage.process()
        stage.start(process, work(process, mine))
    stage.run()
    counts = [len(mine) for mine in turns]
    assert min(counts) / max(counts) >= 0.95
    ideal = (processes - 1) * (hold + HAND_OVER)
    assert max(turn.waited for mine in turns for turn in mine[1:-1]) <= 1.25 * ideal
    # While one waits, each of the others has the lock once.
    grants = sorted(turn.granted or 0.0 for mine in turns for turn in mine)
    for turn in (turn for mine in turns for turn in mine[1:-1]):
        overtakings = bisect.bisect_left(grants, turn.granted or 0.0) - bisect.bisect_right(grants, turn.asked)
        assert overtakings <= processes - 1


# Those who die, or leave.


@pytest.mark.parametrize("face", ["killed", "stopped"])
def test_a_dead_holder_costs_its_lease(face: str) -> None:
    """The next one has the lock in the moment in which the lease of a holder ends that is killed or stopped."""
    stage = Stage(ttl=5.0)
    process = stage.process()
    dead = stage.turn(process, keep=60)
    waiting = stage.turn(stage.process(), at=1)
    stage.at(2, lambda: gone(process, face))
    stage.run()
    assert dead.granted is not None
    assert waiting.granted is not None
    assert 5 - ROUND_TRIP <= waiting.granted - dead.granted <= 5 + 2 * HAND_OVER


def gone(process: Process, how: str) -> None:
    """Kill a process, stop it for longer than anybody waits, or let it hear of no offer any more without a sign."""
    if how == "killed":
        process.crashed = True
    elif how == "deaf":
        process._network.subscriptions[process.process_state.channel].deaf = True
    else:
        process.stopped_until = 1e6


@pytest.mark.parametrize("how", ["killed", "stopped", "deaf"])
@pytest.mark.parametrize("places", [1, 5])
@pytest.mark.parametrize("moment", [0.5, 0.999, 1.2, 1.4999])
def test_a_dead_waiter_costs_two_seconds(how: str, places: int, moment: float) -> None:
    """However many of its callers waited: those behind it lose 2 s at most, and nothing is left of it."""
    stage = Stage()
    holder = kept(stage, 1.5)
    process = stage.process()
    for n in range(places):
        stage.turn(process, at=0.1 + n / 100)
    behind = stage.turn(stage.process(), at=0.2)

    stage.at(moment, lambda: gone(process, how))
    stage.run(60)
    assert behind.granted is not None
    assert behind.granted - released(holder) <= DEAD_WAITER + ROUND_TRIP
    assert stage.queue == {}


def test_a_timeout_is_kept_and_costs_the_others_nothing() -> None:
    """Who gives up hears so in time, is out of the queue at once, and those behind it lose no time."""
    stage = Stage()
    holder = kept(stage, 1.3)
    process = stage.process()
    impatient = stage.turn(process, at=0.1, timeout=0.2)
    behind = stage.turn(process, at=0.15)
    stage.run()
    assert isinstance(impatient.error, HoldTimeout)
    assert impatient.ended is not None
    assert impatient.ended - impatient.asked <= 0.2 + 2 * ROUND_TRIP + 1e-6
    assert behind.granted is not None
    assert behind.granted - released(holder) <= HAND_OVER


@pytest.mark.parametrize("after", range(0, 40, 2), ids=lambda after: f"{after / 2:g} ms")
def test_a_cancelled_waiter_costs_nothing(after: int) -> None:
    """Wherever a caller is in getting the lock when it is interrupted, the next one has the lock at once.

    Given a lock that is released 10 ms after a caller asked for it, and another caller behind it,
    if the first one is interrupted that many half milliseconds after it asked,
    then the other one has the lock after two hand-overs at most, for the first one may have it just then.
    """
    stage = Stage()
    holder = kept(stage, 1.01)
    process, turn = stage.process(), Turn(1.0)
    behind = stage.turn(stage.process(), at=1.002)

    async def ask() -> None:
        await process.sleep(1.0)
        await stage.hold(process, turn)

    task = stage.start(process, survive(ask))
    stage.at(1.0 + after / 2000, lambda: task.interrupt(Interrupted()))
    stage.run(60)
    assert behind.granted is not None
    assert behind.granted - released(holder) <= 2 * HAND_OVER + RETRY
    assert stage.queue == {}


async def survive(call: Callable[[], Any]) -> None:
    """Make a call that may be interrupted."""
    with contextlib.suppress(Interrupted):
        await call()


# Messages that get lost.


@pytest.mark.parametrize(("wait", "round_trips"), [(True, 4), (False, 2)])
@pytest.mark.parametrize("what", ["request lost", "reply lost"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_lost_message_of_a_free_lock_costs_a_retry(n: int, what: str, wait: bool, round_trips: int) -> None:  # noqa: FBT001
    """It never costs a lease: two turns, of two commands each, are over a retry later than without.

    Who does not wait for the answer to a release has gone on, and it still reaches the server.
    """
    stage = Stage()
    process, turns = stage.process(), [Turn(0.0), Turn(0.0)]

    async def work() -> None:
        await stage.hold(process, Turn(0.0), wait=wait)  # connects, and loads the scripts
        stage.network.lose(n, what)
        turns[0].asked = stage.now
        for turn in turns:
            await stage.hold(process, turn, wait=wait)

    stage.start(process, work())
    after = stage.turn(stage.process(), at=1)
    stage.run()
    first, last = turns
    assert first.error is None
    assert last.error is None
    assert last.ended is not None
    assert last.ended - first.asked <= round_trips * ROUND_TRIP + RETRY
    assert after.waited <= RETRY


@pytest.mark.parametrize("what", ["request lost", "reply lost"])
@pytest.mark.parametrize("n", range(1, 7))
def test_a_lost_message_of_a_waiter_costs_a_heartbeat(n: int, what: str) -> None:
    """Whichever of its messages is lost, a waiter has the lock a heartbeat after the release at the latest."""
    stage = Stage()
    process = stage.process()
    stage.turn(process)  # connects
    holder = stage.turn(stage.process(), at=0.5, keep=1.7)
    waiter = stage.turn(process, at=1)
    stage.at(0.99, lambda: stage.network.lose(n, what))
    stage.run()
    assert waiter.granted is not None
    assert waiter.granted - released(holder) <= HEARTBEAT + HAND_OVER + RETRY


def test_lost_subscriptions_change_no_order() -> None:
    """Callers whose connections for offers are closed just before a release have their turns in the order of asking."""
    stage = Stage()
    kept(stage, 2.2)
    processes = [stage.process() for _ in range(2)]
    turns = [stage.turn(processes[n % 2], at=1 + n / 10, keep=0.01) for n in range(5)]

    def cut() -> None:
        for process in processes:
            stage.network.cut(stage.network.subscriptions[process.process_state.channel])

    stage.at(2.1999, cut)
    stage.run()
    assert turns == sorted(turns, key=lambda turn: turn.granted or 1e9)
    assert turns[-1].granted is not None


@pytest.mark.parametrize("mistake", [False, True], ids=["", "a passed waiter loses its place"])
def test_a_passed_waiter_is_next(monkeypatch: pytest.MonkeyPatch, mistake: bool) -> None:  # noqa: FBT001
    """A waiter of which the server thinks that nobody hears it is passed, asks again and is the next one."""
    if mistake:
        real = waiters.KeyWaiters.ask_again

        def ask_again(key_waiters: waiters.KeyWaiters) -> None:
            for waiter in key_waiters.everyone():
                waiter.ticket = 0
            real(key_waiters)

        monkeypatch.setattr(waiters.KeyWaiters, "ask_again", ask_again)
    stage = Stage()
    holder, process = kept(stage, 3.5), stage.process()
    passed = stage.turn(process, at=1, keep=0.01)
    second, third = (stage.turn(stage.process(), at=1 + n / 10, keep=2.5) for n in (1, 2))
    stage.at(3.4, lambda: stage.network.vanish(process))
    stage.run()
    assert second.granted is not None
    assert second.granted - released(holder) <= HAND_OVER, "one that nobody hears costs the next one nothing"
    assert passed.granted is not None
    assert third.granted is not None
    assert (passed.granted < third.granted) is not mistake


def test_a_lost_subscription_costs_a_round_trip() -> None:
    """A connection for offers that is closed is noticed, and the callers ask again."""
    stage = Stage()
    holder = kept(stage, 2.2)
    process = stage.process()
    waiter = stage.turn(process, at=1)
    stage.at(2.1999, lambda: stage.network.cut(stage.network.subscriptions[process.process_state.channel]))
    stage.run()
    assert waiter.granted is not None
    assert waiter.granted - released(holder) <= HAND_OVER + 3 * RETRY


def test_a_network_that_is_silent_takes_two_socket_timeouts() -> None:
    """However many callers are in line: those behind the first don't wait for an answer again."""
    stage = Stage()
    process = stage.process()
    callers = [Turn(5.0) for _ in range(10)]

    async def work(number: int, turn: Turn) -> None:
        await process.sleep(5.0)
        await (stage.hold if number % 2 else stage.nonce)(process, turn)

    def fall_silent() -> None:
        stage.network.silent = True
        process.cut_off_until = 1e6

    stage.turn(process)  # connects
    for number, turn in enumerate(callers):
        stage.start(process, work(number, turn))
    stage.at(4.0, fall_silent)
    stage.run(60)
    for turn in callers:
        assert isinstance(turn.error, StoreUnavailable)
        assert turn.ended is not None
        assert turn.ended - turn.asked <= 2 * SOCKET_TIMEOUT + RETRY


# The pace.


def busily(stage: Stage, number: int, calls: int, until: float, **wishes: Any) -> list[list[Turn]]:
    """Let processes that begin at once make calls that take 10 ms, one after the other."""
    turns: list[list[Turn]] = [[] for _ in range(number)]

    async def work(process: Process, mine: list[Turn]) -> None:
        while len(mine) < calls and stage.now < until:
            mine.append(Turn(stage.now))
            await stage.hold(process, mine[-1], 0.01, **wishes)

    for mine in turns:
        process = stage.process()
        stage.start(process, work(process, mine))
    return turns


def starts(turns: list[list[Turn]]) -> list[float]:
    """Return when calls began, in order."""
    return sorted(turn.granted for mine in turns for turn in mine if turn.granted is not None)


def test_a_deploy_of_ten() -> None:
    """Ten processes that begin at once make at most 20 calls in any second of the first ten, and nearly so many."""
    stage = Stage(pace=Pace())
    turns = busily(stage, 10, 10**9, 12.0)
    stage.run()
    times = [when for when in starts(turns) if when < 10]
    in_a_second = [bisect.bisect_left(times, when + 1 - ROUND_TRIP) - n for n, when in enumerate(times)]
    assert max(in_a_second) == 20
    assert len(times) > 20


def test_a_minimum_interval_is_kept_and_costs_nothing_more() -> None:
    """Eight processes keep 0.2 s between any two calls, and lose no time over it."""
    stage = Stage(pace=Pace(min_interval=0.2, startup_rate=0))
    turns = busily(stage, 8, by_tier(4, 13, 13), 1e9)
    stage.run()
    times = starts(turns)
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) >= 0.2 - ROUND_TRIP
    assert times[-1] - times[0] <= 0.2 * len(gaps) * 1.05


def test_an_order_waits_for_one_call_in_flight() -> None:
    """However many queries wait for the counter, an order that costs nothing waits for the one that is on its way."""
    stage = Stage(pace=Pace(startup_rate=0, tier=Tier(20, 1.0)))
    busily(stage, 8, 10**9, 60.0, cost=1)
    process, orders = stage.process(), [stage.turn(stage.process(), at=25.0)]
    orders += [stage.turn(process, at=26.0 + n * 0.37, priority="high") for n in range(60)]
    stage.run()
    assert max(order.waited for order in orders[1:]) <= 0.01 + 2 * HAND_OVER + RETRY


@pytest.mark.parametrize("queue", [0, 3])
def test_a_killed_process_takes_no_tokens_with_it(queue: int) -> None:
    """A process killed while it is first in line costs the next one the time that it had for its offer, no more."""
    stage = Stage(pace=Pace(startup_rate=0, tier=Tier(4, 1.0)))
    first, dead = stage.process(), stage.process()
    stage.turn(first, cost=3)
    stage.turn(dead, at=0.1, cost=2)
    behind = [stage.turn(first, at=0.2 + n / 100, cost=2 if n == 0 else 0) for n in range(queue + 1)]
    stage.at(0.5, lambda: gone(dead, "killed"))
    stage.run(60)
    assert behind[0].granted is not None
    assert behind[0].granted <= 2 + OFFER + LONGEST_WAY + 2 * HAND_OVER + RETRY


# Waiters that are booked for later, and those behind them.


def cool_down(stage: Stage, at: float, seconds: float) -> None:
    """Begin a cool-down at a time, or end one with 0 seconds, as the server hears it from a process of its own."""
    process = stage.process()

    async def say() -> None:
        await process.sleep(at)
        await process.drive(
            stage.lock_of(process).cooling_down(seconds, "EGeneral:Temporary lockout" if seconds else "")
        )

    stage.start(process, say())


@pytest.mark.parametrize("cooling", [False, True])
@pytest.mark.parametrize("orders", [2, 5])
@pytest.mark.parametrize("how", ["slow", "deaf"])
def test_orders_keep_their_order(how: str, orders: int, cooling: bool) -> None:  # noqa: FBT001
    """A newcomer doesn't go before an order that came earlier and has not heard yet that it may go before a query.

    Given a query that was offered the lock, is slow to take it, and may not start yet,
    and an order that came in between, is slow or misses messages, and others that come just as the query is booked,
    then the orders go in the order in which they came, and if there is no cool-down as soon as the first one asks.
    """
    stage = Stage(pace=Pace(startup_rate=0, tier=Tier(4, 0.5)))
    kept(stage, 1.0)
    stage.turn(stage.process(), at=0.1, cost=3)
    slow, first = stage.process(), stage.process()
    query = stage.turn(slow, at=0.2, cost=3)
    stage.at(0.9, lambda: stop(slow, 1.5))
    placed = [stage.turn(first, at=1.1, priority="high")]
    if how == "deaf":
        stage.at(1.2, lambda: setattr(stage.network.subscriptions[first.process_state.channel], "deaf", True))
    else:
        stage.at(1.2, lambda: stop(first, 1.55))
    placed += [stage.turn(stage.process(), at=1.51 + n / 1000, priority="high") for n in range(1, orders)]
    if cooling:
        cool_down(stage, 1.3, 5)
    stage.run(60)
    grants = [turn.granted or 1e9 for turn in placed]
    assert grants == sorted(grants)
    assert grants[-1] < (query.granted or 0)
    asks = 1.5 + HEARTBEAT if how == "deaf" else 1.55
    assert grants[-1] <= (6.3 if cooling else asks) + orders * HAND_OVER + RETRY


def stop(process: Process, until: float) -> None:
    """Stop a process as it stands."""
    process.stopped_until = until


@pytest.mark.parametrize("how", ["killed", "deaf"])
@pytest.mark.parametrize("dead", [1, 3])
def test_a_dead_order_holds_up_no_other(dead: int, how: str) -> None:
    """An order behind dead ones, all of one process, goes before a booked query two seconds later at the latest."""
    stage = Stage(pace=Pace(startup_rate=0, tier=Tier(4, 0.1)))
    kept(stage, 1.0)
    stage.turn(stage.process(), at=0.1, cost=3)
    slow, process = stage.process(), stage.process()
    query = stage.turn(slow, at=0.2, cost=3)
    stage.at(0.9, lambda: stop(slow, 1.5))
    for n in range(dead):
        stage.turn(process, at=1.1 + n / 100, priority="high")

    stage.at(1.2, lambda: gone(process, how))
    order = stage.turn(stage.process(), at=1.51, priority="high")
    stage.run(120)
    assert order.waited <= DEAD_WAITER + ROUND_TRIP
    assert query.waited > 20
    assert stage.queue == {}


def test_an_order_that_leaves_holds_up_no_other() -> None:
    """An order that times out just when it may go before a booked query lets the next one go at once."""
    stage = Stage(pace=Pace(startup_rate=0, tier=Tier(4, 0.1)))
    kept(stage, 1.0)
    stage.turn(stage.process(), at=0.1, cost=3)
    slow, process = stage.process(), stage.process()
    stage.turn(slow, at=0.2, cost=3)
    stage.at(0.9, lambda: stop(slow, 1.5))
    turn = Turn(1.1)

    async def ask() -> None:
        await process.sleep(1.1)
        await stage.hold(process, turn, priority="high")

    task = stage.start(process, survive(ask))
    stage.at(1.2, lambda: stop(process, 1.6))
    stage.at(1.6, lambda: task.interrupt(Interrupted()))
    order = stage.turn(stage.process(), at=1.51, priority="high")
    stage.run(120)
    assert order.granted is not None
    assert order.granted <= 1.6 + HAND_OVER + RETRY


@pytest.mark.parametrize("priority", ["normal", "high"])
@pytest.mark.parametrize("comes", [2.0, 10.5])
@pytest.mark.parametrize("how", ["killed", "stopped", "deaf"])
def test_a_cool_down_ended_by_hand_with_a_dead_waiter(how: str, comes: float, priority: Priority) -> None:
    """Whoever was booked for its end and is dead costs the others two seconds, whether they waited or come now."""
    stage = Stage()
    cool_down(stage, 0.5, 900)
    process = stage.process()
    stage.turn(process, at=1, priority=priority)

    stage.at(1.5, lambda: gone(process, how))
    behind = stage.turn(stage.process(), at=comes)
    cool_down(stage, 10, 0)
    stage.run(60)
    assert behind.granted is not None
    assert behind.granted - max(10, comes) <= DEAD_WAITER + ROUND_TRIP


def test_a_booking_keeps_the_places_of_its_own_process() -> None:
    """Whoever waits behind a caller of its process that is booked for more than 10 s keeps its place."""
    stage = Stage()
    cool_down(stage, 0.5, 15)
    process = stage.process()
    turns = [stage.turn(process, at=1 + n / 10) for n in range(3)]
    turns += [stage.turn(stage.process(), at=when) for when in (12.0, 13.0)]
    stage.run(60)
    assert turns == sorted(turns, key=lambda turn: turn.granted or 1e9)
    assert (turns[-1].granted or 1e9) < 16


def test_whoever_was_booked_keeps_its_place_behind_an_order() -> None:
    """A query that lets an order go before it comes before one that came later, however long the order takes."""
    stage = Stage(pace=Pace(startup_rate=0, tier=Tier(4, 0.1)))
    stage.turn(stage.process(), cost=3)
    query = stage.turn(stage.process(), at=1, cost=3)
    stage.turn(stage.process(), at=2, keep=13, priority="high")
    later = stage.turn(stage.process(), at=14)
    stage.run(90)
    assert (query.granted or 1e9) < (later.granted or 0)
