"""The README's first five minutes: each block as it stands, but for another port and this environment's programs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.helpers import ROOT
from tests.support.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.once

ORDERS: Final = 5
PORT: Final = "6390"
PATIENCE: Final = 60.0


def blocks() -> list[str]:
    """Return what the README says to type into each kind of terminal: server, simulator, bot, watch."""
    section = (ROOT / "README.md").read_text("utf-8").split("## The first five minutes")[1].split("\n## ")[0]
    found = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert len(found) == 5
    return [str(block) for block in found[:4]]


class Terminal:
    """A shell in which a block runs."""

    def __init__(self, folder: Path, block: str, output: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("KRAKEN", "REDIS"))}
        self.output: Final = folder / output
        with self.output.open("w") as file:
            self.process: Final = subprocess.Popen(
                ["/bin/sh", "-c", f"set -e\n{block}"],
                cwd=folder,
                env=environment | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, text: str, file: Path | None = None, times: int = 1) -> str:
        """Wait until it has said something so often; return all that it said."""
        until = time.monotonic() + PATIENCE
        while True:
            said = (file or self.output).read_text() if (file or self.output).exists() else ""
            if said.count(text) >= times:
                return said
            assert time.monotonic() < until, said
            assert self.process.poll() is None, said
            time.sleep(0.1)

    def press_ctrl_c(self) -> None:
        """End it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(PATIENCE)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a folder that looks like a clone with a new environment in it."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


@pytest.mark.test_all
def test_the_first_five_minutes(clone: Path) -> None:
    """A server, a simulated Kraken that loses answers, and a bot that places five orders, each once, and `watch`."""
    port = str(free_port())
    first, second, third, fourth = (block.replace(PORT, port) for block in blocks())
    lines = first.splitlines(keepends=True)
    assert lines[0] == "python3 -m venv .venv\n"
    assert lines[1].startswith(".venv/bin/pip install -e '.[")
    terminals = []
    try:
        terminals.append(Terminal(clone, "".join(lines[2:]), "server.txt"))
        terminals[0].wait_for("redis://127.0.0.1:")
        terminals.append(Terminal(clone, second, "simulator.txt"))
        terminals[1].wait_for("API_SECRET", clone / "simulator.env")
        terminals.append(Terminal(clone, third, "bot.txt"))
        terminals.append(Terminal(clone, fourth, "watch.txt"))
        terminals[3].wait_for(" wait: ok")
        said = terminals[2].wait_for("order placed: ", times=ORDERS)
        assert "Traceback" not in said
    finally:
        for terminal in reversed(terminals):
            terminal.press_ctrl_c()
    assert all("Traceback" not in terminal.output.read_text() for terminal in terminals)


def test_no_block_places_an_order_before_the_warning() -> None:
    """Who copies from the top has read what nanoseconds do to a key before anything is sent."""
    text = (ROOT / "README.md").read_text("utf-8")
    before = text[: text.index("one-way door")]
    assert "```python" not in before
    assert all(
        "AddOrder" not in block or "validate" in block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    )
