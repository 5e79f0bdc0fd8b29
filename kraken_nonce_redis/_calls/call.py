"""A client's private call, and what was heard of it; no I/O."""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis._calls import outcomes
from kraken_nonce_redis._calls.once import Once, taken_from
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kraken_nonce_redis._calls.outcomes import TurnedAway
    from kraken_nonce_redis._kraken import Verdict

LONGEST_CALL: Final = arguments.LONGEST_TTL - 1
"""Seconds that one request takes at most, so that a lease can cover it."""


@dataclass(frozen=True, slots=True)
class Call:
    """A private call of a client; `of` makes one.

    Attributes:
        key: digest of the API key.
        method: Kraken's name.
        params: without nonce; each order has a cl_ord_id, where it can.
        seconds: that one request takes at most.
        present: makes what the client returns from Kraken's answer, or raises what the client does.
        cl_ord_ids: of the orders that it places; empty if one of them has none.
        own_ids: whether all of these were made up here, so that nobody else uses them.
        asked: when its caller asked for it, on `clock.now`.
        once: the name of the order, of which one is placed however often it is asked for; None if it has none.
    """

    key: str
    method: str
    params: Mapping[str, Any]
    seconds: float
    present: Callable[[Mapping[str, Any]], Any]
    cl_ord_ids: tuple[str, ...]
    own_ids: bool
    asked: float
    once: Once | None = None

    @classmethod
    def of(
        cls,
        api_key: str,
        method: str,
        params: Mapping[str, Any],
        seconds: float,
        present: Callable[[Mapping[str, Any]], Any] = lambda answer: answer,
        *,
        secret: str = "",
        form: bool = False,
        asked: float | None = None,
    ) -> Call:
        """Return a call with the caller's parameters, which stay as they are. Raises `InvalidArgument`.

        ``secret`` is that of the API key, for the names of orders. With ``form``, the client encodes values by ``str``.
        ``asked`` is now, unless it is given.
        """
        arguments.credential("key", api_key)
        arguments.seconds("timeout", seconds, 0, LONGEST_CALL)
        copied = copy.deepcopy(dict(params))
        if form and copied.get("validate") is True:
            copied["validate"] = "true"  # as Kraken documents it
        once = taken_from(copied, method, api_key, secret)
        ids, own = _name_orders(method, copied) if outcomes.changes(method, copied) else ((), False)
        asked = clock.now() if asked is None else asked
        return cls(digest(api_key), method, copied, seconds, present, ids, own or once is not None, asked, once)

    @property
    def changes(self) -> bool:
        """Whether it changes anything at Kraken."""
        return outcomes.changes(self.method, self.params)

    @property
    def ages(self) -> bool:
        """Whether it is not to begin long after it was asked for."""
        return self.changes and kraken.method_named(self.method).ages

    @property
    def intent(self) -> str:
        """What is noted in Redis before it is sent."""
        if not self.changes:
            return ""
        return journal.intent(self.key, self.method, self.cl_ord_ids, own_ids=self.own_ids)


def _name_orders(method: str, params: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Give each order that is to be placed a cl_ord_id, unless one has a userref, which excludes it.

    Return the ids, and whether all of them are new.
    """
    orders = {"order": [params], "orders": params.get("orders")}.get(kraken.method_named(method).places or "")
    if not isinstance(orders, list) or not all(isinstance(order, dict) for order in orders):
        return (), False
    if any(order.get("userref") not in (None, "") and not order.get("cl_ord_id") for order in orders):
        return (), False
    own = not any(order.get("cl_ord_id") for order in orders)
    for order in orders:
        order["cl_ord_id"] = str(order.get("cl_ord_id") or uuid.uuid4())
    return tuple(order["cl_ord_id"] for order in orders), own


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a request.

    Attributes:
        value: what the client returns.
        failure: what the client raises instead.
        answer: Kraken's answer, decoded from JSON; None if there was none.
        left: whether the request has begun to leave, whatever the failure looks like.
        date: the `Date` of Kraken's answer, in Unix seconds; None if it is unknown.
        turned_away: what came in place of Kraken's answer, if that was a page with the status 429.
        doubt: why Kraken's answer says nothing about the call; empty if it does.
    """

    value: Any = None
    failure: Exception | None = None
    answer: Mapping[str, Any] | None = None
    left: bool = False
    date: float | None = None
    turned_away: TurnedAway | None = None
    doubt: str = ""

    @property
    def errors(self) -> tuple[str, ...]:
        """Kraken's errors."""
        return () if self.answer is None else outcomes.errors_in(self.answer)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Kraken's warnings, which the client's code does not see if there is no error beside them."""
        return () if self.answer is None else outcomes.warnings_in(self.answer)

    @property
    def lacks_result(self) -> bool:
        """Whether Kraken's answer has neither an error nor a result."""
        return self.answer is not None and outcomes.lacks_result(self.answer)

    @property
    def verdict(self) -> Verdict:
        """What this says about the call."""
        if self.answer is not None and not self.doubt:
            return outcomes.of_answer(self.answer)
        if self.left or self.doubt:
            return kraken.UNKNOWN
        return outcomes.of_failure(self.failure)

    @property
    def reason(self) -> str:
        """Why the call did not do, in words: Kraken's errors, or the kind of failure, whose text may hold a key."""
        if self.answer is not None:
            return self.doubt or ", ".join(self.errors)
        if self.turned_away is not None:
            return str(self.turned_away)
        return "no answer of Kraken" if self.failure is None else f"no answer ({type(self.failure).__name__})"

    def unwrap(self) -> Any:
        """Return or raise what the client does."""
        if self.failure is not None:
            raise self.failure
        return self.value
