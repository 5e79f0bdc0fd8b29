"""`kraken-nonce status`: its verdict, which API keys and which Redis it shows, and how it fails."""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import CallLock, NonceAllocator
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.keyspace import Keyspace, digest
from kraken_nonce_redis._verdict import NAMES, UNKNOWN
from kraken_nonce_redis.permissions import CLUSTER_COMMANDS, OPERATOR_COMMANDS, least_permissions
from tests.support.command import ROOT, run
from tests.support.helpers import Rival, eventually
from tests.support.helpers import run as run_command
from tests.support.servers import VALKEY

if TYPE_CHECKING:
    from pathlib import Path

    import redis
    from click.testing import Result

    from tests.conftest import PrivateServer
    from tests.support.servers import Server
    from tests.support.topologies import ClusterTopology, SentinelTopology, TlsTopology

HOUR = 3600 * 10**9
PASSWORD = "s3cret-w0rd"
COLOURED = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def api_keys() -> list[str]:
    """Make up API keys: this process remembers the nonces of each, whatever happens to the server."""
    return [f"key-{number}-{uuid.uuid4().hex}" for number in range(3)]


def first_line(result: Result) -> str:
    """Return the verdict."""
    return result.stdout.partition("\n")[0]


def leave_pending(client: redis.Redis, api_key: str, *, name: str = "lost-bot") -> int:
    """Do what a bot does that ends before it hears of its order; return the nonce of that."""
    keys, member = Keyspace.of("kraken-nonce", api_key), f"p:1-1.1|{name}|AddOrder"
    intent = f"{journal.intent(digest(api_key), 'AddOrder', ['an-id'])} {name}"
    acquire = commands.acquire(keys, member, 30, ticket=None, priority="normal", pace="", intent=intent)
    granted = run_command(client, acquire)
    assert isinstance(granted, commands.Granted)
    nonce = granted.nonces[0]
    run_command(client, commands.release(keys, member, nonce, nonce, known=False))
    return nonce


# One API key


@pytest.mark.matrix
def test_the_first_line_is_a_verdict(real_server: Server, api_keys: list[str]) -> None:
    """`ok`, or all that is wrong in one line, by the state alone."""
    key, url = api_keys[0], real_server.url
    variables = {"KRAKEN_API_KEY": key, "KRAKEN_NONCE_REDIS_URL": url}
    fresh = run("status", **variables)
    assert (first_line(fresh), fresh.exit_code) == (UNKNOWN, 0)
    NonceAllocator.from_url(url, key).next()
    assert first_line(run("status", **variables)) == "ok"
    lock = CallLock.from_url(url, key)
    NonceAllocator.from_url(url, key).jump_forward(3 * HOUR // 4)
    leave_pending(real_server.client(), key)
    lock.cool_down(50, "EAPI:Rate limit exceeded")
    said = first_line(run("status", **variables))
    assert re.fullmatch(
        r"poisoned if Kraken refuses: nonces are (45.0|44.\d) min ahead of the server's clock, not raised further "
        r"\(max_lead 60.0 min\); cool-down for another (50.0|4\d.\d) s: EAPI:Rate limit exceeded; "
        r"1 call to be settled; the next process with this API key does it \(AddOrder of lost-bot, \d.\d s ago\)",
        said,
    )
    data = json.loads(run("status", "--json", **variables).stdout)
    assert data["conditions"] == ["poisoned", "cool-down", "pending"]
    assert data["verdict"].startswith("poisoned")
    assert "poisoned" not in first_line(run("status", "--max-lead", "3h", **variables))


def test_an_id_in_the_place_of_an_api_key(valkey: Server, api_keys: list[str]) -> None:
    """What logs show is enough to look."""
    nonce = NonceAllocator.from_url(valkey.url, api_keys[0]).next()
    for id_ in (digest(api_keys[0]), f" {digest(api_keys[0]).upper()}\n"):
        data = json.loads(run("status", "--id", id_, "--json", KRAKEN_NONCE_REDIS_URL=valkey.url).stdout)
        assert (data["last"], data["id"], data["account"]) == (str(nonce), digest(api_keys[0]), None)


def test_accounts_of_a_file(valkey: Server, api_keys: list[str], tmp_path: Path) -> None:
    """Without a key in the environment: all accounts in a table by name, or one of them at length."""
    file = tmp_path / "accounts.toml"
    names = ("master", "users.alice", "users.bob")
    file.write_text(
        "".join(f'[{name}]\nkey = "{key}"\nsecret = "c2VjcmV0"\n' for name, key in zip(names, api_keys, strict=True))
    )
    file.chmod(0o600)
    CallLock.from_url(valkey.url, api_keys[1]).cool_down(60, "EGeneral:Temporary lockout")
    NonceAllocator.from_url(valkey.url, api_keys[0]).next()
    result = run("status", "--file", str(file), KRAKEN_NONCE_REDIS_URL=valkey.url)
    assert first_line(result) == "1 of 3 API keys: alice cool-down"
    assert re.search(r"^master +ok +free ", result.stdout, re.MULTILINE)
    assert re.search(r"^alice +cool-down for another ", result.stdout, re.MULTILINE)
    one = run("status", "--file", str(file), "--account", "alice", KRAKEN_NONCE_REDIS_URL=valkey.url)
    assert first_line(one).startswith("cool-down for another")
    assert f"kraken-nonce:{{{digest(api_keys[1])}}}" in one.stdout
    assert not any(key in result.output + one.output for key in api_keys)


# Which Redis


@pytest.mark.parametrize("source", ["--redis", "KRAKEN_NONCE_REDIS_URL", "REDIS_URL"])
def test_which_redis_and_who_said_so(valkey: Server, api_keys: list[str], source: str) -> None:
    """Host, port and database, and where the address came from; never the password."""
    valkey.client().acl_setuser("bot", enabled=True, passwords=[f"+{PASSWORD}"], keys="*", categories=["+@all"])
    url = f"redis://bot:{PASSWORD}@127.0.0.1:{valkey.port}/3"
    variables = {"KRAKEN_API_KEY": api_keys[0], "REDIS_URL": "redis://127.0.0.1:1", source: url}
    args = ["--redis", variables.pop("--redis")] if source == "--redis" else []
    for words in (["status"], ["status", "--all"]):
        result = run(*words, *args, **variables)
        assert f"redis       127.0.0.1:{valkey.port}, db 3, from {source}\n" in result.stdout
        assert PASSWORD not in result.output
    found = json.loads(run("status", "--json", *args, **variables).stdout)["redis"]
    assert (found["hosts"], found["db"], found["from"]) == (f"127.0.0.1:{valkey.port}", 3, source)


def test_a_socket_is_named_by_its_path(private_server: PrivateServer, api_keys: list[str], tmp_path: Path) -> None:
    """And SCAN goes there, too."""
    path = tmp_path / "redis.sock"
    server = private_server(VALKEY, "--unixsocket", str(path))
    NonceAllocator.from_url(server.url, api_keys[0]).next()
    result = run("status", "--all", "--redis", f"unix://{path}?db=0")
    assert f"redis       {path}, db 0, from --redis\n" in result.stdout
    assert digest(api_keys[0]) in result.stdout


def test_with_tls(tls: TlsTopology, api_keys: list[str]) -> None:
    """All of it over TLS, and no file of a certificate in what is shown."""
    NonceAllocator.from_url(tls.url, api_keys[0]).next()
    result = run("status", "--all", KRAKEN_NONCE_REDIS_URL=tls.url)
    assert f"redis       {tls.address}, db 0, from KRAKEN_NONCE_REDIS_URL\n" in result.stdout
    assert digest(api_keys[0]) in result.stdout


def test_a_redis_that_is_not_there_is_named(api_keys: list[str]) -> None:
    """Exit code 3 and one line with the address and who said so; with --json the same on stdout."""
    variables = {"KRAKEN_API_KEY": api_keys[0], "REDIS_URL": f"redis://bot:{PASSWORD}@127.0.0.1:1/2"}
    words: list[str]
    for words in (
        *(["status"], ["status", "--all"], ["watch"], ["ready"], ["doctor"], ["next"], ["jump", "1s"], ["unlock"]),
        *(["pending"], ["once"], ["log"], ["last"], ["advance", f"{time.time_ns()}"]),
    ):
        result = run(*words, **variables)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
        assert "Redis can't be reached" in result.stderr
        assert result.stderr.endswith("; Redis is 127.0.0.1:1, db 2, from REDIS_URL\n")
        assert PASSWORD not in result.output
    result = run("status", "--json", **variables)
    data = json.loads(result.stdout)
    assert (result.exit_code, data["exit_code"]) == (3, 3)
    assert f"kraken-nonce: {data['error']}\n" == result.stderr


@pytest.mark.matrix
def test_a_server_in_the_place_of_sentinels(real_server: Server, api_keys: list[str]) -> None:
    """It is said that no Sentinel answers there, and not that a command is missing."""
    url = f"redis+sentinel://127.0.0.1:{real_server.port}/the-master"
    for command in ("status", "next", "doctor"):
        result = run(command, "--redis", url, KRAKEN_API_KEY=api_keys[0])
        assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
        assert "no Sentinel answers at that address" in result.stderr
        assert "lacks a command" not in result.stderr


def test_the_elected_master(sentinel: SentinelTopology, api_keys: list[str]) -> None:
    """Behind Sentinels it says which server is the master, and after a failover since when."""
    variables = {"KRAKEN_API_KEY": api_keys[0], "KRAKEN_NONCE_REDIS_URL": sentinel.url}
    old = sentinel.master().port
    before = run("status", **variables)
    assert f"master 127.0.0.1:{old} of the-master by Sentinels {sentinel.addresses}, db 0, from" in before.stdout
    sentinel.failover()
    new = sentinel.master().port
    # The Sentinel that leads the failover names the new one last.
    eventually(lambda: f"master 127.0.0.1:{new} " in run("status", **variables).stdout, 10)
    after = run("status", **variables)
    assert re.search(rf"master 127\.0\.0\.1:{new} \(elected \d\d?\.\d s ago\) of the-master", after.stdout)
    data = json.loads(run("status", "--json", **variables).stdout)["redis"]
    assert data["master"] == f"127.0.0.1:{new}"
    assert 0 < data["elected_seconds_ago"] < 120


# A namespace


@pytest.mark.matrix
def test_all_api_keys_of_a_namespace(real_server: Server, api_keys: list[str]) -> None:
    """Without an API key: each of them, and no key of another program or namespace."""
    url = real_server.url
    client = real_server.client()
    for key in api_keys:
        NonceAllocator.from_url(url, key).next()
    NonceAllocator.from_url(url, "other", namespace="other").next()
    CallLock.from_url(url, "any", scope="global").cool_down(50, "EAPI:Rate limit exceeded")
    client.mset({"kraken-nonce:{mine}": "1", "kraken-nonce:{0123456789abcdef}:x": "1", "unrelated": "1"})
    Rival(client, Keyspace.of("kraken-nonce", api_keys[0])).take()
    Rival(client, Keyspace.of("kraken-nonce", api_keys[0])).queue_up()
    data = json.loads(run("status", "--all", "--json", KRAKEN_NONCE_REDIS_URL=url).stdout)
    assert {each["id"] for each in data["keys"]} == {"global", *map(digest, api_keys)}
    assert data["verdict"] == "1 of 4 API keys: global cool-down"
    assert {each["id"]: each["waiting"] for each in data["keys"]}[digest(api_keys[0])] == 1
    other = json.loads(run("status", "--all", "--namespace", "other", "--json", KRAKEN_NONCE_REDIS_URL=url).stdout)
    assert [each["id"] for each in other["keys"]] == [digest("other")]
    none = run("status", "--all", "--namespace", "none", KRAKEN_NONCE_REDIS_URL=url)
    assert (none.exit_code, first_line(none)) == (0, "no API key is known in the namespace none")


def test_all_api_keys_of_a_cluster(cluster: ClusterTopology, api_keys: list[str]) -> None:
    """They lie on different nodes, which are all asked; for one key its node is named."""
    keys = [*api_keys, *(uuid.uuid4().hex for _ in range(6))]
    for key in keys:
        NonceAllocator.from_url(cluster.url, key).next()
    nodes = {cluster.master(Keyspace.of("kraken-nonce", key).state).port for key in keys}
    assert len(nodes) > 1
    data = json.loads(run("status", "--all", "--json", KRAKEN_NONCE_REDIS_URL=cluster.url).stdout)
    assert {each["id"] for each in data["keys"]} == set(map(digest, keys))
    node = cluster.master(Keyspace.of("kraken-nonce", keys[0]).state).port
    result = run("status", "--id", digest(keys[0]), KRAKEN_NONCE_REDIS_URL=cluster.url)
    assert f"cluster node 127.0.0.1:{node} for this key, by 127.0.0.1:" in result.stdout


def test_a_value_of_another_program_is_one_row(valkey: Server, api_keys: list[str]) -> None:
    """The others are shown all the same; and the exit code can tell."""
    for key in api_keys:
        NonceAllocator.from_url(valkey.url, key).next()
    valkey.client().hset(Keyspace.of("kraken-nonce", api_keys[0]).state, "lock", "\x1btheirs")
    result = run("status", "--all", "--fail-on", "foreign", KRAKEN_NONCE_REDIS_URL=valkey.url, COLUMNS="120")
    assert result.exit_code == 1
    assert first_line(result) == f"1 of 3 API keys: {digest(api_keys[0])} foreign"
    assert "the field lock has a value of another program" in " ".join(result.stdout.split())
    assert "theirs" not in result.output
    assert result.stdout.count(" ok ") == 2


@pytest.mark.parametrize("columns", [60, 120])
def test_a_table_fits(valkey: Server, api_keys: list[str], columns: int) -> None:
    """Narrow and wide, with long names, each line of the table has room; no colour with NO_COLOR or in a pipe."""
    for number, key in enumerate(api_keys):
        lock = CallLock.from_url(valkey.url, key, name="a-bot-with-a-long-name-" * 2)
        lock.acquire()
        lock.cool_down(50 + number, "EGeneral:Temporary lockout " * 4)
    variables = {"KRAKEN_NONCE_REDIS_URL": valkey.url, "COLUMNS": str(columns)}
    on_terminal = run("status", "--id", digest(api_keys[0]), FORCE_COLOR="1", **variables).stdout
    assert max(len(COLOURED.sub("", line)) for line in on_terminal.split("\n")) <= columns
    piped = run("status", "--all", **variables).stdout
    assert "\x1b" not in piped
    assert "\x1b[1;31m" in run("status", "--all", FORCE_COLOR="1", **variables).stdout
    assert not re.search(
        r"\x1b\[[0-9;]*3[0-9]m", run("status", "--all", FORCE_COLOR="1", NO_COLOR="1", **variables).stdout
    )


def test_a_table_in_a_pipe(valkey: Server, api_keys: list[str]) -> None:
    """Each API key has one line with all columns, however long, for grep and awk; no line ends in blanks."""
    for key in api_keys:
        lock = CallLock.from_url(valkey.url, key, name="a-bot-with-a-long-name-" * 2)
        lock.acquire()
    lock.cool_down(50, "EGeneral:Temporary lockout " * 4)
    piped = run("status", "--all", KRAKEN_NONCE_REDIS_URL=valkey.url, COLUMNS="80").stdout
    head, *rows = piped.splitlines()[2:]
    assert head.split() == ["key", "verdict", "lock", "wait", "lead", "pending"]
    assert len(rows) == 3
    for row in rows:
        assert re.fullmatch(r"[0-9a-f]{16}  \S.*  held: (a-bot-with-a-long-name-){2} +0 +-?\d\.\d s +0", row)
    assert not re.search(r" $", piped, re.MULTILINE)
    assert "EGeneral:Temporary lockout " * 3 in piped


def test_nothing_is_known(valkey: Server, api_keys: list[str]) -> None:
    """Of a digest with a slip in it, and of a key before its first call, it doesn't say "ok"; neither is an error."""
    variables = {"KRAKEN_NONCE_REDIS_URL": valkey.url, "KRAKEN_API_KEY": api_keys[0]}
    for args in (("--id", "0123456789abcdef"), ()):
        result = run("status", *args, "--fail-on", "any", **variables)
        assert result.exit_code == 0
        assert first_line(result).startswith("nothing is known of this key in this namespace")
        data = json.loads(run("status", "--json", *args, **variables).stdout)
        assert (data["known"], data["conditions"], data["verdict"]) == (False, [], UNKNOWN)
    NonceAllocator.from_url(valkey.url, api_keys[0]).next()
    data = json.loads(run("status", "--json", **variables).stdout)
    assert (data["known"], data["verdict"]) == (True, "ok")


# Exit codes


def test_fail_on(valkey: Server, api_keys: list[str]) -> None:
    """A script names what it cares for, and hears by the exit code."""
    variables = {"KRAKEN_API_KEY": api_keys[0], "KRAKEN_NONCE_REDIS_URL": valkey.url}
    assert run("status", "--fail-on", "any", **variables).exit_code == 0
    CallLock.from_url(valkey.url, api_keys[0]).cool_down(50, "EAPI:Rate limit exceeded")
    codes = {
        names: run("status", "--fail-on", names, **variables).exit_code
        for names in ("any", "cool-down", "held, cool-down", "held,waiting")
    }
    assert codes == {"any": 1, "cool-down": 1, "held, cool-down": 1, "held,waiting": 0}
    assert run("status", **variables).exit_code == 0
    assert run("status", "--all", "--fail-on", "cool-down", **variables).exit_code == 1


WRONG = [
    (("--id", "a-real-api-key"), "--id takes the 16 hex digits"),
    (("--all", "--id", "0123456789abcdef"), "give only one of --all and --id"),
    (("--all", "--account", "alice"), "give only one of --all and --account or --file"),
    (("--id", "0123456789abcdef", "--scope", "global"), "give only one of --id and --scope global"),
    (("--bogus",), "No such option '--bogus'"),
    (("--all", "--namespace", "a b"), "namespace: must be"),
    (("--file", "/no/such/file"), "/no/such/file"),
    ((), "KRAKEN_API_KEY is not set"),
]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        *((("status", *args), reason) for args, reason in WRONG),
        *((("watch", *args), reason) for args, reason in WRONG),
        (("status", "--all", "--fail-on", "heldd"), f"takes {', '.join(NAMES)} or any, with commas"),
        (("status", "--all", "--fail-on", ""), "takes foreign, poisoned"),
    ],
)
def test_wrong_input(valkey: Server, args: tuple[str, ...], reason: str) -> None:
    """One line that says what to do, exit code 2, no traceback; with --json on stdout, too."""
    result = run(*args, KRAKEN_NONCE_REDIS_URL=valkey.url)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert reason in result.stderr
    assert "a-real-api-key" not in result.output
    if args[0] == "status":
        data: dict[str, Any] = json.loads(run(*args, "--json", KRAKEN_NONCE_REDIS_URL=valkey.url).stdout)
        assert data["exit_code"] == 2
        assert reason in data["error"]


def test_a_wrong_command_line_is_told_in_one_line() -> None:
    """Also before there is a command; without any there is the help."""
    for args, reason in ((["--bogus"], "No such option"), (["statsu"], "No such command 'statsu'")):
        result = run(*args)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert result.stderr.startswith(f"kraken-nonce: {reason}")
        assert result.stderr.endswith("; see kraken-nonce --help\n")
    assert "First steps:" in run().output


def test_json_of_a_failure_is_for_each_command_that_has_json(api_keys: list[str]) -> None:
    """An error is one document on stdout, and never a second one behind an answer."""
    dead = {"KRAKEN_API_KEY": api_keys[0], "REDIS_URL": "redis://127.0.0.1:1"}
    for words in (["next"], ["pending"], ["unlock", "--yes"], ["doctor"], ["advance", "soon"]):
        result = run(*words, "--json", **dead)
        assert json.loads(result.stdout)["exit_code"] == result.exit_code > 0
    answered = run("check", "--json", **dead, KRAKEN_API_SECRET="c2VjcmV0", KRAKEN_API_URL="http://127.0.0.1:1")
    assert answered.exit_code == 1
    assert json.loads(answered.stdout)["ok"] is False


def test_the_help_names_each_condition() -> None:
    """What --fail-on takes is explained where it is looked for."""
    text = run("status", "--help").stdout
    for name in NAMES:
        assert re.search(rf"^  {name} +\w", text, re.MULTILINE), name


# Permissions


def look(url: str, api_key: str) -> tuple[int, str]:
    """Do all that an operator does; return the highest exit code and what was said."""
    results = [
        run("status", "--all", KRAKEN_NONCE_REDIS_URL=url),
        run("status", "--id", digest(api_key), KRAKEN_NONCE_REDIS_URL=url),
        run("log", KRAKEN_NONCE_REDIS_URL=url, KRAKEN_API_KEY=api_key),
    ]
    return max(result.exit_code for result in results), "".join(result.output for result in results)


@pytest.mark.matrix
def test_an_operators_permissions(real_server: Server, api_keys: list[str]) -> None:
    """The list is enough to look, not one is too many, and it changes nothing."""
    key, keys = api_keys[0], Keyspace.of("kraken-nonce", api_keys[0])
    url = f"redis://operator:{PASSWORD}@127.0.0.1:{real_server.port}/0"

    def give(words: tuple[str, ...]) -> None:
        with real_server.admin() as admin:
            admin.execute_command("ACL", "SETUSER", "operator", "reset", "on", f">{PASSWORD}", *words)

    NonceAllocator.from_url(real_server.url, key).next()
    give(least_permissions(role="operator"))
    Rival(real_server.client(), keys).take()
    Rival(real_server.client(), keys).queue_up()
    before = real_server.client().dump(keys.state)
    code, said = look(url, key)
    assert code == 0, said
    assert real_server.client().dump(keys.state) == before
    for name in OPERATOR_COMMANDS:
        real_server.client().script_flush()
        give(tuple(word for word in least_permissions(role="operator") if word != name))
        code, said = look(url, key)
        assert code == 3, name
        assert "the user lacks a permission" in said


def test_an_operators_permissions_in_a_cluster(cluster: ClusterTopology, api_keys: list[str]) -> None:
    """There it is a little more, on each node."""
    key = api_keys[0]
    NonceAllocator.from_url(cluster.url, key).next()
    url = cluster.url.replace("//", f"//operator:{PASSWORD}@")

    def give(words: tuple[str, ...]) -> None:
        for server in cluster.servers:
            with server.admin() as admin:
                admin.execute_command("ACL", "SETUSER", "operator", "reset", "on", f">{PASSWORD}", *words)

    try:
        give(least_permissions(role="operator", cluster=True))
        code, said = look(url, key)
        assert code == 0, said
        assert digest(key) in said
        give(tuple(word for word in least_permissions(role="operator", cluster=True) if word not in CLUSTER_COMMANDS))
        code, said = look(url, key)
        assert code == 3, said
    finally:
        for server in cluster.servers:
            with server.admin() as admin:
                admin.acl_deluser("operator")


@pytest.mark.once
def test_the_docs_list_an_operators_permissions() -> None:
    """What is in the docs is what the package says."""
    text = " ".join((ROOT / "docs" / "redis.md").read_text("utf-8").split())
    _, *commands = least_permissions(role="operator")
    assert f"resetchannels {' '.join(commands)}" in text
    for permission in (*OPERATOR_COMMANDS, *CLUSTER_COMMANDS):
        assert permission in text


def test_a_lease_that_ran_out_is_told_with_its_age(valkey: Server, api_keys: list[str]) -> None:
    """A dead holder whom nobody misses is found, too."""
    keys = Keyspace.of("kraken-nonce", api_keys[0])
    Rival(valkey.client(), keys).take(ttl=0.001)
    eventually(lambda: not run_command(valkey.client(), commands.inspect(keys)).left)
    time.sleep(0.3)
    result = run("status", "--id", keys.tag, KRAKEN_NONCE_REDIS_URL=valkey.url)
    assert re.match(r"the lease of \w+:1 ended [0-9.]+ s ago without a release\n", result.stdout)
    ago = float(re.findall(r"ended ([0-9.]+) s ago", result.stdout)[0])
    assert 0.3 <= ago < 30
