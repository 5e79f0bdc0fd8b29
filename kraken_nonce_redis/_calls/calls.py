"""How a client's private call is made, made again, and looked into when its outcome is unknown; no I/O.

The flows here yield all the steps of `kraken_nonce_redis._core.steps`. In short::

    hold the lock, with the intent noted in the same script
        settle what earlier holders left behind
        send
        refused for its nonce: once more with a fresh one, then raise the nonce for everyone
        no answer: a reading call once more; one that changes something is settled, or raises OutcomeUnknown
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
from kraken_nonce_redis._calls import exchange_clock
from kraken_nonce_redis._calls.call import Call, Heard
from kraken_nonce_redis._calls.exchange_clock import ExchangeClock
from kraken_nonce_redis._calls.outcomes import is_final_refusal, is_refused_for_deadline, window_in
from kraken_nonce_redis._calls.settling import Fence, Settlement, settling
from kraken_nonce_redis._core.lock import logger
from kraken_nonce_redis._core.record import Stage
from kraken_nonce_redis._core.steps import Run, Send, Sleep, check_patience, running
from kraken_nonce_redis._core.wishes import Wishes
from kraken_nonce_redis._kraken import Outcome, Remedy
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.errors import (
    CallUnsettled,
    HoldTimeout,
    InvalidArgument,
    KrakenNonceError,
    NoncePoisoned,
    NonceTooFarAhead,
    NotCarriedOut,
    OutcomeUnknown,
    StoreError,
)
from kraken_nonce_redis.events import CallForgotten, NonceRaised, OrderSettled, checked, tell
from kraken_nonce_redis.pace import CoolDowns, priority_of, tell_a_time
from kraken_nonce_redis.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kraken_nonce_redis._arguments import DeadlineOf, OnAbsent, OnUnknown
    from kraken_nonce_redis._core.lock import LeaseCore, LockCore
    from kraken_nonce_redis._core.steps import CallFlow, Flow
    from kraken_nonce_redis._redis.commands import Pending, Result
    from kraken_nonce_redis.events import Event, Hook
    from kraken_nonce_redis.pace import Pace

ON_UNKNOWN: Final = ("settle", "raise", "replay")
ON_ABSENT: Final = ("raise", "resend")

_TELLING: Final = 5.0
"""Seconds that a process has to tell what it has found out about another one's call; then the next holder tells it."""
_WINDOW_KNOWN_FOR: Final = 3_600.0
"""Seconds after which ``replay`` asks for the nonce window again: it is a setting that people may change."""
_LONGEST_DEADLINE: Final = 65.0
"""Seconds from now to the latest deadline that Kraken can have taken, with a margin for its clock."""
_MOST_RESENT: Final = 1
"""How often an order that is proved to be absent is sent again."""
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
        patience: most seconds from when an order is asked for until it is sent; None for no limit.
        nonce_window: of the API keys, in ns, where Kraken does not tell it; None if that is unknown.
        deadline: ``"auto"`` to give each order a deadline, if it has none.
        on_absent: what is done about an order that is proved to be absent.
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
        patience: float | None = arguments.DEFAULT_PATIENCE,
        nonce_window: int | None = None,
        deadline: DeadlineOf | None = None,
        on_absent: OnAbsent = "raise",
    ) -> None:
        if on_unknown not in ON_UNKNOWN:
            raise InvalidArgument("on_unknown", f"must be one of {', '.join(ON_UNKNOWN)}, not {on_unknown!r}")
        self.retries: Final = arguments.instance("retries", retries, Retries) or Retries()
        self.on_unknown: Final = on_unknown
        self.cool_downs: Final = arguments.instance("cool_downs", cool_downs, CoolDowns) or CoolDowns()
        self._wait_timeout = arguments.timeout(wait_timeout, "wait_timeout")
        self._patience = arguments.timeout(patience, "patience")
        self._nonce_window = (
            None if nonce_window is None else arguments.whole("nonce_window", nonce_window, 0, arguments.LONGEST_LEAD)
        )
        if on_unknown == "replay" and nonce_window:
            raise _no_replay(nonce_window)
        if deadline not in {None, "auto"}:
            raise InvalidArgument("deadline", f"must be 'auto' or None, not {deadline!r}")
        self.deadline: Final = deadline
        if on_absent not in ON_ABSENT:
            raise InvalidArgument("on_absent", f"must be one of {', '.join(ON_ABSENT)}, not {on_absent!r}")
        if on_absent == "resend" and (deadline != "auto" or on_unknown != "settle"):
            raise InvalidArgument("on_absent", "'resend' needs deadline='auto' and on_unknown='settle'")
        self.on_absent: Final = on_absent
        self.exchange_clock: Final = ExchangeClock()
        self.windows: dict[str, tuple[float, int]] = {}
        """By API key, when its nonce window was asked for, on `clock.now`, and the window in ns."""
        self._pace = pace
        self._on_event = checked(on_event)
        self.inherits = True
        """Whether the calls of earlier holders are settled and told."""
        self.left: defaultdict[str, set[int]] = defaultdict(set)
        """By API key, the nonces of those that were told here and left to others."""

    def calling(self, lock: LockCore[Any], owner: object, call: Call) -> CallFlow[Heard]:
        """Make a call and return what was heard last, which may be a refusal.

        Raises `HoldTimeout` when it timed out waiting for the lock or is too late for its patience, `LeaseLost`,
        `StoreError`: then nothing was sent.
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
        latest = self.latest(call)
        check_patience(call.method, latest)
        until = latest if until is None else until if latest is None else min(until, latest)
        heard: Heard | None = None
        attempts = 0
        while True:
            attempt = _Attempt(self, lock, call, news, first=heard is None)
            wishes = Wishes(
                timeout=None if until is None else max(0.0, until - clock.now()),
                cost=self._pace.cost_of(call.method) if self._pace else 0,
                priority=priority_of(call.method),
                method=call.method,
                intent=call.intent,
            )
            try:
                heard = yield from lock.under_lease(owner, attempt.making, wishes)
            except HoldTimeout:
                said = attempt.refusal or heard
                if said is None or (attempt.begun and not attempt.is_late):
                    raise
                return said
            except BaseException as error:
                if not isinstance(error, Exception):
                    attempt.tell_of_interruption()
                raise
            attempts += 1
            verdict = heard.verdict
            wait = self.retries.wait(attempts)
            if verdict.remedy is Remedy.NONE or wait is None or (until is not None and clock.now() + wait > until):
                return heard
            yield from self._telling(lock, news)
            logger.info("%s is made again in %.1f s: %s", call.method, wait, heard.reason)
            yield Sleep(wait)

    def latest(self, call: Call) -> float | None:
        """Return until when on `clock.now` a call may begin; None for no limit."""
        return call.asked + self._patience if self._patience is not None and call.ages else None

    def learn_window(self, key: str, state: str, heard: Heard) -> int | None:
        """Return what an answer to GetApiKeyInfo says about the nonce window of an API key, in ns; None for nothing.

        Where Kraken does not answer that question at all, the settings count; else the window is taken for 0, with one
        warning in each process. ``state`` is how the key is called in it.
        """
        told = window_in(heard)
        if told is None and heard.verdict.outcome is Outcome.UNKNOWN:
            return self._nonce_window
        if told is None and not is_final_refusal(heard):
            return None
        if told is None:
            if self._nonce_window is None and state not in _process.current().warned:
                _process.current().warned.add(state)
                logger.warning(
                    "Kraken does not tell the nonce window of %s (%s), so it is taken for 0. If the API key has one, "
                    "give it as nonce_window, in ns",
                    state,
                    heard.reason or "an answer without it",
                )
            told = self._nonce_window or 0
        self.windows[key] = clock.now(), told
        return told

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
        self._replays = False
        self._params = call.params
        """Those of the last request, with its deadline."""
        self._deadline = exchange_clock.read(call.params.get("deadline")) if call.ages else None
        """That of the last request, in Unix seconds by Kraken's clock; None if it has none."""
        self._dates = calls.deadline is not None and call.ages and not call.params.get("deadline")
        self._resent = 0
        """How often the order was sent after it was proved to be absent."""

    def making(self, lease: LeaseCore) -> CallFlow[Heard]:
        """Make the attempt. What it returns is final, or asks for a later attempt."""
        self.begun, self._lease, self._started = True, lease, clock.now()
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
        if self._calls.inherits and not {call.key, commands.ANY_KEY}.isdisjoint(lease.grant.inherited):
            yield from self._settling_inherited()
        yield from self._preparing()
        nonce = yield from lease.beginning(call.intent, call.seconds)
        heard = yield from self._sending(nonce)
        if self._dates and is_refused_for_deadline(heard):
            nonce = yield from lease.beginning(call.intent, call.seconds)
            heard = yield from self._sending(nonce)
        if heard.verdict.remedy is Remedy.NONCE:
            if self._first:
                nonce = yield from lease.beginning(call.intent, call.seconds)
                heard = yield from self._sending(nonce)
            if heard.verdict.remedy is Remedy.NONCE and self._retries.leads:
                yield from self._raising_the_nonce(nonce)
        elif self._harmless and heard.answer is None and heard.verdict.outcome is Outcome.UNKNOWN:
            again = yield from self._sending(lease.next_nonce())
            if not call.changes or _tells_of_both(again):
                return again
            self._note(Stage.SENT, nonce)
        if call.changes and heard.verdict.outcome is Outcome.UNKNOWN:
            heard = yield from self._finding_out(nonce, heard)
        return heard

    def _preparing(self) -> CallFlow[None]:
        """Ask what must be known before the call is sent."""
        if self._call.changes and self._calls.on_unknown == "replay":
            self._replays = yield from self._may_replay()
        if self._dates and not self._calls.exchange_clock.is_sharp:
            self._lease.grant.record = self._lease.grant.record.begun()
            yield from self._asking_for_window()

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
        self._deadline = self._calls.exchange_clock.deadline()
        if self._deadline is None:
            self._params = self._call.params
            logger.warning("%s gets no deadline, since Kraken's clock is not known well enough", self._call.method)
        else:
            self._params = {**self._call.params, "deadline": exchange_clock.written(self._deadline)}

    def _sending(self, nonce: int, *, same: bool = False) -> CallFlow[Heard]:
        """Send the call, once; ``same`` for the same bytes as last time."""
        call, lease = self._call, self._lease
        yield from lease.lasting(call.seconds)
        before, latest = (lease.grant.record.stage, self._nonce), self._calls.latest(call)
        if self._dates and not same:
            self._give_deadline()
        if call.changes:
            self._note(Stage.SENT, nonce)  # from now on, whatever may happen
        try:
            heard = yield from self._hearing(Send(call.method, self._params, nonce, lease, call.seconds, latest))
        except Exception:
            self._note(*before)  # nothing was sent, this time
            raise
        if call.changes and heard.verdict.outcome is not Outcome.UNKNOWN:
            self._note(Stage.KNOWN, nonce)
        if heard.verdict.outcome is Outcome.NOT_CARRIED_OUT:
            self.refusal = heard
        yield from self._learning(heard.errors)
        return heard

    def _hearing(self, step: Send) -> CallFlow[Heard]:
        """Send a request, and learn from the answer what time it is at Kraken."""
        sent = clock.now()
        heard: Heard = yield step
        self._calls.exchange_clock.learn(sent, clock.now(), heard.date)
        return heard

    def _asking(self, method: str, params: Mapping[str, Any]) -> CallFlow[Heard]:
        """Make a reading call with a later nonce."""
        lease, seconds = self._lease, self._call.seconds
        if "otp" in self._call.params:
            params = {**params, "otp": self._call.params["otp"]}
        yield from lease.lasting(seconds)
        heard = yield from self._hearing(Send(method, params, lease.next_nonce(), lease, seconds))
        yield from self._learning(heard.errors)
        return heard

    def _pausing(self, seconds: float) -> CallFlow[None]:
        """Sleep with the lock held."""
        yield from self._lease.lasting(seconds + self._call.seconds)
        yield Sleep(seconds)

    def _learning(self, errors: tuple[str, ...]) -> CallFlow[None]:
        """Start a cool-down if Kraken's refusals ask for one."""
        keys = self._lock.keys
        try:
            # Not by this machine's clock: if that is wrong, all the others would stop for as long.
            now = (yield from running(commands.inspect(keys))).now / 1e9 if tell_a_time(errors) else None
            seconds, reason = self._calls.cool_downs.after(errors, now)
            if seconds > 0:
                yield Run(commands.cool_down(keys, seconds, reason))
        except StoreError as error:  # must not hide Kraken's answer
            logger.warning("The other processes could not be told of %s: %s", ", ".join(errors), error)

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
        if self._replays:
            try:
                again = yield from self._sending(nonce, same=True)
            except HoldTimeout:  # it is too late
                again = heard
            if again.verdict.outcome is Outcome.CARRIED_OUT:
                return again
            # No other refusal says what became of the first request: Kraken may refuse before it looks at the nonce.
            self._note(Stage.SENT, nonce)
            if again.verdict.remedy is Remedy.NONCE:
                known += "; the same request again was refused for its nonce, so the first one has arrived"
        if how == "raise" or not call.cl_ord_ids:
            raise self._unknown(nonce, known) from heard.failure
        opened = None if call.own_ids else (yield from self._sent_at())
        settlement = yield from self._settling(call.cl_ord_ids, opened, nonce, self._until_proof)
        if settlement.outcome == "absent" and heard.verdict.outcome is Outcome.NOT_CARRIED_OUT:
            settlement = replace(settlement, outcome="unknown", proved=False)  # of an order that was sent once more
        _warn(call, nonce, settlement.known)
        event = _settled(call, nonce, settlement.outcome, settlement.txids, inherited=False, proved=settlement.proved)
        self._news.append(News(event))
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

    def _resending(self, absent: NotCarriedOut) -> CallFlow[Heard]:
        """Send an order once more that is proved to be absent, with the same cl_ord_id, if it is not too late."""
        self._resent += 1
        nonce = yield from self._lease.beginning(self._call.intent, self._call.seconds)
        try:
            heard = yield from self._sending(nonce)
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

    def _until_proof(self) -> float | None:
        """Return the seconds until the absence of the order is proved by a look; None if it can't be."""
        now = self._calls.exchange_clock.earliest()
        if self._deadline is None or now is None:
            return None
        wait = self._deadline - now + self._retries.proof_wait
        return wait if wait <= _LONGEST_DEADLINE + self._retries.proof_wait else None

    def _unknown(self, nonce: int, known: str) -> OutcomeUnknown:
        return OutcomeUnknown(self._call.method, nonce, ",".join(self._call.cl_ord_ids), known)

    def _sent_at(self) -> CallFlow[float]:
        """Return when the call was sent, by the Redis server's clock: a nonce may be ahead of that."""
        state = yield from running(commands.inspect(self._lock.keys))
        return state.now / 1e9 - (clock.now() - self._started)

    def _settling(
        self,
        ids: tuple[str, ...],
        opened: float | None,
        lost: int,
        until_proof: Callable[[], float | None] = lambda: None,
        *,
        hasty: bool = False,
    ) -> CallFlow[Settlement]:
        """Ask Kraken's lists what became of orders; ``lost`` is their nonce at most, the rest as for `settling`."""
        waits = self._calls.retries.settle_waits

        def fencing() -> CallFlow[Fence]:
            return self._fencing(lost)

        return settling(
            self._asking,
            self._pausing,
            fencing,
            ids,
            opened=opened,
            waits=waits,
            hasty=hasty,
            until_proof=until_proof,
        )

    def _asking_for_window(self) -> CallFlow[tuple[int | None, Heard]]:
        """Ask Kraken for the nonce window, in ns; None if it can't be known now."""
        heard = yield from self._asking("GetApiKeyInfo", {})
        return self._calls.learn_window(self._call.key, self._lock.keys.state, heard), heard

    def _fencing(self, lost: int) -> CallFlow[Fence]:
        """Let a request with a nonce be too late once one of the next questions is accepted."""
        window, heard = yield from self._asking_for_window()
        if window is None:
            refused = heard.verdict.outcome is Outcome.NOT_CARRIED_OUT
            return Fence(trouble=f"GetApiKeyInfo: {heard.reason}", again=True, stop=refused)
        try:
            # Counted from the lost nonce: from the last one, the lead would pile up.
            yield from self._lease.above(lost + window, round(self._retries.max_lead * 1e9))
        except NonceTooFarAhead as error:
            return Fence(trouble=f"the nonce window is {window / 1e9:g} s; {error}")
        return Fence(accepted=window == 0 and heard.verdict.outcome is Outcome.CARRIED_OUT)

    def _may_replay(self) -> CallFlow[bool]:
        """Return whether the same bytes may be sent twice. Raises `InvalidArgument` if the API key has a nonce window.

        Inside of one, Kraken might accept them twice.
        """
        asked, window = self._calls.windows.get(self._call.key, (None, None))
        if asked is None or clock.now() - asked > _WINDOW_KNOWN_FOR:
            self._lease.grant.record = self._lease.grant.record.begun()
            window, _ = yield from self._asking_for_window()
        if window:
            raise _no_replay(window)
        return window == 0

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
            lost = entry.nonce + commands.BLOCK - 1
            settlement = yield from self._settling(entry.cl_ord_ids, opened, lost, hasty=True)
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


def _no_replay(window: int) -> InvalidArgument:
    return InvalidArgument(
        "on_unknown",
        f"'replay' is not for an API key with a nonce window, here {window} ns: inside of it, Kraken might accept the "
        "same request twice. Use 'settle', or set the key's window to 0 at Kraken",
    )


def _settled(
    call: Call | Pending,
    nonce: int,
    outcome: Result,
    txids: Mapping[str, str],
    *,
    inherited: bool,
    proved: bool = False,
) -> OrderSettled:
    """Return the event. Whoever tells the same of a call gives it the same id."""
    name = _id(call, nonce, outcome)
    return OrderSettled(call.key, call.method, nonce, call.cl_ord_ids, outcome, txids, inherited, proved, id=name)


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
