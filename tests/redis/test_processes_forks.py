"""Programs that fork: each process has connections of its own, none has what another holds, and nonces only rise."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis.testing import KrakenSimulator
from tests.support import forks
from tests.support.forks import PROCESSES, TURNS
from tests.support.helpers import eventually
from tests.support.https import HttpsFront
from tests.support.tiers import in_test_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SERVERS = {
    "uwsgi": ("uwsgi", "--master", "--processes", "4", "--die-on-term", "--http-socket"),
    "gunicorn": ("gunicorn", "--preload", "--workers", "4", "--bind"),
    "gunicorn with gevent": ("gunicorn", "--preload", "--workers", "4", "--worker-class", "gevent", "--bind"),
}
REQUESTS = 60


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Return where turns are noted."""
    return tmp_path / "turns"


def assert_one_at_a_time(record: Path, number: int, processes: int) -> None:
    """Assert that so many turns of so many processes were one after the other, each with a higher nonce."""
    turns = sorted(forks.turns(record), key=lambda turn: turn[1])
    assert len(turns) == number
    assert len({turn[0] for turn in turns}) == processes
    for before, after in pairwise(turns):
        assert before[2] <= after[1], "two had the lock at once"
        assert before[3] < after[3], "a nonce is not above the one before"


@pytest.mark.long
@pytest.mark.parametrize("way", ["os.fork", "libc fork"])
def test_fork_after_use(valkey: Server, record: Path, way: str) -> None:
    """Four processes, three of them forked after the first one used and held locks: one at a time, and no nonce twice.

    Python's own hooks don't run for a fork in C. What the parent holds is not its children's, and what it had seen is.
    """
    forks.run(way, valkey.url, record)
    assert_one_at_a_time(record, 1 + PROCESSES * TURNS, PROCESSES)


def test_fork_in_a_running_loop(valkey: Server, record: Path) -> None:
    """A coroutine forks while it holds the lock and tasks wait: children begin loops of their own, and all go on."""
    forks.run("fork in a running loop", valkey.url, record)
    assert_one_at_a_time(record, 1 + 3 + PROCESSES * TURNS, PROCESSES)


@pytest.mark.test_all
def test_fork_between_two_runs_of_a_loop(valkey: Server, record: Path) -> None:
    """Parent and children go on with a loop, in which tasks hold and wait, at once.

    The parent hears all its replies and offers, though it shares the selector with its children; in these, the copy of
    the task that waits gets an error.
    """
    forks.run("fork between two runs of a loop", valkey.url, record)
    assert_one_at_a_time(record, 1 + TURNS + PROCESSES * TURNS, PROCESSES)


@pytest.mark.test_all
def test_fork_between_two_runs_of_uvloop(valkey: Server, record: Path) -> None:
    """With uvloop the parent goes on, and each child begins a loop of its own."""
    forks.run("fork between two runs of uvloop", valkey.url, record)
    assert_one_at_a_time(record, TURNS + PROCESSES * TURNS, PROCESSES)


@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", *in_test_all("spawn"), "forkserver"])
def test_multiprocessing(valkey: Server, record: Path, method: str) -> None:
    """Four processes of multiprocessing, started after use in the parent."""
    forks.run(method, valkey.url, record)
    assert_one_at_a_time(record, 1 + PROCESSES * TURNS, PROCESSES + 1)


@pytest.mark.long
@pytest.mark.parametrize("scheme", [*in_test_all("http"), "https"])
@pytest.mark.parametrize(
    "way",
    [
        "sessions",
        *in_test_all("sessions, libc fork"),
        "asyncio sessions",
        *in_test_all("asyncio sessions, libc fork", "asyncio sessions, the same loop"),
    ],
)
def test_sessions_of_clients(valkey: Server, record: Path, way: str, scheme: str) -> None:
    """Forked after calls to Kraken, each process has HTTP connections of its own, also for public calls.

    The parent goes on with the one that it had; settings of the session stay. All place orders at once: no call fails,
    and each answer is that of the process's own order.
    """
    with KrakenSimulator(latency=(0.005, 0.02)) as sim, HttpsFront(int(sim.url.rpartition(":")[2])) as front:
        forks.run(
            way,
            valkey.url,
            record,
            SIMULATOR=front.url if scheme == "https" else sim.url,
            API_KEY=sim.key,
            API_SECRET=sim.secret,
            REQUESTS_CA_BUNDLE=front.authority,
            SSL_CERT_FILE=front.authority,
        )
        placed = [(order.cl_ord_id, order.txid) for order in sim.orders()]
    assert sorted(forks.orders(record)) == sorted(placed)


@pytest.mark.test_all
def test_gevent(valkey: Server, record: Path) -> None:
    """Greenlets share a connection and wait for each other's locks, and the others go on meanwhile."""
    forks.run("gevent", valkey.url, record)
    assert_one_at_a_time(record, PROCESSES * TURNS, 1)


@pytest.mark.test_all
def test_gevent_without_threads(valkey: Server, record: Path) -> None:
    """Where gevent has patched sockets and no threads, the first use says so, and doesn't hang."""
    assert "monkey.patch_all() without thread=False" in forks.run("gevent without threads", valkey.url, record)
    assert not record.exists()


@pytest.fixture(params=SERVERS)
def web_server(request: pytest.FixtureRequest, valkey: Server, record: Path, tmp_path: Path) -> Iterator[str]:
    """Start a web server that forks after its application was loaded and has used the lock; return its URL."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    program, *arguments = SERVERS[request.param]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [BIN / program, *arguments, address, *["--module"][: program == "uwsgi"], "tests.support.wsgi_app"],
            cwd=ROOT,
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "REDIS_URL": valkey.url, "RECORD": str(record), "HOME": str(tmp_path)},
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        yield f"http://{address}/"
    except BaseException:
        print((tmp_path / "log").read_text())
        raise
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.test_all
def test_web_servers(web_server: str, record: Path) -> None:
    """Sixty requests to four workers that were forked after use: each has the lock for itself, and a nonce of its own.

    uWSGI forks in C, of which Python does not hear; gunicorn's gevent worker patches after the lock was made.
    """
    eventually(lambda: record.exists() and _answers(web_server), 30)

    def ask(_: int) -> bytes:
        with urllib.request.urlopen(web_server, timeout=30) as response:
            return response.read()

    with ThreadPoolExecutor(12) as executor:
        assert list(executor.map(ask, range(REQUESTS))) == [b"done"] * REQUESTS
    turns = forks.turns(record)
    assert_one_at_a_time(record, 1 + 1 + REQUESTS, len({turn[0] for turn in turns}))
    assert len({turn[0] for turn in turns}) > 2, "one worker has done everything"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30):
            return True
    except OSError:
        time.sleep(0.1)
        return False
