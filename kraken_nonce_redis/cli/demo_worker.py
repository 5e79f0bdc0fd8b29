"""One of the demo's processes: makes private calls through krakenex until its time is up, and reports them.

`demo` starts it as `python -m kraken_nonce_redis.cli.demo_worker`, and tells it what to do.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import Any, Final
from urllib.parse import parse_qs

import krakenex

import kraken_nonce_redis.krakenex
from kraken_nonce_redis import _children as children

TIMEOUT: Final = 10.0
INVALID_NONCE: Final = "EAPI:Invalid nonce"
_ORDER: Final = {"pair": "XBTUSD", "type": "buy", "ordertype": "market", "volume": "0.001"}
_CALLS: Final[tuple[tuple[str, dict[str, str]], ...]] = (("Balance", {}), ("Balance", {}), ("AddOrder", _ORDER))


def main() -> None:
    """Do what the parent says until it is gone."""
    told: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    exchange = told.get()
    try:
        while True:
            _phase(exchange, told.get(), told)
    except Exception as error:  # noqa: BLE001 - the parent shows it, whatever it is
        children.say({"failed": f"{type(error).__name__}: {error}"})


def _listen(told: queue.Queue[Any]) -> None:
    for message in children.told():
        told.put(message)
    os._exit(0)  # the parent is done or gone


def _phase(exchange: dict[str, str], wish: dict[str, Any], told: queue.Queue[Any]) -> None:
    api = _client(exchange, ours=wish["ours"])
    api.query_public("Time", timeout=TIMEOUT)  # opens a connection before the clock starts
    children.say({"ready": True})
    told.get()
    until = time.monotonic() + wish["seconds"]
    turn = 0
    while time.monotonic() < until:
        method, data = _CALLS[turn % len(_CALLS)]
        turn += 1
        answer = api.query_private(method, dict(data), timeout=TIMEOUT)
        nonce = parse_qs(api.response.request.body)["nonce"][0]
        children.say({"nonce": int(nonce), "refused": INVALID_NONCE in answer["error"]})
    api.close()
    children.say({"done": True})


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
