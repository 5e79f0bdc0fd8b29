"""The command `doctor`."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click
import redis
from rich.console import Console
from rich.text import Text

from kraken_nonce_redis._texts import printable
from kraken_nonce_redis.cli.exit_codes import ExitCode
from kraken_nonce_redis.cli.options import examples, json_option, namespace_option, print_json, redis_option
from kraken_nonce_redis.cli.place import Place, joined
from kraken_nonce_redis.doctor import LEVELS, diagnose, examine
from kraken_nonce_redis.errors import StoreUnavailable, raise_from_redis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kraken_nonce_redis.doctor import Finding

_COLOURS: Final = {"ok": "green", "note": "blue", "warning": "yellow", "problem": "red"}
_LEVEL_WIDTH: Final = 9
_TOPIC_WIDTH: Final = 13


@click.command(
    "doctor",
    short_help="Say whether a Redis is fit for this, and what to do.",
    epilog=examples(
        "kraken-nonce doctor",
        "kraken-nonce doctor --redis redis://localhost:6379/0",
        "kraken-nonce doctor --json | jq -r '.findings[] | select(.level == \"problem\") | .advice'",
    ),
)
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings, too, and for what could not be seen.")
@redis_option
@namespace_option
@json_option
def doctor(url: str | None, *, strict: bool, namespace: str, as_json: bool) -> None:
    """Say whether a Redis is fit for nonces and locks, and what to change.

    "note" is good to know. "warning" works, with a risk. With a "problem", don't use the server as it is: exit code 1.
    It is a problem, too, if the user may not see whether the server keeps its data.
    No API key is needed. The command reads the keys of your bots and never changes them. It writes to three keys of its
    own, and deletes them afterwards.
    """
    place = Place(url)
    place.master()  # without Sentinels nothing could be seen
    with contextlib.ExitStack() as opened:
        found = {name: diagnose(examine(client, namespace)) for name, client in _servers(place, opened)}
    worst = max((finding.level for findings in found.values() for finding in findings), key=LEVELS.index)
    if as_json:
        rows = [
            asdict(finding) | ({"server": name} if name else {})
            for name, findings in found.items()
            for finding in findings
        ]
        print_json({"worst": worst, "findings": rows})
    else:
        _print(found)
    strictly = any(finding.unseen or finding.level == "warning" for some in found.values() for finding in some)
    if worst == "problem" or (strict and strictly):
        raise click.exceptions.Exit(ExitCode.NO)


def _servers(place: Place, opened: contextlib.ExitStack) -> list[tuple[str, redis.Redis]]:
    """Return a client for the one server, without a name, or for each master of a cluster. Raises `StoreError`."""
    try:
        masters = list(place.masters(opened))
    except (redis.RedisError, OSError) as error:
        raise_from_redis(error, "doctor", "")
    if not masters:
        raise StoreUnavailable("doctor", "", "no node of the cluster has any hash slots")
    if place.kind != "cluster":
        return [("", master) for master in masters]
    named = []
    for master in masters:
        options = master.connection_pool.connection_kwargs
        named.append((joined(options["host"], options["port"]), master))
    return named


def _print(found: Mapping[str, Sequence[Finding]]) -> None:
    console = Console(highlight=False)
    for name, findings in found.items():
        lines = [Text(name)] if name else []
        for finding in findings:
            level = Text(f"{finding.level:<{_LEVEL_WIDTH}}", _COLOURS[finding.level])
            lines.append(Text.assemble(level, f"{finding.topic:<{_TOPIC_WIDTH}}{printable(finding.found)}"))
            if finding.advice:
                lines.append(Text(" " * (_LEVEL_WIDTH + _TOPIC_WIDTH) + printable(finding.advice)))
        for line in lines:
            console.print(line, soft_wrap=True)
