"""How threads reach Redis: clients for URLs, and what commands are sent over and offers are heard on."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import Connection, ConnectionPool, SSLConnection
from redis.retry import Retry
from redis.sentinel import Sentinel

from kraken_nonce_redis import urls
from kraken_nonce_redis._redis.cluster import Exchange, Nodes, Sleep, told
from kraken_nonce_redis._redis.commands import pack
from kraken_nonce_redis._threads.drive import drive
from kraken_nonce_redis.errors import InvalidArgument, keeps_connection

if TYPE_CHECKING:
    from redis.client import PubSub
    from redis.connection import AbstractConnection

    from kraken_nonce_redis._redis.cluster import Address, Words
    from kraken_nonce_redis._redis.commands import Command
    from kraken_nonce_redis.urls import Place


class ClusterAddress:
    """The cluster of a URL. redis-py's client would connect when it is made, and this doesn't."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def connect(self) -> RedisCluster:
        """Return a client of redis-py."""
        nodes = [ClusterNode(*address) for address in self.place.hosts]
        return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **self.place.options)


Source: TypeAlias = redis.Redis | RedisCluster | ClusterAddress


@functools.cache
def client_from_url(url: str) -> redis.Redis | ClusterAddress:
    """Return the process's client for a URL; it has not connected yet. Raises `InvalidArgument`."""
    place = urls.parse(url)
    try:
        if place.kind == "cluster":
            _pool(place.hosts[0], place.options).make_connection()
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


def _pool(address: Address, options: dict[str, Any]) -> ConnectionPool:
    kwargs: dict[str, Any] = {**options, "host": address[0], "port": address[1]}
    kwargs.setdefault("connection_class", SSLConnection if kwargs.pop("ssl", False) else Connection)
    return ConnectionPool(**kwargs)


class _Connection:
    """A connection of our own, made by a pool and kept: a command costs its round trip and no more."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: AbstractConnection | None = None
        self.proven = False

    def exchange(self, words: Words, then: Words = ()) -> tuple[Any, Any]:
        """Send words, and others right behind them if there are any; return the replies."""
        if self._connection is None:
            self._connection = cast("AbstractConnection", self._pool.make_connection())
            # No retries but ours: redis-py's, ten by default, would outlast many a lease.
            self._connection.retry = Retry(NoBackoff(), 0)
        sent, second = False, None
        try:
            if not self.proven:
                self._connection.connect()  # which asks the Sentinels, as sending alone would not
            self._connection.send_packed_command([pack(words) + pack(then) if then else pack(words)])
            sent = True
            try:
                reply = self._connection.read_response()
            except redis.ResponseError:
                if then:
                    with contextlib.suppress(redis.ResponseError):
                        self._connection.read_response()
                raise
            if then:
                second = self._connection.read_response()
        except BaseException as error:
            self.proven = sent and keeps_connection(error)
            if not self.proven:
                self._connection.disconnect()
            raise
        self.proven = True
        return reply, second

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()


class ServerConnections:
    """A server, or whichever server Sentinels call the master when the connection is made."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._connection = _Connection(client.connection_pool)

    def node(self, command: Command[Any]) -> None:
        """Return what commands have in common that fail together."""

    def send(self, command: Command[Any], words: Words) -> tuple[Any, Any]:
        """Send a command's words; return the reply, and that of what follows it.

        Once more over a new connection if one that worked before fails. A command may so be run twice, which every
        script of ours allows.
        """
        if self._connection.proven:
            try:
                return self._connection.exchange(words, command.then)
            except (redis.ConnectionError, redis.TimeoutError):
                command.repeated = True
        return self._connection.exchange(words, command.then)

    def pubsub(self) -> PubSub:
        """Return what to subscribe with."""
        subscription: PubSub = self._client.pubsub()
        return subscription


class ClusterConnections:
    """The nodes of a cluster, each with a connection from when it is first asked."""

    def __init__(self, source: RedisCluster | ClusterAddress) -> None:
        if isinstance(source, ClusterAddress):
            self._options = source.place.options
            self._nodes = Nodes(source.place.hosts)
        else:
            nodes = source.nodes_manager.startup_nodes.values()
            pool = source.get_redis_connection(next(iter(nodes))).connection_pool
            self._options = {"connection_class": pool.connection_class, **pool.connection_kwargs}
            self._nodes = Nodes((node.host, int(node.port)) for node in nodes)
        self._connections: dict[Address, _Connection] = {}

    def node(self, command: Command[Any]) -> object:
        """Return what commands have in common that fail together."""
        return self._nodes.owner(command)

    def send(self, command: Command[Any], words: Words) -> tuple[Any, Any]:
        """Send a command's words to the node that has its keys; return the reply, and that of what follows it."""
        replies: tuple[Any, Any] = drive(self._nodes.sending(command, words), self._carry_out)
        return replies

    def _carry_out(self, step: Exchange | Sleep) -> tuple[Any, Any] | None:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return None
        try:
            return self._at(step.address).exchange(step.words, step.then)
        except redis.RedisError as error:
            raise told(error) from error.__cause__

    def _at(self, address: Address) -> _Connection:
        connection = self._connections.get(address)
        if connection is None:
            connection = self._connections[address] = _Connection(_pool(address, self._options))
        return connection

    def pubsub(self) -> PubSub:
        """Return what to subscribe with, on another node than last time."""
        subscription: PubSub = redis.Redis(connection_pool=_pool(self._nodes.listening_post(), self._options)).pubsub()
        return subscription


Connections: TypeAlias = ServerConnections | ClusterConnections


def connections(source: Source) -> Connections:
    """Return what to reach the Redis of a client with."""
    return ServerConnections(source) if isinstance(source, redis.Redis) else ClusterConnections(source)


def checked(client: object) -> Source:
    """Return a client of redis-py. Raises `InvalidArgument`."""
    if not isinstance(client, redis.Redis | RedisCluster | ClusterAddress):
        raise InvalidArgument(
            "redis",
            f"must be a client of redis-py (redis.Redis, RedisCluster), not {type(client).__module__}."
            f"{type(client).__qualname__}; kraken_nonce_redis.asyncio is for those of redis.asyncio",
        )
    return client
