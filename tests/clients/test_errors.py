"""What the clients raise: whether the call was carried out, and from ccxt's adapters what it is to ccxt."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from typing import TYPE_CHECKING, Any

import ccxt
import pytest

import kraken_nonce_redis.ccxt.async_support
from kraken_nonce_redis import CallLock, Durability, Retries, errors
from kraken_nonce_redis import krakenex as our_krakenex
from kraken_nonce_redis._core.lease import LeaseCore
from kraken_nonce_redis.ccxt import errors as combined
from kraken_nonce_redis.errors import KrakenNonceError
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import SECOND
from tests.support.order_bots import BOTS, Bot, Ccxt, form

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import PrivateServer
    from tests.support.faces import Face
    from tests.support.servers import Server

NOWHERE = "redis://127.0.0.1:1"
ONCE = Retries(waits=(), settle_waits=(0.02, 0.06))
CUT = Fault("cut", "reading", methods=["AddOrder"])
DEAF = [CUT, Fault("cut", "reading", methods=["OpenOrders", "ClosedOrders"])]
BUSY = [Fault("EOrder:Rate limit exceeded", "reading", methods=["AddOrder", "Balance"])]

TO_CCXT = {
    "HoldTimeout": ccxt.RequestTimeout,
    "CoolDown": ccxt.RateLimitExceeded,
    "StoreUnavailable": ccxt.ExchangeNotAvailable,
    "NotDurable": ccxt.ExchangeNotAvailable,
    "ShuttingDown": ccxt.ExchangeNotAvailable,
    "LeaseLost": ccxt.ExchangeNotAvailable,
    "InvalidArgument": ccxt.BadRequest,
    "IncompatibleClient": ccxt.NotSupported,
    "OutcomeUnknown": ccxt.BaseError,
}
"""What each is to ccxt; all others are plain ExchangeErrors."""

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20, own=True),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


def kinds() -> list[type[KrakenNonceError]]:
    """Return all errors of ours."""
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KrakenNonceError)]


def example(kind: type[KrakenNonceError]) -> KrakenNonceError:
    """Return an error of a kind with a field of its own, as an adapter for ccxt raises it."""
    error = errors._restore(kind, ("text", "key"), {"seconds": 1.5, "carried_out": None})
    with pytest.raises(kind) as caught, combined.as_ccxt():
        raise error
    assert caught.value is error
    return error


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_by_kind(kind: type[KrakenNonceError]) -> None:
    """Each of ours is what the table says to ccxt and no more, is still caught as ours, and survives its travels."""
    error = example(kind)
    theirs = [base for base in type(error).__mro__ if base.__module__ == "ccxt.base.errors"]
    assert theirs[0] is TO_CCXT.get(kind.__name__, ccxt.ExchangeError)
    assert (type(error).__name__, type(error).__mro__[1]) == (kind.__name__, kind)
    for duplicate in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(duplicate) is type(error)
        assert (str(duplicate), repr(duplicate), vars(duplicate)) == (str(error), repr(error), vars(error))
    assert kind.carried_out is (None if kind.__name__ in {"OutcomeUnknown", "CallUnsettled"} else False)


def order(bot: Bot) -> Any:
    """Place an order by its form: ccxt's own methods ask for the markets first."""
    if isinstance(bot, Ccxt):
        return bot.run(bot.client.private_post_addorder(form("limit")))
    return bot.order("limit")


def in_time(bot: Bot, lock: CallLock, call: Callable[[Bot], Any]) -> Any:
    """Make a call while another thread holds the lock."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.hold():
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    try:
        return call(bot)
    finally:
        done.set()
        holder.join()


class Situations:
    """What makes a call of a bot fail: each changes the exchange or the server, and makes the call."""

    def __init__(self, sim: KrakenSimulator, valkey: Server, lock: CallLock) -> None:
        self.sim, self.valkey, self.lock = sim, valkey, lock
        self.settings: dict[str, Any] = {"redis": valkey.url, "retries": ONCE, "wait_timeout": 0.3}

    def hold_timeout(self, bot: Bot) -> None:
        """Call while the lock is held."""
        in_time(bot, self.lock, order)

    def cool_down(self, bot: Bot) -> None:
        """Call while Kraken wants a pause."""
        self.lock.cool_down(60, "EAPI:Rate limit exceeded")
        order(bot)

    def store_unavailable(self, bot: Bot) -> None:
        """Call without a Redis."""
        order(bot)

    def foreign_value(self, bot: Bot) -> None:
        """Call where another program has written into Redis."""
        self.valkey.client().set(self.lock.keys.state, "mine")
        order(bot)

    def lease_lost(self, bot: Bot) -> None:
        """Call when the lease is gone before it can be made long enough for the call."""
        extension = LeaseCore._extension

        def gone(lease: Any, *args: Any, **kwargs: Any) -> Any:
            self.valkey.client().flushall()
            return extension(lease, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LeaseCore, "_extension", gone)
            order(bot)

    def nonce_poisoned(self, bot: Bot) -> None:
        """Call when another program has used the key, a day ahead."""
        self.sim.raise_nonce(time.time_ns() + 86_400 * SECOND)
        order(bot)

    def outcome_unknown(self, bot: Bot) -> None:
        """Call when neither the order nor a question is answered."""
        self.sim.configure(faults=DEAF)
        order(bot)

    def not_carried_out(self, bot: Bot) -> None:
        """Call when the order gets lost."""
        self.sim.configure(faults=[CUT])
        order(bot)

    def not_durable(self, bot: Bot) -> None:
        """Call where there is no replica."""
        order(bot)


SITUATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "hold_timeout": ("HoldTimeout", {}),
    "cool_down": ("CoolDown", {}),
    "store_unavailable": ("StoreUnavailable", {"redis": NOWHERE}),
    "foreign_value": ("ForeignValue", {}),
    "lease_lost": ("LeaseLost", {"ttl": 1, "call_timeout": 5}),
    "nonce_poisoned": ("NoncePoisoned", {"retries": Retries(waits=(0.01,) * 4), "wait_timeout": 10}),
    "outcome_unknown": ("OutcomeUnknown", {}),
    "not_carried_out": ("NotCarriedOut", {}),
    "not_durable": ("NotDurable", {"durable": Durability(every_nonce=True, timeout=0.1)}),
}
"""Of each, the error and the bot's settings."""


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("bot", BOTS)
def test_what_calls_raise(sim: KrakenSimulator, valkey: Server, bot: str, situation: str) -> None:
    """An order's error is one of ours and says whether the order was placed; from ccxt's adapters it is ccxt's, too."""
    name, settings = SITUATIONS[situation]
    situations = Situations(sim, valkey, CallLock.from_url(valkey.url, sim.key))
    with (
        BOTS[bot](sim.url, sim.key, sim.secret, **situations.settings | settings) as made,
        pytest.raises(getattr(errors, name)) as caught,
    ):
        getattr(situations, situation)(made)
    error = caught.value
    assert type(error).__name__ == name
    assert error.carried_out is (None if name == "OutcomeUnknown" else False)
    assert isinstance(error, ccxt.BaseError) is issubclass(BOTS[bot], Ccxt)
    if isinstance(error, ccxt.BaseError):
        assert type(error) is getattr(combined, name)
    assert sim.orders() == []


@pytest.mark.parametrize("module", [kraken_nonce_redis.ccxt, kraken_nonce_redis.ccxt.async_support])
def test_clients_that_cannot_be_made(module: Any) -> None:
    """What is wrong with the settings is an error of ccxt as well, for programs that know no other."""
    for config in ({"redis": "http://localhost"}, {"redis": NOWHERE, "ttl": 0}, {"redis": NOWHERE, "apiKey": "a\nb"}):
        with pytest.raises(ccxt.BadRequest) as caught:
            module.kraken(config)
        assert isinstance(caught.value, errors.InvalidArgument)


@pytest.mark.parametrize("secret", ["c2VjcmV", "c2Vjcm!="])
@pytest.mark.parametrize("bot", BOTS)
def test_secrets_that_cannot_be_one(bot: str, secret: str) -> None:
    """A secret that is not base64 is refused where a client is made, by an error that does not show it."""
    with pytest.raises(errors.InvalidArgument, match=r"^secret: must be an API secret: base64") as caught:
        BOTS[bot](NOWHERE, "key", secret, redis=NOWHERE)
    assert secret not in repr((caught.value, caught.value.__cause__, caught.value.__context__))


@pytest.mark.parametrize("way", ["options", "params"])
@pytest.mark.parametrize("bot", ["ccxt", "ccxt-async"])
class TestRepeats:
    """ccxt's own ``maxRetriesOnFailure``, which takes some of ours for passing failures."""

    @pytest.fixture
    def made(self, sim: KrakenSimulator, valkey: Server, bot: str) -> Any:
        """Make a bot that does not try again by itself."""
        with BOTS[bot](sim.url, sim.key, sim.secret, redis=valkey.url, retries=ONCE, wait_timeout=0.2) as made:
            yield made

    def call(self, made: Bot, way: str, method: str, params: dict[str, Any]) -> Any:
        """Make a call that ccxt may repeat twice."""
        repeats = {"maxRetriesOnFailure": 2, "maxRetriesOnFailureDelay": 1}
        if way == "options":
            made.client.options |= repeats
        else:
            params = params | repeats
        return made.run(getattr(made.client, method)(params))

    @pytest.mark.long
    def test_no_changes(self, sim: KrakenSimulator, made: Bot, way: str) -> None:
        """A refused order is not repeated, as a refused question is."""
        sim.configure(faults=BUSY)
        with pytest.raises(ccxt.OperationFailed):
            self.call(made, way, "private_post_balance", {})
        with pytest.raises(ccxt.OperationFailed):
            self.call(made, way, "private_post_addorder", form("limit"))
        assert [request.method for request in sim.requests()] == ["Balance"] * 3 + ["AddOrder"]

    @pytest.mark.long
    def test_ours(self, sim: KrakenSimulator, valkey: Server, made: Bot, way: str) -> None:
        """Nor is one that waited for the lock in vain, while a question waits again."""
        calls: list[str] = []
        make = made.client._guard.make
        made.client._guard.make = lambda key, call, send: calls.append(call.method) or make(key, call, send)
        lock = CallLock.from_url(valkey.url, sim.key)
        for method, params in (("private_post_balance", {}), ("private_post_addorder", form("limit"))):
            with pytest.raises(errors.HoldTimeout):
                in_time(made, lock, lambda _, method=method, params=params: self.call(made, way, method, params))
        assert calls == ["Balance"] * 3 + ["AddOrder"]

    @pytest.mark.long
    def test_parameters_of_ccxt_stay_there(self, made: Bot, way: str) -> None:
        """Kraken gets none of them."""
        assert self.call(made, way, "private_post_addorder", form("limit"))["error"] == []
        assert "ordertype=limit" in made.client.last_request_body
        assert "max" not in made.client.last_request_body


class TestLocks:
    """Errors of a lock that is used without an adapter."""

    def test_before_a_call(self, face: Face, valkey: Server) -> None:
        """Without the lock, or with too short a lease, the call that was to come is not made."""
        lock = face.lock_from_url(valkey.url, ttl=1)
        with lock.hold() as lease:
            with pytest.raises(errors.LeaseLost) as caught:
                lease.check(5)
            assert caught.value.carried_out is False

    def test_after_one(self, face: Face, valkey: Server) -> None:
        """What became of a call under a lease that is gone, only its caller can know."""
        lock = face.lock_from_url(valkey.url, ttl=5)
        assert lock.acquire()
        valkey.client().flushall()
        with pytest.raises(errors.LeaseLost) as extended:
            lock.extend(5)
        with pytest.raises(errors.LeaseLost):
            lock.release()
        assert lock.acquire()
        valkey.client().flushall()
        with pytest.raises(errors.LeaseLost) as released:
            lock.release()
        with pytest.raises(errors.CallLockError) as missing:
            lock.release()
        assert [error.value.carried_out for error in (extended, released, missing)] == [None] * 3
        assert pickle.loads(pickle.dumps(released.value)).carried_out is None

    def test_after_one_without_redis(self, face: Face, private_server: PrivateServer) -> None:
        """Nor does a release that fails say anything of it."""
        server = private_server()
        lock = face.lock_from_url(server.url)
        assert lock.acquire()
        server.stop()
        with pytest.raises(errors.StoreUnavailable) as released:
            lock.release()
        assert released.value.carried_out is None
        with pytest.raises(errors.StoreUnavailable) as asked:
            lock.acquire()
        assert asked.value.carried_out is False


def test_a_second_request(sim: KrakenSimulator, valkey: Server) -> None:
    """What a loop inside a client is told when it sends an order again doesn't say what became of the first one."""
    told: list[KrakenNonceError] = []

    class Loop(our_krakenex.API):
        def _query(self, *args: Any, **kwargs: Any) -> Any:
            answer = super()._query(*args, **kwargs)
            with pytest.raises(errors.IncompatibleClient) as caught:
                super()._query(*args, **kwargs)
            told.append(caught.value)
            return answer

    api = Loop(sim.key, sim.secret, redis=valkey.url)
    api.uri = sim.url
    assert api.query_private("AddOrder", form("limit"))["error"] == []
    assert api.query_private("Balance")["error"] == []
    assert [error.carried_out for error in told] == [None, False]
    api.close()
