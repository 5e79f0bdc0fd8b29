"""What happens beside a call and is worth knowing: one frozen dataclass a kind, given to hooks.

A hook is what an object was given as ``on_event``, or what `set_hook` was given for all objects of the process. It runs
in the thread or task that makes the call, after the call has released the lock, so it may make calls of its own. The
call returns only after it: let it be short. What is noticed when no call is under way, such as the answer to a release
that nobody waited for, comes from a thread of its own or from the event loop. What a hook raises is logged. No event
carries an API key, a secret or an amount.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kraken_nonce_redis.errors import InvalidArgument

logger = logging.getLogger("kraken_nonce_redis")


@dataclass(frozen=True)
class _Event:
    """What all events have.

    Attributes:
        id: tells this event from all others; one that is told twice has the same one.
        time: when it was noticed, by the clock of this machine, in seconds since 1970.
        key: digest of the API key, as in Redis; ``"global"`` for a lock over all keys.
    """

    key: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex, kw_only=True)
    time: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True)
class OrderSettled(_Event):
    """Kraken's lists were asked about a call whose outcome nobody knew, of this process or of one that is gone.

    Attributes:
        method: Kraken's name.
        nonce: of the call, ns since 1970.
        cl_ord_ids: of the orders that it was to place.
        outcome: ``"found"``: all of them were placed. ``"absent"``: none was, nor will be by that request; a caller
            that is still alive may make its call again. ``"partly"``: those in ``orders`` were, the others not.
            ``"unknown"``: it could not be told, or the method has no way to; the call stays listed by
            ``kraken-nonce pending``.
        orders: Kraken's txid for each cl_ord_id that was found.
        inherited: whether the call was that of an earlier holder.
    """

    method: str
    nonce: int
    cl_ord_ids: tuple[str, ...]
    outcome: Literal["found", "absent", "partly", "unknown"]
    orders: Mapping[str, str]
    inherited: bool


@dataclass(frozen=True)
class NonceRaised(_Event):
    """Kraken refused a fresh nonce, so the last nonce was raised for all who share the key.

    Attributes:
        refused: the nonce that Kraken refused, ns since 1970.
        lead: seconds ahead of the server's clock that the nonce is now, at least.
    """

    refused: int
    lead: float


@dataclass(frozen=True)
class LeaseEndedEarly(_Event):
    """A lease was gone before its term was over and before its holder released it.

    Redis lost it (FLUSHALL, a failover), or somebody ended it (``kraken-nonce unlock``), so another caller may have
    held the lock meanwhile.

    Attributes:
        nonce: the first one of the lease, ns since 1970.
    """

    nonce: int


Event: TypeAlias = OrderSettled | NonceRaised | LeaseEndedEarly
Hook: TypeAlias = Callable[[Event], object]

_of_process: list[Hook] = []


def set_hook(hook: Hook | None) -> None:
    """Let a hook have the events of all objects of this process, beside their own ones; None ends that.

    Raises `InvalidArgument`.
    """
    checked(hook)
    _of_process[:] = [] if hook is None else [hook]


def checked(hook: Hook | None) -> Hook | None:
    """Return a hook or None. Raises `InvalidArgument`."""
    if hook is not None and not callable(hook):
        raise InvalidArgument("on_event", f"must be callable or None, not {hook!r}")
    return hook


def tell(event: Event, hook: Hook | None) -> None:
    """Give an event to an object's hook and to the process's."""
    for each in (*_of_process, hook):
        if each is not None:
            try:
                each(event)
            except Exception:
                logger.exception("on_event failed for a %s", type(event).__name__)
