"""The code in README and docs runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis.testing import KrakenSimulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

ACCOUNTS = ("KRAKEN", "KRAKEN_MASTER", *(f"KRAKEN_USER_{name}" for name in ("ALICE", "BOB", "CAROL", "DAVE", "ERIN")))
"""The simulator's accounts, by what their variables begin with."""

# Kraken's address is where the simulator is; nothing else of a block is touched.
ELSEWHERE = """
import os

import krakenex

there = os.environ["SIMULATOR"]
stock = krakenex.API.__init__


def init(self, *args, **kwargs):
    stock(self, *args, **kwargs)
    self.uri = there


krakenex.API.__init__ = init
"""
# Only for blocks that need it, since importing these takes seconds.
OTHERS_ELSEWHERE = """
import ccxt.async_support
from kraken.spot import SpotAsyncClient, SpotClient

SpotClient.URL = SpotAsyncClient.URL = there
for kind in (ccxt.kraken, ccxt.async_support.kraken):

    def describe(self, stock=kind.describe):
        return self.deep_extend(stock(self), {"urls": {"api": {"public": there, "private": there}}})

    kind.describe = describe
"""


def blocks() -> Iterator[object]:
    """Yield each block of Python with the page that it is on."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, block in enumerate(BLOCK.findall(page.read_text("utf-8")), 1):
            yield pytest.param(block, id=f"{page.stem}-{number}")


@pytest.fixture(scope="module")
def simulator() -> Iterator[KrakenSimulator]:
    """Give one simulator to all blocks."""
    with KrakenSimulator(ACCOUNTS) as running:
        yield running


@pytest.mark.once
@pytest.mark.parametrize("block", list(blocks()))
def test_block_runs(block: str, valkey: Server, simulator: KrakenSimulator, tmp_path: Path) -> None:
    """A reader can paste any block of Python into a file and run it, with the variables that the README names."""
    script = tmp_path / "block.py"
    others = OTHERS_ELSEWHERE if re.search("ccxt|kraken_sdk", block) else ""
    script.write_text(ELSEWHERE + others + block, "utf-8")
    environment = {
        **os.environ,
        "KRAKEN_NONCE_REDIS_URL": valkey.url,
        **{
            f"{stem}_{what}": value
            for stem, pair in zip(ACCOUNTS, simulator.accounts.items(), strict=True)
            for what, value in zip(("API_KEY", "API_SECRET"), pair, strict=True)
        },
        "SIMULATOR": simulator.url,
        "PYTHONPATH": str(ROOT),
    }
    ran = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "EAPI" not in ran.stdout + ran.stderr


@pytest.mark.once
def test_links_lead_somewhere() -> None:
    """A reader who follows a link inside the docs arrives."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
