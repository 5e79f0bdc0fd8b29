"""The permissions that a user of Redis needs, in the words of ACL SETUSER."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from kraken_nonce_redis._arguments import DEFAULT_NAMESPACE
from kraken_nonce_redis._redis.keyspace import checked_namespace

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
    "+info",
    "+pexpire",
    "+publish",
    "+time",
    "+xadd",
    "+xrevrange",
    "+zadd",
    "+zcount",
    "+zrangebyscore",
    "+zrem",
    "+zscore",
)
"""On every kind of server."""
CLUSTER_COMMANDS: Final = ("+asking", "+cluster|slots")
"""In a Redis Cluster also these."""
DURABLE_COMMANDS: Final = ("+wait", "+waitaof")
"""For durable nonces and leases also these; a server before Redis 7.2 knows the first alone."""
CHANNELS: Final = "&kraken-nonce:wake:*"
"""For all namespaces."""

OPERATOR_COMMANDS: Final = (
    # What is sent.
    "+eval",
    "+evalsha",
    "+scan",
    # What the scripts do.
    "+hgetall",
    "+hmget",
    "+time",
    "+xrevrange",
    "+zcount",
    "+zrangebyscore",
)
"""For ``kraken-nonce status``, ``watch``, ``log`` and ``exporter``, which only look."""
DOCTOR_COMMANDS: Final = ("+acl|getuser", "+acl|whoami", "+config|get", "+info", "+latency|latest", "+ping", "+scan")
"""For `kraken_nonce_redis.doctor`, besides what bots need."""

Role: TypeAlias = Literal["bot", "operator", "doctor"]
ROLES: Final[dict[Role, tuple[str, ...]]] = {
    "bot": (CHANNELS, *COMMANDS),
    "operator": OPERATOR_COMMANDS,
    "doctor": (CHANNELS, *COMMANDS, *DOCTOR_COMMANDS),
}
"""What users need, by what they do."""


def least_permissions(
    namespace: str = DEFAULT_NAMESPACE,
    *,
    role: Role = "bot",
    cluster: bool = False,
    durable: bool = False,
    database: bool = False,
) -> tuple[str, ...]:
    """Return all permissions that a user needs for a namespace, beginning from none.

    Args:
        namespace: what the Redis keys begin with.
        role: ``"bot"``: nonces and locks. ``"operator"``: to look at all keys, and change nothing. ``"doctor"``: what
            bots do, and to look at the server.
        cluster: for a Redis Cluster.
        durable: for durable nonces and leases.
        database: for another database than 0.

    Raises `InvalidArgument`.
    """
    words = ["resetchannels", f"~{checked_namespace(namespace)}:*", *ROLES[role]]
    words += CLUSTER_COMMANDS if cluster else ()
    words += DURABLE_COMMANDS if durable else ()
    words += ("+select",) if database else ()
    return tuple(words)
