"""What belongs to one API key of the simulator and what to its account: nonces, windows, limits, orders, deadlines."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kraken_nonce_redis.testing import KrakenSimulator
from kraken_nonce_redis.testing._keys import NonceWindow
from kraken_nonce_redis.testing._limits import Limits
from tests.support.exchange import Caller

pytestmark = pytest.mark.once

ORDER = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "20000", "volume": "0.001"}
BAD_NONCE = "EAPI:Invalid nonce"
ELAPSED = "EService:Deadline elapsed"


def iso(moment: float) -> str:
    """Return Unix time as RFC 3339 with milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{round(moment % 1 * 1000):03d}Z"


class TestWindow:
    """A nonce window, counted from the highest nonce accepted."""

    @pytest.mark.parametrize("repeats", [False, True])
    def test_inside(self, *, repeats: bool) -> None:
        """A nonce inside is accepted once, or again where nonces repeat; one beyond it never is."""
        caller = Caller(nonce_window=10, nonce_repeats=repeats)
        again = "" if repeats else BAD_NONCE
        for nonce, error in (
            (100, ""),
            (90, ""),
            (90, again),
            (100, again),
            (89, BAD_NONCE),
            (101, ""),
            (90, BAD_NONCE),
        ):
            assert caller.error(0, "Balance", nonce=nonce) == error

    def test_repeats_carry_out_again(self) -> None:
        """Where nonces repeat, the very same bytes place an order twice: sending them again proves nothing."""
        caller = Caller(nonce_window=10, nonce_repeats=True)
        call = caller.call("AddOrder", nonce=5, **ORDER)
        for _ in range(2):
            assert caller.exchange.admit(call, caller.exchange.arrive(call, 0), 0)(0)["error"] == []
        assert [order.nonce for order in caller.exchange.orders(0)] == [5, 5]

    def test_no_window_repeats_nothing(self) -> None:
        """Without a window a nonce is used once, whatever its kind."""
        caller = Caller(nonce_repeats=True)
        assert [caller.error(0, "Balance", nonce=5) for _ in range(2)] == ["", BAD_NONCE]

    @pytest.mark.parametrize(("fence", "error"), [(6, ""), (15, ""), (16, BAD_NONCE)])
    def test_fence(self, fence: int, error: str) -> None:
        """A lost request is dead only when a nonce more than the window above its own was accepted."""
        caller = Caller(nonce_window=10)
        lost = caller.call("AddOrder", nonce=5, **ORDER)
        assert caller.error(0, "Balance", nonce=fence) == ""
        late = caller.exchange.admit(lost, caller.exchange.arrive(lost, 1), 1)(1)
        assert "".join(late["error"]) == error
        assert len(caller.exchange.orders(1)) == (not error)

    def test_key_of_its_own(self) -> None:
        """One key can have a window of its own, which a reset leaves alone, until all keys have the same again."""
        caller = Caller(keys=2)
        caller.exchange.set_window(1, NonceWindow(10, repeats=True))
        for _ in range(2):
            assert [caller.error(0, "Balance", key=key, nonce=5) for key in ("alice", "alice-2")] == ["", ""]
            assert [caller.error(0, "Balance", key=key, nonce=5) for key in ("alice", "alice-2")] == [BAD_NONCE, ""]
            caller.exchange.reset(0)
        caller.exchange.forget_windows()
        assert [caller.error(0, "Balance", key="alice-2", nonce=5) for _ in range(2)] == ["", BAD_NONCE]

    def test_raised_nonce_moves_it(self) -> None:
        """A nonce that another program used moves the window as well."""
        caller = Caller(nonce_window=10)
        caller.exchange.raise_nonce(0, 100)
        assert [caller.error(0, "Balance", nonce=nonce) for nonce in (90, 89, 100)] == ["", BAD_NONCE, BAD_NONCE]


class TestApiKeyInfo:
    """GetApiKeyInfo."""

    def test_fields(self) -> None:
        """It tells the highest nonce as text, the key's own window, and what Kraken tells besides."""
        caller = Caller(keys=2, nonce_window=3)
        caller.exchange.set_window(1, NonceWindow(10))
        caller.error(0, "Balance", key="alice-2", nonce=100)
        info = caller.result(7, "GetApiKeyInfo", key="alice-2", nonce=95)
        assert (info["apiKeyName"], info["nonce"], info["nonceWindow"]) == ("alice-2", "100", 10)
        assert (info["validUntil"], info["lastUsed"], info["ipAllowlist"]) == ("0", "7", [])
        assert "modify-trades" in info["permissions"]
        assert caller.result(8, "GetApiKeyInfo")["nonceWindow"] == 3

    def test_uses_its_nonce(self) -> None:
        """It is a fence like any other call: its own nonce must be valid, and is used."""
        caller = Caller()
        assert caller.result(0, "GetApiKeyInfo", nonce=5)["nonce"] == "5"
        assert caller.error(0, "GetApiKeyInfo", nonce=5) == caller.error(0, "AddOrder", nonce=4, **ORDER) == BAD_NONCE


class TestSeveralKeys:
    """API keys that share an account."""

    def test_shared(self) -> None:
        """Orders, balances and strategies belong to the account, and each key sees and cancels what another placed."""
        caller = Caller(["alice", "bob"], keys=2)
        txid = caller.result(0, "AddOrder", **ORDER)["txid"][0]
        assert list(caller.result(0, "OpenOrders", key="alice-2")["open"]) == [txid]
        assert caller.result(0, "OpenOrders", key="bob-2")["open"] == {}
        assert caller.result(0, "BalanceEx", key="alice-2")["ZUSD"]["hold_trade"] == "20.0000"
        assert caller.result(0, "CancelOrder", key="alice-2", txid=txid) == {"count": 1}
        assert [order.account for order in caller.exchange.orders(0)] == ["alice"]
        seen = [(request.account, request.key_number) for request in caller.exchange.requests()]
        assert seen == [("alice", 1), ("alice", 2), ("bob", 2), ("alice", 2), ("alice", 2)]

    def test_nonces_of_their_own(self) -> None:
        """Each key has its own highest nonce."""
        caller = Caller(keys=2)
        assert caller.error(0, "Balance", nonce=100) == ""
        assert caller.error(0, "Balance", key="alice-2", nonce=1) == ""

    def test_counters(self) -> None:
        """Each key has its own counter of calls; the limit for orders, throttling and lockouts are for them all."""
        calls = Caller(keys=2, limits=Limits(counter=(1, 0.1)))
        assert [calls.error(0, "Balance", key=key) for key in ("alice", "alice-2")] == ["", ""]
        orders = Caller(keys=2, limits=Limits(order_counter=(1, 0.1)))
        assert orders.error(0, "AddOrder", **ORDER) == ""
        assert orders.error(0, "AddOrder", key="alice-2", **ORDER) == "EOrder:Rate limit exceeded"
        lockout = Caller(keys=2, limits=Limits(lockout_after=1))
        assert lockout.error(0, "Balance", nonce=-1) == BAD_NONCE
        assert lockout.error(0, "Balance", key="alice-2") == "EGeneral:Temporary lockout"

    def test_in_flight(self) -> None:
        """The log counts the calls of one key that are under way; the limit counts those of the account."""
        caller = Caller(keys=2, limits=Limits(most_at_once=1))
        first, second = (caller.call("Balance", key=key) for key in ("alice", "alice-2"))
        with caller.exchange.under_way(first), caller.exchange.under_way(second):
            answer = caller.exchange.admit(second, caller.exchange.arrive(second, 0), 0)(0)
        assert answer["error"] == ["EService: Throttled: 5"]
        assert [request.in_flight for request in caller.exchange.requests()] == [1]

    @pytest.mark.test_all
    def test_over_http(self) -> None:
        """The handle names all keys account by account, raises nonces and sets windows for each of them."""
        krakenex = pytest.importorskip("krakenex")
        with KrakenSimulator(["alice", "bob"], keys=2) as sim:
            apis = [krakenex.API(key, secret) for key, secret in sim.accounts.items()]
            sim.raise_nonce(10**6, key=apis[1].key)
            sim.set_nonce_window(10, key=apis[1].key, repeats=True)
            for api in apis:
                api.uri = sim.url
                api._nonce = lambda: 10**6
                for _ in range(2):
                    api.query_private("AddOrder", dict(ORDER))
                api.close()
            assert [order.account for order in sim.orders()] == ["alice"] * 3 + ["bob"] * 2
            assert repr(sim).endswith("accounts: alice, bob>")
            sim.configure(nonce_repeats=False)
            assert apis[1].query_private("Balance")["error"] == [BAD_NONCE]
            with pytest.raises(ValueError, match="simulator's accounts"):
                sim.set_nonce_window(1, key="other")
            with pytest.raises(ValueError, match="nonce_window"):
                sim.set_nonce_window(-1)
            apis[1].close()

    @pytest.mark.parametrize("arguments", [{"keys": 0}, {"accounts": {"k": "YQ=="}, "keys": 2}])
    def test_senseless(self, arguments: dict[str, Any]) -> None:
        """There is at least one key, and only generated ones can be several."""
        with pytest.raises(ValueError, match="keys must be"):
            KrakenSimulator(**arguments)


class TestDeadline:
    """The parameter `deadline`."""

    @pytest.mark.parametrize(
        ("ahead", "error"),
        [(1.9, ELAPSED), (2, ""), (60, ""), (60.1, "EGeneral:Invalid arguments:deadline"), (-5, ELAPSED)],
    )
    def test_bounds(self, ahead: float, error: str) -> None:
        """It lies 2 to 60 seconds after the request was sent."""
        caller = Caller()
        assert caller.error(1000.5, "AddOrder", sent=1000, deadline=iso(1000 + ahead), **ORDER) == error
        assert len(caller.exchange.orders(1000.5)) == (not error)

    @pytest.mark.parametrize(("acted", "error"), [(1004.9, ""), (1005, ELAPSED)])
    @pytest.mark.parametrize("method", ["AddOrder", "AddOrderBatch", "AmendOrder", "EditOrder"])
    def test_passed_on_the_way(self, method: str, acted: float, error: str) -> None:
        """An order accepted in time is refused all the same if its deadline passes before it is carried out."""
        caller = Caller()
        txid = caller.result(0, "AddOrder", **ORDER)["txid"][0]
        data: dict[str, dict[str, object]] = {
            "AddOrder": ORDER,
            "AddOrderBatch": {"pair": "XBTUSD", "orders": [ORDER, ORDER]},
            "AmendOrder": {"txid": txid, "order_qty": "2"},
            "EditOrder": {"txid": txid, "pair": "XBTUSD", "volume": "2"},
        }
        before = caller.exchange.orders(0)
        call = caller.call(method, sent=1000, deadline=iso(1005), **data[method])
        act = caller.exchange.admit(call, caller.exchange.arrive(call, 0), 1001)
        assert "".join(act(acted)["error"]) == error
        assert (caller.exchange.orders(0) == before) == bool(error)
        record = caller.exchange.requests()[-1]
        assert (record.decided, record.error) == (acted, (error,) if error else ())

    def test_uses_the_nonce(self) -> None:
        """An order refused for its deadline has used its nonce."""
        caller = Caller()
        assert caller.error(1000, "AddOrder", nonce=5, deadline=iso(0), **ORDER) == ELAPSED
        assert caller.error(1000, "AddOrder", nonce=5, **ORDER) == BAD_NONCE


class TestListed:
    """Orders that come to lists late, whatever they are by then."""

    def test_all_kinds(self) -> None:
        """Filled, cancelled and open ones, those of a batch and edited ones: no list has them before their delay."""
        caller = Caller(listing_delay=(5.0, 5.0))
        market = {key: value for key, value in ORDER.items() if key != "price"} | {"ordertype": "market"}
        filled, cancelled, first = (caller.result(0, "AddOrder", **what)["txid"][0] for what in (market, ORDER, ORDER))
        batch = caller.result(0, "AddOrderBatch", pair="XBTUSD", orders=[ORDER, market])["orders"]
        caller.result(1, "CancelOrder", txid=cancelled)
        edited = caller.result(3, "EditOrder", txid=first, pair="XBTUSD", volume="2")["txid"]
        still_open, closed = {batch[0]["txid"]}, {filled, cancelled, first, batch[1]["txid"]}
        for now, shown in ((4.9, (set(), set())), (5, (still_open, closed)), (8, (still_open | {edited}, closed))):
            assert set(caller.result(now, "OpenOrders")["open"]) == shown[0]
            assert set(caller.result(now, "ClosedOrders")["closed"]) == shown[1]
        assert caller.error(3, "QueryOrders", txid=edited) == "EOrder:Unknown order"
