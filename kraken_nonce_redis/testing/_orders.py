"""Orders, trades and ledger entries, and the reading of an order from a request. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, Final
from uuid import UUID

from ._market import TAKER_FEE, pair_named
from ._protocol import Refusal, bad_argument

if TYPE_CHECKING:
    from ._market import Asset, Pair
    from ._protocol import Params

SIDES: Final = frozenset({"buy", "sell"})
_STOPS: Final = frozenset({"stop-loss", "take-profit"})
_STOP_LIMITS: Final = frozenset({"stop-loss-limit", "take-profit-limit"})
_ORDER_TYPES: Final = frozenset({"market", "limit"}) | _STOPS | _STOP_LIMITS
_DEADLINE: Final = (2.0, 60.0)  # least and most seconds from when the request was sent
_LONGEST_FREE_ID: Final = 18  # characters of a cl_ord_id that is not a UUID
_UUID_LENGTHS: Final = (32, 36)  # without and with dashes
_ZERO: Final = Decimal(0)


@dataclass(slots=True)
class Order:
    """An order and its state.

    Volumes are in the base asset. Prices are in the quote asset, 0 if this type of order has none.
    Times are Unix seconds.
    """

    txid: str
    pair: Pair
    side: str
    ordertype: str
    volume: Decimal
    price: Decimal
    """Limit price of a limit order, trigger price of a stop."""
    price2: Decimal
    """Limit price of a stop that becomes a limit order."""
    oflags: str
    cl_ord_id: str | None
    userref: int | None
    nonce: int
    opened: float
    listed: float
    """When lists begin to show it."""
    amended: float | None = None
    status: str = "open"
    reason: str | None = None
    closed: float | None = None
    trade: Trade | None = None

    @property
    def since(self) -> float:
        """When the order was placed or last amended."""
        return self.amended or self.opened

    def description(self) -> str:
        """Describe the order in one line, as Kraken does."""
        head = f"{self.side} {self.pair.volume_text(self.volume)} {self.pair.name} @"
        price = self.pair.price_text(self.price)
        if self.ordertype == "market":
            return f"{head} market"
        if self.ordertype in _STOP_LIMITS:
            stop = self.ordertype.removesuffix("-limit").replace("-", " ")
            return f"{head} {stop} {price} -> limit {self.pair.price_text(self.price2)}"
        return f"{head} {self.ordertype.replace('-', ' ')} {price}"

    def needs(self) -> tuple[Asset, Decimal]:
        """Return the asset and amount that the order takes, and holds while it is open."""
        if self.side == "sell":
            return self.pair.base, self.volume
        return self.pair.quote, self.volume * (self.price2 or self.price or self.pair.price)

    def info(self, *, with_trades: bool) -> dict[str, object]:
        """Return the order as Kraken lists it."""
        trade, pair = self.trade, self.pair
        info: dict[str, object] = {
            "refid": None,
            "userref": self.userref,
            "status": self.status,
            "opentm": self.opened,
            "starttm": 0,
            "expiretm": 0,
            "descr": {
                "pair": pair.name,
                "type": self.side,
                "ordertype": self.ordertype,
                "price": pair.price_text(self.price) if self.price else "0",
                "price2": pair.price_text(self.price2) if self.price2 else "0",
                "leverage": "none",
                "order": self.description(),
                "close": "",
            },
            "vol": pair.volume_text(self.volume),
            "vol_exec": pair.volume_text(self.volume if trade else _ZERO),
            "cost": pair.quote.text(trade.cost if trade else _ZERO),
            "fee": pair.quote.text(trade.fee if trade else _ZERO),
            "price": pair.price_text(trade.price if trade else _ZERO),
            "stopprice": "0.00000",
            "limitprice": "0.00000",
            "misc": "",
            "oflags": self.oflags,
        }
        if self.cl_ord_id is not None:
            info["cl_ord_id"] = canonical(self.cl_ord_id)
        if with_trades and trade:
            info["trades"] = [trade.txid]
        if self.closed is not None:
            info["closetm"] = self.closed
            info["reason"] = self.reason
        return info


@dataclass(frozen=True, slots=True)
class Trade:
    """The fill of a whole order at the market's price; cost and fee in the quote asset."""

    txid: str
    number: int
    order: Order
    time: float

    @property
    def price(self) -> Decimal:
        """The price paid for one unit."""
        return self.order.pair.price

    @property
    def cost(self) -> Decimal:
        """The total price, without the fee."""
        return self.order.volume * self.price

    @property
    def fee(self) -> Decimal:
        """The exchange's fee."""
        return self.cost * TAKER_FEE

    def info(self) -> dict[str, object]:
        """Return the trade as Kraken lists it."""
        pair = self.order.pair
        return {
            "ordertxid": self.order.txid,
            "postxid": self.txid,
            "pair": pair.id,
            "aclass": "forex",
            "time": self.time,
            "type": self.order.side,
            "ordertype": self.order.ordertype,
            "price": pair.price_text(self.price),
            "cost": pair.quote.text(self.cost),
            "fee": pair.quote.text(self.fee),
            "vol": pair.volume_text(self.order.volume),
            "margin": "0.00000",
            "leverage": "0",
            "misc": "",
            "trade_id": self.number,
            "maker": False,
        }


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One change of one balance."""

    txid: str
    reference: str
    time: float
    kind: str
    asset: Asset
    amount: Decimal
    fee: Decimal
    balance: Decimal

    def info(self) -> dict[str, object]:
        """Return the entry as Kraken lists it."""
        return {
            "refid": self.reference,
            "time": self.time,
            "type": self.kind,
            "subtype": "",
            "aclass": "currency",
            "asset": self.asset.id,
            "amount": self.asset.text(self.amount),
            "fee": self.asset.text(self.fee),
            "balance": self.asset.text(self.balance),
        }


def read_new(params: Params, *, txid: str, nonce: int, now: float, listed: float) -> Order:
    """Read an order from AddOrder's parameters. Raises `Refusal` if they are invalid."""
    ordertype = params.choice("ordertype", _ORDER_TYPES)
    side = params.choice("type", SIDES)
    pair = pair_named(params.required("pair"))
    oflags = params.text("oflags") or "fciq"
    volume = _volume(params, "volume", pair, in_quote="viqc" in oflags.split(","))
    if volume is None:
        raise bad_argument("volume")
    price = price2 = _ZERO
    if ordertype != "market":
        price = read_price(params, "price", pair) or _ZERO
        if not price:
            raise bad_argument("price")
    if ordertype in _STOP_LIMITS:
        price2 = read_price(params, "price2", pair) or _ZERO
        if not price2:
            raise bad_argument("price2")
    cl_ord_id, userref = _read_client_id(params), params.integer("userref")
    if cl_ord_id is not None and userref is not None:
        raise bad_argument("cl_ord_id")
    return Order(
        txid=txid,
        pair=pair,
        side=side,
        ordertype=ordertype,
        volume=volume,
        price=price,
        price2=price2,
        oflags=oflags,
        cl_ord_id=cl_ord_id,
        userref=userref,
        nonce=nonce,
        opened=now,
        listed=listed,
    )


def read_volume(params: Params, name: str, pair: Pair) -> Decimal | None:
    """Read a volume in the base asset, cut to the pair's digits; None if it is missing."""
    return _volume(params, name, pair, in_quote=False)


def _volume(params: Params, name: str, pair: Pair, *, in_quote: bool) -> Decimal | None:
    volume = params.decimal(name)
    if volume is None:
        return None
    if in_quote:
        volume /= pair.price
    volume = volume.quantize(Decimal(1).scaleb(-pair.lot_decimals), rounding=ROUND_DOWN)
    if volume < pair.least_volume:
        raise bad_argument(f"{name} minimum not met")
    return volume


def read_price(params: Params, name: str, pair: Pair) -> Decimal | None:
    """Read a price, which may have no more digits than the pair; None if it is missing."""
    price = params.decimal(name)
    if price is not None and price != round(price, pair.price_decimals):
        raise Refusal(
            f"EOrder:Invalid price:{pair.name} price can only be specified up to {pair.price_decimals} decimals."
        )
    return price


def _read_client_id(params: Params) -> str | None:
    value = params.text("cl_ord_id")
    if value is None:
        return None
    if not value.isascii() or not value.isprintable():
        raise bad_argument("cl_ord_id")
    if len(value) > _LONGEST_FREE_ID and not _is_uuid(value):
        raise bad_argument("cl_ord_id")
    return value


def _is_uuid(value: str) -> bool:
    try:
        UUID(value)
    except ValueError:
        return False
    return len(value) in _UUID_LENGTHS


def canonical(cl_ord_id: str) -> str:
    """Return the spelling in which the exchange stores a client's id.

    A UUID comes back in lower case with dashes, however it was sent: Kraken stores the 128 bits,
    not the text, and a client must not rely on its own spelling.
    """
    return str(UUID(cl_ord_id)) if _is_uuid(cl_ord_id) else cl_ord_id


def check_deadline(params: Params, sent: float) -> None:
    """Refuse a request whose `deadline` is not 2 to 60 s after the moment when it was sent.

    Kraken publishes the bounds but not the errors. Here a deadline that is too early gets `EService:Deadline elapsed`,
    and one that is too late gets an invalid argument.
    """
    deadline = _read_deadline(params)
    least, most = _DEADLINE
    if deadline is None:
        return
    if deadline > sent + most:
        raise bad_argument("deadline")
    if deadline < sent + least:
        raise Refusal("EService:Deadline elapsed")


def keep_deadline(params: Params, now: float) -> None:
    """Refuse a request whose `deadline` has passed."""
    deadline = _read_deadline(params)
    if deadline is not None and deadline <= now:
        raise Refusal("EService:Deadline elapsed")


def _read_deadline(params: Params) -> float | None:
    """Return Unix time in seconds, or None if there is no deadline."""
    text = params.text("deadline")
    if text is None:
        return None
    try:
        deadline = datetime.fromisoformat(text)
    except ValueError as error:
        raise bad_argument("deadline") from error
    if deadline.tzinfo is None:
        raise bad_argument("deadline")
    return deadline.timestamp()
