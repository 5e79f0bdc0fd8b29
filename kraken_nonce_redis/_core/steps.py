"""The steps of all flows: a flow yields them, a shell carries them out and sends back the result."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis.errors import HoldTimeout, KrakenNonceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kraken_nonce_redis._core.lease import LeaseCore
    from kraken_nonce_redis._core.waiters import Waiter
    from kraken_nonce_redis._redis.command import Command

T = TypeVar("T")


@dataclass(slots=True)
class Run:
    """Run a command; its result is sent back."""

    command: Command[Any]


@dataclass(slots=True)
class Tell:
    """Hand a command to the server and go on.

    Attributes:
        command: the command.
        answered: gets its result when that comes, in the thread that reads it; must be short.
        lost: is called instead when no result comes, or one after which the command must be run again.
    """

    command: Command[Any]
    answered: Callable[[Any], object]
    lost: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Listen:
    """Make sure that this process hears when the lock is offered to one of its waiters."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Sleep until the waiter is woken, or until a time of `clock.now`."""

    waiter: Waiter
    until: float | None


@dataclass(slots=True, eq=False)
class Send:
    """Sign a request, `check` the lease, send; a `Heard` is sent back.

    Run twice with the same nonce, it sends the same bytes. Raised instead is what kept it from being sent, or whatever
    strikes in between: ``left`` tells.

    Attributes:
        method: Kraken's name.
        params: without nonce.
        nonce: for this request.
        lease: under which it is sent.
        seconds: that it takes at most.
        latest: until when on `clock.now` it may begin; None for no limit.
        left: whether it has begun to leave; set by whoever sends it.
    """

    method: str
    params: Mapping[str, Any]
    nonce: int
    lease: LeaseCore
    seconds: float
    latest: float | None = None
    left: bool = False

    def check(self, seconds: float | None = None) -> None:
        """Raise `LeaseLost` if the lease may end before the answer comes. To be called last before sending.

        ``seconds`` is how long the answer may take when there is a connection; None for all of the request. Raises
        `HoldTimeout` when it is too late for the request.
        """
        check_patience(self.method, self.latest)
        self.lease.check(self.seconds if seconds is None else seconds)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep for a number of seconds."""

    seconds: float


def check_patience(method: str, latest: float | None) -> None:
    """Raise `HoldTimeout` if a call may not begin any more."""
    if latest is not None and (late := clock.now() - latest) > 0:
        raise HoldTimeout(
            f"{method} was asked for too long ago: its patience ended {late:.3f} s ago, so it was not sent"
        )


Step: TypeAlias = Run | Tell | Listen | Pause
Flow: TypeAlias = Generator[Step, Any, T]
CallFlow: TypeAlias = Generator[Step | Send | Sleep, Any, T]


def is_interruption(error: BaseException) -> bool:
    """Return whether a flow has not failed by itself, but was interrupted, whatever the exception's base class.

    A signal handler may raise any exception at any point, such as celery's SoftTimeLimitExceeded.
    """
    return not isinstance(error, KrakenNonceError)


def running(command: Command[T]) -> Flow[T]:
    """Run one command."""
    result: T = yield Run(command)
    return result
