"""The intent journal in Redis: what a holder was about to do stays there until somebody knows what became of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.words import text
from tests.support.helpers import KEYS, Rival, View, eventually, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from kraken_nonce_redis._redis.commands import Granted
    from kraken_nonce_redis._redis.journal import Pending

pytestmark = pytest.mark.matrix

OURS, OTHERS = "0123456789abcdef", "fedcba9876543210"
INTENT = journal.intent(OURS, "AddOrder", ["a-b-c"])


def take(client: redis.Redis, member: str = "process:1", *, ttl: float = 30.0, intent: str = INTENT) -> Granted:
    """Take the lock with an intent."""
    command = commands.acquire(KEYS, member, ttl, ticket=None, priority="normal", pace="", intent=intent)
    answer = run(client, command)
    assert isinstance(answer, commands.Granted), answer
    return answer


def move(client: redis.Redis, seconds: float) -> int:
    """Let the present lease have begun so much later; return when it ends, ns since 1970."""
    held = client.hget(KEYS.state, "lock")
    assert held is not None
    lease, since, term, *rest = text(held).split(" ")
    moved = int(since) + round(seconds * 1_000_000)
    client.hset(KEYS.state, "lock", " ".join((lease, str(moved), term, *rest)))
    return (moved + int(term)) * 1000


def pending(client: redis.Redis) -> tuple[Pending, ...]:
    """Return what is pending; the number that the state shows is that of the new ones."""
    entries = run(client, journal.pending(KEYS))
    assert View(client).state.pending == sum(not entry.reported for entry in entries)
    return entries


def release(client: redis.Redis, lease: int, *, known: bool, member: str = "process:1") -> commands.Release:
    """Give the lease back."""
    return run(client, commands.release(KEYS, member, lease, lease, known=known))


def test_known(redis_client: redis.Redis, view: View) -> None:
    """A call whose outcome is known leaves nothing."""
    lease = take(redis_client).nonces[0]
    assert pending(redis_client) == ()
    assert release(redis_client, lease, known=True) == "released"
    assert pending(redis_client) == ()
    view.assert_nothing_left()


def test_unknown(redis_client: redis.Redis, rival: Rival) -> None:
    """A call whose outcome is not known is pending, with all that is needed to find it, and the next holder hears."""
    lease = take(redis_client).nonces[0]
    before = View(redis_client).state.now
    release(redis_client, lease, known=False)
    (entry,) = pending(redis_client)
    assert (entry.nonce, entry.method, entry.cl_ord_ids) == (lease, "AddOrder", ("a-b-c",))
    assert (entry.key, entry.reported) == (OURS, False)
    assert before <= entry.since <= View(redis_client).state.now
    assert rival.take().pending == (OURS,)


def test_dead_holder(redis_client: redis.Redis, rival: Rival) -> None:
    """What a holder that died was about to do is pending once its lease has ended."""
    lease = take(redis_client, ttl=0.2).nonces[0]
    eventually(lambda: View(redis_client).state.left == 0)
    assert rival.take().pending == (OURS,)
    assert [entry.nonce for entry in pending(redis_client)] == [lease]


def test_dead_holder_before_anybody_asks(redis_client: redis.Redis, rival: Rival) -> None:
    """It is listed and counted once the lease has ended, though nobody has asked for the lock, and looks write nothing.

    It stays the same when the next holder has made it pending.
    """
    lease = take(redis_client).nonces[0]
    ended = move(redis_client, -31)
    written = View(redis_client).everything()
    (entry,) = pending(redis_client)
    assert (entry.nonce, entry.key, entry.method, entry.cl_ord_ids) == (lease, OURS, "AddOrder", ("a-b-c",))
    assert (entry.since, entry.reported, entry.result) == (ended, False, None)
    assert View(redis_client).everything() == written
    rival.take()
    (later,) = pending(redis_client)
    assert replace(later, age=0.0) == replace(entry, age=0.0)


def test_a_running_lease(redis_client: redis.Redis) -> None:
    """What the holder of a lease that runs is about to do isn't listed, nor when the server's clock was set back."""
    take(redis_client)
    assert pending(redis_client) == ()
    move(redis_client, 1000)
    assert pending(redis_client) == ()


def test_dead_holder_cleared_by_hand(redis_client: redis.Redis) -> None:
    """What is listed can be cleared, also before anybody has asked. The holder can't go on then, should it be alive."""
    lease = take(redis_client).nonces[0]
    waiting = run(redis_client, commands.acquire(KEYS, "process:2", 30, ticket=0, priority="normal", pace=""))
    move(redis_client, -31)
    assert not run(redis_client, journal.settle(KEYS, lease + 1, "known"))
    assert len(pending(redis_client)) == 1
    assert run(redis_client, journal.settle(KEYS, lease, "known"))
    assert pending(redis_client) == ()
    assert isinstance(waiting, commands.Waiting)
    assert View(redis_client).state.holder == "process:2"
    assert run(redis_client, commands.extend(KEYS, "process:1", 30)) == "lost"
    assert release(redis_client, lease, known=False) == "lost"
    assert pending(redis_client) == ()


def test_unlocked(redis_client: redis.Redis, view: View) -> None:
    """A lock taken away by hand leaves what its holder was about to do."""
    lease = take(redis_client).nonces[0]
    view.unlock()
    assert [entry.nonce for entry in pending(redis_client)] == [lease]


@pytest.mark.parametrize("known", [True, False])
def test_late(redis_client: redis.Redis, view: View, *, known: bool) -> None:
    """Who hears of its answer after its lease has ended takes its call back from the journal; else it stays."""
    lease = take(redis_client).nonces[0]
    view.unlock()
    assert release(redis_client, lease, known=known) == "lost"
    assert len(pending(redis_client)) == (not known)
    assert release(redis_client, lease, known=known) == "lost"
    assert len(pending(redis_client)) == (not known)


def test_a_repeated_acquire_keeps_the_intent(redis_client: redis.Redis) -> None:
    """An acquire that is sent again after a lost reply gives the same lease and notes nothing twice."""
    lease = take(redis_client).nonces[0]
    assert take(redis_client).nonces[0] == lease
    release(redis_client, lease, known=False)
    release(redis_client, lease, known=False)
    assert len(pending(redis_client)) == 1


def test_next_call_of_a_lease(redis_client: redis.Redis) -> None:
    """Several calls in one lease each have their own intent; the one before is pending if nobody knows its outcome."""
    first = take(redis_client).nonces[0]
    other = journal.intent("0123456789abcdef", "Withdraw", [])
    block = run(redis_client, commands.extend(KEYS, "process:1", 30, other, known=False))
    assert isinstance(block, commands.Extended)
    assert [(entry.nonce, entry.cl_ord_ids) for entry in pending(redis_client)] == [(first, ("a-b-c",))]
    third = run(redis_client, commands.extend(KEYS, "process:1", 30, INTENT, known=True))
    assert isinstance(third, commands.Extended)
    run(redis_client, commands.extend(KEYS, "process:1", 30))
    release(redis_client, third.nonces[0], known=False)
    assert [entry.nonce for entry in pending(redis_client)] == [first, third.nonces[0]]


def test_settled_and_reported(redis_client: redis.Redis, rival: Rival) -> None:
    """A settled call is gone; a reported one stays for people, and no later holder looks at it."""
    leases = []
    for number in range(3):
        member = f"process:{number}"
        leases.append(take(redis_client, member).nonces[0])
        release(redis_client, leases[-1], known=False, member=member)
    assert run(redis_client, journal.settle(KEYS, leases[0], "known"))
    assert not run(redis_client, journal.settle(KEYS, leases[0], "known"))
    assert run(redis_client, journal.settle(KEYS, leases[1], "reported"))
    assert run(redis_client, journal.settle(KEYS, leases[1], "reported"))
    assert [(entry.nonce, entry.reported) for entry in pending(redis_client)] == [(leases[1], True), (leases[2], False)]
    assert rival.take().pending == (OURS,)
    rival.release()
    for lease in leases:
        run(redis_client, journal.settle(KEYS, lease, "known"))
    assert rival.take().pending == ()
    rival.release()
    View(redis_client).assert_nothing_left()


def left_behind(
    client: redis.Redis, *, key: str = OURS, ids: Sequence[str] = ("a-b-c",), member: str = "process:1"
) -> int:
    """Leave a call whose outcome is unknown; return its nonce."""
    lease = take(client, member, intent=journal.intent(key, "AddOrderBatch", ids)).nonces[0]
    release(client, lease, known=False, member=member)
    return lease


@pytest.mark.parametrize(
    ("result", "txids"),
    [("found", ["O-1", "O,2 %-"]), ("partly", ["", "O-2"]), ("partly", ["-", ""]), ("absent", []), ("unknown", [])],
)
def test_result(redis_client: redis.Redis, rival: Rival, result: journal.Result, txids: list[str]) -> None:
    """What became of a call is noted with Kraken's txids, and waits to be told until the entry is removed."""
    nonce = left_behind(redis_client, ids=["one", "two"])
    (new,) = pending(redis_client)
    assert (new.result, new.noted, new.txids) == (None, 0.0, {})
    for _ in range(2):
        assert run(redis_client, journal.settle(KEYS, nonce, result, txids))
        (entry,) = pending(redis_client)
        assert (entry.result, entry.reported) == (result, False)
        assert entry.txids == {name: txid for name, txid in zip(("one", "two"), txids, strict=False) if txid}
        assert 0 <= entry.noted <= entry.age
        unsettled = replace(entry, result=None, noted=0.0, txids={}, age=0.0)
        assert unsettled == replace(new, age=0.0)
    assert run(redis_client, journal.settle(KEYS, nonce, "new"))
    assert pending(redis_client)[0].result == result
    assert rival.take().pending == (OURS,)
    rival.release()
    assert run(redis_client, journal.settle(KEYS, nonce, "reported"))
    (entry,) = pending(redis_client)
    assert (entry.result, entry.reported, entry.txids) == (None, True, {})
    assert run(redis_client, journal.settle(KEYS, nonce, "known"))
    assert pending(redis_client) == ()
    View(redis_client).assert_nothing_left()


@pytest.mark.parametrize("how", ["found", "unknown", "new", "reported", "known"])
def test_gone(redis_client: redis.Redis, view: View, how: journal.Result) -> None:
    """When the call's own release has come meanwhile, nothing is noted and whoever settles it hears that."""
    lease = take(redis_client).nonces[0]
    view.unlock()
    assert len(pending(redis_client)) == 1
    release(redis_client, lease, known=True)
    assert not run(redis_client, journal.settle(KEYS, lease, how, ["O-1"]))
    assert pending(redis_client) == ()
    view.assert_nothing_left()


def test_a_release_after_the_result(redis_client: redis.Redis, view: View) -> None:
    """A call's own release also removes a result that was noted and not told yet."""
    lease = take(redis_client).nonces[0]
    view.unlock()
    assert run(redis_client, journal.settle(KEYS, lease, "found", ["O-1"]))
    release(redis_client, lease, known=True)
    assert pending(redis_client) == ()
    view.assert_nothing_left()


def test_several_keys(redis_client: redis.Redis, rival: Rival) -> None:
    """Of several API keys under one lock, each holder hears which of them have calls to settle."""
    ours = [left_behind(redis_client, member=f"process:{number}") for number in range(2)]
    theirs = left_behind(redis_client, key=OTHERS)
    assert set(rival.take().pending) == {OURS, OTHERS}
    rival.release()
    run(redis_client, journal.settle(KEYS, theirs, "reported"))
    for nonce in ours:
        assert rival.take().pending == (OURS,)
        rival.release()
        run(redis_client, journal.settle(KEYS, nonce, "known"))
    assert rival.take().pending == ()


def test_very_many_keys(redis_client: redis.Redis, rival: Rival) -> None:
    """When there are more API keys than the field has room for, all are told to look, and the lock goes on working."""
    entries = {f"pending:{10**18 + number}": f"5 new {number:016} AddOrder -" for number in range(600)}
    redis_client.hset(KEYS.state, mapping=entries)
    run(redis_client, journal.recount(KEYS))
    assert len(pending(redis_client)) == 600
    keys = rival.take().pending
    assert commands.ANY_KEY in keys
    assert len(keys) > 300
    rival.release()
    left_behind(redis_client)
    assert commands.ANY_KEY in rival.take().pending


@pytest.mark.parametrize("count", [b"3", b"2 0123456789abcdef:2", b"1 fedcba9876543210:1"])
def test_a_count_without_entries(redis_client: redis.Redis, rival: Rival, count: bytes) -> None:
    """A count that has lost its entries, or has no API keys as in an older state, is right after the next look."""
    redis_client.hset(KEYS.state, "pending", count)
    told = rival.take().pending
    assert told in {(OURS,), (OTHERS,), (commands.ANY_KEY,)}
    assert not run(redis_client, journal.recount(KEYS))
    rival.release()
    assert rival.take().pending == ()
    assert not redis_client.hexists(KEYS.state, "pending")


def test_entries_without_a_count(redis_client: redis.Redis, rival: Rival) -> None:
    """So is one that was removed: the next change of the journal finds the entries again."""
    left_behind(redis_client)
    redis_client.hdel(KEYS.state, "pending")
    left_behind(redis_client, key=OTHERS)
    assert len(pending(redis_client)) == 2
    assert set(rival.take().pending) == {OURS, OTHERS}


@pytest.mark.parametrize("cl_ord_id", ["-", "a b", "a,b", "100%", "%2C", "é", "x" * 36])
def test_any_id(redis_client: redis.Redis, cl_ord_id: str) -> None:
    """Whatever a caller takes for an id comes back as it was."""
    lease = take(redis_client, intent=journal.intent("k", "Earn/Allocate", [cl_ord_id, "other"])).nonces[0]
    release(redis_client, lease, known=False)
    (entry,) = pending(redis_client)
    assert (entry.method, entry.cl_ord_ids) == ("Earn/Allocate", (cl_ord_id, "other"))


def test_reading_calls_note_nothing(redis_client: redis.Redis) -> None:
    """A call without an intent leaves none, whatever becomes of it."""
    lease = take(redis_client, intent="").nonces[0]
    release(redis_client, lease, known=False)
    assert pending(redis_client) == ()
