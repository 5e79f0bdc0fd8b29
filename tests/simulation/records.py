"""What is known of callers and keys, and the figures that bound what callers may have to wait for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kraken_nonce_redis.urls import SOCKET_TIMEOUT

if TYPE_CHECKING:
    from kraken_nonce_redis._core.lease import LeaseCore
    from tests.simulation.process import Process

MARGIN = 10**9
DEAD_WAITER = 2.0
"""Seconds that a dead or stopped waiter costs the others at most."""
MOST_OVERTAKINGS = 10
MOST_HEARTBEATS = 8
"""Of one process for one key, in half as many seconds."""
MOST_ASKS = 5
"""How often a waiter asks at most without an offer: at first, when it listens, and when answers come late."""
LONGEST_PACE = 2.2
"""Seconds after the last start that a pace makes a call wait, at most; what the simulation uses."""
LONGEST_COOL_DOWN = 3.0
RECOVERY = 4 * SOCKET_TIMEOUT
"""Seconds after a trouble with the network in which processes may still be waiting for lost replies."""


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(eq=False)
class Acquisition:
    """One caller that wants the lock, has it, or had it.

    Attributes:
        has_place: the server knows that it waits.
        confirmed: when the server last granted or extended its lease.
        asks: how often it has asked.
        offers: how often the server has offered it the lock.
        deadline: when its lease was to end, as it began to give it back.
        interrupted: it does not end by itself.
        quiet: it does not hear what its release has come to.
        superseded: another one had got the lock when the server heard that it gives it back.
    """

    name: str
    process: Process
    key: str
    high: bool
    until: float | None
    state: str = "asking"
    has_place: bool = False
    ticket: int | None = None
    first: int = 0
    asks: int = 0
    offers: int = 0
    lease: LeaseCore | None = None
    confirmed: float = -1.0
    deadline: float = 0.0
    interrupted: bool = False
    quiet: bool = False
    superseded: bool = False

    @property
    def holds(self) -> bool:
        """Whether it has the lock as far as its holder can see, and may send."""
        return self.state == "held" and not self.process.crashed and self.lease is not None and not self.lease.lost


@dataclass(eq=False)
class KeyHistory:
    """What is known of one key.

    Attributes:
        must_exceed: what the next nonce must be above.
        disturbed: when the server last lost the lock or ended it early: its state was lost, its clock went forward,
            or the lock was taken away by hand.
        sent: the last nonce that went to Kraken, and when.
        offered: who has the lock or whom it is offered to, as far as the server knows.
        overtakings: how often in a row one of high priority got an offer while a normal one waited.
        covered_until: until when it is clear why none of the waiters has the lock.
        ends: when the lease or offer that the server has ends.
        started_at: when the last call started.
        cool_until: when a cool-down is over.
        latest: who got the lock last.
        returned_by: since when its holder has given it up, infinity when it hasn't.
    """

    acquisitions: dict[str, Acquisition] = field(default_factory=dict)
    must_exceed: int = 0
    disturbed: float = -1.0
    sent: tuple[int, float] = (0, 0.0)
    offered: str = ""
    overtakings: int = 0
    covered_until: float = float("inf")
    ends: float = 0.0
    returned_by: float = float("inf")
    started_at: float = -60.0
    cool_until: float = 0.0
    latest: Acquisition | None = None

    def waiting(self) -> list[Acquisition]:
        """Return those with a place."""
        return [one for one in self.acquisitions.values() if one.has_place]
