"""A connection to Redis that many tasks share at once; `kraken_nonce_redis._threads.pipe` for asyncio.

No task reads: replies come to the protocol of the connection, so that none can be cancelled that others depend on. Only
connecting takes a task, and one that was cancelled is followed by another as long as somebody waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process
from kraken_nonce_redis._redis.pipeline import Pipeline, Slot
from kraken_nonce_redis._redis.places import address_of
from kraken_nonce_redis.errors import keeps_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from kraken_nonce_redis._redis.pipeline import Stream

_GOODBYE: Final = 0.05
"""Seconds that asyncio may need to close a TLS connection that was refused; a loop that ends sooner leaves it open."""


class Pipe:
    """A connection for many callers, made when it is first needed and made anew when it is lost.

    Args:
        make: returns a connection of redis-py, not yet connected.
        connected: is called with the address when there is a connection.
        reconnected: is called after that when one was lost before, and not closed here.
        resend: as for `Pipeline`.
    """

    def __init__(
        self,
        make: Callable[[], AbstractConnection],
        connected: Callable[[str], object] = lambda _: None,
        reconnected: Callable[[], object] = lambda: None,
        *,
        resend: bool = True,
    ) -> None:
        self._make = make
        self._note_address = connected
        self._reconnected = reconnected
        self._lost = False
        self._pipeline = Pipeline(resend=resend)
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._process = _process.current()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._link is not None

    @property
    def scripts(self) -> set[str]:
        """The names of scripts that the server at the other end is known to have."""
        return self._pipeline.scripts

    @property
    def idle_since(self) -> float:
        """When something was sent or heard last."""
        return clock.now() if self._link is None or self._pipeline.due else self._link.heard

    @property
    def due(self) -> bool:
        """Whether a reply is due, or will be."""
        return self._pipeline.due or self._pipeline.waiting

    async def ask(
        self,
        request: bytes,
        due: int,
        sent: Callable[[Slot], object] | None = None,
        renew: Callable[[], bytes] | None = None,
    ) -> Sequence[Any]:
        """Send a request and return its replies, errors of the server among them. Raises redis-py's errors."""
        future = asyncio.get_running_loop().create_future()
        slot = Slot(request, due, lambda _: None if future.done() else future.set_result(None), renew)
        try:
            self.begin(slot)
            await future
        finally:
            slot.left = True
            if sent is not None:
                sent(slot)
        return slot.outcome()

    def begin(self, slot: Slot) -> None:
        """Hand a request to the kernel, or when there is a connection. In a forked child it fails."""
        self._pipeline.put(slot)
        self._write()

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._drop(self._link, redis.ConnectionError("closed"))

    async def end(self) -> None:
        """Close the connection for good: the loop ends."""
        error = redis.ConnectionError("the event loop ends")
        while True:
            link, self._link = self._link, None
            if link is not None:
                link.close()
                self._pipeline.lose(error)
            self._pipeline.fail(error)
            connecting = self._connecting
            if connecting is None:
                return
            connecting.cancel()
            await asyncio.wait([connecting])  # which may connect all the same: up to Python 3.11 wait_for loses that

    def disown(self) -> None:
        """Leave the connection to the parent, in a forked child that goes on with its parent's loop."""
        if self._connecting is not None:
            self._connecting.cancel()
        link, self._link = self._link, None
        if link is not None:
            link.disown()
        self._pipeline.lose(_forked())
        self._pipeline.fail(_forked())

    def lose(self, link: _Link, error: Exception) -> None:
        """Take note that a connection is of no use any more."""
        self._lost |= self._link is link
        self._drop(link, error)

    def _drop(self, link: _Link, error: Exception) -> None:
        link.close()
        if self._link is link:
            self._link = None
            self._pipeline.lose(error)
            self._write()

    def _write(self) -> None:
        if not self._pipeline.waiting:
            return
        if self._process.is_parent:
            self.disown()
        elif self._link is not None:
            self._link.send(self._pipeline.take())
        elif self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(), name="kraken-nonce-connect")
            self._connecting.add_done_callback(self._connected)

    async def _connect(self) -> None:
        connection, waiting = self._make(), self._pipeline.number
        try:
            await connection.connect()
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            if isinstance(connection, SSLConnection):
                await asyncio.sleep(_GOODBYE)
            self._pipeline.fail(error, waiting)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        else:
            kind = _Link if hasattr(_writer_of(connection).transport, "set_protocol") else _Asked
            self._link = kind(self, connection, self._pipeline.connected())
            self._note_address(address_of(connection))
            if self._lost:
                self._lost = False
                self._reconnected()

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._pipeline.fail(redis.ConnectionError(type(error).__name__))
        self._write()


class _Link(asyncio.Protocol):
    """One connection from when it is made until it is lost. redis-py connects and logs in; then its transport is ours.

    Attributes:
        heard: when the last bytes came in, or the first ones went out that are not answered.
    """

    def __init__(self, pipe: Pipe, connection: AbstractConnection, stream: Stream) -> None:
        self.heard = clock.now()
        self._pipe = pipe
        self._stream = stream
        self._process = _process.current()
        self._timeout: float | None = connection.socket_timeout
        self._writer = _writer_of(connection)
        connection._writer = connection._reader = None  # noqa: SLF001 - it must not close what is ours now
        transport: Any = self._writer.transport
        self._former: asyncio.BaseProtocol = transport.get_protocol()
        transport.set_protocol(self)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.TimerHandle | None = None

    def send(self, slots: list[Slot]) -> None:
        """Hand requests to the kernel."""
        if len(self._stream.in_flight) == len(slots):
            self.heard = clock.now()  # nothing was due before
            if self._watch is None and self._timeout is not None:
                self._watch = self._loop.call_later(self._timeout, self._look)
        self._transport.write(b"".join([slot.request for slot in slots]))

    def data_received(self, data: bytes) -> None:
        """Give the replies to those who wait for them."""
        if self._process.is_parent:
            self._pipe.disown()
            return
        self.heard = clock.now()
        try:
            answered = self._stream.hear(data)
        except Exception as error:  # noqa: BLE001 - the next reply would be taken for another's
            self._pipe.lose(self, redis.ConnectionError(str(error)))
            return
        for slot in answered:
            for reply in slot.replies:
                if isinstance(reply, Exception) and not keeps_connection(reply):
                    self._pipe.lose(self, redis.ConnectionError(str(reply)))
                    return

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the connection is gone."""
        self._former.connection_lost(exc)
        if not self._process.is_parent:
            self._pipe.lose(self, redis.ConnectionError(str(exc) if exc else "Connection closed by server."))

    def close(self) -> None:
        """Close the connection."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if not self._transport.is_closing():
            self._transport.abort()

    def disown(self) -> None:
        """Leave the connection to the parent, in a forked child."""
        _process.leave_to_parent(self._transport)
        self.close()

    def _look(self) -> None:
        """See whether a reply is late."""
        assert self._timeout is not None  # noqa: S101
        self._watch = None
        if self._process.is_parent:
            self._pipe.disown()
            return
        if not self._stream.in_flight:
            return
        left = self.heard + self._timeout - clock.now()
        if left <= 0:
            self._pipe.lose(self, redis.TimeoutError("Timeout reading from socket"))
        else:
            self._watch = self._loop.call_later(left, self._look)


class _Asked(_Link):
    """fakeredis' connection, which has no transport: it is asked by a task."""

    def __init__(self, pipe: Pipe, connection: AbstractConnection, stream: Stream) -> None:
        self.heard = clock.now()
        self._pipe = pipe
        self._connection = connection
        self._stream = stream
        self._slots: deque[Slot] = deque()
        self._task: asyncio.Task[None] | None = None

    def send(self, slots: list[Slot]) -> None:
        """Ask, and take the answers."""
        self._slots.extend(slots)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._exchange(), name="kraken-nonce-fakeredis")
            self._task.add_done_callback(self._exchanged)

    async def _exchange(self) -> None:
        while self._slots:
            slot = self._slots.popleft()
            await self._connection.send_packed_command([slot.request], check_health=False)
            replies = []
            for _ in range(slot.due):
                try:
                    replies.append(await self._connection.read_response(disable_decoding=True))
                except redis.ResponseError as error:
                    replies.append(error)
            self._stream.in_flight.popleft()
            self._stream.proven = True
            slot.answer(replies)

    def _exchanged(self, task: asyncio.Task[None]) -> None:
        self._task = None
        error = redis.ConnectionError("interrupted") if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._pipe.lose(self, error)
        elif self._slots:
            self.send([])

    def close(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
        close = getattr(self._connection, "_close", None)  # its public twin has to be awaited; old versions lack it
        if close is not None:
            close()

    def disown(self) -> None:
        """Close the copy that a forked child has."""
        self.close()


def disown(connection: AbstractConnection) -> None:
    """Leave a connection of redis-py's to the parent, in a child that goes on with its parent's loop."""
    writer = _writer_of(connection)
    if writer is not None:
        _process.leave_to_parent(writer.transport)


def _forked() -> redis.ConnectionError:
    return redis.ConnectionError("the connection belongs to the parent of this process")


def _writer_of(connection: AbstractConnection) -> Any:
    return connection._writer  # noqa: SLF001 - redis-py has no other way to it
