"""The shell for asyncio: what `kraken_nonce_redis._threads.store` is for threads."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.steps import Listen, Pause, Run
from kraken_nonce_redis._core.waiting import ProcessState, doing
from kraken_nonce_redis.asyncio._connections import connections
from kraken_nonce_redis.asyncio._drive import drive
from kraken_nonce_redis.errors import UNREACHABLE, StoreError, StoreUnavailable, from_redis, raise_from_redis
from kraken_nonce_redis.urls import SOCKET_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from redis.asyncio.client import PubSub

    from kraken_nonce_redis._core.steps import Step
    from kraken_nonce_redis._redis.commands import Command
    from kraken_nonce_redis.asyncio._connections import Client

T = TypeVar("T")
_IDLE = 30.0


class Store:
    """One Redis, as the tasks of one event loop share it, over two connections, or a few more in a cluster."""

    def __init__(self, source: Client | str) -> None:
        self.source = source
        self.process_state = ProcessState(Agenda(self._chores_changed))
        self.connections = connections(source)
        self._turn = asyncio.Lock()
        self._failures: dict[object, int] = {}
        self._failed_for = 0.0
        self._changed = asyncio.Event()
        self._listener: _OfferListener | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._loop_ends = False

    # Commands

    async def run(self, command: Command[T]) -> T:
        """Run a command and return its result. Raises `StoreError` and what the command's reply says."""
        if self._keeper is None and not self._loop_ends:
            self._keeper = asyncio.create_task(self._keep(), name="kraken-nonce-chores")
        node = self.connections.node(command)
        failures, entered, cancellations = self._failures.get(node), clock.now(), _cancellations()
        async with self._turn:
            began = clock.now()
            if self._failures.get(node) != failures and began - entered > self._failed_for / 2:
                # It failed for a caller ahead while this one stood in line: no need to wait for the timeout again.
                raise StoreUnavailable(command.name, command.keys[0], "Redis failed the call before, too")
            try:
                try:
                    raw, acknowledged = await self.connections.send(command, self.process_state.evalsha(command))
                except NoScriptError:
                    raw, acknowledged = await self.connections.send(command, self.process_state.eval(command))
            except RedisError as error:
                if isinstance(error, UNREACHABLE):
                    self._failures[node] = self._failures.get(node, 0) + 1
                    self._failed_for = clock.now() - began
                raise_from_redis(error, command.name, command.keys[0])
            finally:
                if self._loop_ends:
                    await self.connections.close()
            result = command.result(raw)
            self.process_state.learn(command, result)
            if command.durability is not None:
                command.durability.check(command, acknowledged)
        _heed(cancellations)
        return result

    async def drive(self, flow: Generator[Any, Any, T], carry_out: Callable[[Any], Awaitable[Any]] | None = None) -> T:
        """Carry out a flow's steps and return what it comes to. ``carry_out`` does those that are not Redis' matter."""
        return await drive(flow, lambda step: self._carry_out(step, carry_out))

    async def _carry_out(self, step: Step, other: Callable[[Any], Awaitable[Any]] | None) -> Any:
        match step:
            case Run(command):
                return await self.run(command)
            case Pause(waiter, until):
                waiter.signal = signal = asyncio.Event()
                if not waiter.woken:
                    await _set_before(signal, until)
                return None
            case Listen():
                return await self._listen()
            case _:
                assert other is not None  # noqa: S101 - only flows of calls have such steps
                return await other(step)

    # Offers

    async def _listen(self) -> None:
        listener = self._listener
        if listener is None or (listener.ready.is_set() and not self.process_state.listening):
            if listener is not None:
                listener.task.cancel()
            listener = self._listener = _OfferListener(self)
        await listener.ready.wait()
        if listener.failure is not None:
            raise listener.failure

    # Chores

    def _chores_changed(self) -> None:
        self._changed.set()

    async def _keep(self) -> None:
        """Do the chores as long as the loop runs; at its end, close the connection."""
        agenda = self.process_state.agenda
        try:
            while True:
                chore = agenda.pop(clock.now())
                if chore is not None:
                    await self.drive(doing(agenda, chore))
                    continue
                self._changed.clear()
                await _set_before(self._changed, agenda.next_due())
        finally:
            # Tasks that are cancelled beside this one may still have something to give back.
            self._loop_ends = True
            if not self._turn.locked():
                await self.connections.close()


def _cancellations() -> int:
    """Return how often the running task was asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _heed(cancellations: int) -> None:
    """Raise a cancellation that was swallowed since there were so many.

    Up to Python 3.11 asyncio.wait_for, with which redis-py sends, does that when its work ends in the same moment.
    """
    if _cancellations() > cancellations:
        raise asyncio.CancelledError


async def _set_before(event: asyncio.Event, until: float | None) -> None:
    """Wait for an event, until a time of `clock.now` at most."""
    # Not by asyncio.wait_for, for the reason given in _heed.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if until is None else until - clock.now()):
            await event.wait()


class _OfferListener:
    """Takes the server's offers and wakes whom they are for; ends on an error, or when nobody has waited long."""

    def __init__(self, store: Store) -> None:
        self.ready = asyncio.Event()
        self.failure: StoreError | None = None
        self._connections = store.connections
        self._process_state = store.process_state
        self.task = asyncio.create_task(self._run(), name="kraken-nonce-listener")

    async def _run(self) -> None:
        try:
            try:
                await self._listen()
            except RedisConnectionError:
                if self.ready.is_set():
                    raise
                await self._listen()
        except (RedisError, OSError) as error:
            self.failure = from_redis(error, "subscribe", self._process_state.channel)
        finally:
            self._process_state.listening = False
            self._process_state.ask_again()
            self.ready.set()

    async def _listen(self) -> None:
        subscription = self._connections.pubsub()
        try:
            await subscription.subscribe(self._process_state.channel)
            if subscription.connection is not None:
                subscription.connection.retry = Retry(NoBackoff(), 0)
            while self.ready.is_set() or await self._confirmed(subscription):
                _heed(0)
                message = await subscription.get_message(timeout=_IDLE)
                if message is not None:
                    self._process_state.hear(message)
                elif not self._process_state.anyone_waits:
                    return
        finally:
            # Before 5.0.1 redis-py had only close(), which later versions call deprecated.
            await getattr(subscription, "aclose", subscription.close)()

    async def _confirmed(self, subscription: PubSub) -> bool:
        message = await subscription.get_message(timeout=SOCKET_TIMEOUT)
        if message is None:
            raise RedisTimeoutError("no answer to SUBSCRIBE")
        self._process_state.hear(message)
        self.ready.set()
        return True


_stores: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, Store]] = weakref.WeakKeyDictionary()


def store_for(source: Client | str) -> Store:
    """Return the running loop's store of a client (one per connection pool) or URL."""
    stores = _stores.setdefault(asyncio.get_running_loop(), {})
    if isinstance(source, str):
        key: object = source
    else:
        key = id(source if isinstance(source, RedisCluster) else source.connection_pool)
    store = stores.get(key)
    if store is None:
        store = stores[key] = Store(source)
    return store
