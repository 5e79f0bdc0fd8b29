"""What a call has to tell to hooks and the log once the lock is released; no I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._calls.call import Call
    from kraken_nonce_redis._redis.journal import Pending, Result


@dataclass(frozen=True, slots=True)
class News:
    """What a call has to tell once the lock is released.

    Attributes:
        event: the event.
        entry: the nonce of the journal's entry that it is about; None for no entry that is still to be changed.
        then: what becomes of the entry when it is told.
    """

    event: events.News
    entry: int | None = None
    then: Literal["known", "reported"] = "known"


def note(news: list[News], event: events.News, entry: int | None = None, *, reported: bool = False) -> None:
    """Log an event and give it to the observers, and let the hooks hear of it once the lock is released."""
    telling.note(event)
    news.append(News(event, entry, "reported" if reported else "known"))


def settled(
    call: Call | Pending,
    nonce: int,
    outcome: Result,
    txids: Mapping[str, str],
    known: str,
    *,
    name: str,
    since: float,
    inherited: bool,
    proved: bool = False,
) -> events.OrderSettled:
    """Return the event. Whoever tells the same of a call gives it the same id."""
    return events.OrderSettled(
        key=call.key,
        name=name,
        method=call.method,
        since=since,
        id=id_of(call, nonce, outcome),
        nonce=nonce,
        cl_ord_ids=call.cl_ord_ids,
        outcome=outcome,
        orders=txids,
        inherited=inherited,
        proved=proved,
        known=known,
    )


def id_of(call: Call | Pending, nonce: int, what: str) -> str:
    """Return the id of the event that says ``what`` of a call."""
    return hashlib.sha256(f"{call.key} {nonce} {what}".encode()).hexdigest()[:32]
