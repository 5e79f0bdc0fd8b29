"""Draws the pictures of the docs: a call on its way, and what `kraken-nonce status` and `watch` show of real bots.

    python docs/pictures/draw.py [FOLDER]

It takes half a minute. It starts a Valkey, a simulated Kraken and some bots on this machine. The colours and shapes are
those that rich writes from a terminal.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from kraken_nonce_redis import CallLock
from kraken_nonce_redis.cli import embedded
from kraken_nonce_redis.krakenex import API
from kraken_nonce_redis.testing import KrakenSimulator

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH: Final = 118
"""Columns of the terminal."""
FONTS: Final = "Menlo, Consolas, DejaVu Sans Mono, monospace"
CALL: Final = """\
bot A                              Redis                             Kraken                       bot B
  │                                  │                                  │                             │
  ├─ acquire.lua ───────────────────▶│                                  │                             │
  │                                  │ lock free: A's for 30 s          │                             │
  │                                  │ nonce n = max(clock, last + 1)   │                             │
  │                                  │ AddOrder n noted as "under way"  │                             │
  │◀─ granted, nonce n ──────────────┤                                  │                             │
  │                                  │◀─ acquire.lua ───────────────────┼─────────────────────────────┤
  │                                  ├─ waits as number 1 ──────────────┼────────────────────────────▶│
  ├─ AddOrder, nonce n, signed ──────┼─────────────────────────────────▶│                             │
  │◀─ order placed ──────────────────┼──────────────────────────────────┤                             │
  ├─ release.lua: outcome known ────▶│                                  │                             │
  │                                  ├─ lock offered ───────────────────┼────────────────────────────▶│
  │                                  │◀─ acquire.lua ───────────────────┼─────────────────────────────┤
  │                                  ├─ granted, nonce above n ─────────┼────────────────────────────▶│

If A dies once AddOrder is out, its lease ends, and "under way" stays noted: B first asks Kraken what became of it."""
GOOD: Final = ("granted, nonce n", "granted, nonce above n", "order placed", "outcome known", "lock offered")
OPEN: Final = ("under way", "waits as number 1")


def main() -> None:
    """Draw all."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    call = Text(CALL)
    call.stylize("bold", 0, CALL.index("\n"))
    call.highlight_words(GOOD, "green")
    call.highlight_words(OPEN, "yellow")
    draw(call, "The way of a call", folder / "call.svg")
    with ExitStack() as stack:
        url = stack.enter_context(embedded.running()).url
        sim = stack.enter_context(KrakenSimulator(["grid", "hedge"], latency=(0.02, 0.08)))
        environment = {
            **os.environ,
            "KRAKEN_NONCE_REDIS_URL": url,
            "KRAKEN_API_KEY": sim.key,
            "COLUMNS": str(WIDTH),
            "LINES": "16",
            "TERM": "xterm-256color",
        }
        bots = Bots(sim, url)
        stack.callback(bots.end)
        bots.start()
        time.sleep(10)
        watched = on_a_terminal(["watch", "--all"], environment, lambda: time.sleep(12))
        # The last frame may be there in part only.
        draw(Text.from_ansi(watched.split("\x1b[H")[-2].rstrip()), "kraken-nonce watch --all", folder / "watch.svg")
        draw(Text.from_ansi(on_a_terminal(["status"], environment)), "kraken-nonce status", folder / "status.svg")


class Bots:
    """Bots on two API keys: on the first one hangs, and the others wait for it."""

    def __init__(self, sim: KrakenSimulator, url: str) -> None:
        (self._grid, self._hedge) = sim.accounts.items()
        self._sim = sim
        self._url = url
        self._lock = CallLock.from_url(url, self._grid[0], ttl=60, name="grid bot 2")
        self._going = True
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Let them begin."""
        self._begin(self._hang)
        time.sleep(0.2)
        for name in ("grid bot 1", "grid bot 3"):
            self._begin(lambda name=name: self._calls(self._grid, name))
        for name in ("hedge bot 1", "hedge bot 2"):
            self._begin(lambda name=name: self._calls(self._hedge, name))

    def end(self) -> None:
        """Let them end."""
        self._going = False
        for thread in self._threads:
            thread.join()

    def _begin(self, work: Callable[[], None]) -> None:
        self._threads.append(Thread(target=work))
        self._threads[-1].start()

    def _hang(self) -> None:
        with self._lock.hold():
            while self._going:
                time.sleep(0.1)

    def _calls(self, account: tuple[str, str], name: str) -> None:
        api = API(*account, redis=self._url, name=name, wait_timeout=100)
        api.uri = self._sim.url
        while self._going:
            api.query_private("Balance")
            time.sleep(0.2)
        api.close()


def on_a_terminal(command: list[str], environment: dict[str, str], meanwhile: Callable[[], None] = lambda: None) -> str:
    """Run a command of ours on a terminal, end it when `meanwhile` is over, and return what it has shown."""
    ours, its = pty.openpty()
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "kraken_nonce_redis", *command], stdin=its, stdout=its, stderr=its, env=environment
    )
    os.close(its)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 65_536):
                shown.append(part)
        except OSError:  # Linux says so when the other end is closed
            pass

    reader = Thread(target=read)
    reader.start()
    meanwhile()
    if command[0] == "watch":
        process.send_signal(signal.SIGTERM)
    process.wait(30)
    reader.join()
    os.close(ours)
    return b"".join(shown).decode().replace("\r\n", "\n")


def draw(text: Text, title: str, path: Path) -> None:
    """Write a text as a picture of a terminal."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(text, end="")
        picture = console.export_svg(title=title, unique_id=path.stem)
    # A font from another server would tell that server who reads our docs.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    path.write_text(picture.replace("Fira Code, monospace", FONTS), "utf-8")


if __name__ == "__main__":
    main()
