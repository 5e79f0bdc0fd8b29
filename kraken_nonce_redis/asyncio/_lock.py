"""The lock around private calls, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Literal, Self, Unpack

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis._core.lock import LeaseCore, LockCore
from kraken_nonce_redis._core.wishes import LockSettings, Wishes
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.asyncio._connections import Target, checked
from kraken_nonce_redis.asyncio._store import store_for
from kraken_nonce_redis.errors import HoldTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from kraken_nonce_redis._arguments import Priority
    from kraken_nonce_redis._core.waiting import Acquired
    from kraken_nonce_redis.asyncio._connections import Client
    from kraken_nonce_redis.asyncio._store import Store


class Lease(LeaseCore):
    """The lock, held until its deadline; `kraken_nonce_redis.Lease` for asyncio. Only `extend` is a coroutine.

    Attributes:
        nonce: the first nonce of the lease, for its first call; ns since 1970.
    """

    def __init__(self, store: Store, lock: CallLock, acquired: Acquired) -> None:
        super().__init__(lock, acquired)
        self._store = store

    async def extend(self, seconds: float) -> None:
        """Make the lease end ``seconds`` later, and give it fresh nonces. Raises `LeaseLost` and `StoreError`."""
        await self._store.drive(self._extending(seconds))


class CallLock(LockCore[Lease]):
    """A lock that makes private calls of an API key run one at a time; `kraken_nonce_redis.CallLock` for asyncio.

    Arguments, meanings and errors are the same; ``redis`` is a client of redis.asyncio. Leases belong to tasks: a
    nested hold in the same task gets the same lease, other tasks wait, child tasks too. A lock may be made outside of
    an event loop, and each loop that uses it has its own connections.

    A task that is cancelled while it waits leaves nothing behind.
    """

    def __init__(self, redis: Client, api_key: str, **settings: Unpack[LockSettings]) -> None:
        self._begin(Target.of(checked(redis)), api_key, **settings)

    def _begin(self, target: Target, api_key: str, **settings: Unpack[LockSettings]) -> None:
        self._target = target
        super().__init__(lambda: self.store.process_state, api_key, **settings)

    @classmethod
    def from_url(cls, url: str, api_key: str, **settings: Unpack[LockSettings]) -> Self:
        """Return a lock for a URL, as `kraken_nonce_redis.urls` describes them."""
        lock = cls.__new__(cls)
        lock._begin(Target.of_url(url), api_key, **settings)  # noqa: SLF001 - this is a constructor
        return lock

    @property
    def store(self) -> Store:
        """The running loop's connections to Redis, as clients' calls use them."""
        return store_for(self._target)

    @contextlib.asynccontextmanager
    async def hold(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - one meaning in both faces
        cost: float = 0,
        priority: Priority = "normal",
        *,
        auto_renew: bool = False,
        startup_protection: bool = True,
    ) -> AsyncGenerator[Lease]:
        """Hold the lock for the ``async with`` block; arguments and errors as in `kraken_nonce_redis.CallLock.hold`."""
        owner, store = asyncio.current_task(), self.store
        wishes = Wishes(timeout, cost, priority, auto_renew, startup_protection)
        lease = await store.drive(self._holding(owner, wishes))
        failed = True
        try:
            yield lease
            failed = False
        finally:
            await store.drive(self._leaving(owner, lease, failed=failed))

    @property
    def lease(self) -> Lease | None:
        """The lease that this task holds, or None."""
        return self._held(asyncio.current_task())

    async def cool_down(self, seconds: float, reason: str) -> float:
        """Stop all calls of this key for a while, in all processes; return how many seconds are left of that.

        The longest cool-down counts. Waiters that would not wait that long get `CoolDown` at once.

        Args:
            seconds: from now, at most a day; 0 ends a cool-down.
            reason: what Kraken said; others see it.
        """
        return await self.store.run(self._cool_down(seconds, reason))

    async def reset_startup(self) -> None:
        """Make the next call open a new startup window, as after a pause."""
        await self.store.run(commands.reset_startup(self.keys))

    def _lease(self, acquired: Acquired) -> Lease:
        return Lease(self.store, self, acquired)

    async def acquire(
        self,
        blocking: bool = True,  # noqa: FBT001, FBT002 - as redis-py has it
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Acquire the lock for this task; return whether that worked."""
        timeout = arguments.timeout(blocking_timeout, "blocking_timeout") if blocking else 0
        wishes = Wishes(timeout, token=arguments.token(token))
        try:
            await self.store.drive(self._holding(asyncio.current_task(), wishes))
        except HoldTimeout:
            return False
        return True

    async def release(self) -> None:
        """Release the lock. Raises `CallLockError`, `LeaseLost` and `StoreError`."""
        owner = asyncio.current_task()
        await self.store.drive(self._releasing(owner, self._own(owner, "release")))

    async def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:  # noqa: FBT001, FBT002
        """Make this task's lease end a number of seconds later, or that many seconds from now."""
        await self.store.drive(self._extending(asyncio.current_task(), additional_time, replace=replace_ttl))
        return True

    async def reacquire(self) -> Literal[True]:
        """Make this task's lease end ``ttl`` from now."""
        return await self.extend(self.ttl, replace_ttl=True)

    async def locked(self) -> bool:
        """Return whether anybody holds the lock."""
        return (await self.store.run(commands.inspect(self.keys))).leased

    async def owned(self) -> bool:
        """Return whether this task holds the lock, as Redis sees it."""
        return await self.store.drive(self._owning(asyncio.current_task()))

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        owner = asyncio.current_task()
        lease = self._own(owner, "release")
        await self.store.drive(self._leaving(owner, lease, failed=kind is not None, wait=True))
