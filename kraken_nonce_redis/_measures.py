"""What a process measures of its events: the metrics, and what an event adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis import events

if TYPE_CHECKING:
    from collections.abc import Callable

OTHER: Final = "other"
"""The label of what is not known, so that there are never more labels than this library knows names."""

_WAITS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CALLS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, eq=False)
class Metric:
    """A counter, or a histogram of seconds.

    Attributes:
        name: what it counts, or what takes the seconds.
        text: the same in words.
        labels: what it is counted by.
        bounds: of the buckets of a histogram, in seconds; a counter has none.
    """

    name: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


CALLS: Final = Metric("calls", "Requests to Kraken, by method and outcome.", ("method", "outcome"))
REFUSALS: Final = Metric("refusals", "Requests that Kraken refused, by error.", ("error",))
RETRIES: Final = Metric("retries", "Calls made once more, by the reason.", ("reason",))
TIMEOUTS: Final = Metric("lock_timeouts", "Callers that did not get the lock in time, by error.", ("error",))
STORE_ERRORS: Final = Metric("store_errors", "Commands to Redis that failed, by error.", ("error",))
NEWS: Final = Metric("events", "Events that are worth knowing, such as lost state, by kind.", ("event",))
WAIT: Final = Metric("lock_wait", "How long callers waited for the lock.", bounds=_WAITS)
HOLD: Final = Metric("lock_hold", "How long holders held the lock.", bounds=_WAITS)
CALL: Final = Metric("call", "How long requests to Kraken took.", bounds=_CALLS)

METRICS: Final = (CALLS, REFUSALS, RETRIES, TIMEOUTS, STORE_ERRORS, NEWS, WAIT, HOLD, CALL)

if TYPE_CHECKING:
    Add: TypeAlias = Callable[[Metric, float, tuple[str, ...]], object]
    """Adds an amount to a counter, or a number of seconds to a histogram, with the values of its labels."""

_ERRORS: Final = {
    beginning: f"{beginning}{OTHER}" if beginning.endswith(":") else beginning or OTHER
    for beginning, _ in kraken.ERRORS
}
_METHODS: Final = frozenset(method.name for method in kraken.METHODS)
NO_ANSWER: Final = "no answer"


def label_of_error(error: str) -> str:
    """Return the label for one of Kraken's errors."""
    said = kraken.plain(error)
    return next(label for beginning, label in _ERRORS.items() if said.startswith(beginning))


def error_labels() -> frozenset[str]:
    """Return all labels for Kraken's errors."""
    return frozenset(_ERRORS.values())


def label_of_method(method: str) -> str:
    """Return the label for one of Kraken's methods."""
    return method if method in _METHODS else OTHER


def _granted(event: events.LockGranted, add: Add) -> None:
    add(WAIT, event.wait, ())


def _released(event: events.LockReleased, add: Add) -> None:
    add(HOLD, event.held, ())


def _timed_out(event: events.WaitTimedOut, add: Add) -> None:
    add(TIMEOUTS, 1, (event.error,))


def _ended(event: events.CallEnded, add: Add) -> None:
    add(CALLS, 1, (label_of_method(event.method), event.outcome))
    if event.outcome != "not sent":
        add(CALL, event.seconds, ())


def _refused(event: events.CallRefused, add: Add) -> None:
    for label in dict.fromkeys(map(label_of_error, event.errors)):
        add(REFUSALS, 1, (label,))


def _tried_again(event: events.CallTriedAgain, add: Add) -> None:
    add(RETRIES, 1, (label_of_error(event.errors[0]) if event.errors else NO_ANSWER,))


def _failed(event: events.StoreFailed, add: Add) -> None:
    add(STORE_ERRORS, 1, (event.error,))


_MEASURED: Final[dict[type[events.Event], Callable[[Any, Add], None]]] = {
    events.LockGranted: _granted,
    events.LockReleased: _released,
    events.WaitTimedOut: _timed_out,
    events.CallEnded: _ended,
    events.CallRefused: _refused,
    events.CallTriedAgain: _tried_again,
    events.StoreFailed: _failed,
}


def measure(event: events.Event, add: Add) -> None:
    """Add to the metrics what an event says."""
    if (of_a_step := _MEASURED.get(type(event))) is not None:
        of_a_step(event, add)
    elif isinstance(event, events.News):
        add(NEWS, 1, (type(event).__name__,))
