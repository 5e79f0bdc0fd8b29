"""What happens beside a call and is worth knowing: one frozen dataclass a kind, given to ``on_event``.

A hook runs in the thread or task that makes the call, after the call has released the lock, so it may make calls of its
own. The call returns only after it: let it be short. What it raises is logged. No event carries an API key, a secret
or an amount.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class OrderSettled:
    """Kraken's lists were asked about a call whose outcome nobody knew, of this process or of one that is gone.

    Attributes:
        key: digest of the API key, as in Redis.
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

    key: str
    method: str
    nonce: int
    cl_ord_ids: tuple[str, ...]
    outcome: Literal["found", "absent", "partly", "unknown"]
    orders: Mapping[str, str]
    inherited: bool


@dataclass(frozen=True)
class NonceRaised:
    """Kraken refused a fresh nonce, so the last nonce was raised for all who share the key.

    Attributes:
        key: digest of the API key, as in Redis.
        refused: the nonce that Kraken refused, ns since 1970.
        lead: seconds ahead of the server's clock that the nonce is now, at least.
    """

    key: str
    refused: int
    lead: float


Event: TypeAlias = OrderSettled | NonceRaised
Hook: TypeAlias = Callable[[Event], object]
