"""How commands write lengths of time, moments and foreign text for people."""

from __future__ import annotations

from datetime import UTC, datetime


def span(seconds: float) -> str:
    """Return a length of time as people say it."""
    for unit, length, enough in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < enough * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def lead(nanoseconds: int) -> str:
    """Return how far a nonce is from the server's clock, in words."""
    return f"{span(abs(nanoseconds) / 1e9)} {'ahead of' if nanoseconds > 0 else 'behind'} the server's clock"


def moment(nanoseconds: int) -> str:
    """Return a time since 1970 in UTC, exact to the ms."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest // 10**6:03} UTC"


def printable(text: str) -> str:
    """Return foreign text without what could control a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
