"""What a check of an account finds: steps, causes of failure, and what to do about them; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from kraken_nonce_redis import _kraken as kraken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Step: TypeAlias = Literal[
    "configuration",
    "connection",
    "redis",
    "clock",
    "private call",
    "nonce",
    "nonce window",
    "permissions",
    "balances",
]
State: TypeAlias = Literal["ok", "warning", "failed"]
Cause: TypeAlias = kraken.Cause | Literal["configuration", "network", "clock", "redis", "lock"]

STEPS: Final[tuple[Step, ...]] = (
    "connection",
    "redis",
    "clock",
    "private call",
    "nonce",
    "nonce window",
    "permissions",
    "balances",
)
"""What is tried for an account that is configured rightly, in this order."""

ADVICE: Final[Mapping[Cause, str]] = {
    "configuration": "correct what it names, then check again",
    "network": "look at this machine's network, proxy, DNS and firewall, and at the URL",
    "clock": "let NTP set the clock of the Redis server, then check again",
    "redis": "start Redis if it is down, and correct URL, password and permissions; kraken-nonce doctor says more",
    "key": "compare the API key with the one at Kraken: is it whole, not deleted or expired, and not its secret?",
    "secret": "copy the secret again, whole; it must be the one that was shown together with this API key",
    "permission": "give the API key the permission for it in its settings at Kraken",
    "nonce": "stop every other program that uses the API key",
    "lock": "kraken-nonce status shows the holder of the lock; wait for it, or run kraken-nonce unlock if it is dead",
    "rate limit": "wait, and give all programs on the key a pace with the account's tier",
    "lockout": "stop all programs at this address for 15 minutes, and correct the bad key that led to it",
    "kraken": "see status.kraken.com, and try again later",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one step has shown.

    Attributes:
        step: what was tried.
        state: ``"failed"`` makes the account fail, ``"warning"`` doesn't.
        text: what was seen, in words.
        cause: of a failure.
        advice: what to do, in one line.
        data: what was seen, for programs.
    """

    step: Step
    state: State
    text: str
    cause: Cause | None = None
    advice: str = ""
    data: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Report:
    """What the check of one account has shown, step by step."""

    account: str
    findings: tuple[Finding, ...]

    @property
    def failure(self) -> Finding | None:
        """The first step that failed."""
        return next((finding for finding in self.findings if finding.state == "failed"), None)

    def as_data(self) -> dict[str, object]:
        """Return it for programs; a step that was not tried is null."""
        failure = self.failure
        steps: dict[str, Any] = dict.fromkeys(STEPS)
        for finding in self.findings:
            why = {"cause": finding.cause, "advice": finding.advice} if finding.advice else {}
            steps[finding.step] = {"state": finding.state, "text": finding.text, **why, **finding.data}
        return {
            "account": self.account,
            "ok": failure is None,
            "cause": failure.cause if failure else None,
            "advice": failure.advice if failure else None,
            "steps": steps,
        }


def failed(step: Step, cause: Cause, text: str, advice: str = "") -> Finding:
    """Return a failure, with what usually helps unless it is given."""
    return Finding(step, "failed", text, cause, advice or ADVICE[cause])


def cause_of(errors: Iterable[str]) -> Cause:
    """Return what is wrong, from the errors in Kraken's answer."""
    causes = {kraken.meaning_of(error).cause for error in errors}
    for cause in kraken.CAUSES:
        if cause in causes:
            return cause
    return "kraken"
