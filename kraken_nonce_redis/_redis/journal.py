"""The calls whose outcome is unknown, as Redis has them: intents, the journal and what is noted there; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import unquote

from kraken_nonce_redis._redis.command import Command
from kraken_nonce_redis._redis.words import join, split, word

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kraken_nonce_redis._redis.command import Reply
    from kraken_nonce_redis._redis.keyspace import Keyspace

Result: TypeAlias = Literal["found", "absent", "partly", "unknown"]
"""What a holder has found out about another one's call."""

_OWN = "+"  # is percent-encoded in ids themselves


@dataclass(frozen=True, slots=True)
class Pending:
    """A call that changes something and whose outcome is unknown.

    Attributes:
        nonce: the first of a block of `commands.BLOCK` nonces, ns since 1970; an order's last request had one of these.
        since: server time when its holder was gone, ns since 1970.
        age: seconds since then.
        reported: whether a later holder has told that it could do no more about it.
        result: what a later holder has found out and not told yet, as in `kraken_nonce_redis.events.OrderSettled`.
        noted: seconds since that was noted; 0.0 without a result.
        txids: Kraken's, of each cl_ord_id that was found.
        key: digest of the API key.
        method: Kraken's name.
        cl_ord_ids: of the orders that it places; empty when they had none.
        own_ids: whether all of these were made up for this one call.
        name: of the bot that made it, ``""`` if it is not known.
    """

    nonce: int
    since: int
    age: float
    reported: bool
    result: Result | None
    noted: float
    txids: Mapping[str, str]
    key: str
    method: str
    cl_ord_ids: tuple[str, ...]
    own_ids: bool
    name: str

    @property
    def state(self) -> Literal["new", "reported"] | Result:
        """Its state in one word, as in lib/journal.lua."""
        return "reported" if self.reported else self.result or "new"


def intent(key: str, method: str, cl_ord_ids: Iterable[str], *, own_ids: bool = False) -> str:
    """Return what the scripts note of a call that changes something, before the name of its bot."""
    return f"{key} {word(method)} {_OWN if own_ids else ''}{join(cl_ord_ids)}"


def pending(keys: Keyspace) -> Command[tuple[Pending, ...]]:
    """Look at the calls whose outcome is unknown, the oldest first."""

    def read(reply: Reply) -> tuple[Pending, ...]:
        now, words = int(reply[1]), iter(reply[2:])
        found = [_read_pending(now, *record) for record in zip(*[words] * 9, strict=True)]
        return tuple(sorted(found, key=lambda entry: entry.nonce))

    return Command("pending", (keys.state,), (), read)


def _read_pending(  # noqa: PLR0917 - the words of a record
    now: int, nonce: str, since: str, state: Any, key: str, method: str, ids: str, name: str, at: str, txids: str
) -> Pending:
    cl_ord_ids = split(ids.removeprefix(_OWN))
    return Pending(
        nonce=int(nonce),
        since=int(since) * 1000,
        age=(now - int(since)) / 1e6,
        reported=state == "reported",
        result=state if int(at) else None,
        noted=(now - int(at)) / 1e6 if int(at) else 0.0,
        txids={cl_ord_id: txid for cl_ord_id, txid in zip(cl_ord_ids, split(txids), strict=False) if txid},
        key=key,
        method=unquote(method),
        cl_ord_ids=cl_ord_ids,
        own_ids=ids.startswith(_OWN),
        name="" if name == "-" else unquote(name),
    )


def settle(
    keys: Keyspace,
    nonce: int,
    how: Literal["known", "cleared", "reported", "new"] | Result,
    txids: Iterable[str] = (),
    name: str = "",
) -> Command[bool]:
    """Change a pending call's entry. False: there is none any more.

    ``"known"`` removes it, and so does ``"cleared"``, by hand; ``"reported"`` leaves it for people, a result is noted
    until it is told, and ``"new"`` leaves it as it is. ``txids`` are Kraken's, one for each cl_ord_id, ``""`` for an
    order that was not found. ``name`` is that of who does it, as in Redis.
    """
    return Command(
        "settle", keys.for_the_lock[:3], (nonce, how, join(txids), name), lambda reply: reply[0] == "ok", spare=1
    )


def recount(keys: Keyspace) -> Command[bool]:
    """Count the pending calls anew."""
    return settle(keys, 0, "new")
