"""Real processes on one API key: many at once, killed, stopped, interrupted, forked."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis._redis import commands
from tests.support.faces import FACES, KEY
from tests.support.helpers import KEYS, SECOND, Rival, View, assert_distinct_and_in_order, eventually, run
from tests.support.tiers import by_tier, in_test_all
from tests.support.workers import Worker, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.servers import Server

ON_BOTH_FACES = pytest.mark.parametrize("name", FACES)
HOLD = 0.005
TTL = 2.0


@pytest.fixture
def view(valkey: Server) -> View:
    """Look into Redis."""
    return View(valkey.client())


@pytest.fixture
def worker(valkey: Server) -> Iterator[Callable[..., Worker]]:
    """Start processes on Valkey, ended with the test."""
    workers = Workers(0, "")

    def start(face: str = "threads", **settings: object) -> Worker:
        workers.append(Worker(valkey.url, face, **settings))
        workers[-1].do("nothing")
        return workers[-1]

    with workers:
        yield start


# Many at once.


def test_eight_processes_take_nonces(real_server: Server) -> None:
    """8 processes x 10,000 nonces: all distinct, and each above all that were there when it was asked for."""
    each = by_tier(1_000, 10_000, 10_000)
    with Workers(8, real_server.url) as workers:
        taken = [one for some in workers.do("take", count=each, timeout=120) for one in some]
    assert len(taken) == 8 * each
    assert_distinct_and_in_order(taken)


Turn = tuple[float, float, float, int, int]


def assert_one_at_a_time(turns: list[Turn]) -> None:
    """Assert that nobody came in before the one before was done, and that nonces rose over all of them."""
    in_order = sorted(turns, key=lambda turn: turn[1])
    for before, after in pairwise(in_order):
        assert before[2] <= after[1], "two had the lock at once"
        assert before[4] < after[3], "a lease's nonces are not above those of the one before"


class Shares:
    """Who had the lock how often and who waited how long for it, while all were at it."""

    def __init__(self, turns: list[list[Turn]]) -> None:
        # The first turns begin and the last ones end in any order, so what counts is what lies between.
        self.begin = max(one[1][1] for one in turns)
        self.end = min(one[-2][1] for one in turns)
        self.steady = [[turn for turn in one if turn[0] >= self.begin and turn[1] <= self.end] for one in turns]
        self.hold = median(turn[2] - turn[1] for one in self.steady for turn in one)

    @property
    def evenness(self) -> float:
        """Least by most grants."""
        counts = [len(one) for one in self.steady]
        return min(counts) / max(counts)

    @property
    def worst_wait(self) -> float:
        """Return the worst wait by the ideal one.

        Ideal is to wait for one turn of each of the others, as long as they really held the lock on this machine.
        """
        ideal = (len(self.steady) - 1) * self.hold
        return max(turn[1] - turn[0] for one in self.steady for turn in one) / ideal


@pytest.mark.parametrize(
    ("number", "seconds", "faces"),
    [(8, 2, ("threads", "asyncio")), *in_test_all((8, 3, ("threads",)), (32, 6.5, ("threads",)))],
    ids=["8 of both faces", "8", "32"],
)
def test_one_after_the_other(
    valkey: Server, view: View, capsys: pytest.CaptureFixture[str], number: int, seconds: float, faces: tuple[str, ...]
) -> None:
    """Processes that hold the lock for 5 ms each, again and again: never two, and nothing is left.

    Their shares and their waits are shown, and judged in virtual time (tests/simulation/test_bounds.py) and by
    benchmarks/contended.py: other work on a machine changes them.
    """
    with Workers(number, valkey.url, *faces) as workers:
        turns = workers.do("turns", seconds=seconds, hold=HOLD)
    assert_one_at_a_time([turn for one in turns for turn in one])
    view.assert_nothing_left()
    shares = Shares(turns)
    with capsys.disabled():
        print(f"\n  {number} processes: least/most {shares.evenness:.2f}, worst wait {shares.worst_wait:.2f} x ideal")


@pytest.mark.test_all
def test_faults_among_many(valkey: Server, view: View, worker: Callable[..., Worker]) -> None:
    """Processes that are killed and stopped among others that work: never two holders, and the others go on."""
    steady = [worker(face, ttl=1.0) for face in (*FACES, "threads")]
    doomed = [worker(ttl=1.0) for _ in range(3)]
    for one in (*steady, *doomed):
        one.tell("turns", seconds=5, hold=HOLD)
    for one in doomed:
        time.sleep(0.3)
        one.send(signal.SIGSTOP)
        time.sleep(0.3)
        one.kill()
    turns = [one.hear() for one in steady]
    assert_one_at_a_time([turn for some in turns for turn in some])
    assert all(len(some) > 20 for some in turns)
    eventually(lambda: view.state.holder == "", 4)


# One of them dies.


@pytest.mark.long
@ON_BOTH_FACES
def test_killed_holder(worker: Callable[..., Worker], view: View, name: str) -> None:
    """Kill -9 of a holder costs the others the rest of its TTL, and nothing is left of it."""
    holder, waiter = worker(name, ttl=TTL), worker(name, ttl=TTL)
    _, nonce = holder.do("hold")
    waiter.tell("hold")
    view.until_waiting(1)
    holder.kill()
    _, later = waiter.hear()
    # By the clock of the server, whose time is in the nonces.
    assert later - nonce >= TTL * SECOND
    assert isinstance(waiter.do("release"), float)
    view.assert_nothing_left()


@ON_BOTH_FACES
def test_killed_waiters(worker: Callable[..., Worker], view: View, name: str) -> None:
    """Waiters that were killed cost the one behind them nothing: the server knows that nobody hears them."""
    holder, dead, last = worker(name), [worker(name), worker(name)], Rival(view.client)
    holder.do("hold")
    for number, process in enumerate(dead, 1):
        process.tell("hold")
        eventually(lambda number=number: view.client.zcount(KEYS.queue, 4e15, 4e15) == number)  # type: ignore[misc]
    last.queue_up()
    for process in dead:
        process.kill()
    eventually(lambda: not any(number for _, number in view.client.pubsub_numsub(*_channels(view))))
    holder.do("release")
    eventually(lambda: view.state.holder == last.member(), 0.5)


def _channels(view: View) -> list[str]:
    """Return the channels of the processes that wait."""
    waiting = run(view.client, commands.inspect(KEYS, "waiters")).waiters
    return ["kraken-nonce:wake:" + waiter.member.split(":")[0] for waiter in waiting]


@pytest.mark.long
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@ON_BOTH_FACES
def test_dead_waiter(worker: Callable[..., Worker], view: View, name: str, way: signal.Signals) -> None:
    """Kill -9 or SIGSTOP of a waiter costs the one behind it an offer, no lease, and nothing is left."""
    holder, dead, waiter = worker(name), worker(name), worker(name)
    holder.do("hold")
    for n, one in enumerate((dead, waiter)):
        one.tell("hold")
        view.until_waiting(n + 1)
    dead.send(way)
    holder.do("release")
    there, nonce = waiter.hear()
    assert isinstance(nonce, int)
    waiter.do("release")
    if way is signal.SIGSTOP:
        dead.send(signal.SIGCONT)
        again, nonce = dead.hear()
        assert again > there
        assert isinstance(nonce, int), "it goes on waiting where it was stopped"
        dead.do("release")
    view.assert_nothing_left()


@ON_BOTH_FACES
def test_stopped_holder(worker: Callable[..., Worker], view: View, name: str) -> None:
    """A holder that is stopped past its TTL and goes on then gets no nonce and no time any more.

    Given another process that has had the lock since,
    if the holder goes on,
    then it is told before it signs and at its end, and the other one keeps the lock.
    """
    holder, other = worker(name, ttl=1.0), worker(name)
    _, nonce = holder.do("hold")
    holder.send(signal.SIGSTOP)
    there, later = other.do("hold")
    assert later > nonce
    holder.send(signal.SIGCONT)
    assert holder.do("lease", arguments=["next_nonce"]) == "LeaseLost"
    assert holder.do("lease", arguments=["check"]) == "LeaseLost"
    assert holder.do("lease", arguments=["remaining"]) == 0.0
    assert holder.do("lease", arguments=["extend", 5]) == "LeaseLost"
    assert view.state.leased
    assert isinstance(other.do("lease", arguments=["next_nonce"]), int)
    assert holder.do("release") == "LeaseLost"
    assert view.state.leased
    assert other.do("release") > there
    view.assert_nothing_left()


def test_stopped_holder_with_auto_renew(worker: Callable[..., Worker], view: View) -> None:
    """auto_renew does not make a stopped process a holder for ever: its lease ends, and it is told."""
    holder, other = worker(ttl=1.0), worker()
    holder.do("hold", auto_renew=True)
    holder.send(signal.SIGSTOP)
    other.do("hold")
    holder.send(signal.SIGCONT)
    assert holder.do("lease", arguments=["next_nonce"]) == "LeaseLost"
    assert holder.do("release") == "LeaseLost"
    assert view.state.leased


# Ctrl-C.


def test_ctrl_c_while_waiting(worker: Callable[..., Worker], view: View) -> None:
    """Ctrl-C ends the wait at once, leaves nothing in Redis and costs those behind nothing."""
    rival = Rival(view.client)
    rival.take()
    first, second = worker(), worker()
    for n, one in enumerate((first, second)):
        one.tell("hold")
        view.until_waiting(n + 1)
    first.send(signal.SIGINT)
    _, error = first.hear()
    assert error == "KeyboardInterrupt"
    assert view.waiting == 1
    assert view.state.holder == rival.member(), "it did not have to wait for the end of the lease"
    rival.release()
    _, nonce = second.hear()
    assert isinstance(nonce, int)
    second.do("release")
    view.assert_nothing_left()
    assert isinstance(first.do("hold")[1], int), "the process can go on with the lock"


def test_ctrl_c_again_and_again(worker: Callable[..., Worker], view: View) -> None:
    """Whenever Ctrl-C comes, to a waiter or to one that just gets an offer, the lock is free for the others at once."""
    one = worker()
    for number in range(15):
        rival = Rival(view.client)
        rival.take()
        one.tell("hold")
        view.until_waiting(1)
        time.sleep(0.01)
        if number % 2:
            rival.release()
        time.sleep(number * 0.0002)
        one.send(signal.SIGINT)
        rival.release()
        _, what = one.hear()
        if what != "KeyboardInterrupt":
            one.do("release")
        view.until_free()
    view.assert_nothing_left()


WAIT_IN_ASYNCIO_RUN = """
import asyncio, signal, sys
from kraken_nonce_redis.asyncio import CallLock

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as in a shell's background

async def main():
    async with CallLock.from_url(sys.argv[1], sys.argv[2]).hold():
        pass

asyncio.run(main())
"""


def test_ctrl_c_in_asyncio_run(valkey: Server, view: View) -> None:
    """Ctrl-C in a program that waits in `asyncio.run` ends it at once and leaves nothing in Redis."""
    rival = Rival(view.client)
    rival.take()
    with subprocess.Popen(
        [sys.executable, "-c", WAIT_IN_ASYNCIO_RUN, valkey.url, KEY],
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    ) as program:
        view.until_waiting(1)
        time.sleep(0.1)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=20)
    assert said.strip().endswith(b"KeyboardInterrupt")
    assert b"was never" not in said
    assert view.waiting == 0
    rival.release()
    view.assert_nothing_left()


# fork().


def test_fork_of_a_holder(worker: Callable[..., Worker], view: View) -> None:
    """A child holds nothing of what its parent held, takes no nonce of its lease, and both go on with nonces."""
    said = worker().do("fork")
    child = said["child"]
    assert (child["lost"], child["owned"], child["got it"], child["lease"]) == (True, False, False, "LeaseLost")
    assert (said["lost"], said["owned"]) == (False, True)
    nonces = said["nonces"] + child["nonces"]
    assert len(set(nonces)) == len(nonces)
    assert sorted(child["nonces"]) == child["nonces"]
    view.assert_nothing_left()


def test_fork_and_lost_state(worker: Callable[..., Worker]) -> None:
    """A child knows what its parent has seen: when state is lost, it goes on above that."""
    last, first = worker().do("fork_and_forget")
    assert first > last


def test_fork_while_a_thread_waits(worker: Callable[..., Worker], view: View) -> None:
    """A child of a process that waits is a process of its own: it waits for itself, and the parent gets its turn."""
    rival = Rival(view.client)
    rival.take()
    forking = worker()
    forking.tell("fork_while_waiting")
    view.until_waiting(2)
    rival.release()
    got, code = forking.hear()
    assert len(got) == 1
    assert code == 7
    # The child ended without a word while it held the lock.
    view.unlock()
    view.assert_nothing_left()
