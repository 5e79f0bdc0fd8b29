"""The commands, put together."""

from __future__ import annotations

import importlib
from typing import Any, Final

import click
from click.exceptions import NoArgsIsHelpError

from kraken_nonce_redis.cli.exit_codes import HELP, ExitCode, Misuse, failure
from kraken_nonce_redis.cli.options import print_error_as_json
from kraken_nonce_redis.cli.place import asked
from kraken_nonce_redis.errors import KrakenNonceError, StoreError

_COMMANDS: Final = {
    "demo": "demo",
    "doctor": "doctor",
    "acl": "acl",
    "check": "check",
    "status": "status",
    "watch": "watch",
    "log": "log",
    "next": "nonces:next_nonce",
    "last": "nonces:last_nonce",
    "jump": "nonces",
    "advance": "nonces",
    "unlock": "lock",
    "pending": "pending",
    "once": "once",
    "exporter": "exporter",
    "ready": "ready",
    "bench": "bench",
    "run": "run",
    "server": "server",
    "simulator": "simulator",
}
"""The module of each command, and the name of its function if that is another one; as a new user needs them."""

_FIRST_STEPS = """\b
First steps:
  kraken-nonce demo                           what goes wrong without it, and with it
  kraken-nonce server                         an embedded Valkey, to develop with
  kraken-nonce simulator                      a simulated Kraken, to develop with
  export KRAKEN_NONCE_REDIS_URL=redis://...   where nonces and locks live
  kraken-nonce doctor                         whether that Redis is fit for it
  export KRAKEN_API_KEY=... KRAKEN_API_SECRET=...   for which API key
  kraken-nonce check                          whether key, permissions, nonce, clock and network are right
  kraken-nonce status                         "ok", or what is wrong; last nonce, holder, waiters
"""
_AS_JSON: Final = "kraken_nonce_redis.as_json"


class Application(click.Group):
    """A group whose commands end with one line on stderr and an exit code for any error of the library.

    With --json the error is on stdout, too, as JSON.
    """

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read what stands before the command."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _in_one_line(error, "kraken-nonce") from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take note whether the command is to print JSON, since the rest of the command line may be wrong."""
        words = args[: args.index("--")] if "--" in args else args
        command = self.get_command(ctx, words[0]) if words else None
        if command is not None and "--json" in words:
            ctx.meta[_AS_JSON] = any(parameter.name == "as_json" for parameter in command.params)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return self._invoke(ctx)
        except click.ClickException as error:
            if ctx.meta.get(_AS_JSON):
                print_error_as_json(ctx, error.format_message(), error.exit_code)
            raise

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _in_one_line(error, f"{ctx.command_path} {ctx.invoked_subcommand or ''}".strip()) from None
        except StoreError as error:
            place = asked(ctx)
            raise (failure(error) if place is None else place.failure(error)) from error
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


def _in_one_line(error: click.UsageError, command: str) -> click.ClickException:
    """Return the error with the command whose help says more; click does not always know which."""
    if isinstance(error, NoArgsIsHelpError):
        return error
    where = error.ctx.command_path if error.ctx is not None else command
    return Misuse(f"{error.format_message().removesuffix('.')}; see {where} --help")


@click.group(
    cls=Application, context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"{_FIRST_STEPS}\n\n\b\n{HELP}"
)
@click.version_option(None, "-V", "--version", package_name="kraken-nonce-redis")
def app() -> None:
    """Nonces and a lock for Kraken API keys that several processes share, on Redis."""
