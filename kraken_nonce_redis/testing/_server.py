"""The exchange behind HTTP: `python -m kraken_nonce_redis.testing._server`, one process.

`KrakenSimulator` starts it. It reads one line of JSON from stdin (see `Startup`), prints one line
`{"port": 12345}` when it listens, or `{"error": "..."}` if it can't, and ends when its stdin
closes: it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ._exchange import Exchange, public_answer
from ._protocol import Call, Params
from ._records import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LARGEST_BODY = 64 * 1024  # bytes; a batch of orders takes a fraction of it
_BACKLOG = 1024  # connections that a burst of clients may open at once

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Startup:
    """What the first line of stdin says. It comes that way to keep secrets off command lines."""

    accounts: list[tuple[str, str, str]]
    """Name, API key and base64 secret of each account."""
    settings: dict[str, Any]
    """The part that can be changed later, as for `Settings.read`."""
    seed: int
    host: str
    port: int


class Server:
    """The HTTP face of one exchange."""

    def __init__(self, exchange: Exchange, *, seed: int) -> None:
        self._exchange = exchange
        self._random = Random(seed)  # noqa: S311 - delays of a make-believe network

    def app(self) -> web.Application:
        """Return the application with all its routes."""
        app = web.Application(middlewares=[_always_like_kraken], client_max_size=_LARGEST_BODY)
        app.router.add_post("/0/private/{method:.+}", self._private)
        app.router.add_get("/0/public/{method}", self._public)
        app.router.add_get("/simulator/requests", self._requests)
        app.router.add_get("/simulator/orders", self._orders)
        app.router.add_post("/simulator/configure", self._configure)
        app.router.add_post("/simulator/reset", self._reset)
        return app

    def _delay(self) -> float:
        return self._random.uniform(*self._exchange.settings.latency)

    async def _private(self, request: web.Request) -> web.Response:
        call = Call(
            path=request.rel_url.raw_path,
            method=request.match_info["method"],
            content_type=request.content_type,
            key=request.headers.get("API-Key", ""),
            signature=request.headers.get("API-Sign", ""),
            body=await request.read(),
        )
        with self._exchange.under_way(call):
            # Both delays are drawn here, where the seed alone and not who overtakes whom decides.
            inbound, outbound = self._delay(), self._delay()
            await asyncio.sleep(inbound)
            sequence = self._exchange.arrive(call, time.monotonic())
            answer = self._exchange.answer(call, sequence, time.time())
            await asyncio.sleep(outbound)
            self._exchange.finish(sequence, time.monotonic())
        return web.json_response(answer)

    async def _public(self, request: web.Request) -> web.Response:
        inbound, outbound = self._delay(), self._delay()
        await asyncio.sleep(inbound)
        params = Params(dict(request.query))
        answer = public_answer(request.match_info["method"], params, time.time())
        await asyncio.sleep(outbound)
        return web.json_response(answer)

    async def _requests(self, _request: web.Request) -> web.Response:
        return web.json_response([asdict(record) for record in self._exchange.requests()])

    async def _orders(self, _request: web.Request) -> web.Response:
        return web.json_response([asdict(order) for order in self._exchange.orders()])

    async def _configure(self, request: web.Request) -> web.Response:
        self._exchange.settings = Settings.read(await request.json())
        return web.json_response({})

    async def _reset(self, _request: web.Request) -> web.Response:
        self._exchange.reset(time.time())
        return web.json_response({})


@web.middleware
async def _always_like_kraken(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer in Kraken's form whatever happens."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        error = "EAPI:Bad request"
    except web.HTTPException:
        error = "EGeneral:Unknown method"
    except Exception:
        _logger.exception("The simulator has a bug: %s failed", request.path)
        error = "EGeneral:Internal error"
    return web.json_response({"error": [error]})


async def _serve(startup: Startup) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, over.set)

    exchange = Exchange(startup.accounts, Settings.read(startup.settings), seed=startup.seed, now=time.time())
    app = Server(exchange, seed=startup.seed).app()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, startup.host, startup.port, backlog=_BACKLOG)
        try:
            await site.start()
        except OSError as error:
            _say({"error": f"can't listen on {startup.host}:{startup.port}: {error.strerror}"})
            return
        _say({"port": runner.addresses[0][1]})
        threading.Thread(target=_wait_for_end_of_stdin, args=(loop, over), name="stdin", daemon=True).start()
        await over.wait()
    finally:
        await runner.cleanup()


def _wait_for_end_of_stdin(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    with suppress(RuntimeError):  # the loop may have ended for another reason
        loop.call_soon_threadsafe(over.set)


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the server until stdin closes."""
    # A client under test that breaks HTTP is no news; our own faults go through our own logger.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    line = sys.stdin.readline()
    if line:  # else the one who started us has ended already
        asyncio.run(_serve(Startup(**json.loads(line))))


if __name__ == "__main__":
    main()
