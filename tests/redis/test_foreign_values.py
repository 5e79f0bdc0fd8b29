"""Fields with values that this library did not write: an error that names them, and a way to be rid of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import ForeignValue
from kraken_nonce_redis._redis import commands, journal
from tests.support.faces import KEY
from tests.support.helpers import KEYS, Rival, View, fails, run

if TYPE_CHECKING:
    import redis

    from kraken_nonce_redis._redis.command import Command
    from tests.support.faces import Face
    from tests.support.servers import AnyServer, Server

NONCE = 1_700_000_000_000_000_000
EVERYWHERE: dict[str, bytes] = {
    "empty": b"",
    "a word": b"theirs",
    "JSON": b'{"holder": "me", "since": 5}',
    "binary": b"\xff\xfe\x00 \xf0(\x8c(",
    "very long": b"9" * 1_000_000,
    "negative": b"-5 -5 -5 -5 -5",
    "a float": b"1.5",
}
"""Values that are wrong in every field."""
WRONG: dict[str, list[bytes]] = {
    "lock": [
        b"- 1 2 3 no-colon",
        b"- 1 2 3 \xff:1",
        b"- 1 2 3",
        b"x 1 2 3 p:1",
        b"-5 1 2 3 p:1",
        b"~x 1 2 3 p:1",
        b"~" + b"5" * 17 + b" 1 2 3 p:1",
        b"0 1 2 3 p:1",
        b"9999999999999999999 1 2 3 p:1",
        b"- " + b"1" * 17 + b" 2 3 p:1",
        b"- 1 " + b"2" * 400 + b" 3 p:1",
        b"- 1 2 " + b"3" * 17 + b" p:1",
        b"- 1.0 2 3 p:1",
    ],
    "pace": [b"1 2", b"1 2 x", b"1 2 3\x00", b"1 2 3" + b" 4" * 10_000],
    "cool_down": [b"1 2", b"x 2 why", b"1 " + b"9" * 17 + b" why", b"1 -2 why"],
    "intent": [b"5 key method", b"0 key method -", b"9223372036854775808 key method -", b"5 key method - name more"],
    "pending": [b"1 2", b"9" * 17, b"1 key:", b"1 key:x", b"1  key:1", b"1 key:1 ", b"1" + b" key:1" * 2000],
    "ticket": [b"1 2", b"9" * 17],
    "overtaken": [b"1 2", b"9" * 17],
    "gone": [b"process", b" p:1", b":1"],
}
"""Values that are nearly right. For ``gone`` that of a list of members, which the scripts only search."""
FIELDS = pytest.mark.parametrize("field", WRONG)


def values(field: str) -> list[bytes]:
    """Return the wrong values of a field."""
    return [*EVERYWHERE.values(), *WRONG[field]]


def write(client: redis.Redis, field: str, value: bytes) -> None:
    """Put a value into a state that is ours otherwise."""
    client.hsetnx(KEYS.state, "nonce", f"2:{NONCE}")
    client.hset(KEYS.state, field, value)


def refused(field: str, command: Command[Any], client: redis.Redis) -> ForeignValue:
    """Run a command that must say which field holds what it can't read."""
    before = View(client).everything()
    with fails(ForeignValue, KEYS.state, repr(field), "namespace") as caught:
        run(client, command)
    assert caught.value.field == field
    assert caught.value.key == KEYS.state
    assert len(str(caught.value)) < 500
    assert View(client).everything() == before
    return caught.value


@FIELDS
def test_every_script_says_so(redis_client: redis.Redis, field: str) -> None:
    """A script that looks at the lock names the field, whichever it is, and never takes the lock for free."""
    for value in values(field):
        redis_client.delete(KEYS.state, KEYS.queue)
        write(redis_client, field, value)
        for ticket in (None, 0):
            for priority in ("normal", "high"):
                asks = commands.acquire(KEYS, "process:1", 30, ticket=ticket, priority=priority, pace="")  # type: ignore[arg-type]
                refused(field, asks, redis_client)
        for command in (
            commands.inspect(KEYS),
            commands.heartbeat(KEYS, "process", "process:1"),
            commands.extend(KEYS, "process:1", 5),
            commands.cool_down(KEYS, 5, "reason"),
            journal.settle(KEYS, NONCE, "known"),
        ):
            assert repr(value[:20].decode("utf-8", "backslashreplace"))[1:10] in str(
                refused(field, command, redis_client)
            )
        # Nonces alone need no lock.
        assert run(redis_client, commands.reserve(KEYS, 1))[0] > NONCE


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}], ids=["bytes", "decoded"])
@pytest.mark.parametrize("field", WRONG)
def test_callers_hear_it(face: Face, server: AnyServer, redis_client: redis.Redis, field: str, options: Any) -> None:
    """The library's objects raise it, also with a client that decodes what it can't."""
    write(redis_client, field, EVERYWHERE["binary"])
    before = View(redis_client).everything()
    lock = face.lock(face.client(server, **options))
    for call in (lock.acquire, lock.locked, lambda: lock.acquire(blocking=False)):
        with fails(ForeignValue, KEYS.state, field, r"\\xff\\xfe") as caught:
            call()
        assert caught.value.field == field
    assert View(redis_client).everything() == before


# Repairs.


def test_unlock_removes_a_lock(redis_client: redis.Redis) -> None:
    """`unlock` removes a lock that nobody can read, and only that: with a member's name it changes nothing."""
    for value in values("lock"):
        redis_client.delete(KEYS.state, KEYS.queue)
        write(redis_client, "lock", value)
        assert not run(redis_client, commands.unlock(KEYS, "p:1"))
        assert run(redis_client, commands.unlock(KEYS, ""))
        assert not run(redis_client, commands.unlock(KEYS, ""))
        assert Rival(redis_client).take()
        assert not run(redis_client, commands.unlock(KEYS, ""))


@pytest.mark.parametrize("field", sorted(WRONG.keys() - {"lock"}))
def test_unlock_beside_another_field(redis_client: redis.Redis, field: str) -> None:
    """The lock is shown and can be freed whatever the other fields hold."""
    rival = Rival(redis_client)
    rival.take()
    write(redis_client, field, EVERYWHERE["binary"])
    state = run(redis_client, commands.inspect(KEYS, "lock"))
    assert state.holder == rival.member()
    assert run(redis_client, commands.unlock(KEYS, state.holder))
    assert not redis_client.hexists(KEYS.state, "lock")
    assert redis_client.hget(KEYS.state, field) == EVERYWHERE["binary"]


@FIELDS
def test_ending_a_cool_down(redis_client: redis.Redis, field: str) -> None:
    """A cool-down can be ended whatever the fields hold, its own too, and nothing else is changed."""
    for value in values(field):
        redis_client.delete(KEYS.state, KEYS.queue)
        if field != "cool_down":
            run(redis_client, commands.cool_down(KEYS, 60, "reason"))
        write(redis_client, field, value)
        expected = "a value that is not ours" if field == "cool_down" else "reason"
        assert run(redis_client, commands.end_cool_down(KEYS)) == expected
        assert run(redis_client, commands.cool_down(KEYS, 0, "")) == 0
        assert not redis_client.hexists(KEYS.state, "cool_down")
        assert field == "cool_down" or redis_client.hget(KEYS.state, field) == value


@FIELDS
def test_resetting_the_startup(redis_client: redis.Redis, field: str) -> None:
    """`reset_startup` works whatever the fields hold, and removes a pace that nobody can read."""
    for value in values(field):
        redis_client.delete(KEYS.state, KEYS.queue)
        if field != "pace":
            redis_client.hset(KEYS.state, "pace", "5 6 7 8")
        write(redis_client, field, value)
        run(redis_client, commands.reset_startup(KEYS))
        assert redis_client.hget(KEYS.state, "pace") == (None if field == "pace" else b"5 0 7")
        assert field == "pace" or redis_client.hget(KEYS.state, field) == value


@pytest.mark.parametrize("field", sorted(WRONG.keys() - {"lock", "cool_down", "pace"}))
def test_removing_a_field(redis_client: redis.Redis, field: str) -> None:
    """For the other fields the error names the command, and after it the lock can be had."""
    write(redis_client, field, b"theirs")
    asks = commands.acquire(KEYS, "process:1", 30, ticket=None, priority="normal", pace="")
    remedy = f"HSET {KEYS.state} pending 1" if field == "pending" else f"HDEL {KEYS.state} {field}"
    assert f" with {remedy}" in str(refused(field, asks, redis_client))
    redis_client.execute_command(*remedy.split())
    assert isinstance(run(redis_client, asks), commands.Granted)


# The journal.


@pytest.mark.parametrize(
    "entry",
    [
        *EVERYWHERE.values(),
        b"5 new key method",
        b"5 new key method - name more",
        b"5 5 key method -",
        b"9" * 17 + b" new k m -",
        b"5 sold key method -",
        b"5 sold key method - name 6 O-1",
        b"5 new key method - name 6 -",
        b"5 reported key method - name 6 -",
        b"5 found key method - name",
        b"5 found key method - name x O-1",
        b"5 found key method - name 6 O-1 more",
        b"5 found key method - name " + b"9" * 17 + b" O-1",
    ],
    ids=lambda entry: repr(entry[:10]),
)
def test_a_pending_call(redis_client: redis.Redis, entry: bytes) -> None:
    """A pending call that nobody can read is named, and neither settled nor removed; the lock can be had."""
    name = f"pending:{NONCE}"
    write(redis_client, name, entry)
    redis_client.hset(KEYS.state, "pending", 1)
    for command in (
        journal.pending(KEYS),
        journal.settle(KEYS, NONCE, "known"),
        journal.settle(KEYS, NONCE, "reported"),
        journal.settle(KEYS, NONCE, "found", ["O-1"]),
    ):
        refused(name, command, redis_client)
    run(redis_client, commands.release(KEYS, "process:1", NONCE, NONCE))
    assert redis_client.hget(KEYS.state, name) == entry
    assert Rival(redis_client).take()


@pytest.mark.parametrize("name", ["pending:", "pending:x", "pending:05", "pending:9223372036854775808"])
def test_a_pending_call_with_no_nonce(redis_client: redis.Redis, name: str) -> None:
    """So is one whose name is not a nonce's."""
    write(redis_client, name, b"5 new key method -")
    refused(name, journal.pending(KEYS), redis_client)


def test_an_intent_that_may_be_pending(redis_client: redis.Redis) -> None:
    """The list names an intent that nobody can read, and a lock that may be its; other fields don't matter to it."""
    for value in values("intent"):
        redis_client.delete(KEYS.state)
        write(redis_client, "intent", value)
        refused("intent", journal.pending(KEYS), redis_client)
    for value in values("lock"):
        redis_client.delete(KEYS.state)
        write(redis_client, "lock", value)
        assert run(redis_client, journal.pending(KEYS)) == ()
        write(redis_client, "intent", b"5 key method -")
        refused("lock", journal.pending(KEYS), redis_client)
    for field in WRONG.keys() - {"lock", "intent"}:
        for value in values(field):
            redis_client.delete(KEYS.state)
            write(redis_client, "intent", b"5 key method -")
            write(redis_client, field, value)
            assert len(run(redis_client, journal.pending(KEYS))) == 1


# Other types.


def test_a_queue_of_another_type(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """The error names the key of the queue, for those who look, wait or ask while it is free."""
    redis_client.set(KEYS.queue, "something")
    lock = face.lock(face.client(server))
    for call in (lock.acquire, lock.locked, lambda: lock.cool_down(5, "reason")):
        with fails(ForeignValue, KEYS.queue, "DEL") as caught:
            call()
        assert caught.value.key == KEYS.queue
    assert redis_client.get(KEYS.queue) == b"something"
    redis_client.delete(KEYS.queue)
    with lock.hold(timeout=1):
        pass


def test_a_state_of_another_type(server: AnyServer, redis_client: redis.Redis) -> None:
    """Every script names the key of the state and that it can be removed."""
    redis_client.set(KEYS.state, "something")
    for command in (
        commands.acquire(KEYS, "process:1", 30, ticket=0, priority="normal", pace=""),
        commands.release(KEYS, "process:1", 5),
        commands.unlock(KEYS, ""),
        commands.reset_startup(KEYS),
        commands.ping(KEYS),
        commands.cool_down(KEYS, 0, ""),
    ):
        with fails(ForeignValue, KEYS.state, "DEL"):
            run(redis_client, command)
    assert redis_client.get(KEYS.state) == b"something"


# Release, which frees the lock whatever else is there.


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("field", sorted(WRONG.keys() - {"lock"}))
def test_release_beside_another_field(redis_client: redis.Redis, field: str, known: bool) -> None:  # noqa: FBT001
    """The lock is freed whatever the other fields hold, with a high and a normal waiter in the queue."""
    for value in values(field):
        redis_client.delete(KEYS.state, KEYS.queue)
        first = _held_with_waiters(redis_client)
        write(redis_client, field, value)
        assert run(redis_client, commands.release(KEYS, "process:1", first, known=known)) == "released"
        held: Any = redis_client.hget(KEYS.state, "lock")
        assert held is None or held.startswith(b"- ")
        assert redis_client.hget(KEYS.state, field) == value


@pytest.mark.parametrize("force", [False, True], ids=["release", "unlock"])
def test_release_beside_a_queue_of_another_type(redis_client: redis.Redis, force: bool) -> None:  # noqa: FBT001
    """The lock is freed though the queue can't be read."""
    granted = Rival(redis_client)
    granted.take()
    redis_client.set(KEYS.queue, "something")
    if force:
        assert run(redis_client, commands.unlock(KEYS, granted.member()))
    else:
        assert granted.release() == "released"
    assert not redis_client.hexists(KEYS.state, "lock")


@pytest.mark.parametrize("force", [False, True], ids=["release", "unlock"])
def test_release_out_of_memory(real_server: Server, force: bool) -> None:  # noqa: FBT001
    """A server that is out of memory frees the lock with a high and a normal waiter, and offers it to the high one."""
    client = real_server.client()
    first = _held_with_waiters(client)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    if force:
        assert run(client, commands.unlock(KEYS, "process:1"))
    else:
        assert run(client, commands.release(KEYS, "process:1", first)) == "released"
    assert View(client).state.holder == "waiter:2"


def _held_with_waiters(client: redis.Redis) -> int:
    """Let one hold the lock, with an intent, and two wait, of whom the later has a high priority."""
    held = commands.acquire(
        KEYS, "process:1", 30, ticket=0, priority="normal", pace="", intent=journal.intent(KEY[:4], "AddOrder", ["a"])
    )
    granted = run(client, held)
    assert isinstance(granted, commands.Granted)
    for number, priority in ((1, "normal"), (2, "high")):
        run(client, commands.acquire(KEYS, f"waiter:{number}", 30, ticket=0, priority=priority, pace=""))  # type: ignore[arg-type]
    return granted.nonces[0]
