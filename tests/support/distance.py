"""Distance to a server on loopback: a TCP proxy, in a process of its own, that makes every byte come later.

    with away(server.url, 0.05) as url:  # a round trip of 50 ms, half of it each way
        client = redis.Redis.from_url(url)

What arrives leaves again exactly half a round trip later, in its order, however much is on its way: distance takes
time and no throughput. The end of a stream, a cut and a refusal take as long as data. Only the handshake of TCP itself
takes no time, since the system answers it.

``python -m tests.support.distance HOST PORT SECONDS`` is that process, with the seconds of one way. It says its port
and ends when its stdin closes.
"""

from __future__ import annotations

import contextlib
import resource
import select
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
CHUNK = 1 << 18
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset

END = b""  # the end of a stream, among what is on its way
CUT = None


@contextlib.contextmanager
def away(url: str, round_trip: float) -> Iterator[str]:
    """Give the URL under which a server seems this far away.

    Args:
        url: the server's own URL, `redis://` with a host and a port.
        round_trip: seconds from a request's last byte to the first of its reply.
    """
    place = urlsplit(url)
    if place.scheme != "redis" or place.hostname is None:
        raise ValueError(f"no plain Redis URL with a host: {place.scheme}")
    with subprocess.Popen(
        [sys.executable, "-m", __name__, place.hostname, str(place.port or 6379), str(round_trip / 2)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        # Ctrl-C is for the tests, which then end their proxies in order.
        start_new_session=True,
    ) as process:
        # The end of this block closes its stdin and waits for its end.
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port:
            raise RuntimeError(f"the proxy did not start and ended with {process.wait()}")
        user, at, _ = place.netloc.rpartition("@")
        yield place._replace(netloc=f"{user}{at}{HOST}:{int(port)}").geturl()


class _Side:
    """One of a connection's two sockets; what arrives at it goes to its peer."""

    peer: _Side

    def __init__(self, line: _Line, connection: socket.socket) -> None:
        connection.setblocking(False)  # noqa: FBT003 - the name says it
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._line = line
        self._socket = connection
        self._unsent = bytearray()
        self._watched = 0
        self._hears = self._tells = True
        self._ending = False
        self._watch()

    def handle(self, events: int) -> None:
        """Read and write what can be."""
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and self._hears:
            self._read()

    def deliver(self, data: bytes | None) -> None:
        """Send on what has arrived from the peer."""
        if data is CUT:
            self._close()
        if data is CUT or not self._tells:
            return
        self._unsent += data
        self._ending = data == END
        if not self._watched & selectors.EVENT_WRITE:
            self._flush()

    def _read(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._break()
            return
        self._line.send(self.peer, data)
        if data == END:
            self._hears = False
            self._watch()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
            if self._ending:
                self._socket.shutdown(socket.SHUT_WR)
                self._tells = False
        except BlockingIOError:
            pass
        except OSError:
            self._break()
            return
        self._watch()

    def _break(self) -> None:
        """Close what is broken already and let the peer know in time."""
        self._close()
        self._line.send(self.peer, CUT)

    def _close(self) -> None:
        self._hears = self._tells = False
        self._unsent.clear()
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._watch()

    def _watch(self) -> None:
        """Have the selector watch for what is still to come; without anything, the connection is over."""
        wanted = selectors.EVENT_READ * self._hears | selectors.EVENT_WRITE * bool(self._unsent)
        if wanted != self._watched:
            if not wanted:
                self._line.selector.unregister(self._socket)
            elif not self._watched:
                self._line.selector.register(self._socket, wanted, self)
            else:
                self._line.selector.modify(self._socket, wanted, self)
            self._watched = wanted
        if not self._hears and not self._tells:
            self._socket.close()


class _Line:
    """The way between clients and the server, and all that is on it."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self._address = (host, port)
        self._seconds = seconds
        # All are equally far away, so what came first leaves first.
        self._on_its_way: deque[tuple[float, _Side, bytes | None]] = deque()
        self._listener = socket.create_server((HOST, 0), backlog=4096)
        self._listener.setblocking(False)  # noqa: FBT003
        self.port: int = self._listener.getsockname()[1]
        self.selector = selectors.DefaultSelector()
        self.selector.register(self._listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin, selectors.EVENT_READ)

    def send(self, to: _Side, data: bytes | None) -> None:
        """Let data arrive at one side in time."""
        self._on_its_way.append((time.monotonic() + self._seconds, to, data))

    def run(self) -> None:
        """Go on until stdin closes."""
        while True:
            self._sleep()
            self._deliver()
            for key, events in self.selector.select(0):
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    key.data.handle(events)

    def _sleep(self) -> None:
        """Sleep until the next thing happens; a selector's own timeout would be in milliseconds."""
        timeout = max(0, self._on_its_way[0][0] - time.monotonic()) if self._on_its_way else None
        select.select([self.selector], [], [], timeout)

    def _deliver(self) -> None:
        while self._on_its_way and self._on_its_way[0][0] <= time.monotonic():
            _, to, data = self._on_its_way.popleft()
            to.deliver(data)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket()
                server.setblocking(False)  # noqa: FBT003
                # A refusal shows with the first read, as a cut.
                server.connect_ex(self._address)
                here, there = _Side(self, client), _Side(self, server)
                here.peer, there.peer = there, here


def main() -> None:
    """Stand between loopback and a server."""
    # Two descriptors for each connection.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    host, port, seconds = sys.argv[1:]
    line = _Line(host, int(port), float(seconds))
    print(line.port, flush=True)
    line.run()


if __name__ == "__main__":
    main()
