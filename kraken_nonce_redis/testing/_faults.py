"""Faults, and which call each of them hits. Pure: no I/O and no clock."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

from ._pages import RATE_LIMITED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

Point: TypeAlias = Literal["reading", "acting", "answering"]
"""What the exchange was about to do when a fault hit the call."""

_CUT: Final = "cut"
_CLOSE: Final = "close"
_RESET: Final = "reset"
_SLOW: Final = "slow"
_NULL: Final = "null result"
_NONE: Final = "no result"
_WORDS: Final = frozenset({_CUT, _CLOSE, _RESET, _SLOW, _NULL, _NONE})
_PAGE: Final = re.compile(rf"[2-5]\d\d|{RATE_LIMITED}")
_ERROR: Final = re.compile(r"E[A-Za-z]+: ?\S.*")
_WARNING: Final = re.compile(r"W[A-Za-z]+: ?\S.*")
_SECONDS_AHEAD: Final = re.compile(r"(?<=: )\+\d+$")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with private calls, at one point of the call.

    What the exchange has done by then:

    ============= =========== ====================
    `before`      nonce used  call carried out
    ============= =========== ====================
    `"reading"`   no          no
    `"acting"`    yes         no
    `"answering"` yes         yes
    ============= =========== ====================

    A slow call goes on after the delay and is carried out, even if its client is gone. If it is delayed before
    reading, its nonce is checked only afterwards, and refused if a higher one has come in the meantime. If it is
    delayed before acting, its nonce was accepted already, and nothing stops it.

    A fault also hits a call that the exchange would have refused anyway (nonce, signature, arguments). Its client
    sees the fault.

    Raises:
        ValueError: a field is invalid; the message names it.
    """

    what: str
    """What the client gets:

    - `"cut"`: the connection is closed without an answer; before reading, with a reset.
    - `"reset"` and `"close"`: the same, with or without a reset at every point.
    - `"slow"`: the right answer, after a delay of `seconds`.
    - A status such as `"502"` (200 to 599): an HTML page, as from a gateway; for `"429"`, `"520"` to `"527"` and
      `"1015"` (whose status is 429) as from Cloudflare. Its `Date` comes from the gateway's clock, which is right,
      not from the exchange's. A redirect leads back to the address that the call was sent to.
    - An error such as `"EService:Unavailable"`: an answer in Kraken's format. Kraken does not say whether a call with
      such an answer was carried out; here `before` decides. A plus and a number at the end stand for the Unix time
      that many seconds from now: `"EService:Throttled: +60"`.
    - A warning such as `"WGeneral:Deprecated"`: the right answer together with the warning. Only before answering.
    - `"null result"` and `"no result"`: neither an error nor a result.
    """
    before: Point
    """What the exchange was about to do; see above."""
    methods: Collection[str] | None = None
    """Names of the methods whose calls it may hit, such as `["AddOrder"]`; all private ones if None."""
    calls: Collection[int] | None = None
    """Which of these methods' calls it hits, counted from 1: `[1, 3]`, `range(1, 6)`; all of them if None."""
    probability: float = 1.0
    """Probability, 0 to 1, with which it hits each of these methods' calls. Not together with `calls`."""
    seconds: float = 0.0
    """Seconds for which the call is delayed at that point first. Above 0 for `"slow"`; optional for the others."""
    late: float | None = None
    """Seconds after which the call goes on although its client was told something else, as if it had been lost on
    its way and arrived late. None if it does not go on. Not for `"slow"`, and not before answering.
    """
    reused: bool = False
    """Whether it hits only calls on a connection that has carried another request before."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """Headers to add to a page, such as `{"Retry-After": "5"}`, or to replace, such as `{"Location": url}`."""

    def __post_init__(self) -> None:
        what = self.what if isinstance(self.what, str) else ""
        if not (what in _WORDS or _PAGE.fullmatch(what) or _ERROR.fullmatch(what) or _WARNING.fullmatch(what)):
            raise ValueError(
                f"what must be one of {', '.join(sorted(_WORDS))}, an HTTP status from '200' to '599', an error such "
                f"as 'EService:Unavailable' or a warning such as 'WGeneral:Deprecated', not {self.what!r}"
            )
        if self.before not in get_args(Point):
            raise ValueError(f"before must be one of {', '.join(get_args(Point))}, not {self.before!r}")
        if self.methods is not None:
            object.__setattr__(self, "methods", _names(self.methods))
        if self.calls is not None:
            object.__setattr__(self, "calls", _numbers(self.calls))
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, not {self.probability}")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds must be 0 or more, not {self.seconds}")
        if self.late is not None and not 0 <= self.late < math.inf:
            raise ValueError(f"late must be 0 or more seconds, not {self.late}")
        object.__setattr__(self, "headers", dict(self.headers))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.calls is not None and self.probability != 1:
            raise ValueError("give calls or a probability, not both")
        if self.is_slow and not self.seconds:
            raise ValueError("a slow call needs seconds above 0")
        if self.is_warning and self.before != "answering":
            raise ValueError("before must be answering for a warning, since it comes with the right answer")
        if self.late is not None and (self.is_slow or self.before == "answering"):
            raise ValueError("late needs before='reading' or before='acting', and a fault that is not slow")
        if self.headers and self.page is None:
            raise ValueError(f"headers are only for pages, such as '429', not for {self.what!r}")

    @property
    def name(self) -> str:
        """Fault and point, such as `"cut before reading"` or `"524 before reading, late"`: the text in the log."""
        return f"{self.what} before {self.before}" + (", late" if self.late is not None else "")

    @property
    def is_slow(self) -> bool:
        """Whether the call only gets delayed."""
        return self.what == _SLOW

    @property
    def is_warning(self) -> bool:
        """Whether the client gets a warning together with the right answer."""
        return _WARNING.fullmatch(self.what) is not None

    @property
    def closes(self) -> bool:
        """Whether the connection is closed without an answer."""
        return self.what in {_CUT, _CLOSE, _RESET}

    @property
    def resets(self) -> bool:
        """Whether the connection is closed with a reset."""
        return self.what == _RESET or (self.what == _CUT and self.before == "reading")

    @property
    def page(self) -> int | None:
        """The HTTP status, or Cloudflare's number, of the page that the client gets; None if it is another fault."""
        return int(self.what) if self.what.isdigit() else None

    def answer(self, right: Mapping[str, object] | None, now: float) -> dict[str, object]:
        """Return what the client gets, in Kraken's format.

        Args:
            right: the right answer, if the fault hits before answering.
            now: Unix time in seconds by the exchange's clock.
        """
        if self.what == _NULL:
            return {"error": [], "result": None}
        if self.what == _NONE:
            return {"error": []}
        if self.is_warning and right is not None:
            return {**right, "error": [self.what, *cast("list[str]", right["error"])]}
        return {"error": [_SECONDS_AHEAD.sub(lambda match: str(math.ceil(now + int(match[0]))), self.what)]}


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
        raise ValueError(f"calls must be a list of numbers of at least 1, not {calls!r}")
    return numbers


class FaultPlan:
    """Decides which fault hits each call.

    Each fault has its own random numbers: whether it hits the n-th call of its methods depends only on the seed, its
    place in the list, its probability and n.
    """

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._faults = tuple(faults)
        self._seed = seed
        self.restart()

    def restart(self) -> None:
        """Count all calls from 1 again, and start the random numbers over."""
        self._counts = [0] * len(self._faults)
        self._dice = [
            Random(f"{self._seed}/{place}")  # noqa: S311 - simulated bad luck
            for place in range(len(self._faults))
        ]

    def next(self, method: str, *, reused: bool = False) -> Fault | None:
        """Count a call of this method; return the first fault of the list that hits it, or None.

        `reused` says whether its connection has carried another request before.
        """
        hitting = None
        for place, fault in enumerate(self._faults):
            if (fault.methods is not None and method not in fault.methods) or (fault.reused and not reused):
                continue
            self._counts[place] += 1
            # Every fault counts and draws for every call that it may hit, even if another fault hits the call.
            lucky = self._dice[place].random() < fault.probability
            called = fault.calls is None or self._counts[place] in fault.calls
            if lucky and called and hitting is None:
                hitting = fault
        return hitting
