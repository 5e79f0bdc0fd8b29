"""Chores, which a process does beside its callers, and when they are due; no I/O.

A chore is a command that comes due repeatedly: a waiting process's heartbeat, the renewal of a lease, the release of a
lock that a caller could not release itself. An `Agenda` knows when each of them is due. The shells sleep and run them.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from kraken_nonce_redis import _clock as clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis.errors import KrakenNonceError


_MANY: Final = 64
"""Chores among which some are probably over."""


class Chore(Protocol):
    """One recurring piece of work. Times are those of `clock.now`, in seconds."""

    def command(self, now: float) -> Command[Any] | None:
        """Return what would be run now, or None when the chore is over."""
        ...

    def succeeded(self, command: Command[Any], result: Any, now: float) -> float | None:
        """Take the result of the command; return when to run next, or None when the chore is over."""
        ...

    def failed(self, error: KrakenNonceError, now: float) -> float | None:
        """Take the failure; return when to try again, or None when the chore is over."""
        ...


class Agenda:
    """Chores by due time. Safe to use from several threads.

    Chores that are over, such as the renewals of leases that were released, don't pile up until they are due.

    The shell that runs the chores passes ``changed``, which is called when there is a new one.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._heap: list[tuple[float, int, Chore]] = []
        self._numbers = itertools.count()
        self._lock = threading.RLock()  # a signal handler may end a hold in the middle of this
        self._look_at = _MANY

    def add(self, due: float, chore: Chore) -> None:
        """Schedule a chore."""
        with self._lock:
            heapq.heappush(self._heap, (due, next(self._numbers), chore))
            many = list(self._heap) if len(self._heap) >= self._look_at else None
        if many is not None:
            self._remove_what_is_over(many)
        self._changed()

    def _remove_what_is_over(self, entries: Sequence[tuple[float, int, Chore]]) -> None:
        now = clock.now()
        over = {number for _, number, chore in entries if chore.command(now) is None}
        with self._lock:
            self._heap = [entry for entry in self._heap if entry[1] not in over]
            heapq.heapify(self._heap)
            self._look_at = max(_MANY, 2 * len(self._heap))

    def pop(self, now: float) -> Chore | None:
        """Remove and return a chore that is due, if there is one."""
        with self._lock:
            if self._heap and self._heap[0][0] <= now:
                return heapq.heappop(self._heap)[2]
        return None

    def next_due(self) -> float | None:
        """Return when the next chore is due."""
        with self._lock:
            return self._heap[0][0] if self._heap else None
