"""What the simulator's process and its handle tell each other: settings, and what was seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._limits import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One private request, as the exchange saw it.

    Times are seconds on the monotonic clock of the simulator's process: good for differences
    and for order, without meaning outside it.
    """

    sequence: int
    """Place in the order of arrival, counted from 1 since the simulator started."""
    received: float
    """When the whole request had reached the exchange, its way there included."""
    finished: float | None
    """When the answer had made its way back; None while the request is still under way."""
    account: str
    """Name of the account; empty if the API key is unknown. Never the key."""
    path: str
    """Path of the URL, such as `/0/private/AddOrder`."""
    method: str
    """Name of the API method, such as `AddOrder`."""
    nonce: int | None
    """The nonce in the body; None if there was none or it was no number."""
    error: tuple[str, ...]
    """Kraken's error strings; empty if the request was accepted, or has no answer yet."""
    in_flight: int
    """How many requests of this account were under way at arrival, this one included.

    A request is under way from when the simulator has read it until its answer leaves, so the
    simulated latency of both ways counts.
    """


@dataclass(frozen=True, slots=True)
class SimulatedOrder:
    """One order that was placed. Volumes in the base asset, prices in the quote asset."""

    txid: str
    account: str
    """Name of the account. Never the key."""
    nonce: int
    """The nonce of the request that placed it."""
    pair: str
    """Kraken's id of the pair, such as `XXBTZUSD`."""
    side: str
    """`buy` or `sell`."""
    ordertype: str
    """`market`, `limit`, ..."""
    volume: str
    """Decimal number, with the digits that the pair trades in."""
    price: str
    """Decimal number: the limit or trigger price, `0` for a market order."""
    status: str
    """`open`, `closed` (filled) or `canceled`."""
    cl_ord_id: str | None
    """The client's own id, spelled as the client spelled it."""
    userref: int | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be changed while the simulator runs.

    Raises:
        ValueError: a setting makes no sense; the message names it.
    """

    latency: tuple[float, float] = (0.0, 0.0)
    """Least and most seconds that a request takes one way."""
    nonce_window: int = 0
    """How far below the highest nonce a late one is still accepted, in nonce ticks."""
    limits: Limits = field(default_factory=Limits)
    """How many calls and changes of orders the exchange takes."""

    def __post_init__(self) -> None:
        least, most = self.latency
        if not 0 <= least <= most < math.inf:
            raise ValueError(f"latency must be (least, most) seconds with 0 <= least <= most, not {self.latency}")
        if self.nonce_window < 0:
            raise ValueError(f"nonce_window must be 0 or more ticks, not {self.nonce_window}")

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Settings:
        """Make settings from what JSON left of `dataclasses.asdict`."""
        return cls(settings["latency"], settings["nonce_window"], Limits(**settings["limits"]))
