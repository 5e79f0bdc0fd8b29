"""The command about orders with a name: `once`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kraken_nonce_redis._redis import name_records
from kraken_nonce_redis._texts import printable, span
from kraken_nonce_redis.cli.asking import confirm, dry_run_option, yes_option
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import Answer, examples, json_option, not_empty, note, target_options

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.name_records import NameRecord
    from kraken_nonce_redis.cli.options import Target


@click.command(
    "once",
    short_help="List the names of orders that are placed once.",
    epilog=examples(
        "kraken-nonce once",
        "kraken-nonce once --json | jq -r '.names[].txid'",
        "kraken-nonce once --clear rebalance-2026-11-27",
    ),
)
@click.option(
    "--clear",
    callback=not_empty,
    metavar="NAME",
    help="Remove the record of this name. The command asks first.",
)
@yes_option
@dry_run_option
@target_options
@json_option
def once(target: Target, *, clear: str | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """List the names that were given as once= to AddOrder in the last day. Without --clear it changes nothing.

    A name without a txid belongs to an order that is on its way, or whose outcome is unknown: the next caller with this
    name looks for it at Kraken.

    A name stays used without its record, too: Kraken is asked for its order before one is sent. Remove the record of an
    order without a txid only after you have looked it up by its cl_ord_id. Exit code 1 if you don't confirm, or if
    there is no such record.
    """
    records = target.run(name_records.read_all(target.keys))
    if clear is not None:
        chosen = [record for record in records if record.name == clear]
        if not chosen:
            raise Failure(f"there is no record of {printable(clear)}, so nothing was changed; see kraken-nonce once")
        _clear(target, chosen, yes=yes, dry_run=dry_run).print(as_json=as_json)
        return
    Answer("\n".join(map(_line, records)) or "None.", {"names": [_data(record) for record in records]}).print(
        as_json=as_json
    )


def _clear(target: Target, records: list[NameRecord], *, yes: bool, dry_run: bool) -> Answer:
    """Remove the records of a name: several with the scope "global", where each API key has its own."""
    for record in records:
        note(_line(record))
    if not dry_run:
        confirm("Remove it?", yes=yes, always=True)
        for record in records:
            target.run(name_records.forget(target.keys, "", record.cl_ord_id))
    text = "It would be removed." if dry_run else "Removed."
    return Answer(text, {"removed": not dry_run, "names": [_data(record) for record in records]})


def _line(record: NameRecord) -> str:
    outcome = f"txid {printable(record.txid)}" if record.txid else "not known to be placed"
    return f"{printable(record.name)}  {outcome}  cl_ord_id {record.cl_ord_id}  {span(record.age)} ago"


def _data(record: NameRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "txid": record.txid or None,
        "cl_ord_id": record.cl_ord_id,
        "key": record.key,
        "seconds_ago": record.age,
    }
