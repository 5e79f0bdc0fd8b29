"""What the adapters for exchange clients share: their settings, and the two shells that make calls."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis._arguments import DEFAULT_CALL_TIMEOUT, DEFAULT_NAMESPACE, DEFAULT_TTL, DEFAULT_WAIT_TIMEOUT
from kraken_nonce_redis._calls.call import LONGEST_CALL, Call
from kraken_nonce_redis._calls.calls import Calls
from kraken_nonce_redis._core.steps import Sleep
from kraken_nonce_redis._threads.lock import CallLock
from kraken_nonce_redis.asyncio import CallLock as AsyncCallLock
from kraken_nonce_redis.errors import IncompatibleClient, InvalidArgument
from kraken_nonce_redis.pace import CoolDowns
from kraken_nonce_redis.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kraken_nonce_redis._arguments import OnUnknown, Scope
    from kraken_nonce_redis._calls.call import Heard
    from kraken_nonce_redis._core.steps import Send
    from kraken_nonce_redis.durability import Durability
    from kraken_nonce_redis.events import Hook
    from kraken_nonce_redis.pace import Pace

URL_VARIABLES: Final = ("KRAKEN_NONCE_REDIS_URL", "REDIS_URL")
LONGEST_TIMEOUT: Final = LONGEST_CALL / 2
"""The longest timeout of a request, in seconds: it may count twice, for connecting and reading, within one lease."""

_COOL_DOWNS: Final = CoolDowns()
_RETRIES: Final = Retries()

LockType = TypeVar("LockType", CallLock, AsyncCallLock)


class Options(TypedDict, total=False):
    """Settings that all adapters take as keyword arguments.

    Attributes:
        redis: a client of redis-py (for an asyncio adapter, of redis.asyncio) or a URL; by default the URL in
            ``KRAKEN_NONCE_REDIS_URL``, then ``REDIS_URL``.
        ttl: length of a lease in seconds, 1 to 3600, by default 30; a call with a longer timeout extends its lease.
        scope: ``"key"`` (default): one call at a time for each API key; ``"global"``: for all of the namespace.
        namespace: what the Redis keys begin with; all who share the API key need the same.
        wait_timeout: seconds that a call waits at most, for its turn and between its attempts, by default 60; None
            waits for ever. What looks into a call with an unknown outcome comes on top.
        call_timeout: seconds for a request that has no timeout of its own, by default 10.
        pace: how often calls may start, a `Pace`; by default as often as the lock is free. What a call costs and
            whether it goes first follows from its method.
        cool_downs: how long nobody calls after Kraken's refusals, `kraken_nonce_redis.pace.CoolDowns`.
        retries: when a call is made again, `kraken_nonce_redis.retries.Retries`.
        on_unknown: what is done about a call that changes something and got no answer. ``"settle"`` (default): Kraken's
            lists of orders are asked, under the same lease. ``"raise"``: `OutcomeUnknown` at once. ``"replay"``: the
            same bytes are sent once more, then as ``"settle"``; that Kraken refuses them for their nonce if the first
            ones arrived is inferred and not documented.
        durable: how many replicas must have it when the nonce is raised after a refusal, or each lease: as for
            `CallLock` and `NonceAllocator`.
        on_event: is called with what happens beside a call, `kraken_nonce_redis.events`.
    """

    redis: Any
    ttl: float
    scope: Scope
    namespace: str
    wait_timeout: float | None
    call_timeout: float
    pace: Pace | None
    cool_downs: CoolDowns
    retries: Retries
    on_unknown: OnUnknown
    durable: bool | Durability
    on_event: Hook | None


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
        wait_timeout: float | None = DEFAULT_WAIT_TIMEOUT,
        call_timeout: float = DEFAULT_CALL_TIMEOUT,
        pace: Pace | None = None,
        cool_downs: CoolDowns = _COOL_DOWNS,
        retries: Retries = _RETRIES,
        on_unknown: OnUnknown = "settle",
        durable: bool | Durability = False,
        on_event: Hook | None = None,
    ) -> None:
        self._redis = url_from_environment() if redis is None else redis
        self._settings: dict[str, Any] = {
            "ttl": ttl,
            "scope": scope,
            "pace": pace,
            "namespace": namespace,
            "durable": durable,
        }
        self.call_timeout: Final = arguments.seconds("call_timeout", call_timeout, 0.001, LONGEST_TIMEOUT)
        self._locks: dict[str, LockType] = {}
        self._make_lock("any")  # so that a wrong setting shows now and not at the first call
        self._calls = Calls(
            retries=retries,
            on_unknown=on_unknown,
            wait_timeout=wait_timeout,
            pace=pace,
            cool_downs=cool_downs,
            on_event=on_event,
        )

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

        owner = threading.current_thread()
        return lock._store.drive(self._calls.calling(lock, owner, call), carry_out).unwrap()


class AsyncGuard(_GuardCore[AsyncCallLock]):
    """`Guard` for asyncio."""

    _lock_type = AsyncCallLock

    async def make(self, api_key: str, call: Call, send: Callable[[Send], Awaitable[Heard]]) -> Any:
        """Make a call, as `Guard.make`."""
        lock = self.lock(api_key)

        async def carry_out(step: Send | Sleep) -> Heard | None:
            if isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
                return None
            return await send(step)

        owner = asyncio.current_task()
        return (await lock._store.drive(self._calls.calling(lock, owner, call), carry_out)).unwrap()


def refuse_repeats(session: Any, url: str) -> None:
    """Make sure that a session of requests sends a request once. Raises `IncompatibleClient`.

    A transport that repeats a POST by itself makes an order's second copy look like one that was refused for its nonce,
    so that it would be made once more.
    """
    try:
        retry = session.get_adapter(url).max_retries
        repeats = retry.is_retry("POST", 503) or (retry.total and retry._is_method_retryable("POST"))
    except AttributeError:
        return  # not of requests; it may have no such thing
    if repeats:
        raise IncompatibleClient(
            type(session).__qualname__,
            "it repeats POST requests by itself (urllib3's Retry with allowed_methods), so an order could be placed "
            "twice; mount an adapter that does not, and leave repeating to retries",
        )


def url_from_environment() -> str:
    """Return the URL of the Redis to use, from the environment. Raises `InvalidArgument`."""
    for variable in URL_VARIABLES:
        url = os.environ.get(variable)
        if url:
            return url
    raise InvalidArgument(
        "redis", f"give a client or a URL, or set one of {', '.join(URL_VARIABLES)} in the environment"
    )
