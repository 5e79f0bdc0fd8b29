"""Frameworks that make ccxt's client by its name, with our classes in its place; none of them is installed here.

docs/freqtrade.md says what was tried with the real one.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from typing import TYPE_CHECKING, Any

import ccxt
import ccxt.async_support
import ccxt.pro
import pytest

import kraken_nonce_redis.ccxt
from kraken_nonce_redis import CallLock, Retries, errors
from kraken_nonce_redis.kraken_py import NonceProvider
from kraken_nonce_redis.testing import Fault
from tests.clients.test_errors import SITUATIONS, Situations, kinds
from tests.support.order_bots import Ccxt

if TYPE_CHECKING:
    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.servers import Server

FACES = ["ccxt", "ccxt.async_support", "ccxt.pro"]
SYMBOL = "BTC/USD"

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20, own=True),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return ccxt's own classes, which come back after the test."""
    classes = {name: importlib.import_module(name).kraken for name in FACES}
    for name, kind in classes.items():
        monkeypatch.setattr(importlib.import_module(name), "kraken", kind)
    return classes


@pytest.fixture
def environment(sim: KrakenSimulator, valkey: Server, stock: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put ours in their place, with all that they need in the environment."""
    monkeypatch.setenv("KRAKEN_NONCE_REDIS_URL", valkey.url)
    monkeypatch.setenv("KRAKEN_API_URL", sim.url)
    kraken_nonce_redis.ccxt.patch()


class TestPatch:
    """`kraken_nonce_redis.ccxt.patch`."""

    @pytest.mark.parametrize("times", [1, 2])
    def test_where_frameworks_look(self, stock: dict[str, Any], times: int) -> None:
        """Each name gives our class, which is the stock one with our methods before, however often it is called."""
        for _ in range(times):
            kraken_nonce_redis.ccxt.patch()
        for name, kind in stock.items():
            ours = getattr(importlib.import_module(name), "kraken")  # noqa: B009 - as frameworks do
            assert ours is importlib.import_module(f"kraken_nonce_redis.{name}").kraken
            assert issubclass(ours, kind)
            assert (kind.__module__, ours._stock) == (f"{name}.kraken", kind)

    @pytest.mark.usefixtures("stock")
    def test_nothing_else(self) -> None:
        """Other exchanges stay as they are."""
        before = {name: vars(importlib.import_module(name)).copy() for name in FACES}
        kraken_nonce_redis.ccxt.patch()
        for name in FACES:
            now = vars(importlib.import_module(name))
            assert {key for key in now if now[key] is not before[name].get(key)} == {"kraken"}


@pytest.mark.long
@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("module", FACES)
def test_made_by_name(sim: KrakenSimulator, module: str) -> None:
    """As OctoBot (asyncio) and lumibot (threads) make it: a class by its name, with a config that knows nothing of us.

    Its calls have our nonces, and an order whose answer is lost comes back as the order.
    """

    async def trade() -> None:
        config = {"apiKey": sim.key, "secret": sim.secret, "verbose": False, "enableRateLimit": False}
        exchange = getattr(importlib.import_module(module), "kraken")(config)  # noqa: B009 - as they do
        exchange.timeout_on_exit = 1

        async def call(method: str, *args: Any) -> Any:
            result = getattr(exchange, method)(*args)
            return await result if inspect.isawaitable(result) else result

        await call("load_markets")
        assert (await call("fetch_balance"))["BTC"]["free"] == 100_000
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        order = await call("create_order", SYMBOL, "limit", "buy", 1, 20_000)
        assert [order["id"]] == [each.txid for each in sim.orders()]
        assert (await call("fetch_order", order["id"], SYMBOL))["status"] == "open"
        if exchange.synchronous:
            exchange.session.close()
        else:
            await exchange.close()

    asyncio.run(trade())
    assert {len(str(request.nonce)) for request in sim.requests()} == {19}


FREQTRADE = (
    (ccxt.InsufficientFunds, "InsufficientFundsError"),
    (ccxt.InvalidOrder, "InvalidOrderException"),
    (ccxt.DDoSProtection, "DDosProtection"),
    ((ccxt.OperationFailed, ccxt.ExchangeError), "TemporaryError"),
    (ccxt.BaseError, "OperationalException"),
    (Exception, "Fatal exception!"),
)
"""What freqtrade 2026.9 makes of an error in `create_order`: its ``except`` clauses, in their order.

An OperationalException stops the trader, and what ccxt does not know ends the program. After the others it goes on.
"""


def as_freqtrade(error: Exception) -> str:
    """Return what freqtrade makes of an error."""
    return next(what for kind, what in FREQTRADE if isinstance(error, kind))


@pytest.mark.long
@pytest.mark.parametrize("situation", SITUATIONS)
def test_in_freqtrade(sim: KrakenSimulator, valkey: Server, situation: str) -> None:
    """None of our errors ends the bot; it stops for an order of which nobody knows, and goes on after all others."""
    name, settings = SITUATIONS[situation]
    situations = Situations(sim, valkey, CallLock.from_url(valkey.url, sim.key))
    with (
        Ccxt(sim.url, sim.key, sim.secret, **situations.settings | settings) as made,
        pytest.raises(errors.KrakenNonceError) as caught,
    ):
        getattr(situations, situation)(made)
    assert as_freqtrade(caught.value) == ("OperationalException" if name == "OutcomeUnknown" else "TemporaryError")


def test_freqtrade_and_the_core() -> None:
    """Our own errors, as other clients raise them, would end it."""
    assert {as_freqtrade(errors._restore(kind, ("text",), {})) for kind in kinds()} == {"Fatal exception!"}


class TestOctoBot:
    """OctoBot, which repeats some of ccxt's errors by itself."""

    REPEATED = (ccxt.RequestTimeout, ccxt.ExchangeNotAvailable, ccxt.InvalidNonce)

    @pytest.mark.test_all
    @pytest.mark.usefixtures("environment")
    def test_no_order_twice(self, sim: KrakenSimulator) -> None:
        """What it repeats was not carried out; an order whose outcome is unknown is not repeated."""

        async def order() -> int:
            config = {"apiKey": sim.key, "secret": sim.secret, "enableRateLimit": False, "wait_timeout": 0.2}
            exchange = ccxt.async_support.kraken(config | {"retries": Retries(waits=(), settle_waits=(0.01,))})
            exchange.timeout_on_exit = 1
            attempts = 0
            try:
                await exchange.load_markets()
                sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder", "OpenOrders", "ClosedOrders"])])
                while attempts < 5:
                    attempts += 1
                    try:
                        await exchange.create_order(SYMBOL, "limit", "buy", 1, 20_000)
                    except self.REPEATED:
                        continue
            except errors.OutcomeUnknown:
                return attempts
            finally:
                await exchange.close()
            return attempts

        assert asyncio.run(order()) == 1
        assert len(sim.orders()) == 1


class TestNonceProvider:
    """Nonces for kraken-py-sdk, which needs Python 3.12; docs/clients.md says what was tried with it."""

    def test_nonces(self, valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """They rise over all that share the key, and above those of a lease of it."""
        monkeypatch.setenv("KRAKEN_NONCE_REDIS_URL", valkey.url)
        one, other = NonceProvider("key"), NonceProvider(" key\n", redis=valkey.client())
        nonces = [one.next_nonce(), other.next_nonce()]
        with CallLock.from_url(valkey.url, "key").hold() as lease:
            nonces += [lease.nonce, NonceProvider("key", redis=valkey.url).next_nonce()]
        nonces.append(one.next_nonce())
        assert nonces == sorted(set(nonces))
        assert {len(str(nonce)) for nonce in nonces} == {19}

    def test_of_its_own(self, valkey: Server) -> None:
        """Namespace and scope are those of the lock that goes with it."""
        provider = NonceProvider("key", redis=valkey.url, namespace="mine", scope="global")
        with CallLock.from_url(valkey.url, "other", namespace="mine", scope="global").hold() as lease:
            assert 0 < provider.next_nonce() - lease.nonce < 10**9

    def test_without_redis(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is made up."""
        for variable in ("KRAKEN_NONCE_REDIS_URL", "REDIS_URL"):
            monkeypatch.delenv(variable, raising=False)
        with pytest.raises(errors.InvalidArgument, match="KRAKEN_NONCE_REDIS_URL"):
            NonceProvider("key")
        with pytest.raises(errors.StoreUnavailable):
            NonceProvider("key", redis="redis://127.0.0.1:1").next_nonce()
