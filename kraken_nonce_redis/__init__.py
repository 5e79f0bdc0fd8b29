"""Nonces and serialized private calls for a Kraken API key that several processes share, on Redis.

`CallLock` around each private call is what most programs want; `NonceAllocator` gives nonces alone. The asyncio
twins are in `kraken_nonce_redis.asyncio`, clients in `kraken_nonce_redis.krakenex` and its siblings.
"""

from kraken_nonce_redis.allocator import NonceAllocator
from kraken_nonce_redis.errors import (
    CallLockError,
    CoolDown,
    ForeignValue,
    HoldTimeout,
    IncompatibleClient,
    InvalidArgument,
    KrakenNonceError,
    LeaseLost,
    NoncesUsedUp,
    NonceTooFarAhead,
    StoreError,
    StoreOutOfMemory,
    StorePermissionDenied,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnsupported,
)
from kraken_nonce_redis.lock import CallLock, Lease
from kraken_nonce_redis.pace import Pace, Tier

__all__ = [
    "CallLock",
    "CallLockError",
    "CoolDown",
    "ForeignValue",
    "HoldTimeout",
    "IncompatibleClient",
    "InvalidArgument",
    "KrakenNonceError",
    "Lease",
    "LeaseLost",
    "NonceAllocator",
    "NonceTooFarAhead",
    "NoncesUsedUp",
    "Pace",
    "StoreError",
    "StoreOutOfMemory",
    "StorePermissionDenied",
    "StoreReadOnly",
    "StoreUnavailable",
    "StoreUnsupported",
    "Tier",
]
