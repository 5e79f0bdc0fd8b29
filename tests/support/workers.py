"""Processes of their own that use the library as a test tells them: started, talked to, stopped, killed.

A worker is told what to do and says what came of it. What it runs is in `Work`; times are those of the monotonic
clock, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Self

import redis

from tests.support.children import Child
from tests.support.faces import FACES, KEY
from tests.support.fault_workers import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from tests.support.faces import Face

TIME, TIME_NS = time.time, time.time_ns


class Worker(Child):
    """A process, as the test sees it."""

    def __init__(self, url: str, face: str = "threads", **settings: Any) -> None:
        super().__init__(main, url, face, settings)

    def tell(self, work: str, **settings: Any) -> None:
        """Have it begin some work."""
        self.say((work, settings))

    def do(self, work: str, timeout: float = 30, **settings: Any) -> Any:
        """Have it do some work; return what came of it."""
        self.tell(work, **settings)
        return self.hear(timeout)


class Workers(list[Worker]):
    """Several processes that begin together."""

    def __init__(self, number: int, url: str, *faces: str, **settings: Any) -> None:
        names = faces or ("threads",)
        super().__init__(Worker(url, names[n % len(names)], **settings) for n in range(number))

    def do(self, work: str, timeout: float = 60, **settings: Any) -> list[Any]:
        """Have all of them do the same at once; return what came of it."""
        for worker in self:
            worker.do("nothing")
        for worker in self:
            worker.tell(work, **settings)
        return [worker.hear(timeout) for worker in self]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self:
            worker.close()


class Work:
    """What a worker can do; each method's result is what it says."""

    def __init__(self, face: Face, url: str, settings: dict[str, Any]) -> None:
        self._face = face
        self._url = url
        self._nonces = face.allocator_from_url(url, KEY)
        self._lock = face.lock_from_url(url, KEY, **settings)
        self._held = contextlib.ExitStack()
        self._lease: Any = None
        self._recorder: Recorder | None = None

    def nothing(self) -> None:
        """Say that it is there."""

    def take(self, count: int) -> list[tuple[float, float, int]]:
        """Take nonces one by one; say when each was asked for, when it was there, and the nonce."""
        taken = []
        for _ in range(count):
            asked = time.monotonic()
            nonce = self._nonces.next()
            taken.append((asked, time.monotonic(), nonce))
        return taken

    def hold(self, **settings: Any) -> Any:
        """Get the lock and keep it; say when it was there and its nonce, or the error."""
        try:
            with _interruptible():
                self._lease = self._held.enter_context(self._lock.hold(**settings))
        except Exception as error:  # noqa: BLE001 - what it is, is the test's
            return [time.monotonic(), type(error).__name__]
        except KeyboardInterrupt:
            # It may have come when the lock was there already.
            self._held.close()
            return [time.monotonic(), "KeyboardInterrupt"]
        return [time.monotonic(), self._lease.nonce]

    def lease(self, call: str, *arguments: Any) -> Any:
        """Use the lease; say what came of it."""
        try:
            return getattr(self._lease, call)(*arguments)
        except Exception as error:  # noqa: BLE001
            return type(error).__name__

    def release(self) -> Any:
        """Give the lock back; say when, or the error."""
        try:
            self._held.close()
        except Exception as error:  # noqa: BLE001
            return type(error).__name__
        return time.monotonic()

    def turns(self, seconds: float, hold: float) -> list[tuple[float, float, float, int, int]]:
        """Hold the lock again and again.

        For each turn say when it was asked for, when it was there, when the work in it was done, and its first and
        last nonce.
        """
        turns = []
        end = time.monotonic() + seconds
        while (asked := time.monotonic()) < end:
            with self._lock.hold() as lease:
                there = time.monotonic()
                time.sleep(hold)
                last = lease.next_nonce()
                turns.append((asked, there, time.monotonic(), lease.nonce, last))
        return turns

    def record(self, **settings: Any) -> None:
        """Begin to take nonces and leases, and to note it."""
        self._recorder = Recorder(self._face, **settings)

    def stop_recording(self) -> None:
        """End that."""
        assert self._recorder is not None
        self._recorder.end()

    def set_clock(self, seconds: float) -> float:
        """Let this process's wall clock be so many seconds ahead; say what it shows."""
        # Not by libfaketime, under which waits of a process become far too long now and then.
        time.time = lambda: TIME() + seconds
        time.time_ns = lambda: TIME_NS() + int(seconds * 10**9)
        return time.time()

    def fork(self) -> Any:
        """While it holds the lock, fork; say what the child may do, and what is left to the parent."""
        reading, writing = os.pipe()
        with self._lock.hold() as lease:
            nonces = [lease.nonce, lease.next_nonce()]
            child = os.fork()
            if not child:
                said = {
                    "lost": lease.lost,
                    "owned": self._lock.owned(),
                    "got it": self._lock.acquire(blocking=False),
                    "nonces": [self._nonces.next() for _ in range(100)],
                }
                try:
                    lease.next_nonce()
                except Exception as error:  # noqa: BLE001
                    said["lease"] = type(error).__name__
                os.write(writing, json.dumps(said).encode())
                os._exit(0)
            os.waitpid(child, 0)
            said = json.loads(os.read(reading, 100_000))
            nonces += [self._nonces.next() for _ in range(100)]
            os.close(reading)
            os.close(writing)
            return {"child": said, "lost": lease.lost, "owned": self._lock.owned(), "nonces": nonces}

    def fork_and_forget(self) -> list[int]:
        """Fork, and have the child lose all state first; say the parent's last nonce and the child's first one."""
        reading, writing = os.pipe()
        last = self._nonces.jump_forward(1000 * 10**9)
        if not os.fork():
            with redis.Redis.from_url(self._url) as client:
                client.flushall()
            os.write(writing, str(self._nonces.next()).encode())
            os._exit(0)
        os.wait()
        first = int(os.read(reading, 100))
        os.close(reading)
        os.close(writing)
        return [last, first]

    def fork_while_waiting(self) -> Any:
        """Fork while a thread waits for the lock; say whether the child got it after the parent's thread had."""
        import threading  # noqa: PLC0415

        got: list[float] = []

        def wait() -> None:
            with self._lock.hold(20):
                got.append(time.monotonic())

        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.2)
        child = os.fork()
        if not child:
            with self._lock.hold(10):
                os._exit(7)
        _, status = os.waitpid(child, 0)
        waiter.join()
        return [got, os.waitstatus_to_exitcode(status)]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Take Ctrl-C in the block, and nowhere else."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main(pipe: Connection, url: str, face: str, settings: dict[str, Any]) -> None:
    """Do as told, until nobody is there to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work = Work(FACES[face](), url, settings)
    with contextlib.suppress(EOFError):
        while True:
            name, arguments = pipe.recv()
            positional = arguments.pop("arguments", [])
            pipe.send(getattr(work, name)(*positional, **arguments))
