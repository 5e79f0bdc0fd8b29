"""The Lua scripts: what their headers say, exact arithmetic, and that running one twice is safe."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kraken_nonce_redis import _pyinstaller
from kraken_nonce_redis._redis import commands, journal, name_records, scripts, trail
from tests.support.helpers import KEYS, ROOT, SECOND, View, run
from tests.support.servers import VALKEY, require
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._redis.keyspace import Keyspace
    from tests.support.servers import AnyServer, Server

pytestmark = pytest.mark.matrix

ALL = pytest.mark.parametrize("name", scripts.names())
LIBRARIES = sorted(path.name.removesuffix(".lua") for path in (scripts.folder() / "lib").iterdir())
HIGHEST = 2**63 - 1
MARGIN = SECOND
MEMBER = "process:1"


def verb(name: str) -> str:
    """Return a script's own file, without its libraries."""
    return (scripts.folder() / f"{name}.lua").read_text("utf-8")


def library(name: str) -> str:
    """Return a library's own file."""
    return (scripts.folder() / "lib" / f"{name}.lua").read_text("utf-8")


def header(name: str) -> str:
    """Return the comment that opens a script."""
    return re.match(r"(?:--.*\n)+", verb(name))[0]  # type: ignore[index]


def body(name: str) -> str:
    """Return a script's own code without comments."""
    return re.sub(r"--.*", "", verb(name))


def documented(name: str, what: str) -> list[str]:
    """Return the names of the KEYS or ARGV that the header documents, which must be numbered from 1."""
    section = re.search(rf"^-- {what} +(1 .*\n(?:--  +\S.*\n)*)", header(name), re.MULTILINE)
    if section is None:
        return []
    found = re.findall(r"^(?:--)? *(\d+) (\w+)", section[1], re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [word for _, word in found]


def used(what: str, code: str) -> set[int]:
    """Return the numbers of the KEYS or ARGV that code uses."""
    return {int(number) for number in re.findall(rf"{what}\[(\d+)\]", code)}


# Headers.


@ALL
def test_a_header_names_what_the_code_uses(name: str) -> None:
    """Who writes a client in another language finds every key and argument in the header, and none too many."""
    for what in ("KEYS", "ARGV"):
        own, everywhere = used(what, body(name)), used(what, re.sub(r"--.*", "", scripts.load(name).source))
        assert own <= set(range(1, len(documented(name, what)) + 1)) <= everywhere
        assert re.findall(rf"{what}\[[^\d]", body(name)) == [], "they are used by number, so that this can be checked"


def examples(keys: Keyspace = KEYS) -> dict[str, Command[Any]]:
    """Return a command for most scripts, by the library's own functions."""
    found = [
        commands.reserve(keys, 1),
        commands.advance(keys, 1, 1),
        commands.inspect(keys),
        commands.acquire(keys, MEMBER, 30.0, ticket=0, priority="normal", pace=""),
        commands.release(keys, MEMBER, 0),
        commands.heartbeat(keys, "process", MEMBER),
        commands.extend(keys, MEMBER, 5),
        commands.unlock(keys, MEMBER),
        name_records.read(keys, MEMBER, "id"),
        name_records.read_all(keys),
    ]
    return {command.name: command for command in found}


def acquire(member: str = MEMBER, ticket: int | None = 0, term: float = 30.0) -> Command[commands.Answer]:
    """Return the command that takes the lock."""
    return commands.acquire(KEYS, member, term, ticket=ticket, priority="normal", pace="")


def all_of_them() -> dict[str, Command[Any]]:
    """Return a command for every script, with the keys of the full trail."""
    keys = replace(KEYS, trail="all")
    more = [
        commands.cool_down(keys, 5, "reason"),
        commands.reset_startup(keys),
        journal.pending(keys),
        commands.ping(keys),
        journal.settle(keys, 1, "known"),
        trail.read(keys.log),
    ]
    return examples(keys) | {command.name: command for command in more}


@ALL
def test_the_library_passes_what_the_header_names(name: str) -> None:
    """The library's commands have as many keys and arguments as the header, the floor first where it is taken."""
    command = all_of_them()[name]
    assert len(command.keys) == len(documented(name, "KEYS"))
    floors = [word for word in documented(name, "ARGV") if word == "floor"]
    assert len(floors) == (command.highest is not None)
    assert len(command.args) + len(floors) == len(documented(name, "ARGV"))
    if floors:
        assert documented(name, "ARGV")[0] == "floor"


@ALL
def test_a_header_says_why_and_what(name: str) -> None:
    """Each header begins with its verb, says why it is atomic, what a second run does and what it returns."""
    lines = [line for line in header(name).splitlines() if not line.startswith("-- include:")]
    assert lines[0].startswith(f"-- {name}: ")
    assert re.search(r"^-- Returns ", header(name), re.MULTILINE)
    if name not in {"inspect", "log", "names", "pending"}:
        assert re.search(r"^-- .*[Aa]tomic", header(name), re.MULTILINE)
        assert re.search(r"[Rr]un twice|second run", header(name))


@ALL
def test_a_header_names_every_reply(name: str) -> None:
    """Each word with which a reply may begin is in the header."""
    replies = set(re.findall(r"return (?:table\.concat\(\{ ?)?\s*'([a-z ]+?)[' ]", body(name)))
    assert replies
    for reply in replies:
        assert f"'{reply}" in header(name), reply


@ALL
def test_every_key_is_declared(name: str) -> None:
    """Redis Cluster and others refuse keys that are not in KEYS: each call's key comes from there."""
    source = re.sub(r"--.*", "", scripts.load(name).source)
    calls = re.findall(r"redis\.p?call\(\s*'(\w+)'(?:, ([^,)]+))?", source)
    assert calls
    assert {key for word, key in calls if word not in ("TIME", "PUBLISH", "INFO")} <= {"KEYS[1]", "KEYS[2]", "stream"}
    assert set(re.findall(r"\bnote\((\w+)", source)) <= {"stream", "LOG", "LEASES"}  # the first one defines it
    assert set(re.findall(r"\blocal LOG(?:, LEASES)? = (.*)", source)) <= {
        "KEYS[2]",
        "KEYS[3]",
        "KEYS[2], KEYS[3]",
        "KEYS[3], KEYS[4]",
    }
    assert len(re.findall(r"redis\.p?call", source)) == len(calls), "a call by a computed name"


@pytest.mark.parametrize("name", LIBRARIES)
def test_no_library_function_is_idle(name: str) -> None:
    """What a library defines, some script uses."""
    sources = [verb(one) for one in scripts.names()] + [library(one) for one in LIBRARIES]
    for function in re.findall(r"^local (?:function )?(\w+)", library(name), re.MULTILINE):
        uses = sum(len(re.findall(rf"\b{function}\b", re.sub(r"--.*", "", source))) for source in sources)
        assert uses > 1, function


@ALL
def test_luacheck(name: str) -> None:
    """Each script, put together as the server gets it, has no warning but for library parts that it does not use."""
    luacheck = shutil.which("luacheck")
    require(None if luacheck else "no luacheck on this machine: on Debian and Ubuntu, apt-get install lua-check")
    source = scripts.load(name).source
    defined = re.findall(r"^local (?:function )?(\w+)", "\n".join(map(library, LIBRARIES)), re.MULTILINE)
    checked = subprocess.run(
        [
            *(str(luacheck), "-", "--no-config", "--std", "lua51", "--no-color", "--codes", "--max-line-length", "120"),
            # A library may come after variables of the script, of which it knows nothing.
            *("--read-globals", "redis", "KEYS", "ARGV", "--ignore", "431", *(f"211/{one}" for one in defined)),
        ],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_scripts_are_named_by_their_text() -> None:
    """Two scripts never share a hash, and a script keeps it, since the server knows it by that."""
    loaded = [scripts.load(name) for name in scripts.names()]
    assert len({one.sha for one in loaded}) == len(loaded)
    assert all(scripts.load(one.name) is one for one in loaded)


def test_an_upgrade_under_a_running_process(tmp_path: Path) -> None:
    """A process goes on with the scripts that it began with, also with those that it first needs afterwards."""
    package = tmp_path / "kraken_nonce_redis"
    shutil.copytree(ROOT / "kraken_nonce_redis", package)
    shutil.copytree(ROOT / "lua", package / "lua")
    program = f"""
import shutil
from kraken_nonce_redis._redis import scripts
assert str(scripts.folder()) == {str(package / "lua")!r}
scripts.load("acquire")
shutil.rmtree(scripts.folder())
print(*(scripts.load(name).sha for name in scripts.names()))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [scripts.load(name).sha for name in scripts.names()]


def test_a_script_is_known_by_its_hash(server: AnyServer) -> None:
    """The hash that the library sends is the one under which the server keeps the script."""
    client = server.client()
    for name in scripts.names():
        script = scripts.load(name)
        loaded: Any = client.script_load(script.source)
        assert (loaded.decode() if isinstance(loaded, bytes) else loaded) == script.sha


# Twice.


def _nothing(client: redis.Redis) -> None:
    pass


def _held(client: redis.Redis) -> None:
    run(client, acquire())


def _held_by_another(client: redis.Redis) -> None:
    run(client, acquire("another:1"))


def _waiting(client: redis.Redis) -> None:
    run(client, acquire("another:1"))
    run(client, acquire())
    run(client, acquire("third:1"))


def _offered(client: redis.Redis) -> None:
    _waiting(client)
    run(client, commands.release(KEYS, "another:1"))


def _held_with_waiters(client: redis.Redis) -> None:
    run(client, acquire())
    run(client, acquire("another:1"))
    run(client, acquire("third:1"))


SITUATIONS = [_nothing, _held, _held_by_another, _waiting, _offered, _held_with_waiters]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.__name__[1:])
@pytest.mark.parametrize("name", examples())
def test_running_twice(
    server: AnyServer, redis_client: redis.Redis, name: str, situation: Callable[[redis.Redis], None]
) -> None:
    """When a reply is lost the command is sent again: it must leave and say what one run alone would have.

    Nonces may be skipped by the second run, and must not come again.
    """
    command = examples()[name]
    situation(redis_client)
    first = run(redis_client, command)
    once = who(redis_client)
    again = run(redis_client, command)
    assert who(redis_client) == once
    if name == "reserve":
        assert again[0] > first[-1]
    elif name == "extend":
        assert type(again) is type(first)
        assert first == "lost" or again.nonces[0] > first.nonces[-1]
    elif name == "unlock":
        assert not again
    elif name == "acquire":
        assert type(again) is type(first)
        assert getattr(again, "nonces", None) == getattr(first, "nonces", None)
        assert getattr(again, "ticket", None) == getattr(first, "ticket", None)
    elif name == "inspect":
        assert (again.last, again.holder, again.waiting) == (first.last, first.holder, first.waiting)
    elif name == "heartbeat":
        assert (again.joined, again.offered) == (first.joined, first.offered)
    elif name == "once":
        assert getattr(again, "record", again) == getattr(first, "record", first)
    elif name == "release":
        assert again == ("gone" if first == "released" else first)
    else:
        assert again == first


def who(client: redis.Redis) -> tuple[Any, ...]:
    """Return who has the lock, how, and who waits in which order."""
    state = View(client).state
    return state.holder, state.leased, client.zrangebyscore(KEYS.queue, "-inf", 3.9e15)


# Arithmetic, exact to the last digit.

DECIMALS = st.integers(0, HIGHEST) | st.builds(
    lambda high, low: min(high * 10**10 + low, HIGHEST),
    st.integers(0, 10**9),
    st.sampled_from([0, 1, 10**10 - 1, 10**10 - 2, 10**9, 999]),
)
ADDENDS = st.integers(0, 8 * 10**15) | st.sampled_from([0, 1, 10**10, 10**10 - 1, 8 * 10**15])
ON_ONE_SERVER = settings(
    max_examples=by_tier(100, 300, 3000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


def lua(client: redis.Redis, expression: str, *arguments: int) -> str:
    """Return what an expression on the libraries' functions gives."""
    source = "\n".join(library(name) for name in ("decimal", "nonce", "block"))
    answer: Any = client.eval(f"{source}\nreturn tostring({expression})", 0, *map(str, arguments))
    return answer.decode()


def calculating(shared_server: Callable[[Any], Server]) -> redis.Redis:
    """Return a client of the server that calculates, kept over the examples of a test."""
    server = shared_server(VALKEY)
    return server._clients[-1] if server._clients else server.client()


@ON_ONE_SERVER
@given(a=DECIMALS, n=ADDENDS)
def test_add(shared_server: Callable[[Any], Server], a: int, n: int) -> None:
    """A sum of a nonce and a number below 2^53 is exact, and written without leading zeros or exponent."""
    assert lua(calculating(shared_server), "add(ARGV[1], tonumber(ARGV[2]))", a, n) == str(a + n)


@ON_ONE_SERVER
@given(a=DECIMALS, b=DECIMALS | st.just(-1))
def test_greater(shared_server: Callable[[Any], Server], a: int, b: int) -> None:
    """Nonces are compared by all of their digits, neighbours and equal ones as well."""
    for other in {b if b >= 0 else a, a, a + 1, max(a - 1, 0)}:
        expected = "true" if a > other else "false"
        assert lua(calculating(shared_server), "greater(ARGV[1], ARGV[2])", a, other) == expected


@ON_ONE_SERVER
@given(n=st.integers(0, 2**53 - 1) | st.integers(-4 * 10**15, -1))
def test_whole(shared_server: Callable[[Any], Server], n: int) -> None:
    """Microseconds and tickets are written as whole numbers, never with an exponent."""
    assert lua(calculating(shared_server), "whole(tonumber(ARGV[1]))", n) == str(n)


@ON_ONE_SERVER
@given(
    stored=st.none() | st.integers(1, HIGHEST),
    floor=st.integers(0, HIGHEST),
    now=st.integers(1, 9 * 10**15),
    count=st.integers(1, 1_000_000),
)
def test_allocate(shared_server: Callable[[Any], Server], stored: int | None, floor: int, now: int, count: int) -> None:
    """The rule of the nonces, by whole numbers of Python: the clock, above the last one, healed above the floor."""
    first = max(now * 1000, (stored or 0) + 1)
    if floor > (stored or 0):
        first = max(first, floor + 1 + MARGIN)
    last = first + count - 1
    call = "allocate(ARGV[1] ~= '0' and ARGV[1] or nil, ARGV[2], ARGV[3], tonumber(ARGV[4]))"
    got = lua(
        calculating(shared_server),
        f"(function() local first, last = {call} return first and first .. ' ' .. last end)()",
        *(stored or 0, floor, now, count),
    )
    assert got == ("nil" if last > HIGHEST else f"{first} {last}")


@ON_ONE_SERVER
@given(seconds=st.integers(10**9, 2**53 // 10**6 - 1), microseconds=st.integers(0, 999_999))
def test_clock(shared_server: Callable[[Any], Server], seconds: int, microseconds: int) -> None:
    """TIME tells the microseconds without leading zeros; the clock puts them in their places."""
    source = "\n".join(library(name) for name in ("decimal", "nonce", "block"))
    stub = "local redis = { call = function() return { ARGV[1], ARGV[2] } end }"
    client = calculating(shared_server)
    now: Any = client.eval(f"{stub}\n{source}\nreturn clock()", 0, str(seconds), str(microseconds))
    assert now.decode() == str(seconds * 1_000_000 + microseconds)


def test_the_clock_is_the_servers(server: AnyServer, redis_client: redis.Redis) -> None:
    """The clock of the scripts is TIME, in microseconds."""
    before, now, after = (
        redis_client.time(),
        int(lua(redis_client, "clock()")),
        redis_client.time(),
    )
    assert before[0] * 1_000_000 + before[1] <= now <= after[0] * 1_000_000 + after[1]


def test_bundles_get_all() -> None:
    """PyInstaller's hook, which the package names, takes each script to where it is looked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pyinstaller40"] == {"hook-dirs": "kraken_nonce_redis._pyinstaller:hook_dirs"}
    (hooks,) = _pyinstaller.hook_dirs()
    ((source, target),) = runpy.run_path(f"{hooks}/hook-kraken_nonce_redis.py")["datas"]
    assert {path.name for path in Path(source).glob("**/*.lua")} >= {f"{name}.lua" for name in scripts.names()}
    assert {f"{name}.lua" for name in LIBRARIES} <= {path.name for path in Path(source, "lib").iterdir()}
    assert target == "kraken_nonce_redis/lua"
