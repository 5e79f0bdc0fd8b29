"""What becomes of the calls that earlier holders of the lock left in the journal; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kraken_nonce_redis import _process, events
from kraken_nonce_redis._calls.news import id_of, note, settled
from kraken_nonce_redis._core.steps import running
from kraken_nonce_redis._redis import commands, journal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kraken_nonce_redis._calls.questions import Questions
    from kraken_nonce_redis._core.steps import CallFlow
    from kraken_nonce_redis._redis.journal import Pending, Result

_TELLING: Final = 5.0
"""Seconds that a process has to tell what it has found out about another one's call; then the next holder tells it."""
_MOST_REPORTED: Final = 1_000
_REPORTED_FOR: Final = 30 * 86_400.0
"""How many reported calls the journal keeps, and for how many seconds."""
_FORGOTTEN_AT_ONCE: Final = 20
"""How many of the others one call takes off the journal, so that it is not held up for long."""


def settling_inherited(asking: Questions) -> CallFlow[None]:
    """Settle what earlier holders with the same API key left behind, or report it."""
    keys, lease, left = asking.lock.keys, asking.lease, asking.calls.left[asking.call.key]
    entries = yield from running(journal.pending(keys))
    lease.grant.inherited = ()
    waiting = [entry for entry in entries if entry.key == asking.call.key and not entry.reported]
    if not waiting:
        yield from running(journal.recount(keys))  # the count has lost its entries
    left.intersection_update([entry.nonce for entry in waiting])
    _forgetting(asking, entries)
    for entry in waiting:
        if (keys.state, entry.nonce) in _process.current().telling or entry.nonce in left:
            continue
        if not (yield from _inheriting(asking, entry)):
            return


def _inheriting(asking: Questions, entry: Pending) -> CallFlow[bool]:
    """Settle or report an earlier holder's call; return whether to go on with the next one."""
    state, calls = asking.lock.keys.state, asking.calls
    outcome: Result = "unknown"
    txids: Mapping[str, str] = {}
    final = True
    if entry.result is not None:
        if 0 <= entry.noted < _TELLING:
            return True  # who has found it out is about to tell it
        outcome, txids = entry.result, entry.txids
        known = f"an earlier holder has found out: {' '.join((outcome, *txids.values()))}"
    elif not entry.cl_ord_ids:
        known = "it is unknown whether it was carried out"
    elif calls.on_unknown == "raise":
        known, final = "it is left to a process that settles", False
    else:
        asking.lease.grant.record = asking.lease.grant.record.begun()
        opened = None if entry.own_ids else min(entry.nonce, entry.since) / 1e9
        lost = entry.nonce + commands.BLOCK - 1
        settlement = yield from asking.settling_orders(entry.cl_ord_ids, opened, lost, hasty=True)
        outcome, txids, known = settlement.outcome, settlement.txids, settlement.known
        final = outcome != "unknown" or settlement.hopeless  # else Kraken can't be asked now
    found = [txids.get(cl_ord_id, "") for cl_ord_id in entry.cl_ord_ids]
    noting = journal.settle(asking.lock.keys, entry.nonce, outcome if final else "new", found if txids else ())
    if not (yield from running(noting)):
        return True  # its own caller knows, and its release has come meanwhile
    event = settled(entry, entry.nonce, outcome, txids, known, name=entry.name, since=_since(entry), inherited=True)
    if final:
        note(asking.news, event, entry.nonce, reported=outcome == "unknown")
        _process.current().telling.add((state, entry.nonce))
    else:
        note(asking.news, event)
        if calls.on_unknown == "raise":
            calls.left[entry.key].add(entry.nonce)
    return final or calls.on_unknown == "raise"


def _forgetting(asking: Questions, entries: Sequence[Pending]) -> None:
    """Take the oldest reported calls off the journal, once that is told."""
    telling = _process.current().telling
    reported = [entry for entry in entries if entry.reported]
    surplus = len(reported) - _MOST_REPORTED
    old = [entry for place, entry in enumerate(reported) if place < surplus or entry.age > _REPORTED_FOR]
    for entry in old[:_FORGOTTEN_AT_ONCE]:
        if (name := (asking.lock.keys.state, entry.nonce)) not in telling:
            event = events.CallForgotten(
                key=entry.key,
                name=entry.name,
                method=entry.method,
                since=_since(entry),
                id=id_of(entry, entry.nonce, "forgotten"),
                nonce=entry.nonce,
                cl_ord_ids=entry.cl_ord_ids,
            )
            note(asking.news, event, entry.nonce)
            telling.add(name)


def _since(entry: Pending) -> float:
    """Return when the holder of a call was gone, in seconds since 1970."""
    return entry.since / 1e9
