"""An order is never placed twice and never lost silently: real clients, a simulated Kraken that fails at every point.

In `make soak` each cell of the matrix has 500 orders, which takes an hour.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from kraken_nonce_redis import IncompatibleClient, NotCarriedOut, OutcomeUnknown, Retries
from kraken_nonce_redis._calls import outcomes
from kraken_nonce_redis._calls.call import Call
from kraken_nonce_redis._core.steps import Send
from kraken_nonce_redis._kraken import Outcome
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.events import OrderSettled
from kraken_nonce_redis.events import OutcomeUnknown as UnknownEvent
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import eventually, run
from tests.support.order_bots import BOTS, Beliefs, form
from tests.support.tiers import by_tier, in_test_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis._redis.journal import Pending
    from tests.support.servers import Server

ORDERS = by_tier(6, 6, 500)
POINTS: tuple[Any, ...] = ("reading", "acting", "answering")
FAULTS = ("cut", "502", "EService:Unavailable", "slow")
MATRIX = (tuple(BOTS), FAULTS, POINTS, ("limit", "market"))
# The slow call is placed and listed well before the last look at the lists, as Kraken's documentation lets one hope.
SLOW, TIMEOUT, LISTING = 0.4, 0.2, (0.0, 0.05)
QUICK = Retries(waits=(0.01, 0.02), settle_waits=(0.02, 0.06))
PATIENT = Retries(waits=(0.01, 0.02), settle_waits=(0.1, 0.15, 0.45))

pytestmark = [
    pytest.mark.once,
    pytest.mark.simulator(seed=20, listing_delay=LISTING),
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


def access(sim: KrakenSimulator) -> tuple[str, str, str]:
    """Return where the exchange is, a key and its secret."""
    return sim.url, sim.key, sim.secret


def pending(valkey: Server, sim: KrakenSimulator) -> tuple[Pending, ...]:
    """Return the journal of the calls that nobody knows the outcome of."""
    return run(valkey.client(), journal.pending(Keyspace.of("kraken-nonce", sim.key)))


@pytest.mark.parametrize(
    ("kind", "what", "point", "ordertype"),
    # Every second one is for `make test`, so that each two of a fault, a point and a client come there.
    [
        cell if sum(places) % 2 else in_test_all(cell)[0]
        for places, cell in zip(
            product(*(range(len(some)) for some in MATRIX)),
            product(*MATRIX),
            strict=True,
        )
    ],
)
def test_matrix(sim: KrakenSimulator, valkey: Server, kind: str, what: str, point: Any, ordertype: str) -> None:
    """Each fault at each point, on each client: the orders at the exchange are those that the client was told of."""
    slow = what == "slow"
    wanted = by_tier(3, 3, ORDERS) if slow else ORDERS
    beliefs = Beliefs()
    events: list[Any] = []
    options = {"redis": valkey.url, "call_timeout": TIMEOUT if slow else 5, "retries": PATIENT if slow else QUICK}
    with BOTS[kind](*access(sim), on_event=events.append, **options) as bot:
        sim.configure(faults=[Fault(what, point, methods=["AddOrder"], probability=0.35, seconds=SLOW if slow else 0)])
        for _ in range(wanted):
            beliefs.ask(bot, ordertype)
    beliefs.check(sim.orders(), wanted)
    # Only the orders were hit and not the questions, so nothing can have stayed unknown, and no fault was missed.
    hit = sum(bool(request.fault) for request in sim.requests())
    assert hit
    assert not beliefs.unknown
    placed = point == "answering" or (slow and point == "acting")
    assert (len(beliefs.absent), beliefs.refused) == (0 if placed else hit, 0)
    learned = [event.outcome for event in events]
    assert learned.count("found" if placed else "absent") >= hit  # a loaded machine can be late by itself
    assert slow or len(learned) == hit
    assert pending(valkey, sim) == ()


@pytest.mark.test_all
@pytest.mark.parametrize("kind", BOTS)
def test_everything_fails(sim: KrakenSimulator, valkey: Server, kind: str) -> None:
    """When the questions fail as well, what is not known is reported, and settled by a later call."""
    beliefs = Beliefs()
    events: list[Any] = []
    options = {"redis": valkey.url, "call_timeout": TIMEOUT, "retries": PATIENT}
    with BOTS[kind](*access(sim), on_event=events.append, **options) as bot:
        bot.balance()  # ccxt asks for the markets first
        sim.configure(
            faults=[
                Fault(what, point, probability=0.045, seconds=SLOW if what == "slow" else 0)
                for what in FAULTS
                for point in POINTS
            ]
        )
        for number in range(ORDERS):
            beliefs.ask(bot, "market" if number % 2 else "limit")
        sim.configure(faults=[])
        for _ in range(5):  # a loaded machine can be late by itself
            bot.balance()
            if not pending(valkey, sim):
                break
    beliefs.check(sim.orders(), ORDERS)
    placed = {order.cl_ord_id for order in sim.orders()}
    # What was unknown to the call itself was told to the hook later, once and rightly.
    settled = [event for event in events if isinstance(event, OrderSettled)]
    learned = {e.cl_ord_ids[0]: e.outcome for e in settled if e.inherited and e.outcome in {"found", "absent"}}
    assert set(beliefs.unknown) == set(learned)
    assert set(beliefs.unknown) == {e.cl_ord_ids[0] for e in events if isinstance(e, UnknownEvent)}
    for cl_ord_id, outcome in learned.items():
        assert outcome == ("found" if cl_ord_id in placed else "absent")
    assert pending(valkey, sim) == ()


def test_a_question_gets_lost(sim: KrakenSimulator, valkey: Server) -> None:
    """One question that is not answered costs a look at the lists, and the later ones tell."""
    sim.configure(
        faults=[
            Fault("cut", "acting", methods=["AddOrder"], calls=[1]),
            Fault("cut", "reading", methods=["OpenOrders"], calls=[1]),
        ]
    )
    with BOTS["krakenex"](*access(sim), redis=valkey.url, retries=QUICK) as bot, pytest.raises(NotCarriedOut):
        bot.order("limit")
    assert pending(valkey, sim) == ()


@pytest.mark.long
@pytest.mark.parametrize("deadline", [True, False])
def test_deadline(sim: KrakenSimulator, valkey: Server, *, deadline: bool) -> None:
    """An order accepted but placed after the last look at the lists is reported as absent, unless it has a deadline."""
    held = 1.0
    order = form("limit")
    if deadline:
        order["deadline"] = datetime.fromtimestamp(time.time() + held - 0.2, UTC).isoformat()
    sim.configure(faults=[Fault("slow", "acting", methods=["AddOrder"], calls=[1], seconds=held)])
    with BOTS["krakenex"](*access(sim), redis=valkey.url, call_timeout=0.2, retries=QUICK) as bot:
        with pytest.raises(NotCarriedOut):
            bot.client.query_private("AddOrder", order)
        assert sim.orders() == []
    eventually(lambda: all(request.finished is not None for request in sim.requests()))
    assert len(sim.orders()) == (not deadline)


def test_distant_redis(sim: KrakenSimulator, valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that has to be extended for each question is long enough for a Redis that takes its time."""
    with BOTS["krakenex"](*access(sim), redis=valkey.url, ttl=1, call_timeout=1, retries=QUICK) as bot:
        store = bot.client._guard.lock(sim.key).store
        run_command = store.run

        def run_slowly(command: Any) -> Any:
            time.sleep(0.15)
            return run_command(command)

        monkeypatch.setattr(store, "run", run_slowly)
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        assert bot.order("market") == sim.orders()[0].txid


def test_in_an_except_clause(sim: KrakenSimulator, valkey: Server) -> None:
    """An order that is placed while another call's failure is handled is judged by its own failure."""
    with BOTS["krakenex"](*access(sim), redis=valkey.url, retries=QUICK) as bot:
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        try:
            raise requests.ConnectTimeout  # noqa: TRY301
        except requests.ConnectTimeout:
            txid = bot.order("market")
    assert [order.txid for order in sim.orders()] == [txid]


@pytest.mark.parametrize("kind", ["sdk", "sdk-async"])
@pytest.mark.parametrize("extra", [{"cl_ord_id": "mine"}, '{"cl_ord_id": "mine"}'])
def test_extra_params(sim: KrakenSimulator, valkey: Server, kind: str, extra: Any) -> None:
    """An id among python-kraken-sdk's extra parameters is the one that an order is looked for by."""
    with BOTS[kind](*access(sim), redis=valkey.url, retries=QUICK) as bot:
        sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
        order = {"ordertype": "market", "side": "buy", "pair": "XBTUSD", "volume": "0.0001", "extra_params": extra}
        answer = bot.run(bot.client.create_order(**order))
    assert [(order.txid, order.cl_ord_id) for order in sim.orders()] == [(answer["txid"][0], "mine")]


def test_userref_of_nothing(sim: KrakenSimulator, valkey: Server) -> None:
    """A userref of 0 is one, too: the order keeps it and gets no id beside it, which Kraken would refuse."""
    with BOTS["krakenex"](*access(sim), redis=valkey.url) as bot:
        assert bot.client.query_private("AddOrder", {**form("limit"), "userref": 0})["error"] == []
    assert [(order.userref, order.cl_ord_id) for order in sim.orders()] == [(0, None)]


@pytest.mark.parametrize(
    "answer", [{}, {"message": "Bad gateway"}, {"error": "no"}, {"error": ["Bad gateway"]}, {"error": [None]}]
)
def test_not_krakens(answer: dict[str, Any]) -> None:
    """JSON that is not in Kraken's form, as a gateway may send it, says nothing about an order."""
    assert outcomes.of_answer(answer).outcome is Outcome.UNKNOWN


@pytest.fixture
def api(sim: KrakenSimulator, valkey: Server) -> Iterator[API]:
    """Return a krakenex client."""
    api = API(sim.key, sim.secret, redis=valkey.url, retries=QUICK)
    api.uri = sim.url
    yield api
    api.close()


@pytest.mark.parametrize(
    "again", ["EAPI:Rate limit exceeded", "EGeneral:Temporary lockout", "EOrder:Unknown order", ""]
)
def test_an_unanswered_cancellation(sim: KrakenSimulator, valkey: Server, api: API, again: str) -> None:
    """It is made once more; a refusal that says nothing of the first one leaves the outcome unknown, and noted."""
    txid = api.query_private("AddOrder", form("limit"))["result"]["txid"][0]
    faults = [Fault("cut", "acting", methods=["CancelOrder"], calls=[1])]
    if again:
        faults.append(Fault(again, "reading", methods=["CancelOrder"], calls=[2]))
    sim.configure(faults=faults)
    if again.startswith("EOrder") or not again:
        assert api.query_private("CancelOrder", {"txid": txid})["error"] == ([again] if again else [])
        assert pending(valkey, sim) == ()
    else:
        with pytest.raises(OutcomeUnknown, match="CancelOrder"):
            api.query_private("CancelOrder", {"txid": txid})
        assert [entry.method for entry in pending(valkey, sim)] == ["CancelOrder"]


def test_a_second_factor(sim: KrakenSimulator, api: API, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a key with a second factor needs goes with the questions that settle an order, too."""
    sent: list[dict[str, Any]] = []
    post = api.session.post

    def noting(url: str, **request: Any) -> Any:
        sent.append(request["data"])
        return post(url, **request)

    monkeypatch.setattr(api.session, "post", noting)
    sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
    api.query_private("AddOrder", {**form("limit"), "otp": "123456"})
    assert [request.get("otp") for request in sent] == ["123456"] * len(sent)
    assert len(sent) > 1


def test_a_call_that_is_dropped(sim: KrakenSimulator, valkey: Server, api: API) -> None:
    """A flow that is closed in the middle of its request, as with its event loop, gives back lock and intent."""
    lock = api._guard.lock(sim.key)
    flow = api._guard._calls.calling(lock, threading.current_thread(), Call.of(sim.key, "AddOrder", {}, 5))
    step = next(flow)
    while not isinstance(step, Send):
        step = flow.send(lock.store.run(step.command))  # type: ignore[union-attr]
    flow.close()
    eventually(lambda: len(pending(valkey, sim)) == 1)
    assert lock.lease is None
    with lock.hold(0):
        pass


def test_interrupted_after_the_answer(sim: KrakenSimulator, valkey: Server, api: API) -> None:
    """A caller that is interrupted when its order is placed already hears it by an event; the journal keeps it."""
    events: list[Any] = []
    api._guard._calls._on_event = events.append
    release = api._guard.lock(sim.key)._telling

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt
        yield

    api._guard.lock(sim.key)._telling = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        api.query_private("AddOrder", form("limit"))
    (event,) = events
    assert event.outcome == "found"
    assert list(event.orders.values()) == [order.txid for order in sim.orders()]
    lock = api._guard.lock(sim.key)
    lock._telling = release  # type: ignore[method-assign]
    lock.release()
    assert len(pending(valkey, sim)) == 1


def test_only_orders_can_be_validated(sim: KrakenSimulator, valkey: Server, api: API) -> None:
    """A withdrawal is none the less one for a parameter that it does not have."""
    sim.configure(faults=[Fault("cut", "answering", methods=["Withdraw"], calls=[1])])
    with pytest.raises(OutcomeUnknown):
        api.query_private("Withdraw", {"asset": "XBT", "key": "mine", "amount": "0.1", "validate": "true"})
    assert len(sim.withdrawals()) == 1
    assert [entry.method for entry in pending(valkey, sim)] == ["Withdraw"]


def test_an_id_used_again(sim: KrakenSimulator, api: API) -> None:
    """An older order with the same id is not taken for the one that got lost."""
    order = {**form("market"), "cl_ord_id": "grid-1"}
    assert api.query_private("AddOrder", order)["error"] == []
    time.sleep(0.05)
    sim.configure(faults=[Fault("cut", "reading", methods=["AddOrder"], calls=[1])])
    with pytest.raises(OutcomeUnknown, match="is older"):
        api.query_private("AddOrder", order)
    assert len(sim.orders()) == 1


def test_an_id_of_the_callers(sim: KrakenSimulator, api: API) -> None:
    """An order that was opened after the call began is the caller's."""
    sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
    answer = api.query_private("AddOrder", {**form("market"), "cl_ord_id": "grid-2"})
    assert answer["result"]["txid"] == [sim.orders()[0].txid]


def test_a_session_that_repeats(sim: KrakenSimulator, api: API) -> None:
    """A transport that sends a POST twice by itself is refused before anything is sent; one that doesn't is fine."""
    api.session.mount("http://", HTTPAdapter(max_retries=3))
    assert api.query_private("Balance")["error"] == []
    api.session.mount("http://", HTTPAdapter(max_retries=Retry(total=3, allowed_methods=None)))
    with pytest.raises(IncompatibleClient, match="repeats POST"):
        api.query_private("AddOrder", form("limit"))
    assert sim.orders() == []


def test_a_hook_that_makes_calls(sim: KrakenSimulator, valkey: Server, api: API) -> None:
    """A hook is called without the lock, so it may make calls of its own."""
    answers: list[Any] = []
    api._guard._calls._on_event = lambda _: answers.append(api.query_private("Balance"))
    sim.configure(faults=[Fault("cut", "answering", methods=["AddOrder"], calls=[1])])
    assert api.query_private("AddOrder", form("limit"))["error"] == []
    assert [answer["error"] for answer in answers] == [[]]
    assert pending(valkey, sim) == ()
