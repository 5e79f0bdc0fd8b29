"""How threads reach Redis: clients for URLs, and the connections that commands go through.

redis-py's pools count the connections that they make and allow so many; ours are made by pools of our own with the same
settings, so that they take none of the caller's.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import Connection, ConnectionPool, SSLConnection
from redis.retry import Retry
from redis.sentinel import Sentinel

from kraken_nonce_redis import urls
from kraken_nonce_redis._redis.cluster import Exchange, Nodes, Sleep, told
from kraken_nonce_redis._redis.pipeline import Slot
from kraken_nonce_redis._redis.places import Place, settings, settings_key, silent
from kraken_nonce_redis._threads.drive import drive
from kraken_nonce_redis._threads.pipe import Pipe
from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from redis.client import PubSub

    from kraken_nonce_redis._core.process_state import ProcessState
    from kraken_nonce_redis._redis.cluster import Address
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.places import Places


class ClusterAddress:
    """The cluster of a URL. redis-py's client would connect when it is made, and this doesn't."""

    def __init__(self, address: urls.Place) -> None:
        self.address = address

    def connect(self) -> RedisCluster:
        """Return a client of redis-py."""
        nodes = [ClusterNode(*host) for host in self.address.hosts]
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **self.address.options)


Source: TypeAlias = redis.Redis | RedisCluster | ClusterAddress


@functools.cache
def client_from_url(url: str) -> redis.Redis | ClusterAddress:
    """Return the process's client for a URL; it has not connected yet. Raises `InvalidArgument`."""
    place = urls.parse(url)
    try:
        if place.kind == "cluster":
            _node_pool(place.hosts[0], place.options).make_connection()
            return ClusterAddress(place)
        if place.kind == "sentinel":
            sentinel_options = {**place.sentinel_options, "retry": Retry(NoBackoff(), 0)}
            client: redis.Redis = Sentinel(place.hosts, sentinel_kwargs=sentinel_options).master_for(
                place.service, **place.options, retry=Retry(NoBackoff(), 1)
            )
        else:
            client = redis.Redis.from_url(place.url, **place.options, retry=Retry(NoBackoff(), 1))
        client.connection_pool.make_connection()  # which looks at the options, and connects later
    except (ValueError, TypeError) as error:
        raise urls.unusable(error) from None
    return client


def _pool(connection_class: Any, options: Mapping[str, Any]) -> ConnectionPool:
    """Return a pool that makes connections with settings of redis-py's."""
    # No retries but ours: redis-py's, ten by default, would outlast many a lease.
    return ConnectionPool(
        connection_class=connection_class,
        max_connections=sys.maxsize,
        retry=Retry(NoBackoff(), 0),
        **settings(options),
    )


def _node_pool(address: Address, options: Mapping[str, Any]) -> ConnectionPool:
    kwargs: dict[str, Any] = {**options, "host": address[0], "port": address[1]}
    secure = kwargs.pop("ssl", False)
    return _pool(kwargs.pop("connection_class", SSLConnection if secure else Connection), kwargs)


class ServerConnections:
    """A server, or whichever server Sentinels call the master when the connection is made."""

    fail_as_one: Final = True
    """Whether what waits for one connection may let all else wait."""

    def __init__(self, client: redis.Redis, process_state: ProcessState) -> None:
        self._client = client  # its Sentinels live as long as it does
        pool = client.connection_pool
        self._pool = _pool(pool.connection_class, pool.connection_kwargs)
        self._pipe = Pipe(self._pool.make_connection, process_state.connected, process_state.reconnected)
        self._durable = Pipe(self._pool.make_connection, process_state.connected, process_state.reconnected)

    @property
    def pipes(self) -> Iterable[Pipe]:
        """All connections that commands go through."""
        return self._pipe, self._durable

    def pipe(self, command: Command[Any]) -> Pipe:
        """Return the connection for a command."""
        # Servers let those wait who come after a WAIT on the same connection.
        return self._pipe if command.durability is None else self._durable

    def send(self, command: Command[Any], request: Callable[[], bytes]) -> Sequence[Any]:
        """Send a command's request and return the replies, once more if need be. Raises redis-py's errors."""
        slot = Slot(request(), command.due, renew=request)
        try:
            return self.pipe(command).ask(slot)
        finally:
            command.repeated |= slot.sent > 1
            command.unsent = not slot.sent

    def pubsub(self) -> PubSub:
        """Return what to subscribe with."""
        subscription: PubSub = redis.Redis(connection_pool=self._pool, **silent).pubsub()
        return subscription


class ClusterConnections:
    """The nodes of a cluster, each with connections from when it is first asked."""

    fail_as_one: Final = False

    def __init__(
        self, nodes: Iterable[Address], options: Mapping[str, Any], places: Places, process_state: ProcessState
    ) -> None:
        self._options = options
        self._process_state = process_state
        patience = options.get("socket_timeout") or urls.SOCKET_TIMEOUT
        self._nodes = Nodes(nodes, lambda known: places.floors(Place.of_cluster(known)), patience, process_state.moved)
        self._pipes: dict[tuple[Address, bool], Pipe] = {}
        self._turn = threading.Lock()

    @property
    def pipes(self) -> Iterable[Pipe]:
        """All connections that commands go through."""
        return list(self._pipes.values())

    def pipe(self, command: Command[Any]) -> Pipe | None:
        """Return the connection for a command, None when it is not known or not open."""
        address = self._nodes.owner(command)
        pipe = None if address is None else self._pipes.get((address, command.durability is not None))
        return pipe if pipe is not None and pipe.is_open else None

    def send(self, command: Command[Any], request: Callable[[], bytes]) -> Sequence[Any]:
        """Send a command's request to the node that has its keys; return the replies. Raises redis-py's errors."""
        flow = self._nodes.sending(command, request, command.due)
        replies: Sequence[Any] = drive(flow, self._carry_out, command)
        return replies

    def _carry_out(self, step: Exchange | Sleep, command: Command[Any]) -> Sequence[Any] | None:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return None
        try:
            replies = self._at(step.address, durable=command.durability is not None).ask(Slot(step.request, step.due))
        except (redis.RedisError, OSError) as error:
            raise told(error) from error.__cause__
        for reply in replies:
            if isinstance(reply, Exception):
                raise told(reply)
        return replies

    def _at(self, address: Address, *, durable: bool) -> Pipe:
        with self._turn:
            pipe = self._pipes.get((address, durable))
            if pipe is None:
                make = _node_pool(address, self._options).make_connection
                pipe = self._pipes[address, durable] = Pipe(
                    make, reconnected=self._process_state.reconnected, resend=False
                )
            return pipe

    def pubsub(self) -> PubSub:
        """Return what to subscribe with, on another node than last time."""
        pool = _node_pool(self._nodes.listening_post(), self._options)
        subscription: PubSub = redis.Redis(connection_pool=pool, **silent).pubsub()
        return subscription


Connections: TypeAlias = ServerConnections | ClusterConnections


@dataclass(frozen=True, slots=True)
class Target:
    """What a client points to.

    Attributes:
        key: the same for all with equal connection settings.
        place: where that is.
        connect: makes the connections, which open when they are first used; they tell the process's state of it.
    """

    key: Hashable
    place: Place
    connect: Callable[[Places, ProcessState], Connections]

    @classmethod
    def of(cls, source: Source) -> Target:
        """Return the target of a client."""
        if isinstance(source, redis.Redis):
            return cls._of_server(source)
        if isinstance(source, ClusterAddress):
            nodes, options = source.address.hosts, source.address.options
        else:
            seeds = source.nodes_manager.startup_nodes.values()
            nodes = tuple((node.host, int(node.port)) for node in seeds)
            pool = source.get_redis_connection(next(iter(seeds))).connection_pool
            options = {"connection_class": pool.connection_class, **pool.connection_kwargs}
        options = {name: value for name, value in options.items() if name not in ("host", "port")}
        key = ("cluster", frozenset(nodes), settings_key(options))
        return cls(
            key,
            Place.of_cluster(nodes),
            lambda places, process_state: ClusterConnections(nodes, options, places, process_state),
        )

    @classmethod
    def _of_server(cls, client: redis.Redis) -> Target:
        pool: Any = client.connection_pool
        options, manager = pool.connection_kwargs, getattr(pool, "sentinel_manager", None)
        key: Hashable = (pool.connection_class, settings_key(options))
        place = Place.of_server(options)
        if manager is not None:
            sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
            addresses = [(str(kwargs["host"]), int(kwargs["port"])) for kwargs in sentinels]
            place = Place.of_service(pool.service_name, addresses, options)
            key = (pool.service_name, pool.is_master, tuple(map(settings_key, sentinels)), key)
        return cls(key, place, lambda _, process_state: ServerConnections(client, process_state))


def checked(client: object) -> Source:
    """Return a client of redis-py. Raises `InvalidArgument`."""
    if not isinstance(client, redis.Redis | RedisCluster | ClusterAddress):
        raise InvalidArgument(
            "redis",
            f"must be a client of redis-py (redis.Redis, RedisCluster), not {type(client).__module__}."
            f"{type(client).__qualname__}; kraken_nonce_redis.asyncio is for those of redis.asyncio",
        )
    return client
