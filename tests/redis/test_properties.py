"""What must hold whatever happens in whatever order: random histories against simple models."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kraken_nonce_redis import CallLock, NonceAllocator
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.places import Floors
from tests.support.faces import KEY
from tests.support.helpers import KEYS, SECOND
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    import redis

    from kraken_nonce_redis._redis.command import Command
    from tests.support.servers import Server

MARGIN = SECOND
DAY = 86_400 * SECOND


# Nonces.


class Caller:
    """A process that takes nonces, and the highest that it has seen."""

    def __init__(self, server: Server) -> None:
        client = server.client(client_name=secrets.token_hex(8))
        self.nonces = NonceAllocator(client, KEY, max_lead=90 * DAY)
        self.lock = CallLock(client, KEY)
        self.lock.store.process_state.floors = Floors()  # which callers of one process share
        self.seen = 0


class NonceHistory(RuleBasedStateMachine):
    """Callers take nonces and raise them, while Redis forgets some or all; what it should hold is modelled."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.admin = server.client()
        self.admin.flushall()
        self.stored = 0
        self.older: list[tuple[int, bytes]] = []
        self.callers = [Caller(server) for _ in range(3)]

    def teardown(self) -> None:
        """Leave no connection."""
        self.server.close_clients()

    def now(self) -> int:
        """Return the server's time in nanoseconds."""
        seconds, microseconds = self.admin.time()
        return (seconds * 1_000_000 + microseconds) * 1000

    def handed_out(self, caller: Caller, first: int, last: int, asked: int) -> None:
        """Check a block of nonces against the rule, and against what all living callers have seen."""
        lost = caller.seen > self.stored
        healed = caller.seen + 1 + MARGIN if lost else 0
        assert max(asked, self.stored + 1, healed) <= first <= max(self.now(), self.stored + 1, healed)
        for other in self.callers:
            # What others have seen beyond that, neither Redis nor this caller can know after a loss.
            if other.seen <= (caller.seen + MARGIN if lost else self.stored):
                assert first > other.seen
        self.stored = caller.seen = last

    @rule(who=st.integers(0, 2))
    def next(self, who: int) -> None:
        """Take one."""
        caller, asked = self.callers[who], self.now()
        nonce = caller.nonces.next()
        self.handed_out(caller, nonce, nonce, asked)

    @rule(who=st.integers(0, 2), count=st.integers(1, 1000) | st.just(1_000_000))
    def reserve(self, who: int, count: int) -> None:
        """Take some."""
        caller, asked = self.callers[who], self.now()
        block = caller.nonces.reserve(count)
        assert len(block) == count
        self.handed_out(caller, block[0], block[-1], asked)

    @rule(who=st.integers(0, 2), uses=st.integers(0, 3))
    def hold(self, who: int, uses: int) -> None:
        """Take the block of a lease."""
        caller, asked = self.callers[who], self.now()
        with caller.lock.hold(0) as lease:
            nonces = [lease.nonce, *(lease.next_nonce() for _ in range(uses))]
        assert nonces == list(range(lease.nonce, lease.nonce + uses + 1))
        self.handed_out(caller, lease.nonce, lease.nonce + commands.BLOCK - 1, asked)

    def raised(self, caller: Caller, target: int, last: int) -> None:
        """Check a raise against the rule."""
        healed = caller.seen + MARGIN if caller.seen > self.stored else 0
        assert last == max(self.stored, target, healed)
        self.stored = last
        caller.seen = max(caller.seen, last)

    @rule(who=st.integers(0, 2), ahead=st.integers(-10 * SECOND, 600 * SECOND))
    def advance(self, who: int, ahead: int) -> None:
        """Raise to a target, which may be reached already."""
        caller, target = self.callers[who], self.now() + ahead
        self.raised(caller, target, caller.nonces.advance_to(target))

    @precondition(lambda self: self.stored)
    @rule(who=st.integers(0, 2), nanoseconds=st.integers(1, 600 * SECOND))
    def jump(self, who: int, nanoseconds: int) -> None:
        """Raise by a distance, from the clock or the last nonce, whichever is higher."""
        caller = self.callers[who]
        before = self.now()
        last = caller.nonces.jump_forward(nanoseconds)
        healed = caller.seen + MARGIN if caller.seen > self.stored else 0
        assert max(before, self.stored) + nanoseconds <= max(last, healed)
        assert last <= max(max(self.now(), self.stored) + nanoseconds, healed)
        assert last > max(self.stored, caller.seen)
        self.stored = caller.seen = last

    @rule()
    def forget(self) -> None:
        """Lose everything."""
        self.admin.flushall()
        self.stored = 0

    @precondition(lambda self: self.stored)
    @rule()
    def save(self) -> None:
        """Keep the state as it is, for a later restore."""
        self.older.append((self.stored, self.admin.dump(KEYS.state)))

    @precondition(lambda self: self.older)
    @rule(which=st.integers(0, 10))
    def restore(self, which: int) -> None:
        """Go back to an older state, as a failover to a replica does."""
        stored, dump = self.older[which % len(self.older)]
        self.admin.restore(KEYS.state, 0, dump, replace=True)
        self.stored = stored

    @rule(who=st.integers(0, 2))
    def die(self, who: int) -> None:
        """Let one go, and another begin that has seen nothing."""
        self.callers[who] = Caller(self.server)

    @invariant()
    def redis_holds_what_it_should(self) -> None:
        """Find the last nonce in Redis to the last digit, and never expiring."""
        value: Any = self.admin.hget(KEYS.state, "nonce")
        assert int((value or b"2:0").removeprefix(b"2:")) == self.stored
        assert self.admin.ttl(KEYS.state) == (-1 if self.stored else -2)


def test_nonces_over_any_history(valkey: Server) -> None:
    """No nonce is at or below what Redis holds or, when it lost that, what living callers saw within the margin."""
    run_state_machine_as_test(
        partial(NonceHistory, valkey),
        settings=settings(
            max_examples=by_tier(15, 40, 400),
            stateful_step_count=30,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
        ),
    )


# The lock.

HIGH = -4 * 10**15
OFFER = 1_600_000
MOST_OVERTAKINGS = 10
STUB = """
local real, now = redis, table.remove(ARGV)
local redis = { pcall = real.pcall, call = function(name, ...)
  if name == 'TIME' then return { now:sub(1, -7), tostring(tonumber(now:sub(-6))) } end
  return real.call(name, ...)
end, pcall = redis.pcall }
"""
"""Goes before a script and gives it the time that the test wants it to be."""


@dataclass
class Holder:
    """Who has the lock, or whom it is offered to."""

    member: str
    leased: bool
    since: int
    term: int
    nonce: int = 0
    extensions: int = 0


@dataclass
class Model:
    """The lock as it should be: plain, slow, and in one place."""

    holder: Holder | None = None
    queue: dict[str, int] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    tickets: int = 0
    overtaken: int = 0
    lost: str = ""
    gone: set[str] = field(default_factory=set)

    def is_free(self, now: int) -> bool:
        """Whether nobody has it any more, or a running call for it."""
        if self.holder is None:
            return True
        self.holder.since = min(self.holder.since, now)
        if now - self.holder.since < self.holder.term:
            return False
        if self.holder.leased:
            self.lost = self.holder.member
        else:
            self.alive.discard(process_of(self.holder.member))
        return True

    def next_waiter(self, asking: str = "") -> str | None:
        """Take the next living one out of the queue; the one that asks is alive."""
        while self.queue:
            # Two can have the same ticket when one has it from before state was lost; then the name decides.
            order = sorted(self.queue, key=lambda one: (self.queue[one], one))
            member = order[0]
            normal = next((one for one in order if self.queue[one] > 0), None)
            if self.queue[member] < 0 and normal:
                self.overtaken += 1
                if self.overtaken > MOST_OVERTAKINGS:
                    member = normal
            is_alive = member == asking or process_of(member) in self.alive
            self.leave(member)
            if is_alive:
                return member
        return None

    def leave(self, member: str) -> None:
        """Take one out; with the last waiter the queue is gone, and what it knew of processes."""
        self.queue.pop(member, None)
        if not self.queue:
            self.alive.clear()

    def hand_over(self, now: int) -> None:
        """Call the next one, or let the lock be free."""
        member = self.next_waiter()
        self.holder = Holder(member, leased=False, since=now, term=OFFER) if member else None

    def acquire(self, member: str, ticket: int | None, *, high: bool, term: int, now: int) -> str:
        """Return 'granted', 'waiting' or 'busy'."""
        if member in self.gone:
            return "busy"
        mine = self.holder is not None and self.holder.member == member
        if mine and self.holder is not None and self.holder.leased:
            return "granted"
        if not mine and self.is_free(now):
            following = self.next_waiter(member)
            mine = following in (None, member)
            if not mine and following:
                self.holder = Holder(following, leased=False, since=now, term=OFFER)
        if mine:
            self.holder = Holder(member, leased=True, since=now, term=term)
            if ticket and not high:
                self.overtaken = 0  # one that waited has it; those that it was only offered to don't count
            return "granted"
        if ticket is None:
            return "busy"
        if member not in self.queue:
            self.tickets = max(self.tickets + 1, now) if ticket == 0 else max(self.tickets, ticket)
            self.queue[member] = (ticket or self.tickets) + (HIGH if high else 0)
        self.alive.add(process_of(member))
        return "waiting"

    def release(self, member: str, now: int) -> None:
        """Give up whatever it has."""
        if self.holder is not None and self.holder.member == member:
            self.hand_over(now)
        elif member in self.queue:
            self.leave(member)

    def live(self, oldest: str, now: int) -> str:
        """Send a heartbeat; return who of the process has the lock or is offered it."""
        if self.is_free(now):
            self.hand_over(now)
        if oldest in self.queue:
            self.alive.add(process_of(oldest))
        if self.holder and process_of(self.holder.member) == process_of(oldest):
            return self.holder.member
        return ""


def process_of(member: str) -> str:
    """Return the process of an acquisition."""
    return member.split(":", maxsplit=1)[0]


class LockHistory(RuleBasedStateMachine):
    """Processes ask, wait, take, extend and give back, stop and come back, while time goes as it likes."""

    members = Bundle("members")

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self.client = client
        client.flushall()
        self.model = Model()
        self.now = 1_800_000_000_000_000
        self.numbers = 0
        self.tickets: dict[str, int] = {}
        self.priorities: dict[str, bool] = {}
        self.nonce = 0
        self.lease: tuple[str, int] | None = None

    def run(self, command: Command[Any], floor: int = 0) -> Any:
        """Run a command at the time that it is."""
        arguments = command.args if command.highest is None else (floor, *command.args)
        reply: Any = self.client.eval(
            STUB + command.script.source, len(command.keys), *command.keys, *map(str, arguments), str(self.now)
        )
        return command.result(reply)

    def ask(self, member: str, ticket: int | None, term: float = 30.0) -> None:
        """Ask for the lock, and compare the answer with the model's; check by itself what matters most."""
        high = self.priorities[member]
        before = self.model.holder
        queue = dict(self.model.queue)
        alive = set(self.model.alive)
        held = self.lease
        answer = self.run(
            commands.acquire(KEYS, member, term, ticket=ticket, priority="high" if high else "normal", pace="")
        )
        expected = self.model.acquire(member, ticket, high=high, term=round(term * 1e6), now=self.now)
        assert type(answer).__name__.lower() == expected
        if isinstance(answer, commands.Waiting):
            self.tickets[member] = answer.ticket
            assert answer.ticket == (self.model.queue[member] - HIGH if high else self.model.queue[member])
            return
        if isinstance(answer, commands.Busy):
            return
        assert self.model.holder is not None
        if before is not None and before.leased and before.member == member:
            assert answer.nonces[0] == before.nonce, "run twice, it is the same lease"
            return
        # Never two holders: a lease that was not given back had run out.
        assert held is None or held[1] <= self.now
        # First come, first served: nobody of the same or a higher priority who lives was there before. Whoever let
        # its call pass counts as dead until it speaks again.
        if before is not None and not before.leased:
            alive.discard(process_of(before.member))
        if before is None or before.member != member:
            place = queue.get(member, float("inf"))
            if place > 0 and not any(score < 0 for score in queue.values()):
                assert not [one for one, score in queue.items() if score < place and process_of(one) in alive]
        assert answer.nonces[0] > self.nonce
        self.nonce = answer.nonces[-1]
        self.model.holder.nonce = answer.nonces[0]
        self.lease = (member, self.now + round(term * 1e6))

    @initialize(target=members)
    def begin(self) -> Any:
        """Begin with one who has it and two who wait, of three processes."""
        found = []
        for number in range(3):
            member = f"process{number}:0"
            self.priorities[member] = False
            self.ask(member, 0)
            found.append(member)
        return multiple(*found)

    @rule(target=members, process=st.integers(0, 3), high=st.booleans(), waits=st.booleans())
    def come(self, process: int, high: bool, waits: bool) -> str:  # noqa: FBT001
        """Let a new caller ask."""
        self.numbers += 1
        member = f"process{process}:{self.numbers}"
        self.priorities[member] = high
        self.ask(member, 0 if waits else None)
        return member

    @rule(member=members, term=st.sampled_from([1.0, 30.0]))
    def ask_again(self, member: str, term: float) -> None:
        """Ask again with the ticket, as one does who got an offer, lost its place or did not hear the answer."""
        self.ask(member, self.tickets.get(member, 0), term)

    @precondition(lambda self: self.model.holder and not self.model.holder.leased)
    @rule()
    def take(self) -> None:
        """Take the lock as the one that it is offered to."""
        member = self.model.holder.member  # type: ignore[union-attr]
        self.ask(member, self.tickets[member])

    @rule(member=members, late=st.sampled_from([False, False, True]))
    def release(self, member: str, *, late: bool = False) -> None:
        """Give up whatever a caller has, if anything, and once more, since the reply was lost.

        If ``late``, what the caller asks for afterwards is what it has asked for before, and comes late.
        """
        nonce = self.model.holder.nonce if self.model.holder and self.model.holder.member == member else 0
        was_lost = self.model.lost == member and not nonce
        for _ in range(2):
            holds = self.model.holder is not None and self.model.holder.member == member
            said = self.run(commands.release(KEYS, member, nonce, late=late))
            assert (said == "released") == holds
            assert said != "lost" or self.model.lost == member or was_lost
            self.model.release(member, self.now)
            self.model.gone |= {member} if late else set()
            self.compare()
        if self.lease and self.lease[0] == member:
            self.lease = None

    @precondition(lambda self: self.model.holder)
    @rule()
    def release_of_the_holder(self) -> None:
        """Give it back as the holder, or the one that it is offered to."""
        self.release(self.model.holder.member)  # type: ignore[union-attr]

    @rule(member=members)
    def live(self, member: str) -> None:
        """Send a process's heartbeat, with one of its callers as the oldest."""
        heartbeat = self.run(commands.heartbeat(KEYS, process_of(member), member))
        assert heartbeat.offered.strip("-") == self.model.live(member, self.now)
        # It hears that it must ask again when its place is gone, and only then.
        holder = self.model.holder
        has_a_place = member in self.model.queue or (holder is not None and holder.member == member)
        assert (heartbeat.joined == "-") == (not has_a_place)

    @rule(member=members, seconds=st.sampled_from([1.0, 60.0]), number=st.integers(1, 3), replace=st.booleans())
    def extend(self, member: str, seconds: float, number: int, *, replace: bool) -> None:
        """Extend a caller's lease, if it has one; the command may come after later ones."""
        holder = self.model.holder
        extended = self.run(commands.extend(KEYS, member, seconds, number=number, replace=replace))
        if holder is None or holder.member != member or not holder.leased:
            assert extended == "lost"
            return
        if number < holder.extensions:
            assert extended == "late"
            return
        assert extended.nonces[0] > self.nonce
        self.nonce = extended.nonces[-1]
        left = min(holder.since - self.now, 0) + holder.term
        holder.since, holder.extensions = self.now, number
        holder.term = round(seconds * 1e6) if replace else max(left, round(seconds * 1e6))
        assert extended.left == holder.term / 1e6
        self.lease = (member, self.now + holder.term)

    @rule(seconds=st.sampled_from([0.001, 0.3, 0.75, 1.0, 5.0, 30.0]))
    def time_goes_on(self, seconds: float) -> None:
        """Nobody says anything for a while; those who were to, have died or are stopped."""
        self.now += round(seconds * 1e6)

    @rule(seconds=st.sampled_from([0.5, 3600.0]))
    def clock_goes_back(self, seconds: float) -> None:
        """Set the server's clock back: what lasts, lasts its full length at most from when that is noticed."""
        self.now -= round(seconds * 1e6)
        if self.lease is not None:
            self.lease = (self.lease[0], min(self.lease[1], self.now))

    @rule()
    def state_is_lost(self) -> None:
        """Redis forgets who holds and who waits, and the lock is free."""
        # The nonce stays here: what becomes of it is the other history's.
        nonce: Any = self.client.hget(KEYS.state, "nonce")
        self.client.flushall()
        if nonce:
            self.client.hset(KEYS.state, "nonce", nonce)
        self.model = Model()
        self.lease = None

    @invariant()
    def compare(self) -> None:
        """Redis holds what the model says: the holder, the order of those who wait, and no queue without waiters."""
        found: Any = self.client.zrange(KEYS.queue, 0, -1, withscores=True)
        waiters = {member.decode(): int(score) for member, score in found if score < 3.9e15}
        processes = {member.decode() for member, score in found if score > 3.9e15}
        assert waiters == self.model.queue
        assert processes == self.model.alive
        state = self.run(commands.inspect(KEYS))
        holder = self.model.holder
        assert state.holder == (holder.member if holder else "")
        if holder:
            ends = min(holder.since, self.now) + holder.term
            assert state.leased == (holder.leased and ends > self.now)
            assert round(state.left * 1e6) == max(ends - self.now, 0)

    def teardown(self) -> None:
        """When all who are there take their turn or let it pass, nothing is left behind."""
        for _ in range(len(self.model.queue) + 1):
            if self.model.holder is not None:
                self.release_of_the_holder()
        self.compare()
        assert self.model.holder is None
        assert not self.client.exists(KEYS.queue)


def test_the_lock_over_any_history(valkey: Server) -> None:
    """Never two holders, first come first served, nothing left behind: over random schedules, crashes and clocks."""
    client = valkey.client()
    run_state_machine_as_test(
        partial(LockHistory, client),
        settings=settings(
            max_examples=by_tier(25, 80, 800),
            stateful_step_count=50,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
        ),
    )
