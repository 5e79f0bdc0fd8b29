"""Algo Trading: the strategies of an account. No I/O, no clock of its own.

Kraken's documentation of November 2026 shows the parameters, the id, and the answers of AddStrategy, QueryStrategies
and GetClosedStrategies. The form of the other two answers and the error for an unknown id are guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from ._market import pair_named
from ._orders import SIDES, read_price, read_volume
from ._protocol import Refusal, bad_argument
from ._records import SimulatedStrategy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._funds import Funds
    from ._listing import Ids
    from ._market import Pair
    from ._protocol import Params

_ORDER_TYPES: Final = frozenset({"market", "limit"})
_TYPES: Final = frozenset({"twap"})
_ASSET_CLASSES: Final = frozenset({"forex"})
_SHORTEST: Final = 60.0  # seconds from start to end
_FURTHEST: Final = 30 * 86_400.0  # seconds from now to start and to end
_MOST_IDS: Final = 20  # in one QueryStrategies
_MOST_CLOSED: Final = 100  # strategies on one page of GetClosedStrategies
_ZERO: Final = Decimal(0)


@dataclass(slots=True)
class _Strategy:
    """A strategy. No child order is placed for it: it never fills, and expires unless it is cancelled."""

    strategy_id: str
    nonce: int
    pair: Pair
    side: str
    ordertype: str
    volume: Decimal
    price: Decimal | None
    opened: float
    listed: float
    """When lists begin to show it."""
    start: float
    end: float
    cancelled: float | None = None

    def status(self, now: float) -> str:
        """Return `pending`, `open`, `expired` or `cancelled`."""
        if self.cancelled is not None:
            return "cancelled"
        if now >= self.end:
            return "expired"
        return "pending" if now < self.start else "open"

    def is_over(self, now: float) -> bool:
        """Return whether it has ended."""
        return self.status(now) in {"expired", "cancelled"}

    @property
    def closed(self) -> float:
        """When it ended or will end."""
        return self.end if self.cancelled is None else self.cancelled

    def info(self, now: float) -> dict[str, object]:
        """Return the strategy as Kraken lists it."""
        quote = self.pair.quote
        details: dict[str, object] = {
            "strategy_type": "twap",
            "side": self.side,
            "volume": self.pair.volume_text(self.volume),
            "filled_volume": self.pair.volume_text(_ZERO),
            "avg_price": self.pair.price_text(_ZERO),
            "total_cost": quote.text(_ZERO),
            "total_fee": quote.text(_ZERO),
            "starttm": str(int(self.start)),
            "expiretm": str(int(self.end)),
            "symbol": self.pair.symbol,
            "asset_class": "forex",
            "ordertype": self.ordertype,
        }
        if self.price is not None:
            details["price"] = self.pair.price_text(self.price)
        reason = {"reason": "userRequested"} if self.cancelled is not None else {}
        return {"strategy_id": self.strategy_id, "status": self.status(now), **reason, "details": details}


class Strategies:
    """The strategies of one account.

    The methods that answer a request raise `Refusal` where Kraken would refuse, and then change nothing. `now`
    is Unix time in seconds.

    Args:
        account: its name.
        ids: makes the ids.
        funds: the account's funds. A strategy needs them when it is added, but holds nothing.
        listing_delay: draws how many seconds a strategy takes until it is listed.
    """

    def __init__(self, account: str, ids: Ids, funds: Funds, listing_delay: Callable[[], float]) -> None:
        self._account = account
        self._ids = ids
        self._funds = funds
        self._listing_delay = listing_delay
        self._strategies: dict[str, _Strategy] = {}

    def all(self, now: float) -> list[SimulatedStrategy]:
        """Return every strategy that was added, oldest first."""
        return [
            SimulatedStrategy(
                strategy_id=strategy.strategy_id,
                account=self._account,
                nonce=strategy.nonce,
                pair=strategy.pair.id,
                side=strategy.side,
                ordertype=strategy.ordertype,
                volume=strategy.pair.volume_text(strategy.volume),
                price="0" if strategy.price is None else strategy.pair.price_text(strategy.price),
                status=strategy.status(now),
                opened=strategy.opened,
            )
            for strategy in self._strategies.values()
        ]

    def add(self, params: Params, nonce: int, now: float) -> object:
        """Answer AddStrategy. With `validate` the strategy is checked except for funds, and not added."""
        strategy = self._read(params, nonce, now)
        if params.flag("validate"):
            return {"strategy_id": ""}
        needed = strategy.volume
        if strategy.side == "buy":
            needed *= strategy.price or strategy.pair.price
        if needed > self._funds.available(strategy.pair.quote if strategy.side == "buy" else strategy.pair.base):
            raise Refusal("EOrder:Insufficient funds")
        self._strategies[strategy.strategy_id] = strategy
        return {"strategy_id": strategy.strategy_id}

    def cancel(self, params: Params, now: float) -> object:
        """Answer CancelStrategy."""
        strategy = self._strategies.get(params.required("strategy_id"))
        if strategy is None or strategy.is_over(now):
            raise Refusal("EOrder:Unknown strategy")
        strategy.cancelled = now
        return {"strategy_id": strategy.strategy_id}

    def query(self, params: Params, now: float) -> object:
        """Answer QueryStrategies: up to 20 ids; unknown ones are left out."""
        ids = params.many("strategy_ids")
        if not 1 <= len(ids) <= _MOST_IDS:
            raise bad_argument("strategy_ids")
        found = {strategy.strategy_id: strategy for strategy in self._listed(params, now)}
        return {"strategies": {name: found[name].info(now) for name in ids if name in found}}

    def open(self, params: Params, now: float) -> object:
        """Answer GetOpenStrategies: all that are pending or open, newest first."""
        chosen = [strategy for strategy in self._listed(params, now) if not strategy.is_over(now)]
        return {"open": {strategy.strategy_id: strategy.info(now) for strategy in chosen}}

    def closed(self, params: Params, now: float) -> object:
        """Answer GetClosedStrategies, latest end first; filters: status, start, end, limit, cursor."""
        by_opening = params.text("query_time_mode") == "open"

        def moment(strategy: _Strategy) -> float:
            return strategy.opened if by_opening else strategy.closed

        wanted, start, end = params.text("status"), params.integer("start"), params.integer("end")
        chosen = sorted(
            (
                strategy
                for strategy in self._listed(params, now)
                if strategy.is_over(now)
                and wanted in {None, strategy.status(now)}
                and (start is None or moment(strategy) >= start)
                and (end is None or moment(strategy) <= end)
            ),
            key=moment,
            reverse=True,
        )
        limit, skipped = params.integer("limit") or _MOST_CLOSED, params.integer("cursor") or 0
        if not 1 <= limit <= _MOST_CLOSED or skipped < 0:
            raise bad_argument("limit")
        page = chosen[skipped : skipped + limit]
        more = {"next_cursor": str(skipped + limit)} if len(chosen) > skipped + limit else {}
        return {"closed": [strategy.info(now) for strategy in page], **more}

    def _listed(self, params: Params, now: float) -> Iterator[_Strategy]:
        """Return the strategies that are listed, newest first."""
        if params.text("strategy_type") not in {None, *_TYPES}:
            raise bad_argument("strategy_type")
        return (strategy for strategy in reversed(self._strategies.values()) if strategy.listed <= now)

    def _read(self, params: Params, nonce: int, now: float) -> _Strategy:
        params.choice("strategy_type", _TYPES)
        if params.text("asset_class") not in {None, *_ASSET_CLASSES}:
            raise bad_argument("asset_class")
        pair = pair_named(params.required("symbol"))
        side = params.choice("side", SIDES)
        ordertype = params.choice("ordertype", _ORDER_TYPES)
        volume, price = read_volume(params, "volume", pair), read_price(params, "price", pair)
        if volume is None:
            raise bad_argument("volume")
        if (price is None) != (ordertype == "market"):
            raise bad_argument("price")
        start = now if params.text("starttm") in {None, "0"} else _moment(params, "starttm", now)
        end = _moment(params, "expiretm", now)
        if start > now + _FURTHEST:
            raise bad_argument("starttm")
        if not max(start + _SHORTEST, now) <= end <= now + _FURTHEST:
            raise bad_argument("expiretm")
        return _Strategy(
            strategy_id=self._ids.new("AS", now),
            nonce=nonce,
            pair=pair,
            side=side,
            ordertype=ordertype,
            volume=volume,
            price=price,
            opened=now,
            listed=now + self._listing_delay(),
            start=start,
            end=end,
        )


def _moment(params: Params, name: str, now: float) -> float:
    """Read Unix time in whole seconds, or `+` and a number of seconds from now."""
    text = params.required(name)
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(2**63))):
        raise bad_argument(name)
    return now + int(digits) if text.startswith("+") else float(digits)
