"""What the adapters for exchange clients share: which Redis, how long, and the lease that a call runs under."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar

from kraken_nonce_redis import arguments
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from kraken_nonce_redis.commands import DEFAULT_NAMESPACE
from kraken_nonce_redis.core import DEFAULT_TTL, logger
from kraken_nonce_redis.errors import InvalidArgument, LeaseLost, StoreError
from kraken_nonce_redis.lock import CallLock
from kraken_nonce_redis.outcomes import CoolDowns
from kraken_nonce_redis.pace import Pace, priority_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable

    from kraken_nonce_redis.asyncio import Lease as AsyncLease
    from kraken_nonce_redis.commands import Scope
    from kraken_nonce_redis.core import LeaseCore
    from kraken_nonce_redis.lock import Lease

URL_VARIABLES: Final = ("KRAKEN_NONCE_REDIS_URL", "REDIS_URL")
DEFAULT_LOCK_TIMEOUT: Final = 60.0
DEFAULT_CALL_TIMEOUT: Final = 10.0
LONGEST_CALL: Final = arguments.LONGEST_TTL / 2 - 1
"""The longest timeout of a request, in seconds: it may count twice, for connecting and reading, within one lease."""

_SLACK: Final = 0.1
# An order that was placed must not look as if it were not.
_ANSWERED: Final = "%s was answered, though its lease did not last: %s"
_COOL_DOWNS: Final = CoolDowns()

LockType = TypeVar("LockType", CallLock, AsyncCallLock)


class Options(TypedDict, total=False):
    """Settings that all adapters take as keyword arguments.

    Attributes:
        redis: a client of redis-py (for an asyncio adapter, of redis.asyncio) or a URL; by default the URL in
            ``KRAKEN_NONCE_REDIS_URL``, then ``REDIS_URL``.
        ttl: length of a lease in seconds, 1 to 3600, by default 30; a call with a longer timeout extends its lease.
        scope: ``"key"`` (default): one call at a time for each API key; ``"global"``: for all of the namespace.
        namespace: what the Redis keys begin with; all who share the API key need the same.
        lock_timeout: seconds that a call waits for its turn at most, by default 60; None waits for ever.
        call_timeout: seconds for a request that has no timeout of its own, by default 10.
        pace: how often calls may start, a `Pace`; by default as often as the lock is free. What a call costs and
            whether it goes first follows from its method.
        cool_downs: how long nobody calls after Kraken's refusals, `kraken_nonce_redis.outcomes.CoolDowns`.
    """

    redis: Any
    ttl: float
    scope: Scope
    namespace: str
    lock_timeout: float | None
    call_timeout: float
    pace: Pace | None
    cool_downs: CoolDowns


class _GuardCore(Generic[LockType]):
    """The settings of one exchange client, and its locks."""

    _lock_type: type[LockType]

    def __init__(
        self,
        *,
        redis: Any = None,
        ttl: float = DEFAULT_TTL,
        scope: Scope = "key",
        namespace: str = DEFAULT_NAMESPACE,
        lock_timeout: float | None = DEFAULT_LOCK_TIMEOUT,
        call_timeout: float = DEFAULT_CALL_TIMEOUT,
        pace: Pace | None = None,
        cool_downs: CoolDowns = _COOL_DOWNS,
    ) -> None:
        self._redis = url_from_environment() if redis is None else redis
        self._settings: dict[str, Any] = {"ttl": ttl, "scope": scope, "pace": pace, "namespace": namespace}
        self._lock_timeout = arguments.timeout(lock_timeout, "lock_timeout")
        self.call_timeout: Final = arguments.seconds("call_timeout", call_timeout, 0.001, LONGEST_CALL)
        self._pace = pace
        self._cool_downs = cool_downs
        self._locks: dict[str, LockType] = {}
        self._make_lock("any")  # so that a wrong setting shows now and not at the first call

    def _make_lock(self, api_key: str) -> LockType:
        lock: Any = self._lock_type
        make: Callable[..., LockType] = lock.from_url if isinstance(self._redis, str) else lock
        return make(self._redis, api_key, **self._settings)

    def lock(self, api_key: str) -> LockType:
        """Return the lock of an API key."""
        lock = self._locks.get(api_key)
        if lock is None:
            lock = self._locks[api_key] = self._make_lock(api_key)
        return lock

    def _hold_options(self, method: str) -> dict[str, Any]:
        return {
            "timeout": self._lock_timeout,
            "cost": self._pace.cost_of(method) if self._pace else 0,
            "priority": priority_of(method),
        }

    def _cool_down(self, errors: Iterable[str]) -> tuple[float, str]:
        return self._cool_downs.after(errors, time.time())


class Guard(_GuardCore[CallLock]):
    """Holds the lock around the private calls of one exchange client. Takes `Options`."""

    _lock_type = CallLock

    @contextlib.contextmanager
    def call(self, api_key: str, seconds: float, method: str = "") -> Generator[Lease]:
        """Hold the lock for a call of a method that takes so many seconds at most; the lease is long enough for it."""
        answered = False
        try:
            with self.lock(api_key).hold(**self._hold_options(method)) as lease:
                missing = _missing(lease, seconds)
                if missing > 0:
                    lease.extend(missing)
                yield lease
                answered = True
        except LeaseLost as error:
            if not answered:
                raise
            logger.warning(_ANSWERED, method, error)

    def learn(self, api_key: str, errors: Iterable[str]) -> None:
        """Take note of the errors in Kraken's answer: some of them stop all calls of the key for a while."""
        seconds, reason = self._cool_down(errors)
        if seconds > 0:
            try:
                self.lock(api_key).cool_down(seconds, reason)
            except StoreError as error:  # must not hide Kraken's answer
                logger.warning("The other processes could not be told of %r: %s", reason, error)


class AsyncGuard(_GuardCore[AsyncCallLock]):
    """`Guard` for asyncio."""

    _lock_type = AsyncCallLock

    @contextlib.asynccontextmanager
    async def call(self, api_key: str, seconds: float, method: str = "") -> AsyncGenerator[AsyncLease]:
        """Hold the lock for a call of a method that takes so many seconds at most; the lease is long enough for it."""
        answered = False
        try:
            async with self.lock(api_key).hold(**self._hold_options(method)) as lease:
                missing = _missing(lease, seconds)
                if missing > 0:
                    await lease.extend(missing)
                yield lease
                answered = True
        except LeaseLost as error:
            if not answered:
                raise
            logger.warning(_ANSWERED, method, error)

    async def learn(self, api_key: str, errors: Iterable[str]) -> None:
        """Take note of the errors in Kraken's answer: some of them stop all calls of the key for a while."""
        seconds, reason = self._cool_down(errors)
        if seconds > 0:
            try:
                await self.lock(api_key).cool_down(seconds, reason)
            except StoreError as error:
                logger.warning("The other processes could not be told of %r: %s", reason, error)


def _missing(lease: LeaseCore, seconds: float) -> float:
    """Return by how many seconds a lease is too short for a call."""
    return seconds + _SLACK - lease.remaining()


def url_from_environment() -> str:
    """Return the URL of the Redis to use, from the environment. Raises `InvalidArgument`."""
    for variable in URL_VARIABLES:
        url = os.environ.get(variable)
        if url:
            return url
    raise InvalidArgument(
        "redis", f"give a client or a URL, or set one of {', '.join(URL_VARIABLES)} in the environment"
    )
