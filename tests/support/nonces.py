"""Judges who got which nonce when; `benchmarks/claim.py` shares it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Note: TypeAlias = tuple[float, float, int, int]
"""When nonces were asked for, when they were there, the first and the last one."""


@dataclass(frozen=True)
class Verdict:
    """What a history of nonces says.

    Attributes:
        nonces: how many were given.
        duplicates: how many of them had been given before.
        backward: how many notes begin below a nonce that had been there before they were asked for.
        longest_silence: seconds in which nobody got any.
    """

    nonces: int
    duplicates: int
    backward: int
    longest_silence: float


def judge(notes: Iterable[Note]) -> Verdict:
    """Compare all notes."""
    upwards = sorted(notes, key=lambda note: note[2])
    duplicates, highest = 0, -1
    for _, _, first, last in upwards:
        duplicates += max(0, min(highest, last) - first + 1)
        highest = max(highest, last)
    backward, earliest = 0, float("inf")  # when the first of the higher ones was there
    for asked, had, _, _ in reversed(upwards):
        backward += earliest < asked
        earliest = min(earliest, had)
    moments = sorted(note[1] for note in upwards)
    silence = max((b - a for a, b in itertools.pairwise(moments)), default=0.0)
    return Verdict(sum(last - first + 1 for _, _, first, last in upwards), duplicates, backward, silence)
