"""Findings about the kind of server, its settings, and the client's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from kraken_nonce_redis._arguments import DEFAULT_TTL
from kraken_nonce_redis.doctor.answers import Finding, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis.doctor.answers import Seen

OLDEST: Final[Mapping[str, tuple[int, int]]] = {"Redis": (6, 2), "Valkey": (7, 2)}
"""The products that this library is tested with, and the oldest version of each that works."""
MEMORY_WARNING: Final = 0.9
"""Share of maxmemory in use."""
LAG_SECONDS: Final = 10
LAG_BYTES: Final = 1_000_000
"""How far a replica may be behind."""
LONGEST_TIMEOUT: Final = DEFAULT_TTL
SHORTEST_TIMEOUT: Final = 0.1
"""Seconds, for the client's timeouts."""

_ESSENTIAL: Final = "info"
"""The field without which nobody knows whether the server keeps its data."""

# What could not be seen: the field, its topic, the question, what stays unknown, and the permission that would help.
_QUESTIONS: Final = (
    ("info", "server", "INFO", "kind, version, role, persistence, eviction and replicas", "+info"),
    ("config", "settings", "CONFIG GET", "RDB, appendfsync, min-replicas-to-write and protected-mode", "+config|get"),
    ("blocked", "latency", "LATENCY LATEST", "what has blocked the server", "+latency|latest"),
    ("name", "permissions", "ACL WHOAMI", "the user's name", "+acl|whoami"),
    ("user", "permissions", "ACL GETUSER", "whether the user may do more than it needs", "+acl|getuser"),
    ("ticks", "clock", "TIME", "the server's clock", "+time"),
    ("pings", "latency", "PING", "the bare round trip", "+ping"),
    ("keys", "keys", "SCAN", "the keys of the namespace", "+scan"),
)


def _unseen(seen: Seen) -> Iterator[Finding]:
    if seen.fake:
        return
    for field, topic, question, unknown, permission in _QUESTIONS:
        answer = getattr(seen, field)
        if isinstance(answer, Refused):
            yield Finding(
                topic,
                "problem" if field == _ESSENTIAL else "note",
                f"could not be seen: {unknown} ({question}: {answer.reason})",
                f"Run this once as a user with {permission} (kraken-nonce acl --for doctor prints all), or look at the "
                "provider's settings. Bots don't need it.",
                unseen=True,
            )


def _product(seen: Seen) -> tuple[str, str]:
    """Return product and version."""
    if seen.told("valkey_version"):
        return "Valkey", str(seen.told("valkey_version"))
    if seen.told("dragonfly_version"):
        return "Dragonfly", str(seen.told("dragonfly_version")).removeprefix("df-v")
    # KeyDB reports its own version as `redis_version`.
    keydb = seen.told("mvcc_depth") is not None or "keydb" in str(seen.told("executable")).lower()
    return "KeyDB" if keydb else "Redis", str(seen.told("redis_version") or "of unknown version")


def _server(seen: Seen) -> Iterator[Finding]:
    if seen.fake:
        yield Finding("server", "note", "fakeredis: only this process sees the data", "Use it only for unit tests.")
    if isinstance(seen.info, Refused):
        return
    product, version = _product(seen)
    oldest = OLDEST.get(product)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if _last_write_wins(seen):
        yield Finding(
            "server",
            "problem",
            f"{product} {version}, active-active: the last write wins",
            "Two masters hand out the same nonces and the same lock. Use one master with replicas: active-replica no.",
        )
    elif oldest is None:
        yield Finding("server", "warning", f"{product} {version}: not tested", "Use Redis or Valkey, which are tested.")
    elif numbers < oldest:
        wanted = ".".join(map(str, oldest))
        yield Finding("server", "problem", f"{product} {version} is too old", f"Use {product} {wanted} or newer.")
    else:
        yield Finding("server", "ok", f"{product} {version}")


def _last_write_wins(seen: Seen) -> bool:
    return seen.told("role") == "active-replica" or "yes" in (
        seen.setting("active-replica"),
        seen.setting("multi-master"),
    )


def _role(seen: Seen) -> Iterator[Finding]:
    role, mode = seen.told("role"), seen.told("redis_mode") or seen.told("server_mode")
    if mode == "sentinel":
        yield Finding(
            "role",
            "problem",
            "a Sentinel: it holds no data",
            "Give the library the client that redis.sentinel.Sentinel(...).master_for(...) returns.",
        )
    elif role == "slave":
        yield Finding(
            "role",
            "problem",
            f"a replica: nothing can be written; its link to the master is {seen.told('master_link_status')}",
            "Connect to the master; with Sentinel, through redis.sentinel.Sentinel(...).master_for(...).",
        )
    elif role == "master":
        where = (
            "node of a cluster" if mode == "cluster" else "found through Sentinel" if seen.sentinel else "standalone"
        )
        yield Finding("role", "ok", f"{role}, {where}")
    if mode == "cluster":
        yield Finding(
            "role", "note", "the other nodes of the cluster were not checked", "Run this once for each master."
        )


def _persistence(seen: Seen) -> Iterator[Finding]:
    if seen.told("aof_enabled") is None:
        return
    for line, what in (("aof_last_write_status", "write to the AOF"), ("rdb_last_bgsave_status", "save to disk")):
        if seen.told(line) not in (None, "ok"):
            yield Finding(
                "persistence",
                "problem",
                f"the last {what} failed; the server may refuse to write",
                "Look at the server's log and disk: it may be full, read-only, or not writable for the server.",
            )
    save, fsync = seen.setting("save"), seen.setting("appendfsync")
    heals = "Nonces recover by themselves, but locks and raises ahead of the clock (jump, advance) would be lost."
    if seen.told("aof_enabled"):
        if fsync == "no":
            yield Finding(
                "persistence",
                "warning",
                "AOF, written to disk when the operating system decides",
                f"Set appendfsync everysec or always: a crash of the machine may lose half a minute of writes. {heals}",
            )
        else:
            yield Finding("persistence", "ok", f"AOF, fsync {fsync or 'unknown'}")
    elif save:
        yield Finding(
            "persistence",
            "warning",
            f"RDB only (save {save}): a crash loses all since the last snapshot",
            f"Set appendonly yes. {heals}",
        )
    else:
        shown = "none: a restart forgets everything" if save == "" else "no AOF; RDB settings could not be seen"
        yield Finding("persistence", "warning", shown, f"Set appendonly yes. {heals}")


def _eviction(seen: Seen) -> Iterator[Finding]:
    policy = seen.told("maxmemory_policy") or seen.setting("maxmemory-policy")
    limit, used = int(seen.told("maxmemory") or seen.setting("maxmemory") or 0), int(seen.told("used_memory") or 0)
    if policy is None:
        return
    bounded = f"maxmemory {limit / 2**20:.0f} MiB" if limit else "no maxmemory"
    if policy != "noeviction" and not str(policy).startswith("volatile-"):
        yield Finding(
            "eviction",
            "problem" if limit else "warning",
            f"{policy}, {bounded}: {'may evict' if limit else 'with a limit it would evict'} nonces and locks",
            "Set maxmemory-policy noeviction or volatile-*. volatile-* spares them because they have no TTL.",
        )
    else:
        yield Finding("eviction", "ok", f"{policy}, {bounded}")
    if limit and used >= MEMORY_WARNING * limit:
        full = policy == "noeviction" and used >= limit
        yield Finding(
            "eviction",
            "problem" if full else "warning",
            f"{100 * used / limit:.0f} % of maxmemory is in use" + (": nothing can be written" if full else ""),
            "Raise maxmemory, or use a separate server for this library, which can be small.",
        )


def _replicas(seen: Seen) -> Iterator[Finding]:
    if seen.told("role") != "master":
        return
    count, needed = int(seen.told("connected_slaves") or 0), int(seen.setting("min-replicas-to-write") or 0)
    good = seen.told("min_slaves_good_slaves")
    if good is not None and int(good) < needed:
        yield Finding(
            "replicas",
            "problem",
            f"{good} in touch, but min-replicas-to-write is {needed}: nothing can be written",
            "Bring the replicas back, or lower min-replicas-to-write.",
        )
    if not count:
        yield Finding(
            "replicas",
            "note",
            "none: while the server is down, no call starts",
            "Add one, with Sentinel or a cluster.",
        )
        return
    trouble = [text for number in range(count) if (text := _behind(seen, f"slave{number}"))]
    if trouble:
        yield Finding(
            "replicas",
            "warning",
            f"{len(trouble)} of {count} not in sync: {'; '.join(trouble)}",
            "A failover to such a replica loses writes, and with them locks. Look at its log and at the network.",
        )
    else:
        yield Finding("replicas", "ok", f"{count}, in sync")
    if seen.setting("min-replicas-to-write") == "0":
        yield Finding(
            "replicas",
            "note",
            "min-replicas-to-write is 0: a master that is cut off from them still gives out locks",
            "Set min-replicas-to-write 1 and min-replicas-max-lag 10, unless calls must go on without a replica.",
        )


def _behind(seen: Seen, name: str) -> str:
    """Return what is wrong with a replica, or an empty text."""
    replica = seen.told(name)
    if not isinstance(replica, Mapping):
        return ""
    state = str(replica.get("state"))
    if state != "online":
        return state
    missing = int(seen.told("master_repl_offset") or 0) - int(replica.get("offset", 0))
    lag = int(replica.get("lag", 0))
    return f"{missing} bytes, {lag} s behind" if missing > LAG_BYTES or lag > LAG_SECONDS else ""


def _timeouts(seen: Seen) -> Iterator[Finding]:
    timeouts = {"socket_connect_timeout": seen.connect_timeout, "socket_timeout": seen.socket_timeout}
    fit = True
    for name, seconds in timeouts.items():
        if seconds is None or seconds > LONGEST_TIMEOUT:
            fit = False
            yield Finding(
                "timeouts",
                "warning",
                f"{name} is {'not set' if seconds is None else f'{seconds:g} s'}",
                "A dead connection stops a bot for that long. Set 3 s, or use from_url to make the client.",
            )
        elif seconds < SHORTEST_TIMEOUT:
            fit = False
            yield Finding(
                "timeouts", "warning", f"{name} is {seconds:g} s", "Even a short delay becomes an error. Set 3 s."
            )
    if fit:
        yield Finding("timeouts", "ok", ", ".join(f"{name} {seconds:g} s" for name, seconds in timeouts.items()))


JUDGES: Final = (_unseen, _server, _role, _persistence, _eviction, _replicas, _timeouts)
