"""URLs: what they mean, and that nothing of a wrong one is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import InvalidArgument, StoreError, urls
from tests.support.helpers import eventually, fails
from tests.support.servers import HOST, REDIS_7, VALKEY, free_port
from tests.support.topologies import SERVICE, TlsTopology, Watcher

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import PrivateServer
    from tests.support.faces import Face
    from tests.support.servers import Server

SECRET = "s3cret-w0rd"
TIMEOUTS = {"socket_timeout": 3.0, "socket_connect_timeout": 3.0}
LOGIN = {"username": "me", "password": SECRET}


@pytest.mark.once
@pytest.mark.parametrize(
    ("url", "hosts", "service", "options"),
    [
        ("redis+sentinel://a/main", [("a", 26379)], "main", {}),
        ("redis+sentinel://a:1,b,c:3/main/2", [("a", 1), ("b", 26379), ("c", 3)], "main", {"db": 2}),
        ("redis+sentinel://[::1]:5,10.0.0.1/main", [("::1", 5), ("10.0.0.1", 26379)], "main", {}),
        (f"redis+sentinel://me:{SECRET}@a/main", [("a", 26379)], "main", LOGIN),
        (f"redis+sentinel://:{SECRET}@a/main", [("a", 26379)], "main", {"password": SECRET}),
        ("redis+sentinel://:p%40%2F@a/my%20main", [("a", 26379)], "my main", {"password": "p@/"}),
        ("redis+sentinel://a/main?db=3&socket_timeout=0.5", [("a", 26379)], "main", {"db": 3, "socket_timeout": 0.5}),
        ("rediss+sentinel://a/main", [("a", 26379)], "main", {"ssl": True}),
        ("redis+cluster://a", [("a", 6379)], "", {}),
        ("redis+cluster://a:1,b:2/0", [("a", 1), ("b", 2)], "", {}),
        (f"redis+cluster://me:{SECRET}@a,b", [("a", 6379), ("b", 6379)], "", LOGIN),
        (f"rediss+cluster://a?ssl_ca_certs={__file__}", [("a", 6379)], "", {"ssl": True, "ssl_ca_certs": __file__}),
    ],
)
def test_what_a_url_means(url: str, hosts: list[tuple[str, int]], service: str, options: dict[str, Any]) -> None:
    """Hosts, service, login, database and options stand where other libraries have them, too."""
    place = urls.parse(url)
    assert (list(place.hosts), place.service) == (hosts, service)
    assert place.options == {**TIMEOUTS, **options}


@pytest.mark.once
def test_logins_of_sentinels() -> None:
    """Sentinels get certificates and timeouts like the servers, and a login of their own."""
    place = urls.parse(
        f"rediss+sentinel://me:other@a/main?ssl_ca_certs={__file__}&sentinel_username=me&sentinel_password={SECRET}&db=1"
    )
    of_both = {"ssl": True, "ssl_ca_certs": __file__}
    assert place.sentinel_options == {**TIMEOUTS, **LOGIN, **of_both, "protocol": 2}
    assert place.options == {**TIMEOUTS, **LOGIN, **of_both, "password": "other", "db": 1}


@pytest.mark.parametrize(
    "url",
    [
        f"redis+other://:{SECRET}@a",
        f"redis+sentinel+x://:{SECRET}@a",
        f"unix+sentinel://:{SECRET}@a/main",
        f"redis+sentinel://:{SECRET}@a",
        f"redis+sentinel://:{SECRET}@a/",
        f"redis+sentinel://:{SECRET}@/main",
        f"redis+sentinel://:{SECRET}@a,/main",
        f"redis+sentinel://:{SECRET}@a:99999/main",
        f"redis+sentinel://:{SECRET}@a:port/main",
        f"redis+sentinel://a:{SECRET}/main",
        f"redis+sentinel://:{SECRET}@a/main/x",
        f"redis+sentinel://:{SECRET}@a/main/1/2",
        f"redis+sentinel://:{SECRET}@a/main?db=x",
        f"redis+sentinel://:{SECRET}@a/main?socket_timeout={SECRET}",
        f"redis+sentinel://:{SECRET}@a/main?sentinel_other={SECRET}",
        f"redis+sentinel://:{SECRET}@a/main?no_such_option={SECRET}",
        f"redis+sentinel://:{SECRET}@a/main#fragment",
        f"redis+sentinel://:a/{SECRET}@a/main",
        f"redis+cluster://:{SECRET}@a/1",
        f"redis+cluster://:{SECRET}@a?db=1",
        f"redis+cluster://:{SECRET}@a/main",
        f"redis+cluster://:{SECRET}@a?sentinel_password={SECRET}",
        f"redis+cluster://:{SECRET}@a?no_such_option={SECRET}",
        f"redis+cluster://:{SECRET}@a:b:c",
        f"redis+cluster://{SECRET}@",
        f"redis+cluster://[::1:{SECRET}",
    ],
)
@pytest.mark.parametrize("thing", ["allocator_from_url", "lock_from_url"])
def test_wrong_urls(face: Face, thing: str, url: str) -> None:
    """A wrong URL is refused at once, on both faces, and the error shows no part of it that may be a password."""
    with fails(InvalidArgument, "url") as caught:
        getattr(face, thing)(url)
    assert caught.value.parameter == "url"
    assert SECRET not in f"{caught.value} {caught.value.__cause__}"


def test_nothing_is_connected_at_first(face: Face) -> None:
    """A bot may be started before its Redis: objects are made without it, and say so when they are used."""
    for url in ("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main", "redis+cluster://127.0.0.1:1,127.0.0.1:2"):
        nonces = face.allocator_from_url(url)
        with fails(StoreError):
            nonces.next()


def test_unix_sockets(face: Face, private_server: PrivateServer, tmp_path: Path) -> None:
    """unix:// reaches a server through its socket."""
    private_server(VALKEY, "--unixsocket", str(tmp_path / "s"))
    nonces = face.allocator_from_url(f"unix://{tmp_path / 's'}?db=1")
    assert nonces.next() < nonces.next()


def test_sentinels_with_tls(face: Face, tls: TlsTopology) -> None:
    """rediss+sentinel:// reaches Sentinels and the master with TLS, both with the same certificates."""
    port = free_port()
    watcher = Watcher(REDIS_7, *tls.certificates.words(port), "--tls-replication", "yes")
    try:
        watcher.start()
        with watcher.admin() as admin:
            admin.execute_command("SENTINEL", "MONITOR", SERVICE, HOST, tls.port, 1)
        options = f"{tls.certificates.trust}&{tls.certificates.identity}"
        nonces = face.allocator_from_url(f"rediss+sentinel://{HOST}:{port}/{SERVICE}?{options}")
        assert nonces.next() < nonces.next()
        with face.lock_from_url(f"rediss+sentinel://{HOST}:{port}/{SERVICE}?{options}").hold():
            pass
    finally:
        watcher.stop()


@pytest.mark.test_all
def test_a_cluster_with_tls(face: Face, tls: TlsTopology, private_server: PrivateServer) -> None:
    """rediss+cluster:// reaches the nodes with TLS, here a single one that does not know its own name."""
    port = free_port()
    node = private_server(REDIS_7, "--cluster-enabled", "yes", "--tls-cluster", "yes", *tls.certificates.words(port))
    with node.admin() as admin:
        admin.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    options = f"{tls.certificates.trust}&{tls.certificates.identity}"
    nonces = face.allocator_from_url(f"rediss+cluster://{HOST}:{port}?{options}")
    eventually(lambda: node_is_up(node))
    assert nonces.next() < nonces.next()
    with face.lock_from_url(f"rediss+cluster://{HOST}:{port}?{options}").hold():
        pass


def node_is_up(node: Server) -> bool:
    """Return whether a node thinks well of its cluster."""
    with node.admin() as admin:
        return "cluster_state:ok" in str(admin.execute_command("CLUSTER", "INFO"))
