"""Answers with more or less in them than clients expect: pages with the status 429, warnings, no result."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from decimal import Decimal
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import krakenex
import pytest
import requests
from pykrakenapi import KrakenAPI  # type: ignore[import-untyped]

from kraken_nonce_redis import CallLock, CoolDown, CoolDowns, NotCarriedOut, OutcomeUnknown, Retries, kraken_sdk
from kraken_nonce_redis import krakenex as ours
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.events import KrakenWarned, OrderSettled, ResultMissing
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import Stopwatch, run
from tests.support.order_bots import BOTS, REFUSALS, Ccxt, Krakenex, Sdk, form

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis._redis.commands import State
    from kraken_nonce_redis._redis.journal import Pending
    from kraken_nonce_redis.testing._faults import Point
    from tests.support.servers import Server

QUICK = Retries(waits=(0.01,), settle_waits=(0.02, 0.06))
HOUR = 3_600.0
WARNING = "WGeneral:Deprecated"
LONG: list[dict[str, str]] = [{}, {"Retry-After": "11"}, {"Retry-After": "86400"}, {"Retry-After": "soon"}]
QUESTIONS = ["GetApiKeyInfo", "OpenOrders"]
BALANCES = ["Balance", "BalanceEx"]

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'T' is deprecated:FutureWarning"),  # pykrakenapi's use of pandas
]


class Stage:
    """One client at one exchange, and what it tells."""

    def __init__(self, kind: str, sim: KrakenSimulator, valkey: Server) -> None:
        self.sim, self._valkey, self.keys = sim, valkey, Keyspace.of("kraken-nonce", sim.key)
        self.kind = kind
        self.events: list[Any] = []
        self._bots: list[Any] = []
        self.bot = self.client(kind)
        if hasattr(self.bot.client, "load_markets"):
            self.bot.run(self.bot.client.load_markets())

    def client(self, kind: str, **options: Any) -> Any:
        """Make a client."""
        options = {
            "redis": self._valkey.url,
            "retries": QUICK,
            "wait_timeout": 5,
            "on_event": self.events.append,
        } | options
        self._bots.append(BOTS[kind](self.sim.url, self.sim.key, self.sim.secret, **options))
        return self._bots[-1]

    def private(self, method: str, **params: Any) -> Any:
        """Make a private call by its name."""
        client = self.bot.client
        if isinstance(self.bot, Krakenex):
            return client.query_private(method, params)
        if isinstance(self.bot, Ccxt):
            return self.bot.run(getattr(client, f"private_post_{method.lower()}")(params))
        return self.bot.run(client.request("POST", f"/0/private/{method}", params))

    def fail(self, *faults: Fault) -> None:
        """Let the next calls fail."""
        self.sim.configure(faults=faults)

    def sent(self) -> list[str]:
        """Return the methods of the requests that have arrived."""
        return [request.method for request in self.sim.requests()]

    def txids(self) -> list[str]:
        """Return the orders that are there."""
        return [order.txid for order in self.sim.orders()]

    def pending(self) -> tuple[Pending, ...]:
        """Return the journal."""
        return run(self._valkey.client(), journal.pending(self.keys))

    def state(self) -> State:
        """Return what Redis has of the key."""
        return run(self._valkey.client(), commands.inspect(self.keys))

    def end_cool_down(self) -> None:
        """Let calls start again."""
        CallLock.from_url(self._valkey.url, self.sim.key).cool_down(0, "")

    def close(self) -> None:
        """Close the clients."""
        for bot in self._bots:
            bot.close()


@pytest.fixture(params=BOTS)
def stage(request: pytest.FixtureRequest, sim: KrakenSimulator, valkey: Server) -> Iterator[Stage]:
    """Return each kind of client in turn."""
    with closing(Stage(request.param, sim, valkey)) as stage:
        yield stage


def asked_for(seconds: float, off: float = 0.0) -> dict[str, str]:
    """Return a Retry-After that is a date, by a clock that is off."""
    now = int(time.time() + off)
    return {"Date": formatdate(now, usegmt=True), "Retry-After": formatdate(now + seconds, usegmt=True)}


class TestTooManyRequests:
    """Cloudflare's page with the status 429."""

    @pytest.mark.long
    @pytest.mark.parametrize("what", ["429", "1015"])
    @pytest.mark.parametrize("before", ["reading", "answering"])
    def test_not_now(self, stage: Stage, what: str, before: Point) -> None:
        """An order that gets it, without a short Retry-After, is left to a later holder; all others pause."""
        stage.fail(Fault(what, before))
        for headers, seconds in zip(LONG, (15, 11, 900, 15), strict=True):
            stage.sim.reset()
            stage.fail(Fault(what, before, headers=headers))
            duration = Stopwatch()
            with pytest.raises(OutcomeUnknown, match="429") as caught:
                stage.bot.order("limit")
            assert duration() < 2
            assert stage.sent() == ["AddOrder"]
            (entry,) = stage.pending()
            assert not entry.reported
            assert caught.value.cl_ord_id in entry.cl_ord_ids
            state = stage.state()
            assert seconds - 2 < state.cool_down <= seconds
            with pytest.raises(CoolDown, match="429"):
                stage.client("krakenex", wait_timeout=0.5).balance()
            assert stage.sent() == ["AddOrder"]
            stage.end_cool_down()
            stage.fail()
            stage.events.clear()
            assert stage.bot.balance() is not None
            (event,) = stage.events
            assert (event.inherited, event.outcome) == (True, "found" if before == "answering" else "absent")
            assert list(event.orders.values()) == stage.txids()
            assert stage.pending() == ()

    @pytest.mark.long
    @pytest.mark.parametrize("off", [None, 0.0, HOUR, -HOUR], ids=["seconds", "a date", "an hour late", "early"])
    def test_soon(self, stage: Stage, off: float | None) -> None:
        """After a short Retry-After the order is settled under the same lease, whatever the clocks say."""
        headers = {"Retry-After": "1"} if off is None else asked_for(1, off)
        stage.fail(Fault("429", "answering", methods=["AddOrder"], headers=headers))
        assert stage.bot.order("limit") == stage.txids()[0]
        first, then, listed = stage.sim.requests()
        assert (first.method, then.method, listed.method) == ("AddOrder", *QUESTIONS)
        assert 1 <= then.received - first.received < 4
        assert 0 <= (then.nonce or 0) - (first.nonce or 0) < 10**9  # of the same lease
        assert stage.pending() == ()

    @pytest.mark.parametrize("asked", [1, 2])
    @pytest.mark.parametrize("window", [None, 0])
    def test_questions(self, stage: Stage, asked: int, window: int | None) -> None:
        """When a question about an order without an answer gets it, no more of them are asked."""
        lost = Fault("cut", "answering", methods=["AddOrder"])
        stage.fail(lost, Fault("429", "reading", methods=QUESTIONS[asked - 1 :], headers={"Retry-After": "30"}))
        with pytest.raises(OutcomeUnknown, match="429"):
            stage.client(stage.kind, nonce_window=window).order("limit")
        assert stage.sent() == ["AddOrder", *QUESTIONS[:asked]]
        assert 28 < stage.state().cool_down <= 30
        assert len(stage.pending()) == 1

    @pytest.mark.parametrize("headers", LONG[:2])
    def test_the_next_call(self, stage: Stage, headers: dict[str, str]) -> None:
        """What an earlier holder left behind is asked for once; then the caller's own call isn't sent, either."""
        stage.fail(Fault("429", "answering", headers=headers))
        with pytest.raises(OutcomeUnknown):
            stage.bot.order("limit")
        stage.end_cool_down()
        for call in (lambda: stage.bot.order("limit"), stage.bot.balance):
            already = len(stage.sent())
            with pytest.raises(CoolDown, match="429"):
                call()
            assert stage.sent()[already:] == QUESTIONS[:1]
            assert len(stage.pending()) == 1
            stage.end_cool_down()
        stage.fail()
        txid = stage.bot.order("limit")
        assert len(stage.txids()) == 2
        assert stage.txids()[1] == txid
        assert stage.pending() == ()

    @pytest.mark.long
    def test_the_next_call_soon(self, stage: Stage) -> None:
        """After a short Retry-After to those questions the caller's own call goes on, under the same lease."""
        stage.fail(Fault("429", "answering", methods=["AddOrder"]))
        with pytest.raises(OutcomeUnknown):
            stage.bot.order("limit")
        stage.end_cool_down()
        stage.fail(Fault("429", "reading", methods=["OpenOrders"], headers={"Retry-After": "1"}))
        assert stage.bot.balance() is not None
        assert stage.sent()[:3] == ["AddOrder", *QUESTIONS]
        assert len(stage.sent()) == 4

    @pytest.mark.long
    def test_the_next_call_later(self, stage: Stage) -> None:
        """A caller that waits long enough makes its call once the cool-down is over."""
        stage.fail(Fault("429", "answering", methods=["AddOrder"]))
        with pytest.raises(OutcomeUnknown):
            stage.bot.order("limit")
        stage.end_cool_down()
        stage.fail(Fault("429", "reading", methods=["OpenOrders"], calls=[1]))
        with closing(stage.client("krakenex", cool_downs=CoolDowns(rate_limit=1))) as other:
            assert other.balance()["error"] == []
        asked, again = (request for request in stage.sim.requests() if request.method == "OpenOrders")
        assert again.received - asked.received >= 1
        assert stage.pending() == ()

    @pytest.mark.long
    def test_reading(self, stage: Stage) -> None:
        """A reading call that gets it is made again once the cool-down of all is over, and not before."""
        stage.fail(Fault("429", "reading", methods=BALANCES, calls=[1], headers={"Retry-After": "1"}))
        assert stage.bot.balance() is not None
        first, then = stage.sim.requests()
        assert then.received - first.received >= 1

    def test_reading_again_and_again(self, stage: Stage) -> None:
        """When the pages don't end, the caller gets what its client raises, after as many requests as attempts."""
        stage.fail(Fault("429", "reading", headers={"Retry-After": "0"}))
        with pytest.raises((*REFUSALS, Exception), match="429"):
            stage.bot.balance()
        assert len(stage.sent()) == 2

    @pytest.mark.long
    @pytest.mark.parametrize("seconds", ["1", "60"])
    def test_cancelling(self, stage: Stage, seconds: str) -> None:
        """A cancellation that gets it is sent once more after a short Retry-After, and else not."""
        txid = stage.bot.order("limit")
        stage.fail(Fault("429", "reading", methods=["CancelOrder"], calls=[1], headers={"Retry-After": seconds}))
        if seconds == "1":
            stage.private("CancelOrder", txid=txid)
            assert stage.sim.orders()[0].status == "canceled"
        else:
            with pytest.raises(OutcomeUnknown, match="429"):
                stage.private("CancelOrder", txid=txid)
        assert stage.sent().count("CancelOrder") == (2 if seconds == "1" else 1)

    def test_nothing_to_find_it_by(self, stage: Stage) -> None:
        """A change that can't be looked up is unknown at once, whatever the page says."""
        duration = Stopwatch()
        stage.fail(Fault("429", "reading", headers={"Retry-After": "5"}))
        with pytest.raises(OutcomeUnknown, match="429"):
            stage.private("Withdraw", asset="XBT", key="wallet", amount="0.1")
        assert duration() < 2
        assert len(stage.sent()) == 1

    @pytest.mark.parametrize("seconds", ["1", "60"])
    def test_replay(self, sim: KrakenSimulator, valkey: Server, seconds: str) -> None:
        """With ``replay``, the same bytes go out again after a short Retry-After, and else not."""
        with closing(Stage("krakenex", sim, valkey)) as stage:
            bot = stage.client("krakenex", on_unknown="replay")
            stage.fail(Fault("429", "reading", methods=["AddOrder"], calls=[1], headers={"Retry-After": seconds}))
            if seconds == "1":
                assert bot.order("limit") == stage.txids()[0]
                _, first, then = sim.requests()
                assert first.nonce == then.nonce
                assert then.received - first.received >= 1
            else:
                with pytest.raises(OutcomeUnknown):
                    bot.order("limit")
                assert stage.sent() == ["GetApiKeyInfo", "AddOrder"]


def warned(events: list[Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the methods and warnings of the events about warnings."""
    return [(event.method, event.warnings) for event in events if isinstance(event, KrakenWarned)]


class TestWarnings:
    """A warning beside a result."""

    @pytest.mark.parametrize("ordertype", ["limit", "market"])
    def test_order(self, stage: Stage, caplog: pytest.LogCaptureFixture, ordertype: str) -> None:
        """The client's code gets the order's answer without the warning, which is an event and logged."""
        stage.fail(Fault(WARNING, "answering"))
        with caplog.at_level(logging.WARNING, "kraken_nonce_redis"):
            assert stage.bot.order(ordertype) == stage.txids()[0]
        assert stage.sent() == ["AddOrder"]
        assert warned(stage.events) == [("AddOrder", (WARNING,))]
        assert stage.events[0].nonce == stage.sim.requests()[0].nonce
        assert [record.levelname for record in caplog.records if WARNING in record.message] == ["WARNING"]
        assert stage.pending() == ()

    def test_reading(self, stage: Stage) -> None:
        """The same with a reading call, which isn't made again."""
        stage.fail(Fault(WARNING, "answering"))
        assert stage.bot.balance()
        assert len(warned(stage.events)) == len(stage.sent()) == 1

    def test_questions(self, stage: Stage) -> None:
        """Warnings in the answers to questions about an order are told, and the order is found."""
        stage.fail(Fault("cut", "answering", methods=["AddOrder"]), Fault(WARNING, "answering"))
        assert stage.bot.order("limit") == stage.txids()[0]
        assert warned(stage.events) == [(question, (WARNING,)) for question in QUESTIONS]

    def test_beside_an_error(self, stage: Stage) -> None:
        """A warning beside an error leaves that as it is, and is told."""
        stage.fail(Fault(WARNING, "answering"))
        try:
            answer = stage.private("CancelOrder", txid="OAAAAA-AAAAA-AAAAAA")
        except REFUSALS as error:
            assert "EOrder:Unknown order" in str(error)  # noqa: PT017 - krakenex raises nothing
        else:
            assert answer["error"] == [WARNING, "EOrder:Unknown order"]
        assert warned(stage.events) == [("CancelOrder", (WARNING,))]

    @pytest.mark.parametrize("what", ["request", "session"])
    def test_foreign(self, sim: KrakenSimulator, valkey: Server, what: str) -> None:
        """It is the same with a transport that can't be looked at from inside."""

        class Session:
            def __init__(self, session: Any) -> None:
                self._session = session

            def __getattr__(self, name: str) -> Any:
                if name == "adapters":
                    raise AttributeError
                return getattr(self._session, name)

            def get_adapter(self, _: str) -> Any:
                return None

        class Own(requests.adapters.BaseAdapter):
            def send(self, request: Any, *_: Any, **__: Any) -> Any:
                with requests.Session() as session:
                    session.trust_env = False
                    return session.send(request)

            def close(self) -> None:
                pass

        for kind in ("krakenex", "ccxt"):
            sim.reset()
            with closing(Stage(kind, sim, valkey)) as stage:
                client = stage.bot.client
                stock = client.session
                if what == "session":
                    client.session = Session(stock)
                else:
                    stock.mount("http://", Own())
                stage.fail(Fault(WARNING, "answering"))
                assert stage.bot.order("limit") == stage.txids()[0]
                assert warned(stage.events) == [("AddOrder", (WARNING,))]
                client.session = stock

    def test_in_a_subclass(self, sim: KrakenSimulator, valkey: Server) -> None:
        """What a subclass makes of answers it makes of one that had a warning, too."""

        class Strict(krakenex.API):  # type: ignore[misc]
            def _query(self, *args: Any, **kwargs: Any) -> Any:
                answer = super()._query(*args, **kwargs)
                if answer["error"]:
                    raise RuntimeError
                return answer["result"]

        api = ours.install(Strict(sim.key, sim.secret), redis=valkey.url, retries=QUICK)
        api.uri = sim.url
        with closing(api.json_options(parse_float=Decimal)):
            sim.configure(faults=[Fault(WARNING, "answering")])
            placed = api.query_private("AddOrder", form("limit"))
            assert placed["txid"] == [sim.orders()[0].txid]
            order = api.query_private("OpenOrders")["open"][placed["txid"][0]]
            assert isinstance(order["opentm"], Decimal)

    def test_raw(self, sim: KrakenSimulator, valkey: Server) -> None:
        """Whoever wants the SDK's responses as they are, gets them."""
        client = kraken_sdk.SpotClient(
            sim.key, sim.secret, url=sim.url, use_custom_exceptions=False, redis=valkey.url, retries=QUICK
        )
        sim.configure(faults=[Fault(WARNING, "answering")])
        response: Any = client.request("POST", "/0/private/AddOrder", form("limit"))
        assert response.json()["result"]["txid"] == [sim.orders()[0].txid]
        assert len(sim.requests()) == 1


@pytest.mark.parametrize("what", ["null result", "no result"])
class TestNoResult:
    """An answer with neither an error nor a result."""

    @pytest.mark.parametrize("before", ["acting", "answering"])
    def test_order(self, stage: Stage, what: str, before: Point) -> None:
        """What became of an order is looked up."""
        stage.fail(Fault(what, before, methods=["AddOrder"]))
        if before == "answering":
            assert stage.bot.order("limit") == stage.txids()[0]
        else:
            with pytest.raises(NotCarriedOut, match="without a result"):
                stage.bot.order("limit")
        assert [event.outcome for event in stage.events if isinstance(event, OrderSettled)] == [
            "found" if before == "answering" else "absent"
        ]
        assert len(stage.events) == 1
        assert stage.sent().count("AddOrder") == 1
        assert stage.pending() == ()

    def test_with_a_userref(self, stage: Stage, what: str) -> None:
        """An order that can't be looked up is unknown, and stays in the journal."""
        stage.fail(Fault(what, "answering", methods=["AddOrder"]))
        with pytest.raises(OutcomeUnknown, match="without a result"):
            stage.private("AddOrder", **form("limit"), userref=7)
        assert len(stage.pending()) == 1

    def test_reading(self, stage: Stage, what: str) -> None:
        """A reading call is made once more at once."""
        stage.fail(Fault(what, "answering", methods=BALANCES, calls=[1]))
        assert stage.bot.balance()
        assert len(stage.sent()) == 2
        assert stage.events == []

    def test_reading_again(self, stage: Stage, what: str) -> None:
        """When that has no result, either, the client's code gets it as it is."""
        stage.fail(Fault(what, "answering"))
        assert not (stage.private("Balance") or {}).get("result")
        assert len(stage.sent()) == 2

    def test_validated(self, stage: Stage, what: str) -> None:
        """An order that is only to be checked is a reading call."""
        stage.fail(Fault(what, "answering"))
        stage.private("AddOrder", **form("limit"), validate=True)
        assert stage.sent() == ["AddOrder", "AddOrder"]

    def test_other_changes(self, stage: Stage, what: str, caplog: pytest.LogCaptureFixture) -> None:
        """Another change is not made again; the client's code gets the answer as it is, and an event tells."""
        txid = stage.bot.order("limit")
        stage.fail(Fault(what, "answering"))
        with caplog.at_level(logging.WARNING, "kraken_nonce_redis"):
            assert not (stage.private("CancelOrder", txid=txid) or {}).get("result")
        assert stage.sent() == ["AddOrder", "CancelOrder"]
        (event,) = stage.events
        assert isinstance(event, ResultMissing)
        assert (event.method, event.nonce) == ("CancelOrder", stage.sim.requests()[-1].nonce)
        assert "without a result" in caplog.text
        assert stage.pending() == ()

    def test_raise(self, sim: KrakenSimulator, valkey: Server, what: str) -> None:
        """With ``on_unknown="raise"`` nothing is asked."""
        with closing(Stage("krakenex", sim, valkey)) as stage:
            bot = stage.client("krakenex", on_unknown="raise")
            stage.fail(Fault(what, "answering"))
            with pytest.raises(OutcomeUnknown):
                bot.order("limit")
            assert stage.sent() == ["AddOrder"]


ODD = [WARNING, "null result", "no result"]


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("kind", ["ccxt", "ccxt-async", "sdk", "sdk-async"])
def test_batch(sim: KrakenSimulator, valkey: Server, kind: str, what: str) -> None:
    """Each order of a batch is told, whatever its answer has too much or too little."""
    with closing(Stage(kind, sim, valkey)) as stage:
        stage.fail(Fault(what, "answering", methods=["AddOrderBatch"]))
        client, run_it = stage.bot.client, stage.bot.run
        if isinstance(stage.bot, Sdk):
            orders: list[Any] = [{**form("limit"), "price": str(price)} for price in (20000, 21000)]
            for order in orders:
                del order["pair"]
            placed = run_it(client.create_order_batch(orders=orders, pair="XBTUSD"))
            txids = [order["txid"] for order in placed["orders"]]
        else:
            orders = [
                {"symbol": "BTC/USD", "type": "limit", "side": "buy", "amount": 0.0001, "price": price}
                for price in (20000, 21000)
            ]
            txids = [order["id"] for order in run_it(client.create_orders(orders))]
        assert txids == stage.txids()
        assert len(txids) == 2
        assert stage.sent().count("AddOrderBatch") == 1
        assert stage.pending() == ()


@pytest.mark.parametrize("what", ODD)
def test_pykrakenapi(sim: KrakenSimulator, valkey: Server, what: str) -> None:
    """Over our krakenex, pykrakenapi returns the order that was placed."""
    with closing(ours.API(sim.key, sim.secret, redis=valkey.url, retries=QUICK)) as api:
        api.uri = sim.url
        kraken = KrakenAPI(api, tier="Pro", retry=0, crl_sleep=0)
        sim.configure(faults=[Fault(what, "answering", calls=[1])])
        placed = kraken.add_standard_order(
            ordertype="limit", type="buy", pair="XBTUSD", price="20000", volume="0.01", validate=False
        )
        assert placed["txid"] == [order.txid for order in sim.orders()]
        sim.configure(faults=[Fault(what, "answering", methods=["Balance"], calls=[1])])
        assert len(kraken.get_account_balance())
