"""Keys in a user's Redis that a command makes for a while."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisClusterException, RedisError

from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._threads.connections import ClusterAddress
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.errors import raise_from_redis

if TYPE_CHECKING:
    from collections.abc import Generator

    from kraken_nonce_redis._redis.keyspace import Keyspace
    from kraken_nonce_redis._threads.connections import Source

_LIFE: Final = 3_600_000
"""ms after which they expire if the command is killed."""


@contextlib.contextmanager
def removed_afterwards(source: Source, keys: Keyspace) -> Generator[None]:
    """Remove the keys at the end of the block, in which they may be used. Raises `StoreError`."""
    store_for(source).run(commands.reserve(keys, 1))
    try:
        client = source.connect() if isinstance(source, ClusterAddress) else source
        try:
            client.pexpire(keys.state, _LIFE)
            yield
        finally:
            client.delete(*keys.for_the_lock)
    except (RedisError, RedisClusterException) as error:
        raise_from_redis(error, "clean up", keys.state)
