"""The command about calls that nobody knows the outcome of: `pending`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._texts import moment, printable
from kraken_nonce_redis.cli.exit_codes import ExitCode, Failure, Misuse
from kraken_nonce_redis.cli.options import Answer, examples, json_option, note, target_options

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.commands import Pending
    from kraken_nonce_redis.cli.options import Target


@click.command(
    "pending",
    short_help="List calls that nobody knows the outcome of.",
    epilog=examples(
        "kraken-nonce pending",
        "kraken-nonce pending --json | jq -r '.pending[].cl_ord_ids[]'",
        "kraken-nonce pending --clear 1760000000123456789",
    ),
)
@click.option("--clear", metavar="NONCE", help="Remove the call with this nonce from the list: you have looked it up.")
@target_options
@json_option
def pending(target: Target, *, clear: str | None, as_json: bool) -> None:
    """List the calls that change something and of which nobody knows what became of them; changes nothing.

    A call is listed when its process was gone before it heard Kraken's answer, or when its order could not be settled.
    The next process that makes a call with the same API key looks for the orders of the "new" ones. A "reported" one
    is for you: look it up at Kraken by its cl_ord_id or, for a method without one, by its time, and then --clear it.
    Exit code 1 when any is listed, or when there is none to clear.
    """
    if clear is not None:
        _clear(target, clear)
        return
    entries = target.run(commands.pending(target.keys))
    Answer("\n".join(map(_line, entries)) or "None.", {"pending": [_data(entry) for entry in entries]}).print(
        as_json=as_json
    )
    if entries:
        raise click.exceptions.Exit(ExitCode.NO)


def _clear(target: Target, nonce: str) -> None:
    if not nonce.isascii() or not nonce.isdigit():
        raise Misuse("--clear takes the nonce that `kraken-nonce pending` shows")
    if not target.run(commands.settle(target.keys, int(nonce), "known")):
        raise Failure(f"no call with nonce {int(nonce)} is listed, so nothing was changed")
    note("Removed from the list.")


def _line(entry: Pending) -> str:
    ids = f"  cl_ord_id {printable(', '.join(entry.cl_ord_ids))}" if entry.cl_ord_ids else ""
    state = "reported" if entry.reported else "new"
    return f"{entry.nonce}  {moment(entry.nonce)}  {state:<8}  {printable(entry.method)}{ids}"


def _data(entry: Pending) -> dict[str, object]:
    return {
        "nonce": str(entry.nonce),
        "since": str(entry.since),
        "state": "reported" if entry.reported else "new",
        "key": entry.key,
        "method": entry.method,
        "cl_ord_ids": list(entry.cl_ord_ids),
    }
