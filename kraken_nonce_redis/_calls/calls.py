"""How a client's private call is made, made again, and looked into when its outcome is unknown; no I/O.

The flows here yield all the steps of `kraken_nonce_redis._core.steps`. In short::

    hold the lock, with the intent noted in the same script
        settle what earlier holders left behind
        send
        refused for its nonce: once more with a fresh one, then raise the nonce for everyone
        no answer: a reading call once more; one that changes something is settled, or raises OutcomeUnknown
        a page with the status 429: the same once its Retry-After is over, if that is short; else nothing more for now
    release, which clears the intent only if the outcome is known
    refused for now, or no answer to a reading call: wait, then all of it again
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis import _process
from kraken_nonce_redis._calls.call import Call, Heard
from kraken_nonce_redis._calls.settling import Settlement, settling
from kraken_nonce_redis._core.lock import logger
from kraken_nonce_redis._core.record import Stage
from kraken_nonce_redis._core.steps import Run, Send, Sleep, running
from kraken_nonce_redis._core.wishes import Wishes
from kraken_nonce_redis._kraken import Outcome, Remedy
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.errors import (
    CallUnsettled,
    CoolDown,
    HoldTimeout,
    InvalidArgument,
    KrakenNonceError,
    NoncePoisoned,
    NotCarriedOut,
    OutcomeUnknown,
    StoreError,
)
from kraken_nonce_redis.events import (
    CallForgotten,
    KrakenWarned,
    NonceRaised,
    OrderSettled,
    ResultMissing,
    checked,
    tell,
)
from kraken_nonce_redis.pace import CoolDowns, priority_of, tell_a_time
from kraken_nonce_redis.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kraken_nonce_redis._arguments import OnUnknown
    from kraken_nonce_redis._calls.outcomes import TurnedAway
    from kraken_nonce_redis._core.lock import LeaseCore, LockCore
    from kraken_nonce_redis._core.steps import CallFlow, Flow
    from kraken_nonce_redis._redis.commands import Pending, Result
    from kraken_nonce_redis.events import Event, Hook
    from kraken_nonce_redis.pace import Pace

ON_UNKNOWN: Final = ("settle", "raise", "replay")

_WAITED_OUT: Final = 10.0
"""Longest Retry-After in seconds that is waited for with the lock held."""
_TELLING: Final = 5.0
"""Seconds that a process has to tell what it has found out about another one's call; then the next holder tells it."""
_MOST_REPORTED: Final = 1_000
_REPORTED_FOR: Final = 30 * 86_400.0
"""How many reported calls the journal keeps, and for how many seconds."""
_FORGOTTEN_AT_ONCE: Final = 20
"""How many of the others one call takes off the journal, so that it is not held up for long."""


@dataclass(frozen=True, slots=True)
class News:
    """What a call has to tell once the lock is released.

    Attributes:
        event: the event.
        entry: the nonce of the journal's entry that it is about; None for no entry that is still to be changed.
        then: what becomes of the entry when it is told.
    """

    event: Event
    entry: int | None = None
    then: Literal["known", "reported"] = "known"


class Calls:
    """How the calls of one client are made.

    Args:
        retries: when they are made again.
        on_unknown: what is done about a call that changes something and got no answer.
        wait_timeout: most seconds that a call waits for its turn and between its attempts; None for no limit.
        pace: how often calls may start.
        cool_downs: how long all calls pause after Kraken's refusals.
        on_event: gets the events.
    """

    def __init__(
        self,
        *,
        retries: Retries,
        on_unknown: OnUnknown,
        wait_timeout: float | None,
        pace: Pace | None,
        cool_downs: CoolDowns,
        on_event: Hook | None,
    ) -> None:
        if on_unknown not in ON_UNKNOWN:
            raise InvalidArgument("on_unknown", f"must be one of {', '.join(ON_UNKNOWN)}, not {on_unknown!r}")
        self.retries: Final = arguments.instance("retries", retries, Retries) or Retries()
        self.on_unknown: Final = on_unknown
        self.cool_downs: Final = arguments.instance("cool_downs", cool_downs, CoolDowns) or CoolDowns()
        self._wait_timeout = arguments.timeout(wait_timeout, "wait_timeout")
        self._pace = pace
        self._on_event = checked(on_event)
        self.inherits = True
        """Whether the calls of earlier holders are settled and told."""
        self.left: defaultdict[str, set[int]] = defaultdict(set)
        """By API key, the nonces of those that were told here and left to others."""

    def calling(self, lock: LockCore[Any], owner: object, call: Call) -> CallFlow[Heard]:
        """Make a call and return what was heard last, which may be a refusal.

        Raises `HoldTimeout` when it timed out waiting for the lock, `LeaseLost`, `StoreError`: then nothing was sent.
        Raises `NoncePoisoned`, and for a call that changes something `OutcomeUnknown` and `NotCarriedOut`.
        """
        news: list[News] = []
        closed = False
        try:
            return (yield from self._trying(lock, owner, call, news))
        except GeneratorExit:
            closed = True  # nothing can be said to Redis any more: the next holder tells it once more
            raise
        finally:
            yield from self._telling(lock, news, closed=closed)

    def _trying(self, lock: LockCore[Any], owner: object, call: Call, news: list[News]) -> CallFlow[Heard]:
        until = None if self._wait_timeout is None else clock.now() + self._wait_timeout
        last: Heard | CoolDown | None = None
        attempts = 0
        while True:
            attempt = _Attempt(self, lock, call, news, first=not isinstance(last, Heard))
            wishes = Wishes(
                timeout=None if until is None else max(0.0, until - clock.now()),
                cost=self._pace.cost_of(call.method) if self._pace else 0,
                priority=priority_of(call.method),
                method=call.method,
                intent=call.intent,
            )
            try:
                made = yield from lock.under_lease(owner, attempt.making, wishes)
            except HoldTimeout:
                if not isinstance(last, Heard) or attempt.begun:
                    raise
                return last
            except BaseException as error:
                if not isinstance(error, Exception):
                    attempt.tell_of_interruption()
                raise
            attempts += 1
            if isinstance(made, Heard) or not isinstance(last, Heard):
                last = made
            wait = self._wait(made, attempts, until)
            if wait is None:
                if isinstance(last, CoolDown):
                    raise last
                return last
            yield from self._telling(lock, news)
            logger.info("%s is made again in %.1f s: %s", call.method, wait, made.reason)
            yield Sleep(wait)

    def _wait(self, made: Heard | CoolDown, attempts: int, until: float | None) -> float | None:
        """Return the seconds until the next attempt; None if there is to be none."""
        if isinstance(made, Heard) and made.verdict.remedy is Remedy.NONE:
            return None
        wait = self.retries.wait(attempts)
        return None if wait is None or (until is not None and clock.now() + wait > until) else wait

    def _telling(self, lock: LockCore[Any], news: list[News], *, closed: bool = False) -> Flow[None]:
        """Tell the news, without the lock, so that a hook may make calls itself; then change the journal's entries.

        When the flow is ``closed``, or Redis fails, the next holder tells it once more.
        """
        try:
            for each in news:
                tell(each.event, self._on_event)
            if not closed:
                for each in news:
                    if each.entry is not None:
                        yield from running(commands.settle(lock.keys, each.entry, each.then))
        except StoreError as error:
            logger.warning("What was told of %s is still in the journal, and is told again: %s", lock.keys.state, error)
        finally:
            for each in news:
                _process.current().telling.discard((lock.keys.state, each.entry))
            news.clear()


class _Attempt:
    """One attempt at a call, under one lease."""

    _lease: LeaseCore
    _started: float

    def __init__(self, calls: Calls, lock: LockCore[Any], call: Call, news: list[News], *, first: bool) -> None:
        self.begun = False
        """Whether it got the lock."""
        self._calls = calls
        self._retries = calls.retries
        self._lock = lock
        self._call = call
        self._news = news
        self._first = first
        self._nonce = 0
        """The nonce of the last request that may have changed something; what became of it is in the lease's record."""
        self._heard: Heard | None = None
        self._turned_away: TurnedAway | None = None
        """What came in place of the latest answer, if that was a page with the status 429."""

    def making(self, lease: LeaseCore) -> CallFlow[Heard | CoolDown]:
        """Make the attempt. What it returns is final, or asks for a later attempt; a `CoolDown` if nothing was sent."""
        self.begun, self._lease, self._started = True, lease, clock.now()
        if self._calls.inherits and not {self._call.key, commands.ANY_KEY}.isdisjoint(lease.grant.inherited):
            yield from self._settling_inherited()
            if self._turned_away is not None and not (yield from self._waiting_out()):
                seconds = self._calls.cool_downs.after_page(self._turned_away.retry_after)
                return CoolDown(self._lock.keys.state, seconds, str(self._turned_away))
        try:
            self._heard = yield from self._making()
        except CallUnsettled:
            raise
        except Exception as error:
            if not self._nonce or lease.grant.record.known:
                raise
            # Whatever kept us from finding out: a client's exceptions may hold a key, so only ours are quoted.
            known = str(error) if isinstance(error, KrakenNonceError) else type(error).__name__
            raise self._unknown(self._nonce, known) from error
        return self._heard

    def tell_of_interruption(self) -> None:
        """Tell of a call whose caller will not get what was heard."""
        if not self._nonce or self._lease.grant.record.known:
            return
        call, heard = self._call, self._heard
        logger.warning("%s (nonce %d) was interrupted after it was sent", call.method, self._nonce)
        if heard is not None and heard.verdict.outcome is Outcome.CARRIED_OUT:
            orders = dict(zip(call.cl_ord_ids, _txids(heard), strict=False))
            self._news.append(News(_settled(call, self._nonce, "found", orders, inherited=False)))

    def _making(self) -> CallFlow[Heard]:
        call, lease = self._call, self._lease
        nonce = yield from lease.beginning(call.intent, call.seconds)
        heard = yield from self._sending(nonce)
        if heard.verdict.remedy is Remedy.NONCE:
            if self._first:
                nonce = yield from lease.beginning(call.intent, call.seconds)
                heard = yield from self._sending(nonce)
            if heard.verdict.remedy is Remedy.NONCE and self._retries.leads:
                yield from self._raising_the_nonce(nonce)
        elif not call.changes and heard.lacks_result:
            heard = yield from self._sending(lease.next_nonce())
        elif (
            self._harmless
            and heard.answer is None
            and heard.verdict.outcome is Outcome.UNKNOWN
            and (call.changes or heard.turned_away is None)
            and (yield from self._waiting_out())
        ):
            again = yield from self._sending(lease.next_nonce())
            if not call.changes or _tells_of_both(again):
                return again
            self._note(Stage.SENT, nonce)
        if call.changes and heard.verdict.outcome is Outcome.UNKNOWN:
            heard = yield from self._finding_out(nonce, heard)
        return heard

    @property
    def _harmless(self) -> bool:
        """Whether the call may be made a second time at once."""
        return kraken.method_named(self._call.method).effect == "cancels" or (self._first and not self._call.changes)

    def _note(self, stage: Stage, nonce: int) -> None:
        """Take note of what is known of a request that may have changed something."""
        self._nonce = nonce
        self._lease.grant.record = self._lease.grant.record.at(stage)

    def _sending(self, nonce: int) -> CallFlow[Heard]:
        """Send the call, once."""
        call, lease = self._call, self._lease
        yield from lease.lasting(call.seconds)
        before = lease.grant.record.stage, self._nonce
        if call.changes:
            self._note(Stage.SENT, nonce)  # from now on, whatever may happen
        try:
            heard: Heard = yield Send(call.method, call.params, nonce, lease, call.seconds)
        except Exception:
            self._note(*before)  # nothing was sent, this time
            raise
        if call.changes and heard.lacks_result:
            if kraken.method_named(call.method).places:
                heard = replace(heard, doubt="an answer without a result")
            else:
                logger.warning("%s (nonce %d): an answer without a result", call.method, nonce)
                self._news.append(News(ResultMissing(call.key, call.method, nonce)))
        if call.changes and heard.verdict.outcome is not Outcome.UNKNOWN:
            self._note(Stage.KNOWN, nonce)
        yield from self._learning(call.method, nonce, heard)
        return heard

    def _asking(self, method: str, params: Mapping[str, Any]) -> CallFlow[Heard]:
        """Make a reading call with a later nonce."""
        lease, seconds = self._lease, self._call.seconds
        if "otp" in self._call.params:
            params = {**params, "otp": self._call.params["otp"]}
        yield from lease.lasting(seconds)
        nonce = lease.next_nonce()
        heard: Heard = yield Send(method, params, nonce, lease, seconds)
        yield from self._learning(method, nonce, heard)
        return heard

    def _pausing(self, seconds: float) -> CallFlow[None]:
        """Sleep with the lock held."""
        yield from self._lease.lasting(seconds + self._call.seconds)
        yield Sleep(seconds)

    def _waiting_out(self) -> CallFlow[bool]:
        """Wait until something may be sent again; return whether it may under this lease.

        It may not if the latest answer was a page with the status 429 and a longer ``Retry-After``, or none.
        """
        if self._turned_away is None:
            return True
        wait = self._turned_away.retry_after
        if wait is None or wait > _WAITED_OUT:
            return False
        yield from self._pausing(wait)
        return True

    def _learning(self, method: str, nonce: int, heard: Heard) -> CallFlow[None]:
        """Take note of warnings, and start a cool-down if what came asks for one."""
        keys, errors, self._turned_away = self._lock.keys, heard.errors, heard.turned_away
        if heard.warnings:
            logger.warning("%s (nonce %d): Kraken warns: %s", method, nonce, ", ".join(heard.warnings))
            self._news.append(News(KrakenWarned(self._call.key, method, nonce, heard.warnings)))
        try:
            # Not by this machine's clock: if that is wrong, all the others would stop for as long.
            now = (yield from running(commands.inspect(keys))).now / 1e9 if tell_a_time(errors) else None
            seconds, reason = self._calls.cool_downs.after(errors, now)
            if self._turned_away is not None:
                seconds, reason = self._calls.cool_downs.after_page(self._turned_away.retry_after), heard.reason
            if seconds > 0:
                yield Run(commands.cool_down(keys, seconds, reason))
        except StoreError as error:  # must not hide Kraken's answer
            logger.warning("The other processes could not be told of %s: %s", heard.reason, error)

    def _raising_the_nonce(self, refused: int) -> CallFlow[None]:
        """Raise the nonce for all who share the key, unless another caller just has."""
        keys = self._lock.keys
        state = yield from running(commands.inspect(keys))
        lead = self._retries.lead_after((refused - state.now) / 1e9)
        if lead is None:
            raise NoncePoisoned(keys.state, refused, refused - state.now)
        distance = round(lead * 1e9)
        if (state.last or 0) > state.now + distance // 2:
            return
        raising = commands.advance(
            keys, state.now + distance, round(self._retries.max_lead * 1e9), below=state.now + distance // 2
        )
        yield from running(raising.durable(self._lock.durability))
        logger.warning("Kraken refused nonce %d of %s; nonces are now %g s ahead", refused, keys.state, lead)
        self._news.append(News(NonceRaised(self._call.key, refused, lead)))

    # Calls with an unknown outcome

    def _finding_out(self, nonce: int, heard: Heard) -> CallFlow[Heard]:
        """Return what became of a call that changes something and got no answer, or raise that it can't be told."""
        call, how, known = self._call, self._calls.on_unknown, heard.reason
        if how == "raise" or not (how == "replay" or call.cl_ord_ids) or not (yield from self._waiting_out()):
            raise self._unknown(nonce, known) from heard.failure
        if how == "replay":
            again = yield from self._sending(nonce)
            if again.verdict.outcome is Outcome.CARRIED_OUT:
                return again
            # No other refusal says what became of the first request: Kraken may refuse before it looks at the nonce.
            self._note(Stage.SENT, nonce)
            if again.verdict.remedy is Remedy.NONCE:
                known += "; the same request again was refused for its nonce, so the first one has arrived"
            if not call.cl_ord_ids or not (yield from self._waiting_out()):
                raise self._unknown(nonce, known) from heard.failure
        opened = None if call.own_ids else (yield from self._sent_at())
        settlement = yield from self._settling(call.cl_ord_ids, opened)
        _warn(call, nonce, settlement.known)
        self._news.append(News(_settled(call, nonce, settlement.outcome, settlement.txids, inherited=False)))
        known += f"; {settlement.known}"
        self._note(Stage.SENT if settlement.outcome == "unknown" else Stage.KNOWN, nonce)
        if settlement.outcome == "found":
            answer = settlement.answer(call.method)
            return Heard(call.present(answer), answer=answer)
        if settlement.outcome == "absent":
            raise NotCarriedOut(call.method, nonce, ",".join(call.cl_ord_ids), known) from heard.failure
        raise self._unknown(nonce, known) from heard.failure

    def _unknown(self, nonce: int, known: str) -> OutcomeUnknown:
        return OutcomeUnknown(self._call.method, nonce, ",".join(self._call.cl_ord_ids), known)

    def _sent_at(self) -> CallFlow[float]:
        """Return when the call was sent, by the Redis server's clock: a nonce may be ahead of that."""
        state = yield from running(commands.inspect(self._lock.keys))
        return state.now / 1e9 - (clock.now() - self._started)

    def _settling(self, ids: tuple[str, ...], opened: float | None, *, hasty: bool = False) -> CallFlow[Settlement]:
        """Ask Kraken's lists what became of orders; the arguments are those of `settling`."""
        waits = self._calls.retries.settle_waits
        return settling(self._asking, self._pausing, ids, opened=opened, waits=waits, hasty=hasty)

    # Calls of earlier holders

    def _settling_inherited(self) -> CallFlow[None]:
        """Settle what earlier holders with the same API key left behind, or report it."""
        keys, lease, left = self._lock.keys, self._lease, self._calls.left[self._call.key]
        entries = yield from running(commands.pending(keys))
        lease.grant.inherited = ()
        waiting = [entry for entry in entries if entry.key == self._call.key and not entry.reported]
        if not waiting:
            yield from running(commands.recount(keys))  # the count has lost its entries
        left.intersection_update([entry.nonce for entry in waiting])
        self._forgetting(entries)
        for entry in waiting:
            if (keys.state, entry.nonce) in _process.current().telling or entry.nonce in left:
                continue
            if not (yield from self._inheriting(entry)):
                return

    def _inheriting(self, entry: Pending) -> CallFlow[bool]:
        """Settle or report an earlier holder's call; return whether to go on with the next one."""
        state, calls = self._lock.keys.state, self._calls
        outcome: Result = "unknown"
        txids: Mapping[str, str] = {}
        final = True
        if entry.result is not None:
            if 0 <= entry.noted < _TELLING:
                return True  # who has found it out is about to tell it
            outcome, txids = entry.result, entry.txids
            known = f"an earlier holder has found out: {' '.join((outcome, *txids.values()))}"
        elif not entry.cl_ord_ids:
            known = "it is unknown whether it was carried out"
        elif calls.on_unknown == "raise":
            known, final = "it is left to a process that settles", False
        else:
            self._lease.grant.record = self._lease.grant.record.begun()
            opened = None if entry.own_ids else min(entry.nonce, entry.since) / 1e9
            settlement = yield from self._settling(entry.cl_ord_ids, opened, hasty=True)
            outcome, txids, known = settlement.outcome, settlement.txids, settlement.known
            final = outcome != "unknown" or settlement.hopeless  # else Kraken can't be asked now
        found = [txids.get(cl_ord_id, "") for cl_ord_id in entry.cl_ord_ids]
        note = commands.settle(self._lock.keys, entry.nonce, outcome if final else "new", found if txids else ())
        if not (yield from running(note)):
            return True  # its own caller knows, and its release has come meanwhile
        _warn(entry, entry.nonce, known)
        event = _settled(entry, entry.nonce, outcome, txids, inherited=True)
        if final:
            self._news.append(News(event, entry.nonce, "reported" if outcome == "unknown" else "known"))
            _process.current().telling.add((state, entry.nonce))
        else:
            self._news.append(News(event))
            if calls.on_unknown == "raise":
                calls.left[entry.key].add(entry.nonce)
        return final or calls.on_unknown == "raise"

    def _forgetting(self, entries: Sequence[Pending]) -> None:
        """Take the oldest reported calls off the journal, once that is told."""
        telling = _process.current().telling
        reported = [entry for entry in entries if entry.reported]
        surplus = len(reported) - _MOST_REPORTED
        old = [entry for place, entry in enumerate(reported) if place < surplus or entry.age > _REPORTED_FOR]
        for entry in old[:_FORGOTTEN_AT_ONCE]:
            if (name := (self._lock.keys.state, entry.nonce)) not in telling:
                _warn(entry, entry.nonce, "it is unknown whether it was carried out, and it is no longer listed")
                event = CallForgotten(
                    entry.key, entry.method, entry.nonce, entry.cl_ord_ids, id=_id(entry, entry.nonce, "forgotten")
                )
                self._news.append(News(event, entry.nonce))
                telling.add(name)


def _settled(
    call: Call | Pending, nonce: int, outcome: Result, txids: Mapping[str, str], *, inherited: bool
) -> OrderSettled:
    """Return the event. Whoever tells the same of a call gives it the same id."""
    name = _id(call, nonce, outcome)
    return OrderSettled(call.key, call.method, nonce, call.cl_ord_ids, outcome, txids, inherited, id=name)


def _id(call: Call | Pending, nonce: int, what: str) -> str:
    return hashlib.sha256(f"{call.key} {nonce} {what}".encode()).hexdigest()[:32]


def _warn(call: Call | Pending, nonce: int, known: str) -> None:
    ids = f", cl_ord_id {','.join(call.cl_ord_ids)}" if call.cl_ord_ids else ""
    logger.warning("%s (nonce %d%s): %s", call.method, nonce, ids, known)


def _tells_of_both(again: Heard) -> bool:
    """Return whether the answer to a cancellation that was sent twice also tells what became of the first one.

    That the order is not open does. A refusal for another reason, such as the rate, says nothing of the first.
    """
    verdict = again.verdict
    if verdict.outcome is Outcome.NOT_CARRIED_OUT:
        return verdict.remedy is Remedy.NONE and all(error.startswith("EOrder:") for error in again.errors)
    return verdict.outcome is Outcome.CARRIED_OUT


def _txids(heard: Heard) -> list[str]:
    """Return Kraken's txids in the answer to AddOrder or AddOrderBatch."""
    result = None if heard.answer is None else heard.answer.get("result")
    if not isinstance(result, dict):
        return []
    placed = [order.get("txid") for order in result.get("orders", ()) if isinstance(order, dict)]
    return [str(txid) for txid in placed or result.get("txid") or ()]
