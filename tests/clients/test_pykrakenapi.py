"""pykrakenapi over our krakenex.API: its tables come as ever, and its private calls are under the lock."""

from __future__ import annotations

import threading
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from pykrakenapi import KrakenAPI  # type: ignore[import-untyped]
from pykrakenapi.pykrakenapi import KrakenAPIError  # type: ignore[import-untyped]

from kraken_nonce_redis import krakenex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.servers import Server

pytestmark = pytest.mark.filterwarnings("ignore:'T' is deprecated:FutureWarning")  # pykrakenapi's use of pandas


@pytest.fixture
def kraken(sim: KrakenSimulator, valkey: Server) -> Iterator[KrakenAPI]:
    """Return what a user of pykrakenapi makes, on an exchange as good as new."""
    with closing(krakenex.API(sim.key, sim.secret, redis=valkey.url)) as api:
        api.uri = sim.url
        yield KrakenAPI(api, tier="Pro", retry=0, crl_sleep=0)


def limit_order(kraken: KrakenAPI) -> str:
    """Place an order and return its id."""
    placed = kraken.add_standard_order(
        ordertype="limit", type="buy", pair="XBTUSD", price="100.0", volume="0.01", validate=False
    )
    (txid,) = placed["txid"]
    return str(txid)


def test_orders(sim: KrakenSimulator, kraken: KrakenAPI) -> None:
    """An order is placed, listed and cancelled, each call with a nonce of ours above the one before."""
    txid = limit_order(kraken)
    assert list(kraken.get_open_orders().index) == [txid]
    assert kraken.cancel_open_order(txid)["count"] == 1
    closed, count = kraken.get_closed_orders()
    assert (list(closed.index), list(closed["status"]), count) == ([txid], ["canceled"], 1)
    requests = sim.requests()
    assert [request.method for request in requests] == ["AddOrder", "OpenOrders", "CancelOrder", "ClosedOrders"]
    assert all(len(str(request.nonce)) == 19 and not request.error for request in requests)
    assert all((a.nonce or 0) < (b.nonce or 0) for a, b in pairwise(requests))


def test_tables(kraken: KrakenAPI) -> None:
    """Balances, trades and ledger come as pandas tables, public data as well."""
    kraken.add_standard_order(ordertype="market", type="buy", pair="XBTUSD", volume="0.01", validate=False)
    balance = kraken.get_account_balance()
    assert float(balance.loc["XXBT", "vol"]) > 0
    trades, count = kraken.get_trades_history()
    assert (list(trades["pair"]), count) == (["XXBTZUSD"], 1)
    ledger, _ = kraken.get_ledgers_info(type="trade")
    assert set(ledger["asset"]) == {"XXBT", "ZUSD"}
    candles, _ = kraken.get_ohlc_data("XBTUSD")
    assert len(candles) == 60


def test_refusal(kraken: KrakenAPI) -> None:
    """What Kraken refuses is raised as pykrakenapi raises it, and the next call goes through."""
    with pytest.raises(KrakenAPIError, match="Unknown order"):
        kraken.cancel_open_order("OAAAAA-AAAAA-AAAAAA")
    assert kraken.get_websockets_token()["expires"] == 900


def test_threads(sim: KrakenSimulator, kraken: KrakenAPI, valkey: Server) -> None:
    """Two bots on one key, each with its own objects, place their orders without a refusal."""
    with closing(krakenex.API(sim.key, sim.secret, redis=valkey.url)) as api:
        api.uri = sim.url
        other = KrakenAPI(api, tier="Pro", retry=0, crl_sleep=0)
        bots = [
            threading.Thread(target=lambda bot=bot: [limit_order(bot) for _ in range(15)]) for bot in (kraken, other)
        ]
        for bot in bots:
            bot.start()
        for bot in bots:
            bot.join()
    requests = sim.requests()
    assert len(sim.orders()) == len(requests) == 30
    assert all((a.nonce or 0) < (b.nonce or 0) for a, b in pairwise(requests))
    assert max(request.in_flight for request in requests) == 1
