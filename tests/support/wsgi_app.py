"""A web application that holds the lock for each request, and has done so before its server forks the workers.

REDIS_URL and RECORD in the environment say where, and where turns are noted, as in tests.support.forks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kraken_nonce_redis import CallLock
from tests.support.faces import KEY
from tests.support.forks import TTL, turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_lock = CallLock.from_url(os.environ["REDIS_URL"], KEY, ttl=TTL)
_other = CallLock.from_url(os.environ["REDIS_URL"], "another key", ttl=TTL)
turn(_lock, os.environ["RECORD"])
_other.acquire()  # the parent's for ever, and none of its children's


def application(_environ: object, start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """Hold the lock for a moment."""
    assert _other.lease is None
    turn(_lock, os.environ["RECORD"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
