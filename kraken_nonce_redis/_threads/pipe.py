"""A connection to Redis that many threads share at once.

There is no thread of its own for it. A caller that finds that nobody writes sends all that is there. One that finds
that nobody reads does so for everyone until its own reply is in, and hands the reading on. These two roles
are only ever tried for, never waited for; a caller without a role sleeps on a lock of its own slot. Sockets don't
block: the roles wait by poll alone, so that a TLS connection can be written to while somebody waits to read from it.

An interruption may swallow a wake-up. So every sleep ends after a while, and whoever wakes looks whether there is
anything to do.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.exceptions import RedisError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._redis.pipeline import Pipeline, Slot
from kraken_nonce_redis._redis.places import address_of
from kraken_nonce_redis._threads.role import Role
from kraken_nonce_redis.errors import keeps_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.connection import AbstractConnection

    from kraken_nonce_redis._redis.pipeline import Stream

_LOOK_UP: Final = 0.5
"""Seconds after which a sleeper looks whether there is anything to do."""
_SOON: Final = 0.0005
_AT_MOST: Final = 65536
_NOT_YET: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


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
        make: Callable[[], Any],
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
        self._writing = Role()
        self._reading = Role()

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
        link = self._link
        return clock.now() if link is None or self._pipeline.due else link.heard

    def ask(self, slot: Slot) -> Sequence[Any]:
        """Send a request and return its replies, errors of the server among them. Raises redis-py's errors."""
        self.begin(slot)
        return self.finish(slot)

    def begin(self, slot: Slot) -> None:
        """Send a request; `finish` waits for its replies."""
        try:
            self._pipeline.put(slot)
            self._write(slot)
        except BaseException:
            slot.left = True
            self._hand_over()
            raise

    def finish(self, slot: Slot) -> Sequence[Any]:
        """Wait for the replies to a request, reading for everyone if nobody else does. Raises redis-py's errors."""
        try:
            while not slot.done:
                if not self._reading.take(slot):
                    self._sleep(slot)
                    self._write(slot)
                    continue
                try:
                    connected = self._read(slot)
                finally:
                    self._reading.leave(slot)
                if not connected and not slot.done:
                    self._write(slot)  # which connects
                    if self._link is None:
                        self._sleep(slot)  # somebody else connects
        finally:
            slot.left = True
            self._hand_over()
        return slot.outcome()

    def tell(self, slot: Slot) -> None:
        """Hand a request to the kernel and don't wait for its replies: another caller or `tend` reads them."""
        me = Slot(b"")
        try:
            self._pipeline.put(slot)
            self._write(me)
            while not slot.sent and not slot.done:
                time.sleep(_SOON)  # another thread is writing
                self._write(me)
        finally:
            me.left = True
            self._hand_over()

    def tend(self) -> bool:
        """Read what nobody waits for, as far as it has come; return whether more is due.

        It connects only where requests are sent again, since that takes long when a node of a cluster is silent.
        """
        me = Slot(b"")
        try:
            if self._pipeline.due and self._reading.take(me):
                try:
                    self._read(None)
                finally:
                    self._reading.leave(me)
            self._write(me, connect=self._pipeline.resend)
        finally:
            me.left = True
            self._hand_over()
        return self._pipeline.due

    def close(self) -> None:
        """Close the connection unless a reply is due; the next request opens it again."""
        me = Slot(b"")
        try:
            link = self._link
            if self._writing.take(me) and link is not None and not self._pipeline.due:
                link.lose(redis.ConnectionError("closed"))
                self._drop(link)
        finally:
            me.left = True
            self._writing.leave(me)

    # Whoever writes

    def _write(self, me: Slot, *, connect: bool = True) -> None:
        """Send all that waits, unless somebody does so already; connect first where need be and ``connect`` allows it.

        Who has failed to connect for its own request leaves the others' to those who wait for them.
        """
        while me.failure is None and self._has_to_write(connect=connect):
            if not self._writing.take(me):
                return  # who writes looks again afterwards
            try:
                self._write_alone(connect=connect)
            finally:
                self._writing.leave(me)

    def _has_to_write(self, *, connect: bool) -> bool:
        link = self._link
        if link is not None and link.lost is not None:
            return True
        return self._pipeline.waiting and (connect or link is not None)

    def _write_alone(self, *, connect: bool) -> None:
        link = self._link
        if link is not None and link.lost is not None:
            self._drop(link)
            self._lost = True
            link = None
        waiting = self._pipeline.number
        if not waiting or (link is None and not connect):
            return
        try:
            if link is None:
                connection = self._make()
                link = self._link = _connected(connection, self._pipeline)
                self._note_address(address_of(connection))
                if self._lost:
                    self._lost = False
                    self._reconnected()
            link.send(self._pipeline.take())
        except BaseException as error:
            if link is not None:
                link.lose(_told(error))  # a part of a request may be on its way
            elif isinstance(error, Exception):
                self._pipeline.fail(_told(error), waiting)
            if not isinstance(error, Exception):
                raise

    def _drop(self, link: _Link) -> None:
        self._pipeline.lose(link.lost or redis.ConnectionError("closed"))
        self._link = None
        link.close()

    # Whoever reads

    def _read(self, slot: Slot | None) -> bool:
        """Read until a slot is done; without one, what is there. Return whether there is a connection."""
        link = self._link
        if link is None:
            return False
        try:
            if slot is None:
                while link.lost is None and link.read(0):
                    pass
            else:
                while link.lost is None and not slot.done:
                    self._write(slot)  # a writer that was interrupted has left what waits
                    link.read(_LOOK_UP)
        except Exception as error:  # noqa: BLE001 - the callers whose replies are lost are told
            link.lose(_told(error))
        return link.lost is None

    def _hand_over(self) -> None:
        """Wake a sleeper, so that it may write or read."""
        pipeline = self._pipeline
        if (pipeline.due and not self._reading.taken) or (pipeline.waiting and not self._writing.taken):
            slot = pipeline.sleeper()
            if slot is not None:
                slot.wake()

    def _sleep(self, slot: Slot) -> None:
        if slot.lock is None:
            slot.lock = threading.Lock()
            slot.lock.acquire()
        # From here on, whoever is done with a role wakes this one; what happened before shows here.
        if not slot.done and (self._reading.taken or self._writing.taken):
            slot.lock.acquire(timeout=_LOOK_UP)


class _Link:
    """One connection from when it is made until it is lost. redis-py connects and logs in; then the socket is ours.

    Attributes:
        lost: why it is of no use any more.
        heard: when the last bytes came in, or the first ones went out that are not answered.
    """

    def __init__(self, connection: AbstractConnection, stream: Stream) -> None:
        self.lost: Exception | None = None
        self._stream = stream
        self.heard = clock.now()
        self._timeout: float | None = connection.socket_timeout
        self._connection = connection
        self._socket: Any = _socket_of(connection)
        # OpenSSL allows one call at a time; none of these blocks.
        self._turn = threading.Lock() if isinstance(self._socket, ssl.SSLSocket) else contextlib.nullcontext()
        self._socket.settimeout(0)
        self._readable = _Poll(self._socket, writable=False)

    def send(self, slots: list[Slot]) -> None:
        """Hand requests to the kernel. Raises `OSError` and redis-py's `TimeoutError`."""
        if len(self._stream.in_flight) == len(slots):
            self.heard = clock.now()  # nothing was due before
        data = slots[0].request if len(slots) == 1 else b"".join([slot.request for slot in slots])
        while data:
            try:
                with self._turn:
                    sent = self._socket.send(data)
            except _NOT_YET:
                if not _Poll(self._socket, writable=True).wait(self._timeout):
                    raise redis.TimeoutError("Timeout writing to socket") from None
            else:
                data = data[sent:]

    def read(self, seconds: float) -> bool:
        """Read once for everyone, waiting so long; return whether anything came.

        Raises redis-py's errors and `OSError`.
        """
        if self._stream.in_flight and self._timeout is not None:
            seconds = max(0.0, min(seconds, self.heard + self._timeout - clock.now()))
        if not self._pending() and not self._readable.wait(seconds):
            if self._stream.in_flight and self._timeout is not None and clock.now() >= self.heard + self._timeout:
                raise redis.TimeoutError("Timeout reading from socket")
            return False
        taken = True
        try:
            try:
                with self._turn:
                    data = self._socket.recv(_AT_MOST)
            except _NOT_YET:
                taken = False
                return False
            if self.lost is not None:
                return False
            self.heard = clock.now()
            answered = self._stream.hear(data)
            taken = False
        finally:
            if taken:
                # A reply may be lost, so the next one would be taken for another's.
                self.lose(redis.ConnectionError("interrupted while reading"))
        if not data:
            raise redis.ConnectionError("Connection closed by server.")
        leave = next(filter(None, map(_reason_to_leave, answered)), None)
        if leave is not None:
            raise leave
        return True

    def lose(self, error: Exception) -> None:
        """Take note that the connection is of no use any more, and let those know who wait for it."""
        self.lost = self.lost or error
        with contextlib.suppress(OSError, TypeError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def _pending(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0


class _Asked(_Link):
    """fakeredis' connection, which has no socket: it answers at once."""

    def __init__(self, connection: AbstractConnection, stream: Stream) -> None:
        self.lost = None
        self.heard = clock.now()
        self._stream = stream
        self._connection = connection

    def send(self, slots: list[Slot]) -> None:
        """Ask and take the answers."""
        for slot in slots:
            self._connection.send_packed_command([slot.request], check_health=False)
            replies = [_reply(self._connection) for _ in range(slot.due)]
            self._stream.in_flight.popleft()
            self._stream.proven = True
            slot.answer(replies)

    def read(self, seconds: float) -> bool:
        """There is nothing to be read."""
        del seconds
        return False

    def lose(self, error: Exception) -> None:
        """Take note that the connection is of no use any more."""
        self.lost = self.lost or error


def _connected(connection: AbstractConnection, pipeline: Pipeline) -> _Link:
    """Connect, and begin with the new connection. Raises redis-py's errors."""
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise
    kind = _Link if hasattr(_socket_of(connection), "recv") else _Asked
    return kind(connection, pipeline.connected())


def _told(error: BaseException) -> Exception:
    """Return what callers are told of a failure; another than of redis-py or the system by its kind alone."""
    if isinstance(error, RedisError | OSError):
        return error
    return redis.ConnectionError(type(error).__name__)


def _socket_of(connection: AbstractConnection) -> Any:
    return connection._sock  # noqa: SLF001 - redis-py has no other way to it


def _reply(connection: AbstractConnection) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except redis.ResponseError as error:
        return error


def _reason_to_leave(slot: Slot) -> Exception | None:
    """Return an error reply after which another connection may find a better server."""
    for reply in slot.replies:
        if isinstance(reply, Exception) and not keeps_connection(reply):
            return redis.ConnectionError(str(reply))
    return None


class _Poll:
    """Waits for a socket."""

    def __init__(self, sock: Any, *, writable: bool) -> None:
        self._writable = writable
        self._socket = sock
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock, select.POLLOUT if writable else select.POLLIN)

    def wait(self, seconds: float | None) -> bool:
        """Wait so many seconds at most (None: for ever); return whether it is ready or broken."""
        if self._poll is not None:
            return bool(self._poll.poll(None if seconds is None else math.ceil(seconds * 1000)))
        sockets = [self._socket]
        return any(select.select([] if self._writable else sockets, sockets if self._writable else [], [], seconds))
