"""The two faces of the library behind one: tests are written once, as plain calls, and run on both.

A test asks a `Face` for allocators, locks and callers. With threads these are what they are. With asyncio an event
loop runs in a thread of its own, and each thread of a test has one task in that loop which carries out its calls, one
after the other: what is said of a thread on the one face is so said of a task on the other.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import inspect
import itertools
import threading
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import redis

import kraken_nonce_redis
from tests.support.servers import AnyServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from tests.support.topologies import Topology

T = TypeVar("T")

KEY = "kraken-api-key/with+characters=="
"""The API key that tests use; no text and no byte to Redis may carry it."""

PATIENCE = 20.0
"""Seconds after which a call that does not come back fails its test."""


class Interrupted(Exception):
    """A caller's call was cut short by `Caller.cancel`."""


class Caller(Generic[T]):
    """One thread, or one task, that runs a function of the test's."""

    def __init__(self, face: Face, function: Callable[..., T], *args: Any) -> None:
        self._face = face
        self._function = function
        self._args = args
        self._result: T
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="caller", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function(*self._args)
        except BaseException as error:  # noqa: BLE001 - raised again for whoever asks for the result
            self._error = error
        finally:
            self._face.leave()

    @property
    def done(self) -> bool:
        """Whether the function has ended."""
        return not self._thread.is_alive()

    def result(self, timeout: float = PATIENCE) -> T:
        """Wait for the function's result, or raise its error."""
        self._thread.join(timeout)
        if not self.done:
            raise AssertionError(f"a caller is not done after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Cancel the caller's task in the call that it is in, which raises `Interrupted` in the function."""
        self._face.cancel(self._thread)


_numbers = itertools.count()


def _own_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return settings that no other client has, since those with the same ones share connections and leases."""
    return {"client_name": f"process-{next(_numbers)}", **options}


class Face(abc.ABC):
    """How a test uses the library."""

    name: str
    library: Any
    """The package with this face's names."""

    def __init__(self) -> None:
        self._on_close = contextlib.ExitStack()

    @abc.abstractmethod
    def client(self, server: AnyServer | Topology, **options: Any) -> Any:
        """Connect to a server: a process of its own, as far as this library goes."""

    def client_at(self, url: str, **options: Any) -> Any:
        """Connect to a URL, without redis-py's retries."""
        raise NotImplementedError

    @abc.abstractmethod
    def plain(self, thing: T) -> T:
        """Make an object's calls plain ones."""

    def allocator(self, client: Any, api_key: str = KEY, **options: Any) -> kraken_nonce_redis.NonceAllocator:
        """Make an allocator."""
        return self.plain(self.library.NonceAllocator(client, api_key, **options))

    def lock(self, client: Any, api_key: str = KEY, **options: Any) -> kraken_nonce_redis.CallLock:
        """Make a lock."""
        return self.plain(self.library.CallLock(client, api_key, **options))

    def allocator_from_url(self, url: str, api_key: str = KEY, **options: Any) -> kraken_nonce_redis.NonceAllocator:
        """Make an allocator for a URL."""
        return self.plain(self.library.NonceAllocator.from_url(url, api_key, **options))

    def lock_from_url(self, url: str, api_key: str = KEY, **options: Any) -> kraken_nonce_redis.CallLock:
        """Make a lock for a URL."""
        return self.plain(self.library.CallLock.from_url(url, api_key, **options))

    def start(self, function: Callable[..., T], *args: Any) -> Caller[T]:
        """Run a function as another caller, beside the test."""
        return Caller(self, function, *args)

    def together(self, function: Callable[..., T], times: int) -> list[T]:
        """Run a function as so many callers at once, each with its number; return the results in order."""
        callers = [self.start(function, number) for number in range(times)]
        return [caller.result(60) for caller in callers]

    def leave(self) -> None:  # noqa: B027 - there is nothing to do for threads
        """Take leave of the calling thread, which makes no more calls."""

    def cancel(self, thread: threading.Thread) -> None:
        """Cut the call short that a thread is in."""
        raise NotImplementedError

    def close(self) -> None:
        """Close everything."""
        self._on_close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Threads(Face):
    """The library as it is."""

    name = "threads"
    library = kraken_nonce_redis

    def client(self, server: AnyServer | Topology, **options: Any) -> Any:
        """Connect with redis-py."""
        return server.client(**_own_settings(options))

    def client_at(self, url: str, **options: Any) -> redis.Redis:
        """Connect with redis-py."""
        client = redis.Redis.from_url(url, retry=None, **options)
        self._on_close.callback(client.close)
        return client

    def plain(self, thing: T) -> T:
        """Return the object itself."""
        return thing


class Asyncio(Face):
    """The asyncio twin, in an event loop of its own."""

    name = "asyncio"

    def __init__(self) -> None:
        import redis.asyncio  # noqa: PLC0415

        import kraken_nonce_redis.asyncio  # noqa: PLC0415

        super().__init__()
        self.library = kraken_nonce_redis.asyncio
        self._redis = redis.asyncio
        self._loop = asyncio.new_event_loop()
        self._servants: dict[threading.Thread, _Servant] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)
        self._thread.start()

    def client(self, server: AnyServer | Topology, **options: Any) -> Any:
        """Connect with redis.asyncio."""
        options = _own_settings(options)
        if not isinstance(server, AnyServer):
            client = self.run(server.async_client, **options)
            for part in server.parts(client):
                self._kept(part)
            return client
        if server.is_fake:
            import fakeredis  # noqa: PLC0415

            return self._kept(fakeredis.FakeAsyncRedis(server=server._data, **options))
        return self._kept(self._redis.Redis.from_url(server.url, **options))

    def client_at(self, url: str, **options: Any) -> Any:
        """Connect with redis.asyncio."""
        return self._kept(self._redis.Redis.from_url(url, retry=None, **options))

    def _kept(self, client: Any) -> Any:
        # The name before redis-py 5.0.1 was close.
        self._on_close.callback(self.run, getattr(client, "aclose", client.close))
        return client

    def plain(self, thing: Any) -> Any:
        """Wrap an object so that its coroutines are run for the caller."""
        return _Plain(self, thing)

    def run(self, function: Callable[..., Awaitable[T] | T], *args: Any, **options: Any) -> T:
        """Carry out one call in the calling thread's task."""
        thread = threading.current_thread()
        servant = self._servants.get(thread)
        if servant is None:
            servant = self._servants[thread] = _Servant(self._loop)
        return servant.carry_out(functools.partial(function, *args, **options))

    def leave(self) -> None:
        """End the calling thread's task."""
        servant = self._servants.pop(threading.current_thread(), None)
        if servant is not None:
            servant.end()

    def cancel(self, thread: threading.Thread) -> None:
        """Cancel a thread's task, unless it has come to its end."""
        while (servant := self._servants.get(thread)) is None:
            if not thread.is_alive():
                return
            time.sleep(0.0001)  # its first call is about to come
        self._loop.call_soon_threadsafe(servant.cancel)

    def close(self) -> None:
        """End the loop as `asyncio.run` does: cancel what is left, and wait for it."""
        super().close()
        stubborn = asyncio.run_coroutine_threadsafe(_cancel_the_others(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        assert not stubborn, f"asyncio.run would not end, for a task takes no cancellation: {stubborn}"


async def _cancel_the_others() -> set[asyncio.Task[Any]]:
    """Cancel all other tasks; return those that went on."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    stubborn: set[asyncio.Task[Any]] = set()
    if others:
        _, stubborn = await asyncio.wait(others, timeout=3)
    for task in stubborn:
        task.cancel()
    if stubborn:
        await asyncio.wait(stubborn)
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    for _ in range(50):  # connections take some turns to close; else Python warns of them, in any later test
        if len(selector.get_map()) <= 1:  # the loop's own
            break
        await asyncio.sleep(0.002)
    return stubborn


class _Servant:
    """The task that carries out one thread's calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: asyncio.Queue[tuple[Callable[[], Any], _Answer] | None] = asyncio.Queue()
        self._busy = False
        self._task = asyncio.run_coroutine_threadsafe(self._begin(), loop).result(PATIENCE)

    async def _begin(self) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            call = await self._calls.get()
            if call is None:
                return
            function, answer = call
            self._busy = True
            try:
                result = function()
                answer.value = await result if inspect.isawaitable(result) else result
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
                answer.error = Interrupted()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                answer.error = error
            self._busy = False
            answer.come.set()

    def cancel(self) -> None:
        """Cancel the call that it is in, or else the next one."""
        if self._busy:
            self._task.cancel()
        else:
            self._loop.call_later(0.0001, self.cancel)

    def carry_out(self, function: Callable[[], Any]) -> Any:
        answer = _Answer()
        self._loop.call_soon_threadsafe(self._calls.put_nowait, (function, answer))
        if not answer.come.wait(60 + PATIENCE):
            raise AssertionError("a call did not come back")
        if answer.error is not None:
            raise answer.error
        return answer.value

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._calls.put_nowait, None)


class _Answer:
    """What came of a call."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class _Plain:
    """Plain calls to an object whose methods may be coroutines or give asynchronous context managers."""

    # What a lease does without I/O, in both faces.
    _WITHOUT_IO = frozenset({"next_nonce", "remaining", "check"})

    def __init__(self, face: Asyncio, wrapped: Any) -> None:
        self._face = face
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if not callable(attribute) or name in self._WITHOUT_IO:
            return attribute

        @functools.wraps(attribute)
        def call(*args: Any, **options: Any) -> Any:
            result = self._face.run(attribute, *args, **options)
            return _Plain(self._face, result) if hasattr(result, "__aenter__") else result

        return call

    def __enter__(self) -> Any:
        entered = self._face.run(type(self._wrapped).__aenter__, self._wrapped)
        return self if entered is self._wrapped else _Plain(self._face, entered)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        leave: Callable[..., Coroutine[Any, Any, bool | None]] = type(self._wrapped).__aexit__
        return self._face.run(leave, self._wrapped, kind, error, traceback)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Plain) and self._wrapped is other._wrapped

    def __hash__(self) -> int:
        return id(self._wrapped)

    def __repr__(self) -> str:
        return repr(self._wrapped)


FACES: dict[str, type[Face]] = {"threads": Threads}
_twin = find_spec("kraken_nonce_redis.asyncio")
if _twin is not None and _twin.origin is not None:
    FACES["asyncio"] = Asyncio
