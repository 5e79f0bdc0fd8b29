"""The judge of histories notices what it is there for, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support import nonces
from tests.support.histories import Call, History, Loss, judge, recovery, untold

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.once


def nonce(asked: float, had: float, first: int, last: int | None = None, process: str = "a") -> Call:
    """Return a call that took nonces."""
    return Call(process, "next", asked, had, first, last or first, over=had)


def lease(asked: float, had: float, left: float, first: int, process: str = "a", until: float = 100.0) -> Call:
    """Return a lease that was held until a time."""
    return Call(process, "hold", asked, had, first, first, until, left, over=left)


WELL = (
    nonce(0, 1, 10),
    nonce(0, 2, 11, 20),
    nonce(2.5, 3, 21, process="b"),
    lease(1, 4, 5, 30),
    lease(2, 5, 6, 40, "b"),
)


def test_all_is_well() -> None:
    """A history with nothing wrong in it has nothing held against it."""
    verdict = judge(WELL)
    assert verdict.faultless
    assert (verdict.nonces, verdict.leases, verdict.excused, dict(verdict.told)) == (14, 2, 0, {})


def test_at_the_same_time() -> None:
    """Of two who ask at the same time, either may have the lower nonce, though it has it later."""
    assert judge([nonce(0, 3, 10), nonce(1, 2, 11)]).faultless


@pytest.mark.parametrize(
    ("first", "last", "number"), [(10, 10, 1), (11, 11, 1), (15, 25, 6), (20, 20, 1), (5, 30, 11), (12, 14, 3)]
)
def test_a_duplicate(first: int, last: int, number: int) -> None:
    """A nonce that was given before is noticed, inside of blocks and at their ends."""
    verdict = judge([nonce(0, 9, 10, 20), nonce(0, 9, first, last, "b")])
    assert (verdict.duplicates, verdict.faultless) == (number, False)


def test_a_duplicate_beyond_another_block() -> None:
    """Also when a block lies between the two."""
    assert judge([nonce(0, 9, 10, 90), nonce(0, 9, 20, 30), nonce(0, 9, 80, 80)]).duplicates == 12


def test_a_nonce_that_goes_back() -> None:
    """A nonce below one that was there before it was asked for is noticed, however many lie between."""
    verdict = judge([*WELL, nonce(1.5, 7, 9, process="c")])
    assert (verdict.backward, verdict.duplicates, verdict.faultless) == (1, 0, False)
    assert judge([*WELL, nonce(0.5, 7, 9, process="c")]).faultless, "asked for before any was there"


def test_a_block_that_goes_back() -> None:
    """So is a block whose first nonces do."""
    assert judge([nonce(0, 1, 50), nonce(2, 3, 40, 60, "b")]).backward == 1
    assert judge([nonce(0, 1, 50, 55), nonce(2, 3, 40, 45, "b")]).backward == 1


def test_the_longest_silence() -> None:
    """The time in which nobody got a nonce is told."""
    assert nonces.judge([(0, 1, 1, 1), (0, 4, 3, 3), (0, 2, 2, 2)]).longest_silence == 2


def test_two_holders() -> None:
    """Two leases that ran at the same time are noticed, also of one process, and also if one lies within the other."""
    assert judge([lease(0, 1, 5, 10), lease(2, 4, 6, 20, "b")]).two_holders == 1
    assert judge([lease(0, 1, 5, 10), lease(2, 4, 6, 20)]).two_holders == 1
    assert judge([lease(0, 1, 9, 10), lease(2, 4, 6, 20, "b"), lease(5, 7, 8, 30)]).two_holders == 2
    assert not judge([lease(0, 1, 5, 10), lease(2, 4, 6, 20, "b")]).faultless


def test_a_holder_past_its_lease() -> None:
    """A holder that knows that its lease is over holds nothing, however late it leaves."""
    assert judge([lease(0, 1, 9, 10, until=3.0), lease(2, 4, 6, 20, "b")]).faultless
    assert judge([lease(0, 1, 9, 10, until=4.5), lease(2, 4, 6, 20, "b")]).two_holders == 1


def test_a_lease_that_was_over_when_it_came() -> None:
    """A holder whose grant was so late that it knows its lease to be over never held anything."""
    assert judge([lease(0, 5, 8, 20), lease(0, 6, 7, 10, "b", until=6.0)]).faultless
    assert judge([lease(0, 5, 8, 20), lease(0, 6, 7, 10, "b", until=6.5)]).two_holders == 1


def test_a_killed_holder() -> None:
    """A process that was killed holds nothing from then on; until then it does."""
    gone = replace(lease(0, 1, 0, 10), left=None, over=None)
    assert judge([gone, lease(2, 4, 6, 20, "b")], killed={"a": 3}).faultless
    assert judge([gone, lease(2, 4, 6, 20, "b")], killed={"a": 5}).two_holders == 1


@pytest.mark.parametrize(
    ("begin", "end", "excused"), [(2, 3, 1), (0, 0.5, 1), (3.5, 9, 1), (4.5, 5, 0), (-2, -1, 0)], ids=str
)
def test_lost_state_between_two_grants(begin: float, end: float, excused: int) -> None:
    """Two holders are counted apart when state was lost after the first grant and before the second."""
    verdict = judge([lease(0, 1, 5, 10), lease(2, 4, 6, 20, "b")], [Loss(begin, end)])
    assert (verdict.two_holders, verdict.excused) == (1 - excused, excused)


def test_lost_state_excuses_no_nonce() -> None:
    """Lost state is no excuse for a nonce."""
    verdict = judge([nonce(0, 1, 50), nonce(2, 3, 40), nonce(2, 3, 50)], [Loss(0, 9)])
    assert (verdict.duplicates, verdict.backward, verdict.faultless) == (1, 1, False)


@pytest.mark.parametrize("had", [None, 2.0])
def test_a_caller_neither_served_nor_told(had: float | None) -> None:
    """A call that never came back is noticed, unless its process was killed."""
    waiter = Call("a", "hold", 1, had=had, first=50, last=50, until=2.0)
    assert judge([*WELL[:2], waiter]).forgotten == (waiter,)
    assert not judge([*WELL[:2], waiter]).faultless
    assert judge([*WELL[:2], waiter], killed={"a": 2}).forgotten == ()


def test_what_callers_were_told() -> None:
    """Errors are counted by name, and one that is not this library's is noticed."""
    told = [Call("a", "hold", 1, over=2, error=name) for name in ("HoldTimeout", "HoldTimeout", "LeaseLost")]
    verdict = judge(told)
    assert (dict(verdict.told), verdict.faultless) == ({"HoldTimeout": 2, "LeaseLost": 1}, True)
    for name in ("TimeoutError", "ConnectionError", "AssertionError"):
        assert judge([*told, Call("a", "hold", 1, over=2, error=name)]).strange == (name,)


def test_a_holder_that_hears_nothing_of_a_loss() -> None:
    """A lease that was held over a loss and ended without an error is found."""
    silent, heard = lease(0, 1, 5, 10), replace(lease(0, 1, 5, 10), error="LeaseLost")
    assert untold([silent, heard, lease(5, 6, 7, 20)], [Loss(2, 3)]) == [silent]


def test_recovery() -> None:
    """All is well when every process has had both again; the first ones say how long there was nothing."""
    calls = [nonce(0, 1, 10), nonce(2, 6, 11), nonce(5.5, 7, 12), lease(3, 8, 9, 13), lease(5.5, 9, 10, 14)]
    assert recovery(calls, ["a"], 3, 5) is not None
    assert recovery(calls, ["a", "b"], 3, 5) is None
    assert recovery(calls[:-1], ["a"], 3, 5) is None, "its lease was asked for before the end"
    found = recovery(calls, ["a"], 3, 5)
    assert found is not None
    assert (found.lasted, found.nonce_from_begin, found.nonce, found.lease, found.everyone) == (2, 4, 1, 3, 4)


def test_notes_are_read_as_they_grow(tmp_path: Path) -> None:
    """Lines are read once, and one that is half written when it is complete."""
    history = History(tmp_path)
    notes = tmp_path / "007.notes"
    lines = [
        [0, "asked", 1.0, "next"],
        [0, "had", 2.0, 10, 12, 0],
        [0, "over", 2.5, ""],
        [1, "asked", 3.0, "hold"],
        [1, "had", 4.0, 20, 20, 34.0],
        [1, "left", 5.0, 22],
        [1, "over", 6.0, "LeaseLost"],
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for end in (0, 20, 100, len(text) - 3, len(text)):
        notes.write_text(text[:end])
        calls = history.update()
    first = Call("007", "next", 1.0, 2.0, 10, 12, 0, None, 2.5)
    assert calls == [first, Call("007", "hold", 3.0, 4.0, 20, 22, 34.0, 5.0, 6.0, "LeaseLost")]
