"""Who is told of an event: the log, the observers, and of news the hooks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from kraken_nonce_redis import events
from kraken_nonce_redis._logging import level_of, log, logger
from kraken_nonce_redis.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis.events import Event, Hook, News, Step


_observing: Final[set[int]] = set()
"""The threads, or greenlets, that are telling observers."""
_observers: Final = events._observers  # noqa: SLF001 - the two modules are halves of one thing
_hooks: Final = events._hooks  # noqa: SLF001


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
        log(event)
        for observer in list(_observers):
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - whatever it is, it must not strike the caller
                logger.exception("An observer failed for a %s", type(event).__name__)
    finally:
        _observing.discard(thread)


def tell(event: News, hook: Hook | None = None) -> None:
    """Give news to the process's hook and to an object's."""
    for each in (*_hooks, hook):
        if each is not None:
            try:
                each(event)
            except Exception:  # noqa: BLE001 - whatever it is, it must not strike the caller
                logger.exception("on_event failed for a %s", type(event).__name__)


def announce(event: News, later: Callable[[Callable[[], object]], object], hook: Hook | None = None) -> None:
    """Note news, and give it to the hooks outside of the caller, by ``later``."""
    note(event)
    if _hooks or hook is not None:
        later(lambda: tell(event, hook))
