"""The figures that the demo shows, from the exchange's log; no I/O."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kraken_nonce_redis.testing import SimulatedRequest

_INVALID_NONCE: Final = "EAPI:Invalid nonce"


@dataclass(frozen=True, slots=True)
class Figures:
    """One phase of the demo.

    Attributes:
        calls: requests that arrived at the exchange.
        refused: requests refused for their nonce.
        other_errors: requests with another error.
        calls_per_second: of all calls.
        accepted_per_second: of the calls without an error.
        least: calls of the process with the fewest.
        most: calls of the process with the most.
        longest_wait: most seconds between two calls of a process, from an answer to the next arrival.
        in_flight: most requests under way at once.
        in_order: whether each nonce was above the one that arrived before.
    """

    calls: int
    refused: int
    other_errors: int
    calls_per_second: float
    accepted_per_second: float
    least: int
    most: int
    longest_wait: float
    in_flight: int
    in_order: bool

    def problems(self) -> list[str]:
        """Return what is wrong for a run with the lock."""
        found = (
            (not self.calls, "it made no calls"),
            (self.refused, f"{self.refused} calls were refused for their nonce"),
            (self.other_errors, f"{self.other_errors} calls had another error"),
            (self.in_flight > 1, f"{self.in_flight} calls were in flight at once"),
            (not self.in_order, "nonces arrived out of order"),
            (not self.least, "a process made no call"),
        )
        return [text for is_so, text in found if is_so]


def figures(log: Sequence[SimulatedRequest], sent: Mapping[int, Sequence[int]]) -> Figures:
    """Return the figures of one phase.

    Args:
        log: the requests in order of arrival.
        sent: the nonces that each process sent. They tell which process sent a request; everything else is from the
            log.
    """
    refused = sum(_INVALID_NONCE in request.error for request in log)
    failed = sum(bool(request.error) for request in log)
    begin = min((request.received for request in log), default=0.0)
    end = max((_finished(request) for request in log), default=0.0)
    seconds = end - begin or 1.0
    by_process = _by_process(log, sent)
    shares = [len(requests) for requests in by_process]
    nonces = [request.nonce or 0 for request in log]
    return Figures(
        calls=len(log),
        refused=refused,
        other_errors=failed - refused,
        calls_per_second=len(log) / seconds,
        accepted_per_second=(len(log) - failed) / seconds,
        least=min(shares, default=0),
        most=max(shares, default=0),
        longest_wait=max((_longest_wait(requests, begin, end) for requests in by_process), default=0.0),
        in_flight=max((request.in_flight for request in log), default=0),
        in_order=all(earlier < later for earlier, later in pairwise(nonces)),
    )


def _by_process(log: Sequence[SimulatedRequest], sent: Mapping[int, Sequence[int]]) -> list[list[SimulatedRequest]]:
    senders: defaultdict[int, list[int]] = defaultdict(list)
    for process, nonces in sent.items():
        for nonce in nonces:
            senders[nonce].append(process)
    requests: dict[int, list[SimulatedRequest]] = {process: [] for process in sent}
    for request in log:
        candidates = senders[request.nonce or 0]
        if candidates:  # more than one when two processes took the same nonce
            requests[candidates.pop()].append(request)
    return list(requests.values())


def _longest_wait(requests: Sequence[SimulatedRequest], begin: float, end: float) -> float:
    arrivals = [*(request.received for request in requests), end]
    answers = [begin, *(_finished(request) for request in requests)]
    return max(arrival - answer for answer, arrival in zip(answers, arrivals, strict=True))


def _finished(request: SimulatedRequest) -> float:
    return request.received if request.finished is None else request.finished
