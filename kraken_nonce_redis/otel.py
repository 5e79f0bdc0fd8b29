"""Spans and metrics of this process for OpenTelemetry, by its API alone. Needs the extra ``otel``.

The spans ``kraken_nonce.wait``, ``kraken_nonce.hold`` and ``kraken_nonce.call`` are made when they have ended, beside
each other and below the span that is current in the caller. News becomes an event of that span. The application's SDK
says where all this goes. redis-py's own instrumentation has the commands to Redis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kraken_nonce_redis import events
from kraken_nonce_redis._measures import METRICS, Metric, measure

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import Counter, Histogram
    from opentelemetry.trace import Status, StatusCode
except ImportError as error:
    raise ImportError("opentelemetry-api is not installed: pip install 'kraken-nonce-redis[otel]'") from error

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

    from kraken_nonce_redis.events import Event, Observer

PREFIX: Final = "kraken_nonce."
"""What the names of all metrics, spans and attributes begin with."""

_SPANS: Final[dict[type[events.Event], str]] = {
    events.LockGranted: "wait",
    events.WaitTimedOut: "wait",
    events.LockReleased: "hold",
    events.CallEnded: "call",
}

_installed: Final[dict[tuple[TracerProvider | None, MeterProvider | None], _Recorder]] = {}


def install(tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None) -> Observer:
    """Trace and measure this process's events from now on; the providers are the global ones by default.

    A second time with the same providers changes nothing. Return the observer, which `events.remove_observer` takes.
    """
    providers = tracer_provider, meter_provider
    observer = _installed.get(providers)
    if observer is None:
        observer = _installed[providers] = _Recorder(*providers)
    events.add_observer(observer)
    return observer


def name_of(metric: Metric) -> str:
    """Return the name of a metric."""
    return f"{PREFIX}{metric.name}.duration" if metric.bounds else f"{PREFIX}{metric.name}"


class _Recorder:
    """An observer that makes spans and adds to metrics."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self._tracer = trace.get_tracer("kraken_nonce_redis", tracer_provider=tracer_provider)
        meter = metrics.get_meter("kraken_nonce_redis", meter_provider=meter_provider)
        self._metrics: dict[Metric, Counter | Histogram] = {}
        for metric in METRICS:
            name = name_of(metric)
            self._metrics[metric] = (
                meter.create_histogram(name, "s", metric.text, explicit_bucket_boundaries_advisory=metric.bounds)
                if metric.bounds
                else meter.create_counter(name, description=metric.text)
            )

    def __call__(self, event: Event) -> None:
        measure(event, self._add)
        span = _SPANS.get(type(event))
        if span is not None:
            self._trace(event, span)
        elif isinstance(event, events.News):
            trace.get_current_span().add_event(
                f"{PREFIX}{type(event).__name__}", _attributes(event), round(event.time * 1e9)
            )

    def _add(self, metric: Metric, amount: float, labels: tuple[str, ...]) -> None:
        instrument = self._metrics[metric]
        attributes = {f"{PREFIX}{name}": value for name, value in zip(metric.labels, labels, strict=True)}
        if isinstance(instrument, Histogram):
            instrument.record(amount, attributes)
        else:
            instrument.add(amount, attributes)

    def _trace(self, event: Event, name: str) -> None:
        began = event.time if event.since is None else event.since
        span = self._tracer.start_span(f"{PREFIX}{name}", attributes=_attributes(event), start_time=round(began * 1e9))
        problem = getattr(event, "error", "") or getattr(event, "outcome", "")
        if problem and problem != "carried out":
            span.set_status(Status(StatusCode.ERROR, problem))
        span.end(round(event.time * 1e9))


def _attributes(event: Event) -> dict[str, AttributeValue]:
    """Return what an event says of itself, without what a span has already, and mappings."""
    said = {name: value for name, value in vars(event).items() if name not in {"time", "since"}}
    return {
        f"{PREFIX}{name}": value for name, value in said.items() if isinstance(value, str | bool | int | float | tuple)
    }
