"""The command `log`: what happened to a key, from its trail."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote

import click

from kraken_nonce_redis._redis import trail
from kraken_nonce_redis._texts import moment, printable, span
from kraken_nonce_redis.cli.options import duration, examples, json_option, note, target_options
from kraken_nonce_redis.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kraken_nonce_redis._redis.trail import Entry
    from kraken_nonce_redis.cli.options import Target

_POLL: Final = 1.0
"""Seconds between two looks for new entries."""
_KINDS: Final = """\b
Kinds:
  unknown          the outcome of a call that changes something became unknown
  settled          it was found out, or its own bot has told it after all
  forgotten        it was never known, and the call is no longer listed as pending
  cleared          somebody took the call off that list: pending --clear
  raised           the last nonce was raised: after a refusal, jump, advance
  healed           Redis had lost its last nonce, and a bot still knew it
  lost             a lease ended before its holder released it
  unlocked         somebody ended a lease: unlock
  cool-down        all calls were stopped for a while
  cool-down-ended  somebody let them start again: unlock --cool-down
With --all, of bots that note them (trail="all"):
  lease            a lease was released
  extended         a lease was extended, and got further nonces
  reserved         nonces were handed out without a lease
"""
_NARROWEST: Final = 20
"""Columns."""
_HIGHEST_LIMIT: Final = 1_000_000


def _since(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else duration(context, parameter, value)


@click.command(
    "log",
    short_help="Show what happened: lost leases, unknown orders, raises, ...",
    epilog=_KINDS
    + "\n"
    + examples(
        "kraken-nonce log",
        "kraken-nonce log --since 2h --kind lost --kind unknown",
        "kraken-nonce log --follow",
        "kraken-nonce log --json --limit 1000 | jq -r 'select(.kind == \"raised\") | .time'",
    ),
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([*trail.RARE, *trail.FULL]),
    metavar="KIND",
    help="Show only this kind; may be given again.",
)
@click.option("--since", callback=_since, metavar="DURATION", help="Show only what is younger: 10m, 2h, 7d.")
@click.option(
    "--limit",
    type=click.IntRange(1, _HIGHEST_LIMIT),
    default=50,
    show_default=True,
    help="Show at most so many, the newest.",
)
@click.option("--all", "full", is_flag=True, help="Also show each lease and nonce of bots that note them: trail='all'.")
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@target_options
@json_option
def log(
    target: Target, *, kinds: Sequence[str], since: int | None, limit: int, full: bool, follow: bool, as_json: bool
) -> None:
    """Show what happened to a key, the oldest first. It changes nothing. Times are those of the Redis server.

    --json prints a JSON object for each entry, in a line of its own.
    """
    streams = [target.keys.log]
    if full or set(kinds) & set(trail.FULL):
        streams.append(target.keys.leases)
    show = _as_json if as_json else _as_text
    reader = _Reader(target, streams, frozenset(kinds))
    found = reader.newest(since, limit)
    for entry in found:
        click.echo(show(entry))
    if not found and not as_json and not follow:
        note("Nothing was noted.")
    if follow:
        _follow(reader, show)


def _follow(reader: _Reader, show: Callable[[Entry], str]) -> None:
    """Show new entries until Ctrl-C. While Redis is away, it waits for it."""
    away = False
    while True:
        time.sleep(_POLL)
        try:
            entries = reader.new()
        except StoreUnavailable as error:
            if not away:
                note(f"{error}. Trying again.")
            away = True
            continue
        if away:
            note("Redis is back.")
        away = False
        for entry in entries:
            click.echo(show(entry))


_Newest: TypeAlias = "dict[str, tuple[int, int] | None]"
"""By stream, the id of the newest entry that was read."""


class _Reader:
    """Reads the entries of some kinds, all if none is named, from some streams of a key."""

    def __init__(self, target: Target, streams: Sequence[str], kinds: frozenset[str]) -> None:
        self._target = target
        self._kinds = kinds
        self._newest: _Newest = dict.fromkeys(streams)

    def newest(self, since: int | None, limit: int) -> list[Entry]:
        """Return the newest entries of all streams, the oldest first; ``since`` is their greatest age in ns."""
        return self._read(lambda stream, read: itertools.islice(self._back(stream, read, since), limit))[-limit:]

    def new(self) -> list[Entry]:
        """Return the entries since the last time, the oldest first."""
        return self._read(self._back)

    def _read(self, look: Callable[[str, _Newest], Iterable[Entry]]) -> list[Entry]:
        """Look at all streams; only if that succeeds, what was read counts as read."""
        newest = dict(self._newest)
        found = [entry for stream in newest for entry in look(stream, newest)]
        self._newest = newest
        return sorted(found, key=lambda entry: entry.id)

    def _back(self, stream: str, newest: _Newest, since: int | None = None) -> Iterator[Entry]:
        """Yield the entries of a stream from the newest on back to the one in ``newest``, which then has the newest."""
        after, before = newest[stream], None
        while True:
            page = self._target.run(trail.read(stream, after=after, before=before))
            if before is None and page.entries:
                newest[stream] = page.entries[0].id
            for entry in page.entries:
                if since is not None and entry.time < page.now - since:
                    return
                if not self._kinds or entry.kind in self._kinds:
                    yield entry
            if len(page.entries) < trail.MOST:
                return
            before = page.entries[-1].id


def _data(entry: Entry) -> dict[str, Any]:
    """Return what an entry says, by the names that it has in JSON. What can't be read stays as it is."""
    data: dict[str, Any] = {"id": "{}-{}".format(*entry.id), "time": _moment(entry.time), "kind": entry.kind}
    for field, value in entry.fields.items():
        name, read = _FIELDS.get(field, (field, str))
        if value and name not in data:
            try:
                data[name] = read(value)
            except ValueError:
                data[name] = value
    return data


def _moment(nanoseconds: int) -> str:
    try:
        return moment(nanoseconds)
    except (ValueError, OverflowError, OSError):  # another program's entry
        return f"{nanoseconds} ns"


def _seconds(microseconds: str) -> float:
    return int(microseconds) / 1e6


def _ids(words: str) -> list[str]:
    return [] if words == "-" else [unquote(word) for word in words.removeprefix("+").split(",") if word]


_FIELDS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "name": ("name", unquote),
    "method": ("method", unquote),
    "by": ("by", unquote),
    "ids": ("cl_ord_ids", _ids),
    "txids": ("txids", _ids),
    "held": ("seconds_held", _seconds),
    "ago": ("seconds_ago", _seconds),
    "granted": ("granted", lambda microseconds: _moment(int(microseconds) * 1000)),
    "term": ("seconds", _seconds),
}
"""What the fields of entries are in JSON, where they are something else."""


def _as_json(entry: Entry) -> str:
    return json.dumps(_data(entry))


def _as_text(entry: Entry) -> str:
    """Return an entry as a line, on a terminal as several that fit its width."""
    data = _data(entry)
    told = _TOLD.get(entry.kind)
    words = [data["time"], entry.kind or "?", _who(data) if told is None else told(data)]
    words += [f"{name} {_listed(data[name])}" for name in ("nonce", "cl_ord_ids", "txids") if data.get(name)]
    line = printable("  ".join(words))
    if not _on_a_terminal():
        return line
    width = max(shutil.get_terminal_size().columns - 1, _NARROWEST)
    return "\n".join(textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False))


def _on_a_terminal() -> bool:
    return sys.stdout.isatty()


def _who(data: Mapping[str, Any]) -> str:
    """Return whom an entry is about: the bot, and what it did."""
    return " for ".join(str(data[name]) for name in ("name", "method") if name in data) or "somebody"


def _by(data: Mapping[str, Any], name: str = "by") -> str:
    return f"by {data.get(name, 'somebody')}"


def _span(data: Mapping[str, Any], name: str) -> str:
    seconds = data.get(name, "?")
    return span(seconds) if isinstance(seconds, float) else str(seconds)


def _listed(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _raised(data: Mapping[str, Any]) -> str:
    why = "after a refusal" if data.get("cause") == "refused" else "as asked"
    return f"{_by(data, 'name')} {why}, before {data.get('stored', 'none')}"


def _lost(data: Mapping[str, Any]) -> str:
    return f"{_who(data)}, after {_span(data, 'seconds_held')}, noticed {_span(data, 'seconds_ago')} later"


_TOLD: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "settled": lambda data: f"{_who(data)}: {data.get('result')}",
    "forgotten": lambda data: f"{_who(data)}, its outcome was never known",
    "cleared": lambda data: f"{_who(data)}, {_by(data)}",
    "raised": _raised,
    "healed": lambda data: f"Redis had {data.get('stored', 'none')}, {_who(data)} had seen {data.get('floor')}",
    "lost": _lost,
    "unlocked": lambda data: f"{_who(data)}, {_by(data)}",
    "cool-down": lambda data: f"{_span(data, 'seconds')} {_by(data, 'name')}: {data.get('reason')}",
    "cool-down-ended": lambda data: f"{_by(data, 'name')}: {data.get('reason')}",
    "lease": lambda data: f"{_who(data)}, granted {data.get('granted')}",
    "reserved": lambda data: f"{_by(data, 'name')}, up to {data.get('last')}",
}
"""What an entry of a kind says beside its time and its nonce; of other kinds, who it was."""
