"""What `watch` makes of one look after the other: rates and a small history; no I/O.

Redis counts neither calls nor nonces. But each process numbers its attempts to get the lock, and the number is in the
name of each holder and waiter. So what a process has done between two looks is the difference of its numbers.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kraken_nonce_redis._redis.commands import State

KEPT: Final = 60
"""Looks that are kept."""
RATED: Final = 10.0
"""Seconds over which a rate is taken."""
_MOST_PROCESSES: Final = 4096
_NUMBERED: Final = re.compile(r"([^:|]+):([0-9]{1,15})(?![0-9])")
_BARS: Final = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look has shown.

    Attributes:
        at: server time, seconds.
        calls: attempts to get the lock since the look before, of processes that were seen before.
        waiting: number of waiters.
        last: the last nonce handed out, if any.
    """

    at: float
    calls: int
    waiting: int
    last: int | None


class Numbers:
    """The latest number of each process, over all API keys."""

    def __init__(self) -> None:
        self._latest: dict[str, int] = {}

    def calls(self, state: State) -> int:
        """Return how many attempts processes have begun since they were seen last, of those that are seen now."""
        seen: dict[str, int] = {}
        for member in (state.holder, *(waiter.member for waiter in state.waiters)):
            match = _NUMBERED.match(member)
            if match:
                seen[match[1]] = max(int(match[2]), seen.get(match[1], 0))
        calls = 0
        for process, number in seen.items():
            before = self._latest.pop(process, number)
            calls += max(0, number - before)
            self._latest[process] = max(before, number)
        while len(self._latest) > _MOST_PROCESSES:
            del self._latest[next(iter(self._latest))]
        return calls


class History:
    """The latest looks at one API key."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)

    def add(self, state: State, calls: int) -> None:
        """Take note of a look."""
        self._samples.append(Sample(state.now / 1e9, calls, state.waiting, state.last))

    @property
    def rate(self) -> float | None:
        """Calls a second over the latest looks; None before the second one, and for some that none has seen."""
        if len(self._samples) < 2:  # noqa: PLR2004 - a rate is between two looks
            return None
        latest = self._samples[-1].at
        counted = [sample for sample in self._samples if sample.at > latest - RATED]
        if len(counted) == 1:
            counted = list(self._samples)[-2:]
        first, *others = counted
        seconds, calls = latest - first.at, sum(sample.calls for sample in others)
        if not calls and first.last != others[-1].last:
            return None
        return calls / seconds if seconds > 0 else 0.0

    @property
    def calls(self) -> tuple[int, ...]:
        """The calls between each look and the one before it, the oldest first."""
        return tuple(sample.calls for sample in list(self._samples)[1:])

    @property
    def waiting(self) -> tuple[int, ...]:
        """The number of waiters at each look, the oldest first."""
        return tuple(sample.waiting for sample in self._samples)


def sparkline(values: Iterable[int], width: int) -> str:
    """Return the latest values as bars, as high as their share of the highest one; the lowest bar is 0."""
    latest = list(values)[-width:] if width > 0 else []
    highest = max(latest, default=0)
    # Any value above 0 shows as more than nothing.
    steps = len(_BARS) - 1
    return "".join(_BARS[-(-value * steps // highest) if highest else 0] for value in latest)
