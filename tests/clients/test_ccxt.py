"""ccxt's Kraken classes with their private calls under the lock; each test runs on the sync, async and pro class."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import http.server
import importlib
import inspect
import logging
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import ccxt
import pytest
import redis.asyncio
from aiohttp import web

from kraken_nonce_redis import (
    CallLock,
    CoolDown,
    HoldTimeout,
    IncompatibleClient,
    InvalidArgument,
    LeaseLost,
    StoreUnavailable,
)
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from kraken_nonce_redis.ccxt._adapter import _PROBE_NONCE, check_seam
from kraken_nonce_redis.retries import Retries
from kraken_nonce_redis.testing import Fault
from tests.support.children import CONTEXT
from tests.support.helpers import Stopwatch, eventually
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from threading import Barrier
    from types import TracebackType

    from kraken_nonce_redis._calls.call import Call
    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.servers import Server

MODULES = {"sync": "", "async": ".async_support", "pro": ".pro"}
NOWHERE = "redis://127.0.0.1:1"
SYMBOL = "BTC/USD"
SIGNED_ITSELF = {"url": "/0/private/Balance", "method": "POST", "headers": {"API-Sign": "x"}, "body": "nonce=1"}
PROCESSES, CALLS = 4, by_tier(12, 25, 50)

pytestmark = pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning")


class Bot:
    """One client of ccxt behind plain calls: a coroutine runs in a loop of the bot's own."""

    def __init__(self, face: str, config: dict[str, Any], package: str = "kraken_nonce_redis.ccxt") -> None:
        self._runner = asyncio.Runner()
        self.exchange = importlib.import_module(package + MODULES[face]).kraken(config)
        self.exchange.timeout_on_exit = 1  # millisecond; on loopback nothing needs the quarter of a second

    def __call__(self, method: str, *args: Any) -> Any:
        """Call a method of the client and return what it comes to."""
        return self.run(getattr(self.exchange, method)(*args))

    def run(self, result: Any) -> Any:
        """Wait for a result if need be."""
        return self._runner.run(result) if inspect.iscoroutine(result) else result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.run(self.exchange.session.close() if self.exchange.synchronous else self.exchange.close())
        self._runner.close()


class MakeBot(Protocol):
    """Makes bots on the simulator and Valkey, closed with the test."""

    def __call__(self, **config: Any) -> Bot:
        """Take keys of the config that differ."""
        ...


def config_for(sim: KrakenSimulator, url: str) -> dict[str, Any]:
    """Return a config that suits ours; stock ccxt takes it without its ``redis``."""
    return {
        "apiKey": sim.key,
        "secret": sim.secret,
        "enableRateLimit": False,
        "urls": {"api": {"public": sim.url, "private": sim.url}},
        "redis": url,
    }


@pytest.fixture(params=MODULES)
def face(request: pytest.FixtureRequest) -> str:
    """Name ccxt's classes in turn."""
    return str(request.param)


@pytest.fixture
def make_bot(face: str, sim: KrakenSimulator, valkey: Server) -> Iterator[MakeBot]:
    """Make bots of one face."""
    with contextlib.ExitStack() as stack:

        def make(**config: Any) -> Bot:
            return stack.enter_context(Bot(face, config_for(sim, valkey.url) | config))

        yield make


@pytest.fixture
def bot(make_bot: MakeBot) -> Bot:
    """Make a bot with default settings."""
    return make_bot()


@pytest.fixture
def lock(sim: KrakenSimulator, valkey: Server) -> CallLock:
    """Make the lock of the API key, as another program has it."""
    return CallLock.from_url(valkey.url, sim.key)


def lease_of(exchange: Any) -> Any:
    """Return the lease under which a call is being made, or None."""
    try:
        owner: Any = asyncio.current_task()
    except RuntimeError:
        owner = threading.current_thread()
    return exchange._guard.lock(exchange.apiKey)._held(owner)


def before_fetch(monkeypatch: pytest.MonkeyPatch, bot: Bot, look: Callable[[Any], None]) -> None:
    """Let a function see the client when ccxt is about to send a request."""
    stock = bot.exchange._stock
    fetch = stock.fetch

    def looking(self: Any, *request: Any) -> Any:
        look(self)
        return fetch(self, *request)

    monkeypatch.setattr(stock, "fetch", looking)


class TestCalls:
    """What ccxt's users do all day."""

    def test_everyday_calls(self, sim: KrakenSimulator, bot: Bot) -> None:
        """Markets, balance, orders and trades work as in ccxt, and each private call has a nonce of 19 digits."""
        assert SYMBOL in bot("loadMarkets")
        assert bot("fetchBalance")["BTC"]["free"] == 100_000
        order = bot("createOrder", SYMBOL, "limit", "buy", 1, 37_500)
        assert [each["id"] for each in bot("fetchOpenOrders", SYMBOL)] == [order["id"]]
        bot("cancelOrder", order["id"])
        bought = bot("createOrder", SYMBOL, "market", "buy", 2)
        assert [(trade["order"], trade["amount"]) for trade in bot("fetchMyTrades", SYMBOL)] == [(bought["id"], 2)]
        assert [order.status for order in sim.orders()] == ["canceled", "closed"]
        nonces = [request.nonce or 0 for request in sim.requests()]
        assert len(nonces) == 6
        assert nonces == sorted(nonces)
        assert {len(str(nonce)) for nonce in nonces} == {19}
        assert {request.error for request in sim.requests()} == {()}

    def test_json_body(self, sim: KrakenSimulator, bot: Bot) -> None:
        """A call that ccxt sends as JSON is signed with our nonce as well."""
        bot("loadMarkets")
        orders = [bot("createOrder", SYMBOL, "limit", "buy", 1, 37_500)["id"] for _ in range(2)]
        bot("cancelOrders", orders)
        assert {order.status for order in sim.orders()} == {"canceled"}
        assert len(str(sim.requests()[-1].nonce)) == 19

    def test_public_calls_need_no_redis(self, make_bot: MakeBot) -> None:
        """Public calls go out without Redis and without the lock."""
        bot = make_bot(redis=NOWHERE)
        bot("loadMarkets")
        assert bot("fetchTicker", SYMBOL)["last"] == 60_000

    def test_nothing_is_sent_without_redis(self, sim: KrakenSimulator, make_bot: MakeBot) -> None:
        """Without Redis a private call fails with our error; no nonce is made up for it."""
        with pytest.raises(StoreUnavailable):
            make_bot(redis=NOWHERE)("privatePostBalance")
        assert sim.requests() == []

    def test_credentials_are_checked_first(self, make_bot: MakeBot) -> None:
        """Without a secret the error is ccxt's, before anything waits for the lock."""
        with pytest.raises(ccxt.AuthenticationError, match="secret"):
            make_bot(redis=NOWHERE, secret="")("privatePostBalance")

    def test_nonce_outside_of_a_call(self, bot: Bot) -> None:
        """Who asks the client for a nonce himself gets what ccxt gives, in milliseconds."""
        assert bot.exchange.nonce() == pytest.approx(time.time() * 1000, abs=5000)

    def test_nonces_are_those_of_the_lease(self, sim: KrakenSimulator, make_bot: MakeBot, lock: CallLock) -> None:
        """A last nonce that ccxt remembers has no say: other clients of the key go on from the lease's."""
        bot = make_bot(options={"lastNonce": 9 * 10**18})
        bot("privatePostBalance")
        with lock.hold() as lease:
            assert 0 < lease.nonce - (sim.requests()[0].nonce or 0) < 60 * 10**9
        assert bot.exchange.options["lastNonce"] == 9 * 10**18

    def test_what_ccxt_remembers(self, bot: Bot) -> None:
        """The last request that the client shows is the one that was sent, signature included."""
        bot("privatePostBalance")
        assert bot.exchange.last_request_url.endswith("/0/private/Balance")
        assert bot.exchange.last_request_body.startswith("nonce=")
        assert bot.exchange.last_request_headers["API-Sign"]

    def test_params_belong_to_the_call(self, sim: KrakenSimulator, bot: Bot, lock: CallLock) -> None:
        """What the caller does to its parameters while the call waits for the lock does not change the call."""
        bot("loadMarkets")
        first, second = (bot("createOrder", SYMBOL, "limit", "buy", 1, 37_500)["id"] for _ in range(2))
        params = {"orders": [first]}
        with ThreadPoolExecutor(1) as pool:
            with lock.hold():
                call = pool.submit(bot, "privatePostCancelOrderBatch", params)
                eventually(lambda: lock.store.run(commands.inspect(lock.keys)).waiting)
                params["orders"].append(second)
            call.result(10)
        assert [order.status for order in sim.orders()] == ["canceled", "open"]

    def test_several_calls_under_one_lease(self, sim: KrakenSimulator, bot: Bot, valkey: Server) -> None:
        """Who holds the lock himself makes several calls under it, each with its own nonce."""

        async def calls() -> None:
            async with AsyncCallLock.from_url(valkey.url, sim.key).hold():
                for _ in range(3):
                    await bot.exchange.privatePostBalance()

        if bot.exchange.synchronous:
            with CallLock.from_url(valkey.url, sim.key).hold():
                for _ in range(3):
                    bot("privatePostBalance")
        else:
            bot.run(calls())
        assert_in_nonce_order(sim, 3)

    @pytest.mark.parametrize("face", ["async", "pro"])
    def test_calls_of_child_tasks_under_one_lease(self, sim: KrakenSimulator, bot: Bot, valkey: Server) -> None:
        """Inside a hold, calls of child tasks run one at a time under its lease."""
        sim.configure(latency=(0.0, 0.01))

        async def calls() -> None:
            async with AsyncCallLock.from_url(valkey.url, sim.key).hold() as lease:
                await asyncio.gather(*(bot.exchange.privatePostBalance() for _ in range(5)))
                await asyncio.wait_for(bot.exchange.privatePostBalance(), 5)
                last = max(request.nonce or 0 for request in sim.requests())
                assert lease.nonce < last < lease.next_nonce()

        bot.run(calls())
        assert_in_nonce_order(sim, 6)

    def test_one_client_for_many_callers(self, sim: KrakenSimulator, bot: Bot) -> None:
        """Threads or tasks that share one client take turns: no nonce is refused, none overtakes another."""
        sim.configure(latency=(0.0, 0.01))

        async def gather() -> None:
            await asyncio.gather(*(bot.exchange.privatePostBalance() for _ in range(20)))

        if bot.exchange.synchronous:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(bot, ["privatePostBalance"] * 20))
        else:
            bot.run(gather())
        assert_in_nonce_order(sim, 20)


def assert_in_nonce_order(sim: KrakenSimulator, number: int) -> None:
    """Assert that so many requests were accepted, one at a time and in the order of their nonces."""
    requests = sim.requests()
    assert Counter(request.error for request in requests) == {(): number}
    nonces = [request.nonce or 0 for request in requests]
    assert nonces == sorted(set(nonces))
    assert {len(str(nonce)) for nonce in nonces} == {19}
    assert {request.in_flight for request in requests} == {1}


class TestConfig:
    """Our settings among ccxt's."""

    def test_ours_stay_ours_and_ccxts_ccxts(self, make_bot: MakeBot) -> None:
        """Our keys configure the lock and show up nowhere else in the client; ccxt gets all others."""
        ours = {"ttl": 12, "scope": "global", "namespace": "other", "wait_timeout": 3, "call_timeout": 4}
        exchange = make_bot(**ours, rateLimit=77, options={"mine": 1}).exchange
        lock = exchange._guard.lock(exchange.apiKey)
        assert (lock.ttl, lock.keys.state.startswith("other")) == (12, True)
        assert (exchange.rateLimit, exchange.options["mine"]) == (77, 1)
        for name in (*ours, "redis"):
            assert not hasattr(exchange, name)
            assert name not in exchange.options

    def test_config_stays_as_it_was(self, face: str, sim: KrakenSimulator, valkey: Server) -> None:
        """The caller's config may be used again, for the next client."""
        config = config_for(sim, valkey.url)
        before = copy.deepcopy(config)
        for _ in range(2):
            with Bot(face, config):
                assert config == before

    def test_url_from_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, face: str, sim: KrakenSimulator, valkey: Server
    ) -> None:
        """Without ``redis`` the URL comes from the environment; without that, the error says what to set."""
        config = config_for(sim, valkey.url)
        monkeypatch.setenv("KRAKEN_NONCE_REDIS_URL", config.pop("redis"))
        with Bot(face, config) as bot:
            bot("privatePostBalance")
        monkeypatch.delenv("KRAKEN_NONCE_REDIS_URL")
        monkeypatch.delenv("REDIS_URL", raising=False)
        with pytest.raises(InvalidArgument, match="KRAKEN_NONCE_REDIS_URL"):
            Bot(face, config)

    def test_client_of_redis(self, make_bot: MakeBot, valkey: Server, face: str) -> None:
        """A client of redis-py, for asyncio one of redis.asyncio, does instead of a URL."""
        if face == "sync":
            make_bot(redis=valkey.client())("privatePostBalance")
        else:
            make_bot(redis=redis.asyncio.Redis.from_url(valkey.url))("privatePostBalance")

    @pytest.mark.parametrize(
        ("config", "milliseconds"),
        [({}, 10_000), ({"call_timeout": 3}, 3000), ({"call_timeout": 3, "timeout": 500}, 500)],
    )
    def test_timeout(self, make_bot: MakeBot, config: dict[str, Any], milliseconds: int) -> None:
        """A request's timeout is ccxt's; where only ours is given, it becomes ccxt's."""
        assert make_bot(**config).exchange.timeout == milliseconds


class TestLease:
    """What holds while a request is under way."""

    def test_lease_covers_the_timeout(self, monkeypatch: pytest.MonkeyPatch, make_bot: MakeBot, face: str) -> None:
        """A lease shorter than the request may take is extended before the request leaves."""
        left: list[float] = []
        bot = make_bot(ttl=1, timeout=20_000)
        before_fetch(monkeypatch, bot, lambda exchange: left.append(lease_of(exchange).remaining()))
        bot("privatePostBalance")
        longest = 40 if face == "sync" else 21  # requests times connecting and reading apart; aiohttp rounds up
        assert longest < left[0] < longest + 1

    @pytest.mark.long
    def test_nothing_leaves_late(
        self, monkeypatch: pytest.MonkeyPatch, sim: KrakenSimulator, make_bot: MakeBot
    ) -> None:
        """A request that was held up until its lease is too short for it is not sent."""
        bot = make_bot(ttl=1, timeout=350)
        stock = bot.exchange._stock
        sign = stock.sign

        def slow(self: Any, *args: Any) -> Any:
            time.sleep(1.2)
            return sign(self, *args)

        monkeypatch.setattr(stock, "sign", slow)
        with pytest.raises(LeaseLost, match="sign and send nothing under it"):
            bot("privatePostBalance")
        assert sim.requests() == []

    def test_timeout_with_decimals(self, make_bot: MakeBot) -> None:
        """A timeout that is a Decimal works."""
        bot = make_bot(timeout=Decimal(5000))
        assert bot("privatePostBalance")

    @pytest.mark.parametrize("timeout", [0, None, 10**7, (3, 5), "5000"])
    def test_timeout_that_fits_no_lease(self, sim: KrakenSimulator, make_bot: MakeBot, timeout: Any) -> None:
        """A request without an end, one longer than any lease, or an odd one is refused before it waits."""
        bot = make_bot(redis=NOWHERE)
        bot.exchange.timeout = timeout
        with pytest.raises(InvalidArgument, match=r"^timeout: "):
            bot("privatePostBalance")
        assert sim.requests() == []

    def test_waiting_has_an_end(self, sim: KrakenSimulator, make_bot: MakeBot, lock: CallLock) -> None:
        """A key that does not get free in time fails the call."""
        bot = make_bot(wait_timeout=0.2)
        took = Stopwatch()
        with lock.hold(), ThreadPoolExecutor(1) as pool, pytest.raises(HoldTimeout):
            pool.submit(bot, "privatePostBalance").result(10)
        assert took() >= 0.2
        assert sim.requests() == []

    def test_released_after_an_error(self, bot: Bot, lock: CallLock) -> None:
        """Kraken's refusal is ccxt's error, and leaves the key free at once."""
        with pytest.raises(ccxt.ExchangeError, match="Unknown method"):
            bot("privatePostWithdrawStatus")
        with lock.hold(0):
            pass

    @pytest.mark.parametrize("face", ["async", "pro"])
    def test_loop_goes_on(self, bot: Bot, lock: CallLock) -> None:
        """While a call waits for the lock, the rest of the event loop runs as ever."""

        async def wait() -> None:
            lock.acquire()
            call = asyncio.create_task(bot.exchange.privatePostBalance())
            for _ in range(100):
                await asyncio.sleep(0.005)
            assert not call.done()
            lock.release()
            await asyncio.wait_for(call, 20)

        bot.run(wait())


class TestThrottle:
    """ccxt's rate limit, which is kept before the lock is asked for."""

    CONFIG: dict[str, Any] = {  # noqa: RUF012 - only read
        "enableRateLimit": True,
        "rateLimit": 500,
        "api": {"private": {"post": {"Balance": 2}}},
    }

    @pytest.mark.long
    def test_others_call_meanwhile(self, sim: KrakenSimulator, make_bot: MakeBot) -> None:
        """While one client is throttled, the key is free for all others."""
        slow, quick = make_bot(**self.CONFIG | {"rateLimit": 1000}), make_bot()
        with ThreadPoolExecutor(1) as pool:
            took = Stopwatch()
            slow_calls = pool.submit(lambda: [slow("privatePostBalance") for _ in range(2)])
            eventually(sim.requests)
            for _ in range(5):
                quick("privatePostOpenOrders")
            slow_calls.result(20)
        assert [request.method for request in sim.requests()] == ["Balance", *["OpenOrders"] * 5, "Balance"]
        assert took() >= 2.0

    @pytest.mark.parametrize("face", ["sync"])  # with asyncio ccxt lets calls go at a rate, whenever they then leave
    def test_counts_from_when_a_call_leaves(self, sim: KrakenSimulator, make_bot: MakeBot, lock: CallLock) -> None:
        """A call that had to wait for the lock is not followed too soon by the next one."""
        bot = make_bot(**self.CONFIG)
        with ThreadPoolExecutor(1) as pool:
            with lock.hold():
                calls = pool.submit(lambda: [bot("privatePostBalance") for _ in range(2)])
                time.sleep(0.8)
            calls.result(10)
        first, second = sim.requests()
        assert second.received - first.received > 0.98


class TestRetries:
    """ccxt's own ``maxRetriesOnFailure``."""

    def test_each_attempt_has_its_own_lease(
        self, monkeypatch: pytest.MonkeyPatch, sim: KrakenSimulator, make_bot: MakeBot, lock: CallLock
    ) -> None:
        """A call that ccxt repeats has a new lease each time; between the attempts the key is free."""
        leases: list[int] = []
        bot = make_bot(
            timeout=150, retries=Retries(waits=()), options={"maxRetriesOnFailure": 9, "maxRetriesOnFailureDelay": 100}
        )
        before_fetch(monkeypatch, bot, lambda exchange: leases.append(lease_of(exchange).nonce))
        sim.configure(latency=(0.3, 0.3))
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(bot, "privatePostBalance")
            eventually(lambda: len(set(leases)) == 2)
            with lock.hold(2):
                sim.configure(latency=(0.0, 0.0))
            assert call.result(10)["error"] == []
        eventually(lambda: len(sim.requests()) == len(leases))
        assert len(set(leases)) >= 3
        nonces = {request.nonce for request in sim.requests()}
        assert len(nonces) == len(leases)

    def test_repeats_no_change(self, sim: KrakenSimulator, make_bot: MakeBot) -> None:
        """An order is sent once, however often the call's parameters let ccxt repeat it; Kraken sees none of those."""
        bot = make_bot(retries=Retries(waits=()))
        sim.configure(faults=[Fault("EOrder:Rate limit exceeded", "reading", methods=["AddOrder"])])
        order = {"pair": "XBTUSD", "type": "buy", "ordertype": "market", "volume": "1"}
        with pytest.raises(ccxt.OperationFailed):
            bot("privatePostAddOrder", order | {"maxRetriesOnFailure": 2, "maxRetriesOnFailureDelay": 1})
        assert len(sim.requests()) == 1
        assert "ordertype=market" in bot.exchange.last_request_body
        assert "max" not in bot.exchange.last_request_body

    @pytest.mark.long
    def test_gives_up_as_ccxt_does(self, sim: KrakenSimulator, make_bot: MakeBot) -> None:
        """After the last attempt the error is ccxt's; each attempt is made twice, as it changes nothing."""
        bot = make_bot(timeout=200, retries=Retries(waits=()), options={"maxRetriesOnFailure": 2})
        sim.configure(latency=(0.5, 0.5))
        with pytest.raises(ccxt.RequestTimeout):
            bot("privatePostBalance")
        assert len({request.nonce for request in eventually(lambda: _if_so_many(sim.requests(), 6))}) == 6


def _if_so_many(things: list[Any], number: int) -> list[Any]:
    return things if len(things) == number else []


class Refusing(http.server.BaseHTTPRequestHandler):
    """A Kraken that refuses everything."""

    ANSWER = b'{"error": ["EGeneral:Temporary lockout"]}'
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        """Refuse."""
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.ANSWER)))
        self.end_headers()
        self.wfile.write(self.ANSWER)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class TestPace:
    """Cost, priority and cool-downs."""

    def test_refusal_stops_the_others(self, make_bot: MakeBot) -> None:
        """When Kraken locks a key out, ccxt's error says so, and no other client of the key calls meanwhile."""
        Refusing.asked.clear()
        with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            urls = {"api": {"private": f"http://127.0.0.1:{server.server_port}"}}
            with pytest.raises(ccxt.BaseError, match="Temporary lockout"):
                make_bot(urls=urls)("privatePostBalance")
            with pytest.raises(CoolDown, match="Temporary lockout"):
                make_bot(urls=urls, wait_timeout=0.5)("privatePostBalance")
            server.shutdown()
        assert Refusing.asked == ["/0/private/Balance"]

    def test_cost_and_priority_follow_the_method(self, monkeypatch: pytest.MonkeyPatch, bot: Bot) -> None:
        """The guard, which knows what a method costs, is told Kraken's name of it."""
        methods: list[str] = []
        make = bot.exchange._guard.make

        def noting(api_key: str, call: Call, send: Any) -> Any:
            methods.append(call.method)
            return make(api_key, call, send)

        monkeypatch.setattr(bot.exchange._guard, "make", noting)
        bot("loadMarkets")
        bot("createOrder", SYMBOL, "limit", "buy", 1, 37_500)
        bot("fetchMyTrades")
        assert methods == ["AddOrder", "TradesHistory"]


class TestWebsocket:
    """The part of ccxt.pro that needs a private call."""

    @pytest.fixture
    def bot(self, sim: KrakenSimulator, valkey: Server) -> Iterator[Bot]:
        """Make a pro client."""
        with Bot("pro", config_for(sim, valkey.url)) as bot:
            yield bot

    def test_token(self, sim: KrakenSimulator, bot: Bot, lock: CallLock) -> None:
        """The token is asked for under the lock, with our nonce, and asked for once."""
        with ThreadPoolExecutor(1) as pool:
            with lock.hold():
                call = pool.submit(bot, "authenticate")
                time.sleep(0.2)
                assert sim.requests() == []
            token = call.result(10)
        assert token
        assert bot("authenticate") == token
        (request,) = sim.requests()
        assert (request.method, len(str(request.nonce))) == ("GetWebSocketsToken", 19)

    def test_watching(self, sim: KrakenSimulator, bot: Bot) -> None:
        """Watching private data subscribes with such a token."""

        async def watch() -> tuple[str, str]:
            subscriptions: asyncio.Queue[str] = asyncio.Queue()

            async def take(request: web.Request) -> web.WebSocketResponse:
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                async for message in socket:
                    if "subscribe" in message.data:  # and no ping
                        await subscriptions.put(message.data)
                return socket

            app = web.Application()
            app.router.add_get("/", take)
            runner = web.AppRunner(app, shutdown_timeout=0)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"ws://127.0.0.1:{runner.addresses[0][1]}/"
            bot.exchange.urls["api"]["ws"] = dict.fromkeys(bot.exchange.urls["api"]["ws"], url)
            watching = asyncio.create_task(bot.exchange.watch_orders())
            try:
                return await asyncio.wait_for(subscriptions.get(), 10), await bot.exchange.authenticate()
            finally:
                watching.cancel()
                await asyncio.wait([watching])
                await bot.exchange.close()
                await runner.cleanup()

        subscription, token = bot.run(watch())
        assert f'"{token}"' in subscription
        assert [request.method for request in sim.requests()] == ["GetWebSocketsToken"]


class TestIncompatible:
    """Versions of ccxt that are put together differently."""

    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        check_seam.cache_clear()
        yield
        check_seam.cache_clear()

    @pytest.mark.parametrize(
        ("method", "replacement"),
        [
            ("sign", lambda *_: SIGNED_ITSELF | {"body": f"nonce={_PROBE_NONCE}", "headers": {}}),
            ("sign", lambda *_: SIGNED_ITSELF),
            ("fetch2", lambda *_, **__: {}),
            ("fetch2", lambda self, path, *_, **__: self.sign(path, "public")),
            ("request", None),
        ],
    )
    def test_says_so_at_once(
        self, monkeypatch: pytest.MonkeyPatch, face: str, make_bot: MakeBot, method: str, replacement: Any
    ) -> None:
        """Such a version is refused when a client is made, with its number and those that work."""
        stock = importlib.import_module("ccxt" + MODULES[face]).kraken
        monkeypatch.setattr(stock, method, replacement)
        with pytest.raises(IncompatibleClient, match=r"known to work: 4\.4\.85 to ") as caught:
            make_bot()
        assert caught.value.client == f"ccxt {ccxt.__version__}"

    def test_found_out_once(self, monkeypatch: pytest.MonkeyPatch, make_bot: MakeBot) -> None:
        """Looking at ccxt costs the first client some milliseconds, and the others nothing."""
        bot = make_bot()
        monkeypatch.setattr(bot.exchange._stock, "fetch2", None)
        make_bot()

    def test_without_ccxt(self, monkeypatch: pytest.MonkeyPatch, face: str) -> None:
        """Where ccxt is missing, the error says what to install."""
        for name in [name for name in sys.modules if name.startswith("kraken_nonce_redis.ccxt")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "ccxt", None)
        with pytest.raises(ImportError, match=r"pip install 'kraken-nonce-redis\[ccxt\]'"):
            importlib.import_module("kraken_nonce_redis.ccxt" + MODULES[face])


class TestSecrets:
    """What must show nowhere."""

    def test_secrets_stay_secret(
        self,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
        make_bot: MakeBot,
        lock: CallLock,
        sim: KrakenSimulator,
    ) -> None:
        """No key, secret or signature in errors, in reprs, in ccxt's own log at DEBUG or its ``verbose`` output."""
        caplog.set_level(logging.DEBUG)
        bot = make_bot(verbose=True, wait_timeout=0.1)
        signatures: list[str] = []
        texts: list[str] = []

        def call(method: str, *args: Any) -> None:
            try:
                bot(method, *args)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is looked through
                each: BaseException | None = error
                while each is not None:
                    texts.append(f"{each} {each!r} {each.args} {vars(each)}")
                    each = each.__cause__ or each.__context__
            texts.append(repr(bot.exchange.last_request_headers))
            if bot.exchange.last_request_headers:
                signatures.append(bot.exchange.last_request_headers["API-Sign"])

        call("privatePostBalance")
        call("privatePostAddOrder", {"pair": "XBTUSD"})
        sim.configure(latency=(0.2, 0.2))
        bot.exchange.timeout = 100
        call("privatePostBalance")
        with lock.hold(), ThreadPoolExecutor(1) as pool:
            pool.submit(call, "privatePostBalance").result(10)
        bot.exchange.timeout = 0
        call("privatePostBalance")
        texts += [
            repr(bot.exchange),
            str(bot.exchange),
            repr(bot.exchange._guard),
            caplog.text,
            capsys.readouterr().out,
        ]
        text = "\n".join(texts)
        assert "fetch Request:" in text
        assert "HoldTimeout" in text
        assert len(set(signatures)) >= 3
        for secret in (sim.key, sim.secret, *signatures):
            assert secret not in text


# Many processes on one key

_barrier: Barrier


def _enter(barrier: Barrier) -> None:
    """Start a process of the pool."""
    global _barrier  # noqa: PLW0603 - given to the process when it starts, not with a task
    _barrier = barrier


def call_often(face: str, package: str, config: dict[str, Any], number: int) -> Counter[str]:
    """Make private calls, a third of them orders, together with the other processes; return how they ended."""
    ended: Counter[str] = Counter()
    with Bot(face, config, package) as bot:
        bot("loadMarkets")
        calls: list[tuple[Any, ...]] = [
            ("createOrder", SYMBOL, "limit", "buy", 1, 37_500),
            ("fetchBalance",),
            ("fetchMyTrades",),
        ]
        _barrier.wait(60)
        for n in range(number):
            try:
                bot(*calls[n % len(calls)])
            except ccxt.InvalidNonce:
                ended["refused"] += 1
            else:
                ended["accepted"] += 1
    return ended


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Start processes that share nothing with this one."""
    with ProcessPoolExecutor(PROCESSES, CONTEXT, initializer=_enter, initargs=(CONTEXT.Barrier(PROCESSES),)) as pool:
        yield pool


@pytest.mark.once
class TestProcesses:
    """One API key in several processes, over a network whose latency lets requests overtake each other."""

    def test_stock_is_refused_and_ours_is_not(
        self, face: str, sim: KrakenSimulator, valkey: Server, processes: ProcessPoolExecutor
    ) -> None:
        """Where stock ccxt is refused for its nonces, ours never is, and orders arrive one by one in nonce order."""
        sim.configure(latency=(0.0005, 0.008))
        config = config_for(sim, valkey.url)

        def run(package: str, config: dict[str, Any]) -> Counter[str]:
            tasks = [processes.submit(call_often, face, package, config, CALLS) for _ in range(PROCESSES)]
            return sum((task.result(120) for task in tasks), Counter())

        stock = run("ccxt", {key: value for key, value in config.items() if key != "redis"})
        refused = [request for request in sim.requests() if request.error == ("EAPI:Invalid nonce",)]
        assert len(refused) == stock["refused"] > 0
        sim.reset()
        assert run("kraken_nonce_redis.ccxt", config) == {"accepted": PROCESSES * CALLS}
        assert_in_nonce_order(sim, PROCESSES * CALLS)
        orders = [order.nonce for order in sim.orders()]
        assert len(orders) == sum(1 for n in range(CALLS) if n % 3 == 0) * PROCESSES
        assert orders == sorted(orders)


@pytest.mark.parametrize("face", ["async", "pro"])
def test_a_session_of_the_users_after_a_fork(
    sim: KrakenSimulator, valkey: Server, make_bot: MakeBot, face: str
) -> None:
    """One that was made before the fork can't be used in the child, and says so; nothing is sent."""
    bot = make_bot()
    bot.exchange.session, bot.exchange.own_session = object(), False
    bot.exchange._process = SimpleNamespace(is_parent=True)
    for call in ("private_post_balance", "public_get_time", "load_markets"):
        with pytest.raises(IncompatibleClient, match="after the fork") as caught:
            bot(call)
        assert isinstance(caught.value, ccxt.NotSupported)
    assert sim.requests() == []
    bot.exchange.session, bot.exchange.own_session = None, True
    bot.exchange.clients = {"url": "the parent's"}
    assert bot("private_post_balance")["error"] == []
    assert bot.exchange.clients == {}
