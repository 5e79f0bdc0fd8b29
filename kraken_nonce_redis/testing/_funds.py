"""The funds of one account: balances, the ledger of changes, and withdrawals. No I/O, no clock of its own."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

from ._listing import by_id
from ._market import ASSETS, asset_named
from ._orders import LedgerEntry
from ._protocol import Refusal, bad_argument
from ._records import SimulatedWithdrawal

if TYPE_CHECKING:
    from ._listing import Ids
    from ._market import Asset
    from ._protocol import Params

_ZERO: Final = Decimal(0)


class Funds:
    """The balances of one account, with a ledger of every change.

    Every account starts with plenty of each asset.
    """

    def __init__(self, ids: Ids, now: float) -> None:
        self._ids = ids
        self._balances = dict.fromkeys(ASSETS, _ZERO)
        self._held = dict.fromkeys(ASSETS, _ZERO)
        self._ledger: dict[str, LedgerEntry] = {}
        self.withdrawals: list[SimulatedWithdrawal] = []
        for asset in ASSETS.values():
            self.book(asset, asset.start_balance, kind="deposit", reference=ids.new("Q", now), now=now)

    def available(self, asset: Asset) -> Decimal:
        """Return the balance without the amount that open orders hold."""
        return self._balances[asset.id] - self._held[asset.id]

    def hold(self, asset: Asset, amount: Decimal) -> None:
        """Hold an amount for an open order; a negative amount is released."""
        self._held[asset.id] += amount

    def book(
        self,
        asset: Asset,
        amount: Decimal,
        fee: Decimal = _ZERO,
        *,
        kind: str,
        reference: str,
        now: float,
    ) -> None:
        """Change a balance and add an entry to the ledger."""
        balance = self._balances[asset.id] + amount - fee
        self._balances[asset.id] = balance
        txid = self._ids.new("L", now)
        self._ledger[txid] = LedgerEntry(txid, reference, now, kind, asset, amount, fee, balance)

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
        page, count = self._ids.page(chosen, params, lambda entry: entry.time)
        return {"ledger": {entry.txid: entry.info() for entry in page}, "count": count}

    def query_ledgers(self, params: Params) -> object:
        """Answer QueryLedgers."""
        found = by_id(self._ledger, params, "id", "EQuery:Unknown ledger")
        return {entry.txid: entry.info() for entry in found}

    def withdraw(self, params: Params, account: str, nonce: int, now: float) -> object:
        """Answer Withdraw: the amount is deducted at once, without a fee. Any name of a withdrawal key is accepted."""
        asset = asset_named(params.required("asset"))
        key, amount = params.required("key"), params.decimal("amount")
        if amount is None:
            raise bad_argument("amount")
        if amount > self.available(asset):
            raise Refusal("EFunding:Invalid amount")
        withdrawal = SimulatedWithdrawal(
            refid=self._ids.new("A", now),
            account=account,
            nonce=nonce,
            asset=asset.id,
            withdrawal_key=key,
            amount=asset.text(amount),
        )
        self.withdrawals.append(withdrawal)
        self.book(asset, -amount, kind="withdrawal", reference=withdrawal.refid, now=now)
        return {"refid": withdrawal.refid}
