"""What the benchmarks share: a server, rounds in which rivals take turns, and the report."""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import platform
import secrets
import shlex
import statistics
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from kraken_nonce_redis.cli import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

API_KEY = "benchmark"
_PACKAGES = ("kraken-nonce-redis", "redis", "hiredis", "throttled-py", "python-redis-lock", "pottery")
_COMPARE = {">=": operator.ge, "<=": operator.le, "=": operator.eq}


def parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return the options that all benchmarks have; the description is the module's docstring."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--redis", metavar="URL", help="a server to use instead of an embedded Valkey")
    options.add_argument("--rounds", type=int, default=rounds, help="how often each rival's turn comes (%(default)s)")
    options.add_argument("--json", action="store_true", help="print the figures as JSON")
    return options


@dataclass(frozen=True)
class Figure:
    """One thing measured: the median of its rounds, and the quartiles around it."""

    name: str
    unit: str
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, name: str, unit: str, values: Sequence[float]) -> Figure:
        """Return the figure of the rounds' values."""
        ordered = sorted(values)
        quarter = len(ordered) // 4
        return cls(name, unit, ordered[quarter], statistics.median(ordered), ordered[-1 - quarter])


@dataclass(frozen=True)
class Ratio:
    """Two figures of the same run, one by the other, and what it should be."""

    name: str
    value: float
    goal: str = ""

    @property
    def verdict(self) -> str:
        """Whether the goal is met."""
        if not self.goal:
            return ""
        sign, limit = self.goal.split()
        return "met" if _COMPARE[sign](self.value, float(limit)) else "missed"


@dataclass
class Bench:
    """One run of a benchmark: its server, and what it found.

    Attributes:
        url: the server.
        client: a redis-py client for it.
        namespace: part of the name of every key that the run makes.
    """

    url: str
    client: redis.Redis
    namespace: str = field(default_factory=lambda: f"bench-{secrets.token_hex(4)}")
    caveats: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)

    def measure(self, unit: str, rounds: int, cases: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Let the cases take turns, after one turn each that does not count; note a figure for each case."""
        values: dict[str, list[float]] = {name: [] for name in cases}
        for case in cases.values():
            case()
        for _ in range(rounds):
            for name, case in cases.items():
                values[name].append(case())
        for name, measured in values.items():
            self.note(name, unit, measured)
        return values

    def note(self, name: str, unit: str, values: Sequence[float]) -> None:
        """Note a figure."""
        self.figures.append(Figure.of(name, unit, values))

    def compare(self, name: str, above: Sequence[float], below: Sequence[float], goal: str = "") -> None:
        """Note the median, over the rounds, of one by the other."""
        pairs = zip(above, below, strict=True)
        self.ratios.append(Ratio(name, statistics.median(a / b for a, b in pairs), goal))

    def keys(self) -> list[bytes]:
        """Return the keys that the run has made."""
        return list(self.client.scan_iter(match=f"*{self.namespace}*", count=10_000))

    def facts(self) -> dict[str, str]:
        """Say what this run ran on."""
        info: dict[str, Any] = self.client.info("server")
        kind = info.get("server_name", "redis")
        return {
            "machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.platform(terse=True)}",
            "load": " ".join(f"{load:.1f}" for load in os.getloadavg()) + " (1, 5, 15 min; this run included)",
            "server": f"{kind} {info.get(f'{kind}_version', info['redis_version'])}",
            "python": platform.python_version(),
            "packages": ", ".join(f"{name} {version}" for name in _PACKAGES if (version := version_of(name))),
            "command": shlex.join(["python", *sys.argv]),
        }

    def report(self, *, as_json: bool) -> None:
        """Print what was found."""
        if as_json:
            ratios = [asdict(ratio) | {"verdict": ratio.verdict} for ratio in self.ratios]
            figures = [asdict(figure) for figure in self.figures]
            found = {"facts": self.facts(), "caveats": self.caveats, "figures": figures, "ratios": ratios}
            print(json.dumps(found, indent=2))
            return
        for name, fact in self.facts().items():
            print(f"{name:9} {fact}")
        for caveat in self.caveats:
            print(f"caveat    {caveat}")
        _print_table(
            ("", "median", "quartiles", "unit"),
            [(f.name, _short(f.median), f"{_short(f.low)} - {_short(f.high)}", f.unit) for f in self.figures],
        )
        _print_table(
            ("ratio", "value", "goal", ""),
            [(r.name, f"{r.value:.2f}", r.goal, r.verdict) for r in self.ratios],
        )


@contextlib.contextmanager
def running(url: str | None) -> Generator[Bench]:
    """Give a benchmark its server, embedded unless a URL is given, and remove its keys in the end."""
    with contextlib.ExitStack() as stack:
        if url is None:
            url = stack.enter_context(embedded.running()).url
        client = stack.enter_context(redis.Redis.from_url(url))
        bench = Bench(url, client)
        try:
            yield bench
        finally:
            keys = bench.keys()
            for start in range(0, len(keys), 1000):
                client.delete(*keys[start : start + 1000])


def version_of(package: str) -> str | None:
    """Return a package's version, None when it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    try:
        from rich.box import SIMPLE  # noqa: PLC0415 - only if it is there
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
    except ImportError:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        print()
        for row in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(box=SIMPLE)
    for number, title in enumerate(header):
        table.add_column(title, justify="right" if number in (1, 2) else "left", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
