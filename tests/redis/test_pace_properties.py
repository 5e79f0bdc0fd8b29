"""The pace as the scripts keep it, to the microsecond, beside plain models and outside witnesses of the same rules.

The scripts run in fakeredis, whose clock the tests set, so nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import fakeredis
import fakeredis.commands_mixins.server_mixin as fake_time
import pytest
import throttled
import throttled.utils
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kraken_nonce_redis import Pace
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.pace import HEADROOM, Tier
from kraken_nonce_redis.testing._limits import Limits, Usage
from kraken_nonce_redis.testing._protocol import Refusal
from tests.support.helpers import KEYS, Rival, run
from tests.support.tiers import by_tier, in_test_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kraken_nonce_redis._arguments import Priority
    from kraken_nonce_redis._redis.commands import Answer

BEGIN = 1_790_000_000_000_000
"""The time at which every test begins, in microseconds since 1970."""
SECOND = 1_000_000
PATIENCE = 1_050_000
"""What the scripts take for a second in which starts are counted."""

properties = settings(
    max_examples=by_tier(10, 25, 250),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class World:
    """A server whose clock stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = BEGIN
        self.redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
        self._numbers = itertools.count(1)

    def time(self) -> float:
        """Return the time as fakeredis wants it."""
        return self.now / SECOND

    def reset(self) -> None:
        """Begin anew."""
        self.now = BEGIN
        self.redis.flushall()

    def ask(self, pace: Pace | None, cost: float = 0, *, protected: bool = True) -> int:
        """Start a call that is over at once, if that can be now; return the microseconds that it would have to wait."""
        member = f"process:{next(self._numbers)}"
        setting = pace.settings(cost, startup_protection=protected) if pace else ""
        answer = run(self.redis, commands.acquire(KEYS, member, 30, ticket=None, priority="normal", pace=setting))
        if isinstance(answer, commands.Granted):
            assert run(self.redis, commands.release(KEYS, member, answer.nonces[0]))
            return 0
        assert isinstance(answer, commands.Busy), answer
        assert answer.cause != "held"
        return round(answer.left * SECOND)

    def start(self, pace: Pace | None, cost: float = 0, *, protected: bool = True) -> int:
        """Start a call as soon as it may, not a microsecond before and not one after; return when that was."""
        wait = self.ask(pace, cost, protected=protected)
        while wait:
            self.now += wait - 1
            assert self.ask(pace, cost, protected=protected) == 1
            self.now += 1
            wait = self.ask(pace, cost, protected=protected)
        return self.now


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Give a server with a clock of the test's."""
    world = World()
    monkeypatch.setattr(fake_time, "time", world)
    yield world
    world.redis.close()


# One rule at a time.

GAPS = st.one_of(st.integers(0, 3 * SECOND), st.integers(0, 50_000), st.just(0), st.just(60 * SECOND))
CALLS = st.lists(st.tuples(GAPS, st.sampled_from([0, 0.5, 1, 1, 2, 4])), min_size=1, max_size=40)
TIERS = st.sampled_from([Tier(15, 0.33), Tier(20, 0.5), Tier(20, 1.0), Tier(5, 2.0), Tier(6, 0.1)])


@properties
@given(tier=TIERS, calls=CALLS)
def test_counter(world: World, tier: Tier, calls: list[tuple[int, float]]) -> None:
    """A call starts exactly when the counter, falling steadily, has room for it, and never before."""
    world.reset()
    pace = Pace(startup_rate=0, tier=tier)
    level, at, room = Fraction(0), BEGIN, Fraction(tier.maximum - HEADROOM)
    decay = Fraction(tier.decay).limit_denominator(1000) / SECOND
    for number, (gap, cost) in enumerate(calls, start=1):
        world.now += gap
        ready = world.now
        started = world.start(pace, cost)
        level = max(Fraction(0), level - decay * (ready - at))
        due = ready + max(Fraction(0), (level + Fraction(cost) - room) / decay) if cost else Fraction(ready)
        assert abs(started - due) <= 1 + number, "each cost is rounded to a microsecond"
        level = max(Fraction(0), level - decay * (started - ready)) + Fraction(cost)
        at = started


@properties
@given(tier=st.sampled_from(["starter", "intermediate", "pro"]), calls=CALLS, late=st.integers(0, 300_000))
def test_the_simulator_refuses_none(world: World, tier: Any, calls: list[tuple[int, float]], late: int) -> None:
    """Kraken's counter, as the simulator has it, takes every call, though each second one travels 0.3 s longer."""
    world.reset()
    pace, kraken = Pace(startup_rate=0, tier=tier), Usage()
    methods = {0: "AddOrder", 0.5: "Half", 1: "Balance", 2: "Ledgers", 4: "Dear"}
    limits = Limits(tier=tier, costs={"Half": 0.5, "Dear": 4})
    arrivals: list[tuple[float, str]] = []
    for number, (gap, cost) in enumerate(calls):
        world.now += gap
        start = world.start(pace, cost)
        arrivals.append((start / SECOND + (late / SECOND if number % 2 else 0), methods[cost]))
    for at, method in sorted(arrivals):
        kraken.call(limits, method, at)


def test_the_simulator_refuses_without_it() -> None:
    """The same witness does refuse calls that nobody paces."""
    kraken, limits = Usage(), Limits(tier="pro")
    for _ in range(20):
        kraken.call(limits, "Balance", 0.0)
    with pytest.raises(Refusal):
        kraken.call(limits, "Balance", 0.0)


@properties
@given(interval=st.sampled_from([0.2, 0.001, 1.5]), gaps=st.lists(GAPS, min_size=1, max_size=30))
def test_min_interval(world: World, interval: float, gaps: list[int]) -> None:
    """A call starts at once or exactly the interval after the last one."""
    world.reset()
    pace = Pace(min_interval=interval, startup_rate=0)
    last = None
    for gap in gaps:
        world.now += gap
        due = world.now if last is None else max(world.now, last + round(interval * SECOND))
        last = world.start(pace)
        assert last == due


@dataclass
class Startup:
    """The startup window as one would write it down: all starts are kept, and counted anew each time."""

    window: int
    rate: int
    interval: int
    opened: int = 0
    starts: list[int] = field(default_factory=list)

    def wait(self, now: int) -> int:
        """Return how long a call waits that would start now."""
        if not self.starts or now - self.starts[-1] >= self.window or now - self.opened >= self.window:
            return 0
        last = self.starts[-1]
        second = [start for start in self.starts if start > last - PATIENCE]
        if len(second) < self.rate:
            return 0
        due = max(second[-self.rate] + PATIENCE, last + self.interval)
        return max(min(due, self.opened + self.window) - now, 0)

    def start(self, now: int) -> None:
        """Note a start; after as long a silence as the window it opens a new one."""
        if not self.starts or now - self.starts[-1] >= self.window:
            self.opened = now
            self.starts.clear()
        self.starts.append(now)


BURSTS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 100_000), st.just(0), st.integers(0, 2 * SECOND), st.integers(0, 30 * SECOND)),
        st.integers(1, 25),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.test_all
@properties
@given(
    window=st.sampled_from([10 * SECOND, 3 * SECOND, SECOND // 2]),
    rate=st.sampled_from([20, 5, 1]),
    interval=st.sampled_from([SECOND // 2, 0, 2 * SECOND]),
    bursts=BURSTS,
)
@example(window=10 * SECOND, rate=20, interval=SECOND // 2, bursts=[(0, 30, True)] * 8)
def test_startup(world: World, window: int, rate: int, interval: int, bursts: list[tuple[int, int, bool]]) -> None:
    """In a startup window calls wait as the plain model says; those that opt out never wait, and are counted."""
    world.reset()
    pace = Pace(startup_window=window / SECOND, startup_rate=rate, startup_interval=interval / SECOND)
    model = Startup(window, rate, interval)
    for gap, number, protected in bursts:
        world.now += gap
        for _ in range(number):
            while wait := model.wait(world.now) if protected else 0:
                assert world.ask(pace) == wait
                world.now += wait
            assert world.ask(pace, protected=protected) == 0
            model.start(world.now)


@pytest.mark.test_all
@properties
@given(rate=st.sampled_from([20, 5, 1]), gaps=st.lists(st.integers(0, 40_000), min_size=30, max_size=60))
def test_any_second_of_a_startup(world: World, rate: int, gaps: list[int]) -> None:
    """However the calls fall, no second of the window has more starts than were set, even if some travel 50 ms."""
    world.reset()
    pace = Pace(startup_rate=rate)
    starts: list[int] = []
    for gap in gaps:
        world.now += gap
        starts.append(world.start(pace))
        if world.now > BEGIN + 10 * SECOND:
            break
    first_ten = [start for start in starts if start < BEGIN + 10 * SECOND]
    for start in first_ten:
        assert sum(start <= other < start + PATIENCE for other in first_ten) <= rate


def test_reset_startup(world: World) -> None:
    """A reset opens a new window at the next call, and leaves the counter and the interval as they are."""
    pace = Pace(min_interval=0.001, startup_rate=2, startup_interval=5, tier="pro")
    for _ in range(2):
        world.start(pace, 6)
    assert world.ask(pace, 6) == 5 * SECOND
    run(world.redis, commands.reset_startup(KEYS))
    assert world.ask(pace, 6) == 1000
    world.now += 1000
    assert world.ask(pace, 6) == 0
    world.now += 1000
    assert world.ask(pace, 2) == SECOND - 3000, "the counter"


@properties
@given(
    interval=st.sampled_from([0, 0.2]),
    rate=st.sampled_from([0, 3]),
    tier=st.sampled_from([None, Tier(6, 1.0)]),
    calls=CALLS,
)
def test_the_longest_wait_counts(
    world: World, interval: float, rate: int, tier: Tier | None, calls: list[tuple[int, float]]
) -> None:
    """Interval, startup and counter together make a call wait as long as the strictest of them alone."""
    world.reset()
    pace = Pace(min_interval=interval, startup_rate=rate, tier=tier)
    startup = Startup(10 * SECOND, rate, SECOND // 2)
    drained, last = 0, 0
    for gap, cost in calls:
        world.now += gap
        while True:
            waits = [0, last + round(interval * SECOND) - world.now]
            if rate:
                waits.append(startup.wait(world.now))
            if tier and cost:
                waits.append(drained + round((cost - tier.maximum + HEADROOM) / tier.decay * SECOND) - world.now)
            assert world.ask(pace, cost) == max(waits)
            if max(waits) <= 0:
                break
            world.now += max(waits)
        last = world.now
        startup.start(last)
        drained = max(drained, last) + round(cost / tier.decay * SECOND) if tier else 0


# Other people's idea of the same.


@properties
@given(
    limit=st.sampled_from([1, 2, 5]),
    calls=st.lists(st.tuples(GAPS, st.integers(0, 4)), min_size=1, max_size=60),
)
def test_gcra_of_throttled_py(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: int, calls: list[tuple[int, int]]
) -> None:
    """The counter lets the same calls through as throttled-py's GCRA, and names the same waits."""
    world.reset()
    monkeypatch.setattr(throttled.utils, "now_mono_f", lambda: (world.now - BEGIN) / SECOND + 1000.0)
    gcra = throttled.Throttled(
        using=throttled.RateLimiterType.GCRA.value,
        quota=throttled.per_sec(limit, burst=9),
        store=throttled.MemoryStore(),
    )
    pace = Pace(startup_rate=0, tier=Tier(9 + HEADROOM, limit))
    for gap, cost in calls:
        world.now += gap + 1  # beside the very edge, where floats decide
        theirs = gcra.limit("key", cost=cost)
        ours = world.ask(pace, cost)
        assert (ours > 0) == theirs.limited
        if theirs.limited:
            assert ours / SECOND == pytest.approx(theirs.state.retry_after, abs=1e-5)


# Clocks and cool-downs.


@pytest.mark.test_all
@properties
@given(back=st.integers(1, 3600 * SECOND), tier=st.sampled_from(["pro", None]), cost=st.sampled_from([0, 2]))
def test_a_clock_that_is_set_back(world: World, back: int, tier: Any, cost: float) -> None:
    """When the server's clock goes back, nobody waits longer than the rules could ever ask for, and then can start."""
    world.reset()
    pace = Pace(min_interval=0.2, tier=tier)
    for _ in range(30):
        world.start(pace, cost)
    world.now -= back
    noticed = world.now
    assert world.start(pace, cost) - noticed <= max(200_000, PATIENCE, cost * SECOND)


@properties
@given(back=st.integers(1, 3600 * SECOND), seconds=st.sampled_from([1, 15]))
def test_a_cool_down_when_the_clock_is_set_back(world: World, back: int, seconds: int) -> None:
    """When the server's clock goes back, a cool-down lasts its full length at most from when that is noticed."""
    world.reset()
    run(world.redis, commands.cool_down(KEYS, seconds, "reason"))
    world.now -= back
    noticed = world.now
    assert world.start(None) - noticed <= seconds * SECOND


@pytest.mark.parametrize(("seconds", "cause"), [(1, "counter"), (3, "cool-down reason")])
def test_pace_and_cool_down(world: World, seconds: int, cause: str) -> None:
    """A cool-down and the pace don't add up: the longer of the two counts, and is named."""
    pace = Pace(startup_rate=0, tier=Tier(2, 0.5))
    world.start(pace, 1)
    run(world.redis, commands.cool_down(KEYS, seconds, "reason"))
    setting = pace.settings(1, startup_protection=True)
    answer = run(world.redis, commands.acquire(KEYS, "a:1", 30, ticket=None, priority="normal", pace=setting))
    assert answer == commands.Busy(max(seconds, 2), cause)


@given(first=st.integers(1, 86_400), gap=st.integers(0, 86_400), second=st.integers(1, 86_400))
@properties
def test_the_longest_cool_down_counts(world: World, first: int, gap: int, second: int) -> None:
    """Of two cool-downs the one that ends later counts, whichever was learned of first; then all is as before."""
    world.reset()
    run(world.redis, commands.cool_down(KEYS, first, "first"))
    world.now += gap * SECOND
    left = run(world.redis, commands.cool_down(KEYS, second, "second"))
    assert left == max(first - gap, second)
    assert world.ask(None) == left * SECOND
    state = run(world.redis, commands.inspect(KEYS))
    assert (state.cool_down, state.reason) == (left, "first" if first - gap >= second else "second")
    world.now += round(left * SECOND)
    assert world.ask(None) == 0
    assert run(world.redis, commands.inspect(KEYS)).cool_down == 0


# Who goes first: callers as a process has them, on a clock of the test's.

HOP = 500
"""Microseconds that anything takes to get from a caller to the server or back."""


@dataclass(eq=False)
class Client:
    """One caller that calls again and again."""

    name: str
    priority: Priority
    pace: str
    hold: int
    rest: Callable[[int], int]
    """How long to rest before the n-th call."""
    calls: int
    asked: int = 0
    ticket: int = 0
    done: int = 0
    busy: bool = False
    """Whether it holds the lock or rests."""
    turn: int = 0
    """Makes what was planned before out of date."""
    waits: list[int] = field(default_factory=list)


class Market:
    """Callers on a server, event by event."""

    def __init__(self, world: World, clients: list[Client]) -> None:
        self.world = world
        self.clients = {client.name: client for client in clients}
        self.grants: list[tuple[int, Client]] = []
        self._events: list[tuple[int, int, Client, int, str]] = []
        self._order = itertools.count()
        self._ears = world.redis.pubsub()
        self._ears.psubscribe("kraken-nonce:wake:*")
        for client in clients:
            self._rest(client)

    def run(self, client: Client, calls: int, most: int) -> None:
        """Let it go on until a client has made so many calls, or all of them together many more."""
        while client.done < calls and len(self.grants) < most:
            at, _, who, turn, what = heapq.heappop(self._events)
            self.world.now = max(self.world.now, at)
            if turn == who.turn:
                (self._release if what == "release" else self._ask)(who)
            self._listen()
        self._ears.close()

    def _plan(self, client: Client, after: int, what: str) -> None:
        client.turn += 1
        heapq.heappush(self._events, (self.world.now + after, next(self._order), client, client.turn, what))

    def _rest(self, client: Client) -> None:
        if client.done < client.calls:
            client.busy = True
            client.ticket = 0
            after = client.rest(client.done)
            client.asked = self.world.now + after
            self._plan(client, after, "ask")

    def _member(self, client: Client) -> str:
        return f"{client.name}:{client.done}"

    def _ask(self, client: Client) -> None:
        client.busy = False
        command = commands.acquire(
            KEYS, self._member(client), 30, ticket=client.ticket, priority=client.priority, pace=client.pace
        )
        answer: Answer = run(self.world.redis, command)
        if isinstance(answer, commands.Granted):
            client.busy = True
            client.waits.append(self.world.now - client.asked)
            self.grants.append((self.world.now, client))
            self._plan(client, client.hold, "release")
            return
        assert not isinstance(answer, commands.Busy)
        client.ticket = answer.ticket
        if isinstance(answer, commands.Booked):
            self._plan(client, round(answer.left * SECOND) + HOP, "ask")
        else:
            client.turn += 1  # until it is offered

    def _release(self, client: Client) -> None:
        assert run(self.world.redis, commands.release(KEYS, self._member(client)))
        client.done += 1
        self._rest(client)

    def _listen(self) -> None:
        while message := self._ears.get_message(ignore_subscribe_messages=True):
            name, _, number = message["data"].decode().partition(":")
            client = self.clients[name]
            if not client.busy and number == str(client.done):
                self._plan(client, 2 * HOP, "ask")


def looping(name: str, priority: Priority, pace: Pace, *, cost: float = 0, hold: int = 20_000, rest: int = 0) -> Client:
    """Return a caller that calls again as soon as it may."""
    setting = pace.settings(cost, startup_protection=True)
    return Client(name, priority, setting, hold, lambda _: rest, 10**9)


PACES = {
    "none": Pace(startup_rate=0),
    "interval": Pace(min_interval=0.2, startup_rate=0),
    "startup": Pace(),
    "counter": Pace(startup_rate=0, tier="pro"),
    "all": Pace(min_interval=0.05, tier="pro"),
}


@pytest.mark.parametrize("orders", [3, *in_test_all(1, 12)])
@pytest.mark.parametrize("rest", [0, 100_000])
@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
def test_a_query_is_never_starved(world: World, pace: Pace, rest: int, orders: int) -> None:
    """However many orders want to go first, at most ten in a row that cost a waiting query time do so.

    Orders that go while the query has to wait for Kraken's counter anyhow are no loss to it.
    """
    clients = [looping(f"order{n}", "high", pace, rest=rest) for n in range(orders)]
    query = looping("query", "normal", pace, cost=2)
    market = Market(world, [*clients, query])
    market.run(query, 4, 200)
    in_a_row = longest = 0
    for at, client in market.grants:
        in_a_row = 0 if client is query else in_a_row + (at > query_was_due(market, query, at))
        longest = max(longest, in_a_row)
    assert query.done == 4
    # Ten that go first, and the one whose call was under way when the query came.
    assert longest <= 11


def query_was_due(market: Market, query: Client, at: int) -> int:
    """Return when, without the orders, the query that waited at a time could have started."""
    settings = [int(word) for word in query.pace.split()]
    interval, capacity, cost = settings[0], settings[4], settings[5]
    starts = [start for start, client in market.grants if client is query and start < at]
    drained = 0
    for start in starts:
        drained = max(drained, start) + cost
    due = max(drained + cost - capacity if capacity else 0, starts[-1] + interval if starts else 0)
    return max(due, starts[-1] + query.hold if starts else 0)


@pytest.mark.parametrize("others", [1, 3])
def test_calls_that_cost_and_go_first(world: World, others: int) -> None:
    """Calls of high priority that cost of the counter take it from a query no more than ten times in a row.

    And every time: once the query has had its turn, they go before it again.
    """
    pace = Pace(startup_rate=0, tier=Tier(4, 2.0))
    first = [looping(f"first{n}", "high", pace, cost=1) for n in range(others)]
    query = looping("query", "normal", pace, cost=2)
    market = Market(world, [*first, query])
    market.run(query, 5, 200)
    names = "".join("Q" if client is query else "f" for _, client in market.grants)
    assert query.done == 5
    assert all(8 <= len(row) <= 11 for row in names.split("Q")[2:-1]), names


@pytest.mark.parametrize("orders", [3, *in_test_all(1, 12)])
@pytest.mark.parametrize("interval", [0, 0.05])
def test_an_order_never_waits_for_a_query_that_waits(world: World, interval: float, orders: int) -> None:
    """Queries that wait for the counter cost an order one call in flight, however many orders there are before it."""
    pace = Pace(min_interval=interval, startup_rate=0, tier=Tier(3, 0.5))
    hold = 20_000
    queries = [looping(f"query{n}", "normal", pace, cost=2, hold=hold) for n in range(4)]
    placing = [looping(f"order{n}", "high", pace, hold=hold, rest=90_000 * (orders + n)) for n in range(orders)]
    Market(world, [*queries, *placing]).run(queries[0], 3, 300)
    one = max(hold + 6 * HOP, round(interval * SECOND) + 2 * HOP)
    for client in placing:
        assert len(client.waits) > 3
        assert max(client.waits) <= one * (orders + 1)
    assert all(query.done >= 2 for query in queries)


@pytest.mark.parametrize("pace", PACES.values(), ids=PACES)
def test_first_come_first_served(world: World, pace: Pace) -> None:
    """Queries take turns, whatever it is that they wait for."""
    queries = [looping(f"query{n}", "normal", pace, cost=1) for n in range(5)]
    market = Market(world, queries)
    market.run(queries[0], 12, 100)
    turns = [client.name for _, client in market.grants[10:]]
    assert len(turns) > 20
    assert all(turns[n] == turns[n - 5] for n in range(5, len(turns)))


def test_an_order_that_was_slow(world: World) -> None:
    """An order that asks after its chance to go before a query was given to a later one still goes before that one."""
    query, first, later = (Rival(world.redis) for _ in range(3))
    pace = Pace(startup_rate=0, tier=Tier(4, 0.01))
    costly, free = (pace.settings(cost, startup_protection=True) for cost in (3, 0))
    assert isinstance(first.ask(pace=costly), commands.Granted)
    query.queue_up()
    first.release()
    tickets = [process.queue_up(2, "high") for process in (first, later)]
    assert isinstance(query.ask(ticket=1, pace=costly), commands.Booked)
    left = later.live(2).left
    world.now += round(left * SECOND)
    assert later.live(2).offered == later.member(2)
    assert first.live(2).joined == "-", "its place is lost"
    assert isinstance(first.ask(2, ticket=tickets[0], priority="high", pace=free), commands.Granted)
    first.release(2)
    assert isinstance(later.ask(2, ticket=tickets[1], priority="high", pace=free), commands.Granted)
