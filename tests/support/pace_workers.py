"""Processes of their own that call the simulator through krakenex, or hold the lock until they are killed.

`Worker` starts one: ``python -m tests.support.pace_workers``. It reads what to do from stdin as JSON, says that it is
ready, begins at the next line and says what happened as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

    from kraken_nonce_redis import Pace


class Worker:
    """One process."""

    def __init__(self, job: str, **what: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.pace_workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        )
        self._write(json.dumps({"job": job, **what}))

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Return the next thing that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker has died"
        return json.loads(line)

    def begin(self, at: float = 0.0) -> None:
        """Let it begin at a time of `time.monotonic`, which processes share."""
        self._write(json.dumps(at))

    def kill(self) -> None:
        """Kill -9 it."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def all_at_once(workers: list[Worker]) -> list[Any]:
    """Let workers begin at the same moment as soon as all are ready; return what each says at its end."""
    for worker in workers:
        assert worker.hear() == "ready"
    begin = time.monotonic() + 0.05
    for worker in workers:
        worker.begin(begin)
    return [worker.hear() for worker in workers]


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _pace(settings: dict[str, Any]) -> Pace:
    from kraken_nonce_redis.pace import Pace, Tier  # noqa: PLC0415

    tier = settings.get("tier")
    return Pace(**(settings | {"tier": Tier(*tier) if isinstance(tier, list) else tier}))


def _calls(what: dict[str, Any]) -> None:
    """Call methods in turn, for a time or a number of calls; say of each when it was asked for, sent and answered."""
    from kraken_nonce_redis.krakenex import API  # noqa: PLC0415

    class Api(API):
        sent = 0.0

        def _nonce(self) -> int:
            nonce: int = super()._nonce()
            self.sent = time.monotonic()
            return nonce

    api = Api(what["key"], what["secret"], redis=what["redis"], pace=_pace(what["pace"]), wait_timeout=90)
    api.uri = what["simulator"]
    with api._guard.lock("another key").hold():  # connects, and loads the script
        pass
    random.seed(what["number"])
    _say("ready")
    begin = json.loads(sys.stdin.readline())
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
    _say({"calls": calls, "errors": errors})


def _holds(what: dict[str, Any]) -> None:
    """Get the lock and keep it until killed."""
    from kraken_nonce_redis import CallLock  # noqa: PLC0415

    lock = CallLock.from_url(what["redis"], what["key"], ttl=what["ttl"], pace=_pace(what["pace"]))
    with CallLock.from_url(what["redis"], "another key").hold():  # connects, and loads the script
        pass
    _say("ready")
    sys.stdin.readline()
    with lock.hold(cost=what["cost"]):
        _say("holding")
        time.sleep(3600)


if __name__ == "__main__":
    _job = json.loads(sys.stdin.readline())
    {"calls": _calls, "holds": _holds}[_job.pop("job")](_job)
