"""The lock around private calls, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias, Unpack

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.lease import LeaseCore
from kraken_nonce_redis._core.lock import LockCore
from kraken_nonce_redis._core.wishes import LockSettings, Wishes
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis.asyncio._connections import Target, checked
from kraken_nonce_redis.asyncio._store import store_for
from kraken_nonce_redis.errors import HoldTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from kraken_nonce_redis._arguments import Priority
    from kraken_nonce_redis._core.waiting import Acquired
    from kraken_nonce_redis.asyncio._connections import Client
    from kraken_nonce_redis.asyncio._store import Store

    _Holds: TypeAlias = Mapping[tuple[Store, str], "Lease"]


class Lease(LeaseCore):
    """The lock, held until its deadline; `kraken_nonce_redis.Lease` for asyncio. Only `extend` is a coroutine."""

    def __init__(self, store: Store, lock: CallLock, acquired: Acquired, owner: object) -> None:
        super().__init__(lock, acquired, owner)
        self.store = store

    async def extend(self, seconds: float) -> None:
        """Make the lease end ``seconds`` later, and give it fresh nonces. Raises `LeaseLost` and `StoreError`."""
        await self.store.drive(self._extending(seconds))


# The latest hold in this context or one that it was copied from, by store and state key. It may have ended.
_holds: Final[ContextVar[_Holds | None]] = ContextVar("holds", default=None)


class CallLock(LockCore[Lease]):
    """A lock that makes private calls of an API key run one at a time; `kraken_nonce_redis.CallLock` for asyncio.

    Arguments, meanings and errors are the same; ``redis`` is a client of redis.asyncio. Leases belong to tasks: a
    nested hold in the same task shares the lease, other tasks wait. A child task that was started inside a hold shares
    the lease, too: the holds in one hold, of its own task and of child tasks, take turns, and the last one to end
    releases the lock. A child task that asks when the hold has ended asks for itself. What `acquire` has taken, any
    task may release and extend with the same lock object. A lock may be made outside of an event loop, and each loop
    that uses it has its own connections.

    A task that is cancelled while it waits leaves nothing behind.
    """

    def __init__(self, redis: Client, api_key: str, **settings: Unpack[LockSettings]) -> None:
        self._begin(Target.of(checked(redis)), api_key, **settings)

    def _begin(self, target: Target, api_key: str, **settings: Unpack[LockSettings]) -> None:
        self._target = target
        self._acquired: list[Lease] = []
        """What was taken by `acquire`, the latest last."""
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
            await store.drive(self._leaving(lease, failed=failed))

    @property
    def lease(self) -> Lease | None:
        """The lease that this task holds, or None; the innermost if several holds are nested."""
        return self._held(asyncio.current_task())

    async def cool_down(self, seconds: float, reason: str) -> float:
        """Stop all calls of this key for a while, in all processes; return how many seconds are left of that.

        The longest cool-down counts. Waiters that would not wait that long get `CoolDown` at once.

        Args:
            seconds: from now, at most a day; 0 ends a cool-down.
            reason: what Kraken said; others see it.
        """
        return await self.store.drive(self.cooling_down(seconds, reason))

    async def reset_startup(self) -> None:
        """Make the next call open a new startup window, as after a pause."""
        await self.store.run(commands.reset_startup(self.keys))

    def _lease(self, acquired: Acquired, owner: object) -> Lease:
        return Lease(self.store, self, acquired, owner)

    def _around(self) -> Lease | None:
        lease = (_holds.get() or {}).get((self.store, self.keys.state))
        while lease is not None and lease.ended:
            lease = lease.outer
        return lease

    def _entered(self, lease: Lease) -> None:
        _holds.set({**(_holds.get() or {}), (self.store, self.keys.state): lease})

    def _mine(self, owner: object) -> Lease | None:
        store = self.store  # another one in another loop, and in a forked child
        acquired = (lease for lease in reversed(self._acquired) if not lease.ended and lease.store is store)
        return self._held(owner) or next(acquired, None)

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
            lease = await self.store.drive(self._holding(asyncio.current_task(), wishes))
        except HoldTimeout:
            return False
        self._acquired = [*(lease for lease in self._acquired if not lease.ended), lease]
        return True

    async def release(self) -> None:
        """Release what this task holds, or what another one has taken by `acquire` of this object.

        Raises `CallLockError`, `LeaseLost` and `StoreError`.
        """
        await self.store.drive(self._releasing(self._own(asyncio.current_task(), "release")))

    async def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:  # noqa: FBT001, FBT002
        """Make the lease that `release` would end end a number of seconds later, or that many seconds from now."""
        await self.store.drive(self._extending(asyncio.current_task(), additional_time, replace=replace_ttl))
        return True

    async def reacquire(self) -> Literal[True]:
        """Make the lease that `release` would end end ``ttl`` from now."""
        return await self.extend(self.ttl, replace_ttl=True)

    async def locked(self) -> bool:
        """Return whether anybody holds the lock."""
        return (await self.store.run(commands.inspect(self.keys))).leased

    async def ping(self) -> float:
        """Return how many seconds Redis took to answer: for a program's own probe. Nothing is changed or waited for.

        Redis runs scripts and takes writes then. Raises `StoreError`.
        """
        started = clock.now()
        await self.store.run(commands.ping(self.keys))
        return clock.now() - started

    async def owned(self) -> bool:
        """Return whether there is a lease that `release` would end, as Redis sees it."""
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
        lease = self._own(asyncio.current_task(), "release")
        await self.store.drive(self._leaving(lease, failed=kind is not None, wait=True))
