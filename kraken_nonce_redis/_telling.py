"""Who is told of an event: the log, the observers, and of news the hooks."""

from __future__ import annotations

import contextlib
import threading
from asyncio import CancelledError
from typing import TYPE_CHECKING, Final, TypeVar

from kraken_nonce_redis import events
from kraken_nonce_redis._logging import level_of, log, logger
from kraken_nonce_redis.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis.events import Event, Hook, News, Step

T = TypeVar("T")


_observing: Final[set[int]] = set()
"""The threads, or greenlets, that are telling observers."""
_observers: Final = events._observers  # noqa: SLF001 - the two modules are halves of one thing
_hooks: Final = events._hooks  # noqa: SLF001
_STRAY: Final = (Exception, SystemExit, CancelledError)
"""What must not strike the caller. The others come from outside: Ctrl-C, or the end of a greenlet."""


def wanted(kind: type[Step], wait: float = 0.0) -> bool:
    """Return whether anybody hears of steps of a kind, so that they need be made; ``wait`` as for `level_of`."""
    return bool(_observers) or logger.isEnabledFor(level_of(kind, wait))


def refuse_observers(operation: str, key: str) -> None:
    """Raise `StoreError` if an observer asks for something: it may be in the middle of another one's call."""
    if _observing and threading.get_ident() in _observing:
        raise StoreError(operation, key, "an observer of events must not use locks or nonces")


def note(event: Event) -> None:
    """Log an event and give it to the observers, at once."""
    thread = threading.get_ident()
    if thread in _observing:
        return  # a signal has interrupted an observer
    try:
        _observing.add(thread)
        _give(event, log, "The log")
        for observer in list(_observers):
            _give(event, observer, "An observer")
    finally:
        _observing.discard(thread)


def tell(event: News, hook: Hook | None = None) -> None:
    """Give news to the process's hook and to an object's."""
    for each in (*_hooks, hook):
        if each is not None:
            _give(event, each, "on_event")


def announce(event: News, later: Callable[[Callable[[], object]], object], hook: Hook | None = None) -> None:
    """Note news, and give it to the hooks outside of the caller, by ``later``."""
    note(event)
    if _hooks or hook is not None:
        later(lambda: tell(event, hook))


def _give(event: T, listener: Callable[[T], object], name: str) -> None:
    """Give an event to a listener; log its failure, if a filter or handler of the log does not fail as well."""
    try:
        listener(event)
    except _STRAY:
        with contextlib.suppress(*_STRAY):
            logger.exception("%s failed for a %s", name, type(event).__name__)
