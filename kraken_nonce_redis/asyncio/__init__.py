"""The allocator and the lock for asyncio, with the names and meanings of `kraken_nonce_redis`."""

from kraken_nonce_redis.asyncio._allocator import NonceAllocator
from kraken_nonce_redis.asyncio._lock import CallLock, Lease
from kraken_nonce_redis.asyncio._shutdown import shutdown
from kraken_nonce_redis.asyncio._store import aclose

__all__ = ["CallLock", "Lease", "NonceAllocator", "aclose", "shutdown"]
