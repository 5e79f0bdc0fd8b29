"""Processes that call the exchange again and again through krakenex, or stop in the middle of it."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from kraken_nonce_redis import CallLock, KrakenNonceError, krakenex
from tests.support.children import Child

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Caller(Child):
    """A process that asks for the balance from when it is told to, until it is told to stop."""

    def __init__(self, access: tuple[str, str, str], redis: str, **options: Any) -> None:
        super().__init__(_call, access, redis, options)

    def begin(self) -> None:
        """Let it make calls."""
        self.say("go")

    def stop(self) -> int:
        """Let it stop; return how many calls it has made."""
        self.say("stop")
        return int(self.hear())


def _call(pipe: Connection, access: tuple[str, str, str], redis: str, options: dict[str, Any]) -> None:
    uri, key, secret = access
    with closing(krakenex.API(key, secret, redis=redis, base_url=uri, **options)) as api:
        pipe.recv()
        calls = 0
        while not pipe.poll():
            assert api.query_private("Balance")["error"] == []
            calls += 1
        pipe.send(calls)


class Holder(Child):
    """A process that holds the lock and does nothing; it says so first."""

    def __init__(self, redis: str, key: str, name: str, **settings: Any) -> None:
        super().__init__(_hold, redis, key, name, settings)
        assert self.hear() == "held"


def _hold(pipe: Connection, redis: str, key: str, name: str, settings: dict[str, Any]) -> None:
    auto_renew = settings.pop("auto_renew", False)
    with CallLock.from_url(redis, key, name=name, **settings).hold(auto_renew=auto_renew):
        pipe.send("held")
        time.sleep(1000)


class CalledOnce(Child):
    """A process that makes one call, says how it ended, and stays."""

    def __init__(self, access: tuple[str, str, str], redis: str, **options: Any) -> None:
        super().__init__(_call_once, access, redis, options)


def _call_once(pipe: Connection, access: tuple[str, str, str], redis: str, options: dict[str, Any]) -> None:
    uri, key, secret = access
    with closing(krakenex.API(key, secret, redis=redis, base_url=uri, **options)) as api:
        try:
            pipe.send(api.query_private("Balance")["error"])
        except KrakenNonceError as error:
            pipe.send(type(error).__name__)
        time.sleep(1000)
