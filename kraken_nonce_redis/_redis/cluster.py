"""Which node of a Redis Cluster to ask, and what to do when it is another one or none; no I/O.

redis-py's own cluster clients try a command ten times and more, for longer than many a lease lasts, and don't say
whether it may have run twice. So only their nodes and settings are used here.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._redis.commands import text
from kraken_nonce_redis._redis.resp import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kraken_nonce_redis._redis.commands import Command

Address: TypeAlias = tuple[str, int]

PATIENCE: Final = 1.0
"""Seconds for which a command, and what stands in line behind it, waits for a slot that is moved or that nobody has.

Enough for a slot on its way to another node; a failover takes longer, and is for the callers to know.
"""
_PAUSE: Final = 0.05
_REDIRECTIONS: Final = 3
_SAYINGS: Final[dict[str, type[ResponseError]]] = {
    "MOVED": MovedError,
    "ASK": AskError,
    "TRYAGAIN": TryAgainError,
    "CLUSTERDOWN": ClusterDownError,
}
_SLOTS: Final = 16384
_ASKING: Final = pack(("ASKING",))
_SLOTS_REQUEST: Final = pack(("CLUSTER", "SLOTS"))


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send a request to a node.

    Its replies are sent back, or an error thrown in: that of the connection, or the first one among them, as `told`.
    """

    address: Address
    request: bytes
    due: int = 1


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for some time."""

    seconds: float


@dataclass(slots=True)
class _Attempt:
    """What has happened to a command so far."""

    slot: int
    give_up: float
    asking: bool = False
    redirections: int = 0

    @property
    def too_late(self) -> bool:
        """Whether it has taken so long that the caller should hear of the failure."""
        return clock.now() > self.give_up


Flow: TypeAlias = Generator[Exchange | Sleep, Any, Any]


def told(error: Exception) -> Exception:
    """Return an error of an exchange, as redis-py's error of that name if it is what nodes of a cluster say."""
    # Parsers know these only if they are those of redis-py's cluster client.
    code, _, rest = str(error).partition(" ")
    return _SAYINGS[code](rest) if code in _SAYINGS else error


def _slot(command: Command[Any]) -> int:
    """Return the slot of a command's keys, which share a hash tag."""
    return key_slot(command.keys[0].encode())


class Nodes:
    """What is known of a cluster's nodes.

    Args:
        seeds: nodes to begin with.
        learned: is called with all nodes when they were asked for.
    """

    def __init__(self, seeds: Iterable[Address], learned: Callable[[Iterable[Address]], object]) -> None:
        self._seeds = list(dict.fromkeys(seeds))
        self._learned = learned
        self._known: list[Address] = []
        self._owners: list[Address | None] = [None] * _SLOTS
        self._post: Address | None = None

    def owner(self, command: Command[Any]) -> Address | None:
        """Return the node that has a command's keys, as far as is known."""
        return self._owners[_slot(command)]

    def sending(self, command: Command[Any], request: Callable[[], bytes], due: int) -> Flow:
        """Send a command's request to the node that has its keys; return the replies.

        When the node fails, it is sent once more, to the one that has the keys then; a command may so be run twice,
        which every script of ours allows. ``request`` makes its bytes, each time that they are sent.
        """
        slot = _slot(command)
        attempt = _Attempt(slot, clock.now() + PATIENCE)
        address = self._owners[slot] or (yield from self._finding(attempt))
        while True:
            try:
                if attempt.asking:
                    replies = yield Exchange(address, _ASKING + request(), 1 + due)
                    return replies[1:]
                return (yield Exchange(address, request(), due))
            except AskError as error:
                address = yield from self._following(attempt, error, address)
            except (TryAgainError, ClusterDownError):
                if attempt.too_late:
                    raise
                yield Sleep(_PAUSE)
                address = yield from self._finding(attempt, last=address)
            except (RedisConnectionError, RedisTimeoutError):
                failed, address = address, (yield from self._finding(attempt, last=address))
                if command.repeated or (address == failed and attempt.too_late):
                    raise
                command.repeated = True

    def _following(self, attempt: _Attempt, error: AskError, sender: Address) -> Generator[Sleep, Any, Address]:
        """Return the node that another one names, which may be for this once: a slot on the move has two nodes."""
        address: Address = (error.host or sender[0], error.port)
        attempt.asking = not isinstance(error, MovedError)
        if not attempt.asking:
            self._owners[attempt.slot] = address
        attempt.redirections += 1
        if attempt.redirections % _REDIRECTIONS == 0:
            if attempt.too_late:
                raise TryAgainError(f"nodes go on naming others for slot {attempt.slot}: {error}") from error
            yield Sleep(_PAUSE)
        return address

    def _finding(self, attempt: _Attempt, last: Address | None = None) -> Generator[Exchange, Any, Address]:
        """Ask nodes, one of them last, who has which slot; return who has the attempt's."""
        attempt.asking = False
        candidates = list(dict.fromkeys((*random.sample(self._known, len(self._known)), *self._seeds)))
        candidates.sort(key=lambda address: address == last)
        failure: RedisError = ClusterDownError(f"no node has slot {attempt.slot}")
        for number, address in enumerate(candidates):
            if number and attempt.too_late:
                break
            try:
                [slots] = yield Exchange(address, _SLOTS_REQUEST)
                self._learn(address, slots)
            except (RedisConnectionError, RedisTimeoutError) as error:
                failure = error
                continue
            owner = self._owners[attempt.slot]
            if owner is not None:
                return owner
        raise failure

    def _learn(self, asked: Address, reply: Sequence[Any]) -> None:
        """Take what a node said to CLUSTER SLOTS. A node that doesn't know its own name is where it was asked."""
        self._owners = [None] * _SLOTS
        known: dict[Address, None] = {}
        for first, last, *nodes in reply:
            places = [(text(host or b"") or asked[0], int(port)) for host, port, *_ in nodes]
            known.update(dict.fromkeys(places))
            self._owners[first : last + 1] = [places[0]] * (last + 1 - first)
        self._known = list(known)
        self._learned(self._known)

    def listening_post(self) -> Address:
        """Return a node to listen on, another one than last time: a cluster carries calls to all nodes."""
        nodes = [address for address in self._known or self._seeds if address != self._post]
        if nodes:
            self._post = random.choice(nodes)  # noqa: S311 - any will do
        assert self._post is not None  # noqa: S101 - there is at least one seed
        return self._post
