"""Where a client points and how it connects: what makes two clients the same; no I/O.

Connections are shared by clients with the same settings, floors by those that point to the same place. Two spellings of
one place, such as two DNS names, can't be known to be the same and count as two.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

try:
    from redis.event import EventDispatcher
except ImportError:  # redis-py before 5.3
    EventDispatcher = None  # type: ignore[assignment,misc]
try:
    from redis.maint_notifications import MaintNotificationsConfig
except ImportError:  # redis-py before 7
    MaintNotificationsConfig = None  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

# What doesn't count, or is replaced here: retries, checks and notices that redis-py makes on its own connections.
_OURS: Final = frozenset(
    {
        "connection_class",
        "connection_pool",
        "decode_responses",
        "driver_info",
        "event_dispatcher",
        "health_check_interval",
        "himport_registry",
        "lib_name",
        "lib_version",
        "max_connections",
        "orig_host_address",
        "orig_socket_connect_timeout",
        "orig_socket_timeout",
        "oss_cluster_maint_notifications_handler",
        "parser_class",
        "retry",
        "retry_on_error",
        "retry_on_timeout",
    }
)
_PLAIN: Final = (str, bytes, int, float, bool, tuple, frozenset, type)
_DEFAULTS: Final[Mapping[str, Any]] = {"host": "localhost", "port": 6379, "db": 0}


class _Deaf:
    """Stands for redis-py's dispatcher of events, by which a credential provider logs in anew on open connections."""

    def dispatch(self, event: object) -> None:
        """Do nothing."""

    async def dispatch_async(self, event: object) -> None:
        """Do nothing."""

    def register_listeners(self, mappings: object) -> None:
        """Do nothing."""


silent: Final[dict[str, Any]] = {} if EventDispatcher is None else {"event_dispatcher": _Deaf()}
"""What redis-py's client is made with to subscribe. Otherwise another thread would read from that connection, too."""


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of redis-py's connections that ours keep.

    What redis-py says by itself on a connection, such as checks of its health, would take the replies of others.
    """
    kept = {
        name: value
        for name, value in options.items()
        if name == "connection_pool" or not (name in _OURS or name.startswith("maint_notifications"))
    }
    if MaintNotificationsConfig is not None:
        kept["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    return kept


def settings_key(options: Mapping[str, Any]) -> Hashable:
    """Return what is the same for equal connection settings; objects such as a credential provider by identity.

    It holds passwords, so it must never be shown.
    """
    filled = {**_DEFAULTS, **{name: value for name, value in options.items() if value is not None}}
    return tuple(
        (name, value if isinstance(value, _PLAIN) else id(value))
        for name, value in sorted(settings(filled).items())
        if name not in ("connection_pool", "maint_notifications_config")
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client points.

    Attributes:
        name: what must be the same: a database, or the service that Sentinels watch.
        addresses: of which one in common makes two places the same: a server's, Sentinels', nodes of a cluster.
    """

    name: Hashable
    addresses: frozenset[Hashable]

    @property
    def is_divided(self) -> bool:
        """Whether that are several nodes, each of which has some of the keys."""
        return not isinstance(self.name, tuple)

    @property
    def shown(self) -> str:
        """Where that is, for people."""
        where = ", ".join(sorted(map(_shown, self.addresses)))
        if self.is_divided:
            return f"cluster of {where}"
        assert isinstance(self.name, tuple)  # noqa: S101
        kind, *words = self.name
        return f"{where}/{words[0]}" if kind == "server" else f"{words[0]}/{words[1]}, says {where}"

    @classmethod
    def of_server(cls, options: Mapping[str, Any]) -> Place:
        """Return the place of a server."""
        filled = {**_DEFAULTS, **{name: value for name, value in options.items() if value is not None}}
        address: Hashable = filled.get("path") or (str(filled["host"]).lower(), int(filled["port"]))
        if not isinstance(filled.get("server", ""), str):
            address = id(filled["server"])  # of fakeredis; whoever has its place keeps it
        return cls(("server", int(filled["db"])), frozenset([address]))

    @classmethod
    def of_service(cls, service: str, sentinels: Iterable[tuple[str, int]], options: Mapping[str, Any]) -> Place:
        """Return the place of what Sentinels watch."""
        return cls(("sentinel", service, int(options.get("db") or 0)), frozenset(sentinels))

    @classmethod
    def of_cluster(cls, nodes: Iterable[tuple[str, int]]) -> Place:
        """Return the place of a cluster."""
        return cls("cluster", frozenset(nodes))


def _shown(address: Hashable) -> str:
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return address if isinstance(address, str) else "a fake server"


def address_of(connection: Any) -> str:
    """Return where a connection of redis-py goes, for people; ``""`` for a fake one."""
    host, port = getattr(connection, "host", None), getattr(connection, "port", None)
    return str(getattr(connection, "path", "")) if host is None else f"{host}:{port}"


class Floors:
    """The highest nonce seen of each state key at one place, kept for the life of the process.

    Attributes:
        seen: what was noted here, by state key.
        same: the floors of all places that have turned out to be this one, itself among them.
    """

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.same: list[Floors] = [self]
        self._turn = threading.RLock()

    def get(self, key: str) -> int:
        """Return the highest nonce seen of a state key, 0 for none."""
        same = self.same
        if len(same) == 1:
            return self.seen.get(key, 0)
        return max(floors.seen.get(key, 0) for floors in same)

    def learn(self, key: str, nonce: int) -> None:
        """Take note of a nonce."""
        with self._turn:
            if nonce > self.seen.get(key, 0):
                self.seen[key] = nonce

    def join(self, other: Floors) -> None:
        """Take note that two places have turned out to be one."""
        if other not in self.same:
            same = [*self.same, *other.same]
            for floors in same:
                floors.same = same

    def begin_anew(self) -> None:
        """Take a lock of this process: another thread of the parent may have held the old one."""
        self._turn = threading.RLock()


class Places:
    """The floors of all places that a process has been to."""

    def __init__(self) -> None:
        self._known: list[tuple[Hashable, set[Hashable], Floors]] = []
        self._turn = threading.RLock()

    def floors(self, place: Place) -> Floors:
        """Return the floors of a place, the same ones for every place that has an address in common with it."""
        with self._turn:
            found = [
                (addresses, floors)
                for name, addresses, floors in self._known
                if name == place.name and not addresses.isdisjoint(place.addresses)
            ]
            if not found:
                self._known.append((place.name, set(place.addresses), floors := Floors()))
                return floors
            addresses, floors = found[0]
            addresses |= place.addresses
            for _, other in found[1:]:
                floors.join(other)
            return floors

    def begin_anew(self) -> None:
        """Go on in a child with what the parent has seen."""
        self._turn = threading.RLock()
        for _, _, floors in self._known:
            floors.begin_anew()
