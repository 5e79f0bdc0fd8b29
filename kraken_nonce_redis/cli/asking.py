"""How a command asks before it changes what can't be changed back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kraken_nonce_redis.cli.exit_codes import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_REFUSED = "not confirmed, so nothing was changed; in a script, give --yes"


def yes_option(function: F) -> F:
    """Add ``--yes``."""
    return click.option("--yes", is_flag=True, help="Don't ask.")(function)


def dry_run_option(function: F) -> F:
    """Add ``--dry-run``."""
    return click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing.")(function)


def confirm(question: str, *, yes: bool, always: bool = False) -> None:
    """Ask a person on a terminal; a script, which has none, is asked only if it must say ``--yes``.

    Raises `Failure` if the answer is no.
    """
    if yes or not (always or sys.stdin.isatty()):
        return
    try:
        confirmed = click.confirm(question, err=True)
    except click.Abort:
        confirmed = False
    if not confirmed:
        raise Failure(_REFUSED)
