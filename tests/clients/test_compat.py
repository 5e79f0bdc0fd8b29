"""What bots rely on that had their nonces from an in-process manager, now over several processes."""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import (
    CallLock,
    CallLockError,
    InvalidArgument,
    NonceAllocator,
    NonceTooFarAhead,
    _process,
    compat,
    krakenex,
)
from kraken_nonce_redis.testing import KrakenSimulator
from tests.support.children import CONTEXT
from tests.support.helpers import SECOND, assert_distinct_and_in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.synchronize import Barrier

    from tests.support.servers import Server

Taken = tuple[float, float, int]
"""When a nonce was asked for, when it was there (both on the machine's monotonic clock), and the nonce."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, valkey: Server) -> None:
    """Set this process up as a bot that has just started."""
    monkeypatch.setenv("KRAKEN_NONCE_REDIS_URL", valkey.url)
    monkeypatch.setattr(compat, "_manager", None)


# Other processes


def _run(url: str, task: Callable[..., Any], args: tuple[Any, ...], together: Barrier, results: Any) -> None:
    os.environ["KRAKEN_NONCE_REDIS_URL"] = url
    together.wait(60)
    results.put(task(*args))


def in_processes(task: Callable[..., Any], *args: Iterable[Any]) -> list[Any]:
    """Run a function in one process for each tuple of arguments, all at once; return what they return."""
    url = os.environ["KRAKEN_NONCE_REDIS_URL"]
    together, results = CONTEXT.Barrier(len(args)), CONTEXT.Queue()
    processes = [CONTEXT.Process(target=_run, args=(url, task, tuple(a), together, results), daemon=True) for a in args]
    for process in processes:
        process.start()
    try:
        returned = [results.get(timeout=60) for _ in processes]
    except queue.Empty:
        returned = []
    for process in processes:
        process.join(10)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return returned


def rapid() -> int:
    """Take a nonce without rate limiting."""
    return compat.get_global_nonce_manager().get_nonce(apply_rate_limiting=False)


def take(count: int) -> list[Taken]:
    """Take nonces one after the other, as fast as it goes."""
    taken = []
    for _ in range(count):
        asked = time.monotonic()
        nonce = rapid()
        taken.append((asked, time.monotonic(), nonce))
    return taken


def take_in_threads(threads: int, each: int) -> list[Taken]:
    """Take nonces in threads that begin at once."""
    together = threading.Barrier(threads)

    def one(_: int) -> list[Taken]:
        together.wait()
        return take(each)

    with ThreadPoolExecutor(threads) as pool:
        return [nonce for taken in pool.map(one, range(threads)) for nonce in taken]


def call_in_threads(threads: int) -> list[Taken]:
    """Hold the lock for a call in each thread; return when each began and ended, and its nonce."""

    def one(_: int) -> Taken:
        with compat.get_kraken_api_lock():
            began = time.monotonic()
            nonce = compat.get_kraken_nonce()
            time.sleep(0.02)
            with compat.get_kraken_api_lock():
                assert compat.get_kraken_nonce() > nonce
            return began, time.monotonic(), nonce

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(threads)))


def fork_while_busy() -> list[int]:
    """Fork while this thread holds the lock and others take nonces; return nonces of child and parent."""
    over = threading.Event()

    def hammer() -> None:
        while not over.is_set():
            rapid()

    others = [threading.Thread(target=hammer) for _ in range(3)]
    for other in others:
        other.start()
    nonces: list[int] = []
    for _ in range(10):
        reading, writing = os.pipe()
        with compat.get_kraken_api_lock():
            before = rapid()
            # As a thread may that asks for the manager in this moment, and is not there in the child.
            turn = _process.current().turn
            taken, forked = threading.Event(), threading.Event()

            def make(turn: Any = turn, taken: threading.Event = taken, forked: threading.Event = forked) -> None:
                with turn:
                    taken.set()
                    forked.wait()

            making = threading.Thread(target=make)
            making.start()
            taken.wait()
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                manager = compat.get_global_nonce_manager()
                held = not manager.api_lock.acquire(blocking=False)
                of_child = [rapid() for _ in range(3)]
                stats = manager.get_stats()
                os.write(writing, repr((held, stats["total_nonces_issued"], of_child)).encode())
                os._exit(0)
            forked.set()
            making.join()
            held, total, of_child = eval(os.read(reading, 1000))
            os.waitpid(pid, 0)
            assert (held, total) == (True, 3)
            assert rapid() > before
        nonces += [before, *of_child]
    over.set()
    for other in others:
        other.join()
    return nonces


def jump(nanoseconds: int) -> int:
    """Jump forward."""
    return compat.get_global_nonce_manager().jump_forward(nanoseconds)


class TestNonces:
    """One strictly rising sequence for the master and all users."""

    def test_digits(self) -> None:
        """Every way to ask gives an int of 19 digits, in ns, above the one before."""
        nonces = [
            compat.get_global_kraken_nonce(),
            compat.get_kraken_nonce(),
            compat.get_global_nonce_manager().get_nonce(),
            compat.get_global_nonce_manager().get_nonce(apply_rate_limiting=False),
            compat.get_global_nonce_manager().get_nonce(False),  # noqa: FBT003 - as bots write it
        ]
        assert all(isinstance(nonce, int) and len(str(nonce)) == 19 for nonce in nonces)
        assert all(a < b for a, b in pairwise(nonces))
        assert abs(nonces[0] - time.time_ns()) < SECOND

    def test_hundred_threads(self) -> None:
        """100 threads that take 10 nonces each, in two processes at once, get 2,000 distinct ones, in order."""
        taken = list(chain(*in_processes(take_in_threads, (100, 10), (100, 10))))
        assert len(taken) == 2000
        assert_distinct_and_in_order(taken)

    def test_master_and_five_users(self) -> None:
        """A master and five users, a process each, take 120 nonces at once: distinct, and in order over all six."""
        by_process = in_processes(take, *[(20,)] * 6)
        for taken in by_process:
            assert all(a[2] < b[2] for a, b in pairwise(taken))
        everything = list(chain(*by_process))
        assert len(everything) == 120
        assert_distinct_and_in_order(everything)

    def test_thousand_at_once(self) -> None:
        """1,000 nonces taken as fast as it goes rise without exception, whatever another process takes."""
        for taken in in_processes(take, (1000,), (1000,)):
            assert len(taken) == 1000
            assert all(a[2] < b[2] for a, b in pairwise(taken))

    def test_share_with_clients(self, valkey: Server) -> None:
        """Clients of this library with the global scope take part, whatever their API key."""
        allocator = NonceAllocator.from_url(valkey.url, "key-of-master", scope="global")
        with CallLock.from_url(valkey.url, "key-of-user", scope="global").hold() as lease:
            nonces = [lease.nonce]
        for _ in range(3):
            nonces += [compat.get_kraken_nonce(), allocator.next()]
        assert all(a < b for a, b in pairwise(nonces))

    def test_fork(self) -> None:
        """A child forked at any moment takes nonces of its own, and does not hold its parent's lock."""
        ((nonces),) = in_processes(fork_while_busy, ())
        assert len(set(nonces)) == 40


class TestJump:
    """Going ahead of a nonce that another program has used."""

    def test_for_all(self) -> None:
        """After a jump in one process, the next nonce of every process is above it."""
        before = compat.get_kraken_nonce()
        (jumped,) = in_processes(jump, (60 * SECOND,))
        assert jumped >= before + 60 * SECOND
        assert compat.get_kraken_nonce() > jumped

    def test_for_the_holder(self) -> None:
        """It counts at once for a thread that holds the lock and has taken nonces under it."""
        with compat.get_kraken_api_lock():
            before = compat.get_kraken_nonce()
            jumped = jump(60 * SECOND)
            after = compat.get_kraken_nonce()
        assert before + 60 * SECOND <= jumped < after

    def test_too_far(self) -> None:
        """A jump by mistake in the unit, which would poison all keys, is refused and changes nothing."""
        before = compat.get_kraken_nonce()
        with pytest.raises(NonceTooFarAhead):
            jump(10**6 * SECOND)
        assert compat.get_global_nonce_stats()["last_nonce"] == before
        assert compat.get_kraken_nonce() - before < 10 * SECOND


def take_limited(count: int) -> list[int]:
    """Take nonces with rate limiting; in each is when that was, by the server's clock."""
    return [compat.get_kraken_nonce() for _ in range(count)]


class TestRateLimiting:
    """Startup protection, over all processes."""

    @pytest.mark.test_all
    def test_startup(self) -> None:
        """Four processes that begin at once take at most 20 nonces in any second together."""
        nonces = sorted(chain(*in_processes(take_limited, *[(12,)] * 4)))
        assert len(nonces) == 48
        assert all(later - earlier >= SECOND for earlier, later in zip(nonces, nonces[20:], strict=False))

    def test_switched_off(self) -> None:
        """A call that opts out isn't held back, and holds back nobody."""
        began = time.monotonic()
        for _ in range(400):  # in 20 s, were they held back
            rapid()
        assert len(take_limited(20)) == 20
        assert time.monotonic() - began < 15

    def test_reset(self) -> None:
        """After a reset, 20 more nonces start at once."""
        began = time.monotonic()
        for _ in range(20):  # in 20 s without
            take_limited(20)
            compat.get_global_nonce_manager().reset_burst_tracking()
        assert time.monotonic() - began < 15


class TestManager:
    """One instance for the process."""

    def test_is_one(self) -> None:
        """Whoever asks first, in whatever thread and by whatever import, gets the same manager and lock."""
        together = threading.Barrier(50)

        def ask(_: int) -> list[int]:
            together.wait()
            module = importlib.import_module("kraken_nonce_redis.compat")
            return [id(module.get_global_nonce_manager()), id(module.get_kraken_api_lock())]

        with ThreadPoolExecutor(50) as pool:
            seen = list(pool.map(ask, range(50)))
        manager = compat.get_global_nonce_manager()
        assert seen == [[id(manager), id(manager.api_lock)]] * 50

    def test_counts_however_it_is_asked(self) -> None:
        """All ways to ask are counted together."""
        compat.get_kraken_nonce()
        compat.get_global_kraken_nonce()
        last = compat.get_global_nonce_manager().get_nonce()
        for stats in (compat.get_global_nonce_stats(), compat.get_global_nonce_manager().get_stats()):
            assert (stats["total_nonces_issued"], stats["last_nonce"]) == (3, last)

    def test_no_url(self, monkeypatch: pytest.MonkeyPatch, valkey: Server) -> None:
        """Without a URL everything says what to set; once it is set, it works."""
        monkeypatch.delenv("KRAKEN_NONCE_REDIS_URL")
        monkeypatch.delenv("REDIS_URL", raising=False)
        for ask in (
            compat.get_kraken_nonce,
            compat.get_global_kraken_nonce,
            compat.get_global_nonce_manager,
            compat.get_kraken_api_lock,
            compat.get_global_nonce_stats,
        ):
            with pytest.raises(InvalidArgument, match=r"KRAKEN_NONCE_REDIS_URL: .*REDIS_URL.*redis://"):
                ask()
        monkeypatch.setenv("REDIS_URL", valkey.url)
        assert compat.get_kraken_nonce()

    def test_which_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``KRAKEN_NONCE_REDIS_URL`` goes before ``REDIS_URL``, which many platforms set for other uses."""
        monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9/0")
        assert compat.get_kraken_nonce()


class TestLock:
    """One call at a time."""

    def test_reentrant(self) -> None:
        """A thread that holds the lock takes it again, in each of the usual ways, and gives it back as often."""
        lock = compat.get_kraken_api_lock()
        with ThreadPoolExecutor(1) as other, lock as had:
            assert had is True
            assert lock.acquire()
            assert lock.acquire(blocking=False)
            assert lock.acquire(timeout=1)
            with compat.get_kraken_api_lock():
                assert not other.submit(lock.acquire, blocking=False).result()
            for _ in range(3):
                lock.release()
                assert not other.submit(lock.acquire, timeout=0.05).result()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(lock.acquire, blocking=False).result()
            other.submit(lock.release).result()

    def test_release_without_hold(self) -> None:
        """Only the thread that holds the lock can give it back."""
        lock = compat.get_kraken_api_lock()
        with ThreadPoolExecutor(1) as other, lock:
            with pytest.raises(CallLockError, match="does not hold"):
                other.submit(lock.release).result()
            assert lock.lease is not None
        with pytest.raises(CallLockError, match="does not hold"):
            lock.release()

    def test_ten_calls_in_two_processes(self) -> None:
        """Ten calls at once, five in each of two processes, run one at a time and in the order of their nonces."""
        calls = sorted(chain(*in_processes(call_in_threads, (5,), (5,))))
        assert len(calls) == 10
        for earlier, later in pairwise(calls):
            assert earlier[1] <= later[0]
            assert earlier[2] < later[2]

    def test_no_round_trip(self, valkey: Server) -> None:
        """Nonces taken under the lock came with it: without rate limiting, taking them needs no Redis."""
        outside = compat.get_kraken_nonce()
        with compat.get_kraken_api_lock():
            valkey.pause()
            nonces = [outside, *(rapid() for _ in range(1000))]
            valkey.resume()
        assert all(a < b for a, b in pairwise(nonces))

    def test_rising_beside_other_threads(self) -> None:
        """The holder's nonces are above those that other threads have taken meanwhile, without the lock."""
        nonces = []
        with ThreadPoolExecutor(1) as other, compat.get_kraken_api_lock():
            for _ in range(5):
                nonces += [compat.get_kraken_nonce(), other.submit(compat.get_kraken_nonce).result()]
        assert all(a < b for a, b in pairwise(nonces))

    def test_very_many(self) -> None:
        """There is no end to the nonces of one hold."""
        with compat.get_kraken_api_lock():
            nonces = [rapid() for _ in range(100_010)]
        assert all(a < b for a, b in pairwise(nonces))

    def test_held_as_long_as_needed(self, monkeypatch: pytest.MonkeyPatch, valkey: Server) -> None:
        """The lock stays with its holder until it is released, as it does in a single process."""
        make = CallLock.from_url
        monkeypatch.setattr(CallLock, "from_url", lambda *args, **options: make(*args, **{**options, "ttl": 1.0}))
        rival = CallLock.from_url(valkey.url, "rival", scope="global")
        with compat.get_kraken_api_lock(), ThreadPoolExecutor(1) as other:
            assert not other.submit(rival.acquire, blocking_timeout=2.5).result()
            assert compat.get_kraken_nonce()

    def test_client_inside(self, valkey: Server) -> None:
        """A client of this library with the global scope may be used while the lock is held."""
        with KrakenSimulator() as sim:
            api = krakenex.API(sim.key, sim.secret, redis=valkey.url, scope="global", wait_timeout=1)
            api.uri = sim.url
            with compat.get_kraken_api_lock():
                before = compat.get_kraken_nonce()
                assert api.query_private("Balance")["error"] == []
                after = compat.get_kraken_nonce()
            api.close()
            (request,) = sim.requests()
        assert request.nonce is not None
        assert before < request.nonce < after


class TestStatistics:
    """What bots show on their dashboards."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """Set the manager's clock by hand."""
        now = SimpleNamespace(seconds=1000.0)
        monkeypatch.setattr(compat, "clock", SimpleNamespace(now=lambda: now.seconds))
        return now

    def test_keys(self) -> None:
        """The keys are those that there always were, also before the first nonce."""
        stats = compat.get_global_nonce_stats()
        assert stats == {
            "total_nonces_issued": 0,
            "nonces_per_second": 0.0,
            "recent_burst_rate": 0.0,
            "in_startup_window": True,
            "last_nonce": 0,
        }

    def test_rates(self, now: SimpleNamespace) -> None:
        """The burst rate is that of the last second, the other one that of the whole time."""
        manager = compat.get_global_nonce_manager()
        for _ in range(30):
            now.seconds += 0.1
            last = manager.get_nonce()
        now.seconds += 0.05
        stats = manager.get_stats()
        assert (stats["total_nonces_issued"], stats["last_nonce"]) == (30, last)
        assert stats["nonces_per_second"] == pytest.approx(30 / 3.05)
        assert stats["recent_burst_rate"] == 10
        now.seconds += 0.5
        assert manager.get_stats()["recent_burst_rate"] == 5
        now.seconds += 0.5
        assert manager.get_stats()["recent_burst_rate"] == 0

    def test_startup_window(self, now: SimpleNamespace) -> None:
        """The startup window is the first 10 s after a pause of 10 s, or after a reset."""
        manager = compat.get_global_nonce_manager()
        seen = []
        for pause in (0.0, 9.9, 0.2, 9.9, 10.0, 9.9, 0.2):
            now.seconds += pause
            seen.append(manager.get_stats()["in_startup_window"])
            manager.get_nonce()
        assert seen == [True, True, False, False, True, True, False]
        manager.reset_burst_tracking()
        assert manager.get_stats()["in_startup_window"] is True
        assert manager.get_stats()["recent_burst_rate"] == 0
        assert manager.get_stats()["total_nonces_issued"] == 7
        manager.get_nonce()
        now.seconds += 9.9
        assert manager.get_stats()["in_startup_window"] is True
        manager.get_nonce()
        now.seconds += 0.2
        assert manager.get_stats()["in_startup_window"] is False

    def test_threads(self) -> None:
        """No nonce is left out of the count, however many threads take them."""
        switching = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            taken = take_in_threads(20, 50)
        finally:
            sys.setswitchinterval(switching)
        stats = compat.get_global_nonce_stats()
        assert stats["total_nonces_issued"] == 1000
        assert stats["last_nonce"] == max(nonce for _, _, nonce in taken)

    def test_jump_is_no_nonce(self) -> None:
        """A jump raises the last nonce and is none that was issued."""
        jumped = jump(SECOND)
        stats = compat.get_global_nonce_stats()
        assert (stats["total_nonces_issued"], stats["last_nonce"]) == (0, jumped)
