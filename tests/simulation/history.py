"""What happens in a simulation, and what must hold about it.

Callers, processes and server report here. Whatever breaks a promise of docs/guarantees.md raises `Violation`.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from kraken_nonce_redis._core.waiters import HEARTBEAT, OFFER
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.errors import LeaseLost, NonceTooFarAhead
from tests.simulation.records import (
    DEAD_WAITER,
    LONGEST_PACE,
    MARGIN,
    MOST_ASKS,
    MOST_HEARTBEATS,
    MOST_OVERTAKINGS,
    RECOVERY,
    Acquisition,
    KeyHistory,
    Violation,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kraken_nonce_redis._core.lease import LeaseCore
    from kraken_nonce_redis._redis.command import Command
    from tests.simulation.network import Connection
    from tests.simulation.pipe import Order
    from tests.simulation.process import Process
    from tests.simulation.scheduler import Scheduler
    from tests.simulation.server import Server


class _Owed(NamedTuple):
    """A release that must reach the server before its process asks for the lock again.

    Attributes:
        number: commands with higher ones were begun later.
        until: when what it releases has ended anyway.
        order: its request, when it was handed over and nobody has heard of it since.
    """

    number: int
    until: float
    order: Order | None = None


class History:
    """All that is reported, and the checks."""

    def __init__(self, scheduler: Scheduler, *, traced: bool) -> None:
        self.trace: list[str] | None = [] if traced else None
        self.over = False
        self.orderly = True
        self.dead = 0
        self.troubled_until = 0.0
        self.orphans_until = 0.0
        self.paced: dict[str, float] = {}
        self.patience = 0.0
        self._asks: Acquisition | None = None
        self.server: Server
        self.connections: Sequence[Connection] = ()
        self.clock_rate = 1.0
        self.numbers = itertools.count()
        self._scheduler = scheduler
        self._keys: dict[str, KeyHistory] = {}
        self._by_member: dict[str, Acquisition] = {}
        self._seen: dict[tuple[Process, str], int] = {}
        self._heartbeats: dict[tuple[Process, str], deque[float]] = {}
        self._owed: dict[tuple[Process, str], dict[str, _Owed]] = {}
        self._unheard: dict[Order, Process] = {}

    def key(self, state: str) -> KeyHistory:
        """Return what is known of a key."""
        return self._keys.get(state) or self._keys.setdefault(state, KeyHistory())

    def note(self, text: str, *arguments: object) -> None:
        """Write a line of the trace."""
        if self.trace is not None:
            self.trace.append(f"{self._scheduler.now:10.6f}  {text % arguments}")

    def violation(self, text: str) -> NoReturn:
        """Say what went wrong."""
        self.note("VIOLATION: %s", text)
        raise Violation(text)

    # Callers

    def asks(self, acquisition: Acquisition) -> None:
        """Take note of a caller that begins to ask for the lock."""
        self.note(
            "%s asks for %s, high=%s until=%s", acquisition.name, acquisition.key, acquisition.high, acquisition.until
        )
        self.key(acquisition.key).acquisitions[acquisition.name] = acquisition

    def told(self, acquisition: Acquisition, error: BaseException) -> None:
        """Take note that a caller was told that it does not get the lock."""
        if self.over:
            return
        self.note("%s is told: %r", acquisition.name, error)
        self._ends(acquisition)
        self._in_time(acquisition)

    def granted(self, acquisition: Acquisition, lease: LeaseCore) -> None:
        """Take note that a caller knows that it holds the lock."""
        self.note("%s has the lock until %.6f, nonce %d", acquisition.name, lease.grant.deadline, lease.nonce)
        acquisition.state = "held"
        acquisition.lease = lease
        acquisition.has_place = False
        self.renewed(acquisition)
        self._in_time(acquisition)

    def renewed(self, acquisition: Acquisition) -> None:
        """Check that a lease that begins or is renewed is the only one."""
        key = self.key(acquisition.key)
        if not acquisition.holds:
            return
        for other in key.acquisitions.values():
            if other is not acquisition and other.holds and key.disturbed < min(other.confirmed, acquisition.confirmed):
                self.violation(f"{acquisition.name} has the lock of {acquisition.key}, and so has {other.name}")

    def sends(self, process: Process, command: Command[Any]) -> None:
        """Check that heartbeats for a key are not sent more often than once a second by much."""
        if command.name == "heartbeat":
            latest = self._heartbeats.setdefault((process, command.keys[0]), deque(maxlen=MOST_HEARTBEATS))
            if len(latest) == MOST_HEARTBEATS and self._scheduler.now - latest[0] < MOST_HEARTBEATS / 2:
                self.violation(f"{process.name} sends more than two heartbeats a second for {command.keys[0]}")
            latest.append(self._scheduler.now)

    def calls_kraken(self, acquisition: Acquisition, nonce: int) -> None:
        """Check that Kraken would take a nonce that a holder sends within its lease."""
        key = self.key(acquisition.key)
        self.note("%s sends %d", acquisition.name, nonce)
        if key.disturbed >= acquisition.confirmed:
            return  # its lease may have ended early, which Kraken's rule for nonces makes up for
        last, when = key.sent
        if nonce <= last and key.disturbed < when:
            self.violation(f"{acquisition.name} sends {nonce}, but {last} was sent before")
        key.sent = (nonce, self._scheduler.now)

    def releases(self, acquisition: Acquisition) -> None:
        """Take note that a caller begins to give back the lock."""
        self.note("%s releases", acquisition.name)
        acquisition.state = "leaving"
        acquisition.deadline = acquisition.lease.grant.deadline if acquisition.lease is not None else 0.0

    def released(self, acquisition: Acquisition, error: BaseException | None = None) -> None:
        """Take note that a caller is done with the lock."""
        if self.over:
            return
        self.note("%s has released: %r", acquisition.name, error)
        if isinstance(error, LeaseLost):
            self.finds_lost(acquisition)
        elif (
            error is None
            and acquisition.superseded
            and self.orderly
            and not (acquisition.interrupted or acquisition.quiet)
        ):
            self.violation(f"{acquisition.name} does not hear that its lease was lost")
        self._ends(acquisition)

    def finds_lost(self, acquisition: Acquisition) -> None:
        """Check that a lease of which the server says that it was lost may have been."""
        in_time = self._scheduler.now < acquisition.deadline
        if in_time and self.key(acquisition.key).disturbed < acquisition.confirmed:
            self.violation(f"{acquisition.name} hears that its lease was lost, but it was not")

    def _ends(self, acquisition: Acquisition) -> None:
        acquisition.state = "over"
        acquisition.has_place = False
        self.check(acquisition.key)

    def _in_time(self, acquisition: Acquisition) -> None:
        if acquisition.until is None or acquisition.interrupted:
            return
        latest = max(acquisition.until, self.troubled_until, acquisition.process.stopped_until)
        if self._scheduler.now > latest + self.patience + (0 if self.orderly else RECOVERY):
            self.violation(f"{acquisition.name} was told after its time, at {acquisition.until:.6f}, was over")

    # Processes

    def seen_by(self, process: Process, command: Command[Any]) -> int:
        """Return the highest nonce that a process has seen of a key."""
        return self._seen.get((process, command.keys[0]), 0)

    def answered(self, process: Process, command: Command[Any], result: Any) -> None:
        """Take note of what a process has learned."""
        highest = _block(result)[1]
        if command.name == "advance":
            highest = result
        if highest:
            place = (process, command.keys[0])
            self._seen[place] = max(self._seen.get(place, 0), highest)

    # What goes over the connections

    def sent(self, process: Process, order: Order) -> None:
        """Check that a request goes out twice at most."""
        self.note("%s sends %s %s", process.name, order.command.name, order.command.args)
        if order.sent > 2:
            self.violation(f"{process.name} sends {order.command.name} for the {order.sent}rd time")

    def lost(self, process: Process, in_flight: list[Order]) -> None:
        """Check that everyone fails at once who was in flight on a connection that has never worked."""
        if not all(order.done or order.left for order in in_flight):
            self.violation(f"{process.name} tries again what no connection has worked for")

    def delivered(self, order: Order) -> None:
        """Check that a caller gets the replies to its own request."""
        for reply in order.replies:
            said = [answer for answer in order.said if answer.startswith(b"-") == isinstance(reply, Exception)]
            if not any(isinstance(reply, Exception) or reply in answer.split(b"\r\n") for answer in said):
                self.violation(f"{reply!r} comes as the reply to {order.command.name}, to which {order.said} was said")

    def hands_over(self, command: Command[Any]) -> None:
        """Take note of a release whose holder goes on without an answer."""
        acquisition = self._by_member.get(str(command.args[0]))
        if acquisition is not None:
            acquisition.quiet = True

    def tells(self, process: Process, order: Order) -> None:
        """Take note of a release that was handed over, and nobody waits for its answer."""
        self._unheard[order] = process
        member = str(order.command.args[0])
        acquisition = self._by_member.get(member)
        until = 0.0 if acquisition is None else acquisition.deadline
        self._owed.setdefault((process, order.command.keys[0]), {})[member] = _Owed(order.number, until, order)

    def owes(self, process: Process, command: Command[Any], seconds: float) -> None:
        """Take note of a release that is left to the agenda, for so many seconds."""
        owed = _Owed(next(self.numbers), self._scheduler.now + seconds)
        self._owed.setdefault((process, command.keys[0]), {})[str(command.args[0])] = owed

    def heard(self, order: Order) -> None:
        """Take note that somebody has heard what a release that was handed over has come to."""
        self._unheard.pop(order, None)

    def _reaches(self, order: Order, process: Process) -> None:
        """Check that no process asks for a lock before what it has given up before has reached the server."""
        command = order.command
        owed = self._owed.get((process, command.keys[0]), {})
        if command.name == "release":
            owed.pop(str(command.args[0]), None)
        elif command.name == "acquire":
            for member, release in owed.items():
                # One that lacked its script has reached the server, behind it others that were on their way.
                reached = release.order is not None and release.order.said
                if release.number < order.number and self._scheduler.now < release.until and not reached:
                    self.violation(f"{command.args[0]} asks before {member} has released")

    # Server

    def published(self, message: str) -> None:
        """Take note of a call."""
        self.note("server: calls %s", message)
        acquisition = self._by_member.get(message)
        if acquisition is not None:
            acquisition.offers += 1

    def ran(self, process: Process, order: Order, reply: str, seen: int) -> None:
        """Check what a script has done."""
        command = order.command
        self.note("server: %s %s -> %s", command.name, command.args, reply)
        try:
            result = command.result(reply)
        except NonceTooFarAhead:
            return
        state = command.keys[0]
        self._check_nonces(state, command, result, seen)
        self._asks = None
        self._reaches(order, process)
        if command.name == "acquire":
            self._acquired(command, result, again=order.sent > 1)
        elif command.name == "extend":
            if isinstance(result, commands.Extended) and str(command.args[0]) in self._by_member:
                self._by_member[str(command.args[0])].confirmed = self._scheduler.now
        elif command.name == "release":
            acquisition = self._by_member.get(str(command.args[0]))
            if acquisition is not None:
                acquisition.has_place = False
                acquisition.superseded |= self.key(state).latest is not acquisition
        elif command.name == "cool_down":
            self.key(state).cool_until = self._scheduler.now + result / self.clock_rate
        self.check(state)

    def _check_nonces(self, state: str, command: Command[Any], result: Any, seen: int) -> None:
        first, last = _block(result)
        if command.name == "advance":
            first = last = result
        if not last:
            return
        key = self.key(state)
        if command.name == "acquire":
            acquisition = self._by_member.get(str(command.args[0]))
            if acquisition is not None and acquisition.first == first:
                return  # asked twice, it is the same lease
        floor = seen + MARGIN if seen > key.must_exceed else 0  # state was lost
        lowest = max(key.must_exceed, floor)
        if command.name == "advance":
            if last < lowest:
                self.violation(f"the last nonce is {last} after {lowest}")
        elif first <= lowest or first < self.server.now * 1000:
            self.violation(f"{command.name} gives {first}, not above {lowest} and the clock ({self.server.now}000)")
        key.must_exceed = last

    def _acquired(self, command: Command[Any], result: Any, *, again: bool) -> None:
        member = str(command.args[0])
        key = self.key(command.keys[0])
        acquisition = self._by_member.get(member)
        if acquisition is None:
            acquisition = self._by_member[member] = key.acquisitions[member.split("|")[3]]
        acquisition.asks += not again
        self._asks = acquisition
        if isinstance(result, commands.Granted):
            acquisition.confirmed = self._scheduler.now
            if acquisition.first != result.nonces[0]:
                acquisition.first = result.nonces[0]
                self._check_turn(key, acquisition)
            acquisition.has_place = False
        elif isinstance(result, commands.Busy):
            acquisition.has_place = False
        elif acquisition.state == "asking":
            acquisition.has_place = True
            acquisition.ticket = result.ticket
        paced = key.cool_until or acquisition.key in self.paced
        if self.orderly and acquisition.asks > MOST_ASKS + acquisition.offers and not paced:
            self.violation(f"{acquisition.name} asks for the {acquisition.asks}th time")

    def _check_turn(self, key: KeyHistory, acquisition: Acquisition) -> None:
        """Check that whoever gets the lock is the one whose turn it is, and keeps the distance to the last start."""
        waited = self._scheduler.now - key.started_at
        if key.disturbed < 0 and waited < self.paced.get(acquisition.key, 0.0) / 1.001:
            self.violation(f"{acquisition.name} starts {waited:.6f} s after the last one")
        key.started_at = self._scheduler.now
        key.latest = acquisition
        if not self.orderly:
            return
        # One that had to let a normal one go first holds up none of high priority that costs that one nothing.
        refusals = int(self.server.hashes[acquisition.key].get("overtaken", "0")) > MOST_OVERTAKINGS
        for other in key.waiting() if not (acquisition.high and refusals) else ():
            if (
                other is not acquisition
                and other.high == acquisition.high
                and (acquisition.ticket is None or (other.ticket or 0) < acquisition.ticket)
            ):
                self.violation(f"{acquisition.name} gets {acquisition.key} before {other.name}, which came first")
        if not acquisition.high and acquisition.ticket is not None:
            key.overtakings = 0

    def _check_offer(self, key: KeyHistory, state: str) -> None:
        """Check that the lock is offered to one of high priority before a normal one, ten times in a row at most."""
        acquisition = self._by_member.get(key.offered)
        if acquisition is None or not self.orderly or key.cool_until or state in self.paced:
            return
        # One that has just come for the first time was not there when the server looked.
        others = [one for one in key.waiting() if one is not acquisition and (one is not self._asks or one.asks > 1)]
        if acquisition.high and not all(one.high for one in others):
            key.overtakings += 1
            if key.overtakings > MOST_OVERTAKINGS:
                self.violation(f"{acquisition.name} is the {key.overtakings}th in a row before a normal one")
        elif not acquisition.high and any(one.high for one in others) and key.overtakings < MOST_OVERTAKINGS:
            self.violation(f"{acquisition.name} gets an offer before one of high priority")

    # Progress

    def check(self, state: str) -> None:
        """Check that a free lock does not stay free while somebody waits, and that a lease given up ends."""
        now = self._scheduler.now
        key = self.key(state)
        allowed = self.patience
        if not self.orderly:
            allowed += DEAD_WAITER * max(1, self.dead)
        if now > max(key.covered_until, self.troubled_until) + allowed:
            self.violation(f"{state} is free since {key.covered_until:.6f}, and somebody waits")
        allowed = self.patience if self.orderly else RECOVERY
        if min(now, key.ends) > max(key.returned_by, self.orphans_until) + allowed:
            self.violation(f"{key.offered} has given up {state}, but still has it")
        self._look(key, state, now)

    def _look(self, key: KeyHistory, state: str, now: float) -> None:
        """Read the lock as it is on the server."""
        fields = self.server.hashes.get(state, {})
        leased, member, ends, due = False, "", now, now
        if "lock" in fields:
            lease, since, term, _, member = fields["lock"].split(" ", 4)
            left = (int(term) + min(int(since) - self.server.now, 0)) / 1e6 / self.clock_rate
            leased = lease.isdecimal()
            ends = now + left
            # A waiting process looks once a second whether a lease has run out.
            due = ends - OFFER / self.clock_rate - 1e-6
            if leased:
                granted = self._by_member[member].confirmed if member in self._by_member else 0.0
                longest = max(granted + int(term) / 1e6 / self.clock_rate, self.troubled_until, self.orphans_until)
                due = min(ends, longest) + HEARTBEAT
        if member != key.offered:
            key.offered = member
            self._check_offer(key, state)
        holder = self._by_member.get(member)
        if not any(one.process.runs and now >= one.process.cut_off_until for one in key.waiting()):
            key.covered_until = float("inf")
        elif leased and due > now:
            key.covered_until = due
        elif (wait := max(min(due, key.started_at + LONGEST_PACE), key.cool_until)) > now:
            key.covered_until = wait
        else:
            key.covered_until = min(key.covered_until, now)
        given_up = leased and holder is not None and holder.state == "over" and holder.process.runs
        ways = [one for one in self.connections if holder is not None and one.process is holder.process]
        if given_up and not any(not (one.demoted or one.gone) for one in ways):
            given_up = False  # it hears with its next command that another server has taken over
        key.returned_by = min(key.returned_by, now) if given_up and ends > now else float("inf")
        key.ends = ends

    def check_all(self) -> None:
        """Check every key."""
        for state in self._keys:
            self.check(state)

    # Faults

    def fault(self, text: str, *arguments: object, recovery: float = 0.0) -> None:
        """Take note that something goes wrong which makes others wait, and for how long at most."""
        self.note("FAULT: " + text, *arguments)
        self.orderly = False
        self.troubled_until = max(self.troubled_until, self._scheduler.now + recovery)
        self.orphans_until = max(self.orphans_until, self.troubled_until)
        for state, key in self._keys.items():
            key.covered_until = max(key.covered_until, self._scheduler.now)
            self._look(key, state, self._scheduler.now)

    def disturbs_locks(self) -> None:
        """Take note that the server has ended leases before their time."""
        for key in self._keys.values():
            key.disturbed = self._scheduler.now

    def lost_state(self) -> None:
        """Take note that the server has gone back to an older state, or to none."""
        self.disturbs_locks()
        for state, key in self._keys.items():
            key.must_exceed = int(self.server.hashes.get(state, {}).get("nonce", "2:0").removeprefix("2:"))
            key.started_at = -60.0

    def finish(self) -> None:
        """Check that nothing is left when everyone has left and all leases have ended."""
        for order, process in self._unheard.items():
            if not process.crashed:
                self.violation(f"nobody has heard what became of {order.command.args[0]}'s release")
        for state in self._keys:
            if f"{state}:queue" in self.server.sets:
                self.violation(f"{state} has a queue left: {self.server.sets[f'{state}:queue']}")
            if "lock" in self.server.hashes.get(state, {}):
                self.violation(f"{state} is still locked")


def _block(result: Any) -> tuple[int, int]:
    """Return the first and the last nonce of a result."""
    if isinstance(result, commands.Granted | commands.Extended):
        result = result.nonces
    return (result[0], result[-1]) if isinstance(result, range) else (0, 0)
