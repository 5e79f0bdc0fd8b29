"""Metrics and traces of a process: what they count, in one process and in several."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from kraken_nonce_redis import HoldTimeout, StoreUnavailable, events, otel, prometheus
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis._measures import METRICS, NEWS
from tests.support.helpers import KEYS, ROOT, SECOND, Rival, fails

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import redis

    from tests.conftest import PrivateServer
    from tests.support.faces import Face
    from tests.support.helpers import View
    from tests.support.servers import AnyServer, Server

pytestmark = pytest.mark.once


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """Measure this process in a registry of the test's own."""
    registry = CollectorRegistry()
    observer = prometheus.install(registry)
    assert prometheus.install(registry) is observer
    yield registry
    events.remove_observer(observer)


def call_events() -> Iterator[events.Event]:
    """Yield what is told of some calls."""
    who: dict[str, Any] = {"key": "k", "name": "bot"}
    for method in ("AddOrder", "Balance", "Balance", "AnythingNew"):
        yield events.CallEnded(**who, method=method, nonce=1, outcome="carried out", seconds=0.2)
    yield events.CallEnded(**who, method="AddOrder", nonce=1, outcome="not sent", seconds=9)
    for error in ("EOrder:Insufficient funds", "EAPI: Invalid nonce", "EAPI:Invalid nonce", "EWhat:Ever"):
        yield events.CallRefused(**who, method="AddOrder", nonce=1, errors=(error, error))
        yield events.CallTriedAgain(**who, method="AddOrder", reason=error, errors=(error,), wait=0)
    yield events.CallTriedAgain(**who, method="AddOrder", reason="no answer (Timeout)", errors=(), wait=0)
    yield events.KeyPoisoned(**who, refused=1, lead=1.0)


def test_prometheus(face: Face, server: AnyServer, rival: Rival, view: View, registry: CollectorRegistry) -> None:
    """Waits, holds and calls are counted once, with labels that this library knows, or "other"."""
    value = registry.get_sample_value
    assert value("kraken_nonce_events_total", {"event": "StateLost"}) == 0
    lock = face.lock(face.client(server))
    for _ in range(3):
        with lock.hold():
            time.sleep(0.011)
    view.until_free()
    rival.take()
    with fails(HoldTimeout), lock.hold(0):
        pass
    for event in call_events():
        telling.note(event)
    assert value("kraken_nonce_lock_wait_seconds_count") == 3
    assert value("kraken_nonce_lock_hold_seconds_count") == 3
    assert value("kraken_nonce_lock_hold_seconds_bucket", {"le": "0.01"}) == 0
    assert value("kraken_nonce_lock_hold_seconds_bucket", {"le": "+Inf"}) == 3
    assert value("kraken_nonce_lock_timeouts_total", {"error": "HoldTimeout"}) == 1
    assert value("kraken_nonce_calls_total", {"method": "Balance", "outcome": "carried out"}) == 2
    assert value("kraken_nonce_calls_total", {"method": "other", "outcome": "carried out"}) == 1
    assert value("kraken_nonce_calls_total", {"method": "AddOrder", "outcome": "not sent"}) == 1
    assert value("kraken_nonce_call_seconds_count") == 4
    counted = {
        error: value("kraken_nonce_refusals_total", {"error": error})
        for error in ("EOrder:other", "EAPI:Invalid nonce", "other")
    }
    assert counted == {"EOrder:other": 1, "EAPI:Invalid nonce": 2, "other": 1}
    assert value("kraken_nonce_retries_total", {"reason": "EAPI:Invalid nonce"}) == 2
    assert value("kraken_nonce_retries_total", {"reason": "no answer"}) == 1
    assert value("kraken_nonce_events_total", {"event": "KeyPoisoned"}) == 1


def test_redis_fails(face: Face, private_server: PrivateServer, registry: CollectorRegistry) -> None:
    """Errors of Redis and lost state are counted."""
    server = private_server()
    nonces = face.allocator(face.client(server))
    nonces.jump_forward(100 * SECOND)
    server.kill()
    for _ in range(2):
        with fails(StoreUnavailable):
            nonces.next()
    server.start()
    nonces.next()
    assert registry.get_sample_value("kraken_nonce_store_errors_total", {"error": "StoreUnavailable"}) == 2
    for event in ("RedisAway", "RedisBack", "StateLost"):
        assert registry.get_sample_value("kraken_nonce_events_total", {"event": event}) == 1


def test_all_kinds_of_news_are_counted(registry: CollectorRegistry) -> None:
    """Each is there before it happens, so that its first time is an increase."""
    kinds = {kind.__name__ for kind in events.News.__subclasses__()}
    for kind in kinds:
        assert registry.get_sample_value("kraken_nonce_events_total", {"event": kind}) == 0
    [family] = [family for family in registry.collect() if family.name == prometheus.name_of(NEWS)]
    assert {sample.labels["event"] for sample in family.samples} == kinds


def test_many_processes(valkey: Server, tmp_path: Path) -> None:
    """In prometheus_client's multiprocess mode the metrics of programs that fork, as gunicorn does, add up."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.metrics_worker", valkey.url, "20"]
    programs = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [program.wait(60) for program in programs] == [0, 0]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    assert registry.get_sample_value("kraken_nonce_lock_hold_seconds_count") == 2 * (1 + 2 * 20)
    assert registry.get_sample_value("kraken_nonce_lock_wait_seconds_count") == 2 * (1 + 2 * 20)
    assert registry.get_sample_value("kraken_nonce_events_total", {"event": "StateLost"}) == 0


class Traces:
    """Where spans and metrics of OpenTelemetry go."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def spans(self) -> dict[str, Any]:
        """Return the spans by name, the last one of each."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name."""
        data = self.reader.get_metrics_data()
        assert data is not None
        found = [
            metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
        ]
        return {metric.name: metric for metric in found}


@pytest.fixture
def traces() -> Iterator[Traces]:
    """Trace this process."""
    traces = Traces()
    observer = otel.install(traces.tracers, traces.meters)
    assert otel.install(traces.tracers, traces.meters) is observer
    yield traces
    events.remove_observer(observer)


def test_opentelemetry(valkey: Server, traces: Traces, registry: CollectorRegistry) -> None:
    """A wait, a hold and a call are spans below the caller's, with their times; the metrics are those of Prometheus."""
    import kraken_nonce_redis  # noqa: PLC0415 - the caller's span is this thread's

    lock = kraken_nonce_redis.CallLock.from_url(valkey.url, "a key", name="bot")
    with traces.tracers.get_tracer("test").start_as_current_span("order") as order, lock.hold():
        for event in call_events():
            telling.note(event)
        time.sleep(0.02)
    spans = traces.spans()
    assert set(spans) == {"order", "kraken_nonce.wait", "kraken_nonce.hold", "kraken_nonce.call"}
    for name in ("wait", "hold", "call"):
        assert spans[f"kraken_nonce.{name}"].parent.span_id == order.get_span_context().span_id
    hold = spans["kraken_nonce.hold"]
    assert hold.attributes["kraken_nonce.name"] == "bot"
    assert 0.02 < (hold.end_time - hold.start_time) / 1e9 < 5
    assert hold.status.status_code is StatusCode.UNSET
    assert spans["kraken_nonce.wait"].end_time <= hold.end_time
    assert spans["kraken_nonce.call"].status.status_code is StatusCode.ERROR  # the last one was not sent
    assert [event.name for event in spans["order"].events] == ["kraken_nonce.KeyPoisoned"]
    metrics = traces.metrics()
    assert set(metrics) <= {otel.name_of(metric) for metric in METRICS}
    [point] = metrics["kraken_nonce.lock_hold.duration"].data.data_points
    assert point.count == 1
    calls = {
        (point.attributes["kraken_nonce.method"], point.attributes["kraken_nonce.outcome"]): point.value
        for point in metrics["kraken_nonce.calls"].data.data_points
    }
    for (method, outcome), number in calls.items():
        labels = {"method": method, "outcome": outcome}
        assert registry.get_sample_value("kraken_nonce_calls_total", labels) == number
    assert calls["Balance", "carried out"] == 2


def test_a_timeout_in_a_trace(face: Face, server: AnyServer, rival: Rival, traces: Traces) -> None:
    """A wait that timed out is a span with an error."""
    rival.take()
    with fails(HoldTimeout), face.lock(face.client(server)).hold(0.05):
        pass
    wait = traces.spans()["kraken_nonce.wait"]
    assert wait.status.status_code is StatusCode.ERROR
    assert wait.attributes["kraken_nonce.error"] == "HoldTimeout"
    assert 0.04 < (wait.end_time - wait.start_time) / 1e9 < 5
    assert wait.attributes["kraken_nonce.key"] == KEYS.tag


def test_without_a_tracer(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """With OpenTelemetry's API alone, nothing goes anywhere, and nothing fails."""
    observer = otel.install()
    try:
        with face.lock(face.client(server)).hold():
            pass
        assert not trace.get_current_span().is_recording()
    finally:
        events.remove_observer(observer)


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("otel", "opentelemetry", "otel")],
)
def test_an_extra_that_is_missing(module: str, library: str, extra: str) -> None:
    """What to install is said in one line."""
    script = f"import sys; sys.modules[{library!r}] = None; import kraken_nonce_redis.{module}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.stderr.splitlines()[-1].endswith(f"is not installed: pip install 'kraken-nonce-redis[{extra}]'")
