"""How often private calls may start, over all processes, and how long all calls pause after Kraken's refusals.

The figures are Kraken's, as of a date; pass your own if they have changed or differ for your account.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kraken_nonce_redis._arguments import Priority

FIGURES_DATE: Final = kraken.DATE
FIGURES_SOURCE: Final = kraken.SOURCE


@dataclass(frozen=True, slots=True)
class Tier:
    """A verification tier's REST counter.

    Attributes:
        maximum: highest value of the counter; a call that would exceed it is refused.
        decay: by how much the counter falls per second.
    """

    maximum: float
    decay: float


TIERS: Final[Mapping[str, Tier]] = {name: Tier(*figures) for name, figures in kraken.COUNTERS.items()}

COSTS: Final[Mapping[str, float]] = {method.name: method.cost for method in kraken.METHODS}
"""What a method adds to the REST counter. A method that is not named here costs 1."""

HEADROOM: Final = 1.0
"""Part of the counter kept in reserve: Kraken counts when requests arrive, and some travel longer than others."""

_LONGEST_DRAIN: Final = 86_400.0  # seconds; the scripts' arithmetic is exact far beyond it

TierName: TypeAlias = Literal["starter", "intermediate", "pro"]


def priority_of(method: str) -> Priority:
    """Return ``"high"`` for a method that places, changes or cancels orders, whatever it costs, else ``"normal"``."""
    return kraken.method_named(method).priority


@dataclass(frozen=True)
class Pace:
    """How often calls may start, counted in Redis for all processes that share the key. Use the same one everywhere.

    Args:
        min_interval: least seconds from one start to the next; many bots use 0.2.
        startup_window: seconds that startup protection lasts. It begins with the first call after a pause of the same
            length, for example when ten processes start at once.
        startup_rate: most starts in any one second of the window, 1 to 100; 0 for no startup protection.
        startup_interval: least seconds from the last start to the next, once that many started in a second.
        tier: the account's tier, ``"starter"``, ``"intermediate"`` or ``"pro"``, or a `Tier`: calls wait as long as
            they would exceed Kraken's REST counter. None doesn't count.
        costs: what methods add to the counter, where it differs from `COSTS`.

    Raises `InvalidArgument`.
    """

    min_interval: float = 0.0
    startup_window: float = 10.0
    startup_rate: int = 20
    startup_interval: float = 0.5
    tier: TierName | Tier | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arguments.seconds("min_interval", self.min_interval, 0, 60)
        arguments.seconds("startup_window", self.startup_window, 0, 600)
        arguments.whole("startup_rate", self.startup_rate, 0, 100)
        arguments.seconds("startup_interval", self.startup_interval, 0, 60)
        if isinstance(self.tier, str) and self.tier in TIERS:
            pass
        elif isinstance(self.tier, Tier):
            _check_figures(self.tier)
        elif self.tier is not None:
            raise InvalidArgument("tier", f"must be one of {', '.join(TIERS)} or None, or a Tier")
        if not isinstance(self.costs, Mapping):
            raise InvalidArgument(
                "costs", f"must be a mapping from methods to costs, not {arguments.shown(self.costs)}"
            )
        for method, cost in self.costs.items():
            arguments.cost(cost, f"costs[{method!r}]")

    @property
    def counter(self) -> Tier | None:
        """The counter's figures."""
        return TIERS[self.tier] if isinstance(self.tier, str) else self.tier

    def cost_of(self, method: str) -> float:
        """Return what a method of Kraken, such as ``"Balance"``, adds to the counter."""
        return self.costs.get(method, kraken.method_named(method).cost)

    def settings(self, cost: float, *, startup_protection: bool) -> str:
        """Return the settings of a call as the scripts take them: times in microseconds."""
        tier, capacity, drain = self.counter, 0.0, 0.0
        if tier is not None:
            capacity, drain = (tier.maximum - HEADROOM) / tier.decay, cost / tier.decay
            if drain > capacity:
                raise InvalidArgument("cost", f"{cost:g} is more than the counter of {tier} can ever take")
        microseconds = (self.min_interval, self.startup_window, 0, self.startup_interval, capacity, drain)
        words = [round(seconds * 1_000_000) for seconds in microseconds]
        words[2] = self.startup_rate
        return " ".join(map(str, (*words, int(startup_protection))))


def _check_figures(tier: Tier) -> None:
    """Make sure that a counter can work with these figures."""
    maximum, decay = arguments.cost(tier.maximum, "tier"), arguments.cost(tier.decay, "tier")
    if maximum <= HEADROOM or decay <= 0:
        raise InvalidArgument("tier", f"needs a maximum above {HEADROOM:g} and a decay above 0, not {tier}")
    if maximum / decay > _LONGEST_DRAIN:
        raise InvalidArgument("tier", f"would take more than a day to fall from its maximum to 0: {tier}")


# The time in "EService: Throttled: 1700000000".
_UNTIL: Final = re.compile(r"EService:Throttled:\s*(\d+)")
_LONGEST_ASKED_FOR: Final = 900.0  # seconds


def tell_a_time(errors: Iterable[str]) -> bool:
    """Return whether one of Kraken's errors says until when calls should pause."""
    return any(_UNTIL.match(kraken.plain(error)) for error in errors)


@dataclass(frozen=True)
class CoolDowns:
    """How many seconds all calls of the key pause after Kraken has refused one for one of these reasons.

    Args:
        rate_limit: ``EAPI:Rate limit exceeded``: the key's REST counter is full, and further calls keep it full. Also
            Kraken's other limits that count more than one pair's orders, such as ``EGeneral:Too many requests``, and
            Cloudflare's page with the status 429, unless its ``Retry-After`` says how long: 15 minutes at most.
        throttled: ``EService:Throttled`` without a time; with one, until then by the Redis server's clock, but for 15
            minutes at most.
        lockout: ``EGeneral:Temporary lockout``, which Kraken gives for about 15 minutes.

    Raises `InvalidArgument`.
    """

    rate_limit: float = 15.0
    throttled: float = 5.0
    lockout: float = 900.0

    def __post_init__(self) -> None:
        for name in ("rate_limit", "throttled", "lockout"):
            arguments.seconds(name, getattr(self, name), 0, arguments.LONGEST_COOL_DOWN)

    def after(self, errors: Iterable[str], now: float | None) -> tuple[float, str]:
        """Return for how many seconds calls should pause after these errors, and for which one; ``(0.0, "")`` for none.

        ``now`` is the time in seconds since 1970, for the time until which ``Throttled`` may ask for a pause. That ends
        within 15 minutes in any case, in case a clock is wrong; without ``now`` the setting counts.
        """
        longest = (0.0, "")
        for error in errors:
            limit = kraken.meaning_of(error).cool_down
            if limit is None:
                continue
            until = _UNTIL.match(kraken.plain(error))
            seconds = getattr(self, limit)
            if until is not None and now is not None:
                seconds = min(float(until[1]) - now, _LONGEST_ASKED_FOR)
            longest = max(longest, (min(seconds, arguments.LONGEST_COOL_DOWN), error))
        return longest

    def after_page(self, retry_after: float | None) -> float:
        """Return for how many seconds calls should pause after a page with the status 429.

        ``retry_after`` is what the page asks for, in seconds; None if it doesn't say.
        """
        return self.rate_limit if retry_after is None else min(retry_after, _LONGEST_ASKED_FOR)
