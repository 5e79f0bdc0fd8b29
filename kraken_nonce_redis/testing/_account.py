"""One account at the exchange: its orders and trades. No I/O, no clock of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Protocol

from ._funds import Funds
from ._listing import PAGE, Ids, by_id
from ._market import PAIRS, TAKER_FEE, pair_named
from ._orders import Order, Trade, canonical, keep_deadline, read_new, read_price, read_volume
from ._protocol import Refusal, bad_argument
from ._records import SimulatedOrder
from ._strategies import Strategies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from ._protocol import Params

_BATCH: Final = range(2, 16)  # number of orders in one AddOrderBatch
_LONGEST_TIMEOUT: Final = 86_400  # seconds of CancelAllOrdersAfter
_ZERO: Final = Decimal(0)


class CountChange(Protocol):
    """Counts an order change against the limit of its pair; see `AccountUsage.change`."""

    def __call__(self, pair: str, kind: str, now: float, since: float | None) -> None:
        """Raise `Refusal` if there are too many."""
        ...


class Account:
    """The funds, orders and trades of one account.

    Market orders fill completely and at once, at the market's fixed price. All others stay open until
    they are amended, edited or cancelled.

    The methods that answer a request raise `Refusal` where Kraken would refuse, and then change
    nothing. Each change of an order is counted with `count` first, valid or not. `now` is Unix time in seconds.

    Args:
        name: of the account.
        random: makes the ids.
        now: when the account is created.
        count: counts a change of an order.
        listing_delay: draws how many seconds an order takes until it is listed.
    """

    def __init__(
        self, name: str, random: Random, now: float, count: CountChange, listing_delay: Callable[[], float]
    ) -> None:
        self.name = name
        self._count = count
        self._listing_delay = listing_delay
        self.ids = Ids(random)
        self.funds = Funds(self.ids, now)
        self.strategies = Strategies(name, self.ids, self.funds, listing_delay)
        self._orders: dict[str, Order] = {}
        self._open: dict[str, Order] = {}
        self._open_by_client_id: dict[str, Order] = {}
        self._closed: list[Order] = []
        self._trades: dict[str, Trade] = {}
        self._cancel_all_at = math.inf

    def catch_up(self, now: float) -> None:
        """Do what is due by now: cancel all orders if the time of CancelAllOrdersAfter has come."""
        if now >= self._cancel_all_at:
            self._cancel(list(self._open.values()), self._cancel_all_at)
            self._cancel_all_at = math.inf

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
                opened=order.opened,
            )
            for order in self._orders.values()
        ]

    def trade_volume(self, params: Params) -> object:
        """Answer TradeVolume. There is no volume discount."""
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
        order = self._read_new(params, nonce, now)
        if not params.flag("validate"):
            self._count(order.pair.id, "add", now, None)
        keep_deadline(params, now)
        self._check_client_ids([order])
        self._check_funds(order)
        descr = {"order": order.description()}
        if params.flag("validate"):
            return {"descr": descr}
        self._place(order, now)
        return {"descr": descr, "txid": [order.txid]}

    def add_batch(self, params: Params, nonce: int, now: float) -> object:
        """Answer AddOrderBatch: 2 to 15 orders of one pair. One invalid order makes the whole batch fail.

        An order without sufficient funds is refused by itself: its entry has an `error` and no `txid`.
        """
        pair = pair_named(params.required("pair"))
        given = params.objects("orders")
        if len(given) not in _BATCH:
            raise bad_argument("orders")
        orders = [self._read_new(replace(each, values=each.values | {"pair": pair.id}), nonce, now) for each in given]
        if not params.flag("validate"):
            for _ in orders:
                self._count(pair.id, "batch add", now, None)
        keep_deadline(params, now)
        self._check_client_ids(orders)
        entries: list[dict[str, object]] = []
        for order in orders:
            entry: dict[str, object] = {"descr": {"order": order.description()}}
            entries.append(entry)
            try:
                self._check_funds(order)
            except Refusal as refusal:
                entry["error"] = refusal.error
                continue
            if not params.flag("validate"):
                self._place(order, now)
                entry["txid"] = order.txid
        return {"orders": entries}

    def amend_order(self, params: Params, now: float) -> object:
        """Answer AmendOrder: change volume or prices of an open order, which keeps its txid."""
        order = self._find_open(params.text("txid"), params.text("cl_ord_id"))[0]
        self._count(order.pair.id, "amend", now, order.since)
        keep_deadline(params, now)
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
        return {"amend_id": self.ids.new("T", now)}

    def edit_order(self, params: Params, nonce: int, now: float) -> object:
        """Answer EditOrder: cancel an open order and place a changed one with a new txid.

        The new order has no `cl_ord_id`, and a `userref` only if the request gives one.
        """
        order = self._find_open(params.text("txid"), None)[0]
        pair = order.pair
        if not params.flag("validate"):
            self._count(pair.id, "edit", now, order.since)
        keep_deadline(params, now)
        if pair_named(params.required("pair")) is not pair:
            raise bad_argument("pair")
        changed = replace(
            order,
            txid=self.ids.new("O", now),
            listed=now + self._listing_delay(),
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
        if not 1 <= len(references) + len(client_ids) <= PAGE:
            raise bad_argument("orders")
        found = [order for name in references for order in self._find_open(name, None)]
        found += [order for name in client_ids for order in self._find_open(None, name)]
        return self._cancel_counted({order.txid: order for order in found}.values(), now)

    def cancel_all(self, now: float) -> object:
        """Answer CancelAll."""
        return self._cancel_counted(list(self._open.values()), now)

    def cancel_all_after(self, params: Params, now: float) -> object:
        """Answer CancelAllOrdersAfter: cancel all orders unless asked again within `timeout` seconds; 0 means never."""
        timeout = params.integer("timeout")
        if timeout is None or not 0 <= timeout <= _LONGEST_TIMEOUT:
            raise bad_argument("timeout")
        self._cancel_all_at = now + timeout if timeout else math.inf
        return {"currentTime": _clock(now), "triggerTime": _clock(self._cancel_all_at) if timeout else "0"}

    # Looking up

    def open_orders(self, params: Params, now: float) -> object:
        """Answer OpenOrders, newest first; filters: userref, cl_ord_id."""
        trades = params.flag("trades")
        chosen = _filtered(reversed(self._open.values()), params, now)
        return {"open": {order.txid: order.info(with_trades=trades) for order in chosen}}

    def closed_orders(self, params: Params, now: float) -> object:
        """Answer ClosedOrders, the 50 newest; filters: userref, cl_ord_id, start, end, ofs."""
        trades = params.flag("trades")
        by_opening = params.text("closetime") == "open"
        page, count = self.ids.page(
            _filtered(reversed(self._closed), params, now),
            params,
            lambda order: order.opened if by_opening else order.closed or order.opened,
        )
        closed = {order.txid: order.info(with_trades=trades) for order in page}
        return {"closed": closed, "count": count}

    def query_orders(self, params: Params, now: float) -> object:
        """Answer QueryOrders: only by txid. Like Kraken's, it takes no `cl_ord_id`."""
        listed = {txid: order for txid, order in self._orders.items() if order.listed <= now}
        found = by_id(listed, params, "txid", "EOrder:Unknown order")
        trades, userref = params.flag("trades"), params.integer("userref")
        return {order.txid: order.info(with_trades=trades) for order in found if userref in {None, order.userref}}

    def trades_history(self, params: Params) -> object:
        """Answer TradesHistory, the 50 newest; filters: start, end, ofs."""
        trades = reversed(self._trades.values())
        page, count = self.ids.page(trades, params, lambda trade: trade.time)
        return {"trades": {trade.txid: trade.info() for trade in page}, "count": count}

    def query_trades(self, params: Params) -> object:
        """Answer QueryTrades."""
        found = by_id(self._trades, params, "txid", "EQuery:Unknown trade")
        return {trade.txid: trade.info() for trade in found}

    # Inside

    def _read_new(self, params: Params, nonce: int, now: float) -> Order:
        return read_new(params, txid=self.ids.new("O", now), nonce=nonce, now=now, listed=now + self._listing_delay())

    def _check_client_ids(self, orders: Iterable[Order]) -> None:
        taken = set(self._open_by_client_id)
        for order in orders:
            if order.cl_ord_id is None:
                continue
            if canonical(order.cl_ord_id) in taken:
                raise bad_argument("cl_ord_id not unique")
            taken.add(canonical(order.cl_ord_id))

    def _check_funds(self, order: Order, *, instead_of: Order | None = None) -> None:
        asset, needed = order.needs()
        available = self.funds.available(asset)
        if instead_of is not None:
            available += instead_of.needs()[1]
        if needed > available:
            raise Refusal("EOrder:Insufficient funds")

    def _hold(self, order: Order, sign: int) -> None:
        asset, amount = order.needs()
        self.funds.hold(asset, sign * amount)

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
        trade = Trade(self.ids.new("T", now), len(self._trades) + 1, order, now)
        self._trades[trade.txid] = order.trade = trade
        sign = 1 if order.side == "buy" else -1
        for asset, amount, fee in (
            (order.pair.base, sign * order.volume, _ZERO),
            (order.pair.quote, -sign * trade.cost, trade.fee),
        ):
            self.funds.book(asset, amount, fee, kind="trade", reference=trade.txid, now=now)
        self._close(order, "closed", now, reason=None)

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


def _filtered(orders: Iterable[Order], params: Params, now: float) -> Iterable[Order]:
    """Keep the orders that are listed, with the `userref` and the `cl_ord_id` that the request asks for."""
    orders = (order for order in orders if order.listed <= now)
    userref, client_id = params.integer("userref"), params.text("cl_ord_id")
    if userref is not None:
        orders = (order for order in orders if order.userref == userref)
    if client_id is not None:
        wanted = canonical(client_id)
        orders = (order for order in orders if order.cl_ord_id and canonical(order.cl_ord_id) == wanted)
    return orders


def _clock(moment: float) -> str:
    """Return Unix time as Kraken writes it: whole seconds, rounded up."""
    return datetime.fromtimestamp(math.ceil(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
