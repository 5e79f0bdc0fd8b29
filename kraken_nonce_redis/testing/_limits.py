"""Kraken's limits for calls and order changes, and what happens when there are too many.

Pure: no I/O, and the time comes as an argument (Unix seconds). Every limit is off by default. The
figures are Kraken's. They were looked up for this module and not taken from the library under test,
so that the two can contradict each other.

Sources, read in November 2026: https://docs.kraken.com/api/docs/guides/spot-rest-ratelimits (the
counter of calls) and https://docs.kraken.com/api/docs/guides/spot-ratelimits (the counters of order
changes). Kraken publishes no figures for "Throttled" and "Temporary lockout".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypedDict

from ._protocol import Refusal

Tier: TypeAlias = Literal["starter", "intermediate", "pro"]
Figures: TypeAlias = Sequence[float]
"""Maximum of a counter, and its decay per second."""

_CALLS: Final[Mapping[str, Figures]] = MappingProxyType(
    {"starter": (15, 0.33), "intermediate": (20, 0.5), "pro": (20, 1.0)}
)
_CHANGES: Final[Mapping[str, Figures]] = MappingProxyType(
    {"starter": (60, 1.0), "intermediate": (125, 2.34), "pro": (180, 3.75)}
)
_COSTS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "AddOrder": 0,
        "AddOrderBatch": 0,
        "AmendOrder": 0,
        "EditOrder": 0,
        "CancelOrder": 0,
        "CancelOrderBatch": 0,
        "Ledgers": 2,
        "QueryLedgers": 2,
        "TradesHistory": 2,
        "QueryTrades": 2,
    }
)
_FIXED: Final[Mapping[str, float]] = MappingProxyType({"add": 1, "batch add": 0.5, "amend": 1, "edit": 1, "cancel": 0})
# By the age of the order: (seconds, extra points if the order is younger than that).
_BY_AGE: Final[Mapping[str, Sequence[tuple[int, int]]]] = MappingProxyType(
    {
        "amend": ((5, 3), (10, 2), (15, 1)),
        "edit": ((5, 6), (10, 5), (15, 4), (45, 2), (90, 1)),
        "cancel": ((5, 8), (10, 6), (15, 5), (45, 4), (90, 2), (300, 1)),
    }
)
_BAD_WITHIN: Final = 60.0  # seconds within which bad nonces and signatures add up


class LimitSettings(TypedDict, total=False):
    """The fields of `Limits`, as keyword arguments."""

    tier: Tier | None
    counter: Figures | None
    costs: Mapping[str, float]
    most_per_second: int | None
    most_at_once: int | None
    throttle_seconds: float
    lockout_after: int | None
    lockout_seconds: float
    order_tier: Tier | None
    order_counter: Figures | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Which limits apply; none by default.

    Raises:
        ValueError: a setting is invalid; the message names it.
    """

    tier: Tier | None = None
    """Count each API key's calls as for this tier: `EAPI:Rate limit exceeded`."""
    counter: Figures | None = None
    """Maximum of that counter and its decay per second, instead of the tier's."""
    costs: Mapping[str, float] = field(default_factory=dict[str, float])
    """What methods add to that counter, where it should differ from Kraken's figures."""
    most_per_second: int | None = None
    """Most calls of an account within a second; more of them bring `EService: Throttled: <Unix time>`."""
    most_at_once: int | None = None
    """Most calls of an account under way at once; more of them bring the same error."""
    throttle_seconds: float = 5.0
    """Seconds that throttling lasts, rounded up to a whole second of Unix time."""
    lockout_after: int | None = None
    """Number of bad nonces and signatures of an account within a minute that brings `EGeneral:Temporary lockout`."""
    lockout_seconds: float = 900.0
    """Seconds that a lockout lasts."""
    order_tier: Tier | None = None
    """Count order changes for each pair as for this tier: `EOrder:Rate limit exceeded`."""
    order_counter: Figures | None = None
    """Threshold of these counters and their decay per second, instead of the tier's."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", dict(self.costs))
        for name in ("tier", "order_tier"):
            self._check(name, lambda tier: tier in _CALLS, f"one of {', '.join(_CALLS)}, or None")
        for name in ("counter", "order_counter"):
            self._check(name, _are_figures, "(maximum, decay per second), both above 0, or None")
        for name in ("most_per_second", "most_at_once", "lockout_after"):
            self._check(name, lambda most: most >= 1, "at least 1, or None")
        for name in ("throttle_seconds", "lockout_seconds"):
            self._check(name, lambda seconds: 0 < seconds < math.inf, "above 0 seconds")
        self._check("costs", lambda costs: all(0 <= cost < math.inf for cost in costs.values()), "0 or more each")

    def _check(self, name: str, is_right: Callable[[Any], bool], what: str) -> None:
        value = getattr(self, name)
        if value is not None and not is_right(value):
            raise ValueError(f"{name} must be {what}, not {value!r}")

    @property
    def call_figures(self) -> Figures | None:
        """Maximum and decay of an API key's call counter, or None if calls are not counted."""
        return self.counter or (_CALLS[self.tier] if self.tier else None)

    @property
    def order_figures(self) -> Figures | None:
        """Threshold and decay of a pair's counter of order changes, or None if they are not counted."""
        return self.order_counter or (_CHANGES[self.order_tier] if self.order_tier else None)

    def cost_of(self, method: str) -> float:
        """Return what a method adds to the call counter."""
        return self.costs.get(method, _COSTS.get(method, 1))


@dataclass(slots=True)
class Counter:
    """A number that decays steadily to 0."""

    value: float = 0.0
    at: float = 0.0

    def add(self, points: float, decay: float, now: float) -> float:
        """Apply the decay until now, add points, and return the value."""
        self.value = max(self.value - decay * max(now - self.at, 0.0), 0.0) + points
        self.at = now
        return self.value


class Usage:
    """What one API key has used of its own limit."""

    def __init__(self) -> None:
        self._calls = Counter()

    def call(self, limits: Limits, method: str, now: float) -> None:
        """Count a call with a valid signature and nonce.

        Raises:
            Refusal: it would take the counter above its maximum. The counter is then full, so a client
                that goes on asking keeps it full.
        """
        if limits.call_figures is None:
            return
        maximum, decay = limits.call_figures
        cost = limits.cost_of(method)
        if self._calls.add(cost, decay, now) > maximum + _ROUNDING and cost:
            self._calls.value = maximum
            raise Refusal("EAPI:Rate limit exceeded")


class AccountUsage:
    """What one account has used of the limits that all its API keys share."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque()
        self._throttled_until = 0
        self._bad: deque[float] = deque()
        self._locked_until = 0.0
        self._changes: dict[str, Counter] = {}

    def arrive(self, limits: Limits, in_flight: int, now: float) -> None:
        """Count a call, before its signature is checked.

        Raises:
            Refusal: the account is locked out, or makes too many calls.
        """
        if now < self._locked_until:
            raise Refusal("EGeneral:Temporary lockout")
        _add_within(self._arrivals, now, 1.0)
        too_many = _above(len(self._arrivals), limits.most_per_second) or _above(in_flight, limits.most_at_once)
        if too_many and now >= self._throttled_until:
            self._throttled_until = math.ceil(now + limits.throttle_seconds)
        if now < self._throttled_until:
            raise Refusal(f"EService: Throttled: {self._throttled_until}")

    def spoil(self, limits: Limits, now: float) -> None:
        """Count a bad nonce or signature; enough of them lock the account out from the next call on."""
        _add_within(self._bad, now, _BAD_WITHIN)
        if limits.lockout_after is not None and len(self._bad) >= limits.lockout_after:
            self._locked_until = now + limits.lockout_seconds
            self._bad.clear()

    def change(self, limits: Limits, pair: str, kind: str, now: float, since: float | None = None) -> None:
        """Count an order change: `add`, `batch add`, `amend`, `edit` or `cancel`.

        `since` is when the changed order was placed or last amended. A cancellation counts but is never
        refused; whether Kraken does the same is unknown.

        Raises:
            Refusal: it takes the pair's counter above its threshold.
        """
        if limits.order_figures is None:
            return
        threshold, decay = limits.order_figures
        points = _FIXED[kind]
        if since is not None:
            points += next((extra for age, extra in _BY_AGE[kind] if now - since < age), 0)
        counter = self._changes.setdefault(pair, Counter())
        value = counter.add(points, decay, now)
        if value > threshold + _ROUNDING and kind != "cancel":
            counter.value = max(value - points, threshold)
            raise Refusal("EOrder:Rate limit exceeded")


_ROUNDING: Final = 1e-6  # Unix seconds as floats are exact to less than a microsecond


def _are_figures(figures: Figures) -> bool:
    return len(figures) == 2 and all(0 < number < math.inf for number in figures)  # noqa: PLR2004


def _above(number: int, most: int | None) -> bool:
    return most is not None and number > most


def _add_within(times: deque[float], now: float, seconds: float) -> None:
    """Add a time, and drop times that are too long ago."""
    times.append(now)
    while times[0] <= now - seconds:
        times.popleft()
