"""Events that are worth knowing beside the result of a call: one frozen dataclass for each kind, given to hooks.

A hook is passed to an object as ``on_event``, or to `set_hook` for all objects of the process. It runs in the thread or
task that makes the call, after the call has released the lock, so it may make calls of its own. The call returns only
after its hooks, so keep them short. An event that is noticed outside of a call, such as by the answer to a release,
comes from a separate thread or from the event loop. An exception from a hook is logged. No event carries an API key, a
secret or an amount.
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
    """The attributes of all events.

    Attributes:
        id: unique to this event; the same when hooks get an event twice, also in two processes.
        time: when it was noticed, by the clock of this machine, in seconds since 1970.
        key: digest of the API key, as in Redis; ``"global"`` for a lock over all keys.
    """

    key: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex, kw_only=True)
    time: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True)
class OrderSettled(_Event):
    """Kraken was asked about a call with an unknown outcome, of this process or of one that is gone.

    Of a call of another process hooks may hear twice, when the first process to tell it was killed or slow. Both events
    have the same ``id``.

    Attributes:
        method: Kraken's name.
        nonce: of the call, ns since 1970.
        cl_ord_ids: of the orders that it should place.
        outcome: ``"found"``: all of them were placed. ``"absent"``: none was placed, nor will be by this request; a
            caller that is still alive may make its call again. ``"partly"``: only those in ``orders`` were placed.
            ``"unknown"``: it could not be found out, or not for this method; the call stays listed by
            ``kraken-nonce pending``.
        orders: Kraken's txid for each cl_ord_id that was found.
        inherited: whether an earlier holder made the call.
        proved: for ``"absent"``, whether that is proved: the order's deadline was over when Kraken's lists were looked
            at for the last time, ``proof_wait`` after it. Else it rests on Kraken listing orders within the looks.
    """

    method: str
    nonce: int
    cl_ord_ids: tuple[str, ...]
    outcome: Literal["found", "absent", "partly", "unknown"]
    orders: Mapping[str, str]
    inherited: bool
    proved: bool = False


@dataclass(frozen=True)
class CallForgotten(_Event):
    """A call that was told with the outcome ``"unknown"`` is no longer listed by ``kraken-nonce pending``.

    The newest 1,000 of them are kept for 30 days. Look it up at Kraken, if nobody has.

    Attributes:
        method: Kraken's name.
        nonce: of the call, ns since 1970.
        cl_ord_ids: of the orders that it should place.
    """

    method: str
    nonce: int
    cl_ord_ids: tuple[str, ...]


@dataclass(frozen=True)
class NonceRaised(_Event):
    """Kraken refused a fresh nonce, so the last nonce was raised for all who share the key.

    Attributes:
        refused: the nonce that Kraken refused, ns since 1970.
        lead: seconds, at least, by which the nonce is now ahead of the server's clock.
    """

    refused: int
    lead: float


@dataclass(frozen=True)
class LeaseEndedEarly(_Event):
    """A lease ended before its term was over and before its holder released it.

    Redis lost it (FLUSHALL, a failover), or ``kraken-nonce unlock`` ended it. Another caller may have held the lock in
    the meantime.

    Attributes:
        nonce: the first nonce of the lease, ns since 1970.
    """

    nonce: int


@dataclass(frozen=True)
class KrakenWarned(_Event):
    """Kraken's answer had warnings. If it had no error, the client's code got it without them.

    Attributes:
        method: Kraken's name.
        nonce: of the request, ns since 1970.
        warnings: as Kraken has them, such as ``"WGeneral:..."``.
    """

    method: str
    nonce: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ResultMissing(_Event):
    """Kraken's answer to a call that changes something had neither an error nor a result; your client got it so.

    What became of an order (AddOrder, AddOrderBatch) is looked up instead, and told by `OrderSettled`.

    Attributes:
        method: Kraken's name.
        nonce: of the request, ns since 1970.
    """

    method: str
    nonce: int


Event: TypeAlias = OrderSettled | CallForgotten | NonceRaised | LeaseEndedEarly | KrakenWarned | ResultMissing
Hook: TypeAlias = Callable[[Event], object]

_of_process: list[Hook] = []


def set_hook(hook: Hook | None) -> None:
    """Set the hook for the events of all objects of this process, besides their own hooks; None removes it.

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
