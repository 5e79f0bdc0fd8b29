"""A lease as its holder sees it: its nonces, its end, the holds that share it and its renewal; no I/O."""

from __future__ import annotations

import copy
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process
from kraken_nonce_redis._core.record import NO_CALL, CallRecord, Stage
from kraken_nonce_redis._core.steps import running
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.durability import of_every_nonce
from kraken_nonce_redis.errors import InvalidArgument, KrakenNonceError, LeaseLost, NoncesUsedUp, about_no_call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis._core.lock import LockCore
    from kraken_nonce_redis._core.steps import Flow
    from kraken_nonce_redis._core.waiters import Waiter
    from kraken_nonce_redis._core.waiting import Acquired
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.commands import Extended

GIVEN_UP: Final = "This process is shutting down and has released it"
"""What is said of a lease that its holder had to give up."""
# Seconds by which a lease is at least longer than the call that it is extended for: until that is sent, a distant Redis
# has to answer and a busy machine to get back to it.
_SLACK: Final = 1.0

# The share of a lease that its holder does not use, since the server's clock may run that much faster than ours.
_CLOCK_DRIFT: Final = 0.001

logger = logging.getLogger("kraken_nonce_redis")


class Grant:
    """What all holds of one lease share.

    Attributes:
        member: the lease's name in Redis.
        nonce: its first nonce.
        record: for clients' calls: what became of the latest one under this lease.
        inherited: for clients' calls: the API keys of earlier holders' calls that wait to be settled by the first call
            under this lease, as in `commands.Granted`.
        late: whether a copy of a request for it may still arrive.
        nonces: those still to be used.
        deadline: its end on `clock.now`.
        holds: how many holds of it have not ended; the last one releases it.
        over: whether it was released or lost.
        given_up: whether it was released for its holder, since this process is shutting down.
        mark: its first item is 0 in a forked child, which does not own the lease.
        began: when it was granted, on `clock.now`.
        told_lost: whether its loss was told.
        told_over: whether its release was told.
        term: seconds for which a renewal lets it last at least.
        renewal: what renews it in the background, if anything does.
        newest: the first nonce of the newest extension.
        extensions: the numbers of its extensions.
    """

    nonces: Iterator[int]
    deadline: float

    def __init__(self, acquired: Acquired, term: float) -> None:
        self.member: Final = acquired.member
        self.nonce: Final = acquired.nonces[0]
        self.late: Final = acquired.late
        self.inherited: tuple[str, ...] = acquired.pending
        self.record = NO_CALL
        self.holds = 1
        self.over = False
        self.given_up = False
        self.began: Final = clock.now()
        self.told_lost = False
        self.told_over = False
        self.mark: Final = _process.current().mark
        self.term = term
        self.renewal: Renewal | None = None
        self.newest = 0
        self.extensions: Final = itertools.count(1)

    def remaining(self) -> float:
        """Return the seconds left, 0.0 when the lease has ended."""
        if self.over or not self.holds or not self.mark[0]:
            return 0.0
        return max(0.0, self.deadline - clock.now())

    def end(self) -> bool:
        """Take note that the lease ends here; False in a forked child, which does not own it."""
        self.over = True
        self.deadline = 0.0
        return self.mark[0] != 0


class LeaseCore:
    """A lock held until its deadline, as its holder sees it: one hold, which may be nested in another one.

    Attributes:
        grant: what it shares with the other holds of the lease.
        outer: the hold that it is nested in, which may be another owner's; None for the first one of the lease.
        ended: whether this hold has ended.
    """

    def __init__(self, lock: LockCore[Any], acquired: Acquired, owner: object) -> None:
        self.grant = Grant(acquired, lock.ttl)
        self._lock = lock
        self._nonce = acquired.nonces[0]
        self._owner = owner
        self.outer: Self | None = None
        self._depth = 1
        """How many holds of the lease its owner has with this one."""
        self._begin()
        self._renewed(acquired.nonces[1:], acquired.deadline)

    def _begin(self) -> None:
        self.ended = False
        self._inner: Self | None = None
        """The hold that is nested in this one; there is one at a time."""
        self._line: list[Waiter] = []
        """Those who wait to nest another one, the oldest first."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._lock.keys.state} nonce={self.nonce} remaining={self.remaining():.3f}>"

    @property
    def nonce(self) -> int:
        """The first nonce of this hold, for its first call; ns since 1970. It never changes.

        Kraken refuses it once a later one was used, also in a nested hold. So sign with it at the beginning only, and
        with `next_nonce` whenever something may have come before.
        """
        return self._nonce

    def next_nonce(self) -> int:
        """Return the next nonce of this lease, above `nonce` and all earlier ones, without a round trip.

        All holds of the lease take from the same nonces, so it is also above those of nested holds.

        Raises `LeaseLost` once the lease has ended, and `NoncesUsedUp` after 99,999 calls; ``extend()`` brings
        fresh nonces.
        """
        grant = self.grant
        if clock.now() >= grant.deadline or self.ended or not grant.mark[0]:
            self.check()
        for nonce in grant.nonces:
            return nonce
        raise NoncesUsedUp(
            f"the {commands.BLOCK} nonces of the lease on {self._lock.keys.state} are used up; "
            "lease.extend() brings new ones"
        )

    def remaining(self) -> float:
        """Return the seconds left, 0.0 when the lease has ended. Counted from before the lock was asked for."""
        return 0.0 if self.ended else self.grant.remaining()

    @property
    def lost(self) -> bool:
        """Whether the lease has ended, so that another caller may hold the lock."""
        return self.remaining() <= 0.0

    def check(self, seconds: float = 0.0) -> None:
        """Raise `LeaseLost` unless more than ``seconds`` are left. To be called before signing and sending."""
        left = self.remaining()
        if left <= seconds:
            found = f"has {left:.1f} s left, and more than {seconds:g} s are needed" if left else "has ended"
            advice = GIVEN_UP if self.grant.given_up else "Choose a longer ttl"
            raise LeaseLost(
                f"the lease on {self._lock.keys.state} {found}; sign and send nothing under it. {advice}",
                self._lock.keys.state,
            )

    def _renewed(self, nonces: range, deadline: float) -> None:
        grant = self.grant
        if nonces.start < grant.newest:
            return  # the reply to an earlier renewal, after that to a later one
        grant.newest = nonces.start
        grant.nonces = iter(nonces)
        grant.deadline = deadline - _CLOCK_DRIFT * max(0.0, deadline - clock.now())

    def _nested(self, owner: object) -> Self:
        """Return a hold of an owner, to be nested in this one."""
        nested = copy.copy(self)
        nested._begin()
        nested._owner, nested.outer = owner, self
        nested._depth = self._depth + 1 if owner == self._owner else 1
        return nested

    def _fresh_nonce(self) -> Flow[int]:
        """Return the next nonce, from an extension if all are used. Raises `LeaseLost` and `StoreError`."""
        try:
            return self.next_nonce()
        except NoncesUsedUp:
            yield from self._extended(self.remaining())
            return self.next_nonce()

    def give_up(self) -> bool:
        """Release the lease in the background: see `LockCore.give_up`."""
        return self._lock.give_up(self)

    def _let_in(self) -> None:
        """Wake the first who waits to nest a hold in this one, if it need not wait any longer."""
        if self._line and (self.ended or self._inner is None):
            self._line[0].wake()

    def _extending(self, seconds: float, *, replace: bool = False, name: str = "seconds") -> Flow[None]:
        """Make the lease end ``seconds`` later, or that long from now; ``name`` is the parameter's name."""
        arguments.seconds(name, seconds, 0, arguments.LONGEST_TTL)
        term = seconds if replace else self.remaining() + seconds
        if not 0 < seconds <= term <= arguments.LONGEST_TTL:
            raise InvalidArgument(
                name,
                f"must be above 0 and leave the lease at most {arguments.LONGEST_TTL:g} s, not {seconds!r}",
            )
        try:
            if self.ended or self.grant.over or not self.grant.mark[0]:
                self.check()
            yield from self._extended(term, replace=replace)
        except KrakenNonceError as error:
            about_no_call(error)
            raise
        if replace:
            self.grant.term = seconds
            if self.grant.renewal is not None:
                self._lock.renew(self)

    def _extended(self, term: float, intent: str = "", *, replace: bool = False) -> Flow[None]:
        """Let the lease last so many seconds from now, or longer unless that replaces its end; note an intent."""
        result: Extended | Literal["late", "lost"]
        while True:
            started = clock.now()
            command = self._extension(term, intent, replace=replace)
            result = yield from running(command.durable(of_every_nonce(self._lock.durability)))
            if result != "late":  # a renewal that was made later has come before it
                break
        if result == "lost":
            self._lock.lost(self, self.grant.remaining())
            self.grant.end()
            self.check()
            return
        if intent:
            # Redis has it under this name from now on, whether or not the call will be sent.
            self.grant.record = CallRecord(result.nonces.start, Stage.BEGUN)
        self._renewed(result.nonces, started + result.left)

    def _extension(
        self, term: float, intent: str = "", *, replace: bool = False
    ) -> Command[Extended | Literal["late", "lost"]]:
        known, number = self.grant.record.known, next(self.grant.extensions)
        intent = self._lock._with_name(intent)
        return commands.extend(
            self._lock.keys, self.grant.member, term, intent, known=known, number=number, replace=replace
        )

    # For clients' calls

    def beginning(self, intent: str, seconds: float) -> Flow[int]:
        """Return the nonce for a call that takes at most ``seconds``, and note its intent if it has one.

        The lease is long enough for the call then. The nonce is from the block that the intent has its name from, so
        that a later holder knows how high it is at most. Raises `LeaseLost` and `StoreError`.
        """
        grant = self.grant
        first = grant.record.stage is Stage.UNUSED and self.outer is None
        grant.record, grant.inherited = grant.record.begun(), ()
        if first and self.remaining() > seconds and (grant.record.intent or not intent):
            return self.nonce
        while True:
            yield from self._extended(seconds + _SLACK, intent)
            nonce = self.next_nonce()
            if not intent or nonce < grant.record.intent + commands.BLOCK:
                return nonce  # else a renewal has come in between

    def above(self, nonce: int, max_lead: int) -> Flow[None]:
        """Let all further nonces of the lease be above a nonce; if need be, all who share the key go on above it.

        Raises `NonceTooFarAhead` if it is more than ``max_lead`` ns ahead of the server's clock, `LeaseLost` and
        `StoreError`.
        """
        if (yield from self._fresh_nonce()) > nonce:
            return
        raising = commands.advance(self._lock.keys, nonce, max_lead)
        yield from running(raising.durable(self._lock.durability))
        yield from self._extended(self.remaining())

    def lasting(self, seconds: float) -> Flow[None]:
        """Make sure that the lease lasts ``seconds``. Raises `LeaseLost` and `StoreError`."""
        if self.remaining() <= seconds:
            yield from self._extended(max(self.grant.term, seconds + _SLACK))
        self.check(seconds)


class Renewal:
    """A chore: keeps a lease from ending until it is released."""

    def __init__(self, lease: LeaseCore) -> None:
        self._lease = lease
        self._lock = lease._lock
        self._asked = 0.0

    def command(self, now: float) -> Command[Extended | Literal["late", "lost"]] | None:
        """Return the renewal, or None when the lease is over or another renewal keeps it."""
        grant = self._lease.grant
        if not grant.remaining() or grant.renewal is not self:
            return None
        self._asked = now
        return self._lease._extension(grant.term)

    def succeeded(self, command: object, result: Extended | Literal["late", "lost"], now: float) -> float | None:
        """Take the new deadline and nonces."""
        del command
        grant = self._lease.grant
        if grant.over or not grant.holds:
            return None
        if result == "lost":
            self._lock.lost(self._lease, grant.remaining())
            grant.end()
            return None
        if result != "late":
            self._lease._renewed(result.nonces, self._asked + result.left)
        return now + grant.term / 3

    def failed(self, error: KrakenNonceError, now: float) -> float:
        """Try again; the lease may outlast the trouble."""
        logger.warning("The lease on %s could not be renewed: %s", self._lock.keys.state, error)
        return now + self._lease.grant.term / 30
