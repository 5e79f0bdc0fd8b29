"""The end of a process that makes calls: for threads, and what asyncio shares with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, Final

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process
from kraken_nonce_redis._core import closing
from kraken_nonce_redis._threads.lock import current_owner
from kraken_nonce_redis._threads.store import close
from kraken_nonce_redis.errors import CallLockError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from concurrent.futures import Future

DEFAULT_SECONDS: Final = 10.0
_HEARING: Final = 0.5
"""Seconds that callers have to use the answers to their last calls, before a signal has its effect."""
_AT_END: Final = 2.0
"""Seconds that the event loops of other threads have to give up what their tasks hold."""


def shutdown(seconds: float = DEFAULT_SECONDS) -> bool:
    """End the calls of this process, of its threads and of event loops in other threads, for good.

    Who waits for a lock, and who wants one from now on, gets `kraken_nonce_redis.ShuttingDown`. Who holds one has
    ``seconds`` to end. Then the locks that are still held are released: their holders send nothing more, and a call
    that was sent and not answered stays in the journal, where the next holder of the API key finds it. In the end the
    connections to Redis are closed; if Redis does not answer, that takes 2 s.

    What the calling thread itself holds can't end meanwhile, so it is not waited for. A handler of a signal runs in the
    main thread, in the midst of whatever that does: use `shutdown_on_signal` there.

    Args:
        seconds: 0 to 3600, by default 10. A call takes ``call_timeout`` (10 s by default), and longer if it has to be
            settled.

    Returns:
        Whether all calls had ended; if not, some were given up.

    Raises:
        InvalidArgument: the seconds are out of range.
        CallLockError: this thread runs an event loop, which would stand still; await
            `kraken_nonce_redis.asyncio.shutdown`.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public function raises where none runs
        raise CallLockError("this thread runs an event loop: await kraken_nonce_redis.asyncio.shutdown()")
    until = clock.now() + closing.begin(seconds)
    turn_away()
    while closing.is_under_way(all_states(), current_owner()) and clock.now() < until:
        time.sleep(closing.AGAIN)
    others = begin_to_give_up()
    given_up = give_up()
    return given_up + sum(future.result() for future in wait(others, _AT_END).done) == 0


def shutdown_on_signal(
    seconds: float = DEFAULT_SECONDS, signals: Collection[signal.Signals] = (signal.SIGTERM,)
) -> None:
    """Let a signal end the calls of this process, as `shutdown` does, before it has the effect that it has now.

    The main thread goes on meanwhile, so that its own call can end. Half a second later, in which callers can use their
    answers, the signal is sent once more: by default that ends the process. A second signal while the calls end has its
    effect at once. An event loop of asyncio in the main thread ends its calls in the same way. A framework with hooks
    of its own for the end (uvicorn, gunicorn, celery) needs no handler: call `shutdown` there.

    Args:
        seconds: as for `shutdown`.
        signals: by default SIGTERM alone.

    Raises:
        InvalidArgument: the seconds are out of range, a signal can have no handler, or this is not the main thread.
    """
    closing.checked(seconds)
    numbers = _checked(signals)
    if threading.current_thread() is not threading.main_thread():
        raise InvalidArgument("signals", "handlers can be set in the main thread only")
    for number in numbers:
        _handle(number, seconds, signal.getsignal(number))


def _checked(signals: object) -> tuple[int, ...]:
    """Return signals that can have handlers. Raises `InvalidArgument`."""
    numbers: tuple[Any, ...] = tuple(signals) if isinstance(signals, Iterable) else (None,)
    never = {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP")}  # Windows has neither
    can = signal.valid_signals() - never
    if not all(isinstance(number, int) and number in can for number in numbers):
        raise InvalidArgument("signals", "must be a list of signals that can have handlers, such as [signal.SIGTERM]")
    return numbers


def _handle(number: int, seconds: float, before: Any) -> None:
    def end() -> None:
        shutdown(seconds)
        time.sleep(_HEARING)
        os.kill(os.getpid(), number)
        if os.getpid() == 1 and before == signal.SIG_DFL:
            # The first process of a container gets no signal that it has no handler for.
            os._exit(128 + number)

    def handler(*_: object) -> None:
        signal.signal(number, before)
        threading.Thread(target=end, name="kraken-nonce-shutdown").start()

    signal.signal(number, handler)


def turn_away() -> None:
    """Tell all who wait in threads, and in event loops of other threads."""
    for store in _stores():
        closing.turn_away(store.process_state)
    for store in _loop_stores():
        with contextlib.suppress(RuntimeError):  # the loop has just been closed
            store.loop.call_soon_threadsafe(closing.turn_away, store.process_state)


def all_states() -> Iterator[Any]:
    """Return what each store of this process knows, those of event loops included."""
    for store in (*_stores(), *_loop_stores()):
        yield store.process_state


def begin_to_give_up() -> list[Future[int]]:
    """Let the event loops of other threads give up what their tasks hold; return what counts that."""
    begun = []
    for store in _loop_stores():
        with contextlib.suppress(RuntimeError):
            begun.append(asyncio.run_coroutine_threadsafe(store.give_up(), store.loop))
    return begun


def give_up() -> int:
    """Give up what threads hold, close their connections, and return how many leases that were."""
    given_up = sum(closing.give_up(store.process_state) for store in _stores())
    close()
    return given_up


def _stores() -> list[Any]:
    return list(_process.current().stores.values())


def _loop_stores() -> list[Any]:
    """Return the stores of event loops that run, without this thread's own."""
    here = asyncio._get_running_loop()  # noqa: SLF001
    process = _process.current()
    with process.turn:
        stores = list(process.loop_stores)
    return [store for store in stores if store.loop.is_running() and store.loop is not here]
