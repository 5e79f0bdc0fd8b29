"""The nonce manager of single-process bots, over Redis: the same names, now for all processes together.

All nonces, for the master's key and all users' keys, come from one strictly rising sequence, and one lock makes all
private calls run one at a time. Both are those of ``scope="global"`` in the default namespace, so clients of this
library with that scope share them. Redis is where ``KRAKEN_NONCE_REDIS_URL`` says, or else ``REDIS_URL``.

A nonce that is taken without the lock may be overtaken on its way to Kraken. Hold the lock around the nonce and the
call that it is for::

    with get_kraken_api_lock():
        nonce = get_kraken_nonce()
        ...  # sign, send, wait for the answer

All functions raise `InvalidArgument` when no URL is set, and what takes a nonce or the lock raises `StoreError` when
Redis can't be used. No nonce is ever made up locally.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from typing import TYPE_CHECKING, Final, TypedDict

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process, urls
from kraken_nonce_redis._threads.allocator import NonceAllocator
from kraken_nonce_redis._threads.lock import CallLock, current_owner
from kraken_nonce_redis.errors import (
    CallLockError,
    HoldTimeout,
    InvalidArgument,
    LeaseLost,
    NoncesUsedUp,
    about_no_call,
)
from kraken_nonce_redis.pace import Pace

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from kraken_nonce_redis._threads.lock import Lease, Owner

__all__ = [
    "ApiLock",
    "NonceManager",
    "NonceStats",
    "get_global_kraken_nonce",
    "get_global_nonce_manager",
    "get_global_nonce_stats",
    "get_kraken_api_lock",
    "get_kraken_nonce",
]

_STARTUP_WINDOW: Final = 10.0  # seconds
_BURST: Final = 1.0  # seconds
_TURNSTILE: Final = "kraken-nonce:compat"
_PASSING: Final = 1.0  # second; longest time that a caller who dies in the turnstile blocks the others
_ANY_KEY: Final = "any"  # the global scope asks for an API key and is the same for each


class NonceStats(TypedDict):
    """The nonces that this process has taken. Other processes count for themselves, and so does a forked child.

    Attributes:
        total_nonces_issued: number of nonces.
        nonces_per_second: their average rate since the manager was made.
        recent_burst_rate: nonces in the last second.
        in_startup_window: whether a nonce taken now is among those of the first 10 s after a pause of 10 s or more.
        last_nonce: the highest nonce taken or jumped to, ns since 1970; 0 when there is none yet.
    """

    total_nonces_issued: int
    nonces_per_second: float
    recent_burst_rate: float
    in_startup_window: bool
    last_nonce: int


class ApiLock:
    """Makes private calls run one at a time over all threads, processes and API keys; used like a `threading.RLock`.

    Re-entrant in its thread. It is held until it is released, however long that takes. If its process dies or stops,
    the others wait at most 30 s. After a fork the child does not hold it.
    """

    def __init__(self, url: str) -> None:
        self._lock = CallLock.from_url(url, _ANY_KEY, scope="global")
        self._holds: dict[Owner, list[AbstractContextManager[Lease]]] = {}
        """The holds of each thread or task, the innermost last."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as in threading
        """Take the lock; return whether that worked.

        Args:
            blocking: whether to wait.
            timeout: most seconds to wait; below 0 for no limit.
        """
        limit = (None if timeout < 0 else timeout) if blocking else 0
        hold = self._lock.hold(limit, auto_renew=True)
        try:
            hold.__enter__()
        except HoldTimeout:
            return False
        self._holds.setdefault(current_owner(), []).append(hold)
        return True

    def release(self) -> None:
        """Give the lock back. Raises `CallLockError` when this thread does not hold it.

        Raises `LeaseLost` when another caller may have held the lock in the meantime, since this process was stopped or
        Redis was away for longer than a lease lasts.
        """
        self.__exit__(None, None, None)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        owner = current_owner()
        holds = self._holds.get(owner)
        if holds is None:
            raise about_no_call(CallLockError("can't release the API lock: this thread does not hold it"))
        hold = holds.pop()
        if not holds:
            del self._holds[owner]
        hold.__exit__(kind, error, traceback)

    @property
    def lease(self) -> Lease | None:
        """The lease under which this thread holds the lock, or None."""
        return self._lock.lease  # also one that was not taken through us


class _Counts:
    """What one process has taken; the attributes may be used under `turn`."""

    def __init__(self) -> None:
        self.process = _process.current()
        self.turn = threading.Lock()
        self.total = 0
        self._began = self._window_began = clock.now()
        self._recent: collections.deque[float] = collections.deque()
        self._latest: float | None = None

    def add(self) -> None:
        """Count a nonce."""
        now = clock.now()
        if self._idle(now):
            self._window_began = now
        self.total += 1
        self._latest = now
        self._recent.append(now)
        self._forget_before(now - _BURST)

    def forget_latest(self) -> None:
        """Make the next nonce the first one of a startup window."""
        self._recent.clear()
        self._latest = None

    def stats(self, last: int) -> NonceStats:
        """Return the figures."""
        now = clock.now()
        self._forget_before(now - _BURST)
        elapsed = now - self._began
        return NonceStats(
            total_nonces_issued=self.total,
            nonces_per_second=self.total / elapsed if elapsed else 0.0,
            recent_burst_rate=len(self._recent) / _BURST,
            in_startup_window=self._idle(now) or now - self._window_began < _STARTUP_WINDOW,
            last_nonce=last,
        )

    def _idle(self, now: float) -> bool:
        return self._latest is None or now - self._latest >= _STARTUP_WINDOW

    def _forget_before(self, then: float) -> None:
        while self._recent and self._recent[0] < then:
            self._recent.popleft()


class NonceManager:
    """Hands out nonces to all threads of this process. `get_global_nonce_manager` returns the only instance.

    Attributes:
        api_lock: the lock of all private calls.
    """

    def __init__(self, url: str) -> None:
        self.api_lock: Final = ApiLock(url)
        self._allocator = NonceAllocator.from_url(url, _ANY_KEY, scope="global")
        # Not the lock of the calls: who holds that may wait for another thread's nonce.
        self._turnstile = CallLock.from_url(
            url, _ANY_KEY, scope="global", namespace=_TURNSTILE, ttl=_PASSING, pace=Pace(startup_window=_STARTUP_WINDOW)
        )
        self._last = 0
        self._counted = _Counts()

    def get_nonce(self, apply_rate_limiting: bool = True) -> int:  # noqa: FBT001, FBT002 - as it always was
        """Return the next nonce: ns since 1970, 19 digits, above all that this process has seen.

        While this thread holds the API lock, the nonce comes with its lease. Nonces that other processes take
        at the same time, without the lock, are higher.

        Args:
            apply_rate_limiting: wait where too many nonces start at once, over all processes: after 10 s without a
                nonce, at most 20 start in any second for 10 s. Without it there is no wait, and under the API lock no
                round trip.

        Raises `LeaseLost` when this thread has held the API lock and it ended: nothing may be sent under it.
        """
        if apply_rate_limiting:
            with contextlib.suppress(LeaseLost), self._turnstile.hold():
                pass
        lease = self.api_lock.lease
        nonce = 0 if lease is None else _next_of(lease)
        if nonce <= self._last:
            # There is no lease, or a nonce above its own was taken since: by another thread, or by a jump.
            nonce = self._allocator.next()
        counts = self._counts()
        with counts.turn:
            self._last = max(self._last, nonce)
            counts.add()
        return nonce

    def jump_forward(self, ns: int) -> int:
        """Raise the last nonce by at least ``ns`` nanoseconds, for all processes; return it.

        Raises `NonceTooFarAhead`, with nothing changed, more than an hour ahead of the server's clock.
        """
        nonce = self._allocator.jump_forward(ns)
        with self._counts().turn:
            self._last = max(self._last, nonce)
        return nonce

    def get_stats(self) -> NonceStats:
        """Return what this process has taken."""
        counts = self._counts()
        with counts.turn:
            return counts.stats(self._last)

    def reset_burst_tracking(self) -> None:
        """Forget the latest nonces: the next one begins a new startup window, for all processes."""
        self._turnstile.reset_startup()
        counts = self._counts()
        with counts.turn:
            counts.forget_latest()

    def _counts(self) -> _Counts:
        process = _process.current()
        if self._counted.process is not process:
            with process.turn:
                if self._counted.process is not process:
                    self._counted = _Counts()
        return self._counted


def _next_of(lease: Lease) -> int:
    """Return a lease's next nonce, or 0 when none is left. Raises `LeaseLost`."""
    try:
        return lease.next_nonce()
    except NoncesUsedUp:
        return 0


_manager: NonceManager | None = None


def get_global_nonce_manager() -> NonceManager:
    """Return this process's one nonce manager, made when it is first asked for. Raises `InvalidArgument`."""
    global _manager  # noqa: PLW0603 - one for the process is what it is about
    with _process.current().turn:
        if _manager is None:
            url = urls.from_environment()
            if url is None:
                variable, other = urls.VARIABLES
                raise InvalidArgument(
                    variable,
                    f"it is not set, nor is {other}; set it to the URL of the Redis that all processes share, such as "
                    "redis://localhost:6379/0",
                )
            _manager = NonceManager(url)
        return _manager


def get_kraken_nonce() -> int:
    """Return the next nonce: ns since 1970, 19 digits. See `NonceManager.get_nonce`."""
    return get_global_nonce_manager().get_nonce()


get_global_kraken_nonce = get_kraken_nonce


def get_kraken_api_lock() -> ApiLock:
    """Return the lock of all private calls, to be held around the nonce and the call that it is for."""
    return get_global_nonce_manager().api_lock


def get_global_nonce_stats() -> NonceStats:
    """Return what this process has taken. See `NonceStats`."""
    return get_global_nonce_manager().get_stats()
