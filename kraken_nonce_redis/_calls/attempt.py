"""One attempt at a client's private call, under one lease: see `kraken_nonce_redis._calls.calls`; no I/O."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis import events
from kraken_nonce_redis._calls import exchange_clock
from kraken_nonce_redis._calls.call import Call, Heard
from kraken_nonce_redis._calls.inherited import settling_inherited
from kraken_nonce_redis._calls.news import note, settled
from kraken_nonce_redis._calls.once import PARAMETER, Keeping
from kraken_nonce_redis._calls.outcomes import is_refused_for_deadline
from kraken_nonce_redis._calls.questions import Questions
from kraken_nonce_redis._core.lease import logger
from kraken_nonce_redis._core.record import Stage
from kraken_nonce_redis._core.steps import Send, running
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
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._calls.calls import Calls
    from kraken_nonce_redis._calls.news import News
    from kraken_nonce_redis._calls.outcomes import TurnedAway
    from kraken_nonce_redis._calls.settling import Settlement
    from kraken_nonce_redis._core.lease import LeaseCore
    from kraken_nonce_redis._core.lock import LockCore
    from kraken_nonce_redis._core.steps import CallFlow
    from kraken_nonce_redis._redis.journal import Result

_WINDOW_KNOWN_FOR: Final = 3_600.0
"""Seconds after which ``replay`` asks for the nonce window again: it is a setting that people may change."""
_MOST_RESENT: Final = 1
"""How often an order that is proved to be absent is sent again."""


class Attempt:
    """One attempt at a call, under one lease."""

    _lease: LeaseCore
    _started: float
    _questions: Questions

    def __init__(self, calls: Calls, lock: LockCore[Any], call: Call, news: list[News], *, first: bool) -> None:
        self.begun = False
        """Whether it got the lock."""
        self.refusal: Heard | None = None
        """The last refusal that was heard."""
        self._calls = calls
        self._retries = calls.retries
        self._lock = lock
        self._call = call
        self._news = news
        self._first = first
        self._nonce = 0
        """The nonce of the last request that may have changed something; what became of it is in the lease's record."""
        self._heard: Heard | None = None
        self._last: Heard | None = None
        """What was heard of the last request for the call itself."""
        self._keeping: Keeping | None = None
        """The record of the order's name, if it has one."""
        self._replays = False
        self._params = call.params
        """Those of the last request, with its deadline."""
        self._deadline = exchange_clock.read(call.params.get("deadline")) if call.ages else None
        """That of the last request, in Unix seconds by Kraken's clock; None if it has none."""
        wants_one = calls.deadline is not None or call.once is not None
        self._dates = wants_one and call.ages and not call.params.get("deadline")
        self._lost_answer = False
        """Whether it was told that the caller does not get Kraken's answer."""
        self._resent = 0
        """How often the order was sent after it was proved to be absent."""

    def making(self, lease: LeaseCore) -> CallFlow[Heard | CoolDown]:
        """Make the attempt. What it returns is final, or asks for a later attempt; a `CoolDown` if nothing was sent."""
        self.begun, self._lease, self._started = True, lease, clock.now()
        self._questions = Questions(self._calls, self._lock, lease, self._call, self._news)
        there = yield from self._looking_up()
        page = yield from self._preparing()
        if there is not None:
            return there
        if page is not None:
            seconds = self._calls.cool_downs.after_page(page.retry_after)
            return CoolDown(self._lock.keys.state, seconds, str(page))
        try:
            self._heard = yield from self._making()
        except Exception as error:
            yield from self._ending()
            if isinstance(error, CallUnsettled) or not self._nonce or lease.grant.record.known:
                self.tell_of_lost_answer(error)
                raise
            # Whatever kept us from finding out: a client's exceptions may hold a key, so only ours are quoted.
            known = str(error) if isinstance(error, KrakenNonceError) else type(error).__name__
            raise self._unknown(self._nonce, known) from error
        yield from self._ending()
        if self._heard.failure is not None:
            self.tell_of_lost_answer(self._heard.failure)
        return self._heard

    def _looking_up(self) -> CallFlow[Heard | None]:
        """Return what tells of an order with a name if it is there already; None if the call may be sent."""
        if self._call.once is None:
            return None
        self._keeping = Keeping(self._questions, self._call, self._call.once)
        settlement = yield from self._keeping.looking_up()
        if settlement is None:
            return None
        self._dates = False
        answer = settlement.answer(self._call.method)
        return Heard(self._call.present(answer), answer=answer)

    def _ending(self) -> CallFlow[None]:
        """Write down what became of an order with a name, unless that is unknown."""
        if self._keeping is None or self._lease.grant.record.stage is Stage.SENT:
            return
        heard = self._heard or self._last
        if heard is None or heard.verdict.outcome is not Outcome.CARRIED_OUT:
            yield from self._keeping.ending(placed=None)
        elif txids := _txids(heard):
            yield from self._keeping.ending(placed=txids[0])

    def tell_of_interruption(self) -> None:
        """Tell of a call whose caller will not get what was heard."""
        if not self._nonce or self._lease.grant.record.known:
            return
        heard, known = self._heard, "its caller was interrupted after it was sent"
        if heard is not None and heard.verdict.outcome is Outcome.CARRIED_OUT:
            self._note_carried_out(heard, f"{known}; it was carried out")
        else:
            self._unknown(self._nonce, known)

    def tell_of_lost_answer(self, error: BaseException) -> None:
        """Tell, once, of a call that was carried out, but whose caller gets an exception of other code for it."""
        heard = self._heard or self._last
        if not self._call.changes or heard is None or heard.verdict.outcome is not Outcome.CARRIED_OUT:
            return
        if not self._lost_answer:
            self._lost_answer = True
            got = type(error).__name__
            self._note_carried_out(
                heard, f"it was carried out, but its caller got {got} in the place of Kraken's answer"
            )

    def _note_carried_out(self, heard: Heard, known: str) -> None:
        """Tell of a call whose answer was heard."""
        orders = dict(zip(self._call.cl_ord_ids, _txids(heard), strict=False))
        self._note_settled(self._nonce, "found", orders, known)

    def _making(self) -> CallFlow[Heard]:
        call, lease = self._call, self._lease
        nonce, heard = yield from self._beginning()
        if self._dates and is_refused_for_deadline(heard):
            nonce, heard = yield from self._beginning()
        if heard.verdict.remedy is Remedy.NONCE:
            if self._first:
                nonce, heard = yield from self._beginning()
            if heard.verdict.remedy is Remedy.NONCE and self._retries.leads:
                yield from self._raising_the_nonce(nonce)
        elif not call.changes and heard.lacks_result:
            heard = yield from self._sending(lease.next_nonce())
        elif (
            self._harmless
            and heard.answer is None
            and heard.verdict.outcome is Outcome.UNKNOWN
            and (call.changes or heard.turned_away is None)
            and (yield from self._questions.waiting_out())
        ):
            again = yield from self._sending(lease.next_nonce())
            if not call.changes or _tells_of_both(again):
                return again
            self._note(Stage.SENT, nonce)
        if call.changes and heard.verdict.outcome is Outcome.UNKNOWN:
            heard = yield from self._finding_out(nonce, heard)
        return heard

    def _preparing(self) -> CallFlow[TurnedAway | None]:
        """Find out what must be known before the call is sent; return why it may not be sent under this lease."""
        grant = self._lease.grant
        if self._calls.inherits and not {self._call.key, commands.ANY_KEY}.isdisjoint(grant.inherited):
            yield from settling_inherited(self._questions)
            if not (yield from self._questions.waiting_out()):
                return self._questions.turned_away
        if self._call.changes and self._calls.on_unknown == "replay":
            self._replays = yield from self._may_replay()
        if self._dates and not self._calls.exchange_clock.is_sharp and self._questions.turned_away is None:
            grant.record = grant.record.begun()
            yield from self._questions.asking_for_window()
        return None if (yield from self._questions.waiting_out()) else self._questions.turned_away

    @property
    def is_late(self) -> bool:
        """Whether it is too late for the call to begin."""
        latest = self._calls.latest(self._call)
        return latest is not None and clock.now() > latest

    @property
    def _harmless(self) -> bool:
        """Whether the call may be made a second time at once."""
        return kraken.method_named(self._call.method).effect == "cancels" or (self._first and not self._call.changes)

    def _note(self, stage: Stage, nonce: int) -> None:
        """Take note of what is known of a request that may have changed something."""
        self._nonce = nonce
        self._lease.grant.record = self._lease.grant.record.at(stage)

    def _give_deadline(self) -> None:
        """Give the next request of an order a fresh deadline, by Kraken's clock."""
        known_well = self._calls.exchange_clock.is_sharp
        self._deadline = self._calls.exchange_clock.deadline()
        if self._call.once is not None and not known_well:
            problem = "needs Kraken's time of day, and answers don't tell it well enough (Date); the order was not sent"
            raise InvalidArgument(PARAMETER, problem)
        if self._deadline is None:
            self._params = self._call.params
            logger.warning("%s gets no deadline, since Kraken's clock is not known well enough", self._call.method)
        else:
            self._params = {**self._call.params, "deadline": exchange_clock.written(self._deadline)}

    def _beginning(self) -> CallFlow[tuple[int, Heard]]:
        """Send the call with a nonce for which its intent is noted; return both."""
        nonce = yield from self._lease.beginning(self._call.intent, self._call.seconds)
        return nonce, (yield from self._sending(nonce))

    def _sending(self, nonce: int, *, same: bool = False) -> CallFlow[Heard]:
        """Send the call, once; ``same`` for the same bytes as last time."""
        call, lease = self._call, self._lease
        if self._last is not None:
            reason, errors = self._last.reason, self._last.errors
            self._questions.step(events.CallTriedAgain, call.method, reason=reason, errors=errors, wait=0.0)
        yield from lease.lasting(call.seconds)
        before, latest = (lease.grant.record.stage, self._nonce), self._calls.latest(call)
        if self._dates and not same:
            self._give_deadline()
        if self._keeping is not None and self._deadline is not None:
            yield from self._keeping.trying(nonce, self._deadline)
        if call.changes:
            self._note(Stage.SENT, nonce)  # from now on, whatever may happen
        step = Send(call.method, self._params, nonce, lease, call.seconds, latest)
        try:
            heard = yield from self._questions.hearing(step)
        except Exception:
            if not step.left:
                self._note(*before)
            raise
        self._last = heard = self._with_doubt(heard, nonce)
        if call.changes and heard.verdict.outcome is not Outcome.UNKNOWN:
            self._note(Stage.KNOWN, nonce)
        if heard.verdict.outcome is Outcome.NOT_CARRIED_OUT:
            self.refusal = heard
        yield from self._questions.learning(call.method, nonce, heard)
        return heard

    def _with_doubt(self, heard: Heard, nonce: int) -> Heard:
        """Return what was heard. Without a result it says nothing about an order; of other changes it is told."""
        if not self._call.changes or not heard.lacks_result:
            return heard
        if kraken.method_named(self._call.method).places:
            return replace(heard, doubt="an answer without a result")
        note(self._news, events.ResultMissing(**self._questions.who(self._call.method), nonce=nonce))
        return heard

    def _raising_the_nonce(self, refused: int) -> CallFlow[None]:
        """Raise the nonce for all who share the key, unless another caller just has."""
        keys = self._lock.keys
        state = yield from running(commands.inspect(keys))
        lead = self._retries.lead_after((refused - state.now) / 1e9)
        if lead is None:
            ahead = refused - state.now
            who = self._questions.who(self._call.method)
            note(self._news, events.KeyPoisoned(**who, refused=refused, lead=ahead / 1e9))
            raise NoncePoisoned(keys.state, refused, ahead)
        distance = round(lead * 1e9)
        if (state.last or 0) > state.now + distance // 2:
            return
        raising = commands.advance(
            keys,
            state.now + distance,
            round(self._retries.max_lead * 1e9),
            below=state.now + distance // 2,
            name=self._lock.named(),
        )
        yield from running(raising.durable(self._lock.durability))
        note(self._news, events.NonceRaised(**self._questions.who(self._call.method), refused=refused, lead=lead))

    # Calls with an unknown outcome

    def _finding_out(self, nonce: int, heard: Heard) -> CallFlow[Heard]:
        """Return what became of a call that changes something and got no answer, or raise that it can't be told."""
        call, how, known = self._call, self._calls.on_unknown, heard.reason
        if how == "raise" or not (self._replays or call.cl_ord_ids) or not (yield from self._questions.waiting_out()):
            raise self._unknown(nonce, known) from heard.failure
        if self._replays:
            again = yield from self._replaying(nonce)
            if again is not None and again.verdict.outcome is Outcome.CARRIED_OUT:
                return again
            if again is not None and again.verdict.remedy is Remedy.NONCE:
                known += "; the same request again was refused for its nonce, so the first one has arrived"
            if not call.cl_ord_ids or not (yield from self._questions.waiting_out()):
                raise self._unknown(nonce, known) from heard.failure
        opened = None if call.own_ids else (yield from self._sent_at())
        settlement = yield from self._questions.settling_orders(
            call.cl_ord_ids, opened, nonce, self._questions.until_proof(self._deadline)
        )
        settlement = self._if_certain(settlement, heard)
        self._note_settled(nonce, settlement.outcome, settlement.txids, settlement.known, proved=settlement.proved)
        known += f"; {settlement.known}"
        self._note(Stage.SENT if settlement.outcome == "unknown" else Stage.KNOWN, nonce)
        if settlement.outcome == "found":
            answer = settlement.answer(call.method)
            return Heard(call.present(answer), answer=answer)
        if settlement.outcome == "absent":
            absent = NotCarriedOut(call.method, nonce, ",".join(call.cl_ord_ids), known, proved=settlement.proved)
            if self._calls.on_absent == "resend" and settlement.proved and self._dates and self._resent < _MOST_RESENT:
                return (yield from self._resending(absent))
            raise absent from heard.failure
        raise self._unknown(nonce, known) from heard.failure

    def _if_certain(self, settlement: Settlement, heard: Heard) -> Settlement:
        """Return what was found out after a request; an absence that something speaks against counts as unknown."""
        if settlement.outcome == "absent" and heard.verdict.outcome is Outcome.NOT_CARRIED_OUT:
            return replace(settlement, outcome="unknown", proved=False)  # of an order that was sent once more
        return settlement if self._call.once is None else settlement.if_proved()

    def _replaying(self, nonce: int) -> CallFlow[Heard | None]:
        """Send the same bytes once more, and return what was heard; None if it is too late for that.

        Only that the call was carried out says what became of the first request: Kraken may refuse before it looks at
        the nonce.
        """
        try:
            again = yield from self._sending(nonce, same=True)
        except HoldTimeout:
            return None
        if again.verdict.outcome is not Outcome.CARRIED_OUT:
            self._note(Stage.SENT, nonce)
        return again

    def _resending(self, absent: NotCarriedOut) -> CallFlow[Heard]:
        """Send an order once more that is proved to be absent, with the same cl_ord_id, if it is not too late."""
        self._resent += 1
        try:
            nonce, heard = yield from self._beginning()
        except HoldTimeout:  # it is too late
            raise absent from None
        if heard.verdict.outcome is Outcome.CARRIED_OUT:
            return heard
        for_now = heard.verdict.remedy is not Remedy.NONE or is_refused_for_deadline(heard)
        if heard.verdict.outcome is Outcome.NOT_CARRIED_OUT and for_now:
            known = f"{absent.known}; it was sent once more, and refused: {heard.reason}"
            raise NotCarriedOut(absent.method, nonce, absent.cl_ord_id, known, proved=True) from heard.failure
        # If the first order is there after all, Kraken may refuse its id, or find no funds left. The lists may tell.
        self._note(Stage.SENT, nonce)
        return (yield from self._finding_out(nonce, heard))

    def _note_settled(
        self, nonce: int, outcome: Result, txids: Mapping[str, str], known: str, *, proved: bool = False
    ) -> None:
        """Tell what became of the call, which had no clear answer."""
        name, since = self._lock.name, self._since()
        event = settled(
            self._call, nonce, outcome, txids, known, name=name, since=since, inherited=False, proved=proved
        )
        note(self._news, event)

    def _since(self) -> float:
        """Return when the attempt got the lock, by the clock for people."""
        return time.time() - (clock.now() - self._started)

    def _unknown(self, nonce: int, known: str) -> OutcomeUnknown:
        """Tell that the outcome stays unknown; return the error."""
        call = self._call
        event = events.OutcomeUnknown(
            **self._questions.who(call.method),
            since=self._since(),
            nonce=nonce,
            cl_ord_ids=call.cl_ord_ids,
            known=known,
        )
        note(self._news, event)
        return OutcomeUnknown(call.method, nonce, ",".join(call.cl_ord_ids), known)

    def _sent_at(self) -> CallFlow[float]:
        """Return when the call was sent, by the Redis server's clock: a nonce may be ahead of that."""
        state = yield from running(commands.inspect(self._lock.keys))
        return state.now / 1e9 - (clock.now() - self._started)

    def _may_replay(self) -> CallFlow[bool]:
        """Return whether the same bytes may be sent twice. Raises `InvalidArgument` if the API key has a nonce window.

        Inside of one, Kraken might accept them twice.
        """
        asked, window = self._calls.windows.get(self._call.key, (None, None))
        if asked is None or clock.now() - asked > _WINDOW_KNOWN_FOR:
            self._lease.grant.record = self._lease.grant.record.begun()
            window, _ = yield from self._questions.asking_for_window()
        if window:
            raise no_replay(window)
        return window == 0


def no_replay(window: int) -> InvalidArgument:
    """Return the error for ``replay`` with an API key that has a nonce window, in ns."""
    return InvalidArgument(
        "on_unknown",
        f"'replay' is not for an API key with a nonce window, here {window} ns: inside of it, Kraken might accept the "
        "same request twice. Use 'settle', or set the key's window to 0 at Kraken",
    )


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
