"""What all objects of this process share: connections, and the highest nonces seen.

A forked child shares nothing with its parent but what the parent had seen. That is noticed at the next use, by the
number of the process: not every fork is one that Python hears of (uWSGI forks in C). Monkey-patching, by which gevent
puts locks of its own in the place of Python's, is a new beginning as well: whoever waits for an old lock would stop all
greenlets.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from kraken_nonce_redis._redis.places import Places

if TYPE_CHECKING:
    from collections.abc import Hashable


class Process:
    """One process, from its start or fork.

    Attributes:
        places: what has been seen.
        stores: the stores of threads, by connection settings; each begins anew by itself.
        turn: to be held while a store is looked up and made.
        successor: the one that comes after it in this process, under None.
    """

    def __init__(self, places: Places, stores: dict[Hashable, Any]) -> None:
        self.places = places
        self.stores = stores
        self.turn = threading.RLock()
        self.successor: dict[None, Process] = {}
        self._pid = os.getpid()
        self._lock_type = threading.Lock

    @property
    def is_this(self) -> bool:
        """Whether it is the one that runs."""
        return self._pid == os.getpid() and self._lock_type is threading.Lock


_current = Process(Places(), {})


def current() -> Process:
    """Return the process that runs."""
    global _current  # noqa: PLW0603
    process = _current
    if not process.is_this:
        process.places.begin_anew()
        # Several threads may come here at once; this is atomic.
        process = _current = process.successor.setdefault(None, Process(process.places, process.stores))
    return process
