"""What the adapters for clients that send by requests have in common."""

from __future__ import annotations

from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from kraken_nonce_redis import _process
from kraken_nonce_redis.errors import IncompatibleClient

Timeout: TypeAlias = float | tuple[float, float]
"""Seconds; a pair is for connecting and for reading."""


_POOLS: Final = 10  # as requests has it
_users: Final[WeakKeyDictionary[Any, _process.Process]] = WeakKeyDictionary()


def take_into_use(session: Any) -> None:
    """Give a session of requests new connections if this process has not used it yet.

    After a fork it would share its parent's connections, and two processes that send over one connection get each
    other's answers.
    """
    adapters = getattr(session, "adapters", None)
    if adapters is None or _users.get(session) is _process.current():
        return
    for adapter in adapters.values():
        managers: list[Any] = [getattr(adapter, "poolmanager", None), *getattr(adapter, "proxy_manager", {}).values()]
        for manager in managers:
            pools = getattr(manager, "pools", None)
            if manager is not None and pools is not None:
                # The old ones are dropped, not cleared: their lock may have been in use in the parent when it forked.
                manager.pools = type(pools)(getattr(adapter, "_pool_connections", _POOLS))
    _users[session] = _process.current()


def refuse_repeats(session: Any, url: str) -> None:
    """Make sure that a session of requests sends a request once. Raises `IncompatibleClient`.

    A transport that repeats a POST by itself makes an order's second copy look like one that was refused for its nonce,
    so that it would be made once more.
    """
    try:
        retry = session.get_adapter(url).max_retries
        # It has no public question for a failure without a status.
        repeats = retry.is_retry("POST", 503) or (retry.total and retry._is_method_retryable("POST"))  # noqa: SLF001
    except AttributeError:
        return  # not of requests; it may have no such thing
    if repeats:
        raise IncompatibleClient(
            type(session).__qualname__,
            "it repeats POST requests by itself (urllib3's Retry with allowed_methods), so an order could be placed "
            "twice; mount an adapter that does not, and leave repeating to retries",
        )


def longest(timeout: Timeout) -> float:
    """Return the seconds that a request may take at most: connecting and reading count apart."""
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    return connect + read
