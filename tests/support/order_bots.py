"""Bots that place orders: each kind of client behind one call, what each believes came of it, and bots to kill.

As a program, `python -m tests.support.order_bots SETTINGS` is a bot that places orders until it is killed. It notes
what it learns in a file, each thing at once, as a careful user would.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import ccxt
import requests
from kraken import exceptions as sdk_exceptions

import kraken_nonce_redis.ccxt
import kraken_nonce_redis.ccxt.async_support
from kraken_nonce_redis import NotCarriedOut, OutcomeUnknown, Retries, kraken_sdk
from kraken_nonce_redis import krakenex as our_krakenex
from tests.support.children import Child

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from kraken_nonce_redis.events import Event
    from kraken_nonce_redis.testing import SimulatedOrder

FORM = {"pair": "XBTUSD", "type": "buy", "volume": "0.0001"}
REFUSALS: tuple[type[Exception], ...] = (
    ccxt.BaseError,
    requests.RequestException,
    *(kind for name, kind in vars(sdk_exceptions).items() if name.startswith("Kraken") and isinstance(kind, type)),
)
"""What the clients raise by themselves: by our promise only if nothing was carried out."""


class Bot:
    """One client of ours that places orders, behind plain calls."""

    def __init__(self, uri: str, key: str, secret: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        try:
            self.client = self.run(self.make(uri, key, secret, options))
        except BaseException:
            self._runner.close()
            raise

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:
        """Return the client."""
        raise NotImplementedError

    def order(self, ordertype: str, **more: Any) -> Any:
        """Place an order, with more of its parameters; return Kraken's txid, or "" if Kraken refused.

        Raises what the client does.
        """
        raise NotImplementedError

    def balance(self) -> Any:
        """Make the simplest call that changes nothing."""
        raise NotImplementedError

    def run(self, result: Any) -> Any:
        """Wait for a result if need be."""
        return self._runner.run(result) if inspect.iscoroutine(result) else result

    def close(self) -> None:
        """Close the client."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Krakenex(Bot):
    """krakenex."""

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:  # noqa: D102
        api = our_krakenex.API(key, secret, **options)
        api.uri = uri
        return api

    def order(self, ordertype: str, **more: Any) -> Any:  # noqa: D102
        answer = self.client.query_private("AddOrder", form(ordertype) | more)
        return "" if answer["error"] else answer["result"]["txid"][0]

    def balance(self) -> Any:  # noqa: D102
        return self.client.query_private("Balance")

    def close(self) -> None:  # noqa: D102
        self.client.close()
        super().close()


class Ccxt(Bot):
    """ccxt."""

    module: Any = kraken_nonce_redis.ccxt

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:  # noqa: D102
        urls = {"api": {"public": uri, "private": uri}}
        config = {"apiKey": key, "secret": secret, "enableRateLimit": False, "urls": urls}
        return self.module.kraken(config | options)

    def order(self, ordertype: str, **more: Any) -> Any:  # noqa: D102
        price = 20000 if ordertype == "limit" else None
        amount = float(more.pop("volume", FORM["volume"]))
        return self.run(self.client.create_order("BTC/USD", ordertype, "buy", amount, price, more))["id"]

    def balance(self) -> Any:  # noqa: D102
        return self.run(self.client.fetch_balance())

    def close(self) -> None:  # noqa: D102
        if self.client.synchronous:
            self.client.session.close()
        else:
            self.client.timeout_on_exit = 1
            self.run(self.client.close())
        super().close()


class AsyncCcxt(Ccxt):
    """ccxt with asyncio."""

    module = kraken_nonce_redis.ccxt.async_support


class Sdk(Bot):
    """python-kraken-sdk."""

    kind: Any = kraken_sdk.Trade

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:  # noqa: D102
        return self.kind(key=key, secret=secret, url=uri, **options)

    def order(self, ordertype: str, **more: Any) -> Any:  # noqa: D102
        price = {"price": "20000"} if ordertype == "limit" else {}
        volume = more.pop("volume", FORM["volume"])
        order = {"ordertype": ordertype, "side": "buy", "pair": "XBTUSD", "volume": volume, **price}
        return self.run(self.client.create_order(**order, extra_params=more or None))["txid"][0]

    def balance(self) -> Any:  # noqa: D102
        return self.run(self.client.request("POST", "/0/private/Balance"))


class AsyncSdk(Sdk):
    """python-kraken-sdk with asyncio."""

    kind = kraken_sdk.AsyncTrade

    def close(self) -> None:  # noqa: D102
        self.run((self.client.close if hasattr(self.client, "close") else self.client.async_close)())
        super().close()


BOTS: dict[str, type[Bot]] = {
    "krakenex": Krakenex,
    "ccxt": Ccxt,
    "ccxt-async": AsyncCcxt,
    "sdk": Sdk,
    "sdk-async": AsyncSdk,
}


def form(ordertype: str) -> dict[str, str]:
    """Return the parameters of AddOrder."""
    return {**FORM, "ordertype": ordertype, **({"price": "20000"} if ordertype == "limit" else {})}


@dataclass
class Beliefs:
    """What a client believes of the orders that it was asked to place."""

    placed: list[str] = field(default_factory=list)
    """Kraken's txids."""
    absent: list[str] = field(default_factory=list)
    """cl_ord_id of those that were not placed, as `NotCarriedOut` says."""
    unknown: list[str] = field(default_factory=list)
    """cl_ord_id of those that may have been placed, as `OutcomeUnknown` says."""
    refused: int = 0

    def ask(self, bot: Bot, ordertype: str) -> None:
        """Have a bot place an order, and note what it believes."""
        try:
            txid = bot.order(ordertype)
        except NotCarriedOut as error:
            self.absent.append(error.cl_ord_id)
        except OutcomeUnknown as error:
            self.unknown.append(error.cl_ord_id)
        except REFUSALS:
            self.refused += 1
        else:
            if txid:
                self.placed.append(txid)
            else:
                self.refused += 1

    def check(self, orders: Iterable[SimulatedOrder], wanted: int) -> None:
        """Assert that they are true: no order twice, none missing, none there that nobody knows of."""
        ids = {order.txid: order.cl_ord_id or "" for order in orders}
        assert len(self.placed) + len(self.absent) + len(self.unknown) + self.refused == wanted
        assert len(set(ids.values())) == len(ids), "an order was placed twice"
        assert len(set(self.placed)) == len(self.placed), "one order was taken for two"
        assert set(self.placed) <= set(ids), "an order is missing that was believed placed"
        surprising = {ids[txid] for txid in set(ids) - set(self.placed)}
        assert surprising <= set(self.unknown), "an order was placed that nobody was told of"


# A bot in a process of its own.


class Hanging(our_krakenex.API):
    """A krakenex that stops for ever at one point of a call, for somebody to kill it there."""

    at = ""

    def _query(self, urlpath: str, data: Any, headers: Any = None, timeout: Any = None) -> Any:
        self.hang("signed")
        answer = super()._query(urlpath, data, headers, timeout)
        self.answered(answer)
        self.hang("answered")
        return answer

    def answered(self, answer: Any) -> None:
        """Hear of an answer."""

    def hang(self, point: str) -> None:
        """Stop if it is here."""
        if point == self.at:
            note("hangs")
            time.sleep(1000)


_notes = -1


def note(what: str, **more: Any) -> None:
    """Note something where a kill -9 can't take it back."""
    os.write(_notes, json.dumps({"what": what, "pid": os.getpid(), **more}).encode() + b"\n")


class Noting(Hanging):
    """Notes an order's answer as soon as it is there, which is before the lock is released."""

    def answered(self, answer: Any) -> None:  # noqa: D102
        txid = (answer.get("result") or {}).get("txid")
        if txid:
            note("placed", txid=txid[0])


def note_event(event: Event) -> None:
    """Note an event."""
    note(type(event).__name__, **asdict(event))


def main(
    _pipe: Connection,
    notes: Path,
    access: tuple[str, str, str],
    kind: str,
    ordertype: str,
    hang: str,
    orders: int,
    options: dict[str, Any],
) -> None:
    """Place orders one after the other, for ever or so many."""
    global _notes  # noqa: PLW0603
    _notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    bot = BOTS[kind](*access, on_event=note_event, **options)
    if isinstance(bot, Krakenex):
        bot.client.__class__ = Noting
        bot.client.at = hang
    for _ in range(orders):
        beliefs = Beliefs()
        if isinstance(bot, Krakenex):
            cl_ord_id = str(uuid.uuid4())
            note("wants", cl_ord_id=cl_ord_id)
            with contextlib.suppress(NotCarriedOut, OutcomeUnknown, requests.RequestException):
                bot.client.query_private("AddOrder", {**form(ordertype), "cl_ord_id": cl_ord_id})
        else:
            beliefs.ask(bot, ordertype)
    note("ends")


class BotProcess(Child):
    """Such a process, as a test sees it."""

    def __init__(
        self,
        notes: Path,
        access: tuple[str, str, str],
        *,
        bot: str = "krakenex",
        ordertype: str = "limit",
        hang: str = "",
        orders: int = 10**9,
        retries: Retries | None = None,
        **options: Any,
    ) -> None:
        options |= {"retries": retries or Retries()}
        super().__init__(main, notes, access, bot, ordertype, hang, orders, options)


def read_notes(path: Path) -> list[dict[str, Any]]:
    """Return what bots have noted."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
