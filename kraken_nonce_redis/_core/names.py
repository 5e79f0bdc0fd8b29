"""What a bot is called in Redis and in messages, so that people know it."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Final, TypedDict
from urllib.parse import unquote

from kraken_nonce_redis import _process
from kraken_nonce_redis._redis.words import word
from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.keyspace import Keyspace

VARIABLE: Final = "KRAKEN_NONCE_NAME"
LONGEST: Final = 64
"""Characters of a name."""


def checked(name: object, api_key: str, parameter: str = "name") -> str:
    """Return a name. Raises `InvalidArgument`."""
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST or not name.isprintable():
        raise InvalidArgument(parameter, f"must be 1 to {LONGEST} printable characters")
    if api_key and api_key in name:
        raise InvalidArgument(parameter, "must not hold the API key, since it is shown to people and stored in Redis")
    return name.strip()


def chosen(name: object, api_key: str) -> str | None:
    """Return a name as it stands in Redis, None for that of the process. Raises `InvalidArgument`."""
    if name is not None:
        return word(checked(name, api_key))
    if VARIABLE in os.environ:
        checked(os.environ[VARIABLE], api_key, VARIABLE)
    return None


def shown_of_process() -> str:
    """Return the name of this process as people see it."""
    return unquote(of_process())


def of_process() -> str:
    """Return the name of this process as it stands in Redis: that of the environment, else its host and number."""
    process = _process.current()
    if not process.name:
        process.name = word(os.environ.get(VARIABLE) or _process.default_name())
    return process.name


class Who(TypedDict):
    """Whom an event of the lock is about, as its attributes say it."""

    key: str
    name: str
    method: str
    lease: str


def told_of(keys: Keyspace, member: str) -> Who:
    """Return whom an event of a member is about."""
    lease, name, method = parts(member)
    return {"key": keys.tag, "name": name, "method": method, "lease": lease}


def parts(member: str) -> tuple[str, str, str]:
    """Return a member without the rest, its bot's name and the method of its call, as people see them."""
    lease, _, rest = member.partition("|")
    return lease, *_shown(rest)


@functools.lru_cache(maxsize=1024)
def _shown(words: str) -> tuple[str, str]:
    """Return name and method. Calls have few different ones, and each event of a lease asks for them."""
    name, _, rest = words.partition("|")
    return unquote(name), unquote(rest.partition("|")[0])
