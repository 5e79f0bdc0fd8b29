"""Settings and records, which the simulator's process and its handle exchange."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._keys import NonceWindow
from ._limits import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One private request that reached the exchange, or that a fault hit before.

    `received` and `finished` are seconds on the monotonic clock of the simulator's process: they
    are good for differences and order, but have no meaning outside it.
    """

    sequence: int
    """Number in the order of arrival, counted from 1 since the simulator started."""
    received: float
    """When the whole request had reached the exchange, after the latency of the way there."""
    finished: float | None
    """When the answer, or what a fault made of it, reached the client; None while the request is under way."""
    account: str
    """Name of the account; empty if the API key is unknown. Never the key."""
    path: str
    """Path of the URL, such as `/0/private/AddOrder`."""
    method: str
    """Name of the API method, such as `AddOrder`."""
    nonce: int | None
    """The nonce in the body; None if there was none or it was not a number."""
    error: tuple[str, ...]
    """The exchange's own error strings; empty if the request was accepted, or was not decided yet.

    What a fault told the client instead is in `fault`.
    """
    in_flight: int
    """How many requests with this API key were under way at arrival, this one included.

    A request is under way from when the simulator has read it until its answer leaves. That includes
    the simulated latency of both ways and the delay by a fault. A request that a fault makes arrive
    late is no longer under way once its client was told something.
    """
    fault: str = ""
    """The fault that hit it, such as `cut before reading`; empty if none did."""
    key_number: int = 0
    """Number of the API key within its account, counted from 1; 0 if the key is unknown."""
    decided: float | None = None
    """When the exchange carried it out or refused it, in Unix seconds by the exchange's clock.

    None if it did neither: the request is still delayed, or a fault ended it before.
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
    opened: float
    """When it was placed, in Unix seconds by the exchange's clock: what Kraken calls `opentm`."""


@dataclass(frozen=True, slots=True)
class SimulatedStrategy:
    """One strategy of Algo Trading that was added. Volume in the base asset, price in the quote asset."""

    strategy_id: str
    account: str
    """Name of the account. Never the key."""
    nonce: int
    """The nonce of the request that added it."""
    pair: str
    """Kraken's id of the pair, such as `XXBTZUSD`."""
    side: str
    """`buy` or `sell`."""
    ordertype: str
    """`market` or `limit`."""
    volume: str
    """Decimal number, with the digits that the pair trades in."""
    price: str
    """Decimal number: the limit price, `0` for a strategy of market orders."""
    status: str
    """`pending`, `open`, `expired` or `cancelled`."""
    opened: float
    """When it was added, in Unix seconds by the exchange's clock."""


@dataclass(frozen=True, slots=True)
class SimulatedWithdrawal:
    """One withdrawal that was carried out."""

    refid: str
    account: str
    """Name of the account. Never the API key."""
    nonce: int
    """The nonce of the request that asked for it."""
    asset: str
    """Kraken's id of the asset, such as `XXBT`."""
    withdrawal_key: str
    """The name under which the address is stored at Kraken: Withdraw's `key`."""
    amount: str
    """Decimal number, with the digits of the asset."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that can be changed while the simulator runs.

    Raises:
        ValueError: a setting is invalid; the message names it.
    """

    latency: tuple[float, float] = (0.0, 0.0)
    """Least and most seconds that a request takes one way."""
    nonce_window: int = 0
    """How far below the highest nonce a late one is still accepted, in nonce ticks."""
    nonce_repeats: bool = False
    """Whether a nonce inside the window is accepted again after it was used."""
    limits: Limits = field(default_factory=Limits)
    """Rate limits of the exchange."""
    listing_delay: tuple[float, float] = (0.0, 0.0)
    """Least and most seconds that a placed order takes to appear in lists."""
    clock_offset: float = 0.0
    """Seconds by which the exchange's clock is ahead of this machine's; negative if it is behind."""

    def __post_init__(self) -> None:
        for name, (least, most) in (("latency", self.latency), ("listing_delay", self.listing_delay)):
            if not 0 <= least <= most < math.inf:
                raise ValueError(f"{name} must be (least, most) seconds with 0 <= least <= most, not {(least, most)}")
        if not math.isfinite(self.clock_offset):
            raise ValueError(f"clock_offset must be a number of seconds, not {self.clock_offset}")
        _ = self.window

    @property
    def window(self) -> NonceWindow:
        """The nonce window of every API key without its own window."""
        return NonceWindow(self.nonce_window, self.nonce_repeats)

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Settings:
        """Make settings from `dataclasses.asdict` of them after a way through JSON."""
        values: dict[str, Any] = {**settings, "limits": Limits(**settings["limits"])}
        return cls(**values)
