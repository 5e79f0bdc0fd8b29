"""`kraken-nonce exporter`: what Prometheus gets, how it ends, and the table of names in the docs."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kraken_nonce_redis import CallLock, NonceAllocator
from kraken_nonce_redis._arguments import DEFAULT_MAX_LEAD
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace, digest
from kraken_nonce_redis._verdict import NAMES
from kraken_nonce_redis.cli.collector import STATES, Families, RedisCollector
from kraken_nonce_redis.cli.place import Place
from kraken_nonce_redis.cli.selection import Selection
from tests.cli.test_status import leave_pending
from tests.support.command import Piped, run
from tests.support.helpers import Rival
from tests.support.helpers import run as run_command

if TYPE_CHECKING:
    from tests.conftest import PrivateServer
    from tests.support.servers import Server
    from tests.support.topologies import ClusterTopology

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture
def api_keys() -> list[str]:
    """Make up API keys, the one with the lowest digest first: this process remembers the nonces of each."""
    return sorted((f"key-{number}-{uuid.uuid4().hex}" for number in range(3)), key=digest)


def scrape(url: str, most: int = 100) -> dict[tuple[str, ...], float]:
    """Return what Prometheus gets, by name and labels in the order of the docs."""
    registry = CollectorRegistry()
    registry.register(RedisCollector(Selection.of_namespace(Place(url), "kraken-nonce", DEFAULT_MAX_LEAD), most))
    return read(generate_latest(registry).decode())


def read(text: str) -> dict[tuple[str, ...], float]:
    """Read the text that Prometheus gets."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all(family.type == "gauge" for family in text_string_to_metric_families(text))
    order = ("key", "state", "condition")
    return {
        (
            sample.name.removeprefix("kraken_nonce_"),
            *(sample.labels[label] for label in order if label in sample.labels),
        ): (sample.value)
        for sample in samples
    }


@pytest.mark.matrix
def test_what_is_in_redis(real_server: Server, api_keys: list[str]) -> None:
    """Figures of each API key, and the same conditions as those of status."""
    first, second, third = api_keys
    url, client = real_server.url, real_server.client()
    rival = Rival(client, Keyspace.of("kraken-nonce", first))
    rival.take()
    rival.queue_up(2)
    rival.queue_up(3)
    nonce = leave_pending(client, second)
    leave_pending(client, second)
    run_command(client, journal.settle(Keyspace.of("kraken-nonce", second), nonce, "reported"))
    NonceAllocator.from_url(url, second).jump_forward(600 * 10**9)
    CallLock.from_url(url, third).cool_down(50, "EAPI:Rate limit exceeded")
    found = scrape(url)
    one, two, three = map(digest, api_keys)
    assert (found["up",], found["keys",], found["keys_left_out",]) == (1, 3, 0)
    assert [found["waiters", key] for key in (one, two, three)] == [2, 0, 0]
    assert 0 < found["longest_wait_seconds", one] < 30
    assert 0 < found["holder_age_seconds", one] < 30
    assert found["holder_age_seconds", two] == found["longest_wait_seconds", two] == 0
    assert 500 < found["lead_seconds", two] <= 600
    assert ("lead_seconds", three) not in found
    assert 20 < found["cool_down_seconds", three] <= 50
    assert found["cool_down_seconds", one] == 0
    counts = {state: found["pending_calls", two, state] for state in STATES}
    assert counts == {"new": 1, "found": 0, "absent": 0, "partly": 0, "unknown": 0, "reported": 1}
    conditions = {key: {name for name in NAMES if found["condition", key, name]} for key in (one, two, three)}
    assert conditions == {one: set(), two: {"lead", "pending", "reported"}, three: {"cool-down"}}
    assert len([sample for sample in found if one in sample]) == 5 + len(STATES) + len(NAMES)
    client.hset(Keyspace.of("kraken-nonce", first).state, "lock", "theirs")
    found = scrape(url)
    assert found["condition", one, "foreign"] == 1
    assert ("waiters", one) not in found


def test_a_cluster(cluster: ClusterTopology, api_keys: list[str]) -> None:
    """The API keys of all nodes."""
    for key in api_keys:
        NonceAllocator.from_url(cluster.url, key).next()
    found = scrape(cluster.url)
    assert found["keys",] == 3
    assert all(found["waiters", digest(key)] == 0 for key in api_keys)


def test_the_number_of_keys_is_bounded(valkey: Server, api_keys: list[str]) -> None:
    """The same API keys are shown at each scrape, and how many are not."""
    for key in api_keys:
        NonceAllocator.from_url(valkey.url, key).next()
    found = scrape(valkey.url, most=2)
    assert (found["keys",], found["keys_left_out",]) == (3, 1)
    assert {sample[1] for sample in found if len(sample) > 1} == set(map(digest, api_keys[:2]))


def test_the_names_in_the_docs() -> None:
    """docs/metrics.md has each metric with its labels, each condition and each state, and no other."""
    text = DOCS.read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    told = {row[0].strip("| `"): tuple(re.findall(r"`(\w+)`", row[1])) for row in rows if row[0].startswith("`kraken_")}
    assert told == {family.name: tuple(family._labelnames) for family in Families().all()}
    assert [row[0].strip("`") for row in rows if row[0].strip("`") in NAMES] == list(NAMES)
    (states,) = [row[2] for row in rows if row[0] == "`kraken_nonce_pending_calls`"]
    assert re.findall(r"`(\w+)`", states) == list(STATES)
    for name in told:
        assert re.fullmatch(r"kraken_nonce_[a-z_]+(_seconds)?", name)


def test_the_command(private_server: PrivateServer, api_keys: list[str]) -> None:
    """It prints its URL, listens on loopback, outlives its Redis, shows no API key, and ends with Ctrl-C."""
    server = private_server()
    NonceAllocator.from_url(server.url, api_keys[0]).next()
    with Piped("exporter", "--listen", "127.0.0.1:0", KRAKEN_NONCE_REDIS_URL=server.url) as exporter:
        url = exporter.line()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url)

        def get() -> dict[tuple[str, ...], float]:
            with urllib.request.urlopen(url, timeout=30) as answer:
                text = answer.read().decode()
            assert api_keys[0] not in text
            return read(text)

        assert get()["waiters", digest(api_keys[0])] == 0
        server.kill()
        assert get() == {("up",): 0}
        assert get() == {("up",): 0}
        server.start()
        assert get()["up",] == 1
        ended = exporter.end()
    assert (ended.code, ended.out) == (0, "")
    (away,) = [line for line in ended.err.splitlines() if "Redis can't be reached" in line]
    assert away.endswith(f"Redis is 127.0.0.1:{server.port}, db 0, from KRAKEN_NONCE_REDIS_URL")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("address", ["9871", "localhost:", "localhost:99999", ":9871", "http://localhost:1", "::1:80"])
def test_a_wrong_address_to_listen_on(valkey: Server, address: str) -> None:
    """One line that says what to give."""
    result = run("exporter", "--listen", address, KRAKEN_NONCE_REDIS_URL=valkey.url)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "takes HOST:PORT, such as 127.0.0.1:9871 or [::1]:9871" in result.stderr


def test_a_taken_port(valkey: Server) -> None:
    """It is named, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("exporter", "--listen", f"127.0.0.1:{port}", KRAKEN_NONCE_REDIS_URL=valkey.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"can't listen on 127.0.0.1:{port}: Address already in use; give another --listen" in result.stderr


def test_no_redis_is_said_at_once() -> None:
    """An exporter without an address of a Redis does not start."""
    result = run("exporter")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "no Redis: give --redis URL" in result.stderr
