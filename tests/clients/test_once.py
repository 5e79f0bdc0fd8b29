"""Orders with a name: one is placed, however many processes ask for it and whatever becomes of them."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import ccxt
import pytest

import kraken_nonce_redis.ccxt
from kraken_nonce_redis import (
    HoldTimeout,
    InvalidArgument,
    KrakenNonceError,
    LeaseLost,
    NotCarriedOut,
    OutcomeUnknown,
    Retries,
    StoreUnavailable,
)
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._calls import exchange_clock
from kraken_nonce_redis._calls.once import Keeping
from kraken_nonce_redis._redis import commands, journal, name_records
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.events import OrderSettled
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.children import Child
from tests.support.helpers import eventually, run
from tests.support.order_bots import BOTS, form
from tests.support.tiers import by_tier, in_test_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from kraken_nonce_redis._redis.name_records import NameRecord
    from tests.support.order_bots import Bot
    from tests.support.servers import Server
    from tests.support.topologies import SentinelTopology

PROOF_WAIT = 0.5
LONGEST_AHEAD = exchange_clock.LONGEST_AHEAD
RETRIES = Retries(waits=(), settle_waits=(0.02, 0.06), proof_wait=PROOF_WAIT)
KINDS = ["krakenex", "ccxt-async", "sdk", *in_test_all("ccxt", "sdk-async")]
QUESTIONS = ["GetApiKeyInfo", "OpenOrders", "ClosedOrders"]
LOST = Fault("cut", "answering", methods=["AddOrder"], calls=[1])
SILENCE = Fault("cut", "reading", methods=QUESTIONS, calls=range(3, 1_000))
"""From the second look on; the first one is before the order is sent."""
NAME = "rebalance 2026-11-27 №1"
NAMES = by_tier(2, 6, 60)
PROCESSES = 4

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=45, own=True),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


def hurry() -> None:
    """Let deadlines be as soon as can be, so that tests need not wait for them."""
    exchange_clock._AHEAD = 0.0  # type: ignore[misc]
    exchange_clock._ON_THE_WAY = 0.3  # type: ignore[misc]
    exchange_clock.LONGEST_AHEAD = 3.8  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do so for the length of a test."""
    for name in ("_AHEAD", "_ON_THE_WAY", "LONGEST_AHEAD"):
        monkeypatch.setattr(exchange_clock, name, getattr(exchange_clock, name))
    hurry()


class Scene:
    """An exchange, a Redis, and those who ask for orders."""

    def __init__(self, sim: KrakenSimulator, valkey: Server) -> None:
        self.sim = sim
        self.valkey = valkey
        self.events: list[Any] = []
        self.keys = Keyspace.of("kraken-nonce", sim.key)

    def bot(self, kind: str = "krakenex", **options: Any) -> Bot:
        """Return a client."""
        given: dict[str, Any] = {"retries": RETRIES, "on_event": self.events.append, "patience": 20, "call_timeout": 2}
        access = self.sim.url, self.sim.key, self.sim.secret
        return BOTS[kind](*access, redis=self.valkey.url, **given | options)

    def run(self, command: Any) -> Any:
        """Run a command."""
        return run(self.valkey.client(), command)

    def records(self) -> tuple[NameRecord, ...]:
        """Return the records of names."""
        records: tuple[NameRecord, ...] = self.run(name_records.read_all(self.keys))
        return records

    def sent(self) -> int:
        """Return how many orders were sent."""
        return sum(request.method == "AddOrder" for request in self.sim.requests())

    def txid(self) -> str:
        """Return that of the only order."""
        (order,) = self.sim.orders()
        return order.txid

    def break_down(self, *faults: Fault) -> None:
        """Let things go wrong from now on."""
        self.sim.configure(faults=list(faults))

    def ask_in_vain(self, bot: Bot, *faults: Fault) -> None:
        """Ask for an order; before anything is found out about it, Kraken is to be left alone."""
        self.break_down(*faults, Fault("429", "reading", methods=QUESTIONS, calls=range(3, 1_000)))
        with pytest.raises(OutcomeUnknown):
            bot.order("market", once=NAME)
        self.break_down()
        self.run(commands.cool_down(self.keys, 0, ""))

    def lose_records(self) -> None:
        """Lose what was written last, as when a replica takes over: the records, and not that there were names."""
        with self.valkey.admin() as admin, admin.pipeline() as both:
            mark = admin.hget(self.keys.once, "server")
            if mark is not None:
                both.delete(self.keys.once)
                both.hset(self.keys.once, "server", f"another {mark.partition(' ')[2]}")
                both.execute()


@pytest.fixture
def scene(sim: KrakenSimulator, valkey: Server) -> Iterator[Scene]:
    """Set the scene."""
    scene = Scene(sim, valkey)
    yield scene
    assert scene.run(journal.pending(scene.keys)) == ()


@pytest.mark.long
@pytest.mark.parametrize("ordertype", ["limit", "market"])
@pytest.mark.parametrize("kind", BOTS)
def test_one_order(scene: Scene, kind: str, ordertype: str) -> None:
    """One order is placed and everybody hears its txid. Whoever comes later asks Kraken nothing."""
    with scene.bot(kind) as bot, scene.bot(kind) as other:
        txid = bot.order(ordertype, once=NAME)
        asked = len(scene.sim.requests())
        assert {bot.order(ordertype, once=NAME), other.order(ordertype, once=NAME)} == {txid}
        assert len(scene.sim.requests()) == asked
        assert bot.order(ordertype, once="another") != txid
    first, second = scene.sim.orders()
    assert {first.txid, second.txid} > {txid}
    assert first.cl_ord_id != second.cl_ord_id
    assert {record.name: record.txid for record in scene.records()} == {NAME: first.txid, "another": second.txid}


@pytest.mark.test_all
def test_what_ccxt_makes_of_it(scene: Scene) -> None:
    """Whoever comes later gets an order with the same symbol, side, type, amount and price, as the first one."""
    with scene.bot("ccxt") as bot:
        first, second = (bot.client.create_order("BTC/USD", "limit", "buy", 0.001, 20000, {"once": "x"}) for _ in "12")
        stop = ["BTC/USD", "limit", "sell", 0.001, 19000, {"once": "stop", "stopLossPrice": 19500}]
        third, fourth = (bot.client.create_order(*stop) for _ in "12")
    for name in ("id", "symbol", "side", "type", "amount", "price", "triggerPrice"):
        assert first[name] == second[name], name
        assert third[name] == fourth[name], name


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("AddOrder", {"userref": 0}),
        ("AddOrder", {"cl_ord_id": "mine"}),
        ("AddOrder", {"validate": True}),
        ("AddOrder", {"validate": "1"}),
        ("AddOrder", {"deadline": "2026-11-27T12:00:00Z"}),
        ("AddOrder", {"once": ""}),
        ("AddOrder", {"once": "x" * 65}),
        ("AddOrder", {"once": 5}),
        ("AddOrder", {"once": "line\nbreak"}),
        ("AddOrder", {"once": "the API key"}),
        ("EditOrder", {"txid": "O1"}),
        ("CancelOrder", {"txid": "O1"}),
        ("Balance", {}),
        ("AddOrderBatch", {"orders": [{"once": "x"}]}),
    ],
)
def test_refused(scene: Scene, method: str, params: dict[str, Any]) -> None:
    """What can't be once is refused, and nothing is sent."""
    with scene.bot() as bot:
        given = {"once": "x"} | params
        if given["once"] == "the API key":
            given["once"] = f"x{bot.client.key}"
        if "orders" in given:
            del given["once"]
        with pytest.raises(InvalidArgument, match="once") as caught:
            bot.client.query_private(method, form("limit") | given)
    for secret in (scene.sim.key, scene.sim.secret):
        assert secret not in str(caught.value)
    assert scene.sim.requests() == []


@pytest.mark.long
@pytest.mark.parametrize("on_unknown", ["raise", "replay"])
def test_only_who_settles(scene: Scene, on_unknown: Any) -> None:
    """A client that would not find out what became of the order refuses names."""
    with scene.bot(on_unknown=on_unknown) as bot, pytest.raises(InvalidArgument, match="settle"):
        bot.order("limit", once="x")
    assert scene.sim.requests() == []


@pytest.mark.test_all
def test_in_ccxt(scene: Scene) -> None:
    """Refusals are errors of ccxt there, whatever the method."""
    with scene.bot("ccxt") as bot:
        with pytest.raises(ccxt.BadRequest, match="AddOrder alone"):
            bot.client.fetch_balance({"once": "x"})
        with pytest.raises(kraken_nonce_redis.ccxt.errors.InvalidArgument):
            bot.client.create_order("BTC/USD", "limit", "buy", 0.001, 20000, {"once": "x", "clientOrderId": "mine"})


@pytest.mark.test_all
@pytest.mark.parametrize("kind", KINDS)
def test_other_parameters(scene: Scene, kind: str) -> None:
    """A name is for one order: with other parameters it is refused, and nothing is sent."""
    with scene.bot(kind) as bot:
        bot.order("limit", once=NAME)
        for ordertype, more in (("limit", {"volume": "0.0002"}), ("market", {})):
            with pytest.raises(InvalidArgument, match="other parameters"):
                bot.order(ordertype, once=NAME, **more)
    assert scene.sent() == 1


@pytest.mark.test_all
def test_a_code_for_two_factors(scene: Scene) -> None:
    """What changes with each call and says nothing of the order is no other parameter."""
    with scene.bot() as bot:
        assert bot.order("limit", once=NAME, otp="1") == bot.order("limit", once=NAME, otp="2")


@pytest.mark.test_all
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ordertype", ["limit", "market"])
def test_lost_data(scene: Scene, kind: str, ordertype: str) -> None:
    """When Redis has lost everything, Kraken is asked before anything is sent, and the record is there again."""
    with scene.bot(kind) as bot:
        txid = bot.order(ordertype, once=NAME)
        scene.valkey.client().flushall()
        assert bot.order(ordertype, once=NAME) == txid
        asked = len(scene.sim.requests())
        assert bot.order(ordertype, once=NAME) == txid
        assert len(scene.sim.requests()) == asked
    assert scene.sent() == 1


@pytest.mark.test_all
def test_lost_data_before_it_is_listed(scene: Scene) -> None:
    """So it is for a process that has seen that there were names, until its order would be listed for sure."""
    scene.sim.configure(listing_delay=(2.0, 2.0))
    with scene.bot() as bot:
        txid = bot.order("market", once=NAME)
        scene.valkey.client().flushall()
        for name in (NAME, "another"):
            with pytest.raises(HoldTimeout, match="emptied"):
                bot.order("market", once=name)
        time.sleep(2.1)
        assert bot.order("market", once=NAME) == txid
    assert scene.sent() == 1


@pytest.mark.test_all
def test_an_older_record(scene: Scene) -> None:
    """A record that another server has from before a later attempt proves nothing about that, once it is listed."""
    with scene.bot() as bot, scene.bot() as other:
        scene.ask_in_vain(bot, Fault("cut", "reading", methods=["AddOrder"], calls=[1]))
        with scene.valkey.admin() as admin:
            before = admin.hgetall(scene.keys.once)
            scene.sim.configure(listing_delay=(2.0, 2.0))
            txid = other.order("market", once=NAME)
            admin.hset(scene.keys.once, mapping={**before, "server": f"another {before['server'].partition(' ')[2]}"})
        with pytest.raises(HoldTimeout, match="may be lost"):
            bot.order("market", once=NAME)
        time.sleep(2.1)
        assert bot.order("market", once=NAME) == txid
    assert scene.sent() == 2


def test_a_record_that_has_had_its_day(scene: Scene) -> None:
    """A record lasts a day; then it is removed, and Kraken is asked."""
    with scene.bot() as bot:
        txid = bot.order("limit", once=NAME)
        (record,) = scene.records()
        with scene.valkey.admin() as admin:
            written = admin.hget(scene.keys.once, record.cl_ord_id)
            old = int(written.split()[0]) - 86_400_000_000
            admin.hset(scene.keys.once, record.cl_ord_id, f"{old} {written.partition(' ')[2]}")
            assert scene.records() == ()
            run_id, since, swept = admin.hget(scene.keys.once, "server").split()
            admin.hset(scene.keys.once, "server", f"{run_id} {since} {int(swept) - 3_601_000_000}")
            bot.order("limit", once="another")
            assert not admin.hexists(scene.keys.once, record.cl_ord_id)
        assert bot.order("limit", once=NAME) == txid
    assert scene.sent() == 2


@pytest.mark.test_all
def test_lost_before_it_is_listed(scene: Scene) -> None:
    """After another server took over, an order that Kraken does not list yet is not placed again.

    For as long as one whose record is lost may not be listed yet, a new name has to wait.
    """
    scene.sim.configure(listing_delay=(2.0, 2.0))
    with scene.bot() as bot:
        txid = bot.order("market", once=NAME)
        scene.lose_records()
        with pytest.raises(HoldTimeout, match=r"may be lost.* try again in [34]\.\d s") as caught:
            bot.order("market", once=NAME)
        assert caught.value.carried_out is False
        with pytest.raises(HoldTimeout, match="may be lost"):
            bot.order("market", once="another")
        eventually(lambda: bot.order("market", once=NAME) == txid if time.sleep(2.1) is None else None, 5)
        time.sleep(exchange_clock.LONGEST_AHEAD + PROOF_WAIT - 2)
        assert bot.order("market", once="another") != txid
    assert scene.sent() == 2


def test_kraken_cant_be_asked(scene: Scene) -> None:
    """Without a record and without Kraken's answer nothing is sent; a key that may not ask is no key for names."""
    scene.break_down(Fault("EService:Busy", "acting", methods=QUESTIONS))
    with scene.bot() as bot:
        with pytest.raises(HoldTimeout, match=r"can't be asked.*Busy"):
            bot.order("limit", once=NAME)
        scene.break_down(Fault("EGeneral:Permission denied", "acting", methods=QUESTIONS))
        with pytest.raises(InvalidArgument, match="Permission denied"):
            bot.order("limit", once=NAME)
        scene.break_down(Fault("429", "reading", methods=["ClosedOrders"]))
        with pytest.raises(HoldTimeout, match="429"):
            bot.order("limit", once=NAME)
    assert scene.sent() == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_refused_and_tried_again(scene: Scene, kind: str) -> None:
    """After a refusal the next caller tries."""
    scene.break_down(Fault("EOrder:Insufficient funds", "acting", methods=["AddOrder"], calls=[1]))
    with scene.bot(kind) as bot, scene.bot(kind) as next_one:
        try:
            assert bot.order("limit", once=NAME) == ""
        except Exception as error:  # noqa: BLE001 - what each client raises for a refusal
            assert not isinstance(error, KrakenNonceError)  # noqa: PT017
        assert scene.records() == ()
        assert next_one.order("limit", once=NAME) == bot.order("limit", once=NAME) == scene.txid()


@pytest.mark.test_all
@pytest.mark.parametrize("kind", BOTS)
@pytest.mark.parametrize("ordertype", ["limit", "market"])
def test_unknown_and_settled(scene: Scene, kind: str, ordertype: str) -> None:
    """While Kraken does not tell, everybody hears that the outcome is unknown; then all hear the txid."""
    scene.break_down(LOST, SILENCE)
    with scene.bot(kind) as bot, scene.bot(kind) as other:
        for each in (bot, other, bot):
            with pytest.raises(OutcomeUnknown) as caught:
                each.order(ordertype, once=NAME)
            assert caught.value.cl_ord_id == scene.sim.orders()[0].cl_ord_id
        (record,) = scene.records()
        assert record.txid == ""
        scene.break_down()
        assert other.order(ordertype, once=NAME) == bot.order(ordertype, once=NAME) == scene.txid()
    assert scene.sent() == 1
    assert [event.outcome for event in scene.events if isinstance(event, OrderSettled)][-1] == "found"


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_absent_and_tried_again(scene: Scene, kind: str) -> None:
    """An order that got lost is proved to be absent, by its deadline, before the next one is sent."""
    scene.break_down(Fault("cut", "reading", methods=["AddOrder"], calls=[1], late=4))
    with scene.bot(kind) as bot:
        with pytest.raises(NotCarriedOut) as caught:
            bot.order("market", once=NAME)
        assert caught.value.proved
        assert scene.records() == ()
        txid = bot.order("market", once=NAME)
    eventually(lambda: all(request.finished is not None for request in scene.sim.requests()), 10)
    assert txid == scene.txid()


@pytest.mark.test_all
def test_absent_while_another_asks(scene: Scene) -> None:
    """Who finds the record of an order that its own caller could not settle does so, and then sends it."""
    with scene.bot() as bot, scene.bot() as other:
        scene.ask_in_vain(bot, Fault("cut", "reading", methods=["AddOrder"], calls=[1], late=6))
        sent = time.monotonic()
        txid = other.order("market", once=NAME)
        assert time.monotonic() - sent > 1.5 + PROOF_WAIT, "not before its absence is proved"
    eventually(lambda: all(request.finished is not None for request in scene.sim.requests()), 10)
    assert txid == scene.txid()
    assert scene.sent() == 2


@pytest.mark.test_all
def test_too_late_to_send(scene: Scene) -> None:
    """Who has settled an order for longer than its own patience sends nothing; the next caller does at once."""
    with scene.bot() as bot, scene.bot(patience=0.5) as impatient:
        scene.ask_in_vain(bot, Fault("cut", "reading", methods=["AddOrder"], calls=[1]))
        with pytest.raises(HoldTimeout, match="patience"):
            impatient.order("market", once=NAME)
        assert scene.records() == ()
        assert impatient.order("market", once=NAME) == scene.txid()


@pytest.mark.test_all
def test_no_proof_without_krakens_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where answers don't tell the time, no order with a name is sent; and an absence is never proved."""
    scene.break_down(Fault("cut", "reading", methods=["AddOrder"], calls=[1]), SILENCE)
    with scene.bot() as bot, scene.bot() as blind:
        with pytest.raises(OutcomeUnknown):
            bot.order("market", once=NAME)
        scene.break_down()
        monkeypatch.setattr(blind.client._guard._calls.exchange_clock, "learn", lambda *_: None)
        with pytest.raises(OutcomeUnknown, match="no proof"):
            blind.order("market", once=NAME)
        with pytest.raises(InvalidArgument, match="time of day"):
            blind.order("market", once="another")
        assert {record.name for record in scene.records()} == {NAME}
        assert bot.order("market", once=NAME) == scene.txid()
    assert scene.sent() == 2


def test_another_has_the_lock(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has lost the lock before it sends writes no record and sends nothing; nor does it write after the answer."""
    stock, ends = Keeping.trying, []

    def slow(self: Keeping, *args: Any) -> Any:
        scene.run(commands.unlock(scene.keys, self._member))
        return stock(self, *args)

    with scene.bot() as bot:
        with monkeypatch.context() as patches:
            patches.setattr(Keeping, "trying", slow)
            with pytest.raises(LeaseLost):
                bot.order("limit", once=NAME)
        assert (scene.records(), scene.sent()) == ((), 0)
        ending = Keeping.ending

        def slow_end(self: Keeping, *, placed: str | None) -> Any:
            ends.append(placed)
            scene.run(commands.unlock(scene.keys, self._member))
            return ending(self, placed=placed)

        with monkeypatch.context() as patches:
            patches.setattr(Keeping, "ending", slow_end)
            txid = bot.order("limit", once=NAME)
        assert [record.txid for record in scene.records()] == [""]
        assert ends == [txid]
        assert bot.order("limit", once=NAME) == txid
    assert scene.sent() == 1


@pytest.mark.test_all
def test_redis_fails_after_the_answer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller hears Kraken's answer all the same, and the next one finds the order."""

    def fail(*_: Any) -> Any:
        raise StoreUnavailable("once", scene.keys.state, "down")

    stock = name_records._once
    with scene.bot() as bot:
        with monkeypatch.context() as patches:
            made: list[Any] = []

            def once(*args: Any, **more: Any) -> Any:
                command = stock(*args, **more)
                made.append(command)
                if len(made) == 3:  # after reading it, and writing it before the order is sent
                    command.read = fail
                return command

            patches.setattr(name_records, "_once", once)
            txid = bot.order("limit", once=NAME)
        assert "does not say what became of it" in caplog.text
        assert bot.order("limit", once=NAME) == txid
    assert scene.sent() == 1


@pytest.mark.test_all
def test_nothing_is_told(scene: Scene) -> None:
    """Neither amounts nor parameters nor a hash of them, nor key or secret, are in Redis at any time."""
    order = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "23456.7", "volume": "0.00123"}
    dumps: list[str] = []

    def look() -> None:
        with scene.valkey.admin() as admin:
            for key in admin.keys("*"):
                kept = {"hash": admin.hgetall, "stream": admin.xrange}[admin.type(key)](key)
                dumps.append(repr((key, kept)))

    scene.break_down(LOST, SILENCE)
    with scene.bot() as bot:
        with pytest.raises(OutcomeUnknown):
            bot.client.query_private("AddOrder", order | {"once": NAME})
        look()
        scene.break_down()
        bot.client.query_private("AddOrder", order | {"once": NAME})
        look()
        (record,) = scene.records()
        same = bot.client
        same.secret = same.secret[:-8] + "AAAAAAA="
        # With another secret neither id nor digest would be the same.
        from kraken_nonce_redis._calls.call import Call  # noqa: PLC0415

        other = Call.of(same.key, "AddOrder", order | {"once": NAME}, 5, secret=same.secret)
        again = Call.of(same.key, "AddOrder", order | {"once": NAME}, 5, secret=scene.sim.secret)
    everything = "".join(dumps)
    for told in ("23456", "0.00123", "XBTUSD", "limit", scene.sim.key, scene.sim.secret):
        assert told not in everything, told
    assert other.once is not None
    assert again.once is not None
    assert record.digest in everything
    assert record.digest == again.once.digest != other.once.digest
    assert record.cl_ord_id == again.cl_ord_ids[0] != other.cl_ord_ids[0]


# Processes that are killed.

_notes = -1


def note(what: str, **more: Any) -> None:
    """Note something where a kill -9 can't take it back."""
    os.write(_notes, json.dumps({"what": what, **more}).encode() + b"\n")


def hang(point: str) -> None:
    """Wait to be killed."""
    note("hangs", point=point)
    time.sleep(1000)


def stop_at(point: str) -> None:
    """Let the next order stop there for ever."""
    trying, ending = Keeping.trying, Keeping.ending

    def slow_trying(self: Keeping, *args: Any) -> Any:
        if point == "intent noted":
            hang(point)
        yield from trying(self, *args)
        if point == "record written":
            hang(point)

    def slow_ending(self: Keeping, *, placed: str | None) -> Any:
        if point == "answered":
            hang(point)
        yield from ending(self, placed=placed)
        if point == "txid written":
            hang(point)

    Keeping.trying, Keeping.ending = slow_trying, slow_ending  # type: ignore[method-assign]


def main(
    _pipe: Connection, notes: Path, access: tuple[str, str, str], kind: str, names: list[str], point: str, options: Any
) -> None:
    """Ask for one order after the other, each until it is there."""
    global _notes  # noqa: PLW0603
    _notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    hurry()
    stop_at(point)
    luck = random.Random(os.getpid())
    bot = BOTS[kind](*access, retries=RETRIES, **options)
    for name in names:
        while True:
            try:
                txid = bot.order("market", once=name)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt tells more
                note("failed", name=name, error=repr(error))
            else:
                if txid:
                    note("placed", name=name, txid=txid)
                    break
            time.sleep(luck.uniform(0, 0.1))
    note("ends", pid=os.getpid())


class Asking(Child):
    """Such a process."""

    def __init__(
        self, notes: Path, scene: Scene, names: list[str], *, kind: str = "krakenex", point: str = "", **options: Any
    ) -> None:
        access = scene.sim.url, scene.sim.key, scene.sim.secret
        given = {"redis": scene.valkey.url, "ttl": 1, "call_timeout": 1.2, "patience": 30, **options}
        super().__init__(main, notes, access, kind, names, point, given)


def read(notes: Path, what: str) -> list[dict[str, Any]]:
    """Return what was noted."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [line for line in map(json.loads, lines) if line["what"] == what]


def check(scene: Scene, told: dict[str, set[str]]) -> None:
    """Assert that there is one order for each name, and that all who heard of it heard the same."""
    orders = Counter(order.cl_ord_id for order in scene.sim.orders())
    assert max(orders.values()) == 1, "an order was placed twice"
    assert len(orders) == len(told), "an order is missing, or there is one too many"
    assert {len(txids) for txids in told.values()} == {1}
    assert {txid for txids in told.values() for txid in txids} == {order.txid for order in scene.sim.orders()}


POINTS = ("intent noted", "record written", "reading", "acting", "answering", "answered", "txid written")


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["krakenex", *in_test_all("ccxt-async", "sdk")])
def test_killed(scene: Scene, tmp_path: Path, point: str, kind: str) -> None:
    """Whenever the first process is killed, the next one hears of its order, or places it."""
    if point in {"reading", "acting", "answering"}:
        held = 6.0 if point == "reading" else 1.0  # before reading, it comes after its deadline
        scene.break_down(Fault("slow", point, methods=["AddOrder"], calls=[1], seconds=held))  # type: ignore[arg-type]
    notes = tmp_path / "notes"
    with Asking(notes, scene, [NAME], kind=kind, point=point) as process:
        if point in {"reading", "acting", "answering"}:
            eventually(scene.sent, 30)
        else:
            eventually(lambda: read(notes, "hangs"), 30)
        process.kill()
    with scene.bot(kind) as bot:
        txid = bot.order("market", once=NAME)
        eventually(lambda: all(request.finished is not None for request in scene.sim.requests()), 10)
        assert bot.order("market", once=NAME) == txid == scene.txid()
    assert scene.sent() == (2 if point == "reading" else 1)


def together(
    scene: Scene, notes: Path, luck: random.Random, disturb: Callable[[], None], **options: Any
) -> dict[str, set[str]]:
    """Let four processes ask for the same orders while some of them are killed; return what they heard, by name."""
    wanted = [f"order {number}" for number in range(NAMES)]

    def start() -> Asking:
        return Asking(notes, scene, wanted, kind=luck.choice(KINDS[:1]), **options)

    children = [start() for _ in range(PROCESSES)]
    try:
        until = time.monotonic() + 4 + 2 * NAMES
        while time.monotonic() < until:
            time.sleep(luck.uniform(0.2, 1.0))
            victim = luck.randrange(PROCESSES)
            children[victim].close()
            children[victim] = start()
            disturb()
        eventually(lambda: all(child.ended for child in children), 60)
    finally:
        for child in children:
            child.close()
    told: dict[str, set[str]] = {}
    for line in read(notes, "placed"):
        told.setdefault(line["name"], set()).add(line["txid"])
    return told


TROUBLE = (
    Fault("cut", "reading", probability=0.05),
    Fault("cut", "acting", probability=0.05),
    Fault("cut", "answering", probability=0.1),
    Fault("cut", "reading", methods=["AddOrder"], probability=0.1, late=5),
    Fault("cut", "acting", methods=["AddOrder"], probability=0.1, late=1),
    Fault("502", "answering", methods=["AddOrder"], probability=0.1),
    Fault("slow", "answering", methods=["AddOrder"], probability=0.1, seconds=1.5),
    Fault("EService:Unavailable", "acting", probability=0.05),
    Fault("EOrder:Insufficient funds", "acting", methods=["AddOrder"], probability=0.1),
)


@pytest.mark.test_all
@pytest.mark.parametrize("losing", [False, True])
def test_four_processes(scene: Scene, tmp_path: Path, *, losing: bool) -> None:
    """Four processes ask for the same orders, some are killed, and answers get lost: one order for each name.

    So it is when all records are lost every other second.
    """
    luck = random.Random(7)

    def disturb() -> None:
        if losing and luck.random() < 0.3:
            scene.lose_records()

    scene.sim.configure(latency=(0.0, 0.02), listing_delay=(0.0, 0.3), faults=list(TROUBLE))
    told = together(scene, tmp_path / "notes", luck, disturb)
    scene.sim.configure(faults=[], latency=(0.0, 0.0))
    eventually(lambda: all(request.finished is not None for request in scene.sim.requests()), 20)
    check(scene, told)
    with scene.bot() as bot:

        def settled() -> bool:
            bot.balance()  # settles what those who were killed have left behind
            return scene.run(journal.pending(scene.keys)) == ()

        eventually(settled, 20)  # what one has found out, it may tell itself for 5 s; it was killed


def test_failover(sim: KrakenSimulator, sentinel: SentinelTopology, tmp_path: Path) -> None:
    """The same while a replica takes over, once and again."""
    scene = Scene(sim, sentinel)  # type: ignore[arg-type] # all that is used of a server is its URL
    sim.configure(latency=(0.0, 0.02), listing_delay=(0.0, 0.3), faults=list(TROUBLE))
    takeovers: list[int] = []

    def disturb() -> None:
        if len(takeovers) < 2 and scene.sent() > len(takeovers):
            takeovers.append(scene.sent())
            sentinel.failover()

    told = together(scene, tmp_path / "notes", random.Random(8), disturb)
    sim.configure(faults=[], latency=(0.0, 0.0))
    eventually(lambda: all(request.finished is not None for request in sim.requests()), 20)
    assert len(takeovers) == 2
    check(scene, told)


@pytest.mark.test_all
def test_the_longest_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a name has to wait covers the latest deadline that an order with a name can have."""
    for name, seconds in (("_AHEAD", 5.0), ("_ON_THE_WAY", 1.0), ("LONGEST_AHEAD", LONGEST_AHEAD)):
        monkeypatch.setattr(exchange_clock, name, seconds)
    known = exchange_clock.ExchangeClock()
    now = clock.now()
    for doubt in (0.0, 0.7, 2.9):
        known._known = None
        known.learn(now - doubt, now, 1_000.0)
        deadline, earliest = known.deadline(), known.earliest()
        assert known.is_sharp
        assert deadline is not None
        assert earliest is not None
        assert deadline - earliest <= exchange_clock.LONGEST_AHEAD
