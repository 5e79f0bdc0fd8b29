"""How texts stand in what Redis gets, and what it gives as text; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Iterable


def text(value: object) -> str:
    """Return what redis-py read as text, whether or not the client decodes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def word(text: str) -> str:
    """Return a text as it stands in a member or an intent: without spaces or bars."""
    return quote(text, safe="/:@")


def join(words: Iterable[str]) -> str:
    """Return several texts as one word, ``-`` for none."""
    return ",".join(quote(word, safe="").replace("-", "%2D", word == "-") for word in words) or "-"


def split(words: str) -> tuple[str, ...]:
    """Return the texts of a word that `join` has made."""
    return () if words == "-" else tuple(map(unquote, words.split(",")))
