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

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process, events
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis._calls.attempt import Attempt, no_replay
from kraken_nonce_redis._calls.call import Call, Heard
from kraken_nonce_redis._calls.exchange_clock import ExchangeClock
from kraken_nonce_redis._calls.once import PARAMETER
from kraken_nonce_redis._calls.outcomes import is_final_refusal, window_in
from kraken_nonce_redis._core.lease import logger
from kraken_nonce_redis._core.steps import Sleep, check_patience, running
from kraken_nonce_redis._core.wishes import Wishes
from kraken_nonce_redis._kraken import Outcome, Remedy
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis.errors import CoolDown, HoldTimeout, InvalidArgument, StoreError
from kraken_nonce_redis.pace import CoolDowns, priority_of
from kraken_nonce_redis.retries import Retries

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import DeadlineOf, OnAbsent, OnUnknown
    from kraken_nonce_redis._calls.news import News
    from kraken_nonce_redis._core.lock import LockCore
    from kraken_nonce_redis._core.steps import CallFlow, Flow
    from kraken_nonce_redis.events import Hook
    from kraken_nonce_redis.pace import Pace

ON_UNKNOWN: Final = ("settle", "raise", "replay")
ON_ABSENT: Final = ("raise", "resend")


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
            raise InvalidArgument("on_unknown", f"must be one of {', '.join(ON_UNKNOWN)}")
        self.retries: Final = arguments.instance("retries", retries, Retries) or Retries()
        self.on_unknown: Final = on_unknown
        self.cool_downs: Final = arguments.instance("cool_downs", cool_downs, CoolDowns) or CoolDowns()
        self._wait_timeout = arguments.timeout(wait_timeout, "wait_timeout")
        self._patience = arguments.timeout(patience, "patience")
        self._nonce_window = (
            None if nonce_window is None else arguments.whole("nonce_window", nonce_window, 0, arguments.LONGEST_LEAD)
        )
        if on_unknown == "replay" and nonce_window:
            raise no_replay(nonce_window)
        if deadline not in {None, "auto"}:
            raise InvalidArgument("deadline", "must be 'auto' or None")
        self.deadline: Final = deadline
        if on_absent not in ON_ABSENT:
            raise InvalidArgument("on_absent", f"must be one of {', '.join(ON_ABSENT)}")
        if on_absent == "resend" and (deadline != "auto" or on_unknown != "settle"):
            raise InvalidArgument("on_absent", "'resend' needs deadline='auto' and on_unknown='settle'")
        self.on_absent: Final = on_absent
        self.exchange_clock: Final = ExchangeClock()
        self.windows: dict[str, tuple[float, int]] = {}
        """By API key, when its nonce window was asked for, on `clock.now`, and the window in ns."""
        self._pace = pace
        self._on_event = events.checked(on_event)
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
        if call.once is not None and self.on_unknown != "settle":
            raise InvalidArgument(PARAMETER, f"needs on_unknown='settle', not {self.on_unknown!r}")
        news: list[News] = []
        closed = False
        answered: list[Attempt] = []
        try:
            return (yield from self._trying(lock, owner, call, news, answered))
        except GeneratorExit:
            closed = True  # nothing can be said to Redis any more: the next holder tells it once more
            raise
        finally:
            try:
                yield from self._telling(lock, news, closed=closed)
            except BaseException as error:
                for attempt in answered:
                    attempt.tell_of_lost_answer(error)
                for each in news:
                    telling.tell(each.event, self._on_event)
                raise

    def _trying(
        self, lock: LockCore[Any], owner: object, call: Call, news: list[News], answered: list[Attempt]
    ) -> CallFlow[Heard]:
        until = None if self._wait_timeout is None else clock.now() + self._wait_timeout
        latest = self.latest(call)
        check_patience(call.method, latest)
        until = latest if until is None else until if latest is None else min(until, latest)
        last: Heard | CoolDown | None = None
        attempts = 0
        while True:
            attempt = Attempt(self, lock, call, news, first=not isinstance(last, Heard))
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
                said = attempt.refusal or last
                if not isinstance(said, Heard) or (attempt.begun and not attempt.is_late):
                    raise
                return said
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
                answered.append(attempt)
                return last
            yield from self._telling(lock, news)
            if telling.wanted(events.CallTriedAgain):
                telling.note(
                    events.CallTriedAgain(
                        key=call.key,
                        name=lock.name,
                        method=call.method,
                        reason=made.reason,
                        errors=made.errors if isinstance(made, Heard) else (),
                        wait=wait,
                    )
                )
            yield Sleep(wait)

    def _wait(self, made: Heard | CoolDown, attempts: int, until: float | None) -> float | None:
        """Return the seconds until the next attempt; None if there is to be none."""
        if isinstance(made, Heard) and made.verdict.remedy is Remedy.NONE:
            return None
        wait = self.retries.wait(attempts)
        return None if wait is None or (until is not None and clock.now() + wait > until) else wait

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
                telling.tell(each.event, self._on_event)
            if not closed:
                for each in news:
                    if each.entry is not None:
                        yield from running(journal.settle(lock.keys, each.entry, each.then))
        except StoreError as error:
            logger.warning("What was told of %s is still in the journal, and is told again: %s", lock.keys.state, error)
        finally:
            for each in news:
                _process.current().telling.discard((lock.keys.state, each.entry))
            news.clear()
