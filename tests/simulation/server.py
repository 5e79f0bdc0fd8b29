"""A Redis in memory that runs the real Lua scripts: as much of it as they use, with a clock that is told the time.

A property test holds it against a real server.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from lupa import lua51

from kraken_nonce_redis._redis import scripts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Reply: TypeAlias = "str | int | bool | tuple[str | bool, ...]"
"""False stands for nil, as it does in a script."""

Snapshot: TypeAlias = "tuple[dict[str, dict[str, str]], dict[str, dict[str, float]], dict[str, int]]"
T = TypeVar("T")

_MAKE_REDIS = """
return function(names, handle)
  local commands, arrays = {}, { HMGET = true, ZRANGEBYSCORE = true, TIME = true }
  for name in names:gmatch('%S+') do
    local command = handle(name)
    commands[name] = arrays[name] and function(...) return { command(...) } end or command
  end
  redis = { call = function(name, ...) return commands[name](...) end }
  redis.pcall = redis.call
end
"""
_MAKE_FUNCTION = """
return function(source, name)
  local body = assert(loadstring('local KEYS, ARGV = ...\\n' .. source, '@' .. name))
  return function(number, ...)
    local keys, argv = {}, { ... }
    for i = 1, number do keys[i] = table.remove(argv, 1) end
    return body(keys, argv)
  end
end
"""


class Lua:
    """The scripts, compiled once, for any number of servers in turn."""

    def __init__(self, sources: Mapping[str, str] | None = None) -> None:
        """Compile the library's scripts, or others in their place."""
        runtime = lua51.LuaRuntime(unpack_returned_tuples=True, register_eval=False)
        self._make_redis = runtime.execute(_MAKE_REDIS)
        make = runtime.execute(_MAKE_FUNCTION)
        if sources is None:
            sources = {name: scripts.load(name).source for name in scripts.names()}
        self._functions = {name: make(source, name) for name, source in sources.items()}
        self._server: Server | None = None

    def run(self, server: Server, name: str, keys: Sequence[str], arguments: Sequence[str | int]) -> str:
        """Run a script on a server."""
        if self._server is not server:
            self._server = server
            self._make_redis(" ".join(server.commands), server.commands.__getitem__)
        reply: str = self._functions[name](len(keys), *keys, *map(str, arguments))
        return reply


@functools.cache
def library() -> Lua:
    """Return the library's scripts."""
    return Lua()


def _word(value: float | str) -> str:
    """Return an argument as Redis takes it from Lua."""
    return value if isinstance(value, str) else f"{value:.17g}"


class Server:
    """The data, the time, and the commands that scripts use. Times are microseconds since 1970."""

    def __init__(self, lua: Lua, publish: Callable[[str, str], int]) -> None:
        self.now = 0
        self.hashes: dict[str, dict[str, str]] = {}
        self.sets: dict[str, dict[str, float]] = {}
        self.expires: dict[str, int] = {}
        self._lua = lua
        self._publish = publish
        self.commands: dict[str, Callable[..., Reply]] = {
            name.removeprefix("_do_").upper(): getattr(self, name) for name in vars(Server) if name.startswith("_do_")
        }

    def run(self, name: str, keys: Sequence[str], arguments: Sequence[str | int]) -> str:
        """Run a script."""
        if self.expires:
            for key in [key for key, end in self.expires.items() if end <= self.now]:
                self._do_del(key)
        return self._lua.run(self, name, keys, arguments)

    def snapshot(self) -> Snapshot:
        """Return all data, for `restore`."""
        return _copy(self.hashes), _copy(self.sets), dict(self.expires)

    def restore(self, snapshot: Snapshot = ({}, {}, {})) -> None:
        """Replace all data by those of a snapshot, or by none."""
        hashes, sets, expires = snapshot
        self.hashes, self.sets, self.expires = _copy(hashes), _copy(sets), dict(expires)

    # Keys

    def _do_time(self) -> tuple[str, ...]:
        return str(self.now // 1_000_000), str(self.now % 1_000_000)

    def _do_exists(self, key: str) -> int:
        return int(key in self.hashes or key in self.sets)

    def _do_del(self, key: str) -> int:
        self.expires.pop(key, None)
        return int(self.hashes.pop(key, None) is not None or self.sets.pop(key, None) is not None)

    def _do_pexpire(self, key: str, milliseconds: str) -> int:
        if not self._do_exists(key):
            return 0
        self.expires[key] = self.now + int(milliseconds) * 1000
        return 1

    def _do_publish(self, channel: str, message: str) -> int:
        return self._publish(channel, message)

    # Streams

    def _do_xadd(self, key: str, *words: str) -> str:
        del key, words  # no script reads what is noted
        return f"{self.now // 1000}-0"

    # Hashes

    def _do_hget(self, key: str, field: str) -> str | bool:
        return self.hashes.get(key, {}).get(field, False)

    def _do_hmget(self, key: str, *fields: str) -> tuple[str | bool, ...]:
        stored = self.hashes.get(key, {})
        return tuple([stored.get(field, False) for field in fields])

    def _do_hset(self, key: str, *words: str) -> int:
        stored = self.hashes.setdefault(key, {})
        before = len(stored)
        for field, value in zip(words[::2], words[1::2], strict=True):
            stored[field] = _word(value)
        return len(stored) - before

    def _do_hdel(self, key: str, *fields: str) -> int:
        stored = self.hashes.get(key, {})
        found = sum(stored.pop(field, None) is not None for field in fields)
        if not stored:
            self._do_del(key)
        return found

    # Sorted sets

    def _do_zadd(self, key: str, flag: str, *words: str) -> int:
        if flag != "NX":
            raise NotImplementedError(f"ZADD without NX: {flag}")
        stored = self.sets.setdefault(key, {})
        before = len(stored)
        for score, member in zip(words[::2], words[1::2], strict=True):
            stored.setdefault(member, float(score))
        return len(stored) - before

    def _do_zscore(self, key: str, member: str) -> str | bool:
        score = self.sets.get(key, {}).get(member)
        return False if score is None else f"{score:.17g}"

    def _do_zrem(self, key: str, *members: str) -> int:
        stored = self.sets.get(key, {})
        found = sum(stored.pop(member, None) is not None for member in members)
        if not stored:
            self._do_del(key)
        return found

    def _range(self, key: str, low: str, high: str) -> list[tuple[float, str]]:
        stored = self.sets.get(key)
        if not stored:
            return []
        (lowest, with_lowest), (highest, with_highest) = _end(low), _end(high)
        return sorted(
            (score, member)
            for member, score in stored.items()
            if (lowest < score < highest or (with_lowest and score == lowest) or (with_highest and score == highest))
        )

    def _do_zcount(self, key: str, low: str, high: str) -> int:
        return len(self._range(key, low, high))

    def _do_zrangebyscore(self, key: str, low: str, high: str, *options: str | int) -> tuple[str, ...]:
        found = self._range(key, low, high)
        words = list(options)
        with_scores = words[:1] == ["WITHSCORES"]
        if with_scores:
            words = words[1:]
        if words:
            name, offset, count = words
            if name != "LIMIT":
                raise NotImplementedError(f"ZRANGEBYSCORE {name}")
            found = found[int(offset) : int(offset) + int(count)]
        if with_scores:
            return tuple([word for score, member in found for word in (member, f"{score:.17g}")])
        return tuple([member for _, member in found])


def _copy(stored: dict[str, dict[str, T]]) -> dict[str, dict[str, T]]:
    return {key: dict(value) for key, value in stored.items()}


def _end(text: str) -> tuple[float, bool]:
    """Return an end of a range of scores, and whether it belongs to the range."""
    return float(text.removeprefix("(")), not text.startswith("(")
