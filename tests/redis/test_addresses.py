"""Addresses that are wrong, and servers that are not what an address says: plain words, and never a password."""

from __future__ import annotations

import contextlib
import gc
import logging
import pickle
import re
import socket
import threading
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import pytest
import redis.asyncio
from hypothesis import example, given
from hypothesis import strategies as st
from redis.backoff import NoBackoff

from kraken_nonce_redis import (
    InvalidArgument,
    StoreError,
    StorePermissionDenied,
    StoreUnavailable,
    StoreUnsupported,
    urls,
)
from kraken_nonce_redis.errors import from_redis
from tests.support.helpers import fails
from tests.support.servers import HOST, REDIS_7, VALKEY, Server, free_port
from tests.support.tiers import in_test_all
from tests.support.topologies import SERVICE, TlsTopology, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import PrivateServer
    from tests.support.faces import Face

PASSWORD = "tr0ub4dor-and-3"
OF_SENTINEL = "c0rrect-h0rse"
USER = "batteryst4ple"
SHAPES = [
    "redis://{login}@known-host:6379/0",
    "rediss://{login}@known-host",
    UNIX := "unix://{login}@/run/redis.sock",
    "redis+sentinel://{login}@known-host,b:1/main/2",
    "redis+cluster://{login}@known-host:6379,b",
]
FORGETS_SOCKETS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""When TLS can't begin, redis-py before 5.1 leaves a socket to the garbage collector, and asyncio a transport."""
SHORT = "socket_timeout=0.3&socket_connect_timeout=0.3"


def shown(error: BaseException) -> str:
    """Return all that can be seen of an error: texts, fields, causes, contexts, tracebacks, what a log has of it."""
    found, todo = [], [error]
    while todo:
        each = todo.pop()
        found += [str(each), repr(each), repr(each.args), repr(vars(each)), repr(getattr(each, "__notes__", ""))]
        todo += [deeper for deeper in (each.__cause__, each.__context__) if deeper is not None]
    record = logging.LogRecord("any", logging.ERROR, "", 0, "%s", (error,), (type(error), error, error.__traceback__))
    found += [*traceback.format_exception(error), logging.Formatter().format(record), str(pickle.dumps(error))]
    return "\n".join(found)


# What is written wrong


@pytest.mark.once
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("character", "way"), [("#", "%23"), ("?", "%3F"), ("/", "%2F")])
@pytest.mark.parametrize("place", ["{}" + PASSWORD, "4973{}" + PASSWORD, PASSWORD + "{}", "a{}b@c" + PASSWORD])
def test_characters_that_end_the_host(shape: str, character: str, way: str, place: str) -> None:
    """A character that would make another host of a password is named, and how it is written instead."""
    for login in (":{}", "user:{}", "{}:x"):
        if (shape, login) == (UNIX, "{}:x") and place.format(character).startswith("/"):
            continue  # it is a path
        with fails(InvalidArgument, f"{character} as {way}") as caught:
            urls.parse(shape.format(login=login.format(place.format(character))))
        assert caught.value.parameter == "url"
        assert not any(part in shown(caught.value) for part in (PASSWORD, "known-host", "4973"))


@pytest.mark.once
@given(password=st.text(min_size=1), shape=st.sampled_from(SHAPES))
def test_any_password_can_be_written(password: str, shape: str) -> None:
    """Percent-encoded, every password is understood, wherever the URL leads."""
    place = urls.parse(shape.format(login=f":{quote(password, safe='')}"))
    assert place.options["password"] == password


@pytest.mark.once
@given(
    password=st.text(st.sampled_from("ab1/?#@:[]%&=+, é\t\\"), min_size=1).map(lambda text: f"{text}tr0ub4dor"),
    shape=st.sampled_from(SHAPES),
)
@example("1@/tr0ub4dor", UNIX)
@example("/@/tr0ub4dor", UNIX)
def test_unescaped_passwords_work_or_are_refused(password: str, shape: str) -> None:
    """Left as it is, a password is understood as it stands, or refused without a word of it; no other host is tried."""
    try:
        place = urls.parse(shape.format(login=f":{password}"))
    except InvalidArgument as error:
        assert "tr0ub4dor" not in shown(error)  # noqa: PT017 - it may be raised or not
    else:
        assert place.options["password"] == unquote(password)
        assert not place.hosts or place.hosts[0][0] == "known-host"
        assert place.options.get("host", "known-host") == "known-host"
        assert place.options.get("path", "/run/redis.sock") == "/run/redis.sock"


@pytest.mark.once
@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://known-host:99999", ["the port from 1 to 65535"]),
        ("redis://known-host:0", ["the port from 1 to 65535"]),
        (f"redis://known-host:{PASSWORD}", ["user and password end in an @"]),
        (f"redis://user:{PASSWORD}", ["user and password end in an @"]),
        (f"redis://:{PASSWORD}@two words", ["needs host"]),
        (f"redis://:{PASSWORD}@a..b", ["needs host"]),
        (f"redis://:{PASSWORD}@{'a' * 64}", ["needs host"]),
        (f"redis://:{PASSWORD}@a%00b", ["needs host"]),
        (f"redis://:{PASSWORD}@[::1", ["needs host"]),
        (f"redis://:{PASSWORD}@a,b", ["one host only", "redis+cluster://"]),
        (f"redis://:{PASSWORD}@a/{PASSWORD}", ["a database that is no number"]),
        (f"redis://:{PASSWORD}%ff@a", ["the password is not UTF-8"]),
        (f"redis://:{PASSWORD}\udcff@a", ["the password is not UTF-8"]),
        (f"redis://{PASSWORD}%ff@a", ["the user name is not UTF-8"]),
        (f"unix://:{PASSWORD}@", ["unix:///run/redis.sock"]),
        (f"unix://{PASSWORD}/run/redis.sock", ["unix:///run/redis.sock"]),
        (f"redis+sentinel://:{PASSWORD}@/main", ["needs host", "several with commas"]),
        (f"redis+sentinel://user:12/{PASSWORD}@known-host", ["write / as %2F"]),
        (f"redis+sentinel://:{PASSWORD}@a", ["the name that the Sentinels know"]),
        (f"redis+cluster://:{PASSWORD}@a/1", ["only the database 0"]),
    ],
)
def test_what_is_wrong_is_said(url: str, parts: list[str]) -> None:
    """Each mistake has words of its own, which show nothing of the URL."""
    with fails(InvalidArgument, *parts) as caught:
        urls.parse(url)
    assert PASSWORD not in shown(caught.value)


@pytest.mark.once
@pytest.mark.parametrize(
    ("url", "host", "port", "options"),
    [
        ("redis://", "localhost", 6379, {}),
        ("redis:///3", "localhost", 6379, {"db": 3}),
        ("redis://:@a:1/", "a", 1, {}),
        ("redis://a:/0/\n", "a", 6379, {"db": 0}),
        ("redis://[::1]:5/0?db=2", "::1", 5, {"db": 2}),
        ("redis://[fe80::1%25eth0]", "fe80::1%eth0", 6379, {}),
        ("redis://bücher.example", "bücher.example", 6379, {}),
        ("redis://me@a", "a", 6379, {"username": "me"}),
        ("redis://me:p@ss[w]rd%@a", "a", 6379, {"username": "me", "password": "p@ss[w]rd%"}),
        ("redis://me:two%20words+é@a", "a", 6379, {"username": "me", "password": "two words+é"}),
        ("redis://a?password=p%2Bp+p&username=me", "a", 6379, {"username": "me", "password": "p+p p"}),
        ("redis://:one@a?password=two", "a", 6379, {"password": "one"}),
        ("redis://a?client_name=bot@home&db=", "a", 6379, {"client_name": "bot@home"}),
        ("redis://a?db=1&db=2&protocol=2", "a", 6379, {"db": 1, "protocol": 2}),
        ("redis://a?socket_keepalive=yes&socket_timeout=1", "a", 6379, {"socket_keepalive": True, "socket_timeout": 1}),
        ("redis://a?max_connections=9&health_check_interval=30&decode_responses=True", "a", 6379, {}),
        ("rediss://a?ssl_min_version=772", "a", 6379, {"ssl_min_version": 772}),
        ("rediss://a?ssl_check_hostname=no", "a", 6379, {"ssl_check_hostname": False}),
        ("rediss://a?ssl_cert_reqs=CERT_NONE", "a", 6379, {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
    ],
)  # fmt: skip
def test_what_a_server_url_means(url: str, host: str, port: int, options: dict[str, Any]) -> None:
    """URLs of one server mean what they mean to redis-py."""
    place = urls.parse(url)
    timeouts = {"socket_timeout": 3.0, "socket_connect_timeout": 3.0}
    assert place.options == {**timeouts, **options, "host": host, "port": port}
    assert place.url == url.partition("://")[0] + "://"


# Options


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("colour=s3cret", "the option colour is not known; known are client_name, db"),
        ("ssl_cacerts=s3cret", "the option ssl_cacerts is not known, perhaps ssl_ca_certs is meant"),
        ("s3cret", "has an option that is not known"),
        ("s3cret=1", "has an option that is not known"),
        ("ssl_password=a&secret=1", "has an option that is not known; in a password, & is written as %26"),
        ("socket_timeout=s3cret", "the option socket_timeout needs seconds, above 0"),
        ("socket_timeout=0", "the option socket_timeout needs seconds, above 0"),
        ("socket_connect_timeout=nan", "the option socket_connect_timeout needs seconds, above 0"),
        ("socket_timeout=inf", "the option socket_timeout needs seconds, above 0"),
        ("db=s3cret", "the option db needs the number of a database"),
        ("protocol=4", "the option protocol needs 2 or 3"),
        ("socket_keepalive=s3cret", "the option socket_keepalive needs true or false"),
        ("client_name=s3cret%ff", "the value of an option is not UTF-8"),
        ("ssl_cert_reqs=s3cret", "the option ssl_cert_reqs needs none, optional or required (or CERT_NONE"),
        ("ssl_check_hostname=s3cret", "the option ssl_check_hostname needs true or false"),
        ("ssl_min_version=s3cret", "the option ssl_min_version needs a number of ssl.TLSVersion"),
        ("ssl_min_version=12", "the option ssl_min_version needs a number of ssl.TLSVersion"),
        ("ssl_exclude_verify_flags=s3cret", "the option ssl_exclude_verify_flags needs names of ssl.VerifyFlags"),
        ("ssl_ca_certs=/s3cret", "the option ssl_ca_certs is not there or can't be read: give the path of a file"),
        ("ssl_ca_path=/s3cret", "the option ssl_ca_path is not there or can't be read: give the path of a folder"),
        ("ssl_certfile=/s3cret", "the option ssl_certfile is not there or can't be read"),
        ("ssl_keyfile=%00s3cret", "the option ssl_keyfile is not there or can't be read"),
    ],
)  # fmt: skip
def test_wrong_options(face: Face, query: str, part: str) -> None:
    """An unknown option is named, so is one with a wrong value; the value is not shown."""
    for url in ("rediss://a", "rediss+sentinel://a/main", "rediss+cluster://a"):
        with fails(InvalidArgument, f"url: {part}") as caught:
            face.allocator_from_url(f"{url}?{query}")
        assert not any(word in shown(caught.value).replace(f"option {part}", "") for word in ("s3cret", "secret "))


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("redis://a?ssl_cert_reqs=none", "the option ssl_cert_reqs is for TLS: rediss://"),
        ("unix:///a?ssl_ca_certs=s3cret", "the option ssl_ca_certs is for TLS: rediss://"),
        ("redis://a?sentinel_password=s3cret", "the option sentinel_password is for redis+sentinel://"),
        ("redis+cluster://a?sentinel_username=s3cret", "the option sentinel_username is for redis+sentinel://"),
        ("unix:///a?socket_keepalive=yes", "doesn't know the option socket_keepalive for such a connection"),
    ],
)
def test_options_for_other_urls(face: Face, url: str, part: str) -> None:
    """An option that such a URL can't have is named."""
    with fails(InvalidArgument, part) as caught:
        face.allocator_from_url(url)
    assert "s3cret" not in shown(caught.value)


@pytest.mark.parametrize("spelling", ["CERT_NONE", "none", "None"])
def test_no_certificate_wanted(face: Face, tls: TlsTopology, spelling: str) -> None:
    """Celery's spelling of ssl_cert_reqs and redis-py's do the same: no certificate is looked at, nor its host."""
    options = f"{tls.certificates.identity}&ssl_cert_reqs={spelling}"
    assert face.allocator_from_url(f"rediss://{tls.address}?{options}").next() > 0


@pytest.mark.parametrize("spelling", ["CERT_REQUIRED", "required", "CERT_OPTIONAL", "optional"])
def test_certificates_wanted(face: Face, tls: TlsTopology, spelling: str) -> None:
    """With the other spellings a certificate is looked at."""
    options = f"{tls.certificates.identity}&ssl_cert_reqs={spelling}"
    assert face.allocator_from_url(f"rediss://{tls.address}?{options}&{tls.certificates.trust}").next() > 0
    with fails(StoreUnavailable, "the server's certificate is not trusted", "ssl_ca_certs"):
        face.allocator_from_url(f"rediss://{tls.address}?{options}").next()


# Servers that are not what the URL says


def urls_of(port: int, login: str = "", query: str = "", secure: str = "") -> list[str]:
    """Return a server's and a cluster's URL for a port."""
    return [f"redis{secure}{kind}://{login}{HOST}:{port}?{query}" for kind in ("", "+cluster")]


def refused(face: Face, url: str, kind: type[StoreError], *parts: str) -> None:
    """Expect an error of a kind whose text has these parts; nothing hangs on it, and it shows no secret."""
    with fails(kind, *parts) as caught:
        face.allocator_from_url(url).next()
    assert type(caught.value) is kind
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert not any(secret in shown(caught.value) for secret in (PASSWORD, OF_SENTINEL, USER))


@pytest.mark.test_all
def test_tls_to_a_plain_port(face: Face, private_server: PrivateServer) -> None:
    """A server without TLS doesn't answer the handshake; the URL is for one with it."""
    port = private_server(VALKEY).port
    for url in urls_of(port, query="socket_connect_timeout=1", secure="s"):
        refused(face, url, StoreUnavailable, "the server doesn't answer in TLS", "redis://")


def test_plain_to_a_tls_port(face: Face, tls: TlsTopology) -> None:
    """A server with TLS closes the connection when it is spoken to without."""
    for login in ("", f":{PASSWORD}@"):
        for url in urls_of(tls.port, login):
            refused(face, url, StoreUnavailable, "closed the connection before it said anything", "rediss://")


@FORGETS_SOCKETS
def test_no_client_certificate(face: Face, tls: TlsTopology) -> None:
    """A server that asks for a certificate, and gets none, ends the connection."""
    for url in urls_of(tls.port, f":{PASSWORD}@", tls.certificates.trust, secure="s"):
        refused(face, url, StoreUnavailable, "certificate")
    gc.collect()


@FORGETS_SOCKETS
def test_a_certificate_for_another_host(face: Face, tls: TlsTopology) -> None:
    """The certificate must be the host's."""
    url = f"rediss://localhost.localdomain:{tls.port}?{tls.certificates.trust}&{tls.certificates.identity}"
    with contextlib.suppress(OSError):
        if socket.gethostbyname("localhost.localdomain") == HOST:
            refused(face, url, StoreUnavailable, "the server's certificate is not trusted", "localhost.localdomain")
    gc.collect()


@FORGETS_SOCKETS
def test_files_that_hold_no_certificate(face: Face, tls: TlsTopology) -> None:
    """A file that is there and holds something else shows when it is read, with the first command."""
    for options in (f"ssl_ca_certs={__file__}", f"ssl_certfile={__file__}&ssl_keyfile={__file__}"):
        for url in urls_of(tls.port, query=options, secure="s"):
            refused(face, url, StoreUnavailable, "a certificate, a key or another ssl_ option can't be used")
    gc.collect()


@pytest.mark.test_all
@FORGETS_SOCKETS
def test_files_that_have_gone(face: Face, tls: TlsTopology) -> None:
    """So does one that a client of the user's own names, and that is not there."""
    module: Any = redis.asyncio if face.name == "asyncio" else redis
    client = module.Redis(
        host=HOST, port=tls.port, ssl=True, ssl_ca_certs="/none", retry=module.retry.Retry(NoBackoff(), 0)
    )
    with fails(StoreUnavailable, "a certificate, a key or another ssl_ option can't be used") as caught:
        face.allocator(client).next()
    assert caught.value.__cause__ is caught.value.__context__ is None
    gc.collect()
    gc.collect()


@pytest.mark.parametrize("protocol", [2, 3])
def test_wrong_logins(face: Face, private_server: PrivateServer, protocol: int) -> None:
    """A password that is wrong, missing or not needed, and an unknown user: the server's words become ours."""
    server = private_server(VALKEY)
    query = f"protocol={protocol}"
    if protocol == 2:
        refused(
            face,
            urls_of(server.port, f":{PASSWORD}@", query)[0],
            StorePermissionDenied,
            "has no password; leave it out",
        )
    refused(face, urls_of(server.port, f"{USER}:{PASSWORD}@", query)[0], StorePermissionDenied, "user name or password")
    with server.admin() as admin:
        admin.config_set("requirepass", "right")
        for url in urls_of(server.port, query=query):
            refused(face, url, StorePermissionDenied, "asks for a password and got none", "redis://:password@host")
        for login in (f":{PASSWORD}@", f"{USER}:right@", f"{USER}@"):
            for url in urls_of(server.port, login, query):
                refused(face, url, StorePermissionDenied, "refuses the user name or password")


def test_sentinels_with_logins(face: Face) -> None:
    """Sentinels that refuse a login say so, and what is asked of the master's password is not what they get."""
    watcher = Watcher(VALKEY)
    try:
        watcher.start()
        with redis.Redis(port=watcher.port) as admin:
            admin.execute_command("ACL", "SETUSER", "default", f">{OF_SENTINEL}")
        url = f"redis+sentinel://{USER}:{PASSWORD}@{HOST}:{watcher.port},{HOST}:1/{SERVICE}?protocol=3"
        wrong = f"{url}&sentinel_password=wr0ng{OF_SENTINEL}"
        for each in (url, wrong):
            refused(face, each, StorePermissionDenied, "a Sentinel refuses", "sentinel_password")
        refused(face, f"{url}&sentinel_password={OF_SENTINEL}", StoreUnavailable, "no Sentinel names a master")
    finally:
        watcher.stop()


def test_a_server_without_hello(face: Face) -> None:
    """A server that doesn't know HELLO quotes the login in its answer; protocol=2 does without."""
    server = Server(VALKEY, "--rename-command", "HELLO", "NOHELLO")
    server._launch_on_a_free_port()
    try:
        for url in urls_of(server.port, f":{PASSWORD}@", "protocol=3"):
            refused(face, url, StoreUnsupported, "the server doesn't know HELLO", "protocol=2")
        assert face.allocator_from_url(f"redis://{HOST}:{server.port}?protocol=2").next() > 0
    finally:
        server.stop()


def test_a_user_that_may_not_log_in_like_that(face: Face, private_server: PrivateServer) -> None:
    """A permission that is missing for the login is named."""
    server = private_server(REDIS_7)
    with server.admin() as admin:
        admin.execute_command(
            "ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-client", "-select"
        )
    login = f"{USER}:{PASSWORD}@"
    refused(face, urls_of(server.port, login, "db=1")[0], StorePermissionDenied, "lacks a permission ('select')")
    for url in urls_of(server.port, login, "client_name=bot"):
        refused(face, url, StorePermissionDenied, "lacks a permission ('client|setname')")


def test_databases_and_names(face: Face, private_server: PrivateServer) -> None:
    """A database that the server has not, and a name that it doesn't take, are told from other errors."""
    port = private_server(VALKEY).port
    refused(face, urls_of(port, query="db=99")[0], StoreError, "no database of that number")
    refused(face, urls_of(port, query="client_name=my+bot")[0], StoreError, "refuses the client_name")


# Servers that quote what they were sent


def _one_line(heard: bytes) -> bytes:
    return heard.replace(b"\r\n", b" ")


def _words(heard: bytes) -> list[bytes]:
    return re.findall(rb"\$\d+\r\n(.*?)\r\n", heard, re.DOTALL)


def _as_redis(heard: bytes) -> bytes:
    name, *words = _words(heard) or [b""]
    return b"-ERR unknown command '%s', with args beginning with: %s\r\n" % (
        name,
        b" ".join(b"'%s'" % word for word in words),
    )


def _bulk(heard: bytes) -> bytes:
    text = b"SYNTAX what is " + _one_line(heard)
    return b"!%d\r\n%s\r\n" % (len(text), text)


ANSWERS: dict[str, Callable[[bytes], bytes | None]] = {
    "all": lambda heard: b"-ERR what is " + _one_line(heard) + b"?\r\n",
    "as Redis does": _as_redis,
    "the last word": lambda heard: b"-ERR wrong value '%s'\r\n" % _words(heard)[-1],
    "the last word, bare": lambda heard: b"-%s\r\n" % _words(heard)[-1],
    "wrong password": lambda heard: b"-WRONGPASS %s is wrong\r\n" % _words(heard)[-1],
    "no permission": lambda heard: b"-NOPERM User %s may not '%s'\r\n" % (_words(heard)[-2], _words(heard)[-1]),
    "no login": lambda heard: b"-NOAUTH not with %s\r\n" % _words(heard)[-1],
    "no such protocol": lambda heard: b"-NOPROTO %s\r\n" % _one_line(heard),
    "loading": lambda heard: b"-LOADING %s\r\n" % _one_line(heard),
    "read-only": lambda heard: b"-READONLY %s\r\n" % _one_line(heard),
    "clients": lambda heard: b"-ERR max number of clients reached by %s\r\n" % _one_line(heard),
    "system's words": lambda heard: b"-ERR Error 111 connecting to %s. Connection refused.\r\n" % _words(heard)[-1],
    "a bulk": _bulk,
    "a text": lambda heard: b"+%s\r\n" % _one_line(heard),
    "an echo": lambda heard: heard,
    "no Redis": lambda heard: b"HTTP/1.1 400 what is %s\r\n\r\n" % _one_line(heard),
    "no type": lambda heard: b"?%s\r\n" % _one_line(heard),
    "an alert of TLS": lambda heard: b"\x15\x03\x03\x00\x02\x02\x46%s\r\n" % _one_line(heard),
    "half": lambda heard: b"$5000\r\n%s" % heard,
    "an end": lambda _: None,
    "nothing": lambda _: b"",
}

STUMBLED_OVER = ("a text", "an echo")
"""In a login and in lists of nodes and masters, redis-py takes these for the answers that it asked for."""


class Quoting:
    """A server that answers all that it hears, and has heard before on a connection, by a function."""

    def __init__(self, answer: Callable[[bytes], bytes | None], *, after: int) -> None:
        self._answer = answer
        self._after = after
        self._socket = socket.create_server((HOST, free_port()))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        heard, commands = b"", 0
        with contextlib.suppress(OSError), connection:
            while more := connection.recv(65536):
                heard += more
                commands += 1
                if commands <= self._after:
                    answer: bytes | None = b"%1\r\n+proto\r\n:3\r\n" if b"HELLO" in more else b"+OK\r\n"
                else:
                    answer = self._answer(heard)
                if answer is None:
                    return
                connection.sendall(answer)

    def close(self) -> None:
        """End it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture(params=[0, *in_test_all(1, 3)], ids=["from the start", "after the login", "after it all"])
def quoting(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Quoting]]:
    """Start servers that quote from the so-many-th command on."""
    with contextlib.ExitStack() as stack:

        def start(how: str) -> Quoting:
            server = Quoting(ANSWERS[how], after=request.param)
            stack.callback(server.close)
            return server

        yield start


@pytest.mark.parametrize("module", [redis.sentinel, redis.asyncio.sentinel])
def test_what_redis_py_says_of_sentinels(module: Any) -> None:
    """Some versions of redis-py print all settings of the connections to Sentinels."""
    login = f"username={USER},password={PASSWORD}"
    for said in ("TimeoutError()", "AuthenticationError()"):
        found = module.MasterNotFoundError(f"No master found for 'main' : Redis<Pool<Connection({login})>> - {said}")
        error = from_redis(found, "acquire", "key")
        assert "a Sentinel" in str(error) or "no Sentinel" in str(error)
        assert str(error).endswith("('main')")
        assert PASSWORD not in shown(error)


@pytest.mark.parametrize("how", ANSWERS)
def test_nothing_shows_a_password(
    face: Face, quoting: Callable[[str], Quoting], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a server quotes, at the login or later: no error, cause, context, traceback or log has a password."""
    port = quoting(how).port
    caplog.set_level(logging.INFO)
    logins = (f":{PASSWORD}@", f"{USER}:{PASSWORD}@")
    addresses = [
        url for login in logins for protocol in (2, 3) for url in urls_of(port, login, f"{SHORT}&protocol={protocol}")
    ]
    sentinel = f"redis+sentinel://{USER}:{PASSWORD}@{HOST}:{port}/{SERVICE}?{SHORT}&sentinel_password={OF_SENTINEL}"
    for url in (*addresses, sentinel, f"{sentinel}&sentinel_username={USER}"):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of whatever kind
            face.allocator_from_url(url).next()
        found = shown(caught.value) + caplog.text
        assert not any(secret in found for secret in (PASSWORD, OF_SENTINEL, USER)), url
        assert isinstance(caught.value, StoreError) or how in STUMBLED_OVER


@pytest.mark.parametrize(
    ("said", "kind", "part"),
    [
        ("ERR max number of clients reached", StoreUnavailable, "takes no more connections (its maxclients)"),
        ("DENIED Redis is running in protected mode because", StorePermissionDenied, "is in protected mode"),
        ("ERR Client sent AUTH, but no password is set", StorePermissionDenied, "has no password; leave it out"),
        ("NOPROTO unsupported protocol version", StoreUnsupported, "doesn't know HELLO; use the option protocol=2"),
        ("ERR SELECT is not allowed in cluster mode", StoreUnsupported, "a cluster has only the database 0"),
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable, "the server is still loading"),
        ("ERR something new", StoreError, "the server refused"),
    ],
)
def test_what_servers_say_at_the_login(face: Face, said: str, kind: type[StoreError], part: str) -> None:
    """What a server says before the first command is told in words of ours."""
    server = Quoting(lambda _: f"-{said}\r\n".encode(), after=0)
    try:
        for url in urls_of(server.port, f":{PASSWORD}@"):
            refused(face, url, kind, part)
    finally:
        server.close()
