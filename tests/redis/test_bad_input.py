"""Bad arguments, values and servers: a clear error of ours, nothing changed in Redis, no API key in the text."""

from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio

import kraken_nonce_redis
import kraken_nonce_redis.asyncio
from kraken_nonce_redis import (
    ForeignValue,
    InvalidArgument,
    KrakenNonceError,
    NonceAllocator,
    NonceTooFarAhead,
    Pace,
    Retries,
    StoreError,
    StoreOutOfMemory,
    StorePermissionDenied,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnsupported,
    krakenex,
)
from kraken_nonce_redis.errors import from_redis
from kraken_nonce_redis.permissions import COMMANDS, least_permissions
from tests.support.faces import KEY
from tests.support.helpers import KEYS, Rival, View, eventually, fails
from tests.support.servers import REDIS_6, REDIS_7, VALKEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import PrivateServer
    from tests.support.faces import Face
    from tests.support.servers import AnyServer, Server

PASSWORD = "correct-horse-battery"
NO_TIMES = [-1, -0.001, nan, inf, "5", True, b"1"]
NO_COUNTS = [0, -1, 1_000_001, 10**30, 1.0, "1", None, True, nan]


def cases(**values: list[Any]) -> pytest.MarkDecorator:
    """Parametrise a test with the bad values of each parameter."""
    return pytest.mark.parametrize(
        ("parameter", "value"),
        [pytest.param(name, value, id=f"{name}={value!r}"[:60]) for name, some in values.items() for value in some],
    )


@pytest.fixture
def untouched(valkey: Server) -> Any:
    """Check at the end that the server was asked nothing and holds nothing."""
    yield
    client = valkey.client()
    assert client.keys("*") == []
    assert not any(name.startswith("cmdstat_eval") for name in client.info("commandstats"))


# Arguments.


@cases(
    api_key=["", " ", "\t\n", None, 5, KEY.encode(), ["key"]],
    namespace=["", "a b", "{tag}", "x" * 65, None, 5, "ä", "a\n"],
)
def test_names(face: Face, valkey: Server, untouched: None, parameter: str, value: Any) -> None:
    """An API key or namespace that can't be right is refused when the object is made; the key is not shown."""
    for make in (face.allocator, face.lock):
        with fails(InvalidArgument, parameter) as caught:
            make(face.client(valkey), **{"api_key": KEY, parameter: value})
        assert caught.value.parameter == parameter
        assert isinstance(caught.value, ValueError)


@cases(
    ttl=[0, -1, 0.999, 3600.001, nan, inf, "30", None, True],
    scope=["", "all", None, 1],
)
def test_settings_of_a_lock(face: Face, valkey: Server, untouched: None, parameter: str, value: Any) -> None:
    """A lease of no length, under a second or above an hour is refused, and a scope that there isn't."""
    with fails(InvalidArgument, parameter) as caught:
        face.lock(face.client(valkey), **{parameter: value})
    assert caught.value.parameter == parameter


MIXED_UP = ("durable", "name", "namespace", "on_event", "pace", "scope", "trail", "ttl")


@pytest.mark.parametrize("parameter", MIXED_UP)
@pytest.mark.parametrize("value", [KEY, KEY.encode(), [KEY], {KEY: 1}], ids=lambda value: type(value).__name__)
def test_an_api_key_in_the_wrong_place(face: Face, valkey: Server, untouched: None, parameter: str, value: Any) -> None:
    """What is passed as another parameter by mistake may be a secret, so the error does not show it."""
    with fails(InvalidArgument, parameter):
        face.lock(face.client(valkey), **{parameter: value})


@pytest.mark.once
@pytest.mark.parametrize(
    ("kind", "parameter"),
    [
        (Pace, "tier"),
        (Pace, "costs"),
        (Pace, "startup_rate"),
        (Retries, "waits"),
        (krakenex.API, "deadline"),
        (krakenex.API, "on_absent"),
        (krakenex.API, "on_event"),
        (krakenex.API, "on_unknown"),
        (krakenex.API, "retries"),
        (krakenex.API, "wait_timeout"),
    ],
)
def test_an_api_key_in_the_place_of_an_option(valkey: Server, kind: Any, parameter: str) -> None:
    """The same goes for the options of clients."""
    options = {"redis": valkey.url} if kind is krakenex.API else {}
    with fails(InvalidArgument, parameter):
        kind(**options, **{parameter: KEY})


@pytest.mark.parametrize("ttl", [1, 1.0, 3600])
def test_the_ends_of_the_range_are_in_it(face: Face, valkey: Server, ttl: float) -> None:
    """One second and one hour are lengths that a lease can have."""
    with face.lock(face.client(valkey), ttl=ttl).hold() as lease:
        # A thousandth is kept back for clocks that don't run alike.
        assert ttl * 0.998 - 0.5 < lease.remaining() <= ttl


@cases(max_lead=[-1, 91 * 86_400 * 10**9, 1.5, "1", None, True, nan])
def test_settings_of_an_allocator(face: Face, valkey: Server, untouched: None, parameter: str, value: Any) -> None:
    """A limit that is negative, or so long that it limits nothing, is refused."""
    with fails(InvalidArgument, parameter) as caught:
        face.allocator(face.client(valkey), **{parameter: value})
    assert caught.value.parameter == parameter


@cases(count=NO_COUNTS)
def test_reserve(face: Face, valkey: Server, untouched: None, parameter: str, value: Any) -> None:
    """A block is 1 to 1,000,000 nonces."""
    with fails(InvalidArgument, parameter) as caught:
        face.allocator(face.client(valkey)).reserve(value)
    assert caught.value.parameter == parameter


@cases(
    nonce=[0, -1, 2**63, 10**30, 1.8e18, "1800000000000000000", None, True],
    nanoseconds=[0, -1, 2**63, 1e9, "1", None, True],
)
def test_raising(face: Face, valkey: Server, untouched: None, parameter: str, value: Any) -> None:
    """A target or a distance is a positive whole number below 2^63; a float would have lost digits already."""
    nonces = face.allocator(face.client(valkey))
    with fails(InvalidArgument, parameter) as caught:
        (nonces.advance_to if parameter == "nonce" else nonces.jump_forward)(value)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize("call", ["advance_to", "jump_forward"])
def test_raising_past_int64(face: Face, valkey: Server, call: str) -> None:
    """The highest number that Kraken's type holds is too far ahead, and nothing was changed."""
    with fails(NonceTooFarAhead, KEYS.state, "nothing was changed"):
        getattr(face.allocator(face.client(valkey)), call)(2**63 - 1)
    assert valkey.client().keys("*") == []


@cases(
    timeout=NO_TIMES,
    cost=[*NO_TIMES, None],
    priority=["", "urgent", None, 1],
)
def test_hold(face: Face, valkey: Server, untouched: None, parameter: str, value: Any) -> None:
    """Times, costs and priorities that can't be are refused before anything is asked."""
    with fails(InvalidArgument, parameter) as caught, face.lock(face.client(valkey)).hold(**{parameter: value}):
        pass
    assert caught.value.parameter == parameter


@cases(
    blocking_timeout=NO_TIMES,
    token=["", b"", "x" * 201, 5, ["a"], "a token", "a\n"],
)
def test_acquire(face: Face, valkey: Server, untouched: None, parameter: str, value: Any) -> None:
    """The parameters of redis-py's interface are called by their names there."""
    with fails(InvalidArgument, parameter) as caught:
        face.lock(face.client(valkey)).acquire(**{parameter: value})
    assert caught.value.parameter == parameter


@pytest.mark.parametrize("seconds", [0, -1, 3600, inf, nan, "5", None, True], ids=repr)
def test_extend(face: Face, valkey: Server, seconds: Any) -> None:
    """A lease can't be made shorter or longer than an hour; it stays as it was."""
    lock = face.lock(face.client(valkey))
    with lock.hold() as lease:
        before = valkey.client().dump(KEYS.state)
        with fails(InvalidArgument, "seconds") as caught:
            lease.extend(seconds)
        assert caught.value.parameter == "seconds"
        with fails(InvalidArgument, "additional_time") as caught:
            lock.extend(seconds)
        assert caught.value.parameter == "additional_time"
        assert valkey.client().dump(KEYS.state) == before
        assert lease.next_nonce()


URLS = [
    "http://localhost",
    "localhost:6379",
    "",
    "redis",
    "//localhost",
    f"{PASSWORD}@localhost",
    f"redis:{PASSWORD}",
    f"postgres://user:{PASSWORD}@localhost/0",
    None,
    5,
    b"redis://localhost",
]


@pytest.mark.parametrize("url", URLS, ids=repr)
@pytest.mark.parametrize("thing", ["allocator_from_url", "lock_from_url"])
def test_urls(face: Face, thing: str, url: Any) -> None:
    """A URL of another scheme, or no URL, is refused by name; what may be a password in it is not shown."""
    with fails(InvalidArgument, "url") as caught:
        getattr(face, thing)(url)
    assert caught.value.parameter == "url"
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("value", [None, "redis://localhost", 5, object, "the other face's"], ids=repr)
@pytest.mark.parametrize("thing", ["allocator", "lock"])
def test_what_is_no_client(face: Face, thing: str, value: Any) -> None:
    """Something else than a client of redis-py's right kind is refused, and the error tells the kind."""
    if value == "the other face's":
        value = redis.Redis() if face.name == "asyncio" else redis.asyncio.Redis()
    with fails(InvalidArgument, "redis") as caught:
        getattr(face, thing)(value)
    assert caught.value.parameter == "redis"


# Values of somebody else's.


def _nonce(value: object) -> Callable[[redis.Redis], None]:
    def write(client: redis.Redis) -> None:
        client.hset(KEYS.state, "nonce", value)  # type: ignore[arg-type]

    return write


FOREIGN = {
    "a string": lambda client: client.set(KEYS.state, "1800000000000000000"),
    "a list": lambda client: client.rpush(KEYS.state, "1"),
    "a sorted set": lambda client: client.zadd(KEYS.state, {"a": 1}),
    "no number": _nonce("abc"),
    "empty": _nonce(""),
    "negative": _nonce("-5"),
    "leading zero": _nonce("0123"),
    "zero": _nonce("0"),
    "a float": _nonce("1.8e18"),
    "a sign": _nonce("+5"),
    "with space": _nonce("12 34"),
    "past int64": _nonce(2**63),
    "far past int64": _nonce("9" * 40),
    "bytes": _nonce(b"\xff\xfe"),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_a_value_of_somebody_else(
    face: Face, server: AnyServer, redis_client: redis.Redis, write: Callable[[redis.Redis], None]
) -> None:
    """A key of ours with a value that is none of ours: every call says so, names the key and changes nothing."""
    write(redis_client)
    view = View(redis_client)
    before = view.everything()
    client = face.client(server)
    nonces, lock = face.allocator(client), face.lock(client)
    calls: list[Callable[[], Any]] = [
        nonces.next,
        lambda: nonces.reserve(5),
        nonces.last,
        lambda: nonces.advance_to(2 * 10**18),
        lambda: nonces.jump_forward(5),
        lock.acquire,
        lock.locked,
    ]
    for call in calls:
        with fails(ForeignValue, KEYS.state) as caught:
            call()
        assert caught.value.key == KEYS.state
        assert caught.value.operation
    assert view.everything() == before


def test_a_queue_of_somebody_else(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """The same for the key of the queue."""
    rival, view = Rival(redis_client), View(redis_client)
    rival.take()
    redis_client.set(KEYS.queue, "something")
    before = view.everything()
    with fails(ForeignValue, KEYS.state):
        face.lock(face.client(server)).acquire(blocking_timeout=1)
    assert view.everything() == before


def test_a_lock_of_somebody_else(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """A hash with fields of another program keeps them: only ours are used."""
    redis_client.hset(KEYS.state, "theirs", "value")
    with face.lock(face.client(server)).hold():
        pass
    assert redis_client.hget(KEYS.state, "theirs") == b"value"


# Servers.


def every_call(face: Face, client: Any) -> list[Callable[[], Any]]:
    """Return the calls that write."""
    nonces, lock = face.allocator(client), face.lock(client)
    return [nonces.next, lambda: nonces.reserve(5), lambda: nonces.jump_forward(1), lock.acquire]


@pytest.mark.parametrize("kind", [VALKEY, REDIS_6, REDIS_7], ids=lambda kind: kind.name)
def test_a_read_only_replica(face: Face, valkey: Server, private_server: PrivateServer, kind: Any) -> None:
    """A replica says that the master is to be used, and no nonce comes from it."""
    replica = private_server(kind, "--replicaof", "127.0.0.1", str(valkey.port) if kind is VALKEY else "1")
    client = face.client(replica)
    for call in [*every_call(face, client), face.lock(client).ping]:
        # One that never had its master's data may refuse for that reason first.
        with fails(StoreReadOnly, KEYS.state, "master"):
            call()


@pytest.mark.parametrize("kind", [VALKEY, REDIS_6, REDIS_7], ids=lambda kind: kind.name)
def test_a_server_without_scripts(face: Face, private_server: PrivateServer, kind: Any) -> None:
    """A server that has no EVAL can't be used, and the error says what is missing."""
    server = private_server(kind, *("--rename-command", "EVAL", ""), *("--rename-command", "EVALSHA", ""))
    for call in every_call(face, face.client(server)):
        with fails(StoreUnsupported, KEYS.state, "EVALSHA"):
            call()
    assert server.client().keys("*") == []


def user(server: Server, *rules: str) -> dict[str, str]:
    """Make a user with these permissions; return its credentials."""
    name = "bot"
    server.client().execute_command("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *rules)
    return {"username": name, "password": PASSWORD}


def test_the_least_permissions(face: Face, real_server: Server) -> None:
    """A user that may do no more than the scripts do, on our keys and channels alone, can use everything."""
    client = face.client(real_server, client_name=None, **user(real_server, *least_permissions()))
    nonces, lock = face.allocator(client), face.lock(client)
    view = View(real_server.client())
    assert nonces.jump_forward(1) < nonces.next() < nonces.reserve(2)[0]
    for release in (True, False):
        rival = Rival(view.client)
        rival.take(ttl=1)
        waiter = face.start(lambda: (lock.acquire(), lock.extend(1), lock.owned(), lock.release()))
        view.until_waiting(1)
        if release:
            rival.release()
        assert waiter.result() == (True, True, True, None)
    view.assert_nothing_left()


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        ([*least_permissions(), "-evalsha", "-eval"], ["permission"]),
        ([*least_permissions(), "-hset"], ["permission"]),
        (least_permissions("other"), ["permission"]),
    ],
    ids=["no scripts", "no writes", "other keys"],
)
def test_missing_permissions(face: Face, real_server: Server, rules: list[str], parts: list[str]) -> None:
    """A user that lacks a permission is told so, and nothing was changed."""
    client = face.client(real_server, client_name=None, **user(real_server, *rules))
    for call in every_call(face, client):
        with fails(StorePermissionDenied, KEYS.state, *parts):
            call()
    assert real_server.client().keys("*") == []


def test_missing_permissions_to_listen(face: Face, real_server: Server) -> None:
    """A user that may not listen on our channels is told so when it has to wait, and leaves no place behind."""
    client = face.client(real_server, client_name=None, **user(real_server, "~*", "resetchannels", *COMMANDS))
    view = View(real_server.client())
    Rival(view.client).take()
    with fails(StorePermissionDenied, "permission"):
        face.lock(client).acquire(blocking_timeout=2)
    assert view.waiting == 0


@pytest.mark.parametrize(
    "credentials", [{}, {"password": "wrong"}, {"username": "nobody", "password": PASSWORD}], ids=str
)
def test_passwords(face: Face, private_server: PrivateServer, credentials: dict[str, str]) -> None:
    """A password that is missing or wrong is an error of permissions, and no password is in the text."""
    server = private_server(VALKEY)
    server.client().config_set("requirepass", PASSWORD)
    for call in every_call(face, face.client(server, **credentials)):
        with fails(StorePermissionDenied) as caught:
            call()
        assert PASSWORD not in repr(caught.value)
    server.client(password=PASSWORD).config_set("requirepass", "")


def test_out_of_memory(face: Face, real_server: Server) -> None:
    """A server over its maxmemory gives no nonce and no lock and says so; what is held can be handed over."""
    view = View(real_server.client())
    waiter = Rival(view.client)
    with face.lock(face.client(real_server)).hold():
        waiter.queue_up()
        view.client.config_set("maxmemory-policy", "noeviction")
        view.client.config_set("maxmemory", "1")
        before = view.everything()
        client = face.client(real_server)
        for call in [*every_call(face, client), face.lock(client).ping]:
            with fails(StoreOutOfMemory, KEYS.state, "nothing was changed"):
                call()
        assert view.everything() == before
    eventually(lambda: view.state.holder == waiter.member())
    waiter.release()
    view.assert_nothing_left()


def test_out_of_memory_while_waiting(face: Face, valkey: Server) -> None:
    """Waiters are told, too, and leave nothing behind."""
    view = View(valkey.client())
    rival, lock = Rival(view.client), face.lock(face.client(valkey))
    rival.take()
    waiter = face.start(lock.acquire)
    view.until_waiting(1)
    view.client.config_set("maxmemory-policy", "noeviction")
    view.client.config_set("maxmemory", "1")
    with fails(StoreOutOfMemory, KEYS.state):
        waiter.result(3)
    assert view.waiting == 0
    rival.release()
    view.assert_nothing_left()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("LOADING Valkey is loading the dataset in memory", StoreUnavailable),
        ("BUSY Redis is busy running a script.", StoreUnavailable),
        ("MASTERDOWN Link with MASTER is down", StoreUnavailable),
        ("CLUSTERDOWN The cluster is down", StoreUnavailable),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreUnavailable),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailable),
        ("MISCONF Errors writing to the AOF file", StoreUnavailable),
        ("READONLY You can't write against a read only replica.", StoreReadOnly),
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreOutOfMemory),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", ForeignValue),
        ("NOPERM this user has no permissions", StorePermissionDenied),
        ("NOAUTH Authentication required.", StorePermissionDenied),
        ("WRONGPASS invalid username-password pair or user is disabled.", StorePermissionDenied),
        ("ERR unknown command 'EVALSHA'", StoreUnsupported),
        ("ERR something new", StoreError),
    ],
)
def test_what_servers_say(valkey: Server, said: str, kind: type[StoreError]) -> None:
    """Whatever a server answers becomes an error of our tree, with its words, the operation and the key.

    redis-py keeps the first word of some answers to itself, so they come from a server and through redis-py here.
    """
    with pytest.raises(redis.RedisError) as answer:
        valkey.client(retry=None).eval("return redis.error_reply(ARGV[1])", 0, said)
    error = from_redis(answer.value, "acquire", KEYS.state)
    assert type(error) is kind
    assert said.partition(" ")[2] in str(error)
    assert str(error).startswith(f"acquire {KEYS.state}")
    assert isinstance(error, KrakenNonceError)


def test_every_error_is_in_the_tree() -> None:
    """All public errors can be caught as one."""
    errors = [one for one in vars(kraken_nonce_redis).values() if isinstance(one, type) and issubclass(one, Exception)]
    assert len(errors) > 10
    assert all(issubclass(one, KrakenNonceError) for one in errors)


def test_nothing_is_asked_before_the_first_call(valkey: Server) -> None:
    """Making an object is no I/O, so a bot can be set up while its Redis is away."""
    allocator = NonceAllocator.from_url("redis://127.0.0.1:1", KEY)
    with fails(StoreUnavailable, KEYS.state):
        allocator.next()
