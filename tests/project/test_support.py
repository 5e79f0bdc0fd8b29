"""What the other tests rely on: the servers, their clocks, the fault proxy and distance do as they say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.support import servers
from tests.support.distance import HOST, RESET, away
from tests.support.proxy import frame_end, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeProxy, PrivateServer
    from tests.support.proxy import Proxy
    from tests.support.servers import AnyServer, Server

COUNT = "return redis.call('INCR', KEYS[1])"
LOST = (redis.ConnectionError, redis.TimeoutError)


def gone(pid: int) -> bool:
    """Wait until a process is gone, a few seconds at most."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


# The matrix.


def test_server_runs_lua(server: AnyServer) -> None:
    """Every server of the matrix runs scripts, which is all that the library needs."""
    assert server.client().eval(COUNT, 1, "n") == 1
    assert server.client().get("n") == b"1"


def test_server_is_empty(server: AnyServer, redis_client: redis.Redis) -> None:
    """A test starts on a server that holds no key, whatever ran before it."""
    assert redis_client.keys("*") == []
    redis_client.set("left behind", server.name)


def test_server_is_of_the_version_in_its_name(real_server: Server) -> None:
    """The name in a test's id is the version that the test really ran on."""
    info = real_server.client(decode_responses=True).info("server")
    version = info.get("valkey_version", info["redis_version"])
    assert version == real_server.version
    assert real_server.name.endswith("-" + ".".join(version.split(".")[:2]))
    assert info["process_id"] == real_server.pid


def test_reset_undoes_what_tests_do(real_server: Server) -> None:
    """Settings, users, scripts, pauses and connections of one test never reach the next."""
    client = real_server.client(decode_responses=True)
    sha = client.script_load(COUNT)
    before = client.config_get("*")
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.acl_setuser("bot", enabled=True, nopass=True)
    client.replicaof("127.0.0.1", real_server.port)
    client.client_pause(60_000, all=False)
    real_server.pause()
    process = real_server.pid

    real_server.reset()

    assert real_server.pid == process

    client = real_server.client(decode_responses=True)
    assert client.config_get("*") == before
    assert client.acl_users() == ["default"]
    assert client.script_exists(sha) == [False]
    assert len(client.client_list()) == 1
    assert client.set("key", "written by a master that is not paused")


@pytest.mark.parametrize("state", ["killed", "paused by CLIENT PAUSE", "behind a password"])
def test_reset_brings_a_lost_server_back(private_server: PrivateServer, state: str) -> None:
    """A test that leaves the shared server dead or deaf harms no other test."""
    server = private_server()
    if state == "killed":
        server.kill()
    elif state == "behind a password":
        server.client().config_set("requirepass", "secret")
    else:
        server.client().client_pause(60_000)
    server.reset()
    assert server.client().set("key", "value")


def test_restart_keeps_or_loses_the_data(private_server: PrivateServer) -> None:
    """A restart is on the same port, with the data or, as without persistence, with none."""
    server = private_server()
    url = server.url
    server.client().set("key", "value")
    server.restart(persist=True)
    assert server.client().get("key") == b"value"
    server.kill()
    assert not server.is_running
    server.start()
    assert server.client().keys() == []
    server.client().set("key", "value")
    server.restart(persist=False)
    assert server.client().keys() == []
    assert server.url == url


def test_append_only_file_survives_a_kill(private_server: PrivateServer) -> None:
    """A server started with persistence of its own keeps what it acknowledged over a kill -9."""
    server = private_server(servers.VALKEY, "--appendonly", "yes", "--appendfsync", "always")
    server.client().set("key", "value")
    server.kill()
    server.start()
    assert server.client().get("key") == b"value"


def test_paused_server_is_silent_and_goes_on(private_server: PrivateServer) -> None:
    """A paused server accepts connections and answers nobody until it is resumed."""
    server = private_server()
    client = server.client(socket_timeout=0.2, retry=None)
    server.pause()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    server.resume()
    assert client.ping()


def test_arguments_reach_the_binary(private_server: PrivateServer) -> None:
    """A private server can have any setting that its binary knows."""
    server = private_server(servers.VALKEY, "--maxmemory", "5mb")
    assert server.client().info("memory")["maxmemory"] == 5 * 1024 * 1024


def test_server_that_refuses_to_start_says_why() -> None:
    """A server that can't start is reported with its own words and leaves nothing behind."""
    server = servers.Server(servers.VALKEY, "--no-such-setting", "1")
    try:
        with pytest.raises(RuntimeError, match="no-such-setting"):
            server.start()
        assert not server.is_running
    finally:
        server.stop()


@pytest.mark.test_all
def test_servers_end_with_a_killed_test_run(tmp_path: Path) -> None:
    """Even a test run that is killed leaves no server process and no directory behind."""
    script = (
        "from tests.support import servers; s = servers.Server(servers.VALKEY); s.start();"
        "print(s.pid, s.client().config_get('dir'), flush=True); import time; time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    ) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline().split()[0])
        assert len(list(tmp_path.iterdir())) == 1
        run.kill()
    assert gone(pid)
    deadline = time.monotonic() + 5
    while any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []


def test_missing_server_fails_in_ci_and_skips_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI can't go green without a server of the matrix; at home the reason is shown."""
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such server"):
        servers.require("no such server")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such server"):
        servers.require("no such server")
    servers.require(None)


def test_interrupt_of_the_terminal_spares_servers(valkey: Server) -> None:
    """Ctrl-C reaches the tests alone, which end their servers in order."""
    assert os.getpgid(valkey.pid) != os.getpgrp()


# A clock that can be set.


def clock(client: redis.Redis, ask: str) -> float:
    """Return what the server's clock shows, asked directly or from Lua."""
    now = client.time() if ask == "command" else client.eval("return redis.call('TIME')", 0)
    return int(now[0]) + int(now[1]) / 1e6


@pytest.mark.parametrize("ask", ["command", "script"])
def test_clock_steps_at_once_and_both_ways(faketime_server: Server, ask: str) -> None:
    """A server's clock goes where a test sets it, for TIME inside and outside of scripts."""
    client = faketime_server.client()
    for seconds in (0, -3600, 3600, -0.5, 0):
        faketime_server.clock_offset(seconds)
        before = time.time()
        shown = clock(client, ask) - seconds
        assert before - 0.2 < shown < time.time() + 0.2


def test_clock_decides_about_expiry(faketime_server: Server) -> None:
    """Keys expire by the clock that was set."""
    client = faketime_server.client()
    client.set("key", "value", px=60_000)
    faketime_server.clock_offset(59)
    assert client.get("key") == b"value"
    faketime_server.clock_offset(61)
    assert client.get("key") is None


@pytest.mark.test_all
def test_clock_stretches_what_the_server_waits(faketime_server: Server) -> None:
    """After a step back a blocked command outlasts its timeout: clients need one of their own."""
    client = faketime_server.client(socket_timeout=2, retry=None)
    step = threading.Timer(0.3, faketime_server.clock_offset, [-3600])
    step.start()
    with pytest.raises(redis.TimeoutError):
        client.blpop(["list"], 1)
    step.join()


def test_clock_is_the_real_one_elsewhere(private_server: PrivateServer) -> None:
    """Only a server started for it has a clock that can be set."""
    with pytest.raises(RuntimeError, match="faketime"):
        private_server().clock_offset(1)


# The fault proxy.


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def link(valkey: Server, proxy: MakeProxy, request: pytest.FixtureRequest) -> Iterator[Link]:
    """Put a proxy before Valkey and connect a client that never retries."""
    link = Link(valkey, proxy(valkey), request.param)
    yield link
    link.client.close()


class Link:
    """A client behind a proxy and the server's own view."""

    def __init__(self, server: Server, proxy: Proxy, protocol: int) -> None:
        self.proxy = proxy
        self.direct = server.client(decode_responses=True)
        self.client = self.connect(protocol)

    def connect(self, protocol: int = 2, **options: Any) -> redis.Redis:
        """Connect through the proxy."""
        settings = {"protocol": protocol, "socket_timeout": 2, "retry": None} | options
        return redis.Redis.from_url(self.proxy.url, **settings)

    def count(self) -> int:
        """Run a script that counts its runs."""
        return int(self.client.eval(COUNT, 1, "n"))

    @property
    def runs(self) -> int:
        """How often the script has run."""
        return int(self.direct.get("n") or 0)


def test_proxy_counts_scripts_alone(link: Link) -> None:
    """What a client says to set up a connection never shifts the n-th command."""
    link.client.ping()
    link.client.set("key", "value")
    assert link.count() == 1
    sha = link.client.script_load(COUNT)
    assert link.client.evalsha(sha, 1, "n") == 2
    assert link.proxy.commands == 2
    scripts = [command for command in link.proxy.log if command.counted]
    assert [command.name for command in scripts] == ["EVAL", "EVALSHA"]
    assert scripts[0].arguments == (COUNT.encode(), b"1", b"n")
    assert scripts[0].at <= scripts[1].at <= time.monotonic()
    assert {"PING", "SET", "SCRIPT"} <= {command.name for command in link.proxy.log}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_dropped_reply_is_of_a_command_that_ran(link: Link, n: int) -> None:
    """The n-th reply is lost although the server did the work; the next call is fine."""
    link.proxy.drop_reply(n)
    for _ in range(n - 1):
        link.count()
    with pytest.raises(LOST):
        link.count()
    assert link.runs == n
    assert link.count() == n + 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_cut_request_never_runs(link: Link, n: int) -> None:
    """The n-th command is lost on its way to the server; the next call is fine."""
    link.proxy.cut_request(n)
    for _ in range(n - 1):
        link.count()
    with pytest.raises(LOST):
        link.count()
    assert link.runs == n - 1
    assert link.count() == n


def test_half_reply_is_cut_in_the_middle(link: Link) -> None:
    """Half an answer is no answer, although the server did the work."""
    link.proxy.half_reply(1)
    with pytest.raises(LOST):
        link.client.eval("redis.call('INCR', KEYS[1]) return string.rep('x', 100000)", 1, "n")
    assert link.runs == 1
    assert link.count() == 2


@pytest.mark.parametrize("fault", ["cut_request", "drop_reply"])
def test_faults_hit_the_right_command_of_a_pipeline(link: Link, fault: str) -> None:
    """In a pipeline, too, exactly the n-th command is lost."""
    getattr(link.proxy, fault)(3)
    pipeline = link.client.pipeline(transaction=False)
    for _ in range(3):
        pipeline.eval(COUNT, 1, "n")
    with pytest.raises(LOST):
        pipeline.execute()
    assert link.runs == (3 if fault == "drop_reply" else 2)


def test_faults_count_over_all_connections(link: Link) -> None:
    """The n-th command is the n-th of all clients of the proxy."""
    other = link.connect()
    link.proxy.drop_reply(2)
    link.count()
    with pytest.raises(LOST):
        other.eval(COUNT, 1, "n")
    assert link.runs == 2
    other.close()


def test_chosen_commands_count(valkey: Server, proxy: MakeProxy) -> None:
    """A test can choose which commands faults hit."""
    place = proxy(valkey, counted=frozenset({"BLPOP"}))
    place.drop_reply(1)
    valkey.client().rpush("list", "first", "second")
    with redis.Redis.from_url(place.url, retry=None, socket_timeout=2) as client:
        client.eval(COUNT, 1, "n")
        with pytest.raises(LOST):
            client.blpop(["list"], 1)
        assert list(client.blpop(["list"], 1)) == [b"list", b"second"]
    assert place.commands == 2


@pytest.mark.test_all
def test_black_hole_swallows_until_healed(link: Link) -> None:
    """In a black hole calls time out, new connections too; healed, all is well."""
    link.count()
    link.proxy.black_hole()
    impatient = link.connect(socket_timeout=0.2)
    with pytest.raises(redis.TimeoutError):
        impatient.eval(COUNT, 1, "n")
    with pytest.raises(redis.TimeoutError):
        link.count()
    assert link.runs == 1
    link.proxy.cut_all()
    link.proxy.heal()
    assert link.count() == 2
    impatient.close()


def test_black_hole_delivers_late_what_was_on_its_way(link: Link) -> None:
    """A network that comes back delivers old packets: the server runs what nobody awaits."""
    client = link.connect(socket_timeout=0.2)
    client.ping()
    link.proxy.black_hole()
    with pytest.raises(redis.TimeoutError):
        client.eval(COUNT, 1, "n")
    link.proxy.heal()
    deadline = time.monotonic() + 2
    while link.runs == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert link.runs == 1
    client.close()


def test_delay_is_felt(link: Link) -> None:
    """A slow network adds its delay to every call, and only while it lasts."""
    link.count()
    link.proxy.delay(0.2)
    began = time.monotonic()
    link.count()
    assert time.monotonic() - began >= 0.2
    link.proxy.delay(0)
    times = []
    for _ in range(10):
        began = time.monotonic()
        link.count()
        times.append(time.monotonic() - began)
    assert min(times) < 0.2


def test_cut_all_closes_and_lets_in_again(link: Link) -> None:
    """Connections break all at once, blocked ones as well, and can be made again."""
    broken: list[Exception] = []

    def wait() -> None:
        try:
            link.client.blpop(["list"], 0)
        except LOST as error:
            broken.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.2)
    link.proxy.cut_all()
    waiter.join(timeout=2)
    assert len(broken) == 1
    assert link.count() == 1


def test_subscriptions_pass_through(link: Link) -> None:
    """Messages reach subscribers through the proxy while faults hit scripts around them."""
    with link.client.pubsub() as pubsub:
        pubsub.subscribe("channel")
        assert pubsub.get_message(timeout=2)["type"] == "subscribe"
        link.proxy.drop_reply(1)
        with pytest.raises(LOST):
            link.count()
        link.direct.publish("channel", "message")
        assert pubsub.get_message(timeout=2)["data"] == b"message"
        pubsub.subscribe("another")
        assert pubsub.get_message(timeout=2)["type"] == "subscribe"


def test_server_down_looks_like_a_lost_connection(private_server: PrivateServer, proxy: MakeProxy) -> None:
    """Behind the proxy, too, a dead server is a connection error, and a new one is found."""
    server = private_server()
    place = proxy(server)
    with redis.Redis.from_url(place.url, retry=None) as client:
        client.ping()
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        place.target_port = private_server().port
        assert client.ping()


def test_client_hears_the_cut_after_a_fork(link: Link) -> None:
    """A process forked meanwhile, which has the proxy's sockets too, keeps no connection up."""
    link.count()
    enough, say_so = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(say_so)
        os.read(enough, 1)
        os._exit(0)
    link.proxy.drop_reply(1)
    with pytest.raises(redis.ConnectionError):  # and no timeout
        link.count()
    os.close(say_so)
    os.close(enough)
    os.waitpid(child, 0)


@pytest.mark.test_all
def test_many_connections_at_once(link: Link) -> None:
    """A few hundred clients pass through one proxy."""
    clients = [link.connect(socket_timeout=60) for _ in range(300)]
    threads = [threading.Thread(target=client.eval, args=(COUNT, 1, "n")) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert link.runs == 300 == link.proxy.commands


@pytest.mark.parametrize(
    "frame",
    [
        b"+OK\r\n",
        b":-1\r\n",
        b"$-1\r\n",
        b"$5\r\na\r\nbc\r\n",
        b"*-1\r\n",
        b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        b"%1\r\n+a\r\n*0\r\n",
        b">2\r\n+a\r\n_\r\n",
    ],
    ids=repr,
)
def test_frames_end_where_they_end(frame: bytes) -> None:
    """Every RESP value, whole or cut anywhere, is seen as what it is."""
    assert frame_end(frame + b"+next\r\n") == len(frame)
    for cut in range(len(frame)):
        assert frame_end(frame[:cut]) is None


def test_words_of_a_command() -> None:
    """Arguments may hold anything, line ends as well."""
    assert words(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n\r\n\r\n") == [b"SET", b"k", b"\r\n\r\n"]


# Distance.


def test_distance_takes_a_round_trip(valkey: Server) -> None:
    """Every request and its reply together take the round trip that was asked for, and hardly more."""
    with away(valkey.url, 0.05) as url, redis.Redis.from_url(url) as client:
        client.ping()
        times = []
        for _ in range(10):
            began = time.monotonic()
            client.ping()
            times.append(time.monotonic() - began)
    assert min(times) >= 0.05
    # The best of them: other work on the machine makes some longer.
    assert min(times) < 0.1


@pytest.mark.test_all
def test_distance_limits_no_throughput(valkey: Server) -> None:
    """Many requests at once don't wait for each other, which would take minutes, and come in their order."""
    with away(valkey.url, 0.5) as url, redis.Redis.from_url(url) as client:
        client.ping()
        began = time.monotonic()
        pipeline = client.pipeline(transaction=False)
        for _ in range(1_000):
            pipeline.append("key", "x" * 10_000)
        assert pipeline.execute() == [10_000 * n for n in range(1, 1_001)]
        assert 0.5 <= time.monotonic() - began < 60
        began = time.monotonic()
        assert len(client.get("key")) == 10_000_000
        assert time.monotonic() - began >= 0.5


def test_distance_is_the_same_for_many(valkey: Server) -> None:
    """Hundreds of connections don't wait for each other."""
    with away(valkey.url, 0.5) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        connections = [socket.create_connection((HOST, port)) for _ in range(300)]
        began = time.monotonic()
        for connection in connections:
            connection.sendall(b"PING\r\n")
        for connection in connections:
            assert connection.recv(100) == b"+PONG\r\n"
            connection.close()
        assert 0.5 <= time.monotonic() - began < 60


@pytest.fixture
def far_peer() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two sockets that are 0.2 s away from each other and back."""
    with socket.create_server((HOST, 0)) as listener:
        url = f"redis://{HOST}:{listener.getsockname()[1]}"
        with away(url, 0.2) as far:
            here = socket.create_connection((HOST, int(far.rpartition(":")[2])), timeout=5)
            there, _ = listener.accept()
            there.settimeout(5)
            with here, there:
                yield here, there


def test_half_of_a_connection_ends_in_time(far_peer: tuple[socket.socket, socket.socket]) -> None:
    """A peer that has said all still gets the answer; both ends come as late as data."""
    here, there = far_peer
    began = time.monotonic()
    here.sendall(b"question")
    here.shutdown(socket.SHUT_WR)
    assert there.recv(100) == b"question"
    assert there.recv(100) == b""
    assert time.monotonic() - began >= 0.1
    there.sendall(b"answer")
    there.close()
    assert here.recv(100) == b"answer"
    assert here.recv(100) == b""
    assert time.monotonic() - began >= 0.2


def test_cut_passes_through_distance(far_peer: tuple[socket.socket, socket.socket]) -> None:
    """A reset is heard as a reset, as late as data."""
    here, there = far_peer
    began = time.monotonic()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    there.close()
    with pytest.raises(ConnectionResetError):
        here.recv(100)
    assert time.monotonic() - began >= 0.1


def test_far_server_that_is_down_looks_like_a_lost_connection() -> None:
    """Behind the distance, too, a server that isn't there is a connection error."""
    nobody = f"redis://{HOST}:{servers.free_port()}"
    with (
        away(nobody, 0.01) as url,
        redis.Redis.from_url(url, retry=None) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()


def test_distance_ends_with_a_killed_test_run() -> None:
    """Even a test run that is killed leaves no proxy behind."""
    script = (
        "from tests.support import distance; import time\n"
        "with distance.away('redis://127.0.0.1:1', 0.1) as url: print(url, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as run:
        assert run.stdout is not None
        place = (HOST, int(run.stdout.readline().rpartition(":")[2]))
        with socket.create_connection(place):
            run.kill()
    deadline = time.monotonic() + 5
    while _listens(place) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _listens(place)


def _listens(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place).close()
    except ConnectionError:
        return False
    return True
