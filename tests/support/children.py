"""Processes of their own for tests, forked from one that has imported what they need.

An interpreter that imports redis-py, ccxt and python-kraken-sdk anew takes longer to start than most tests take.
What the environment holds reaches the first of them alone: tests hand over what a process needs.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from multiprocessing.connection import Connection

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "tests.support.order_bots", "tests.support.pace_workers", "tests.support.workers"]
)


def stop_forking() -> None:
    """End the process from which the others are forked, which would outlive the test run by a moment."""
    multiprocessing.forkserver._forkserver._stop()


class Child:
    """A process that runs a function, whose first argument is its end of a pipe; the test has the other one."""

    def __init__(self, main: Callable[..., None], *arguments: Any) -> None:
        self._pipe, its_end = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_run, args=(main, its_end, *arguments), daemon=True)
        self._process.start()
        its_end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def say(self, what: Any) -> None:
        """Tell it something."""
        self._pipe.send(what)

    def hear(self, timeout: float = 30) -> Any:
        """Return what it says next."""
        if not self._pipe.poll(timeout):
            raise AssertionError(f"process {self.pid} says nothing for {timeout:g} s")
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise AssertionError(f"process {self.pid} ended with {self._process.exitcode}") from None

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return not self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill -9 it."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.kill()
        self._pipe.close()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _run(main: Callable[..., None], pipe: Connection, *arguments: Any) -> None:
    # Ctrl-C is for the test run, and for those processes to whom a test sends it.
    os.setsid()
    main(pipe, *arguments)
