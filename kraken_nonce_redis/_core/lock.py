"""The lock without I/O, and the leases that its callers have; the shells for threads and asyncio add only that."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import unquote

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis import events
from kraken_nonce_redis._arguments import DEFAULT_NAMESPACE, DEFAULT_TTL
from kraken_nonce_redis._core import names
from kraken_nonce_redis._core.lease import GIVEN_UP, Renewal, logger
from kraken_nonce_redis._core.record import NO_CALL, CallRecord
from kraken_nonce_redis._core.steps import Pause, Run, Tell, is_interruption, running
from kraken_nonce_redis._core.waiters import Waiter
from kraken_nonce_redis._core.waiting import Acquired, acquiring
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._redis.words import word
from kraken_nonce_redis.durability import Durability, of_every_nonce
from kraken_nonce_redis.errors import CallLockError, KrakenNonceError, LeaseLost, StoreError, about_no_call
from kraken_nonce_redis.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis._arguments import Scope, Trail
    from kraken_nonce_redis._core.lease import Grant, LeaseCore
    from kraken_nonce_redis._core.process_state import ProcessState
    from kraken_nonce_redis._core.steps import CallFlow, Flow
    from kraken_nonce_redis._core.wishes import Wishes
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.commands import Release
    from kraken_nonce_redis.events import Hook

L = TypeVar("L", bound="LeaseCore")
T = TypeVar("T")

# Seconds that a release may take to reach the server.
_ON_THE_WAY: Final = 0.1

# Seconds for which the release of a known call is tried, though its lease has ended: until it arrives, others take the
# call for one with an unknown outcome.
_KNOWN_FOR: Final = 300.0

_new: Final = object.__new__
_set: Final = object.__setattr__


class LockCore(Generic[L]):
    """What a `CallLock` says to Redis, and the leases that its callers have.

    An owner is a thread or a task. Subclasses make the leases.

    Holds form a tree. The first one is that of the lease, the others are nested: in the owner's innermost hold, or
    else in the one around the owner's context. One hold at a time is nested in another. Each hold may end before
    those nested in it; the last one to end releases the lease.
    """

    _lease: Callable[[Acquired, object], L]

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
        name: str | None = None,
        on_event: Hook | None = None,
        trail: Trail = "rare",
    ) -> None:
        self.keys: Final = Keyspace.of(namespace, api_key, scope, trail)
        self.ttl: Final = arguments.ttl(ttl)
        self.pace: Final = arguments.instance("pace", pace, Pace)
        self.durability: Final = Durability.of(durable)
        self._name = names.chosen(name, api_key)
        self._on_event = events.checked(on_event)
        self._process_state = process_state

    @property
    def name(self) -> str:
        """The bot's name, as people see it."""
        return unquote(self.named())

    @property
    def names_seen(self) -> set[str]:
        """The state keys under which this process has seen that orders have names."""
        return self._process_state().names_seen

    def named(self) -> str:
        """Return the bot's name as it stands in Redis."""
        return self._name or names.of_process()

    def _with_name(self, intent: str) -> str:
        """Return an intent with the bot's name; none stays none."""
        return f"{intent} {self.named()}" if intent else ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.keys.state} ttl={self.ttl:g}>"

    def cooling_down(self, seconds: float, reason: str) -> Flow[float]:
        """Start or end a cool-down; return how many seconds it goes on."""
        arguments.seconds("seconds", seconds, 0, arguments.LONGEST_COOL_DOWN)
        left = yield from running(commands.cool_down(self.keys, seconds, reason, self.named()))
        self._process_state().cooled(self.keys.state, left, reason)
        return left

    def _held(self, owner: object) -> L | None:
        return self._not_ended(self._process_state().held.get((owner, self.keys.state)))

    def _not_ended(self, lease: L | None) -> L | None:
        """Return an owner's hold, or the one around it if the garbage collector has ended it in the middle of ours."""
        while lease is not None and lease.ended:
            lease = lease.outer if lease._depth > 1 else None
        return lease

    def _around(self) -> L | None:
        """Return the innermost hold around the caller's context, where there are contexts."""
        return None

    def _entered(self, lease: L) -> None:
        """Take note that the caller's context is within a hold from now on."""

    def _mine(self, owner: object) -> L | None:
        """Return the hold that an owner may release and extend."""
        return self._held(owner)

    def _check_waiting(self, owner: object) -> None:
        """Raise `CallLockError` if an owner would keep the holder from going on by waiting for it."""

    def _depth(self, owner: object) -> int:
        """Return how many holds of its lease an owner has not left yet."""
        lease = self._held(owner)
        return 0 if lease is None else lease._depth

    def _own(self, owner: object, doing: str) -> L:
        lease = self._mine(owner)
        if lease is None:
            problem = f"can't {doing} {self.keys.state}: this thread or task does not hold it"
            raise about_no_call(CallLockError(problem, self.keys.state))
        return lease

    def under_lease(self, owner: object, body: Callable[[L], CallFlow[T]], wishes: Wishes) -> CallFlow[T]:
        """Hold the lock for a flow and return its result, even if the lease has ended before the flow did.

        Raises, besides what the flow raises, what `CallLock.hold` does at its beginning.
        """
        depth, before = self._depth(owner), NO_CALL
        try:
            lease = yield from self._holding(owner, wishes)
            before = lease.grant.record
            result = yield from body(lease)
            yield from self._leaving(lease, failed=True)
        except BaseException as error:
            if self._depth(owner) > depth:
                lease = self._own(owner, "release")
                if is_interruption(error) and lease.grant.record != before:
                    lease.grant.record = lease.grant.record.unheard()  # of this flow's call, not of one before it
                if isinstance(error, GeneratorExit):
                    self._abandon(owner, depth)
                else:
                    yield from self._leaving(lease, failed=True)
            raise
        return result

    def _holding(self, owner: object, wishes: Wishes) -> Flow[L]:
        """Get a lease, or a hold nested in one that the owner has or is within."""
        wishes.check()
        telling.refuse_observers("acquire", self.keys.state)
        pace = self.pace.settings(wishes.cost, startup_protection=wishes.startup_protection) if self.pace else ""
        while (outer := self._held(owner) or self._around()) is not None:
            started = clock.now()
            nested = yield from self._nesting(owner, outer, wishes.timeout)
            if nested is not None:
                self._entered(nested)
                return nested
            if wishes.timeout is not None:
                wishes = wishes._replace(timeout=max(0.0, wishes.timeout - (clock.now() - started)))
        if wishes.timeout != 0:
            self._check_waiting(owner)
        process_state, started = self._process_state(), clock.now()
        member = process_state.new_member(self.named(), word(wishes.method), wishes.token)
        durability = of_every_nonce(self.durability)
        if wishes.intent:
            wishes = wishes._replace(intent=self._with_name(wishes.intent))
        keep = functools.partial(self._keep, owner, wishes)
        try:
            yield from acquiring(
                process_state, self.keys, member, wishes, ttl=self.ttl, pace=pace, durability=durability, keep=keep
            )
        except BaseException as error:
            if is_interruption(error) and not isinstance(error, GeneratorExit):
                # It may have struck after the grant, where nobody else gives the lock back.
                process_state.give_back(commands.release(self.keys, member, late=True), self.ttl)
            raise
        lease = self._own(owner, "hold")
        self._entered(lease)
        if wishes.auto_renew:
            self.renew(lease)
        self._granted(lease.grant, started)
        return lease

    def _keep(self, owner: object, wishes: Wishes, acquired: Acquired) -> None:
        lease = self._lease(acquired, owner)
        if wishes.intent:
            lease.grant.record = CallRecord(lease.nonce)
        self._process_state().held[owner, self.keys.state] = lease

    def _granted(self, grant: Grant, asked: float) -> None:
        """Tell of a grant, to a caller that ``asked`` for it at a time of `clock.now`."""
        wait = grant.began - asked
        if telling.wanted(events.LockGranted, wait):
            self._tell(events.LockGranted, grant, "wait", wait)

    def _let_go(self, grant: Grant) -> None:
        """Tell that a lease's last hold has ended, or was given up before."""
        if not grant.told_over and telling.wanted(events.LockReleased):
            grant.told_over = True
            self._tell(events.LockReleased, grant, "held", clock.now() - grant.began)

    def _tell(self, kind: type[events.Step], grant: Grant, measure: str, seconds: float) -> None:
        """Tell of a lease, and of what took a number of seconds up to now."""
        now = time.time()
        lease, name, method = names.parts(grant.member)
        # A frozen dataclass takes five times as long to make itself, and there are two of these in every hold.
        event = _new(kind)
        _set(
            event,
            "__dict__",
            {
                "key": self.keys.tag,
                "name": name,
                "method": method,
                "time": now,
                "since": now - seconds,
                "lease": lease,
                "nonce": grant.nonce,
                measure: seconds,
            },
        )
        telling.note(event)

    def _nesting(self, owner: object, outer: L, timeout: float | None) -> Flow[L | None]:
        """Get a hold nested in another one, or None when that has ended, or got another nested one, before.

        Raises `HoldTimeout`, `LeaseLost` and `StoreError`.
        """
        if outer._inner is not None or outer._line:
            yield from self._taking_turns(outer, timeout)
        nested, key, held = outer._nested(owner), (owner, self.keys.state), self._process_state().held
        if outer.ended or outer._inner is not None:
            return None
        outer._inner = held[key] = nested  # since the line above nothing is called, so no interruption strikes
        outer.grant.holds += 1
        try:
            nested._nonce = yield from nested._fresh_nonce()
        except BaseException:
            self._end(nested)
            raise
        return nested

    def _taking_turns(self, outer: L, timeout: float | None) -> Flow[None]:
        """Wait until no hold is nested in another one, or that has ended. Raises `HoldTimeout`."""
        waiter = Waiter(self.keys, "", None if timeout is None else clock.now() + timeout)
        outer._line.append(waiter)
        try:
            while not outer.ended and (outer._inner is not None or outer._line[0] is not waiter):
                waiter.woken = False
                yield Pause(waiter, waiter.until)
                if not waiter.woken:
                    raise waiter.too_late(outer.grant.remaining(), "held")
        finally:
            outer._line.remove(waiter)
            outer._let_in()

    def renew(self, lease: LeaseCore) -> None:
        """Renew a lease in the background from now on, three times in its term."""
        lease.grant.renewal = Renewal(lease)
        self._process_state().agenda.add(clock.now() + lease.grant.term / 3, lease.grant.renewal)

    def _releasing(self, lease: L) -> Flow[None]:
        """End one hold, and with the last one the lease. Raises `LeaseLost` and `StoreError`."""
        grant, command = lease.grant, self._release(lease)
        left = grant.remaining()
        try:
            if not self._end(lease):
                return
            release: Release = yield Run(command)
            self._process_state().departed_for_good(command, left)
            self._let_go(grant)
        except BaseException as error:
            if isinstance(error, KrakenNonceError):
                about_no_call(error)
            if not grant.holds:
                if is_interruption(error):
                    grant.record = grant.record.unheard()
                self._give_back(lease, left)
                self._let_go(grant)
            raise
        # A release sent twice may have worked the first time. After a single one, another caller has ended the lease.
        if release == "lost" or (release == "gone" and not (command.repeated and left)):
            self.lost(lease, left)
            if grant.given_up:
                advice = f". {GIVEN_UP}"
            else:
                # Who renews it can't be helped by that: Redis was away, or the process stood still.
                advice = "" if grant.renewal is not None else ". Choose a longer ttl, or auto_renew=True"
            problem = (
                f"the lease on {self.keys.state} ended before it was released; another caller may have held the "
                f"lock in the meantime{advice}"
            )
            raise about_no_call(LeaseLost(problem, self.keys.state))

    def _abandon(self, owner: object, depth: int) -> None:
        """End the holds of an owner that are more than ``depth``; the lock is released in the background."""
        while self._depth(owner) > depth:
            lease = self._own(owner, "release")
            left = lease.grant.remaining()
            if self._end(lease):
                self._give_back(lease, left)
                self._let_go(lease.grant)

    def _end(self, lease: L) -> bool:
        """End the innermost hold that a hold's owner has of its lease; return whether that is to be released now.

        When an interruption strikes in here, the owner still has its hold, or it has ended as a whole.
        """
        held, key = self._process_state().held, (lease._owner, self.keys.state)
        innermost = self._not_ended(held.get(key))
        if innermost is not None and innermost.grant is lease.grant:
            lease = innermost
        outer, grant = lease.outer, lease.grant
        if lease.ended:
            return not grant.holds and grant.end()
        lease.ended = True
        if lease is innermost:  # not so in a forked child
            if lease._depth > 1:
                held[key] = outer
            else:
                del held[key]
        if outer is not None:
            outer._inner = None
        grant.holds -= 1
        last = not grant.holds  # up to here no interruption strikes, since nothing is called
        for hold in (lease, outer):
            if hold is not None and hold._line:
                hold._let_in()
        return last and grant.end()

    def _release(self, lease: L) -> Command[Release]:
        grant, call = lease.grant, lease.grant.record
        return commands.release(self.keys, grant.member, grant.nonce, call.intent, known=call.known, late=grant.late)

    def _give_back(self, lease: L, left: float) -> None:
        """Let the agenda release a lease that has ``left`` seconds."""
        call = lease.grant.record
        seconds = max(left, _KNOWN_FOR) if call.intent and call.known else left
        self._process_state().give_back(self._release(lease), seconds)

    def give_up(self, lease: L) -> bool:
        """Release a lease in the background, whatever its holder does; return whether it was still held.

        The lease has ended for its holder, who sends nothing more. What it has sent and not heard of stays unknown.
        """
        grant, left = lease.grant, lease.grant.remaining()
        if grant.over or not grant.end():
            return False
        grant.given_up = True
        self._give_back(lease, left)
        grant.told_lost = True  # its holder will be told of that by its error
        self._let_go(grant)
        return True

    def _leaving(self, lease: L, *, failed: bool, wait: bool = False) -> Flow[None]:
        """Release at the end of a ``with`` block.

        While the lease is known to last, its holder needs no answer to go on, unless it wants to wait. A failure of
        Redis is no news about what was done in the block, so it must not hide that: the lock is given back when Redis
        is there again, or ends with its lease.
        """
        if not wait and self.durability is None and lease.grant.remaining() > _ON_THE_WAY:
            yield from self._telling(lease)
            return
        try:
            yield from self._releasing(lease)
        except StoreError as error:
            logger.warning("%s stays locked until Redis is back or its lease ends: %s", self.keys.state, error)
        except LeaseLost:  # which is told
            if not failed:
                raise

    def lost(self, lease: LeaseCore, left: float) -> None:
        """Tell of a lease that was gone before its holder released it, when it should have had ``left`` seconds."""
        grant = lease.grant
        if grant.told_lost:
            return
        grant.told_lost = True
        held = clock.now() - grant.began
        kind = events.LeaseEndedEarly if left else events.LeaseRanOut
        news = kind(**names.told_of(self.keys, grant.member), since=time.time() - held, nonce=grant.nonce, held=held)
        telling.announce(news, self._process_state().later, self._on_event)

    def _telling(self, lease: L) -> Flow[None]:
        """End one hold, and with the last one hand the release to the server; what comes of it is heard later."""
        command, grant = self._release(lease), lease.grant
        left = grant.remaining()

        def answered(release: Release) -> None:
            self._process_state().departed_for_good(command, left)
            if release == "lost" or (release == "gone" and not command.repeated):
                self.lost(lease, left)

        def lost() -> None:
            self._give_back(lease, left)

        try:
            if self._end(lease):
                yield Tell(command, answered, lost)
                self._let_go(grant)
        except BaseException as error:
            if grant.holds:
                raise
            if is_interruption(error):
                grant.record = grant.record.unheard()
            lost()
            self._let_go(grant)
            if not isinstance(error, StoreError):
                raise
            logger.warning("%s stays locked until Redis is back or its lease ends: %s", self.keys.state, error)

    def _extending(self, owner: object, seconds: float, *, replace: bool) -> Flow[None]:
        """Extend the owner's lease."""
        lease = self._own(owner, "extend")
        yield from lease._extending(seconds, replace=replace, name="additional_time")

    def _owning(self, owner: object) -> Flow[bool]:
        """Return whether an owner holds the lock, as Redis sees it."""
        lease = self._mine(owner)
        if lease is None:
            return False
        state = yield from running(commands.inspect(self.keys))
        return state.leased and state.holder == lease.grant.member
