"""What is known of Kraken's private REST API: its methods, its errors, its REST counter. Data and no I/O.

Everything here is as of `DATE`; nothing was tried against the live exchange. "Kraken" in a comment means Kraken's own
pages, under https://docs.kraken.com/exchange/guides: rest/ratelimits, general/errors, general/subaccounts and
algo-trading/overview. "ccxt" means the table of costs and errors in ccxt 4.5.90. Where Kraken and ccxt disagree on a
cost, the higher one counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._arguments import Priority

DATE: Final = "2026-11"
SOURCE: Final = "https://docs.kraken.com/exchange/guides/rest/ratelimits"
"""Kraken's page with the figures of the REST counter."""

COUNTERS: Final[Mapping[str, tuple[float, float]]] = {
    "starter": (15, 0.33),
    "intermediate": (20, 0.5),
    "pro": (20, 1.0),
}
"""What an API key's REST counter may come to and by how much it falls a second, by the account's tier (Kraken)."""


# Methods

Effect: TypeAlias = Literal["reads", "changes", "trades", "cancels"]
"""What a method does at Kraken.

- reads: nothing changes, so that the call may be made again.
- changes: something changes that is no order, such as funds, exports or sub-accounts.
- trades: an order or a strategy is placed or changed.
- cancels: orders or a strategy end. A second call right after the first, under the same lease, changes nothing.
"""


@dataclass(frozen=True, slots=True)
class Method:
    """A private method of Kraken's Spot REST API.

    Attributes:
        name: Kraken's name, as in the URL.
        effect: what it does at Kraken.
        cost: what it adds to the API key's REST counter.
        validates: whether it takes ``validate``, and then changes nothing.
        places: orders that can have a client's id of ours: ``"order"`` when the call's parameters are one order,
            ``"orders"`` when the parameter ``orders`` is a list of them.
        ages: whether it takes a ``deadline``, since it is not to be carried out long after it was asked for.
    """

    name: str
    effect: Effect = "changes"
    cost: float = 1
    validates: bool = False
    places: Literal["order", "orders"] | None = None
    ages: bool = False

    @property
    def priority(self) -> Priority:
        """``"high"`` for what places, changes or cancels orders, whatever it costs."""
        return "high" if self.effect in {"trades", "cancels"} else "normal"


METHODS: Final[tuple[Method, ...]] = (
    # Orders. AddOrder and CancelOrder add nothing to the REST counter, since the matching engine has counters of its
    # own (Kraken). The same of amendments, edits and batches is said by ccxt alone.
    Method("AddOrder", "trades", cost=0, validates=True, places="order", ages=True),
    Method("AddOrderBatch", "trades", cost=0, validates=True, places="orders", ages=True),
    Method("AmendOrder", "trades", cost=0, ages=True),
    Method("EditOrder", "trades", cost=0, validates=True, ages=True),  # the new order has no client's id (Kraken)
    Method("CancelOrder", "cancels", cost=0),
    Method("CancelOrderBatch", "cancels", cost=0),
    Method("CancelAll", "cancels"),  # 1: Kraken exempts AddOrder and CancelOrder only, and ccxt counts 1
    Method("CancelAllOrdersAfter", "cancels"),  # the same
    # Algo Trading, since autumn 2026 (Kraken), which exempts none of these from the counter.
    Method("AddStrategy", "trades", validates=True),  # takes no client's id (Kraken)
    Method("CancelStrategy", "cancels"),
    Method("QueryStrategies", "reads"),
    Method("GetOpenStrategies", "reads"),
    Method("GetClosedStrategies", "reads"),
    # History. Kraken's page says 2 for "ledger/trade history calls" (one copy of it 4, for which `Pace` has ``costs``);
    # ccxt says 2 for the lists and 1 for the queries.
    Method("Ledgers", "reads", cost=2),
    Method("QueryLedgers", "reads", cost=2),
    Method("TradesHistory", "reads", cost=2),
    Method("QueryTrades", "reads", cost=2),
    # Account. By Kraken, "all other API calls" add 1, from here on, too.
    Method("Balance", "reads"),
    Method("BalanceEx", "reads"),
    Method("ClosedOrders", "reads"),
    Method("CreditLines", "reads"),
    Method("GetApiKeyInfo", "reads"),  # since March 2026; needs no permission, but a valid nonce (Kraken)
    Method("GetWebSocketsToken", "reads"),
    Method("OpenOrders", "reads"),
    Method("OpenPositions", "reads"),
    Method("OrderAmends", "reads"),
    Method("QueryOrders", "reads"),
    Method("TradeBalance", "reads"),
    Method("TradeVolume", "reads"),
    # Exports
    Method("ExportStatus", "reads"),
    Method("RetrieveExport", "reads"),
    Method("AddExport"),
    Method("RemoveExport"),
    # Funding
    Method("DepositMethods", "reads"),
    Method("DepositStatus", "reads"),
    Method("WithdrawAddresses", "reads"),
    Method("WithdrawInfo", "reads"),
    Method("WithdrawMethods", "reads"),
    Method("WithdrawStatus", "reads"),
    Method("DepositAddresses"),  # makes a new address with ``new``
    Method("WalletTransfer"),
    Method("Withdraw"),
    Method("WithdrawCancel"),  # ends no order
    # Sub-accounts
    Method("AccountTransfer"),
    Method("CreateSubaccount"),
    # Earn
    Method("Earn/AllocateStatus", "reads"),
    Method("Earn/Allocations", "reads"),
    Method("Earn/DeallocateStatus", "reads"),
    Method("Earn/Strategies", "reads"),
    Method("Earn/Allocate"),
    Method("Earn/Deallocate"),
)

_METHODS: Final[Mapping[str, Method]] = {method.name: method for method in METHODS}


def method_named(name: str) -> Method:
    """Return what is known of a method. One that isn't known counts as a change that costs 1 and goes in turn."""
    return _METHODS.get(name) or Method(name)


# Errors


class Outcome(Enum):
    """Whether Kraken carried a call out."""

    CARRIED_OUT = "carried out"
    NOT_CARRIED_OUT = "not carried out"
    UNKNOWN = "unknown"


class Remedy(Enum):
    """What may help a call that was not carried out, or a reading one with an unknown outcome."""

    NONE = "none"
    NONCE = "a higher nonce"
    LATER = "to wait"


class Verdict(NamedTuple):
    """What one attempt at a call came to."""

    outcome: Outcome
    remedy: Remedy


REFUSED: Final = Verdict(Outcome.NOT_CARRIED_OUT, Remedy.NONE)
REFUSED_FOR_NOW: Final = Verdict(Outcome.NOT_CARRIED_OUT, Remedy.LATER)
REFUSED_FOR_ITS_NONCE: Final = Verdict(Outcome.NOT_CARRIED_OUT, Remedy.NONCE)
UNKNOWN: Final = Verdict(Outcome.UNKNOWN, Remedy.LATER)

Limit: TypeAlias = Literal["rate_limit", "throttled", "lockout"]
"""Why all calls should pause for a while: the names of the settings of `kraken_nonce_redis.pace.CoolDowns`."""

Cause: TypeAlias = Literal["lockout", "key", "secret", "nonce", "permission", "rate limit", "kraken"]
"""What is wrong, in the words of ``kraken-nonce check``."""

CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)
"""Of several causes the first of these is the one to look into."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an answer of Kraken says.

    Attributes:
        verdict: whether the call was carried out, and what may help.
        cool_down: why all calls of the API key should pause for a while; None if they need not.
        cause: what is wrong when a check of the account gets it.
    """

    verdict: Verdict
    cool_down: Limit | None = None
    cause: Cause = "kraken"


_LIMIT: Final = Meaning(REFUSED_FOR_NOW, "rate_limit", "rate limit")
_REFUSED: Final = Meaning(REFUSED)
_UNKNOWN: Final = Meaning(UNKNOWN)

TOO_MANY_REQUESTS: Final = "HTTP status 429, too many requests"
"""What is said of Cloudflare's page, which is no answer of Kraken."""

ERRORS: Final[tuple[tuple[str, Meaning], ...]] = (
    ("EAPI:Invalid nonce", Meaning(REFUSED_FOR_ITS_NONCE, cause="nonce")),
    ("EAPI:Invalid key", Meaning(REFUSED, cause="key")),
    ("EAPI:Invalid signature", Meaning(REFUSED, cause="secret")),
    ("EGeneral:Permission denied", Meaning(REFUSED, cause="permission")),
    # Too many bad keys (Kraken); by older texts nonces and signatures, too, by IP address for about 15 minutes.
    ("EGeneral:Temporary lockout", Meaning(REFUSED, "lockout", "lockout")),
    # The API key's REST counter is full (Kraken).
    ("EAPI:Rate limit exceeded", _LIMIT),
    # Too many at once (Kraken), with the time at which it ends or without.
    ("EService:Throttled", Meaning(REFUSED_FOR_NOW, "throttled", "rate limit")),
    # Kraken lists the last two without an explanation; ccxt and kraken-py-sdk take all three for limits.
    ("EGeneral:Too many requests", _LIMIT),
    ("EAuth:Too many requests", _LIMIT),
    ("EAuth:Rate limit exceeded", _LIMIT),
    # The matching engine's counters: for one pair and client, which stops no other call; for all sub-accounts together.
    ("EOrder:Rate limit exceeded", Meaning(REFUSED_FOR_NOW)),
    ("EOrder:Domain rate limit exceeded", _LIMIT),
    # Kraken's limits on net purchases in Canada (Kraken): waiting doesn't help, and other calls may go on.
    ("EBM:limit exceeded:CAL", _REFUSED),
    (TOO_MANY_REQUESTS, Meaning(UNKNOWN, cause="rate limit")),
    ("EService:Deadline elapsed", _REFUSED),
    ("EService:Market in", _REFUSED),  # cancel_only mode, post_only mode, limit_only mode
    ("EService:", _UNKNOWN),  # Unavailable, Busy, Timeout
    ("EGeneral:Internal error", _UNKNOWN),
    ("EGeneral:Unknown error", _UNKNOWN),
    # Arguments, funds, unknown orders, accounts that are closed, ...
    *((family, _REFUSED) for family in ("EAPI:", "EAuth:", "EGeneral:", "EOrder:", "ETrade:", "EFunding:", "EQuery:")),
    *((family, _REFUSED) for family in ("EAccount:", "ESession:", "EEarnings:")),
    ("", _UNKNOWN),  # EDatabase:Internal error, and what we know nothing of
)
"""How Kraken's errors begin, as `plain` has them; the first entry that fits counts."""


def plain(error: str) -> str:
    """Return an error without white space after its first colon, where Kraken is not consistent."""
    return re.sub(r":\s+", ":", error, count=1)


def meaning_of(error: str) -> Meaning:
    """Return what an error of Kraken says."""
    said = plain(error)
    return next(meaning for beginning, meaning in ERRORS if said.startswith(beginning))
