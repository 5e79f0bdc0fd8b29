"""Those of this process who wait for a lock, key by key, and the heartbeats that keep their places; no I/O."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis import events
from kraken_nonce_redis._core import names
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.commands import COOLING, Waiting
from kraken_nonce_redis.errors import CoolDown, HoldTimeout, KrakenNonceError

if TYPE_CHECKING:
    from kraken_nonce_redis._core.process_state import ProcessState
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.commands import Booked, Heartbeat
    from kraken_nonce_redis._redis.keyspace import Keyspace

HEARTBEAT = 1.0
"""Seconds between two heartbeats of a process that waits for a key, on average."""
OFFER = 1.2
"""Seconds that a waiter has to take the lock once it is offered, next to its process's round trip."""
LONGEST_WAY = 0.4
"""Seconds of a round trip that count for an offer at most. All three as in lua/lib/queue.lua."""
QUEUE_LIFE = 10.0
"""Seconds for which a place in the queue outlasts the last heartbeat, as in lua/lib/queue.lua."""
_LONG = QUEUE_LIFE / 2
"""Seconds of a booking for which heartbeats are sent, since its place in the queue must last if another goes first."""
TOGETHER = 0.05
"""Seconds in which a process asks once for a key, however many messages come on its channel."""
_ON_THE_WAY = 0.1
_GONE = "-"
_UNKNOWN = "="
_JUST_AFTER = 0.002
_REASONS = {
    "held": "its holder has up to",
    "interval": "the pace's min_interval allows the next call in",
    "startup": "the pace's startup protection allows the next call in",
    "counter": "Kraken's counter has room for the call in",
}
_NEWS = (1.0, 10.0)
"""After so many seconds a wait is told of once more, and then every minute."""
_MINUTE = 60.0


class Signal(Protocol):
    """What a waiting caller sleeps on: `threading.Event`, `asyncio.Event`."""

    def set(self) -> None:
        """Wake the sleeper."""
        ...


@dataclass(eq=False, slots=True)
class Waiter:
    """One caller that wants the lock."""

    keys: Keyspace
    member: str
    until: float | None
    ticket: int = 0
    queued: bool = False
    """Whether it was in the queue when it was last answered, and not booked for a later time."""
    asked: bool = False
    woken: bool = False
    late: bool = False
    failure: KrakenNonceError | None = None
    signal: Signal | None = None
    left: bool = False
    began: float = field(default_factory=lambda: clock.now())  # noqa: PLW0108 - tests put another clock there
    cause: str = ""
    """Why it waits."""
    told_after: float = 0.0
    """After how many seconds of waiting it was told of last."""

    def began_to_wait(self, answer: Waiting | Booked) -> None:
        """Take note of why it waits, and tell of the wait's beginning."""
        first, self.cause = not self.cause, answer.cause
        if first and telling.wanted(events.WaitingBegan):
            telling.note(
                events.WaitingBegan(
                    **names.told_of(self.keys, self.member), since=time.time(), cause=answer.cause, left=answer.left
                )
            )

    def still_waits(self, now: float) -> None:
        """Tell of a wait that has become long."""
        wait = now - self.began
        due = next((after for after in _NEWS if after > self.told_after), self.told_after + _MINUTE)
        if not self.cause or wait < due:
            return
        self.told_after = due
        if telling.wanted(events.StillWaiting, wait):
            telling.note(
                events.StillWaiting(
                    **names.told_of(self.keys, self.member), since=time.time() - wait, cause=self.cause, wait=wait
                )
            )

    def timed_out(self, error: HoldTimeout) -> None:
        """Tell of a wait that ended without the lock."""
        wait = clock.now() - self.began if self.cause else 0.0
        if telling.wanted(events.WaitTimedOut, wait):
            telling.note(
                events.WaitTimedOut(
                    **names.told_of(self.keys, self.member),
                    since=time.time() - wait,
                    wait=wait,
                    error=type(error).__name__,
                )
            )

    def cooled(self, seconds: float, reason: str) -> None:
        """Take note of a cool-down: a caller that would not wait that long gets an error at once."""
        if seconds > 0 and self.until is not None and self.until < clock.now() + seconds:
            self.failure = CoolDown(self.keys.state, seconds, reason)
            self.wake()

    def too_late(self, left: float, cause: str) -> HoldTimeout:
        """Return the error for a caller that timed out."""
        if cause.startswith(COOLING):
            return CoolDown(self.keys.state, left, cause.removeprefix(COOLING))
        return HoldTimeout(
            f"timed out waiting for the lock on {self.keys.state}; "
            f"{_REASONS.get(cause, cause)} {max(left, 0.1):.1f} s{' left' if cause == 'held' else ''}",
            self.keys.state,
        )

    def wake(self) -> None:
        """Make the caller ask again, or look at its failure."""
        self.woken = True
        signal = self.signal
        if signal is not None:
            signal.set()


class Question:
    """A chore: ask once for the waiters of a key, since messages came."""

    def __init__(self, key_waiters: KeyWaiters, due: float) -> None:
        self._key_waiters = key_waiters
        self.due = due

    def command(self, now: float) -> Command[Heartbeat] | None:
        """Return a heartbeat, which asks for all, or let one waiter ask for itself."""
        return self._key_waiters.ask(now, self.due)

    def succeeded(self, command: Command[Heartbeat], result: Heartbeat, now: float) -> None:
        """Let the waiters know."""
        del command, now
        self._key_waiters.answered(result)

    def failed(self, error: KrakenNonceError, now: float) -> None:
        """Tell everyone."""
        del now
        self._key_waiters.fail(error)


class KeyWaiters:
    """The waiters of this process for one key."""

    def __init__(self, process_state: ProcessState, keys: Keyspace) -> None:
        self.keys = keys
        self._asked = -math.inf
        """When a message made this process ask, or will make it ask."""
        self._called: dict[str, None] = {}
        """The members that messages have named since, the first one first."""
        self._for_all = False
        """Whether to ask for all, before any of these."""
        self._question: Question | None = None
        """What is scheduled for them."""
        self.waiters: dict[str, Waiter] = {}
        self._heartbeat_scheduled = False
        self._process_state = process_state
        self._joined = _GONE
        self._beat = 0.0
        """When the latest heartbeat was answered, or the first one put down."""

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiter."""
        with self._process_state.turn:
            self.waiters.pop(waiter.member, None)
            waiter.left = True
            self._asked = -math.inf  # the offer was true, as a rule, and the next one is for another waiter
            if not self.waiters:
                self._joined = _GONE  # the next stay in the queue is a new one, and no waiter has to ask again for it
                self._forget_if_idle()

    def _forget_if_idle(self) -> None:
        if not self.waiters and not self._heartbeat_scheduled:
            self._process_state.waiters_by_key.pop(self.keys.state, None)

    def everyone(self) -> list[Waiter]:
        """Return the waiters, the oldest first."""
        with self._process_state.turn:
            return list(self.waiters.values())

    def heard(self, joined: str) -> bool:
        """Take note of the process's stay in the queue; return whether the one known so far is over.

        When it has changed, the server has removed this process from the queue, and with it the places of all its
        waiters: they ask again. The server does so when an offer was not taken.
        """
        if joined == _UNKNOWN:
            return False
        removed = joined == _GONE or self._joined not in (_GONE, joined)
        self._joined = joined
        if removed:
            self._process_state.counted.pop(self.keys.state, None)
            self.ask_again()
        return removed

    def placed(self, answer: Waiting | Booked) -> None:
        """Take note of the place of a waiter. For one that is booked, send heartbeats only if that is for long."""
        if isinstance(answer, Waiting):
            self.heard(answer.joined)
            self.start_heartbeat(answer.left)
            self.cooled(answer.cool_down, answer.reason)
            return
        if answer.left > _LONG:
            self.start_heartbeat(answer.left)
        if answer.cause.startswith(COOLING):
            self.cooled(answer.left, answer.cause.removeprefix(COOLING))

    def ask_again(self) -> None:
        """Make all waiters ask again."""
        for waiter in self.everyone():
            waiter.wake()

    def cooled(self, seconds: float, reason: str) -> None:
        """Tell all waiters of a cool-down."""
        self._process_state.cooled(self.keys.state, seconds, reason)
        for waiter in self.everyone():
            waiter.cooled(seconds, reason)

    # Messages, which anybody may send: they say nothing but that it is time to ask.

    def called(self, waiter: Waiter | None) -> None:
        """Let a waiter ask, or the process for all of them: at once, or a moment later if it has just done so."""
        if waiter is not None and waiter.woken:
            return  # it is about to ask
        now = clock.now()
        with self._process_state.turn:
            at_once = now >= self._asked + TOGETHER
            if at_once and waiter is not None:
                self._asked = now
                waiter.wake()
                return
            # Of several the one that is offered the lock goes first, and a heartbeat names it.
            self._for_all |= waiter is None or not self._called.keys() <= {waiter.member}
            if waiter is not None:
                self._called[waiter.member] = None
            if self._question is not None:
                return
            question = self._next_question(now if at_once else self._asked + TOGETHER)
        self._process_state.agenda.add(question.due, question)

    def _next_question(self, due: float) -> Question:
        self._asked = due
        self._question = Question(self, due)
        return self._question

    def ask(self, now: float, due: float) -> Command[Heartbeat] | None:
        """Return a heartbeat for the messages that came, or wake the first waiter that they name and return None."""
        with self._process_state.turn:
            heartbeat = self.heartbeat(now)
            if heartbeat is not None and now < due:
                return heartbeat
            self._asked, self._question = now, None
            self._called = {member: None for member in self._called if member in self.waiters}
            for_all, self._for_all = self._for_all or heartbeat is None, False
            if not for_all and self._called:
                first = next(iter(self._called))
                del self._called[first]
                self.waiters[first].wake()
                self._for_all = bool(self._called)
            question = self._next_question(now + TOGETHER) if self._called else None
        if question is not None:
            self._process_state.agenda.add(question.due, question)
        return heartbeat if for_all else None

    # The chore: a heartbeat while there are waiters.

    def start_heartbeat(self, left: float) -> None:
        """Start to send heartbeats, for a waiter."""
        with self._process_state.turn:
            begin, self._heartbeat_scheduled = not self._heartbeat_scheduled, True
        if begin:
            self._beat = clock.now()
            # The first one may come within the second, since the end of the current lease may be near.
            self._process_state.agenda.add(clock.now() + min(left + _JUST_AFTER, until_heartbeat(left)), self)

    def command(self, now: float) -> Command[Heartbeat] | None:
        """Return the heartbeat, or None when there are no waiters."""
        with self._process_state.turn:
            heartbeat = self.heartbeat(now)
            if heartbeat is None:
                self._heartbeat_scheduled = False
                self._forget_if_idle()
            return heartbeat

    def heartbeat(self, now: float) -> Command[Heartbeat] | None:
        """Return a heartbeat, which asks for all waiters, or None when there are none."""
        with self._process_state.turn:
            if not self.waiters:
                return None
            queued = (member for member, waiter in self.waiters.items() if waiter.queued)
            oldest = next(queued, next(iter(self.waiters)))
            timeouts = [waiter.until for waiter in self.waiters.values() if waiter.until is not None]
        heard = self._process_state.heard_for(self.keys.state) == "1"
        heartbeat = commands.heartbeat(self.keys, self._process_state.process_id, oldest, heard=heard)
        heartbeat.until = max(now + QUEUE_LIFE, *timeouts) if timeouts else now + QUEUE_LIFE
        return heartbeat

    def succeeded(self, command: Command[Heartbeat], result: Heartbeat, now: float) -> float:
        """Let the waiters know; return when the next heartbeat is due."""
        del command
        if self.answered(result):
            # It should have heard of an offer before: the connection for offers may be dead without showing it.
            self._process_state.listening = False
            self.ask_again()  # so that one of them listens anew
        self._beat = now
        for waiter in self.everyone():
            waiter.still_waits(now)
        return now + until_heartbeat(result.left)

    def answered(self, result: Heartbeat) -> bool:
        """Wake the waiter that the lock is offered to, and tell all of a cool-down.

        Return whether a message must have been missed.
        """
        offered = self.waiters.get(result.offered)
        if offered is None:
            self._process_state.recall(result.offered)
        late = False
        if offered is not None and not offered.woken:
            offered.wake()
            late = result.left < OFFER - _ON_THE_WAY
        removed = self.heard(result.joined)
        self.cooled(result.cool_down, result.reason)
        return late or (removed and self._process_state.heard < self._beat)

    def failed(self, error: KrakenNonceError, now: float) -> float:
        """Tell everyone."""
        self.fail(error)
        return now + HEARTBEAT

    def fail(self, error: KrakenNonceError) -> None:
        """Tell everyone that the lock can't be had."""
        for waiter in self.everyone():
            waiter.failure = error
            waiter.wake()


def until_heartbeat(left: float) -> float:
    """Return the seconds to the next heartbeat, such that one falls on the end of a lease or an offer.

    No two are further apart than an offer lasts, so a lost wake-up is noticed while the waiter can still take the lock.
    """
    if left <= 0:
        return HEARTBEAT
    parts = max(math.floor(left / HEARTBEAT), math.ceil(left / (HEARTBEAT * OFFER)))
    return max(left / parts, HEARTBEAT / 4) + _JUST_AFTER
