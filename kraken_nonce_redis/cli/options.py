"""What the commands share: which key on which Redis, durations, and how answers are printed."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import click

from kraken_nonce_redis import urls
from kraken_nonce_redis._arguments import DEFAULT_MAX_LEAD, DEFAULT_NAMESPACE, LONGEST_LEAD
from kraken_nonce_redis._core import names
from kraken_nonce_redis._redis import keyspace
from kraken_nonce_redis._redis.keyspace import Keyspace, checked_namespace
from kraken_nonce_redis._texts import printable
from kraken_nonce_redis._threads.allocator import NonceAllocator
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.accounts import Reading, read_environment, read_file
from kraken_nonce_redis.cli.exit_codes import Misuse
from kraken_nonce_redis.cli.place import connect
from kraken_nonce_redis.errors import KrakenNonceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kraken_nonce_redis._arguments import Scope
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._threads.connections import Source

P = ParamSpec("P")
T = TypeVar("T")

NO_KEY: Final = "none needed"
DEFAULT_KEY_VARIABLE: Final = "KRAKEN_API_KEY"
NANOSECONDS: Final = {
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|min|m|h|d)")


def duration(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Return a length of time in ns. It needs a unit, since nonces are counted in five different ones."""
    match = _DURATION.fullmatch(value)
    length = int(Decimal(match[1]) * NANOSECONDS[match[2]]) if match else 0
    if not 0 < length <= LONGEST_LEAD:
        raise click.BadParameter("must be above 0 and at most 90d, with a unit: 500ms, 60s, 10m, 2h or 1d")
    return length


def not_empty(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty value: it is a mistake, such as a variable that is not set, and never counts as not given."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty: give a value, or leave the option out")
    return value


class Figure(click.FloatRange):
    """A number in a range. ``nan`` is in none, whatever `click.FloatRange` makes of it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        figure = super().convert(value, param, ctx)
        if math.isnan(figure):
            self.fail(f"{value!r} is no number", param, ctx)
        return figure


def examples(*lines: str) -> str:
    """Return the end of a help text, its lines kept as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class Target:
    """One API key's state, or that of all API keys of a namespace, on one Redis."""

    def __init__(self, client: Source, keys: Keyspace) -> None:
        self.keys = keys
        self.name = names.of_process()
        """What the log calls whoever uses the command, as it stands in Redis."""
        self._store = store_for(client)

    def run(self, command: Command[T]) -> T:
        """Run a command. Raises `StoreError` and what the command's reply says."""
        return self._store.run(command)


class NonceTarget(Target):
    """The same, known by the API key itself, for nonces of it."""

    def __init__(self, client: Source, api_key: str, scope: Scope, namespace: str) -> None:
        super().__init__(client, Keyspace.of(namespace, api_key, scope))
        self._allocator = functools.partial(NonceAllocator, client, api_key, scope=scope, namespace=namespace)

    def allocator(self, max_lead: int = DEFAULT_MAX_LEAD, *, durable: bool = False) -> NonceAllocator:
        """Return an allocator; ``max_lead`` in ns."""
        return self._allocator(max_lead=max_lead, durable=durable)


def _namespace(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    return checked_namespace(value)


redis_option = click.option(
    "--redis",
    "url",
    callback=not_empty,
    metavar="URL",
    help="Redis to use: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://. Other users of this "
    "machine can see what a command line holds: a URL with a password belongs in the environment. "
    f"[env var: {', '.join(urls.VARIABLES)}]",
)
namespace_option = click.option(
    "--namespace",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    callback=_namespace,
    help="What the Redis keys begin with.",
)
file_option = click.option(
    "--file",
    "accounts_file",
    callback=not_empty,
    metavar="PATH",
    help="TOML file with the accounts, instead of the environment.",
)


def account_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the accounts whose names begin so, for a shell that completes them."""
    try:
        accounts = accounts_of(ctx.params.get("accounts_file")).accounts
    except (KrakenNonceError, click.ClickException):
        return []
    return [account.name for account in accounts if account.name.startswith(incomplete.lower())]


account_option = click.option(
    "--account",
    callback=not_empty,
    metavar="NAME",
    shell_complete=account_names,
    help="Take the API key of this account: master, or a user's name.",
)
key_env_option = click.option(
    "--key-env",
    callback=not_empty,
    metavar="NAME",
    help="Environment variable that holds the API key. The key itself never goes on a command line. "
    f"[default: {DEFAULT_KEY_VARIABLE}]",
)
scope_option = click.option(
    "--scope",
    type=click.Choice(["key", "global"]),
    default="key",
    show_default=True,
    help="key: the nonces and the lock of one API key. global: those that all API keys of the namespace share; "
    "this needs no API key.",
)


digest_option = click.option(
    "--id",
    "digest",
    metavar="DIGEST",
    help="The API key with this digest, 16 hex digits as in logs and in kraken-nonce:{...}; no API key needed.",
)
_TARGET: Final = (scope_option, namespace_option, file_option, account_option, key_env_option, redis_option)


def nonce_options(function: Callable[Concatenate[NonceTarget, P], T]) -> Callable[..., T]:
    """Add the options that say which API key's nonces are meant; the function gets a `NonceTarget` first."""
    return with_options(_with_target(function), *_TARGET)


def target_options(function: Callable[Concatenate[Target, P], T]) -> Callable[..., T]:
    """Add the options that say which key is meant, by API key or digest; the function gets a `Target` first."""
    return with_options(_with_target(function), *_TARGET, digest_option)


def _with_target(function: Callable[..., T]) -> Callable[..., T]:
    """Give a function its target: a `NonceTarget`, unless a digest is given."""

    @functools.wraps(function)
    def with_target(
        *args: Any,
        url: str | None,
        key_env: str | None,
        account: str | None,
        accounts_file: str | None,
        namespace: str,
        scope: Scope,
        digest: str | None = None,
        **options: Any,
    ) -> T:
        if digest is None:
            api_key = chosen_key(scope, key_env, account, accounts_file)
            return function(NonceTarget(connect(url), api_key, scope, namespace), *args, **options)
        if key_env is not None or account is not None or accounts_file is not None or scope == "global":
            raise Misuse("give only one of --id, --key-env, --account and --scope global: each says which key is meant")
        keys = Keyspace(namespace, tag_of(digest))
        return function(Target(connect(url), keys), *args, **options)

    return with_target


def with_options(
    function: Callable[..., T], *options: Callable[[Callable[..., T]], Callable[..., T]]
) -> Callable[..., T]:
    """Add options to a command; help shows the last one first."""
    for option in options:
        function = option(function)
    return function


def chosen_key(scope: Scope, key_env: str | None, account: str | None, accounts_file: str | None) -> str:
    """Return the API key that is meant, checked against the name that the environment gives this process."""
    api_key = NO_KEY if scope == "global" else api_key_of(key_env, account, accounts_file)
    names.chosen(None, api_key)
    return api_key


def tag_of(digest: str) -> str:
    """Return the digest of ``--id`` as it stands in the names of keys. Raises `Misuse`."""
    tag = digest.strip().lower()
    if not keyspace.TAG.fullmatch(tag):
        # Never the value: it may be the API key itself.
        raise Misuse("--id takes the 16 hex digits between the braces of kraken-nonce:{...}, and never an API key")
    return tag


def accounts_of(file: str | None, names: Sequence[str] = ()) -> Reading:
    """Read the accounts of a file or of the environment, all or those with these names, and print notes."""
    reading = read_environment(os.environ, single=True) if file is None else read_file(file)
    for text in reading.notes:
        note(printable(text))
    if not names:
        return reading
    wanted = {name.lower() for name in names}
    missing = wanted - {account.name for account in reading.accounts} - {name.lower() for name, _ in reading.mistakes}
    if missing:
        known = ", ".join(account.name for account in reading.accounts) or "none"
        raise Misuse(f"there is no account of that name; known accounts: {known}")
    return Reading(
        tuple(account for account in reading.accounts if account.name in wanted),
        tuple(mistake for mistake in reading.mistakes if mistake[0].lower() in wanted),
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; nonces are strings in it.")
max_lead_option = click.option(
    "--max-lead",
    callback=duration,
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="How far ahead of the server's clock the last nonce may be raised.",
)


durable_option = click.option(
    "--durable",
    is_flag=True,
    help="Wait until a replica has it, a second at most. Exit code 3 if none has; the nonce stays raised.",
)


def api_key_of(variable: str | None, account: str | None, file: str | None) -> str:
    """Return the API key that these options mean."""
    if account is not None:
        if variable is not None:
            raise click.UsageError("give either --key-env or --account")
        return accounts_of(file, [account]).all()[0].key
    if file is not None:
        raise click.UsageError("--file needs --account")
    api_key = os.environ.get(variable or DEFAULT_KEY_VARIABLE, "").strip()
    if not api_key:
        # Never the name that was given: it may be the API key itself.
        which = "the environment variable named by --key-env" if variable else DEFAULT_KEY_VARIABLE
        raise Misuse(f"{which} is not set: export the API key there, or name another variable with --key-env")
    return api_key


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found out, for people and for programs."""

    text: str
    data: dict[str, object]

    def print(self, *, as_json: bool) -> None:
        """Print it on stdout."""
        if as_json:
            print_json(self.data)
        else:
            click.echo(self.text)


_PRINTED: Final = "kraken_nonce_redis.printed"


def print_json(data: object) -> None:
    """Print JSON on stdout, and remember that: of an error that comes later, stdout says nothing more."""
    click.get_current_context().meta[_PRINTED] = True
    click.echo(json.dumps(data))


def print_error_as_json(context: click.Context, message: str, exit_code: int) -> None:
    """Print an error as JSON on stdout, unless the command has printed its answer."""
    if _PRINTED not in context.meta:
        click.echo(json.dumps({"error": message, "exit_code": exit_code}))


def note(text: str) -> None:
    """Print what explains an answer, on stderr."""
    click.echo(text, err=True)
