"""The table of docs/faults.md, from what runs of tests/redis/test_fault_histories.py have noted.

KRAKEN_NONCE_FAULTS=runs.jsonl pytest tests/redis/test_fault_histories.py    # a few times
python -m tests.support.fault_table runs.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.mishaps import MISHAPS

COLUMNS = ("what went wrong", "for", "next nonce", "next lease", "everyone", "callers heard", "lost")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def rows(runs: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table: times are medians, errors those of any run."""
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        if not run["fault"].startswith("mixture"):
            by_fault[run["fault"]].append(run)
    order = [mishap.name for mishap in MISHAPS]
    order += sorted(by_fault.keys() - set(order))
    return [row(fault, by_fault[fault]) for fault in order if fault in by_fault]


def row(fault: str, runs: list[dict[str, Any]]) -> str:
    """Return the line of one fault."""
    recoveries = [one for run in runs for one in run["recoveries"]]
    times = [f"{median(one[name] for one in recoveries):.2f} s" for name in ("lasted", "nonce", "lease", "everyone")]
    told = sorted({name for run in runs for name in run["verdict"]["told"]})
    wrong = sum(run["verdict"]["duplicates"] + run["verdict"]["backward"] for run in runs)
    overlaps = sum(run["verdict"]["excused"] for run in runs)
    lost = "nothing" if not wrong else f"{wrong} NONCES"
    if overlaps:
        lost += f"; leases overlapped {overlaps} x in {len(runs)} runs"
    return f"| {' | '.join([fault, *times, ', '.join(f'`{name}`' for name in told) or 'nothing', lost])} |"


if __name__ == "__main__":
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    print("\n".join([HEAD, *rows(lines)]))
    totals = [run["verdict"] for run in lines]
    print(
        f"\n{len(lines)} runs, {sum(v['nonces'] for v in totals):,} nonces, {sum(v['leases'] for v in totals):,} leases"
    )
