"""The commands for nonces, the lock and the state of an API key, and what they answer; no I/O.

Nonces are whole nanoseconds since 1970 as a rule; Redis gets and gives them as decimal strings, since a Lua number
can't hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import unquote

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis._redis.command import Command
from kraken_nonce_redis.errors import NonceTooFarAhead

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import Priority
    from kraken_nonce_redis._redis.command import Reply
    from kraken_nonce_redis._redis.keyspace import Keyspace

Release: TypeAlias = Literal["released", "gone", "lost"]

_PROCESSES: Final = 4e15  # as in lib/queue.lua: a waiter of high priority has its ticket less this

BLOCK = 100_000
"""Nonces that come with a lease: 0.1 ms worth of them, so that they never run ahead of the clock."""

ANY_KEY: Final = "*"


@dataclass(slots=True)
class Granted:
    """The lock is the caller's.

    Attributes:
        nonces: of its lease.
        left: seconds to the lease's end.
        pending: digests of the API keys with calls of earlier holders that wait to be settled or told, with `ANY_KEY`
            when the server can't name them all.
    """

    nonces: range
    left: float
    pending: tuple[str, ...]


COOLING: Final = "cool-down "


@dataclass(frozen=True, slots=True)
class Waiting:
    """The caller has a place in the queue.

    Attributes:
        ticket: the place; lower is earlier. It can be presented again when the queue was lost.
        joined: identifies the process's stay in the queue.
        left: seconds until the current lease or offer ends, at most.
        cool_down: seconds that a cool-down goes on, 0.0 for none.
        heard: whether the server counts the caller's process among those who hear a message to it.
        reason: the reason of the cool-down.
        cause: ``held``.
    """

    ticket: int
    joined: str
    left: float
    cool_down: float
    heard: bool
    reason: str
    cause: str = "held"


@dataclass(frozen=True, slots=True)
class Booked:
    """The caller is next, but not yet.

    Attributes:
        ticket: as in `Waiting`.
        left: seconds until the caller may ask again.
        cause: ``interval``, ``startup`` or ``counter``, or ``cool-down`` and what Kraken said.
    """

    ticket: int
    left: float
    cause: str


@dataclass(frozen=True, slots=True)
class Busy:
    """The lock is not free now, and the caller does not wait.

    Attributes:
        left: seconds until it can be, at most.
        cause: ``held``, or as in `Booked`.
    """

    left: float
    cause: str


Answer: TypeAlias = Granted | Waiting | Booked | Busy


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Answer to a process's heartbeat.

    Attributes:
        joined: as in `Waiting`; ``-`` when all waiters of the process must ask again, ``=`` when it says nothing.
        offered: the waiter of this process that the lock is offered to, or ``-``.
        left: as in `Waiting`.
        cool_down: seconds that a cool-down goes on, 0.0 for none.
        reason: the reason of the cool-down.
    """

    joined: str
    offered: str
    left: float
    cool_down: float
    reason: str


@dataclass(frozen=True, slots=True)
class Place:
    """One who holds the lock, is offered it, or waits for it.

    Attributes:
        member: its id.
        name: its bot's name; ``""`` for one of the first version.
        method: Kraken's name of the call that it wants to make, ``""`` for none.
        token: the caller's own id for the lease, ``""`` for none.
        priority: of a waiter; that of a holder is not kept, and counts as ``"normal"``.
        asked: seconds since it began to wait.
        held: seconds since it got the lease, 0.0 without one.
    """

    member: str
    name: str
    method: str
    token: str
    priority: Priority
    asked: float
    held: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """What is stored for an API key.

    Attributes:
        now: server time, ns since 1970.
        last: the last nonce handed out, or None.
        holder: id of the holder, or of the waiter that the lock is offered to; ``""`` when free.
        place: what is known of the holder; None when the lock is free.
        leased: whether the holder has a lease that still runs.
        left: seconds until the lease or offer ends, 0.0 when it ran out.
        renewed: seconds since the lease was granted or extended last, or the offer made; 0.0 when the lock is free.
        ended: seconds since the lease or offer ran out, 0.0 while it runs and when the lock is free.
        waiting: number of waiters.
        waiters: the first hundred of them in their order, if they were asked for.
        pending: number of calls of earlier holders that wait to be settled or told.
        cool_down: seconds that a cool-down goes on, 0.0 for none.
        reason: the reason of the cool-down.
    """

    now: int
    last: int | None
    holder: str
    place: Place | None
    leased: bool
    left: float
    renewed: float
    ended: float
    waiting: int
    waiters: tuple[Place, ...]
    pending: int
    cool_down: float
    reason: str


def reserve(keys: Keyspace, count: int, name: str = "") -> Command[range]:
    """Hand out the next nonces to a bot, whose name is as in Redis."""
    return Command(
        "reserve",
        keys.for_nonces,
        (count, name),
        lambda reply: range(int(reply[1]), int(reply[2]) + 1),
        lambda block: block[-1],
        spare=len(keys.for_nonces) - 1,
    )


def advance(keys: Keyspace, target: int, max_lead: int, below: int | None = None, name: str = "") -> Command[int]:
    """Raise the last nonce to at least a target, unless it has reached ``below`` already; ns, all.

    ``name`` is that of the bot, as in Redis; ``below`` is for raises after a refusal.
    """

    def read(reply: Reply) -> int:
        if reply[0] == "too-far":
            lead = target - int(reply[2])
            raise NonceTooFarAhead(
                f"{keys.state}: {target} is {lead / 1e9:.3f} s ahead of the server's clock, more than max_lead "
                f"({max_lead / 1e9:.3f} s); nothing was changed. Nonces here are nanoseconds since 1970",
                last=int(reply[1]),
                lead=lead,
                max_lead=max_lead,
            )
        return int(reply[1])

    return Command(
        "advance",
        (keys.state, keys.log),
        (target, max_lead, arguments.HIGHEST_NONCE if below is None else below, name),
        read,
        lambda last: last,
        spare=1,
    )


def inspect(keys: Keyspace, what: Literal["all", "waiters", "lock"] = "all") -> Command[State]:
    """Read the state, without changing it; with the waiters, or the lock only, whatever the other fields hold."""
    return Command("inspect", (keys.state, keys.queue), (what,), _read_state)


def inspect_all(keys: tuple[str, ...]) -> Command[State]:
    """Read the state of another command's keys, with the waiters."""
    return Command("inspect", keys, ("waiters",), _read_state)


def _read_state(reply: Reply) -> State:
    _, now, nonce, lease, left, member, asked, granted, *more = reply
    set_at, ends, waiting, pending, cool_down, number, *words = more
    end = 2 * int(number)
    waiters = zip(words[:end:2], map(float, words[1:end:2]), strict=True)
    return State(
        now=int(now) * 1000,
        last=None if nonce == "-" else int(nonce),
        holder="" if member == "-" else member,
        place=None if member == "-" else _place(member, int(now), int(asked), int(granted)),
        leased=lease != "-" and left != "0",
        left=_seconds(left),
        renewed=_since(now, set_at),
        ended=_since(now, ends),
        waiting=int(waiting),
        waiters=tuple([_place(waiter, int(now), score) for waiter, score in waiters]),
        pending=int(pending),
        cool_down=_seconds(cool_down),
        reason=" ".join(words[end:]),
    )


def _place(member: str, now: int, score: float, granted: int = 0) -> Place:
    _, name, method, token = [*member.split("|", 3), "", "", ""][:4]
    return Place(
        member,
        unquote(name),
        unquote(method),
        token,
        "high" if score < 0 else "normal",
        max(0.0, (now - score % _PROCESSES) / 1e6),
        max(0.0, (now - granted) / 1e6) if granted else 0.0,
    )


def _since(now: str, moment: str) -> float:
    return max(0, int(now) - int(moment)) / 1e6 if moment != "0" else 0.0


Heard: TypeAlias = Literal["0", "1", "?"]
"""Whether PUBLISH was seen to count this process among those who hear a message to it; ``?`` to try that."""


def acquire(
    keys: Keyspace,
    member: str,
    ttl: float,
    *,
    ticket: int | None,
    priority: Priority,
    pace: str,
    intent: str = "",
    heard: Heard = "0",
) -> Command[Answer]:
    """Get the lock and a block of nonces, or a place in the queue unless ``ticket`` is None.

    ``pace`` is from `Pace.settings`, ``intent`` from `intent`; either may be empty.
    """
    return Command(
        "acquire",
        keys.for_the_lock[:3],
        (member, microseconds(ttl), BLOCK, "" if ticket is None else ticket, priority, pace, intent, heard),
        _read_acquire,
        _highest_acquired,
        spare=1,
    )


def _read_acquire(reply: Reply) -> Answer:
    if reply[0] == "granted":
        first = int(reply[1])
        return Granted(range(first, first + BLOCK), _seconds(reply[2]), () if reply[3] == "0" else _keys_of(*reply[3:]))
    if reply[0] == "waiting":
        _, ticket, joined, left, cool_down, heard, *reason = reply
        return Waiting(int(ticket), joined, _seconds(left), _seconds(cool_down), heard == "1", " ".join(reason))
    if reply[0] == "booked":
        return Booked(int(reply[1]), _seconds(reply[2]), " ".join(reply[3:]))
    return Busy(_seconds(reply[1]), " ".join(reply[2:]))


def _keys_of(number: str, *counts: str) -> tuple[str, ...]:
    """Return the API keys of pending calls, by how many there are in all and for each key."""
    named = {key: int(count) for key, _, count in (word.rpartition(":") for word in counts)}
    return (*named, ANY_KEY) if sum(named.values()) < int(number) else tuple(named)


def _highest_acquired(answer: Answer) -> int:
    return answer.nonces[-1] if isinstance(answer, Granted) else 0


def release(
    keys: Keyspace, member: str, lease: int = 0, intent: int = 0, *, known: bool = True, late: bool = False
) -> Command[Release]:
    """Give up a lease, an offer or a place in the queue.

    ``intent`` is the nonce of the intent noted last, 0 for none; ``known`` is whether the outcome of its call is.
    ``late`` is whether a request of the member for the lock may still arrive: it was sent twice, or over a connection
    that was given up.
    The result is ``lost`` when the lease is known to have ended, ``gone`` when there was none for a reason unknown.
    """
    # Only what became of a call is rare. The server needs a noticeable time for each further key.
    names = keys.for_the_lock if intent or not known or keys.trail == "all" else keys.for_the_lock[:2]
    return Command(
        "release", names, (member, lease, intent, int(known), int(late)), _read_release, spare=len(names) - 2
    )


def _read_release(reply: Reply) -> Release:
    return "released" if reply[0] == "released" else "lost" if reply[0] == "lost" else "gone"


def heartbeat(keys: Keyspace, process_id: str, oldest: str, *, heard: bool = False) -> Command[Heartbeat]:
    """Send a waiting process's heartbeat; ``heard`` as in `Waiting`."""
    return Command(
        "heartbeat",
        keys.for_the_lock[:3],
        (process_id, oldest, int(heard)),
        lambda reply: Heartbeat(reply[1], reply[3], _seconds(reply[2]), _seconds(reply[4]), " ".join(reply[5:])),
        spare=1,
    )


@dataclass(frozen=True, slots=True)
class Extended:
    """A lease goes on.

    Attributes:
        nonces: fresh ones.
        left: seconds to its end.
    """

    nonces: range
    left: float


def extend(
    keys: Keyspace,
    member: str,
    seconds: float,
    intent: str = "",
    *,
    known: bool = True,
    number: int = 1,
    replace: bool = False,
) -> Command[Extended | Literal["late", "lost"]]:
    """Make a lease end a number of seconds from now, or at its present end if that is later and ``replace`` False.

    ``intent`` is noted for the next call; ``known`` is whether the outcome of the one before is. ``number`` counts the
    extensions of a lease: one that arrives after a later one changes nothing and is ``late``.
    """

    def read(reply: Reply) -> Extended | Literal["late", "lost"]:
        if reply[0] == "extended":
            first = int(reply[1])
            return Extended(range(first, first + BLOCK), _seconds(reply[2]))
        return "late" if reply[0] == "late" else "lost"

    return Command(
        "extend",
        keys.for_nonces,
        (member, microseconds(seconds), BLOCK, intent, int(known), number, "set" if replace else "keep"),
        read,
        lambda result: result.nonces[-1] if isinstance(result, Extended) else 0,
        spare=len(keys.for_nonces) - 1,
    )


def unlock(keys: Keyspace, member: str, name: str = "") -> Command[bool]:
    """End a holder's lease by force; ``""`` removes a lock that is a `ForeignValue`. False: it was not the holder.

    ``name`` is that of who does it, as in Redis.
    """
    return Command("unlock", keys.for_the_lock[:3], (member, name), lambda reply: reply[0] == "unlocked", spare=1)


def cool_down(keys: Keyspace, seconds: float, reason: str, name: str = "") -> Command[float]:
    """Stop all calls for a number of seconds, 0 to end a cool-down; the result is the seconds left of it.

    ``name`` is that of who does it, as in Redis.
    """
    return Command(
        "cool_down",
        keys.for_the_lock[:3],
        (microseconds(seconds), " ".join(reason.split()), name),
        lambda reply: 0.0 if reply[0] == "ended" else _seconds(reply[1]),
        spare=1,
    )


def end_cool_down(keys: Keyspace, name: str = "") -> Command[str]:
    """End a cool-down, whatever the state holds; the result is its reason, ``""`` if there was none."""
    return Command(
        "cool_down",
        keys.for_the_lock[:3],
        (0, "", name),
        lambda reply: " ".join(reply[1:]) if reply[0] == "ended" else "",
        spare=1,
    )


def ping(keys: Keyspace) -> Command[None]:
    """Find out whether the server runs scripts on the key and takes writes."""
    return Command("ping", keys.for_the_lock[:2], (), lambda _: None)


def reset_startup(keys: Keyspace) -> Command[None]:
    """Make the next call open a new startup window."""
    return Command("reset_startup", (keys.state,), (), lambda _: None)


def microseconds(seconds: float) -> int:
    """Return whole microseconds."""
    return round(seconds * 1_000_000)


def _seconds(microseconds: str) -> float:
    return int(microseconds) / 1_000_000
