"""How each kind of event is logged: its level, its text, its fields."""

from __future__ import annotations

import io
import json
import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, get_type_hints

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from kraken_nonce_redis import _logging, events
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis._measures import METRICS, Metric, measure

pytestmark = pytest.mark.once

KINDS: Final = [*events.Step.__subclasses__(), *events.News.__subclasses__()]
LEVELS: Final = {
    logging.DEBUG: {
        *("WaitingBegan", "WaitTimedOut", "LockGranted", "LockReleased"),
        *("CallSent", "CallEnded", "CallRefused", "StoreFailed"),
    },
    logging.INFO: {"StillWaiting", "CallTriedAgain", "CoolDownBegan", "CoolDownOver", "RedisAway", "RedisBack"},
    logging.ERROR: {"OutcomeUnknown", "KeyPoisoned"},
}
"""The level of each kind for a short wait; it is WARNING for all others."""


def of_kind(kind: type[events.Event]) -> st.SearchStrategy[events.Event]:
    """Return events of a kind with any attributes."""
    hints = get_type_hints(kind, vars(events))
    return st.builds(kind, **{each.name: st.from_type(hints[each.name]) for each in fields(kind)})


def log_records(event: events.Event, level: int = logging.DEBUG) -> list[logging.LogRecord]:
    """Return what is logged of an event."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    before = _logging.logger.level
    _logging.logger.addHandler(handler)
    _logging.logger.setLevel(level)
    try:
        telling.note(event)
    finally:
        _logging.logger.removeHandler(handler)
        _logging.logger.setLevel(before)
    return records


@given(st.sampled_from(KINDS).flatmap(of_kind))
def test_any_event(event: events.Event) -> None:
    """Each event makes one record whose text has no gap, and whose fields are its attributes, as JSON has them."""
    [record] = log_records(event)
    assert record.getMessage()
    shown = {name.removeprefix("kraken_nonce_"): value for name, value in vars(record).items() if "kraken_" in name}
    assert shown.pop("event") == type(event).__name__
    assert set(shown) == {each.name for each in fields(event)}
    assert json.loads(json.dumps(shown)) == shown or any(value != value for value in shown.values())  # noqa: PLR0124


@given(st.sampled_from(KINDS).flatmap(of_kind))
def test_any_event_is_measured(event: events.Event) -> None:
    """Labels have few values, however strange a method or an error is."""
    added: list[tuple[Metric, float, tuple[str, ...]]] = []
    measure(event, lambda *what: added.append(what))
    assert len(added) <= max(2, len(getattr(event, "errors", ())))
    for metric, _, labels in added:
        assert metric in METRICS
        assert len(labels) == len(metric.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_docs(kind: type[events.Event]) -> None:
    """Its page has the level of each kind, and its attributes."""
    [level] = [level for level, names in LEVELS.items() if kind.__name__ in names] or [logging.WARNING]
    assert _logging.level_of(kind) == level
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text("utf-8")
    [(logged, attributes)] = re.findall(rf"^\| `{kind.__name__}` \|.*\| ([^|]*) \|([^|]*)\|$", page, re.MULTILINE)
    assert logging.getLevelName(level) in logged
    own = {each.name for each in fields(kind)} - {each.name for each in fields(kind.__base__)}  # type: ignore[arg-type]
    assert set(re.findall(r"`(\w+)`", attributes)) == own


@pytest.mark.parametrize(
    ("wait", "level"), [(0.9, logging.DEBUG), (1.0, logging.INFO), (9.9, logging.INFO), (10.0, logging.WARNING)]
)
def test_long_waits(wait: float, level: int) -> None:
    """A wait is logged the higher the longer it was."""
    event = events.LockGranted(key="k", name="bot", method="AddOrder", lease="a:1", nonce=1, wait=wait)
    assert [record.levelno for record in log_records(event)] == [level]
    assert log_records(event, level + 1) == []


def test_an_unknown_outcome_of_another_bot() -> None:
    """That an earlier holder's call stays unknown is an ERROR, too."""
    said: dict[str, Any] = {"key": "k", "nonce": 1, "cl_ord_ids": ("a",), "orders": {}, "inherited": True, "known": "?"}
    for outcome, level in (("unknown", logging.ERROR), ("found", logging.WARNING)):
        [record] = log_records(events.OrderSettled(outcome=outcome, **said))  # type: ignore[arg-type]
        assert record.levelno == level


def test_a_silent_minute() -> None:
    """With the level INFO, whoever waits, retries or cools down is seen."""
    retry = events.CallTriedAgain(key="k", name="bot", method="AddOrder", reason="EService:Busy", errors=(), wait=5.0)
    [record] = log_records(retry, logging.INFO)
    assert record.getMessage() == "AddOrder of bot is made again in 5.0 s: EService:Busy"


def test_structured_logging() -> None:
    """Structlog takes the fields of our records into its own."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    _logging.logger.addHandler(handler)
    try:
        telling.note(events.CallForgotten(key="k", name="bot", method="AddOrder", nonce=7, cl_ord_ids=("a", "b")))
    finally:
        _logging.logger.removeHandler(handler)
    line = json.loads(stream.getvalue())
    assert line["level"] == "warning"
    assert line["event"].startswith("AddOrder of bot (nonce 7, cl_ord_id a, b)")
    assert line["kraken_nonce_event"] == "CallForgotten"
    assert line["kraken_nonce_cl_ord_ids"] == ["a", "b"]
    assert line["kraken_nonce_method"] == "AddOrder"
