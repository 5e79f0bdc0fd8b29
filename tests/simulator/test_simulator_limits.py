"""The simulator refuses what goes over Kraken's limits, as soon as it is told to and not before."""

from __future__ import annotations

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import krakenex
import pytest

from kraken_nonce_redis.testing import KrakenSimulator, Limits
from kraken_nonce_redis.testing._exchange import Exchange
from kraken_nonce_redis.testing._protocol import Call, signature
from kraken_nonce_redis.testing._records import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.once

SECRET = base64.b64encode(b"a secret of one of the accounts").decode()
LIMIT = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "37500", "volume": "0.001"}
ETHER = {"pair": "ETHUSD", "type": "buy", "ordertype": "limit", "price": "1500", "volume": "0.01"}

FULL = "EAPI:Rate limit exceeded"
LOCKED = "EGeneral:Temporary lockout"
CROWDED = "EOrder:Rate limit exceeded"
BAD_NONCE = "EAPI:Invalid nonce"


class Caller:
    """Signs requests to an exchange that has no network and no clock: each is a time, a method and an answer."""

    def __init__(self, **limits: Any) -> None:
        accounts = [("alice", "key of alice", SECRET), ("bob", "key of bob", SECRET)]
        self.exchange = Exchange(accounts, Settings(limits=Limits(**limits)), seed=0, now=0.0)
        self.nonce = 0

    def answer(
        self, now: float, method: str = "Balance", *, who: str = "alice", nonce: int | None = None, **data: Any
    ) -> dict[str, Any]:
        """Make a call at a time and return the whole answer."""
        if nonce is None:
            nonce = self.nonce = self.nonce + 1
        body = urlencode({"nonce": nonce, **data}).encode()
        path = f"/0/private/{method}"
        sign = signature(base64.b64decode(data.pop("secret", SECRET)), path, str(nonce), body)
        call = Call(path, method, "application/x-www-form-urlencoded", f"key of {who}", sign, body)
        with self.exchange.under_way(call):
            return self.exchange.admit(call, self.exchange.arrive(call, now), now)(now)

    def error(self, now: float, method: str = "Balance", **data: Any) -> str:
        """Return the error of a call, or an empty string."""
        return "".join(self.answer(now, method, **data)["error"])

    def order(self, now: float, **data: Any) -> str:
        """Place an order that stays open and return its txid."""
        answer = self.answer(now, "AddOrder", **{**LIMIT, **data})
        assert answer["error"] == []
        return str(answer["result"]["txid"][0])

    def accepted(self, now: float, method: str = "Balance", **data: Any) -> int:
        """Call as often as it goes at one time; return how often it went."""
        for number in range(1000):
            if self.error(now, method, **data):
                return number
        raise AssertionError("there is no limit")


def test_there_are_no_limits_by_default() -> None:
    """A simulator that was not told otherwise takes any number of calls and orders, so old tests stay as they are."""
    caller = Caller()
    for _ in range(200):
        assert caller.error(0, "TradesHistory") == ""
        assert caller.error(0, "AddOrder", **LIMIT) == ""
        assert caller.error(0, nonce=1) == BAD_NONCE


class TestCounter:
    """The counter of calls, for each API key."""

    @pytest.mark.parametrize(
        ("tier", "maximum", "decay"), [("starter", 15, 0.33), ("intermediate", 20, 0.5), ("pro", 20, 1)]
    )
    def test_tiers(self, tier: str, maximum: int, decay: float) -> None:
        """Each tier takes as many calls at once as Kraken says, and then as many a second as its counter falls."""
        caller = Caller(tier=tier)
        assert caller.accepted(0) == maximum
        assert caller.error(0.98 / decay) == FULL
        caller = Caller(tier=tier)
        assert caller.accepted(0) == maximum
        for call in range(1, 50):
            assert caller.error(call / decay) == ""

    def test_costs(self) -> None:
        """Ledgers and histories cost 2, orders nothing, also when the counter is full; everything else costs 1."""
        for method in ("Ledgers", "TradesHistory"):
            assert Caller(tier="pro").accepted(0, method) == 10
        caller = Caller(tier="pro")
        assert caller.accepted(0, "OpenOrders") == 20
        txid = caller.order(0)
        assert caller.error(0, "CancelOrder", txid=txid) == ""
        assert caller.error(0, "ClosedOrders") == FULL

    def test_other_figures(self) -> None:
        """Figures and costs can be set where Kraken's have changed, alone or instead of a tier's."""
        assert Caller(counter=(5, 1)).accepted(0) == 5
        assert Caller(tier="starter", counter=(7, 1)).accepted(0) == 7
        caller = Caller(tier="pro", costs={"Ledgers": 4, "AddOrder": 5})
        assert caller.accepted(0, "Ledgers") == 5
        assert caller.error(0, "AddOrder", **LIMIT) == FULL

    def test_asking_on_keeps_the_counter_full(self) -> None:
        """Whoever goes on asking faster than the counter falls is refused for ever; who pauses is not."""
        caller = Caller(tier="pro")
        caller.accepted(0)
        assert [caller.error(0.5 * n) for n in range(1, 40)] == [FULL] * 39
        assert caller.error(0.5 * 39 + 1) == ""

    def test_a_refused_call_is_not_carried_out_and_uses_its_nonce(self) -> None:
        """The nonce of a call that was one too many is used up, as after any answer to a genuine call."""
        caller = Caller(counter=(1, 1), costs={"AddOrder": 1})
        caller.order(0)
        assert caller.error(0, "AddOrder", **LIMIT, nonce=10) == FULL
        assert len(caller.exchange.orders(0)) == 1
        assert caller.error(5, nonce=10) == BAD_NONCE

    def test_each_key_has_its_own(self) -> None:
        """One key's counter says nothing about another's; and what was never admitted does not count."""
        caller = Caller(tier="pro")
        for _ in range(50):
            assert caller.error(0, nonce=0, secret="YQ==") == "EAPI:Invalid signature"
        assert caller.accepted(0) == 20
        assert caller.error(0, who="bob") == ""

    def test_a_clock_that_is_set_back(self) -> None:
        """When the machine's clock goes back, the counter does not rise for it."""
        caller = Caller(tier="pro")
        assert caller.error(1000) == ""
        assert caller.accepted(0) == 19

    def test_reset_empties_it(self) -> None:
        """After a reset the counters are empty, so that one test does not spoil the next."""
        caller = Caller(tier="pro")
        caller.accepted(0)
        caller.exchange.reset(0)
        assert caller.accepted(0) == 20


class TestThrottled:
    """Too many calls in a second, or at once."""

    def test_too_many_in_a_second(self) -> None:
        """From the call that is one too many until the time that is named, all are refused; then none is."""
        caller = Caller(most_per_second=5, throttle_seconds=2)
        assert [caller.error(0.3 + n / 10) for n in range(5)] == [""] * 5
        assert caller.error(0.9) == "EService: Throttled: 3"
        assert caller.error(2.99) == "EService: Throttled: 3"
        assert caller.error(3) == ""

    def test_a_pause_makes_up_for_it(self) -> None:
        """As many calls a second as are allowed are taken for ever."""
        caller = Caller(most_per_second=4)
        assert {caller.error(n / 4) for n in range(100)} == {""}

    def test_too_many_at_once(self) -> None:
        """Calls of one account that are under way at the same time count together; other accounts' do not."""
        caller = Caller(most_at_once=2)
        call = Call("/0/private/Balance", "Balance", "", "key of alice", "", b"")
        with caller.exchange.under_way(call):
            assert caller.error(0) == ""
            with caller.exchange.under_way(call):
                assert caller.error(0.5, who="bob") == ""
                assert caller.error(0.5) == "EService: Throttled: 6"
        assert caller.error(5.9) == "EService: Throttled: 6"
        assert caller.error(6) == ""


class TestLockout:
    """Too many bad nonces or signatures."""

    def test_bad_nonces_and_signatures(self) -> None:
        """Enough of them, of whatever kind, and the account is shut out for the time that is set."""
        caller = Caller(lockout_after=3, lockout_seconds=100)
        assert caller.error(0) == ""
        assert caller.error(1, nonce=1) == BAD_NONCE
        assert caller.error(2, nonce=1) == BAD_NONCE
        assert caller.error(3, secret="YQ==") == "EAPI:Invalid signature"
        assert caller.error(4) == LOCKED
        assert caller.error(102.9) == LOCKED
        assert caller.error(103) == ""

    def test_after_it_the_count_begins_anew(self) -> None:
        """One more bad nonce after a lockout is no reason for the next one."""
        caller = Caller(lockout_after=2, lockout_seconds=10)
        assert [caller.error(0, nonce=-1), caller.error(0, nonce=-1), caller.error(0)] == [BAD_NONCE, BAD_NONCE, LOCKED]
        assert caller.error(10, nonce=-1) == BAD_NONCE
        assert caller.error(10) == ""

    def test_it_lasts_a_quarter_of_an_hour(self) -> None:
        """Unless told otherwise a lockout lasts 15 minutes, and asking meanwhile does not make it longer."""
        caller = Caller(lockout_after=1)
        caller.error(0, nonce=-1)
        assert {caller.error(float(n)) for n in range(900)} == {LOCKED}
        assert caller.error(900) == ""

    def test_a_few_a_minute_are_forgiven(self) -> None:
        """Bad ones that come seldom never add up."""
        caller = Caller(lockout_after=3)
        caller.error(0)
        assert {caller.error(n * 31.0, nonce=1) for n in range(1, 50)} == {BAD_NONCE}

    def test_only_the_account_that_did_it(self) -> None:
        """Another account goes on."""
        caller = Caller(lockout_after=1)
        caller.error(0, secret="YQ==")
        assert caller.error(1) == LOCKED
        assert caller.error(1, who="bob") == ""


class TestOrderCounter:
    """The matching engine's counter, for each pair."""

    @pytest.mark.parametrize(
        ("tier", "maximum", "decay"), [("starter", 60, 1), ("intermediate", 125, 2.34), ("pro", 180, 3.75)]
    )
    def test_tiers(self, tier: str, maximum: int, decay: float) -> None:
        """Each tier may place as many orders of a pair at once as Kraken says, then as many as the counter falls."""
        caller = Caller(order_tier=tier)
        assert caller.accepted(0, "AddOrder", **LIMIT) == maximum
        assert caller.error(0, "AddOrder", **LIMIT) == CROWDED
        assert caller.accepted(10, "AddOrder", **LIMIT) == int(10 * decay)

    def test_each_pair_has_its_own(self) -> None:
        """A pair that is full leaves the others alone, and calls that are no orders as well."""
        caller = Caller(order_counter=(5, 1))
        assert caller.accepted(0, "AddOrder", **LIMIT) == 5
        assert caller.accepted(0, "AddOrder", **ETHER) == 5
        assert caller.error(0) == ""
        assert caller.accepted(0, "AddOrder", who="bob", **LIMIT) == 5

    @pytest.mark.parametrize(
        ("age", "points"),
        [(0, 8), (4.9, 8), (5, 6), (9.9, 6), (10, 5), (15, 4), (44, 4), (45, 2), (90, 1), (299, 1), (300, 0)],
    )
    def test_cancelling_young_orders_is_dear(self, age: float, points: int) -> None:
        """What a cancellation costs falls with the age of the order."""
        assert self.points(lambda caller, txid: caller.error(age, "CancelOrder", txid=txid), age) == points

    @pytest.mark.parametrize(("age", "points"), [(0, 4), (5, 3), (10, 2), (15, 1), (1000, 1)])
    def test_amending(self, age: float, points: int) -> None:
        """An amendment costs 1, and up to 3 more for a young order."""
        amend = {"limit_price": "37000", "order_qty": "0.001"}
        assert self.points(lambda caller, txid: caller.error(age, "AmendOrder", txid=txid, **amend), age) == points

    @pytest.mark.parametrize(("age", "points"), [(0, 7), (5, 6), (10, 5), (15, 3), (45, 2), (90, 1), (1000, 1)])
    def test_editing(self, age: float, points: int) -> None:
        """An edit costs 1, and up to 6 more for a young order; the order that it makes does not cost again."""
        edit = {"pair": "XBTUSD", "price": "37000"}
        assert self.points(lambda caller, txid: caller.error(age, "EditOrder", txid=txid, **edit), age) == points

    @staticmethod
    def points(change: Any, age: float) -> int:
        """Return what a change of an order of an age adds: so many orders fewer fit in at that moment."""
        caller = Caller()
        txid = caller.order(0)
        caller.exchange.settings = Settings(limits=Limits(order_counter=(50, 1e-9)))
        assert change(caller, txid) == ""
        return 50 - caller.accepted(age, "AddOrder", **LIMIT)

    def test_an_amended_order_is_young_again(self) -> None:
        """The age counts from the last amendment, so that amending and cancelling at once is dear."""
        caller = Caller(order_counter=(50, 1))
        txid = caller.order(0)
        caller.error(1000, "AmendOrder", txid=txid, limit_price="37000", order_qty="0.001")
        caller.error(1000, "CancelOrder", txid=txid)
        assert caller.accepted(1000, "AddOrder", **LIMIT) == 50 - 1 - 8

    def test_one_too_many_changes_nothing(self) -> None:
        """An order, an amendment or an edit that is refused is not carried out, and leaves the counter full."""
        caller = Caller(order_counter=(2, 1))
        txid = caller.order(0)
        caller.order(0)
        assert caller.error(0, "AddOrder", **LIMIT) == CROWDED
        assert caller.error(0, "AmendOrder", txid=txid, limit_price="37000") == CROWDED
        assert caller.error(0, "EditOrder", txid=txid, pair="XBTUSD", price="37000") == CROWDED
        assert [order.price for order in caller.exchange.orders(0)] == ["37500.0"] * 2
        assert caller.error(1, "AddOrder", **LIMIT) == ""

    def test_cancelling_always_works(self) -> None:
        """A cancellation is carried out however full the counter is, and counts: new orders wait the longer."""
        caller = Caller(order_counter=(2, 1))
        txids = [caller.order(0), caller.order(0)]
        assert caller.error(0, "CancelOrderBatch", orders=",".join(txids)) == ""
        assert caller.error(16.9, "AddOrder", **LIMIT) == CROWDED
        assert caller.error(17.9, "AddOrder", **LIMIT) == ""

    def test_what_is_only_checked_does_not_count(self) -> None:
        """With `validate` no order is placed and none is counted; one that turns out wrong counts."""
        caller = Caller(order_counter=(2, 1))
        for _ in range(10):
            assert caller.error(0, "AddOrder", **LIMIT, validate="true") == ""
        assert "Insufficient funds" in caller.error(0, "AddOrder", **{**LIMIT, "volume": "1000000"})
        assert caller.accepted(0, "AddOrder", **LIMIT) == 1


@pytest.mark.parametrize(
    "limits",
    [
        {"tier": "gold"},
        {"order_tier": "gold"},
        {"counter": (0, 1)},
        {"counter": (1, 2, 3)},
        {"order_counter": (10, float("nan"))},
        {"costs": {"Balance": -1}},
        {"most_per_second": 0},
        {"most_at_once": 0},
        {"throttle_seconds": 0},
        {"lockout_after": 0},
        {"lockout_seconds": float("inf")},
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, Any]) -> None:
    """A limit that makes no sense is refused by name, before a process starts."""
    (name,) = limits
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        KrakenSimulator(**limits)


def test_an_unknown_limit() -> None:
    """A slip in a limit's name is no limit that silently does nothing."""
    with pytest.raises(TypeError, match="most_per_minute"):
        KrakenSimulator(most_per_minute=3)  # type: ignore[call-arg]


class Api(krakenex.API):  # type: ignore[misc]
    """Stock krakenex, whose nonces rise by one."""

    last = 0

    def _nonce(self) -> int:
        self.last += 1
        return self.last

    def error(self, method: str = "Balance", **data: Any) -> str:
        """Return the one error of a call, or an empty string."""
        return "".join(self.query_private(method, data, timeout=10)["error"])


@pytest.fixture
def api(sim: KrakenSimulator) -> Iterator[Api]:
    """Yield a client of the simulator."""
    api = Api(sim.key, sim.secret)
    api.uri = sim.url
    yield api
    api.close()


@pytest.mark.simulator(counter=(3, 0.01), lockout_seconds=60)
class TestOverHttp:
    """The same from outside, as a client sees it."""

    def test_limits_of_the_constructor(self) -> None:
        """A limit given to the constructor holds from the first call on, and refused calls are in the log."""
        with KrakenSimulator(counter=(3, 0.01), lockout_seconds=60) as sim:
            api = Api(sim.key, sim.secret)
            api.uri = sim.url
            with api.session:
                assert [api.error() for _ in range(5)] == ["", "", "", FULL, FULL]
            assert [request.error for request in sim.requests()] == [()] * 3 + [(FULL,)] * 2

    def test_configure(self, sim: KrakenSimulator, api: Api) -> None:
        """Limits can be set while it runs; those that are not named stay, and None switches one off."""
        sim.configure(lockout_after=1)
        assert api.error() == ""
        api.last = 0
        assert [api.error(), api.error()] == [BAD_NONCE, LOCKED]
        sim.configure(lockout_after=None)
        sim.reset()
        api.last = 0
        assert [api.error() for _ in range(4)] == ["", "", "", FULL]
        sim.configure(counter=None)
        assert api.error() == ""

    def test_a_wrong_setting_changes_nothing(self, sim: KrakenSimulator, api: Api) -> None:
        """configure() refuses what makes no sense, and everything stays as it was."""
        with pytest.raises(ValueError, match=r"^tier"):
            sim.configure(tier="gold")  # type: ignore[arg-type]
        assert [api.error() for _ in range(4)] == ["", "", "", FULL]

    def test_throttled_names_a_time_to_come(self, sim: KrakenSimulator) -> None:
        """The time in `Throttled` is a whole Unix second after which calls are taken again."""
        sim.configure(most_at_once=2, throttle_seconds=0.5, counter=None, latency=(0.5, 0.5))

        def call(number: int) -> str:
            api = Api(sim.key, sim.secret)
            api.uri, api.last = sim.url, number
            with api.session:
                return api.error()

        asked = time.time()
        with ThreadPoolExecutor(6) as threads:
            errors = [error for error in threads.map(call, range(6)) if "Throttled" in error]
        until = max(int(error.removeprefix("EService: Throttled: ")) for error in errors)
        assert asked + 0.5 < until < time.time() + 2
        time.sleep(max(0.0, until - time.time()) + 0.01)
        assert call(100) == ""
