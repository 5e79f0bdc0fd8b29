"""Orders with a name, of which one is placed however often it is asked for; no I/O.

The record of the name is in Redis before the order is sent, with the order's deadline. So whoever finds a record
without a txid knows until when the order may be placed, and settles it before anything is sent again. Whoever finds no
record asks Kraken for the order's cl_ord_id, which follows from the name. What is not listed there, and has no record,
was never sent, unless Redis has lost the record: so that is only believed once an order whose record may be lost would
be listed for sure.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis._calls import exchange_clock
from kraken_nonce_redis._calls.settling import Settlement
from kraken_nonce_redis._core import names
from kraken_nonce_redis._core.lease import logger
from kraken_nonce_redis._core.steps import running
from kraken_nonce_redis._redis import name_records
from kraken_nonce_redis._redis.commands import BLOCK
from kraken_nonce_redis._redis.name_records import NameRecord
from kraken_nonce_redis.errors import HoldTimeout, InvalidArgument, LeaseLost, OutcomeUnknown, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._calls.call import Call
    from kraken_nonce_redis._calls.questions import Questions
    from kraken_nonce_redis._core.steps import CallFlow
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.name_records import Kept

PARAMETER: Final = "once"
"""The name's place among a call's parameters. Kraken never sees it."""
_CHANGING: Final = ("cl_ord_id", "otp")
"""Parameters that say nothing about the order."""


@dataclass(frozen=True, slots=True)
class Once:
    """The name of an order.

    Attributes:
        name: as the caller has given it.
        digest: of the order's parameters, keyed with the API key's secret, so that it tells nobody what they are.
    """

    name: str
    digest: str


def taken_from(params: dict[str, Any], method: str, api_key: str, secret: str) -> Once | None:
    """Take the name of an order out of a call's parameters; return None if there is none. Raises `InvalidArgument`.

    An order with a name gets the cl_ord_id that follows from it.
    """
    name = params.pop(PARAMETER, None)
    if name is None:
        orders = params.get("orders")
        if isinstance(orders, list) and any(isinstance(order, dict) and PARAMETER in order for order in orders):
            raise InvalidArgument(PARAMETER, "is for AddOrder alone, and not for the orders of a batch")
        return None
    if kraken.method_named(method).places != "order":
        raise InvalidArgument(PARAMETER, f"is for AddOrder alone, not for {method}")
    names.checked(name, api_key, PARAMETER)
    for other, problem in (
        ("userref", "since the order is found by a cl_ord_id, which excludes it"),
        ("cl_ord_id", "since the order's follows from the name"),
        ("validate", "since nothing is placed"),
        ("deadline", "since the order gets one"),
    ):
        value = params.get(other)
        if value not in (None, "") and not (other == "validate" and value in (False, "false")):
            raise InvalidArgument(PARAMETER, f"can't be used together with {other}, {problem}")
        params.pop(other, None)
    params["cl_ord_id"] = str(uuid.UUID(bytes=_keyed(secret, "id", api_key, name)[:16], version=4))
    return Once(name, _keyed(secret, "parameters", _canonical(params)).hex()[:32])


def _keyed(secret: str, *words: str) -> bytes:
    return hmac.digest(secret.encode(), "\0".join(("kraken-nonce once", *words)).encode(), hashlib.sha256)


def _canonical(value: Any) -> str:
    """Return an order's parameters as a text that is the same whatever client they are for."""
    if isinstance(value, dict):
        said = {str(name): _canonical(value[name]) for name in value if value[name] is not None}
        return json.dumps({name: said[name] for name in sorted(said) if name not in _CHANGING})
    if isinstance(value, list | tuple):
        return json.dumps([_canonical(part) for part in value])
    return str(value).lower() if isinstance(value, bool) else str(value)


def described(params: Mapping[str, Any]) -> str:
    """Return Kraken's description of an order, as far as the parameters tell."""
    words = [params.get("type"), params.get("volume"), params.get("pair"), "@"]
    words += [str(params.get("ordertype")).removesuffix("-limit").replace("-", " "), params.get("price")]
    if params.get("price2"):
        words += ["-> limit", params["price2"]]
    return " ".join(str(word) for word in words if word is not None)


class Keeping:
    """The record of an order's name, under one lease."""

    def __init__(self, questions: Questions, call: Call, once: Once) -> None:
        self._questions = questions
        self._call = call
        self._once = once
        self._keys = questions.lock.keys
        self._member = questions.lease.grant.member
        self._record: NameRecord | None = None
        """The one that this lease has written, or is about to."""

    def looking_up(self) -> CallFlow[Settlement | None]:
        """Return what tells of the order if it is there already; None if it may be sent.

        Raises `InvalidArgument` for a name that was used with other parameters; `OutcomeUnknown` if the order may be
        there; `HoldTimeout` if it is too early to say that; `LeaseLost` and `StoreError`.
        """
        name, cl_ord_id = self._once.name, self._call.cl_ord_ids[0]
        named, state = self._questions.lock.names_seen, self._keys.state
        kept = yield from self._running(name_records.read(self._keys, self._member, cl_ord_id, seen=state in named))
        named.add(state)
        record = kept.record
        if record is None:
            return (yield from self._asking(kept.complete))
        if record.digest != self._once.digest:
            raise InvalidArgument(PARAMETER, f"{name!r} was used for an order with other parameters; take another name")
        if record.txid:
            return self._found(record.txid)
        self._begin()
        settlement = yield from self._questions.settling_orders(
            (cl_ord_id,), None, record.nonce + BLOCK - 1, self._questions.until_proof(record.deadline)
        )
        settlement = settlement.if_proved()
        logger.warning("%s with once=%r (nonce %d): %s", self._call.method, name, record.nonce, settlement.known)
        if settlement.outcome == "unknown":
            raise OutcomeUnknown(self._call.method, record.nonce, cl_ord_id, settlement.known)
        if settlement.outcome == "absent":
            self._check_complete(kept.complete)  # else it may be an older record that is there again
        self._record = record
        if settlement.outcome == "absent":
            yield from self.ending(placed=None)
            return None
        yield from self.ending(placed=settlement.txids[cl_ord_id])
        return settlement

    def _asking(self, complete: float) -> CallFlow[Settlement | None]:
        """Ask Kraken for an order without a record; ``complete`` is as in `Kept`."""
        cl_ord_id = self._call.cl_ord_ids[0]
        self._begin()
        settlement = yield from self._questions.looking_once(cl_ord_id)
        if settlement.outcome == "found":
            self._record = self._new(self._questions.lease.grant.nonce, 0.0)
            yield from self.ending(placed=settlement.txids[cl_ord_id])
            return settlement
        if settlement.hopeless:
            raise InvalidArgument(PARAMETER, f"Kraken must list orders with this API key: {settlement.known}")
        if settlement.outcome == "unknown":
            raise self._later(f"Kraken can't be asked now whether it is placed: {settlement.known}")
        self._check_complete(complete)
        return None

    def _check_complete(self, complete: float) -> None:
        """Raise `HoldTimeout` if an order whose record may be lost may still be missing from Kraken's lists."""
        wait = exchange_clock.LONGEST_AHEAD + self._questions.calls.retries.proof_wait - complete
        if wait > 0:
            raise self._later(
                "its record may be lost, since another server has taken over, or this one was restarted or emptied; "
                f"try again in {wait:.1f} s"
            )

    def _later(self, problem: str) -> HoldTimeout:
        return HoldTimeout(f"AddOrder with once={self._once.name!r} was not sent; {problem}", self._keys.state)

    def _begin(self) -> None:
        """Take note that questions use the lease's first nonce."""
        grant = self._questions.lease.grant
        grant.record = grant.record.begun()

    def _found(self, txid: str) -> Settlement:
        cl_ord_id = self._call.cl_ord_ids[0]
        return Settlement("found", {cl_ord_id: (txid, described(self._call.params))}, f"{cl_ord_id} is {txid}")

    def _new(self, nonce: int, deadline: float) -> NameRecord:
        call, once = self._call, self._once
        return NameRecord(call.cl_ord_ids[0], once.name, call.key, nonce, deadline, once.digest)

    def trying(self, nonce: int, deadline: float) -> CallFlow[None]:
        """Write the record of an order that is about to be sent. Raises `LeaseLost` and `StoreError`."""
        self._record = self._new(nonce, deadline)
        keep = name_records.keep(self._keys, self._member, self._record)
        yield from self._running(keep.durable(self._questions.lock.durability))

    def ending(self, *, placed: str | None) -> CallFlow[None]:
        """Write down what became of an order whose record is there: Kraken's txid, or None if it was not placed."""
        if self._record is None:
            return
        if placed is None:
            command = name_records.forget(self._keys, self._member, self._record.cl_ord_id)
        else:
            command = name_records.keep(self._keys, self._member, replace(self._record, txid=placed))
        try:
            yield from running(command)
        except StoreError as error:  # must not hide what is known; the next caller finds it out once more
            logger.warning("The record of once=%r does not say what became of it: %s", self._once.name, error)
        self._record = None

    def _running(self, command: Command[Kept | Literal["lost"]]) -> CallFlow[Kept]:
        """Run a command that needs the lease."""
        kept = yield from running(command)
        if kept == "lost":
            self._questions.lease.grant.end()
            raise LeaseLost(f"the lease on {self._keys.state} has ended; nothing was sent", self._keys.state)
        return kept
