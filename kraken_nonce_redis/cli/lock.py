"""The command about the lock: `unlock`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._texts import printable, span
from kraken_nonce_redis._verdict import who
from kraken_nonce_redis.cli.asking import confirm, dry_run_option, yes_option
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import Answer, examples, json_option, note, target_options
from kraken_nonce_redis.errors import ForeignValue

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.commands import State
    from kraken_nonce_redis.cli.options import Target


@click.command(
    "unlock",
    short_help="End the lease of a dead holder.",
    epilog=examples(
        "kraken-nonce unlock",
        "kraken-nonce unlock --scope global --yes",
        "kraken-nonce unlock --cool-down",
    ),
)
@click.option("--cool-down", "cool_down", is_flag=True, help="End the cool-down instead, and leave the lock alone.")
@yes_option
@dry_run_option
@target_options
@json_option
def unlock(target: Target, *, cool_down: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """End the lease of the present holder. The command shows the holder and asks first. The next waiter gets the lock.

    Use it for a holder that you know to be dead; its lease ends by itself, too, but later. A holder that is alive goes
    on with its call, so two calls are under way at once. Exit code 1 if you don't confirm, or if the holder has
    changed in the meantime; 0 if nobody has the lock.

    --cool-down ends a cool-down instead: the pause of all calls after Kraken has refused one of them.

    A lock or a cool-down with a value that this library did not write is shown and removed in the same way.
    """
    if cool_down:
        if dry_run:
            raise click.UsageError("--cool-down has no --dry-run; kraken-nonce status shows the cool-down")
        reason = target.run(commands.end_cool_down(target.keys, target.name))
        text = f"Ended: {printable(reason)}." if reason else "There is no cool-down."
        Answer(text, {"ended": bool(reason), "reason": reason or None}).print(as_json=as_json)
        return
    try:
        state = target.run(commands.inspect(target.keys, "lock"))
    except ForeignValue as error:
        if error.field != "lock":
            raise
        shown, holder, question, done = str(error), "", "Remove it?", "its value was not ours"
    else:
        shown, holder, question = f"{lock_in_words(state)[1]}; {state.waiting} waiting.", state.holder, "End its lease?"
        done = "" if state.place is None else f"{who(state.place)} had it"
        if not holder:
            Answer("Nobody has the lock.", {"unlocked": False, "holder": None}).print(as_json=as_json)
            return
    note(shown)
    if dry_run:
        Answer(f"It would be unlocked; {done}.", {"unlocked": False, "holder": holder or None}).print(as_json=as_json)
        return
    confirm(question, yes=yes, always=True)
    if not target.run(commands.unlock(target.keys, holder, target.name)):
        raise Failure("the lock has another holder by now, so nothing was changed; look at status and try again")
    Answer(f"Unlocked; {done}.", {"unlocked": True, "holder": holder or None}).print(as_json=as_json)


def lock_in_words(state: State) -> tuple[str, str]:
    """Return the state of the lock, as one word and as text."""
    place = state.place
    if place is None:
        return "free", "free"
    if not state.left:
        return "ended", f"free to take: the lease of {who(place)} ran out"
    if state.leased:
        return "held", f"held by {who(place)}, {span(place.held)} by now and {span(state.left)} more at most"
    return "offered", f"offered to {who(place)}, to be taken within {span(state.left)}"
