"""The command `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kraken_nonce_redis import _verdict as verdicts
from kraken_nonce_redis._texts import lead, printable, span
from kraken_nonce_redis._verdict import NAMES, who
from kraken_nonce_redis.cli.exit_codes import ExitCode
from kraken_nonce_redis.cli.lock import lock_in_words
from kraken_nonce_redis.cli.options import examples, json_option, print_json
from kraken_nonce_redis.cli.selection import colour, joint_verdict, selection_options

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.commands import Place, State
    from kraken_nonce_redis.cli.place import Master
    from kraken_nonce_redis.cli.selection import Look, Selection

WIDE: Final = 100
"""Columns from which on a table has all of its own."""
_ANY: Final = "any"
_COLUMNS: Final = ("lock", "wait", "lead", "pending")
"""Of the table, those that there is no room for on a narrow terminal; `_cells` fills them."""


def _conditions(_ctx: click.Context, _param: click.Parameter, value: str | None) -> frozenset[str]:
    """Return the conditions that were named."""
    names = {name.strip() for name in (value or "").split(",")} - {""}
    if names - {*NAMES, _ANY} or (value is not None and not names):
        raise click.BadParameter(f"takes {', '.join(NAMES)} or {_ANY}, with commas between them")
    return frozenset(NAMES if _ANY in names else names)


@click.command(
    "status",
    short_help='Say "ok" or what is wrong; show nonce, holder and waiters.',
    epilog=examples(
        "kraken-nonce status",
        "kraken-nonce status --all",
        "kraken-nonce status --id 0123456789abcdef",
        "kraken-nonce status --all --fail-on poisoned,held,reported",
        "kraken-nonce status --scope global --json | jq .verdict",
    ),
)
@selection_options
@click.option(
    "--fail-on",
    "fail_on",
    metavar="CONDITION,...",
    callback=_conditions,
    help=f"Exit code 1 if one of these is so: {', '.join(NAMES)}, or {_ANY}.",
)
@json_option
def status(selection: Selection, *, fail_on: frozenset[str], as_json: bool) -> None:
    """Say in the first line "ok" or what is wrong, and since when; then show the state. It changes nothing.

    Of a key that was never used in the namespace it says that nothing is known.

    \b
    foreign    another program's value is where our state should be
    poisoned   nonces are so far ahead of the clock that they are not raised further
    lead       nonces were raised ahead of the clock
    held       the lock is held for 10 s or more
    ended      a lease ended without a release, and nobody has asked for the lock since
    waiting    somebody has waited for 10 s or more
    cool-down  no calls for a while, since Kraken has refused one
    pending    calls with an unknown outcome that the next process settles
    reported   calls with an unknown outcome that you have to look up

    Of the holder and the first hundred waiters it shows the name (`name=` of the lock or client, KRAKEN_NONCE_NAME,
    else host and process id), Kraken's method, and since when. With --all, or --file without --account, it shows a
    table of API keys instead.

    "lock" in the JSON is free, held, offered (to a waiter) or ended (a lease ran out, and nobody has asked for the
    lock since).
    """  # noqa: D301 - click's mark for lines that stay as they are
    master = selection.place.master()
    found = selection.all()
    looks = [selection.read(found[0])] if selection.single else [selection.look(chosen) for chosen in found]
    node = selection.place.node(found[0].keys) if selection.single else None
    verdict = looks[0].verdict.text if selection.single else joint_verdict(looks)
    if not looks:
        verdict = f"no API key is known in the namespace {selection.namespace}"
    if as_json:
        data: dict[str, object] = {"verdict": verdict, "redis": _redis(selection, master, node)}
        print_json(data | (_data(looks[0]) if selection.single else {"keys": [_data(look) for look in looks]}))
    else:
        _print(selection, looks, verdict, selection.place.words(master, node))
    if any(fail_on.intersection(look.verdict.names) for look in looks):
        raise click.exceptions.Exit(ExitCode.NO)


def _print(selection: Selection, looks: list[Look], verdict: str, redis: str) -> None:
    console = Console(highlight=False)
    whole = not console.is_terminal  # in a pipe a line is one line
    console.print(Text(verdict, colour(verdict)), soft_wrap=whole)
    if selection.single:
        console.print(Text(_text(looks[0], redis)), soft_wrap=whole)
        return
    console.print(Text(f"redis       {redis}"), soft_wrap=whole)
    if looks and whole:
        click.echo(_lines(looks))
    elif looks:
        console.print(_table(looks, console.width))


def _table(looks: list[Look], width: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True, min_width=16)
    table.add_column("verdict", ratio=1, overflow="fold")
    if width >= WIDE:
        lock, *figures = _COLUMNS
        table.add_column(lock, overflow="fold", max_width=36)
        for name in figures:
            table.add_column(name, justify="right", no_wrap=True)
    for look in looks:
        cells = [look.chosen.label, look.verdict.text, *(_cells(look) if width >= WIDE else ())]
        table.add_row(*map(Text, cells), style="" if look.verdict.conditions else "dim")
    return table


def _lines(looks: list[Look]) -> str:
    """Return the whole table with one line for each API key, however wide."""
    rows = [("key", "verdict", *_COLUMNS), *((look.chosen.label, look.verdict.text, *_cells(look)) for look in looks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cells(look: Look) -> tuple[str, ...]:
    state = look.state
    if state is None:
        return "-", "-", "-", "-"
    ahead = verdicts.lead_seconds(state)
    word = lock_in_words(state)[0]
    lock = word if state.place is None else f"{word}: {who(state.place)}"
    return lock, str(state.waiting), "-" if ahead is None else _signed(ahead), str(len(look.pending))


def _signed(seconds: float) -> str:
    return f"{'-' if round(seconds, 1) < 0 else ''}{span(abs(seconds))}"


def _text(look: Look, redis: str) -> str:
    state = look.state
    assert state is not None  # noqa: S101 - another program's value was an error
    pending = len(look.pending)
    lines = {
        "redis": redis,
        "key": look.chosen.keys.state,
        "last nonce": "none handed out yet" if state.last is None else str(state.last),
        "lead": "-" if state.last is None else lead(state.last - state.now),
        "lock": lock_in_words(state)[1],
        "waiting": _waiting(state),
        "pending": f"{pending} {'call' if pending == 1 else 'calls'}; see kraken-nonce pending" if pending else "none",
        "cool-down": f"{span(state.cool_down)}: {printable(state.reason)}" if state.cool_down else "none",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in lines.items())


def _waiting(state: State) -> str:
    """Return how many wait, and a line for each of the first."""
    lines = [f"{'':<12}{who(waiter)}, {waiter.priority}, {span(waiter.asked)} by now" for waiter in state.waiters]
    more = state.waiting - len(lines)
    return "\n".join([str(state.waiting), *lines, *([f"{'':<12}and {more} more"] if lines and more else [])])


def _redis(selection: Selection, master: Master | None, node: str | None) -> dict[str, object]:
    place = selection.place
    return {
        "kind": place.kind,
        "hosts": place.hosts,
        "db": place.database,
        "from": place.source,
        "master": None if master is None else master.address,
        "elected_seconds_ago": None if master is None else master.elected,
        "node": node,
    }


def _data(look: Look) -> dict[str, object]:
    keys, state = look.chosen.keys, look.state
    data: dict[str, object] = {
        "key": keys.state,
        "id": keys.tag,
        "account": look.chosen.account or None,
        "verdict": look.verdict.text,
        "conditions": list(look.verdict.names),
        "known": look.verdict.known,
    }
    if state is None:
        return data
    return data | {
        "server_time": str(state.now),
        "last": None if state.last is None else str(state.last),
        "lead_seconds": verdicts.lead_seconds(state),
        "lock": lock_in_words(state)[0],
        "holder": None if state.place is None else _place(state.place),
        "seconds_left": state.left,
        "seconds_since_renewal": state.renewed,
        "waiting": state.waiting,
        "longest_wait_seconds": verdicts.longest_wait(state),
        "waiters": [_place(waiter) for waiter in state.waiters],
        "pending": len(look.pending),
        "cool_down_seconds": state.cool_down,
        "cool_down_reason": state.reason or None,
    }


def _place(place: Place) -> dict[str, object]:
    return {
        "id": place.member,
        "name": place.name or None,
        "method": place.method or None,
        "priority": place.priority,
        "seconds_waited": place.asked - place.held,
        "seconds_held": place.held,
    }
