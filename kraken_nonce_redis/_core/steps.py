"""What the flows of `kraken_nonce_redis._calls.calls` ask a client's shell to do, beside those of `waiting`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from kraken_nonce_redis._calls import outcomes
from kraken_nonce_redis._core.waiting import Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._core.lock import LeaseCore
    from kraken_nonce_redis._kraken import Verdict

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Sign a request, `check` the lease, send; a `Heard` is sent back.

    Run twice with the same nonce, it sends the same bytes. An exception other than an interruption says that nothing
    was sent.
    """

    method: str
    params: Mapping[str, Any]
    nonce: int
    lease: LeaseCore
    seconds: float

    def check(self) -> None:
        """Raise `LeaseLost` if the lease may end before the answer comes. To be called last before sending."""
        self.lease.check(self.seconds)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a request.

    Attributes:
        value: what the client returns.
        failure: what the client raises instead.
        answer: Kraken's answer, decoded from JSON; None if there was none.
    """

    value: Any = None
    failure: Exception | None = None
    answer: Mapping[str, Any] | None = None

    @property
    def errors(self) -> tuple[str, ...]:
        """Kraken's errors."""
        return () if self.answer is None else outcomes.errors_in(self.answer)

    @property
    def verdict(self) -> Verdict:
        """What this says about the call."""
        if self.answer is not None:
            return outcomes.of_answer(self.answer)
        return outcomes.of_failure(self.failure)

    @property
    def reason(self) -> str:
        """Why the call did not do, in words: Kraken's errors, or the kind of failure, whose text may hold a key."""
        if self.answer is not None:
            return ", ".join(self.errors)
        return "no answer of Kraken" if self.failure is None else f"no answer ({type(self.failure).__name__})"

    def unwrap(self) -> Any:
        """Return or raise what the client does."""
        if self.failure is not None:
            raise self.failure
        return self.value


CallFlow: TypeAlias = Generator[Step | Send | Sleep, Any, T]
