"""The shell for asyncio: what `kraken_nonce_redis._threads.store` is for threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis._core import closing
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._core.steps import Listen, Pause, Run, Tell
from kraken_nonce_redis._redis.pipeline import Slot
from kraken_nonce_redis.asyncio._drive import drive
from kraken_nonce_redis.asyncio._pipe import disown
from kraken_nonce_redis.errors import KrakenNonceError, StoreUnavailable, from_redis, raise_from_redis
from kraken_nonce_redis.urls import SOCKET_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Hashable, Sequence

    from redis.asyncio.client import PubSub

    from kraken_nonce_redis._core.agenda import Chore
    from kraken_nonce_redis._core.steps import Step
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis.asyncio._connections import Target
    from kraken_nonce_redis.asyncio._pipe import Pipe

T = TypeVar("T")
logger = logging.getLogger("kraken_nonce_redis")

_IDLE = 300.0
"""Seconds after which a connection that nobody uses is closed."""
_AT_END = 1.0
_AGAIN = 1.0
_STORES = "_kraken_nonce_stores"


class Store:
    """One Redis, as the tasks of one event loop share it, for as long as the loop runs."""

    def __init__(self, target: Target) -> None:
        process = _process.current()
        self.process = process
        self.loop = asyncio.get_running_loop()
        with process.turn:
            process.loop_stores.add(self)
        floors = process.places.floors(target.place)
        place = target.place
        self.process_state = ProcessState(
            Agenda(self._chores_changed), self.loop.call_soon, place.shown, divided=place.is_divided, floors=floors
        )
        self._connections = target.connect(process.places, self.process_state)
        self._listener: _OfferListener | None = None
        self._chores: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._told: list[str] = []
        """The state keys of releases whose answer has not come yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: AsyncGenerator[None] | None = None

    # Commands

    async def run(self, command: Command[T]) -> T:
        """Run a command and return its result. Raises `StoreError` and what the command's reply says."""
        telling.refuse_observers(command.name, command.keys[0])
        if self._end is None:
            await self._look_out_for_the_end()
        if self._idle is None:
            self._idle = self.loop.call_later(_IDLE, self._close_idle)
        if command.durability is not None:  # it takes another connection
            while command.keys[0] in self._told:  # noqa: ASYNC110 - told by a callback
                await asyncio.sleep(0.001)
        for release in self.process_state.owed(command):
            await self._run(replace(release, until=command.until))
            self.process_state.returned(release)
        return await self._run(command)

    async def _run(self, command: Command[T], *, whole: bool = False) -> T:
        try:
            try:
                return self._result(command, await self._send(command, whole=whole))
            except NoScriptError:
                return self._result(command, await self._send(command, whole=True))
        except (RedisError, OSError) as error:
            self.process_state.missed(command, error)
            raise_from_redis(error, command.name, command.key_of(error))

    async def _send(self, command: Command[Any], *, whole: bool) -> Sequence[Any]:
        try:
            request = functools.partial(self.process_state.request, command, whole=whole)
            return await self._connections.send(command, request)
        except (RedisError, OSError):  # a caller that is cancelled leaves the connection as it is
            command.late = True
            raise

    def _result(self, command: Command[T], replies: Sequence[Any]) -> T:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        result = command.result(replies[0])
        self.process_state.learn(command, result)
        if command.durability is not None:
            command.durability.check(command, replies[1])
        return result

    async def tell(self, step: Tell) -> None:
        """Hand a command to the kernel and go on; what it comes to is told the step when it is known."""
        pipe = self._connections.pipe(step.command)
        if pipe is None or not pipe.is_open or self.process_state.owed(step.command):
            step.answered(await self.run(step.command))
        else:
            key = step.command.keys[0]
            self._told.append(key)

            def answered(result: Any) -> None:
                self._told.remove(key)
                step.answered(result)

            def lost(_: Exception) -> None:
                self._told.remove(key)
                step.lost()

            self._begin(pipe, step.command, answered, lost)

    def _begin(
        self, pipe: Pipe, command: Command[T], answered: Callable[[T], object], failed: Callable[[Exception], object]
    ) -> None:
        def on_done(slot: Slot) -> None:
            command.repeated |= slot.sent > 1
            try:
                result = self._result(command, slot.outcome())
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not strike the others' replies
                failed(error)
            else:
                pipe.scripts.add(command.name)
                answered(result)

        # Nobody waits to send it whole when the server lacks the script.
        whole = command.name not in pipe.scripts
        request = functools.partial(self.process_state.request, command, whole=whole)
        pipe.begin(Slot(request(), command.due, on_done, request))

    async def drive(self, flow: Generator[Any, Any, T], carry_out: Callable[[Any], Awaitable[Any]] | None = None) -> T:
        """Carry out a flow's steps and return what it comes to. ``carry_out`` does those that are not Redis' matter."""
        return await drive(flow, self._carry_out, carry_out)

    async def _carry_out(self, step: Step, other: Callable[[Any], Awaitable[Any]] | None) -> Any:
        match step:
            case Run(command):
                return await self.run(command)
            case Tell():
                return await self.tell(step)
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
        if listener is None or listener.task.done() or (listener.ready.is_set() and not self.process_state.listening):
            if listener is not None:
                listener.task.cancel()
            listener = self._listener = _OfferListener(self)
        await listener.ready.wait()
        if listener.failure is not None:
            raise listener.failure

    def pubsub(self) -> PubSub:
        """Return what to subscribe with, with a pool of its own."""
        return self._connections.pubsub()

    # Chores

    def _chores_changed(self) -> None:
        if self.process is not _process.current():
            return
        due = self.process_state.agenda.next_due()
        if due is not None and (self._chores is None or self._chores.when() > self._time(due)):
            if self._chores is not None:
                self._chores.cancel()
            self._chores = self.loop.call_at(self._time(due), self._do_chores)

    def _time(self, due: float) -> float:
        """Return a time of `clock.now` as one of the loop."""
        return self.loop.time() + max(0.0, due - clock.now())

    def _do_chores(self) -> None:
        """Do what is due. No task does it that could be cancelled, but where connecting takes one."""
        self._chores = None
        if self.process is not _process.current():
            return
        while (chore := self.process_state.agenda.pop(clock.now())) is not None:
            self._do(chore)
        self._chores_changed()

    def _do(self, chore: Chore) -> None:
        try:
            self._begin_chore(chore)
        except Exception:
            logger.exception("What is done beside the callers has failed; it is tried again")
            self._again(chore, clock.now() + _AGAIN)

    def _begin_chore(self, chore: Chore) -> None:
        command = chore.command(clock.now())
        if command is None:
            return
        pipe = self._connections.pipe(command)
        if pipe is not None and pipe.is_open:
            self._begin(
                pipe,
                command,
                lambda result: self._done(chore, lambda: chore.succeeded(command, result, clock.now())),
                lambda error: self._do_by_task(chore, command, whole=isinstance(error, NoScriptError)),
            )
        else:
            self._do_by_task(chore, command)

    def _do_by_task(self, chore: Chore, command: Command[Any], *, whole: bool = False) -> None:
        task = self.loop.create_task(self._run(command, whole=whole), name="kraken-nonce-chore")
        self._tasks.add(task)

        def on_done(_: object) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                self._again(chore, clock.now() + _AGAIN)
                return
            error = task.exception()
            if isinstance(error, KrakenNonceError):
                self._done(chore, lambda: chore.failed(error, clock.now()))
            elif error is not None:
                logger.error("What is done beside the callers has failed; it is tried again", exc_info=error)
                self._again(chore, clock.now() + _AGAIN)
            else:
                self._done(chore, lambda: chore.succeeded(command, task.result(), clock.now()))

        task.add_done_callback(on_done)

    def _done(self, chore: Chore, take: Callable[[], float | None]) -> None:
        try:
            due = take()
        except Exception:
            logger.exception("What is done beside the callers has failed; it is tried again")
            due = clock.now() + _AGAIN
        if due is not None:
            self._again(chore, due)

    def _again(self, chore: Chore, due: float) -> None:
        if not self.loop.is_closed():
            self.process_state.agenda.add(due, chore)

    def _close_idle(self) -> None:
        """Close what nobody has used for long, and look again as long as anything is open."""
        self._idle = None
        for pipe in self._connections.pipes:
            if pipe.is_open and pipe.idle_since + _IDLE <= clock.now():
                pipe.close()
        due = min(
            (pipe.idle_since + _IDLE for pipe in self._connections.pipes if pipe.is_open or pipe.due), default=None
        )
        if due is not None:
            self._idle = self.loop.call_at(self._time(due), self._close_idle)

    # The end

    def disown(self) -> None:
        """Leave everything to the parent, in a forked child that goes on with its parent's loop and so with its tasks.

        Those of them that wait here are told; they would act in their parent's name.
        """
        for timer in (self._chores, self._idle):
            if timer is not None:
                timer.cancel()
        if self._listener is not None:
            self._listener.disown()
        for pipe in self._connections.pipes:
            pipe.disown()
        self.process_state.fail(StoreUnavailable("acquire", "", "this process is a forked child of the one that waits"))

    async def _look_out_for_the_end(self) -> None:
        """See to it that `close` is called when the loop ends: it then closes the generators that were begun in it."""

        async def until_the_end() -> AsyncGenerator[None]:
            try:
                yield
            finally:
                await self.close(at_end=True)

        self._end = until_the_end()
        await anext(self._end)

    async def close(self, *, at_end: bool = False) -> None:
        """Give back what nobody needs any more, hear the answers that are due, and close the connections.

        It takes a second at most. What callers hold stays theirs: with the next command the connections open again.

        Args:
            at_end: whether the loop ends, so that nothing is done beside callers any more.
        """
        if self.process is not _process.current():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AT_END):
                left_behind = self.process_state.left_behind(at_end=at_end or _process.current().closing)
                await asyncio.gather(*map(self._give_back, left_behind))
                while any(pipe.due for pipe in self._connections.pipes):  # noqa: ASYNC110 - some of several
                    await asyncio.sleep(0.001)
        for timer in (self._chores, self._idle):
            if timer is not None:
                timer.cancel()
        self._chores = self._idle = None
        if self._listener is not None:
            self._listener.task.cancel()
            await asyncio.wait([self._listener.task], timeout=_AT_END)
            self._listener = None
        if at_end:
            for pipe in self._connections.pipes:
                await pipe.end()
        await self._connections.close()
        if not at_end:
            self._chores_changed()

    async def give_up(self) -> int:
        """Give up what tasks hold, close the connections, and return how many leases that were."""
        given_up = closing.give_up(self.process_state)
        await self.close()
        return given_up

    async def _give_back(self, release: Command[Any]) -> None:
        try:
            await self._run(release)
        except Exception as error:  # noqa: BLE001 - a credential provider may raise anything
            logger.warning("%s could not be given back: %s", release.keys[0], error)
        else:
            self.process_state.returned(release)


async def _set_before(event: asyncio.Event, until: float | None) -> None:
    """Wait for an event, until a time of `clock.now` at most."""
    # Up to Python 3.11 asyncio.wait_for loses a cancellation that comes when its work ends.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if until is None else until - clock.now()):
            await event.wait()


class _OfferListener:
    """Takes offers from the server and wakes the waiters they are for; ends on an error, or when nobody waits long."""

    def __init__(self, store: Store) -> None:
        self.ready = asyncio.Event()
        self.failure: Exception | None = None
        self._store = store
        self._subscription: PubSub | None = None
        self._process_state = store.process_state
        self.task = asyncio.create_task(self._run(), name="kraken-nonce-listener")
        self.task.add_done_callback(self._ended)

    async def _run(self) -> None:
        try:
            await self._listen()
        except RedisConnectionError:
            if self.ready.is_set():
                raise
            await self._listen()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Tell callers that it has ended, even if the task was cancelled before it started."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, RedisError | OSError):
            self.failure = from_redis(error, "subscribe", self._process_state.channel)
            self.failure.__cause__ = error
        elif isinstance(error, Exception):
            self.failure = error
        self._process_state.listening = False
        self._process_state.ask_again()
        self.ready.set()

    def disown(self) -> None:
        """Leave the connection to the parent, in a forked child."""
        if self._subscription is not None and self._subscription.connection is not None:
            disown(self._subscription.connection)
        self.task.cancel()

    async def _listen(self) -> None:
        subscription = self._subscription = self._store.pubsub()
        try:
            await subscription.subscribe(self._process_state.channel)
            while self.ready.is_set() or await self._confirmed(subscription):
                _heed()
                message = await subscription.get_message(timeout=_IDLE)
                if message is not None:
                    self._process_state.hear(message)
                elif not self._process_state.anyone_waits:
                    return
        finally:
            # Before 5.0.1 redis-py had only close(), which later versions call deprecated.
            await getattr(subscription, "aclose", subscription.close)()
            # A connection that was cancelled while it was made may have gone back to the pool, open.
            await subscription.connection_pool.disconnect()

    async def _confirmed(self, subscription: PubSub) -> bool:
        message = await subscription.get_message(timeout=SOCKET_TIMEOUT)
        if message is None:
            raise RedisTimeoutError("no answer to SUBSCRIBE")
        self._process_state.hear(message)
        self.ready.set()
        return True


def _heed() -> None:
    """Raise a cancellation that was swallowed.

    Up to Python 3.11 asyncio.wait_for, with which redis-py sends, does that when its work ends in the same moment.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def store_for(target: Target) -> Store:
    """Return the running loop's store for a target, the same for all with equal connection settings."""
    # A weak dictionary by loop would keep both forever, since a store holds its loop.
    stores: dict[Hashable, Store] = asyncio.get_running_loop().__dict__.setdefault(_STORES, {})
    store = stores.get(target.key)
    if store is None or store.process is not _process.current():
        leave_to_parent()
        store = stores[target.key] = Store(target)
    return store


def leave_to_parent() -> None:
    """Leave to the parent what the running loop has open, in a forked child that goes on with its parent's loop."""
    stores: dict[Hashable, Store] = asyncio.get_running_loop().__dict__.get(_STORES, {})
    for key, former in list(stores.items()):
        if former.process is not _process.current():
            del stores[key]
            former.disown()


async def aclose() -> None:
    """Release what is no longer needed and close the connections of the running loop, within a second.

    Callers keep what they hold. Objects open new connections when they are used again.
    """
    await asyncio.gather(*(store.close() for store in stores()))


def stores() -> list[Store]:
    """Return the running loop's stores."""
    by_key: dict[Hashable, Store] = asyncio.get_running_loop().__dict__.get(_STORES, {})
    return list(by_key.values())
