"""The command `kraken-nonce` as tests run it: in this process, as a process of its own, and on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from click.testing import CliRunner

from kraken_nonce_redis.cli.app import app

if TYPE_CHECKING:
    from click.testing import Result

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "kraken_nonce_redis.cli"]
NONE = ("KRAKEN_API_KEY", "KRAKEN_NONCE_REDIS_URL", "REDIS_URL", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
"""Variables that are not set unless a test sets them."""
_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a command that knows nothing but these."""
    return {name: value for name, value in os.environ.items() if name not in NONE} | variables


def run(*args: str, **variables: str) -> Result:
    """Run the command in this process."""
    basis: dict[str, str | None] = dict.fromkeys(NONE)
    return CliRunner().invoke(app, args, env=basis | variables, prog_name="kraken-nonce")


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


def run_process(*args: str, **variables: str) -> Ended:
    """Run the command as a process, its output piped."""
    ran = subprocess.run(
        [*COMMAND, *args],
        env=environment(**variables),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(ran.returncode, ran.stdout, ran.stderr)


class Piped:
    """The command as a process whose output is piped, while it runs."""

    def __init__(self, *args: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=environment(**variables) | {"PYTHONUNBUFFERED": "1"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        """Return the next line of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self, how: signal.Signals = signal.SIGINT) -> Ended:
        """Send it a signal and wait for its end."""
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=30)
        return Ended(self.process.returncode, out, err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Terminal:
    """The command on a terminal of its own, of a size that the test chooses."""

    def __init__(self, *args: str, columns: int = 120, rows: int = 30, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._theirs = theirs
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=environment(**{"TERM": "xterm-256color", **variables}),
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        self.raw = ""

    def settings(self) -> list[object]:
        """Return how the terminal is set by now."""
        return termios.tcgetattr(self._theirs)

    def until(self, pattern: str, timeout: float = 30) -> str:
        """Read until a pattern has come, leaving out what moves and colours; return the text of the last screen."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.text):
            self._read(deadline - time.monotonic())
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text[-3000:]!r}"
        return self.text

    @property
    def text(self) -> str:
        """What came since the screen was drawn last, without what moves and colours."""
        return _ESCAPE.sub("", self.raw.rpartition("\x1b[H")[2]).replace("\r\n", "\n")

    @property
    def screens(self) -> list[str]:
        """What each drawing of the screen has shown."""
        return [_ESCAPE.sub("", part).replace("\r\n", "\n") for part in self.raw.split("\x1b[H")]

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def ended(self, timeout: float = 30) -> int:
        """Wait for its end; return its exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            self._read(0.1)
            assert time.monotonic() < deadline, "it goes on"
        self._read(0.1)
        return self.process.returncode

    def _read(self, seconds: float) -> None:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, seconds))
        if ready:
            with contextlib.suppress(OSError):
                self.raw += os.read(self._ours, 65536).decode("utf-8", "replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)
