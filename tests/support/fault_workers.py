"""Takes nonces and leases in a process of its own while something goes wrong, and notes everything that happens.

A note is a line for `tests.support.histories`, written before the next thing is done, so that those of a killed process
are there as well.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from typing import TYPE_CHECKING, Any

from kraken_nonce_redis.events import LeaseEndedEarly
from tests.support.faces import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis.events import Event
    from tests.support.faces import Face

PATIENCE = 4.0
"""Seconds that a caller waits for the lock, every other time; else as long as it takes."""
HOLDERS = 2
"""Callers of a process that want the lock all the time."""


class Recorder:
    """Callers of one process: one takes nonces, the others hold the lock; all go on until they are told to end."""

    def __init__(self, face: Face, url: str, path: str, ttl: float, to_the_end: float) -> None:
        self._nonces = face.allocator_from_url(url, KEY)
        self._lock = face.lock_from_url(url, KEY, ttl=ttl, on_event=self._hear)
        self._held: dict[int, int] = {}
        """Nonces of leases, and the numbers of their calls."""
        self._to_the_end = to_the_end
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._numbers = itertools.count()
        self._chance = random.Random()
        self._going = True
        self._callers = [face.start(self._keep_on, self._take)]
        self._callers += [face.start(self._keep_on, self._hold) for _ in range(HOLDERS)]

    def end(self) -> None:
        """Let the callers end, and wait for them; one that does not come back is for the judge to see."""
        self._going = False
        for caller in self._callers:
            try:
                caller.result(3 * PATIENCE)
            except AssertionError:
                break
        time.sleep(0.5)  # what became of the last releases is heard a little later
        os.close(self._file)

    def _note(self, number: int, event: str, *details: Any) -> None:
        os.write(self._file, json.dumps([number, event, time.monotonic(), *details]).encode() + b"\n")

    def _hear(self, event: Event) -> None:
        if isinstance(event, LeaseEndedEarly):
            self._note(self._held[event.nonce], "told")

    def _keep_on(self, call: Callable[[int], None]) -> None:
        while self._going:
            number = next(self._numbers)
            error = ""
            try:
                call(number)
            except Exception as problem:  # noqa: BLE001 - the judge wants to know
                error = type(problem).__name__
            self._note(number, "over", error)
            time.sleep(0.02 if error else 0.002)

    def _take(self, number: int) -> None:
        block = self._chance.choice((1, 1, 1, self._chance.randint(2, 500)))
        self._note(number, "asked", "next" if block == 1 else "reserve")
        if block == 1:
            nonce = self._nonces.next()
            self._note(number, "had", nonce, nonce, 0)
        else:
            nonces = self._nonces.reserve(block)
            self._note(number, "had", nonces[0], nonces[-1], 0)

    def _hold(self, number: int) -> None:
        self._note(number, "asked", "hold")
        with self._lock.hold(self._chance.choice((PATIENCE, None))) as lease:
            until = time.monotonic() + lease.remaining()
            self._held[lease.nonce] = number
            self._note(number, "had", lease.nonce, lease.nonce, until)
            if self._chance.random() < self._to_the_end:
                while lease.remaining() > 0:
                    time.sleep(0.005)
            else:
                time.sleep(0.003)
            last = [lease.next_nonce() for _ in range(self._chance.randint(0, 3))]
            self._note(number, "left", last[-1] if last else lease.nonce)
