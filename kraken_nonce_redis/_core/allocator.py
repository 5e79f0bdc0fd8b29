"""The allocator without I/O; the shells for threads and asyncio add only that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis._core import names
from kraken_nonce_redis._core.steps import Run, running
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.durability import Durability, of_every_nonce

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import Scope, Trail
    from kraken_nonce_redis._core.steps import Flow
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.commands import State


def keys_for(namespace: str, api_key: str, scope: Scope, trail: Trail) -> Keyspace:
    """Return the names in Redis for an API key, which the bot's name must not hold. Raises `InvalidArgument`."""
    keys = Keyspace.of(namespace, api_key, scope, trail)
    names.chosen(None, api_key)
    return keys


class AllocatorCore:
    """What a `NonceAllocator` says to Redis."""

    def __init__(self, keys: Keyspace, max_lead: int, durable: object) -> None:
        self._keys = keys
        self._durability = Durability.of(durable)
        self._max_lead = arguments.whole("max_lead", max_lead, 0, arguments.LONGEST_LEAD)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._keys.state}>"

    def _reserve(self, count: int) -> Command[range]:
        arguments.whole("count", count, 1, arguments.MOST_RESERVED)
        return commands.reserve(self._keys, count, names.of_process()).durable(of_every_nonce(self._durability))

    def _inspect(self) -> Command[State]:
        return commands.inspect(self._keys)

    def _advance(self, nonce: int) -> Command[int]:
        arguments.whole("nonce", nonce, 1, arguments.HIGHEST_NONCE)
        return self._raising(nonce)

    def _jumping(self, nanoseconds: int) -> Flow[int]:
        arguments.whole("nanoseconds", nanoseconds, 1, arguments.HIGHEST_NONCE)
        state: State = yield Run(self._inspect())
        # A target instead of a distance: run twice after a lost reply, it jumps once.
        target = max(state.last or 0, state.now) + nanoseconds
        return (yield from running(self._raising(target)))

    def _raising(self, target: int) -> Command[int]:
        raising = commands.advance(self._keys, target, self._max_lead, name=names.of_process())
        return raising.durable(self._durability)
