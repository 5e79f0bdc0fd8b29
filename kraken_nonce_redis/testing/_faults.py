"""What goes wrong on request: faults, and which call each of them hits. Pure: no I/O and no clock."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Point: TypeAlias = Literal["reading", "acting", "answering"]
"""What the exchange was about to do when a fault hit the call."""

_CUT: Final = "cut"
_SLOW: Final = "slow"
_STATUS: Final = re.compile(r"[2-5]\d\d")
_ERROR: Final = re.compile(r"E[A-Za-z]+:\S.*")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with private calls, at one point, for the calls that it is meant for.

    How far the exchange had come:

    ============= =========== ====================
    `before`      nonce used  carried out
    ============= =========== ====================
    `"reading"`   no          no
    `"acting"`    yes         no
    `"answering"` yes         yes
    ============= =========== ====================

    A call that is slow goes on afterwards, also if its client has gone: it is still carried out. Held before
    reading, its nonce is looked at only then, and refused if a higher one came meanwhile. Held before acting,
    its nonce was accepted already and nothing stops it.

    A call that the exchange refuses by itself (nonce, signature, arguments) is hit all the same, and its client
    sees the fault.

    Raises:
        ValueError: a field makes no sense; the message names it.
    """

    what: str
    """`"cut"`: the connection is closed without an answer, before reading with a reset.
    `"slow"`: the call is held for `seconds`, then goes on.
    A status such as `"502"` (200 to 599): a page of HTML, as a gateway sends it.
    An error such as `"EService:Unavailable"`: an answer in Kraken's form. Kraken does not say whether a call that
    got one of these was carried out; `before` decides it here.
    """
    before: Point
    """How far the exchange had come, see above."""
    methods: Collection[str] | None = None
    """Names of the methods that it is meant for, such as `["AddOrder"]`; all private ones if None."""
    calls: Collection[int] | None = None
    """Which of these methods' calls it hits, counted from 1: `[1, 3]`, `range(1, 6)`; all of them if None."""
    probability: float = 1.0
    """How likely it hits each of these methods' calls instead, 0 to 1."""
    seconds: float = 0.0
    """How long the call is held at that point first. Above 0 for `"slow"`, and possible for the others."""

    def __post_init__(self) -> None:
        what = self.what if isinstance(self.what, str) else ""
        if not (what in {_CUT, _SLOW} or _STATUS.fullmatch(what) or _ERROR.fullmatch(what)):
            raise ValueError(
                "what must be 'cut', 'slow', an HTTP status from '200' to '599' or an error "
                f"such as 'EService:Unavailable', not {self.what!r}"
            )
        if self.before not in get_args(Point):
            raise ValueError(f"before must be one of {', '.join(get_args(Point))}, not {self.before!r}")
        if self.methods is not None:
            object.__setattr__(self, "methods", _names(self.methods))
        if self.calls is not None:
            object.__setattr__(self, "calls", _numbers(self.calls))
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, not {self.probability}")
        if self.calls is not None and self.probability != 1:
            raise ValueError("give calls or a probability, not both")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds must be 0 or more, not {self.seconds}")
        if self.what == _SLOW and not self.seconds:
            raise ValueError("a slow call needs seconds above 0")

    @property
    def name(self) -> str:
        """What and where, such as `"cut before reading"`: the text in the log of requests."""
        return f"{self.what} before {self.before}"

    @property
    def is_cut(self) -> bool:
        """Whether the connection is closed without an answer."""
        return self.what == _CUT

    @property
    def is_slow(self) -> bool:
        """Whether the call goes on after it was held."""
        return self.what == _SLOW

    @property
    def status(self) -> int | None:
        """The HTTP status that a gateway answers with, or None if it is another fault."""
        return int(self.what) if self.what.isdigit() else None


def _names(methods: Collection[str]) -> tuple[str, ...]:
    if isinstance(methods, str) or not methods or not all(isinstance(name, str) for name in methods):
        raise ValueError(f"methods must be a list of names, such as ['AddOrder'], not {methods!r}")
    return tuple(methods)


def _numbers(calls: Collection[int]) -> tuple[int, ...]:
    try:
        numbers = tuple(calls)
    except TypeError:
        numbers = ()
    if not numbers or not all(type(number) is int and number >= 1 for number in numbers):
        raise ValueError(f"calls must be a list of numbers from 1 on, not {calls!r}")
    return numbers


class FaultPlan:
    """Decides call by call which fault hits it.

    A fault's luck is its own: whether it hits the n-th call of its methods depends on the seed, on its place in the
    list, on its probability and on n, and on nothing else.
    """

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._faults = tuple(faults)
        self._seed = seed
        self.restart()

    def restart(self) -> None:
        """Count all calls from 1 again, and throw the same dice again."""
        self._counts = [0] * len(self._faults)
        self._dice = [
            Random(f"{self._seed}/{place}")  # noqa: S311 - make-believe bad luck
            for place in range(len(self._faults))
        ]

    def next(self, method: str) -> Fault | None:
        """Count a call of this method; return the first fault of the list that hits it, or None."""
        hitting = None
        for place, fault in enumerate(self._faults):
            if fault.methods is not None and method not in fault.methods:
                continue
            self._counts[place] += 1
            # Every fault counts and throws for every call that it is meant for, whatever hits the call in the end.
            lucky = self._dice[place].random() < fault.probability
            called = fault.calls is None or self._counts[place] in fault.calls
            if lucky and called and hitting is None:
                hitting = fault
        return hitting
