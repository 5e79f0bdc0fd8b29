"""What happens, beside the results of calls: one frozen dataclass for each kind of event, for observers and hooks.

There are two sorts. *Steps* are the usual course: waiting, a grant, a release, a call. *News* is worth knowing at once:
a lost lease, an order that was settled, a Redis that is away. No event carries an API key, a secret or an amount.

*Observers* get every event when it happens, which may be under the lease, in any thread or on the event loop. They are
for logs, metrics and traces: they must be short, and must not use this library. `add_observer` adds one.

*Hooks* get the news alone. One is passed to an object as ``on_event``, or to `set_hook` for all objects of the process.
It runs in the thread or task that makes the call, after that has released the lock, so it may make calls of its own.
The call returns only after its hooks, so keep them short. News that is noticed outside of a client's call, such as by
the answer to a release, comes from a separate thread or from the event loop.

An exception from an observer, a hook, or a filter or handler of the log is logged and has no other effect. A
KeyboardInterrupt, of Ctrl-C, goes on to the caller.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis.errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class _Event:
    """The attributes of all events.

    Attributes:
        key: digest of the API key, as in Redis; ``"global"`` for a lock over all keys, ``""`` for what concerns the
            whole Redis.
        name: the bot's name, as people see it in Redis.
        method: Kraken's name of the call that it is about, ``""`` for none.
        time: when it was noticed, by the clock of this machine, in seconds since 1970.
        since: when what it is about began, by that clock; None for what has no duration.
    """

    key: str
    name: str = ""
    method: str = ""
    time: float = field(default_factory=time.time)
    since: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step(_Event):
    """A step in the usual course of things, for observers alone."""


@dataclass(frozen=True, kw_only=True)
class News(_Event):
    """What is worth knowing at once, for observers and hooks.

    Attributes:
        id: unique to this event; the same when hooks get an event twice, also in two processes.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)


# The lock


@dataclass(frozen=True, kw_only=True)
class WaitingBegan(Step):
    """A caller could not get the lock at once, and waits.

    Attributes:
        lease: names the caller's wait, and the lease that comes of it; it is the beginning of its entry in Redis.
        cause: ``"held"`` by another caller; ``"interval"``, ``"startup"`` or ``"counter"`` of the pace; or
            ``"cool-down"`` and what Kraken said.
        left: seconds until that ends, at most.
    """

    lease: str
    cause: str
    left: float


@dataclass(frozen=True, kw_only=True)
class StillWaiting(Step):
    """A caller has waited for a second, for ten, or for another minute.

    It is told with the process's heartbeats, so a little late, and not for waits that the server has booked for a time
    within 5 s.

    Attributes:
        lease: as in `WaitingBegan`.
        cause: as in `WaitingBegan`.
        wait: seconds that it has waited.
    """

    lease: str
    cause: str
    wait: float


@dataclass(frozen=True, kw_only=True)
class WaitTimedOut(Step):
    """A caller got `HoldTimeout`: the lock was not free in time.

    Attributes:
        lease: as in `WaitingBegan`.
        wait: seconds that it has waited; 0.0 for one that does not wait.
        error: ``"HoldTimeout"`` or ``"CoolDown"``.
    """

    lease: str
    wait: float
    error: str


@dataclass(frozen=True, kw_only=True)
class LockGranted(Step):
    """A caller got the lock. A nested hold shares the lease, and is not told.

    Attributes:
        lease: as in `WaitingBegan`.
        nonce: the first nonce of the lease, ns since 1970.
        wait: seconds from asking for it.
    """

    lease: str
    nonce: int
    wait: float


@dataclass(frozen=True, kw_only=True)
class LockReleased(Step):
    """A holder let go of the lock; Redis may hear of it a moment later.

    Attributes:
        lease: as in `WaitingBegan`.
        nonce: the first nonce of the lease, ns since 1970.
        held: seconds since the grant.
    """

    lease: str
    nonce: int
    held: float


@dataclass(frozen=True, kw_only=True)
class LeaseEndedEarly(News):
    """A lease ended before its term was over and before its holder released it.

    Redis lost it (FLUSHALL, a failover), or ``kraken-nonce unlock`` ended it. Another caller may have held the lock in
    the meantime.

    Attributes:
        lease: as in `WaitingBegan`.
        nonce: the first nonce of the lease, ns since 1970.
        held: seconds from the grant until this was noticed.
    """

    lease: str
    nonce: int
    held: float


@dataclass(frozen=True, kw_only=True)
class LeaseRanOut(News):
    """A holder went on for longer than its lease, and then the lock was no longer its own.

    Attributes:
        lease: as in `WaitingBegan`.
        nonce: the first nonce of the lease, ns since 1970.
        held: seconds from the grant until this was noticed.
    """

    lease: str
    nonce: int
    held: float


# Calls


CallOutcome: TypeAlias = Literal["carried out", "refused", "unknown", "not sent"]


@dataclass(frozen=True, kw_only=True)
class CallSent(Step):
    """A request to Kraken is about to leave: the call itself, or a question about one with an unknown outcome.

    Attributes:
        nonce: of the request, ns since 1970.
    """

    nonce: int


@dataclass(frozen=True, kw_only=True)
class CallEnded(Step):
    """A request to Kraken has its answer, or will have none.

    Attributes:
        nonce: of the request, ns since 1970.
        outcome: ``"carried out"``; ``"refused"`` by Kraken; ``"unknown"`` without a clear answer; or ``"not sent"``
            when the request did not leave.
        seconds: how long it took.
    """

    nonce: int
    outcome: CallOutcome
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CallRefused(Step):
    """Kraken has answered a request with errors. `CallEnded` says whether it is known not to be carried out.

    Attributes:
        nonce: of the request, ns since 1970.
        errors: Kraken's.
    """

    nonce: int
    errors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CallTriedAgain(Step):
    """A call is made once more.

    Attributes:
        reason: why, in words.
        errors: Kraken's; empty if there was no answer.
        wait: seconds until then; 0.0 for at once, under the same lease.
    """

    reason: str
    errors: tuple[str, ...]
    wait: float


@dataclass(frozen=True, kw_only=True)
class OutcomeUnknown(News):
    """A call that changes something was sent, and it could not be found out what became of it.

    Its caller got `kraken_nonce_redis.OutcomeUnknown`, or was interrupted. The call is listed by
    ``kraken-nonce pending``, until a later call settles it.

    Attributes:
        nonce: of the call, ns since 1970.
        cl_ord_ids: of the orders that it should place.
        known: what is known, in words.
    """

    nonce: int
    cl_ord_ids: tuple[str, ...]
    known: str


@dataclass(frozen=True, kw_only=True)
class OrderSettled(News):
    """Kraken was asked about a call with an unknown outcome, of this process or of one that is gone.

    Of a call of another process hooks may hear twice, when the first process to tell it was killed or slow. Both events
    have the same ``id``. ``name`` is the bot that made the call, ``""`` if that is not known.

    Attributes:
        nonce: of the call, ns since 1970.
        cl_ord_ids: of the orders that it should place.
        outcome: ``"found"``: all of them were placed. ``"absent"``: none was placed, nor will be by this request; a
            caller that is still alive may make its call again. ``"partly"``: only those in ``orders`` were placed.
            ``"unknown"``: it could not be found out, or not for this method; the call stays listed by
            ``kraken-nonce pending``.
        orders: Kraken's txid for each cl_ord_id that was found.
        inherited: whether an earlier holder made the call.
        proved: for ``"absent"``, whether that is proved: the order's deadline was over when Kraken's lists were looked
            at for the last time, ``proof_wait`` after it. Else it rests on Kraken listing orders within the looks.
        known: the same in words.
    """

    nonce: int
    cl_ord_ids: tuple[str, ...]
    outcome: Literal["found", "absent", "partly", "unknown"]
    orders: Mapping[str, str]
    inherited: bool
    proved: bool = False
    known: str


@dataclass(frozen=True, kw_only=True)
class CallForgotten(News):
    """A call that was told with the outcome ``"unknown"`` is no longer listed by ``kraken-nonce pending``.

    The newest 1,000 of them are kept for 30 days. Look it up at Kraken, if nobody has. ``name`` is as in
    `OrderSettled`.

    Attributes:
        nonce: of the call, ns since 1970.
        cl_ord_ids: of the orders that it should place.
    """

    nonce: int
    cl_ord_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class KrakenWarned(News):
    """Kraken's answer had warnings. If it had no error, the client's code got it without them.

    Attributes:
        nonce: of the request, ns since 1970.
        warnings: as Kraken has them, such as ``"WGeneral:..."``.
    """

    nonce: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ResultMissing(News):
    """Kraken's answer to a call that changes something had neither an error nor a result; your client got it so.

    What became of an order (AddOrder, AddOrderBatch) is looked up instead, and told by `OrderSettled`.

    Attributes:
        nonce: of the request, ns since 1970.
    """

    nonce: int


@dataclass(frozen=True, kw_only=True)
class NonceRaised(News):
    """Kraken refused a fresh nonce, so the last nonce was raised for all who share the key.

    Attributes:
        refused: the nonce that Kraken refused, ns since 1970.
        lead: seconds, at least, by which the nonce is now ahead of the server's clock.
    """

    refused: int
    lead: float


@dataclass(frozen=True, kw_only=True)
class KeyPoisoned(News):
    """Kraken refuses every nonce that may be used, and the caller got `kraken_nonce_redis.NoncePoisoned`.

    Attributes:
        refused: the nonce that Kraken refused, ns since 1970.
        lead: seconds by which that was ahead of the Redis server's clock.
    """

    refused: int
    lead: float


@dataclass(frozen=True, kw_only=True)
class CoolDownBegan(News):
    """A cool-down is known to this process: it has set one, or a caller that waits or times out has heard of it.

    It is told once for each cool-down, and again when that is made longer.

    Attributes:
        seconds: from now to its end.
        reason: what Kraken said.
    """

    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class CoolDownOver(News):
    """A cool-down that this process knew of is over, as the next caller of the key noticed."""


# Redis


@dataclass(frozen=True, kw_only=True)
class StoreFailed(Step):
    """A command failed, after the attempts that it had.

    Attributes:
        operation: what was to be done: ``"acquire"``, ``"release"``, ``"reserve"``, ...
        error: the name of the error: ``"StoreUnavailable"``, ...
    """

    operation: str
    error: str


@dataclass(frozen=True, kw_only=True)
class RedisAway(News):
    """A command failed because Redis could not be reached or did not answer, and none had before.

    In a cluster it is told by API key, since a node may fail alone.

    Attributes:
        redis: where Redis is; no password.
        reason: what went wrong, without secrets.
    """

    redis: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RedisBack(News):
    """Redis has answered again.

    Attributes:
        redis: as in `RedisAway`.
        seconds: how long it was away, as far as this process knows.
    """

    redis: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MasterChanged(News):
    """Another server answers than before: Sentinels have elected it, or a node of a cluster has taken over the key.

    Attributes:
        former: the address of the server before.
        master: the address of the one that answers now.
    """

    former: str
    master: str


@dataclass(frozen=True, kw_only=True)
class StateLost(News):
    """Redis had lost nonces that this process had seen, and the next ones begin above them.

    It is noticed by the first nonces after the loss if they come within a second of the latest ones seen, or while
    nonces run ahead of the clock. Else the clock has passed the lost ones, and there is nothing to notice.

    Attributes:
        seen: the highest nonce that this process had seen.
        nonce: the first of the nonces after it, ns since 1970.
    """

    seen: int
    nonce: int


Event: TypeAlias = Step | News
Hook: TypeAlias = Callable[[News], object]
Observer: TypeAlias = Callable[[Event], object]

_hooks: Final[list[Hook]] = []
_observers: Final[list[Observer]] = []


def set_hook(hook: Hook | None) -> None:
    """Set the hook for the news of all objects of this process, besides their own hooks; None removes it.

    Raises `InvalidArgument`.
    """
    checked(hook)
    _hooks[:] = [] if hook is None else [hook]


def add_observer(observer: Observer) -> None:
    """Give an observer all events of this process from now on; one that is added twice gets them once.

    Raises `InvalidArgument`.
    """
    if not callable(observer):
        raise InvalidArgument("observer", f"must be callable, not {arguments.shown(observer)}")
    if observer not in _observers:
        _observers.append(observer)


def remove_observer(observer: Observer) -> None:
    """Give an observer no more events."""
    if observer in _observers:
        _observers.remove(observer)


def checked(hook: Hook | None) -> Hook | None:
    """Return a hook or None. Raises `InvalidArgument`."""
    if hook is not None and not callable(hook):
        raise InvalidArgument("on_event", f"must be callable or None, not {arguments.shown(hook)}")
    return hook
