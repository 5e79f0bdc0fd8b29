"""The commands about the lock: `status`, `unlock`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._texts import lead, printable, span
from kraken_nonce_redis.cli.asking import confirm, dry_run_option, yes_option
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import Answer, examples, json_option, note, target_options
from kraken_nonce_redis.errors import ForeignValue

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.commands import Place, State
    from kraken_nonce_redis.cli.options import Target


@click.command(
    "status",
    short_help="Show the last nonce, the holder and the waiters.",
    epilog=examples(
        "kraken-nonce status",
        "kraken-nonce status --scope global --json | jq .waiting",
    ),
)
@target_options
@json_option
def status(target: Target, *, as_json: bool) -> None:
    """Show the last nonce, the holder, the waiters, pending calls and a cool-down. It changes nothing.

    Of the holder and the first hundred waiters it shows the name (`name=` of the lock or client, KRAKEN_NONCE_NAME,
    else host and process id), Kraken's method, and since when.

    "lock" in the JSON is free, held, offered (to a waiter) or ended (a lease ran out, and nobody has asked for the
    lock since).
    """
    state = target.run(commands.inspect(target.keys, "waiters"))
    pending = len(target.run(commands.pending(target.keys)))
    Answer(_text(target, state, pending), _data(target, state, pending)).print(as_json=as_json)


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
    changed in the meantime.

    --cool-down ends a cool-down instead: the pause of all calls after Kraken has refused one of them.

    A lock or a cool-down with a value that this library did not write is shown and removed in the same way.
    """
    if cool_down:
        if dry_run:
            raise click.UsageError("--cool-down has no --dry-run; kraken-nonce status shows the cool-down")
        reason = target.run(commands.end_cool_down(target.keys))
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
        shown, holder, question = f"{_lock(state)[1]}; {state.waiting} waiting.", state.holder, "End its lease?"
        done = "" if state.place is None else f"{_who(state.place)} had it"
        if not holder:
            Answer("Nobody has the lock.", {"unlocked": False, "holder": None}).print(as_json=as_json)
            return
    note(shown)
    if dry_run:
        Answer(f"It would be unlocked; {done}.", {"unlocked": False, "holder": holder or None}).print(as_json=as_json)
        return
    confirm(question, yes=yes, always=True)
    if not target.run(commands.unlock(target.keys, holder)):
        raise Failure("the lock has another holder by now, so nothing was changed; look at status and try again")
    Answer(f"Unlocked; {done}.", {"unlocked": True, "holder": holder or None}).print(as_json=as_json)


def _lock(state: State) -> tuple[str, str]:
    """Return the state of the lock, as one word and as text."""
    place = state.place
    if place is None:
        return "free", "free"
    if not state.left:
        return "ended", f"free to take: the lease of {_who(place)} ran out"
    if state.leased:
        return "held", f"held by {_who(place)}, {span(place.held)} by now and {span(state.left)} more at most"
    return "offered", f"offered to {_who(place)}, to be taken within {span(state.left)}"


def _who(place: Place) -> str:
    """Return the name of a holder or waiter and what it wants the lock for."""
    words = [place.name or place.member]
    if place.method:
        words += ["for", place.method]
    if place.token:
        words += ["with token", place.token]
    return printable(" ".join(words))


def _waiting(state: State) -> str:
    """Return how many wait, and a line for each of the first."""
    lines = [f"{'':<12}{_who(waiter)}, {waiter.priority}, {span(waiter.asked)} by now" for waiter in state.waiters]
    more = state.waiting - len(lines)
    return "\n".join([str(state.waiting), *lines, *([f"{'':<12}and {more} more"] if lines and more else [])])


def _place(place: Place) -> dict[str, object]:
    return {
        "id": place.member,
        "name": place.name or None,
        "method": place.method or None,
        "priority": place.priority,
        "seconds_waited": place.asked - place.held,
        "seconds_held": place.held,
    }


def _data(target: Target, state: State, pending: int) -> dict[str, object]:
    return {
        "key": target.keys.state,
        "server_time": str(state.now),
        "last": None if state.last is None else str(state.last),
        "lead_seconds": None if state.last is None else (state.last - state.now) / 1e9,
        "lock": _lock(state)[0],
        "holder": None if state.place is None else _place(state.place),
        "seconds_left": state.left,
        "waiting": state.waiting,
        "waiters": [_place(waiter) for waiter in state.waiters],
        "pending": pending,
        "cool_down_seconds": state.cool_down,
        "cool_down_reason": state.reason or None,
    }


def _text(target: Target, state: State, pending: int) -> str:
    lines = {
        "key": target.keys.state,
        "last nonce": "none handed out yet" if state.last is None else str(state.last),
        "lead": "-" if state.last is None else lead(state.last - state.now),
        "lock": _lock(state)[1],
        "waiting": _waiting(state),
        "pending": f"{pending} {'call' if pending == 1 else 'calls'}; see kraken-nonce pending" if pending else "none",
        "cool-down": f"{span(state.cool_down)}: {printable(state.reason)}" if state.cool_down else "none",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in lines.items())
