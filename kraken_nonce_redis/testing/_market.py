"""A small, fixed market: assets, pairs and prices, and the public methods that show them.

The prices never move, so that a test can compute what an order costs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from ._protocol import Refusal, bad_argument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ._protocol import Params

TAKER_FEE = Decimal("0.0026")  # share of the cost
_CANDLES = 60
_CANDLE_MINUTES = frozenset({1, 5, 15, 30, 60, 240, 1440, 10080, 21600})


@dataclass(frozen=True, slots=True)
class Asset:
    """One asset; balances have `decimals` digits after the point."""

    id: str
    name: str
    decimals: int
    display_decimals: int
    deposit_method: str
    start_balance: Decimal
    """What every account owns at first: enough that no test runs out of it by accident."""
    usd: Decimal
    """Value of one unit in US dollars."""

    def text(self, amount: Decimal) -> str:
        """Write an amount with this asset's digits."""
        return f"{amount:.{self.decimals}f}"

    def info(self) -> dict[str, object]:
        """Return the asset as the method Assets shows it."""
        return {
            "aclass": "currency",
            "altname": self.name,
            "decimals": self.decimals,
            "display_decimals": self.display_decimals,
            "status": "enabled",
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair; prices in the quote asset, volumes in the base asset."""

    id: str
    name: str
    wsname: str
    base: Asset
    quote: Asset
    price_decimals: int
    lot_decimals: int
    least_volume: Decimal
    price: Decimal

    @property
    def symbol(self) -> str:
        """The pair's name in Kraken's newer methods, such as `BTC/USD`."""
        return self.wsname.replace("XBT", "BTC")

    def price_text(self, price: Decimal) -> str:
        """Write a price with this pair's digits."""
        return f"{price:.{self.price_decimals}f}"

    def volume_text(self, volume: Decimal) -> str:
        """Write a volume with this pair's digits."""
        return f"{volume:.{self.lot_decimals}f}"

    def info(self) -> dict[str, object]:
        """Return the pair as the method AssetPairs shows it."""
        return {
            "altname": self.name,
            "wsname": self.wsname,
            "aclass_base": "currency",
            "base": self.base.id,
            "aclass_quote": "currency",
            "quote": self.quote.id,
            "lot": "unit",
            "cost_decimals": 5,
            "pair_decimals": self.price_decimals,
            "lot_decimals": self.lot_decimals,
            "lot_multiplier": 1,
            "leverage_buy": [],
            "leverage_sell": [],
            "fees": [[0, float(TAKER_FEE * 100)]],
            "fees_maker": [[0, 0.16]],
            "fee_volume_currency": "ZUSD",
            "margin_call": 80,
            "margin_stop": 40,
            "ordermin": str(self.least_volume),
            "costmin": "0.5",
            "tick_size": str(Decimal(1).scaleb(-self.price_decimals)),
            "status": "online",
        }

    def ticker(self) -> dict[str, object]:
        """Return the pair as the method Ticker shows it."""
        price = self.price_text(self.price)
        lot = self.volume_text(Decimal(1))
        return {
            "a": [price, "1", "1.000"],
            "b": [price, "1", "1.000"],
            "c": [price, lot],
            "v": [lot, lot],
            "p": [price, price],
            "t": [1, 1],
            "l": [price, price],
            "h": [price, price],
            "o": price,
        }


_XBT = Asset("XXBT", "XBT", 10, 5, "Bitcoin", Decimal(100_000), Decimal(60_000))
_ETH = Asset("XETH", "ETH", 10, 5, "Ether (Hex)", Decimal(1_000_000), Decimal(3_000))
_USD = Asset("ZUSD", "USD", 4, 2, "Fedwire", Decimal(10_000_000_000), Decimal(1))
_EUR = Asset("ZEUR", "EUR", 4, 2, "SEPA", Decimal(10_000_000_000), Decimal("1.1"))

ASSETS: Mapping[str, Asset] = MappingProxyType({a.id: a for a in (_XBT, _ETH, _USD, _EUR)})
PAIRS: Mapping[str, Pair] = MappingProxyType(
    {
        pair.id: pair
        for pair in (
            Pair(
                id="XXBTZUSD",
                name="XBTUSD",
                wsname="XBT/USD",
                base=_XBT,
                quote=_USD,
                price_decimals=1,
                lot_decimals=8,
                least_volume=Decimal("0.00005"),
                price=Decimal(60_000),
            ),
            Pair(
                id="XETHZUSD",
                name="ETHUSD",
                wsname="ETH/USD",
                base=_ETH,
                quote=_USD,
                price_decimals=2,
                lot_decimals=8,
                least_volume=Decimal("0.001"),
                price=Decimal(3_000),
            ),
            Pair(
                id="XXBTZEUR",
                name="XBTEUR",
                wsname="XBT/EUR",
                base=_XBT,
                quote=_EUR,
                price_decimals=1,
                lot_decimals=8,
                least_volume=Decimal("0.00005"),
                price=Decimal(55_000),
            ),
        )
    }
)
_ASSET_NAMES = {name: asset for asset in ASSETS.values() for name in (asset.id, asset.name)}
_PAIR_NAMES = {name: pair for pair in PAIRS.values() for name in (pair.id, pair.name, pair.wsname, pair.symbol)}


def asset_named(name: str) -> Asset:
    """Return the asset with this id or name. Raises `Refusal` if there is none."""
    try:
        return _ASSET_NAMES[name]
    except KeyError:
        raise Refusal("EQuery:Unknown asset") from None


def pair_named(name: str) -> Pair:
    """Return the pair with this id or name. Raises `Refusal` if there is none."""
    try:
        return _PAIR_NAMES[name]
    except KeyError:
        raise Refusal("EQuery:Unknown asset pair") from None


def _chosen_pairs(params: Params) -> Iterable[Pair]:
    names = params.many("pair")
    return [pair_named(name) for name in names] if names else PAIRS.values()


def _time(_params: Params, now: float) -> object:
    rfc1123 = time.strftime("%a, %d %b %y %H:%M:%S +0000", time.gmtime(now))
    return {"unixtime": int(now), "rfc1123": rfc1123}


def _system_status(_params: Params, now: float) -> object:
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return {"status": "online", "timestamp": timestamp}


def _assets(params: Params, _now: float) -> object:
    names = params.many("asset")
    chosen = [asset_named(name) for name in names] if names else ASSETS.values()
    return {asset.id: asset.info() for asset in chosen}


def _asset_pairs(params: Params, _now: float) -> object:
    return {pair.id: pair.info() for pair in _chosen_pairs(params)}


def _ticker(params: Params, _now: float) -> object:
    return {pair.id: pair.ticker() for pair in _chosen_pairs(params)}


def _ohlc(params: Params, now: float) -> object:
    pair = pair_named(params.required("pair"))
    minutes = params.integer("interval") or 1
    if minutes not in _CANDLE_MINUTES:
        raise bad_argument("interval")
    since = params.integer("since") or 0
    step = minutes * 60
    newest = int(now) // step * step
    price = pair.price_text(pair.price)
    volume = pair.volume_text(Decimal(1))
    candles = [
        [start, price, price, price, price, price, volume, 1]
        for start in range(newest - (_CANDLES - 1) * step, newest + 1, step)
        if start > since
    ]
    return {pair.id: candles, "last": newest - step}


PUBLIC_METHODS: Mapping[str, Callable[[Params, float], object]] = MappingProxyType(
    {
        "Time": _time,
        "SystemStatus": _system_status,
        "Assets": _assets,
        "AssetPairs": _asset_pairs,
        "Ticker": _ticker,
        "OHLC": _ohlc,
    }
)
"""Each takes the query's parameters and the time (Unix seconds) and returns the result."""

EARN_STRATEGIES: tuple[Mapping[str, object], ...] = (
    {
        "id": "ESRFUO3-Q62XD-WIOIL7",
        "asset": "ETH",
        "lock_type": {"type": "instant", "payout_frequency": 604800},
        "apr_estimate": {"low": "2.0000", "high": "4.0000"},
        "user_min_allocation": "0.01",
        "allocation_fee": "0.0000",
        "deallocation_fee": "0.0000",
        "auto_compound": {"type": "enabled"},
        "yield_source": {"type": "staking"},
        "can_allocate": True,
        "can_deallocate": True,
        "allocation_restriction_info": [],
    },
)
