"""The lock around private calls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, Unpack

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.lease import LeaseCore
from kraken_nonce_redis._core.lock import LockCore
from kraken_nonce_redis._core.wishes import LockSettings, Wishes
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._threads.connections import client_from_url
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.errors import CallLockError, HoldTimeout

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from kraken_nonce_redis._arguments import Priority
    from kraken_nonce_redis._core.steps import Flow
    from kraken_nonce_redis._core.waiting import Acquired
    from kraken_nonce_redis._threads.connections import Source
    from kraken_nonce_redis._threads.store import Store


# In a thread that runs an event loop of asyncio, with the task, or None in a callback.
Owner: TypeAlias = threading.Thread | tuple[threading.Thread, asyncio.Task[Any] | None]


def current_owner() -> Owner:
    """Return who calls: the thread, together with the task if it runs an event loop.

    Where gevent or eventlet has patched `threading`, each greenlet is a thread.
    """
    thread = threading.current_thread()
    loop = asyncio._get_running_loop()  # noqa: SLF001 - the public function raises where none runs, as usual here
    return thread if loop is None else (thread, asyncio.current_task(loop))


class Lease(LeaseCore):
    """The lock, held until its deadline; `CallLock.hold` gives it. Each nested hold gives one of its own."""

    def __init__(self, store: Store, lock: CallLock, acquired: Acquired, owner: object) -> None:
        super().__init__(lock, acquired, owner)
        self._store = store

    def extend(self, seconds: float) -> None:
        """Let the lease end ``seconds`` later (at most an hour from now), and give it fresh nonces.

        It also revives a lease that ran out, as long as nobody has taken the lock since. Raises `LeaseLost` and
        `StoreError`.
        """
        self._store.drive(self._extending(seconds))


class CallLock(LockCore[Lease]):
    """A lock that lets one private call of an API key run at a time, over threads, processes and machines.

    First come, first served. Waiting costs no polling: the server offers the lock to the next waiter. Re-entrant: a
    nested hold in the same thread shares the lease, through any `CallLock` with equal connection settings and key.
    After a fork the child holds nothing.

    In coroutines, use `kraken_nonce_redis.asyncio`. If one uses this lock all the same, each task holds for itself,
    and one that would have to wait for another task of its thread gets `CallLockError`, since it would stop the loop
    that the other needs. Greenlets of gevent wait for each other.

    Besides `hold` it has the interface of `redis.lock.Lock`. It differs on purpose: it is re-entrant; waiting is not
    polling, so there is no ``sleep``; a lease always ends, so there is no lock without a timeout; a lease that ran
    out can be released and extended as long as nobody else has got the lock; and leases belong to threads, so they
    can't be handed from one to another by token.

    Args:
        redis: a redis-py client: `redis.Redis`, also one from Sentinel, or `redis.RedisCluster`.
        api_key: the Kraken API key. Only a digest of it leaves the process.
        ttl: length of a lease in seconds, 1 to 3600, by default 30. A holder that dies costs the others that much at
            most.
        scope: ``"key"`` (default): one call at a time for each API key. ``"global"``: one at a time, and one rising
            sequence of nonces, for all API keys of the namespace. All who share an API key need the same scope.
        pace: how often calls may start, by default as often as the lock is free; all who share the API key need the
            same.
        namespace: what the Redis keys begin with, by default ``kraken-nonce``; all who share the API key need the
            same.
        name: what people see of the holder and of who waits: 1 to 64 printable characters, and never the API key; by
            default ``KRAKEN_NONCE_NAME``, else host and process id.
        on_event: is called with what happens beside a hold, `kraken_nonce_redis.events`.
        durable: a `Durability` with ``every_nonce`` lets a lease begin only when so many replicas have it; by default
            none has to.
        trail: ``"all"`` notes each lease for ``kraken-nonce log --all``; by default only rare things.
    """

    def __init__(self, redis: Source, api_key: str, **settings: Unpack[LockSettings]) -> None:
        self.store = store_for(redis)
        super().__init__(lambda: self.store.process_state, api_key, **settings)

    @classmethod
    def from_url(cls, url: str, api_key: str, **settings: Unpack[LockSettings]) -> Self:
        """Return a lock for a URL, as `kraken_nonce_redis.urls` describes them.

        All objects of a process with the same URL share its connections, whose timeout is 3 s unless the URL says
        otherwise (``?socket_timeout=1``).
        """
        return cls(client_from_url(url), api_key, **settings)

    @contextlib.contextmanager
    def hold(
        self,
        timeout: float | None = None,
        cost: float = 0,
        priority: Priority = "normal",
        *,
        auto_renew: bool = False,
        startup_protection: bool = True,
    ) -> Generator[Lease]:
        """Hold the lock for the ``with`` block and give the block a `Lease`.

        Lock and nonces come in one round trip when the lock is free.

        Args:
            timeout: seconds to wait at most; None waits for ever, 0 not at all.
            cost: what the call costs of Kraken's REST counter, `Pace.cost_of`; without a pace it has no effect.
            priority: ``"high"`` goes before all waiting ``"normal"`` ones, but at most ten times in a row.
            auto_renew: renew the lease in the background, three times a ``ttl``, until the block ends.
            startup_protection: whether the startup window of the pace counts for this call.

        Within another hold of this thread the block gets a `Lease` of its own, with the same end and a later nonce.
        After a nested hold, the outer block takes `Lease.next_nonce`, since Kraken has seen a nonce above
        `Lease.nonce`.

        Raises `HoldTimeout` when the lock was not free in time (`CoolDown` when Kraken is the reason), `LeaseLost` for
        a nested hold when the lease has ended, `CallLockError` when another task of this thread holds the lock,
        `StoreError` when Redis can't be used, and, at the end of a block that did not fail by itself, `LeaseLost`
        when the block has outlived the lease and another caller has got the lock since. The answer to the release is
        not waited for while the lease lasts: a lease that was lost inside its term is told by a warning and by
        `LeaseEndedEarly`. When Redis fails at the end of the block, nothing is raised: the lock is given back in the
        background or ends with its lease.
        """
        owner = current_owner()
        wishes = Wishes(timeout, cost, priority, auto_renew, startup_protection)
        depth, failed = self._depth(owner), True
        try:
            lease = self.store.drive(self._holding(owner, wishes))
            try:
                yield lease
                failed = False
            finally:
                self.store.drive(self._leaving(lease, failed=failed))
        except BaseException:
            self._abandon(owner, depth)  # what an interruption has kept from being returned or released
            raise

    @property
    def lease(self) -> Lease | None:
        """The lease that this thread holds, or None; the innermost if several holds are nested."""
        return self._held(current_owner())

    def cool_down(self, seconds: float, reason: str) -> float:
        """Let no call of this key start for a while, in no process; return how many seconds that goes on.

        The longest cool-down counts. Waiters that would not wait so long get `CoolDown` at once.

        Args:
            seconds: from now, at most a day; 0 ends a cool-down.
            reason: what Kraken said; others see it.
        """
        return self.store.drive(self.cooling_down(seconds, reason))

    def reset_startup(self) -> None:
        """Let the next call open a new startup window, as after a silence."""
        self.store.run(commands.reset_startup(self.keys))

    def _lease(self, acquired: Acquired, owner: object) -> Lease:
        return Lease(self.store, self, acquired, owner)

    def _check_waiting(self, owner: object) -> None:
        if not isinstance(owner, tuple):
            return
        for (other, state), lease in list(self._process_state().held.items()):
            thread = other[0] if isinstance(other, tuple) else other
            if thread is owner[0] and state == self.keys.state and not lease.lost:
                raise CallLockError(
                    f"can't wait for the lock on {state}: another task of this thread holds it, and waiting would stop "
                    "the event loop that it needs to go on. In coroutines, use kraken_nonce_redis.asyncio",
                    state,
                )

    # The interface of redis.lock.Lock

    def acquire(
        self,
        blocking: bool = True,  # noqa: FBT001, FBT002 - as redis-py has it
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Take the lock for this thread; return whether that worked.

        Args:
            blocking: whether to wait.
            blocking_timeout: seconds to wait at most; None waits for ever.
            token: identifies the lease in Redis, instead of a generated id; 1 to 200 characters.
        """
        timeout = arguments.timeout(blocking_timeout, "blocking_timeout") if blocking else 0
        wishes = Wishes(timeout, token=arguments.token(token))
        owner = current_owner()
        depth = self._depth(owner)
        try:
            self.store.drive(self._holding(owner, wishes))
        except HoldTimeout:
            return False
        except BaseException:
            self._abandon(owner, depth)  # an interruption came when the lease was there
            raise
        return True

    def release(self) -> None:
        """Give the lock back. Raises `CallLockError`, `LeaseLost` and `StoreError`."""
        owner = current_owner()
        self._ending(owner, self._releasing(self._own(owner, "release")))

    def _ending(self, owner: object, flow: Flow[None]) -> None:
        """Carry out a flow that ends a hold; it also ends when the flow is interrupted before that."""
        depth = self._depth(owner)
        try:
            self.store.drive(flow)
        except BaseException:
            self._abandon(owner, depth - 1)
            raise

    def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:  # noqa: FBT001, FBT002
        """Let this thread's lease end so many seconds later, or that many seconds from now.

        Raises `CallLockError`, `LeaseLost` and `StoreError`.
        """
        self.store.drive(self._extending(current_owner(), additional_time, replace=replace_ttl))
        return True

    def reacquire(self) -> Literal[True]:
        """Let this thread's lease end ``ttl`` from now. Raises `CallLockError`, `LeaseLost` and `StoreError`."""
        return self.extend(self.ttl, replace_ttl=True)

    def locked(self) -> bool:
        """Return whether anybody holds the lock."""
        return self.store.run(commands.inspect(self.keys)).leased

    def ping(self) -> float:
        """Return how many seconds Redis took to answer: for a program's own probe. Nothing is changed or waited for.

        Redis runs scripts and takes writes then. Raises `StoreError`.
        """
        started = clock.now()
        self.store.run(commands.ping(self.keys))
        return clock.now() - started

    def owned(self) -> bool:
        """Return whether this thread holds the lock, as Redis sees it."""
        return self.store.drive(self._owning(current_owner()))

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        owner = current_owner()
        lease = self._own(owner, "release")
        self._ending(owner, self._leaving(lease, failed=kind is not None, wait=True))
