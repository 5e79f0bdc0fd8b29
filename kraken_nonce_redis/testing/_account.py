"""One client of the exchange: balances, orders, trades and ledger. No I/O, no clock of its own."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from ._market import ASSETS, PAIRS, TAKER_FEE, asset_named, pair_named
from ._orders import (
    LedgerEntry,
    Order,
    Trade,
    canonical,
    check_deadline,
    read_new,
    read_price,
    read_volume,
)
from ._protocol import Refusal, bad_argument
from ._records import SimulatedOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from random import Random

    from ._market import Asset
    from ._protocol import Params

_PAGE: Final = 50  # entries of a list that one answer holds
_ID_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_ZERO: Final = Decimal(0)

_Entry = TypeVar("_Entry")


class CountChange(Protocol):
    """Counts a change of an order against the limit of its pair, see `Usage.change`."""

    def __call__(self, pair: str, kind: str, now: float, since: float | None) -> None:
        """Raise `Refusal` if it is too many."""
        ...


class Account:
    """What one client owns and has ordered.

    Market orders fill at once and whole, at the market's fixed price. All others stay open until
    they are amended, edited or cancelled.

    The methods that answer a request raise `Refusal` where Kraken would refuse, and then have
    changed nothing. Each change of an order is counted with `count` first, valid or not. `now` is Unix time in seconds.
    """

    def __init__(self, name: str, random: Random, now: float, count: CountChange) -> None:
        self.name = name
        self._random = random
        self._count = count
        self._balances = dict.fromkeys(ASSETS, _ZERO)
        self._held = dict.fromkeys(ASSETS, _ZERO)
        self._orders: dict[str, Order] = {}
        self._open: dict[str, Order] = {}
        self._open_by_client_id: dict[str, Order] = {}
        self._closed: list[Order] = []
        self._trades: dict[str, Trade] = {}
        self._ledger: dict[str, LedgerEntry] = {}
        for asset in ASSETS.values():
            self._book(asset, asset.start_balance, kind="deposit", reference=self.new_id("Q"), now=now)

    def orders(self) -> list[SimulatedOrder]:
        """Return every order that was placed, oldest first."""
        return [
            SimulatedOrder(
                txid=order.txid,
                account=self.name,
                nonce=order.nonce,
                pair=order.pair.id,
                side=order.side,
                ordertype=order.ordertype,
                volume=order.pair.volume_text(order.volume),
                price=order.pair.price_text(order.price) if order.price else "0",
                status=order.status,
                cl_ord_id=order.cl_ord_id,
                userref=order.userref,
            )
            for order in self._orders.values()
        ]

    def new_id(self, first: str) -> str:
        """Return a new id that looks like Kraken's, such as `OQCLML-BW3P3-BUCMWZ`."""
        letters = "".join(self._random.choices(_ID_LETTERS, k=16))
        return f"{first}{letters[:5]}-{letters[5:10]}-{letters[10:]}"

    # Balances

    def balance(self) -> object:
        """Answer Balance."""
        return {key: ASSETS[key].text(amount) for key, amount in self._balances.items()}

    def extended_balance(self) -> object:
        """Answer BalanceEx."""
        return {
            key: {
                "balance": ASSETS[key].text(amount),
                "hold_trade": ASSETS[key].text(self._held[key]),
            }
            for key, amount in self._balances.items()
        }

    def trade_balance(self, params: Params) -> object:
        """Answer TradeBalance, for an account without margin positions."""
        unit = asset_named(params.text("asset") or "ZUSD")
        owned = sum((amount * ASSETS[key].usd for key, amount in self._balances.items()), _ZERO)
        equity = unit.text(owned / unit.usd)
        return dict.fromkeys(("eb", "tb", "e", "mf"), equity) | dict.fromkeys(("m", "n", "c", "v"), unit.text(_ZERO))

    def trade_volume(self, params: Params) -> object:
        """Answer TradeVolume, without a discount for it."""
        names = params.many("pair")
        pairs = [pair_named(name) for name in names] if names else PAIRS.values()
        fee = f"{TAKER_FEE * 100:.4f}"
        fees = {pair.id: {"fee": fee, "minfee": fee, "maxfee": fee} for pair in pairs}
        volume = sum((t.cost * t.order.pair.quote.usd for t in self._trades.values()), _ZERO)
        return {
            "currency": "ZUSD",
            "volume": f"{volume:.4f}",
            "fees": fees,
            "fees_maker": fees,
        }

    # Placing and changing orders

    def add_order(self, params: Params, nonce: int, now: float) -> object:
        """Answer AddOrder. With `validate` the order is checked and not placed."""
        order = read_new(params, txid=self.new_id("O"), nonce=nonce, now=now)
        if not params.flag("validate"):
            self._count(order.pair.id, "add", now, None)
        check_deadline(params, now)
        if order.cl_ord_id and canonical(order.cl_ord_id) in self._open_by_client_id:
            raise bad_argument("cl_ord_id not unique")
        self._check_funds(order)
        descr = {"order": order.description()}
        if params.flag("validate"):
            return {"descr": descr}
        self._place(order, now)
        return {"descr": descr, "txid": [order.txid]}

    def amend_order(self, params: Params, now: float) -> object:
        """Answer AmendOrder: change volume or prices of an open order, which keeps its txid."""
        order = self._find_open(params.text("txid"), params.text("cl_ord_id"))[0]
        self._count(order.pair.id, "amend", now, order.since)
        check_deadline(params, now)
        limit = read_price(params, "limit_price", order.pair)
        trigger = read_price(params, "trigger_price", order.pair)
        if order.ordertype == "limit":
            limit, trigger = None, limit
        changed = replace(
            order,
            volume=read_volume(params, "order_qty", order.pair) or order.volume,
            price=trigger or order.price,
            price2=(limit if order.price2 else None) or order.price2,
        )
        self._check_funds(changed, instead_of=order)
        self._hold(order, -1)
        order.volume, order.price, order.price2 = changed.volume, changed.price, changed.price2
        order.amended = now
        self._hold(order, 1)
        return {"amend_id": self.new_id("T")}

    def edit_order(self, params: Params, nonce: int, now: float) -> object:
        """Answer EditOrder: cancel an open order and place a changed one with a new txid.

        The new order has no `cl_ord_id`, and a `userref` only if the request gives one.
        """
        order = self._find_open(params.text("txid"), None)[0]
        pair = order.pair
        if not params.flag("validate"):
            self._count(pair.id, "edit", now, order.since)
        check_deadline(params, now)
        if pair_named(params.required("pair")) is not pair:
            raise bad_argument("pair")
        changed = replace(
            order,
            txid=self.new_id("O"),
            volume=read_volume(params, "volume", pair) or order.volume,
            price=read_price(params, "price", pair) or order.price,
            price2=(read_price(params, "price2", pair) if order.price2 else None) or order.price2,
            oflags=params.text("oflags") or order.oflags,
            cl_ord_id=None,
            userref=params.integer("userref"),
            nonce=nonce,
            opened=now,
            amended=None,
        )
        self._check_funds(changed, instead_of=order)
        descr = {"order": changed.description()}
        if params.flag("validate"):
            return {"descr": descr}
        self._cancel([order], now, reason="Order replaced")
        self._place(changed, now)
        return {
            "status": "ok",
            "txid": changed.txid,
            "originaltxid": order.txid,
            "volume": pair.volume_text(changed.volume),
            "price": pair.price_text(changed.price),
            "price2": pair.price_text(changed.price2),
            "orders_cancelled": 1,
            "descr": descr,
        }

    def cancel_order(self, params: Params, now: float) -> object:
        """Answer CancelOrder: by txid, by userref (given as txid) or by cl_ord_id."""
        return self._cancel_counted(self._find_open(params.text("txid"), params.text("cl_ord_id")), now)

    def cancel_batch(self, params: Params, now: float) -> object:
        """Answer CancelOrderBatch: txids or userrefs in `orders`, client ids in `cl_ord_ids`."""
        references, client_ids = params.many("orders"), params.many("cl_ord_ids")
        if not 1 <= len(references) + len(client_ids) <= _PAGE:
            raise bad_argument("orders")
        found = [order for name in references for order in self._find_open(name, None)]
        found += [order for name in client_ids for order in self._find_open(None, name)]
        return self._cancel_counted({order.txid: order for order in found}.values(), now)

    def cancel_all(self, now: float) -> object:
        """Answer CancelAll."""
        return self._cancel_counted(list(self._open.values()), now)

    # Looking up

    def open_orders(self, params: Params) -> object:
        """Answer OpenOrders, newest first; filters: userref, cl_ord_id."""
        trades = params.flag("trades")
        chosen = _filtered(reversed(self._open.values()), params)
        return {"open": {order.txid: order.info(with_trades=trades) for order in chosen}}

    def closed_orders(self, params: Params) -> object:
        """Answer ClosedOrders, the 50 newest; filters: userref, cl_ord_id, start, end, ofs."""
        trades = params.flag("trades")
        by_opening = params.text("closetime") == "open"
        page, count = self._page(
            _filtered(reversed(self._closed), params),
            params,
            lambda order: order.opened if by_opening else order.closed or order.opened,
        )
        closed = {order.txid: order.info(with_trades=trades) for order in page}
        return {"closed": closed, "count": count}

    def query_orders(self, params: Params) -> object:
        """Answer QueryOrders: by txid alone; like Kraken, it knows no `cl_ord_id`."""
        found = _by_id(self._orders, params, "txid", "EOrder:Unknown order")
        trades, userref = params.flag("trades"), params.integer("userref")
        return {order.txid: order.info(with_trades=trades) for order in found if userref in {None, order.userref}}

    def trades_history(self, params: Params) -> object:
        """Answer TradesHistory, the 50 newest; filters: start, end, ofs."""
        trades = reversed(self._trades.values())
        page, count = self._page(trades, params, lambda trade: trade.time)
        return {"trades": {trade.txid: trade.info() for trade in page}, "count": count}

    def query_trades(self, params: Params) -> object:
        """Answer QueryTrades."""
        found = _by_id(self._trades, params, "txid", "EQuery:Unknown trade")
        return {trade.txid: trade.info() for trade in found}

    def ledgers(self, params: Params) -> object:
        """Answer Ledgers, the 50 newest; filters: asset, type, start, end, ofs."""
        names = [name for name in params.many("asset") if name != "all"]
        assets = {asset_named(name).id for name in names} or set(ASSETS)
        kinds = {params.text("type") or "all"}
        chosen = (
            entry
            for entry in reversed(self._ledger.values())
            if entry.asset.id in assets and kinds & {"all", entry.kind}
        )
        page, count = self._page(chosen, params, lambda entry: entry.time)
        return {"ledger": {entry.txid: entry.info() for entry in page}, "count": count}

    def query_ledgers(self, params: Params) -> object:
        """Answer QueryLedgers."""
        found = _by_id(self._ledger, params, "id", "EQuery:Unknown ledger")
        return {entry.txid: entry.info() for entry in found}

    # Inside

    def _check_funds(self, order: Order, *, instead_of: Order | None = None) -> None:
        asset, needed = order.needs()
        available = self._balances[asset.id] - self._held[asset.id]
        if instead_of is not None:
            available += instead_of.needs()[1]
        if needed > available:
            raise Refusal("EOrder:Insufficient funds")

    def _hold(self, order: Order, sign: int) -> None:
        asset, amount = order.needs()
        self._held[asset.id] += sign * amount

    def _place(self, order: Order, now: float) -> None:
        self._orders[order.txid] = order
        if order.ordertype == "market":
            self._fill(order, now)
            return
        self._open[order.txid] = order
        if order.cl_ord_id is not None:
            self._open_by_client_id[canonical(order.cl_ord_id)] = order
        self._hold(order, 1)

    def _fill(self, order: Order, now: float) -> None:
        trade = Trade(self.new_id("T"), len(self._trades) + 1, order, now)
        self._trades[trade.txid] = order.trade = trade
        sign = 1 if order.side == "buy" else -1
        for asset, amount, fee in (
            (order.pair.base, sign * order.volume, _ZERO),
            (order.pair.quote, -sign * trade.cost, trade.fee),
        ):
            self._book(asset, amount, fee, kind="trade", reference=trade.txid, now=now)
        self._close(order, "closed", now, reason=None)

    def _book(
        self,
        asset: Asset,
        amount: Decimal,
        fee: Decimal = _ZERO,
        *,
        kind: str,
        reference: str,
        now: float,
    ) -> None:
        balance = self._balances[asset.id] + amount - fee
        self._balances[asset.id] = balance
        txid = self.new_id("L")
        self._ledger[txid] = LedgerEntry(txid, reference, now, kind, asset, amount, fee, balance)

    def _close(self, order: Order, status: str, now: float, *, reason: str | None) -> None:
        order.status, order.closed, order.reason = status, now, reason
        self._closed.append(order)

    def _cancel_counted(self, orders: Iterable[Order], now: float) -> object:
        orders = list(orders)
        for order in orders:
            self._count(order.pair.id, "cancel", now, order.since)
        return self._cancel(orders, now)

    def _cancel(self, orders: Iterable[Order], now: float, *, reason: str = "User requested") -> object:
        count = 0
        for order in orders:
            del self._open[order.txid]
            if order.cl_ord_id is not None:
                del self._open_by_client_id[canonical(order.cl_ord_id)]
            self._hold(order, -1)
            self._close(order, "canceled", now, reason=reason)
            count += 1
        return {"count": count}

    def _find_open(self, reference: str | None, client_id: str | None) -> Sequence[Order]:
        """Return the open orders with this txid or userref, or else this cl_ord_id."""
        if reference is not None:
            found = [self._open[reference]] if reference in self._open else []
            found = found or [
                order for order in self._open.values() if order.userref is not None and str(order.userref) == reference
            ]
        elif client_id is not None:
            order = self._open_by_client_id.get(canonical(client_id))
            found = [order] if order else []
        else:
            raise bad_argument("txid")
        if not found:
            raise Refusal("EOrder:Unknown order")
        return found

    def _page(
        self, entries: Iterable[_Entry], params: Params, time_of: Callable[[_Entry], float]
    ) -> tuple[Sequence[_Entry], int]:
        """Return one page of a list, and how many entries match in all.

        `start` is exclusive and `end` inclusive. Each is Unix time in seconds, or the id of an
        order, a trade or a ledger entry, which stands for its time.
        """
        start, end = self._moment(params, "start"), self._moment(params, "end")
        matching = [
            entry
            for entry in entries
            if (start is None or time_of(entry) > start) and (end is None or time_of(entry) <= end)
        ]
        skipped = max(params.integer("ofs") or 0, 0)
        return matching[skipped : skipped + _PAGE], len(matching)

    def _moment(self, params: Params, name: str) -> float | None:
        value = params.text(name)
        if value is None:
            return None
        if value in self._orders:
            return self._orders[value].opened
        dated = self._trades.get(value) or self._ledger.get(value)
        if dated is not None:
            return dated.time
        try:
            return float(value)
        except ValueError:
            raise bad_argument(name) from None


def _filtered(orders: Iterable[Order], params: Params) -> Iterable[Order]:
    """Keep the orders with the `userref` and the `cl_ord_id` that the request asks for."""
    userref, client_id = params.integer("userref"), params.text("cl_ord_id")
    if userref is not None:
        orders = (order for order in orders if order.userref == userref)
    if client_id is not None:
        wanted = canonical(client_id)
        orders = (order for order in orders if order.cl_ord_id and canonical(order.cl_ord_id) == wanted)
    return orders


def _by_id(entries: Mapping[str, _Entry], params: Params, name: str, unknown: str) -> Sequence[_Entry]:
    """Return the entries with these ids, of which there may be 50.

    Raises:
        Refusal: there are none or too many ids, or one of them is `unknown`.
    """
    ids = params.many(name)
    if not 1 <= len(ids) <= _PAGE:
        raise bad_argument(name)
    try:
        return [entries[txid] for txid in ids]
    except KeyError:
        raise Refusal(unknown) from None
