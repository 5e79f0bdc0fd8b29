"""Metrics of this process for Prometheus. Needs the extra ``prometheus``.

They are counters and histograms alone, so prometheus_client's multiprocess mode adds up those of all processes
(gunicorn). What is in Redis, such as who waits, comes from ``kraken-nonce exporter``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kraken_nonce_redis._measures import METRICS, NEWS, Metric, measure
from kraken_nonce_redis.events import News, add_observer

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
except ImportError as error:
    raise ImportError("prometheus-client is not installed: pip install 'kraken-nonce-redis[prometheus]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis.events import Event, Observer

PREFIX: Final = "kraken_nonce_"
"""What the names of all metrics begin with."""

_installed: Final[dict[CollectorRegistry, _Recorder]] = {}


def install(registry: CollectorRegistry = REGISTRY) -> Observer:
    """Measure this process's events from now on, in a registry of prometheus_client; a second time changes nothing.

    Return the observer, which `events.remove_observer` takes.
    """
    recorder = _installed.get(registry)
    if recorder is None:
        recorder = _installed[registry] = _Recorder(registry)
    add_observer(recorder)
    return recorder


def name_of(metric: Metric) -> str:
    """Return the name of a metric, without the ending that its kind adds to it."""
    return f"{PREFIX}{metric.name}_seconds" if metric.bounds else f"{PREFIX}{metric.name}"


class _Recorder:
    """An observer that adds events to metrics of prometheus_client."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._adders: dict[tuple[Metric, tuple[str, ...]], Callable[[float], None]] = {}
        self._metrics: dict[Metric, Counter | Histogram] = {}
        for metric in METRICS:
            name, text = name_of(metric), metric.text
            self._metrics[metric] = (
                Histogram(name, text, metric.labels, buckets=metric.bounds, registry=registry)
                if metric.bounds
                else Counter(name, text, metric.labels, registry=registry)
            )
        for kind in News.__subclasses__():  # so that the first one of a kind is an increase
            self._adder(NEWS, (kind.__name__,))

    def __call__(self, event: Event) -> None:
        measure(event, self._add)

    def _add(self, metric: Metric, amount: float, labels: tuple[str, ...]) -> None:
        add = self._adders.get((metric, labels)) or self._adder(metric, labels)
        add(amount)

    def _adder(self, metric: Metric, labels: tuple[str, ...]) -> Callable[[float], None]:
        """Return what adds to a metric with these labels."""
        whole = self._metrics[metric]
        part = whole.labels(*labels) if labels else whole
        add = self._adders[metric, labels] = part.observe if isinstance(part, Histogram) else part.inc
        return add
