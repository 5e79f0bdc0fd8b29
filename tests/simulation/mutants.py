"""Mistakes that the simulation has to notice, each a change of one place in the library."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core import waiters
from kraken_nonce_redis._core.lease import LeaseCore
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._redis import commands, scripts
from kraken_nonce_redis._redis.pipeline import Pipeline, Slot, Stream
from tests.simulation.server import Lua

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.keyspace import Keyspace


@dataclass(frozen=True)
class LuaMutant:
    """A script or a part of it with one text in place of another."""

    old: str
    new: str

    def apply(self, _: pytest.MonkeyPatch) -> Lua:
        """Return the scripts with the mistake."""
        sources = {name: scripts.load(name).source for name in scripts.names()}
        mutated = {name: source.replace(self.old, self.new) for name, source in sources.items()}
        assert mutated != sources, f"the scripts have changed: {self.old!r} is not there"
        return Lua(mutated)


@dataclass(frozen=True)
class PythonMutant:
    """A method that does something else."""

    owner: Any
    name: str
    other: Callable[..., Any]

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> Lua:
        """Put the mistake in and return the scripts as they are."""
        assert hasattr(self.owner, self.name)
        monkeypatch.setattr(self.owner, self.name, self.other)
        return Lua()


def _forget(*_: object) -> None:
    """Do nothing."""


def _too_soon(key_waiters: waiters.KeyWaiters, command: object, result: object, now: float) -> float:
    return now + 0.4


def _called_once(key_waiters: waiters.KeyWaiters, waiter: waiters.Waiter | None) -> None:
    if clock.now() >= key_waiters._asked + waiters.TOGETHER:
        key_waiters._asked = clock.now()
        if waiter is not None:
            waiter.wake()


_acquire = commands.acquire
_numbers = itertools.count()


def _another_member(keys: Keyspace, member: str, ttl: float, **options: Any) -> Command[Any]:
    return _acquire(keys, member.replace(":", f":{next(_numbers)}", 1), ttl, **options)


def _deadline_from_the_answer(lease: LeaseCore, nonces: range, deadline: float) -> None:
    lease.grant.nonces = iter(nonces)
    lease.grant.deadline = deadline + 0.05


_hear, _take, _lose = Stream.hear, Pipeline.take, Pipeline.lose
_MEMBER = re.compile(rb"(\r\np\d+:\d+-\d+)\.")


def _to_the_next(stream: Stream, data: bytes) -> list[Slot]:
    if len(stream.in_flight) > 1:
        stream.in_flight.rotate(-1)
    return _hear(stream, data)


def _without_those_who_left(stream: Stream, data: bytes) -> list[Slot]:
    for slot in [slot for slot in stream.in_flight if slot.left]:
        stream.in_flight.remove(slot)
    return _hear(stream, data)


def _all_but_the_last(pipeline: Pipeline) -> list[Slot]:
    taken = _take(pipeline)
    if len(taken) > 1:
        assert pipeline.stream is not None
        pipeline.stream.in_flight.remove(taken.pop())
    return taken


def _lose_one(pipeline: Pipeline, error: Exception) -> None:
    if pipeline.stream is not None and pipeline.stream.in_flight:
        pipeline.stream.in_flight.pop()
    _lose(pipeline, error)


def _lose_all(pipeline: Pipeline, error: Exception) -> None:
    if pipeline.stream is not None:
        pipeline.stream.in_flight.clear()
    _lose(pipeline, error)


def _as_another_member(pipeline: Pipeline, error: Exception) -> None:
    for slot in [] if pipeline.stream is None else pipeline.stream.in_flight:
        slot.request, slot.renew = _MEMBER.sub(rb"\1,", slot.request), None
    _lose(pipeline, error)


def _as_if_it_had_worked(pipeline: Pipeline, error: Exception) -> None:
    if pipeline.stream is not None:
        pipeline.stream.proven = True
    _lose(pipeline, error)


def _nothing_is_owed(*_: object) -> tuple[()]:
    return ()


MUTANTS: dict[str, LuaMutant | PythonMutant] = {
    "release gives back whatever anybody has": LuaMutant(
        "local mine, known, late = state.member == member,", "local mine, known, late = state.member ~= nil,"
    ),
    "a freed lock is offered to nobody": LuaMutant("  if member then offer(member, ticket, now) end\n", ""),
    "a message soon after another is lost": PythonMutant(waiters.KeyWaiters, "called", _called_once),
    "extend asks for no ownership": LuaMutant("if state.member ~= ARGV[2] or not state.lease then", "if false then"),
    "nobody is woken": LuaMutant("if call(member, member) > 0 or", "if"),
    "the floor is ignored": LuaMutant(
        "local lost = floor ~= '0' and greater(floor, last or '0')", "local lost = false"
    ),
    "a nonce is handed out twice": LuaMutant("first = add(last, 1)", "first = last"),
    "nonces through a Lua number": LuaMutant("first = add(last, 1)", "first = ('%.0f'):format(tonumber(last) + 1)"),
    "a holder that asks again gets other nonces": LuaMutant(
        "return 'granted ' .. state.lease .. ' ' .. left(now)",
        "return 'granted ' .. add(state.lease, 1) .. ' ' .. left(now)",
    ),
    "a release run twice means a lost lease": LuaMutant("return 'gone'", "return 'lost'"),
    "a lost lease is not told": LuaMutant("return 'lost' end\nreturn 'gone'", "end\nreturn 'released'"),
    "the last in the queue goes first": LuaMutant(
        "return member, score, more\nend",
        "return redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', WAITERS, 'LIMIT', "
        "redis.call('ZCOUNT', KEYS[2], '-inf', WAITERS) - 1, 1)[1], score, more\nend",
    ),
    "high priority goes before without end": LuaMutant("return times <= MOST_OVERTAKINGS", "return true"),
    "high priority means nothing": LuaMutant("if high then score = score - PROCESSES end", ""),
    "a dead waiter gets an offer for each of its places": LuaMutant(
        "    forget_process(state.member)\n  end\n  return true", "  end\n  return true"
    ),
    "a newcomer goes before an order that may go first": LuaMutant("may_go_before = not first", "may_go_before = true"),
    "a lease that ran out goes on": LuaMutant("if now - state.since < tonumber(state.term) then", "if true then"),
    "a lease ends early": LuaMutant(
        "if now - state.since < tonumber(state.term) then", "if now - state.since < tonumber(state.term) * 0.9 then"
    ),
    "a clock set back is not noticed": LuaMutant("if greater(state.since, now) then", "if false then"),
    "a pace is not noticed to lie ahead": LuaMutant("if set_back then", "if false then"),
    "a cool-down is not noticed to lie ahead": LuaMutant("if since_now then", "if false then"),
    "the queue stays when a waiter leaves": LuaMutant("if not others[1] then", "if false then"),
    "no interval is kept": LuaMutant("pace.started + min_interval", "pace.started"),
    "the deadline counts from the answer": PythonMutant(LeaseCore, "_renewed", _deadline_from_the_answer),
    "the floor is not learned": PythonMutant(ProcessState, "learn", _forget),
    "whoever asks again is another member": PythonMutant(commands, "acquire", _another_member),
    "a place that is gone is not noticed": PythonMutant(waiters.KeyWaiters, "heard", _forget),
    "what a caller could not give back is kept": PythonMutant(ProcessState, "give_back", _forget),
    "no heartbeat is sent": PythonMutant(waiters.KeyWaiters, "start_heartbeat", _forget),
    "a reply goes to the next slot": PythonMutant(Stream, "hear", _to_the_next),
    "a slot is gone when its caller leaves": PythonMutant(Stream, "hear", _without_those_who_left),
    "a request is never sent": PythonMutant(Pipeline, "take", _all_but_the_last),
    "a reconnect forgets one in flight": PythonMutant(Pipeline, "lose", _lose_one),
    "a reconnect forgets all in flight": PythonMutant(Pipeline, "lose", _lose_all),
    "a repeated acquire is another member": PythonMutant(Pipeline, "lose", _as_another_member),
    "a connection that never worked is tried again": PythonMutant(Pipeline, "lose", _as_if_it_had_worked),
    "what is owed is not given back first": PythonMutant(ProcessState, "owed", _nothing_is_owed),
    "more than two heartbeats a second": PythonMutant(waiters.KeyWaiters, "succeeded", _too_soon),
}
"""By what is wrong."""
