"""What processes did while something went wrong, from their notes; and what was wrong with that.

Each line of a process's notes is a list in JSON: the number of a call, what happened, when, and what belongs to it.
Times are those of the monotonic clock. The judge is pure: it looks at calls and at when state was lost, and at nothing
else.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kraken_nonce_redis import errors
from tests.support.nonces import judge as judge_nonces

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass
class Call:
    """One call of a process.

    Attributes:
        process: whose.
        what: ``next``, ``reserve`` or ``hold``.
        asked: when it was begun.
        had: when it had what it wanted, None if it never did.
        first: the first nonce that it got.
        last: the last nonce that it got.
        until: for a lease, its end, as its holder sees it.
        left: when the holder had done what it wanted the lease for.
        over: when the call came back, None if it never did.
        error: the name of the error that it raised.
        told: whether an event said afterwards that the lease had ended early.
    """

    process: str
    what: str
    asked: float
    had: float | None = None
    first: int = 0
    last: int = 0
    until: float = 0.0
    left: float | None = None
    over: float | None = None
    error: str = ""
    told: bool = False


@dataclass(frozen=True)
class Loss:
    """A time in which what was stored in Redis was lost, or some of it."""

    begin: float
    end: float


@dataclass
class History:
    """The calls of all processes, read from their notes as they grow."""

    folder: Path
    calls: dict[tuple[str, int], Call] = field(default_factory=dict)
    _read: Counter[Path] = field(default_factory=Counter)

    def update(self) -> list[Call]:
        """Read what is new; return all calls so far."""
        for path in sorted(self.folder.glob("*.notes")):
            with path.open("rb") as file:
                file.seek(self._read[path])
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]  # the last line may be half there, of a killed process for good
            self._read[path] += len(new)
            for line in new.splitlines():
                self._take(path.stem, *json.loads(line))
        return list(self.calls.values())

    def _take(self, process: str, number: int, event: str, at: float, *details: Any) -> None:
        if event == "asked":
            self.calls[process, number] = Call(process, details[0], at)
            return
        call = self.calls[process, number]
        if event == "had":
            call.had = at
            call.first, call.last, call.until = details
        elif event == "left":
            call.left = at
            call.last = details[0]
        elif event == "told":
            call.told = True
        else:
            call.over = at
            call.error = details[0]


@dataclass(frozen=True)
class Verdict:
    """What was wrong with a history.

    Attributes:
        nonces: how many were taken.
        leases: how many were had.
        duplicates: how many nonces came twice.
        backward: how many were below one that had been there before they were asked for.
        two_holders: how many pairs of leases ran at the same time, though nothing was lost between them.
        excused: how many pairs did, of which the later one came after a loss.
        forgotten: calls that were neither served nor told, of processes that were not killed.
        strange: errors that are not this library's.
        told: how often which error was raised.
    """

    nonces: int
    leases: int
    duplicates: int
    backward: int
    two_holders: int
    excused: int
    forgotten: tuple[Call, ...]
    strange: tuple[str, ...]
    told: dict[str, int]

    @property
    def faultless(self) -> bool:
        """Whether everything holds that the library promises."""
        return not (self.duplicates or self.backward or self.two_holders or self.forgotten or self.strange)


def judge(calls: Iterable[Call], losses: Sequence[Loss] = (), killed: dict[str, float] | None = None) -> Verdict:
    """Judge a history.

    Args:
        calls: of all processes.
        losses: when state was lost.
        killed: which processes were killed, and when.
    """
    killed = killed or {}
    calls = list(calls)
    served = [call for call in calls if call.had is not None]
    nonces = judge_nonces((call.asked, call.had or 0.0, call.first, call.last) for call in served)
    two_holders, excused = _overlaps([call for call in served if call.what == "hold"], losses, killed)
    told = dict(Counter(call.error for call in calls if call.error))
    return Verdict(
        nonces=nonces.nonces,
        leases=sum(call.what == "hold" for call in served),
        duplicates=nonces.duplicates,
        backward=nonces.backward,
        two_holders=two_holders,
        excused=excused,
        forgotten=tuple(call for call in calls if call.over is None and call.process not in killed),
        strange=tuple(sorted(name for name in told if not _is_ours(name))),
        told=told,
    )


def _is_ours(name: str) -> bool:
    return issubclass(getattr(errors, name, object), errors.KrakenNonceError)


def _overlaps(leases: list[Call], losses: Sequence[Loss], killed: dict[str, float]) -> tuple[int, int]:
    """Return how many pairs of leases ran at the same time: without and with a loss between their grants."""
    leases = sorted(leases, key=lambda lease: lease.had or 0.0)
    # Nobody believed to have a lease whose grant arrived only when its time was up.
    leases = [lease for lease in leases if lease.had is not None and lease.had < _end(lease, killed)]
    two_holders = excused = 0
    running: list[Call] = []
    for later in leases:
        assert later.had is not None
        running = [lease for lease in running if _end(lease, killed) > later.had]
        for earlier in running:
            if any(loss.begin <= later.had and loss.end >= earlier.asked for loss in losses):
                excused += 1
            else:
                two_holders += 1
        running.append(later)
    return two_holders, excused


def _end(lease: Call, killed: dict[str, float]) -> float:
    """Return until when a holder believed that it had the lock."""
    gone = killed.get(lease.process, lease.until)
    return min(lease.until, gone if lease.left is None else lease.left)


def untold(calls: Iterable[Call], losses: Sequence[Loss]) -> list[Call]:
    """Return the leases that were held when state was lost and whose holders heard nothing of it."""
    return [
        call
        for call in calls
        if call.what == "hold"
        and call.had is not None
        and call.left is not None
        and not (call.error or call.told)
        and any(call.had < loss.begin and loss.end < call.left for loss in losses)
    ]


@dataclass(frozen=True)
class Recovery:
    """How long callers went without, in seconds.

    Attributes:
        lasted: how long the fault took.
        nonce_from_begin: from its begin to the first nonce that was asked for since.
        nonce: from its end to the next nonce.
        lease: from its end to the next lease.
        everyone: from its end until every process had had both.
    """

    lasted: float
    nonce_from_begin: float
    nonce: float
    lease: float
    everyone: float


def recovery(calls: Iterable[Call], processes: Iterable[str], begin: float, end: float) -> Recovery | None:
    """Return how long it took from a fault until all was well again; None while it isn't.

    For `everyone` only what was asked for after the end counts.
    """
    served = [(call, call.had) for call in calls if call.had is not None and call.had >= begin]
    firsts: dict[tuple[str, bool], float] = {}
    for call, had in served:
        if call.asked >= end:
            kind = (call.process, call.what == "hold")
            firsts[kind] = min(had, firsts.get(kind, had))
    if not all((process, hold) in firsts for process in processes for hold in (False, True)):
        return None
    afterwards = [(call, had) for call, had in served if had >= end]
    return Recovery(
        lasted=end - begin,
        nonce_from_begin=min(had for call, had in served if call.what != "hold" and call.asked >= begin) - begin,
        nonce=min(had for call, had in afterwards if call.what != "hold") - end,
        lease=min(had for call, had in afterwards if call.what == "hold") - end,
        everyone=max(firsts.values()) - end,
    )
