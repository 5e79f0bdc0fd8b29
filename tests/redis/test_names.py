"""Who holds the lock, who waits and who left a call pending: their names, for people."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import _process
from kraken_nonce_redis._core.names import LONGEST, VARIABLE
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._redis.words import word
from kraken_nonce_redis.errors import InvalidArgument
from tests.support.faces import KEY
from tests.support.helpers import KEYS, Rival, View, eventually, fails, run

if TYPE_CHECKING:
    import redis

    from kraken_nonce_redis import CallLock
    from tests.support.faces import Face
    from tests.support.servers import AnyServer, Server

DEFAULT = f"{socket.gethostname()}:{os.getpid()}"


def look(client: redis.Redis) -> commands.State:
    """Return the state with the waiters."""
    return run(client, commands.inspect(KEYS, "waiters"))


def holder(client: redis.Redis) -> commands.Place:
    """Return who has the lock."""
    place = look(client).place
    assert place is not None
    return place


def wait(lock: CallLock, priority: Any) -> None:
    """Wait for the lock and leave it."""
    with lock.hold(30, priority=priority):
        pass


def test_the_holder(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """A holder has its lock's name, or that of its process, and the times since it asked and got the lock."""
    client = face.client(server)
    for name, seen in (("a bot: №1 | west", "a bot: №1 | west"), (None, DEFAULT)):
        with face.lock(client, name=name).hold() as lease:
            place = holder(redis_client)
            assert (place.name, place.method) == (seen, "")
            assert 0 <= place.held <= place.asked < 10
            lease.extend(5)
            assert holder(redis_client).held >= place.held, "an extension is no new lease"
            assert holder(redis_client).name == seen


def test_the_waiters(face: Face, valkey: Server) -> None:
    """Waiters are listed in their order, each with its name, priority and since when it waits."""
    client, rival = valkey.client(), Rival(valkey.client())
    rival.take()
    callers = []
    for number, priority in enumerate(["normal", "normal", "high"], 1):
        lock = face.lock(face.client(valkey), name=f"bot {number}")
        callers.append(face.start(wait, lock, priority))
        View(client).until_waiting(number)
    waiters = look(client).waiters
    assert [(each.name, each.priority) for each in waiters] == [
        ("bot 3", "high"),
        ("bot 1", "normal"),
        ("bot 2", "normal"),
    ]
    assert 10 > waiters[1].asked >= waiters[2].asked >= waiters[0].asked >= 0
    assert all(each.held == 0 for each in waiters)
    waited = eventually(lambda: [each for each in look(client).waiters if each.name == "bot 1" and each.asked > 0.05])
    rival.release()
    for caller in callers:
        caller.result()
    assert waited


def test_since_when_one_that_waited_holds(redis_client: redis.Redis) -> None:
    """A holder that has waited keeps the time when it began to, also when its lease is extended."""
    first, second = Rival(redis_client), Rival(redis_client)
    first.take()
    ticket = second.queue_up()
    first.release()
    eventually(lambda: holder(redis_client).asked > 0.05)
    second.ask(ticket=ticket)
    for _ in range(2):
        place = holder(redis_client)
        assert place.asked - place.held > 0.04
        second.extend(20)


def test_at_most_a_hundred(redis_client: redis.Redis) -> None:
    """The first hundred waiters are listed, and all are counted."""
    rival = Rival(redis_client)
    rival.take()
    for number in range(120):
        rival.queue_up(number + 2)
    state = look(redis_client)
    assert state.waiting == 120
    assert [each.member for each in state.waiters] == [rival.member(number + 2) for number in range(100)]
    assert run(redis_client, commands.inspect(KEYS)).waiters == ()


def test_a_pending_call(redis_client: redis.Redis) -> None:
    """A pending call has the name of its holder, also when somebody has noted what became of it."""
    rival = Rival(redis_client)
    intent = journal.intent(KEYS.tag, "AddOrder", ["an-id"]) + " " + word("bot 1")
    granted = run(
        redis_client, commands.acquire(KEYS, rival.member(), 30, ticket=0, priority="normal", pace="", intent=intent)
    )
    assert isinstance(granted, commands.Granted)
    run(redis_client, commands.release(KEYS, rival.member(), granted.nonces[0], granted.nonces[0], known=False))
    for how in ("new", "found", "reported"):
        run(redis_client, journal.settle(KEYS, granted.nonces[0], how, ["O-1"] if how == "found" else ()))
        (entry,) = run(redis_client, journal.pending(KEYS))
        assert (entry.name, entry.method, entry.cl_ord_ids) == ("bot 1", "AddOrder", ("an-id",))


def test_the_environment(
    face: Face, server: AnyServer, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable names the process; a lock's own name comes first."""
    monkeypatch.setenv(VARIABLE, "from the environment")
    _process.current().name = ""
    client = face.client(server)
    for name, seen in (("mine", "mine"), (None, "from the environment")):
        with face.lock(client, name=name).hold():
            assert holder(redis_client).name == seen


@pytest.mark.parametrize("name", ["", "  ", "x" * (LONGEST + 1), "two\nlines", "\u200b", 5, f"bot of {KEY}"])
def test_bad_names(face: Face, server: AnyServer, monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    """A name that can't be shown, is too long or holds the API key is an error where the lock is made."""
    client = face.client(server)
    with fails(InvalidArgument, "name"):
        face.lock(client, name=name)
    if isinstance(name, str):
        monkeypatch.setenv(VARIABLE, name)
        with fails(InvalidArgument, VARIABLE):
            face.lock(client)
