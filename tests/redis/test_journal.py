"""The intent journal in Redis: what a holder was about to do stays there until somebody knows what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis._redis import commands
from tests.support.helpers import KEYS, Rival, View, eventually, run

if TYPE_CHECKING:
    import redis

    from kraken_nonce_redis._redis.commands import Granted, Pending

pytestmark = pytest.mark.matrix

INTENT = commands.intent("0123456789abcdef", "AddOrder", ["a-b-c"])


def take(client: redis.Redis, member: str = "process:1", *, ttl: float = 30.0, intent: str = INTENT) -> Granted:
    """Take the lock with an intent."""
    command = commands.acquire(KEYS, member, ttl, ticket=None, priority="normal", pace="", intent=intent)
    answer = run(client, command)
    assert isinstance(answer, commands.Granted), answer
    return answer


def pending(client: redis.Redis) -> tuple[Pending, ...]:
    """Return what is pending; the number that the state shows is that of the new ones."""
    entries = run(client, commands.pending(KEYS))
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
    assert (entry.key, entry.reported) == ("0123456789abcdef", False)
    assert before <= entry.since <= View(redis_client).state.now
    assert rival.take().pending == 1


def test_dead_holder(redis_client: redis.Redis, rival: Rival) -> None:
    """What a holder that died was about to do is pending once its lease has ended."""
    lease = take(redis_client, ttl=0.2).nonces[0]
    eventually(lambda: View(redis_client).state.left == 0)
    assert rival.take().pending == 1
    assert [entry.nonce for entry in pending(redis_client)] == [lease]


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
    other = commands.intent("0123456789abcdef", "Withdraw", [])
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
    assert run(redis_client, commands.settle(KEYS, leases[0], "known"))
    assert not run(redis_client, commands.settle(KEYS, leases[0], "known"))
    assert run(redis_client, commands.settle(KEYS, leases[1], "reported"))
    assert run(redis_client, commands.settle(KEYS, leases[1], "reported"))
    assert [(entry.nonce, entry.reported) for entry in pending(redis_client)] == [(leases[1], True), (leases[2], False)]
    assert rival.take().pending == 1
    rival.release()
    for lease in leases:
        run(redis_client, commands.settle(KEYS, lease, "known"))
    assert rival.take().pending == 0
    rival.release()
    View(redis_client).assert_nothing_left()


@pytest.mark.parametrize("cl_ord_id", ["-", "a b", "a,b", "100%", "%2C", "é", "x" * 36])
def test_any_id(redis_client: redis.Redis, cl_ord_id: str) -> None:
    """Whatever a caller takes for an id comes back as it was."""
    lease = take(redis_client, intent=commands.intent("k", "Earn/Allocate", [cl_ord_id, "other"])).nonces[0]
    release(redis_client, lease, known=False)
    (entry,) = pending(redis_client)
    assert (entry.method, entry.cl_ord_ids) == ("Earn/Allocate", (cl_ord_id, "other"))


def test_reading_calls_note_nothing(redis_client: redis.Redis) -> None:
    """A call without an intent leaves none, whatever becomes of it."""
    lease = take(redis_client, intent="").nonces[0]
    release(redis_client, lease, known=False)
    assert pending(redis_client) == ()
