"""Other people's code between a call and the wire: each request leaves once, with the nonce of its lease."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import krakenex
import pytest
import requests
from kraken import spot
from requests.adapters import HTTPAdapter

import kraken_nonce_redis.ccxt
import kraken_nonce_redis.ccxt.async_support
from kraken_nonce_redis import IncompatibleClient, NonceAllocator, NotCarriedOut, Retries, kraken_sdk
from kraken_nonce_redis import krakenex as ours
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import run
from tests.support.order_bots import BOTS, AsyncSdk, Bot, Ccxt, Krakenex, Sdk, form

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.servers import Server

QUICK = Retries(waits=(0.01,), settle_waits=(0.02, 0.06))
TIMES = 3

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


def access(sim: KrakenSimulator) -> tuple[str, str, str]:
    """Return where the exchange is, a key and its secret."""
    return sim.url, sim.key, sim.secret


def assert_nothing_is_pending(sim: KrakenSimulator, valkey: Server) -> None:
    """Assert that the outcome of each call is known."""
    assert run(valkey.client(), commands.pending(Keyspace.of("kraken-nonce", sim.key))) == ()


# Loops as people write them


class Persistent(krakenex.API):  # type: ignore[misc]
    """Repeats what had no answer, and gives up with None."""

    def query_private(self, *args: Any, **kwargs: Any) -> Any:
        """Make a call."""
        for _ in range(TIMES):
            try:
                return super().query_private(*args, **kwargs)
            except requests.RequestException:
                continue
        return None


class Stubborn(krakenex.API):  # type: ignore[misc]
    """Repeats whatever it dislikes, an answer with errors as well, below ``query_private``."""

    def _query(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(TIMES):
            try:
                answer = super()._query(*args, **kwargs)
                if not answer["error"]:
                    return answer
            except Exception:  # noqa: BLE001
                continue
        return {"error": ["EGeneral:Given up"]}


class PersistentTrade(spot.Trade):
    """Repeats what had no answer, and gives up with None."""

    def request(self, *args: Any, **kwargs: Any) -> Any:
        """Make a call."""
        for _ in range(TIMES):
            try:
                return super().request(*args, **kwargs)
            except Exception:  # noqa: BLE001
                continue
        return None


class PersistentAsyncClient(spot.SpotAsyncClient):
    """The same for asyncio."""

    async def request(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Make a call."""
        for _ in range(TIMES):
            try:
                return await super().request(*args, **kwargs)  # type: ignore[misc]
            except Exception:  # noqa: BLE001
                continue
        return None


class OurTrade(kraken_sdk.KrakenNonceMixin, PersistentTrade):
    """Such a class under our mixin."""


class OurAsyncTrade(kraken_sdk.AsyncKrakenNonceMixin, spot.Trade, PersistentAsyncClient):  # type: ignore[misc]
    """Such a class under our mixin."""


class OurPersistent(ours.API, Persistent):
    """Such a class under our API."""


class OurOuter(ours.API):
    """A class of ours with such a loop around it: each pass is a call of its own."""

    def query_private(self, *args: Any, **kwargs: Any) -> Any:
        """Make a call."""
        for _ in range(TIMES):
            try:
                return super().query_private(*args, **kwargs)
            except requests.RequestException:
                continue
        return None


class PersistentAdapter(HTTPAdapter):
    """Repeats what had no answer, below the session."""

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send a request."""
        for _ in range(TIMES - 1):
            try:
                return super().send(*args, **kwargs)
            except Exception:  # noqa: BLE001
                continue
        return super().send(*args, **kwargs)


def persistent(send: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a session's method in a loop, which takes bad statuses for no answer, too."""

    def repeated(*args: Any, **kwargs: Any) -> Any:
        for _ in range(TIMES - 1):
            try:
                response = send(*args, **kwargs)
                response.raise_for_status()
            except Exception:  # noqa: BLE001
                continue
            return response
        return send(*args, **kwargs)

    return repeated


class Repeated:
    """Stands for what aiohttp's methods return, and repeats it."""

    def __init__(self, send: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._again = lambda: send(*args, **kwargs)

    async def _response(self) -> Any:
        for _ in range(TIMES - 1):
            try:
                return await self._again()
            except Exception:  # noqa: BLE001
                continue
        return await self._again()

    def __await__(self) -> Any:
        return self._response().__await__()

    async def __aenter__(self) -> Any:
        return await self._response()

    async def __aexit__(self, *_: object) -> None:
        pass


class Looping(Krakenex):
    """Bots with such loops in them."""

    kind: Any

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:
        """Return the client."""
        api = self.kind(key, secret) if not issubclass(self.kind, ours.API) else self.kind(key, secret, **options)
        api.uri = uri
        return api if isinstance(api, ours.API) else ours.install(api, **options)


class Installed(Looping):  # noqa: D101
    kind = Persistent


class InstalledBelow(Looping):  # noqa: D101
    kind = Stubborn


class Subclassed(Looping):  # noqa: D101
    kind = OurPersistent


class Around(Looping):  # noqa: D101
    kind = OurOuter


class Mixin(Sdk):  # noqa: D101
    kind = OurTrade


class AsyncMixin(AsyncSdk):  # noqa: D101
    kind = OurAsyncTrade


def wrapped(kind: type[Bot]) -> type[Bot]:
    """Return bots whose HTTP session is wrapped in a loop."""

    class Wrapped(kind):  # type: ignore[valid-type, misc]
        async def make(self, *args: Any) -> Any:
            client = await super().make(*args)
            if hasattr(client, "synchronous") and not client.synchronous:
                client.open()
            session = getattr(client, "session", None) or getattr(client, "_session", None)
            if isinstance(session, tuple):
                session = session[1]
            for name in ("post", "request"):
                send = getattr(session, name)
                if isinstance(session, requests.Session):
                    setattr(session, name, persistent(send))
                else:
                    object.__setattr__(session, name, lambda *a, _send=send, **k: Repeated(_send, *a, **k))
            return client

    return Wrapped


def mounted(kind: type[Bot]) -> type[Bot]:
    """Return bots whose session has an adapter with a loop in it."""

    class Mounted(kind):  # type: ignore[valid-type, misc]
        async def make(self, *args: Any) -> Any:
            client = await super().make(*args)
            session = getattr(client, "session", None) or client._session
            session.mount("http://", PersistentAdapter())
            return client

    return Mounted


LOOPS: dict[str, type[Bot]] = {
    "krakenex, installed": Installed,
    "krakenex, installed, below": InstalledBelow,
    "krakenex, subclassed": Subclassed,
    "krakenex, around": Around,
    "sdk, mixin": Mixin,
    "sdk-async, mixin": AsyncMixin,
    **{f"{name}, session": wrapped(kind) for name, kind in BOTS.items()},
    **{f"{name}, adapter": mounted(BOTS[name]) for name in ("krakenex", "ccxt", "sdk")},
}


@pytest.fixture(params=LOOPS)
def looping(request: pytest.FixtureRequest) -> type[Bot]:
    """Return each kind of bot with a loop in it."""
    return LOOPS[request.param]


def prepare(bot: Any) -> None:
    """Have a bot ask for what it wants to know before its first order."""
    if hasattr(bot.client, "load_markets"):
        bot.run(bot.client.load_markets())


class TestSentTwice:
    """Loops that would send a request again."""

    @pytest.mark.parametrize("what", ["cut", "502", "EService:Unavailable"])
    @pytest.mark.parametrize("ordertype", ["market", "limit"])
    def test_answer_lost(
        self, sim: KrakenSimulator, valkey: Server, looping: type[Bot], what: str, ordertype: str
    ) -> None:
        """An order that was placed without an answer is there once, and told."""
        with looping(*access(sim), redis=valkey.url, retries=QUICK) as bot:
            prepare(bot)
            sim.configure(faults=[Fault(what, "answering", methods=["AddOrder"], calls=[1])])
            txid = bot.order(ordertype)
        assert [order.txid for order in sim.orders()] == [txid]
        assert [request.method for request in sim.requests()].count("AddOrder") == 1
        assert_nothing_is_pending(sim, valkey)

    def test_request_lost(self, sim: KrakenSimulator, valkey: Server, looping: type[Bot]) -> None:
        """An order that Kraken never heard of is reported so, and not sent again."""
        with looping(*access(sim), redis=valkey.url, retries=QUICK) as bot:
            prepare(bot)
            sim.configure(faults=[Fault("cut", "reading", methods=["AddOrder"], calls=[1])])
            with pytest.raises(NotCarriedOut):
                bot.order("limit")
        assert sim.orders() == []
        assert_nothing_is_pending(sim, valkey)

    def test_reading(self, sim: KrakenSimulator, valkey: Server, looping: type[Bot]) -> None:
        """A reading call without an answer is made once more by us, with a nonce of its own."""
        with looping(*access(sim), redis=valkey.url, retries=QUICK) as bot:
            prepare(bot)
            sim.configure(faults=[Fault("cut", "answering", methods=["Balance", "BalanceEx"], calls=[1])])
            assert bot.balance() is not None
        nonces = [request.nonce for request in sim.requests() if request.method in {"Balance", "BalanceEx"}]
        assert len(set(nonces)) == len(nonces) == 2

    def test_not_told_of(self, sim: KrakenSimulator, valkey: Server, looping: type[Bot]) -> None:
        """Where nothing goes wrong, a loop does no harm."""
        with looping(*access(sim), redis=valkey.url, retries=QUICK) as bot:
            txids = [bot.order("limit") for _ in range(2)]
        assert [order.txid for order in sim.orders()] == txids


# Nonces of other people's


class OwnNonce(ours.API):
    """A nonce of its own, in milliseconds."""

    def _nonce(self) -> int:
        return time.time_ns() // 10**6


class OwnNonceTrade(kraken_sdk.Trade):
    """A nonce of its own, in milliseconds."""

    def get_nonce(self) -> str:
        """Return a nonce."""
        return str(time.time_ns() // 10**6)


class OwnNonceAsyncTrade(kraken_sdk.AsyncTrade):
    """A nonce of its own, in milliseconds."""

    get_nonce = OwnNonceTrade.get_nonce


def own_nonce(kind: Any) -> Any:
    """Return a class of ccxt with a nonce of its own, in milliseconds."""

    class Own(kind):  # type: ignore[misc]
        def nonce(self) -> Any:
            return self.milliseconds()

        def incrementing_nonce(self) -> Any:
            return self.nonce()

    return Own


class ForeignKrakenex(Looping):  # noqa: D101
    kind = OwnNonce


class ForeignSdk(Sdk):  # noqa: D101
    kind = OwnNonceTrade


class ForeignAsyncSdk(AsyncSdk):  # noqa: D101
    kind = OwnNonceAsyncTrade


class ForeignCcxt(Ccxt):  # noqa: D101
    module = SimpleNamespace(kraken=own_nonce(kraken_nonce_redis.ccxt.kraken))


class ForeignAsyncCcxt(Ccxt):  # noqa: D101
    module = SimpleNamespace(kraken=own_nonce(kraken_nonce_redis.ccxt.async_support.kraken))


class TestForeignNonce:
    """A nonce that is not of the lease."""

    @pytest.mark.parametrize(
        "kind",
        [ForeignKrakenex, ForeignSdk, ForeignAsyncSdk, ForeignCcxt, ForeignAsyncCcxt],
        ids=lambda kind: kind.__name__,
    )
    def test_in_a_subclass(self, sim: KrakenSimulator, valkey: Server, kind: type[Bot]) -> None:
        """A call with such a nonce is an error before it leaves; the key's own stays, and nothing is pending."""
        events: list[Any] = []
        with kind(*access(sim), redis=valkey.url, retries=QUICK, on_event=events.append) as bot:
            prepare(bot)
            with pytest.raises(IncompatibleClient, match="nonce"):
                bot.order("limit")
        assert sim.requests() == []
        assert events == []
        assert_nothing_is_pending(sim, valkey)
        last = NonceAllocator.from_url(valkey.url, sim.key).last() or 0
        assert last < time.time_ns() + 10**9
        with BOTS["krakenex"](*access(sim), redis=valkey.url) as other:
            assert other.order("limit")

    @pytest.mark.parametrize("name", ["ccxt", "ccxt-async"])
    def test_in_ccxts_config(
        self, sim: KrakenSimulator, valkey: Server, caplog: pytest.LogCaptureFixture, name: str
    ) -> None:
        """It is replaced, with one warning."""
        with (
            caplog.at_level(logging.WARNING),
            BOTS[name](*access(sim), redis=valkey.url, nonce=lambda: int(time.time() * 1000)) as bot,
        ):
            assert bot.order("limit")
            assert bot.order("market")
        assert {len(str(request.nonce)) for request in sim.requests()} == {19}
        assert [record.message for record in caplog.records if "nonce is not used" in record.message]
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1

    @pytest.mark.parametrize("name", ["ccxt", "ccxt-async"])
    @pytest.mark.parametrize("method", ["nonce", "incrementing_nonce"])
    def test_assigned(self, sim: KrakenSimulator, valkey: Server, name: str, method: str) -> None:
        """One that is put in place of the exchange's method is an error before anything leaves."""
        with BOTS[name](*access(sim), redis=valkey.url) as bot:
            prepare(bot)
            setattr(bot.client, method, lambda: int(time.time() * 1000))
            with pytest.raises(IncompatibleClient, match="nonce"):
                bot.order("limit")
        assert sim.requests() == []

    def test_by_hand(self, sim: KrakenSimulator, valkey: Server) -> None:
        """A request that is signed by hand and sent through our session is refused; another key's is not ours."""
        with BOTS["krakenex"](*access(sim), redis=valkey.url) as bot:
            assert bot.order("limit")
            for key, secret in ((sim.key, sim.secret), ("other", sim.secret)):
                stock = krakenex.API(key, secret)
                stock.uri, stock.session = sim.url, bot.client.session
                if key == sim.key:
                    with pytest.raises(IncompatibleClient, match="nonce"):
                        stock.query_private("Balance")
                else:
                    assert stock.query_private("Balance")["error"] == ["EAPI:Invalid key"]
        assert len(sim.requests()) == 2

    def test_another_id(self, sim: KrakenSimulator, valkey: Server) -> None:
        """An order that would leave with another id than it is looked for by does not leave."""

        class Renaming(krakenex.API):  # type: ignore[misc]
            def query_private(self, method: str, data: Any = None, timeout: Any = None) -> Any:
                return super().query_private(method, {**(data or {}), "cl_ord_id": "mine"}, timeout)

        api = Renaming(sim.key, sim.secret)
        api.uri = sim.url
        ours.install(api, redis=valkey.url)
        with pytest.raises(IncompatibleClient, match="cl_ord_id"):
            api.query_private("AddOrder", form("limit"))
        assert sim.requests() == []
        assert_nothing_is_pending(sim, valkey)
        api.close()
