"""What is said to Redis and what it answers; no I/O.

A `Command` is one run of one script: its keys, its arguments and how to read the reply. The functions below make
them. Nonces are whole nanoseconds since 1970 as a rule; Redis gets and gives them as decimal strings, since a Lua
number can't hold them.
"""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeAlias, TypeVar
from urllib.parse import quote, unquote

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis._redis import resp, scripts
from kraken_nonce_redis.errors import ForeignValue, NonceTooFarAhead, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kraken_nonce_redis._arguments import Priority
    from kraken_nonce_redis._redis.keyspace import Keyspace
    from kraken_nonce_redis.durability import Durability

Release: TypeAlias = Literal["released", "gone", "lost"]
Reply: TypeAlias = "Sequence[str]"
Result: TypeAlias = Literal["found", "absent", "partly", "unknown"]
"""What a holder has found out about another one's call."""
T = TypeVar("T")

_PROCESSES: Final = 4e15  # as in lib/queue.lua: a waiter of high priority has its ticket less this

BLOCK = 100_000
"""Nonces that come with a lease: 0.1 ms worth of them, so that they never run ahead of the clock."""

_ANOTHER: Final = "if another program uses this key, use another namespace"
_REMEDIES: Final = {
    "pending": "set it with HSET {key} pending 1, so that the next call counts anew",
    "lock": "run kraken-nonce unlock, which shows it and removes it",
    "cool_down": "run kraken-nonce unlock --cool-down, which removes it",
    "pace": "call reset_startup(), which removes it",
}
_OWN = "+"  # is percent-encoded in ids themselves
ANY_KEY: Final = "*"


@dataclass(slots=True, eq=False)  # a frozen one takes four times as long to make
class Command(Generic[T]):
    """One run of a script.

    Attributes:
        name: the script.
        keys: the keys it touches, the state first, those of the trail last.
        args: its arguments, without the floor.
        read: makes the result from the reply; raises errors of our tree.
        durability: how many servers must have its write before the result counts.
        repeated: set when the command was sent more than once, so that it may have run more than once.
        late: set when it may still arrive: it was sent more than once, or its connection was given up.
        unsent: set when it is known that the command was not sent at all.
        spare: how many of its last keys it can do without: those of the trail.
        highest: for a script that takes the caller's floor as its first argument, the highest nonce in a result.
        floor: for such a script, the floor that it was sent with last.
        until: until when on `clock.now` its caller waits while a cluster moves its slot; None if the caller has no
            timeout.
    """

    name: str
    keys: tuple[str, ...]
    args: tuple[str | int, ...]
    read: Callable[[Reply], T]
    highest: Callable[[T], int] | None = None
    spare: int = 0
    floor: int = 0
    durability: Durability | None = None
    repeated: bool = False
    late: bool = False
    unsent: bool = False
    until: float | None = None

    @property
    def script(self) -> scripts.Script:
        """The script's source and hash."""
        return scripts.load(self.name)

    def request(self, floor: int, *, whole: bool = False) -> bytes:
        """Return the bytes to send, ``whole`` for a server that lacks the script; with durability, two requests."""
        args: tuple[str | int, ...] = self.args if self.highest is None else (floor, *self.args)
        begin = _begin(self.name, self.keys, len(args), whole)
        end = b"" if self.durability is None else resp.pack(self.durability.words)
        return b"".join((begin, *[resp.pack_word(word) for word in args], end))

    @property
    def due(self) -> int:
        """How many replies its request brings."""
        return 1 if self.durability is None else 2

    @property
    def one_key(self) -> bool:
        """Whether it needs no key but one. While a cluster moves their slot, a server can't serve several."""
        return len(self.keys) - self.spare == 1

    def without_trail(self) -> bool:
        """Give up the keys of the trail, for a server that can't serve them now; return whether there were any."""
        if not self.spare:
            return False
        self.keys, self.spare = self.keys[: -self.spare], 0
        return True

    def durable(self, durability: Durability | None) -> Self:
        """Make the command count only when enough servers have its write; return it."""
        self.durability = durability
        return self

    def result(self, raw: object) -> T:
        """Read what the script returned: words with a space between them. Raises `StoreError`, `NonceTooFarAhead`."""
        reply = text(raw).split(" ")
        if reply[0] == "foreign":
            raise self._foreign(self._foreign_key(reply[1]), reply[1], " ".join(reply[2:]))
        if reply[0] == "overflow":
            raise NonceTooFarAhead(
                f"{self.keys[0]}: no nonce is left below 2^63; the last one is {reply[1]}. "
                "The API key is poisoned: replace it at Kraken",
                last=int(reply[1]),
                lead=0,
                max_lead=0,
            )
        with contextlib.suppress(ValueError, LookupError):
            return self.read(reply)
        # Outside of the block: an error that was raised in it would carry what the server said, as its context.
        raise StoreError(self.name, self.keys[0], "what answers there is no Redis: it has run none of our scripts")

    def _foreign_key(self, field: str) -> str:
        """Return the key with a field of which a script says that this library did not write it."""
        return self.keys[-1] if self.name == "once" and field != "-" else self.keys[0]

    def _foreign(self, key: str, field: str, value: str) -> ForeignValue:
        """Return the error for a field with a value that this library did not write; ``-`` stands for the whole key."""
        if field == "-":
            return ForeignValue(self.name, key, f"it is no hash; {_ANOTHER}, or remove it with DEL ({value})")
        remedy = _REMEDIES.get(field, "remove it with HDEL {key} {field}").format(key=key, field=field)
        error = ForeignValue(
            self.name,
            key,
            f"its field {field!r} holds {value[:40]!r}, which this library did not write; {_ANOTHER}, or {remedy}. "
            "What each field is for: docs/faults.md",
        )
        error.field = field
        return error

    def key_of(self, error: Exception) -> str:
        """Return the key that a server's error is about. Scripts say themselves if the state is of another type."""
        return self.keys[1] if "WRONGTYPE" in str(error) and not self.one_key else self.keys[0]


@functools.lru_cache(maxsize=4096)
def _begin(name: str, keys: tuple[str, ...], count: int, whole: bool) -> bytes:  # noqa: FBT001 - a key of the cache
    """Return the bytes of a run of a script up to its arguments."""
    script = scripts.load(name)
    run = ("EVAL", script.source) if whole else ("EVALSHA", script.sha)
    words: tuple[str | int, ...] = (*run, len(keys), *keys)
    return b"*%d\r\n" % (len(words) + count) + b"".join([resp.pack_word(word) for word in words])


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


@dataclass(frozen=True, slots=True)
class Pending:
    """A call that changes something and whose outcome is unknown.

    Attributes:
        nonce: the first of a block of `BLOCK` nonces, ns since 1970; an order's last request had one of these.
        since: server time when its holder was gone, ns since 1970.
        age: seconds since then.
        reported: whether a later holder has told that it could do no more about it.
        result: what a later holder has found out and not told yet, as in `kraken_nonce_redis.events.OrderSettled`.
        noted: seconds since that was noted; 0.0 without a result.
        txids: Kraken's, of each cl_ord_id that was found.
        key: digest of the API key.
        method: Kraken's name.
        cl_ord_ids: of the orders that it places; empty when they had none.
        own_ids: whether all of these were made up for this one call.
        name: of the bot that made it, ``""`` if it is not known.
    """

    nonce: int
    since: int
    age: float
    reported: bool
    result: Result | None
    noted: float
    txids: Mapping[str, str]
    key: str
    method: str
    cl_ord_ids: tuple[str, ...]
    own_ids: bool
    name: str

    @property
    def state(self) -> Literal["new", "reported"] | Result:
        """Its state in one word, as in lib/journal.lua."""
        return "reported" if self.reported else self.result or "new"


def intent(key: str, method: str, cl_ord_ids: Iterable[str], *, own_ids: bool = False) -> str:
    """Return what the scripts note of a call that changes something, before the name of its bot."""
    return f"{key} {word(method)} {_OWN if own_ids else ''}{_join(cl_ord_ids)}"


def word(text: str) -> str:
    """Return a text as it stands in a member or an intent: without spaces or bars."""
    return quote(text, safe="/:@")


def _join(words: Iterable[str]) -> str:
    return ",".join(quote(word, safe="").replace("-", "%2D", word == "-") for word in words) or "-"


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


def pending(keys: Keyspace) -> Command[tuple[Pending, ...]]:
    """Look at the calls whose outcome is unknown, the oldest first."""

    def read(reply: Reply) -> tuple[Pending, ...]:
        now, words = int(reply[1]), iter(reply[2:])
        found = [_read_pending(now, *record) for record in zip(*[words] * 9, strict=True)]
        return tuple(sorted(found, key=lambda entry: entry.nonce))

    return Command("pending", (keys.state,), (), read)


def _read_pending(  # noqa: PLR0917 - the words of a record
    now: int, nonce: str, since: str, state: Any, key: str, method: str, ids: str, name: str, at: str, txids: str
) -> Pending:
    cl_ord_ids = _split(ids.removeprefix(_OWN))
    return Pending(
        nonce=int(nonce),
        since=int(since) * 1000,
        age=(now - int(since)) / 1e6,
        reported=state == "reported",
        result=state if int(at) else None,
        noted=(now - int(at)) / 1e6 if int(at) else 0.0,
        txids={cl_ord_id: txid for cl_ord_id, txid in zip(cl_ord_ids, _split(txids), strict=False) if txid},
        key=key,
        method=unquote(method),
        cl_ord_ids=cl_ord_ids,
        own_ids=ids.startswith(_OWN),
        name="" if name == "-" else unquote(name),
    )


def _split(words: str) -> tuple[str, ...]:
    return () if words == "-" else tuple(map(unquote, words.split(",")))


def settle(
    keys: Keyspace,
    nonce: int,
    how: Literal["known", "cleared", "reported", "new"] | Result,
    txids: Iterable[str] = (),
    name: str = "",
) -> Command[bool]:
    """Change a pending call's entry. False: there is none any more.

    ``"known"`` removes it, and so does ``"cleared"``, by hand; ``"reported"`` leaves it for people, a result is noted
    until it is told, and ``"new"`` leaves it as it is. ``txids`` are Kraken's, one for each cl_ord_id, ``""`` for an
    order that was not found. ``name`` is that of who does it, as in Redis.
    """
    return Command(
        "settle", keys.for_the_lock[:3], (nonce, how, _join(txids), name), lambda reply: reply[0] == "ok", spare=1
    )


def recount(keys: Keyspace) -> Command[bool]:
    """Count the pending calls anew."""
    return settle(keys, 0, "new")


@dataclass(frozen=True, slots=True)
class NameRecord:
    """The record of a name, which is for one order.

    Attributes:
        cl_ord_id: of the order.
        name: as its callers have given it.
        key: digest of the API key.
        nonce: of the latest request that tried to place it.
        deadline: of that request, in Unix seconds by Kraken's clock.
        digest: of the order's parameters.
        txid: Kraken's, ``""`` while it is not known that the order was placed.
        age: seconds since it was written.
    """

    cl_ord_id: str
    name: str
    key: str
    nonce: int
    deadline: float
    digest: str
    txid: str = ""
    age: float = 0.0

    def written(self) -> str:
        """Return it as it stands in Redis, without the time."""
        txid = _join([self.txid]) if self.txid else "-"
        deadline = math.ceil(self.deadline * 1000)
        return f"{self.key} {self.nonce} {deadline} {self.digest} {quote(self.name, safe='')} {txid}"


@dataclass(frozen=True, slots=True)
class Kept:
    """What Redis has of a name.

    Attributes:
        record: the record; None if there is none.
        complete: seconds for which no record can have been lost: when another server took over, or this one restarted,
            or when all was lost, as far as the process can tell.
    """

    record: NameRecord | None
    complete: float


def once(keys: Keyspace, member: str, cl_ord_id: str, *, seen: bool = False) -> Command[Kept | Literal["lost"]]:
    """Read the record of a name, for the holder of the lock; ``seen`` is whether its process has seen names before."""
    return _once(keys, member, cl_ord_id, "", seen=seen)


def keep(keys: Keyspace, member: str, record: NameRecord) -> Command[Kept | Literal["lost"]]:
    """Write the record of a name, unless the lock is another member's by now."""
    return _once(keys, member, record.cl_ord_id, record.written())


def forget(keys: Keyspace, member: str, cl_ord_id: str) -> Command[Kept | Literal["lost"]]:
    """Remove the record of a name, unless the lock is another member's by now; ``""`` for people, who don't hold it."""
    return _once(keys, member, cl_ord_id, "-")


def _once(
    keys: Keyspace, member: str, cl_ord_id: str, record: str, *, seen: bool = False
) -> Command[Kept | Literal["lost"]]:
    def read(reply: Reply) -> Kept | Literal["lost"]:
        if reply[0] == "lost":
            return "lost"
        _, now, since, *words = reply
        found = None if words == ["-"] else _read_name(int(now), cl_ord_id, *words)
        return Kept(found, (int(now) - int(since)) / 1e6)

    return Command("once", (keys.state, keys.once), (member, cl_ord_id, record, int(seen)), read)


def names(keys: Keyspace) -> Command[tuple[NameRecord, ...]]:
    """List the records of names, the oldest first."""

    def read(reply: Reply) -> tuple[NameRecord, ...]:
        now, words = int(reply[1]), iter(reply[2:])
        found = [_read_name(now, *record) for record in zip(*[words] * 8, strict=True)]
        return tuple(sorted(found, key=lambda record: -record.age))

    return Command("names", (keys.once,), (), read)


def _read_name(  # noqa: PLR0917 - the words of a record
    now: int, cl_ord_id: str, at: str, key: str, nonce: str, deadline: str, digest: str, name: str, txid: str
) -> NameRecord:
    return NameRecord(
        cl_ord_id=cl_ord_id,
        name=unquote(name),
        key=key,
        nonce=int(nonce),
        deadline=int(deadline) / 1000,
        digest=digest,
        txid="" if txid == "-" else unquote(txid),
        age=(now - int(at)) / 1e6,
    )


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
    return Command("ping", (keys.state,), (), lambda _: None)


def reset_startup(keys: Keyspace) -> Command[None]:
    """Make the next call open a new startup window."""
    return Command("reset_startup", (keys.state,), (), lambda _: None)


def text(value: object) -> str:
    """Return what redis-py read as text, whether or not the client decodes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def microseconds(seconds: float) -> int:
    """Return whole microseconds."""
    return round(seconds * 1_000_000)


def _seconds(microseconds: str) -> float:
    return int(microseconds) / 1_000_000
