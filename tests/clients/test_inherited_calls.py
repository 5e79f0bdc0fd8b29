"""What a holder does about earlier holders' calls: it asks Kraken, notes the result, tells it and strikes the entry."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import OutcomeUnknown, Retries
from kraken_nonce_redis._calls import inherited, questions
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.keyspace import Keyspace, digest
from kraken_nonce_redis.events import CallForgotten, OrderSettled
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import View, eventually, run
from tests.support.order_bots import BOTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis._redis.journal import Pending
    from tests.support.order_bots import Bot
    from tests.support.servers import Server

QUICK = Retries(waits=(0.01,) * 4, settle_waits=(0.02, 0.05))
ASKING = {"OpenOrders", "ClosedOrders"}
DAY = 86_400 * 10**6

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=11),
    pytest.mark.parametrize("kind", ["krakenex", "ccxt-async"]),
]


class Killed(BaseException):
    """The process is no more."""


class Scene:
    """A journal, an exchange, and bots of one kind that come one after the other."""

    def __init__(self, sim: KrakenSimulator, valkey: Server, kind: str) -> None:
        self.sim = sim
        self.client = valkey.client()
        self.url = valkey.url
        self._kind = kind
        self.keys = Keyspace.of("kraken-nonce", sim.key)

    def bot(self, hook: Callable[[Any], object] | None = None, **options: Any) -> Bot:
        """Start a bot."""
        options = {"redis": self.url, "retries": QUICK, "on_event": hook, **options}
        return BOTS[self._kind](self.sim.url, self.sim.key, self.sim.secret, **options)

    def leave_order(self, **options: Any) -> Pending:
        """Place an order whose caller doesn't hear of it; return what is pending."""
        self.sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        with self.bot(on_unknown="raise", **options) as bot, pytest.raises(OutcomeUnknown):
            bot.order("limit")
        self.sim.configure(faults=[])
        name = digest(self.sim.key)
        [entry] = eventually(lambda: [one for one in self.pending() if one.key == name and not one.reported])
        return entry

    def pending(self) -> tuple[Pending, ...]:
        """Return the journal."""
        return run(self.client, journal.pending(self.keys))

    def learn(self, **options: Any) -> list[Any]:
        """Be the next holder; return what it learns."""
        learned: list[Any] = []
        with self.bot(learned.append, **options) as bot:
            bot.balance()
        return learned

    def asked(self) -> int:
        """Return how often Kraken was asked about orders."""
        return sum(request.method in ASKING for request in self.sim.requests())

    def journal_reads(self) -> int:
        """Return how often scripts have read the whole state."""
        stats: Any = self.client.info("commandstats")
        return stats.get("cmdstat_hgetall", {"calls": 0})["calls"]  # type: ignore[no-any-return]


@pytest.fixture
def scene(sim: KrakenSimulator, valkey: Server, kind: str) -> Scene:
    """Set the scene."""
    return Scene(sim, valkey, kind)


def test_killed_while_it_tells(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """News that a process takes with it is told by the next holder from the record, once that had time to tell it.

    Kraken isn't asked again, and the id shows that it may be the same news.
    """
    entry = scene.leave_order()
    told: list[Any] = []

    def hear(event: Any) -> None:
        told.append(event)
        raise Killed

    with scene.bot(hear) as bot, pytest.raises(Killed):
        bot.balance()
    (noted,) = scene.pending()
    txid = scene.sim.orders()[0].txid
    assert (noted.result, dict(noted.txids)) == ("found", {entry.cl_ord_ids[0]: txid})
    asked = scene.asked()
    monkeypatch.setattr(inherited, "_TELLING", 1000.0)
    assert scene.learn() == []
    assert [each.result for each in scene.pending()] == ["found"]
    monkeypatch.setattr(inherited, "_TELLING", 0.0)
    (event,) = scene.learn()
    assert (event.id, event.outcome, dict(event.orders)) == (told[0].id, "found", {entry.cl_ord_ids[0]: txid})
    assert (event.nonce, event.inherited, event.key) == (entry.nonce, True, digest(scene.sim.key))
    assert scene.asked() == asked
    assert scene.pending() == ()
    assert scene.learn() == []


def test_a_clock_that_was_set_back(scene: Scene) -> None:
    """A result from the server's future is told, too."""
    entry = scene.leave_order()
    now = View(scene.client, scene.keys).state.now // 1000
    name = f"pending:{entry.nonce}"
    value = f"{now} absent {entry.key} AddOrder {entry.cl_ord_ids[0]} - {now + DAY} -"
    scene.client.hset(scene.keys.state, name, value)
    (event,) = scene.learn()
    assert event.outcome == "absent"
    assert scene.pending() == ()


def test_a_hook_that_fails(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A hook's failure is logged, and what it was told is taken off the journal all the same."""
    scene.leave_order()

    def hear(_event: Any) -> None:
        raise ValueError("a hook's own")

    with scene.bot(hear) as bot:
        bot.balance()
    assert "on_event failed" in caplog.text
    assert scene.pending() == ()
    assert scene.learn() == []


def test_while_it_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook runs without the lock, with the result in the journal; its own calls don't tell it again, however late."""
    monkeypatch.setattr(inherited, "_TELLING", 0.0)
    scene.leave_order()
    heard: list[Any] = []
    results: list[Any] = []

    def hear(event: Any) -> None:
        heard.append(event)
        results.extend(entry.result for entry in scene.pending())
        View(scene.client, scene.keys).until_free()
        assert api.query_private("Balance")["error"] == []

    api = API(scene.sim.key, scene.sim.secret, redis=scene.url, on_event=heard.append)
    api.uri = scene.sim.url
    with scene.bot(hear) as bot:
        bot.balance()
    assert [event.outcome for event in heard] == ["found"]
    assert results == ["found"]
    assert scene.pending() == ()


def test_its_own_release_comes_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the caller itself releases its call as known while another holder settles it, nothing is told."""
    entry = scene.leave_order()
    settling = questions.settling

    def settling_late(*args: Any, **options: Any) -> Any:
        settlement = yield from settling(*args, **options)
        assert settlement.outcome == "found"
        run(scene.client, commands.release(scene.keys, "process:1", entry.nonce, entry.nonce, known=True))
        return settlement

    monkeypatch.setattr(questions, "settling", settling_late)
    caplog.clear()
    assert scene.learn() == []
    assert str(entry.nonce) not in caplog.text
    assert scene.pending() == ()


def test_one_that_cannot_be_settled(scene: Scene) -> None:
    """A call without a cl_ord_id is told with the outcome unknown, once, and stays listed for people."""
    keys = scene.keys
    intent = journal.intent(digest(scene.sim.key), "Withdraw", ())
    asks = commands.acquire(keys, "process:1", 30, ticket=None, priority="normal", pace="", intent=intent)
    granted = run(scene.client, asks)
    assert isinstance(granted, commands.Granted)
    run(scene.client, commands.release(keys, "process:1", granted.nonces[0], granted.nonces[0], known=False))
    (event,) = scene.learn()
    assert (event.method, event.outcome) == ("Withdraw", "unknown")
    assert [entry.reported for entry in scene.pending()] == [True]
    assert scene.learn() == []


def test_left_to_others(scene: Scene) -> None:
    """With ``on_unknown="raise"`` an order is told once and left to a process that settles; others are reported."""
    order = scene.leave_order()
    told: list[Any] = []
    with scene.bot(told.append, on_unknown="raise") as bot:
        for _ in range(3):
            bot.balance()
            (entry,) = scene.pending()
            assert (entry.nonce, entry.reported, entry.result) == (order.nonce, False, None)
        (event,) = told
        assert (event.nonce, event.outcome, event.inherited) == (order.nonce, "unknown", True)
        assert scene.asked() == 0
        (event,) = scene.learn()
        assert (event.nonce, event.outcome) == (order.nonce, "found")
        bot.balance()
    assert len(told) == 1
    assert scene.pending() == ()


def test_told_by_one_that_leaves_orders(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found out and not told is told by a process with ``on_unknown="raise"``, too."""
    monkeypatch.setattr(inherited, "_TELLING", 0.0)
    order = scene.leave_order()
    run(scene.client, journal.settle(scene.keys, order.nonce, "found", ["O-1"]))
    (event,) = scene.learn(on_unknown="raise")
    assert (event.outcome, dict(event.orders)) == ("found", {order.cl_ord_ids[0]: "O-1"})
    assert scene.pending() == ()


# What it costs.


def test_another_key(scene: Scene) -> None:
    """Under a lock for all API keys, what one key has left behind costs the others' calls nothing and is left alone."""
    keys = Keyspace.of("kraken-nonce", scene.sim.key, "global")
    intent = journal.intent(digest("another key"), "AddOrder", ("an-id",))
    asks = commands.acquire(keys, "process:1", 30, ticket=None, priority="normal", pace="", intent=intent)
    granted = run(scene.client, asks)
    assert isinstance(granted, commands.Granted)
    run(scene.client, commands.release(keys, "process:1", granted.nonces[0], granted.nonces[0], known=False))
    with scene.bot(scope="global") as bot:
        before = scene.journal_reads()
        for _ in range(2):
            bot.balance()
        bot.order("limit")
        assert scene.journal_reads() == before
    (entry,) = run(scene.client, journal.pending(keys))
    assert (entry.cl_ord_ids, entry.reported) == (("an-id",), False)


@pytest.mark.parametrize("count", ["1", "1 {key}:1"])
def test_a_count_without_entries(scene: Scene, count: str) -> None:
    """A count that has lost its entries costs the next call a look, and the later ones nothing."""
    scene.client.hset(scene.keys.state, "pending", count.format(key=digest(scene.sim.key)))
    with scene.bot() as bot:
        before = scene.journal_reads()
        bot.balance()
        looked = scene.journal_reads()
        assert looked > before
        bot.balance()
        assert scene.journal_reads() == looked


# Reported calls don't pile up.


def test_forgotten(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Of reported calls the newest 1,000 stay, for 30 days; each that goes is told. New ones stay, however old."""
    key, now = digest(scene.sim.key), View(scene.client, scene.keys).state.now // 1000
    old, aged, others = 10**18, 10**18 + 2000, digest("another key")
    entries = {f"pending:{old + number}": f"{now} reported {key} Withdraw -" for number in range(1002)}
    entries[f"pending:{aged}"] = f"{now - 31 * DAY} reported {others} AddOrder an-id"
    entries[f"pending:{aged - 1}"] = f"{now - 29 * DAY} reported {others} AddOrder other-id"
    entries[f"pending:{old - 1}"] = f"{now - 99 * DAY} new {others} AddOrder new-id"
    scene.client.hset(scene.keys.state, mapping=entries)
    scene.leave_order()
    caplog.clear()
    learned = scene.learn()
    forgotten = [event for event in learned if isinstance(event, CallForgotten)]
    assert {(event.nonce, event.method, event.cl_ord_ids, event.key) for event in forgotten} == {
        *((old + number, "Withdraw", (), key) for number in range(4)),
        (aged, "AddOrder", ("an-id",), others),
    }
    assert [event.outcome for event in learned if isinstance(event, OrderSettled)] == ["found"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for event in forgotten:
        (warning,) = [text for text in warnings if str(event.nonce) in text]
        assert event.method in warning
        assert ",".join(event.cl_ord_ids) in warning
    left = scene.pending()
    assert len(left) == 1000
    assert [entry.nonce for entry in left if not entry.reported] == [old - 1]
    assert {entry.nonce for entry in left} >= {old + 4, aged - 1}


def test_forgotten_by_and_by(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call takes so many off the journal at most, the oldest first. One that is told twice has the same id."""
    monkeypatch.setattr(inherited, "_MOST_REPORTED", 0)
    monkeypatch.setattr(inherited, "_FORGOTTEN_AT_ONCE", 2)
    key, now = digest(scene.sim.key), View(scene.client, scene.keys).state.now // 1000
    nonces = [10**18 + number for number in range(3)]
    for nonce in nonces:
        scene.client.hset(scene.keys.state, f"pending:{nonce}", f"{now} reported {key} Withdraw -")
    told: list[Any] = []
    for _ in range(2):
        scene.client.hset(scene.keys.state, "pending", 1)

        def hear(event: Any) -> None:
            told.append(event)
            raise Killed

        with scene.bot(hear) as bot, pytest.raises(Killed):
            bot.balance()
    assert [event.nonce for event in told] == nonces[:1] * 2
    assert told[0].id == told[1].id
    scene.client.hset(scene.keys.state, "pending", 1)
    assert sorted(event.nonce for event in scene.learn()) == nonces[:2]
    assert [entry.nonce for entry in scene.pending()] == nonces[2:]
