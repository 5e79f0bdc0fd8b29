"""The shell for threads: runs commands on a redis-py client, listens for offers, does the chores."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.steps import Listen, Pause, Run
from kraken_nonce_redis._core.waiting import ProcessState, doing
from kraken_nonce_redis._threads.connections import checked, connections
from kraken_nonce_redis._threads.drive import drive
from kraken_nonce_redis.errors import UNREACHABLE, StoreUnavailable, raise_from_redis
from kraken_nonce_redis.urls import SOCKET_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from redis.client import PubSub

    from kraken_nonce_redis._core.steps import Step
    from kraken_nonce_redis._core.waiting import Waiter
    from kraken_nonce_redis._redis.commands import Command
    from kraken_nonce_redis._threads.connections import Connections, Source

T = TypeVar("T")
_IDLE = 30.0
_LOOK_UP = 0.2


class _OfferListener:
    """The connection on which the server offers the lock to waiters. Whoever has the `turn` listens for all."""

    def __init__(self, connections: Connections, process_state: ProcessState) -> None:
        self.turn = threading.Lock()
        self._connections = connections
        self._process_state = process_state
        self._subscription: PubSub | None = None

    def open(self) -> None:
        """Begin to listen, anew if need be. Raises `StoreError`."""
        with self.turn:
            if self._process_state.listening:
                return
            try:
                try:
                    self._subscribe()
                except redis.ConnectionError:
                    self._subscribe()
            except BaseException as error:
                self._close()
                if isinstance(error, RedisError | OSError):
                    raise_from_redis(error, "subscribe", self._process_state.channel)
                raise

    def _subscribe(self) -> None:
        self._close()
        subscription = self._subscription = self._connections.pubsub()
        subscription.subscribe(self._process_state.channel)
        if subscription.connection is not None:
            subscription.connection.retry = Retry(NoBackoff(), 0)
        while not self._process_state.listening:
            message = subscription.get_message(timeout=SOCKET_TIMEOUT)
            if message is None:
                raise redis.TimeoutError("no answer to SUBSCRIBE")
            self._process_state.hear(message)

    def listen(self, seconds: float) -> None:
        """Listen for one offer, by whoever has the turn."""
        if self._subscription is None:
            return
        try:
            message = self._subscription.get_message(timeout=seconds)
        except BaseException as error:
            self._close()
            self._process_state.ask_again()
            if not isinstance(error, RedisError | OSError):
                raise
        else:
            if message is not None:
                self._process_state.hear(message)

    def _close(self) -> None:
        self._process_state.listening = False
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None


class Store:
    """One Redis, as the threads of this process share it.

    Commands go one at a time over one connection, in a cluster one for each node that has keys of ours, and offers
    come in over another one, however many threads there are.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.reset({})
        _stores.add(self)

    def reset(self, floors: dict[str, int]) -> None:
        """Begin anew, as a forked child must: it knows the parent's nonces, but holds and waits for nothing."""
        self.process_state = ProcessState(Agenda(self._chores_changed), floors=floors)
        self._connections = connections(self._source)
        self._turn = threading.Lock()
        self._busy: int | None = None
        self._failures: dict[object, int] = {}
        self._failed_for = 0.0
        self._threads = threading.Condition()
        self._listener = _OfferListener(self._connections, self.process_state)
        self._chores: threading.Thread | None = None

    # Commands

    def run(self, command: Command[T]) -> T:
        """Run a command and return its result. Raises `StoreError` and what the command's reply says."""
        node = self._connections.node(command)
        failures, entered, thread = self._failures.get(node), clock.now(), threading.get_ident()
        if self._busy == thread:
            raise StoreUnavailable(
                command.name,
                command.keys[0],
                "a signal handler has interrupted another command of this thread, which can't go on meanwhile; let the "
                "handler take a note only, and make the call outside of it",
            )
        with self._turn:
            self._busy = thread
            try:
                return self._run(command, node, failures, entered)
            finally:
                self._busy = None

    def _run(self, command: Command[T], node: object, failures: int | None, entered: float) -> T:
        """Run a command, alone; ``failures`` is how often its node had failed when the caller came."""
        began = clock.now()
        if self._failures.get(node) != failures and began - entered > self._failed_for / 2:
            # It failed for a caller ahead while this one stood in line: no need to wait for the timeout again.
            raise StoreUnavailable(command.name, command.keys[0], "Redis failed the call before, too")
        try:
            try:
                raw, acknowledged = self._connections.send(command, self.process_state.evalsha(command))
            except NoScriptError:
                raw, acknowledged = self._connections.send(command, self.process_state.eval(command))
        except RedisError as error:
            if isinstance(error, UNREACHABLE):
                self._failures[node] = self._failures.get(node, 0) + 1
                self._failed_for = clock.now() - began
            raise_from_redis(error, command.name, command.keys[0])
        result = command.result(raw)
        self.process_state.learn(command, result)
        if command.durability is not None:
            command.durability.check(command, acknowledged)
        return result

    def drive(self, flow: Generator[Any, Any, T], carry_out: Callable[[Any], Any] | None = None) -> T:
        """Carry out a flow's steps and return what it comes to. ``carry_out`` does those that are not Redis' matter."""
        return drive(flow, lambda step: self._carry_out(step, carry_out))

    def _carry_out(self, step: Step, other: Callable[[Any], Any] | None) -> Any:
        if isinstance(step, Run):
            return self.run(step.command)
        if isinstance(step, Pause):
            return self._pause(step.waiter, step.until)
        if other is not None and not isinstance(step, Listen):
            return other(step)
        try:
            return self._listener.open()
        finally:
            self.process_state.rouse()  # one who wanted to listen meanwhile has gone to sleep instead

    def _pause(self, waiter: Waiter, until: float | None) -> None:
        """Sleep until woken. The first to sleep listens for offers; leaving, it lets another one do so."""
        # A waiter that listens itself, as the only one of a process does, gets its offer without a switch of threads.
        turn = self._listener.turn
        waiter.signal = signal = threading.Event()
        try:
            while not waiter.woken:
                left = threading.TIMEOUT_MAX if until is None else until - clock.now()
                if left <= 0:
                    return
                if turn.acquire(blocking=False):
                    try:
                        self._listener.listen(min(left, _LOOK_UP))
                    finally:
                        turn.release()
                else:
                    signal.wait(min(left, threading.TIMEOUT_MAX))
                    signal.clear()
        finally:
            waiter.signal = None
            if not turn.locked():
                self.process_state.rouse()

    # Chores

    def _chores_changed(self) -> None:
        with self._threads:
            if self._chores is None or not self._chores.is_alive():
                self._chores = threading.Thread(target=self._do_chores, name="kraken-nonce-chores", daemon=True)
                self._chores.start()
            self._threads.notify()

    def _do_chores(self) -> None:
        agenda = self.process_state.agenda
        while True:
            chore = agenda.pop(clock.now())
            if chore is not None:
                self.drive(doing(agenda, chore))
                continue
            with self._threads:
                due = agenda.next_due()
                woken = self._threads.wait(_IDLE if due is None else max(0.0, due - clock.now()))
                if due is None and not woken:
                    self._chores = None
                    return


_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_by_client: weakref.WeakValueDictionary[int, Store] = weakref.WeakValueDictionary()
_by_client_lock = threading.Lock()


def _reset_in_child() -> None:
    global _by_client_lock  # noqa: PLW0603 - it may have been held by another thread of the parent
    _by_client_lock = threading.Lock()
    for store in _stores:
        for lease in store.process_state.held.values():
            lease._end()  # noqa: SLF001 - no other event ends a lease from outside
        store.reset(store.process_state.floors)


os.register_at_fork(after_in_child=_reset_in_child)


def store_for(source: Source) -> Store:
    """Return the store of a client, one per connection pool. Raises `InvalidArgument`."""
    source = checked(source)
    shared: object = source.connection_pool if isinstance(source, redis.Redis) else source
    with _by_client_lock:
        # The store keeps its client alive, so an id is not used again while its entry is there.
        store = _by_client.get(id(shared))
        if store is None:
            store = _by_client[id(shared)] = Store(source)
        return store
