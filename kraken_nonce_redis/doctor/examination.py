"""Asks a server everything that `kraken_nonce_redis.doctor` looks at.

It writes only to three keys of its own, and deletes them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import redis
from redis.exceptions import RedisError, ResponseError
from redis.sentinel import SentinelConnectionPool

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._arguments import DEFAULT_NAMESPACE
from kraken_nonce_redis._redis import commands, keyspace
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._redis.words import text
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.doctor.answers import Keys, Refused, Seen, Tick, User
from kraken_nonce_redis.doctor.trial import TAG, Trial, trouble
from kraken_nonce_redis.errors import ForeignValue, InvalidArgument, StoreError, quotable, raise_from_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kraken_nonce_redis._threads.store import Store

T = TypeVar("T")

SETTINGS: Final = (
    "save",
    "appendfsync",
    "maxmemory",
    "maxmemory-policy",
    "min-replicas-to-write",
    "protected-mode",
    "active-replica",
    "multi-master",
)
"""Settings for CONFIG GET, asked by name: all settings at once would include passwords."""

_SAMPLES: Final = 200
_SAMPLING: Final = 0.5  # seconds
_MOST_KEYS: Final = 10_000
_LOOKING: Final = 2.0  # seconds


def examine(client: redis.Redis, namespace: str = DEFAULT_NAMESPACE) -> Seen:
    """Return the answers of one server. Takes a few seconds at most on a fast network.

    Args:
        client: a client for this one server. For a cluster, call this with a client for each master.
        namespace: prefix of the Redis keys.

    Raises:
        InvalidArgument: a wrong client or namespace.
        StoreError: Redis can't be reached, does not answer in time or refuses the password.
    """
    Keyspace.of(namespace, "none", "global")
    if not isinstance(client, redis.Redis):
        raise InvalidArgument("redis", f"must be a redis.Redis for one server, not {type(client).__qualname__}")
    try:
        return _examine(client, namespace)
    except (RedisError, OSError) as error:
        raise_from_redis(error, "doctor", "")


def _examine(client: redis.Redis, namespace: str) -> Seen:
    store = store_for(client)
    pings = _ask(lambda: _samples(client.ping))
    ticks = [_ask(lambda: _look(client))]
    name = _ask(lambda: text(client.acl_whoami()))
    user = name if isinstance(name, Refused) else _ask(lambda: _user(client.execute_command("ACL", "GETUSER", name)))
    info = _ask(lambda: {**client.info(), **client.info("commandstats")})
    config = _ask(lambda: _config(client))
    blocked = _ask(lambda: _blocked(client))
    keys = _ask(lambda: _keys(client, store, namespace))
    ticks.append(_ask(lambda: _look(client)))
    with Trial(client, namespace) as trial:
        lacking, heard = trial.lacking(), trial.hears()
        scripts = trial.scripts(store)
        runs = [] if scripts else _samples(lambda: store.run(commands.reserve(trial.keys, 1)))
    ticks.append(_ask(lambda: _look(client)))
    pool = client.connection_pool
    connection = pool.connection_class(**pool.connection_kwargs)  # not connected
    return Seen(
        namespace=namespace,
        fake=type(client).__module__.partition(".")[0] == "fakeredis",
        sentinel=isinstance(pool, SentinelConnectionPool),
        socket_timeout=connection.socket_timeout,
        connect_timeout=getattr(connection, "socket_connect_timeout", connection.socket_timeout),
        info=info,
        config=config,
        blocked=blocked,
        name=name,
        user=user,
        lacking=lacking,
        scripts=scripts,
        heard=heard,
        ticks=next((tick for tick in ticks if isinstance(tick, Refused)), None)
        or [tick for tick in ticks if isinstance(tick, Tick)],
        pings=pings,
        runs=runs,
        keys=keys,
    )


def _ask(question: Callable[[], T]) -> T | Refused:
    """Return the answer to a question, or a `Refused`. Raises redis-py's connection errors."""
    try:
        return question()
    except ResponseError as error:
        return Refused(trouble(error) or quotable(error))
    except (ValueError, TypeError, LookupError, AttributeError):
        # Servers that only resemble Redis give some answers in a form that redis-py can't read.
        return Refused("redis-py can't read the answer")


def _samples(act: Callable[[], object]) -> list[float]:
    """Do something again and again; return how long each time took, in seconds."""
    seconds: list[float] = []
    until = clock.now() + _SAMPLING
    act()  # may connect
    while len(seconds) < _SAMPLES and (not seconds or clock.now() < until):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return seconds


def _look(client: redis.Redis) -> Tick:
    here, steady = time.time(), clock.now()
    seconds, microseconds = client.time()
    here_then, steady_then = time.time(), clock.now()
    return Tick(
        server=int(seconds) + int(microseconds) / 1e6,
        here=(here + here_then) / 2,
        steady=(steady + steady_then) / 2,
        trip=steady_then - steady,
    )


def _config(client: redis.Redis) -> dict[str, str]:
    answers = [client.config_get(name) for name in SETTINGS]
    return {text(name): text(value) for answer in answers for name, value in answer.items()}


def _blocked(client: redis.Redis) -> dict[str, float]:
    return {text(event[0]): int(event[3]) / 1e3 for event in client.latency_latest()}


def _user(answer: Any) -> User:
    """Read the raw answer to ACL GETUSER: a list or, with RESP3, a dict. What redis-py makes of it depends on both."""
    rules = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
    rules = {text(name): value for name, value in rules.items()}
    flags = {text(flag) for flag in rules["flags"]}
    return User(commands=_words(rules["commands"]), keys=_words(rules["keys"]), no_password="nopass" in flags)


def _words(value: str | bytes | Iterable[str | bytes]) -> str:
    """Return rules as one text, as Redis 7 gives them, also if they come as a list."""
    return text(value) if isinstance(value, str | bytes) else " ".join(text(word) for word in value)


def _keys(client: redis.Redis, store: Store, namespace: str) -> Keys:
    """Look at the state keys of a namespace, as many as a short time allows."""
    until = clock.now() + _LOOKING
    tags: dict[str, None] = {}
    cursor, complete = 0, False
    while not complete and len(tags) < _MOST_KEYS and clock.now() < until:
        cursor, found = client.scan(cursor, match=f"{namespace}:{{*}}", count=1000)
        tags.update((text(key)[len(namespace) + 2 : -1], None) for key in found)
        complete = int(cursor) == 0
    ours = [tag for tag in tags if keyspace.TAG.fullmatch(tag)]
    leads: dict[str, int] = {}
    foreign: list[str] = []
    for looked_at, tag in enumerate(ours):
        if clock.now() >= until:
            ours, complete = ours[:looked_at], False
            break
        keys = Keyspace(namespace, tag)
        try:
            state = store.run(commands.inspect(keys))
        except ForeignValue:
            foreign.append(keys.state)
        except StoreError as error:
            if not error.answered:
                raise
            break  # the trial of the scripts tells why
        else:
            if state.last is not None:
                leads[keys.state] = state.last - state.now
    strangers = sum(not keyspace.TAG.fullmatch(tag) and not tag.startswith(TAG) for tag in tags)
    return Keys(count=len(ours), complete=complete, leads=leads, foreign=foreign, strangers=strangers)
