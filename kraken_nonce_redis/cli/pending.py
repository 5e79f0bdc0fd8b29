"""The command about calls with an unknown outcome: `pending`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from kraken_nonce_redis._arguments import HIGHEST_NONCE
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._texts import moment, printable, span
from kraken_nonce_redis._verdict import who
from kraken_nonce_redis.cli.asking import confirm, dry_run_option, yes_option
from kraken_nonce_redis.cli.exit_codes import ExitCode, Failure, Misuse
from kraken_nonce_redis.cli.options import Answer, examples, json_option, note, target_options
from kraken_nonce_redis.errors import ForeignValue

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.commands import Place
    from kraken_nonce_redis._redis.journal import Pending
    from kraken_nonce_redis.cli.options import Target

_DIGITS: Final = len(str(HIGHEST_NONCE))


@click.command(
    "pending",
    short_help="List calls with an unknown outcome.",
    epilog=examples(
        "kraken-nonce pending",
        "kraken-nonce pending --json | jq -r '.pending[].cl_ord_ids[]'",
        "kraken-nonce pending --clear 1760000000123456789",
    ),
)
@click.option(
    "--clear", metavar="NONCE", help="Remove the call with this nonce from the list, after you have looked it up."
)
@yes_option
@dry_run_option
@target_options
@json_option
def pending(target: Target, *, clear: str | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """List the calls that may have changed something and whose outcome is unknown. Without --clear it changes nothing.

    A call is listed when its process ended before it heard Kraken's answer, or when its order could not be settled.
    "new" calls need nothing from you: the next process with the same API key looks for their orders. Nor do calls with
    a result, "found", "absent", "partly" or "unknown": a process is about to tell it, or the next one does. "reported"
    calls do: look them up at Kraken, by cl_ord_id or, where there is none, by time, and remove them with --clear.
    The call of whoever holds the lock is not listed yet: a line of its own says whose it is, and when that ends.
    Exit code 1 when a call is listed, or when --clear finds none with this nonce.
    """
    if clear is not None:
        _clear(target, clear, yes=yes, dry_run=dry_run, as_json=as_json)
        return
    # In this order: a call whose lease ends in between is in both, and never in neither.
    holding = _holding(target)
    entries = target.run(journal.pending(target.keys))
    lines = list(map(_line, entries)) or ["None."]
    data: dict[str, object] = {"pending": [_data(entry) for entry in entries], "under_way": None}
    if holding is not None:
        lines.append(_under_way(*holding))
        data["under_way"] = _holder(*holding)
    Answer("\n".join(lines), data).print(as_json=as_json)
    if entries:
        raise click.exceptions.Exit(ExitCode.NO)


def _holding(target: Target) -> tuple[Place, float] | None:
    """Return who holds the lock, and for how many seconds at most; None if nobody does, as far as that can be seen.

    A value of another program is none of the journal's business.
    """
    try:
        state = target.run(commands.inspect(target.keys, "lock"))
    except ForeignValue:
        return None
    return (state.place, state.left) if state.place is not None and state.leased else None


def _under_way(place: Place, left: float) -> str:
    holder = f"the lock is held by {who(place)}, {span(place.held)} by now"
    when = f"if its lease ends (within {span(left)}) without an outcome"
    return f"Under way: {holder}; a call that changes something is listed here {when}."


def _holder(place: Place, left: float) -> dict[str, object]:
    return {
        "name": place.name or None,
        "method": place.method or None,
        "seconds_held": place.held,
        "seconds_left": left,
    }


def _clear(target: Target, nonce: str, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    if not nonce.isascii() or not nonce.isdigit() or len(nonce) > _DIGITS:
        raise Misuse("--clear takes the nonce that `kraken-nonce pending` shows")
    entry = next((entry for entry in target.run(journal.pending(target.keys)) if entry.nonce == int(nonce)), None)
    if entry is not None:
        note(_line(entry))
        if not dry_run:
            confirm("Remove it from the list?", yes=yes)
    if entry is None or not (dry_run or _cleared(target, entry.nonce)):
        raise Failure(f"no call with nonce {int(nonce)} is listed, so nothing was changed; see kraken-nonce pending")
    text = "It would be removed from the list." if dry_run else "Removed from the list."
    Answer(text, {"removed": not dry_run, "call": _data(entry)}).print(as_json=as_json)


def _cleared(target: Target, nonce: int) -> bool:
    return target.run(journal.settle(target.keys, nonce, "cleared", name=target.name))


def _line(entry: Pending) -> str:
    ids = f"  cl_ord_id {printable(', '.join(entry.cl_ord_ids))}" if entry.cl_ord_ids else ""
    txids = f"  txid {printable(', '.join(entry.txids.values()))}" if entry.txids else ""
    name = f"  of {printable(entry.name)}" if entry.name else ""
    return f"{entry.nonce}  {moment(entry.nonce)}  {entry.state:<8}  {printable(entry.method)}{name}{ids}{txids}"


def _data(entry: Pending) -> dict[str, object]:
    return {
        "nonce": str(entry.nonce),
        "since": str(entry.since),
        "state": entry.state,
        "key": entry.key,
        "name": entry.name or None,
        "method": entry.method,
        "cl_ord_ids": list(entry.cl_ord_ids),
        "txids": dict(entry.txids),
    }
