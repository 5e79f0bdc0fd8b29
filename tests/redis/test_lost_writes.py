"""Neither lost writes, as after a failover, nor waiters that nobody hears hold up the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis._core.waiters import OFFER
from kraken_nonce_redis._redis import commands
from tests.support.helpers import KEYS, Rival, Stopwatch, View, eventually, run

if TYPE_CHECKING:
    import redis

    from tests.support.faces import Face
    from tests.support.servers import Server

SOON = 1.0
"""Seconds after a failover in which the next holder has the lock."""


class Failover:
    """What a server held at a moment, to go back to it."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._before = {key: (client.pttl(key), client.dump(key)) for key in (KEYS.state, KEYS.queue)}

    def go_back(self) -> None:
        """Hold what was held then, and end all connections but this one's."""
        for key, (ttl, dump) in self._before.items():
            self._client.delete(key)
            if dump:
                self._client.restore(key, max(ttl, 0), dump)
        self._client.client_kill_filter(skipme=True)


@pytest.fixture
def client(valkey: Server) -> redis.Redis:
    """Look into the server."""
    client = valkey.client()
    client.ping()
    return client


@pytest.mark.parametrize("then", ["busy", "waiting"])
def test_a_lock_that_was_released(face: Face, valkey: Server, client: redis.Redis, then: str) -> None:
    """The lock of a holder that lives and has released is given back when its process has a connection again."""
    process = face.client(valkey)
    view, lock = View(client), face.lock(process)
    with lock.hold():
        failover = Failover(client)
        holder = view.state.holder
    view.until_free()
    failover.go_back()
    watch = Stopwatch()
    assert view.state.holder == holder
    if then == "waiting":
        with lock.hold(5):
            pass
    else:
        with face.lock(process, "another key").hold(5):
            pass
    eventually(lambda: isinstance(Rival(client).ask(ticket=None), commands.Granted), 5)
    assert watch() < SOON


def test_a_lock_that_went_back_unnoticed(face: Face, valkey: Server, client: redis.Redis) -> None:
    """One whose process keeps its connections gives it back when it waits and finds itself named."""
    view, lock = View(client), face.lock(face.client(valkey))
    with lock.hold():
        failover = Failover(client)
    view.until_free()
    failover._client.restore(KEYS.state, 0, failover._before[KEYS.state][1], replace=True)  # type: ignore[arg-type]
    watch = Stopwatch()
    with lock.hold(10):
        assert watch() < 2.5, "the heartbeat names it"


def test_waiters_that_were_served(face: Face, valkey: Server, client: redis.Redis) -> None:
    """A queue with waiters that were served, or have left, costs the others no offer."""
    process = face.client(valkey)
    view, lock, rival = View(client), face.lock(process), Rival(client)
    rival.take()
    callers = [face.start(_hold, lock) for _ in range(5)]
    view.until_waiting(5)
    failover = Failover(client)
    rival.release()
    for caller in callers:
        caller.result()
    view.until_free()
    failover.go_back()
    another = Rival(client)
    another.queue_up()
    with face.lock(process, "another key").hold(5):
        pass  # its process has a connection again
    watch = Stopwatch()
    rival.release()
    eventually(lambda: view.state.holder == another.member(), 5)
    assert watch() < SOON < OFFER


def _hold(lock: object) -> None:
    with lock.hold(30):  # type: ignore[attr-defined]
        pass


# Waiters that nobody hears.


def test_a_passed_waiter(redis_client: redis.Redis, view: View, rival: Rival) -> None:
    """One whose process was counted and no longer is costs the next one nothing, and is the next when it asks again."""
    rival.take()
    silent, other, last = (Rival(redis_client) for _ in range(3))
    asked = silent.ask(heard="1")
    assert isinstance(asked, commands.Waiting)
    silent.queue_up(2)
    other.queue_up()
    last.queue_up()
    rival.release()
    assert view.state.holder == other.member()
    assert silent.live().joined == "-", "its process hears with a heartbeat that it has to ask again"
    again = silent.ask(ticket=asked.ticket)
    assert isinstance(again, commands.Waiting)
    other.release()
    assert view.state.holder == silent.member()
    assert view.state.left > OFFER


def test_the_other_places_of_a_passed_waiter(redis_client: redis.Redis, view: View, rival: Rival) -> None:
    """A heartbeat alone keeps the places that the process still has."""
    rival.take()
    silent, other = Rival(redis_client), Rival(redis_client)
    silent.ask(heard="1")
    other.queue_up()
    silent.ask(2)
    rival.release()
    assert view.state.holder == other.member()
    silent.live(2)
    other.release()
    assert view.state.holder == silent.member(2)


@pytest.mark.parametrize("heard", ["0", "?"])
def test_nobody_is_passed_on_a_guess(
    redis_client: redis.Redis, view: View, rival: Rival, heard: commands.Heard
) -> None:
    """PUBLISH counts only for a process of which it was seen to be right: behind a proxy it may never be."""
    rival.take()
    first, second = Rival(redis_client), Rival(redis_client)
    asked = first.ask(heard=heard)
    assert isinstance(asked, commands.Waiting)
    assert not asked.heard
    second.queue_up()
    rival.release()
    assert view.state.holder == first.member()


def test_who_is_counted(face: Face, valkey: Server, client: redis.Redis) -> None:
    """A process that waits says that it is counted; a lost subscription makes it try anew."""
    view, rival = View(client), Rival(client)
    rival.take()
    caller = face.start(_hold, face.lock(face.client(valkey)))
    counted = eventually(lambda: client.zrangebyscore(KEYS.queue, 4e15, 4e15))
    assert counted == [b"=" + run(client, commands.inspect(KEYS, "waiters")).waiters[0].member.split(":")[0].encode()]
    client.client_kill_filter(_type="pubsub")
    rival.release()
    caller.result()
    view.assert_nothing_left()


def test_a_holder_is_never_judged_by_it(redis_client: redis.Redis, view: View, rival: Rival) -> None:
    """Nobody gets the lock of a holder, or of one that is booked, because nobody hears its process."""
    holder, other = Rival(redis_client), Rival(redis_client)
    rival.take()
    asked = holder.ask(heard="1")
    assert isinstance(asked, commands.Waiting)
    redis_client.zrem(KEYS.queue, "=" + holder.process)  # as if it had listened at this moment
    rival.release()
    assert isinstance(holder.ask(ticket=asked.ticket, heard="1"), commands.Granted)
    other.queue_up()
    for _ in range(3):
        other.live()
    assert view.state.holder == holder.member()
