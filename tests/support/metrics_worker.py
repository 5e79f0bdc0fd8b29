"""A program that forks, as gunicorn does: the parent sets up the metrics, and its two children hold the lock."""

from __future__ import annotations

import os
import sys

from kraken_nonce_redis import CallLock, prometheus
from tests.support.faces import KEY


def main(url: str, times: int) -> None:
    """Hold the lock once here, and so many times in each child."""
    prometheus.install()
    lock = CallLock.from_url(url, KEY)
    with lock.hold():
        pass
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            for _ in range(times):
                with lock.hold():
                    pass
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
