"""What a caller wants of the lock, and the settings for all callers of a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypedDict

from kraken_nonce_redis import _arguments as arguments

if TYPE_CHECKING:
    from kraken_nonce_redis._arguments import Priority, Scope, Trail
    from kraken_nonce_redis.durability import Durability
    from kraken_nonce_redis.events import Hook
    from kraken_nonce_redis.pace import Pace


class LockSettings(TypedDict, total=False):
    """Settings of a `CallLock`, which describes them."""

    ttl: float
    scope: Scope
    pace: Pace | None
    namespace: str
    durable: bool | Durability
    name: str | None
    on_event: Hook | None
    trail: Trail


class Wishes(NamedTuple):  # a frozen dataclass takes three times as long to make, for every hold
    """How one caller wants to hold the lock.

    Attributes:
        timeout: most seconds to wait; None for no limit, 0 not to wait.
        cost: what the call adds to Kraken's REST counter.
        priority: ``"high"`` goes before ``"normal"``.
        auto_renew: whether the lease is renewed in the background.
        startup_protection: whether startup protection of the pace applies to this call.
        token: the caller's own id for the lease.
        method: Kraken's name of the call that the lock is for, empty for none; people see it.
        intent: of that call, from `journal.intent`; empty if it changes nothing.
    """

    timeout: float | None = None
    cost: float = 0
    priority: Priority = "normal"
    auto_renew: bool = False
    startup_protection: bool = True
    token: str | None = None
    method: str = ""
    intent: str = ""

    def check(self) -> None:
        """Raise `InvalidArgument` for invalid values."""
        arguments.timeout(self.timeout)
        arguments.cost(self.cost)
        arguments.priority(self.priority)
