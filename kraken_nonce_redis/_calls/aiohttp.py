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
        with leaving.sending(self.headers, getattr(self.body, "_value", self.body), clock.now() - self._begun):
            return await super().send(conn)


def watch(session: Any) -> None:
    """See to it that each request of a session of aiohttp is looked at right before it leaves."""
    kind = session._request_class  # noqa: SLF001 - only its constructor takes one, and that is called by the clients
    if not issubclass(kind, _Request):
        session._request_class = leaving.watching(kind, cast("type", _Request))  # noqa: SLF001


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
