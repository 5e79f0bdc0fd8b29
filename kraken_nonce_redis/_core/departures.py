"""What those who no longer want the lock still have of it in Redis, and the chores that give it up; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.waiters import TOGETHER
from kraken_nonce_redis._redis import commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kraken_nonce_redis._core.process_state import ProcessState
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.commands import Release, State
    from kraken_nonce_redis.errors import KrakenNonceError

_RETRY = 1.0


class BackgroundReleases:
    """A chore: give up what callers of one key had and could not give back themselves, until it has ended anyway."""

    def __init__(self, process_state: ProcessState, key: str) -> None:
        self._process_state = process_state
        self._key = key
        self._running = False
        self._commands: dict[Command[Release], float] = {}

    def add(self, command: Command[Release], give_up: float) -> bool:
        """Add a release and the time when it is not worth trying any more; return whether the chore must be begun."""
        with self._process_state.turn:
            self._commands[command] = give_up
            begin, self._running = not self._running, True
            return begin

    def owed(self) -> Sequence[Command[Release]]:
        """Return the releases, the oldest first."""
        with self._process_state.turn:
            return list(self._commands)

    def returned(self, command: Command[Release]) -> None:
        """Take note that a release has reached the server."""
        with self._process_state.turn:
            give_up = self._commands.pop(command, 0.0)
        self._process_state.departed_for_good(command, give_up - clock.now())

    def command(self, now: float) -> Command[Release] | None:
        """Return the release of one member, or None when none is left."""
        with self._process_state.turn:
            self._commands = {command: give_up for command, give_up in self._commands.items() if give_up > now}
            if not self._commands:
                self._running = False
                self._process_state.background_releases.pop(self._key, None)
                return None
            return next(iter(self._commands))

    def succeeded(self, command: Command[Release], result: Release, now: float) -> float:
        """Go on with the next release at once."""
        del result
        self.returned(command)
        return now

    def failed(self, error: KrakenNonceError, now: float) -> float:
        """Try again later."""
        del error
        return now + _RETRY


@dataclass(slots=True)
class Departed:
    """One who has left.

    Attributes:
        release: what has told the server so.
        at: when on `clock.now` the server has answered that.
        until: until when on `clock.now` a server that has lost that may take it for present.
    """

    release: Command[Release]
    at: float
    until: float


class Recall:
    """A chore: look for members of this process that have left, in the locks and queues that they were in.

    A server that takes over may lack the last writes of the one before.
    """

    def __init__(self, process_state: ProcessState, keys: set[tuple[str, ...]]) -> None:
        self._process_state = process_state
        self._keys = keys

    def command(self, now: float) -> Command[State] | None:
        """Return a look at one key, or None when all were looked at."""
        del now
        return commands.inspect_all(next(iter(self._keys))) if self._keys else None

    def succeeded(self, command: Command[State], result: State, now: float) -> float:
        """Give back what is held for those who have left; go on when there are none."""
        found = [result.holder, *(waiter.member for waiter in result.waiters)]
        if any([self._process_state.recall(member) for member in found]):  # noqa: C419 - every one of them
            return now + TOGETHER
        self._keys.discard(command.keys)
        return now

    def failed(self, error: KrakenNonceError, now: float) -> float:
        """Try again later, where it may still be of use."""
        del error
        self._keys &= self._process_state.departed_keys()
        return now + _RETRY
