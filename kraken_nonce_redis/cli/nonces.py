"""The commands about nonces: `next`, `last`, `jump`, `advance`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import click

from kraken_nonce_redis import migration
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._texts import lead, moment, printable
from kraken_nonce_redis.cli.asking import confirm, dry_run_option, yes_option
from kraken_nonce_redis.cli.exit_codes import ExitCode, Misuse, TooFar
from kraken_nonce_redis.cli.options import (
    Answer,
    durable_option,
    duration,
    examples,
    json_option,
    max_lead_option,
    nonce_options,
    note,
)
from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis._redis.commands import State
    from kraken_nonce_redis.cli.options import NonceTarget


@click.command(
    "next",
    epilog=examples(
        "nonce=$(kraken-nonce next)",
    ),
)
@nonce_options
@json_option
def next_nonce(target: NonceTarget, *, as_json: bool) -> None:
    """Print the next nonce. No other caller gets it.

    It is for a call that you make by hand. Other programs' requests with the same API key can overtake that call.
    """
    nonce = target.allocator().next()
    Answer(str(nonce), {"nonce": str(nonce)}).print(as_json=as_json)


@click.command(
    "last",
    epilog=examples(
        "kraken-nonce last --key-env MASTER_API_KEY",
    ),
)
@nonce_options
@json_option
def last_nonce(target: NonceTarget, *, as_json: bool) -> None:
    """Print the last nonce that was handed out. It changes nothing.

    Exit code 1 when there is none.
    """
    last = target.allocator().last()
    if last is not None or as_json:
        Answer(str(last), {"last": None if last is None else str(last)}).print(as_json=as_json)
    if last is None:
        note("No nonce was handed out yet.")
        raise click.exceptions.Exit(ExitCode.NO)


@click.command(
    "jump",
    short_help="Raise the last nonce by a length of time.",
    epilog=examples(
        "kraken-nonce jump 60s",
        "kraken-nonce jump 10m --namespace copy-trading",
    ),
)
@click.argument("distance", callback=duration, metavar="DURATION")
@max_lead_option
@durable_option
@yes_option
@dry_run_option
@nonce_options
@json_option
def jump(
    target: NonceTarget, *, distance: int, max_lead: int, durable: bool, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Raise the last nonce by DURATION, or to that far ahead of the server's clock if that is higher.

    Use it when another program has raised the key's nonce at Kraken, which then answers "EAPI:Invalid nonce". A jump
    can't be undone: take the smallest one that helps. Exit code 4, with nothing changed, past --max-lead.
    """
    before = target.run(commands.inspect(target.keys))
    change = _Raise(target, before, max(before.last or 0, before.now) + distance, max_lead)
    allocator = target.allocator(max_lead, durable=durable)
    last = change.made(lambda: allocator.jump_forward(distance), yes=yes, dry_run=dry_run)
    change.report(last, dry_run=dry_run, as_json=as_json)


@click.command(
    "advance",
    short_help="Raise the last nonce to at least another program's.",
    epilog=examples(
        "kraken-nonce advance 1760000000123456789",
        "kraken-nonce advance --from-file nonce.txt",
        "kraken-nonce advance --from-file bot-state.json --key-env MASTER_API_KEY",
    ),
)
@click.argument("nonce", required=False)
@click.option(
    "--from-file",
    "file",
    type=click.File("rb"),
    metavar="PATH",
    help="Read the nonce from a file (- for stdin): a decimal number, or JSON with one as last_nonce, nonce, ...",
)
@max_lead_option
@durable_option
@yes_option
@dry_run_option
@nonce_options
@json_option
def advance(
    target: NonceTarget,
    *,
    nonce: str | None,
    file: IO[bytes] | None,
    max_lead: int,
    durable: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Raise the last nonce to at least NONCE; never lowers it.

    Use it when you move from another program: give its last nonce, or the file that holds it. The command tells the
    unit (s, ms, µs, 10 ns or ns since 1970) by the size of the number, prints it, and refuses a number that could be
    in several units. Exit code 4, with nothing changed, past --max-lead.
    """
    if (nonce is None) == (file is None):
        raise click.UsageError("give either NONCE or --from-file PATH")
    # A byte more than what is allowed shows that a file is too long.
    content = file.read(migration.LONGEST_FILE + 1) if file else b""
    before = target.run(commands.inspect(target.keys))
    try:
        old = migration.read(content, before.now) if nonce is None else migration.recognise(nonce, before.now)
    except InvalidArgument as error:
        if file is None:
            raise
        path = printable(str(getattr(file, "name", "-")))
        raise Misuse(f"{path}: {str(error).removeprefix('file: ')}") from None
    note(f"{old.written} is {moment(old.nonce)} in {old.unit}: as a nonce {old.nonce}.")
    allocator = target.allocator(max_lead, durable=durable)
    change = _Raise(target, before, old.nonce, max_lead)
    last = change.made(lambda: allocator.advance_to(old.nonce), yes=yes, dry_run=dry_run)
    change.report(last, dry_run=dry_run, as_json=as_json, read_as=old.unit)


@dataclass(frozen=True)
class _Raise:
    """The last nonce is to be raised to an aim at least; both in ns."""

    target: NonceTarget
    before: State
    aim: int
    max_lead: int

    def made(self, raise_it: Callable[[], int], *, yes: bool, dry_run: bool) -> int:
        """Ask, raise it and return the last nonce then; a dry run returns what it would be."""
        last, now = self.before.last or 0, self.before.now
        if dry_run:
            if self.aim > last and self.aim > now + self.max_lead:
                raise TooFar(f"it would be refused: {lead(self.aim - now)}, and --max-lead allows less")
            return max(self.aim, last)
        if self.aim > last:
            confirm(f"Raise the last nonce of {self.target.keys.state} to {lead(self.aim - now)}?", yes=yes)
        return raise_it()

    def report(self, last: int, *, dry_run: bool, as_json: bool, **more: str) -> None:
        """Say what was changed."""
        before, now = self.before.last, self.before.now
        was = "none was handed out" if before is None else f"it was {before}, {lead(before - now)}"
        changed = last > (before or 0)
        verb = "would be" if dry_run else "is"
        note(f"The last nonce {verb} {lead(last - now)}; {f'before, {was}' if changed else 'unchanged'}.")
        data: dict[str, object] = {
            "last": str(last),
            "before": None if before is None else str(before),
            "changed": changed and not dry_run,
            "lead_seconds": (last - now) / 1e9,
        }
        Answer(str(last), data | more).print(as_json=as_json)
