"""The code in README and docs runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kraken_nonce_redis.ccxt.errors
from kraken_nonce_redis import _kraken as kraken
from kraken_nonce_redis import errors as ours
from kraken_nonce_redis.errors import KrakenNonceError
from kraken_nonce_redis.testing import KrakenSimulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
ERROR = re.compile(r"`(E[A-Za-z]+:\w[^`…]*?)(?: …[^`]*)?`")
METHOD = re.compile(r"\b(?:[A-Z][a-z]+){2,}\b")
HEAD = re.compile(r"^#+ (.+)$", re.MULTILINE)
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
        marks = () if page.stem == "README" else pytest.mark.test_all  # each is an interpreter of its own
        for number, block in enumerate(BLOCK.findall(page.read_text("utf-8")), 1):
            yield pytest.param(block, id=f"{page.stem}-{number}", marks=marks)


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


def tables(page: str) -> list[list[list[str]]]:
    """Return the tables of a page, each as rows of cells, without their heads."""
    found: list[list[list[str]]] = [[]]
    for line in (ROOT / "docs" / page).read_text("utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif found[-1]:
            found.append([])
    return [table[2:] for table in found if table]


@pytest.mark.once
def test_costs_in_the_docs() -> None:
    """The table of costs says what the clients count, and who goes first."""
    told = {name: (cost, priority) for names, cost, priority in tables("pace.md")[0] for name in names.split(", ")}
    other = told.pop("every other method")
    assert set(told) <= {method.name for method in kraken.METHODS}
    for method in kraken.METHODS:
        assert told.get(method.name, other) == (f"{method.cost:g}", method.priority), method.name


@pytest.mark.once
def test_cool_downs_in_the_docs() -> None:
    """The table of cool-downs names every error that brings one, and its setting."""
    told = {error: setting.strip("`") for errors, _, setting in tables("pace.md")[1] for error in ERROR.findall(errors)}
    assert told == {error: meaning.cool_down for error, meaning in kraken.ERRORS if meaning.cool_down}


@pytest.mark.once
def test_errors_in_the_docs() -> None:
    """The table of answers says what is done about each error, and names those that aren't just refused."""
    outcomes = {"no": kraken.Outcome.NOT_CARRIED_OUT, "nobody knows": kraken.Outcome.UNKNOWN}
    remedies = {"once more": kraken.Remedy.NONCE, "tried again": kraken.Remedy.LATER, "returned": kraken.Remedy.NONE}
    told: set[str] = set()
    for errors, carried_out, happens in tables("orders.md")[0]:
        for error in ERROR.findall(errors):
            meaning = kraken.meaning_of(error)
            assert meaning.verdict.outcome is outcomes[carried_out], error
            if carried_out == "no":
                (remedy,) = [remedy for words, remedy in remedies.items() if happens.startswith(words)]
                assert meaning.verdict.remedy is remedy, error
                assert bool(meaning.cool_down) == (" stop " in happens), error
            told.add(error)
    for error, meaning in kraken.ERRORS:
        if meaning.cool_down or meaning.verdict in {kraken.REFUSED_FOR_NOW, kraken.REFUSED_FOR_ITS_NONCE}:
            assert error in told, error


@pytest.mark.once
def test_errors_of_the_clients_in_the_docs() -> None:
    """The table of our errors says of each what it says of the call, and what it is to ccxt."""
    told: set[str] = set()
    for names, _, carried_out, theirs in tables("clients.md")[0]:
        for name in re.findall(r"`(\w+)`", names.partition(", a ")[0]):
            kind = getattr(kraken_nonce_redis.ccxt.errors, name)
            assert (f"`{kind.carried_out}`", f"`{kind.__bases__[1].__name__}`") == (carried_out, theirs), name
            told.add(name)
    kinds = {kind for kind in vars(ours).values() if isinstance(kind, type) and issubclass(kind, KrakenNonceError)}
    elsewhere = {ours.KrakenNonceError, ours.CallUnsettled, ours.CallLockError, ours.NoncesUsedUp}
    assert told == {kind.__name__ for kind in kinds - elsewhere}


@pytest.mark.once
def test_methods_in_the_docs() -> None:
    """The table of calls without an answer names each method that trades or cancels, and all that validate."""
    rows = tables("orders.md")[1]
    told = {name for row in rows for name in METHOD.findall(row[0])}
    assert {method.name for method in kraken.METHODS if method.effect in {"trades", "cancels"}} <= told
    (validating,) = [row[0] for row in rows if row[2] == "made again"]
    assert set(METHOD.findall(validating)) == {method.name for method in kraken.METHODS if method.validates}


@pytest.mark.once
def test_links_lead_somewhere() -> None:
    """A reader who follows a link inside the docs arrives."""
    pages = {page: page.read_text("utf-8") for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
    anchors = {page: {slug(head) for head in HEAD.findall(text)} for page, text in pages.items()}
    for page, text in pages.items():
        for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", text):
            there = (page.parent / target).resolve() if target else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors[there], f"{page.name}: {target}#{anchor}"


@pytest.mark.once
@pytest.mark.test_all
def test_pictures_show_what_the_commands_show(tmp_path: Path) -> None:
    """They are drawn from real bots, and those in the docs are of the same kind."""
    script = ROOT / "docs" / "pictures" / "draw.py"
    ran = subprocess.run(
        [sys.executable, script, tmp_path], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=120
    )
    assert ran.returncode == 0
    for name, words in {
        "call": ["release.lua: ", "outcome known"],
        "status": ["by grid bot 2, never renewed", "grid bot 1 for Balance, normal"],
        "watch": ["by grid bot 2, never renewed", "calls/s", "held, waiting"],
    }.items():
        for folder in (tmp_path, script.parent):
            text = (folder / f"{name}.svg").read_text("utf-8").replace("&#160;", " ")
            assert all(word in text for word in words), f"{folder.name}/{name}"
            assert "url(http" not in text


def slug(head: str) -> str:
    """Return the anchor of a heading, as GitHub and package indexes make it."""
    return re.sub(r"[^\w -]", "", head.strip().lower()).replace(" ", "-")
