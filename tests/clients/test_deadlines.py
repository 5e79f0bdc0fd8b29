"""Orders with a deadline: it follows Kraken's clock, proves absence, and lets an order be sent once more."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import InvalidArgument, NotCarriedOut, OutcomeUnknown, Retries
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._calls import exchange_clock
from kraken_nonce_redis._calls.exchange_clock import ExchangeClock
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import run
from tests.support.order_bots import BOTS, form
from tests.support.tiers import in_test_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.order_bots import Bot
    from tests.support.servers import Server

PROOF_WAIT = 0.5
RETRIES = Retries(waits=(0.01,) * 4, settle_waits=(0.02, 0.06), proof_wait=PROOF_WAIT)
KINDS = ["krakenex", "ccxt-async", "sdk", *in_test_all("ccxt", "sdk-async")]
AHEAD = 3.0
"""Seconds to a deadline, about: the least that Kraken takes, and what is unknown of its clock."""
ASKING = "GetApiKeyInfo"
LOST: dict[str, Any] = {"what": "cut", "before": "reading", "methods": ["AddOrder"]}

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20, own=True),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let deadlines be as soon as can be, so that tests need not wait for them."""
    monkeypatch.setattr(exchange_clock, "_AHEAD", 0.0)
    monkeypatch.setattr(exchange_clock, "_ON_THE_WAY", 0.3)


class Scene:
    """An exchange, and what a client hears of it."""

    def __init__(self, sim: KrakenSimulator, valkey: Server) -> None:
        self.sim = sim
        self.events: list[Any] = []
        self._valkey = valkey
        self._keys = Keyspace.of("kraken-nonce", sim.key)

    def bot(self, kind: str = "krakenex", **options: Any) -> Bot:
        """Return a client."""
        given: dict[str, Any] = {"deadline": "auto", "retries": RETRIES, "on_event": self.events.append}
        return BOTS[kind](
            self.sim.url, self.sim.key, self.sim.secret, redis=self._valkey.url, call_timeout=2, **given | options
        )

    def orders(self) -> list[Any]:
        """Return the orders that were sent."""
        return [request for request in self.sim.requests() if request.method == "AddOrder"]

    def last_look(self) -> float:
        """Return how many seconds after the first order the lists were asked for the last time."""
        looks = [request.received for request in self.sim.requests() if request.method == "ClosedOrders"]
        return float(looks[-1] - self.orders()[0].received)

    def pending(self) -> int:
        """Return how many calls are in the journal."""
        return len(self._run(journal.pending(self._keys)))

    def forget(self) -> None:
        """Take the only call off the journal, which is not what the test is about."""
        (entry,) = self._run(journal.pending(self._keys))
        self._run(journal.settle(self._keys, entry.nonce, "known"))

    def _run(self, command: Any) -> Any:
        return run(self._valkey.client(), command)


@pytest.fixture
def scene(sim: KrakenSimulator, valkey: Server) -> Iterator[Scene]:
    """Set the scene."""
    scene = Scene(sim, valkey)
    yield scene
    assert scene.pending() == 0


@pytest.mark.long
@pytest.mark.parametrize("offset", [-7_200.0, 7_200.0])
@pytest.mark.parametrize("kind", BOTS)
def test_krakens_clock(scene: Scene, kind: str, offset: float) -> None:
    """The deadline is by Kraken's clock, whatever this machine's says; when that was set, the order goes once more."""
    sim = scene.sim
    sim.configure(clock_offset=offset)
    with scene.bot(kind) as bot:
        assert bot.order("market")
        assert [request.error for request in scene.orders()] == [()]
        sim.configure(clock_offset=-offset)
        assert bot.order("market")
    refusal = "EService:Deadline elapsed" if offset < 0 else "EGeneral:Invalid arguments:deadline"
    assert [request.error for request in scene.orders()] == [(), (refusal,), ()]
    assert [request.method for request in sim.requests()].count(ASKING) <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.test_all
def test_proved(scene: Scene, kind: str) -> None:
    """An order that Kraken accepts, but has not placed by its deadline, is proved to be absent, and stays absent."""
    held = AHEAD + PROOF_WAIT + 2
    with scene.bot(kind) as bot:
        bot.balance()
        scene.sim.configure(faults=[Fault("cut", "acting", methods=["AddOrder"], late=held)])
        with pytest.raises(NotCarriedOut, match="deadline was over") as caught:
            bot.order("market")
    assert caught.value.proved
    (event,) = scene.events
    assert (event.outcome, event.proved) == ("absent", True)
    assert 2 + PROOF_WAIT < scene.last_look() < held
    time.sleep(held - scene.last_look() + 0.2)
    assert scene.sim.orders() == []


@pytest.mark.test_all
def test_listed_late(scene: Scene) -> None:
    """An order that is listed after the usual looks, but soon after its deadline, is found."""
    scene.sim.configure(listing_delay=(1.5, 1.5), faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
    with scene.bot() as bot:
        assert bot.order("market") == scene.sim.orders()[0].txid


@pytest.mark.test_all
def test_a_deadline_of_the_callers(scene: Scene) -> None:
    """A caller's own deadline stays as it is, and proves absence as well."""
    scene.sim.configure(faults=[Fault(**LOST)])
    order = {**form("limit"), "deadline": datetime.fromtimestamp(time.time() + 2.5, UTC).isoformat()}
    with scene.bot(deadline=None) as bot:
        with pytest.raises(NotCarriedOut) as caught:
            bot.client.query_private("AddOrder", order)
        assert caught.value.proved
        with pytest.raises(NotCarriedOut) as caught:
            bot.client.query_private("AddOrder", form("limit"))
        assert not caught.value.proved
    assert [event.proved for event in scene.events] == [True, False]


def test_an_inherited_order_is_not_proved(scene: Scene) -> None:
    """The deadline of another process's order is not in the journal, so its absence is told with its limits."""
    scene.sim.configure(faults=[Fault(**LOST)])
    with scene.bot(on_unknown="raise") as gone, pytest.raises(OutcomeUnknown):
        gone.order("limit")
    scene.events.clear()
    with scene.bot() as bot:
        bot.balance()
    assert [(event.outcome, event.proved) for event in scene.events] == [("absent", False)]


class TestResend:
    """Sending an order once more that is proved to be absent."""

    @pytest.mark.long
    @pytest.mark.parametrize("kind", KINDS)
    def test_placed_once(self, scene: Scene, kind: str) -> None:
        """An order that was lost on its way is placed, once, though the lost request arrives after all."""
        sim, late = scene.sim, AHEAD + PROOF_WAIT + 1.5
        sim.set_nonce_window(10 * 10**9, repeats=True)
        with scene.bot(kind, on_absent="resend", patience=60) as bot:
            bot.balance()
            sim.configure(faults=[Fault(**LOST, calls=[1], late=late)])
            txid = bot.order("market")
            time.sleep(max(0.0, late - scene.last_look()))
        assert [order.txid for order in sim.orders()] == [txid]
        assert len(scene.orders()) == 2
        assert [(event.outcome, event.cl_ord_ids) for event in scene.events] == [
            ("absent", (sim.orders()[0].cl_ord_id,))
        ]

    @pytest.mark.test_all
    def test_once_only(self, scene: Scene) -> None:
        """An order that is lost again is not sent a third time."""
        scene.sim.configure(faults=[Fault(**LOST)])
        with scene.bot(on_absent="resend", patience=60) as bot, pytest.raises(NotCarriedOut) as caught:
            bot.order("market")
        assert caught.value.proved
        assert len(scene.orders()) == 2

    @pytest.mark.test_all
    def test_not_after_its_patience(self, scene: Scene) -> None:
        """An order whose absence is proved too late is not sent again."""
        scene.sim.configure(faults=[Fault(**LOST)])
        with scene.bot(on_absent="resend", patience=2) as bot, pytest.raises(NotCarriedOut):
            bot.order("market")
        assert len(scene.orders()) == 1

    @pytest.mark.test_all
    @pytest.mark.parametrize(
        "refusal", ["", "EOrder:Insufficient funds", "EAPI:Rate limit exceeded", "EService:Deadline elapsed"]
    )
    def test_refused(self, scene: Scene, sim: KrakenSimulator, refusal: str) -> None:
        """If Kraken refuses the second one for its id or for lack of funds, the first one may be there after all."""
        certain = refusal.startswith(("EAPI", "EService"))
        faults = [Fault("cut", "answering" if not refusal else "reading", methods=["AddOrder"], calls=[1])]
        if refusal:
            faults.append(Fault(refusal, "reading", methods=["AddOrder"], calls=[2]))
        sim.configure(listing_delay=(60, 60), faults=faults)
        with scene.bot(on_absent="resend", patience=60) as bot:
            with pytest.raises(NotCarriedOut if certain else OutcomeUnknown, match=refusal or "cl_ord_id"):
                bot.order("limit")
            assert len(scene.orders()) == 2
            assert len(sim.orders()) == (not refusal)
            sim.configure(listing_delay=(0, 0), faults=[])
            if not certain:
                scene.forget()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deadline", {"deadline": "now"}),
        ("on_absent", {"on_absent": "again", "deadline": "auto"}),
        ("on_absent", {"on_absent": "resend"}),
        ("on_absent", {"on_absent": "resend", "deadline": "auto", "on_unknown": "replay"}),
        ("proof_wait", {"retries": lambda: Retries(proof_wait=-1)}),
    ],
)
def test_invalid(name: str, options: dict[str, Any]) -> None:
    """What can't work is refused where the client is made."""
    with pytest.raises(InvalidArgument, match=name):
        API("key", "c2VjcmV0", redis="redis://localhost", **{k: v() if callable(v) else v for k, v in options.items()})


class TestClock:
    """What a client knows of Kraken's clock."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Return the time on our own clock, to be set."""
        now = [1_000.0]
        monkeypatch.setattr(clock, "now", lambda: now[0])
        monkeypatch.setattr(exchange_clock, "_AHEAD", 5.0)
        monkeypatch.setattr(exchange_clock, "_ON_THE_WAY", 1.0)
        return now

    def test_unknown(self) -> None:
        """Nothing is known of it without a Date."""
        known = ExchangeClock()
        known.learn(1, 2, None)
        assert (known.is_sharp, known.earliest(), known.deadline()) == (False, None, None)

    def test_answers_together(self, now: list[float]) -> None:
        """Each answer leaves less of a doubt."""
        known, true = ExchangeClock(), 5_000_000.6  # when our own clock says 0
        for sent in (900.0, 900.3, 900.6, 900.9):
            known.learn(sent, sent + 0.1, float(int(true + sent + 0.05)))
        now[0] = 901.0
        earliest, deadline = known.earliest(), known.deadline()
        assert earliest is not None
        assert deadline is not None
        assert true + 901 - 0.4 < earliest <= true + 901
        assert abs(deadline - (true + 901 + 5)) < 0.25

    def test_doubt_grows(self, now: list[float]) -> None:
        """After a time without an answer it may have drifted: the deadline is later, and then there is none."""
        known = ExchangeClock()
        known.learn(999.9, 1_000.0, 7_000_000.0)
        assert known.is_sharp
        for later, ahead in ((0, 5.0), (3_000, 2 + 1 + 3.5)):
            now[0] = 1_000.0 + later
            deadline = known.deadline()
            assert deadline is not None
            assert abs(deadline - (7_000_000.5 + later + ahead)) < 0.2
        assert not known.is_sharp
        now[0] += 86_400
        assert known.deadline() is None

    def test_set(self, now: list[float]) -> None:
        """When one of the clocks is set, what was known before is forgotten."""
        known = ExchangeClock()
        known.learn(999.9, 1_000.0, 7_000_000.0)
        known.learn(999.9, 1_000.0, 7_003_600.0)
        assert known.earliest() == 7_003_600.0
        assert now

    @pytest.mark.parametrize("text", [None, 5, "", "tomorrow", "2026-11-27T12:00:00"])
    def test_no_deadline(self, text: Any) -> None:
        """What is no deadline of Kraken's form proves nothing."""
        assert exchange_clock.read(text) is None

    def test_written(self) -> None:
        """A deadline is written to the millisecond, and read as it was written."""
        assert exchange_clock.written(1_764_244_800.5) == "2025-11-27T12:00:00.500Z"
        assert exchange_clock.read("2025-11-27T12:00:00.500Z") == 1_764_244_800.5
