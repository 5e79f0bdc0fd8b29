"""How a command ends: its exit code, and the one line that says why."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import IO, Any

import click

from kraken_nonce_redis.errors import InvalidArgument, KrakenNonceError, NonceTooFarAhead, StoreError


class ExitCode(IntEnum):
    """What scripts can tell apart; `HELP` says the same in words."""

    DONE = 0
    NO = 1
    USAGE = 2
    STORE = 3
    TOO_FAR = 4
    INTERRUPTED = 130


HELP = """Exit codes:
  0    done
  1    no: the demo or an account failed, doctor found a problem, there is no last nonce, a call is
       pending, status found what --fail-on names; or nothing was changed: you did not confirm, the lock
       got another holder, there is nothing to --clear; or a port is in use
  2    usage: an option, a value, the API key or an extra is wrong or missing
  3    Redis is unavailable or can't be used as asked
  4    a nonce would be raised too far ahead of the server's clock
  130  interrupted
"""


class Failure(click.ClickException):
    """Ends the command with one line on stderr."""

    exit_code = ExitCode.NO

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"kraken-nonce: {' '.join(self.message.split())}", file=file or sys.stderr)


class Misuse(Failure):
    """Something is wrong or missing in what the command was given."""

    exit_code = ExitCode.USAGE


class StoreFailure(Failure):
    """Redis is unavailable or can't be used as asked."""

    exit_code = ExitCode.STORE


class TooFar(Failure):
    """A nonce would be raised too far."""

    exit_code = ExitCode.TOO_FAR


def failure(error: KrakenNonceError) -> Failure:
    """Return how the command ends for an error of the library."""
    kinds = ((StoreError, StoreFailure), (NonceTooFarAhead, TooFar), (InvalidArgument, Misuse))
    return next((end for kind, end in kinds if isinstance(error, kind)), Failure)(str(error))
