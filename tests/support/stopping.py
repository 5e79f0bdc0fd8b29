"""A bot that is told to stop while one of its callers places an order and another one waits.

Started as ``python -m tests.support.stopping WAY SECONDS URL SIMULATOR KEY SECRET``. It says ``ready`` when it may be
stopped by SIGTERM, and then what became of its callers and what `shutdown` returned, a line each.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import kraken_nonce_redis
import kraken_nonce_redis.asyncio
from kraken_nonce_redis import KrakenNonceError, Retries
from tests.support.order_bots import AsyncSdk, Krakenex

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

OPTIONS: Final[dict[str, Any]] = {"ttl": 30.0, "retries": Retries(settle_waits=(0.1, 0.2)), "patience": None}
BEFORE: Final = 0.3
"""Seconds until the order is under way, and until the other caller waits."""
LONG: Final = 60.0


def say(*words: object) -> None:
    """Say a line."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")  # whole, beside what other threads say
    sys.stdout.flush()


def tell(who: str, call: Callable[[], Any]) -> None:
    """Make a call, and say what became of it."""
    try:
        call()
    except KrakenNonceError as error:
        say(who, type(error).__name__, error.carried_out)
    else:
        say(who, "answered")


async def tell_async(who: str, call: Coroutine[Any, Any, Any]) -> None:
    """Do the same in asyncio."""
    try:
        await call
    except KrakenNonceError as error:
        say(who, type(error).__name__, error.carried_out)
    else:
        say(who, "answered")


def threads(seconds: float, *access: str, on_signal: bool, **options: Any) -> None:
    """Make the calls in threads. The main thread stops them, or waits for the signal to have its effect."""
    bot = Krakenex(*access, **options)
    calls = {"order": lambda: bot.order("limit"), "waiting": bot.balance}
    stop = threading.Event()
    if on_signal:
        kraken_nonce_redis.shutdown_on_signal(seconds)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    begun = [threading.Thread(target=tell, args=call, daemon=True) for call in calls.items()]
    for thread in begun:
        thread.start()
        time.sleep(BEFORE)
    say("ready")
    if on_signal:
        begun[1].join()
        tell("later", bot.balance)
        time.sleep(LONG)
    stop.wait()
    say("shutdown", kraken_nonce_redis.shutdown(seconds))
    begun[1].join()
    tell("later", bot.balance)


async def tasks(seconds: float, *access: str, on_signal: bool, **options: Any) -> None:
    """Make the calls in tasks."""
    client = await AsyncSdk.make(AsyncSdk.__new__(AsyncSdk), *access, options)
    order = {"ordertype": "limit", "side": "buy", "pair": "XBTUSD", "volume": "0.0001", "price": "20000"}

    def balance() -> Coroutine[Any, Any, Any]:
        return client.request("POST", "/0/private/Balance")

    stop = asyncio.Event()
    if on_signal:
        kraken_nonce_redis.shutdown_on_signal(seconds)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    begun = []
    for who, call in (("order", client.create_order(**order)), ("waiting", balance())):
        begun.append(asyncio.create_task(tell_async(who, call)))
        await asyncio.sleep(BEFORE)
    say("ready")
    if on_signal:
        await begun[1]
        await tell_async("later", balance())
        await asyncio.sleep(LONG)
    await stop.wait()
    say("shutdown", await kraken_nonce_redis.asyncio.shutdown(seconds))
    await begun[1]
    await tell_async("later", balance())


if __name__ == "__main__":
    way, how, given, redis, *rest = sys.argv[1:]
    options = OPTIONS | {"redis": redis, "on_signal": how == "signal"}
    if way == "threads":
        threads(float(given), *rest, **options)
    else:
        asyncio.run(tasks(float(given), *rest, **options))
