"""Kraken has answered, and other code keeps that from the caller: the order is told of, and never taken for not sent.

That code may be the caller's own, in its client or its hooks, or a signal's handler, at any moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import NotCarriedOut, OutcomeUnknown, Retries
from kraken_nonce_redis._calls.exchange_clock import ExchangeClock
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.events import KrakenWarned, OrderSettled
from kraken_nonce_redis.testing import Fault
from tests.support.helpers import run
from tests.support.order_bots import BOTS, form

if TYPE_CHECKING:
    from kraken_nonce_redis.events import News
    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.order_bots import Bot
    from tests.support.servers import Server

QUICK = Retries(waits=(0.01,) * 4, settle_waits=(0.01, 0.03))

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=50, own=True),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


class CallersError(Exception):
    """Raised by code that is not ours."""


def fail(*_: Any, **__: Any) -> None:
    """Fail, as the caller's code may."""
    raise CallersError


def spoil(bot: Bot, kind: str) -> None:
    """Let the caller's code in its client fail once an answer is there."""
    if kind.startswith("ccxt"):
        bot.client.on_rest_response = fail
    else:
        session = bot.client.session if kind == "krakenex" else bot.client._SpotClient__session
        session.hooks["response"].append(fail)


def pending(valkey: Server, sim: KrakenSimulator) -> tuple[Any, ...]:
    """Return what is in the journal."""
    return run(valkey.client(), journal.pending(Keyspace.of("kraken-nonce", sim.key)))


@pytest.mark.parametrize("kind", ["krakenex", "ccxt", "ccxt-async", "sdk"])
def test_the_callers_code_fails(kind: str, sim: KrakenSimulator, valkey: Server) -> None:
    """The caller gets its own exception, and an event says that the order was placed."""
    heard: list[News] = []
    with BOTS[kind](sim.url, sim.key, sim.secret, redis=valkey.url, retries=QUICK, on_event=heard.append) as bot:
        if hasattr(bot.client, "load_markets"):
            bot.run(bot.client.load_markets())
        spoil(bot, kind)
        with pytest.raises(CallersError):
            bot.order("limit")
    (order,) = sim.orders()
    (event,) = heard
    assert isinstance(event, OrderSettled)
    assert (event.outcome, event.inherited, list(event.orders.values())) == ("found", False, [order.txid])
    assert event.known == "it was carried out, but its caller got CallersError in the place of Kraken's answer"
    assert pending(valkey, sim) == ()


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("once", [True, False])
def test_something_strikes_after_it_was_sent(
    sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, *, once: bool, answered: bool
) -> None:
    """Whatever it is, what was sent may have arrived: its outcome is unknown, and one with a name is not sent again."""
    learn = ExchangeClock.learn
    strikes: list[bool] = []

    def strike(self: ExchangeClock, sent: float, received: float, date: float | None) -> None:
        learn(self, sent, received, date)
        if any(request.method == "AddOrder" for request in sim.requests()) and not strikes:
            strikes.append(True)
            raise CallersError

    monkeypatch.setattr(ExchangeClock, "learn", strike)
    if not answered:
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
    order = {**form("limit"), **({"once": "monthly"} if once else {})}
    with BOTS["krakenex"](sim.url, sim.key, sim.secret, redis=valkey.url, retries=QUICK) as bot:
        with pytest.raises(OutcomeUnknown):
            bot.client.query_private("AddOrder", order)
        assert [entry.method for entry in pending(valkey, sim)] == ["AddOrder"]
        if once:
            assert bot.client.query_private("AddOrder", order)["result"]["txid"] == [sim.orders()[0].txid]
        bot.balance()
    assert len(sim.orders()) == 1
    assert pending(valkey, sim) == ()


def test_an_interruption_while_hooks_are_told(sim: KrakenSimulator, valkey: Server) -> None:
    """Ctrl-C while a hook hears of something else: the order, which was answered, is told of."""
    heard: list[News] = []

    def hear(event: News) -> None:
        heard.append(event)
        if isinstance(event, KrakenWarned):
            raise KeyboardInterrupt

    sim.configure(faults=[Fault("WGeneral:Soon gone", "answering", methods=["AddOrder"])])
    with (
        BOTS["krakenex"](sim.url, sim.key, sim.secret, redis=valkey.url, retries=QUICK, on_event=hear) as bot,
        pytest.raises(KeyboardInterrupt),
    ):
        bot.order("limit")
    assert [type(event) for event in heard] == [KrakenWarned, OrderSettled]
    assert list(heard[1].orders.values()) == [sim.orders()[0].txid]  # type: ignore[attr-defined]


def test_nothing_is_told_of_what_was_not_carried_out(sim: KrakenSimulator, valkey: Server) -> None:
    """An order that is found to be absent is told as that, and not as carried out."""
    heard: list[News] = []
    sim.configure(faults=[Fault("no result", "acting", methods=["AddOrder"])])
    with (
        BOTS["krakenex"](sim.url, sim.key, sim.secret, redis=valkey.url, retries=QUICK, on_event=heard.append) as bot,
        pytest.raises(NotCarriedOut),
    ):
        bot.order("limit")
    assert [event.outcome for event in heard if isinstance(event, OrderSettled)] == ["absent"]
