"""What is told of calls, on all clients; and that nobody is told a secret."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from kraken_nonce_redis import NoncePoisoned, OutcomeUnknown, Retries, events, otel, prometheus
from kraken_nonce_redis._redis.keyspace import digest
from kraken_nonce_redis.events import (
    CallEnded,
    CallRefused,
    CallSent,
    CallTriedAgain,
    LockGranted,
    LockReleased,
)
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import eventually
from tests.support.listening import Listener, listening
from tests.support.order_bots import BOTS, Bot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import PrivateServer
    from tests.support.servers import Server

QUICK = Retries(waits=(0.01, 0.02, 0.02, 0.02), settle_waits=(0.02, 0.06))
UNAVAILABLE = "EService:Unavailable"
NAME = "grid bot 1"
STEPS = (LockGranted, CallSent, CallEnded, LockReleased)

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=22),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


@pytest.fixture(params=BOTS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each client in turn."""
    return str(request.param)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Hear of all events."""
    with listening() as listener:
        yield listener


@pytest.fixture
def balance(kind: str) -> str:
    """Return the method with which a client asks for the balance."""
    return "BalanceEx" if kind.startswith("ccxt") else "Balance"


@contextlib.contextmanager
def a_bot(kind: str, sim: KrakenSimulator, valkey: Server, **options: Any) -> Iterator[Bot]:
    """Make a client that has asked for the markets, if it does that."""
    options = {"redis": valkey.url, "retries": QUICK, "name": NAME, **options}
    with BOTS[kind](sim.url, sim.key, sim.secret, **options) as bot:
        if hasattr(bot.client, "load_markets"):
            bot.run(bot.client.load_markets())
        yield bot


def test_a_call(kind: str, balance: str, sim: KrakenSimulator, valkey: Server, listener: Listener) -> None:
    """A call is told from its grant to its release, with the bot's name and Kraken's of the method."""
    with a_bot(kind, sim, valkey) as bot:
        bot.balance()
    assert listener.kinds() == list(STEPS)
    for event in listener.told:
        assert (event.key, event.name, event.method) == (digest(sim.key), NAME, balance)
    (granted, sent, ended, released) = listener.told
    assert granted.nonce == sent.nonce == ended.nonce == released.nonce == sim.requests()[-1].nonce  # type: ignore[union-attr]
    assert ended.outcome == "carried out"  # type: ignore[union-attr]
    assert 0 < ended.seconds < 5  # type: ignore[union-attr]
    assert ended.since == pytest.approx(sent.time, abs=0.05)


def test_a_refusal(kind: str, balance: str, sim: KrakenSimulator, valkey: Server, listener: Listener) -> None:
    """What Kraken answers with an error is told with that, and when and why it is tried again."""
    with a_bot(kind, sim, valkey) as bot:
        sim.configure(faults=[Fault(UNAVAILABLE, "reading", methods=[balance], calls=[1])])
        bot.balance()
    assert listener.kinds() == [*STEPS[:3], CallRefused, LockReleased, CallTriedAgain, *STEPS]
    assert [event.outcome for event in listener.of(CallEnded)] == ["unknown", "carried out"]
    assert listener.one(CallRefused).errors == (UNAVAILABLE,)
    again = listener.one(CallTriedAgain)
    assert (again.method, again.errors) == (balance, (UNAVAILABLE,))
    assert UNAVAILABLE in again.reason
    assert 0.01 <= again.wait <= 0.02


def test_an_answer_that_gets_lost(
    kind: str, balance: str, sim: KrakenSimulator, valkey: Server, listener: Listener
) -> None:
    """A reading call without an answer is told as unknown, and as made again under the same lease."""
    with a_bot(kind, sim, valkey) as bot:
        sim.configure(faults=[Fault("cut", "answering", methods=[balance], calls=[1])])
        bot.balance()
    assert listener.kinds() == [*STEPS[:3], CallTriedAgain, CallSent, CallEnded, LockReleased]
    assert [event.outcome for event in listener.of(CallEnded)] == ["unknown", "carried out"]
    again = listener.one(CallTriedAgain)
    assert (again.errors, again.wait) == ((), 0.0)
    assert again.reason.startswith("no answer")


def test_an_order_that_gets_lost(kind: str, sim: KrakenSimulator, valkey: Server, listener: Listener) -> None:
    """The questions about it are told as calls, and what they say as news, of this bot."""
    with a_bot(kind, sim, valkey) as bot:
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        bot.order("limit")
    sent = [event.method for event in listener.of(CallSent)]
    assert sent == [request.method for request in sim.requests()][-len(sent) :]
    assert sent[0] == "AddOrder"
    settled = listener.one(events.OrderSettled)
    assert (settled.name, settled.method, settled.outcome, settled.inherited) == (NAME, "AddOrder", "found", False)
    assert list(settled.orders.values()) == [order.txid for order in sim.orders()]
    assert all(txid in settled.known for txid in settled.orders.values())
    assert settled.since is not None
    assert settled.since <= listener.of(CallSent)[0].time
    assert listener.news == [settled]


def test_an_outcome_that_stays_unknown(
    kind: str, sim: KrakenSimulator, valkey: Server, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told with the error, is an ERROR in the log, and settled by the next call of the key."""
    with a_bot(kind, sim, valkey, on_unknown="raise") as bot:
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        with pytest.raises(OutcomeUnknown) as caught:
            bot.order("limit")
    event = listener.one(events.OutcomeUnknown)
    assert (event.name, event.method, event.nonce) == (NAME, "AddOrder", caught.value.nonce)
    assert event.cl_ord_ids == (caught.value.cl_ord_id,)
    assert listener.news == [event]
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert caught.value.cl_ord_id in record.getMessage()
    with a_bot(kind, sim, valkey, name="another") as bot:
        bot.balance()
    settled = listener.one(events.OrderSettled)
    assert (settled.name, settled.inherited, settled.outcome) == (NAME, True, "found")


def test_a_poisoned_key(
    kind: str, sim: KrakenSimulator, valkey: Server, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """Raises are told, and then that the key is poisoned; that is an ERROR in the log."""
    with a_bot(kind, sim, valkey, namespace=f"test-{uuid.uuid4()}") as bot:
        sim.raise_nonce(time.time_ns() + 86_400 * 10**9)
        with pytest.raises(NoncePoisoned) as caught:
            bot.balance()
    raised, poisoned = listener.of(events.NonceRaised), listener.one(events.KeyPoisoned)
    assert [event.lead for event in raised] == [60, 600, pytest.approx(3600)]
    assert (poisoned.name, poisoned.refused) == (NAME, caught.value.nonce)
    assert poisoned.lead == pytest.approx(caught.value.lead / 1e9)
    assert listener.news == [*raised, poisoned]
    assert [record.levelname for record in caplog.records if "poisoned" in record.getMessage()] == ["ERROR"]


def test_a_cool_down(kind: str, balance: str, sim: KrakenSimulator, valkey: Server, listener: Listener) -> None:
    """A refusal that stops all calls of the key is told as a cool-down."""
    with a_bot(kind, sim, valkey, wait_timeout=0.5) as bot:
        sim.configure(faults=[Fault("EAPI:Rate limit exceeded", "reading", methods=[balance], calls=[1])])
        with contextlib.suppress(Exception):
            bot.balance()
    assert listener.of(CallEnded)[0].outcome == "refused"
    assert listener.of(CallRefused)[0].errors == ("EAPI:Rate limit exceeded",)
    began = listener.one(events.CoolDownBegan)
    assert (began.key, began.reason) == (digest(sim.key), "EAPI:Rate limit exceeded")
    assert began.seconds == pytest.approx(15, abs=1)
    eventually(lambda: began in listener.news)


@pytest.mark.parametrize("kind", [kind for kind in BOTS if not kind.startswith("ccxt")])  # asks for the markets first
def test_nothing_is_sent(kind: str, sim: KrakenSimulator, valkey: Server, listener: Listener) -> None:
    """A request that can't leave, since nobody is there, is told as not sent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    options: dict[str, Any] = {"redis": valkey.url, "retries": Retries(waits=())}
    with BOTS[kind](nowhere, sim.key, sim.secret, **options) as bot, contextlib.suppress(Exception):
        bot.balance()
    assert {event.outcome for event in listener.of(CallEnded)} == {"not sent"}


# Secrets.


class Shown:
    """All that anybody can see: events, records of the log with their fields, metrics of both kinds, and spans."""

    def __init__(self, caplog: pytest.LogCaptureFixture, listener: Listener) -> None:
        self._caplog = caplog
        self._listener = listener
        self._registry = CollectorRegistry()
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        meters = MeterProvider([self._metrics])
        self._observers = [prometheus.install(self._registry), otel.install(tracers, meters)]

    def text(self) -> str:
        """Return it."""
        for observer in self._observers:
            events.remove_observer(observer)
        measured = self._metrics.get_metrics_data()
        assert measured is not None
        return "\n".join(
            (
                *map(repr, self._listener.everything),
                *(json.dumps(vars(record), default=repr) for record in self._caplog.records),
                generate_latest(self._registry).decode(),
                *(span.to_json() for span in self._spans.get_finished_spans()),
                measured.to_json(),
            )
        )


def everything_goes_wrong(bot: Bot, sim: KrakenSimulator) -> None:
    """Make calls that fail in each way."""
    for fault in (
        Fault("cut", "reading", methods=["AddOrder"]),
        Fault("cut", "answering"),
        Fault("502", "acting"),
        Fault(UNAVAILABLE, "answering"),
        Fault("slow", "reading", seconds=0.5),
        Fault("EAPI:Invalid signature", "reading"),
        Fault("EAPI:Invalid nonce", "reading"),
        Fault("EGeneral:Temporary lockout", "reading"),
    ):
        sim.configure(faults=[fault])
        for call in (lambda: bot.order("limit"), bot.balance):
            with contextlib.suppress(Exception):
                call()


@pytest.mark.test_all
def test_no_secrets(
    kind: str,
    sim: KrakenSimulator,
    private_server: PrivateServer,
    listener: Listener,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever goes wrong, at Kraken and at Redis: no API key, no secret and no password is in anything shown."""
    password = "correct-horse-battery-staple"
    server = private_server()
    server.client().config_set("requirepass", password)
    url = server.url.replace("redis://", f"redis://:{password}@")
    shown = Shown(caplog, listener)
    with caplog.at_level(logging.DEBUG, "kraken_nonce_redis"):
        with BOTS[kind](
            sim.url, sim.key, sim.secret, redis=url, retries=QUICK, call_timeout=0.3, wait_timeout=1
        ) as bot:
            bot.order("limit")
            everything_goes_wrong(bot, sim)
        options = {"redis": url.replace(password, f"{password}-wrong"), "retries": QUICK}
        with BOTS[kind](sim.url, sim.key, sim.secret, **options) as bot, contextlib.suppress(Exception):
            bot.balance()
        server.kill()
        options["redis"] = url
        with BOTS[kind](sim.url, sim.key, sim.secret, **options) as bot, contextlib.suppress(Exception):
            bot.balance()
    told = {type(event) for event in listener.everything}
    assert told >= {
        *STEPS,
        CallRefused,
        CallTriedAgain,
        events.OrderSettled,
        events.OutcomeUnknown,
        events.NonceRaised,
        events.KeyPoisoned,
        events.CoolDownBegan,
        events.RedisAway,
        events.StoreFailed,
    }
    text = shown.text()
    assert "kraken_nonce_lock_hold_seconds_count" in text
    assert "kraken_nonce.hold" in text
    for secret in (sim.key, sim.secret, password):
        assert secret not in text
        assert json.dumps(secret)[1:-1] not in text
