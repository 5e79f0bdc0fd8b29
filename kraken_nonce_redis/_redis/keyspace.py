"""The names in Redis: keys, digests of API keys, channels; no I/O."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import Scope, Trail

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DIGEST_LENGTH: Final = 16
TAG: Final = re.compile(rf"[0-9a-f]{{{_DIGEST_LENGTH}}}|global")
"""What stands for an API key, or for all, in the names of keys: see `Keyspace.tag`."""


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The Redis names of one API key, or of all API keys of a namespace.

    They share a hash tag, so they live on one node of a Redis Cluster.

    Attributes:
        namespace: prefix of all names.
        tag: SHA-256 of the API key, its first 16 hex digits; ``global`` for all API keys.
        trail: what scripts note of these keys.
        for_nonces: the keys of scripts for nonces and of `extend`: the state, and the trail.
        for_the_lock: the keys of scripts for the lock: the state, the queue, and the trail.
    """

    namespace: str
    tag: str
    trail: Trail = "rare"
    for_nonces: tuple[str, ...] = field(init=False, repr=False, compare=False)
    for_the_lock: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # They are needed for each command, so they are made once.
        streams = (self.log, self.leases) if self.trail == "all" else (self.log,)
        object.__setattr__(self, "for_nonces", (self.state, *streams))
        object.__setattr__(self, "for_the_lock", (self.state, self.queue, *streams))

    @classmethod
    def of(cls, namespace: str, api_key: str, scope: Scope = "key", trail: Trail = "rare") -> Keyspace:
        """Return the names for an API key. Raises `InvalidArgument`."""
        checked_namespace(namespace)
        # Wrong values are never shown: each may be an API key in the wrong place.
        if scope not in ("key", "global"):
            raise InvalidArgument("scope", "must be 'key' or 'global'")
        if trail not in ("rare", "all"):
            raise InvalidArgument("trail", "must be 'rare' or 'all'")
        if not isinstance(api_key, str) or not api_key.strip():
            raise InvalidArgument("api_key", f"must be a non-empty str, got {_kind(api_key)}")
        if scope == "global":
            return cls(namespace, "global", trail)
        return cls(namespace, digest(api_key), trail)

    @property
    def state(self) -> str:
        """The hash with the last nonce and the lock."""
        return f"{self.namespace}:{{{self.tag}}}"

    @property
    def queue(self) -> str:
        """The sorted set of waiters for the lock."""
        return f"{self.state}:queue"

    @property
    def log(self) -> str:
        """The stream of what is rare and must be found later."""
        return f"{self.state}:log"

    @property
    def leases(self) -> str:
        """The stream of leases and reserved nonces."""
        return f"{self.state}:leases"

    @property
    def once(self) -> str:
        """The hash with the records of names, each for one order."""
        return f"{self.state}:once"


def checked_namespace(namespace: object) -> str:
    """Return a namespace. Raises `InvalidArgument`."""
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise InvalidArgument("namespace", "must be 1 to 64 of the characters A-Z a-z 0-9 _ . : -")
    return namespace


def tag_of(state: str) -> str:
    """Return the tag in the name of a state."""
    return state[state.rindex("{") + 1 : -1]


def digest(api_key: str) -> str:
    """Return what stands for an API key in Redis and in logs: its SHA-256, the first 16 hex digits.

    Raises `InvalidArgument`.
    """
    try:
        # A secret from a file often ends in a line break; it is the same key for all that.
        encoded = api_key.strip().encode()
    except UnicodeEncodeError:
        encoded = None
    if encoded is None:  # outside of the block: that exception has the whole key in it
        raise InvalidArgument("api_key", "has half of a surrogate pair in it, which is no character")
    return hashlib.sha256(encoded).hexdigest()[:_DIGEST_LENGTH]


def _kind(value: object) -> str:
    return "an empty str" if isinstance(value, str) else type(value).__name__


def channel(process_id: str) -> str:
    """Return the channel on which a process hears whose turn it is, for all namespaces."""
    return f"kraken-nonce:wake:{process_id}"
