"""The command `run`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

import click

from kraken_nonce_redis.cli.exit_codes import Misuse
from kraken_nonce_redis.cli.options import examples

_SITE: Final = Path(__file__).parents[1] / "_site"
_IGNORED_BY_PYTHON: Final = ("SIGPIPE", "SIGXFSZ")


@click.command(
    "run",
    short_help="Run a program with ccxt's Kraken replaced by ours.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=examples(
        "kraken-nonce run -- freqtrade trade --config config.json",
        "kraken-nonce run -- python bot.py",
    ),
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(*, command: tuple[str, ...]) -> None:
    """Run COMMAND with its arguments, and with our classes where it looks for ccxt.kraken.

    In this program and in the Python programs that it starts, ccxt.kraken, ccxt.async_support.kraken and
    ccxt.pro.kraken are those of kraken_nonce_redis.ccxt. Their Python must have kraken_nonce_redis, and must not be
    started with -I, -E or -S, which make it ignore what is put on its path. Settings come from the environment:
    KRAKEN_NONCE_REDIS_URL, KRAKEN_API_URL.

    The program takes the place of this one, so that signals go to it, and its exit code is the one that you get. If it
    can't be started: exit code 2.
    """
    path = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_SITE), *([path] if path else [])])}
    sys.stdout.flush()
    sys.stderr.flush()
    for name in _IGNORED_BY_PYTHON:
        with contextlib.suppress(AttributeError):  # a system that has no such signal
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - it is what the user wants to run
    except OSError as error:
        raise Misuse(f"can't run {command[0]}: {error.strerror}") from None
