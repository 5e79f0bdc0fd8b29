"""One of the demo's processes: a bot that makes private calls through krakenex, and says what came of them.

`demo` starts it as `python -m kraken_nonce_redis.cli.demo_worker`, and tells it what to do.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import threading
import time
from typing import Any, Final

import krakenex
import requests

import kraken_nonce_redis.krakenex
from kraken_nonce_redis import _children as children

TIMEOUT: Final = 10.0
TRIES: Final = 3
INVALID_NONCE: Final = "EAPI:Invalid nonce"
_PRICES: Final = 10_000
"""Prices that each process has for its orders; in steps of 0.1."""


def main() -> None:
    """Do what the parent says until it is gone."""
    logging.disable()  # what is settled is counted, and would run into the bars
    told: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    exchange = told.get()
    try:
        while True:
            _run(exchange, told.get(), told)
    except Exception as error:  # noqa: BLE001 - the parent shows it, whatever it is
        children.say({"failed": f"{type(error).__name__}: {error}"})


def _listen(told: queue.Queue[Any]) -> None:
    for message in children.told():
        told.put(message)
    os._exit(0)  # the parent is done or gone


def _run(exchange: dict[str, str], wish: dict[str, Any], told: queue.Queue[Any]) -> None:
    api = _client(exchange, ours=wish["ours"])
    api.query_public("Time", timeout=TIMEOUT)  # opens a connection before the clock starts
    children.say({"ready": True})
    begin = told.get()["begin"]
    end = begin + wish["seconds"]
    if wish["every"]:
        for number in itertools.count():
            due = begin + number * wish["every"]
            if due >= end:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            price = f"{(wish['number'] * _PRICES + number + 1) / 10:.1f}"
            again = _place(api, price)
            children.say({"price": price, "seconds": time.monotonic() - due, "again": again})
    else:
        carried_out = 0
        while time.monotonic() < end:
            carried_out += not api.query_private("Balance", timeout=TIMEOUT)["error"]
        children.say({"carried_out": carried_out})
    api.close()
    children.say({"done": True})


def _place(api: Any, price: str) -> int:
    """Place an order as many bots do: try again when there is no answer or the nonce is refused.

    Return how often it was tried again.
    """
    order = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": price, "volume": "0.001"}
    tries = 0
    while tries < TRIES:
        tries += 1
        with contextlib.suppress(requests.RequestException):
            answer = api.query_private("AddOrder", dict(order), timeout=TIMEOUT)
            if INVALID_NONCE not in answer["error"]:
                break
    return tries - 1


def _client(exchange: dict[str, str], *, ours: bool) -> Any:
    key, secret = exchange["key"], exchange["secret"]
    api = (
        kraken_nonce_redis.krakenex.API(key, secret, redis=exchange["redis"], namespace=exchange["namespace"])
        if ours
        else krakenex.API(key, secret)
    )
    api.uri = exchange["uri"]
    api.session.trust_env = False  # the exchange is on this machine: no proxy
    return api


if __name__ == "__main__":
    main()
