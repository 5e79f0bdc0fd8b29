"""The commands for operators: permissions, probes, and what asks before it changes something."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import redis
from click.testing import CliRunner

import kraken_nonce_redis
from kraken_nonce_redis import (
    CallLock,
    InvalidArgument,
    LeaseLost,
    NonceAllocator,
    StoreError,
    StoreOutOfMemory,
    StoreReadOnly,
    StoreUnavailable,
)
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._threads.connections import ClusterAddress, client_from_url
from kraken_nonce_redis.cli.app import app
from kraken_nonce_redis.cli.own_keys import removed_afterwards
from kraken_nonce_redis.permissions import ROLES, least_permissions
from tests.support.command import Terminal
from tests.support.helpers import Rival, View, environment, run
from tests.support.servers import free_port

if TYPE_CHECKING:
    from click.testing import Result

    from tests.conftest import PrivateServer
    from tests.support.faces import Face
    from tests.support.servers import AnyServer, Server
    from tests.support.topologies import ClusterTopology

pytestmark = pytest.mark.once

SECOND = 10**9
PASSWORD = "s3cret-w0rd"


@pytest.fixture
def api_key() -> str:
    """Make up an API key."""
    return f"key{uuid.uuid4().hex}"


def call(*args: str, **env: str | None) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, args, env=env, prog_name="kraken-nonce")


def on_a_terminal(answer: str, *args: str, **env: str) -> tuple[int, str]:
    """Run the command on a terminal and type an answer; return the exit code and what was shown."""
    with Terminal(*args, **env) as terminal:
        terminal.press(answer)
        return terminal.ended(), terminal.text


# acl


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("form", ["setuser", "aclfile"])
def test_users_can_be_made_of_what_is_printed(valkey: Server, role: str, form: str) -> None:
    """A server takes what is printed as a command and as a line of its file, and the password opens it."""
    printed = call(
        "acl", "--for", role, "--format", form, "--password-env", "SECRET", "--user", "someone", SECRET=PASSWORD
    )
    assert printed.exit_code == 0, printed.output
    assert PASSWORD not in printed.output
    (line,) = printed.stdout.splitlines()
    admin = valkey.client()
    words = line.split(" ")
    if form == "aclfile":
        assert words[0] == "user"
        words = ["ACL", "SETUSER", *words[1:]]
    assert admin.execute_command(*words)
    user = redis.Redis(port=valkey.port, username="someone", password=PASSWORD)
    if role == "operator":
        assert call("status", "--all", "--redis", f"redis://someone:{PASSWORD}@127.0.0.1:{valkey.port}").exit_code == 0
    else:
        CallLock(user, "key").ping()
    admin.execute_command("ACL", "DELUSER", "someone")
    user.close()


def test_the_example_makes_no_user_with_a_known_password() -> None:
    """Whoever copies a line of the help that a server takes as it is gives a password of their own."""
    for line in call("acl", "--help").stdout.splitlines():
        if "redis-cli $" in line or ">>" in line:
            assert "--password-env" in line


def test_an_aclfile_is_loaded(valkey: Server) -> None:
    """A line is a whole line, without anything that ACL LOAD would refuse."""
    line = call("acl", "--format", "aclfile", "--password-env", "SECRET", SECRET=PASSWORD).stdout
    assert re.fullmatch(r"user bot reset on #[0-9a-f]{64} resetchannels [^\n]+\n", line)
    assert hashlib.sha256(PASSWORD.encode()).hexdigest() in line


def test_helm_values() -> None:
    """The chart gets the permissions alone; its passwords are in a secret."""
    printed = call("acl", "--format", "helm", "--namespace", "mine")
    expected = " ".join(least_permissions("mine"))
    assert printed.stdout == f"auth:\n  aclUsers:\n    bot:\n      permissions: {json.dumps(expected)}\n"
    assert call("acl", "--format", "helm", "--password-env", "SECRET", SECRET="x").exit_code == 2


def test_more_permissions() -> None:
    """Clusters, durability and other databases need more."""
    more = {"--cluster": "+asking", "--durable": "+waitaof", "--database": "+select"}
    for option, word in more.items():
        assert f" {word}" in call("acl", option).stdout
        assert word not in call("acl").stdout


@pytest.mark.parametrize(
    "args",
    [
        *(("--user", "two words"), ("--for", "root"), ("--password-env", "NOT_SET"), ("--format", "x"), ("--user", "")),
        *(("--namespace", wrong) for wrong in ("*", "", "a b", "a\nuser evil on nopass +@all ~*", "x" * 65)),
    ],
)
def test_wrong_input_of_acl(args: tuple[str, ...]) -> None:
    """One line says what is wrong."""
    result = call("acl", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.output


def test_permissions_for_a_namespace_that_none_is() -> None:
    """It can't add words of its own to what a server is told."""
    with pytest.raises(InvalidArgument, match="namespace: must be"):
        least_permissions("mine:* +@all ~")


# ready, ping


def test_ready(valkey: Server) -> None:
    """It says nothing when all is well, needs no API key, and leaves nothing behind."""
    result = call("ready", KRAKEN_NONCE_REDIS_URL=valkey.url, KRAKEN_API_KEY=None)
    assert (result.exit_code, result.output) == (0, "")
    assert valkey.client().keys("*ready*") == []
    away = call("ready", "--redis", f"redis://127.0.0.1:{free_port()}")
    assert (away.exit_code, away.stdout) == (3, "")
    assert len(away.stderr.splitlines()) == 1
    assert away.stderr.startswith("kraken-nonce: ping: Redis can't be reached")


def test_ready_with_a_bots_permissions(valkey: Server) -> None:
    """A bot's own user may be used for its probes."""
    admin = valkey.client()
    admin.execute_command("ACL", "SETUSER", "bot", "reset", "on", f">{PASSWORD}", *least_permissions())
    assert call("ready", "--redis", f"redis://bot:{PASSWORD}@127.0.0.1:{valkey.port}").exit_code == 0
    admin.execute_command("ACL", "DELUSER", "bot")


def test_ping_of_a_full_server(face: Face, private_server: PrivateServer, api_key: str) -> None:
    """Who is over its maxmemory takes no writes, so neither the command nor the method says yes; a lease goes on."""
    server = private_server()
    lock, admin = face.lock(face.client(server), api_key), server.client()
    with lock.hold():
        before = {key: admin.dump(key) for key in admin.keys("*")}
        lock.ping()
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")
        with pytest.raises(StoreOutOfMemory, match="maxmemory"):
            lock.ping()
        full = call("ready", "--redis", server.url)
        assert (full.exit_code, full.stdout) == (3, "")
        assert full.stderr.startswith("kraken-nonce: ping: the server is over its maxmemory")
        assert {key: admin.dump(key) for key in admin.keys("*")} == before
    admin.config_set("maxmemory", "0")
    assert lock.ping() > 0
    assert call("ready", "--redis", server.url).exit_code == 0


def test_a_cluster_that_is_lost_before_the_cleaning_up(
    cluster: ClusterTopology, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `bench` and `demo` meet then is an error of the library, though redis-py's is no RedisError."""

    def fail(_: ClusterAddress) -> None:
        raise redis.exceptions.RedisClusterException("Redis Cluster cannot be connected")

    monkeypatch.setattr(ClusterAddress, "connect", fail)
    keys = Keyspace.of("kraken-nonce", api_key)
    source = client_from_url(cluster.url)
    with pytest.raises(StoreError, match="clean up"), removed_afterwards(source, keys):
        pass


def test_ping_beside_waiters(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """It changes neither the state nor the queue, on fakeredis either."""
    rival, waiter = Rival(redis_client), Rival(redis_client)
    rival.take()
    waiter.queue_up()
    view = View(redis_client)
    before = view.everything()
    face.lock(face.client(server)).ping()
    assert view.everything() == before


def test_ping(face: Face, valkey: Server, api_key: str) -> None:
    """A program's own probe: seconds when Redis takes writes, else the error of the library."""
    lock = face.lock(face.client(valkey), api_key)
    assert 0 < lock.ping() < 5
    assert valkey.client().keys(f"*{Keyspace.of('kraken-nonce', api_key).tag}*") == []
    admin = valkey.client()
    admin.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    try:
        with pytest.raises(StoreReadOnly):
            lock.ping()
        assert call("ready", "--redis", valkey.url).exit_code == 3
    finally:
        admin.execute_command("REPLICAOF", "NO", "ONE")
    with pytest.raises(StoreUnavailable):
        CallLock.from_url(f"redis://127.0.0.1:{free_port()}", api_key).ping()


# What asks


def test_jump_asks_on_a_terminal(valkey: Server, api_key: str) -> None:
    """No leaves all as it is; yes raises the nonce and says what it was."""
    nonces = NonceAllocator(valkey.client(), api_key)
    before = nonces.next()
    env = {"KRAKEN_API_KEY": api_key, "KRAKEN_NONCE_REDIS_URL": valkey.url}
    code, said = on_a_terminal("n\n", "jump", "60s", **env)
    assert (code, nonces.last()) == (1, before)
    assert "nothing was changed" in said
    code, said = on_a_terminal("y\n", "jump", "60s", **env)
    assert code == 0, said
    assert f"before, it was {before}" in said
    assert (nonces.last() or 0) >= before + 60 * SECOND
    assert on_a_terminal("", "jump", "1s", "--yes", **env)[0] == 0


@pytest.mark.parametrize("args", [("jump", "60s"), ("advance", "{goal}")])
def test_dry_run_of_a_raise(valkey: Server, api_key: str, args: tuple[str, ...]) -> None:
    """It shows what would be raised, or refused, and changes nothing."""
    nonces = NonceAllocator(valkey.client(), api_key)
    before = nonces.next()
    env = {"KRAKEN_API_KEY": api_key, "KRAKEN_NONCE_REDIS_URL": valkey.url}
    words = [word.format(goal=before + 60 * SECOND) for word in args]
    result = call(*words, "--dry-run", "--json", **env)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["changed"], data["before"]) == (False, str(before))
    assert int(data["last"]) >= before + 60 * SECOND
    assert "would be" in result.stderr
    assert call(*words, "--dry-run", "--max-lead", "1s", **env).exit_code == 4
    assert nonces.last() == before
    assert json.loads(call(*words, "--json", **env).stdout)["changed"] is True


def leave_call(valkey: Server, api_key: str) -> tuple[Keyspace, int]:
    """Leave a call with an unknown outcome."""
    keys, client = Keyspace.of("kraken-nonce", api_key), valkey.client()
    noted = journal.intent(keys.tag, "AddOrder", ["id"])
    granted: Any = run(
        client, commands.acquire(keys, "process:1", 30, ticket=None, priority="normal", pace="", intent=noted)
    )
    nonce = granted.nonces[0]
    run(client, commands.release(keys, "process:1", nonce, nonce, known=False))
    return keys, nonce


def test_pending_clear_asks_on_a_terminal(valkey: Server, api_key: str) -> None:
    """The call is shown first; a dry run and a no leave it there."""
    keys, nonce = leave_call(valkey, api_key)
    env = {"KRAKEN_API_KEY": api_key, "KRAKEN_NONCE_REDIS_URL": valkey.url}
    dry = call("pending", "--clear", str(nonce), "--dry-run", **env)
    assert (dry.exit_code, dry.stdout) == (0, "It would be removed from the list.\n")
    assert "AddOrder" in dry.stderr
    code, said = on_a_terminal("n\n", "pending", "--clear", str(nonce), **env)
    assert code == 1
    assert "AddOrder" in said
    assert len(run(valkey.client(), journal.pending(keys))) == 1
    cleared = call("pending", "--clear", str(nonce), "--json", **env)
    assert json.loads(cleared.stdout)["removed"] is True
    assert run(valkey.client(), journal.pending(keys)) == ()


def test_unlock_names_whom(valkey: Server, api_key: str) -> None:
    """A dry run and the command itself say who had the lock."""
    lock = CallLock(valkey.client(), api_key, name="the-hung-bot")
    lock.acquire()
    env = {"KRAKEN_API_KEY": api_key, "KRAKEN_NONCE_REDIS_URL": valkey.url}
    dry = call("unlock", "--dry-run", **env)
    assert (dry.exit_code, dry.stdout) == (0, "It would be unlocked; the-hung-bot had it.\n")
    assert lock.owned()
    assert call("unlock", "--yes", **env).stdout == "Unlocked; the-hung-bot had it.\n"
    assert not lock.locked()


# The command as such


def test_version() -> None:
    """In all the ways in which people look for it."""
    version = kraken_nonce_redis.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", version)
    for words in (["-V"], ["--version"]):
        assert call(*words).stdout == f"kraken-nonce, version {version}\n"
    done = subprocess.run(
        [sys.executable, "-m", "kraken_nonce_redis", "-V"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert done.stdout == f"kraken-nonce, version {version}\n"


@pytest.mark.test_all
def test_completion_knows_the_accounts() -> None:
    """A shell completes commands and the names of accounts; what is wrong with those is no matter then."""
    accounts = {
        "KRAKEN_MASTER_API_KEY": "a",
        "KRAKEN_MASTER_API_SECRET": "c2VjcmV0",
        "KRAKEN_USER_ALICE_API_KEY": "b",
        "KRAKEN_USER_ALICE_API_SECRET": "c2VjcmV0",
    }

    def complete(words: str, **env: str) -> str:
        number = str(len(words.split(" ")) - 1)
        done = subprocess.run(
            [sys.executable, "-m", "kraken_nonce_redis"],
            env=environment()
            | {"_KRAKEN_NONCE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
            | env,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert "plain,status" in complete("kraken-nonce sta")
    assert complete("kraken-nonce status --account al", **accounts) == "plain,alice"
    assert complete("kraken-nonce status --account x", **accounts) == ""
    assert complete("kraken-nonce status --account al", KRAKEN_USER_ALICE_API_KEY="b") == ""


# by digest


def test_by_the_digest_that_a_log_names(valkey: Server, api_key: str) -> None:
    """Who has no API key can look at the log, and end a lease; a nonce is for who has it."""
    lock = CallLock.from_url(valkey.url, api_key)
    digest = hashlib.sha256(api_key.encode()).hexdigest()[:16]

    def by_id(*args: str) -> Result:
        return call(*args, "--id", digest, "--redis", valkey.url)

    lock.acquire()
    assert "Under way" in by_id("pending").output
    assert by_id("unlock", "--yes").exit_code == 0
    with pytest.raises(LeaseLost):
        lock.release()
    assert "unlocked" in by_id("log").stdout
    assert by_id("once").exit_code == 0
    assert by_id("next").exit_code == 2
    result = call("log", "--id", digest, "--scope", "global", "--redis", valkey.url)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    result = call("log", "--id", api_key, "--redis", valkey.url)
    assert result.exit_code == 2
    assert api_key not in result.stderr
