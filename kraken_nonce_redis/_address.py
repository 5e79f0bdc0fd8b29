"""Where Kraken is, for the clients and for ``kraken-nonce check``: a simulated one can take its place."""

from __future__ import annotations

import functools
import logging
import os
from typing import Final
from urllib.parse import urlsplit

from kraken_nonce_redis.errors import InvalidArgument

KRAKEN: Final = "https://api.kraken.com"
VARIABLE: Final = "KRAKEN_API_URL"
"""Of the environment; an empty one is not set."""

logger = logging.getLogger("kraken_nonce_redis")


def checked(value: object, name: str = "base_url") -> str:
    """Return a URL of Kraken without a slash at its end. Raises `InvalidArgument`, which doesn't show it."""
    url = value.strip() if isinstance(value, str) else ""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        # Before an @ stands a password. python-kraken-sdk would leave out a path.
        good = good and not parts.path.strip("/") and url.isprintable() and set(url).isdisjoint("@?# ")
    except ValueError:
        good = False
    if not good:
        raise InvalidArgument(name, "must be http://HOST[:PORT] or https://HOST[:PORT], without a user or password")
    return url.rstrip("/")


def chosen(base_url: str | None, own: str, *, explicit: bool = False) -> str:
    """Return the URL that a client is to use. One that isn't Kraken's is told by a WARNING, once.

    Args:
        base_url: what its user has given for that; it goes first.
        own: what the client would use by itself. It goes next if it isn't Kraken's or is ``explicit``.
        explicit: whether its user has set that.

    Then comes ``KRAKEN_API_URL``, and last Kraken. Raises `InvalidArgument`.
    """
    in_environment = os.environ.get(VARIABLE, "").strip()
    if base_url is not None:
        url = checked(base_url)
    elif explicit or not in_environment or own.rstrip("/") != KRAKEN:
        url = own
    else:
        url = checked(in_environment, VARIABLE)
    _tell(url)
    return url


@functools.cache
def _tell(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return  # the client will say what is wrong with it
    if parts.hostname and not f".{parts.hostname}".endswith(".kraken.com"):
        logger.warning("Calls go to %s://%s instead of Kraken", parts.scheme, parts.netloc.rpartition("@")[2])
