"""A state of this version beside the scripts of the first one, and the other way round."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis._redis import commands, journal
from tests.support.helpers import KEYS, Rival, View, eventually, run

if TYPE_CHECKING:
    import redis

pytestmark = pytest.mark.matrix

FIRST = Path(__file__).parents[1] / "support" / "first_version"
INTENT = f"{KEYS.tag} AddOrder an-id"
NONCES = {
    "acquire": ("0", "old:1", "30000000", "100000", "0", "normal", "", ""),
    "extend": ("0", "new:1", "5000000", "100000", "", "1"),
    "reserve": ("0", "1"),
    "advance": ("0", "1900000000000000000", "9000000000000000", "9223372036854775807"),
}
"""The first version's scripts that hand out nonces, with arguments."""


def old(client: redis.Redis, name: str, *arguments: str) -> str:
    """Run a script of the first version."""
    parts: list[str] = []

    def add(path: Path) -> None:
        source = path.read_text("utf-8")
        for library in re.findall(r"^-- include: (\w+)$", source, re.MULTILINE):
            if (FIRST / "lib" / f"{library}.lua").read_text("utf-8") not in parts:
                add(FIRST / "lib" / f"{library}.lua")
        parts.append(source)

    add(FIRST / f"{name}.lua")
    # The first version did not run on later Lua.
    reply: Any = client.eval(
        "\n".join(["local unpack = unpack or table.unpack", *parts]), 2, KEYS.state, KEYS.queue, *arguments
    )
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def make(client: redis.Redis, state: str) -> None:
    """Put a state of this version into Redis."""
    first, second = Rival(client), Rival(client)
    if state in ("cooled", "booked"):
        run(client, commands.cool_down(KEYS, 60, "why"))
    else:
        first.take()
    if state in ("offered", "booked"):
        second.ask()
    if state in ("free", "offered"):
        first.release()


@pytest.mark.parametrize("state", ["free", "held", "offered", "cooled", "booked"])
def test_first_version_scripts_on_a_new_state(redis_client: redis.Redis, view: View, state: str) -> None:
    """They refuse it as a foreign value, whatever it holds, and change nothing: never a grant, never a nonce."""
    make(redis_client, state)
    before = view.everything()
    for name, arguments in NONCES.items():
        assert old(redis_client, name, *arguments).startswith("foreign 2:"), name
    assert view.everything() == before


@pytest.fixture
def took_over(redis_client: redis.Redis) -> int:
    """Have a state of the first version with a holder, an intent, two waiters and a cool-down; return the nonce."""
    granted = old(redis_client, "acquire", "0", "old:1", "1000000", "100000", "0", "normal", "", INTENT)
    assert granted.startswith("granted ")
    for number in (2, 3):
        assert old(
            redis_client, "acquire", "0", f"old:{number}", "30000000", "100000", "0", "normal", "", ""
        ).startswith("waiting ")
    return int(granted.split(" ")[1])


def test_the_nonce_is_taken_over(redis_client: redis.Redis, took_over: int) -> None:
    """Nonces go on above those of the first version, by each script that hands them out."""
    last = took_over + commands.BLOCK - 1
    for _ in range(2):
        (nonce,) = run(redis_client, commands.reserve(KEYS, 1))
        assert nonce > last
        last = nonce
    assert run(redis_client, commands.advance(KEYS, 1, 1)) == last
    assert run(redis_client, commands.inspect(KEYS)).last == last


@pytest.mark.long
def test_an_old_lock_counts_until_it_ends(redis_client: redis.Redis, view: View, took_over: int) -> None:
    """Its holder keeps its lease, though its scripts are refused; then the new waiters get the lock, and no old one."""
    del took_over
    waiter = Rival(redis_client)
    assert run(redis_client, commands.inspect(KEYS)).holder == "old:1"
    ticket = waiter.queue_up()
    assert view.state.waiting == 1, "the old waiters are let go"
    assert old(redis_client, "release", "old:1", "0", "0", "1").startswith("foreign ")
    assert view.state.holder == "old:1"
    eventually(lambda: isinstance(waiter.ask(ticket=ticket), commands.Granted))
    (entry,) = run(redis_client, journal.pending(KEYS))
    assert (entry.method, entry.cl_ord_ids, entry.name) == ("AddOrder", ("an-id",), "")


def test_an_old_journal_is_taken_over(redis_client: redis.Redis, took_over: int) -> None:
    """Pending calls of the first version are told to the next holder, and can be settled."""
    old(redis_client, "release", "old:1", "0", "0", "0")
    redis_client.delete(KEYS.queue)
    redis_client.hdel(KEYS.state, "lock")
    assert Rival(redis_client).take().pending
    assert [entry.nonce for entry in run(redis_client, journal.pending(KEYS))] == [took_over]
    assert run(redis_client, journal.settle(KEYS, took_over, "found", ["O-1"]))
    (entry,) = run(redis_client, journal.pending(KEYS))
    assert (entry.result, entry.txids) == ("found", {"an-id": "O-1"})
    assert run(redis_client, journal.settle(KEYS, took_over, "known"))
    assert run(redis_client, journal.pending(KEYS)) == ()


def test_an_old_cool_down_is_taken_over(redis_client: redis.Redis) -> None:
    """It holds, with its reason, and can be ended."""
    old(redis_client, "cool_down", "60000000", "EAPI:Rate limit exceeded")
    asked = Rival(redis_client).ask(ticket=None)
    assert isinstance(asked, commands.Busy)
    assert asked.left > 50
    assert asked.cause == "cool-down EAPI:Rate limit exceeded"
    assert run(redis_client, commands.end_cool_down(KEYS)) == "EAPI:Rate limit exceeded"


def test_an_old_offer_is_dropped(redis_client: redis.Redis, view: View, took_over: int) -> None:
    """The lock that was offered to a waiter of the first version, which can't take it any more, is free."""
    del took_over
    old(redis_client, "release", "old:1", "0", "0", "1")
    assert view.state.holder == "old:2"
    Rival(redis_client).take()
