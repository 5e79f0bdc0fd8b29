"""The commands, put together."""

from __future__ import annotations

from typing import Any, Final

import click
from click.exceptions import NoArgsIsHelpError

from kraken_nonce_redis.cli import lock, nonces
from kraken_nonce_redis.cli.check import check
from kraken_nonce_redis.cli.demo import demo
from kraken_nonce_redis.cli.doctor import doctor
from kraken_nonce_redis.cli.exit_codes import HELP, ExitCode, Misuse, failure
from kraken_nonce_redis.cli.exporter import exporter
from kraken_nonce_redis.cli.options import print_error_as_json
from kraken_nonce_redis.cli.pending import pending
from kraken_nonce_redis.cli.run import run
from kraken_nonce_redis.cli.server import server
from kraken_nonce_redis.cli.status import status
from kraken_nonce_redis.cli.watch import watch
from kraken_nonce_redis.errors import KrakenNonceError

_FIRST_STEPS = """\b
First steps:
  kraken-nonce demo                           what goes wrong without it, and with it
  kraken-nonce server                         an embedded Valkey, to develop with
  export KRAKEN_NONCE_REDIS_URL=redis://...   where nonces and locks live
  kraken-nonce doctor                         whether that Redis is fit for it
  export KRAKEN_API_KEY=...                   for which API key
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
            raise _in_one_line(error) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take note whether the command is to print JSON, since the rest of the command line may be wrong."""
        words = args[: args.index("--")] if "--" in args else args
        command = self.commands.get(words[0]) if words else None
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
            raise _in_one_line(error) from None
        except KrakenNonceError as error:
            raise failure(error) from error
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(ExitCode.INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a new user needs them."""
        del ctx
        return list(self.commands)


def _in_one_line(error: click.UsageError) -> click.ClickException:
    if isinstance(error, NoArgsIsHelpError):
        return error
    where = error.ctx.command_path if error.ctx is not None else "kraken-nonce"
    return Misuse(f"{error.format_message().removesuffix('.')}; see {where} --help")


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
    status,
    watch,
    nonces.next_nonce,
    nonces.last_nonce,
    nonces.jump,
    nonces.advance,
    lock.unlock,
    pending,
    exporter,
    run,
    server,
):
    app.add_command(command)
