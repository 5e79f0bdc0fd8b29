"""The lock and the lease without I/O; the shells for threads and asyncio add only that."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process, events
from kraken_nonce_redis._arguments import DEFAULT_NAMESPACE, DEFAULT_TTL
from kraken_nonce_redis._core.record import CallRecord, Stage
from kraken_nonce_redis._core.steps import Run, Tell, running
from kraken_nonce_redis._core.waiting import Acquired, acquiring
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.durability import Durability, of_every_nonce
from kraken_nonce_redis.errors import (
    CallLockError,
    InvalidArgument,
    KrakenNonceError,
    LeaseLost,
    NoncesUsedUp,
    StoreError,
)
from kraken_nonce_redis.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kraken_nonce_redis._arguments import Scope
    from kraken_nonce_redis._core.steps import CallFlow, Flow
    from kraken_nonce_redis._core.waiting import ProcessState
    from kraken_nonce_redis._core.wishes import Wishes
    from kraken_nonce_redis._redis.commands import Command, Extended, Release
    from kraken_nonce_redis.events import Hook

L = TypeVar("L", bound="LeaseCore")
T = TypeVar("T")

# Seconds by which a lease is at least longer than the call that it is extended for: until that is sent, a distant Redis
# has to answer and a busy machine to get back to it.
_SLACK: Final = 1.0

# Seconds that a release may take to reach the server.
_ON_THE_WAY: Final = 0.1

# The share of a lease that its holder does not use, since the server's clock may run that much faster than ours.
_CLOCK_DRIFT: Final = 0.001

_NO_CALL: Final = CallRecord()

logger = logging.getLogger("kraken_nonce_redis")


class LeaseCore:
    """A lock held until its deadline, as its holder sees it.

    Attributes:
        nonce: the first nonce of the lease, for its first call; ns since 1970.
    """

    def __init__(self, lock: LockCore[Any], acquired: Acquired) -> None:
        self.nonce: Final[int] = acquired.nonces[0]
        self.record = _NO_CALL
        """For clients' calls: what became of the latest one under this lease."""
        self.inherited = acquired.pending
        """For clients' calls: how many calls of earlier holders the first call under this lease has to settle."""
        self._lock = lock
        self._member = acquired.member
        self._mark = _process.current().mark
        self._depth = 1
        self._over = False
        self._extensions = itertools.count(1)
        self._term = lock.ttl
        """Seconds for which a renewal lets it last at least."""
        self._renewal: _Renewal | None = None
        self._late = acquired.late
        self._newest = 0
        """The first nonce of the newest renewal."""
        self._nonces: Iterator[int]
        self._deadline: float
        self._renewed(acquired.nonces[1:], acquired.deadline)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._lock.keys.state} nonce={self.nonce} remaining={self.remaining():.3f}>"

    def next_nonce(self) -> int:
        """Return the next nonce of this lease, above `nonce` and all earlier ones, without a round trip.

        Raises `LeaseLost` once the lease has ended, and `NoncesUsedUp` after 99,999 calls; ``extend()`` brings
        fresh nonces.
        """
        if clock.now() >= self._deadline or not self._mark[0]:
            self.check()
        for nonce in self._nonces:
            return nonce
        raise NoncesUsedUp(
            f"the {commands.BLOCK} nonces of the lease on {self._lock.keys.state} are used up; "
            "lease.extend() brings new ones"
        )

    def remaining(self) -> float:
        """Return the seconds left, 0.0 when the lease has ended. Counted from before the lock was asked for."""
        if self._over or not self._mark[0]:
            return 0.0
        return max(0.0, self._deadline - clock.now())

    @property
    def lost(self) -> bool:
        """Whether the lease has ended, so that another caller may hold the lock."""
        return self.remaining() <= 0.0

    def check(self, seconds: float = 0.0) -> None:
        """Raise `LeaseLost` unless more than ``seconds`` are left. To be called before signing and sending."""
        left = self.remaining()
        if left <= seconds:
            found = f"has {left:.1f} s left, and more than {seconds:g} s are needed" if left else "has ended"
            raise LeaseLost(
                f"the lease on {self._lock.keys.state} {found}; sign and send nothing under it. Choose a longer ttl",
                self._lock.keys.state,
            )

    def _renewed(self, nonces: range, deadline: float) -> None:
        if nonces.start < self._newest:
            return  # the reply to an earlier renewal, after that to a later one
        self._newest = nonces.start
        self._nonces = iter(nonces)
        self._deadline = deadline - _CLOCK_DRIFT * max(0.0, deadline - clock.now())

    def _end(self) -> bool:
        """Take note that the lease ends here; False in a forked child, which does not own it."""
        self._over = True
        self._deadline = 0.0
        return self._mark[0] != 0

    def _extending(self, seconds: float, *, replace: bool = False, name: str = "seconds") -> Flow[None]:
        """Make the lease end ``seconds`` later, or that long from now; ``name`` is the parameter's name."""
        arguments.seconds(name, seconds, 0, arguments.LONGEST_TTL)
        term = seconds if replace else self.remaining() + seconds
        if not 0 < seconds <= term <= arguments.LONGEST_TTL:
            raise InvalidArgument(
                name,
                f"must be above 0 and leave the lease at most {arguments.LONGEST_TTL:g} s, not {seconds!r}",
            )
        if self._over or not self._mark[0]:
            self.check()
        yield from self._extended(term, replace=replace)
        if replace:
            self._term = seconds
            if self._renewal is not None:
                self._lock.renew(self)

    def _extended(self, term: float, intent: str = "", *, replace: bool = False) -> Flow[None]:
        """Let the lease last so many seconds from now, or longer unless that replaces its end; note an intent."""
        result: Extended | Literal["late", "lost"] = "late"
        while result == "late":  # a renewal that was made later has come before it
            started = clock.now()
            command = self._extension(term, intent, replace=replace)
            result = yield from running(command.durable(of_every_nonce(self._lock.durability)))
        if result == "lost":
            self._end()
            self.check()
            return
        if intent:
            # Redis has it under this name from now on, whether or not the call will be sent.
            self.record = CallRecord(result.nonces.start, Stage.BEGUN)
        self._renewed(result.nonces, started + result.left)

    def _extension(
        self, term: float, intent: str = "", *, replace: bool = False
    ) -> Command[Extended | Literal["late", "lost"]]:
        known, number = self.record.known, next(self._extensions)
        return commands.extend(self._lock.keys, self._member, term, intent, known=known, number=number, replace=replace)

    # For clients' calls

    def beginning(self, intent: str, seconds: float) -> Flow[int]:
        """Return the nonce for a call that takes at most ``seconds``, and note its intent if it has one.

        The lease is long enough for the call then. Raises `LeaseLost` and `StoreError`.
        """
        first = self.record.stage is Stage.UNUSED and self._depth == 1
        self.record, self.inherited = self.record.begun(), 0
        if first and self.remaining() > seconds and (self.record.intent or not intent):
            return self.nonce
        yield from self._extended(seconds + _SLACK, intent)
        return self.next_nonce()

    def lasting(self, seconds: float) -> Flow[None]:
        """Make sure that the lease lasts ``seconds``. Raises `LeaseLost` and `StoreError`."""
        if self.remaining() <= seconds:
            yield from self._extended(max(self._term, seconds + _SLACK))
        self.check(seconds)


class _Renewal:
    """A chore: keeps a lease from ending until it is released."""

    def __init__(self, lease: LeaseCore) -> None:
        self._lease = lease
        self._lock = lease._lock
        self._asked = 0.0

    def command(self, now: float) -> Command[Extended | Literal["late", "lost"]] | None:
        """Return the renewal, or None when the lease is over or another renewal keeps it."""
        if self._lease.lost or self._lease._renewal is not self:
            return None
        self._asked = now
        return self._lease._extension(self._lease._term)

    def succeeded(self, command: object, result: Extended | Literal["late", "lost"], now: float) -> float | None:
        """Take the new deadline and nonces."""
        del command
        if self._lease._over:
            return None
        if result == "lost":
            self._lease._end()
            self._lock.ended_early(self._lease)
            return None
        if result != "late":
            self._lease._renewed(result.nonces, self._asked + result.left)
        return now + self._lease._term / 3

    def failed(self, error: KrakenNonceError, now: float) -> float:
        """Try again; the lease may outlast the trouble."""
        logger.warning("The lease on %s could not be renewed: %s", self._lock.keys.state, error)
        return now + self._lease._term / 30


class LockCore(Generic[L]):
    """What a `CallLock` says to Redis, and the leases that its callers have.

    An owner is a thread or a task. Subclasses make the leases.
    """

    _lease: Callable[[Acquired], L]

    def __init__(
        self,
        process_state: Callable[[], ProcessState],
        api_key: str,
        *,
        ttl: float = DEFAULT_TTL,
        scope: Scope = "key",
        pace: Pace | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        durable: bool | Durability = False,
        on_event: Hook | None = None,
    ) -> None:
        self.keys: Final = Keyspace.of(namespace, api_key, scope)
        self.ttl: Final = arguments.ttl(ttl)
        self.pace: Final = arguments.instance("pace", pace, Pace)
        self.durability: Final = Durability.of(durable)
        self._on_event = events.checked(on_event)
        self._process_state = process_state

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.keys.state} ttl={self.ttl:g}>"

    def _cool_down(self, seconds: float, reason: str) -> Command[float]:
        arguments.seconds("seconds", seconds, 0, arguments.LONGEST_COOL_DOWN)
        return commands.cool_down(self.keys, seconds, reason)

    def _held(self, owner: object) -> L | None:
        lease: L | None = self._process_state().held.get((owner, self.keys.state))
        return lease

    def _depth(self, owner: object) -> int:
        """Return how many holds of its lease an owner has not left yet."""
        lease = self._held(owner)
        return 0 if lease is None else lease._depth

    def _own(self, owner: object, doing: str) -> L:
        lease = self._held(owner)
        if lease is None:
            raise CallLockError(
                f"can't {doing} {self.keys.state}: this thread or task does not hold it",
                self.keys.state,
            )
        return lease

    def under_lease(self, owner: object, body: Callable[[L], CallFlow[T]], wishes: Wishes) -> CallFlow[T]:
        """Hold the lock for a flow and return its result, even if the lease has ended before the flow did.

        Raises, besides what the flow raises, what `CallLock.hold` does at its beginning.
        """
        depth, before = self._depth(owner), _NO_CALL
        try:
            lease = yield from self._holding(owner, wishes)
            before = lease.record
            result = yield from body(lease)
            yield from self._leaving(owner, lease, failed=True)
        except BaseException as error:
            if self._depth(owner) > depth:
                lease = self._own(owner, "release")
                if not isinstance(error, Exception) and lease.record != before:
                    lease.record = lease.record.unheard()  # of this flow's call, not of one before it
                if isinstance(error, GeneratorExit):
                    self._abandon(owner, depth)
                else:
                    yield from self._leaving(owner, lease, failed=True)
            raise
        return result

    def _holding(self, owner: object, wishes: Wishes) -> Flow[L]:
        """Get a lease, or one more hold on the one that the owner has."""
        wishes.check()
        pace = self.pace.settings(wishes.cost, startup_protection=wishes.startup_protection) if self.pace else ""
        held = self._held(owner)
        if held is not None:
            held._depth += 1
            return held
        process_state = self._process_state()
        member, durability = process_state.new_member(wishes.token), of_every_nonce(self.durability)
        try:
            acquired = yield from acquiring(
                process_state, self.keys, member, wishes, ttl=self.ttl, pace=pace, durability=durability
            )
            lease = self._lease(acquired)
            if wishes.intent:
                lease.record = CallRecord(lease.nonce)
            process_state.held[owner, self.keys.state] = lease
        except BaseException as error:
            if not isinstance(error, Exception | GeneratorExit):
                # It may have struck after the grant, where nobody else gives the lock back.
                process_state.give_back(commands.release(self.keys, member, late=True), self.ttl)
            raise
        if wishes.auto_renew:
            self.renew(lease)
        return lease

    def renew(self, lease: LeaseCore) -> None:
        """Renew a lease in the background from now on, three times in its term."""
        lease._renewal = _Renewal(lease)
        self._process_state().agenda.add(clock.now() + lease._term / 3, lease._renewal)

    def _releasing(self, owner: object, lease: L) -> Flow[None]:
        """End one hold, and with the last one the lease. Raises `LeaseLost` and `StoreError`."""
        left, command = lease.remaining(), self._release(lease)
        try:
            if not self._end(owner, lease):
                return
            release: Release = yield Run(command)
        except BaseException as error:
            if self._held(owner) is not lease:
                if not isinstance(error, Exception):
                    lease.record = lease.record.unheard()
                self._process_state().give_back(self._release(lease), left)
            raise
        # A release sent twice may have worked the first time. After a single one, another caller has ended the lease.
        if release == "lost" or (release == "gone" and not (command.repeated and left)):
            raise LeaseLost(
                f"the lease on {self.keys.state} ended before it was released; another caller may have held the "
                "lock in the meantime. Choose a longer ttl, or auto_renew=True",
                self.keys.state,
            )

    def _abandon(self, owner: object, depth: int) -> None:
        """End the holds of an owner that are more than ``depth``; the lock is released in the background."""
        while self._depth(owner) > depth:
            lease = self._own(owner, "release")
            left = lease.remaining()
            if self._end(owner, lease):
                self._process_state().give_back(self._release(lease), left)

    def _end(self, owner: object, lease: L) -> bool:
        """End one hold; return whether the lease is to be released now.

        When an interruption strikes in here, the owner still has its hold, or nobody has the lease any more.
        """
        if lease._depth > 1:
            lease._depth -= 1
            return False
        self._process_state().held.pop((owner, self.keys.state), None)
        lease._depth = 0
        return lease._end()

    def _release(self, lease: L) -> Command[Release]:
        call = lease.record
        return commands.release(self.keys, lease._member, lease.nonce, call.intent, known=call.known, late=lease._late)

    def _leaving(self, owner: object, lease: L, *, failed: bool, wait: bool = False) -> Flow[None]:
        """Release at the end of a ``with`` block.

        While the lease is known to last, its holder needs no answer to go on, unless it wants to wait. A failure of
        Redis is no news about what was done in the block, so it must not hide that: the lock is given back when Redis
        is there again, or ends with its lease.
        """
        if not wait and self.durability is None and lease.remaining() > _ON_THE_WAY:
            yield from self._telling(owner, lease)
            return
        try:
            yield from self._releasing(owner, lease)
        except StoreError as error:
            logger.warning("%s stays locked until Redis is back or its lease ends: %s", self.keys.state, error)
        except LeaseLost as error:
            if not failed:
                raise
            logger.warning("%s", error)

    def ended_early(self, lease: LeaseCore) -> None:
        """Tell of a lease that was gone before its holder released it."""
        logger.warning(
            "The lease on %s was lost while it was held (nonce %d): another caller may have held the lock",
            self.keys.state,
            lease.nonce,
        )
        event = events.LeaseEndedEarly(self.keys.tag, lease.nonce)
        self._process_state().later(lambda: events.tell(event, self._on_event))

    def _telling(self, owner: object, lease: L) -> Flow[None]:
        """End one hold, and with the last one hand the release to the server; what comes of it is heard later."""
        process_state, command, left = self._process_state(), self._release(lease), lease.remaining()

        def answered(release: Release) -> None:
            if release == "lost" or (release == "gone" and not command.repeated):
                self.ended_early(lease)

        def lost() -> None:
            process_state.give_back(self._release(lease), left)

        try:
            if self._end(owner, lease):
                yield Tell(command, answered, lost)
        except BaseException as error:
            if self._held(owner) is lease:
                raise
            if not isinstance(error, Exception):
                lease.record = lease.record.unheard()
            lost()
            if not isinstance(error, StoreError):
                raise
            logger.warning("%s stays locked until Redis is back or its lease ends: %s", self.keys.state, error)

    def _extending(self, owner: object, seconds: float, *, replace: bool) -> Flow[None]:
        """Extend the owner's lease."""
        lease = self._own(owner, "extend")
        yield from lease._extending(seconds, replace=replace, name="additional_time")

    def _owning(self, owner: object) -> Flow[bool]:
        """Return whether an owner holds the lock, as Redis sees it."""
        lease = self._held(owner)
        if lease is None:
            return False
        state = yield from running(commands.inspect(self.keys))
        return state.leased and state.holder == lease._member
