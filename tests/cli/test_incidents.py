"""What an operator finds at night, with the command alone: real processes, and two commands for each incident at most.

Each test says which words told it.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import NonceAllocator, Retries
from kraken_nonce_redis._redis.keyspace import Keyspace, digest
from kraken_nonce_redis.testing import Fault, KrakenSimulator
from tests.support.callers import CalledOnce, Holder
from tests.support.command import Ended, run_process
from tests.support.helpers import eventually
from tests.support.order_bots import BotProcess, read_notes
from tests.support.servers import REDIS_7, VALKEY
from tests.support.tiers import in_test_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.topologies import ClusterTopology, SentinelTopology

pytestmark = [pytest.mark.once, pytest.mark.simulator(own=True)]

LONG = 10.0
DAY = 86_400 * 10**9


class Operator:
    """Somebody with a shell and the address of the Redis, who may give two commands."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._left = 2

    def types(self, *args: str, code: int = 0, **variables: str) -> str:
        """Give a command; return what it prints."""
        self._left -= 1
        assert self._left >= 0, "a third command"
        ended: Ended = run_process(*args, KRAKEN_NONCE_REDIS_URL=self._url, **variables)
        assert ended.code == code, ended
        assert "Traceback" not in ended.err
        return ended.out + ended.err


@pytest.fixture(params=["valkey", *in_test_all("redis-7", "cluster", "cluster-7")])
def redis_url(
    request: pytest.FixtureRequest, shared_server: Callable[[Any], Any], shared_topology: Callable[[str], Any]
) -> Iterator[str]:
    """Give the URL of a Redis: Valkey and Redis 7, one server and a cluster."""
    if request.param.startswith("cluster"):
        there = shared_topology(request.param)
    else:
        there = shared_server({"valkey": VALKEY, "redis-7": REDIS_7}[request.param])
        there.reset()
    yield there.url
    there.close_clients()


@pytest.fixture
def operator(redis_url: str) -> Operator:
    """Call the operator."""
    return Operator(redis_url)


def access(sim: KrakenSimulator) -> tuple[str, str, str]:
    """Return where the exchange is, a key and its secret."""
    return sim.url, sim.key, sim.secret


@pytest.mark.test_all
def test_a_hung_holder_and_a_dead_one(redis_url: str, operator: Operator) -> None:
    """`held ... renewed ... ago`: its process lives and hangs. `held ... never renewed`: it is dead.

    One command finds both; the second one says what the lock waits for.
    """
    hung, dead = f"hung-{uuid.uuid4().hex}", f"dead-{uuid.uuid4().hex}"
    with (
        Holder(redis_url, hung, "bot-that-hangs", ttl=3, auto_renew=True),
        Holder(redis_url, dead, "bot-that-died", ttl=60) as killed,
    ):
        killed.kill()
        time.sleep(LONG)
        said = " ".join(operator.types("status", "--all", COLUMNS="400").split())
        detail = operator.types("status", "--id", digest(dead))
    assert said.startswith("2 of 2 API keys: ")
    assert re.search(
        rf"{digest(hung)} held 1\d\.\d s by bot-that-hangs, renewed [0-2]\.\d s ago, [1-3]\.\d s left", said
    )
    assert re.search(rf"{digest(dead)} held 1\d\.\d s by bot-that-died, never renewed, 4\d\.\d s left", said)
    assert re.match(r"held 1\d\.\d s by bot-that-died, never renewed", detail)


@pytest.mark.test_all
def test_a_dead_holder_whom_nobody_followed(redis_url: str, operator: Operator) -> None:
    """`the lease of ... ended ... ago without a release`."""
    key = uuid.uuid4().hex
    with Holder(redis_url, key, "bot-that-died", ttl=1) as killed:
        killed.kill()
    time.sleep(1.1)
    said = operator.types("status", KRAKEN_API_KEY=key)
    assert re.match(r"the lease of bot-that-died ended \d+\.\d s ago without a release\n", said)


def test_a_poisoned_key(sim: KrakenSimulator, redis_url: str, operator: Operator) -> None:
    """`poisoned`: another program has raised the nonce, and no bot raises it further."""
    sim.raise_nonce(time.time_ns() + DAY)
    with CalledOnce(access(sim), redis_url, retries=Retries(waits=(0.1,) * 4)) as bot:
        assert bot.hear() == "NoncePoisoned"
        said = operator.types("status", KRAKEN_API_KEY=sim.key)
    assert re.match(r"poisoned if Kraken refuses: nonces are (60\.0|59\.\d) min ahead of the server's clock", said)
    assert sim.key not in said


def test_a_cool_down(sim: KrakenSimulator, redis_url: str, operator: Operator) -> None:
    """`cool-down`, for how long, and what Kraken said."""
    sim.configure(faults=[Fault("EGeneral:Temporary lockout", "reading")])
    with CalledOnce(access(sim), redis_url, retries=Retries(waits=())) as bot:
        assert bot.hear() == ["EGeneral:Temporary lockout"]
        said = operator.types("status", KRAKEN_API_KEY=sim.key)
    assert re.match(r"cool-down for another \d+\.\d (s|min): EGeneral:Temporary lockout\n", said)


@pytest.mark.test_all
def test_an_order_left_pending(sim: KrakenSimulator, redis_url: str, operator: Operator, tmp_path: Path) -> None:
    """`1 call to be settled`, of which bot and since when; `pending` has the order's id to look it up by."""
    notes = tmp_path / "notes"
    options = {"redis": redis_url, "ttl": 1, "call_timeout": 0.5, "name": "bot-nobody-restarted"}
    with BotProcess(notes, access(sim), hang="answered", orders=1, **options) as bot:
        eventually(lambda: any(line["what"] == "hangs" for line in read_notes(notes)), 30)
        bot.kill()
    time.sleep(3)
    said = operator.types("status", "--all", COLUMNS="400")
    listed = operator.types("pending", KRAKEN_API_KEY=sim.key, code=1)
    assert said.startswith(f"1 of 1 API keys: {digest(sim.key)} ")
    words = " ".join(said.split())
    assert "1 call to be settled; the next process with this API key does it" in words
    assert re.search(r"\(AddOrder of bot-nobody-restarted, \d+\.\d s ago\)", words)
    assert read_notes(notes)[0]["cl_ord_id"] in listed


def test_a_failover_by_sentinels(sentinel: SentinelTopology) -> None:
    """`no Sentinel names a master` while there is none, then `master ... (elected ... ago)`."""
    key = uuid.uuid4().hex
    NonceAllocator.from_url(sentinel.url, key).next()
    operator = Operator(sentinel.url)
    old = sentinel.kill_master()
    during = run_process("status", KRAKEN_API_KEY=key, KRAKEN_NONCE_REDIS_URL=sentinel.url)
    assert during.code == 3
    assert re.search("Redis can't be reached|no Sentinel names a master", during.err)
    assert "Redis is the master of the-master by Sentinels" in during.err
    new = sentinel.until_promoted(old)
    eventually(lambda: run_process("next", KRAKEN_API_KEY=key, KRAKEN_NONCE_REDIS_URL=sentinel.url).code == 0, 20)
    said = operator.types("status", KRAKEN_API_KEY=key)
    assert re.search(rf"^redis +master 127\.0\.0\.1:{new.port} \(elected \d+\.\d s ago\)", said, re.MULTILINE)


def test_a_failover_in_a_cluster(cluster: ClusterTopology) -> None:
    """`cluster node ... for this key`: another one than before."""
    key = uuid.uuid4().hex
    NonceAllocator.from_url(cluster.url, key).next()
    state = Keyspace.of("kraken-nonce", key).state
    operator = Operator(cluster.url)
    old = cluster.master(state)
    before = operator.types("status", KRAKEN_API_KEY=key)
    cluster.failover(state)
    after = operator.types("status", KRAKEN_API_KEY=key)
    assert f"cluster node 127.0.0.1:{old.port} for this key" in before
    assert f"cluster node 127.0.0.1:{cluster.master(state).port} for this key" in after
    assert old.port != cluster.master(state).port
