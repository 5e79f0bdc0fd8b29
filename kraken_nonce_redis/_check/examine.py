"""Examines one account after the other: Kraken, Redis, the clocks, and what the API key may do. Needs krakenex."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from kraken_nonce_redis._arguments import DEFAULT_MAX_LEAD, LONGEST_LEAD
from kraken_nonce_redis._check.findings import ADVICE, Finding, Report, failed
from kraken_nonce_redis._check.troubles import EXPECTED, Trouble, not_kraken, result_of, trouble_of
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._texts import lead, printable, span
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.errors import StoreError
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis._arguments import Scope
    from kraken_nonce_redis._check.findings import Step
    from kraken_nonce_redis._redis.commands import State
    from kraken_nonce_redis._threads.connections import Source
    from kraken_nonce_redis.accounts import Account

T = TypeVar("T")

CALL_TIMEOUT: Final = 10.0
LOCK_WAIT: Final = 30.0
NOTABLE: Final = 1.0
"""Seconds of difference between clocks from which on it is a warning."""
INTOLERABLE: Final = 60.0
"""Seconds by which the Redis server's clock may differ from Kraken's at most."""

_HOUR: Final = 3_600 * 10**9
_JUMP: Final = 60 * 10**9

_OTHERS: Final = "stop whatever else uses the API key, with a clock or unit of its own or without this Redis"


@dataclass(frozen=True, slots=True)
class Offset:
    """By how many seconds one clock is ahead of another: somewhere in between these two."""

    low: float
    high: float

    def __sub__(self, other: Offset) -> Offset:
        return Offset(self.low - other.high, self.high - other.low)

    @property
    def least(self) -> float:
        """The difference that there is at least; negative when it is behind."""
        return max(self.low, 0.0) + min(self.high, 0.0)

    def __str__(self) -> str:
        if not self.least:
            return "as Kraken's"
        return f"{span(abs(self.least))} {'ahead of' if self.least > 0 else 'behind'} Kraken's"


class Examiner:
    """Examines accounts one by one. Only a lockout, which applies to this machine's address, ends it for all.

    Args:
        client: of the Redis to use.
        where: that Redis, in words.
        url: Kraken's address.
        scope: as in `CallLock`.
        namespace: as in `CallLock`.
        hint: returns the command line for an account's name and the words of a command.
        balances: whether to ask for balances.
        tell: is told of what takes long.
    """

    def __init__(
        self,
        client: Source,
        where: str,
        *,
        url: str,
        scope: Scope,
        namespace: str,
        hint: Callable[[str, str], str],
        balances: bool,
        tell: Callable[[str], object],
    ) -> None:
        self._client = client
        self._where = where
        self._url = url
        self._scope: Scope = scope
        self._namespace = namespace
        self._hint = hint
        self._balances = balances
        self._tell = tell
        self._locked_out = False

    def examine(self, account: Account) -> Report:
        """Examine an account; any trouble is in the report."""
        if self._locked_out:
            text = "not checked: Kraken has locked out this machine's address"
            return Report(account.name, (failed("connection", "lockout", text),))
        with contextlib.closing(self._api(account)) as api:
            keys = Keyspace.of(self._namespace, account.key, self._scope)
            inspect = functools.partial(store_for(self._client).run, commands.inspect(keys))
            report = _Examination(account, api, inspect, self._where, self._hint)
            report.run(self._tell, balances=self._balances)
        self._locked_out = any(finding.cause == "lockout" for finding in report.findings)
        return Report(account.name, tuple(report.findings))

    def _api(self, account: Account) -> API:
        api = API(
            account.key,
            account.secret,
            redis=self._client,
            scope=self._scope,
            namespace=self._namespace,
            pace=account.pace,
            wait_timeout=LOCK_WAIT,
            retries=Retries(waits=(), leads=()),  # a look changes nothing for those who trade
            call_timeout=CALL_TIMEOUT,
            base_url=self._url,
        )
        api._guard.leave_journal()  # noqa: SLF001 - no option for users, whose hooks are to hear what was settled
        return api


class _Examination:
    """The examination of one account."""

    def __init__(
        self, account: Account, api: API, inspect: Callable[[], State], where: str, hint: Callable[[str, str], str]
    ) -> None:
        self.findings: list[Finding] = []
        self._account = account
        self._api = api
        self._inspect = inspect
        self._where = where
        self._hint = hint
        # One time base, should this machine's clock be set meanwhile.
        self._began = time.time() - time.monotonic()
        self._redis_ahead = Offset(0, 0)
        self._holder = ""
        """Who held the lock when it was looked at, in words; empty if nobody did."""

    def run(self, tell: Callable[[str], object], *, balances: bool) -> None:
        """Try one step after the other, and tell before one that takes long."""
        kraken = self._step("connection", self._connection)
        here = self._step("redis", self._redis)
        if kraken is None or here is None or not self._clocks(kraken, here):
            return
        if self._holder:
            tell(f"{self._account.name}: waiting for the lock, for {LOCK_WAIT:g} s at most; {self._holder}")
        info = self._step("private call", self._key_info)
        if info is None:
            return
        self._add(Finding("private call", "ok", "accepted: key, secret and nonce are right"))
        self._step("nonce", lambda: self._nonce(info))
        self._window(info)
        self._permissions(info)
        if balances:
            self._step("balances", self._balances)

    def _now(self) -> float:
        return self._began + time.monotonic()

    # Steps

    def _connection(self) -> Offset:
        before = self._now()
        try:
            result = self._ask(self._time)
        except Trouble as trouble:
            if not trouble.lost:
                raise
            # Private calls that only read are repeated by themselves.
            before = self._now()
            result = self._ask(self._time)
        after = self._now()
        moment = result.get("unixtime")
        if not isinstance(moment, int | float):
            raise not_kraken()
        took = after - before
        self._add(Finding("connection", "ok", f"Kraken answered in {took:.2f} s", data={"seconds": round(took, 3)}))
        # Kraken's time is in whole seconds, rounded down.
        return Offset(moment - after, moment + 1 - before)

    def _time(self) -> Any:
        return self._api.query_public("Time", timeout=CALL_TIMEOUT)

    def _redis(self) -> Offset:
        before = self._now()
        state = self._look()
        after = self._now()
        text = f"answered in {after - before:.3f} s"
        if state.place is not None and state.left:
            place = state.place
            method = f" for {place.method}" if place.method else ""
            self._holder = str(self._clean(f"held by {place.name or place.member}{method}, {span(place.held)} by now"))
        if state.cool_down:
            text += f", cool-down for {span(state.cool_down)}: {state.reason}"
        if state.pending:
            hint = self._hint(self._account.name, "pending")
            text += f", {state.pending} {'call waits' if state.pending == 1 else 'calls wait'} to be settled: {hint}"
        self._add(Finding("redis", "ok", text, data={"pending": state.pending}))
        return Offset(state.now / 1e9 - after, state.now / 1e9 - before)

    def _clocks(self, kraken: Offset, redis_server: Offset) -> bool:
        """Compare the clocks; return whether a nonce can be taken from the Redis server's."""
        ahead = self._redis_ahead = redis_server - kraken
        machine = Offset(-kraken.high, -kraken.low)
        text = f"Redis server's {ahead}, this machine's {machine}"
        data = {"redis_ahead_seconds": round(ahead.least, 3), "machine_ahead_seconds": round(machine.least, 3)}
        finding = Finding("clock", "ok", text, data=data)
        if ahead.least > INTOLERABLE:
            advice = f"{ADVICE['clock']}. No nonce was taken: one from the future can't be taken back"
            finding = replace(finding, state="failed", cause="clock", advice=advice)
        elif ahead.least < -INTOLERABLE:
            finding = replace(finding, state="failed", cause="clock", advice=ADVICE["clock"])
        elif max(abs(ahead.least), abs(machine.least)) > NOTABLE:
            finding = replace(finding, state="warning", advice="let NTP set the clock")
        self._add(finding)
        return ahead.least <= INTOLERABLE

    def _key_info(self) -> dict[str, Any]:
        try:
            return self._ask(lambda: self._api.query_private("GetApiKeyInfo"))
        except Trouble as trouble:
            if trouble.cause != "nonce" or trouble.advice:
                raise
            state = self._look()
            if self._redis_ahead.least < -NOTABLE:
                raise Trouble("clock", f"{trouble.text}: the Redis server's clock is {self._redis_ahead}") from None
            hint = functools.partial(self._hint, self._account.name)
            ahead = (state.last or 0) - state.now
            where = f"our last is {state.last}, {lead(ahead)}"
            more = "" if ahead + _JUMP <= DEFAULT_MAX_LEAD else f" --max-lead {(ahead + _JUMP) // _HOUR + 1}h"
            text = f"{trouble.text}: Kraken has seen one above ours; {where}"
            advance, jump = hint("advance ITS_LAST_NONCE"), hint(f"jump 60s{more}")
            advice = (
                f"{_OTHERS}; then {advance}, or if you don't know it {jump}, and check again. If it is more than an "
                "hour ahead, replace the key at Kraken"
            )
            raise Trouble("nonce", text, advice) from None

    def _nonce(self, info: dict[str, Any]) -> None:
        state = self._look()
        last = state.last or 0
        theirs = _whole(info.get("nonce"))
        data = {
            "last": str(last),
            "lead_seconds": (last - state.now) / 1e9,
            "at_kraken": None if theirs is None else str(theirs),
        }
        finding = Finding("nonce", "ok", f"last {last}, {lead(last - state.now)}", data=data)
        if theirs is not None and theirs > last:
            ahead = theirs - state.now
            if ahead <= DEFAULT_MAX_LEAD:
                advice = f"{_OTHERS}; then {self._hint(self._account.name, f'advance {theirs}')}"
            elif ahead <= LONGEST_LEAD:
                more = f"advance {theirs} --max-lead {ahead // (3600 * 10**9) + 1}h"
                advice = f"replace the API key at Kraken; or, if you know why, {self._hint(self._account.name, more)}"
            else:
                advice = "replace the API key at Kraken: another program has driven its nonce out of reach"
            text = f"Kraken has seen {theirs}, {lead(ahead)}; our last is {last}"
            finding = replace(finding, state="failed", cause="nonce", text=text, advice=advice)
        self._add(finding)

    def _window(self, info: dict[str, Any]) -> None:
        window = _whole(info.get("nonceWindow"))
        data = {"window": None if window is None else str(window)}
        finding = Finding("nonce window", "ok", "0, as it should be", data=data)
        if window is None:
            advice = "look in the key's settings at Kraken: it must be 0"
            finding = replace(finding, state="warning", text="Kraken did not say", advice=advice)
        elif window:
            advice = (
                "set it to 0 in the key's settings at Kraken: late calls are accepted otherwise, and orders not fenced"
            )
            finding = replace(finding, state="warning", text=f"{window}", advice=advice)
        self._add(finding)

    def _permissions(self, info: dict[str, Any]) -> None:
        given = info.get("permissions")
        names = [str(name) for name in cast("list[object]", given)] if isinstance(given, list) else None
        finding = Finding("permissions", "ok", ", ".join(names or ()) or "none", data={"permissions": names})
        if names is None:
            finding = replace(finding, state="warning", text="Kraken did not say", advice="look in the key's settings")
        self._add(finding)

    def _balances(self) -> None:
        try:
            balances = self._ask(lambda: self._api.query_private("Balance"))
        except Trouble as trouble:
            if trouble.cause != "permission":
                raise
            advice = "give the API key the permission to query funds, in its settings at Kraken"
            raise Trouble("permission", f"Balance: {trouble.text}", advice) from None
        shown: list[str] = []
        for asset, amount in balances.items():
            try:
                if Decimal(amount) != 0:
                    shown.append(f"{asset} {amount}")
            except (InvalidOperation, TypeError, ValueError):
                raise not_kraken() from None
        self._add(Finding("balances", "ok", ", ".join(shown) or "nothing in it", data={"balances": balances}))

    # What they share

    def _step(self, step: Step, attempt: Callable[[], T]) -> T | None:
        """Make an attempt and return its result; None with a finding when it failed."""
        try:
            return attempt()
        except Trouble as trouble:
            where: Step = "nonce" if step == "private call" and trouble.cause == "nonce" else step
            advice, text = trouble.advice, trouble.text
            if trouble.cause == "redis":
                text = f"{text}; Redis is {self._where}"
            if trouble.cause == "lock":
                advice = (
                    f"{self._hint(self._account.name, 'status')} shows who has the lock; wait, or see that it is dead"
                )
            self._add(failed(where, trouble.cause, text, advice))
            return None

    def _add(self, finding: Finding) -> None:
        data = cast("dict[str, object]", self._clean(dict(finding.data)))
        text, advice = str(self._clean(finding.text)), str(self._clean(finding.advice))
        self.findings.append(replace(finding, text=text, advice=advice, data=data))

    def _clean(self, value: object) -> object:
        """Return what came from elsewhere without control characters, and without key and secret if they are in it."""
        if isinstance(value, str):
            for secret in (self._account.key, self._account.secret):
                value = value.replace(secret, "(hidden)")
            return printable(value)
        if isinstance(value, list):
            return [self._clean(item) for item in cast("list[object]", value)]
        if isinstance(value, dict):
            items = cast("dict[object, object]", value).items()
            return {str(self._clean(name)): self._clean(item) for name, item in items}
        return value

    def _look(self) -> State:
        try:
            return self._inspect()
        except StoreError as error:
            raise trouble_of(error) from None

    def _ask(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Make a call and return its result. Raises `Trouble`."""
        try:
            answer = call()
        except EXPECTED as error:
            raise trouble_of(error) from None
        return result_of(answer)


def _whole(value: object) -> int | None:
    """Return a whole number that Kraken may have written as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(2**64)):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
