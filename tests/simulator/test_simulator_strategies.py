"""Algo Trading on the simulator: strategies are added, listed and cancelled by Kraken's rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kraken_nonce_redis.testing import KrakenSimulator
from kraken_nonce_redis.testing._protocol import signature
from tests.support.exchange import FORM, SECRET, Caller

pytestmark = pytest.mark.once

TWAP = {"symbol": "BTC/USD", "strategy_type": "twap", "side": "buy", "volume": "1.5", "expiretm": "+3600"}
MARKET = TWAP | {"ordertype": "market"}
LIMIT = TWAP | {"ordertype": "limit", "price": "37500.5"}
BAD = "EGeneral:Invalid arguments:"


class TestAdd:
    """AddStrategy."""

    def test_added(self) -> None:
        """A strategy gets an id with AS, is recorded with its nonce, and is listed with what was asked for."""
        caller = Caller()
        name = caller.result(10, "AddStrategy", asset_class="forex", **LIMIT)["strategy_id"]
        assert name.startswith("AS")
        (strategy,) = caller.exchange.strategies(10)
        assert (strategy.strategy_id, strategy.account, strategy.nonce, strategy.opened) == (name, "alice", 1, 10)
        assert (strategy.pair, strategy.volume, strategy.price) == ("XXBTZUSD", "1.50000000", "37500.5")
        listed = caller.result(11, "GetOpenStrategies", strategy_type="twap")["open"]
        assert list(listed) == [name]
        assert listed[name]["status"] == "open"
        assert listed[name]["details"] == {
            "strategy_type": "twap",
            "side": "buy",
            "volume": "1.50000000",
            "filled_volume": "0.00000000",
            "avg_price": "0.0",
            "total_cost": "0.0000",
            "total_fee": "0.0000",
            "starttm": "10",
            "expiretm": "3610",
            "symbol": "BTC/USD",
            "asset_class": "forex",
            "ordertype": "limit",
            "price": "37500.5",
        }

    def test_twice_is_two(self) -> None:
        """There is no client's id: the same request with another nonce adds a second strategy."""
        caller = Caller()
        names = {caller.result(0, "AddStrategy", **MARKET)["strategy_id"] for _ in range(2)}
        assert len(names) == len(caller.exchange.strategies(0)) == 2
        assert caller.error(0, "AddStrategy", nonce=2, **MARKET) == "EAPI:Invalid nonce"

    def test_validate(self) -> None:
        """With validate it is checked and not added, the id is empty, and nobody looks at the funds."""
        caller = Caller()
        assert caller.result(0, "AddStrategy", validate=True, **MARKET | {"volume": "1e9"}) == {"strategy_id": ""}
        assert caller.error(0, "AddStrategy", validate=True, **MARKET | {"volume": "0"}) == f"{BAD}volume"
        assert caller.exchange.strategies(0) == []

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"strategy_type": "vwap"}, f"{BAD}strategy_type"),
            ({"strategy_type": None}, f"{BAD}strategy_type"),
            ({"asset_class": "tokenized_asset"}, f"{BAD}asset_class"),
            ({"symbol": "NOPE"}, "EQuery:Unknown asset pair"),
            ({"side": "hold"}, f"{BAD}side"),
            ({"ordertype": "stop-loss"}, f"{BAD}ordertype"),
            ({"ordertype": "limit"}, f"{BAD}price"),
            ({"price": "1"}, f"{BAD}price"),
            ({"volume": None}, f"{BAD}volume"),
            ({"volume": "1e-30"}, f"{BAD}volume minimum not met"),
            ({"volume": "1e9"}, "EOrder:Insufficient funds"),
            ({"side": "sell", "volume": "1e9"}, "EOrder:Insufficient funds"),
            ({"expiretm": None}, f"{BAD}expiretm"),
            ({"expiretm": "+59"}, f"{BAD}expiretm"),
            ({"expiretm": "999"}, f"{BAD}expiretm"),
            ({"expiretm": "+2592001"}, f"{BAD}expiretm"),
            ({"expiretm": "soon"}, f"{BAD}expiretm"),
            ({"starttm": "+2592001"}, f"{BAD}starttm"),
            ({"starttm": "+3541"}, f"{BAD}expiretm"),
        ],
    )
    def test_refused(self, changes: dict[str, Any], error: str) -> None:
        """What is wrong with a strategy is named, and nothing is added."""
        caller = Caller()
        assert caller.error(1000, "AddStrategy", **MARKET | changes) == error
        assert caller.exchange.strategies(1000) == []

    def test_json_alone(self) -> None:
        """A form is refused before its nonce is looked at, with each of the five methods."""
        caller = Caller()
        for method in (
            "AddStrategy", "CancelStrategy", "QueryStrategies", "GetOpenStrategies", "GetClosedStrategies",
        ):  # fmt: skip
            assert caller.error(0, method, nonce=5, content_type=FORM, **MARKET) == "EAPI:Bad request"
        assert caller.error(0, "AddStrategy", nonce=5, **MARKET) == ""

    def test_signature_covers_the_bytes(self) -> None:
        """The bytes are signed as they are sent: spaces between them and the nonce's spelling count."""
        caller = Caller()
        body = json.dumps({"nonce": 1, **MARKET}, separators=(",", ":")).encode()
        assert caller.error(0, "AddStrategy", nonce=1, body=body) == ""
        call = caller.call("AddStrategy", nonce=2, **MARKET)
        spaced = caller.call("AddStrategy", nonce=2, body=call.body.replace(b"{", b"{ "))
        assert spaced.signature != call.signature == signature(SECRET, call.path, "2", call.body)


class TestAfterwards:
    """CancelStrategy and the lists."""

    def test_life(self) -> None:
        """A strategy is pending, open and expired by the clock, and found by its id at each time."""
        caller = Caller()
        name = caller.result(0, "AddStrategy", **MARKET | {"starttm": "+100", "expiretm": "200"})["strategy_id"]
        for now, status in ((99, "pending"), (100, "open"), (199, "open"), (200, "expired")):
            found = caller.result(now, "QueryStrategies", strategy_ids=f"{name},AS0000")["strategies"]
            assert {name: each["status"] for name, each in found.items()} == {name: status}
            assert len(caller.result(now, "GetOpenStrategies")["open"]) == (status != "expired")
            assert len(caller.result(now, "GetClosedStrategies")["closed"]) == (status == "expired")
        assert caller.error(200, "CancelStrategy", strategy_id=name) == "EOrder:Unknown strategy"

    def test_cancelled(self) -> None:
        """A cancelled one says who wanted it, can't be cancelled again, and is another account's business to nobody."""
        caller = Caller(["alice", "bob"])
        name = caller.result(0, "AddStrategy", **MARKET)["strategy_id"]
        assert caller.error(1, "CancelStrategy", key="bob", strategy_id=name) == "EOrder:Unknown strategy"
        assert caller.result(2, "CancelStrategy", strategy_id=name) == {"strategy_id": name}
        assert caller.error(3, "CancelStrategy", strategy_id=name) == "EOrder:Unknown strategy"
        (closed,) = caller.result(4, "GetClosedStrategies", status="cancelled")["closed"]
        assert (closed["strategy_id"], closed["status"], closed["reason"]) == (name, "cancelled", "userRequested")
        assert caller.result(4, "GetClosedStrategies", status="expired") == {"closed": []}

    def test_pages(self) -> None:
        """Closed ones come last ended first, page by page, in a span of time."""
        caller = Caller()
        names = [caller.result(now, "AddStrategy", **MARKET)["strategy_id"] for now in range(5)]
        for now, name in enumerate(names, start=10):
            caller.result(now, "CancelStrategy", strategy_id=name)
        seen: list[str] = []
        more: dict[str, str] = {}
        while True:
            page = caller.result(99, "GetClosedStrategies", limit=2, **more)
            seen += [each["strategy_id"] for each in page["closed"]]
            if "next_cursor" not in page:
                break
            more = {"cursor": page["next_cursor"]}
        assert seen == names[::-1]
        spanned = caller.result(99, "GetClosedStrategies", start=11, end=12)["closed"]
        assert [each["strategy_id"] for each in spanned] == names[2:0:-1]
        opened = caller.result(99, "GetClosedStrategies", query_time_mode="open", end=1)["closed"]
        assert [each["strategy_id"] for each in opened] == names[1::-1]

    @pytest.mark.parametrize(
        ("method", "data", "named"),
        [
            ("QueryStrategies", {}, "strategy_ids"),
            ("QueryStrategies", {"strategy_ids": ",".join("A" * 21)}, "strategy_ids"),
            ("GetClosedStrategies", {"limit": 101}, "limit"),
            ("GetOpenStrategies", {"strategy_type": "vwap"}, "strategy_type"),
            ("CancelStrategy", {}, "strategy_id"),
        ],
    )
    def test_senseless(self, method: str, data: dict[str, object], named: str) -> None:
        """What makes no sense is named."""
        assert Caller().error(0, method, **data) == f"{BAD}{named}"

    def test_listed_late(self) -> None:
        """A strategy is in no list before its listing delay is over; it can be cancelled all the same."""
        caller = Caller(listing_delay=(5.0, 5.0))
        name = caller.result(0, "AddStrategy", **MARKET)["strategy_id"]
        for now, number in ((4.9, 0), (5, 1)):
            assert len(caller.result(now, "GetOpenStrategies")["open"]) == number
            assert len(caller.result(now, "QueryStrategies", strategy_ids=name)["strategies"]) == number
        name = caller.result(10, "AddStrategy", **MARKET)["strategy_id"]
        assert caller.error(11, "CancelStrategy", strategy_id=name) == ""
        assert caller.result(12, "GetClosedStrategies") == {"closed": []}


class TestClients:
    """Algo Trading with clients that people use."""

    def test_python_kraken_sdk(self) -> None:
        """python-kraken-sdk's JSON requests are signed right, and the handle shows what came of them."""
        spot = pytest.importorskip("kraken.spot")
        with KrakenSimulator() as sim:
            trade = spot.Trade(key=sim.key, secret=sim.secret, url=sim.url)

            def ask(method: str, **data: object) -> Any:
                return trade.request(method="POST", uri=f"/0/private/{method}", params=data, do_json=True)

            name = ask("AddStrategy", **LIMIT)["strategy_id"]
            assert list(ask("GetOpenStrategies")["open"]) == [name]
            ask("CancelStrategy", strategy_id=name)
            assert [(each.strategy_id, each.status) for each in sim.strategies()] == [(name, "cancelled")]
