"""How many servers must have a write before it counts: WAIT and WAITAOF; no I/O.

A write that a master acknowledged can be lost when a replica takes its place. These commands say how many replicas have
it, or have it on disk, and that count is checked here. They make a loss unlikely, but not impossible: another replica
than one that has the write may be promoted.

Source: https://redis.io/docs/latest/commands/wait/ and /waitaof/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis.errors import InvalidArgument, NotDurable

if TYPE_CHECKING:
    from kraken_nonce_redis._redis.command import Command


@dataclass(frozen=True)
class Durability:
    """How many servers must have a write.

    Args:
        replicas: how many replicas must have it, 0 to 100.
        fsync: whether the master and those replicas must have it on disk. Needs Redis 7.2 or Valkey, and ``appendonly
            yes`` on all of them.
        timeout: seconds to wait for that, 0.001 to 60; below the socket timeout, which is 3 s unless set otherwise.
        every_nonce: whether it counts for every nonce and lease, or only where a nonce is raised ahead of the clock:
            ``jump_forward``, ``advance_to``, and after Kraken has refused a nonce. Nonces that follow the clock need
            no durability, since the clock covers what is lost.

    Raises `InvalidArgument`.
    """

    replicas: int = 1
    fsync: bool = False
    timeout: float = 1.0
    every_nonce: bool = False

    def __post_init__(self) -> None:
        arguments.whole("replicas", self.replicas, 0, 100)
        arguments.seconds("timeout", self.timeout, 0.001, 60)
        if not self.replicas and not self.fsync:
            raise InvalidArgument("replicas", "must be at least 1, or fsync True: there is nothing to wait for")

    @classmethod
    def of(cls, durable: object) -> Durability | None:
        """Return what a parameter ``durable`` asks for."""
        if durable is True:
            return cls()
        if durable is False or durable is None:
            return None
        if isinstance(durable, cls):
            return durable
        raise InvalidArgument("durable", f"must be True, False or a Durability, not {arguments.shown(durable)}")

    @property
    def words(self) -> tuple[str | int, ...]:
        """The command that follows the write, on the same connection."""
        milliseconds = max(1, round(self.timeout * 1000))
        if self.fsync:
            return ("WAITAOF", 1, self.replicas, milliseconds)
        return ("WAIT", self.replicas, milliseconds)

    def check(self, command: Command[Any], acknowledged: Any) -> None:
        """Compare what the server answered. Raises `NotDurable`."""
        local, replicas = acknowledged if self.fsync else (1, acknowledged)
        if int(local) < 1 or int(replicas) < self.replicas:
            where = " on disk" if self.fsync else ""
            raise NotDurable(
                command.name,
                command.keys[0],
                f"done, but after {self.timeout:g} s {int(replicas)} of {self.replicas} replicas have it{where}"
                f"{'' if int(local) else ', and the master has not'}; the nonce stays raised",
            )


def of_every_nonce(durability: Durability | None) -> Durability | None:
    """Return what counts for a nonce that is not raised ahead of the clock."""
    return durability if durability is not None and durability.every_nonce else None
