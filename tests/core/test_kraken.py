"""What is known of Kraken, beside other people's knowledge of it: the simulator's, ccxt's, and Kraken's own lists."""

from __future__ import annotations

from dataclasses import replace

import ccxt
import pytest

from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis._kraken import METHODS, Outcome, meaning_of, method_named, plain
from kraken_nonce_redis.pace import COSTS, TIERS, Pace, Tier, priority_of
from kraken_nonce_redis.testing._limits import Limits
from kraken_nonce_redis.testing._methods import METHODS as SIMULATED

pytestmark = pytest.mark.once

NAMES = [method.name for method in METHODS]
TRADES = {"AddOrder", "AddOrderBatch", "AmendOrder", "EditOrder", "AddStrategy"}
CANCELS = {"CancelOrder", "CancelOrderBatch", "CancelAll", "CancelAllOrdersAfter", "CancelStrategy"}
CHANGES = {
    "AccountTransfer", "AddExport", "CreateSubaccount", "DepositAddresses", "Earn/Allocate", "Earn/Deallocate",
    "RemoveExport", "WalletTransfer", "Withdraw", "WithdrawCancel",
}  # fmt: skip
READS = {
    "Balance", "BalanceEx", "ClosedOrders", "CreditLines", "DepositMethods", "DepositStatus", "Earn/AllocateStatus",
    "Earn/Allocations", "Earn/DeallocateStatus", "Earn/Strategies", "ExportStatus", "GetApiKeyInfo",
    "GetClosedStrategies", "GetOpenStrategies", "GetWebSocketsToken", "Ledgers", "OpenOrders", "OpenPositions",
    "OrderAmends", "QueryLedgers", "QueryOrders", "QueryStrategies", "QueryTrades", "RetrieveExport", "TradeBalance",
    "TradeVolume", "TradesHistory", "WithdrawAddresses", "WithdrawInfo", "WithdrawMethods", "WithdrawStatus",
}  # fmt: skip

# Kraken's list of common errors, of May 2026 (api/docs/guides/spot-errors), and those that its clients know besides.
LISTED = """
    EGeneral:Invalid arguments
    EGeneral:Invalid arguments:Index unavailable
    EGeneral:Temporary lockout
    EService:Unavailable
    EService:Market in cancel_only mode
    EService:Market in post_only mode
    EService:Deadline elapsed
    EAPI:Invalid key
    EAPI:Invalid signature
    EAPI:Invalid nonce
    EGeneral:Permission denied
    EGeneral:Internal error
    EGeneral:Internal error:17
    EOrder:Cannot open opposing position
    EOrder:Cannot open position
    EOrder:Margin allowance exceeded
    EOrder:Margin level too low
    EOrder:Margin position size exceeded
    EOrder:Insufficient margin
    EOrder:Insufficient funds
    EOrder:Order minimum not met
    EOrder:Cost minimum not met
    EOrder:Tick size check failed
    EOrder:Orders limit exceeded
    EOrder:Rate limit exceeded
    EOrder:Invalid price
    EOrder:Domain rate limit exceeded
    EOrder:Positions limit exceeded
    EOrder:Scheduled orders limit exceeded
    EOrder:Unknown order
    EOrder:Unknown position
    EAccount:Invalid permissions
    EAuth:Account temporary disabled
    EAuth:Account unconfirmed
    EAuth:Rate limit exceeded
    EAuth:Too many requests
    ETrade:Invalid request
    EBM:limit exceeded:CAL
    EFunding:Max fee exceeded
    EAPI:Rate limit exceeded
    EGeneral:Too many requests
    EService:Throttled
    EService:Busy
"""
UNCLEAR = {"EService:Unavailable", "EService:Busy", "EGeneral:Internal error", "EGeneral:Internal error:17"}


class TestMethods:
    """The table of methods."""

    def test_each_has_one_class(self) -> None:
        """A method stands in the table once, and does what this second list says. A wrong "reads" costs money."""
        assert len(NAMES) == len(set(NAMES))
        for effect, names in (("trades", TRADES), ("cancels", CANCELS), ("changes", CHANGES), ("reads", READS)):
            assert {method.name for method in METHODS if method.effect == effect} == names

    def test_orders_and_cancels_go_first(self) -> None:
        """Whatever handles orders has high priority, whatever it costs, and nothing else has."""
        assert {name for name in NAMES if priority_of(name) == "high"} == TRADES | CANCELS
        for method in METHODS:
            assert {replace(method, cost=cost).priority for cost in (0, 1, 5)} == {method.priority}

    def test_validate(self) -> None:
        """What takes ``validate``, by Kraken's pages on each method."""
        takes_it = {method.name for method in METHODS if method.validates}
        assert takes_it == {"AddOrder", "AddOrderBatch", "EditOrder", "AddStrategy"}

    def test_client_ids(self) -> None:
        """Where a client's id of ours goes: into what places orders, but for what takes none."""
        places = {method.name: method.places for method in METHODS if method.places}
        assert places == {"AddOrder": "order", "AddOrderBatch": "orders"}

    def test_costs(self) -> None:
        """The costs that are not 1."""
        free = {"AddOrder", "AddOrderBatch", "AmendOrder", "EditOrder", "CancelOrder", "CancelOrderBatch"}
        history = {"Ledgers", "QueryLedgers", "TradesHistory", "QueryTrades"}
        assert {name: cost for name, cost in COSTS.items() if cost != 1} == dict.fromkeys(free, 0) | dict.fromkeys(
            history, 2
        )
        pace = Pace()
        assert {name: pace.cost_of(name) for name in NAMES} == COSTS

    def test_unknown(self) -> None:
        """A method that Kraken has added since counts as a change, costs 1 and goes in turn."""
        new = method_named("SomethingNew")
        assert (new.effect, new.cost, new.priority, new.validates, new.places) == ("changes", 1, "normal", False, None)

    def test_beside_the_simulator(self) -> None:
        """The simulator has a table of its own: it knows no method that we don't, and counts none for more."""
        assert set(NAMES) >= set(SIMULATED)
        counted = Limits()
        assert [name for name in NAMES if COSTS[name] < counted.cost_of(name)] == []

    def test_beside_ccxt(self) -> None:
        """No method costs less than ccxt counts for it."""
        # ccxt counts three for one of Kraken's.
        costs = {name: entry["cost"] / 3 for name, entry in ccxt.kraken().api["private"]["post"].items()}
        known = set(NAMES) & set(costs)
        assert len(known) > 30
        assert [name for name in known if COSTS[name] < costs[name]] == []


def test_tiers() -> None:
    """The counters of Kraken's tiers."""
    assert {"starter": Tier(15, 0.33), "intermediate": Tier(20, 0.5), "pro": Tier(20, 1)} == TIERS


class TestErrors:
    """The table of errors."""

    @pytest.mark.parametrize("error", LISTED.strip().split("\n"), ids=str.strip)
    def test_listed(self, error: str) -> None:
        """Each error that Kraken lists is in a family that we know: refused, but for a few."""
        error = error.strip()
        unclear = error in UNCLEAR
        assert meaning_of(error).verdict.outcome is (Outcome.UNKNOWN if unclear else Outcome.NOT_CARRIED_OUT)
        assert any(beginning and error.startswith(beginning) for beginning, _ in kraken.ERRORS)

    def test_every_entry_counts(self) -> None:
        """No entry hides behind an earlier one."""
        for number, (beginning, meaning) in enumerate(kraken.ERRORS):
            earlier = [other for other, _ in kraken.ERRORS[:number] if beginning.startswith(other)]
            assert earlier == [], beginning
            assert meaning_of(beginning) is meaning

    def test_white_space(self) -> None:
        """Kraken is not consistent about white space after the first colon."""
        assert plain("EService: Throttled: 17") == "EService:Throttled: 17"
        assert meaning_of("EService: Throttled: 17") is meaning_of("EService:Throttled")

    def test_anything(self) -> None:
        """What is no error of Kraken says nothing."""
        for text in ("", "E", "nonsense", "ESomethingNew:Who knows"):
            assert meaning_of(text) == kraken.Meaning(kraken.UNKNOWN)

    def test_cool_downs(self) -> None:
        """What stops everybody would also be looked at by `check`; nothing that was carried out does."""
        for beginning, meaning in kraken.ERRORS:
            if meaning.cool_down:
                assert meaning.verdict.outcome is Outcome.NOT_CARRIED_OUT, beginning
                assert meaning.cause in {"rate limit", "lockout"}, beginning
