"""How a process stops: it begins no more calls, those under way end, and what is left of them is given up; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _process
from kraken_nonce_redis.errors import ShuttingDown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kraken_nonce_redis._core.process_state import ProcessState

AGAIN: Final = 0.01
"""Seconds between two looks whether a call is still under way."""
_LONGEST: Final = 3_600.0


def checked(seconds: float) -> float:
    """Return how long calls have to end. Raises `InvalidArgument`."""
    return arguments.seconds("seconds", seconds, 0, _LONGEST)


def begin(seconds: float) -> float:
    """Let nobody in this process acquire a lock any more; return the checked seconds. Raises `InvalidArgument`."""
    seconds = checked(seconds)
    _process.current().closing = True
    return seconds


def check(key: str) -> None:
    """Raise `ShuttingDown` if this process acquires no more locks."""
    if _process.current().closing:
        raise ShuttingDown(key)


def turn_away(state: ProcessState) -> None:
    """Tell all who wait for a lock that they don't get it any more."""
    state.fail(ShuttingDown(""))


def is_under_way(states: Iterable[ProcessState], *callers: object) -> bool:
    """Return whether anybody but the caller, who can do nothing meanwhile, holds a lock or still waits for one."""
    return any(
        state.anyone_waits or any(owner not in callers and not lease.grant.over for owner, lease in _held(state))
        for state in states
    )


def give_up(state: ProcessState) -> int:
    """Release all locks that are held, whatever their holders do; return how many.

    The holders' leases have ended, so they send nothing more. What they have sent stays in the journal.
    """
    return sum([lease.give_up() for _, lease in _held(state)])


def _held(state: ProcessState) -> list[tuple[object, Any]]:
    return [(owner, lease) for (owner, _), lease in list(state.held.items())]
