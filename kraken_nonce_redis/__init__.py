"""Nonces and serialized private calls for a Kraken API key that several processes share, on Redis.

`CallLock` around each private call is what most programs want; `NonceAllocator` gives nonces alone. The asyncio
twins are in `kraken_nonce_redis.asyncio`, clients in `kraken_nonce_redis.krakenex` and its siblings.
"""

from kraken_nonce_redis._arguments import OnUnknown, Priority, Scope
from kraken_nonce_redis._threads.allocator import NonceAllocator
from kraken_nonce_redis._threads.lock import CallLock, Lease
from kraken_nonce_redis._threads.shutdown import shutdown, shutdown_on_signal
from kraken_nonce_redis._threads.store import close
from kraken_nonce_redis.durability import Durability
from kraken_nonce_redis.errors import (
    CallLockError,
    CallUnsettled,
    CoolDown,
    ForeignValue,
    HoldTimeout,
    IncompatibleClient,
    InvalidArgument,
    KrakenNonceError,
    LeaseLost,
    NoncePoisoned,
    NoncesUsedUp,
    NonceTooFarAhead,
    NotCarriedOut,
    NotDurable,
    OutcomeUnknown,
    ShuttingDown,
    StoreError,
    StoreOutOfMemory,
    StorePermissionDenied,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnsupported,
)
from kraken_nonce_redis.pace import CoolDowns, Pace, Tier
from kraken_nonce_redis.retries import Retries

__all__ = [
    "CallLock",
    "CallLockError",
    "CallUnsettled",
    "CoolDown",
    "CoolDowns",
    "Durability",
    "ForeignValue",
    "HoldTimeout",
    "IncompatibleClient",
    "InvalidArgument",
    "KrakenNonceError",
    "Lease",
    "LeaseLost",
    "NonceAllocator",
    "NoncePoisoned",
    "NonceTooFarAhead",
    "NoncesUsedUp",
    "NotCarriedOut",
    "NotDurable",
    "OnUnknown",
    "OutcomeUnknown",
    "Pace",
    "Priority",
    "Retries",
    "Scope",
    "ShuttingDown",
    "StoreError",
    "StoreOutOfMemory",
    "StorePermissionDenied",
    "StoreReadOnly",
    "StoreUnavailable",
    "StoreUnsupported",
    "Tier",
    "close",
    "shutdown",
    "shutdown_on_signal",
]

__version__: str


def __getattr__(name: str) -> str:
    """Return the version, which is read when it is asked for: short commands need not wait for that."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata  # noqa: PLC0415

    try:
        return metadata.version("kraken-nonce-redis")
    except metadata.PackageNotFoundError:  # in a bundle without metadata
        return "unknown"
