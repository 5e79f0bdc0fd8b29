"""A TCP proxy before a server that loses replies, cuts requests, delays and black-holes.

It reads enough of RESP to know where each command and each reply ends, so that a fault hits
exactly the n-th command: `proxy.drop_reply(3)` lets the server run the third script call from
now on and keeps the answer from the client. Connections that subscribe pass through untouched
from then on; only faults of the whole network (`black_hole`, `delay`, `cut_all`) reach them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

HOST = "127.0.0.1"
CHUNK = 65536

SCRIPTS = frozenset({"EVAL", "EVALSHA"})
"""The commands that are counted unless told otherwise."""

SUBSCRIBING = frozenset({"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"})

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Fault(enum.Enum):
    """What happens to one command."""

    CUT_REQUEST = "the server never gets it"
    DROP_REPLY = "the server runs it, the client hears nothing"
    HALF_REPLY = "the client gets half of the answer"


@dataclass(frozen=True)
class Command:
    """A command as a client sent it."""

    name: str
    """In capitals: `EVALSHA`."""
    arguments: tuple[bytes, ...]
    at: float
    """When it arrived here, on the monotonic clock."""
    counted: bool


class Proxy:
    """Stands before `127.0.0.1:target_port`; every command is in `log`, those counted in `commands`.

    `counted` names the commands that `commands` counts and that faults can hit. The n of a fault
    is 1 for the next such command, over all connections. A fault ends its connection.
    """

    def __init__(self, target_port: int, *, counted: frozenset[str] = SCRIPTS) -> None:
        self.target_port = target_port
        self.log: list[Command] = []
        self.commands = 0
        self._counted = counted
        self._faults: dict[int, Fault] = {}
        self._delay = self._reply_delay = 0.0
        self._links: set[asyncio.Task[None]] = set()
        self._passable = asyncio.Event()
        self._passable.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, HOST, 0, backlog=1024))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """The URL of the server by way of this proxy."""
        return f"redis://{HOST}:{self.port}/0"

    def cut_request(self, n: int = 1) -> None:
        """Cut the connection at the n-th command from now, before the server gets it."""
        self._faults[self.commands + n] = Fault.CUT_REQUEST

    def drop_reply(self, n: int = 1) -> None:
        """Let the server run the n-th command from now, then cut instead of answering."""
        self._faults[self.commands + n] = Fault.DROP_REPLY

    def half_reply(self, n: int = 1) -> None:
        """Cut the connection in the middle of the answer to the n-th command from now."""
        self._faults[self.commands + n] = Fault.HALF_REPLY

    def delay(self, seconds: float, replies: float = 0) -> None:
        """Let every request and every reply take this much longer; 0 ends it."""
        self._delay, self._reply_delay = seconds, replies

    def black_hole(self) -> None:
        """Accept connections and data, pass nothing on; nobody is told."""
        self._run(self._switch(passable=False))

    def heal(self) -> None:
        """End a black hole: what was on its way arrives late, unless `cut_all` came before."""
        self._run(self._switch(passable=True))

    def cut_all(self) -> None:
        """Close all connections; new ones are welcome."""
        self._run(self._cut_all())

    def close(self) -> None:
        """Close everything."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's, for a coroutine function, may not be cancelled in Python 3.12.
        task = self._loop.create_task(self._link(reader, writer))
        self._links.add(task)
        task.add_done_callback(self._links.discard)
        task.add_done_callback(lambda _: _close(writer))  # also of one that was cancelled before it began

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server = await asyncio.open_connection(HOST, self.target_port)
        except (OSError, asyncio.CancelledError):
            return
        await _Link(self, (reader, writer), server).run()

    async def _switch(self, *, passable: bool) -> None:
        if passable:
            self._passable.set()
        else:
            self._passable.clear()

    async def _end(self) -> None:
        await stop_accepting(self._server)
        await self._cut_all()

    async def _cut_all(self) -> None:
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        # One more round, in which the aborted transports give their sockets back.
        await asyncio.sleep(0)

    async def _passage(self, delay: float = 0) -> None:
        """Wait as long as the state of the network asks for."""
        await asyncio.sleep(delay)
        await self._passable.wait()

    def _note(self, name: str, arguments: tuple[bytes, ...]) -> Fault | None:
        """Log and count a command; return what shall happen to it."""
        counted = name in self._counted
        self.log.append(Command(name, arguments, time.monotonic(), counted))
        if not counted:
            return None
        self.commands += 1
        return self._faults.pop(self.commands, None)


class _Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: Streams, server: Streams) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._subscribed = False
        # What shall happen to each command whose reply is still to come, oldest first.
        self._expected: deque[Fault | None] = deque()

    async def run(self) -> None:
        """Pass data on until the server's side ends, or a fault ends both."""
        requests = asyncio.create_task(self._requests())
        try:
            with contextlib.suppress(OSError):
                await self._replies()
        finally:
            requests.cancel()
            self._close()
            await asyncio.gather(requests, return_exceptions=True)

    def _close(self) -> None:
        _close(self._to_client)
        _close(self._to_server)

    async def _requests(self) -> None:
        waiting = bytearray()
        with contextlib.suppress(OSError):
            while data := await self._from_client.read(CHUNK):
                waiting += data
                while (end := frame_end(waiting)) is not None:
                    frame = bytes(waiting[:end])
                    del waiting[:end]
                    await self._proxy._passage(self._proxy._delay)
                    if self._note(frame) is Fault.CUT_REQUEST:
                        # Earlier commands get their replies; then the other side closes.
                        if len(self._expected) == 1:
                            self._close()
                        return
                    self._to_server.write(frame)
                    await self._to_server.drain()
            # The server hears that the client is gone, and closes when it has read everything.
            self._to_server.write_eof()

    def _note(self, frame: bytes) -> Fault | None:
        name, *arguments = words(frame)
        command = name.decode().upper()
        fault = self._proxy._note(command, tuple(arguments))
        self._subscribed = self._subscribed or command in SUBSCRIBING
        self._expected.append(fault)
        return fault

    async def _replies(self) -> None:
        waiting = bytearray()
        while data := await self._from_server.read(CHUNK):
            waiting += data
            if self._subscribed:
                await self._answer(bytes(waiting))
                waiting.clear()
            while (end := frame_end(waiting)) is not None:
                frame = bytes(waiting[:end])
                del waiting[:end]
                # A push message (RESP3) answers nothing.
                is_reply = self._expected and not frame.startswith(b">")
                fault = self._expected.popleft() if is_reply else None
                if fault is Fault.DROP_REPLY:
                    return
                if fault is Fault.HALF_REPLY:
                    await self._answer(frame[: len(frame) // 2])
                    return
                await self._answer(frame)
                if self._expected and self._expected[0] is Fault.CUT_REQUEST:
                    return

    async def _answer(self, data: bytes) -> None:
        await self._proxy._passage(self._proxy._reply_delay)
        self._to_client.write(data)
        await self._to_client.drain()


async def stop_accepting(server: asyncio.Server) -> None:
    """Close a server, after what it has just accepted has become a connection.

    asyncio loses a connection, and leaves its socket open, when the server closes before its transport is made.
    """
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(5):
        await asyncio.sleep(0)
    server.close()


def _close(writer: asyncio.StreamWriter) -> None:
    # A plain close isn't heard by the peer while a forked process holds the same socket.
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    writer.transport.abort()


def frame_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Return where the RESP value that begins at `start` ends, None while it is incomplete."""
    newline = data.find(b"\r\n", start)
    if newline < 0:
        return None
    kind = chr(data[start])
    end = newline + 2
    if kind in "+-:_#,(":
        return end
    length = int(data[start + 1 : newline])
    if kind in "$=!":
        end += length + 2 if length >= 0 else 0
        return end if end <= len(data) else None
    if kind not in "*~>%":
        raise ValueError(f"no RESP: {bytes(data[start:newline])!r}")
    parts = length * 2 if kind == "%" else length
    for _ in range(parts):
        inner = frame_end(data, end)
        if inner is None:
            return None
        end = inner
    return end


def words(frame: bytes) -> list[bytes]:
    """Return the words of a command, which is an array of bulk strings."""
    found = []
    start = frame.index(b"\r\n") + 2
    while start < len(frame):
        newline = frame.index(b"\r\n", start)
        length = int(frame[start + 1 : newline])
        found.append(frame[newline + 2 : newline + 2 + length])
        start = newline + 2 + length + 2
    return found
