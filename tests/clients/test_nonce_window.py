"""API keys with a nonce window: a late request must not become an order after that was told to be absent."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import InvalidArgument, NonceAllocator, NotCarriedOut, OutcomeUnknown, Retries
from kraken_nonce_redis._calls import attempt
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import SECOND, View, eventually, run
from tests.support.order_bots import BOTS, Beliefs
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    from tests.support.order_bots import Bot
    from tests.support.servers import Server

QUICK = Retries(waits=(0.01,) * 4, settle_waits=(0.02, 0.06))
WINDOW = 10 * SECOND
LATE = 0.5
"""Seconds after which a lost request arrives: after the last look at the lists."""
LOST = Fault("cut", "reading", methods=["AddOrder"], calls=[1], late=LATE)
ASKING = "GetApiKeyInfo"

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


class Scene:
    """An exchange, a Redis, and what clients do with them."""

    def __init__(self, sim: KrakenSimulator, valkey: Server) -> None:
        self.sim = sim
        self.url = valkey.url
        self.client = valkey.client()
        self.namespace = f"test-{uuid.uuid4()}"
        self.keys = Keyspace.of(self.namespace, sim.key)

    def bot(self, kind: str = "krakenex", **options: Any) -> Bot:
        """Return a client, which has made a call already."""
        options = {"redis": self.url, "namespace": self.namespace, "retries": QUICK, **options}
        bot = BOTS[kind](self.sim.url, self.sim.key, self.sim.secret, **options)
        bot.balance()
        return bot

    def lead(self) -> float:
        """Return how many seconds the last nonce is ahead of the server's clock."""
        state = View(self.client, self.keys).state
        return ((state.last or 0) - state.now) / SECOND

    def methods(self) -> list[str]:
        """Return which methods were asked for."""
        return [request.method for request in self.sim.requests()]

    def pending(self) -> int:
        """Return how many calls are in the journal."""
        return len(run(self.client, journal.pending(self.keys)))


@pytest.fixture
def scene(sim: KrakenSimulator, valkey: Server) -> Scene:
    """Set the scene."""
    return Scene(sim, valkey)


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("kind", BOTS)
def test_a_late_order(scene: Scene, kind: str, *, repeats: bool) -> None:
    """What was told to be absent stays absent, though the request arrives; all who share the key go on above it."""
    sim = scene.sim
    sim.set_nonce_window(WINDOW, repeats=repeats)
    with scene.bot(kind) as bot, scene.bot() as other:
        sim.configure(faults=[LOST])
        with pytest.raises(NotCarriedOut):
            bot.order("market")
        time.sleep(LATE)
        assert sim.orders() == []
        for each in (other, bot):
            assert each.order("market")
        assert NonceAllocator.from_url(scene.url, sim.key, namespace=scene.namespace).next() > max(
            request.nonce or 0 for request in sim.requests()
        )
    assert len(sim.orders()) == 2
    nonces = [request.nonce for request in sim.requests()]
    assert nonces == sorted(nonces, key=lambda nonce: nonce or 0)
    assert WINDOW / SECOND - 5 < scene.lead() < WINDOW / SECOND + 1


@pytest.mark.long
@pytest.mark.parametrize("kind", BOTS)
def test_many_late_orders(scene: Scene, kind: str) -> None:
    """Whatever is told of an order's request that went missing, it is so when that arrives after all."""
    wanted, beliefs = by_tier(6, 6, 500), Beliefs()
    scene.sim.set_nonce_window(SECOND, repeats=True)
    with scene.bot(kind) as bot:
        scene.sim.configure(
            faults=[
                Fault(what, "reading", methods=["AddOrder"], probability=0.3, late=LATE)
                for what in ("cut", "502", "EService:Unavailable")
            ]
        )
        for _ in range(wanted):
            beliefs.ask(bot, "market")
    time.sleep(LATE + 0.1)
    beliefs.check(scene.sim.orders(), wanted)
    assert beliefs.absent
    assert not beliefs.unknown


def test_without_a_window(scene: Scene) -> None:
    """The question itself is the fence then, and no nonce is raised; calls that get their answer don't ask it."""
    with scene.bot() as bot:
        scene.sim.configure(faults=[LOST])
        with pytest.raises(NotCarriedOut):
            bot.order("market")
        assert bot.order("market")
    assert scene.methods().count(ASKING) == 1
    assert scene.methods()[:3] == ["Balance", "AddOrder", ASKING]
    assert scene.lead() < 1
    time.sleep(LATE)
    assert len(scene.sim.orders()) == 1


def test_found(scene: Scene) -> None:
    """An order that is there is found, with a window as without."""
    scene.sim.set_nonce_window(WINDOW)
    with scene.bot() as bot:
        scene.sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        assert bot.order("market") == scene.sim.orders()[0].txid


def test_too_far(scene: Scene) -> None:
    """A fence that would be further ahead than `max_lead` is not set: it stays unknown whether the order is there."""
    scene.sim.set_nonce_window(7_200 * SECOND)
    with scene.bot() as bot:
        scene.sim.configure(faults=[LOST])
        with pytest.raises(OutcomeUnknown, match=r"window is 7200 s.*max_lead"):
            bot.order("market")
    assert scene.lead() < 1
    assert scene.pending() == 1


def test_an_inherited_order(scene: Scene) -> None:
    """The fence for the order of another process is above the window, too; trying again doesn't pile up lead."""
    sim, told = scene.sim, []
    sim.set_nonce_window(WINDOW)
    with scene.bot(on_unknown="raise") as gone:
        sim.configure(faults=[Fault("cut", "reading", methods=["AddOrder"], calls=[1], late=2.0)])
        with pytest.raises(OutcomeUnknown):
            gone.order("market")
        left = time.monotonic()
    eventually(lambda: scene.pending() == 1)
    sim.configure(faults=[Fault("EService:Busy", "acting", methods=["OpenOrders"])])
    with scene.bot(on_event=told.append) as bot:
        for _ in range(5):
            bot.balance()
        assert scene.lead() < WINDOW / SECOND + 1
        assert scene.methods().count(ASKING) == 6
        sim.configure(faults=[])
        bot.balance()
    assert told[-1].outcome == "absent"
    assert time.monotonic() < left + 2.0
    time.sleep(left + 2.2 - time.monotonic())
    assert sim.orders() == []
    assert scene.pending() == 0


@pytest.mark.parametrize("given", [None, WINDOW])
def test_not_told(scene: Scene, caplog: pytest.LogCaptureFixture, given: int | None) -> None:
    """Where Kraken does not know the question, the setting counts; without one the window is 0, with one warning."""
    sim = scene.sim
    sim.set_nonce_window(given or 0)
    with scene.bot(nonce_window=given) as bot, scene.bot(nonce_window=given) as other:
        sim.configure(
            faults=[
                Fault("cut", "reading", methods=["AddOrder"], calls=[1, 2], late=LATE),
                Fault("EGeneral:Unknown method", "reading", methods=[ASKING]),
            ]
        )
        for each in (bot, other):
            with pytest.raises(NotCarriedOut):
                each.order("market")
    time.sleep(LATE)
    assert sim.orders() == []
    warnings = [record for record in caplog.records if "nonce window" in record.getMessage()]
    assert len(warnings) == (given is None)
    assert sim.key not in caplog.text


def test_no_answer(scene: Scene) -> None:
    """While nothing is heard of the window, it is unknown whether the order is there, unless the setting tells it."""
    with scene.bot() as bot, scene.bot(nonce_window=0) as knowing:
        faults = [LOST, Fault("cut", "reading", methods=[ASKING])]
        scene.sim.configure(faults=faults)
        with pytest.raises(OutcomeUnknown, match=ASKING):
            bot.order("market")
        scene.sim.configure(faults=faults)
        with pytest.raises(NotCarriedOut):
            knowing.order("market")
    assert scene.sim.orders() == []


class TestReplay:
    """Sending the same bytes once more, which is no safe thing inside of a window."""

    def test_refused(self, scene: Scene) -> None:
        """Nothing that changes anything is sent."""
        scene.sim.set_nonce_window(WINDOW)
        with scene.bot(on_unknown="replay") as bot:
            for _ in range(2):
                with pytest.raises(InvalidArgument, match="nonce window"):
                    bot.order("market")
        assert scene.methods() == ["Balance", ASKING]
        assert scene.pending() == 0

    def test_refused_at_once(self) -> None:
        """A window that is given is refused where the client is made."""
        with pytest.raises(InvalidArgument, match="nonce window"):
            API("key", "c2VjcmV0", redis="redis://localhost", on_unknown="replay", nonce_window=1)

    def test_asked_hourly(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """The window is asked for before the first order, and again when that was long ago."""
        with scene.bot(on_unknown="replay") as bot:
            scene.sim.configure(faults=[Fault("cut", "reading", methods=["AddOrder"], calls=[2])])
            for _ in range(3):
                assert bot.order("market")
            assert scene.methods() == ["Balance", ASKING, *["AddOrder"] * 4]  # one of them was sent twice
            monkeypatch.setattr(attempt, "_WINDOW_KNOWN_FOR", 0.0)
            assert bot.order("market")
            assert scene.methods()[-2:] == [ASKING, "AddOrder"]
        assert len(scene.sim.orders()) == 4

    def test_not_known(self, scene: Scene) -> None:
        """While the window is unknown, orders go out, and none is sent twice."""
        with scene.bot(on_unknown="replay") as bot:
            scene.sim.configure(
                faults=[
                    Fault("cut", "reading", methods=["AddOrder"], calls=[1]),
                    Fault("cut", "reading", methods=[ASKING], calls=[1]),
                ]
            )
            with pytest.raises(NotCarriedOut):
                bot.order("market")
        assert scene.methods().count("AddOrder") == 1


@pytest.mark.parametrize("window", [-1, 1.5, "10", True])
def test_invalid(window: Any) -> None:
    """Only a whole number of ns is a window."""
    with pytest.raises(InvalidArgument, match="nonce_window"):
        API("key", "c2VjcmV0", redis="redis://localhost", nonce_window=window)
