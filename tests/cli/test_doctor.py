"""`kraken-nonce doctor`: what it finds, on answers made up for it and on real servers."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import fakeredis
import pytest
import redis
from click.testing import CliRunner

from kraken_nonce_redis import InvalidArgument, NonceAllocator
from kraken_nonce_redis._redis import scripts
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.cli.app import app
from kraken_nonce_redis.doctor import LEVELS, Finding, Keys, Refused, Seen, Tick, User, diagnose, examine
from kraken_nonce_redis.doctor.trial import Trial
from kraken_nonce_redis.permissions import least_permissions
from kraken_nonce_redis.urls import SOCKET_TIMEOUT
from tests.support.command import run as kraken_nonce
from tests.support.faces import KEY
from tests.support.helpers import eventually
from tests.support.servers import REDIS_6, REDIS_7, VALKEY, Server

if TYPE_CHECKING:
    from click.testing import Result

    from tests.conftest import MakeProxy, PrivateServer
    from tests.support.servers import Kind
    from tests.support.topologies import ClusterTopology

SECOND = 10**9
PASSWORD = "p4ssw0rd-of-a-bot"
THESE = ("~kraken-nonce:*", "resetchannels", "&kraken-nonce:wake:*")

INFO = {
    "valkey_version": "9.1.2",
    "redis_version": "7.2.4",
    "server_mode": "standalone",
    "role": "master",
    "connected_slaves": 0,
    "master_repl_offset": 0,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "used_memory": 1_000_000,
}
CONFIG = {"save": "", "appendfsync": "everysec", "min-replicas-to-write": "0", "protected-mode": "yes"}
REPLICA = {"ip": "10.0.0.2", "port": 6379, "state": "online", "offset": 1000, "lag": 0}
HEALTHY = Seen(
    namespace="kraken-nonce",
    fake=False,
    sentinel=False,
    socket_timeout=3.0,
    connect_timeout=3.0,
    info=INFO,
    config=CONFIG,
    blocked={},
    name="bot",
    user=User(commands="-@all +eval", keys="~kraken-nonce:*", no_password=False),
    lacking={},
    scripts={},
    heard=True,
    ticks=[Tick(server=1000.0 + i, here=1000.0 + i, steady=10.0 + i, trip=0.001) for i in range(3)],
    pings=[0.001] * 200,
    runs=[0.001] * 200,
    keys=Keys(count=1, complete=True, leads={"kraken-nonce:{0123456789abcdef}": -1}, foreign=[], strangers=0),
)


def about(topic: str, seen: Seen) -> list[Finding]:
    """Return what is found about a topic."""
    return [finding for finding in diagnose(seen) if finding.topic == topic]


def ticks(*servers: float, trip: float = 0.001) -> list[Tick]:
    """Look at a server's clock at these times of its own, once a second."""
    return [Tick(server, 1000.0 + i, 10.0 + i, trip) for i, server in enumerate(servers)]


class Case(NamedTuple):
    """What differs from a healthy server, and what must be found then."""

    changes: dict[str, Any]
    topic: str
    level: str
    part: str


def info(**lines: Any) -> dict[str, Any]:
    """Change lines of INFO; None takes one away."""
    return {"info": {name: value for name, value in (INFO | lines).items() if value is not None}}


def config(**settings: str) -> dict[str, Any]:
    """Change settings."""
    return {"config": CONFIG | {name.replace("_", "-"): value for name, value in settings.items()}}


def keys(lead: int = 0, *, foreign: int = 0, strangers: int = 0, complete: bool = True) -> dict[str, Any]:
    """Change what is there of our keys."""
    return {"keys": Keys(1, complete, {"kraken-nonce:{global}": lead}, ["kraken-nonce:{global}"] * foreign, strangers)}


CASES = {
    "valkey": Case({}, "server", "ok", "Valkey 9.1.2"),
    "redis": Case(info(valkey_version=None, redis_version="6.2.14"), "server", "ok", "Redis 6.2.14"),
    "old redis": Case(info(valkey_version=None, redis_version="6.0.9"), "server", "problem", "too old"),
    "dragonfly": Case(
        info(valkey_version=None, dragonfly_version="df-v1.40.1"), "server", "warning", "Dragonfly 1.40.1: not tested"
    ),
    "keydb": Case(
        info(valkey_version=None, redis_version="6.3.4", mvcc_depth=0), "server", "warning", "KeyDB 6.3.4: not tested"
    ),
    "keydb by its program": Case(
        info(valkey_version=None, executable="/usr/bin/keydb-server"), "server", "warning", "KeyDB"
    ),
    "keydb active": Case(
        info(valkey_version=None, mvcc_depth=0, role="active-replica"), "server", "problem", "the last write wins"
    ),
    "keydb active without peers": Case(
        info(valkey_version=None, mvcc_depth=0) | config(active_replica="yes"), "server", "problem", "last write wins"
    ),
    "keydb with masters": Case(
        info(valkey_version=None, mvcc_depth=0) | config(multi_master="yes"), "server", "problem", "last write wins"
    ),
    "fakeredis": Case({"fake": True, "info": Refused("no")}, "server", "note", "fakeredis"),
    "master": Case({}, "role", "ok", "master, standalone"),
    "found by sentinel": Case({"sentinel": True}, "role", "ok", "found through Sentinel"),
    "replica": Case(info(role="slave", master_link_status="up"), "role", "problem", "a replica"),
    "cluster": Case(info(server_mode="cluster"), "role", "ok", "node of a cluster"),
    "rest of the cluster": Case(info(server_mode="cluster"), "role", "note", "other nodes"),
    "cluster of redis": Case(info(server_mode=None, redis_mode="cluster"), "role", "ok", "node of a cluster"),
    "sentinel itself": Case(info(server_mode="sentinel", role=None), "role", "problem", "it holds no data"),
    "aof": Case({}, "persistence", "ok", "AOF, fsync everysec"),
    "aof always": Case(config(appendfsync="always"), "persistence", "ok", "AOF, fsync always"),
    "aof without fsync": Case(config(appendfsync="no"), "persistence", "warning", "when the operating system decides"),
    "aof, settings unseen": Case({"config": Refused("no permission")}, "persistence", "ok", "fsync unknown"),
    "rdb": Case(info(aof_enabled=0) | config(save="3600 1"), "persistence", "warning", "RDB only (save 3600 1)"),
    "nothing": Case(info(aof_enabled=0), "persistence", "warning", "a restart forgets everything"),
    "no aof, settings unseen": Case(
        info(aof_enabled=0) | {"config": Refused("no permission")}, "persistence", "warning", "could not be seen"
    ),
    "aof failed": Case(info(aof_last_write_status="err"), "persistence", "problem", "AOF failed"),
    "save failed": Case(info(rdb_last_bgsave_status="err"), "persistence", "problem", "save to disk failed"),
    "no eviction": Case({}, "eviction", "ok", "noeviction, no maxmemory"),
    "volatile": Case(
        info(maxmemory=2**30, maxmemory_policy="volatile-lru"), "eviction", "ok", "volatile-lru, maxmemory 1024 MiB"
    ),
    "allkeys": Case(info(maxmemory=2**30, maxmemory_policy="allkeys-lru"), "eviction", "problem", "may evict nonces"),
    "allkeys without a limit": Case(info(maxmemory_policy="allkeys-lfu"), "eviction", "warning", "would evict"),
    "nearly full": Case(info(maxmemory=1_100_000), "eviction", "warning", "91 % of maxmemory"),
    "full": Case(info(maxmemory=900_000), "eviction", "problem", "nothing can be written"),
    "no replicas": Case({}, "replicas", "note", "none"),
    "replicas": Case(info(connected_slaves=1, slave0=REPLICA), "replicas", "ok", "1, in sync"),
    "replica behind in bytes": Case(
        info(connected_slaves=1, slave0=REPLICA, master_repl_offset=2_001_000), "replicas", "warning", "2000000 bytes"
    ),
    "replica behind in time": Case(
        info(connected_slaves=2, slave0=REPLICA, slave1=REPLICA | {"lag": 31}), "replicas", "warning", "1 of 2 not in"
    ),
    "replica not connected": Case(
        info(connected_slaves=1, slave0=REPLICA | {"state": "wait_bgsave"}), "replicas", "warning", "wait_bgsave"
    ),
    "master that may be alone": Case(info(connected_slaves=1, slave0=REPLICA), "replicas", "note", "still gives out"),
    "too few replicas": Case(
        info(connected_slaves=1, slave0=REPLICA, min_slaves_good_slaves=1) | config(min_replicas_to_write="2"),
        "replicas",
        "problem",
        "1 in touch, but min-replicas-to-write is 2",
    ),
    "clock": Case({}, "clock", "ok", "+0.0 ms against this machine's, give or take 0.5 ms"),
    "clock ahead": Case({"ticks": ticks(1002.0, 1003.0)}, "clock", "warning", "+2000.0 ms"),
    "clock behind": Case({"ticks": ticks(900.0, 901.0)}, "clock", "problem", "-100000.0 ms"),
    "clock a hair behind": Case({"ticks": ticks(999.99999, 1001.0)}, "clock", "ok", "+0.0 ms against this machine's"),
    "clock far away": Case({"ticks": ticks(1002.0, 1003.0, trip=4.0)}, "clock", "ok", "give or take 2000.0 ms"),
    "clock set ahead": Case({"ticks": ticks(1000.0, 1001.2, 1002.2)}, "clock", "warning", "set 200 ms ahead"),
    "clock set back": Case({"ticks": ticks(1000.0, 1000.9, 1001.9)}, "clock", "warning", "set 100 ms back"),
    "latency": Case({}, "latency", "ok", "PING: median 1.00 ms, 99th 1.00 ms, max 1.00 ms"),
    "far away": Case({"pings": [0.08] * 9}, "latency", "warning", "PING: median 80.00 ms"),
    "stutters": Case({"runs": [0.001] * 199 + [0.5]}, "latency", "warning", "script: median 1.00 ms"),
    "slow scripts": Case(
        info(cmdstat_evalsha={"calls": 9, "usec": 90_000, "usec_per_call": 10_000.0}), "latency", "warning", "10.0 ms"
    ),
    "blocked": Case({"blocked": {"fork": 0.1, "command": 2.5}}, "latency", "warning", "up to 2500 ms (command)"),
    "scripts": Case({}, "scripts", "ok", "all run"),
    "scripts fail": Case(
        {"scripts": {"reserve": "no (a)", "acquire": "no (b)"}}, "scripts", "problem", "reserve, acquire: no"
    ),
    "one script fails": Case({"scripts": {"heartbeat": "no (why)"}}, "scripts", "problem", "heartbeat: no (why)"),
    "offers": Case({}, "offers", "ok", "came back"),
    "offers are lost": Case({"heard": False}, "offers", "problem", "did not come back"),
    "no offers": Case({"heard": Refused("no permission")}, "offers", "problem", "did not come back: no permission"),
    "permissions": Case({}, "permissions", "ok", "user bot has all"),
    "permissions missing": Case(
        {"lacking": {"hset": "no permission", "del": "no permission"}},
        "permissions",
        "problem",
        "user bot can't use hset, del",
    ),
    "permissions for the log missing": Case(
        {"lacking": {"xadd": "no permission", "xrevrange": "no permission"}},
        "permissions",
        "warning",
        "user bot can't use xadd, xrevrange: no permission; all works without",
    ),
    "everything": Case({"user": User("+@all", "~*", no_password=False)}, "permissions", "note", "may do everything"),
    "no password": Case({"user": User("+@all", "~*", no_password=True)}, "permissions", "note", "needs no password"),
    "open to all": Case(
        {"user": User("+@all", "*", no_password=True)} | config(protected_mode="no"),
        "permissions",
        "warning",
        "the port",
    ),
    "keys": Case({}, "keys", "ok", "1 in namespace kraken-nonce"),
    "many keys": Case(keys(complete=False), "keys", "ok", "there are more"),
    "raised": Case(keys(lead=600 * SECOND), "keys", "warning", "kraken-nonce:{global}: the last nonce is 600 s ahead"),
    "poisoned": Case(keys(lead=91 * 86_400 * SECOND), "keys", "problem", "ahead of the server's clock"),
    "foreign": Case(keys(foreign=2), "keys", "problem", "2 with a value that this library did not write"),
    "strangers": Case(keys(strangers=3), "keys", "warning", "3 in our namespace with names"),
    "timeouts": Case({}, "timeouts", "ok", "socket_timeout 3 s"),
    "no timeout": Case({"socket_timeout": None}, "timeouts", "warning", "socket_timeout is not set"),
    "no timeout to connect": Case({"connect_timeout": None}, "timeouts", "warning", "socket_connect_timeout is not"),
    "long timeout": Case({"socket_timeout": 60.0}, "timeouts", "warning", "socket_timeout is 60 s"),
    "short timeout": Case({"socket_timeout": 0.01}, "timeouts", "warning", "socket_timeout is 0.01 s"),
}


@pytest.mark.once
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_finding(case: Case) -> None:
    """Each thing that is wrong with a server is found, with what to do; what is fine needs nothing done."""
    found = about(case.topic, dataclasses.replace(HEALTHY, **case.changes))
    assert (case.level, True) in [(one.level, case.part in one.found) for one in found]
    assert all(bool(one.advice) == (one.level != "ok") for one in found)


@pytest.mark.once
def test_a_healthy_server_has_no_warning() -> None:
    """Nothing is made up."""
    assert {finding.level for finding in diagnose(HEALTHY)} == {"ok", "note"}


@pytest.mark.once
@pytest.mark.parametrize("field", ["info", "config", "blocked", "name", "user", "ticks", "pings", "keys"])
def test_what_is_refused_is_a_note(field: str) -> None:
    """A question without an answer is told as such, with the permission that would help, and is no reason to fail."""
    found = diagnose(dataclasses.replace(HEALTHY, **{field: Refused("not for you")}))
    (note,) = (finding for finding in found if "could not be seen" in finding.found)
    # Without INFO nobody knows whether the server keeps its data.
    assert note.level == ("problem" if field == "info" else "note")
    assert note.unseen
    assert "not for you" in note.found
    assert re.search(r"a user with \+[a-z|]+ .*kraken-nonce acl --for doctor", note.advice)
    assert {finding.topic for finding in found if finding.level == "problem"} <= {"server"}


@pytest.mark.once
def test_remedies_for_missing_permissions_fit() -> None:
    """Who lacks keys is not told to add commands, and the other way round."""
    lacking = {"hset": "not on our keys", "publish": "not on our channels", "del": "no permission"}
    advice = [finding.advice for finding in about("permissions", dataclasses.replace(HEALTHY, lacking=lacking))]
    assert advice == ["Give it ~kraken-nonce:*", "Give it &kraken-nonce:wake:*", "Give it +del"]


# On real servers


def doctor(url: str, *args: str, code: int = 0) -> list[Finding]:
    """Run the command with --json and expect an exit code."""
    result = run("--json", *args, url=url)
    assert result.exit_code == code, result.output
    data = json.loads(result.stdout)
    assert data["worst"] == max((one["level"] for one in data["findings"]), key=LEVELS.index)
    return [Finding(**one) for one in data["findings"]]


def run(*args: str, url: str) -> Result:
    """Run the command with a URL in the environment, where no password shows."""
    result = CliRunner().invoke(app, ["doctor", *args], env={"KRAKEN_NONCE_REDIS_URL": url, "KRAKEN_API_KEY": None})
    assert PASSWORD not in result.output
    assert "Traceback" not in result.output
    return result


def of(findings: list[Finding], topic: str) -> dict[str, str]:
    """Return what was found about a topic, by level."""
    return {finding.level: finding.found for finding in findings if finding.topic == topic}


def test_a_server_as_it_comes(real_server: Server) -> None:
    """On every server all questions are answered, and what must work works; nothing is left behind."""
    found = doctor(real_server.url)
    product = "Valkey" if real_server.kind is VALKEY else "Redis"
    assert of(found, "server") == {"ok": f"{product} {real_server.version}"}
    assert of(found, "role") == {"ok": "master, standalone"}
    assert of(found, "persistence") == {"warning": "none: a restart forgets everything"}
    assert of(found, "eviction") == {"ok": "noeviction, no maxmemory"}
    assert "none" in of(found, "replicas")["note"]
    assert of(found, "scripts") == {"ok": "all run"}
    assert of(found, "offers") == {"ok": "a published message came back"}
    assert of(found, "permissions") == {
        "ok": "user default has all permissions that are needed",
        "note": "user default may do everything and needs no password",
    }
    assert of(found, "keys") == {"ok": "0 in namespace kraken-nonce"}
    assert of(found, "timeouts") == {
        "ok": f"socket_connect_timeout {SOCKET_TIMEOUT:g} s, socket_timeout {SOCKET_TIMEOUT:g} s"
    }
    assert not any("could not be seen" in finding.found for finding in found)
    assert real_server.client().keys("*") == []


def test_it_reads_the_bots_keys_and_changes_none(valkey: Server) -> None:
    """Bots may run meanwhile; a raised nonce and another program's values are found."""
    client = valkey.client()
    NonceAllocator(client, KEY).next()
    client.hset("kraken-nonce:{0123456789abcdef}", "nonce", "theirs")
    client.set("kraken-nonce:{fedcba9876543210}", "theirs")
    client.set(f"kraken-nonce:{{{KEY}}}", "theirs")
    client.set("kraken-nonce:{global}:other", "not looked at")
    before = {key: client.dump(key) for key in client.keys("*")}
    result = run(url=valkey.url)
    assert {key: client.dump(key) for key in client.keys("*")} == before
    assert result.exit_code == 1
    assert KEY not in result.output, "the name of another program's key may be a secret"
    found = doctor(valkey.url, code=1)
    assert of(found, "keys")["ok"] == "3 in namespace kraken-nonce"
    assert of(found, "keys")["problem"].startswith("2 with a value that this library did not write: kraken-nonce:{")
    assert of(found, "keys")["warning"] == "1 in our namespace with names that are not ours"


def test_a_raised_nonce(valkey: Server) -> None:
    """A jump shows, with its key's digest and not the key."""
    allocator = NonceAllocator(valkey.client(), "an API key", namespace="mine")
    allocator.jump_forward(600 * SECOND)
    found = of(doctor(valkey.url, "--namespace", "mine"), "keys")
    assert found["warning"].startswith(Keyspace.of("mine", "an API key").state)
    assert of(doctor(valkey.url), "keys") == {"ok": "0 in namespace kraken-nonce"}


@pytest.mark.test_all
def test_a_replica(private_server: PrivateServer) -> None:
    """A replica is refused, with the exit code of a problem; its master says how far it is."""
    master, replica = private_server(), private_server()
    replica.client().replicaof("127.0.0.1", master.port)
    eventually(lambda: replica.client().info()["master_link_status"] == "up", timeout=30)
    eventually(lambda: of(doctor(master.url), "replicas").get("ok") == "1, in sync", timeout=30)
    found = doctor(replica.url, code=1)
    assert of(found, "role")["problem"] == "a replica: nothing can be written; its link to the master is up"
    assert "read-only replica" in of(found, "scripts")["problem"]


def test_eviction(real_server: Server) -> None:
    """A server that may evict the nonce is a problem."""
    client = real_server.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", "100mb")
    assert of(doctor(real_server.url, code=1), "eviction") == {
        "problem": "allkeys-lru, maxmemory 100 MiB: may evict nonces and locks"
    }


def test_a_full_server(valkey: Server) -> None:
    """Out of memory is found by trying."""
    valkey.client().config_set("maxmemory", "1")
    found = doctor(valkey.url, code=1)
    assert "nothing can be written" in of(found, "eviction")["problem"]
    assert "over its maxmemory" in of(found, "scripts")["problem"]


def test_persistence(private_server: PrivateServer) -> None:
    """Append-only files are what keeps locks over a restart."""
    server = private_server(VALKEY, "--appendonly", "yes")
    assert of(doctor(server.url), "persistence") == {"ok": "AOF, fsync everysec"}


def test_too_few_replicas(valkey: Server) -> None:
    """A server that refuses to write for want of replicas is a problem, and no traceback."""
    valkey.client().config_set("min-replicas-to-write", "1")
    found = doctor(valkey.url, code=1)
    assert "0 in touch" in of(found, "replicas")["problem"]
    assert "too few replicas" in of(found, "scripts")["problem"]


def test_a_clock_that_is_wrong(faketime_server: Server) -> None:
    """A server that lives in another hour is a problem for every other program with the same API key."""
    faketime_server.clock_offset(-3600)
    found = of(doctor(faketime_server.url, code=1), "clock")["problem"]
    assert re.match(r"-(3600|3599)\d{3}\.\d ms against", found)


def commands_of_scripts() -> list[str]:
    """Return the commands that scripts run."""
    sources = (scripts.load(one).source for one in scripts.names())
    called = {name for source in sources for name in re.findall(r"redis\.p?call\(\s*'(\w+)'", source)}
    return sorted(name.lower() for name in called)


def bot(server: Server, *rules: str) -> str:
    """Make a user with these permissions; return its URL."""
    server.client().execute_command("ACL", "SETUSER", "bot", "reset", "on", f">{PASSWORD}", *rules)
    return server.url.replace("//", f"//bot:{PASSWORD}@")


LEAST = least_permissions()


def test_the_least_permissions(real_server: Server) -> None:
    """For a bot's own user all that the bot does is tried; some more could not be seen, and that is no problem."""
    found = doctor(bot(real_server, *LEAST))
    assert {finding.topic for finding in found if finding.unseen} == {"settings", "latency", "permissions", "keys"}
    assert of(found, "permissions")["ok"] == "the user has all permissions that are needed"
    assert of(found, "scripts") == {"ok": "all run"}
    assert "problem" not in {finding.level for finding in found}
    assert real_server.client().keys("*") == []


def test_without_info(real_server: Server) -> None:
    """Who may not see whether the server keeps its data gets exit code 1."""
    found = doctor(bot(real_server, *LEAST, "-info"), code=1)
    assert "could not be seen: kind, version, role, persistence" in of(found, "server")["problem"]


def test_the_permissions_for_doctor(real_server: Server) -> None:
    """The user that is meant for it sees everything."""
    found = doctor(bot(real_server, *least_permissions(role="doctor")))
    assert not any(finding.unseen for finding in found)


def test_strict(real_server: Server) -> None:
    """With --strict a warning is a reason to fail, and so is what could not be seen."""
    url = bot(real_server, *least_permissions(role="doctor"))
    levels = {finding.level for finding in doctor(url)}
    assert "problem" not in levels
    for words, code in (((), 0), (("--strict",), int("warning" in levels))):
        assert CliRunner().invoke(app, ["doctor", "--redis", url, *words]).exit_code == code
    blind = bot(real_server, *least_permissions(role="doctor"), "-latency")
    for words, code in (((), 0), (("--strict",), 1)):
        assert CliRunner().invoke(app, ["doctor", "--redis", blind, *words]).exit_code == code


def test_missing_permissions(real_server: Server) -> None:
    """Missing commands are named, and what to give."""
    found = doctor(bot(real_server, *LEAST, "-hset", "-zcount"), code=1)
    (problem,) = (one for one in found if one.topic == "permissions" and one.level == "problem")
    assert problem.found == "the user can't use hset, zcount: no permission"
    assert problem.advice == "Give it +hset +zcount"
    assert "permission" in of(found, "scripts")["problem"]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ((*LEAST, "resetkeys", "~other:*"), "not on our keys"),
        ((*LEAST, "resetchannels"), "not on our channels"),
        ((*LEAST, "-subscribe"), "no permission"),
    ],
    ids=["other keys", "no channels", "no subscribe"],
)
def test_permissions_on_keys_and_channels(real_server: Server, rules: tuple[str, ...], said: str) -> None:
    """Patterns that leave out our keys or channels are told from missing commands."""
    found = doctor(bot(real_server, *rules), code=1)
    assert any(said in finding.found and finding.level == "problem" for finding in found)
    assert real_server.client().keys("*") == []


@pytest.mark.once
def test_what_is_tried_is_what_scripts_do(valkey: Server) -> None:
    """No command of a script is left out; no script either, but for those of people and of orders with a name."""
    client = redis.Redis.from_url(valkey.url)
    with client, Trial(client, "kraken-nonce") as trial:
        assert sorted(trial.commands()) == sorted([*commands_of_scripts(), "eval", "evalsha"])
        assert {command.name for command, _ in trial._steps()} == set(scripts.names()) - {"log", "names", "once"}


def test_a_killed_doctor_leaves_nothing_for_long(valkey: Server) -> None:
    """What was tried ends by itself."""
    client = valkey.client()
    trial = Trial(client, "kraken-nonce")
    trial.lacking()
    trial.scripts(NonceAllocator(client, KEY)._store)
    left = sorted([trial.keys.state.encode(), trial.keys.log.encode()])
    assert sorted(client.keys("*")) == left
    for key in left:
        assert 0 < client.pttl(key) <= 60_000


@pytest.mark.parametrize("kind", [VALKEY, REDIS_6, REDIS_7], ids=lambda kind: kind.name)
def test_a_managed_server(private_server: PrivateServer, kind: Kind) -> None:
    """Where a provider has taken commands away, that is a note."""
    server = private_server(kind, "--rename-command", "LATENCY", "")
    found = doctor(bot(server, "~*", "&*", "+@all", "-config"))
    assert "LATENCY LATEST: the server has no such command" in of(found, "latency")["note"]
    assert "CONFIG GET: no permission" in of(found, "settings")["note"]
    assert of(found, "persistence") == {"warning": "no AOF; RDB settings could not be seen"}
    assert of(found, "permissions")["ok"] == "user bot has all permissions that are needed"


def test_a_server_without_scripts(private_server: PrivateServer) -> None:
    """Without EVAL nothing works, and that is said."""
    server = private_server(VALKEY, "--rename-command", "EVALSHA", "")
    found = doctor(server.url, code=1)
    assert of(found, "permissions")["problem"] == "user default can't use evalsha: the server has no such command"
    assert "lacks a command" in of(found, "scripts")["problem"]


@pytest.mark.test_all
def test_a_node_of_a_cluster(private_server: PrivateServer) -> None:
    """A node is tried with keys that are its own."""
    nodes = [private_server(VALKEY, "--cluster-enabled", "yes") for _ in range(2)]
    first, second = (node.client() for node in nodes)
    first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_000)
    second.execute_command("CLUSTER", "ADDSLOTSRANGE", 16_001, 16_383)
    first.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
    eventually(lambda: all(one.cluster("INFO")["cluster_state"] == "ok" for one in (first, second)), timeout=30)
    for node in nodes:
        found = doctor(node.url)
        assert of(found, "role")["ok"] == "master, node of a cluster"
        assert of(found, "scripts") == {"ok": "all run"}


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
@pytest.mark.parametrize("user", ["", f":{PASSWORD}@"])
def test_no_server(user: str, scheme: str) -> None:
    """A Redis that can't be reached is exit code 3, as with every command."""
    result = run(url=f"{scheme}://{user}127.0.0.1:1")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert "Redis can't be reached" in result.stderr


def test_no_cluster(private_server: PrivateServer) -> None:
    """Neither is a server that is no cluster, nor one that has no hash slots yet, and what is wrong is said."""
    for options, said in ((), "the server is no cluster"), (("--cluster-enabled", "yes"), "has any hash slots"):
        result = run(url=f"redis+cluster://127.0.0.1:{private_server(VALKEY, *options).port}")
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
        assert said in result.stderr


def test_a_server_that_hangs(private_server: PrivateServer) -> None:
    """No answer in time is exit code 3, too."""
    server = private_server()
    server.pause()
    result = run(url=f"{server.url}?socket_timeout=0.3")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "did not answer in time" in result.stderr


def test_a_connection_that_breaks(valkey: Server, proxy: MakeProxy) -> None:
    """In the middle it is exit code 3 as well; what was tried is deleted, and a lost answer alone does no harm."""
    for command in ("HMGET", "EVALSHA"):
        network = proxy(valkey, counted=frozenset({command}))
        for n in (2, 3) if command == "EVALSHA" else (1, 2):  # the first EVALSHA is of no script of ours
            network.cut_request(n)
        result = run(url=network.url)
        assert (result.exit_code, result.stdout) == (3, "")
        assert valkey.client().keys("*") == []
    network = proxy(valkey)
    for n in range(4, 40, 2):
        network.drop_reply(n)
    assert of(doctor(network.url), "scripts") == {"ok": "all run"}


def test_a_wrong_password(valkey: Server) -> None:
    """Permissions and passwords are exit code 3."""
    result = run(url=bot(valkey, *LEAST).replace("//bot:", "//bot:x"))
    assert (result.exit_code, result.stdout) == (3, "")
    assert "refuses the user name or password" in result.stderr


def test_wrong_arguments(valkey: Server) -> None:
    """A wrong namespace, no URL and a client for many servers are told before anything is sent."""
    assert run("--namespace", "a b", url=valkey.url).exit_code == 2
    assert run(url="").exit_code == 2
    with pytest.raises(InvalidArgument, match="for one server, not str"):
        examine("redis://localhost")  # type: ignore[arg-type]


def test_text(valkey: Server) -> None:
    """Each finding is one line, and what to do is in one below it."""
    lines = run(url=valkey.url).stdout.splitlines()
    assert re.fullmatch(r"ok       server       Valkey [\d.]+", lines[0])
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith(("ok ", " ")):
            assert re.match(r"(note|warning|problem) +[a-z]+ +\S", line)
            assert re.match(r" {22}\S", following)
    assert "\x1b" not in "".join(lines)


def test_colours(valkey: Server) -> None:
    """Only on a terminal that has them, and not for somebody who wants none."""
    variables = {"KRAKEN_NONCE_REDIS_URL": valkey.url, "FORCE_COLOR": "1", "TERM": "xterm"}
    assert "\x1b[32mok       \x1b[0mserver" in kraken_nonce("doctor", **variables).stdout
    for none in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = kraken_nonce("doctor", **variables | none).stdout
        assert "ok       server       Valkey" in shown
        assert "\x1b" not in shown


def test_any_client(valkey: Server) -> None:
    """Clients with other settings do as well: decoded answers, either protocol, no timeouts."""
    for options in ({"decode_responses": True}, {"protocol": 2}, {"protocol": 3}):
        client = valkey.client(**options, socket_timeout=None, socket_connect_timeout=None)
        found = diagnose(examine(client))
        assert of(found, "permissions")["note"] == "user default may do everything and needs no password"
        assert {finding.topic for finding in found if finding.level == "warning"} == {"persistence", "timeouts"}


def test_fakeredis() -> None:
    """In a unit test nothing fails; what it is, is said."""
    client = fakeredis.FakeRedis(socket_timeout=3)
    found = diagnose(examine(client))
    assert "unit tests" in found[0].advice
    assert {finding.level for finding in found} == {"ok", "note"}
    assert client.keys("*") == []


def test_a_cluster(cluster: ClusterTopology) -> None:
    """Each master of a cluster is looked at, and the findings say which is which."""
    ran = CliRunner().invoke(app, ["doctor", "--redis", cluster.url, "--json"])
    findings = json.loads(ran.stdout)["findings"]
    fine = {finding["server"] for finding in findings if (finding["topic"], finding["level"]) == ("scripts", "ok")}
    assert fine == {f"127.0.0.1:{master.port}" for master in cluster.masters()}
