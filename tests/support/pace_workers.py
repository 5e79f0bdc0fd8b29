"""Processes of their own that call the simulator through krakenex, or hold the lock until they are killed.

Each says that it is ready, begins when it is told to and says what happened.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from kraken_nonce_redis import CallLock
from kraken_nonce_redis.krakenex import API
from tests.support.children import Child

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Worker(Child):
    """One process."""

    def __init__(self, job: str, **what: Any) -> None:
        super().__init__({"calls": _calls, "holds": _holds}[job], what)

    def begin(self, at: float = 0.0) -> None:
        """Let it begin at a time of `time.monotonic`, which processes share."""
        self.say(at)


def all_at_once(workers: list[Worker]) -> list[Any]:
    """Let workers begin at the same moment as soon as all are ready; return what each says at its end."""
    for worker in workers:
        assert worker.hear() == "ready"
    begin = time.monotonic() + 0.05
    for worker in workers:
        worker.begin(begin)
    return [worker.hear(180) for worker in workers]


class _Api(API):
    """Knows when it sent its last call."""

    sent = 0.0

    def _nonce(self) -> int:
        nonce: int = super()._nonce()
        self.sent = time.monotonic()
        return nonce


def _calls(pipe: Connection, what: dict[str, Any]) -> None:
    """Call methods in turn, for a time or a number of calls; say of each when it was asked for, sent and answered."""
    api = _Api(what["key"], what["secret"], redis=what["redis"], pace=what["pace"], wait_timeout=90)
    api.uri = what["simulator"]
    with api._guard.lock("another key").hold():  # connects, and loads the script
        pass
    random.seed(what["number"])
    pipe.send("ready")
    begin = pipe.recv()
    time.sleep(max(begin - time.monotonic(), 0))
    calls: list[tuple[str, float, float, float]] = []
    errors: list[str] = []
    while len(calls) < what["calls"] and time.monotonic() < begin + what["seconds"]:
        method = random.choice(what["methods"])
        asked = time.monotonic()
        answer = api.query_private(method, what["data"])
        calls.append((method, asked, api.sent, time.monotonic()))
        errors += answer["error"]
        time.sleep(random.uniform(*what["rest"]))
    pipe.send({"calls": calls, "errors": errors})


def _holds(pipe: Connection, what: dict[str, Any]) -> None:
    """Get the lock, say its nonce, and keep it until killed."""
    lock = CallLock.from_url(what["redis"], what["key"], ttl=what["ttl"], pace=what["pace"])
    with CallLock.from_url(what["redis"], "another key").hold():  # connects, and loads the script
        pass
    pipe.send("ready")
    pipe.recv()
    with lock.hold(cost=what["cost"]) as lease:
        pipe.send(lease.nonce)
        time.sleep(3600)
