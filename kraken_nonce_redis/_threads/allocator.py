"""Nonces, one rising sequence per API key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from kraken_nonce_redis._arguments import DEFAULT_MAX_LEAD, DEFAULT_NAMESPACE
from kraken_nonce_redis._core.allocator import AllocatorCore, keys_for
from kraken_nonce_redis._threads.connections import client_from_url
from kraken_nonce_redis._threads.store import store_for

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import Scope, Trail
    from kraken_nonce_redis._threads.connections import Source
    from kraken_nonce_redis.durability import Durability


class NonceAllocator(AllocatorCore):
    """Hands out nonces for one API key to any number of threads, processes and machines.

    A nonce is a whole number of nanoseconds since 1970 (19 digits): the server's time, or one more than the last
    when that is higher. Each one is above all that were handed out before it was asked for, also after Redis lost
    its data, as long as one caller that has seen the last nonce lives.

    Distinct and rising nonces are not enough for several callers at once: their requests overtake each other on the
    way to Kraken. Use `CallLock` around the call.

    Args:
        redis: a redis-py client: `redis.Redis`, also one from Sentinel, or `redis.RedisCluster`.
        api_key: the Kraken API key. Only a digest of it leaves the process.
        scope: ``"key"``: a sequence of its own for each API key. ``"global"``: the one sequence of all API keys of
            the namespace, which `CallLock` takes its nonces from in that scope. All who share an API key need the same.
        namespace: what the Redis keys begin with; all who share the API key need the same.
        max_lead: nanoseconds that `jump_forward` and `advance_to` may go ahead of the server's clock, at most
            90 days.
        durable: True lets `jump_forward` and `advance_to` return only when a replica has the new value, `NotDurable`
            if none has in time; a `Durability` says how many, whether on disk, and whether for every nonce.
        trail: ``"all"`` notes each reserved nonce for ``kraken-nonce log --all``; by default only rare things.

    Every method but the constructors raises `StoreError` when Redis can't be used. No nonce is ever made up locally.
    """

    def __init__(
        self,
        redis: Source,
        api_key: str,
        *,
        scope: Scope = "key",
        namespace: str = DEFAULT_NAMESPACE,
        max_lead: int = DEFAULT_MAX_LEAD,
        durable: bool | Durability = False,
        trail: Trail = "rare",
    ) -> None:
        super().__init__(keys_for(namespace, api_key, scope, trail), max_lead, durable)
        self._store = store_for(redis)

    @classmethod
    def from_url(
        cls,
        url: str,
        api_key: str,
        *,
        scope: Scope = "key",
        namespace: str = DEFAULT_NAMESPACE,
        max_lead: int = DEFAULT_MAX_LEAD,
        durable: bool | Durability = False,
        trail: Trail = "rare",
    ) -> Self:
        """Return an allocator for a URL, as `kraken_nonce_redis.urls` describes them.

        All objects of a process with the same URL share its connections, whose timeout is 3 s unless the URL says
        otherwise (``?socket_timeout=1``).
        """
        client = client_from_url(url)
        return cls(client, api_key, scope=scope, namespace=namespace, max_lead=max_lead, durable=durable, trail=trail)

    def next(self) -> int:
        """Return the next nonce: ns since 1970, 19 digits."""
        return self.reserve(1)[0]

    def reserve(self, count: int) -> range:
        """Return the next ``count`` (1 to 1,000,000) nonces, consecutive, in one round trip."""
        return self._store.run(self._reserve(count))

    def last(self) -> int | None:
        """Return the last nonce handed out by anyone, or None when Redis knows of none."""
        return self._store.run(self._inspect()).last

    def jump_forward(self, nanoseconds: int) -> int:
        """Raise the last nonce by at least ``nanoseconds`` (from the server's time, if that is higher); return it.

        Raises `NonceTooFarAhead`, with nothing changed, past ``max_lead``.
        """
        return self._store.drive(self._jumping(nanoseconds))

    def advance_to(self, nonce: int) -> int:
        """Raise the last nonce to at least ``nonce`` (1 to 2^63 - 1) and return it; never lowers it.

        Raises `NonceTooFarAhead`, with nothing changed, past ``max_lead``.
        """
        return self._store.run(self._advance(nonce))
