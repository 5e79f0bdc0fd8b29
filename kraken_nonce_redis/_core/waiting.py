"""How a caller acquires the lock and gives up what it had of it; no I/O.

The functions that end in ``-ing`` are generators: they yield a `Step`, and the shell carries it out and sends
back the result or throws in the error. So waiting, giving up and cleaning up are written once for threads and
for asyncio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core import closing
from kraken_nonce_redis._core.steps import Flow, Listen, Pause, Run
from kraken_nonce_redis._core.waiters import QUEUE_LIFE, Waiter
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.commands import Busy, Granted, Waiting
from kraken_nonce_redis.errors import HoldTimeout, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis._core.process_state import ProcessState
    from kraken_nonce_redis._core.waiters import KeyWaiters
    from kraken_nonce_redis._core.wishes import Wishes
    from kraken_nonce_redis._redis.commands import Answer
    from kraken_nonce_redis._redis.keyspace import Keyspace
    from kraken_nonce_redis.durability import Durability


@dataclass(slots=True)
class Acquired:
    """What came of acquiring.

    Attributes:
        member: the member that has the lock now.
        nonces: of its lease.
        deadline: the end of its lease on `clock.now`.
        pending: as in `Granted`.
        late: whether a copy of a request for the lock may still arrive.
    """

    member: str
    nonces: range
    deadline: float
    pending: tuple[str, ...]
    late: bool


def acquiring(
    process_state: ProcessState,
    keys: Keyspace,
    member: str,
    wishes: Wishes,
    *,
    ttl: float,
    pace: str = "",
    durability: Durability | None = None,
    keep: Callable[[Acquired], None] = lambda _: None,
) -> Flow[Acquired]:
    """Get the lock for a caller with these wishes, waiting for it as long as they say.

    ``keep`` takes note of the grant while the caller still counts as a waiter: who ends the process sees one of both.

    Raises `HoldTimeout` and `StoreError`. After any error, also an interruption of the shell, nothing of the caller
    stays in Redis: its place, offer or lease is given up, at once or, when Redis is unavailable, by the agenda.
    """
    waiter = Waiter(keys, member, None if wishes.timeout is None else clock.now() + wishes.timeout)
    key_waiters = process_state.enter(waiter)
    try:
        acquired = yield from _asking(
            process_state, key_waiters, waiter, wishes, ttl=ttl, pace=pace, durability=durability
        )
        closing.check(keys.state)  # what is granted while the process ends may be released for it
    except (StoreUnavailable, GeneratorExit) as error:
        if waiter.asked:
            release = commands.release(keys, member, late=waiter.late or isinstance(error, GeneratorExit))
            process_state.give_back(release, max(ttl, QUEUE_LIFE))
        raise
    except BaseException as error:
        if isinstance(error, HoldTimeout):
            waiter.timed_out(error)
        # With durability it may have been granted before the error; so it may if the first of two answers was lost.
        unheard = waiter.late or durability is not None
        if waiter.ticket or unheard or not isinstance(error, StoreError | HoldTimeout):
            yield from _giving_up(process_state, waiter, ttl, late=waiter.late)
        raise
    else:
        keep(acquired)
        return acquired
    finally:
        key_waiters.leave(waiter)


def _asking(
    process_state: ProcessState,
    key_waiters: KeyWaiters,
    waiter: Waiter,
    wishes: Wishes,
    *,
    ttl: float,
    pace: str,
    durability: Durability | None,
) -> Flow[Acquired]:
    """Ask for the lock until it is granted. In between, sleep until it is offered or the time to ask again has come."""
    while True:
        waiter.woken = False
        closing.check(waiter.keys.state)
        started = clock.now()
        patient = waiter.until is None or started < waiter.until
        listening = process_state.listening
        command = commands.acquire(
            waiter.keys,
            waiter.member,
            ttl,
            ticket=waiter.ticket if patient else None,
            priority=wishes.priority,
            pace=pace,
            intent=wishes.intent,
            heard=process_state.heard_for(waiter.keys.state),
        ).durable(durability)
        command.until = waiter.until
        try:
            answer: Answer = yield Run(command)
            process_state.took(clock.now() - started)
        finally:
            waiter.late |= command.late or command.repeated
            waiter.asked |= not command.unsent
        process_state.look_for_cool_down(waiter.keys.state, answer)
        if isinstance(answer, Granted):
            return Acquired(waiter.member, answer.nonces, started + answer.left, answer.pending, waiter.late)
        if isinstance(answer, Busy):
            raise waiter.too_late(answer.left, answer.cause)
        waiter.ticket, waiter.queued = answer.ticket, isinstance(answer, Waiting)
        if isinstance(answer, Waiting) and command.args[-1] == "?":
            process_state.counted[waiter.keys.state] = answer.heard
        waiter.began_to_wait(answer)
        key_waiters.placed(answer)
        if not (listening and process_state.listening):
            yield from _listening(process_state)  # and ask again, since an offer may have come before
            continue
        if isinstance(answer, Waiting):
            yield Pause(waiter, waiter.until)
        else:
            yield Pause(waiter, min(clock.now() + answer.left, math.inf if waiter.until is None else waiter.until))
        if waiter.failure is not None:
            raise waiter.failure
        if waiter.until is not None and clock.now() >= waiter.until and not waiter.woken:
            raise waiter.too_late(answer.left, answer.cause)


def _listening(process_state: ProcessState) -> Flow[None]:
    if not process_state.listening:
        yield Listen()


def _giving_up(process_state: ProcessState, waiter: Waiter, ttl: float, *, late: bool) -> Flow[None]:
    release = commands.release(waiter.keys, waiter.member, late=late)
    release.until = clock.now()  # the agenda tries it longer
    try:
        yield Run(release)
        process_state.departed_for_good(release, ttl)
    except BaseException as error:
        process_state.give_back(release, max(ttl, QUEUE_LIFE))
        if not isinstance(error, StoreError):
            raise
