"""The records of names, each of which is for one order; no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote

from kraken_nonce_redis._redis.command import Command
from kraken_nonce_redis._redis.words import join

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.command import Reply
    from kraken_nonce_redis._redis.keyspace import Keyspace


@dataclass(frozen=True, slots=True)
class NameRecord:
    """The record of a name, which is for one order.

    Attributes:
        cl_ord_id: of the order.
        name: as its callers have given it.
        key: digest of the API key.
        nonce: of the latest request that tried to place it.
        deadline: of that request, in Unix seconds by Kraken's clock.
        digest: of the order's parameters.
        txid: Kraken's, ``""`` while it is not known that the order was placed.
        age: seconds since it was written.
    """

    cl_ord_id: str
    name: str
    key: str
    nonce: int
    deadline: float
    digest: str
    txid: str = ""
    age: float = 0.0

    def written(self) -> str:
        """Return it as it stands in Redis, without the time."""
        txid = join([self.txid]) if self.txid else "-"
        deadline = math.ceil(self.deadline * 1000)
        return f"{self.key} {self.nonce} {deadline} {self.digest} {quote(self.name, safe='')} {txid}"


@dataclass(frozen=True, slots=True)
class Kept:
    """What Redis has of a name.

    Attributes:
        record: the record; None if there is none.
        complete: seconds for which no record can have been lost: when another server took over, or this one restarted,
            or when all was lost, as far as the process can tell.
    """

    record: NameRecord | None
    complete: float


def read(keys: Keyspace, member: str, cl_ord_id: str, *, seen: bool = False) -> Command[Kept | Literal["lost"]]:
    """Read the record of a name, for the holder of the lock; ``seen`` is whether its process has seen names before."""
    return _once(keys, member, cl_ord_id, "", seen=seen)


def keep(keys: Keyspace, member: str, record: NameRecord) -> Command[Kept | Literal["lost"]]:
    """Write the record of a name, unless the lock is another member's by now."""
    return _once(keys, member, record.cl_ord_id, record.written())


def forget(keys: Keyspace, member: str, cl_ord_id: str) -> Command[Kept | Literal["lost"]]:
    """Remove the record of a name, unless the lock is another member's by now; ``""`` for people, who don't hold it."""
    return _once(keys, member, cl_ord_id, "-")


def _once(
    keys: Keyspace, member: str, cl_ord_id: str, record: str, *, seen: bool = False
) -> Command[Kept | Literal["lost"]]:
    def read(reply: Reply) -> Kept | Literal["lost"]:
        if reply[0] == "lost":
            return "lost"
        _, now, since, *words = reply
        found = None if words == ["-"] else _read_name(int(now), cl_ord_id, *words)
        return Kept(found, (int(now) - int(since)) / 1e6)

    return Command("once", (keys.state, keys.once), (member, cl_ord_id, record, int(seen)), read)


def read_all(keys: Keyspace) -> Command[tuple[NameRecord, ...]]:
    """List the records of names, the oldest first."""

    def read(reply: Reply) -> tuple[NameRecord, ...]:
        now, words = int(reply[1]), iter(reply[2:])
        found = [_read_name(now, *record) for record in zip(*[words] * 8, strict=True)]
        return tuple(sorted(found, key=lambda record: -record.age))

    return Command("names", (keys.once,), (), read)


def _read_name(  # noqa: PLR0917 - the words of a record
    now: int, cl_ord_id: str, at: str, key: str, nonce: str, deadline: str, digest: str, name: str, txid: str
) -> NameRecord:
    return NameRecord(
        cl_ord_id=cl_ord_id,
        name=unquote(name),
        key=key,
        nonce=int(nonce),
        deadline=int(deadline) / 1000,
        digest=digest,
        txid="" if txid == "-" else unquote(txid),
        age=(now - int(at)) / 1e6,
    )
