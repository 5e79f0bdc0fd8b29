"""What is asked of Kraken under a lease to find out what became of a call, and what is learned from answers; no I/O."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypedDict

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis import events
from kraken_nonce_redis._calls.news import note
from kraken_nonce_redis._calls.settling import Fence, Settlement, looking_once, settling
from kraken_nonce_redis._core.lease import logger
from kraken_nonce_redis._core.steps import Send, Sleep, running
from kraken_nonce_redis._kraken import Outcome
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.errors import NonceTooFarAhead, StoreError
from kraken_nonce_redis.pace import tell_a_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kraken_nonce_redis._calls.call import Call, Heard
    from kraken_nonce_redis._calls.calls import Calls
    from kraken_nonce_redis._calls.news import News
    from kraken_nonce_redis._calls.outcomes import TurnedAway
    from kraken_nonce_redis._core.lease import LeaseCore
    from kraken_nonce_redis._core.lock import LockCore
    from kraken_nonce_redis._core.steps import CallFlow

_OUTCOMES: Final[dict[Outcome, events.CallOutcome]] = {
    Outcome.CARRIED_OUT: "carried out",
    Outcome.NOT_CARRIED_OUT: "refused",
    Outcome.UNKNOWN: "unknown",
}
_WAITED_OUT: Final = 10.0
"""Longest Retry-After in seconds that is waited for with the lock held."""
_LONGEST_DEADLINE: Final = 65.0
"""Seconds from now to the latest deadline that Kraken can have taken, with a margin for its clock."""


class Who(TypedDict):
    """Whom an event of a call is about, as its attributes say it."""

    key: str
    name: str
    method: str


class Questions:
    """Asks Kraken under the lease of a call.

    Attributes:
        calls: how the client's calls are made.
        lock: that of the API key.
        lease: of the lock.
        call: for which it was taken.
        news: gets what is to be told.
        turned_away: what came in place of the latest answer, if that was a page with the status 429.
    """

    def __init__(self, calls: Calls, lock: LockCore[Any], lease: LeaseCore, call: Call, news: list[News]) -> None:
        self.calls: Final = calls
        self.lock: Final = lock
        self.lease: Final = lease
        self.call: Final = call
        self.news: Final = news
        self.turned_away: TurnedAway | None = None
        self._settled: dict[tuple[str, ...], tuple[int, Settlement]] = {}
        """What was found out under this lease, by cl_ord_ids, with the highest nonce that it holds for."""

    def hearing(self, step: Send) -> CallFlow[Heard]:
        """Send a request, and learn from the answer what time it is at Kraken."""
        sent = clock.now()
        self.step(events.CallSent, step.method, nonce=step.nonce)
        try:
            heard: Heard = yield step
        except BaseException as error:
            self._ended(step, sent, "not sent" if isinstance(error, Exception) and not step.left else "unknown")
            raise
        self.calls.exchange_clock.learn(sent, clock.now(), heard.date)
        outcome = _OUTCOMES[heard.verdict.outcome]
        self._ended(step, sent, "not sent" if outcome == "refused" and heard.answer is None else outcome)
        if heard.errors:
            self.step(events.CallRefused, step.method, nonce=step.nonce, errors=heard.errors)
        return heard

    def step(self, kind: type[events.Step], method: str, **attributes: Any) -> None:
        """Tell of a step of a call, if anybody hears of it."""
        if telling.wanted(kind):
            telling.note(kind(**self.who(method), **attributes))

    def _ended(self, step: Send, sent: float, outcome: events.CallOutcome) -> None:
        if telling.wanted(events.CallEnded):
            seconds = clock.now() - sent
            since = time.time() - seconds
            telling.note(
                events.CallEnded(
                    **self.who(step.method), since=since, nonce=step.nonce, outcome=outcome, seconds=seconds
                )
            )

    def who(self, method: str) -> Who:
        """Return whom an event of a call is about."""
        return {"key": self.call.key, "name": self.lock.name, "method": method}

    def asking(self, method: str, params: Mapping[str, Any]) -> CallFlow[Heard]:
        """Make a reading call with a later nonce."""
        lease, seconds = self.lease, self.call.seconds
        if "otp" in self.call.params:
            params = {**params, "otp": self.call.params["otp"]}
        yield from lease.lasting(seconds)
        nonce = lease.next_nonce()
        heard = yield from self.hearing(Send(method, params, nonce, lease, seconds))
        yield from self.learning(method, nonce, heard)
        return heard

    def pausing(self, seconds: float) -> CallFlow[None]:
        """Sleep with the lock held."""
        yield from self.lease.lasting(seconds + self.call.seconds)
        yield Sleep(seconds)

    def waiting_out(self) -> CallFlow[bool]:
        """Wait until something may be sent again; return whether it may under this lease.

        It may not if the latest answer was a page with the status 429 and a longer ``Retry-After``, or none.
        """
        if self.turned_away is None:
            return True
        wait = self.turned_away.retry_after
        if wait is None or wait > _WAITED_OUT:
            return False
        yield from self.pausing(wait)
        self.turned_away = None
        return True

    def learning(self, method: str, nonce: int, heard: Heard) -> CallFlow[None]:
        """Take note of warnings, and start a cool-down if what came asks for one."""
        keys, errors, self.turned_away = self.lock.keys, heard.errors, heard.turned_away
        if heard.warnings:
            note(self.news, events.KrakenWarned(**self.who(method), nonce=nonce, warnings=heard.warnings))
        try:
            # Not by this machine's clock: if that is wrong, all the others would stop for as long.
            now = (yield from running(commands.inspect(keys))).now / 1e9 if tell_a_time(errors) else None
            seconds, reason = self.calls.cool_downs.after(errors, now)
            if self.turned_away is not None:
                seconds, reason = self.calls.cool_downs.after_page(self.turned_away.retry_after), heard.reason
            if seconds > 0:
                yield from self.lock.cooling_down(seconds, reason)
        except StoreError as error:  # must not hide Kraken's answer
            logger.warning("The other processes could not be told of %s: %s", heard.reason, error)

    def settling_orders(
        self,
        ids: tuple[str, ...],
        opened: float | None,
        lost: int,
        until_proof: Callable[[], float | None] = lambda: None,
        *,
        hasty: bool = False,
    ) -> CallFlow[Settlement]:
        """Ask Kraken's lists what became of orders; ``lost`` is their nonce at most, the rest as for `settling`."""
        until, known = self._settled.get(ids, (0, None))
        if known is not None and lost <= until:
            return known
        waits = self.calls.retries.settle_waits

        def fencing() -> CallFlow[Fence]:
            return self._fencing(lost)

        settlement = yield from settling(
            self.asking,
            self.pausing,
            fencing,
            ids,
            opened=opened,
            waits=waits,
            hasty=hasty,
            until_proof=until_proof,
        )
        if settlement.outcome in {"found", "absent"}:
            self._settled[ids] = lost, settlement
        return settlement

    def looking_once(self, cl_ord_id: str) -> CallFlow[Settlement]:
        """Ask Kraken's lists once whether an order is there, as `settling.looking_once`."""
        return looking_once(self.asking, cl_ord_id)

    def until_proof(self, deadline: float | None) -> Callable[[], float | None]:
        """Return what tells the seconds until a look proves the absence of an order with a deadline, as for `settling`.

        The deadline is in Unix seconds by Kraken's clock, None for none.
        """

        def until() -> float | None:
            now, proof_wait = self.calls.exchange_clock.earliest(), self.calls.retries.proof_wait
            if deadline is None or now is None:
                return None
            wait = deadline - now + proof_wait
            return wait if wait <= _LONGEST_DEADLINE + proof_wait else None

        return until

    def asking_for_window(self) -> CallFlow[tuple[int | None, Heard]]:
        """Ask Kraken for the nonce window, in ns; None if it can't be known now."""
        heard = yield from self.asking("GetApiKeyInfo", {})
        return self.calls.learn_window(self.call.key, self.lock.keys.state, heard), heard

    def _fencing(self, lost: int) -> CallFlow[Fence]:
        """Let a request with a nonce be too late once one of the next questions is accepted."""
        window, heard = yield from self.asking_for_window()
        if window is None or heard.turned_away is not None:
            stop = heard.verdict.outcome is Outcome.NOT_CARRIED_OUT or heard.turned_away is not None
            return Fence(trouble=f"GetApiKeyInfo: {heard.reason}", again=True, stop=stop)
        try:
            # Counted from the lost nonce: from the last one, the lead would pile up.
            yield from self.lease.above(lost + window, round(self.calls.retries.max_lead * 1e9))
        except NonceTooFarAhead as error:
            return Fence(trouble=f"the nonce window is {window / 1e9:g} s; {error}")
        return Fence(accepted=window == 0 and heard.verdict.outcome is Outcome.CARRIED_OUT)
