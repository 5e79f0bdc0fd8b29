"""Which Redis a command asks: where it is, who said so, its masters, and the API keys of a namespace in it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.retry import Retry

from kraken_nonce_redis import urls
from kraken_nonce_redis._redis import keyspace
from kraken_nonce_redis._redis.words import text
from kraken_nonce_redis._texts import printable, span
from kraken_nonce_redis._threads.connections import ClusterAddress, client_from_url
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.cli.exit_codes import Misuse, StoreFailure
from kraken_nonce_redis.errors import raise_from_redis

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from typing import TypeVar

    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.keyspace import Keyspace
    from kraken_nonce_redis._threads.connections import Source
    from kraken_nonce_redis.errors import StoreError

    T = TypeVar("T")

_COUNT: Final = 1000
"""Keys that the server looks at for one SCAN."""
_ASKED: Final = "kraken_nonce_redis.place"


@dataclass(frozen=True, slots=True)
class Master:
    """The server that Sentinels name.

    Attributes:
        address: its host and port.
        elected: seconds since it took another one's place, None if it did not while these Sentinels have watched.
    """

    address: str
    elected: float | None


class Place:
    """One Redis: a server, the master behind Sentinels, or a cluster. Nothing is sent before it is asked something.

    ``url`` is what --redis has; None for the URL in the environment. The running command remembers it: see `asked`.
    """

    def __init__(self, url: str | None) -> None:
        given = urls.from_environment() if url is None else url
        if given is None:
            raise Misuse(f"no Redis: give --redis URL or set {urls.VARIABLES[0]}")
        self.source = "--redis" if url is not None else urls.variable() or ""
        self._url = urls.parse(given)
        self.client = client_from_url(given)
        self._store = store_for(self.client)
        context = click.get_current_context(silent=True)
        if context is not None:
            context.meta[_ASKED] = self

    def run(self, command: Command[T]) -> T:
        """Run a command. Raises `StoreError` and what the command's reply says."""
        return self._store.run(command)

    @property
    def kind(self) -> str:
        """``server``, ``sentinel`` or ``cluster``."""
        return self._url.kind

    @property
    def hosts(self) -> str:
        """Hosts and ports, or the path of a socket, as the URL has them; never a login."""
        options = self._url.options
        if self._url.kind == "server":
            return printable(options["path"] if "path" in options else joined(options["host"], options["port"]))
        return printable(",".join(joined(*host) for host in self._url.hosts))

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(self._url.options.get("db") or 0)

    def words(self, master: Master | None = None, node: str | None = None) -> str:
        """Return where it is and who said so, in words."""
        service = printable(self._url.service)
        if self._url.kind == "cluster":
            parts = ["cluster", *([f"node {node} for this key,"] if node else []), f"by {self.hosts}"]
        elif self._url.kind == "sentinel" and master is None:
            parts = [f"the master of {service} by Sentinels {self.hosts}, db {self.database}"]
        elif master is not None:
            since = "" if master.elected is None else f" (elected {span(master.elected)} ago)"
            parts = [f"master {master.address}{since} of {service} by Sentinels {self.hosts}, db {self.database}"]
        else:
            parts = [f"{self.hosts}, db {self.database}"]
        return f"{' '.join(parts)}, from {self.source}"

    def failure(self, error: StoreError, *, about_key: bool = True) -> StoreFailure:
        """Return how a command ends for an error of Redis: which one it is goes with it.

        ``about_key`` is False for a key that is no API key's, which would tell nobody anything.
        """
        said = str(error) if about_key or not error.key else str(error).replace(f" {error.key}", "", 1)
        return StoreFailure(f"{said}; Redis is {self.words()}")

    def master(self) -> Master | None:
        """Return the master that Sentinels name, None for another kind. Raises `StoreError`."""
        if self._url.kind != "sentinel":
            return None
        pool: Any = self.client.connection_pool if isinstance(self.client, redis.Redis) else None
        service = self._url.service
        try:
            host, port = pool.sentinel_manager.discover_master(service)
        except (RedisError, OSError) as error:
            raise_from_redis(error, "sentinel", "")
        elected = None
        with contextlib.suppress(RedisError, OSError, LookupError, ValueError):
            # The one that has just answered is the first now.
            known = pool.sentinel_manager.sentinels[0].sentinel_master(service)
            if int(known["config-epoch"]) and "failover_in_progress" not in str(known["flags"]):
                elected = int(known["role-reported-time"]) / 1000
        return Master(joined(host, int(port)), elected)

    def node(self, keys: Keyspace) -> str | None:
        """Return the node of a cluster that has a key, None for another kind or if no node tells."""
        if not isinstance(self.client, ClusterAddress):
            return None
        slot = key_slot(keys.state.encode())
        with contextlib.suppress(RedisError, OSError):
            for first, last, host, port in self._slots(self.client):
                if first <= slot <= last:
                    return joined(host, port)
        return None

    def scanning(self, namespace: str) -> Generator[set[str]]:
        """Look for the API keys of a namespace on all masters, one SCAN at a time; yield what each has found.

        Raises `StoreError`.
        """
        try:
            with contextlib.ExitStack() as opened:
                for client in self.masters(opened):
                    cursor, begun = 0, False
                    while cursor or not begun:
                        begun = True
                        cursor, names = client.scan(cursor, match=f"{namespace}:{{*}}", count=_COUNT)
                        tags = {text(name)[len(namespace) + 2 : -1] for name in names}
                        yield {tag for tag in tags if keyspace.TAG.fullmatch(tag)}
        except (RedisError, OSError) as error:
            raise_from_redis(error, "scan", f"{namespace}:*")

    def masters(self, opened: contextlib.ExitStack) -> Iterator[redis.Redis]:
        """Yield a client for the one server, or for each master of a cluster. Raises what redis-py raises."""
        if isinstance(self.client, redis.Redis):
            yield self.client
        elif isinstance(self.client, ClusterAddress):
            masters = dict.fromkeys((host, port) for _, _, host, port in self._slots(self.client))
            for host, port in masters:
                yield opened.enter_context(
                    redis.Redis(host=host, port=port, retry=_once(), **self.client.address.options)
                )

    @staticmethod
    def _slots(cluster: ClusterAddress) -> Sequence[tuple[int, int, str, int]]:
        """Return the ranges of slots, each with its first and last slot and its master's host and port.

        Raises what redis-py raises for the last node that was asked, if none answers.
        """
        failure: Exception | None = None
        for host, port in cluster.address.hosts:
            try:
                with redis.Redis(host=host, port=port, retry=_once(), **cluster.address.options) as client:
                    answer: Any = client.execute_command("CLUSTER", "SLOTS")
            except (RedisError, OSError) as error:
                failure = error
                continue
            return [(first, last, text(node[0] or b"") or host, int(node[1])) for first, last, node, *_ in answer]
        assert failure is not None  # noqa: S101 - a cluster's URL has a host
        raise failure


def asked(context: click.Context) -> Place | None:
    """Return the Redis that a command asks; None if it has not come that far."""
    place: Place | None = context.meta.get(_ASKED)
    return place


def connect(url: str | None) -> Source:
    """Return the client for a URL, by default the one in the environment; nothing is sent yet."""
    return Place(url).client


def _once() -> Retry:
    return Retry(NoBackoff(), 0)


def joined(host: str, port: int) -> str:
    """Return a host and port as URLs have them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
