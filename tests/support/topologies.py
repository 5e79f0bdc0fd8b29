"""Redis in other shapes than one server: Sentinel, Cluster, TLS; each of `tests.support.servers`, on loopback.

All have `url` and `client()`, `async_client()` as a user would make them, and can be set up anew by `reset()`.
Their servers are `Server`s, with `kill`, `pause`, `resume` and `start`.
"""

from __future__ import annotations

import abc
import contextlib
import datetime as dt
import ipaddress
import shutil
import ssl
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.sentinel
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.retry import Retry

from tests.support.servers import HOST, REDIS_7, VALKEY, Kind, Server, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

SERVICE = "the-master"
SETTLE_TIMEOUT = 30.0
CLUSTER_NODE_TIMEOUT = 2.0
"""Seconds after which the nodes of a cluster hold one for dead."""


def settled(condition: Callable[[], T], what: str) -> T:
    """Return what a condition gives once it is true; servers that are just changing may not answer it."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        with contextlib.suppress(redis.RedisError):
            value = condition()
            if value:
                return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {SETTLE_TIMEOUT:g} s")
        time.sleep(0.02)


class Topology(abc.ABC):
    """Several servers that are one Redis to a client."""

    is_fake = False

    def __init__(self) -> None:
        self._on_close = contextlib.ExitStack()

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """The URL, as `from_url` takes it."""

    @property
    @abc.abstractmethod
    def servers(self) -> list[Server]:
        """All server processes."""

    @abc.abstractmethod
    def _connect(self, **options: Any) -> Any: ...

    @abc.abstractmethod
    def async_client(self, **options: Any) -> Any:
        """Make a client of redis.asyncio as a user would; the caller closes it."""

    @staticmethod
    def parts(client: Any) -> list[Any]:
        """Return what has to be closed of a client of redis.asyncio."""
        return [client]

    @abc.abstractmethod
    def master(self, key: str = "") -> Server:
        """Return the server that has a key."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start everything."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Make it as good as new, whatever a test did to it."""

    def client(self, **options: Any) -> Any:
        """Make a client of redis-py as a user would, closed with the test at the latest."""
        client = self._connect(**options)
        self._on_close.callback(client.close)
        return client

    def close_clients(self) -> None:
        """Close every client that `client` made."""
        self._on_close.close()

    def stop(self) -> None:
        """End everything for good."""
        self.close_clients()
        for server in self.servers:
            server.stop()

    def kill_master(self, key: str = "") -> Server:
        """Kill -9 the server that has a key, and return it; `start` brings it back."""
        master = self.master(key)
        master.kill()
        return master

    def _revive(self) -> None:
        for server in self.servers:
            server.resume()
            if not server.is_running:
                server.start()
            with server.admin() as admin:
                admin.client_unpause()
                admin.execute_command("ACL", "SETUSER", "default", "+psync", "+sync")
                admin.config_set("min-replicas-to-write", 0)
                admin.config_set("lua-time-limit", 5000)
                admin.config_resetstat()
                admin.script_flush()
                admin.client_kill_filter(_type="normal", skipme=True)
                admin.client_kill_filter(_type="pubsub", skipme=True)


def cut_replication(master: Server) -> None:
    """Let no write reach the replicas of a master any more, as when the network between them is cut."""
    with master.admin() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
        admin.client_kill_filter(_type="slave", skipme=True)


class Watcher(Server):
    """One Sentinel process."""

    def __init__(self, kind: Kind, *arguments: str) -> None:
        super().__init__(kind, *arguments)
        self.watched = 0

    def start(self) -> None:
        """Start it; it knows nothing yet, and whatever it learned before is forgotten."""
        self._folder.mkdir(exist_ok=True)
        (self._folder / "sentinel.conf").write_text("")
        if self.port:
            self._launch()
        else:
            self._launch_on_a_free_port()

    def _words(self) -> list[str]:
        return [
            str(self._folder / "sentinel.conf"),
            *("--sentinel", "--port", str(self.port), "--bind", HOST, "--dir", str(self._folder)),
            *self._arguments,
        ]

    def reset(self) -> None:
        """Do nothing: it is told anew what to watch."""

    def watch(self, master: Server) -> None:
        """Watch a master, and forget what was watched before. Everything is done often, so that tests are fast."""
        with self.admin() as admin:
            # More often than by default, but five pings must last longer than a second, in which a replica is looked at
            # once, and four greetings longer than that in which a promotion is noticed: the others would undo it.
            for name, milliseconds in {"info": 100, "ping": 300, "ask": 100, "publish": 500}.items():
                admin.execute_command("SENTINEL", "DEBUG", f"{name}-period", milliseconds)
            admin.execute_command("SENTINEL", "DEBUG", "min-link-reconnect-period", 100)
            if self.watched:
                admin.execute_command("SENTINEL", "REMOVE", SERVICE)
            admin.execute_command("SENTINEL", "MONITOR", SERVICE, HOST, master.port, 2)
            admin.execute_command("SENTINEL", "SET", SERVICE, "down-after-milliseconds", 2000)
            admin.execute_command("SENTINEL", "SET", SERVICE, "failover-timeout", 1500)
            self.watched = master.port


class SentinelTopology(Topology):
    """A master, two replicas and three Sentinels."""

    def __init__(self, kind: Kind = VALKEY) -> None:
        super().__init__()
        self._data = [Server(kind, "--repl-diskless-sync-delay", "0") for _ in range(3)]
        self.watchers = [Watcher(kind) for _ in range(3)]

    @property
    def url(self) -> str:
        """The URL with all Sentinels."""
        return f"redis+sentinel://{self.addresses}/{SERVICE}"

    @property
    def addresses(self) -> str:
        """The Sentinels, with commas between them."""
        return ",".join(f"{host}:{port}" for host, port in self._places())

    @property
    def servers(self) -> list[Server]:
        """Master and replicas."""
        return self._data

    def start(self) -> None:
        """Start everything and wait until the Sentinels know all."""
        for server in (*self._data, *self.watchers):
            server.start()
        self._arrange()

    def stop(self) -> None:
        """End everything for good."""
        for watcher in self.watchers:
            watcher.stop()
        super().stop()

    def reset(self) -> None:
        """Make the first server the master again."""
        self.close_clients()
        for watcher in self.watchers:
            watcher.resume()
            if not watcher.is_running:
                watcher.watched = 0
                watcher.start()
            elif watcher.watched:
                with watcher.admin() as admin:
                    admin.execute_command("SENTINEL", "REMOVE", SERVICE)
                watcher.watched = 0
        self._revive()
        self._arrange()
        with self._data[0].admin() as admin:
            admin.flushall()

    def _arrange(self) -> None:
        first, *others = self._data
        with first.admin() as admin:
            admin.replicaof("NO", "ONE")
        for other in others:
            with other.admin() as admin:
                admin.replicaof(HOST, first.port)
        self._until_replicated(first)
        for watcher in self.watchers:
            watcher.watch(first)
        settled(lambda: all(self._knows_all(watcher) for watcher in self.watchers), "Sentinels know each other")

    def _until_replicated(self, master: Server) -> None:
        def both_are_online() -> bool:
            with master.admin() as admin:
                info = admin.info("replication")
            return [info.get(f"slave{i}", {}).get("state") for i in range(2)] == ["online"] * 2

        settled(both_are_online, "replicas are online")

    @staticmethod
    def _knows_all(watcher: Watcher) -> bool:
        with watcher.admin() as admin:
            seen = admin.sentinel_master(SERVICE)
            replicas = admin.sentinel_slaves(SERVICE)
        linked = all(replica["master-link-status"] == "ok" for replica in replicas)
        return (seen["num-slaves"], seen["num-other-sentinels"]) == (2, 2) and linked

    def master(self, key: str = "") -> Server:
        """Return the server that most Sentinels hold for the master."""
        del key
        ports = []
        for watcher in self.watchers:
            if watcher.is_running:
                with watcher.admin() as admin:
                    ports.append(admin.sentinel_get_master_addr_by_name(SERVICE)[1])
        port = max(ports, key=ports.count)
        return next(server for server in self._data if server.port == port)

    def failover(self) -> None:
        """Let the Sentinels make a replica the master, as an operator does, and wait until all know."""
        old = self.master()
        with self.watchers[0].admin() as admin:
            settled(lambda: admin.execute_command("SENTINEL", "FAILOVER", SERVICE), "a replica fit for a failover")
        self.until_promoted(old)

    def until_promoted(self, old: Server) -> Server:
        """Wait until all Sentinels and the server itself know of another master, and return that."""

        def new_master() -> Server | None:
            new = self.master()
            with new.admin() as admin:
                return new if new is not old and admin.info("replication")["role"] == "master" else None

        return settled(new_master, "another master")

    def _connect(self, **options: Any) -> redis.Redis:
        once = {"retry": Retry(NoBackoff(), 1), "socket_timeout": 3}
        sentinel = redis.sentinel.Sentinel(self._places(), sentinel_kwargs=once)
        for watcher in sentinel.sentinels:
            self._on_close.callback(watcher.close)
        master: redis.Redis = sentinel.master_for(SERVICE, **{**once, **options})
        return master

    def async_client(self, **options: Any) -> Any:
        """Make a client of redis.asyncio as a user would; the caller closes it."""
        once = {"retry": AsyncRetry(NoBackoff(), 1), "socket_timeout": 3}
        sentinel = redis.asyncio.sentinel.Sentinel(self._places(), sentinel_kwargs=once)
        return sentinel.master_for(SERVICE, **{**once, **options})

    @staticmethod
    def parts(client: Any) -> list[Any]:
        """Return what has to be closed of a client of redis.asyncio."""
        return [client, *client.connection_pool.sentinel_manager.sentinels]

    def _places(self) -> list[tuple[str, int]]:
        return [(HOST, watcher.port) for watcher in self.watchers]


class ClusterTopology(Topology):
    """A Redis Cluster of three masters, each with a replica."""

    def __init__(self, kind: Kind = VALKEY) -> None:
        super().__init__()
        timeout = str(int(CLUSTER_NODE_TIMEOUT * 1000))
        self._nodes = [
            Server(
                kind,
                *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
                *("--cluster-node-timeout", timeout, "--repl-diskless-sync-delay", "0"),
            )
            for _ in range(6)
        ]

    @property
    def url(self) -> str:
        """The URL with the first three nodes."""
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in self._nodes[:3])}"

    @property
    def servers(self) -> list[Server]:
        """All six nodes."""
        return self._nodes

    def start(self) -> None:
        """Start the nodes and join them."""
        for node in self._nodes:
            node.start()
        first, *others = self._nodes
        for epoch, node in enumerate(self._nodes, 1):
            with node.admin() as admin:
                admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
                if epoch <= 3:
                    admin.execute_command("CLUSTER", "ADDSLOTS", *_third(epoch - 1))
        with first.admin() as admin:
            for other in others:
                admin.execute_command("CLUSTER", "MEET", HOST, other.port)
        for master, replica in zip(self._nodes[:3], self._nodes[3:], strict=True):
            settled(partial(self._replicate, replica, master), "a replica knows its master")
        self._settle()

    def reset(self) -> None:
        """Make all nodes live and well, and empty. Which of them are masters may have changed."""
        self.close_clients()
        self._revive()
        self._settle()
        for node in self.masters():
            with node.admin() as admin:
                for slot in _moving(admin):
                    admin.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
                admin.flushall()

    def _replicate(self, replica: Server, master: Server) -> bool:
        with replica.admin() as admin:
            return bool(admin.execute_command("CLUSTER", "REPLICATE", _id(master)))

    def _settle(self) -> None:
        settled(lambda: all(self._is_whole(node) for node in self._nodes), "the cluster is whole")

    def _is_whole(self, node: Server) -> bool:
        with node.admin() as admin:
            known = _nodes(admin)
            if "cluster_state:ok" not in admin.execute_command("CLUSTER", "INFO") or len(known) != 6:
                return False
            info = admin.info("replication")
        alive = all(linked and not {"fail", "fail?", "noaddr", "handshake"} & flags for flags, linked, _ in known)
        replicas = sum("slave" in flags for flags, _, _ in known)
        followed = info["master_link_status"] == "up" if info["role"] == "slave" else info["connected_slaves"] == 1
        return alive and replicas == 3 and followed

    def masters(self) -> list[Server]:
        """Return the nodes that are masters at the moment."""
        found = []
        for node in self._nodes:
            if node.is_running:
                with node.admin() as admin:
                    if admin.info("replication")["role"] == "master":
                        found.append(node)
        return found

    def master(self, key: str = "") -> Server:
        """Return the server that has a key."""
        return self._at(self._slots(key)[0])

    def replica(self, key: str) -> Server:
        """Return the replica of the server that has a key."""
        return self._at(self._slots(key)[1])

    def _slots(self, key: str) -> list[int]:
        """Return the ports of the nodes that have a key, the master first."""
        slot = key_slot(key.encode())
        witness = next(node for node in self._nodes if node.is_running)
        with witness.admin() as admin:
            for first, last, *nodes in admin.execute_command("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    return [int(node[1]) for node in nodes]
        raise AssertionError(f"nobody has slot {slot}")

    def _at(self, port: int) -> Server:
        return next(node for node in self._nodes if node.port == port)

    def failover(self, key: str) -> None:
        """Let the replica of a key's master take its place in order, and wait until all know."""
        old, new = self.master(key), self.replica(key)
        with new.admin() as admin:
            admin.execute_command("CLUSTER", "FAILOVER")
        self.until_promoted(old, key)
        self._settle()

    def until_promoted(self, old: Server, key: str) -> Server:
        """Wait until all living nodes know that another one has a key, and return that."""
        slot = key_slot(key.encode())

        def new_master() -> Server | None:
            found = set()
            for node in self._nodes:
                if node.is_running:
                    with node.admin() as admin:
                        ranges = admin.execute_command("CLUSTER", "SLOTS")
                    found |= {int(nodes[0][1]) for first, last, *nodes in ranges if first <= slot <= last}
            return self._at(found.pop()) if len(found) == 1 and found != {old.port} else None

        return settled(new_master, "another master")

    @contextlib.contextmanager
    def without_failover(self) -> Iterator[None]:
        """Hold no silent node for dead, so that none takes its place; in the end no node is silent any more."""
        self._set_node_timeout(60.0)
        try:
            yield
        finally:
            for node in self._nodes:
                node.resume()
            self._set_node_timeout(CLUSTER_NODE_TIMEOUT)

    def _set_node_timeout(self, seconds: float) -> None:
        for node in self._nodes:
            with node.admin() as admin:
                admin.config_set("cluster-node-timeout", int(seconds * 1000))

    def begin_migration(self, key: str) -> tuple[Server, Server]:
        """Begin to move a key's slot to another master; return the one that has it and that other one."""
        source = self.master(key)
        target = next(node for node in self.masters() if node is not source)
        slot = key_slot(key.encode())
        with target.admin() as admin:
            admin.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
        with source.admin() as admin:
            admin.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))
        return source, target

    def move_keys(self, key: str, source: Server, target: Server, most: int = 100) -> None:
        """Move what is in the slot, key by key, so many at most."""
        slot = key_slot(key.encode())
        with source.admin() as admin:
            for name in admin.execute_command("CLUSTER", "GETKEYSINSLOT", slot, most):
                admin.execute_command("MIGRATE", HOST, target.port, name, 0, 5000)

    def end_migration(self, key: str, target: Server) -> None:
        """Tell all masters who has the slot now."""
        slot = key_slot(key.encode())
        for node in (target, *(node for node in self.masters() if node is not target)):
            with node.admin() as admin:
                admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", _id(target))

    def migrate_slot(self, key: str) -> Server:
        """Move a key's slot with what is in it to another master, and return that."""
        source, target = self.begin_migration(key)
        self.move_keys(key, source, target)
        self.end_migration(key, target)
        return target

    def _connect(self, **options: Any) -> RedisCluster:
        nodes = [ClusterNode(HOST, node.port) for node in self._nodes if node.is_running]
        return RedisCluster(startup_nodes=nodes, **{"socket_timeout": 3, **options})

    def async_client(self, **options: Any) -> Any:
        """Make a client of redis.asyncio as a user would; the caller closes it."""
        nodes = [AsyncClusterNode(HOST, node.port) for node in self._nodes if node.is_running]
        return redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, **{"socket_timeout": 3, **options})


def _third(number: int) -> range:
    """Return a third of all hash slots."""
    return range(16384 * number // 3, 16384 * (number + 1) // 3)


def _id(node: Server) -> str:
    with node.admin() as admin:
        return str(admin.execute_command("CLUSTER", "MYID"))


def _nodes(admin: redis.Redis) -> list[tuple[set[str], bool, list[str]]]:
    """Return of each node that a node knows its flags, whether the two are linked, and its slots."""
    lines = str(admin.execute_command("CLUSTER", "NODES")).splitlines()
    return [(set(words[2].split(",")), words[7] == "connected", words[8:]) for words in map(str.split, lines)]


def _moving(admin: redis.Redis) -> list[str]:
    """Return the slots that a node is about to give or take."""
    return [slots.strip("[").split("-")[0] for _, _, all_ in _nodes(admin) for slots in all_ if slots.startswith("[")]


class Certificates:
    """An authority's certificate, and those with keys that it gave a server and a client."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="certificates-"))
        make_certificates(self._folder)

    @property
    def authority(self) -> str:
        """The file that makes a client trust the server."""
        return str(self._folder / "ca.crt")

    @property
    def trust(self) -> str:
        """The option of a URL that makes a client trust the server."""
        return f"ssl_ca_certs={self.authority}"

    @property
    def identity(self) -> str:
        """The options of a URL that give a client its certificate."""
        return f"ssl_certfile={self._folder / 'client.crt'}&ssl_keyfile={self._folder / 'client.key'}"

    def words(self, port: int) -> list[str]:
        """Return what makes a server listen with TLS as well, for clients with certificates."""
        return [
            *("--tls-port", str(port), "--tls-auth-clients", "yes"),
            *("--tls-ca-cert-file", self.authority),
            *("--tls-cert-file", str(self._folder / "server.crt"), "--tls-key-file", str(self._folder / "server.key")),
        ]

    def context(self) -> ssl.SSLContext:
        """Return what a server of ours needs for TLS."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._folder / "server.crt", self._folder / "server.key")
        return context

    def remove(self) -> None:
        """Remove them."""
        shutil.rmtree(self._folder, ignore_errors=True)


class TlsTopology(Topology):
    """One server that talks TLS and asks its clients for certificates; Debian's, for Valkey's wheel has no TLS."""

    def __init__(self) -> None:
        super().__init__()
        self.certificates = Certificates()
        self.port = free_port()
        self._server = Server(REDIS_7, *self.certificates.words(self.port))

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """The URL with everything that a client needs."""
        return f"rediss://{self.address}/0?{self.certificates.trust}&{self.certificates.identity}"

    @property
    def servers(self) -> list[Server]:
        """The one server."""
        return [self._server]

    def start(self) -> None:
        """Start it."""
        self._server.start()

    def stop(self) -> None:
        """End it for good, and forget the certificates."""
        super().stop()
        self.certificates.remove()

    def reset(self) -> None:
        """Make it as good as new."""
        self.close_clients()
        self._server.reset()

    def master(self, key: str = "") -> Server:
        """Return the server."""
        del key
        return self._server

    def _connect(self, **options: Any) -> redis.Redis:
        return redis.Redis.from_url(self.url, **options)

    def async_client(self, **options: Any) -> Any:
        """Make a client of redis.asyncio as a user would; the caller closes it."""
        return redis.asyncio.Redis.from_url(self.url, **options)


def make_certificates(folder: Path) -> None:
    """Write an authority's certificate into a folder, and certificates with keys that it gave a server and a client."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the tests")])
    _write_certificate(folder / "ca", authority, authority_key, authority, authority_key)
    for name in ("server", "client"):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        _write_certificate(folder / name, subject, ec.generate_private_key(ec.SECP256R1()), authority, authority_key)


def _write_certificate(
    path: Path, subject: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, issuer_key: Any
) -> None:
    now = dt.datetime.now(dt.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key
    is_authority = subject == issuer
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(_usage(is_authority=is_authority), critical=True)
        .add_extension(identifier(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    path.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    """Return what a key is for, without which Python 3.13 takes no certificate."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


KINDS: dict[str, tuple[Kind, Callable[[], Topology]]] = {
    "sentinel": (VALKEY, SentinelTopology),
    "cluster": (VALKEY, ClusterTopology),
    "cluster-7": (REDIS_7, partial(ClusterTopology, REDIS_7)),
    "tls": (REDIS_7, TlsTopology),
}
"""What each is made from, and how."""
