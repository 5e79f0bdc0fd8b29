"""What each private method does with a request that has passed every check. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ._market import ASSETS, EARN_STRATEGIES, asset_named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._account import Account
    from ._funds import Funds
    from ._keys import ApiKey, NonceWindow
    from ._protocol import Params
    from ._strategies import Strategies

_TOKEN_SECONDS: Final = 900  # within which a websocket token must be used
_PERMISSIONS: Final = (
    "query-funds",
    "query-open-trades",
    "query-closed-trades",
    "modify-trades",
    "close-trades",
    "query-ledger",
)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that has passed every check, on its way to the method that answers it."""

    key: ApiKey
    window: NonceWindow
    """The key's nonce window."""
    params: Params
    nonce: int
    now: float

    @property
    def account(self) -> Account:
        """The account behind the key."""
        return self.key.account

    @property
    def funds(self) -> Funds:
        """What the account owns."""
        return self.key.account.funds

    @property
    def strategies(self) -> Strategies:
        """The account's strategies of Algo Trading."""
        return self.key.account.strategies


def _api_key_info(request: Admitted) -> object:
    return {
        "apiKeyName": request.key.name,
        "nonce": str(request.key.nonces.highest),
        "nonceWindow": request.window.ticks,
        "permissions": list(_PERMISSIONS),
        "ipAllowlist": [],
        "validUntil": "0",
        "queryFrom": "0",
        "queryTo": "0",
        "lastUsed": str(int(request.now)),
    }


def _websockets_token(request: Admitted) -> object:
    return {"token": request.account.ids.new("W", request.now), "expires": _TOKEN_SECONDS}


def _deposit_methods(request: Admitted) -> object:
    asset = asset_named(request.params.required("asset"))
    return [{"method": asset.deposit_method, "limit": False, "gen-address": True}]


def _earn_strategies(request: Admitted) -> object:
    wanted = request.params.text("asset")
    return {
        "next_cursor": None,
        "items": [item for item in EARN_STRATEGIES if wanted in {None, item["asset"]}],
    }


def _earn_allocations(_request: Admitted) -> object:
    return {
        "converted_asset": ASSETS["ZUSD"].name,
        "total_allocated": "0.0000",
        "total_rewarded": "0.0000",
        "next_cursor": None,
        "items": [],
    }


METHODS: Final[Mapping[str, Callable[[Admitted], object]]] = MappingProxyType(
    {
        "Balance": lambda r: r.funds.balance(),
        "BalanceEx": lambda r: r.funds.extended_balance(),
        "TradeBalance": lambda r: r.funds.trade_balance(r.params),
        "TradeVolume": lambda r: r.account.trade_volume(r.params),
        "OpenPositions": lambda _: {},
        "OpenOrders": lambda r: r.account.open_orders(r.params, r.now),
        "ClosedOrders": lambda r: r.account.closed_orders(r.params, r.now),
        "QueryOrders": lambda r: r.account.query_orders(r.params, r.now),
        "TradesHistory": lambda r: r.account.trades_history(r.params),
        "QueryTrades": lambda r: r.account.query_trades(r.params),
        "Ledgers": lambda r: r.funds.ledgers(r.params),
        "QueryLedgers": lambda r: r.funds.query_ledgers(r.params),
        "AddOrder": lambda r: r.account.add_order(r.params, r.nonce, r.now),
        "AddOrderBatch": lambda r: r.account.add_batch(r.params, r.nonce, r.now),
        "AmendOrder": lambda r: r.account.amend_order(r.params, r.now),
        "EditOrder": lambda r: r.account.edit_order(r.params, r.nonce, r.now),
        "CancelOrder": lambda r: r.account.cancel_order(r.params, r.now),
        "CancelOrderBatch": lambda r: r.account.cancel_batch(r.params, r.now),
        "CancelAll": lambda r: r.account.cancel_all(r.now),
        "CancelAllOrdersAfter": lambda r: r.account.cancel_all_after(r.params, r.now),
        "Withdraw": lambda r: r.funds.withdraw(r.params, r.account.name, r.nonce, r.now),
        "AddStrategy": lambda r: r.strategies.add(r.params, r.nonce, r.now),
        "CancelStrategy": lambda r: r.strategies.cancel(r.params, r.now),
        "QueryStrategies": lambda r: r.strategies.query(r.params, r.now),
        "GetOpenStrategies": lambda r: r.strategies.open(r.params, r.now),
        "GetClosedStrategies": lambda r: r.strategies.closed(r.params, r.now),
        "GetApiKeyInfo": _api_key_info,
        "GetWebSocketsToken": _websockets_token,
        "DepositMethods": _deposit_methods,
        "Earn/Strategies": _earn_strategies,
        "Earn/Allocations": _earn_allocations,
    }
)
"""The private methods by name. Each answers a request, or raises `Refusal`."""

WITH_DEADLINE: Final = frozenset({"AddOrder", "AddOrderBatch", "AmendOrder", "EditOrder"})
"""Methods that take a `deadline`."""

JSON_ONLY: Final = frozenset(
    {"AddStrategy", "CancelStrategy", "QueryStrategies", "GetOpenStrategies", "GetClosedStrategies"}
)
"""Methods whose parameters Kraken documents only as JSON."""
