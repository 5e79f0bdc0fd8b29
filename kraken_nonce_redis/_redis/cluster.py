"""Which node of a Redis Cluster to ask, and what to do when it is another one or none; no I/O.

redis-py's own cluster clients try a command ten times and more, for longer than many a lease lasts, and don't say
whether it may have run twice. So only their nodes and settings are used here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._redis.resp import pack
from kraken_nonce_redis._redis.words import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kraken_nonce_redis._redis.command import Command

Address: TypeAlias = tuple[str, int]

_SLOW: Final = 1.0
"""Seconds after which a node that fails is not asked for the same again."""
_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.2
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
    pause: float = _PAUSE

    def waiting(self, error: RedisError) -> Generator[Sleep, Any, None]:
        """Let some time pass, in which the slot may arrive. Raises the error when the caller waits no longer."""
        left = self.give_up - clock.now()
        if left <= 0:
            raise error
        yield Sleep(min(self.pause, left))
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


Flow: TypeAlias = Generator[Exchange | Sleep, Any, Any]


def told(error: Exception) -> Exception:
    """Return an error of an exchange, as redis-py's error of that name if it is what nodes of a cluster say."""
    # Parsers know these only if they are those of redis-py's cluster client.
    code, _, rest = str(error).partition(" ")
    return _SAYINGS[code](rest) if code in _SAYINGS else error


def _slot(command: Command[Any]) -> int:
    """Return the slot of a command's keys, which share a hash tag."""
    return key_slot(command.keys[0].encode())


def _tell_nobody(state: str, former: str, master: str) -> None:
    """Do nothing about another node that answers."""


class Nodes:
    """What is known of a cluster's nodes.

    Args:
        seeds: nodes to begin with.
        learned: is called with all nodes when they were asked for.
        patience: seconds for which a command whose caller has no timeout waits for a slot that is moved or that nobody
            has. A failover takes longer as a rule, and is for such callers to know.
        moved: is called with a state key and the addresses of two nodes when the second one answers for it and not the
            first one any more.
    """

    def __init__(
        self,
        seeds: Iterable[Address],
        learned: Callable[[Iterable[Address]], object],
        patience: float,
        moved: Callable[[str, str, str], object] = _tell_nobody,
    ) -> None:
        self._seeds = list(dict.fromkeys(seeds))
        self._learned = learned
        self._patience = patience
        self._known: list[Address] = []
        self._owners: list[Address | None] = [None] * _SLOTS
        self._answered: dict[Address, float] = {}
        """When nodes answered last."""
        self._post: Address | None = None
        self._moved = moved
        self._served: dict[str, Address] = {}
        """By state key, the node that answered last."""

    def owner(self, command: Command[Any]) -> Address | None:
        """Return the node that has a command's keys, as far as is known."""
        return self._owners[_slot(command)]

    def sending(self, command: Command[Any], request: Callable[[], bytes], due: int) -> Flow:
        """Send a command's request to the node that has its keys; return the replies.

        When the node fails, it is sent once more, to the one that has the keys then; a command may so be run twice,
        which every script of ours allows. While a slot is moved, or nobody has it, it is sent again and again, as long
        as its caller waits. ``request`` makes its bytes, each time that they are sent.
        """
        slot = _slot(command)
        attempt = _Attempt(slot, clock.now() + self._patience if command.until is None else command.until)
        address = self._owners[slot] or (yield from self._finding(attempt))
        while True:
            started = clock.now()
            try:
                if attempt.asking:
                    replies = yield from self._exchanging(address, _ASKING + request(), 1 + due)
                    return replies[1:]
                return (yield from self._exchanging(address, request(), due, command.keys[0]))
            except AskError as error:
                address = yield from self._following(attempt, error, address)
            except (TryAgainError, ClusterDownError) as error:
                if isinstance(error, TryAgainError) and command.without_trail():
                    continue
                yield from attempt.waiting(error)
                address = yield from self._finding(attempt, last=address)
            except (RedisConnectionError, RedisTimeoutError):
                slow = clock.now() > started + _SLOW
                failed, address = address, (yield from self._finding(attempt, last=address))
                if command.repeated or (address == failed and slow):
                    raise
                command.repeated = True

    def _exchanging(self, address: Address, request: bytes, due: int, state: str = "") -> Generator[Exchange, Any, Any]:
        """Send a request to a node and return the replies, noting that the node answers, for a state key if it does."""
        replies = yield Exchange(address, request, due)
        self._answered[address] = clock.now()
        if state:
            former, self._served[state] = self._served.get(state, address), address
            if former != address:
                self._moved(state, *(f"{host}:{port}" for host, port in (former, address)))
        return replies

    def _following(self, attempt: _Attempt, error: AskError, sender: Address) -> Generator[Sleep, Any, Address]:
        """Return the node that another one names, which may be for this once: a slot on the move has two nodes."""
        address: Address = (error.host or sender[0], error.port)
        attempt.asking = not isinstance(error, MovedError)
        if not attempt.asking:
            self._owners[attempt.slot] = address
        attempt.redirections += 1
        if attempt.redirections % _REDIRECTIONS == 0:
            yield from attempt.waiting(TryAgainError(f"nodes go on naming others for slot {attempt.slot}: {error}"))
        return address

    def _finding(self, attempt: _Attempt, last: Address | None = None) -> Generator[Exchange, Any, Address]:
        """Ask nodes, one of them last, who has which slot; return who has the attempt's."""
        attempt.asking = False
        candidates = list(dict.fromkeys((*random.sample(self._known, len(self._known)), *self._seeds)))
        candidates.sort(key=lambda address: (address == last, self._silence(address)))
        failure: RedisError = ClusterDownError(f"no node has slot {attempt.slot}")
        started = clock.now()
        for number, address in enumerate(candidates):
            if number and clock.now() > started + _SLOW:
                break
            try:
                [slots] = yield from self._exchanging(address, _SLOTS_REQUEST, 1)
                self._learn(address, slots)
            except (RedisConnectionError, RedisTimeoutError) as error:
                failure = error
                continue
            owner = self._owners[attempt.slot]
            if owner is not None:
                return owner
        raise failure

    def _silence(self, address: Address) -> float:
        """Return how long ago a node answered, infinity if it never did."""
        return clock.now() - self._answered.get(address, -math.inf)

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
        """Return a node to listen on, another one than last time: a cluster carries calls to all nodes.

        It is the one that answered last.
        """
        nodes = [address for address in self._known or self._seeds if address != self._post]
        if nodes:
            self._post = min(random.sample(nodes, len(nodes)), key=self._silence)
        assert self._post is not None  # noqa: S101 - there is at least one seed
        return self._post
