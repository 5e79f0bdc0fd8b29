"""How a caller acquires the lock and gives up what it had of it; no I/O.

The functions that end in ``-ing`` are generators: they yield a `Step`, and the shell carries it out and sends
back the result or throws in the error. So waiting, giving up and cleaning up are written once for threads and
for asyncio.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis import events
from kraken_nonce_redis._core import closing, names
from kraken_nonce_redis._core.steps import Flow, Listen, Pause, Run
from kraken_nonce_redis._redis import commands, keyspace
from kraken_nonce_redis._redis.commands import COOLING, Busy, Command, Granted, Heartbeat, State, Waiting
from kraken_nonce_redis._redis.places import Floors
from kraken_nonce_redis.errors import (
    CoolDown,
    HoldTimeout,
    KrakenNonceError,
    StoreError,
    StoreUnavailable,
    from_redis,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kraken_nonce_redis._core.agenda import Agenda
    from kraken_nonce_redis._core.wishes import Wishes
    from kraken_nonce_redis._redis.commands import Answer, Booked, Heard, Release
    from kraken_nonce_redis._redis.keyspace import Keyspace
    from kraken_nonce_redis.durability import Durability

T = TypeVar("T")

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
_ON_THE_WAY = 0.1
_GONE = "-"
_UNKNOWN = "="
_JUST_AFTER = 0.002
_RETRY = 1.0
_MOST_DEPARTED = 4096
_CROSSING = 1.0
"""Seconds in which an offer of the lock to one who has left may have crossed with its release."""
_REASONS = {
    "held": "its holder has up to",
    "interval": "the pace's min_interval allows the next call in",
    "startup": "the pace's startup protection allows the next call in",
    "counter": "Kraken's counter has room for the call in",
}
_NEWS = (1.0, 10.0)
"""After so many seconds a wait is told of once more, and then every minute."""
_MINUTE = 60.0
_LONGER = 1.0
"""Seconds by which a cool-down ends later than was known, so that it is told of again."""
LOST_STATE_MARGIN = 1_000_000_000
"""Nanoseconds between the highest nonce seen and the next one after lost state, as in lua/lib/block.lua."""
TOGETHER = 0.05
"""Seconds in which a process asks once for a key, however many messages come on its channel."""


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
class _Departed:
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


def _at_once(function: Callable[[], object]) -> None:
    function()


@dataclass(slots=True)
class ProcessState:
    """What one process (or event loop) knows of one Redis.

    Attributes:
        agenda: the chores beside the callers.
        turn: must be held while waiters and background releases are looked up or changed.
        later: runs a function outside of the caller that reads replies for others.
    """

    agenda: Agenda
    later: Callable[[Callable[[], object]], object] = _at_once
    redis: str = ""
    """Where Redis is, for people."""
    divided: bool = False
    """Whether that are several nodes, each of which has some of the keys."""
    process_id: str = field(default_factory=lambda: secrets.token_hex(8))
    round_trip: float = LONGEST_WAY
    """Seconds that a command takes."""
    listening: bool = False
    heard: float = 0.0
    """When the latest message came on the channel."""
    counted: dict[str, bool] = field(default_factory=dict)
    """By state key, whether the server has counted this process when a script sent it a message."""
    departed: dict[str, _Departed] = field(default_factory=dict)
    """By member, those who have left last, the oldest first."""
    floors: Floors = field(default_factory=Floors)
    held: dict[tuple[object, str], Any] = field(default_factory=dict)
    """The leases held, by owner (thread or task) and state key."""
    turn: threading.RLock = field(default_factory=threading.RLock)
    waiters_by_key: dict[str, KeyWaiters] = field(default_factory=dict)
    """By state key, for keys with waiters."""
    background_releases: dict[str, BackgroundReleases] = field(default_factory=dict)
    """By state key, for keys that have any."""
    cool_downs: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By state key, of the cool-downs that are known: when that was, by the clock for people, and the end."""
    away: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By state key, or under "" where there is one server: since when it is away, by the clock for people and ours."""
    master: str = ""
    """The address of the server that was connected to last, where there is one at a time."""
    names_seen: set[str] = field(default_factory=set)
    """The state keys under which this process has seen that orders have names."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def channel(self) -> str:
        """The channel on which the server offers the lock to waiters of this process."""
        return keyspace.channel(self.process_id)

    @property
    def anyone_waits(self) -> bool:
        """Whether this process has waiters for any key."""
        return any(key_waiters.waiters for key_waiters in list(self.waiters_by_key.values()))

    def ask_again(self) -> None:
        """Make all waiters ask again, since offers may have been missed."""
        for key_waiters in list(self.waiters_by_key.values()):
            key_waiters.ask_again()

    def fail(self, error: KrakenNonceError) -> None:
        """Tell all waiters that they can't get the lock any more."""
        for key_waiters in list(self.waiters_by_key.values()):
            key_waiters.fail(error)

    def new_member(self, name: str = "-", method: str = "", token: str | None = None) -> str:
        """Return the id of a new acquisition; the bot's name, the method and a caller's token are parts of it."""
        round_trip = math.ceil(min(self.round_trip, LONGEST_WAY) * 1000)
        # A process can be copied with all that it knows, as snapshots of small machines are.
        member = f"{self.process_id}:{next(self._numbers)}-{round_trip}.{os.urandom(4).hex()}|{name}|{method}"
        return member if token is None else f"{member}|{token}"

    def took(self, seconds: float) -> None:
        """Take note of how long a command took."""
        self.round_trip += (seconds - self.round_trip) / 4

    def request(self, command: Command[Any], *, whole: bool = False) -> bytes:
        """Return the bytes of a command, with the floor where it takes one; ``whole`` as in `Command.request`."""
        if command.highest is None:
            return command.request(0, whole=whole)
        command.floor = self.floors.get(command.keys[0])
        return command.request(command.floor, whole=whole)

    def learn(self, command: Command[T], result: T) -> None:
        """Take what a result says: Redis answers, and the floor rises to the highest nonce in it."""
        if self.away:
            self._answers(command)
        if command.highest is not None:
            highest = command.highest(result)
            if highest:
                self.floors.learn(command.keys[0], highest)
                if command.floor:
                    self._look_for_loss(command, result)

    # What is told of Redis, and of a key to all of this process

    def _announce(self, kind: type[events.News], state: str, **attributes: Any) -> None:
        """Tell news about a state key, or about all of them if that is empty."""
        key = keyspace.tag_of(state) if state else ""
        telling.announce(kind(key=key, name=names.shown_of_process(), **attributes), self.later)

    def _place(self, command: Command[Any]) -> str:
        """Return what fails as one with a command: its state key, or ``""`` for all of them."""
        return command.keys[0] if self.divided else ""

    def missed(self, command: Command[Any], error: Exception) -> None:
        """Take note that a command has failed, with an error of redis-py or the system."""
        failure, place = from_redis(error, command.name, command.key_of(error)), self._place(command)
        if telling.wanted(events.StoreFailed):
            telling.note(
                events.StoreFailed(
                    key=keyspace.tag_of(command.keys[0]),
                    name=names.shown_of_process(),
                    operation=command.name,
                    error=type(failure).__name__,
                )
            )
        if isinstance(failure, StoreUnavailable):
            away = time.time(), clock.now()
            if self.away.setdefault(place, away) is away:
                self._announce(events.RedisAway, place, since=away[0], redis=self.redis, reason=str(failure))

    def _answers(self, command: Command[Any]) -> None:
        """Take note that Redis answers."""
        place = self._place(command)
        away = self.away.pop(place, None)
        if away is not None:
            seconds = clock.now() - away[1]
            self._announce(events.RedisBack, place, since=away[0], redis=self.redis, seconds=seconds)

    def connected(self, address: str) -> None:
        """Take note of the server that was connected to, where there is one at a time."""
        former, self.master = self.master, address
        if former not in {"", address}:
            self.moved("", former, address)

    def moved(self, state: str, former: str, master: str) -> None:
        """Tell that another server answers, for one state key or ``""`` for all."""
        self._announce(events.MasterChanged, state, former=former, master=master)

    def _look_for_loss(self, command: Command[Any], result: Any) -> None:
        """Tell of lost state, if the nonces of a result begin where they do only then."""
        nonces = result if isinstance(result, range) else getattr(result, "nonces", None)
        if nonces is not None and nonces[0] == command.floor + 1 + LOST_STATE_MARGIN:
            self._announce(events.StateLost, command.keys[0], seen=command.floor, nonce=nonces[0])

    def look_for_cool_down(self, state: str, answer: Answer) -> None:
        """Take note of what an answer says of a cool-down, where the waiters are not told of it."""
        if isinstance(answer, Granted):
            if self.cool_downs:
                self.cooled(state, 0.0)
        elif isinstance(answer, Busy) and answer.cause.startswith(COOLING):
            self.cooled(state, answer.left, answer.cause.removeprefix(COOLING))

    def cooled(self, state: str, seconds: float, reason: str = "") -> None:
        """Take note of how long a cool-down of a state key goes on, 0 for none."""
        with self.turn:
            now, known = clock.now(), self.cool_downs.get(state)
            if seconds <= 0:
                began = self.cool_downs.pop(state, None)
            elif known is None or now + seconds > known[1] + _LONGER:
                since = time.time() if known is None or known[1] <= now else known[0]
                began = self.cool_downs[state] = since, now + seconds
            else:
                began = None
        if began is None:
            return
        if seconds > 0:
            self._announce(events.CoolDownBegan, state, since=began[0], seconds=seconds, reason=reason)
        else:
            self._announce(events.CoolDownOver, state, since=began[0])

    def heard_for(self, key: str) -> Heard:
        """Return what the server has to know of whether it counts this process as a listener."""
        if not self.listening:
            return "0"
        counted = self.counted.get(key)
        return "?" if counted is None else "1" if counted else "0"

    # What the server may have lost

    def departed_for_good(self, command: Command[Release], left: float = 0.0) -> None:
        """Take note of a release that the server has answered, of a member that had ``left`` seconds."""
        now = clock.now()
        with self.turn:
            self.departed[str(command.args[0])] = _Departed(command, now, now + max(left, QUEUE_LIFE))
            if len(self.departed) > _MOST_DEPARTED:
                del self.departed[next(iter(self.departed))]

    def departed_keys(self) -> set[tuple[str, ...]]:
        """Return the keys of the locks that may be held for one who has left."""
        now = clock.now()
        with self.turn:
            return {departed.release.keys[:2] for departed in self.departed.values() if departed.until > now}

    def recall(self, member: str) -> bool:
        """Repeat the release of a member that the server takes for present; return whether it has left."""
        departed = self.departed.get(member)
        if departed is None or departed.until <= clock.now():
            return False
        self.give_back(replace(departed.release), departed.until - clock.now())
        return True

    def reconnected(self) -> None:
        """Look whether the server still knows of our releases, since another one may have taken over."""
        keys = self.departed_keys()
        if keys:
            self.agenda.add(clock.now() + TOGETHER, Recall(self, keys))

    def enter(self, waiter: Waiter) -> KeyWaiters:
        """Add a waiter to those for its key; return them."""
        key = waiter.keys.state
        with self.turn:
            key_waiters = self.waiters_by_key.get(key)
            if key_waiters is None:
                key_waiters = self.waiters_by_key[key] = KeyWaiters(self, waiter.keys)
            key_waiters.waiters[waiter.member] = waiter
            return key_waiters

    def give_back(self, command: Command[Release], seconds: float) -> None:
        """Let the agenda give up what a member may have, trying for ``seconds``."""
        now, key = clock.now(), command.keys[0]
        with self.turn:
            chore = self.background_releases.get(key)
            if chore is None:
                chore = self.background_releases[key] = BackgroundReleases(self, key)
            begin = chore.add(command, now + seconds)
        if begin:
            self.agenda.add(now, chore)

    def owed(self, command: Command[Any]) -> Sequence[Command[Release]]:
        """Return the releases that must reach the server before a later command about the lock of their key does.

        Commands for nonces alone wait for none. They work even while the lock, which needs two keys, can't be
        acquired, such as while a cluster moves its slot.
        """
        if not self.background_releases or command.name == "release" or command.one_key:
            return ()
        chore = self.background_releases.get(command.keys[0])
        return () if chore is None else chore.owed()

    def left_behind(self, *, at_end: bool) -> Sequence[Command[Release]]:
        """Return the releases of all that is no longer needed: owed releases, and at the end the places of waiters.

        Before the end a waiter goes on, and may be granted the lock at this moment.
        """
        owed = [command for chore in list(self.background_releases.values()) for command in chore.owed()]
        if not at_end:
            return owed
        waiters = [waiter for key_waiters in list(self.waiters_by_key.values()) for waiter in key_waiters.everyone()]
        return [*owed, *(commands.release(waiter.keys, waiter.member, late=waiter.late) for waiter in waiters)]

    def returned(self, command: Command[Release]) -> None:
        """Take note that a release has reached the server."""
        chore = self.background_releases.get(command.keys[0])
        if chore is not None:
            chore.returned(command)

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take a message from the channel: a member, a state key, or a confirmation.

        Anybody may publish there, so a message makes its waiters ask, and nothing it says is believed. Other messages
        are ignored.
        """
        self.heard = clock.now()
        if message["type"] == "subscribe":
            self.listening = True
            self.counted.clear()
            return
        name = commands.text(message["data"])
        for state, key_waiters in list(self.waiters_by_key.items()):
            waiter = key_waiters.waiters.get(name)
            if waiter is not None or name == state:
                key_waiters.called(waiter)
                return
        departed = self.departed.get(name)
        if departed is not None and self.heard > departed.at + _CROSSING:
            self.recall(name)

    def rouse(self) -> None:
        """Wake one sleeper without an offer, so that it may listen."""
        for key_waiters in list(self.waiters_by_key.values()):
            for waiter in key_waiters.everyone():
                signal = waiter.signal
                if signal is not None and not waiter.woken:
                    signal.set()
                    return


@dataclass(slots=True)
class Acquired:
    """What came of acquiring.

    Attributes:
        member: the member that has the lock now.
        nonces: of its lease.
        deadline: the end of its lease on `clock.now`.
        pending: as in `Granted`.
        late: whether a copy of a request for the lock may still arrive.
    """

    member: str
    nonces: range
    deadline: float
    pending: tuple[str, ...]
    late: bool


def acquiring(
    process_state: ProcessState,
    keys: Keyspace,
    member: str,
    wishes: Wishes,
    *,
    ttl: float,
    pace: str = "",
    durability: Durability | None = None,
    keep: Callable[[Acquired], None] = lambda _: None,
) -> Flow[Acquired]:
    """Get the lock for a caller with these wishes, waiting for it as long as they say.

    ``keep`` takes note of the grant while the caller still counts as a waiter: who ends the process sees one of both.

    Raises `HoldTimeout` and `StoreError`. After any error, also an interruption of the shell, nothing of the caller
    stays in Redis: its place, offer or lease is given up, at once or, when Redis is unavailable, by the agenda.
    """
    waiter = Waiter(keys, member, None if wishes.timeout is None else clock.now() + wishes.timeout)
    key_waiters = process_state.enter(waiter)
    try:
        acquired = yield from _asking(
            process_state, key_waiters, waiter, wishes, ttl=ttl, pace=pace, durability=durability
        )
        closing.check(keys.state)  # what is granted while the process ends may be released for it
    except (StoreUnavailable, GeneratorExit) as error:
        if waiter.asked:
            release = commands.release(keys, member, late=waiter.late or isinstance(error, GeneratorExit))
            process_state.give_back(release, max(ttl, QUEUE_LIFE))
        raise
    except BaseException as error:
        if isinstance(error, HoldTimeout):
            waiter.timed_out(error)
        # With durability it may have been granted before the error; so it may if the first of two answers was lost.
        unheard = waiter.late or durability is not None
        if waiter.ticket or unheard or not isinstance(error, StoreError | HoldTimeout):
            yield from _giving_up(process_state, waiter, ttl, late=waiter.late)
        raise
    else:
        keep(acquired)
        return acquired
    finally:
        key_waiters.leave(waiter)


def _asking(
    process_state: ProcessState,
    key_waiters: KeyWaiters,
    waiter: Waiter,
    wishes: Wishes,
    *,
    ttl: float,
    pace: str,
    durability: Durability | None,
) -> Flow[Acquired]:
    """Ask for the lock until it is granted. In between, sleep until it is offered or the time to ask again has come."""
    while True:
        waiter.woken = False
        closing.check(waiter.keys.state)
        started = clock.now()
        patient = waiter.until is None or started < waiter.until
        listening = process_state.listening
        command = commands.acquire(
            waiter.keys,
            waiter.member,
            ttl,
            ticket=waiter.ticket if patient else None,
            priority=wishes.priority,
            pace=pace,
            intent=wishes.intent,
            heard=process_state.heard_for(waiter.keys.state),
        ).durable(durability)
        command.until = waiter.until
        try:
            answer: Answer = yield Run(command)
            process_state.took(clock.now() - started)
        finally:
            waiter.late |= command.late or command.repeated
            waiter.asked |= not command.unsent
        process_state.look_for_cool_down(waiter.keys.state, answer)
        if isinstance(answer, Granted):
            return Acquired(waiter.member, answer.nonces, started + answer.left, answer.pending, waiter.late)
        if isinstance(answer, Busy):
            raise waiter.too_late(answer.left, answer.cause)
        waiter.ticket, waiter.queued = answer.ticket, isinstance(answer, Waiting)
        if isinstance(answer, Waiting) and command.args[-1] == "?":
            process_state.counted[waiter.keys.state] = answer.heard
        waiter.began_to_wait(answer)
        key_waiters.placed(answer)
        if not (listening and process_state.listening):
            yield from _listening(process_state)  # and ask again, since an offer may have come before
            continue
        if isinstance(answer, Waiting):
            yield Pause(waiter, waiter.until)
        else:
            yield Pause(waiter, min(clock.now() + answer.left, math.inf if waiter.until is None else waiter.until))
        if waiter.failure is not None:
            raise waiter.failure
        if waiter.until is not None and clock.now() >= waiter.until and not waiter.woken:
            raise waiter.too_late(answer.left, answer.cause)


def _listening(process_state: ProcessState) -> Flow[None]:
    if not process_state.listening:
        yield Listen()


def _giving_up(process_state: ProcessState, waiter: Waiter, ttl: float, *, late: bool) -> Flow[None]:
    release = commands.release(waiter.keys, waiter.member, late=late)
    release.until = clock.now()  # the agenda tries it longer
    try:
        yield Run(release)
        process_state.departed_for_good(release, ttl)
    except BaseException as error:
        process_state.give_back(release, max(ttl, QUEUE_LIFE))
        if not isinstance(error, StoreError):
            raise
