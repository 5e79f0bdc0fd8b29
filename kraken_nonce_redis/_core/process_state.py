"""What one process knows of one Redis: its waiters, what it has to give up, floors, outages and cool-downs; no I/O."""

from __future__ import annotations

import itertools
import math
import os
import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis import events
from kraken_nonce_redis._core import names
from kraken_nonce_redis._core.departures import BackgroundReleases, Departed, Recall
from kraken_nonce_redis._core.waiters import LONGEST_WAY, QUEUE_LIFE, TOGETHER, KeyWaiters
from kraken_nonce_redis._redis import commands, keyspace
from kraken_nonce_redis._redis.commands import COOLING, Busy, Granted
from kraken_nonce_redis._redis.places import Floors
from kraken_nonce_redis._redis.words import text
from kraken_nonce_redis.errors import StoreUnavailable, from_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kraken_nonce_redis._core.agenda import Agenda
    from kraken_nonce_redis._core.waiters import Waiter
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.commands import Answer, Heard, Release
    from kraken_nonce_redis.errors import KrakenNonceError

T = TypeVar("T")

_MOST_DEPARTED = 4096
_CROSSING = 1.0
"""Seconds in which an offer of the lock to one who has left may have crossed with its release."""
_LONGER = 1.0
"""Seconds by which a cool-down ends later than was known, so that it is told of again."""
LOST_STATE_MARGIN = 1_000_000_000
"""Nanoseconds between the highest nonce seen and the next one after lost state, as in lua/lib/block.lua."""


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
    departed: dict[str, Departed] = field(default_factory=dict)
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
            self.departed[str(command.args[0])] = Departed(command, now, now + max(left, QUEUE_LIFE))
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
        name = text(message["data"])
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
