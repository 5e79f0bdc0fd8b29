"""What a call has to tell to hooks and the log once the lock is released; no I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kraken_nonce_redis._core.lock import logger
from kraken_nonce_redis.events import (
    OrderSettled,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._calls.call import Call
    from kraken_nonce_redis._redis.commands import Pending, Result
    from kraken_nonce_redis.events import Event


@dataclass(frozen=True, slots=True)
class News:
    """What a call has to tell once the lock is released.

    Attributes:
        event: the event.
        entry: the nonce of the journal's entry that it is about; None for no entry that is still to be changed.
        then: what becomes of the entry when it is told.
    """

    event: Event
    entry: int | None = None
    then: Literal["known", "reported"] = "known"


def settled(
    call: Call | Pending,
    nonce: int,
    outcome: Result,
    txids: Mapping[str, str],
    *,
    inherited: bool,
    proved: bool = False,
) -> OrderSettled:
    """Return the event. Whoever tells the same of a call gives it the same id."""
    name = id_of(call, nonce, outcome)
    return OrderSettled(call.key, call.method, nonce, call.cl_ord_ids, outcome, txids, inherited, proved, id=name)


def id_of(call: Call | Pending, nonce: int, what: str) -> str:
    """Return the id of the event that says ``what`` of a call."""
    return hashlib.sha256(f"{call.key} {nonce} {what}".encode()).hexdigest()[:32]


def warn(call: Call | Pending, nonce: int, known: str) -> None:
    """Log what is known of a call."""
    ids = f", cl_ord_id {','.join(call.cl_ord_ids)}" if call.cl_ord_ids else ""
    logger.warning("%s (nonce %d%s): %s", call.method, nonce, ids, known)
