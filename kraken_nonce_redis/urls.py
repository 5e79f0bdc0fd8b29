"""The URLs of a Redis: a server, a master behind Sentinels, a cluster; nothing is connected here.

::

    redis://[[user]:password@]host[:port][/db][?options]            rediss:// with TLS
    unix://[[user]:password@]/path/of/the/socket[?options]
    redis+sentinel://[[user]:password@]host[:port][,...]/service[/db][?options]    rediss+sentinel://
    redis+cluster://[[user]:password@]host[:port][,...][?options]                  rediss+cluster://

Options have the names of those of redis-py's URLs. User and password are for the Redis servers; those of the Sentinels,
if they have any, are the options ``sentinel_username`` and ``sentinel_password``.

Any part of a wrong URL may be a part of the password, so errors show nothing of it but the names of options.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import unquote

import redis

from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
_SHAPE = re.compile(r"(?P<authority>[^/?]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?", re.DOTALL)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[^\[\]\s]+)?\]|[^:\[\]\s]*)(?::(?P<port>[0-9]{0,5}))?")
_ESCAPES: Final = {"#": "%23", "?": "%3F", "/": "%2F"}
_OF_SENTINELS: Final = "sentinel_"
_WORDS_OF_FALSE_AND_TRUE: Final = (("0", "f", "false", "n", "no", "off"), ("1", "t", "true", "y", "yes", "on"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Redis is, and how to connect.

    Attributes:
        kind: what is there.
        url: for a server, what redis-py makes a client from, together with the options.
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
    name = variable()
    return None if name is None else os.environ[name]


def variable() -> str | None:
    """Return the name of the variable that `from_environment` reads, None if none is set."""
    return next((variable for variable in VARIABLES if os.environ.get(variable)), None)


def or_environment(redis: Any) -> Any:
    """Return a client or a URL that was given, or else the URL in the environment. Raises `InvalidArgument`."""
    given = from_environment() if redis is None else redis
    if given is None:
        names = ", ".join(VARIABLES)
        raise InvalidArgument("redis", f"give a client or a URL, or set one of {names} in the environment")
    return given


def unusable(error: Exception) -> InvalidArgument:
    """Return the error for a URL whose options redis-py refuses."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is not None and unknown[1] in _OPTIONS:
        return _wrong(f"redis-py {redis.__version__} doesn't know the option {unknown[1]} for such a connection")
    return _wrong("redis-py can't use it; check the options")


def parse(url: object) -> Place:
    """Return what a URL means. Raises `InvalidArgument`."""
    if not isinstance(url, str):
        raise InvalidArgument("url", f"must be a str, not {type(url).__name__}")
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme not in SCHEMES:
        # A password can stand where the scheme should ("secret@host"), so only a harmless shape is shown.
        shown = repr(scheme) if separator and re.fullmatch("[A-Za-z]+([+-][A-Za-z]+)?", scheme) else "none"
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise InvalidArgument("url", f"must begin with one of {known}; its scheme is {shown}")
    if "#" in rest:
        raise _unescaped(rest)
    try:
        return _place(scheme, rest)
    except InvalidArgument as error:
        wrong = error
    if re.search("[/?].*@", rest, re.DOTALL):
        wrong = _unescaped(rest)
    wrong.__context__ = None  # what float() and others said of a value
    raise wrong


def _wrong(problem: str) -> InvalidArgument:
    return InvalidArgument("url", problem)


def _unescaped(rest: str) -> InvalidArgument:
    """Return the error for a character that ends host and port, but probably belongs to the password."""
    login, _, after = rest.rpartition("@")
    found = login + "#" if "#" in after else login
    ways = [f"{character} as {way}" for character, way in _ESCAPES.items() if character in found]
    return _wrong(f"in a user name or password, write {', '.join(ways)}; elsewhere, write @ as %40")


def _place(scheme: str, rest: str) -> Place:
    kind, shape = SCHEMES[scheme], _SHAPE.fullmatch(rest)
    assert shape is not None  # noqa: S101 - it fits every text
    login, _, hosts = shape["authority"].rpartition("@")
    options = {**_TIMEOUTS, **_options(scheme, shape["query"] or ""), **_login(login)}
    of_sentinels = {name: options.pop(name) for name in list(options) if name.startswith(_OF_SENTINELS)}
    if scheme == "unix":
        return Place(kind, "unix://", (), "", {**options, "path": _socket(login, hosts, shape["path"] or "")}, {})
    secure = scheme.startswith("rediss")
    addresses = [_address(kind, text) for text in hosts.split(",")]
    service, database = _path(kind, shape["path"] or "")
    if database:
        options.setdefault("db", int(database))
    if kind == "server":
        if len(addresses) > 1:
            raise _wrong("has one host only; several are for redis+sentinel:// and redis+cluster://")
        host, port = addresses[0]
        return Place(kind, f"{scheme}://", (), "", {**options, "host": host, "port": port}, {})
    if secure:
        options["ssl"] = True
    if kind == "cluster":
        if options.pop("db", 0) != 0:
            raise _wrong("a cluster has only the database 0")
        return Place(kind, "", tuple(addresses), "", options, {})
    # redis-py before 5.1 can't read what Sentinels say in version 3 of the protocol.
    sentinel_options: dict[str, Any] = {"protocol": 2}
    sentinel_options |= {
        name: value for name, value in options.items() if name == "ssl" or name.startswith(("ssl_", "socket_"))
    }
    sentinel_options |= {name.removeprefix(_OF_SENTINELS): value for name, value in of_sentinels.items()}
    return Place(kind, "", tuple(addresses), service, options, sentinel_options)


def _text(escaped: str, what: str) -> str:
    """Return a text without its escapes."""
    try:
        text = unquote(escaped, errors="strict")
        text.encode()
    except UnicodeError:
        raise _wrong(f"{what} is not UTF-8") from None
    return text


def _login(login: str) -> dict[str, str]:
    user, _, password = login.partition(":")
    parts = {"username": _text(user, "the user name"), "password": _text(password, "the password")}
    return {name: value for name, value in parts.items() if value}


def _socket(login: str, hosts: str, path: str) -> str:
    socket = _text(path, "the path")
    # With a login, an @ in the path may be the one behind the password.
    if hosts or not socket or "\0" in socket or (login and "@" in path):
        raise _wrong("needs the whole path of the socket: unix:///run/redis.sock, unix://:password@/run/redis.sock")
    return socket


def _address(kind: Kind, text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is not None:
        host, port = _text(match["host"], "the host").strip("[]"), int(match["port"] or _PORTS[kind])
        if kind == "server" and not host:
            host = "localhost"
        if _is_host(host) and 0 < port <= _HIGHEST_PORT:
            return host, port
    several = "" if kind == "server" else ", several with commas between them"
    raise _wrong(
        f"needs host or host:port{several}, the port from 1 to {_HIGHEST_PORT}; user and password end in an @: "
        "user:password@host:port"
    )


def _is_host(name: str) -> bool:
    try:
        name.encode("idna")  # as getaddrinfo does
    except UnicodeError:
        return False
    return bool(name) and name.isprintable() and not set(name) & set(" @/?#[]")


def _path(kind: Kind, path: str) -> tuple[str, str]:
    """Return the service and the database, as texts."""
    names = path.removesuffix("/").split("/")[1:]
    service = ""
    if kind == "sentinel":
        name, *names = names or [""]
        service = _text(name, "the name of the service")
        if not service or "@" in name:
            raise _wrong("needs the name that the Sentinels know: redis+sentinel://host:26379/name")
    database, *more = names or [""]
    if more or not re.fullmatch("[0-9]{0,9}", database):
        raise _wrong("ends in a database that is no number")
    return service, database


# Options


def _boolean(value: str) -> bool:
    false, true = _WORDS_OF_FALSE_AND_TRUE
    if value.lower() not in (*false, *true):
        raise ValueError
    return value.lower() in true


def _whole(value: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError
    return int(value)


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


def _protocol(value: str) -> int:
    return {"2": 2, "3": 3}[value]


def _certificates(value: str) -> str:
    # Celery has the names of Python's constants.
    requirement = value.lower().removeprefix("cert_")
    if requirement not in ("none", "optional", "required"):
        raise ValueError
    return requirement


def _tls_version(value: str) -> ssl.TLSVersion:
    return ssl.TLSVersion(int(value))


def _verify_flags(value: str) -> list[ssl.VerifyFlags]:
    return [ssl.VerifyFlags[name.strip()] for name in value.strip("[]").split(",")]


def _readable(value: str) -> str:
    if not os.access(value, os.R_OK):
        raise ValueError
    return value


_FILE: Final = (_readable, "is not there or can't be read: give the path of a file")
_FLAGS: Final = (_verify_flags, "needs names of ssl.VerifyFlags, with commas between them")
_SECONDS: Final = (_seconds, "needs seconds, above 0")
_TEXT: Final = (str, "needs a text")
_TRUTH: Final = (_boolean, "needs true or false")
_OPTIONS: Final[Mapping[str, tuple[Callable[[str], Any], str]]] = {
    "client_name": _TEXT,
    "db": (_whole, "needs the number of a database"),
    "password": _TEXT,
    "protocol": (_protocol, "needs 2 or 3"),
    "sentinel_password": _TEXT,
    "sentinel_username": _TEXT,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _TRUTH,
    "socket_timeout": _SECONDS,
    "ssl_ca_certs": _FILE,
    "ssl_ca_data": _TEXT,
    "ssl_ca_path": (_readable, "is not there or can't be read: give the path of a folder"),
    "ssl_cert_reqs": (_certificates, "needs none, optional or required (or CERT_NONE, CERT_OPTIONAL, CERT_REQUIRED)"),
    "ssl_certfile": _FILE,
    "ssl_check_hostname": _TRUTH,
    "ssl_ciphers": _TEXT,
    "ssl_exclude_verify_flags": _FLAGS,
    "ssl_include_verify_flags": _FLAGS,
    "ssl_keyfile": _FILE,
    "ssl_min_version": (_tls_version, "needs a number of ssl.TLSVersion: 771 for TLS 1.2, 772 for TLS 1.3"),
    "ssl_password": _TEXT,
    "username": _TEXT,
}
"""Of each option, what reads its value, and what it needs."""
_SECRET: Final = ("password", "sentinel_password", "ssl_password")
# They are about redis-py's pools and answers, or about retries, which are ours here. Other programs may need them.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "decode_responses",
        "encoding",
        "encoding_errors",
        "health_check_interval",
        "legacy_responses",
        "max_connections",
        "retry_on_error",
        "retry_on_timeout",
        "socket_read_size",
        "timeout",
    }
)


def _options(scheme: str, query: str) -> dict[str, Any]:
    """Return the options of a URL as redis-py takes them. Of an option that is there twice the first counts."""
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, _, escaped = pair.partition("=")
        value = _text(escaped.replace("+", " "), "the value of an option")
        if name in _WITHOUT_EFFECT:
            continue
        if name not in _OPTIONS:
            raise _unknown(name, secret=any(known in options for known in _SECRET))
        if name.startswith("ssl_") and not scheme.startswith("rediss"):
            raise _wrong(f"the option {name} is for TLS: rediss://, rediss+sentinel://, rediss+cluster://")
        if name.startswith(_OF_SENTINELS) and SCHEMES[scheme] != "sentinel":
            raise _wrong(f"the option {name} is for redis+sentinel:// and rediss+sentinel://")
        if value:
            options.setdefault(name, _value(name, value))
    if options.get("ssl_cert_reqs") == "none":
        options["ssl_check_hostname"] = False  # without a certificate there is no name to compare
    return options


def _value(name: str, value: str) -> Any:
    read, need = _OPTIONS[name]
    try:
        return read(value)
    except (ValueError, LookupError):
        raise _wrong(f"the option {name} {need}") from None


def _unknown(name: str, *, secret: bool) -> InvalidArgument:
    if secret or not re.fullmatch("[A-Za-z_]{1,40}", name):
        # What follows a password may be the rest of it.
        return _wrong("has an option that is not known; in a password, & is written as %26")
    close = difflib.get_close_matches(name, _OPTIONS, 1)
    meant = f", perhaps {close[0]} is meant" if close else f"; known are {', '.join(_OPTIONS)}"
    return _wrong(f"the option {name} is not known{meant}")
