"""Thousands of random schedules against the flow of a call: an exchange, a journal and a clock made of a few lines.

The flow is driven step by step, as a shell does it, and anything may happen between two steps: a request gets lost
before or after it was accepted, arrives late, inside of a nonce window or not, is refused, gets an answer without a
result; the process dies; Redis fails; time passes, so that the lease ends and another bot comes in between. In the end
all that is still on its way arrives, the last bot finds out what is pending, and what everybody was told is held
against what is at the exchange.

KRAKEN_NONCE_SCHEDULES in the environment says how many there are in each mode.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import requests

from kraken_nonce_redis import (
    CoolDowns,
    HoldTimeout,
    KrakenNonceError,
    LeaseLost,
    NonceTooFarAhead,
    NotCarriedOut,
    OutcomeUnknown,
    Retries,
    StoreUnavailable,
)
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._calls import attempt, exchange_clock
from kraken_nonce_redis._calls.call import Call, Heard
from kraken_nonce_redis._calls.calls import Calls
from kraken_nonce_redis._calls.once import Keeping
from kraken_nonce_redis._calls.outcomes import TurnedAway
from kraken_nonce_redis._calls.questions import Questions
from kraken_nonce_redis._core import steps
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.lease import LeaseCore
from kraken_nonce_redis._core.lock import LockCore
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._core.steps import Run, Send, Sleep, Tell
from kraken_nonce_redis._core.wishes import Wishes
from kraken_nonce_redis._kraken import Outcome
from kraken_nonce_redis._redis import commands, name_records
from kraken_nonce_redis._redis.commands import Extended, Granted, State
from kraken_nonce_redis._redis.journal import Pending
from kraken_nonce_redis._redis.keyspace import digest
from kraken_nonce_redis._redis.name_records import Kept, NameRecord
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    from collections.abc import Generator

    from kraken_nonce_redis._arguments import OnUnknown
    from kraken_nonce_redis._core.steps import CallFlow
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis.events import Hook

pytestmark = pytest.mark.once

SCHEDULES = int(os.environ.get("KRAKEN_NONCE_SCHEDULES") or by_tier(600, 6_000, 60_000))
KEY = "key"
WAITS = (1.0, 2.0, 5.0)
LATEST = 4.5
"""Seconds after which an accepted order is placed and listed; less than the last wait."""
SECONDS = 20.0
"""That a request takes at most."""
LOST = requests.ReadTimeout("lost")
BUSY = ("EService:Unavailable", "EService:Busy", "EGeneral:Internal error")
REFUSED = ("EOrder:Insufficient funds", "EAPI:Rate limit exceeded", "EService:Throttled", "EGeneral:Permission denied")


class Killed(BaseException):
    """The process is no more."""


class NotSent(Exception):
    """The client failed before it sent anything."""


class World:
    """One clock for all."""

    def __init__(self, seed: int) -> None:
        self.luck = Random(seed)
        self.now = 1_800_000_000.0
        self.redis = Redis(self)
        self.alive: list[Lock] = []
        """Of the processes that were not killed, which may have releases that are still to arrive."""
        self.exchange = Exchange(self)

    def chance(self, probability: float) -> bool:
        """Throw a die."""
        return self.luck.random() < probability

    def pass_time(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds
        self.exchange.catch_up()
        for lock in self.alive:
            if self.chance(0.1):
                self.release(lock)

    def release(self, lock: Lock) -> bool:
        """Let a process release in the background what it could not release before; return whether it still tries."""
        chore = lock._process_state().agenda.pop(self.now)
        command = None if chore is None else chore.command(self.now)
        if chore is None or command is None:
            return False
        chore.succeeded(command, self.redis.run(command), self.now)
        return True


@dataclass
class Order:
    """One order at the exchange."""

    cl_ord_id: str
    txid: str
    nonce: int
    """Of the request that placed it."""
    opened: float
    listed: float
    closed: float


class Exchange:
    """Kraken."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.highest = 0
        self.window = world.luck.choice([0, 0, 0, *[10 * 10**9] * 2, 7_200 * 10**9])
        """The nonce window in ns; the longest one is longer than nonces may be ahead."""
        self.repeats = world.chance(0.5)
        """Whether a nonce inside of the window is accepted twice."""
        self.silent = world.chance(0.2)
        """Whether it does not tell the window."""
        self.used: set[int] = set()
        self.ahead = world.luck.uniform(-9_000, 9_000)
        """Seconds by which its clock is ahead of the Redis server's."""
        self.orders: list[Order] = []
        self.on_their_way: list[tuple[int, str, float | None]] = []
        self.accepted: list[tuple[float, int, str, float | None]] = []
        self.bad_line = world.luck.choice([0.0, 0.1, 0.5])
        """How likely a question is not answered."""
        self.dead = 0
        """How many of the next questions don't even arrive."""
        self.patience = world.luck.choice([0.02, 0.1, 0.3])
        """How likely a late request arrives, whenever time passes."""

    def catch_up(self) -> None:
        """Carry out what was accepted, and let arrive what was late."""
        for one in list(self.accepted):
            if one[0] <= self.world.now:
                self.accepted.remove(one)
                self.place(*one)
        for one in list(self.on_their_way):
            if self.world.chance(self.patience):
                self.arrive(one)

    def time(self) -> float:
        """Return what time it is here."""
        return self.world.now + self.ahead

    def dated(self, heard: Heard) -> Heard:
        """Return an answer with the time at which it is given."""
        return heard if heard.answer is None else replace(heard, date=float(int(self.time())))

    def arrive(self, late: tuple[int, str, float | None]) -> None:
        """Let a late request arrive."""
        self.on_their_way.remove(late)
        nonce, cl_ord_id, deadline = late
        if self.use(nonce):
            self.accept(nonce, cl_ord_id, deadline)

    def use(self, nonce: int) -> bool:
        """Accept a nonce if it is above all others, or inside of the window."""
        inside = self.highest - self.window <= nonce and (self.repeats or nonce not in self.used)
        accepted = nonce > self.highest or (self.window > 0 and inside)
        self.highest = max(self.highest, nonce)
        self.used.add(nonce)
        return accepted

    def accept(self, nonce: int, cl_ord_id: str, deadline: float | None) -> None:
        """Place an order now or soon."""
        if self.world.chance(0.5):
            self.place(self.world.now, nonce, cl_ord_id, deadline)
        else:
            soon = self.world.now + self.world.luck.uniform(0, LATEST / 2)
            self.accepted.append((soon, nonce, cl_ord_id, deadline))

    def place(self, now: float, nonce: int, cl_ord_id: str, deadline: float | None) -> Order | None:
        """Place an order before its deadline; it is listed now or soon, and open for a while or not at all."""
        luck = self.world.luck
        in_use = any(order.cl_ord_id == cl_ord_id and order.closed > now for order in self.orders)
        if in_use or (deadline is not None and now + self.ahead > deadline):
            return None
        listed = now + (0 if luck.random() < 0.5 else luck.uniform(0, LATEST / 2))
        closed = now + luck.choice([0.0, luck.uniform(0, 5), 1e9])
        order = Order(cl_ord_id, f"O{len(self.orders) + 1}", nonce, now, listed, closed)
        self.orders.append(order)
        return order

    def answer_order(self, nonce: int, cl_ord_id: str, deadline: float | None) -> Heard:
        """Hear an AddOrder, and maybe answer it."""
        luck = self.world.luck
        fate = luck.choice(("never", "lost", "late", "late", *["heard"] * 7))
        if fate == "late":
            self.on_their_way.append((nonce, cl_ord_id, deadline))
            self.dead = luck.choice([0, 0, 2, 4, 6])
        if fate != "heard":
            return Heard(failure=requests.ConnectTimeout("no connection") if fate == "never" else LOST)
        if luck.random() < 0.03:
            self.use(nonce + luck.choice([1, 30, 1000]) * 10**9)  # another program
        if self.use(nonce):
            fate = luck.choice(("fine", "fine", "used", "accepted", "busy", "no"))
            answer = self.act(nonce, cl_ord_id, deadline, fate)
        else:
            answer = _error("EAPI:Invalid nonce")
        fate = luck.choice((*["heard"] * 5, "lost", "busy", "page", "nothing"))
        other = {"heard": answer, "lost": Heard(failure=LOST), "page": self.page(), "nothing": _answer(None)}
        return other.get(fate) or _error(luck.choice(BUSY))

    def page(self) -> Heard:
        """Return what a client makes of a page with the status 429."""
        wait = self.world.luck.choice([None, 0.0, 3.0, 60.0])
        return Heard(failure=requests.HTTPError("429"), left=True, turned_away=TurnedAway(wait))

    def act(self, nonce: int, cl_ord_id: str, deadline: float | None, fate: str) -> Heard:
        """Do with an order what fate wants, its nonce being used."""
        if deadline is not None and not self.time() + 2 <= deadline <= self.time() + 60:
            return _error("EService:Deadline elapsed")
        if fate == "fine":
            order = self.place(self.world.now, nonce, cl_ord_id, deadline)
            if order is None:
                return _error("EGeneral:Invalid arguments:cl_ord_id not unique")
            return _answer({"txid": [order.txid], "descr": {"order": "buy"}})
        if fate == "accepted":
            self.accept(nonce, cl_ord_id, deadline)
        if fate == "no":
            return _error(self.world.luck.choice(REFUSED))
        return _error(self.world.luck.choice(BUSY))

    def answer_question(self, nonce: int, name: str, cl_ord_id: str | None) -> Heard:
        """Hear a question, and maybe answer it."""
        luck = self.world.luck
        self.dead -= 1
        if self.dead >= 0:
            return Heard(failure=LOST)
        if self.dead == -1 and luck.random() < 0.5:  # the line is back, and what was late comes just before
            for late in list(self.on_their_way):
                self.arrive(late)
        fates = ("lost", "used", "busy", "no", "page", "nothing")
        fate = luck.choice(fates) if luck.random() < self.bad_line else "fine"
        if fate in {"lost", "page"}:
            return Heard(failure=LOST) if fate == "lost" else self.page()
        if not self.use(nonce):
            fate = "refused"
        if fate in {"used", "nothing"}:
            return Heard(failure=LOST) if fate == "used" else _answer(None)
        # What tells the window at times refuses to tell it for the time being only.
        no = REFUSED[:-1] if name == "GetApiKeyInfo" else REFUSED
        errors = {"refused": ("EAPI:Invalid nonce",), "busy": BUSY, "no": no}.get(fate)
        if errors:
            return _error(luck.choice(errors))
        if name == "GetApiKeyInfo":
            return self.answer_info()
        return _answer({} if name == "Balance" else self.list_orders(name, cl_ord_id))

    def answer_info(self) -> Heard:
        """Tell the nonce window, or don't."""
        return _error("EGeneral:Unknown method") if self.silent else _answer({"nonceWindow": self.window})

    def list_orders(self, name: str, cl_ord_id: str | None) -> dict[str, Any]:
        """Return the orders of a list."""
        luck = self.world.luck
        now = self.world.now
        heed = cl_ord_id if luck.random() < 0.9 else None  # or the filter is ignored
        listed = {
            order.txid: {
                "cl_ord_id": order.cl_ord_id if luck.random() < 0.5 else order.cl_ord_id.replace("-", ""),
                "opentm": order.opened,
                "descr": {"order": "buy"},
            }
            for order in self.orders
            if order.listed <= now
            and (order.closed > now) is (name == "OpenOrders")
            and heed in {None, order.cl_ord_id}
        }
        return {"open" if name == "OpenOrders" else "closed": listed}


def _answer(result: Any) -> Heard:
    answer = {"error": [], "result": result}
    return Heard(answer, answer=answer)


def _error(error: str) -> Heard:
    answer = {"error": [error]}
    return Heard(answer, answer=answer)


class Redis:
    """Lock, nonces and journal, as the scripts keep them; a lock that is held is waited for by letting time pass."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.last = 0
        self.holder = ""
        self.until = 0.0
        self.intent: tuple[int, str] | None = None
        self.journal: dict[int, Pending] = {}
        self.known: set[int] = set()
        """What callers have released as known before anybody else knew."""
        self.noted: dict[int, float] = {}
        """When a result was noted, or somebody heard last that a call is still in the journal."""
        self.names: list[tuple[float, NameRecord | None]] = [(-math.inf, None)]
        """What the record of the only name was in the course of time, and since when."""
        self.mark = 0, -math.inf
        """Which server the first caller with a name has found, and since when."""
        self.server = 0
        """Which one it is."""

    def run(self, command: Command[Any]) -> Any:
        """Run a command."""
        return getattr(self, command.name)(*command.args)

    def _block(self) -> range:
        first = max(round(self.world.now * 1e6) * 1000, self.last + 1)
        self.last = first + commands.BLOCK - 1
        return range(first, self.last + 1)

    def _shelve(self) -> None:
        if self.intent:
            self.leave(*self.intent)
        self.intent = None

    def leave(self, nonce: int, intent: str) -> None:
        """Make an intent pending."""
        key, method, ids, name = intent.split(" ")
        self.journal[nonce] = Pending(
            nonce=nonce,
            since=0,
            age=0.0,
            reported=False,
            result=None,
            noted=0.0,
            txids={},
            key=key,
            method=method,
            cl_ord_ids=() if ids == "-" else tuple(ids.removeprefix("+").split(",")),
            own_ids=ids.startswith("+"),
            name=name,
        )

    def _keys(self) -> tuple[str, ...]:
        return tuple({entry.key for entry in self.journal.values() if not entry.reported})

    def acquire(self, member: str, term: int, *rest: Any) -> Granted:
        """Take the lock."""
        if self.holder:
            self.world.now = max(self.world.now, self.until)
            self._shelve()
        nonces = self._block()
        self.holder, self.until = member, self.world.now + term / 1e6
        intent = rest[-2]
        if intent:
            self.intent = nonces[0], intent
        return Granted(nonces, term / 1e6, self._keys())

    def extend(
        self, member: str, term: int, _count: int, intent: str, known: int, _number: int, how: str
    ) -> Extended | str:
        """Extend the lease."""
        if self.holder != member:
            return "lost"
        end = self.world.now + term / 1e6
        self.until = end if how == "set" else max(self.until, end)
        nonces = self._block()
        if intent:
            if not known:
                self._shelve()
            self.intent = nonces[0], intent
        return Extended(nonces, self.until - self.world.now)

    def release(self, member: str, _lease: int, intent: int, known: int, _late: int) -> str:
        """Give the lock back."""
        if self.holder == member:
            if not known:
                self._shelve()
            self.holder, self.intent = "", None
            return "released"
        if known:
            entry = self.journal.pop(intent, None)
            if entry is not None and intent not in self.noted:
                self.known.add(intent)
        return "lost"

    def pending(self) -> tuple[Pending, ...]:
        """Look at the journal."""
        now, noted = self.world.now, self.noted
        return tuple(
            replace(entry, noted=now - noted[nonce] if entry.result else 0.0)
            for nonce, entry in sorted(self.journal.items())
        )

    def settle(self, nonce: int, how: Any, txids: str, _name: str) -> bool:
        """Clear a pending call, mark it, or note its result."""
        entry = self.journal.pop(nonce, None)
        if entry is None or how == "known":
            return entry is not None
        self.noted[nonce] = self.world.now
        if how != "new":
            found = dict(zip(entry.cl_ord_ids, txids.split(","), strict=False)) if txids != "-" else {}
            result = None if how == "reported" else how
            entry = replace(entry, reported=how == "reported", result=result, txids=found)
        self.journal[nonce] = entry
        return True

    def once(self, member: str, cl_ord_id: str, written: str, _seen: int) -> Kept | str:
        """Read, write or remove the record of a name."""
        if self.holder != member:
            return "lost"
        now = self.world.now
        if self.mark[0] != self.server:
            self.mark = self.server, now
        _, record = self.names[-1]
        if written:
            kept = None if written == "-" else name_records._read_name(0, cl_ord_id, "0", *written.split(" "))
            self.names.append((now, kept))
        return Kept(record, now - self.mark[1])

    def fail_over(self, lost: float) -> None:
        """Let another server take over, without what was written in the last seconds."""
        self.server += 1
        self.holder, self.intent = "", None
        while self.names[-1][0] > self.world.now - lost:
            self.names.pop()

    def inspect(self, _what: str) -> State:
        """Look."""
        now = round(self.world.now * 1e9)
        left = max(0.0, self.until - self.world.now)
        return State(
            now, self.last, self.holder, None, bool(self.holder), left, 0.0, 0.0, 0, (), len(self._keys()), 0.0, ""
        )

    def advance(self, target: int, max_lead: int, below: Any = 0, _name: str = "") -> int:
        """Raise the last nonce."""
        if target > max(self.last, round(self.world.now * 1e9) + max_lead):
            raise NonceTooFarAhead("too far", last=self.last, lead=0, max_lead=max_lead)
        self.last = max(self.last, target) if not below or self.last < int(below) else self.last
        return self.last

    def cool_down(self, *_: Any) -> float:
        """Let nobody call for a while, which nobody heeds here."""
        return 0.0


class Lock(LockCore[LeaseCore]):
    """The lock of one process."""

    def __init__(self) -> None:
        process_state = ProcessState(Agenda(lambda: None))
        super().__init__(lambda: process_state, KEY, namespace="test")

    def _lease(self, acquired: Any, owner: object) -> LeaseCore:
        return LeaseCore(self, acquired, owner)


def calling(
    lock: Lock, call: Call, on_unknown: OnUnknown, on_event: Hook | None = None, **options: Any
) -> CallFlow[Heard]:
    """Return the flow of a call."""
    return Calls(
        retries=Retries(waits=(5.0, 10.0), jitter=0, settle_waits=WAITS),
        on_unknown=on_unknown,
        wait_timeout=None,
        pace=None,
        cool_downs=CoolDowns(),
        on_event=on_event,
        **options,
    ).calling(lock, "owner", call)


@dataclass
class Ear:
    """The hook of one process, which hears nothing any more once that is killed."""

    hear: Hook
    deaf: bool = False

    def __call__(self, event: Any) -> None:
        """Hear of an event."""
        if not self.deaf:
            self.hear(event)


@dataclass
class Bot:
    """One process after the other, each of which makes one call."""

    world: World
    on_unknown: OnUnknown
    trouble: bool = True
    told: dict[str, str] = field(default_factory=dict)
    """By cl_ord_id: what the caller was told."""
    events: list[Any] = field(default_factory=list)
    failed: bool = False
    """Whether Redis has failed meanwhile."""
    released: bool = False
    """Whether the process that was killed last had released its lock."""
    wrong: list[str] = field(default_factory=list)
    """What the hook should not have heard."""
    unknowable: set[str] = field(default_factory=set)
    """The cl_ord_id of calls that were released, and whose process was killed before the caller's next line."""
    latest: dict[str, float] = field(default_factory=dict)
    """By cl_ord_id, when the patience of a call ends."""
    deadlines: dict[str, float] = field(default_factory=dict)
    """By cl_ord_id, the deadline of the last order that was sent, by Kraken's clock."""
    lost: Counter[str] = field(default_factory=Counter)
    """By cl_ord_id, how many of its requests got no answer."""

    def options(self) -> dict[str, Any]:
        """Return the settings of a call's client."""
        exchange = self.world.exchange
        window = exchange.window if exchange.silent and exchange.window else None
        options = {"patience": self.world.luck.choice([None, 5.0, 60.0]), "nonce_window": window}
        if self.world.chance(0.5):
            options["deadline"] = "auto"
            if self.on_unknown == "settle" and self.world.chance(0.7):
                options["on_absent"] = "resend"
        return options

    def call(self, method: str, depth: int = 0) -> None:
        """Make a call in a new process, whatever comes of it."""
        call = Call.of(KEY, method, {}, SECONDS)
        told, ear, lock = "nothing", Ear(self.hear), Lock()
        self.world.alive.append(lock)
        options = self.options()
        if options["patience"] is not None:
            self.latest |= dict.fromkeys(call.cl_ord_ids, call.asked + options["patience"])
        try:
            heard = self.drive(calling(lock, call, self.on_unknown, ear, **options), depth, ear)
        except NotCarriedOut:
            told = "absent"
        except OutcomeUnknown as error:
            told = "unknown" if error.cl_ord_id in call.cl_ord_ids else "nothing to look for"
        except Killed:
            told = "killed"
            self.world.alive.remove(lock)
            self.unknowable.update(call.cl_ord_ids if self.released else ())
        except (KrakenNonceError, NotSent):
            told = "refused"
        else:
            placed = heard.answer is not None and not heard.errors and heard.failure is None
            told = heard.answer["result"]["txid"][0] if placed and call.changes else "refused"
        for cl_ord_id in call.cl_ord_ids:
            self.told[cl_ord_id] = told
            if not self.failed:  # the journal has it if and only if nobody knows, and nobody else has settled it
                listed = any(cl_ord_id in entry.cl_ord_ids for entry in self.world.redis.journal.values())
                assert not listed or told in {"unknown", "killed"}
                assert listed or told != "unknown" or self.conclusions(cl_ord_id)

    def hear(self, event: Any) -> None:
        """Hear of an event; an absence is proven by a later nonce. What its own caller knows is no news."""
        self.events.append(event)  # what a hook raises would only be logged
        if getattr(event, "inherited", False) and event.nonce in self.world.redis.known:
            self.wrong.append(f"its own caller knew and had released it: {event}")
        exchange = self.world.exchange
        if getattr(event, "outcome", "") == "absent" and exchange.highest - exchange.window <= event.nonce:
            self.wrong.append(f"no later nonce was accepted, above the window: {event}")

    def conclusions(self, cl_ord_id: str) -> set[tuple[int, str, str]]:
        """Return what events said of an order: for which attempt (by its nonce), whether found or absent, its txid."""
        return {(event.nonce, event.outcome, event.orders.get(cl_ord_id, "")) for event in self.concluding(cl_ord_id)}

    def concluding(self, cl_ord_id: str) -> list[Any]:
        """Return the events that say whether an order was placed."""
        concluding = [event for event in self.events if getattr(event, "outcome", "") in {"found", "absent"}]
        return [event for event in concluding if cl_ord_id in event.cl_ord_ids]

    def drive(self, flow: Any, depth: int, ear: Ear) -> Heard:
        """Carry out the steps of a flow, as a shell does."""
        released = False
        try:
            step = next(flow)
            while True:
                released = isinstance(step, Run) and step.command.args[1:2] in {("known",), ("reported",)}
                if self.trouble and self.world.chance(0.01):
                    raise Killed  # noqa: TRY301
                try:
                    result = self.carry_out(step, depth)
                except Exception as error:  # noqa: BLE001 - the flow decides
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            heard: Heard = stop.value
            return heard
        except Killed:
            ear.deaf, self.released = True, released
            while True:  # whatever it would clean up, it is not done
                flow.throw(Killed)

    def run(self, step: Run) -> Any:
        """Run a command; Redis may fail before or after it."""
        self._may_fail(step)
        result = self.world.redis.run(step.command)
        self._may_fail(step)
        return result

    def _may_fail(self, step: Run) -> None:
        if self.trouble and self.world.chance(0.005):
            self.failed = True
            raise StoreUnavailable(step.command.name, "", "down")

    def tell(self, step: Tell) -> None:
        """Hand a command over; its answer may get lost, and it may be before it is run."""
        lost = self.trouble and self.world.chance(0.01)
        self.failed |= lost
        result = None if lost and self.world.chance(0.5) else self.world.redis.run(step.command)
        if lost:
            step.lost()
        else:
            step.answered(result)

    def carry_out(self, step: Any, depth: int) -> Any:
        """Carry out one step, with luck."""
        world = self.world
        if self.trouble:
            world.pass_time(world.luck.choice([0.0, 0.01, 0.01, 0.01, 0.3]))
            if world.chance(0.01):  # the process is stopped for a while
                world.pass_time(world.luck.uniform(5, 60))
                if world.chance(0.5) and depth < 2 and world.redis.holder:
                    self.call(world.luck.choice(["AddOrder", "Balance"]), depth + 1)
        if isinstance(step, Sleep):
            return world.pass_time(step.seconds)
        if isinstance(step, Run):
            return self.run(step)
        if isinstance(step, Tell):
            return self.tell(step)
        assert isinstance(step, Send)
        if self.trouble and world.chance(0.01):
            raise NotSent
        step.check()
        # The lease is the caller's, and lasts until the answer is there.
        assert world.redis.holder == step.lease.grant.member or world.redis.server
        assert world.redis.until >= world.now + SECONDS or world.redis.server
        if step.method == "AddOrder":
            self.check_order(step)
        if self.trouble:
            return self.send(step)
        return self.calm(step)

    def check_order(self, step: Send) -> None:
        """Note what is wrong about an order that is about to be sent."""
        world, cl_ord_id = self.world, step.params["cl_ord_id"]
        if world.now > self.latest.get(cl_ord_id, world.now):
            self.wrong.append("an order began after its patience")
        if self.on_unknown == "settle" and self.lost[cl_ord_id] > 1:
            self.wrong.append("an order was sent once more, twice")
        proved_at = self.deadlines.get(cl_ord_id, 0.0) + Retries().proof_wait
        if self.on_unknown == "settle" and self.lost[cl_ord_id] and world.exchange.time() < proved_at:
            self.wrong.append("an order was sent once more before it was proved to be absent")
        self.deadlines[cl_ord_id] = exchange_clock.read(step.params.get("deadline")) or math.inf

    def send(self, step: Send) -> Heard:
        """Send a request over a bad line."""
        world, cl_ord_id = self.world, step.params.get("cl_ord_id")
        world.pass_time(world.luck.choice([0.0, 0.05, 1.0]))
        if step.method == "AddOrder":
            deadline = exchange_clock.read(step.params.get("deadline"))
            heard = world.exchange.answer_order(step.nonce, str(cl_ord_id), deadline)
            self.lost[str(cl_ord_id)] += heard.verdict.outcome is Outcome.UNKNOWN
        else:
            heard = world.exchange.answer_question(step.nonce, step.method, cl_ord_id)
        heard = world.exchange.dated(heard)
        world.pass_time(world.luck.choice([0.0, 0.05, 10.0]))
        if world.chance(0.05):
            raise Killed
        return heard

    def calm(self, step: Send) -> Heard:
        """Send a question over a good line."""
        while True:
            heard = self.world.exchange.answer_question(step.nonce, step.method, step.params.get("cl_ord_id"))
            heard = self.world.exchange.dated(heard)
            if (not heard.errors and heard.failure is None) or heard.errors == ("EGeneral:Unknown method",):
                return heard
            self.world.exchange.bad_line = 0.0
            if "EAPI:Invalid nonce" in heard.errors:
                self.world.exchange.highest = step.nonce - 1  # its own nonce; the line was bad


def run_schedule(seed: int, on_unknown: OnUnknown, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let some calls be made, and check what came of them; return what the callers were told, in numbers."""
    world = World(seed)
    monkeypatch.setattr(clock, "now", lambda: world.now)
    bot = Bot(world, on_unknown)
    for _ in range(world.luck.randint(1, 3)):
        bot.call("AddOrder")
    # All that is on its way arrives, and the last bot has no trouble any more.
    bot.trouble = False
    if world.chance(0.5):
        for late in list(world.exchange.on_their_way):
            world.exchange.arrive(late)
        world.pass_time(LATEST)
    world.redis.last = max(world.redis.last, world.exchange.highest)
    for _ in range(5):
        world.pass_time(3_700)
        bot.call("Balance")
    for late in list(world.exchange.on_their_way):
        world.exchange.arrive(late)
    world.pass_time(LATEST)

    check(bot, world)
    return Counter("placed" if told.startswith("O") else told for told in bot.told.values())


def check(bot: Bot, world: World) -> None:
    """Hold what the callers and the hook were told against what is at the exchange."""
    assert not bot.wrong
    placed = Counter(order.cl_ord_id for order in world.exchange.orders)
    orders = {order.cl_ord_id: order for order in world.exchange.orders}
    assert not placed or max(placed.values()) == 1, "an order was placed twice"
    assert set(placed) <= set(bot.told)
    assert not [entry for entry in world.redis.journal.values() if entry.result], "found out, and not told"
    reported = {cl_ord_id for entry in world.redis.journal.values() for cl_ord_id in entry.cl_ord_ids}
    for cl_ord_id, told in bot.told.items():
        said = bot.conclusions(cl_ord_id)
        order = orders.get(cl_ord_id)
        for nonce, outcome, txid in said:
            if outcome == "found":
                assert order is not None, "found, and not there"
                assert order.txid == txid
            else:  # of this attempt; the next one may go through
                assert order is None or order.nonce > nonce, "it is there"
        # Where a settlement's reply was lost, the order of the next attempt is found in its place.
        assert len({nonce for nonce, _, _ in said}) == len(said) or bot.failed, "found and absent"
        # Who hears the same of it twice can tell by the id.
        assert len({event.id for event in bot.concluding(cl_ord_id)}) == len(said)
        if told in {"unknown", "killed"}:
            # Somebody has learned of it, unless nothing was sent.
            assert said or cl_ord_id in reported | bot.unknowable or (told == "killed" and order is None)
        elif told in {"absent", "refused"}:
            assert order is None, "it was placed, though nobody said so"
        else:
            assert order is not None
            assert order.txid == told


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Make a world with its clock."""
    world = World(1)
    monkeypatch.setattr(clock, "now", lambda: world.now)
    return world


def carry_out(world: World, flow: Generator[Any, Any, Any], answer: Heard | None = None, step: Any = None) -> Any:
    """Carry out a flow without mishaps, from a step on; each request gets this answer."""
    try:
        step = step or next(flow)
        while True:
            step = flow.send(world.redis.run(step.command) if isinstance(step, Run) else answer)
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize("known", [True, False])
def test_an_intent_without_a_call(world: World, *, known: bool) -> None:
    """A lease ends while its extension notes an intent: the release takes the intent back, since nothing was sent."""
    lock, call = Lock(), Call.of(KEY, "AddOrder", {}, SECONDS)
    lease = carry_out(world, lock._holding("owner", Wishes(timeout=0)))
    if not known:
        with pytest.raises(OutcomeUnknown):
            carry_out(world, calling(lock, Call.of(KEY, "AddOrder", {}, SECONDS), "raise"), Heard(failure=LOST))
    flow = calling(lock, call, "raise")
    step = next(flow)
    assert step.command.name == "extend"
    extended = world.redis.run(step.command)
    nonces = extended.nonces
    world.pass_time(60)
    world.redis.acquire("another", 30_000_000, "", "0")
    assert world.redis.journal[nonces.start].cl_ord_ids == call.cl_ord_ids
    with pytest.raises(LeaseLost):
        flow.send(extended)
    with pytest.raises(LeaseLost):
        carry_out(world, lock._releasing(lease))
    assert nonces.start not in world.redis.journal
    assert len(world.redis.journal) == (not known)


@pytest.mark.parametrize("sent", [True, False])
def test_an_interrupted_release(world: World, *, sent: bool) -> None:
    """A caller that is interrupted while it releases doesn't hear what became of its call, if there was any."""
    lock = Lock()
    flow = calling(lock, Call.of(KEY, "AddOrder", {}, SECONDS), "raise")
    step = flow.send(world.redis.run(next(flow).command))
    assert isinstance(step, Send)
    step = flow.send(_error("EOrder:Insufficient funds")) if sent else flow.throw(NotSent())
    assert step.command.name == "release"
    with pytest.raises(KeyboardInterrupt):
        flow.throw(KeyboardInterrupt())
    agenda = lock._process_state().agenda
    chore = agenda.pop(world.now)
    chore.succeeded(command := chore.command(world.now), world.redis.run(command), world.now)
    assert not world.redis.holder
    assert len(world.redis.journal) == sent


def test_an_intent_has_the_name_that_redis_has_for_it(world: World) -> None:
    """A renewal comes between an extension and its call, as in the background: then the intent is noted once more.

    So a later holder knows how high the nonce of the lost call is at most, and a fence can be counted from it.
    """
    lock = Lock()
    lease = carry_out(world, lock._holding("owner", Wishes(timeout=0)))
    flow = calling(lock, Call.of(KEY, "AddOrder", {}, SECONDS), "raise")
    extended = world.redis.run(next(flow).command)
    carry_out(world, lease._extending(SECONDS))
    extended = world.redis.run(flow.send(extended).command)
    nonces = extended.nonces
    step = flow.send(extended)
    assert isinstance(step, Send)
    assert step.nonce == nonces.start
    world.pass_time(60)
    world.redis.acquire("another", 30_000_000, "", "0")
    assert set(world.redis.journal) == {nonces.start}
    carry_out(world, flow, _error("EOrder:Insufficient funds"), step)
    with pytest.raises(LeaseLost):
        carry_out(world, lock._releasing(lease))
    assert not world.redis.journal


@pytest.mark.parametrize("known", [True, False])
def test_a_release_that_comes_minutes_later(world: World, *, known: bool) -> None:
    """The release of a known call goes on trying after its lease has ended, so that nobody takes it for an orphan.

    That of an unknown one would tell nobody anything.
    """
    lock = Lock()
    flow = calling(lock, Call.of(KEY, "AddOrder", {}, SECONDS), "raise")
    flow.send(world.redis.run(next(flow).command))
    try:
        step = flow.send(_error("EOrder:Insufficient funds") if known else Heard(failure=LOST))
    except OutcomeUnknown:
        raise AssertionError("it was not released") from None
    with contextlib.suppress(StopIteration, OutcomeUnknown):
        step.lost()
        flow.send(None)
    world.pass_time(250)
    world.redis.acquire("another", 30_000_000, "", "0")
    assert len(world.redis.journal) == 1
    assert world.release(lock) == known
    assert len(world.redis.journal) == (not known)


@pytest.mark.parametrize("how", ["closed in the call", "closed while it tells", "Redis fails"])
def test_told_and_not_struck(world: World, how: str) -> None:
    """What is told when nothing can be said to Redis any more is told again by the next holder, with the same id."""
    world.redis.leave(5, f"{digest(KEY)} Withdraw - name")
    told: list[Any] = []
    flow = calling(Lock(), Call.of(KEY, "Balance", {}, SECONDS), "settle", told.append)
    answer = _answer({})
    step = next(flow)
    while not isinstance(step, Send):
        step = flow.send(world.redis.run(step.command))
    if how != "closed in the call":
        while not (isinstance(step, Run) and step.command.args[1:2] == ("reported",)):
            step = flow.send(answer)
        assert [event.outcome for event in told] == ["unknown"]
    if how != "Redis fails":
        flow.close()
        assert [event.outcome for event in told] == ["unknown"]
    else:
        with pytest.raises(StopIteration) as caught:
            flow.throw(StoreUnavailable("settle", "", "down"))
        assert caught.value.value == answer
    assert world.redis.journal[5].result == "unknown"
    world.pass_time(60)
    carry_out(world, calling(Lock(), Call.of(KEY, "Balance", {}, SECONDS), "settle", told.append), answer)
    assert [event.id for event in told] == [told[0].id] * 2
    assert world.redis.journal[5].reported


def test_told_before_the_next_attempt(world: World) -> None:
    """A call that is made again later has told what it found out before, while others may still wait for that."""
    world.redis.leave(5, f"{digest(KEY)} Withdraw - name")
    told: list[Any] = []
    flow = calling(Lock(), Call.of(KEY, "Balance", {}, SECONDS), "settle", told.append)
    step = next(flow)
    while not isinstance(step, Sleep):
        step = flow.send(world.redis.run(step.command) if isinstance(step, Run) else _error("EService:Throttled"))
    assert [event.outcome for event in told] == ["unknown"]
    assert world.redis.journal[5].reported
    carry_out(world, flow, _answer({}), step)
    assert len(told) == 1


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "a fence of n + 1 inside of a window": (Calls, "learn_window", lambda *_: 0),
    "an order that begins after its patience": (steps, "check_patience", lambda *_: None),
    "an order that is sent once more twice": (attempt, "_MOST_RESENT", 2),
    "a proof before the deadline": (Questions, "until_proof", lambda *_: lambda: 0.0),
}


@pytest.mark.test_all
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants(mutant: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The schedules notice what they are there to notice."""
    caplog.set_level(logging.CRITICAL, "kraken_nonce_redis")
    monkeypatch.setattr(*MUTANTS[mutant])

    def run_all() -> None:
        for seed in range(10 * SCHEDULES):
            with monkeypatch.context() as patches:
                run_schedule(seed, "settle", patches)

    with pytest.raises(AssertionError):
        run_all()


@pytest.mark.parametrize("on_unknown", ["settle", "raise", "replay"])
def test_schedules(on_unknown: OnUnknown, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No order is placed twice, none is lost silently, and nothing is said that is not so."""
    caplog.set_level(logging.CRITICAL, "kraken_nonce_redis")
    total: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        try:
            with monkeypatch.context() as patches:
                total += run_schedule(seed, on_unknown, patches)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
    print(dict(total))
    assert set(total) == {"placed", "absent", "refused", "unknown", "killed"} - (
        {"absent"} if on_unknown == "raise" else set()
    )


# Orders with a name.

NAME = "rebalance"


@dataclass
class NamedBot(Bot):
    """One process after the other that asks for the same order by its name."""

    heard: list[str] = field(default_factory=list)
    """What each was told: Kraken's txid, or a word."""

    def call(self, method: str, depth: int = 0) -> None:
        """Ask for the order; in between, other calls are made, and another server may take over."""
        world = self.world
        params = {"once": NAME} if method == "AddOrder" else {}
        call = Call.of(KEY, method, params, SECONDS, secret="secret")
        ear, lock, told = Ear(self.hear), Lock(), "nothing"
        world.alive.append(lock)
        exchange = world.exchange
        options: dict[str, Any] = {"patience": world.luck.choice([None, 5.0, 60.0]) if self.trouble else None}
        options["nonce_window"] = exchange.window if exchange.silent and exchange.window else None
        if world.chance(0.3):
            options |= {"deadline": "auto", "on_absent": "resend"}
        try:
            heard = self.drive(calling(lock, call, "settle", ear, **options), depth, ear)
        except NotCarriedOut as error:
            told = "absent" if error.proved else "absent without proof"
        except (OutcomeUnknown, Killed) as error:
            told = type(error).__name__
            if told == "Killed":
                world.alive.remove(lock)
        except HoldTimeout:
            told = "later"
        except (KrakenNonceError, NotSent):
            told = "not sent"
        else:
            placed = heard.answer is not None and not heard.errors and heard.failure is None
            told = heard.answer["result"]["txid"][0] if placed and call.changes else "refused"
        if call.changes:
            self.heard.append(told)

    def carry_out(self, step: Any, depth: int) -> Any:
        """Carry out one step; now and then another server has taken over."""
        if self.trouble and self.world.chance(0.01):
            self.world.redis.fail_over(self.world.luck.choice([1.0, 10.0, 100.0]))
        return super().carry_out(step, depth)

    def check_order(self, step: Send) -> None:
        """Note nothing: what counts is what comes of it."""

    def calm(self, step: Send) -> Heard:
        """Send a request over a good line."""
        exchange = self.world.exchange
        exchange.bad_line, exchange.dead = 0.0, 0
        if step.method != "AddOrder":
            return super().calm(step)
        exchange.highest = min(exchange.highest, step.nonce - 1)
        exchange.use(step.nonce)
        deadline = exchange_clock.read(step.params["deadline"])
        return exchange.dated(exchange.act(step.nonce, step.params["cl_ord_id"], deadline, "fine"))


def run_named_schedule(seed: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let several processes ask for one order; return what they were told, in numbers."""
    world = World(seed)
    monkeypatch.setattr(clock, "now", lambda: world.now)
    bot = NamedBot(world, "settle")
    for _ in range(world.luck.randint(2, 6)):
        bot.call(world.luck.choice(["AddOrder", "AddOrder", "AddOrder", "Balance"]))
        if world.chance(0.2):
            world.redis.fail_over(world.luck.choice([1.0, 10.0, 100.0]))
        world.pass_time(world.luck.choice([0.0, 0.0, 1.0, 30.0]))
    bot.trouble = False
    world.redis.last = max(world.redis.last, world.exchange.highest)
    for _ in range(3):
        world.pass_time(world.luck.choice([100.0, 3_700.0]))
        bot.call("AddOrder")
    for late in list(world.exchange.on_their_way):
        world.exchange.arrive(late)
    world.pass_time(LATEST)
    orders = world.exchange.orders
    assert len(orders) <= 1, f"{len(orders)} orders were placed for one name: {bot.heard}"
    txids = {order.txid for order in orders}
    assert {told for told in bot.heard if told.startswith("O") and told != "OutcomeUnknown"} <= txids
    if bot.heard[-1] not in txids:
        assert bot.heard[-1] == "OutcomeUnknown"
        assert world.exchange.window > 3_600 * 10**9, "a fence was possible"
        return Counter(told for told in bot.heard if told not in txids)
    (order,) = orders
    # Who was told that it is not placed asked before it was.
    first = next(number for number, told in enumerate(bot.heard) if told == order.txid)
    assert not {"absent", "refused"} & set(bot.heard[first:])
    return Counter("placed" if told == order.txid else told for told in bot.heard)


NAMED_MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "no record before the order is sent": (Keeping, "trying", lambda *_: iter(())),
    "a proof before the deadline": (Questions, "until_proof", lambda *_: lambda: 0.0),
    "no wait after another server took over": (exchange_clock, "LONGEST_AHEAD", -1_000.0),
    "Kraken is not asked": (Keeping, "_asking", lambda *_: iter(())),
    "records that may be old are believed": (Keeping, "_check_complete", lambda *_: None),
}


@pytest.mark.test_all
@pytest.mark.parametrize("mutant", NAMED_MUTANTS)
def test_named_mutants(mutant: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The schedules of orders with a name notice what they are there to notice."""
    caplog.set_level(logging.CRITICAL, "kraken_nonce_redis")
    monkeypatch.setattr(*NAMED_MUTANTS[mutant])

    def run_all() -> None:
        for seed in range(10 * SCHEDULES):
            with monkeypatch.context() as patches:
                run_named_schedule(seed, patches)

    with pytest.raises(AssertionError):
        run_all()


def test_named_schedules(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """However many processes ask for an order by its name, one is placed, and all who hear a txid hear the same."""
    caplog.set_level(logging.CRITICAL, "kraken_nonce_redis")
    total: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        try:
            with monkeypatch.context() as patches:
                total += run_named_schedule(seed, patches)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
    print(dict(total))
    assert set(total) == {"placed", "absent", "refused", "later", "not sent", "OutcomeUnknown", "Killed"}
