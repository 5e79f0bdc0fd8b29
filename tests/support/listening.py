"""Hearing of events in tests: an observer of this process that keeps what it gets."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from kraken_nonce_redis import events
from tests.support.helpers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

E = TypeVar("E", bound=events.Event)


class Listener:
    """What was told, to an observer and to the process's hook.

    Attributes:
        everything: all events, in order.
        news: those that the hook got.
    """

    def __init__(self) -> None:
        self.everything: list[events.Event] = []
        self.news: list[events.News] = []

    @property
    def told(self) -> list[events.Event]:
        """All events, in order, but for failures of commands to Redis.

        Another test's server may be gone, and what that test has left to the background fails.
        """
        return [event for event in list(self.everything) if not isinstance(event, events.StoreFailed)]

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of a kind."""
        return [event for event in list(self.everything) if isinstance(event, kind)]

    def one(self, kind: type[E]) -> E:
        """Wait for the event of a kind, of which there is one, and return it."""
        eventually(lambda: self.of(kind))
        [event] = self.of(kind)
        return event

    def kinds(self) -> list[type[events.Event]]:
        """Return the kinds of what was told, in order."""
        return [type(event) for event in self.told]


@contextlib.contextmanager
def listening() -> Iterator[Listener]:
    """Hear of all events of this process."""
    listener = Listener()
    events.add_observer(listener.everything.append)
    events.set_hook(listener.news.append)
    try:
        yield listener
    finally:
        events.set_hook(None)
        events.remove_observer(listener.everything.append)
