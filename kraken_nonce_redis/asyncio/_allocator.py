"""Nonces, for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from kraken_nonce_redis._arguments import DEFAULT_MAX_LEAD, DEFAULT_NAMESPACE
from kraken_nonce_redis._core.allocator import AllocatorCore, keys_for
from kraken_nonce_redis.asyncio._connections import Target, checked
from kraken_nonce_redis.asyncio._store import store_for

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import Scope, Trail
    from kraken_nonce_redis.asyncio._connections import Client
    from kraken_nonce_redis.durability import Durability


class NonceAllocator(AllocatorCore):
    """Hands out nonces for one API key; `kraken_nonce_redis.NonceAllocator` for asyncio.

    Arguments, meanings and errors are the same; ``redis`` is a client of redis.asyncio. An allocator may be made
    outside of an event loop, and each loop that uses it has its own connections.
    """

    def __init__(
        self,
        redis: Client,
        api_key: str,
        *,
        scope: Scope = "key",
        namespace: str = DEFAULT_NAMESPACE,
        max_lead: int = DEFAULT_MAX_LEAD,
        durable: bool | Durability = False,
        trail: Trail = "rare",
    ) -> None:
        super().__init__(keys_for(namespace, api_key, scope, trail), max_lead, durable)
        self._target = Target.of(checked(redis))

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
        """Return an allocator for a URL, as `kraken_nonce_redis.urls` describes them."""
        allocator = cls.__new__(cls)
        AllocatorCore.__init__(allocator, keys_for(namespace, api_key, scope, trail), max_lead, durable)
        allocator._target = Target.of_url(url)  # noqa: SLF001 - this is a constructor
        return allocator

    async def next(self) -> int:
        """Return the next nonce: ns since 1970, 19 digits."""
        return (await self.reserve(1))[0]

    async def reserve(self, count: int) -> range:
        """Return the next ``count`` (1 to 1,000,000) nonces, consecutive, in one round trip."""
        return await store_for(self._target).run(self._reserve(count))

    async def last(self) -> int | None:
        """Return the last nonce handed out by anyone, or None when Redis knows of none."""
        return (await store_for(self._target).run(self._inspect())).last

    async def jump_forward(self, nanoseconds: int) -> int:
        """Raise the last nonce by at least ``nanoseconds``; return it. Raises `NonceTooFarAhead`."""
        return await store_for(self._target).drive(self._jumping(nanoseconds))

    async def advance_to(self, nonce: int) -> int:
        """Raise the last nonce to at least ``nonce`` and return it. Raises `NonceTooFarAhead`."""
        return await store_for(self._target).run(self._advance(nonce))
