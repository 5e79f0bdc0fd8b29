"""krakenex with its private calls under the lock."""

from __future__ import annotations

import asyncio
import importlib
import logging
import pickle
import socket
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import krakenex
import pytest
import requests
import urllib3

import kraken_nonce_redis.krakenex as ours
from kraken_nonce_redis import (
    CallLock,
    CallLockError,
    CoolDown,
    HoldTimeout,
    IncompatibleClient,
    InvalidArgument,
    LeaseLost,
    Pace,
    Retries,
    StoreUnavailable,
)
from kraken_nonce_redis.testing import Fault
from tests.support.children import CONTEXT
from tests.support.helpers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.servers import Server

PROCESSES, CALLS = 4, 50
TOTAL = urllib3.Timeout(5)
ORDER = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "20000", "volume": "0.001"}


@pytest.fixture
def api(sim: KrakenSimulator, valkey: Server) -> Iterator[ours.API]:
    """Return our client, on the simulator and Valkey."""
    api = ours.API(sim.key, sim.secret, redis=valkey.url)
    api.uri = sim.url
    yield api
    api.close()


def call_often(module: str, key: str, secret: str, uri: str, redis: str | None) -> list[str]:
    """Make calls, an order every third time; return Kraken's errors."""
    api = importlib.import_module(module).API(key, secret, **({"redis": redis} if redis else {}))
    api.uri = uri
    errors: list[str] = []
    for n in range(CALLS):
        answer = api.query_private("AddOrder", dict(ORDER)) if n % 3 == 0 else api.query_private("Balance")
        errors += answer["error"]
    api.close()
    return errors


class TestCalls:
    """Calls, as krakenex makes them."""

    def test_private(self, api: ours.API, sim: KrakenSimulator) -> None:
        """A private call is answered as ever, with a nonce of 19 digits, and the caller's dict stays as it was."""
        data = dict(ORDER)
        answer = api.query_private("AddOrder", data)
        assert answer["error"] == []
        assert data == ORDER
        (request,) = sim.requests()
        assert (request.method, len(str(request.nonce))) == ("AddOrder", 19)
        assert sim.orders()[0].txid in answer["result"]["txid"]

    def test_public(self, sim: KrakenSimulator) -> None:
        """Public calls need no Redis."""
        api = ours.API(redis="redis://127.0.0.1:1")
        api.uri = sim.url
        assert api.query_public("Time")["error"] == []
        api.close()

    def test_without_key(self, api: ours.API) -> None:
        """A missing key is krakenex's own error, before anything waits."""
        api.key = ""
        with pytest.raises(Exception, match="key or secret is not set"):
            api.query_private("Balance")

    @pytest.mark.parametrize(
        ("key", "secret", "said"),
        [
            ("", "c2VjcmV0", "key: is empty, but the secret is not"),
            ("key", " ", "secret: is empty, but the key is not"),
        ],
    )
    def test_half_a_pair(self, key: str, secret: str, said: str) -> None:
        """A key without its secret, or the other way round, is refused where the client is made or installed."""
        with pytest.raises(InvalidArgument, match=said):
            ours.API(key, secret, redis="redis://127.0.0.1:1")
        with pytest.raises(InvalidArgument, match=said):
            ours.install(krakenex.API(key, secret), redis="redis://127.0.0.1:1")

    @pytest.mark.parametrize("options", [{"object_pairs_hook": tuple}, {"object_hook": lambda _: None}])
    def test_answers_that_are_no_dicts(self, api: ours.API, sim: KrakenSimulator, options: dict[str, Any]) -> None:
        """Whatever krakenex makes of answers by ``json_options``, we have read them before."""
        api.json_options(**options)
        answer = api.query_private("AddOrder", dict(ORDER))
        assert not isinstance(answer, dict)
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        assert api.query_private("AddOrder", dict(ORDER))["result"]["txid"] == [sim.orders()[-1].txid]

    def test_load_key(self, sim: KrakenSimulator, valkey: Server, tmp_path: Any) -> None:
        """The key may come later, from krakenex's file."""
        (tmp_path / "kraken.key").write_text(f"{sim.key}\n{sim.secret}\n")
        api = ours.API(redis=valkey.url)
        api.uri = sim.url
        api.load_key(tmp_path / "kraken.key")
        assert api.query_private("Balance")["error"] == []
        api.close()

    @pytest.mark.parametrize("own_class", [False, True])
    def test_install(self, sim: KrakenSimulator, valkey: Server, own_class: bool) -> None:  # noqa: FBT001
        """An object that is there already, of krakenex's class or a subclass of it, works on with the same session."""

        class Mine(krakenex.API):  # type: ignore[misc]
            def _nonce(self) -> int:
                return 1

        api = (Mine if own_class else krakenex.API)(sim.key, sim.secret)
        api.uri = sim.url
        session = api.session
        assert ours.install(api, redis=valkey.url) is api
        ours.install(api, redis=valkey.url)
        assert [api.query_private("Balance")["error"] for _ in range(2)] == [[], []]
        assert api.session is session
        assert isinstance(api, Mine if own_class else krakenex.API)
        api.close()

    def test_several_calls_in_one_lease(self, api: ours.API, sim: KrakenSimulator, valkey: Server) -> None:
        """Calls inside a hold on the same key are made under it, in order."""
        with CallLock.from_url(valkey.url, sim.key).hold() as lease:
            api.query_private("Balance")
            api.query_private("OpenOrders")
            assert lease.next_nonce() > max(request.nonce or 0 for request in sim.requests())
        assert all(not request.error for request in sim.requests())

    def test_in_coroutines(self, api: ours.API, sim: KrakenSimulator, valkey: Server) -> None:
        """A call in a second task of a thread whose first one holds the lock is refused; it would stop the loop."""
        lock = CallLock.from_url(valkey.url, sim.key)

        async def intrude() -> None:
            with pytest.raises(CallLockError, match="event loop"):
                api.query_private("Balance")

        async def main() -> None:
            with lock.hold():
                await asyncio.create_task(intrude())
                assert api.query_private("Balance")["error"] == []
            assert api.query_private("Balance")["error"] == []

        asyncio.run(main())
        assert len(sim.requests()) == 2

    def test_orders_go_first(self, api: ours.API, sim: KrakenSimulator, valkey: Server) -> None:
        """An order is sent before queries that have waited longer."""
        callers = []
        with CallLock.from_url(valkey.url, sim.key).hold():
            for method in ("Balance", "OpenOrders", "AddOrder"):
                data = dict(ORDER) if method == "AddOrder" else None
                callers.append(threading.Thread(target=api.query_private, args=(method, data)))
                callers[-1].start()
                time.sleep(0.1)
        for caller in callers:
            caller.join()
        assert [request.method for request in sim.requests()] == ["AddOrder", "Balance", "OpenOrders"]


class TestTime:
    """Timeouts and leases."""

    @pytest.mark.parametrize(
        ("timeout", "passed", "longest"),
        [
            (None, 10, 20),
            (2, 2, 4),
            (45, 45, 90),
            ((1, 50), (1, 50), 51),
            ((3.05, None), (3.05, 10), 13.05),
            ((None, None), (10, 10), 20),
            (Decimal(5), 5, 10),
            ((Decimal("3.5"), 6), (3.5, 6), 9.5),
            (TOTAL, TOTAL, 5),
            (urllib3.Timeout(connect=2), (2, 10), 12),
            (urllib3.Timeout(connect=None, read=4), (10, 4), 14),
        ],
    )
    def test_fits_into_the_lease(
        self,
        api: ours.API,
        monkeypatch: pytest.MonkeyPatch,
        valkey: Server,
        *,
        timeout: Any,
        passed: Any,
        longest: float,
    ) -> None:
        """When a request leaves, more is left of its lease than it may take; what has no limit gets one."""
        seen: list[Any] = []

        def send(url: str, **request: Any) -> Any:
            lease = api._guard.lock(api.key).lease
            assert lease is not None
            seen.append((lease.remaining() > longest, request["timeout"]))
            raise requests.ConnectionError

        monkeypatch.setattr(api.session, "post", send)
        ours.install(api, redis=valkey.url, retries=Retries(waits=()))
        with pytest.raises(requests.ConnectionError):
            api.query_private("Balance", timeout=timeout)
        assert set(seen) == {(True, passed)}

    @pytest.mark.parametrize("timeout", [Decimal(5), (3.05, None), (Decimal(3), None), TOTAL, urllib3.Timeout(read=4)])
    def test_as_in_requests(self, api: ours.API, timeout: Any) -> None:
        """Each timeout that requests takes works."""
        assert api.query_private("AddOrder", dict(ORDER), timeout)["error"] == []

    @pytest.mark.parametrize("timeout", ["5", (1, 2, 3), (1, "2"), True, 0, float("inf"), Decimal("nan")])
    def test_no_timeout(self, api: ours.API, sim: KrakenSimulator, timeout: Any) -> None:
        """What is no timeout is refused, and nothing is sent."""
        with pytest.raises(InvalidArgument, match="timeout"):
            api.query_private("AddOrder", dict(ORDER), timeout)
        assert sim.requests() == []

    def test_too_long(self, api: ours.API, sim: KrakenSimulator) -> None:
        """A timeout that no lease can cover is refused, and nothing is sent."""
        with pytest.raises(InvalidArgument):
            api.query_private("Balance", timeout=3000)
        assert sim.requests() == []

    def test_lost_before_sending(self, api: ours.API, sim: KrakenSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that was stopped past its lease while it signed sends nothing."""

        def sign(*_: Any) -> str:
            lease = api._guard.lock(api.key).lease
            assert lease is not None
            lease.grant.deadline = 0.0
            return "signature"

        monkeypatch.setattr(api, "_sign", sign)
        with pytest.raises(LeaseLost):
            api.query_private("AddOrder", dict(ORDER))
        assert sim.requests() == []

    def test_lost_while_waiting_for_the_answer(
        self, api: ours.API, sim: KrakenSimulator, valkey: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The answer to an order that was placed isn't thrown away because its lease was lost meanwhile."""
        sim.configure(latency=(0.2, 0.2))
        threading.Timer(0.2, valkey.client().flushall).start()
        with caplog.at_level(logging.WARNING):
            answer = api.query_private("AddOrder", dict(ORDER))
        assert answer["result"]["txid"]
        eventually(lambda: "was lost while it was held" in caplog.text)

    def test_not_in_time(self, sim: KrakenSimulator, valkey: Server) -> None:
        """A call whose turn doesn't come says so, and is not made."""
        api = ours.API(sim.key, sim.secret, redis=valkey.url, wait_timeout=0.2)
        api.uri = sim.url
        rival = CallLock.from_url(valkey.url, sim.key)
        with rival.hold():
            caught: list[Exception] = []

            def call() -> None:
                try:
                    api.query_private("Balance")
                except HoldTimeout as error:
                    caught.append(error)

            caller = threading.Thread(target=call)
            caller.start()
            caller.join()
        assert len(caught) == 1
        assert sim.requests() == []
        assert type(pickle.loads(pickle.dumps(caught[0]))) is HoldTimeout
        api.close()


class TestCoolDown:
    """What Kraken tells one, all know."""

    def test_rate_limit(self, sim: KrakenSimulator, valkey: Server) -> None:
        """After Kraken's refusal nobody calls for a while; who won't wait that long is told for how long and why."""
        sim.configure(tier="starter")
        one, other = (ours.API(sim.key, sim.secret, redis=valkey.url, wait_timeout=1) for _ in range(2))
        one.uri = other.uri = sim.url
        while not one.query_private("Balance")["error"]:
            pass
        count = len(sim.requests())
        with pytest.raises(CoolDown, match="EAPI:Rate limit exceeded") as caught:
            other.query_private("Balance")
        assert 13 < caught.value.seconds <= 15
        assert len(sim.requests()) == count

    def test_pace(self, sim: KrakenSimulator, valkey: Server) -> None:
        """With a pace Kraken's limit isn't reached, and orders don't count."""
        sim.configure(tier="starter")
        api = ours.API(sim.key, sim.secret, redis=valkey.url, wait_timeout=0, pace=Pace(tier="starter", startup_rate=0))
        api.uri = sim.url
        for _ in range(14):
            api.query_private("Balance")
        with pytest.raises(HoldTimeout, match="counter"):
            api.query_private("Balance")
        api.query_private("AddOrder", dict(ORDER))
        assert all(not request.error for request in sim.requests())
        assert len(sim.requests()) == 15


class TestSettings:
    """What is given, and what is missing."""

    @pytest.mark.parametrize("variable", ["KRAKEN_NONCE_REDIS_URL", "REDIS_URL"])
    def test_environment(
        self, sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        """Without a client or URL, the environment names the Redis."""
        monkeypatch.delenv("KRAKEN_NONCE_REDIS_URL", raising=False)
        monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
        monkeypatch.setenv(variable, valkey.url)
        api = ours.API(sim.key, sim.secret)
        api.uri = sim.url
        assert api.query_private("Balance")["error"] == []
        api.close()

    def test_no_redis(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where there is no Redis named, construction says what to do."""
        monkeypatch.delenv("KRAKEN_NONCE_REDIS_URL", raising=False)
        monkeypatch.delenv("REDIS_URL", raising=False)
        with pytest.raises(InvalidArgument, match="KRAKEN_NONCE_REDIS_URL"):
            ours.API()

    def test_redis_down(self, sim: KrakenSimulator) -> None:
        """With Redis down nothing is sent, and no nonce made up."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        api = ours.API(sim.key, sim.secret, redis=f"redis://127.0.0.1:{port}")
        api.uri = sim.url
        with pytest.raises(StoreUnavailable) as caught:
            api.query_private("Balance")
        assert sim.key not in str(caught.value)
        assert sim.requests() == []

    @pytest.mark.parametrize("options", [{"ttl": 0}, {"call_timeout": 0}, {"scope": "all"}, {"redis": 5}])
    def test_wrong(self, valkey: Server, options: dict[str, Any]) -> None:
        """A wrong setting shows at construction and names itself."""
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            ours.API(**{"redis": valkey.url, **options})


class TestSeam:
    """A krakenex that is put together differently."""

    def test_no_krakenex_object(self) -> None:
        """What is no krakenex.API can't be changed."""
        with pytest.raises(IncompatibleClient, match="object"):
            ours.install(object())

    @pytest.mark.parametrize("seam", ["_nonce", "_query"])
    def test_other_version(self, monkeypatch: pytest.MonkeyPatch, valkey: Server, seam: str) -> None:
        """A version without the seam is refused at construction, by its number, with those that work."""

        def query_private(self: Any, method: str, data: Any = None, timeout: Any = None) -> Any:
            data = {**(data or {}), "nonce": 7 if seam == "_nonce" else self._nonce()}
            return self._query(f"/0/private/{method}", data, {"API-Key": "k"}, timeout) if seam == "_nonce" else data

        monkeypatch.setattr(krakenex.API, "query_private", query_private)
        ours._check_seam.cache_clear()
        try:
            with pytest.raises(IncompatibleClient, match=r"krakenex \d.*known to work: 2\.2\.0"):
                ours.API(redis=valkey.url)
        finally:
            ours._check_seam.cache_clear()


@pytest.mark.test_all
def test_processes(sim: KrakenSimulator, valkey: Server) -> None:
    """Where stock krakenex is refused for its nonces, ours never is, and calls arrive one by one in nonce order."""
    sim.configure(latency=(0.0005, 0.008))
    with ProcessPoolExecutor(PROCESSES, CONTEXT) as processes:

        def run(module: str, redis: str | None) -> list[str]:
            tasks = [
                processes.submit(call_often, module, sim.key, sim.secret, sim.url, redis) for _ in range(PROCESSES)
            ]
            return [error for task in tasks for error in task.result(120)]

        assert "EAPI:Invalid nonce" in run("krakenex", None)
        sim.reset()
        assert run("kraken_nonce_redis.krakenex", valkey.url) == []
    arrived = sim.requests()
    assert len(arrived) == PROCESSES * CALLS
    assert all((a.nonce or 0) < (b.nonce or 0) for a, b in pairwise(arrived))
    assert max(request.in_flight for request in arrived) == 1
