"""How tasks reach Redis: what `kraken_nonce_redis._threads.connections` is for threads."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kraken_nonce_redis import urls
from kraken_nonce_redis._redis.cluster import Exchange, Nodes, Sleep, told
from kraken_nonce_redis._redis.commands import pack
from kraken_nonce_redis.asyncio._drive import drive
from kraken_nonce_redis.errors import InvalidArgument, keeps_connection

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub
    from redis.asyncio.connection import AbstractConnection

    from kraken_nonce_redis._redis.cluster import Address, Words
    from kraken_nonce_redis._redis.commands import Command
    from kraken_nonce_redis.urls import Place

Client: TypeAlias = redis.asyncio.Redis | RedisCluster


def _pool(address: Address, options: dict[str, Any]) -> ConnectionPool:
    kwargs: dict[str, Any] = {**options, "host": address[0], "port": address[1]}
    kwargs.setdefault("connection_class", SSLConnection if kwargs.pop("ssl", False) else Connection)
    return ConnectionPool(**kwargs)


class _Connection:
    """A connection of our own, made by a pool and kept."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: AbstractConnection | None = None
        self.proven = False

    async def exchange(self, words: Words, then: Words = ()) -> tuple[Any, Any]:
        """Send words, and others right behind them if there are any; return the replies."""
        if self._connection is None:
            self._connection = self._pool.make_connection()
            self._connection.retry = Retry(NoBackoff(), 0)
        sent, second = False, None
        try:
            if not self.proven:
                await self._connection.connect()
            await self._connection.send_packed_command([pack(words) + pack(then) if then else pack(words)])
            sent = True
            try:
                reply = await self._connection.read_response()
            except ResponseError:
                if then:
                    with contextlib.suppress(ResponseError):
                        await self._connection.read_response()
                raise
            if then:
                second = await self._connection.read_response()
        except BaseException as error:
            self.proven = sent and keeps_connection(error)
            if not self.proven:
                await self.close()
            raise
        self.proven = True
        return reply, second

    async def close(self) -> None:
        """Close the connection; a later command opens it again."""
        self.proven = False
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)


class ServerConnections:
    """A server, or whichever server Sentinels call the master when the connection is made."""

    def __init__(self, client: redis.asyncio.Redis, sentinels: tuple[redis.asyncio.Redis, ...] = ()) -> None:
        self._client = client
        self._sentinels = sentinels
        self._connection = _Connection(client.connection_pool)

    def node(self, command: Command[Any]) -> None:
        """Return what commands have in common that fail together."""

    async def send(self, command: Command[Any], words: Words) -> tuple[Any, Any]:
        """Send a command's words; return the reply, and that of what follows it. Once more if need be."""
        if self._connection.proven:
            try:
                return await self._connection.exchange(words, command.then)
            except (RedisConnectionError, RedisTimeoutError):
                command.repeated = True
        return await self._connection.exchange(words, command.then)

    def pubsub(self) -> PubSub:
        """Return what to subscribe with."""
        return self._client.pubsub()

    async def close(self) -> None:
        """Close the connection, and those to Sentinels of our own; a later command opens them again."""
        await self._connection.close()
        for sentinel in self._sentinels:
            await sentinel.connection_pool.disconnect()


class ClusterConnections:
    """The nodes of a cluster, each with a connection from when it is first asked."""

    def __init__(self, source: RedisCluster | Place) -> None:
        if isinstance(source, RedisCluster):
            nodes = list(source.nodes_manager.startup_nodes.values())
            self._options = {"connection_class": nodes[0].connection_class, **nodes[0].connection_kwargs}
            self._nodes = Nodes((node.host, int(node.port)) for node in nodes)
        else:
            self._options = source.options
            self._nodes = Nodes(source.hosts)
        self._connections: dict[Address, _Connection] = {}

    def node(self, command: Command[Any]) -> object:
        """Return what commands have in common that fail together."""
        return self._nodes.owner(command)

    async def send(self, command: Command[Any], words: Words) -> tuple[Any, Any]:
        """Send a command's words to the node that has its keys; return the reply, and that of what follows it."""
        replies: tuple[Any, Any] = await drive(self._nodes.sending(command, words), self._carry_out)
        return replies

    async def _carry_out(self, step: Exchange | Sleep) -> tuple[Any, Any] | None:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._at(step.address).exchange(step.words, step.then)
        except RedisError as error:
            raise told(error) from error.__cause__

    def _at(self, address: Address) -> _Connection:
        connection = self._connections.get(address)
        if connection is None:
            connection = self._connections[address] = _Connection(_pool(address, self._options))
        return connection

    def pubsub(self) -> PubSub:
        """Return what to subscribe with, on another node than last time."""
        return redis.asyncio.Redis(connection_pool=_pool(self._nodes.listening_post(), self._options)).pubsub()

    async def close(self) -> None:
        """Close the connections; a later command opens them again."""
        for connection in self._connections.values():
            await connection.close()


Connections: TypeAlias = ServerConnections | ClusterConnections


def connections(source: Client | str) -> Connections:
    """Return what to reach the Redis of a client or URL with; nothing is connected yet. Raises `InvalidArgument`."""
    if isinstance(source, RedisCluster):
        return ClusterConnections(source)
    if isinstance(source, redis.asyncio.Redis):
        return ServerConnections(source)
    place = urls.parse(source)
    once = Retry(NoBackoff(), 1)
    sentinels: tuple[redis.asyncio.Redis, ...] = ()
    try:
        if place.kind == "cluster":
            _pool(place.hosts[0], place.options).make_connection()
            return ClusterConnections(place)
        if place.kind == "sentinel":
            sentinel_options = {**place.sentinel_options, "retry": Retry(NoBackoff(), 0)}
            manager = Sentinel(place.hosts, sentinel_kwargs=sentinel_options)
            client = manager.master_for(place.service, **place.options, retry=once)
            sentinels = tuple(manager.sentinels)
        else:
            client = redis.asyncio.Redis.from_url(place.url, **place.options, retry=once)
        client.connection_pool.make_connection()  # which looks at the options, and connects later
    except (ValueError, TypeError) as error:
        raise urls.unusable(error) from None
    return ServerConnections(client, sentinels)


def checked(client: object) -> Client:
    """Return a client of redis.asyncio. Raises `InvalidArgument`."""
    if not isinstance(client, redis.asyncio.Redis | RedisCluster):
        raise InvalidArgument(
            "redis",
            "must be a client of redis.asyncio (Redis, RedisCluster), not "
            f"{type(client).__module__}.{type(client).__qualname__}",
        )
    return client


def checked_url(url: str) -> str:
    """Return a URL that a client can be made from. Raises `InvalidArgument`."""
    connections(url)
    return url
