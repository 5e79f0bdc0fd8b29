"""What the adapters for exchange clients share: which Redis, how long, and the lease that a call runs under."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from kraken_nonce_redis import arguments
from kraken_nonce_redis.commands import DEFAULT_NAMESPACE
from kraken_nonce_redis.core import DEFAULT_TTL
from kraken_nonce_redis.errors import InvalidArgument
from kraken_nonce_redis.lock import CallLock
from kraken_nonce_redis.store import client_from_url

if TYPE_CHECKING:
    from collections.abc import Generator

    from kraken_nonce_redis.commands import Scope
    from kraken_nonce_redis.core import LeaseCore
    from kraken_nonce_redis.lock import Lease
    from kraken_nonce_redis.store import Client

URL_VARIABLES: Final = ("KRAKEN_NONCE_REDIS_URL", "REDIS_URL")
DEFAULT_LOCK_TIMEOUT: Final = 60.0
DEFAULT_CALL_TIMEOUT: Final = 10.0


def url_from_environment() -> str:
    """Return the URL of the Redis to use, from the environment. Raises `InvalidArgument`."""
    for variable in URL_VARIABLES:
        url = os.environ.get(variable)
        if url:
            return url
    raise InvalidArgument(
        "redis", f"give a client or a URL, or set one of {', '.join(URL_VARIABLES)} in the environment"
    )


class Guard:
    """Holds the lock around the private calls of one exchange client.

    Args:
        redis: a redis-py client, a URL, or None for the one in the environment.
        ttl: length of a lease in seconds.
        scope: ``"key"`` or ``"global"``, as in `CallLock`.
        namespace: what the Redis keys begin with.
        lock_timeout: seconds that a call waits for its turn at most; None waits for ever.
        call_timeout: seconds for a request that was given no timeout of its own.
    """

    def __init__(
        self,
        redis: Client | str | None = None,
        *,
        ttl: float = DEFAULT_TTL,
        scope: Scope = "key",
        namespace: str = DEFAULT_NAMESPACE,
        lock_timeout: float | None = DEFAULT_LOCK_TIMEOUT,
        call_timeout: float = DEFAULT_CALL_TIMEOUT,
    ) -> None:
        if redis is None:
            redis = url_from_environment()
        self._client = client_from_url(redis) if isinstance(redis, str) else redis
        self._ttl = arguments.ttl(ttl)
        self._scope: Scope = scope
        self._namespace = namespace
        self._lock_timeout = arguments.timeout(lock_timeout, "lock_timeout")
        self.call_timeout = arguments.seconds("call_timeout", call_timeout, 0.001, arguments.LONGEST_TTL / 2)
        self._locks: dict[str, CallLock] = {}
        self.lock("checked now and not at the first call")

    def lock(self, api_key: str) -> CallLock:
        """Return the lock of an API key."""
        lock = self._locks.get(api_key)
        if lock is None:
            lock = self._locks[api_key] = CallLock(
                self._client, api_key, ttl=self._ttl, scope=self._scope, namespace=self._namespace
            )
        return lock

    @contextlib.contextmanager
    def call(self, api_key: str, seconds: float) -> Generator[Lease]:
        """Hold the lock for a call that takes so many seconds at most; the lease is long enough for it."""
        with self.lock(api_key).hold(self._lock_timeout) as lease:
            missing = missing_time(lease, seconds)
            if missing:
                lease.extend(missing)
            yield lease


def missing_time(lease: LeaseCore, seconds: float) -> float:
    """Return by how many seconds a lease is too short for a call, 0.0 when it is long enough."""
    return max(0.0, seconds * 1.01 + 0.1 - lease.remaining())
