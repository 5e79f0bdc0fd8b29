"""The dashboard and the alerts, held against the metrics that exist; promtool checks what they ask for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest
from prometheus_client import CollectorRegistry

from kraken_nonce_redis import _measures as measures
from kraken_nonce_redis import errors, events, prometheus
from kraken_nonce_redis._verdict import NAMES
from kraken_nonce_redis.cli.collector import STATES, Families
from tests.support.helpers import ROOT
from tests.support.servers import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.once

FOLDER: Final = ROOT / "deploy" / "monitoring"
DASHBOARD: Final[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
PANELS: Final[list[dict[str, Any]]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: Final = (FOLDER / "rules.yaml").read_text("utf-8")
SELECTOR: Final = re.compile(r"\b(kraken_nonce_\w+)(?:\{([^}]*)\})?")
MATCHER: Final = re.compile(r"(\w+)(=~|!=|=)\"([^\"]*)\"")
VARIABLES: Final = {"$key": "a", "$__rate_interval": "5m", "$__all": "x"}


def of_processes() -> dict[str, set[str]]:
    """Return the labels of each series that processes have."""
    registry = CollectorRegistry()
    events.remove_observer(prometheus.install(registry))
    found = {}
    for metric in measures.METRICS:
        name, labels = prometheus.name_of(metric), set(metric.labels)
        if metric.bounds:
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[f"{name}_total"] = labels
    families = {family.name for family in registry.collect()}
    assert {re.sub("_(bucket|sum|count|total)$", "", name) for name in found} == families
    return found


def of_redis() -> dict[str, set[str]]:
    """Return the labels of each series that the exporter has."""
    return {family.name: set(family._labelnames) for family in Families().all()}


def known_values() -> dict[str, set[str]]:
    """Return what labels may be, for those that alerts and panels choose by."""
    return {
        "event": {kind.__name__ for kind in events.News.__subclasses__()},
        "error": {*measures.error_labels(), *vars(errors)},
        "condition": set(NAMES),
        "state": set(STATES),
    }


def expressions() -> Iterator[tuple[str, str]]:
    """Yield what panels and alerts ask for, with where that is."""
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from alerts().items()


def alerts() -> dict[str, str]:
    """Return the expression of each alert."""
    found = re.findall(r"- alert: (\w+)\n +expr: (?:>-\n)?(.*?)\n +(?:for|labels):", RULES, re.DOTALL)
    assert len(found) == RULES.count("- alert:")
    return dict(found)


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_exists(where: str, expression: str) -> None:
    """What a panel or an alert asks for is there, with the labels and their values that it names."""
    series, values = of_processes() | of_redis(), known_values()
    asked = SELECTOR.findall(expression)
    assert asked, where
    grouped = {label for words in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r", *", words)}
    for name, matchers in asked:
        assert name in series
        for label, operator, value in MATCHER.findall(matchers):
            assert label in series[name]
            if label in values:
                assert set(value.split("|") if operator == "=~" else [value]) <= values[label]
    assert grouped <= set().union(*(series[name] for name, _ in asked))


def test_every_metric_is_shown() -> None:
    """No metric is forgotten on the dashboard; of a histogram it has the buckets."""
    shown = {name for panel in PANELS for target in panel["targets"] for name, _ in SELECTOR.findall(target["expr"])}
    wanted = {name for name in of_processes() | of_redis() if not name.endswith(("_sum", "_count"))}
    assert wanted - shown <= {"kraken_nonce_keys_left_out"}


def test_the_dashboard() -> None:
    """It imports and provisions: a data source by variable alone, distinct numbers, panels beside each other."""
    assert "__inputs" not in DASHBOARD
    assert DASHBOARD["uid"] == "kraken-nonce"
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "key"]
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        taken = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= taken
    for panel in PANELS:
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}


def promtool(*words: str | Path) -> None:
    """Run promtool, of Debian's package prometheus."""
    tool = shutil.which("promtool")
    require(None if tool else "no promtool: install Debian's package prometheus")
    ran = subprocess.run([str(tool), *words], capture_output=True, text=True, check=False, cwd=FOLDER)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_checks_the_alerts() -> None:
    """Prometheus takes the rules, and they fire when they should and only then."""
    promtool("check", "rules", "rules.yaml")
    promtool("test", "rules", "rules.test.yaml")


def test_promtool_checks_the_dashboard(tmp_path: Path) -> None:
    """Prometheus takes what the panels ask for."""
    rules = []
    for number, target in enumerate(target for panel in PANELS for target in panel["targets"]):
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"panel:{number}", "expr": expression})
    file = tmp_path / "panels.json"  # which is YAML as well
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")
    promtool("check", "rules", file)


def test_the_docs() -> None:
    """The page has every metric of a process, with its labels, and every alert."""
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    rows = re.findall(r"^\| `(kraken_nonce_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    told = {(name, kind): set(re.findall(r"`(\w+)`", labels)) for name, kind, labels in rows}
    assert told == {
        (prometheus.name_of(metric), "histogram")
        if metric.bounds
        else (f"{prometheus.name_of(metric)}_total", "counter"): set(metric.labels)
        for metric in measures.METRICS
    }
    assert set(re.findall(r"`(KrakenNonce\w+)`", page)) == set(alerts())
