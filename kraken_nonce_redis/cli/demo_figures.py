"""The figures that the demo shows, from the exchange's log; no I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kraken_nonce_redis.testing import SimulatedOrder, SimulatedRequest

_INVALID_NONCE: Final = "EAPI:Invalid nonce"


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of the orders of one run.

    Attributes:
        orders: how many the processes wanted.
        calls: requests that arrived at the exchange.
        refused: requests refused for their nonce.
        other_errors: requests with another error of the exchange.
        lost_answers: requests that were carried out, or refused, without an answer.
        placed_again: orders at the exchange beyond the first one for each that was wanted.
        not_placed: orders that were wanted and are not at the exchange.
        longest_wait: most seconds from when a process wanted an order until it had the last answer about it.
        in_flight: most requests under way at once.
        in_order: whether each nonce was above the one that arrived before.
    """

    orders: int
    calls: int
    refused: int
    other_errors: int
    lost_answers: int
    placed_again: int
    not_placed: int
    longest_wait: float
    in_flight: int
    in_order: bool

    def problems(self) -> list[str]:
        """Return what is wrong for a run with the lock."""
        return _texts(
            (not self.orders, "it wanted no orders"),
            (self.refused, f"{self.refused} calls were refused for their nonce"),
            (self.other_errors, f"{self.other_errors} calls had another error"),
            (self.placed_again, f"{self.placed_again} orders were placed again"),
            (self.not_placed, f"{self.not_placed} orders were not placed"),
            (self.in_flight > 1, f"{self.in_flight} calls were in flight at once"),
            (not self.in_order, "nonces arrived out of order"),
        )


@dataclass(frozen=True, slots=True)
class FlatOut:
    """What came of calling as fast as it goes.

    Attributes:
        calls_per_second: of the calls that were carried out.
        least: calls of the process with the fewest that were carried out.
        most: calls of the process with the most.
    """

    calls_per_second: float
    least: int
    most: int

    def problems(self) -> list[str]:
        """Return what is wrong for a run with the lock."""
        return _texts((not self.least, "a process made no call"))


def _texts(*found: tuple[object, str]) -> list[str]:
    return [text for is_so, text in found if is_so]


def figures(
    log: Sequence[SimulatedRequest], orders: Iterable[SimulatedOrder], wanted: Mapping[int, Mapping[str, float]]
) -> Figures:
    """Return the figures of one run.

    Args:
        log: the requests in order of arrival.
        orders: those at the exchange.
        wanted: for each process the prices of its orders, which no other order has, and the seconds that each took.
    """
    refused = sum(_INVALID_NONCE in request.error for request in log)
    placed = Counter(float(order.price) for order in orders)
    nonces = [request.nonce or 0 for request in log]
    return Figures(
        orders=sum(map(len, wanted.values())),
        calls=len(log),
        refused=refused,
        other_errors=sum(bool(request.error) for request in log) - refused,
        lost_answers=sum(bool(request.fault) for request in log),
        placed_again=placed.total() - len(placed),
        not_placed=sum(float(price) not in placed for prices in wanted.values() for price in prices),
        longest_wait=max((seconds for prices in wanted.values() for seconds in prices.values()), default=0.0),
        in_flight=max((request.in_flight for request in log), default=0),
        in_order=all(earlier < later for earlier, later in pairwise(nonces)),
    )


def flat_out(log: Sequence[SimulatedRequest], carried_out: Sequence[int]) -> FlatOut:
    """Return the figures of a run, from the requests and from how many of each process were carried out."""
    begin = min((request.received for request in log), default=0.0)
    end = max((request.finished or request.received for request in log), default=0.0)
    return FlatOut(
        calls_per_second=sum(not request.error for request in log) / (end - begin or 1.0),
        least=min(carried_out, default=0),
        most=max(carried_out, default=0),
    )
