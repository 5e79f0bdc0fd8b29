"""What `kraken-nonce exporter` tells Prometheus, read from Redis at each scrape. Needs the extra ``prometheus``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from kraken_nonce_redis import _verdict as verdicts
from kraken_nonce_redis._redis.journal import Result
from kraken_nonce_redis._verdict import NAMES
from kraken_nonce_redis.cli.options import note
from kraken_nonce_redis.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kraken_nonce_redis.cli.selection import Look, Selection

STATES: Final = ("new", *get_args(Result), "reported")
"""Of calls in the journal."""


class Families:
    """The metrics of one scrape, without samples at first."""

    def __init__(self) -> None:
        self.up = _gauge("up", "Whether Redis has answered this scrape.")
        self.keys = _gauge("keys", "API keys found in the namespace.")
        self.keys_left_out = _gauge("keys_left_out", "API keys of these that are not shown, since they are too many.")
        self.waiters = _gauge("waiters", "Callers that wait for the lock.", "key")
        self.longest_wait = _gauge("longest_wait_seconds", "For how long the first of them has waited.", "key")
        self.holder_age = _gauge(
            "holder_age_seconds", "For how long the lock has been held; 0 while it is free.", "key"
        )
        self.lead = _gauge("lead_seconds", "How far the last nonce is ahead of the server's clock.", "key")
        self.cool_down = _gauge("cool_down_seconds", "For how long no call starts; 0 without a cool-down.", "key")
        self.pending = _gauge("pending_calls", "Calls with an unknown outcome, by state.", "key", "state")
        self.condition = _gauge("condition", "1 for what is wrong, by the same rule as status.", "key", "condition")

    def add(self, look: Look) -> None:
        """Add the samples of an API key."""
        key = look.chosen.keys.tag
        for name in NAMES:
            self.condition.add_metric([key, name], name in look.verdict.names)
        if look.state is None:
            return
        self.waiters.add_metric([key], look.state.waiting)
        self.longest_wait.add_metric([key], verdicts.longest_wait(look.state))
        self.holder_age.add_metric([key], verdicts.holder_age(look.state))
        lead = verdicts.lead_seconds(look.state)
        if lead is not None:
            self.lead.add_metric([key], lead)
        self.cool_down.add_metric([key], look.state.cool_down)
        states = [call.state for call in look.pending]
        for state in STATES:
            self.pending.add_metric([key, state], states.count(state))

    def all(self) -> Iterable[GaugeMetricFamily]:
        """Return all of them."""
        families: Iterable[GaugeMetricFamily] = vars(self).values()
        return families


def _gauge(name: str, what: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"kraken_nonce_{name}", what, labels=labels or None)


class RedisCollector(Collector):
    """Reads what is in Redis when it is asked.

    Args:
        selection: the API keys.
        most: how many of them are shown at the most, those with the lowest digests.
    """

    def __init__(self, selection: Selection, most: int) -> None:
        self._selection = selection
        self._most = most
        self._failed = False

    def describe(self) -> Iterable[Any]:
        """Return the metrics without samples, so that nothing is asked when this is registered."""
        return Families().all()

    def collect(self) -> Iterable[Any]:
        """Return the metrics; only ``kraken_nonce_up`` when Redis can't be used."""
        families = Families()
        try:
            found = self._selection.all()
            for chosen in found[: self._most]:
                families.add(self._selection.look(chosen))
        except StoreError as error:
            if not self._failed:
                note(str(self._selection.place.failure(error)))
            self._failed = True
            families = Families()
            families.up.add_metric([], 0)
            return families.all()
        self._failed = False
        families.up.add_metric([], 1)
        families.keys.add_metric([], len(found))
        families.keys_left_out.add_metric([], max(0, len(found) - self._most))
        return families.all()
