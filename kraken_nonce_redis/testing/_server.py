"""The exchange over HTTP: `python -m kraken_nonce_redis.testing._server`, one process.

`KrakenSimulator` starts it. It is told what to simulate (see `Startup`), and answers `{"port": 12345}` when it listens,
or `{"error": "..."}` if it can't. It ends when its stdin closes, so it doesn't outlive the process that started it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.utils import formatdate
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from aiohttp import web

from kraken_nonce_redis import _children as children

from ._exchange import Exchange, public_answer
from ._faults import Fault, FaultPlan, Point
from ._keys import NonceWindow
from ._pages import page
from ._protocol import Call, Params
from ._records import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ._pages import Page

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LARGEST_BODY = 64 * 1024  # bytes; a batch of orders takes a fraction of it
_BACKLOG = 1024  # connections that a burst of clients may open at once
_GRACE = 0.1  # seconds that calls under way get at the end; to aiohttp, 0 means no limit
_LINGER_NOT = struct.pack("ii", 1, 0)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Startup:
    """What to simulate."""

    keys: list[tuple[str, str, str]]
    """For each API key the name of its account, the key and its base64 secret."""
    settings: dict[str, Any]
    """The settings that can be changed later, as for `Settings.read`."""
    faults: list[dict[str, Any]]
    """The fields of each `Fault`."""
    seed: int
    host: str
    port: int


class Server:
    """Serves one exchange over HTTP, with delays and faults."""

    def __init__(self, exchange: Exchange, faults: list[dict[str, Any]], *, seed: int) -> None:
        self._exchange = exchange
        self._seed = seed
        self._plan = self._new_plan(faults)
        self._random = Random(seed)  # noqa: S311 - delays of a simulated network
        self._connections: WeakSet[asyncio.BaseTransport] = WeakSet()  # those that have carried a request

    def app(self) -> web.Application:
        """Return the application with all its routes."""
        app = web.Application(middlewares=[_always_like_kraken], client_max_size=_LARGEST_BODY)
        app.router.add_post("/0/private/{method:.+}", self._private)
        app.router.add_get("/0/public/{method}", self._public)
        app.router.add_get("/simulator/requests", self._requests)
        app.router.add_get("/simulator/orders", self._orders)
        app.router.add_get("/simulator/strategies", self._strategies)
        app.router.add_get("/simulator/withdrawals", self._withdrawals)
        app.router.add_post("/simulator/configure", self._configure)
        app.router.add_post("/simulator/raise_nonce", self._raise_nonce)
        app.router.add_post("/simulator/set_window", self._set_window)
        app.router.add_post("/simulator/reset", self._reset)
        return app

    def _new_plan(self, faults: list[dict[str, Any]]) -> FaultPlan:
        return FaultPlan([Fault(**fields) for fields in faults], self._seed)

    def _delay(self) -> float:
        return self._random.uniform(*self._exchange.settings.latency)

    def _now(self) -> float:
        """Return Unix time in seconds by the exchange's clock."""
        return time.time() + self._exchange.settings.clock_offset

    def _answer(self, answer: Mapping[str, object]) -> web.Response:
        """Answer in Kraken's form, with the exchange's clock in the headers."""
        return web.json_response(answer, headers={"Date": formatdate(self._now(), usegmt=True)})

    def _is_reused(self, request: web.Request) -> bool:
        """Return whether the request's connection has carried another request before, and remember it."""
        transport = request.transport
        if transport is None:  # the client has gone
            return False
        reused = transport in self._connections
        self._connections.add(transport)
        return reused

    async def _private(self, request: web.Request) -> web.Response:
        # aiohttp lets a handler finish when its client is gone: what was read is carried out.
        call = Call(
            path=request.rel_url.raw_path,
            method=request.match_info["method"],
            content_type=request.content_type,
            key=request.headers.get("API-Key", ""),
            signature=request.headers.get("API-Sign", ""),
            body=await request.read(),
            sent=self._now(),
        )
        exchange = self._exchange
        with exchange.under_way(call):
            # All three are drawn here, so that they depend only on the seed, not on which request overtakes which.
            fault = self._plan.next(call.method, reused=self._is_reused(request))
            inbound, outbound = self._delay(), self._delay()
            await asyncio.sleep(inbound)
            sequence = exchange.arrive(call, time.monotonic(), fault.name if fault else "")
            answer = await self._suffer(fault, "reading", request)
            if answer is not None:
                _go_on(fault, lambda: exchange.admit(call, sequence, self._now())(self._now()))
            else:
                act = exchange.admit(call, sequence, self._now())
                answer = await self._suffer(fault, "acting", request)
                if answer is not None:
                    _go_on(fault, lambda: act(self._now()))
                else:
                    done = act(self._now())
                    answer = await self._suffer(fault, "answering", request, done) or self._answer(done)
            await asyncio.sleep(outbound)
            exchange.finish(sequence, time.monotonic())
            if isinstance(answer, _Closed):
                _close(request, reset=answer.reset)
        return answer

    async def _suffer(
        self, fault: Fault | None, point: Point, request: web.Request, right: Mapping[str, object] | None = None
    ) -> web.Response | None:
        """Apply a fault if this is its point. Return the answer if the client gets it now, else None."""
        if fault is None or fault.before != point:
            return None
        await asyncio.sleep(fault.seconds)
        if fault.is_slow:
            return None
        if fault.closes:
            return _Closed(reset=fault.resets)
        if fault.page is not None:
            return _show(page(fault.page, request.path), fault.headers)
        return self._answer(fault.answer(right, self._now()))

    async def _public(self, request: web.Request) -> web.Response:
        self._is_reused(request)
        inbound, outbound = self._delay(), self._delay()
        await asyncio.sleep(inbound)
        params = Params(dict(request.query))
        answer = self._answer(public_answer(request.match_info["method"], params, self._now()))
        await asyncio.sleep(outbound)
        return answer

    async def _requests(self, _request: web.Request) -> web.Response:
        return web.json_response([asdict(record) for record in self._exchange.requests()])

    async def _orders(self, _request: web.Request) -> web.Response:
        return web.json_response([asdict(order) for order in self._exchange.orders(self._now())])

    async def _strategies(self, _request: web.Request) -> web.Response:
        return web.json_response([asdict(strategy) for strategy in self._exchange.strategies(self._now())])

    async def _withdrawals(self, _request: web.Request) -> web.Response:
        return web.json_response([asdict(withdrawal) for withdrawal in self._exchange.withdrawals()])

    async def _configure(self, request: web.Request) -> web.Response:
        given = await _told(request)
        self._exchange.settings = Settings.read(given["settings"])
        if given["same_window"]:
            self._exchange.forget_windows()
        if given["faults"] is not None:
            self._plan = self._new_plan(given["faults"])
        return web.json_response({})

    async def _raise_nonce(self, request: web.Request) -> web.Response:
        return web.json_response({"before": self._exchange.raise_nonce(**await _told(request))})

    async def _set_window(self, request: web.Request) -> web.Response:
        given = await _told(request)
        self._exchange.set_window(given["key"], NonceWindow(given["ticks"], given["repeats"]))
        return web.json_response({})

    async def _reset(self, _request: web.Request) -> web.Response:
        self._exchange.reset(self._now())
        self._plan.restart()
        return web.json_response({})


async def _told(request: web.Request) -> Any:
    """Return what our own handle says, which may be longer than what Kraken takes."""
    return await request.clone(client_max_size=0).json()


def _show(shown: Page, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with a page; `headers` go before its own."""
    return web.Response(
        status=shown.status, text=shown.text, content_type="text/html", headers={**shown.headers, **(headers or {})}
    )


def _go_on(fault: Fault | None, rest: Callable[[], object]) -> None:
    """Run the rest of a call later if its fault says that it arrives late."""
    if fault is not None and fault.late is not None:
        asyncio.get_running_loop().call_later(fault.late, rest)


class _Closed(web.Response):
    """The end of a connection, which takes as long to the client as an answer; it goes nowhere itself."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


def _close(request: web.Request, *, reset: bool) -> None:
    """Close the connection at once; with a reset, as systems do when a program has not read everything."""
    transport = request.transport
    if transport is None:  # the client has closed it already
        return
    if reset:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


@web.middleware
async def _always_like_kraken(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer in Kraken's format in every case, except to a client that uses this as its HTTPS proxy."""
    if request.method == "CONNECT":
        return _show(page(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, request.path))
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        error = "EAPI:Bad request"
    except web.HTTPException:
        error = "EGeneral:Unknown method"
    except ConnectionError:
        raise  # the client is gone and can't get the answer
    except Exception:
        _logger.exception("The simulator has a bug: %s failed", request.path)
        error = "EGeneral:Internal error"
    return web.json_response({"error": [error]})


async def _serve(startup: Startup) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, over.set)

    settings = Settings.read(startup.settings)
    now = time.time() + settings.clock_offset
    exchange = Exchange(startup.keys, settings, seed=startup.seed, now=now)
    app = Server(exchange, startup.faults, seed=startup.seed).app()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE)
    await runner.setup()
    try:
        site = web.TCPSite(runner, startup.host, startup.port, backlog=_BACKLOG)
        try:
            await site.start()
        except OSError as error:
            children.say({"error": f"can't listen on {startup.host}:{startup.port}: {error.strerror}"})
            return
        children.say({"port": runner.addresses[0][1]})
        threading.Thread(target=_wait_for_end_of_stdin, args=(loop, over), name="stdin", daemon=True).start()
        await over.wait()
    finally:
        await runner.cleanup()


def _wait_for_end_of_stdin(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    with suppress(RuntimeError):  # the loop may have ended for another reason
        loop.call_soon_threadsafe(over.set)


def main() -> None:
    """Run the server until stdin closes."""
    # When a client under test violates HTTP, that is not worth a log line. Our own bugs go to our own logger.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    startup = next(children.told(), None)
    if startup is not None:  # else the parent has ended already
        asyncio.run(_serve(Startup(**startup)))


if __name__ == "__main__":
    main()
