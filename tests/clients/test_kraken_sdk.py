"""python-kraken-sdk under the lock: no refusal in any number of processes, and otherwise the SDK as it was."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import sys
import threading
import time
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
import pytest
import requests
import urllib3
from kraken import exceptions, spot

from kraken_nonce_redis import (
    CallLock,
    CallLockError,
    CoolDown,
    HoldTimeout,
    IncompatibleClient,
    LeaseLost,
    kraken_sdk,
    krakenex,
)
from kraken_nonce_redis._calls.call import Heard
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from kraken_nonce_redis.pace import Pace, Tier
from kraken_nonce_redis.retries import Retries
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.children import CONTEXT
from tests.support.helpers import View, eventually
from tests.support.tiers import by_tier, in_test_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Barrier

    from kraken_nonce_redis.testing import SimulatedRequest
    from tests.support.servers import Server

SPREAD = (0.0, 0.01)
NOWHERE = "redis://127.0.0.1:9/0"
ORDER: dict[str, Any] = {"ordertype": "limit", "side": "buy", "pair": "XBTUSD", "volume": "0.001", "price": "100.0"}
FORM: dict[str, Any] = {"ordertype": "limit", "type": "buy", "pair": "XBTUSD", "volume": "0.001", "price": "100.0"}

Kind = Literal["stock", "stock async", "krakenex", "sync", "async", "token"]


ORDERS = by_tier(10, 25, 50)
"""For each process."""


@pytest.fixture
def access(sim: KrakenSimulator, valkey: Server) -> dict[str, Any]:
    """Return what each client of ours is made with."""
    return {"key": sim.key, "secret": sim.secret, "url": sim.url, "redis": valkey.url}


@contextlib.asynccontextmanager
async def closing(client: Any) -> Any:
    """Close a client for asyncio; before 3.1.6, the SDK calls that differently."""
    try:
        yield client
    finally:
        await (client.close if hasattr(client, "close") else client.async_close)()


def awaited(make: Callable[[], Any], use: Callable[[Any], Any]) -> Any:
    """Make a client for asyncio in a loop of its own, await what is done with it, and close it."""

    async def main() -> Any:
        async with closing(make()) as client:
            return await use(client)

    return asyncio.run(main())


def called(make: Callable[[], Any], use: Callable[[Any], Any]) -> Any:
    """Do the same with a client that is not for asyncio."""
    return use(make())


def ask_balance(user: Any) -> Any:
    """Make the simplest private call."""
    return user.get_account_balance()


def ask_order(trade: Any) -> Any:
    """Place an order."""
    return trade.create_order(**ORDER)


def asking(verb: str, uri: str, client: Any) -> Any:
    """Make any call."""
    return client.request(verb, uri)


def wrong_order(seen: list[SimulatedRequest]) -> int:
    """Count the requests that arrived after one with a higher nonce."""
    nonces = [request.nonce or 0 for request in seen]
    return sum(max(nonces[:place], default=0) >= nonce for place, nonce in enumerate(nonces))


def assert_in_turn(seen: list[SimulatedRequest], count: int) -> None:
    """Assert that so many requests were accepted, one at a time, in the order of their nonces."""
    assert [request.error for request in seen if request.error] == []
    assert len(seen) == count
    assert all(a.nonce < b.nonce for a, b in pairwise(seen) if a.nonce and b.nonce)
    assert max(request.in_flight for request in seen) == 1


# Other processes


def place_orders(kind: Kind, access: dict[str, Any], count: int) -> None:
    """Place orders one after the other; one that is refused for its nonce is the exchange's to count."""
    stock = {name: value for name, value in access.items() if name != "redis"}
    if kind == "krakenex":
        with contextlib.closing(krakenex.API(access["key"], access["secret"], redis=access["redis"])) as api:
            api.uri = access["url"]
            for _ in range(count):
                api.query_private("AddOrder", FORM)
        return
    trade = spot.Trade(**stock) if kind == "stock" else kraken_sdk.Trade(**access)
    for _ in range(count):
        with contextlib.suppress(exceptions.KrakenInvalidNonceError):
            trade.create_order(**ORDER)


async def place_orders_in_tasks(kind: Kind, access: dict[str, Any], count: int) -> None:
    """Place orders from five tasks at once, or ask for tokens."""
    stock = {name: value for name, value in access.items() if name != "redis"}

    async def one(client: Any) -> None:
        for _ in range(count // 5):
            with contextlib.suppress(exceptions.KrakenInvalidNonceError):
                if kind == "stock async":
                    await client.request("POST", "/0/private/AddOrder", params=dict(FORM))
                elif kind == "token":
                    await client.get_ws_token()
                else:
                    await client.create_order(**ORDER)

    if kind == "stock async":
        client: Any = spot.SpotAsyncClient(**stock)
    elif kind == "token":
        client = kraken_sdk.SpotWSClient(access["key"], access["secret"], redis=access["redis"])
        client.URL = access["url"]
    else:
        client = kraken_sdk.AsyncTrade(**access)
    async with closing(client):
        await asyncio.gather(*(one(client) for _ in range(5)))


def worker(kind: Kind, access: dict[str, Any], count: int, together: Barrier) -> None:
    """Do one process's part."""
    together.wait(60)
    if kind in ("async", "stock async", "token"):
        asyncio.run(place_orders_in_tasks(kind, access, count))
    else:
        place_orders(kind, access, count)


def run_processes(kinds: list[Kind], access: dict[str, Any], count: int) -> None:
    """Run a process of each kind; all begin at once."""
    together = CONTEXT.Barrier(len(kinds))
    processes = [CONTEXT.Process(target=worker, args=(kind, access, count, together), daemon=True) for kind in kinds]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(kinds)


class TestProcesses:
    """What the adapter is for."""

    @pytest.mark.parametrize(("stock", "ours"), [("stock async", "async"), *in_test_all(("stock", "sync"))])
    def test_four_processes(self, sim: KrakenSimulator, access: dict[str, Any], stock: Kind, ours: Kind) -> None:
        """Four bots place orders with one key: the stock client is refused, this one not once."""
        sim.configure(latency=SPREAD)
        run_processes([stock] * 4, access, ORDERS)
        seen = sim.requests()
        assert len(seen) == 4 * ORDERS
        assert sum(request.error == ("EAPI:Invalid nonce",) for request in seen) == wrong_order(seen) > 0
        assert max(request.in_flight for request in seen) > 1

        sim.reset()
        run_processes([ours] * 4, access, ORDERS)
        assert_in_turn(sim.requests(), 4 * ORDERS)
        assert [order.nonce for order in sim.orders()] == [request.nonce for request in sim.requests()]

    @pytest.mark.test_all
    def test_mixed_clients(self, sim: KrakenSimulator, access: dict[str, Any]) -> None:
        """Bots on krakenex, on the SDK, on the SDK with asyncio and a websocket client share a key in peace."""
        sim.configure(latency=SPREAD)
        run_processes(["krakenex", "sync", "async", "token"], access, 40)
        seen = sim.requests()
        assert_in_turn(seen, 160)
        assert sum(request.method == "GetWebSocketsToken" for request in seen) == 40


PRIVATE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "User": ("BalanceEx", lambda user: user.get_balance("USD")),
    "Trade": ("AddOrder", lambda trade: trade.create_order(**ORDER)),
    "Funding": ("DepositMethods", lambda funding: funding.get_deposit_methods("XBT")),
    "Earn": ("Earn/Allocations", lambda earn: earn.list_earn_allocations()),
}


@pytest.mark.filterwarnings("ignore:.*deprecated Kraken endpoint:DeprecationWarning")
@pytest.mark.parametrize("name", PRIVATE)
class TestPrivateCalls:
    """Each client's private calls."""

    def test_sync(self, sim: KrakenSimulator, access: dict[str, Any], name: str) -> None:
        """A private call gives what it gives with the SDK alone, and goes out with a nonce of ours."""
        method, call = PRIVATE[name]
        given = call(getattr(kraken_sdk, name)(**access))
        (request,) = sim.requests()
        assert (request.method, request.error, len(str(request.nonce))) == (method, (), 19)
        sim.reset()
        stock = {option: value for option, value in access.items() if option != "redis"}
        expected = call(getattr(spot, name)(**stock))
        assert {**given, "txid": 0} == {**expected, "txid": 0} if isinstance(given, dict) else given == expected

    def test_async(self, sim: KrakenSimulator, access: dict[str, Any], name: str) -> None:
        """The same call, awaited, gives the same result."""
        method, call = PRIVATE[name]
        given = awaited(lambda: getattr(kraken_sdk, f"Async{name}")(**access), call)
        (request,) = sim.requests()
        assert (request.method, request.error, len(str(request.nonce))) == (method, (), 19)
        sim.reset()
        expected = call(getattr(kraken_sdk, name)(**access))
        assert {**given, "txid": 0} == {**expected, "txid": 0} if isinstance(given, dict) else given == expected


class TestOwnClasses:
    """The mixins, in classes of the user's."""

    def test_sync(self, sim: KrakenSimulator, access: dict[str, Any]) -> None:
        """A class of the SDK with the mixin before it has its calls under the lock, JSON bodies included."""

        class MyTrade(kraken_sdk.KrakenNonceMixin, spot.Trade):
            """A user's class."""

        trade = MyTrade(**access)
        first, second = (trade.create_order(**ORDER)["txid"][0] for _ in range(2))
        assert trade.cancel_order_batch([first, second]) == {"count": 2}
        assert_in_turn(sim.requests(), 3)

    def test_async(self, sim: KrakenSimulator, access: dict[str, Any]) -> None:
        """So has a class made of the mixin, a class of the SDK and the SDK's asyncio client."""

        class MyEarn(kraken_sdk.AsyncKrakenNonceMixin, spot.Earn, spot.SpotAsyncClient):
            """A user's class."""

        async def use(earn: Any) -> Any:
            return await asyncio.gather(*(earn.list_earn_allocations() for _ in range(3)))

        assert len(awaited(lambda: MyEarn(**access), use)) == 3
        assert_in_turn(sim.requests(), 3)

    def test_request(self, sim: KrakenSimulator, access: dict[str, Any]) -> None:
        """Endpoints that the SDK has no method for are under the lock as well; the caller's dict stays as it was."""
        params = {"asset": "XBT"}
        ask = {"method": "POST", "uri": "/0/private/DepositMethods", "params": params, "extra_params": {"aclass": "x"}}
        expected = kraken_sdk.SpotClient(**access).request(**ask)  # type: ignore[arg-type]
        assert awaited(lambda: kraken_sdk.SpotAsyncClient(**access), lambda client: client.request(**ask)) == expected
        assert params == {"asset": "XBT"}
        assert_in_turn(sim.requests(), 2)


class TestPublicCalls:
    """Calls without a nonce."""

    def test_need_no_redis(self, sim: KrakenSimulator) -> None:
        """Public calls work while Redis is away, since they have nothing to wait for."""
        market = kraken_sdk.Market(sim.key, sim.secret, url=sim.url, redis=NOWHERE)
        assert set(market.get_assets(assets=["XBT", "ETH"])) == {"XXBT", "XETH"}
        assert market.get_system_status()["status"] == "online"
        assert sim.requests() == []

    def test_async_again(self, sim: KrakenSimulator) -> None:
        """What the SDK caches can be awaited as often as one likes."""

        async def use(market: Any) -> Any:
            return [
                [set(await market.get_assets(assets=["XBT", "ETH"])) for _ in range(2)],
                [list(await market.get_asset_pairs(pair=["XBTUSD"])) for _ in range(2)],
                (await market.get_system_status())["status"],
            ]

        seen = awaited(lambda: kraken_sdk.AsyncMarket(sim.key, sim.secret, url=sim.url, redis=NOWHERE), use)
        assert seen == [[{"XXBT", "XETH"}] * 2, [["XXBTZUSD"]] * 2, "online"]


class TestLease:
    """The lock is held for as long as a request can take, and nothing is sent without it."""

    @pytest.mark.long
    @pytest.mark.parametrize("option", [{"call_timeout": 20}, {}], ids=["call_timeout", "TIMEOUT"])
    @pytest.mark.parametrize(
        ("call", "client", "expected"),
        [(called, kraken_sdk.User, 40.0), (awaited, kraken_sdk.AsyncUser, 21.0)],
        ids=["sync", "async"],
    )
    def test_long_timeout(
        self,
        access: dict[str, Any],
        *,
        sim: KrakenSimulator,
        valkey: Server,
        call: Any,
        client: Any,
        expected: float,
        option: dict[str, Any],
    ) -> None:
        """A client that may wait 20 s for its answer has its key for all that time, whatever the ttl."""
        sim.configure(latency=(0.5, 0.5))
        patient = type("Patient", (client,), {} if option else {"TIMEOUT": 20})
        view = View(valkey.client(), Keyspace.of("kraken-nonce", sim.key))
        calling = threading.Thread(target=call, args=(lambda: patient(**access, **option, ttl=3.0), ask_balance))
        calling.start()
        left = eventually(lambda: (left := view.state.left) > 3.0 and left)
        calling.join()
        assert expected - 10 < left <= expected + 1.1
        view.assert_nothing_left()

    def test_a_file(self) -> None:
        """The file of RetrieveExport is a result, unlike an answer without one and unlike a page."""
        answer = kraken_sdk._raw_answer("RetrieveExport", 200, b"PK\x03\x04")
        assert answer is not None
        assert not Heard(answer=answer).lacks_result
        assert kraken_sdk._raw_answer("RetrieveExport", 429, b"<html>") is None

    @pytest.mark.parametrize("timeout", [Decimal(5), (3.05, None), urllib3.Timeout(5), urllib3.Timeout(read=4), None])
    def test_as_in_requests(self, access: dict[str, Any], timeout: Any) -> None:
        """Each timeout that requests takes works, for a call and as ``TIMEOUT``."""
        trade = kraken_sdk.Trade(**access)
        assert trade.request("POST", "/0/private/AddOrder", dict(FORM), timeout)["txid"]
        trade.TIMEOUT = timeout
        for _ in range(2):  # over the same connection
            assert trade.create_order(**ORDER)["txid"]

    @pytest.mark.parametrize(
        "timeout", [Decimal(5), None, aiohttp.ClientTimeout(5), aiohttp.ClientTimeout(), urllib3.Timeout(5)]
    )
    def test_as_in_aiohttp(self, access: dict[str, Any], timeout: Any) -> None:
        """Each timeout that aiohttp takes works for a call, and of urllib3's the total."""

        async def use(trade: Any) -> None:
            assert (await trade.request("POST", "/0/private/AddOrder", dict(FORM), timeout))["txid"]

        awaited(lambda: kraken_sdk.AsyncTrade(**access), use)

    @pytest.mark.long
    @pytest.mark.parametrize(("call", "client"), [(called, kraken_sdk.User), (awaited, kraken_sdk.AsyncUser)])
    def test_call_timeout(self, valkey: Server, call: Any, client: Any) -> None:
        """``call_timeout`` is when a call gives up, and the key is free at once."""
        with KrakenSimulator(latency=(1.5, 1.5)) as slow:
            options = {"key": slow.key, "secret": slow.secret, "url": slow.url, "redis": valkey.url}
            with pytest.raises((TimeoutError, requests.Timeout)):
                call(lambda: client(**options, call_timeout=0.2, retries=Retries(waits=())), ask_balance)
            with CallLock.from_url(valkey.url, slow.key).hold(timeout=0):
                pass

    @pytest.mark.parametrize(
        ("call", "bases"),
        [
            (called, (kraken_sdk.KrakenNonceMixin, spot.User)),
            (awaited, (kraken_sdk.AsyncKrakenNonceMixin, spot.User, spot.SpotAsyncClient)),
        ],
        ids=["sync", "async"],
    )
    def test_nothing_leaves_too_late(self, sim: KrakenSimulator, access: dict[str, Any], call: Any, bases: Any) -> None:
        """A process that was stopped between nonce and request does not send what it can't finish in its lease."""

        def get_nonce(user: Any) -> Any:
            nonce = bases[0].get_nonce(user)
            time.sleep(1.2)
            return nonce

        stopped = type("Stopped", bases, {"get_nonce": get_nonce})
        with pytest.raises(LeaseLost, match="send nothing"):
            call(lambda: stopped(**access, ttl=1.5, call_timeout=0.5), ask_balance)
        assert sim.requests() == []

    def test_busy(self, sim: KrakenSimulator, access: dict[str, Any]) -> None:
        """While another holds the key, a call waits, and after ``wait_timeout`` gives up with nothing sent."""
        ws = kraken_sdk.SpotWSClient
        options = {"wait_timeout": 0.2, "redis": access["redis"]}
        with CallLock.from_url(access["redis"], sim.key).hold():
            with pytest.raises(HoldTimeout):
                awaited(lambda: ws(access["key"], access["secret"], **options), lambda client: client.get_ws_token())
            other = threading.Thread(target=self.expect_timeout, args=(access,))
            other.start()
            other.join()
        assert sim.requests() == []

    @staticmethod
    def expect_timeout(access: dict[str, Any]) -> None:
        """Make a call that must not get the key."""
        with pytest.raises(HoldTimeout):
            kraken_sdk.User(**access, wait_timeout=0.2).get_account_balance()

    @pytest.mark.parametrize(("call", "client"), [(called, "Trade"), (awaited, "AsyncTrade")])
    def test_pace(self, access: dict[str, Any], *, sim: KrakenSimulator, call: Any, client: str) -> None:
        """A query waits while Kraken's counter is full; an order costs nothing of it and goes out at once."""
        pace = Pace(tier=Tier(maximum=2, decay=0.01))
        make = functools.partial(getattr(kraken_sdk, client), **access, pace=pace, wait_timeout=0.2)
        query = functools.partial(asking, "POST", "/0/private/Balance")
        call(make, query)
        with pytest.raises(HoldTimeout):
            call(make, query)
        call(make, ask_order)
        assert [request.method for request in sim.requests()] == ["Balance", "AddOrder"]

    def test_several_calls(self, sim: KrakenSimulator, access: dict[str, Any]) -> None:
        """Who holds the lock for several calls makes them all, and nobody comes between."""
        with CallLock.from_url(access["redis"], sim.key).hold():
            user = kraken_sdk.User(**access, wait_timeout=0)
            for _ in range(3):
                user.get_account_balance()

        async def use(user: Any) -> None:
            async with AsyncCallLock.from_url(access["redis"], sim.key).hold():
                for _ in range(3):
                    await user.get_account_balance()

        awaited(lambda: kraken_sdk.AsyncUser(**access, wait_timeout=0), use)
        assert_in_turn(sim.requests(), 6)

    def test_nonce_alone(self, access: dict[str, Any]) -> None:
        """A nonce without a request under the lock, which would only get refused, is not given."""
        with pytest.raises(CallLockError, match="request"):
            kraken_sdk.User(**access).get_nonce()

    def test_without_credentials(self, sim: KrakenSimulator, valkey: Server) -> None:
        """A client without a key says so as the SDK does."""
        with pytest.raises(ValueError, match="credentials"):
            kraken_sdk.User(url=sim.url, redis=valkey.url).get_account_balance()


@pytest.mark.parametrize(("call", "client"), [(called, "Trade"), (awaited, "AsyncTrade")])
class TestErrors:
    """What Kraken refuses."""

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"volume": "1000000000"}, "EOrder:Insufficient funds"),
            ({"pair": "NONE"}, "EQuery:Unknown asset pair"),
        ],
    )
    def test_as_in_the_sdk(
        self, access: dict[str, Any], *, call: Any, client: str, change: dict[str, Any], expected: str
    ) -> None:
        """A refusal raises what it raises with the SDK alone, and the next call goes through."""

        def use(trade: Any) -> Any:
            return trade.create_order(**ORDER | change)

        with pytest.raises(exceptions._get_exception([expected]), match=expected):  # type: ignore[arg-type]
            call(lambda: getattr(kraken_sdk, client)(**access), use)
        call(lambda: getattr(kraken_sdk, client)(**access), lambda trade: trade.create_order(**ORDER))

    def test_cool_down(self, sim: KrakenSimulator, access: dict[str, Any], *, call: Any, client: str) -> None:
        """After an answer that says so, known to the SDK or not, no call of the key starts for a while."""
        for error in ("EGeneral:Temporary lockout", "EService:Throttled"):
            lock = CallLock.from_url(access["redis"], access["key"])
            sim.configure(faults=[Fault(error, "reading")])
            with contextlib.suppress(exceptions.KrakenTemporaryLockoutError):
                call(lambda: getattr(kraken_sdk, client)(**access, retries=Retries(waits=())), ask_order)
            with pytest.raises(CoolDown):
                call(lambda: getattr(kraken_sdk, client)(**access, wait_timeout=0.1), ask_order)
            lock.cool_down(0, "over")


class TestLoop:
    """asyncio's loop goes on."""

    def test_is_not_blocked(self, sim: KrakenSimulator, access: dict[str, Any]) -> None:
        """Neither waiting for the key nor asking for a pair's digits stops the program's other tasks."""
        lock = CallLock.from_url(access["redis"], sim.key)
        held, gaps = threading.Event(), [0.0]

        def hold() -> None:
            with lock.hold():
                held.set()
                time.sleep(1.0)

        async def tick() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.005)
                gaps.append(time.monotonic() - before)

        async def use(trade: Any) -> Any:
            trade._Trade__market.URL = sim.url
            ticking = asyncio.create_task(tick())
            await asyncio.sleep(0.05)
            result = await trade.create_order(**ORDER | {"volume": 0.00123456789}, truncate=True)
            ticking.cancel()
            return result

        sim.configure(latency=(0.4, 0.4))
        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        started = time.monotonic()
        result = awaited(lambda: kraken_sdk.AsyncTrade(**access), use)
        holder.join()
        assert time.monotonic() - started > 1.5
        assert "0.00123456" in result["descr"]["order"]
        assert len(gaps) > 20
        assert max(gaps) < 1.2


class TestIncompatible:
    """An SDK that is put together differently."""

    @pytest.fixture(autouse=True)
    def probe_again(self) -> Iterator[None]:
        """Forget what was found out about the SDK, before and after."""
        kraken_sdk._check_seam.cache_clear()
        yield
        kraken_sdk._check_seam.cache_clear()

    @pytest.mark.parametrize("method", ["request", "_prepare_request"])
    @pytest.mark.parametrize("name", ["User", "AsyncUser", "SpotWSClient", "Market"])
    def test_seam(self, monkeypatch: pytest.MonkeyPatch, method: str, name: str) -> None:
        """A version whose nonces can't be replaced is refused when a client is made, not at the first order."""
        monkeypatch.setattr(spot.SpotClient, method, lambda *_, **__: ("POST", "", {}, {}, ""))
        version = importlib.metadata.version("python-kraken-sdk")
        with pytest.raises(IncompatibleClient, match=rf"python-kraken-sdk {version}: .*known to work: 3\.0\.0 to"):
            getattr(kraken_sdk, name)("key", "c2VjcmV0", redis=NOWHERE)

    def test_async_seam(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So is one where this holds for asyncio's clients alone."""
        monkeypatch.setattr(spot.SpotAsyncClient, "request", lambda *_, **__: None)
        with pytest.raises(IncompatibleClient):
            kraken_sdk.User("key", "c2VjcmV0", redis=NOWHERE)

    def test_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A version from before 3.0 is refused as soon as the adapter is imported."""
        monkeypatch.delattr(spot, "SpotAsyncClient")
        monkeypatch.delitem(sys.modules, "kraken_nonce_redis.kraken_sdk")
        with pytest.raises(IncompatibleClient, match="known to work"):
            importlib.import_module("kraken_nonce_redis.kraken_sdk")

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the SDK, the adapter says which extra to install."""
        monkeypatch.setitem(sys.modules, "kraken", None)
        monkeypatch.delitem(sys.modules, "kraken_nonce_redis.kraken_sdk")
        with pytest.raises(ImportError, match=r"kraken-nonce-redis\[kraken-sdk\]"):
            importlib.import_module("kraken_nonce_redis.kraken_sdk")
