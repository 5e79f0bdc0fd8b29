"""HTTPS before a server that talks HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Self, TypeVar

from tests.support.proxy import stop_accepting
from tests.support.servers import HOST
from tests.support.topologies import Certificates

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class HttpsFront:
    """Takes TLS off what comes in, and passes it on to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._certificates = Certificates()
        self.authority = self._certificates.authority
        self._links: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="https", daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, HOST, 0, ssl=self._certificates.context()))
        self.url = f"https://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._certificates.remove()

    def _run(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    async def _close(self) -> None:
        await stop_accepting(self._server)
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        await asyncio.sleep(0)  # one more round, in which the aborted transports give their sockets back

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's, for a coroutine function, may not be cancelled in Python 3.12.
        link = self._loop.create_task(self._connect(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        link.add_done_callback(lambda _: writer.transport.abort())  # also of one that was cancelled before it began

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(HOST, self._target)
        ways = [self._loop.create_task(_pass_on(*way)) for way in ((reader, to_server), (from_server, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            to_server.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on bytes until an end closes, or sends what is not TLS."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
