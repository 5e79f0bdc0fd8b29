"""The command `acl`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Final

import click

from kraken_nonce_redis import permissions
from kraken_nonce_redis.cli.exit_codes import Misuse
from kraken_nonce_redis.cli.options import examples, namespace_option, not_empty, note

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLACEHOLDER: Final = "PASSWORD"


def _user(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _NAME.fullmatch(value):
        raise click.BadParameter("must be 1 to 64 letters, digits, '_', '.' or '-'")
    return value


@click.command(
    "acl",
    short_help="Print the permissions of a Redis user.",
    epilog=examples(
        "kraken-nonce acl --format aclfile --password-env BOT_PASSWORD >> users.acl",
        "redis-cli $(kraken-nonce acl --for doctor --password-env DOCTOR_PASSWORD)",
        "kraken-nonce acl --for operator --format helm",
    ),
)
@click.option(
    "--for",
    "role",
    type=click.Choice(list(permissions.ROLES)),
    default="bot",
    show_default=True,
    help="bot: nonces and locks. operator: status, watch and exporter. doctor: as bot, and to look at the server.",
)
@click.option("--user", callback=_user, metavar="NAME", help="Name of the user.  [default: the role]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["setuser", "aclfile", "helm"]),
    default="setuser",
    show_default=True,
    help="setuser: a command for redis-cli. aclfile: a line for a server's file of users. helm: values for "
    "the official Valkey chart.",
)
@click.option(
    "--password-env",
    "variable",
    callback=not_empty,
    metavar="NAME",
    help="Environment variable with the password. Its SHA-256 is printed, which is all that a server needs.  "
    f"[default: the word {_PLACEHOLDER}, to be replaced]",
)
@click.option("--cluster", is_flag=True, help="With what a Redis Cluster needs.")
@click.option("--durable", is_flag=True, help="With what durable nonces and leases need.")
@click.option("--database", is_flag=True, help="With what another database than 0 needs.")
@namespace_option
def acl(
    *,
    role: permissions.Role,
    user: str | None,
    form: str,
    variable: str | None,
    cluster: bool,
    durable: bool,
    database: bool,
    namespace: str,
) -> None:
    """Print the least permissions that a user of Redis needs. It talks to no server.

    What users can see holds digests of API keys, names of bots and ids of orders, but no keys, secrets or amounts.
    """
    words = permissions.least_permissions(namespace, role=role, cluster=cluster, durable=durable, database=database)
    password = f">{_PLACEHOLDER}"
    if form == "helm":
        if variable is not None:
            raise click.UsageError("the chart takes passwords from the secret auth.usersExistingSecret")
        note("The chart takes the password from auth.usersExistingSecret, and wants a user named default as well.")
    elif variable is None:
        note(f"Replace {_PLACEHOLDER}, or give --password-env.")
    else:
        secret = os.environ.get(variable, "")
        if not secret:
            raise Misuse("the environment variable named by --password-env is not set")
        password = f"#{hashlib.sha256(os.fsencode(secret)).hexdigest()}"
    click.echo(_FORMS[form](user or role, password, words))


def _setuser(user: str, password: str, words: tuple[str, ...]) -> str:
    return " ".join(["ACL SETUSER", user, "reset", "on", password, *words])


def _aclfile(user: str, password: str, words: tuple[str, ...]) -> str:
    return " ".join(["user", user, "reset", "on", password, *words])


def _helm(user: str, _password: str, words: tuple[str, ...]) -> str:
    permissions = json.dumps(" ".join(words))  # a string of JSON is one of YAML, too
    return "\n".join(["auth:", "  aclUsers:", f"    {user}:", f"      permissions: {permissions}"])


_FORMS: Final[dict[str, Callable[[str, str, tuple[str, ...]], str]]] = {
    "setuser": _setuser,
    "aclfile": _aclfile,
    "helm": _helm,
}
