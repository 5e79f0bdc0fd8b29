"""The commands, put together."""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

from kraken_nonce_redis.cli.exit_codes import HELP, ExitCode, failure
from kraken_nonce_redis.errors import KrakenNonceError

_COMMANDS: Final = {
    "demo": "demo",
    "doctor": "doctor",
    "acl": "acl",
    "check": "check",
    "status": "lock",
    "next": "nonces:next_nonce",
    "last": "nonces:last_nonce",
    "jump": "nonces",
    "advance": "nonces",
    "unlock": "lock",
    "pending": "pending",
    "ready": "ready",
    "run": "run",
    "server": "server",
}
"""The module of each command, and the name of its function if that is another one; as a new user needs them."""

_FIRST_STEPS = """\b
First steps:
  kraken-nonce demo                           what goes wrong without it, and with it
  kraken-nonce server                         an embedded Valkey, to develop with
  export KRAKEN_NONCE_REDIS_URL=redis://...   where nonces and locks live
  kraken-nonce doctor                         whether that Redis is fit for it
  export KRAKEN_API_KEY=... KRAKEN_API_SECRET=...   for which API key
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
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command. Only its own module is imported, so that a probe costs little."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, function = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(
            importlib.import_module(f"kraken_nonce_redis.cli.{module}"), function or cmd_name
        )
        return command


@click.group(
    cls=Application, context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"{_FIRST_STEPS}\n\n\b\n{HELP}"
)
@click.version_option(None, "-V", "--version", package_name="kraken-nonce-redis")
def app() -> None:
    """Nonces and a lock for Kraken API keys that several processes share, on Redis."""
