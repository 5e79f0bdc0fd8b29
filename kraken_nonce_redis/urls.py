"""The URLs of a Redis: a server, a master behind Sentinels, a cluster; no I/O.

::

    redis://[[user]:password@]host[:port][/db][?options]            rediss:// with TLS
    unix://[[user]:password@]/path/of/the/socket[?options]
    redis+sentinel://[[user]:password@]host[:port][,...]/service[/db][?options]    rediss+sentinel://
    redis+cluster://[[user]:password@]host[:port][,...][?options]                  rediss+cluster://

Options are those of redis-py's URLs. User and password are for the Redis servers; those of the Sentinels, if they have
any, are the options ``sentinel_username`` and ``sentinel_password``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import unquote

from redis.connection import parse_url

from kraken_nonce_redis.errors import InvalidArgument

Kind: TypeAlias = Literal["server", "sentinel", "cluster"]

SCHEMES: Final[dict[str, Kind]] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
VARIABLES: Final = ("KRAKEN_NONCE_REDIS_URL", "REDIS_URL")
"""Of the environment, the first that is set counts."""
SOCKET_TIMEOUT: Final = 3.0
"""Seconds, unless a URL has an option of the same name."""

_TIMEOUTS: Final = {"socket_timeout": SOCKET_TIMEOUT, "socket_connect_timeout": SOCKET_TIMEOUT}
_HIGHEST_PORT: Final = 65535
_PORTS: Final[dict[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_SHAPE = re.compile(r"(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#@]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s]+)(?::(?P<port>[0-9]{1,5}))?")
_OF_SENTINELS = "sentinel_"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Redis is, and how to connect.

    Attributes:
        kind: what is there.
        url: for a server, what redis-py makes a client from.
        hosts: for the others, hosts and ports to begin with.
        service: the name of what Sentinels watch.
        options: for connections to the Redis servers, as redis-py's clients take them.
        sentinel_options: for connections to Sentinels.
    """

    kind: Kind
    url: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


def from_environment() -> str | None:
    """Return the URL of the Redis to use from the environment, None if there is none. An empty variable is not set."""
    return next((url for variable in VARIABLES if (url := os.environ.get(variable))), None)


def unusable() -> InvalidArgument:
    """Return the error for a URL that redis-py refuses. What it says can hold a part of the password."""
    return InvalidArgument("url", "redis-py can't use it; check port, database, options, and a / in the password")


def parse(url: object) -> Place:
    """Return what a URL means. It may hold a password, so no error shows it. Raises `InvalidArgument`."""
    if not isinstance(url, str):
        raise InvalidArgument("url", f"must be a str, not {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    kind = SCHEMES.get(scheme)
    if not separator or kind is None:
        # A password can stand where the scheme should ("secret@host"), so only a harmless shape is shown.
        shown = repr(scheme) if separator and re.fullmatch("[A-Za-z]+([+-][A-Za-z]+)?", scheme) else "none"
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise InvalidArgument("url", f"must begin with one of {known}; its scheme is {shown}")
    shape = _SHAPE.fullmatch(rest)
    if kind == "server":
        return Place(
            kind, url, (), "", {"socket_timeout": SOCKET_TIMEOUT, "socket_connect_timeout": SOCKET_TIMEOUT}, {}
        )
    if shape is None:
        raise unusable()
    hosts = tuple(_address(text, _PORTS[kind]) for text in shape["hosts"].split(","))
    service, database = _path(kind, shape["path"] or "")
    options = _options(scheme.partition("+")[0], shape["login"], database, shape["query"] or "")
    of_sentinels = {name: options.pop(name) for name in list(options) if name.startswith(_OF_SENTINELS)}
    if kind == "cluster":
        if of_sentinels or options.pop("db", 0) != 0:
            raise InvalidArgument("url", "a cluster has the database 0 alone, and no Sentinels")
        return Place(kind, "", hosts, "", options, {})
    sentinel_options = {
        name: value for name, value in options.items() if name == "ssl" or name.startswith(("ssl_", "socket_"))
    }
    for name, value in of_sentinels.items():
        if name not in ("sentinel_username", "sentinel_password"):
            raise unusable()
        sentinel_options[name.removeprefix(_OF_SENTINELS)] = value
    return Place(kind, "", hosts, service, options, sentinel_options)


def _address(text: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None or int(match["port"] or port) > _HIGHEST_PORT:
        raise InvalidArgument("url", "needs host or host:port, several with commas between them")
    return unquote(match["host"]).strip("[]"), int(match["port"] or port)


def _path(kind: Kind, path: str) -> tuple[str, str]:
    """Return the service and the database, as texts."""
    names = [unquote(name) for name in path.split("/")[1:]]
    if kind == "sentinel":
        service, *names = names or [""]
        if not service:
            raise InvalidArgument("url", "needs the name that the Sentinels know: redis+sentinel://host:26379/name")
    else:
        service = ""
    database, *more = names or [""]
    if more or not re.fullmatch("[0-9]*", database):
        raise InvalidArgument("url", "ends in a database that is no number")
    return service, database


def _options(scheme: str, login: str | None, database: str, query: str) -> dict[str, Any]:
    """Let redis-py read what is left, as that of a server's URL."""
    try:
        options = parse_url(f"{scheme}://{'' if login is None else login + '@'}host/{database}?{query}")
    except ValueError:
        raise unusable() from None
    for name in ("host", "connection_class"):
        options.pop(name, None)
    if scheme == "rediss":
        options["ssl"] = True
    return {**_TIMEOUTS, **options}
