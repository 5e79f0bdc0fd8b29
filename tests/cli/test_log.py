"""The command `log`: what it shows, which part of it, and that it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from kraken_nonce_redis import NonceAllocator, StoreError
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.cli import log as command
from kraken_nonce_redis.cli.app import app
from kraken_nonce_redis.cli.options import Target
from tests.support.helpers import SECOND, environment, eventually, run
from tests.support.servers import VALKEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    from click.testing import Result

    from tests.conftest import PrivateServer
    from tests.support.servers import Server

API_KEY = "kEyOfATradingBot/0123456789+abcdefghijklmnopqrstuvwxyzABC"
KEYS = Keyspace.of("kraken-nonce", API_KEY, trail="all")
HOLDER = "1111:1-5.aa|grid%20bot|AddOrder|a-token"


@pytest.fixture
def client(valkey: Server) -> redis.Redis:
    """Connect to the server whose log is shown."""
    return valkey.client()


def show(valkey: Server, *arguments: str, **env: str) -> Result:
    """Run `log` in this process."""
    basis: dict[str, str | None] = {
        "KRAKEN_API_KEY": API_KEY,
        "KRAKEN_NONCE_REDIS_URL": valkey.url,
        "KRAKEN_NONCE_NAME": "operator",
    }
    return CliRunner().invoke(app, ["log", *arguments], env=basis | env, prog_name="kraken-nonce")


def lines(valkey: Server, *arguments: str) -> list[str]:
    """Return what `log` shows, each entry without its time."""
    result = show(valkey, *arguments)
    assert result.exit_code == 0, result.output
    return [line.split(" UTC  ")[1] for line in result.stdout.splitlines()]


def objects(valkey: Server, *arguments: str) -> list[dict[str, Any]]:
    """Return what `log --json` prints."""
    result = show(valkey, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def take(client: redis.Redis) -> int:
    """Take the lock, with an intent; return the first nonce."""
    intent = journal.intent(KEYS.tag, "AddOrder", ["an id"], own_ids=True) + " grid%20bot"
    asks = commands.acquire(KEYS, HOLDER, 30, ticket=None, priority="normal", pace="", intent=intent)
    answer = run(client, asks)
    assert isinstance(answer, commands.Granted)
    return answer.nonces[0]


def add(client: redis.Redis, *words: object, id: str = "*", stream: str = KEYS.log) -> None:  # noqa: A002
    """Add an entry by hand."""
    client.execute_command("XADD", stream, id, *words)


# What is shown.


def test_nothing(valkey: Server) -> None:
    """Where nothing was noted, that is said on stderr, and stdout stays empty for programs."""
    result = show(valkey)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Nothing was noted.\n")
    assert objects(valkey) == []


def test_a_story(valkey: Server, client: redis.Redis) -> None:
    """Each kind of entry says who, what and what became of it."""
    nonce = take(client)
    run(client, commands.release(KEYS, HOLDER, nonce, nonce, known=False))
    run(client, journal.settle(KEYS, nonce, "found", ["O-1"]))
    run(client, journal.settle(KEYS, nonce, "known"))
    held = take(client)
    run(client, commands.unlock(KEYS, HOLDER, "operator"))
    run(client, journal.settle(KEYS, held, "unknown"))
    run(client, journal.settle(KEYS, held, "cleared", name="operator"))
    run(client, commands.cool_down(KEYS, 90, "EAPI:Rate limit exceeded", "grid%20bot"))
    run(client, commands.end_cool_down(KEYS, "operator"))
    target = held + 60 * SECOND
    run(client, commands.advance(KEYS, target, 3600 * SECOND, target, "grid%20bot"))
    floor = target + 60 * SECOND
    healed = run(client, commands.reserve(KEYS, 1, "grid%20bot"), floor)[0]
    first, second = f"nonce {nonce}  cl_ord_ids an id", f"nonce {held}  cl_ord_ids an id"
    bot = "grid bot for AddOrder"
    last = held + commands.BLOCK - 1
    assert lines(valkey) == [
        f"unknown  {bot}  {first}",
        f"settled  {bot}: found  {first}  txids O-1",
        f"unlocked  {bot}, by operator  nonce {held}",
        f"unknown  {bot}  {second}",
        f"settled  {bot}: unknown  {second}",
        f"cleared  {bot}, by operator  {second}",
        "cool-down  90.0 s by grid bot: EAPI:Rate limit exceeded",
        "cool-down-ended  by operator: EAPI:Rate limit exceeded",
        f"raised  by grid bot after a refusal, before {last}  nonce {target}",
        f"healed  Redis had {target}, grid bot had seen {floor}  nonce {healed}",
    ]
    assert any(line.startswith(f"lease  {bot}, granted 20") for line in lines(valkey, "--all"))
    assert lines(valkey, "--kind", "reserved") == [f"reserved  by grid bot, up to {healed}  nonce {healed}"]


def test_a_lost_lease(valkey: Server, client: redis.Redis) -> None:
    """It says how long the lease was held, and when it ended."""
    nonce = take(client)
    client.hset(KEYS.state, "lock", f"{nonce} {nonce // 1000 - 40_000_000} 30000000 0 {HOLDER}")
    run(client, commands.acquire(KEYS, "2222:1", 30, ticket=None, priority="normal", pace=""))
    (line,) = lines(valkey, "--kind", "lost")
    assert line.startswith("lost  grid bot for AddOrder, after 30.0 s, noticed 10.")
    (lost,) = objects(valkey, "--kind", "lost")
    assert lost["seconds_held"] == 30.0
    assert 10 <= lost["seconds_ago"] < 60


def test_json(valkey: Server, client: redis.Redis) -> None:
    """An object for each entry, a line each; nonces are strings, names and ids as their owners wrote them."""
    nonce = take(client)
    run(client, commands.release(KEYS, HOLDER, nonce, nonce, known=False))
    run(client, journal.settle(KEYS, nonce, "absent"))
    run(client, commands.cool_down(KEYS, 2.5, "why", "bot"))
    unknown, settled, cool_down = objects(valkey)
    assert unknown.pop("time")[:2] == settled.pop("time")[:2] == cool_down.pop("time")[:2] == "20"
    assert unknown.pop("id") < settled.pop("id") < cool_down.pop("id")
    call = {
        "nonce": str(nonce), "name": "grid bot", "method": "AddOrder", "key": KEYS.tag, "cl_ord_ids": ["an id"],
    }  # fmt: skip
    assert unknown == {"kind": "unknown", **call}
    assert settled == {"kind": "settled", **call, "result": "absent", "txids": []}
    assert cool_down == {"kind": "cool-down", "name": "bot", "seconds": 2.5, "reason": "why"}


def test_what_others_wrote(valkey: Server, client: redis.Redis) -> None:
    """Entries of later versions and of other programs are shown as far as they can be read, in one line each."""
    add(client, "kind", "quarrel", "name", "a%20bot", "nonce", "x", "more", "1")
    add(client, "field", b"\xff\x1b[31m\n")
    add(client, "kind", "lost", "held", "long", "id", "theirs", "time", "theirs", "ids", "%ff,,\x1b")
    add(client, "kind", "cool-down", "term", "1e5", "reason", "\x1b[2Jwhy\nnot")
    assert lines(valkey) == [
        "quarrel  a bot  nonce x",
        "?  somebody",
        "lost  somebody, after long, noticed ? later  cl_ord_ids \ufffd, ?",
        "cool-down  1e5 by somebody: ?[2Jwhy?not",
    ]
    quarrel, unnamed, lost, _ = objects(valkey)
    assert (quarrel["kind"], quarrel["more"], unnamed["kind"]) == ("quarrel", "1", "")
    assert "theirs" not in (lost["id"], lost["time"])
    add(client, "kind", "late", id="9000000000000000000-0")
    assert show(valkey, "--limit", "1").stdout.startswith("9000000000000000000000000 ns  late  ")


def test_a_value_that_is_no_stream(valkey: Server, client: redis.Redis) -> None:
    """Another program's value is named, with the exit code for Redis, in one line."""
    client.set(KEYS.log, "theirs")
    result = show(valkey)
    assert (result.exit_code, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1
    assert KEYS.log in result.stderr


# Which of them.


def test_kinds_and_limit(valkey: Server, client: redis.Redis) -> None:
    """Filters count only what they let through, over as many pages as it takes; both streams go by time."""
    with client.pipeline(transaction=False) as pipeline:
        for number in range(1, 1301):
            kind = "raised" if number <= 3 else "cool-down"
            pipeline.execute_command("XADD", KEYS.log, f"{number}-0", "kind", kind, "nonce", number)
        pipeline.execute()
    add(client, "kind", "lease", "nonce", "x", id="2-7", stream=KEYS.leases)
    assert len(lines(valkey)) == 50
    assert [each["nonce"] for each in objects(valkey, "--limit", "2")] == ["1299", "1300"]
    assert [each["nonce"] for each in objects(valkey, "--kind", "raised")] == ["1", "2", "3"]
    chosen = ("--kind", "raised", "--kind", "lease")
    assert [each["nonce"] for each in objects(valkey, *chosen)] == ["1", "2", "x", "3"]
    assert [each["nonce"] for each in objects(valkey, *chosen, "--limit", "2")] == ["x", "3"]
    assert len(objects(valkey, "--limit", "5000")) == 1300
    assert len(objects(valkey, "--limit", "5000", "--all")) == 1301


def test_since(valkey: Server, client: redis.Redis) -> None:
    """Age is by the server's clock."""
    now = client.time()[0] * 1000
    for age in (7_300, 3_700, 3_500, 10):
        add(client, "kind", "raised", "nonce", age, id=f"{now - age * 1000}-0")
    assert [each["nonce"] for each in objects(valkey, "--since", "1h")] == ["3500", "10"]
    assert [each["nonce"] for each in objects(valkey, "--since", "2h", "--limit", "2")] == ["3500", "10"]
    assert lines(valkey, "--since", "1s") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kind", "quarrel"), "quarrel"),
        (("--since", "yesterday"), "with a unit: 500ms, 60s"),
        (("--since", "5"), "with a unit: 500ms, 60s"),
        (("--limit", "0"), "0"),
        (("more",), "more"),
    ],
)
def test_wrong_input(valkey: Server, arguments: tuple[str, ...], said: str) -> None:
    """It is named, with exit code 2 and no traceback."""
    result = show(valkey, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


# On a terminal and in a pipe.


@pytest.mark.parametrize("columns", [60, 120])
def test_on_a_terminal(valkey: Server, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Entries are wrapped at the terminal's width and have no colours."""
    nonce = take(client)
    run(client, commands.release(KEYS, HOLDER, nonce, nonce, known=False))
    monkeypatch.setattr(command, "_on_a_terminal", lambda: True)
    shown = show(valkey, COLUMNS=str(columns)).stdout.splitlines()
    assert len(shown) == 1 + 60 // columns
    assert max(map(len, shown)) < columns
    assert all(line.startswith("  ") for line in shown[1:])
    assert "\x1b" not in "".join(shown)


class Following:
    """`log --follow` as a process, piped."""

    def __init__(self, url: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kraken_nonce_redis.cli", "log", "--follow", *arguments],
            env={**environment(), "KRAKEN_API_KEY": API_KEY, "KRAKEN_NONCE_REDIS_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Wait for a line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ended_by_ctrl_c(self) -> tuple[int, str, str]:
        """Interrupt it; return its exit code and what it had not said yet."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture
def following(valkey: Server) -> Iterator[Following]:
    """Follow the log of a key in which there is something."""
    allocator = NonceAllocator(valkey.client(), API_KEY)
    for _ in range(2):
        allocator.jump_forward(SECOND)
    started = Following(valkey.url, "--limit", "1", "--all", "--json")
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.mark.test_all
def test_following(following: Following, client: redis.Redis) -> None:
    """What is there comes first, then what happens, in its order and once, from both streams; Ctrl-C ends it."""
    assert json.loads(following.line())["kind"] == "raised"
    run(client, commands.cool_down(KEYS, 5, "one"))
    assert json.loads(following.line())["reason"] == "one"
    run(client, commands.reserve(KEYS, 1))
    time.sleep(0.005)
    run(client, commands.end_cool_down(KEYS))
    assert [json.loads(following.line())["kind"] for _ in range(2)] == ["reserved", "cool-down-ended"]
    code, out, err = following.ended_by_ctrl_c()
    assert (code, out, err.strip()) == (130, "", "")


def test_following_a_reader_that_leaves(following: Following, client: redis.Redis) -> None:
    """When whoever reads the pipe has gone, it ends without a traceback."""
    following.line()
    assert following.process.stdout is not None
    following.process.stdout.close()
    for number in range(60):
        run(client, commands.cool_down(KEYS, 10 + 2 * number, "reason"))
        if following.process.poll() is not None:
            break
        time.sleep(0.1)
    following.process.wait(20)
    assert following.process.stderr is not None
    assert "Traceback" not in following.process.stderr.read()


def test_a_look_that_fails_halfway(valkey: Server, client: redis.Redis) -> None:
    """What was read of one stream before Redis went away is shown when it is back."""
    target = Target(valkey.client(), Keyspace.of("kraken-nonce", API_KEY))
    reader = command._Reader(target, [KEYS.log, KEYS.leases], frozenset())
    run(client, commands.cool_down(KEYS, 5, "reason"))
    client.set(KEYS.leases, "theirs")
    with pytest.raises(StoreError):
        reader.new()
    client.delete(KEYS.leases)
    assert [entry.kind for entry in reader.new()] == ["cool-down"]
    assert reader.new() == []


@pytest.mark.test_all
def test_following_while_redis_is_away(private_server: PrivateServer) -> None:
    """It says so once, waits, and goes on with what happens then."""
    server = private_server(VALKEY)
    NonceAllocator(server.client(), API_KEY).jump_forward(SECOND)
    started = Following(server.url)
    try:
        assert "raised" in started.line()
        server.kill()
        assert started.process.stderr is not None
        assert "Trying again." in started.process.stderr.readline()
        server.start()
        assert "Redis is back." in started.process.stderr.readline()
        eventually(lambda: server.client().ping())
        run(server.client(), commands.cool_down(KEYS, 5, "after"))
        assert started.line().rstrip().endswith("after")
        assert started.ended_by_ctrl_c()[0] == 130
    finally:
        started.process.kill()
        started.process.communicate()
