"""No order begins later after it was asked for than its patience allows, whatever it waits for; cancels always may."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import CallLock, CoolDown, HoldTimeout, InvalidArgument, Retries
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.order_bots import BOTS, REFUSALS, form

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Server

PATIENCE = 0.4
LATE = 0.1
"""Seconds that a request may take from its last look at the clock to the exchange."""
RATE = "EOrder:Rate limit exceeded"

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


@pytest.fixture(params=BOTS)
def bot(request: pytest.FixtureRequest, sim: KrakenSimulator, valkey: Server) -> Iterator[Any]:
    """Return each kind of client in turn, with a short patience."""
    retries = Retries(waits=(0.05, 0.1, 0.1, 0.1, 0.1, 5.0), jitter=0)
    with BOTS[request.param](sim.url, sim.key, sim.secret, redis=valkey.url, patience=PATIENCE, retries=retries) as bot:
        if hasattr(bot.client, "load_markets"):
            bot.run(bot.client.load_markets())
        yield bot


def sent(sim: KrakenSimulator) -> list[Any]:
    """Return the orders that were sent."""
    return [request for request in sim.requests() if request.method == "AddOrder"]


def test_the_lock_is_held(bot: Any, sim: KrakenSimulator, valkey: Server) -> None:
    """An order that gets the lock too late is not sent; other calls wait longer."""
    hold = CallLock.from_url(valkey.url, sim.key).hold()
    with ThreadPoolExecutor(1) as another:  # in this thread, the order would be under the same lease
        another.submit(hold.__enter__).result()
        asked = time.monotonic()
        with pytest.raises(HoldTimeout):
            bot.order("market")
        assert PATIENCE <= time.monotonic() - asked < PATIENCE + 1
        another.submit(hold.__exit__, None, None, None).result()
    assert sent(sim) == []
    assert bot.order("market")


def test_a_cool_down(bot: Any, sim: KrakenSimulator, valkey: Server) -> None:
    """An order does not wait for the end of a cool-down that is longer than its patience."""
    CallLock.from_url(valkey.url, sim.key).cool_down(30, "EAPI:Rate limit exceeded")
    asked = time.monotonic()
    with pytest.raises(CoolDown):
        bot.order("market")
    assert time.monotonic() - asked < PATIENCE + 1
    assert sent(sim) == []


def test_refused_for_its_rate(bot: Any, sim: KrakenSimulator) -> None:
    """A market order that is refused for its rate is made again within its patience only; then that is the answer."""
    sim.configure(faults=[Fault(RATE, "reading", methods=["AddOrder"])])
    asked = time.monotonic()
    try:
        assert bot.order("market") == ""
    except REFUSALS as error:
        assert RATE in str(error) or "rate" in str(error).lower()  # noqa: PT017 - krakenex raises nothing
    assert len(sent(sim)) > 1
    assert all(request.received < asked + PATIENCE + LATE for request in sent(sim))
    assert sim.orders() == []


def test_settling_takes_longer(sim: KrakenSimulator, valkey: Server) -> None:
    """An order that has the lock, but has to settle an earlier one first, is too late after that."""
    options: dict[str, Any] = {"redis": valkey.url, "retries": Retries(settle_waits=(0.3, 0.3))}
    with BOTS["krakenex"](sim.url, sim.key, sim.secret, on_unknown="raise", **options) as earlier:
        sim.configure(faults=[Fault("cut", "reading", methods=["AddOrder"], calls=[1])])
        with pytest.raises(Exception, match="may or may not"):
            earlier.order("limit")
    with BOTS["krakenex"](sim.url, sim.key, sim.secret, patience=PATIENCE, **options) as bot:
        with pytest.raises(HoldTimeout, match="patience ended"):
            bot.order("market")
        assert len(sent(sim)) == 1
        assert bot.order("market")


@pytest.mark.test_all
def test_cancels_have_none(sim: KrakenSimulator, valkey: Server) -> None:
    """A cancellation waits as long as any call that changes nothing; so does an order that is only checked."""
    api = API(sim.key, sim.secret, redis=valkey.url, patience=0, retries=Retries(waits=(0.05,)))
    api.uri = sim.url
    sim.configure(faults=[Fault("EAPI:Rate limit exceeded", "reading", methods=["CancelOrder", "AddOrder"], calls=[1])])
    assert "Unknown order" in str(api.query_private("CancelOrder", {"txid": "O"}))
    assert api.query_private("AddOrder", {**form("limit"), "validate": True})["error"] == []
    with pytest.raises(HoldTimeout):
        api.query_private("AddOrder", form("limit"))
    assert [request.method for request in sim.requests()] == ["CancelOrder"] * 2 + ["AddOrder"]
    api.close()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ccxt", "ccxt-async"])
def test_throttled_by_ccxt(sim: KrakenSimulator, valkey: Server, kind: str) -> None:
    """The time for which ccxt throttles an order counts."""
    with BOTS[kind](sim.url, sim.key, sim.secret, redis=valkey.url, patience=PATIENCE) as bot:
        bot.run(bot.client.load_markets())
        assert bot.order("market")
        bot.client.enableRateLimit = True
        bot.client.rateLimit = 400.0
        bot.client.init_throttler()
        throttle = bot.client.throttle
        bot.client.throttle = lambda _: throttle(5)  # ccxt's table says that orders cost nothing
        bot.balance()
        with pytest.raises(HoldTimeout, match="patience ended"):
            bot.order("market")
    assert len(sent(sim)) == 1


@pytest.mark.parametrize("patience", [-1, "5", float("nan")])
def test_invalid(valkey: Server, patience: Any) -> None:
    """Only a number of seconds is a patience."""
    with pytest.raises(InvalidArgument, match="patience"):
        API("key", "c2VjcmV0", redis=valkey.url, patience=patience)
