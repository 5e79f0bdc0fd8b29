"""The Redis protocol, versions 2 and 3: words to bytes, bytes to replies; no I/O.

redis-py's own parsers read from a socket and stop in the middle of a reply when it times out; here, many callers
share one stream, so bytes are taken whenever they come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis.connection import DefaultParser
from redis.exceptions import InvalidResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INCOMPLETE: Final = object()
"""Stands for a reply of which the end has not come yet."""

_END: Final = b"\r\n"
_parse_error: Final[Callable[[str], Exception]] = DefaultParser.parse_error


class Push(list[Any]):
    """What a server says unasked, in version 3 of the protocol."""


def pack(words: Sequence[str | int]) -> bytes:
    """Return words as a request."""
    return b"*%d\r\n" % len(words) + b"".join(map(pack_word, words))


def pack_word(word: str | int) -> bytes:
    """Return one word as a part of a request."""
    data = str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


class _Incomplete(Exception):
    """The end of a reply has not come yet."""


class Parser:
    """Makes replies of the bytes that come in, however they are cut.

    Strings come as bytes, whole numbers as int, errors as redis-py's exceptions, lists and sets as lists, maps as
    dicts.
    """

    def __init__(self) -> None:
        self._data = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take more bytes."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def next(self) -> Any:
        """Return the next reply, or `INCOMPLETE`. Raises redis-py's `InvalidResponse`."""
        if self._at == len(self._data):
            return INCOMPLETE
        try:
            reply, self._at = self._reply(self._at)
        except _Incomplete:
            return INCOMPLETE
        except ValueError as error:
            raise InvalidResponse(f"not the Redis protocol: {error}") from None
        return reply

    def _reply(self, at: int) -> tuple[Any, int]:
        data = self._data
        end = data.find(_END, at)
        if end < 0:
            raise _Incomplete
        kind, line, start = data[at : at + 1], data[at + 1 : end], end + 2
        if kind == b"$":
            return self._text(int(line), start)
        simple = _SIMPLE.get(kind)
        return (simple(line), start) if simple is not None else self._other(kind, int(line), start)

    def _other(self, kind: bytes, length: int, start: int) -> tuple[Any, int]:
        reply: Any
        if kind in (b"!", b"="):
            text, start = self._text(length, start)
            reply = _error(text) if kind == b"!" else text[4:]
        elif kind in (b"*", b"~", b">"):
            reply, start = self._list(length, start)
            if kind == b">":
                reply = Push(reply)
        elif kind == b"%":
            items, start = self._list(2 * length, start)
            reply = dict(zip(items[::2], items[1::2], strict=True))
        else:
            raise ValueError(f"a reply begins with {kind!r}")
        return reply, start

    def _text(self, length: int, start: int) -> tuple[Any, int]:
        if length < 0:
            return None, start
        end = start + length
        if end + 2 > len(self._data):
            raise _Incomplete
        return self._data[start:end], end + 2

    def _list(self, length: int, start: int) -> tuple[Any, int]:
        if length < 0:
            return None, start
        items: list[Any] = []
        for _ in range(length):
            item, start = self._reply(start)
            items.append(item)
        return items, start


def _error(text: bytes) -> Exception:
    return _parse_error(text.decode("utf-8", "replace"))


_SIMPLE: Final[dict[bytes, Callable[[bytes], Any]]] = {
    b"+": bytes,
    b"-": _error,
    b":": int,
    b"(": int,
    b",": float,
    b"#": b"t".__eq__,
    b"_": lambda _: None,
}
