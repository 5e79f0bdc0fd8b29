"""The simulator refuses what Kraken refuses and keeps what Kraken keeps, over real HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import krakenex
import pytest

from kraken_nonce_redis.testing import KrakenSimulator
from kraken_nonce_redis.testing._exchange import Exchange
from kraken_nonce_redis.testing._protocol import Call, signature
from kraken_nonce_redis.testing._records import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# The example in Kraken's documentation of API-Sign.
VECTOR_SECRET = "kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg=="
VECTOR_PATH = "/0/private/AddOrder"
VECTOR_BODY = b"nonce=1616492376594&ordertype=limit&pair=XBTUSD&price=37500&type=buy&volume=1.25"
VECTOR_SIGN = "4/dpxb3iT4tp/ZCVEwSnEsLxx0bqyhLpdfOpc6fn7OR8+UClSV5n9E6aSS8MPtnRfp32bAb0nmbRn6H8ndwLUQ=="

LIMIT = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "37500", "volume": "1.25"}
MARKET = {"pair": "XBTUSD", "type": "buy", "ordertype": "market", "volume": "1.25"}
HEX_ID = "0123456789ABCDEF0123456789ABCDEF"
DASHED_ID = "01234567-89ab-cdef-0123-456789abcdef"

pytestmark = pytest.mark.simulator(accounts=("alice", "bob"))


class Client(krakenex.API):  # type: ignore[misc]
    """Stock krakenex with nonces that a test can choose."""

    def __init__(self, sim: KrakenSimulator, key: str = "", secret: str = "") -> None:
        super().__init__(key or sim.key, secret or sim.secret)
        self.uri = sim.url
        self.nonces: list[int] = []
        self.highest = 0

    def _nonce(self) -> int:
        self.highest = self.nonces.pop(0) if self.nonces else self.highest + 1
        return self.highest

    def private(self, method: str, nonce: int | None = None, **data: Any) -> dict[str, Any]:
        """Return Kraken's whole answer."""
        if nonce is not None:
            self.nonces = [nonce]
        answer: dict[str, Any] = self.query_private(method, data, timeout=10)
        return answer

    def result(self, method: str, **data: Any) -> Any:
        """Return the result of a call that must succeed."""
        answer = self.private(method, **data)
        assert answer["error"] == []
        return answer["result"]

    def error(self, method: str, nonce: int | None = None, **data: Any) -> str:
        """Return the one error of a call, or an empty string."""
        return "".join(self.private(method, nonce, **data)["error"])


@pytest.fixture
def api(sim: KrakenSimulator) -> Iterator[Client]:
    """Yield a krakenex client on the first account."""
    client = Client(sim)
    yield client
    client.close()


def post(url: str, path: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Send bytes as they are and return Kraken's answer."""
    request = urllib.request.Request(url + path, body, headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200
        answer: dict[str, Any] = json.load(response)
        return answer


def signed(sim: KrakenSimulator, path: str, nonce: str, body: bytes) -> dict[str, str]:
    """Return the headers of a private request."""
    sign = signature(base64.b64decode(sim.secret), path, nonce, body)
    return {"API-Key": sim.key, "API-Sign": sign}


class TestCredentials:
    """API key and signature."""

    def test_official_vector(self) -> None:
        """The very bytes of Kraken's documentation are accepted: clients sign by the same rule."""
        with KrakenSimulator({"some-key": VECTOR_SECRET}) as sim:
            headers = {"API-Key": "some-key", "API-Sign": VECTOR_SIGN}
            changed = VECTOR_BODY.replace(b"volume=1.25", b"volume=1.26")
            refused = post(sim.url, VECTOR_PATH, changed, headers)
            accepted = post(sim.url, VECTOR_PATH, VECTOR_BODY, headers)
        assert refused == {"error": ["EAPI:Invalid signature"]}
        assert accepted["error"] == []
        assert accepted["result"]["descr"] == {"order": "buy 1.25000000 XBTUSD @ limit 37500.0"}

    def test_signature_covers_path(self, sim: KrakenSimulator) -> None:
        """A signature for one method is worth nothing for another."""
        headers = signed(sim, "/0/private/Balance", "1", b"nonce=1")
        answer = post(sim.url, "/0/private/CancelAll", b"nonce=1", headers)
        assert answer == {"error": ["EAPI:Invalid signature"]}

    def test_unknown_key(self, sim: KrakenSimulator) -> None:
        """A key that the exchange does not know is refused, and logged under no account."""
        assert Client(sim, key="nobody").error("Balance") == "EAPI:Invalid key"
        (request,) = sim.requests()
        assert (request.account, request.error) == ("", ("EAPI:Invalid key",))

    def test_wrong_secret(self, sim: KrakenSimulator, api: Client) -> None:
        """A wrong signature is refused and does not use up its nonce: nobody else can poison it."""
        stranger = Client(sim, secret=base64.b64encode(b"wrong").decode())
        assert stranger.error("Balance", nonce=10**18) == "EAPI:Invalid signature"
        assert api.error("Balance", nonce=1) == ""

    def test_no_headers(self, sim: KrakenSimulator) -> None:
        """An unsigned request is refused like Kraken does it: status 200 and an error."""
        answer = post(sim.url, "/0/private/Balance", b"nonce=1", {})
        assert answer == {"error": ["EAPI:Invalid key"]}

    def test_json_body(self, sim: KrakenSimulator) -> None:
        """A JSON body is signed as it stands, and a 19-digit nonce keeps its last digit."""
        nonce = 1_700_000_000_123_456_789
        body = json.dumps({"nonce": nonce, **LIMIT, "validate": True}).encode()
        headers = signed(sim, VECTOR_PATH, str(nonce), body)
        headers["Content-Type"] = "application/json; charset=utf-8"
        answer = post(sim.url, VECTOR_PATH, body, headers)
        assert answer["error"] == []
        assert "txid" not in answer["result"]
        assert [request.nonce for request in sim.requests()] == [nonce]


class TestNonces:
    """Strictly above the last accepted one, per key; with a window, late ones once."""

    def test_strictly_rising(self, api: Client) -> None:
        """Equal and lower nonces are refused, whatever the gap upwards."""
        answers = [api.error("Balance", nonce=nonce) for nonce in (5, 5, 4, 6, 10**18, 7)]
        bad = "EAPI:Invalid nonce"
        assert answers == ["", bad, bad, "", "", bad]

    @pytest.mark.parametrize("nonce", ["", "abc", "1.5", "-1", str(2**64), "9" * 5000, "\u0663"])
    def test_not_64_bits(self, sim: KrakenSimulator, nonce: str) -> None:
        """Only an unsigned 64-bit integer is a nonce."""
        body = urlencode({"nonce": nonce}).encode()
        path = "/0/private/Balance"
        answer = post(sim.url, path, body, signed(sim, path, nonce, body))
        assert answer == {"error": ["EAPI:Invalid nonce"]}

    def test_highest(self, api: Client) -> None:
        """The whole unsigned range is accepted, and then the key is dead."""
        assert api.error("Balance", nonce=2**64 - 1) == ""
        assert api.error("Balance", nonce=2**63) == "EAPI:Invalid nonce"

    def test_per_key(self, sim: KrakenSimulator, api: Client) -> None:
        """Each key counts for itself."""
        bob = Client(sim, *list(sim.accounts.items())[1])
        assert api.error("Balance", nonce=100) == ""
        assert bob.error("Balance", nonce=1) == ""
        assert [request.account for request in sim.requests()] == ["alice", "bob"]

    def test_refused_is_not_carried_out(self, sim: KrakenSimulator, api: Client) -> None:
        """An order with an old nonce is not placed."""
        api.result("AddOrder", **LIMIT)
        assert api.error("AddOrder", nonce=1, **LIMIT) == "EAPI:Invalid nonce"
        assert [order.nonce for order in sim.orders()] == [1]

    def test_used_even_if_the_method_fails(self, api: Client) -> None:
        """A request that passed the nonce check has used its nonce, whatever comes after."""
        assert api.error("QueryOrders", nonce=5, txid="O00000") == "EOrder:Unknown order"
        assert api.error("Balance", nonce=5) == "EAPI:Invalid nonce"

    def test_window(self, sim: KrakenSimulator, api: Client) -> None:
        """Late nonces within the window are accepted once each, those beyond it never."""
        sim.configure(nonce_window=10)
        answers = [api.error("Balance", nonce=nonce) for nonce in (100, 90, 90, 89, 100, 95)]
        bad = "EAPI:Invalid nonce"
        assert answers == ["", "", bad, bad, bad, ""]
        assert api.error("Balance", nonce=101) == ""
        info = api.result("GetApiKeyInfo")
        assert (info["nonce"], info["nonceWindow"]) == ("102", 10)

    def test_window_keeps_the_highest(self, sim: KrakenSimulator, api: Client) -> None:
        """An accepted late nonce does not lower the mark for the others."""
        sim.configure(nonce_window=10)
        for nonce in (100, 91):
            assert api.error("Balance", nonce=nonce) == ""
        assert api.error("Balance", nonce=85) == "EAPI:Invalid nonce"


class TestNetwork:
    """Latency, order of arrival, and the log of it."""

    def test_overtaking(self, sim: KrakenSimulator) -> None:
        """With a spread, requests overtake each other: rising nonces alone are not enough."""
        sim.configure(latency=(0.0, 0.05))
        barrier, lock = threading.Barrier(8), threading.Lock()
        counter = iter(range(1, 1000))
        outcomes: list[str] = []

        def work() -> None:
            client = Client(sim)
            barrier.wait()
            for _ in range(5):
                with lock:
                    nonce = next(counter)
                outcomes.append(client.error("Balance", nonce=nonce))
            client.close()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        log = sim.requests()
        accepted = [request.nonce for request in log if not request.error]
        times = [request.received for request in log]
        assert set(outcomes) == {"", "EAPI:Invalid nonce"}
        assert len(accepted) == outcomes.count("") < 40
        assert accepted == sorted(nonce for nonce in accepted if nonce is not None)
        assert times == sorted(times)
        assert 1 < max(request.in_flight for request in log) <= 8

    def test_one_at_a_time(self, sim: KrakenSimulator, api: Client) -> None:
        """Calls one after the other are never in flight together, and both ways take time."""
        sim.configure(latency=(0.03, 0.03))
        began = time.monotonic()
        for _ in range(3):
            api.result("Balance")
        assert time.monotonic() - began >= 0.18
        log = sim.requests()
        assert [request.in_flight for request in log] == [1, 1, 1]
        for before, after in pairwise(log):
            assert before.finished is not None
            assert before.finished - before.received >= 0.03
            assert before.finished < after.received

    def test_slow_requests_are_in_the_log(self, sim: KrakenSimulator) -> None:
        """A client that gave up has still been heard: its request shows without an end, then with."""
        client = Client(sim)
        sim.configure(latency=(0.5, 0.5))
        with pytest.raises(OSError, match="timed out"):
            client.query_private("Balance", timeout=0.7)
        assert [request.finished for request in sim.requests()] == [None]
        end = time.monotonic() + 5
        while sim.requests()[0].finished is None and time.monotonic() < end:
            time.sleep(0.02)
        assert sim.requests()[0].finished is not None
        client.close()

    def test_reset(self, sim: KrakenSimulator, api: Client) -> None:
        """After a reset nothing is left, neither nonces nor orders nor requests."""
        api.result("AddOrder", **LIMIT)
        sim.reset()
        assert (sim.requests(), sim.orders()) == ([], [])
        assert api.error("Balance", nonce=1) == ""


class TestOrders:
    """Placing, finding, changing and cancelling orders."""

    def test_limit_order_stays_open(self, sim: KrakenSimulator, api: Client) -> None:
        """A limit order is listed as open, holds its cost, and gives it back when cancelled."""
        txid = api.result("AddOrder", userref=7, **LIMIT)["txid"][0]
        (listed,) = api.result("OpenOrders", userref=7)["open"].items()
        assert (listed[0], listed[1]["status"], listed[1]["userref"]) == (txid, "open", 7)
        assert api.result("BalanceEx")["ZUSD"]["hold_trade"] == "46875.0000"
        assert api.result("CancelOrder", txid=txid) == {"count": 1}
        assert api.result("OpenOrders") == {"open": {}}
        assert api.result("QueryOrders", txid=txid)[txid]["status"] == "canceled"
        assert api.result("BalanceEx")["ZUSD"]["hold_trade"] == "0.0000"
        assert [order.status for order in sim.orders()] == ["canceled"]

    def test_open_orders_bind_funds(self, api: Client) -> None:
        """What an open order holds can't be ordered a second time; changing it frees its own."""
        sell = LIMIT | {"type": "sell", "volume": "60000"}
        txid = api.result("AddOrder", **sell)["txid"][0]
        assert api.error("AddOrder", **sell) == "EOrder:Insufficient funds"
        api.result("AmendOrder", txid=txid, order_qty="100000")
        assert api.error("AmendOrder", txid=txid, order_qty="100001") == "EOrder:Insufficient funds"
        assert api.result("BalanceEx")["XXBT"]["hold_trade"] == "100000.0000000000"

    def test_market_order_fills_at_once(self, api: Client) -> None:
        """A market order is closed with a trade, and balances and ledger follow."""
        before = {key: float(amount) for key, amount in api.result("Balance").items()}
        txid = api.result("AddOrder", **MARKET)["txid"][0]
        order = api.result("QueryOrders", txid=txid, trades=True)[txid]
        (trade,) = api.result("TradesHistory")["trades"].values()
        after = {key: float(amount) for key, amount in api.result("Balance").items()}
        assert (order["status"], order["vol_exec"]) == ("closed", "1.25000000")
        assert (trade["ordertxid"], trade["price"], trade["cost"]) == (
            txid,
            "60000.0",
            "75000.0000",
        )
        assert list(api.result("QueryTrades", txid=order["trades"][0]).values()) == [trade]
        assert after["XXBT"] - before["XXBT"] == pytest.approx(1.25)
        assert before["ZUSD"] - after["ZUSD"] == pytest.approx(75_000 * 1.0026)
        entries = api.result("Ledgers", type="trade", asset="XBT")["ledger"].values()
        assert [entry["amount"] for entry in entries] == ["1.2500000000"]

    def test_find_by_cl_ord_id(self, sim: KrakenSimulator, api: Client) -> None:
        """Open and closed orders are found by their client's id, however a UUID is spelled."""
        open_txid = api.result("AddOrder", cl_ord_id="my-order-1", **LIMIT)["txid"][0]
        closed_txid = api.result("AddOrder", cl_ord_id=HEX_ID, **MARKET)["txid"][0]
        assert list(api.result("OpenOrders", cl_ord_id="my-order-1")["open"]) == [open_txid]
        assert api.result("OpenOrders", cl_ord_id="other") == {"open": {}}
        closed = api.result("ClosedOrders", cl_ord_id=DASHED_ID)
        assert list(closed["closed"]) == [closed_txid]
        assert closed["closed"][closed_txid]["cl_ord_id"] == DASHED_ID
        assert [order.cl_ord_id for order in sim.orders()] == ["my-order-1", HEX_ID]
        assert api.error("QueryOrders", cl_ord_id=DASHED_ID) == "EGeneral:Invalid arguments:txid"
        assert api.result("CancelOrder", cl_ord_id="my-order-1") == {"count": 1}
        assert api.error("CancelOrder", cl_ord_id="my-order-1") == "EOrder:Unknown order"

    def test_cl_ord_id_unique_while_open(self, sim: KrakenSimulator, api: Client) -> None:
        """A client's id is refused only while its order is open: it does not replace care."""
        not_unique = "EGeneral:Invalid arguments:cl_ord_id not unique"
        api.result("AddOrder", cl_ord_id=HEX_ID, **LIMIT)
        assert api.error("AddOrder", cl_ord_id=DASHED_ID, **LIMIT) == not_unique
        api.result("CancelAll")
        api.result("AddOrder", cl_ord_id=DASHED_ID, **MARKET)
        api.result("AddOrder", cl_ord_id=DASHED_ID, **MARKET)
        assert len(sim.orders()) == 3

    def test_orders_belong_to_their_account(self, sim: KrakenSimulator, api: Client) -> None:
        """One key can't see or cancel what another one ordered."""
        bob = Client(sim, *list(sim.accounts.items())[1])
        txid = api.result("AddOrder", **LIMIT)["txid"][0]
        assert bob.result("OpenOrders") == {"open": {}}
        assert bob.error("CancelOrder", txid=txid) == "EOrder:Unknown order"

    def test_amend_keeps_the_order(self, api: Client) -> None:
        """An amended order keeps its txid and client's id, with the new volume and price."""
        txid = api.result("AddOrder", cl_ord_id="a", **LIMIT)["txid"][0]
        api.result("AmendOrder", cl_ord_id="a", order_qty="2", limit_price="30000")
        order = api.result("OpenOrders", cl_ord_id="a")["open"][txid]
        assert (order["vol"], order["descr"]["price"]) == ("2.00000000", "30000.0")
        assert api.result("BalanceEx")["ZUSD"]["hold_trade"] == "60000.0000"

    def test_edit_replaces_the_order(self, sim: KrakenSimulator, api: Client) -> None:
        """An edited order is cancelled for a new one, which has lost the client's id."""
        old = api.result("AddOrder", cl_ord_id="a", **LIMIT)["txid"][0]
        edited = api.result("EditOrder", txid=old, pair="XBTUSD", price="30000")
        assert edited["originaltxid"] == old
        assert [(order.txid, order.status, order.cl_ord_id) for order in sim.orders()] == [
            (old, "canceled", "a"),
            (edited["txid"], "open", None),
        ]

    def test_batch_cancel(self, sim: KrakenSimulator, api: Client) -> None:
        """A batch cancels by txid, userref and client's id, or nothing if one is unknown."""
        txid = api.result("AddOrder", **LIMIT)["txid"][0]
        api.result("AddOrder", userref=5, **LIMIT)
        api.result("AddOrder", cl_ord_id="c", **LIMIT)
        assert api.error("CancelOrderBatch", orders=f"{txid},None") == "EOrder:Unknown order"
        assert {order.status for order in sim.orders()} == {"open"}
        body = json.dumps({"nonce": "99", "orders": [txid, "5"], "cl_ord_ids": ["c"]}).encode()
        path = "/0/private/CancelOrderBatch"
        headers = signed(sim, path, "99", body) | {"Content-Type": "application/json"}
        assert post(sim.url, path, body, headers)["result"] == {"count": 3}

    @pytest.mark.parametrize("what", [LIMIT, MARKET])
    def test_validate_places_nothing(self, sim: KrakenSimulator, api: Client, what: dict[str, str]) -> None:
        """With validate=true an order is checked and described, and that is all."""
        assert list(api.result("AddOrder", validate=True, **what)) == ["descr"]
        assert sim.orders() == []

    def test_deadline(self, sim: KrakenSimulator, api: Client) -> None:
        """An order that is late for its deadline is not placed; neither is a senseless deadline."""
        for seconds, expected in (
            (-1, "EService:Deadline elapsed"),
            (5, ""),
            (90, "EGeneral:Invalid arguments:deadline"),
        ):
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
            assert api.error("AddOrder", deadline=moment, **LIMIT) == expected
        assert len(sim.orders()) == 1

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"pair": "NOPE"}, "EQuery:Unknown asset pair"),
            ({"pair": ""}, "EGeneral:Invalid arguments:pair"),
            ({"type": "hold"}, "EGeneral:Invalid arguments:type"),
            ({"ordertype": "best"}, "EGeneral:Invalid arguments:ordertype"),
            ({"volume": "0"}, "EGeneral:Invalid arguments:volume"),
            ({"volume": "NaN"}, "EGeneral:Invalid arguments:volume"),
            ({"volume": "1e999999999"}, "EGeneral:Invalid arguments:volume"),
            ({"volume": "1e-30"}, "EGeneral:Invalid arguments:volume minimum not met"),
            ({"volume": "1e15"}, "EOrder:Insufficient funds"),
            ({"price": ""}, "EGeneral:Invalid arguments:price"),
            ({"price": "-5"}, "EGeneral:Invalid arguments:price"),
            (
                {"price": "1.23"},
                "EOrder:Invalid price:XBTUSD price can only be specified up to 1 decimals.",
            ),
            ({"cl_ord_id": "x" * 19}, "EGeneral:Invalid arguments:cl_ord_id"),
            ({"cl_ord_id": "ü"}, "EGeneral:Invalid arguments:cl_ord_id"),
            ({"cl_ord_id": "a", "userref": "1"}, "EGeneral:Invalid arguments:cl_ord_id"),
            ({"userref": "x"}, "EGeneral:Invalid arguments:userref"),
            ({"deadline": "soon"}, "EGeneral:Invalid arguments:deadline"),
        ],
    )
    def test_bad_orders(self, sim: KrakenSimulator, api: Client, changes: dict[str, str], error: str) -> None:
        """Whatever is wrong with an order, the answer says so as Kraken would; nothing is placed."""
        assert api.error("AddOrder", **(LIMIT | changes)) == error
        assert sim.orders() == []

    def test_closed_orders_pages(self) -> None:
        """ClosedOrders gives the 50 newest; `start` is exclusive and `end` inclusive."""
        secret = base64.b64encode(b"secret").decode()
        exchange = Exchange([("a", "key", secret)], Settings(), seed=1, now=0.0)

        def ask(nonce: int, now: float, method: str, **data: str) -> Any:
            path = f"/0/private/{method}"
            body = urlencode({"nonce": nonce} | data).encode()
            call = Call(
                path=path,
                method=method,
                content_type="application/x-www-form-urlencoded",
                key="key",
                signature=signature(b"secret", path, str(nonce), body),
                body=body,
            )
            return exchange.admit(call, exchange.arrive(call, now), now)(now)["result"]

        txids = [ask(n, float(n), "AddOrder", **MARKET)["txid"][0] for n in range(1, 61)]
        page = ask(100, 100.0, "ClosedOrders")
        assert (list(page["closed"]), page["count"]) == (txids[:-51:-1], 60)
        assert list(ask(101, 100.0, "ClosedOrders", ofs="50")["closed"]) == txids[9::-1]
        some = ask(102, 100.0, "ClosedOrders", start="57", end="59")
        assert list(some["closed"]) == [txids[58], txids[57]]
        assert list(ask(103, 100.0, "ClosedOrders", start=txids[58])["closed"]) == [txids[59]]
        assert ask(104, 100.0, "TradesHistory", start="58.5")["count"] == 2


class TestOtherMethods:
    """Private and public methods that clients call around their orders."""

    def test_public(self, sim: KrakenSimulator, api: Client) -> None:
        """Public methods answer without a key, name what they don't know, and are not logged."""
        assert api.query_public("SystemStatus")["result"]["status"] == "online"
        assert api.query_public("Time")["result"]["unixtime"] == pytest.approx(time.time(), abs=5)
        assert list(api.query_public("Assets", {"asset": "XBT,ZUSD"})["result"]) == ["XXBT", "ZUSD"]
        assert list(api.query_public("AssetPairs", {"pair": "ETHUSD"})["result"]) == ["XETHZUSD"]
        assert api.query_public("Ticker", {"pair": "XBTUSD"})["result"]["XXBTZUSD"]["c"]
        candles = api.query_public("OHLC", {"pair": "XBTUSD", "interval": 5})["result"]
        assert {len(candle) for candle in candles["XXBTZUSD"]} == {8}
        assert api.query_public("Ticker", {"pair": "x"})["error"] == ["EQuery:Unknown asset pair"]
        assert api.query_public("Nope")["error"] == ["EGeneral:Unknown method"]
        assert sim.requests() == []

    @pytest.mark.parametrize(
        ("method", "data"),
        [
            ("TradeBalance", {"asset": "ZEUR"}),
            ("TradeVolume", {"pair": "XBTUSD"}),
            ("OpenPositions", {}),
            ("GetWebSocketsToken", {}),
            ("DepositMethods", {"asset": "XBT"}),
            ("Earn/Strategies", {}),
            ("Earn/Allocations", {}),
        ],
    )
    def test_answered(self, api: Client, method: str, data: dict[str, str]) -> None:
        """The methods that clients use beside orders answer without an error."""
        assert api.private(method, **data)["error"] == []

    def test_unknown_method(self, sim: KrakenSimulator, api: Client) -> None:
        """A method that is not simulated says so, and leaves the nonce alone."""
        assert api.error("WithdrawStatus", nonce=5) == "EGeneral:Unknown method"
        assert api.error("Balance", nonce=5) == ""
        assert [request.method for request in sim.requests()] == ["WithdrawStatus", "Balance"]

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("application/x-www-form-urlencoded", b"\xff\xfe"),
            ("application/x-www-form-urlencoded", b"x" * 100_000),
            ("application/json", b"{"),
            ("application/json", b"[1]"),
            ("application/json", b"[" * 60_000),
        ],
    )
    def test_unreadable_body(self, sim: KrakenSimulator, content_type: str, body: bytes) -> None:
        """Bytes that are no body get an answer in Kraken's form, and the server lives on."""
        headers = {"Content-Type": content_type, "API-Key": sim.key, "API-Sign": "\xe9"}
        assert post(sim.url, "/0/private/Balance", body, headers) == {"error": ["EAPI:Bad request"]}


class TestProcess:
    """The simulator's own process and its handle."""

    def test_no_secrets_in_sight(self, sim: KrakenSimulator, api: Client) -> None:
        """Neither the handle, nor the log, nor the process list shows a key or a secret."""
        api.result("Balance")
        process = sim._process
        assert process is not None
        seen = f"{sim!r} {sim.requests()!r} {process.args!r}"
        for key, secret in sim.accounts.items():
            assert key not in seen
            assert secret not in seen

    def test_ends_with_its_parent(self) -> None:
        """The server is gone soon after the program that started it was killed outright."""
        program = (
            "from kraken_nonce_redis.testing import KrakenSimulator\n"
            "sim = KrakenSimulator(); sim.start()\n"
            "print(sim.url, sim._process.pid, flush=True)\n"
            "import time; time.sleep(60)\n"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True
        ) as parent:
            assert parent.stdout is not None
            url, pid = parent.stdout.readline().split()
            with urllib.request.urlopen(f"{url}/0/public/Time", timeout=10) as response:
                assert json.load(response)["error"] == []
            parent.send_signal(signal.SIGKILL)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{url}/0/public/Time", timeout=1).close()
            except OSError:
                return
            time.sleep(0.02)
        pytest.fail(f"the server (process {pid}) outlives its parent")

    def test_stop(self) -> None:
        """A stopped simulator can be asked nothing, stopped again, and started again."""
        sim = KrakenSimulator()
        with pytest.raises(RuntimeError, match="is not running"):
            _ = sim.url
        for _ in range(2):
            with sim, pytest.raises(RuntimeError, match="running already"):
                sim.start()
        sim.stop()
        with pytest.raises(RuntimeError, match="is not running"):
            sim.requests()

    def test_port_taken(self, sim: KrakenSimulator) -> None:
        """A port that is in use is named in the error, and no process is left behind."""
        other = KrakenSimulator(port=urlsplit(sim.url).port or 0)
        with pytest.raises(RuntimeError, match=r"can't listen on 127\.0\.0\.1:\d+"):
            other.start()
        assert other._process is None

    def test_accounts(self) -> None:
        """Accounts come from pairs, from names, or by themselves, and pairs are never the same."""
        given = KrakenSimulator({"k": VECTOR_SECRET})
        assert (given.key, given.secret) == ("k", VECTOR_SECRET)
        named = KrakenSimulator(["alice", "bob"])
        assert len(named.accounts) == 2
        assert named.key == next(iter(named.accounts))
        assert KrakenSimulator().key != KrakenSimulator().key
        assert len(base64.b64decode(named.secret)) == 64

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ({"accounts": []}, "accounts"),
            ({"accounts": ["a", "a"]}, "accounts"),
            ({"accounts": {"k": "not base64"}}, "secret"),
            ({"latency": (0.2, 0.1)}, "latency"),
            ({"latency": (-1.0, 0.1)}, "latency"),
            ({"latency": (0.0, float("inf"))}, "latency"),
            ({"nonce_window": -1}, "nonce_window"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], named: str) -> None:
        """A senseless argument is named at construction, and a secret is not shown."""
        with pytest.raises(ValueError, match=named) as caught:
            KrakenSimulator(**arguments)
        assert "not base64" not in str(caught.value)

    def test_one_string_is_no_list_of_accounts(self) -> None:
        """A single name must be in a list."""
        with pytest.raises(TypeError, match="accounts"):
            KrakenSimulator("alice")

    def test_bad_configuration(self, sim: KrakenSimulator, api: Client) -> None:
        """A senseless setting is refused and the old ones stay."""
        sim.configure(nonce_window=5)
        with pytest.raises(ValueError, match="latency"):
            sim.configure(latency=(2.0, 1.0))
        sim.configure(latency=(0.0, 0.0))
        assert api.result("GetApiKeyInfo")["nonceWindow"] == 5

    def test_without_aiohttp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without aiohttp the error says what to install."""
        monkeypatch.setitem(sys.modules, "aiohttp", None)
        with pytest.raises(ImportError, match=r"pip install 'kraken-nonce-redis\[testing\]'"):
            KrakenSimulator()


class TestClients:
    """Clients that people use, pointed at the simulator."""

    def test_ccxt(self, sim: KrakenSimulator) -> None:
        """The unified methods of ccxt work from loading the markets to the trade history."""
        ccxt = pytest.importorskip("ccxt")
        kraken = ccxt.kraken({"apiKey": sim.key, "secret": sim.secret, "enableRateLimit": False})
        kraken.urls["api"] = dict.fromkeys(("public", "private"), sim.url)
        assert set(kraken.load_markets()) == {"BTC/USD", "ETH/USD", "BTC/EUR"}
        order = kraken.create_order("BTC/USD", "limit", "buy", 0.5, 30_000, {"clientOrderId": "c"})
        assert (order["symbol"], order["amount"], order["price"]) == ("BTC/USD", 0.5, 30_000)
        assert kraken.fetch_balance()["USD"]["used"] == 15_000
        assert kraken.fetch_open_orders(params={"clientOrderId": "c"})[0]["id"] == order["id"]
        kraken.edit_order(order["id"], "BTC/USD", "limit", "buy", 0.6)
        assert kraken.fetch_order(order["id"])["amount"] == 0.6
        kraken.cancel_order(order["id"])
        with pytest.raises(ccxt.OrderNotFound):
            kraken.cancel_order(order["id"])
        kraken.create_market_buy_order_with_cost("BTC/USD", 600)
        assert [trade["amount"] for trade in kraken.fetch_my_trades("BTC/USD")] == [0.01]
        stop = kraken.create_order("BTC/USD", "limit", "sell", 0.5, 30_000, {"stopLossPrice": 40_000})
        listed = kraken.fetch_order(stop["id"])
        assert (listed["stopLossPrice"], listed["price"]) == (40_000, 30_000)
        kraken.session.close()

    @pytest.mark.filterwarnings("ignore:The 'get_deposit_methods':DeprecationWarning")
    def test_python_kraken_sdk(self, sim: KrakenSimulator) -> None:
        """python-kraken-sdk's five spot clients work, the JSON call among them included."""
        spot = pytest.importorskip("kraken.spot")
        login = {"key": sim.key, "secret": sim.secret, "url": sim.url}
        trade, user = spot.Trade(**login), spot.User(**login)
        order = {"pair": "XBTUSD", "side": "buy", "volume": 1}
        txid = trade.create_order(ordertype="limit", price=100, **order)["txid"][0]
        trade.create_order(ordertype="market", **order)
        assert list(user.get_open_orders()["open"]) == [txid]
        assert user.get_balance("USD")["available_balance"] < user.get_balance("USD")["balance"]
        assert user.get_closed_orders()["count"] == user.get_trades_history()["count"] == 1
        assert trade.cancel_order_batch(orders=[txid]) == {"count": 1}
        assert spot.Funding(**login).get_deposit_methods("XBT")[0]["method"] == "Bitcoin"
        assert spot.Earn(**login).list_earn_strategies()["items"]
        assert list(spot.Market(url=sim.url).get_assets("XBT")) == ["XXBT"]
