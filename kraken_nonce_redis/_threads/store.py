"""The shell for threads: runs commands, listens for offers, does the chores."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import redis
from redis.exceptions import NoScriptError, RedisError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process
from kraken_nonce_redis import _telling as telling
from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._core.steps import Listen, Pause, Run, Tell
from kraken_nonce_redis._redis.pipeline import Slot
from kraken_nonce_redis._threads.connections import Target, checked
from kraken_nonce_redis._threads.drive import drive
from kraken_nonce_redis._threads.role import Role
from kraken_nonce_redis.errors import KrakenNonceError, StoreUnavailable, StoreUnsupported, raise_from_redis
from kraken_nonce_redis.urls import SOCKET_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from redis.client import PubSub

    from kraken_nonce_redis._core.agenda import Chore
    from kraken_nonce_redis._core.steps import Step
    from kraken_nonce_redis._core.waiters import Waiter
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._threads.connections import Connections, Source
    from kraken_nonce_redis._threads.pipe import Pipe

T = TypeVar("T")
logger = logging.getLogger("kraken_nonce_redis")
_IDLE = 300.0
"""Seconds after which a connection that nobody uses is closed."""
_LOOK_UP = 0.2
_TEND = 0.25
"""Seconds after which answers are looked at that nobody waits for."""
_AT_EXIT = 1.0
_AGAIN = 1.0


class _Visitor:
    """Who opens or closes the connection for offers and does not listen."""

    left = False


class _OfferListener:
    """The connection on which the server offers the lock to waiters. Whoever has the `role` listens for all."""

    def __init__(self, connections: Connections, process_state: ProcessState) -> None:
        self.role = Role()
        self.used = clock.now()
        self._opening = threading.Lock()
        self._connections = connections
        self._process_state = process_state
        self._subscription: PubSub | None = None

    def open(self) -> None:
        """Begin to listen, anew if need be. Raises `StoreError`."""
        # Who comes meanwhile waits for this alone: the next listener keeps the role for as long as it waits.
        with self._opening:
            if self._process_state.listening:
                return
            visitor = _Visitor()
            try:
                while not self.role.take(visitor):
                    time.sleep(_LOOK_UP / 100)  # a listener is about to hear that its connection is no good
                try:
                    self._subscribe()
                except redis.ConnectionError:
                    self._subscribe()
            except BaseException as error:
                self._close()
                if isinstance(error, RedisError | OSError):
                    raise_from_redis(error, "subscribe", self._process_state.channel)
                raise
            finally:
                self.role.leave(visitor)

    def _subscribe(self) -> None:
        self._close()
        subscription = self._subscription = self._connections.pubsub()
        subscription.subscribe(self._process_state.channel)
        while not self._process_state.listening:
            message = subscription.get_message(timeout=SOCKET_TIMEOUT)
            if message is None:
                raise redis.TimeoutError("no answer to SUBSCRIBE")
            self._process_state.hear(message)

    def listen(self, seconds: float) -> None:
        """Listen for one offer, by whoever has the role."""
        if self._subscription is None:
            self._process_state.ask_again()  # then somebody opens it
            return
        self.used = clock.now()
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

    def close(self) -> None:
        """Stop listening unless somebody does; whoever waits has to ask again."""
        visitor = _Visitor()
        try:
            if self.role.take(visitor):
                self._close()
                self._process_state.ask_again()
        finally:
            self.role.leave(visitor)

    @property
    def idle_since(self) -> float:
        """When somebody listened last."""
        return self.used

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._subscription is not None

    def _close(self) -> None:
        self._process_state.listening = False
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()


class Store:
    """One Redis, as the threads of this process share it, for as long as the process lives."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._process: _process.Process | None = None
        self._process_state: ProcessState
        self._connections: Connections
        self._listener: _OfferListener
        self._busy: set[int]
        """The threads that run a command, or begin to listen."""
        self._chores_threads: set[int]
        """The threads that do chores."""
        self._chores_turn: threading.Condition
        self._chores: threading.Thread | None
        self._tend_at: float | None
        self._told: dict[str, tuple[Pipe, Slot]]
        """By state key, the latest release whose answer nobody has heard yet."""
        self._closed: threading.Event | None
        """Set when what somebody waits for in `close` is done."""
        self._ended = False
        """Whether the process ends, so that its daemon threads get nothing any more."""

    @property
    def process_state(self) -> ProcessState:
        """What this process knows."""
        self._look_at_process()
        return self._process_state

    def _look_at_process(self) -> None:
        """Begin anew in a new process, which knows its parent's nonces, but holds and waits for nothing."""
        process = _process.current()
        if self._process is not process:
            with process.turn:
                if self._process is not process:
                    self._begin(process)

    def _begin(self, process: _process.Process) -> None:
        _refuse_half_patched()
        floors = process.places.floors(self._target.place)
        place = self._target.place
        self._process_state = ProcessState(
            Agenda(self._chores_changed), _in_a_thread, place.shown, divided=place.is_divided, floors=floors
        )
        self._connections = self._target.connect(process.places, self._process_state)
        self._listener = _OfferListener(self._connections, self._process_state)
        self._busy = set()
        self._chores_threads = set()
        self._chores_turn = threading.Condition()
        self._chores = None
        self._tend_at = None
        self._told = {}
        self._closed = None
        self._ended = False
        self._process = process
        finalizers = sys.modules.get("multiprocessing.util")
        if finalizers is not None:
            # Processes of multiprocessing end without the functions of atexit.
            finalizers.Finalize(None, _end, exitpriority=0)

    # Commands

    def run(self, command: Command[T]) -> T:
        """Run a command and return its result. Raises `StoreError` and what the command's reply says."""
        self._look_at_process()
        telling.refuse_observers(command.name, command.keys[0])
        thread = threading.get_ident()
        if thread in self._busy or thread in self._chores_threads:
            raise _interrupted(command)
        try:
            self._busy.add(thread)
            if self._chores is None:
                self._chores_changed()  # if only to give back at the end, and to close what nobody uses any more
            if self._ended and command.name == "acquire" and threading.current_thread().daemon:
                self._stand_still(thread)
            if command.durability is not None and command.keys[0] in self._told:
                self._hear(*self._told[command.keys[0]])  # it takes another connection
            for release in self._process_state.owed(command):
                self._run(replace(release, until=command.until))
                self._process_state.returned(release)
            return self._run(command)
        finally:
            self._busy.discard(thread)

    def _stand_still(self, thread: int) -> NoReturn:
        """Keep a daemon thread from asking for what nobody would give back; the end of the process stops it anyway."""
        self._busy.discard(thread)
        while True:
            time.sleep(threading.TIMEOUT_MAX)

    def _run(self, command: Command[T], *, whole: bool = False) -> T:
        try:
            try:
                return self._result(command, self._send(command, whole=whole))
            except NoScriptError:
                return self._result(command, self._send(command, whole=True))
        except (RedisError, OSError) as error:
            self._process_state.missed(command, error)
            raise_from_redis(error, command.name, command.key_of(error))

    def _send(self, command: Command[Any], *, whole: bool) -> Sequence[Any]:
        try:
            request = functools.partial(self._process_state.request, command, whole=whole)
            return self._connections.send(command, request)
        except BaseException:
            command.late = True  # an interruption may have struck the one who read or wrote
            raise

    def _result(self, command: Command[T], replies: Sequence[Any]) -> T:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        result = command.result(replies[0])
        self._process_state.learn(command, result)
        if command.durability is not None:
            command.durability.check(command, replies[1])
        return result

    def tell(self, step: Tell) -> None:
        """Hand a command to the kernel and go on; what it comes to is told the step when it is known."""
        thread = threading.get_ident()
        if thread in self._busy or thread in self._chores_threads:
            raise _interrupted(step.command)
        pipe = self._connections.pipe(step.command)
        if pipe is None or self._process_state.owed(step.command):
            step.answered(self.run(step.command))
            return

        def on_done(slot: Slot) -> None:
            step.command.repeated |= slot.sent > 1
            self._told.pop(step.command.keys[0], None)
            try:
                result = self._result(step.command, slot.outcome())
            except Exception:  # noqa: BLE001 - whatever it is, it must not strike who reads for everyone
                step.lost()
            else:
                pipe.scripts.add(step.command.name)
                step.answered(result)

        # Nobody waits to send it whole when the server lacks the script.
        whole = step.command.name not in pipe.scripts
        request = functools.partial(self._process_state.request, step.command, whole=whole)
        slot = Slot(request(), step.command.due, on_done, request)
        try:
            self._busy.add(thread)
            self._told[step.command.keys[0]] = pipe, slot
            pipe.tell(slot)
        except BaseException:
            self._told.pop(step.command.keys[0], None)  # nobody may wait for what was perhaps never sent
            raise
        finally:
            self._busy.discard(thread)
        if self._tend_at is None:
            self._tend_at = clock.now() + _TEND
            self._chores_changed()

    def _hear(self, pipe: Pipe, slot: Slot) -> None:
        """Wait for the answer to what was told."""
        with contextlib.suppress(RedisError, OSError):
            pipe.finish(slot)

    def drive(self, flow: Generator[Any, Any, T], carry_out: Callable[[Any], Any] | None = None) -> T:
        """Carry out a flow's steps and return what it comes to. ``carry_out`` does those that are not Redis' matter."""
        return drive(flow, self._carry_out, carry_out)

    def _carry_out(self, step: Step, other: Callable[[Any], Any] | None) -> Any:
        if isinstance(step, Run):
            return self.run(step.command)
        if isinstance(step, Tell):
            return self.tell(step)
        if isinstance(step, Pause):
            return self._pause(step.waiter, step.until)
        if other is not None and not isinstance(step, Listen):
            return other(step)
        thread = threading.get_ident()
        try:
            self._busy.add(thread)
            return self._listener.open()
        finally:
            self._busy.discard(thread)
            self._process_state.rouse()  # one who wanted to listen meanwhile has gone to sleep instead

    def _pause(self, waiter: Waiter, until: float | None) -> None:
        """Sleep until woken. The first to sleep listens for offers; leaving, it lets another one do so."""
        # A waiter that listens itself, as the only one of a process does, hears without a switch of threads.
        role = self._listener.role
        waiter.signal = signal = threading.Event()
        try:
            while not waiter.woken:
                left = threading.TIMEOUT_MAX if until is None else until - clock.now()
                if left <= 0:
                    return
                if role.take(waiter):
                    self._listener.listen(min(left, _LOOK_UP))
                else:
                    signal.wait(min(left, threading.TIMEOUT_MAX))
                    signal.clear()
        finally:
            role.leave(waiter)
            waiter.signal = None
            if not role.taken:
                self._process_state.rouse()

    # Chores

    def _chores_changed(self) -> None:
        with self._chores_turn:
            if self._chores is None or not self._chores.is_alive():
                if sys.is_finalizing():
                    return  # up to Python 3.11 it would wait for ever for a thread to start
                chores = threading.Thread(
                    target=self._in_chores_thread, args=(self._keep,), name="kraken-nonce-chores", daemon=True
                )
                try:
                    chores.start()
                except RuntimeError as error:
                    # The interpreter ends, or has too many threads; then the next change tries it again.
                    logger.warning("What is done beside the callers has to wait: %s", error)
                    return
                self._chores = chores
            self._chores_turn.notify()

    def _in_chores_thread(self, function: Callable[..., object], *args: Any) -> None:
        thread, threads = threading.get_ident(), self._chores_threads
        try:
            threads.add(thread)
            function(*args)
        finally:
            threads.discard(thread)

    def _keep(self) -> None:
        """Do the chores, until there are none, nobody runs a command, and every connection is closed.

        Nothing ends it but that.
        """
        agenda, turn = self._process_state.agenda, self._chores_turn
        while turn is self._chores_turn:  # else the store has begun anew
            try:
                rest = self._keep_up()
            except Exception:
                logger.exception("What is done beside the callers has failed; it is tried again")
                rest = clock.now() + _AGAIN
            with turn:
                if self._closed is not None:
                    continue
                due = min((time for time in (agenda.next_due(), self._tend_at, rest) if time is not None), default=None)
                if due is None:
                    chores, self._chores = self._chores, None
                    # Who is busy from now on sees that there is no thread; who was until now may have opened something.
                    if not self._busy and not any(connection.is_open for connection in self._all()):
                        return
                    self._chores, due = chores, clock.now() + _IDLE
                turn.wait(max(0.0, due - clock.now()))

    def _keep_up(self) -> float | None:
        """Do what is due; return when to look whether connections are used."""
        if self._closed is not None:
            try:
                self._give_back_and_close()
            finally:
                self._closed.set()
                self._closed = None
        chores = list(iter(lambda: self._process_state.agenda.pop(clock.now()), None))
        if chores:
            self._do(chores)
        if self._tend_at is not None and clock.now() >= self._tend_at:
            self._tend_at = clock.now() + _TEND  # also if it fails
            if not self._tend():
                self._tend_at = None
        return self._close_idle()

    def _tend(self) -> bool:
        """Read what nobody waits for; return whether more is due."""
        return any([pipe.tend() for pipe in self._connections.pipes])  # noqa: C419 - every one of them

    def _do(self, chores: list[Chore]) -> None:
        """Do chores that are due, all at once."""
        by_pipe: dict[Pipe | None, list[tuple[Chore, Command[Any]]]] = {}
        for chore in chores:
            with self._trying(chore):
                command = chore.command(clock.now())
                if command is not None:
                    by_pipe.setdefault(self._connections.pipe(command), []).append((chore, command))
        for pipe, work in by_pipe.items():
            if pipe is None:
                for chore, command in work:
                    self._beside(self._do_one, chore, command, functools.partial(self._run, command))
            else:
                self._beside(self._do_together, pipe, work)

    def _beside(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function that may wait for a node, or for a slot that moves: nothing of other nodes waits for it."""
        if not self._connections.fail_as_one:
            with contextlib.suppress(RuntimeError):  # the interpreter ends, or has too many threads
                threading.Thread(
                    target=self._in_chores_thread, args=(function, *args), name="kraken-nonce-chore", daemon=True
                ).start()
                return
        function(*args)

    def _do_together(self, pipe: Pipe, work: list[tuple[Chore, Command[Any]]]) -> None:
        begun: list[tuple[Chore, Command[Any], Slot]] = []
        for chore, command in work:
            with self._trying(chore):
                begun.append((chore, command, self._begin_command(pipe, command)))
        for chore, command, slot in begun:
            with self._trying(chore):
                self._hear(pipe, slot)
                finish = functools.partial(self._finish, pipe, command, slot)
                if slot.succeeded:
                    self._do_one(chore, command, finish)
                else:
                    self._beside(self._do_one, chore, command, finish)  # which runs it once more

    def _do_one(self, chore: Chore, command: Command[T], run: Callable[[], T]) -> None:
        with self._trying(chore):
            try:
                due = chore.succeeded(command, run(), clock.now())
            except KrakenNonceError as error:
                due = chore.failed(error, clock.now())
            if due is not None:
                self._process_state.agenda.add(due, chore)

    @contextlib.contextmanager
    def _trying(self, chore: Chore) -> Generator[None]:
        """Do a chore later if it fails in a way that it doesn't know itself."""
        try:
            yield
        except Exception:
            logger.exception("What is done beside the callers has failed; it is tried again")
            self._process_state.agenda.add(clock.now() + _AGAIN, chore)

    def _begin_command(self, pipe: Pipe, command: Command[Any]) -> Slot:
        request = functools.partial(self._process_state.request, command)
        slot = Slot(request(), command.due, renew=request)
        pipe.begin(slot)
        return slot

    def _finish(self, pipe: Pipe, command: Command[T], slot: Slot) -> T:
        try:
            replies = pipe.finish(slot)
            command.repeated |= slot.sent > 1
            return self._result(command, replies)
        except (RedisError, OSError) as error:
            return self._run(command, whole=isinstance(error, NoScriptError))

    def _close_idle(self) -> float | None:
        """Close what nobody has used for long; return when to look again, None when nothing is open."""
        for connection in self._all():
            if connection.is_open and connection.idle_since + _IDLE <= clock.now():
                connection.close()
        return min((each.idle_since + _IDLE for each in self._all() if each.is_open), default=None)

    def _all(self) -> list[Pipe | _OfferListener]:
        return [*self._connections.pipes, self._listener]

    def begin_to_close(self, *, end: bool) -> threading.Event | None:
        """Begin to close, as `close` says; return what is set when that is done, or None when nothing is open.

        Args:
            end: whether the process ends.
        """
        if self._process is not _process.current():
            return None
        self._ended = end
        # The chores' thread does it: nobody knows how long Redis takes, and this may be the end of the interpreter.
        with self._chores_turn:
            if end and self._chores is None:
                return None  # nothing is open or being opened without it, and it is too late for another thread
            closed = self._closed = self._closed or threading.Event()
            self._chores_changed()
            if self._chores is not None:
                return closed
            self._closed = None  # no thread can be started any more, and without one nothing is open
            return None

    def _give_back_and_close(self) -> None:
        start = clock.now()
        while self._ended and self._busy and clock.now() < start + _AT_EXIT / 2:
            time.sleep(0.001)  # what these threads are about to get has to be given back, too
        begun: list[tuple[Command[Any], Callable[[], object]]] = []
        try:
            for release in self._process_state.left_behind(at_end=self._ended or _process.current().closing):
                pipe = self._connections.pipe(release)
                if pipe is None:
                    begun.append((release, functools.partial(self._run, release)))
                else:
                    slot = self._begin_command(pipe, release)
                    begun.append((release, functools.partial(self._finish, pipe, release, slot)))
            for release, finish in begun:
                finish()
                self._process_state.returned(release)
        except KrakenNonceError as error:
            logger.warning("What this process has could not be given back: %s", error)
        while self._tend() and clock.now() < start + _AT_EXIT:
            time.sleep(0.005)
        for connection in self._all():
            connection.close()


def store_for(source: Source) -> Store:
    """Return the store for a client, the same for all with equal connection settings. Raises `InvalidArgument`."""
    target = Target.of(checked(source))
    process = _process.current()
    with process.turn:
        store = process.stores.get(target.key)
        if store is None:
            store = process.stores[target.key] = Store(target)
        return store


def close() -> None:
    """Give back what nobody needs any more and close the connections of this process's threads, within a second.

    For tests, workers and hot reload. What callers hold stays theirs; objects open connections anew when they are used.
    """
    _close(end=False)


def _close(*, end: bool) -> None:
    until = clock.now() + _AT_EXIT
    for closed in [store.begin_to_close(end=end) for store in list(_process.current().stores.values())]:
        if closed is not None:
            closed.wait(max(0.0, until - clock.now()))


def _interrupted(command: Command[Any]) -> StoreUnavailable:
    """Return the error of a command in the middle of another one of its thread: to wait for that would never end."""
    return StoreUnavailable(
        command.name,
        command.keys[0],
        "a signal handler (or the garbage collector) has interrupted another command of this thread, which can't go on "
        "meanwhile; let the handler take a note only, and make the call outside of it",
    )


def _in_a_thread(function: Callable[[], object]) -> None:
    try:
        threading.Thread(target=function, name="kraken-nonce-events", daemon=True).start()
    except RuntimeError as error:  # the interpreter ends
        logger.warning("Nobody can be told of an event any more: %s", error)


def _refuse_half_patched() -> None:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket") and not monkey.is_module_patched("threading"):
        raise StoreUnsupported(
            "connect",
            "",
            "gevent has patched sockets and not threads, so that one waiting greenlet would stop all; "
            "call monkey.patch_all() without thread=False",
        )


def _end() -> None:
    _close(end=True)


atexit.register(_end)
