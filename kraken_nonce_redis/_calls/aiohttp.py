"""What the adapters for clients that send by aiohttp have in common."""

from __future__ import annotations

from typing import Any, cast

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _process
from kraken_nonce_redis._calls import leaving

_Stock: Any = object  # stands for the class that comes after ours


class _Request(_Stock):  # type: ignore[misc]
    """What is different in a request of aiohttp, which is sent when it has a connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._begun = clock.now()
        super().__init__(*args, **kwargs)

    async def send(self, conn: Any) -> Any:
        body = getattr(self.body, "_value", self.body)
        sent = leaving.request_of(self.headers, leaving.fields_of(body))
        # Its timeout counts for connecting and all the rest together.
        seconds = None if sent is None else max(0.0, sent.step.seconds - (clock.now() - self._begun))
        leaving.leave(self.headers, body, seconds, seen=True)
        response = await super().send(conn)
        response.sent = sent
        return response


class _Response(_Stock):  # type: ignore[misc]
    """What is different in a response of aiohttp, which is read when the client's code asks for it.

    Attributes:
        sent: the request of a step that it answers; None for another request.
    """

    sent: leaving.Request | None = None

    async def start(self, connection: Any) -> Any:
        started = await super().start(connection)
        if self.sent is not None:
            self.sent.hear_status(self.status, self.headers)
        return started

    async def read(self) -> Any:
        body = await super().read()
        if self.sent is not None:
            body = self._body = self.sent.hear_body(body)
        return body


def watch(session: Any) -> None:
    """See to it that each request of a session of aiohttp is looked at right before it leaves, and its response."""
    # Only the session's constructor takes these classes, and that is called by the clients.
    for name, ours in (("_request_class", _Request), ("_response_class", _Response)):
        kind = getattr(session, name)
        if not issubclass(kind, ours):
            setattr(session, name, leaving.watching(kind, cast("type", ours)))


def leave_to_parent(session: Any) -> None:
    """Give up a parent's session in a forked child. Nothing can be sent by it any more; the parent's goes on.

    It is not closed: that would end TLS on connections that the parent goes on with, and take them out of the selector
    that the parent's loop shares with its child.
    """
    connector = session.connector
    session.detach()
    if connector is None:  # it was closed before
        return
    pooled = [protocol for connections in connector._conns.values() for protocol, _ in connections]  # noqa: SLF001
    for protocol in (*pooled, *connector._acquired):  # noqa: SLF001 - aiohttp has no other way to them
        if protocol.transport is not None:
            _process.leave_to_parent(protocol.transport)
    connector._conns.clear()  # noqa: SLF001 - else it would close them with itself
