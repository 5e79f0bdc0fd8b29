"""How events are logged: each kind's level and text, and the fields of the record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from kraken_nonce_redis import events

logger = logging.getLogger("kraken_nonce_redis")

PREFIX: Final = "kraken_nonce_"
"""What the names of a record's fields begin with."""

LONG: Final = 1.0
"""Seconds from which a wait is logged as INFO."""
VERY_LONG: Final = 10.0
"""Seconds from which a wait is logged as WARNING."""

_WAITS: Final = frozenset({events.StillWaiting, events.WaitTimedOut, events.LockGranted})
"""The kinds whose level depends on how long a caller has waited."""

TEXTS: Final[Mapping[type[events.Event], tuple[int, str]]] = {
    events.WaitingBegan: (logging.DEBUG, "%(who)s waits for the lock on %(key)s: %(cause)s, up to %(left).1f s"),
    events.StillWaiting: (
        logging.INFO,
        "%(who)s has waited %(wait).1f s for the lock on %(key)s, and still waits: %(cause)s",
    ),
    events.WaitTimedOut: (
        logging.DEBUG,
        "%(who)s did not get the lock on %(key)s in time, after %(wait).1f s: %(error)s",
    ),
    events.LockGranted: (logging.DEBUG, "%(who)s got the lock on %(key)s after %(wait).3f s (nonce %(nonce)d)"),
    events.LockReleased: (logging.DEBUG, "%(who)s released the lock on %(key)s after %(held).3f s (nonce %(nonce)d)"),
    events.LeaseEndedEarly: (
        logging.WARNING,
        "The lease on %(key)s was lost while it was held by %(who)s (nonce %(nonce)d): others may have held the lock",
    ),
    events.LeaseRanOut: (
        logging.WARNING,
        "The lease on %(key)s ran out while it was held by %(who)s, for %(held).1f s: others may have held the lock",
    ),
    events.CallSent: (logging.DEBUG, "%(who)s is sent (nonce %(nonce)d)"),
    events.CallEnded: (logging.DEBUG, "%(who)s (nonce %(nonce)d): %(outcome)s after %(seconds).3f s"),
    events.CallRefused: (logging.DEBUG, "%(who)s (nonce %(nonce)d) was refused: %(errors)s"),
    events.CallTriedAgain: (logging.INFO, "%(who)s is made again in %(wait).1f s: %(reason)s"),
    events.KrakenWarned: (logging.WARNING, "%(who)s (nonce %(nonce)d): Kraken warns: %(warnings)s"),
    events.ResultMissing: (logging.WARNING, "%(who)s (nonce %(nonce)d): an answer without a result"),
    events.OrderSettled: (logging.WARNING, "%(who)s (nonce %(nonce)d, cl_ord_id %(cl_ord_ids)s): %(known)s"),
    events.OutcomeUnknown: (
        logging.ERROR,
        "%(who)s (nonce %(nonce)d, cl_ord_id %(cl_ord_ids)s): it is unknown whether it was carried out: %(known)s",
    ),
    events.CallForgotten: (
        logging.WARNING,
        "%(who)s (nonce %(nonce)d, cl_ord_id %(cl_ord_ids)s): it is unknown what became of it; it is no longer listed",
    ),
    events.NonceRaised: (
        logging.WARNING,
        "Kraken refused nonce %(refused)d of %(key)s; nonces are now %(lead)g s ahead",
    ),
    events.KeyPoisoned: (
        logging.ERROR,
        "The API key %(key)s is poisoned: Kraken refused nonce %(refused)d, which is %(lead).0f s ahead",
    ),
    events.CoolDownBegan: (logging.INFO, "No call of %(key)s starts for %(seconds).1f s: %(reason)s"),
    events.CoolDownOver: (logging.INFO, "The cool-down of %(key)s is over"),
    events.StoreFailed: (logging.DEBUG, "%(operation)s failed for %(key)s: %(error)s"),
    events.RedisAway: (logging.INFO, "Redis (%(redis)s) is away: %(reason)s"),
    events.RedisBack: (logging.INFO, "Redis (%(redis)s) is back after %(seconds).1f s"),
    events.MasterChanged: (logging.WARNING, "Redis is now %(master)s and no longer %(former)s"),
    events.StateLost: (
        logging.WARNING,
        "Redis had lost nonces of %(key)s: %(seen)d had been used; nonces go on from %(nonce)d",
    ),
}
"""The level of each kind, the lowest where it depends on a wait, and what is logged."""


def level_of(kind: type[events.Event], wait: float = 0.0) -> int:
    """Return the level at which an event of a kind is logged; ``wait`` is how many seconds its caller has waited."""
    if wait >= LONG and kind in _WAITS:
        return logging.WARNING if wait >= VERY_LONG else logging.INFO
    return TEXTS[kind][0]


def log(event: events.Event) -> None:
    """Log an event."""
    kind = type(event)
    level = level_of(kind, getattr(event, "wait", 0.0)) if kind in _WAITS else TEXTS[kind][0]
    if isinstance(event, events.OrderSettled) and event.outcome == "unknown":
        level = logging.ERROR
    if logger.isEnabledFor(level):
        values = {each.name: getattr(event, each.name) for each in fields(event)}
        extra = {f"{PREFIX}{name}": _as_json(value) for name, value in values.items()}
        extra[f"{PREFIX}event"] = kind.__name__
        words = {name: ", ".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
        words["who"] = " of ".join(filter(None, (event.method, event.name))) or "A caller"
        logger.log(level, TEXTS[kind][1], words, extra=extra)


def _as_json(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
