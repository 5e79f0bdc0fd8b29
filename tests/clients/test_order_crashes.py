"""A bot that is killed with kill -9 at any point of a call: the next holder learns what became of its order."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import Retries
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.helpers import Stopwatch, eventually, run
from tests.support.order_bots import BotProcess, Krakenex, read_notes
from tests.support.tiers import by_tier, in_test_all

if TYPE_CHECKING:
    from pathlib import Path

    from kraken_nonce_redis._redis.journal import Pending
    from kraken_nonce_redis.events import OrderSettled
    from tests.support.servers import Server

CRASHES = by_tier(3, 6, 100)
BOTS_AT_ONCE = 4
TIMEOUT = 1.2  # of a call; until twice as long after it was made the next holder waits
SETTLE = Retries(settle_waits=(0.2, 0.4))

pytestmark = [pytest.mark.once, pytest.mark.simulator(seed=3)]


def access(sim: KrakenSimulator) -> tuple[str, str, str]:
    """Return where the exchange is, a key and its secret."""
    return sim.url, sim.key, sim.secret


def pending(valkey: Server, sim: KrakenSimulator) -> tuple[Pending, ...]:
    """Return the journal of the calls that nobody knows the outcome of."""
    return run(valkey.client(), journal.pending(Keyspace.of("kraken-nonce", sim.key)))


def learn(sim: KrakenSimulator, valkey: Server) -> list[OrderSettled]:
    """Be the next holder; return what it learns of earlier ones."""
    learned: list[Any] = []
    with Krakenex(*access(sim), redis=valkey.url, on_event=learned.append, retries=SETTLE) as bot:
        assert bot.balance()["error"] == []
    assert all(event.inherited for event in learned)
    return learned


@pytest.mark.long
@pytest.mark.parametrize(
    ("point", "bot", "ordertype"),
    [
        ("signed", "krakenex", "limit"),
        ("acting", "ccxt-async", "limit"),
        ("answering", "krakenex", "market"),
        ("answered", "krakenex", "limit"),
        *in_test_all(
            ("reading", "krakenex", "limit"),
            ("acting", "krakenex", "limit"),
            ("acting", "krakenex", "market"),
            ("answering", "krakenex", "limit"),
        ),
    ],
)
def test_killed(sim: KrakenSimulator, valkey: Server, tmp_path: Path, point: Any, bot: str, ordertype: str) -> None:
    """The next holder says whether the order was placed, with its txid, and then nothing is pending any more."""
    hang = point if point in {"signed", "answered"} else ""
    if not hang:
        # A call that is held before acting is placed before the last look; one held before reading comes after it.
        held = 4 * TIMEOUT if point == "reading" else TIMEOUT
        sim.configure(faults=[Fault("slow", point, methods=["AddOrder"], calls=[1], seconds=held)])
    notes = tmp_path / "notes"
    # A longer lease has the intent from when it was taken, a shorter one from when it was extended for the call.
    options = {"redis": valkey.url, "ttl": 3 if ordertype == "limit" else 1, "call_timeout": TIMEOUT}
    with BotProcess(notes, access(sim), bot=bot, ordertype=ordertype, hang=hang, orders=1, **options) as process:
        if hang:
            eventually(lambda: any(line["what"] == "hangs" for line in read_notes(notes)), 30)
        else:
            eventually(lambda: any(request.method == "AddOrder" for request in sim.requests()), 30)
        process.kill()
    (event,) = learn(sim, valkey)
    placed = point not in {"signed", "reading"}
    eventually(lambda: all(request.finished is not None for request in sim.requests()), 10)
    orders = sim.orders()
    assert len(orders) == placed
    assert (event.method, event.outcome) == ("AddOrder", "found" if placed else "absent")
    assert dict(event.orders) == {order.cl_ord_id: order.txid for order in orders}
    if bot == "krakenex":
        assert event.cl_ord_ids == (read_notes(notes)[0]["cl_ord_id"],)
    assert pending(valkey, sim) == ()
    assert learn(sim, valkey) == []


@pytest.mark.test_all
def test_killed_at_random(sim: KrakenSimulator, valkey: Server, tmp_path: Path) -> None:
    """Bots die at random while others work and calls get lost: each order is known to somebody, and none came twice."""
    luck = random.Random(5)
    notes = tmp_path / "notes"
    sim.configure(
        latency=(0.0, 0.02),
        listing_delay=(0.0, 0.1),
        faults=[
            Fault("cut", "reading", probability=0.03),
            Fault("cut", "acting", probability=0.03),
            Fault("cut", "answering", probability=0.05),
            Fault("502", "answering", methods=["AddOrder"], probability=0.05),
            Fault("EService:Unavailable", "acting", probability=0.05),
        ],
    )

    def start() -> BotProcess:
        ordertype = luck.choice(["limit", "market"])
        options = {"redis": valkey.url, "ttl": 1, "call_timeout": 0.4, "wait_timeout": 30}
        return BotProcess(notes, access(sim), ordertype=ordertype, retries=SETTLE, **options)

    bots = [start() for _ in range(BOTS_AT_ONCE)]
    try:
        for _ in range(CRASHES):
            time.sleep(luck.uniform(0.2, 1.5))
            victim = luck.randrange(len(bots))
            assert not bots[victim].ended, "a bot failed by itself"
            bots[victim].close()
            bots[victim] = start()
        before = len(sim.orders())
        eventually(lambda: len(sim.orders()) > before + 5, 60)  # those who live go on
        sim.configure(faults=[Fault("slow", "answering", methods=["AddOrder"], seconds=2)])
        eventually(lambda: any("slow" in request.fault and request.finished is None for request in sim.requests()), 20)
    finally:
        for bot in bots:
            bot.close()
    sim.configure(faults=[], latency=(0.0, 0.0))
    took = Stopwatch()
    inherited = learn(sim, valkey)
    assert pending(valkey, sim) == (), took()

    said = read_notes(notes)
    told = {line["txid"] for line in said if line["what"] == "placed"}
    settled = [line for line in said if line["what"] == "OrderSettled"]
    found = {txid for line in settled for txid in line["orders"].values()}
    found |= {txid for event in inherited for txid in event.orders.values()}
    absent = {line["cl_ord_ids"][0] for line in settled if line["outcome"] == "absent"}
    absent |= {event.cl_ord_ids[0] for event in inherited if event.outcome == "absent"}
    wanted = {line["cl_ord_id"] for line in said if line["what"] == "wants"}
    orders = {order.txid: order.cl_ord_id for order in sim.orders()}
    assert len(set(orders.values())) == len(orders), "an order was placed twice"
    assert told | found == set(orders), "an order that nobody knows of, or one that is not there"
    assert not absent & set(orders.values()), "an order that is said to be absent"
    # What is neither was killed before it sent anything, or said so: at most the last one of each process.
    processes = {line["pid"] for line in said}
    assert len(wanted - absent - set(orders.values())) <= len(processes)
    assert any(line["inherited"] for line in settled) or inherited
