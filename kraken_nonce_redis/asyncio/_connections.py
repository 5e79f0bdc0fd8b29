"""How tasks reach Redis: what `kraken_nonce_redis._threads.connections` is for threads."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from kraken_nonce_redis import urls
from kraken_nonce_redis._redis.cluster import Exchange, Nodes, Sleep, told
from kraken_nonce_redis._redis.places import Place, settings, settings_key, silent
from kraken_nonce_redis.asyncio._drive import drive
from kraken_nonce_redis.asyncio._pipe import Pipe
from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from redis.asyncio.client import PubSub

    from kraken_nonce_redis._core.process_state import ProcessState
    from kraken_nonce_redis._redis.cluster import Address
    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.pipeline import Slot
    from kraken_nonce_redis._redis.places import Places

Client: TypeAlias = redis.asyncio.Redis | RedisCluster


def _pool(connection_class: Any, options: Mapping[str, Any]) -> ConnectionPool:
    """Return a pool that makes connections with settings of redis-py's."""
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

    def __init__(
        self,
        client: redis.asyncio.Redis,
        process_state: ProcessState,
        sentinels: tuple[redis.asyncio.Redis, ...] = (),
    ) -> None:
        self._client = client  # its Sentinels live as long as it does
        self._sentinels = sentinels
        make = self._new_pool().make_connection
        self._pipe = Pipe(make, process_state.connected, process_state.reconnected)
        self._durable = Pipe(make, process_state.connected, process_state.reconnected)

    @property
    def pipes(self) -> Iterable[Pipe]:
        """All connections that commands go through."""
        return self._pipe, self._durable

    def pipe(self, command: Command[Any]) -> Pipe:
        """Return the connection for a command."""
        # Servers let those wait who come after a WAIT on the same connection.
        return self._pipe if command.durability is None else self._durable

    async def send(self, command: Command[Any], request: Callable[[], bytes]) -> Sequence[Any]:
        """Send a command's request and return the replies, once more if need be. Raises redis-py's errors."""

        def note(slot: Slot) -> None:
            command.repeated |= slot.sent > 1
            command.unsent = not slot.sent

        return await self.pipe(command).ask(request(), command.due, note, request)

    def pubsub(self) -> PubSub:
        """Return what to subscribe with, with a pool of its own."""
        return redis.asyncio.Redis(connection_pool=self._new_pool(), **silent).pubsub()

    async def close(self) -> None:
        """Close the connections, and those to Sentinels of our own; a later command opens them again."""
        for pipe in self.pipes:
            pipe.close()
        for sentinel in self._sentinels:
            await sentinel.connection_pool.disconnect()

    def _new_pool(self) -> ConnectionPool:
        pool = self._client.connection_pool
        return _pool(pool.connection_class, pool.connection_kwargs)


class ClusterConnections:
    """The nodes of a cluster, each with connections from when it is first asked."""

    def __init__(
        self, nodes: Iterable[Address], options: Mapping[str, Any], places: Places, process_state: ProcessState
    ) -> None:
        self._options = options
        self._process_state = process_state
        patience = options.get("socket_timeout") or urls.SOCKET_TIMEOUT
        self._nodes = Nodes(nodes, lambda known: places.floors(Place.of_cluster(known)), patience, process_state.moved)
        self._pipes: dict[tuple[Address, bool], Pipe] = {}

    @property
    def pipes(self) -> Iterable[Pipe]:
        """All connections that commands go through."""
        return list(self._pipes.values())

    def pipe(self, command: Command[Any]) -> Pipe | None:
        """Return the connection for a command, None when it is not known or not open."""
        address = self._nodes.owner(command)
        pipe = None if address is None else self._pipes.get((address, command.durability is not None))
        return pipe if pipe is not None and pipe.is_open else None

    async def send(self, command: Command[Any], request: Callable[[], bytes]) -> Sequence[Any]:
        """Send a command's request to the node that has its keys; return the replies. Raises redis-py's errors."""
        flow = self._nodes.sending(command, request, command.due)
        replies: Sequence[Any] = await drive(flow, self._carry_out, command)
        return replies

    async def _carry_out(self, step: Exchange | Sleep, command: Command[Any]) -> Sequence[Any] | None:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        try:
            replies = await self._at(step.address, durable=command.durability is not None).ask(step.request, step.due)
        except (RedisError, OSError) as error:
            raise told(error) from error.__cause__
        for reply in replies:
            if isinstance(reply, Exception):
                raise told(reply)
        return replies

    def _at(self, address: Address, *, durable: bool) -> Pipe:
        pipe = self._pipes.get((address, durable))
        if pipe is None:
            make = _node_pool(address, self._options).make_connection
            pipe = self._pipes[address, durable] = Pipe(make, reconnected=self._process_state.reconnected, resend=False)
        return pipe

    def pubsub(self) -> PubSub:
        """Return what to subscribe with, with a pool of its own, on another node than last time."""
        pool = _node_pool(self._nodes.listening_post(), self._options)
        return redis.asyncio.Redis(connection_pool=pool, **silent).pubsub()

    async def close(self) -> None:
        """Close the connections; a later command opens them again."""
        for pipe in self.pipes:
            pipe.close()


Connections: TypeAlias = ServerConnections | ClusterConnections


@dataclass(frozen=True, slots=True)
class Target:
    """What a client or URL points to; `kraken_nonce_redis._threads.connections.Target` for asyncio.

    Attributes:
        key: the same for all with equal connection settings.
        place: where that is.
        connect: makes the connections, which open when they are first used; they tell the process's state of it.
    """

    key: Hashable
    place: Place
    connect: Callable[[Places, ProcessState], Connections]

    @classmethod
    def of(cls, source: Client) -> Target:
        """Return the target of a client."""
        if isinstance(source, RedisCluster):
            nodes = tuple((node.host, int(node.port)) for node in source.nodes_manager.startup_nodes.values())
            first = next(iter(source.nodes_manager.startup_nodes.values()))
            return cls._of_cluster(nodes, {"connection_class": first.connection_class, **first.connection_kwargs})
        return cls._of_server(source, lambda _, process_state: ServerConnections(source, process_state))

    @classmethod
    def of_url(cls, url: str) -> Target:
        """Return the target of a URL. Raises `InvalidArgument`."""
        address = urls.parse(url)
        try:
            if address.kind == "cluster":
                _node_pool(address.hosts[0], address.options).make_connection()
                return cls._of_cluster(address.hosts, address.options)
            client, _ = _client(address)
            client.connection_pool.make_connection()  # which looks at the options, and connects later
        except (ValueError, TypeError) as error:
            raise urls.unusable(error) from None

        # Connections to Sentinels belong to a loop, so each loop has a client of its own.
        def connect(_: Places, process_state: ProcessState) -> ServerConnections:
            client, sentinels = _client(address)
            return ServerConnections(client, process_state, sentinels)

        return cls._of_server(client, connect)

    @classmethod
    def _of_cluster(cls, nodes: tuple[Address, ...], options: Mapping[str, Any]) -> Target:
        options = {name: value for name, value in options.items() if name not in ("host", "port")}
        key = ("cluster", frozenset(nodes), settings_key(options))
        return cls(
            key,
            Place.of_cluster(nodes),
            lambda places, process_state: ClusterConnections(nodes, options, places, process_state),
        )

    @classmethod
    def _of_server(cls, client: redis.asyncio.Redis, connect: Callable[[Places, ProcessState], Connections]) -> Target:
        pool: Any = client.connection_pool
        options, manager = pool.connection_kwargs, getattr(pool, "sentinel_manager", None)
        key: Hashable = (pool.connection_class, settings_key(options))
        place = Place.of_server(options)
        if manager is not None:
            sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
            addresses = [(str(kwargs["host"]), int(kwargs["port"])) for kwargs in sentinels]
            place = Place.of_service(pool.service_name, addresses, options)
            key = (pool.service_name, pool.is_master, tuple(map(settings_key, sentinels)), key)
        return cls(key, place, connect)


def _client(address: urls.Place) -> tuple[redis.asyncio.Redis, tuple[redis.asyncio.Redis, ...]]:
    once = Retry(NoBackoff(), 1)
    if address.kind == "sentinel":
        sentinel_options = {**address.sentinel_options, "retry": Retry(NoBackoff(), 0)}
        manager = Sentinel(address.hosts, sentinel_kwargs=sentinel_options)
        return manager.master_for(address.service, **address.options, retry=once), tuple(manager.sentinels)
    return redis.asyncio.Redis.from_url(address.url, **address.options, retry=once), ()


def checked(client: object) -> Client:
    """Return a client of redis.asyncio. Raises `InvalidArgument`."""
    if not isinstance(client, redis.asyncio.Redis | RedisCluster):
        raise InvalidArgument(
            "redis",
            "must be a client of redis.asyncio (Redis, RedisCluster), not "
            f"{type(client).__module__}.{type(client).__qualname__}",
        )
    return client
