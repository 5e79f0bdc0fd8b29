"""The trail of an API key as people read it: entries of two streams that the scripts write; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from kraken_nonce_redis._redis.command import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kraken_nonce_redis._redis.command import Reply

RARE: Final = (
    "settled",
    "unknown",
    "forgotten",
    "cleared",
    "raised",
    "healed",
    "lost",
    "unlocked",
    "cool-down",
    "cool-down-ended",
)
"""The kinds of entries that are always written."""
FULL: Final = ("lease", "extended", "reserved")
"""Those of the full trail."""
MOST: Final = 500
"""Entries that are read at once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened once.

    Attributes:
        id: of the entry in its stream; it sorts by time.
        fields: what the entry holds, the kind among them, by name. Entries of other programs may hold anything.
    """

    id: tuple[int, int]
    fields: Mapping[str, str]

    @property
    def time(self) -> int:
        """The server's time, ns since 1970."""
        return self.id[0] * 10**6

    @property
    def kind(self) -> str:
        """What happened; another word than those in `RARE` and `FULL` if a later version wrote it."""
        return self.fields.get("kind", "")


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, the newest first.

    Attributes:
        now: the server's time, ns since 1970.
        entries: as many as were asked for, fewer if there are no more.
    """

    now: int
    entries: tuple[Entry, ...]


def read(stream: str, *, after: tuple[int, int] | None = None, before: tuple[int, int] | None = None) -> Command[Page]:
    """Read the newest entries of a stream, those between two ids if they are given."""
    return Command("log", (stream,), (_bound(after, "-"), _bound(before, "+"), MOST), _read)


def _bound(entry: tuple[int, int] | None, none: str) -> str:
    return none if entry is None else "({}-{}".format(*entry)


def _read(reply: Reply) -> Page:
    words = iter(reply[1:])
    now = int(next(words)) * 1000
    entries: list[Entry] = []
    for name in words:
        time, _, number = name.partition("-")
        pairs = [(unquote(next(words)), unquote(next(words))) for _ in range(int(next(words)))]
        entries.append(Entry((int(time), int(number)), dict(pairs)))
    return Page(now, tuple(entries))
