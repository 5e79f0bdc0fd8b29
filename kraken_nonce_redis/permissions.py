"""The permissions that a user of Redis needs, in the words of ACL SETUSER."""

from __future__ import annotations

from typing import Final

from kraken_nonce_redis._arguments import DEFAULT_NAMESPACE

COMMANDS: Final = (
    # What is sent.
    "+eval",
    "+evalsha",
    "+subscribe",
    # What the scripts do.
    "+del",
    "+exists",
    "+hdel",
    "+hget",
    "+hgetall",
    "+hmget",
    "+hset",
    "+pexpire",
    "+publish",
    "+time",
    "+zadd",
    "+zcount",
    "+zrangebyscore",
    "+zrem",
    "+zscore",
)
"""On every kind of server."""
CLUSTER_COMMANDS: Final = ("+asking", "+cluster|slots")
"""In a Redis Cluster also these."""
CHANNELS: Final = "&kraken-nonce:wake:*"
"""For all namespaces."""


def least_permissions(namespace: str = DEFAULT_NAMESPACE, *, cluster: bool = False) -> tuple[str, ...]:
    """Return all permissions that a user needs for a namespace, beginning from none."""
    commands = (*COMMANDS, *CLUSTER_COMMANDS) if cluster else COMMANDS
    return ("resetchannels", f"~{namespace}:*", CHANNELS, *commands)


OPERATOR_COMMANDS: Final = (
    # What is sent.
    "+eval",
    "+evalsha",
    "+scan",
    # What the scripts do.
    "+hgetall",
    "+hmget",
    "+time",
    "+zcount",
    "+zrangebyscore",
)
"""For ``kraken-nonce status``, ``watch`` and ``exporter``, which only look."""


def operator_permissions(namespace: str = DEFAULT_NAMESPACE, *, cluster: bool = False) -> tuple[str, ...]:
    """Return all permissions that a user needs to look at a namespace and change nothing, beginning from none."""
    commands = (*OPERATOR_COMMANDS, *CLUSTER_COMMANDS) if cluster else OPERATOR_COMMANDS
    return ("resetchannels", f"~{namespace}:*", *commands)
