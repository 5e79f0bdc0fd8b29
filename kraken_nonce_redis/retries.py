"""When a call is made again, and how far the nonce jumps: policy as data, no I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Final

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis._arguments import DEFAULT_MAX_LEAD
from kraken_nonce_redis.errors import InvalidArgument

_LONGEST_WAIT: Final = 3_600.0
_MOST: Final = 20


@dataclass(frozen=True)
class Retries:
    """When a call that Kraken did not carry out is made again, and how unknown outcomes are looked into.

    Args:
        waits: seconds before the second, third, ... attempt. The lock is free in between. An attempt that would begin
            after the caller's ``wait_timeout`` is not made. ``()`` makes no attempt that has to wait.
        jitter: share of a wait, 0 to 1, by which it is made longer at random, at most.
        leads: seconds ahead of the server's clock to which the nonce is raised, for all who share the key, when Kraken
            refuses a fresh one: first to the first of these, if that is refused to the second, and so on. ``()``
            never raises it, and you get the refusal.
        max_lead: most seconds ahead of the server's clock to which a nonce is raised, up to 90 days.
        settle_waits: seconds between two looks at Kraken's lists of orders, for an order with an unknown outcome. The
            lock is held in between. An order is absent when it is missing in all of these looks. At least one.
        proof_wait: seconds after an order's deadline at which Kraken's lists are looked at for the last time, so that
            they prove its absence. It is how much later than that Kraken may list an order.

    Raises `InvalidArgument`.
    """

    waits: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)
    jitter: float = 0.1
    leads: tuple[float, ...] = (60.0, 600.0, 6_000.0)
    max_lead: float = DEFAULT_MAX_LEAD / 1e9
    settle_waits: tuple[float, ...] = (1.0, 2.0, 5.0)
    proof_wait: float = 10.0

    CLASSIC: ClassVar[Retries]
    """Raises the nonce 30 s at a time, as many bots do by themselves."""

    def __post_init__(self) -> None:
        for name, highest in (
            ("waits", _LONGEST_WAIT),
            ("leads", arguments.LONGEST_LEAD / 1e9),
            ("settle_waits", 60.0),
        ):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) > _MOST:
                raise InvalidArgument(
                    name, f"must be a tuple of at most {_MOST} numbers, not {arguments.shown(values)}"
                )
            for value in values:
                arguments.seconds(name, value, 0, highest)
        if list(self.leads) != sorted(set(self.leads)):
            raise InvalidArgument("leads", f"each must be above the one before, not {self.leads!r}")
        if not self.settle_waits:
            raise InvalidArgument("settle_waits", "must hold at least one wait: Kraken may list an order late")
        arguments.seconds("proof_wait", self.proof_wait, 0, _LONGEST_WAIT)
        arguments.seconds("jitter", self.jitter, 0, 1)
        arguments.seconds("max_lead", self.max_lead, 0, arguments.LONGEST_LEAD / 1e9)

    def wait(self, attempts: int) -> float | None:
        """Return the seconds to wait after a number of attempts, at random; None for no further attempt."""
        if attempts > len(self.waits):
            return None
        return self.waits[attempts - 1] * (1 + self.jitter * random.random())  # noqa: S311 - no secret

    def lead_after(self, refused: float) -> float | None:
        """Return the lead to raise the nonce to when one with this lead was refused, in seconds; None for no further.

        The lead of a refused nonce has become less since it was raised, so the nearest one counts as tried.
        """
        below = 0.0
        for lead in self.leads:
            bounded = min(lead, self.max_lead)
            if refused < (below + bounded) / 2:
                return bounded
            below = bounded
        return None


Retries.CLASSIC = Retries(leads=(30.0, 60.0, 90.0, 120.0))
