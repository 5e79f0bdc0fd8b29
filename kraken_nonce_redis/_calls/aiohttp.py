"""What the adapters for clients that send by aiohttp have in common."""

from __future__ import annotations

from typing import Any

from kraken_nonce_redis import _process


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
