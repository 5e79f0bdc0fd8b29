"""Single key presses from a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from typing import TYPE_CHECKING

try:
    import termios
    import tty
except ImportError:  # Windows: there Ctrl-C is the way out
    termios = tty = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


@contextlib.contextmanager
def presses() -> Generator[Callable[[float], str]]:
    """Take key presses without Enter inside the block; yield what waits for one, for a number of seconds.

    It returns ``""`` when none came. The terminal is set back however the block ends.
    """
    if termios is None or tty is None or not sys.stdin.isatty():
        yield _sleep
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)  # Ctrl-C stays an interruption
        yield lambda seconds: _wait(terminal, seconds)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(max(0.0, seconds))
    return ""


def _wait(terminal: int, seconds: float) -> str:
    ready, _, _ = select.select([terminal], [], [], max(0.0, seconds))
    return os.read(terminal, 1).decode("latin-1") if ready else ""
