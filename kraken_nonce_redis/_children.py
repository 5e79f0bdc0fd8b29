"""Child processes: modules of ours that are told what to do over stdin and answer over stdout, in lines of JSON.

A child ends when its stdin closes, so none outlives its parent, even a parent that was killed. Secrets go over stdin,
never on a command line. `start`, `tell`, `said`, `ask` and `end` are for the parent, `told` and `say` for the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from types import FrameType

_PATIENCE: Final = 10.0  # seconds for a process to clean up

Child = subprocess.Popen[str]


def start(module: str) -> Child:
    """Start a module of ours in this interpreter."""
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        process_group=0,  # Ctrl-C is for the parent, which ends the others in order
    )


def tell(child: Child, message: object) -> None:
    """Send a line; a child that is gone does not hear it."""
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(message) + "\n")
            child.stdin.flush()


def said(child: Child) -> Generator[dict[str, Any]]:
    """Yield what the child says until it is gone. Closing this generator closes the child's stdout."""
    if child.stdout is not None:
        with child.stdout as lines:
            for line in lines:
                yield json.loads(line)


def ask(child: Child, message: object, answers: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Tell a child what to do, and return its next answer, one of `said`.

    Raises:
        RuntimeError: the child answered with an error, or ended; the message says why.
    """
    tell(child, message)
    answer = next(answers, {"error": "its process ended at once; see its error output"})
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


def end(children: Iterable[Child]) -> None:
    """Close the stdin of all children, wait until they are gone, and kill those that take too long."""
    running = list(children)
    for child in running:
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
    for child in running:
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def told() -> Generator[Any]:
    """Yield what the parent says until it is gone."""
    for line in sys.stdin:
        yield json.loads(line)


def say(message: object) -> None:
    """Send the parent a line; a parent that is gone does not hear it."""
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def cleanup_when_terminated() -> Generator[None]:
    """Turn SIGTERM and SIGHUP into `SystemExit` inside the block, so that it cleans up."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    with _handling(leave, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def signals_put_off() -> Generator[None]:
    """Put off signals that end the program until the end of the block.

    For starting a process: if a signal came before the process was noted down, nobody would end it.
    """
    came: list[int] = []
    try:
        with _handling(lambda number, _frame: came.append(number), signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            yield
    finally:
        # Also after a failure: the signal may have hit the new process, too, and so be its cause.
        for number in came[:1]:
            signal.raise_signal(number)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Generator[None]:
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, earlier in zip(numbers, before, strict=True):
            signal.signal(number, earlier)
