"""Batches of orders, the dead man's switch, withdrawals, and orders that are listed late."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis.testing import KrakenSimulator
from kraken_nonce_redis.testing._exchange import Exchange
from kraken_nonce_redis.testing._limits import Limits
from kraken_nonce_redis.testing._protocol import Call, signature
from kraken_nonce_redis.testing._records import Settings

if TYPE_CHECKING:
    from kraken_nonce_redis.testing import SimulatedOrder

pytestmark = pytest.mark.once

SECRET = base64.b64encode(b"secret").decode()
LIMIT = {"type": "buy", "ordertype": "limit", "price": "20000", "volume": "0.001"}
MARKET = {"type": "buy", "ordertype": "market", "volume": "0.001"}


class Caller:
    """Signs JSON requests to an exchange that has no network and no clock: each is a time, a method and an answer."""

    def __init__(self, **settings: Any) -> None:
        self.exchange = Exchange([("alice", "key", SECRET)], Settings(**settings), seed=0, now=0.0)
        self.nonce = 0

    def answer(self, now: float, method: str, **data: object) -> dict[str, Any]:
        """Make a call at a time and return the whole answer."""
        self.nonce += 1
        path = f"/0/private/{method}"
        body = json.dumps({"nonce": self.nonce, **data}).encode()
        sign = signature(b"secret", path, str(self.nonce), body)
        call = Call(path, method, "application/json", "key", sign, body)
        return self.exchange.admit(call, self.exchange.arrive(call, now), now)(now)

    def result(self, now: float, method: str, **data: object) -> Any:
        """Return the result of a call that must succeed."""
        answer = self.answer(now, method, **data)
        assert answer["error"] == []
        return answer["result"]

    def error(self, now: float, method: str, **data: object) -> str:
        """Return the error of a call, or an empty string."""
        return "".join(self.answer(now, method, **data)["error"])

    def batch(self, *orders: object) -> Any:
        """Place a batch of orders at time 0 and return the whole answer."""
        return self.answer(0, "AddOrderBatch", pair="XBTUSD", orders=orders)

    def orders(self, now: float = 0) -> list[SimulatedOrder]:
        """Return what was placed."""
        return self.exchange.orders(now)


class TestBatch:
    """AddOrderBatch."""

    def test_placed(self) -> None:
        """All orders of a batch are placed with the request's nonce, and answered in the order in which they came."""
        caller = Caller()
        entries = caller.batch(LIMIT | {"cl_ord_id": "a"}, MARKET, LIMIT | {"userref": 7})["result"]["orders"]
        placed = caller.orders()
        assert [entry["txid"] for entry in entries] == [order.txid for order in placed]
        assert entries[0]["descr"] == {"order": "buy 0.00100000 XBTUSD @ limit 20000.0"}
        assert [(order.cl_ord_id, order.userref, order.status, order.nonce) for order in placed] == [
            ("a", None, "open", 1),
            (None, None, "closed", 1),
            (None, 7, "open", 1),
        ]

    @pytest.mark.parametrize(
        ("orders", "error"),
        [
            ([LIMIT, LIMIT | {"price": "-1"}], "EGeneral:Invalid arguments:price"),
            ([LIMIT, "order"], "EGeneral:Invalid arguments:orders"),
            ([LIMIT], "EGeneral:Invalid arguments:orders"),
            ([LIMIT] * 16, "EGeneral:Invalid arguments:orders"),
            ([LIMIT | {"cl_ord_id": "a"}] * 2, "EGeneral:Invalid arguments:cl_ord_id not unique"),
            ([LIMIT, LIMIT | {"cl_ord_id": "open"}], "EGeneral:Invalid arguments:cl_ord_id not unique"),
        ],
    )
    def test_one_spoils_them_all(self, orders: list[object], error: str) -> None:
        """One order that is not valid, or the wrong number of them, and nothing is placed."""
        caller = Caller()
        caller.result(0, "AddOrder", pair="XBTUSD", cl_ord_id="open", **LIMIT)
        assert caller.batch(*orders) == {"error": [error]}
        assert len(caller.orders()) == 1

    def test_no_list(self) -> None:
        """Orders that are no list, or no JSON at all, are refused."""
        error = "EGeneral:Invalid arguments:orders"
        assert Caller().error(0, "AddOrderBatch", pair="XBTUSD", orders="a,b") == error
        assert Caller().error(0, "AddOrderBatch", pair="XBTUSD") == error

    def test_funds(self) -> None:
        """An order that the funds don't suffice for is refused alone; those before it count."""
        caller = Caller()
        sell = LIMIT | {"type": "sell", "volume": "60000"}
        first, second, third = caller.batch(sell, sell, LIMIT)["result"]["orders"]
        assert "error" not in first | third
        assert (second["error"], "txid" in second) == ("EOrder:Insufficient funds", False)
        assert len(caller.orders()) == 2

    def test_validate_and_deadline(self) -> None:
        """A batch can be checked only, and has a deadline."""
        caller = Caller()
        for extra in ({"validate": True}, {"deadline": "1970-01-01T00:00:05Z"}):
            caller.answer(10, "AddOrderBatch", pair="XBTUSD", orders=[LIMIT, MARKET], **extra)
        assert caller.orders() == []

    def test_limits(self) -> None:
        """A batch costs half a point an order, and one that is too much is not placed."""
        caller = Caller(limits=Limits(order_counter=(3, 1)))
        assert caller.batch(*[LIMIT] * 6)["error"] == []
        assert caller.batch(LIMIT, LIMIT)["error"] == ["EOrder:Rate limit exceeded"]
        assert len(caller.orders()) == 6


class TestCancelAllAfter:
    """CancelAllOrdersAfter: the dead man's switch."""

    def test_expires(self) -> None:
        """When its time has come all orders are cancelled once, and later ones live."""
        caller = Caller()
        txid = caller.result(0, "AddOrder", pair="XBTUSD", **LIMIT)["txid"][0]
        assert caller.result(0.5, "CancelAllOrdersAfter", timeout=60) == {
            "currentTime": "1970-01-01T00:00:01Z",
            "triggerTime": "1970-01-01T00:01:01Z",
        }
        assert list(caller.result(60, "OpenOrders")["open"]) == [txid]
        assert caller.result(61, "OpenOrders") == {"open": {}}
        caller.result(62, "AddOrder", pair="XBTUSD", **LIMIT)
        assert [order.status for order in caller.orders(1000)] == ["canceled", "open"]

    def test_seen_without_a_call(self) -> None:
        """Orders are cancelled on time even if nobody calls any more."""
        caller = Caller()
        caller.result(0, "AddOrder", pair="XBTUSD", **LIMIT)
        caller.result(0, "CancelAllOrdersAfter", timeout=60)
        assert [caller.orders(now)[0].status for now in (59, 60)] == ["open", "canceled"]

    def test_pushed_back_and_off(self) -> None:
        """Asking again pushes the time back, and a timeout of 0 turns it off."""
        caller = Caller()
        caller.result(0, "AddOrder", pair="XBTUSD", **LIMIT)
        caller.result(0, "CancelAllOrdersAfter", timeout=60)
        caller.result(50, "CancelAllOrdersAfter", timeout=60)
        assert caller.result(100, "CancelAllOrdersAfter", timeout=0)["triggerTime"] == "0"
        assert caller.orders(1000)[0].status == "open"

    @pytest.mark.parametrize("timeout", [None, -1, 86_401, "soon"])
    def test_senseless(self, timeout: object) -> None:
        """A timeout is 0 to 86400 whole seconds."""
        assert Caller().error(0, "CancelAllOrdersAfter", timeout=timeout) == "EGeneral:Invalid arguments:timeout"


class TestWithdraw:
    """Withdraw."""

    def test_carried_out(self) -> None:
        """A withdrawal is recorded with its nonce, and gone from the balance with an entry in the ledger."""
        caller = Caller()
        before = float(caller.result(0, "Balance")["XXBT"])
        refid = caller.result(0, "Withdraw", asset="XBT", key="cold wallet", amount="0.5")["refid"]
        (withdrawal,) = caller.exchange.withdrawals()
        assert (withdrawal.refid, withdrawal.account, withdrawal.nonce) == (refid, "alice", 2)
        assert (withdrawal.asset, withdrawal.withdrawal_key, float(withdrawal.amount)) == ("XXBT", "cold wallet", 0.5)
        assert float(caller.result(0, "Balance")["XXBT"]) == before - 0.5
        (entry,) = caller.result(0, "Ledgers", type="withdrawal")["ledger"].values()
        assert (entry["refid"], float(entry["amount"])) == (refid, -0.5)

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"asset": "NOPE"}, "EQuery:Unknown asset"),
            ({"key": ""}, "EGeneral:Invalid arguments:key"),
            ({"amount": ""}, "EGeneral:Invalid arguments:amount"),
            ({"amount": "-1"}, "EGeneral:Invalid arguments:amount"),
            ({"amount": "1e12"}, "EFunding:Invalid amount"),
        ],
    )
    def test_refused(self, changes: dict[str, str], error: str) -> None:
        """What is wrong with a withdrawal is named, and nothing is withdrawn."""
        caller = Caller()
        assert caller.error(0, "Withdraw", **({"asset": "XBT", "key": "k", "amount": "1"} | changes)) == error
        assert caller.exchange.withdrawals() == []


class TestListingDelay:
    """Orders that appear in lists some time after they were placed."""

    def test_lists(self) -> None:
        """An order is in no list before its delay is over, whatever has become of it meanwhile."""
        caller = Caller(listing_delay=(2.0, 2.0))
        txids = [
            caller.result(0, "AddOrder", pair="XBTUSD", cl_ord_id="a", **what)["txid"][0] for what in (MARKET, LIMIT)
        ]
        for now, listed in ((1.9, False), (2.0, True)):
            assert list(caller.result(now, "ClosedOrders", cl_ord_id="a")["closed"]) == txids[:1] * listed
            assert list(caller.result(now, "OpenOrders", cl_ord_id="a")["open"]) == txids[1:] * listed
            unknown = [caller.error(now, "QueryOrders", txid=txid) == "EOrder:Unknown order" for txid in txids]
            assert unknown == [not listed] * 2

    def test_nothing_else_waits(self) -> None:
        """An order that is not listed yet can be cancelled, keeps its cl_ord_id to itself and binds funds."""
        caller = Caller(listing_delay=(5.0, 9.0))
        caller.result(0, "AddOrder", pair="XBTUSD", cl_ord_id="a", **LIMIT)
        assert caller.error(0, "AddOrder", pair="XBTUSD", cl_ord_id="a", **LIMIT).endswith("not unique")
        assert float(caller.result(0, "BalanceEx")["ZUSD"]["hold_trade"]) == 20
        assert caller.result(0, "CancelOrder", cl_ord_id="a") == {"count": 1}
        assert caller.result(4.9, "ClosedOrders")["count"] == 0
        assert caller.result(9, "ClosedOrders")["count"] == 1

    def test_ids_stay(self) -> None:
        """The delay does not change the ids that a seed brings."""
        ids = [Caller(listing_delay=(0.0, most)).batch(LIMIT, LIMIT) for most in (0.0, 5.0)]
        assert ids[0] == ids[1]

    @pytest.mark.parametrize("delay", [(2.0, 1.0), (-1.0, 0.0), (0.0, float("inf"))])
    def test_senseless(self, delay: tuple[float, float]) -> None:
        """A delay that makes no sense is named."""
        with pytest.raises(ValueError, match="listing_delay"):
            KrakenSimulator(listing_delay=delay)

    def test_configured(self) -> None:
        """The delay is set at construction, changed while the simulator runs, and kept by other changes."""
        krakenex = pytest.importorskip("krakenex")
        with KrakenSimulator(listing_delay=(60.0, 60.0)) as sim:
            api = krakenex.API(sim.key, sim.secret)
            api.uri = sim.url

            def is_listed() -> bool:
                txid = api.query_private("AddOrder", {"pair": "XBTUSD", **LIMIT})["result"]["txid"][0]
                return txid in api.query_private("OpenOrders")["result"]["open"]

            assert not is_listed()
            sim.configure(nonce_window=0)
            assert not is_listed()
            sim.configure(listing_delay=(0.0, 0.0))
            assert is_listed()
            api.close()


class TestClients:
    """The new methods with clients that people use."""

    def test_ccxt(self) -> None:
        """A batch and the dead man's switch work with ccxt's unified methods, a withdrawal with Kraken's name."""
        ccxt = pytest.importorskip("ccxt")
        with KrakenSimulator() as sim:
            kraken = ccxt.kraken({"apiKey": sim.key, "secret": sim.secret, "enableRateLimit": False})
            kraken.urls["api"] = dict.fromkeys(("public", "private"), sim.url)
            order = {"symbol": "BTC/USD", "type": "limit", "side": "buy", "amount": 0.01, "price": 20_000}
            placed = kraken.create_orders([order, order])
            assert [each["id"] for each in placed] == [each.txid for each in sim.orders()]
            assert kraken.cancel_all_orders_after(1000)["result"]["triggerTime"] != "0"
            asked = {"asset": "XBT", "key": "k", "amount": "1"}
            refid = kraken.private_post_withdraw(asked)["result"]["refid"]
            assert [withdrawal.refid for withdrawal in sim.withdrawals()] == [refid]
            end = time.monotonic() + 30
            while sim.orders()[0].status == "open" and time.monotonic() < end:
                time.sleep(0.05)
            assert {each.status for each in sim.orders()} == {"canceled"}
            kraken.close()

    @pytest.mark.filterwarnings("ignore:The 'withdraw_funds':DeprecationWarning")
    def test_python_kraken_sdk(self) -> None:
        """python-kraken-sdk's batch, dead man's switch and withdrawal work."""
        spot = pytest.importorskip("kraken.spot")
        with KrakenSimulator() as sim:
            login = {"key": sim.key, "secret": sim.secret, "url": sim.url}
            trade = spot.Trade(**login)
            assert len(trade.create_order_batch(orders=[LIMIT, LIMIT], pair="XBTUSD")["orders"]) == 2
            assert trade.cancel_all_orders_after_x(timeout=60)["triggerTime"] != "0"
            assert spot.Funding(**login).withdraw_funds(asset="XBT", key="k", amount="1")["refid"]
