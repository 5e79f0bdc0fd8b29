"""Other people's code between a call and the wire: each request leaves once, with the nonce of its lease."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import socket
import ssl
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import krakenex
import pytest
import requests
import urllib3
from kraken import spot
from requests.adapters import BaseAdapter, HTTPAdapter

import kraken_nonce_redis.ccxt
import kraken_nonce_redis.ccxt.async_support
from kraken_nonce_redis import (
    CallLock,
    HoldTimeout,
    IncompatibleClient,
    InvalidArgument,
    KrakenNonceError,
    LeaseLost,
    NonceAllocator,
    NotCarriedOut,
    OutcomeUnknown,
    Retries,
    kraken_sdk,
)
from kraken_nonce_redis import krakenex as ours
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import run
from tests.support.https import HttpsFront
from tests.support.order_bots import BOTS, REFUSALS, AsyncSdk, Bot, Ccxt, Krakenex, Sdk, form
from tests.support.servers import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    assert run(valkey.client(), journal.pending(Keyspace.of("kraken-nonce", sim.key))) == ()


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

    @pytest.mark.parametrize("what", ["cut", "502", "EService:Unavailable", "WGeneral:Deprecated", "no result"])
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

    def test_turned_away(self, sim: KrakenSimulator, valkey: Server, looping: type[Bot]) -> None:
        """An order that gets a page with the status 429 is not sent again, either, and nothing is asked."""
        with looping(*access(sim), redis=valkey.url, retries=QUICK) as bot:
            prepare(bot)
            sim.configure(faults=[Fault("429", "answering", headers={"Retry-After": "60"})])
            with pytest.raises(OutcomeUnknown, match="429"):
                bot.order("limit")
        assert [request.method for request in sim.requests()] == ["AddOrder"]

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

    def test_in_other_threads(self, sim: KrakenSimulator, valkey: Server) -> None:
        """A session that sends from threads of its own, and again after a call was over, sends each request once."""
        api = ours.API(sim.key, sim.secret, redis=valkey.url, retries=QUICK)
        api.uri = sim.url
        send, sent = api.session.post, []

        with ThreadPoolExecutor(1) as threads:

            def post(*args: Any, **kwargs: Any) -> Any:
                sent.append((args, kwargs))
                return threads.submit(send, *args, **kwargs).result()

            api.session.post = post
            assert api.query_private("AddOrder", form("limit"))["result"]["txid"]
            args, kwargs = sent[0]
            with pytest.raises(IncompatibleClient, match="nonce"):
                threads.submit(send, *args, **kwargs).result()
        assert len(sim.requests()) == len(sim.orders()) == 1
        api.close()

    def test_no_connection(self, sim: KrakenSimulator, valkey: Server) -> None:
        """A loop may try again, at another address, when nothing has left."""

        class Mirrored(krakenex.API):  # type: ignore[misc]
            def query_private(self, *args: Any, **kwargs: Any) -> Any:
                try:
                    return super().query_private(*args, **kwargs)
                except requests.ConnectionError:
                    self.uri = sim.url
                    return super().query_private(*args, **kwargs)

        with socket.create_server((HOST, 0)) as closed:
            nobody = f"http://{HOST}:{closed.getsockname()[1]}"
        api = Mirrored(sim.key, sim.secret)
        api.uri = nobody
        ours.install(api, redis=valkey.url, retries=QUICK)
        txids = api.query_private("AddOrder", form("limit"))["result"]["txid"]
        assert [order.txid for order in sim.orders()] == txids
        assert len(sim.requests()) == 1
        api.close()

    def test_other_words(self, sim: KrakenSimulator, valkey: Server) -> None:
        """Whatever name a failure is given: what has left may have been carried out."""

        class Renaming(krakenex.API):  # type: ignore[misc]
            def _query(self, *args: Any, **kwargs: Any) -> Any:
                try:
                    return super()._query(*args, **kwargs)
                except requests.RequestException:
                    raise requests.ConnectTimeout from None

        api = Renaming(sim.key, sim.secret)
        api.uri = sim.url
        ours.install(api, redis=valkey.url, retries=QUICK)
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        txids = api.query_private("AddOrder", form("limit"))["result"]["txid"]
        assert [order.txid for order in sim.orders()] == txids
        api.close()

    def test_made_up(self, sim: KrakenSimulator, valkey: Server) -> None:
        """An answer that Kraken never gave, in place of none, does not count."""

        class MakingUp(krakenex.API):  # type: ignore[misc]
            def _query(self, *args: Any, **kwargs: Any) -> Any:
                try:
                    return super()._query(*args, **kwargs)
                except requests.RequestException:
                    return {"error": ["EOrder:Given up"]}

        api = MakingUp(sim.key, sim.secret)
        api.uri = sim.url
        ours.install(api, redis=valkey.url, retries=QUICK)
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        txids = api.query_private("AddOrder", form("limit"))["result"]["txid"]
        assert [order.txid for order in sim.orders()] == txids
        api.close()

    def test_a_cancellation(self, sim: KrakenSimulator, valkey: Server) -> None:
        """That the second request of a cancellation could not be sent says nothing of the first one."""
        with BOTS["krakenex"](*access(sim), redis=valkey.url, retries=QUICK) as bot:
            txid = bot.order("limit")
            sim.configure(faults=[Fault("cut", "answering", methods=["CancelOrder"], calls=[1])])
            post, sent = bot.client.session.post, []

            def once(*args: Any, **kwargs: Any) -> Any:
                sent.append(args)
                if len(sent) > 1:
                    raise requests.exceptions.InvalidSchema
                return post(*args, **kwargs)

            bot.client.session.post = once
            with pytest.raises(OutcomeUnknown, match="CancelOrder"):
                bot.client.query_private("CancelOrder", {"txid": txid})
        assert len(run(valkey.client(), journal.pending(Keyspace.of("kraken-nonce", sim.key)))) == 1

    @pytest.mark.parametrize("method", ["AddOrder", "CancelOrder"])
    def test_another_way(self, sim: KrakenSimulator, valkey: Server, method: str) -> None:
        """What code that we do not know sends in another way counts as sent: without an answer it is looked for."""

        class OtherWay(krakenex.API):  # type: ignore[misc]
            def _query(self, urlpath: str, data: Any, headers: Any = None, timeout: Any = None) -> Any:
                try:
                    return super()._query(urlpath, data, headers, timeout)
                except requests.ConnectionError:
                    return requests.post(sim.url + urlpath, data=data, headers=headers, timeout=timeout).json()

        with socket.create_server((HOST, 0)) as closed:
            nobody = f"http://{HOST}:{closed.getsockname()[1]}"
        api = OtherWay(sim.key, sim.secret)
        api.uri = nobody
        ours.install(api, redis=valkey.url, retries=QUICK)
        txids = api.query_private("AddOrder", form("limit"))["result"]["txid"]
        sim.configure(faults=[Fault("cut", "answering", methods=[method], calls=[1])])
        if method == "AddOrder":
            assert api.query_private("AddOrder", form("limit"))["result"]["txid"] == [sim.orders()[-1].txid]
        else:
            assert api.query_private("CancelOrder", {"txid": txids[0]})["error"] == ["EOrder:Unknown order"]
        assert len(sim.orders()) == (2 if method == "AddOrder" else 1)
        assert_nothing_is_pending(sim, valkey)
        api.close()

    @pytest.mark.parametrize("kind", ["krakenex", "ccxt"])
    @pytest.mark.parametrize("how", ["foreign", "passes on"])
    def test_a_foreign_adapter(self, sim: KrakenSimulator, valkey: Server, kind: str, how: str) -> None:
        """An adapter that is not of requests sends each request once, too, by itself or by one of requests."""

        class Foreign(BaseAdapter):
            def __init__(self, inner: Any) -> None:
                super().__init__()
                self.inner = inner

            def send(self, *args: Any, **kwargs: Any) -> Any:
                return self.inner.send(*args, **kwargs)

            def close(self) -> None:
                self.inner.close()

        with BOTS[kind](*access(sim), redis=valkey.url, retries=QUICK) as bot:
            prepare(bot)
            session = bot.client.session
            session.mount("http://", Foreign(HTTPAdapter() if how == "foreign" else session.get_adapter(sim.url)))
            session.request = persistent(session.request)
            assert bot.order("limit")
            sim.configure(faults=[Fault("502", "answering", methods=["AddOrder"], calls=[1])])
            assert bot.order("limit")
        assert [request.method for request in sim.requests()].count("AddOrder") == 2
        assert len(sim.orders()) == 2
        assert_nothing_is_pending(sim, valkey)

    def test_refused(self, sim: KrakenSimulator, valkey: Server, looping: type[Bot]) -> None:
        """An order that Kraken refuses is refused, and once, even by a loop that dislikes refusals."""
        with looping(*access(sim), redis=valkey.url, retries=QUICK) as bot:
            prepare(bot)
            sim.configure(faults=[Fault("EOrder:Insufficient funds", "acting", methods=["AddOrder"])])
            try:
                assert not bot.order("limit")
            except REFUSALS as error:
                assert "Insufficient" in f"{type(error).__name__} {error}"  # noqa: PT017
        assert [request.method for request in sim.requests()].count("AddOrder") == 1
        assert_nothing_is_pending(sim, valkey)

    def test_another_way_after_a_refusal(self, sim: KrakenSimulator, valkey: Server) -> None:
        """An order that other code sends in its own way, when we refuse, is told."""

        class OtherWay(krakenex.API):  # type: ignore[misc]
            def _query(self, urlpath: str, data: Any, headers: Any = None, timeout: Any = None) -> Any:
                try:
                    return super()._query(urlpath, {**data, "cl_ord_id": "mine"}, headers, timeout)
                except IncompatibleClient:
                    return requests.post(sim.url + urlpath, data=data, headers=headers, timeout=timeout).json()

        api = OtherWay(sim.key, sim.secret)
        api.uri = sim.url
        ours.install(api, redis=valkey.url, retries=QUICK)
        assert api.query_private("AddOrder", form("limit"))["result"]["txid"] == [sim.orders()[-1].txid]
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        assert api.query_private("AddOrder", form("limit"))["result"]["txid"] == [sim.orders()[-1].txid]
        assert len(sim.orders()) == 2
        assert_nothing_is_pending(sim, valkey)
        api.close()


# Connecting takes long


def after(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, or one of a coroutine, that begins later."""

    def later(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    async def later_in_a_loop(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(seconds)
        return await function(*args, **kwargs)

    return later_in_a_loop if inspect.iscoroutinefunction(function) else later


class TestSlowToConnect:
    """The last look is when there is a connection, whatever it took to get it."""

    @staticmethod
    def slow_down(patch: pytest.MonkeyPatch, seconds: float) -> None:
        """Have each connection of a client take a time; no timeout of requests counts that if an address is silent."""
        for kind, name in (
            (urllib3.util.connection, "create_connection"),
            (aiohttp.TCPConnector, "connect"),
        ):
            patch.setattr(kind, name, after(seconds, getattr(kind, name)))

    @pytest.mark.long
    @pytest.mark.parametrize("name", BOTS)
    def test_in_time(self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """A request that took some of its time to connect needs no more of its lease than the rest of it."""
        with BOTS[name](*access(sim), redis=valkey.url, ttl=1, call_timeout=20, retries=QUICK) as bot:
            self.slow_down(monkeypatch, 2.5)
            assert place(bot)

    @pytest.mark.parametrize("name", BOTS)
    def test_out_of_patience(
        self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """An order does not leave when its patience is over."""
        with BOTS[name](*access(sim), redis=valkey.url, patience=0.4, retries=QUICK) as bot:
            with monkeypatch.context() as patch:
                self.slow_down(patch, 0.6)
                with pytest.raises(HoldTimeout, match="patience ended"):
                    place(bot)
            assert sim.requests() == []
            assert_nothing_is_pending(sim, valkey)
            assert place(bot)

    @pytest.mark.parametrize("name", ["krakenex", "ccxt", "sdk"])
    def test_silent_addresses(
        self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """Silent addresses before the right one, for each of which the timeout begins anew, take the lease's time."""
        lookup, port = socket.getaddrinfo, int(sim.url.rpartition(":")[2])
        with contextlib.ExitStack() as silent:
            addresses = []
            for _ in range(3):
                listening = silent.enter_context(socket.create_server((HOST, 0), backlog=0))
                addresses.append(listening.getsockname())
                for _ in range(2):  # more than it queues
                    waiting = silent.enter_context(socket.socket())
                    waiting.settimeout(0)
                    waiting.connect_ex(addresses[-1])
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in [*addresses, (HOST, port)]]
            monkeypatch.setattr(
                socket, "getaddrinfo", lambda host, *args: found if host == "kraken.test" else lookup(host, *args)
            )
            options: dict[str, Any] = {"redis": valkey.url, "ttl": 2.5, "patience": None, "retries": QUICK}
            options |= {"timeout": 1000} if name == "ccxt" else {"call_timeout": 1}
            with BOTS[name]("http://kraken.test", sim.key, sim.secret, **options) as bot:
                with pytest.raises(LeaseLost, match="has ended"):
                    place(bot)
                assert sim.requests() == []
                assert_nothing_is_pending(sim, valkey)
                found[:3] = []
                assert place(bot)

    @pytest.mark.parametrize("name", ["krakenex", "ccxt", "sdk"])
    def test_used_again(self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """A connection that is used again may have been waited for, too."""
        with BOTS[name](*access(sim), redis=valkey.url, patience=0.4, retries=QUICK) as bot:
            assert place(bot)
            pool = urllib3.connectionpool.HTTPConnectionPool
            monkeypatch.setattr(pool, "_get_conn", after(0.6, pool._get_conn))
            with pytest.raises(HoldTimeout, match="patience ended"):
                place(bot)
        assert len(sim.orders()) == len(sim.requests()) == 1
        assert_nothing_is_pending(sim, valkey)

    @pytest.mark.parametrize("proxied", [False, True])
    def test_tls(self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, *, proxied: bool) -> None:
        """TLS comes before the last look, directly and through a proxy."""
        with contextlib.ExitStack() as stack:
            front = stack.enter_context(HttpsFront(int(sim.url.rpartition(":")[2])))
            proxy = stack.enter_context(Tunnel())
            bot = stack.enter_context(
                BOTS["krakenex"](front.url, sim.key, sim.secret, redis=valkey.url, patience=0.4, retries=QUICK)
            )
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", front.authority)
            if proxied:
                set_proxy(bot, proxy.url)
            with monkeypatch.context() as patch:
                patch.setattr(ssl.SSLContext, "wrap_socket", after(0.6, ssl.SSLContext.wrap_socket))
                with pytest.raises(HoldTimeout, match="patience ended"):
                    place(bot)
            assert sim.requests() == []
            assert place(bot)


class TestRetriesOfConnecting:
    """urllib3 may try again by itself to connect, as ``HTTPAdapter(max_retries=3)`` has it: nothing has left."""

    @pytest.fixture(params=["krakenex", "ccxt", "sdk"])
    def bot(self, request: pytest.FixtureRequest, sim: KrakenSimulator, valkey: Server) -> Iterator[Any]:
        """Return each kind of bot with such a session."""
        with BOTS[request.param](*access(sim), redis=valkey.url, patience=1, retries=QUICK) as bot:
            self.mount(bot, 3)
            yield bot

    @staticmethod
    def mount(bot: Any, retries: int | urllib3.Retry) -> None:
        """Have a bot's session try again."""
        session = getattr(bot.client, "session", None) or bot.client._session
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))

    @staticmethod
    def refuse(patch: pytest.MonkeyPatch, times: int) -> list[int]:
        """Have the first connections of a client refused; return where they are counted."""
        create, refused = urllib3.util.connection.create_connection, [0]

        def connect(*args: Any, **kwargs: Any) -> Any:
            if refused[0] < times:
                refused[0] += 1
                raise ConnectionRefusedError
            return create(*args, **kwargs)

        patch.setattr(urllib3.util.connection, "create_connection", connect)
        return refused

    def test_connected_later(
        self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, bot: Any
    ) -> None:
        """A request leaves with the connection that there is at last, in the same attempt."""
        refused = self.refuse(monkeypatch, 2)
        assert place(bot)
        assert refused == [2]
        assert len(sim.orders()) == len(sim.requests()) == 1
        assert_nothing_is_pending(sim, valkey)

    def test_never_connected(
        self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, bot: Any
    ) -> None:
        """A request that never left is the client's own error, and nothing is pending."""
        self.refuse(monkeypatch, 1000)
        with pytest.raises(REFUSALS) as caught:
            bot.balance()
        assert not isinstance(caught.value, KrakenNonceError)
        with pytest.raises(REFUSALS) as caught:
            place(bot)
        assert not isinstance(caught.value, OutcomeUnknown | NotCarriedOut | IncompatibleClient)
        assert sim.requests() == []
        assert_nothing_is_pending(sim, valkey)

    def test_after_its_patience(
        self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, bot: Any
    ) -> None:
        """An order for which there is a connection too late does not leave."""
        self.mount(bot, urllib3.Retry(3, read=False, backoff_factor=0.4))
        self.refuse(monkeypatch, 3)  # urllib3 sleeps 0.8 + 1.6 s between them
        with pytest.raises(HoldTimeout, match="patience ended"):
            place(bot)
        assert sim.requests() == []
        assert_nothing_is_pending(sim, valkey)

    @contextlib.contextmanager
    def over_tls(self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bot]:
        """Make a bot that reaches the exchange by TLS and tries three times more to connect."""
        with (
            HttpsFront(int(sim.url.rpartition(":")[2])) as front,
            BOTS["krakenex"](front.url, sim.key, sim.secret, redis=valkey.url, retries=QUICK) as bot,
        ):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", front.authority)
            self.mount(bot, 3)
            yield bot

    def test_no_tls(self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection that ends before TLS is there has let nothing out."""
        wrap, ended = ssl.SSLContext.wrap_socket, []

        def cut(*args: Any, **kwargs: Any) -> Any:
            if not ended:
                ended.append(args)
                raise ssl.SSLEOFError
            return wrap(*args, **kwargs)

        with self.over_tls(sim, valkey, monkeypatch) as bot:
            monkeypatch.setattr(ssl.SSLContext, "wrap_socket", cut)
            assert place(bot)
        assert len(ended) == len(sim.orders()) == len(sim.requests()) == 1
        assert_nothing_is_pending(sim, valkey)

    def test_broken_tls(self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer that TLS could not read, after which urllib3 would send again: the request has left."""
        read, broken = ssl.SSLSocket.recv_into, []

        def spoil(*args: Any, **kwargs: Any) -> Any:
            count = read(*args, **kwargs)
            if not broken:
                broken.append(count)
                raise ssl.SSLError
            return count

        with self.over_tls(sim, valkey, monkeypatch) as bot:
            monkeypatch.setattr(ssl.SSLSocket, "recv_into", spoil)
            assert place(bot)
        assert len(broken) == len(sim.orders()) == 1
        assert [request.method for request in sim.requests()].count("AddOrder") == 1
        assert_nothing_is_pending(sim, valkey)


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


# What never leaves


class Refusing:
    """A proxy that wants a password."""

    def __init__(self) -> None:
        self._listening = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(
                        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n"
                        b"Content-Length: 0\r\nConnection: close\r\n\r\n"
                    )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()


class Tunnel(Refusing):
    """A proxy that connects to whatever it is asked for."""

    def _answer(self) -> None:
        ends: list[socket.socket] = []
        with ThreadPoolExecutor() as threads:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = self._listening.accept()
                    ends.append(client)
                    host, _, port = client.recv(65536).split()[1].decode().rpartition(":")
                    ends.append(server := socket.create_connection((host, int(port))))
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    threads.submit(self._pass_on, client, server)
                    threads.submit(self._pass_on, server, client)
            self._shut(*ends)
        for end in ends:
            end.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._shut(source, target)

    @staticmethod
    def _shut(*ends: socket.socket) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def place(bot: Any) -> Any:
    """Place an order, without asking for the markets first."""
    if isinstance(bot, Ccxt):
        return bot.run(bot.client.private_post_addorder(form("limit")))
    return bot.order("limit")


def set_proxy(bot: Any, url: str) -> None:
    """Have a bot send through a proxy."""
    if isinstance(bot, Ccxt):
        setattr(bot.client, "socksProxy" if url.startswith("socks") else "httpsProxy", url)
    elif isinstance(bot, Krakenex):
        bot.client.session.proxies.update(https=url, http=url)


@pytest.mark.parametrize("kind", BOTS)
class TestNeverSent:
    """What can't be sent is the client's own error at once: nothing is settled, nothing pending, nothing repeated."""

    @pytest.fixture
    def front(self, sim: KrakenSimulator) -> Iterator[HttpsFront]:
        """Return an exchange whose certificate nobody knows."""
        with HttpsFront(int(sim.url.rpartition(":")[2])) as front:
            yield front

    def refused(
        self, bot: Any, sim: KrakenSimulator, valkey: Server, caplog: pytest.LogCaptureFixture, events: list[Any]
    ) -> Exception:
        """Place an order that can't be sent; return the error."""
        with (
            caplog.at_level(logging.INFO, "kraken_nonce_redis"),
            pytest.raises((*REFUSALS, aiohttp.ClientError)) as caught,
        ):
            place(bot)
        assert not isinstance(caught.value, KrakenNonceError)
        assert "made again" not in caplog.text
        assert events == []
        assert sim.requests() == []
        assert_nothing_is_pending(sim, valkey)
        with CallLock.from_url(valkey.url, sim.key).hold(0):
            pass
        return caught.value

    def test_unknown_authority(
        self, sim: KrakenSimulator, valkey: Server, front: HttpsFront, caplog: pytest.LogCaptureFixture, kind: str
    ) -> None:
        """A certificate of an authority that the client doesn't know, such as that of a proxy that looks inside."""
        events: list[Any] = []
        options = {"redis": valkey.url, "retries": QUICK, "on_event": events.append}
        with BOTS[kind](front.url, sim.key, sim.secret, **options) as bot:
            self.refused(bot, sim, valkey, caplog, events)

    def test_proxy_wants_a_password(
        self, sim: KrakenSimulator, valkey: Server, front: HttpsFront, caplog: pytest.LogCaptureFixture, kind: str
    ) -> None:
        """A proxy that answers 407."""
        events: list[Any] = []
        options: dict[str, Any] = {"redis": valkey.url, "retries": QUICK, "on_event": events.append}
        with Refusing() as proxy:
            if kind.startswith("sdk"):
                options["proxy"] = proxy.url
            with BOTS[kind](front.url, sim.key, sim.secret, **options) as bot:
                set_proxy(bot, proxy.url)
                error = self.refused(bot, sim, valkey, caplog, events)
        assert "407" in str(error) or "407" in str(error.__cause__)

    def test_socks_without_pysocks(
        self, sim: KrakenSimulator, valkey: Server, caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch, kind: str,
    ) -> None:  # fmt: skip
        """A SOCKS proxy without the library for it."""
        if kind == "sdk-async":
            pytest.skip("aiohttp takes no SOCKS proxy")

        def missing(*_: Any, **__: Any) -> None:
            raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

        monkeypatch.setattr(requests.adapters, "SOCKSProxyManager", missing)
        monkeypatch.setitem(sys.modules, "aiohttp_socks", None)
        events: list[Any] = []
        options: dict[str, Any] = {"redis": valkey.url, "retries": QUICK, "on_event": events.append}
        if kind == "sdk":
            options["proxy"] = "socks5://127.0.0.1:9"
        with BOTS[kind](*access(sim), **options) as bot:
            set_proxy(bot, "socks5://127.0.0.1:9")
            self.refused(bot, sim, valkey, caplog, events)

    @pytest.mark.parametrize("end", ["\n", " ", "\r\n", "\u2028"])
    def test_white_space_around(self, sim: KrakenSimulator, valkey: Server, kind: str, end: str) -> None:
        """White space around key and secret, as files have it, is not part of them."""
        with BOTS[kind](sim.url, f" {sim.key}{end}", f"{end}{sim.secret}{end}", redis=valkey.url) as bot:
            assert place(bot)
        assert len(sim.orders()) == 1

    @pytest.mark.parametrize("inside", ["\n", "\u200b", " ", "\x00", "\ud800", "\u00e9"])
    @pytest.mark.parametrize("what", ["key", "secret"])
    def test_characters_inside(self, sim: KrakenSimulator, valkey: Server, kind: str, what: str, inside: str) -> None:
        """Characters that no key has are refused where the client is made, without the key in the text."""
        given = {"key": sim.key, "secret": sim.secret}
        given[what] = given[what][:20] + inside + given[what][20:]
        bots = BOTS[kind]
        make = bots.make(bots.__new__(bots), sim.url, given["key"], given["secret"], {"redis": valkey.url})
        with (
            asyncio.Runner() as runner,
            pytest.raises(InvalidArgument, match=f"U\\+{ord(inside):04X} at place 21") as caught,
        ):
            runner.run(make)
        shown = "".join(traceback.format_exception(caught.value))
        assert given[what][:12] not in shown
        assert sim.key[:12] not in shown

    def test_a_key_that_comes_later(self, sim: KrakenSimulator, valkey: Server, kind: str) -> None:
        """A key that is put into the client later is looked at before its first call."""
        with BOTS[kind](*access(sim), redis=valkey.url) as bot:
            for name in ("key", "_key", "apiKey"):
                if hasattr(bot.client, name):
                    setattr(bot.client, name, f"{sim.key}\ud800")
            with pytest.raises(InvalidArgument, match=r"U\+D800") as caught:
                place(bot)
        assert sim.key[:12] not in "".join(traceback.format_exception(caught.value))
        assert sim.requests() == []


def test_half_a_character(valkey: Server) -> None:
    """A lock or a sequence for an API key that is no text is refused without the key in the text."""
    secret = "very" * 4
    for kind in (CallLock, NonceAllocator):
        with pytest.raises(InvalidArgument, match="surrogate") as caught:
            kind.from_url(valkey.url, secret + "\ud800")
        assert secret not in "".join(traceback.format_exception(caught.value))
