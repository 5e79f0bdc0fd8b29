"""What is done about Kraken's refusals: a nonce pushed by another program, credentials, a lockout; what is logged."""

from __future__ import annotations

import logging
import re
import threading
import time
import traceback
import uuid
from typing import TYPE_CHECKING, Any, Self

import pytest
import redis

from kraken_nonce_redis import CoolDown, NoncePoisoned, OutcomeUnknown, Retries
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.events import KeyPoisoned, NonceRaised
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import SECOND, View
from tests.support.order_bots import BOTS, REFUSALS

if TYPE_CHECKING:
    from tests.support.servers import Server

COUNT = 10
QUICK = Retries(waits=(0.01,) * 4, settle_waits=(0.02, 0.05))
LEAD = {"30 s": 30 * SECOND, "10 min": 600 * SECOND, "a day": 86_400 * SECOND}
SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==")
LOCKOUT = "EGeneral:Temporary lockout"

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


@pytest.fixture(params=BOTS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name each kind of client in turn."""
    return str(request.param)


def access(sim: KrakenSimulator) -> tuple[str, str, str]:
    """Return where the exchange is, a key and its secret."""
    return sim.url, sim.key, sim.secret


class Bots:
    """Ten clients with connections of their own, as different processes have."""

    def __init__(self, sim: KrakenSimulator, valkey: Server) -> None:
        self.events: list[Any] = []
        self.failures: list[Exception] = []
        self._servers = [redis.Redis.from_url(valkey.url) for _ in range(COUNT)]
        self._bots = [
            BOTS["krakenex"](*access(sim), redis=server, retries=QUICK, on_event=self.events.append)
            for server in self._servers
        ]

    def raised(self) -> list[NonceRaised]:
        """Return how often the nonce was raised."""
        return [event for event in self.events if isinstance(event, NonceRaised)]

    def order(self) -> list[str]:
        """Let each of them place an order, all at the same moment; return the txids."""
        begin = threading.Barrier(COUNT)
        txids: list[str] = []

        def work(bot: Any) -> None:
            begin.wait()
            try:
                txids.append(bot.order("limit"))
            except Exception as error:  # noqa: BLE001 - what it is, is the test's
                self.failures.append(error)

        threads = [threading.Thread(target=work, args=[bot]) for bot in self._bots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return txids

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for bot in self._bots:
            bot.close()
        for server in self._servers:
            server.close()


def lead(valkey: Server, sim: KrakenSimulator) -> float:
    """Return how many seconds the last nonce is ahead of the server's clock."""
    state = View(valkey.client(), Keyspace.of("kraken-nonce", sim.key)).state
    return ((state.last or 0) - state.now) / SECOND


class TestPushedNonce:
    """Another program uses the same API key, with a nonce that is ahead."""

    def test_ten_replicas(self, sim: KrakenSimulator, valkey: Server) -> None:
        """Bots that are refused in the same second raise the nonce once, and all of their orders go through."""
        with Bots(sim, valkey) as bots:
            assert len(bots.order()) == COUNT
            sim.raise_nonce(time.time_ns() + LEAD["30 s"])
            assert len(bots.order()) == COUNT
            assert [event.lead for event in bots.raised()] == [60]
            assert 50 < lead(valkey, sim) < 60.1
        assert len({order.cl_ord_id for order in sim.orders()}) == 2 * COUNT
        # One of them was refused twice, the others profited from it.
        assert sum(bool(request.error) for request in sim.requests()) == 2

    def test_ten_replicas_twice(self, sim: KrakenSimulator, valkey: Server) -> None:
        """Where the first step does not suffice, there is a second one for all of them, and no third."""
        with Bots(sim, valkey) as bots:
            bots.order()
            sim.raise_nonce(time.time_ns() + LEAD["10 min"])
            assert len(bots.order()) == COUNT
            assert [event.lead for event in bots.raised()] == [60, 600]
            assert lead(valkey, sim) < 600.1
        assert len(sim.orders()) == 2 * COUNT

    def test_ten_replicas_in_vain(self, sim: KrakenSimulator, valkey: Server) -> None:
        """A nonce that is a day ahead stops all of them, after one attempt at each step."""
        with Bots(sim, valkey) as bots:
            bots.order()
            sim.raise_nonce(time.time_ns() + LEAD["a day"])
            assert bots.order() == []
            assert [type(error) for error in bots.failures] == [NoncePoisoned] * COUNT
            assert [event.lead for event in bots.raised()] == [60, 600, 3600]
        assert len(sim.orders()) == COUNT

    @pytest.mark.parametrize(("ahead", "leads"), [("30 s", [60]), ("10 min", [60, 600]), ("a day", [60, 600, 3600])])
    def test_recovered(self, kind: str, sim: KrakenSimulator, valkey: Server, ahead: str, leads: list[float]) -> None:
        """30 s and 10 min ahead are overcome, a day is not; each client says the same."""
        events: list[Any] = []
        # In a namespace that this process has seen no nonces of.
        options = {"redis": valkey.url, "namespace": f"test-{uuid.uuid4()}", "retries": QUICK}
        with BOTS[kind](*access(sim), on_event=events.append, **options) as bot:
            bot.order("limit")
            sim.raise_nonce(time.time_ns() + LEAD[ahead])
            if ahead == "a day":
                with pytest.raises(NoncePoisoned, match="Another program") as caught:
                    bot.order("limit")
                assert 3500 * SECOND < caught.value.lead < 3700 * SECOND
            else:
                assert bot.order("limit")
        assert [type(event) for event in events] == [NonceRaised] * len(leads) + [KeyPoisoned] * (ahead == "a day")
        assert [event.lead for event in events[: len(leads)]] == leads
        assert len(sim.orders()) == 1 + (ahead != "a day")


class TestNeverAgain:
    """Refusals after which a call is not repeated."""

    @pytest.mark.parametrize("what", ["key", "secret", "permission"])
    @pytest.mark.parametrize("method", ["balance", "order"])
    def test_credentials(self, kind: str, sim: KrakenSimulator, valkey: Server, what: str, method: str) -> None:
        """Whoever has no valid credentials hears that at once, and Kraken hears of it once."""
        uri, key, secret = access(sim)
        if what == "key":
            key = "wrong" + key[5:]
        elif what == "secret":
            secret = "AAAA" + secret[4:]
        with BOTS[kind](uri, key, secret, redis=valkey.url, retries=QUICK) as bot:
            if method == "order" and hasattr(bot.client, "load_markets"):
                bot.run(bot.client.load_markets())
            if what == "permission":
                sim.configure(faults=[Fault("EGeneral:Permission denied", "reading")])
            try:
                answer = bot.balance() if method == "balance" else bot.order("limit")
            except REFUSALS:
                pass
            else:
                assert not answer or answer["error"]
        assert len(sim.requests()) == 1

    def test_lockout(self, kind: str, sim: KrakenSimulator, valkey: Server) -> None:
        """A lockout that one client hears of stops all of the key: orders too, and the questions after a lost one."""
        options = {"redis": valkey.url, "retries": QUICK, "wait_timeout": 1}
        with BOTS[kind](*access(sim), **options) as bot, BOTS["krakenex"](*access(sim), **options) as other:
            if hasattr(bot.client, "load_markets"):
                bot.run(bot.client.load_markets())
            sim.configure(
                faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1]), Fault(LOCKOUT, "reading")]
            )
            with pytest.raises(OutcomeUnknown, match=LOCKOUT):
                bot.order("limit")
            assert [request.method for request in sim.requests()] == ["AddOrder", "GetApiKeyInfo"]
            for call in (bot.balance, lambda: bot.order("limit"), other.balance, lambda: other.order("market")):
                with pytest.raises(CoolDown, match=LOCKOUT) as caught:
                    call()
                assert 800 < caught.value.seconds <= 900
        assert len(sim.requests()) == 2


class TestSecrets:
    """Logs at DEBUG and exceptions hold no secret, no signature and no full API key."""

    @pytest.mark.long
    def test_nothing_shown(
        self, kind: str, sim: KrakenSimulator, valkey: Server, caplog: pytest.LogCaptureFixture, capfd: Any
    ) -> None:
        """Whatever goes wrong: of all loggers, ours and those of the libraries below, none shows them."""
        raised: list[BaseException] = []
        with caplog.at_level(logging.DEBUG):
            options = {"redis": valkey.url, "retries": QUICK, "call_timeout": 0.3, "wait_timeout": 1}
            with BOTS[kind](*access(sim), on_event=print, **options) as bot:
                bot.order("limit")
                for fault in (
                    Fault("cut", "reading", methods=["AddOrder"]),
                    Fault("cut", "answering"),
                    Fault("502", "acting"),
                    Fault("EService:Unavailable", "answering"),
                    Fault("slow", "reading", seconds=0.5),
                    Fault("EAPI:Invalid signature", "reading"),
                    Fault("EAPI:Invalid nonce", "reading"),
                    Fault(LOCKOUT, "reading"),
                ):
                    sim.configure(faults=[fault])
                    for call in (lambda: bot.order("limit"), bot.balance):
                        try:
                            call()
                        except Exception as error:  # noqa: BLE001 - all kinds are shown
                            raised.append(error)
            for name in ("NotCarriedOut", "OutcomeUnknown", "NoncePoisoned", "CoolDown"):
                assert any(type(error).__name__ == name for error in raised), name
        shown = [record.getMessage() for record in caplog.records]
        shown += [repr(record.args) for record in caplog.records]
        shown += ["".join(traceback.format_exception(error)) for error in raised]
        shown += [f"{error!r} {vars(error)}" for error in raised if not isinstance(error, REFUSALS)]
        shown += [f"{event}" for event in capfd.readouterr()]
        shown += [f"{bot.client!r} {bot.client._guard!r}"]
        text = "\n".join(shown)
        assert "kraken_nonce_redis" in {record.name for record in caplog.records}
        assert "AddOrder" in text
        assert sim.key not in text
        assert sim.secret not in text
        assert sim.key[:12] not in text
        assert sim.secret[:12] not in text
        assert SIGNATURE.search(text) is None
