"""The two shells that make a client's calls, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack

from kraken_nonce_redis import _address as address
from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import urls
from kraken_nonce_redis._arguments import DEFAULT_CALL_TIMEOUT, DEFAULT_PATIENCE, DEFAULT_WAIT_TIMEOUT
from kraken_nonce_redis._calls.call import LONGEST_CALL
from kraken_nonce_redis._calls.calls import Calls
from kraken_nonce_redis._core.steps import Sleep
from kraken_nonce_redis._threads.lock import CallLock, current_owner
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from kraken_nonce_redis.asyncio._store import leave_to_parent
from kraken_nonce_redis.errors import InvalidArgument
from kraken_nonce_redis.pace import CoolDowns
from kraken_nonce_redis.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kraken_nonce_redis._arguments import DeadlineOf, OnAbsent, OnUnknown
    from kraken_nonce_redis._calls.call import Call, Heard
    from kraken_nonce_redis._core.steps import Send
    from kraken_nonce_redis._core.wishes import LockSettings

LONGEST_TIMEOUT: Final = LONGEST_CALL / 2
"""The longest timeout of a request, in seconds: it may count twice, for connecting and reading, within one lease."""

_GIVEN: Final = (
    "wait_timeout",
    "call_timeout",
    "cool_downs",
    "retries",
    "on_unknown",
    "patience",
    "nonce_window",
    "deadline",
    "on_absent",
)
_COOL_DOWNS: Final = CoolDowns()
_RETRIES: Final = Retries()

LockType = TypeVar("LockType", CallLock, AsyncCallLock)


class _GuardCore(Generic[LockType]):
    """The settings of one exchange client, and its locks."""

    _lock_type: type[LockType]

    def __init__(
        self,
        *,
        redis: Any = None,
        wait_timeout: float | None = DEFAULT_WAIT_TIMEOUT,
        call_timeout: float = DEFAULT_CALL_TIMEOUT,
        cool_downs: CoolDowns = _COOL_DOWNS,
        retries: Retries = _RETRIES,
        on_unknown: OnUnknown = "settle",
        base_url: str | None = None,
        patience: float | None = DEFAULT_PATIENCE,
        nonce_window: int | None = None,
        deadline: DeadlineOf | None = None,
        on_absent: OnAbsent = "raise",
        **settings: Unpack[LockSettings],
    ) -> None:
        given = (
            wait_timeout,
            call_timeout,
            cool_downs,
            retries,
            on_unknown,
            patience,
            nonce_window,
            deadline,
            on_absent,
        )
        self._given = dict(zip(_GIVEN, given, strict=True)) | {"redis": redis} | settings
        self._redis = urls.or_environment(redis)
        self._settings = settings
        self._base_url = base_url
        self.call_timeout: Final = arguments.seconds("call_timeout", call_timeout, 0.001, LONGEST_TIMEOUT)
        self._locks: dict[str, LockType] = {}
        self._make_lock("any")  # so that a wrong setting shows now and not at the first call
        self._calls = Calls(
            retries=retries,
            on_unknown=on_unknown,
            wait_timeout=wait_timeout,
            pace=settings.get("pace"),
            cool_downs=cool_downs,
            on_event=settings.get("on_event"),
            patience=patience,
            nonce_window=nonce_window,
            deadline=deadline,
            on_absent=on_absent,
        )

    def address(self, own: str, *, explicit: bool = False) -> str:
        """Return the URL of Kraken that the client is to use: see `_address.chosen`. Raises `InvalidArgument`."""
        return address.chosen(self._base_url, own, explicit=explicit)

    def leave_journal(self) -> None:
        """Leave the calls of earlier holders to other processes: this one is only to look."""
        self._calls.inherits = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the settings: the copy has locks of its own, as another client has."""
        if not isinstance(self._redis, str):
            raise InvalidArgument(
                "redis",
                "a client of Redis can't be copied or go to another process: make the exchange client with a URL",
            )
        return _restore, (type(self), self._given)

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


def _restore(kind: Callable[..., Any], given: dict[str, Any]) -> Any:
    return kind(**given)


class Guard(_GuardCore[CallLock]):
    """Makes the private calls of one exchange client, one at a time. Takes `Options`."""

    _lock_type = CallLock

    def make(self, api_key: str, call: Call, send: Callable[[Send], Heard]) -> Any:
        """Make a call; return or raise what the client does, or raise as `Calls.calling`.

        ``send`` signs and sends one request. It is called for the call, for its repetitions, and for the questions that
        settle a call with an unknown outcome.
        """
        lock = self.lock(api_key)

        def carry_out(step: Send | Sleep) -> Heard | None:
            if isinstance(step, Sleep):
                time.sleep(step.seconds)
                return None
            return send(step)

        return lock.store.drive(self._calls.calling(lock, current_owner(), call), carry_out).unwrap()


class AsyncGuard(_GuardCore[AsyncCallLock]):
    """`Guard` for asyncio."""

    _lock_type = AsyncCallLock

    @staticmethod
    def leave_to_parent() -> None:
        """Leave connections to Redis to the parent, in a forked child, before anything is waited for there."""
        leave_to_parent()

    async def make(self, api_key: str, call: Call, send: Callable[[Send], Awaitable[Heard]]) -> Any:
        """Make a call, as `Guard.make`."""
        lock = self.lock(api_key)

        async def carry_out(step: Send | Sleep) -> Heard | None:
            if isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
                return None
            return await send(step)

        owner = asyncio.current_task()
        return (await lock.store.drive(self._calls.calling(lock, owner, call), carry_out)).unwrap()
