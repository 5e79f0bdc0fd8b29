"""The commands, put together."""

from __future__ import annotations

from typing import Any

import click

from kraken_nonce_redis.cli import lock, nonces
from kraken_nonce_redis.cli.check import check
from kraken_nonce_redis.cli.demo import demo
from kraken_nonce_redis.cli.doctor import doctor
from kraken_nonce_redis.cli.exit_codes import HELP, ExitCode, failure
from kraken_nonce_redis.cli.pending import pending
from kraken_nonce_redis.cli.run import run
from kraken_nonce_redis.cli.server import server
from kraken_nonce_redis.errors import KrakenNonceError

_FIRST_STEPS = """\b
First steps:
  kraken-nonce demo                           what goes wrong without it, and with it
  kraken-nonce server                         an embedded Valkey, to develop with
  export KRAKEN_NONCE_REDIS_URL=redis://...   where nonces and locks live
  kraken-nonce doctor                         whether that Redis is fit for it
  export KRAKEN_API_KEY=...                   for which API key
  kraken-nonce check                          whether key, permissions, nonce, clock and network are right
  kraken-nonce status                         last nonce, holder, waiters
"""


class Application(click.Group):
    """A group whose commands end with one line on stderr and an exit code for any error of the library."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KrakenNonceError as error:
            raise failure(error) from error
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(ExitCode.INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a new user needs them."""
        del ctx
        return list(self.commands)


@click.group(
    cls=Application, context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"{_FIRST_STEPS}\n\n\b\n{HELP}"
)
@click.version_option(package_name="kraken-nonce-redis")
def app() -> None:
    """Nonces and a lock for Kraken API keys that several processes share, on Redis."""


for command in (
    demo,
    doctor,
    check,
    lock.status,
    nonces.next_nonce,
    nonces.last_nonce,
    nonces.jump,
    nonces.advance,
    lock.unlock,
    pending,
    run,
    server,
):
    app.add_command(command)
