"""The exchange: API keys, nonces, the log of requests, and what each private method does.

Pure: no I/O, and the time comes as an argument, so that every rule can be tested as a plain
call. A private request goes through these stages, and `_server.py` calls them one by one:

1. `under_way` opens: the request was read from the network.
2. `arrive`: it has reached the exchange, and gets its place in the log.
3. `admit`: known method, readable body, key, limits, signature, nonce, which is now used.
4. What `admit` returned is called: the method does its work, and gives the answer.
5. `finish`: the answer has made its way back.

Faults hit before stages 3 and 4 and after it.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ._account import Account
from ._limits import Usage
from ._market import ASSETS, EARN_STRATEGIES, PUBLIC_METHODS, asset_named
from ._protocol import Params, Refusal, nonce_of
from ._records import Settings, SimulatedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from ._funds import Funds
    from ._protocol import Call
    from ._records import SimulatedOrder, SimulatedWithdrawal

_TOKEN_SECONDS: Final = 900  # in which a websocket token must be used
_PERMISSIONS: Final = (
    "query-funds",
    "query-open-trades",
    "query-closed-trades",
    "modify-trades",
    "close-trades",
    "query-ledger",
)


@dataclass(slots=True)
class ApiKey:
    """One API key: its secret, its nonces and the account behind it."""

    secret: bytes = field(repr=False)
    account: Account
    usage: Usage
    highest_nonce: int = -1
    used_nonces: set[int] = field(default_factory=set[int], repr=False)

    def use(self, nonce: int, window: int) -> None:
        """Accept a nonce, which is then used.

        It must be above the highest one accepted, or not further below it than the window and
        never used before.

        Raises:
            Refusal: `EAPI:Invalid nonce`; nothing has changed.
        """
        late = self.highest_nonce - nonce
        if late >= 0 and (late > window or nonce in self.used_nonces):
            raise Refusal("EAPI:Invalid nonce")
        self.used_nonces.add(nonce)
        self.highest_nonce = max(self.highest_nonce, nonce)


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that has passed every check, on its way to the method that answers it."""

    key: ApiKey
    params: Params
    nonce: int
    now: float
    settings: Settings

    @property
    def account(self) -> Account:
        return self.key.account

    @property
    def funds(self) -> Funds:
        return self.key.account.funds


def _api_key_info(request: _Admitted) -> object:
    return {
        "apiKeyName": request.account.name,
        "nonce": str(request.key.highest_nonce),
        "nonceWindow": request.settings.nonce_window,
        "permissions": list(_PERMISSIONS),
        "ipAllowlist": [],
        "validUntil": "0",
        "queryFrom": "0",
        "queryTo": "0",
        "lastUsed": str(int(request.now)),
    }


def _websockets_token(request: _Admitted) -> object:
    return {"token": request.account.ids.new("W", request.now), "expires": _TOKEN_SECONDS}


def _deposit_methods(request: _Admitted) -> object:
    asset = asset_named(request.params.required("asset"))
    return [{"method": asset.deposit_method, "limit": False, "gen-address": True}]


def _earn_strategies(request: _Admitted) -> object:
    wanted = request.params.text("asset")
    return {
        "next_cursor": None,
        "items": [item for item in EARN_STRATEGIES if wanted in {None, item["asset"]}],
    }


def _earn_allocations(_request: _Admitted) -> object:
    return {
        "converted_asset": ASSETS["ZUSD"].name,
        "total_allocated": "0.0000",
        "total_rewarded": "0.0000",
        "next_cursor": None,
        "items": [],
    }


_METHODS: Final[Mapping[str, Callable[[_Admitted], object]]] = MappingProxyType(
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
        "GetApiKeyInfo": _api_key_info,
        "GetWebSocketsToken": _websockets_token,
        "DepositMethods": _deposit_methods,
        "Earn/Strategies": _earn_strategies,
        "Earn/Allocations": _earn_allocations,
    }
)
PRIVATE_METHODS: Final = frozenset(_METHODS)


def decode_secret(secret: str) -> bytes:
    """Decode an API secret.

    Raises:
        ValueError: it is empty or no base64; the message does not show it.
    """
    try:
        decoded = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise ValueError("an account's secret must be base64 text, as Kraken hands it out")
    return decoded


def _error(refusal: Refusal) -> dict[str, object]:
    return {"error": [refusal.error]}


def public_answer(method: str, params: Params, now: float) -> dict[str, object]:
    """Return Kraken's answer to a public request: `error`, and `result` if there is none.

    Args:
        method: such as `Ticker`.
        params: what the URL's query says.
        now: Unix time in seconds.
    """
    try:
        if method not in PUBLIC_METHODS:
            raise Refusal("EGeneral:Unknown method")  # noqa: TRY301 - one way to every refusal
        return {"error": [], "result": PUBLIC_METHODS[method](params, now)}
    except Refusal as refusal:
        return _error(refusal)


class Exchange:
    """All accounts, their nonces and orders, and the log of their requests.

    Args:
        accounts: for each account its name, API key and base64 secret.
        settings: what applies at first; the attribute may be replaced at any time.
        seed: of the ids that orders and trades get.
        now: Unix time in seconds.
    """

    def __init__(self, accounts: list[tuple[str, str, str]], settings: Settings, *, seed: int, now: float) -> None:
        self.settings = settings
        self._accounts = [(name, key, decode_secret(secret)) for name, key, secret in accounts]
        self._random = Random(seed)  # noqa: S311 - ids of make-believe orders
        self._under_way: Counter[str] = Counter()
        self._sequence = 0
        self.reset(now)

    def reset(self, now: float) -> None:
        """Forget all requests, orders, balances, nonces and what was used up of the limits."""
        self._log: dict[int, SimulatedRequest] = {}
        self._keys = {key: self._new_key(name, secret, now) for name, key, secret in self._accounts}

    def _new_key(self, name: str, secret: bytes, now: float) -> ApiKey:
        usage = Usage()

        def count(pair: str, kind: str, now: float, since: float | None) -> None:
            usage.change(self.settings.limits, pair, kind, now, since)

        def listing_delay() -> float:
            return self._random.uniform(*self.settings.listing_delay)

        return ApiKey(secret, Account(name, self._random, now, count, listing_delay), usage)

    def requests(self) -> list[SimulatedRequest]:
        """Return the private requests in order of arrival."""
        return list(self._log.values())

    def orders(self, now: float) -> list[SimulatedOrder]:
        """Return the orders of all accounts in the order of their accounts, oldest first."""
        for key in self._keys.values():
            key.account.catch_up(now)
        return [order for key in self._keys.values() for order in key.account.orders()]

    def withdrawals(self) -> list[SimulatedWithdrawal]:
        """Return the withdrawals of all accounts in the order of their accounts, oldest first."""
        return [withdrawal for key in self._keys.values() for withdrawal in key.account.funds.withdrawals]

    def raise_nonce(self, account: str, nonce: int) -> int:
        """Accept a nonce that nobody sent, if it is above the highest. Return which was the highest before."""
        key = next(key for key in self._keys.values() if key.account.name == account)
        highest = key.highest_nonce
        if nonce > highest:
            key.use(nonce, window=0)
        return highest

    @contextmanager
    def under_way(self, call: Call) -> Generator[None]:
        """Count a request as under way for its account, from reading it to answering it."""
        name = self._name(call)
        self._under_way[name] += 1
        try:
            yield
        finally:
            self._under_way[name] -= 1

    def arrive(self, call: Call, received: float, fault: str = "") -> int:
        """Log a request that has reached the exchange; return its place in the order of arrival.

        `received` is monotonic time in seconds, `fault` the name of the fault that hits it.
        """
        self._sequence += 1
        try:
            nonce = nonce_of(call.params())
        except Refusal:
            nonce = None
        name = self._name(call)
        self._log[self._sequence] = SimulatedRequest(
            sequence=self._sequence,
            received=received,
            finished=None,
            account=name,
            path=call.path,
            method=call.method,
            nonce=nonce,
            error=(),
            in_flight=self._under_way[name],
            fault=fault,
        )
        return self._sequence

    def admit(self, call: Call, sequence: int, now: float) -> Callable[[float], dict[str, object]]:
        """Check a request that has arrived, and use up its nonce. Return what carries it out.

        That wants the time again, and returns `error`, and `result` if there is none. Both times are Unix time in
        seconds.
        """
        try:
            admitted = self._check(call, sequence, now)
        except Refusal as refusal:
            answer = self._refuse(sequence, refusal)
            return lambda _: answer

        def act(now: float) -> dict[str, object]:
            admitted.account.catch_up(now)
            try:
                return {"error": [], "result": _METHODS[call.method](replace(admitted, now=now))}
            except Refusal as refusal:
                return self._refuse(sequence, refusal)

        return act

    def _refuse(self, sequence: int, refusal: Refusal) -> dict[str, object]:
        self._note(sequence, lambda record: replace(record, error=(refusal.error,)))
        return _error(refusal)

    def finish(self, sequence: int, finished: float) -> None:
        """Log that the answer has made its way back, at this monotonic time in seconds."""
        self._note(sequence, lambda record: replace(record, finished=finished))

    def _name(self, call: Call) -> str:
        key = self._keys.get(call.key)
        return "" if key is None else key.account.name

    def _note(self, sequence: int, change: Callable[[SimulatedRequest], SimulatedRequest]) -> None:
        if sequence in self._log:  # a reset may have come between
            self._log[sequence] = change(self._log[sequence])

    def _check(self, call: Call, sequence: int, now: float) -> _Admitted:
        """Check everything that Kraken checks before a method sees the request.

        The nonce is used up last but one: whoever has no valid signature can't drive it up. It
        stays used whatever the counter of calls and the method then say.
        """
        limits = self.settings.limits
        if call.method not in _METHODS:
            raise Refusal("EGeneral:Unknown method")
        params = call.params()
        key = self._keys.get(call.key)
        if key is None:
            raise Refusal("EAPI:Invalid key")
        record = self._log.get(sequence)
        if record is None:  # it was held while everything was reset, and must not reach into the new state
            raise Refusal("EService:Unavailable")
        key.usage.arrive(limits, record.in_flight, now)
        try:
            nonce = nonce_of(params)
            if not call.is_signed_with(key.secret, params.required("nonce")):
                raise Refusal("EAPI:Invalid signature")  # noqa: TRY301 - one way to note what was bad
            key.use(nonce, self.settings.nonce_window)
        except Refusal:
            key.usage.spoil(limits, now)
            raise
        key.usage.call(limits, call.method, now)
        return _Admitted(key, params, nonce, now, self.settings)
