"""Nothing that arrives late may harm: copies of commands that the network delivers after later ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis import StoreUnavailable
from kraken_nonce_redis._redis import commands
from tests.support.helpers import KEYS, Rival, View, eventually, run
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    import redis

    from kraken_nonce_redis._redis.commands import Answer, Extended
    from tests.conftest import MakeProxy
    from tests.support.faces import Face
    from tests.support.servers import Server

MEMBER = "process:1.aa"


def ask(client: redis.Redis, member: str = MEMBER, ticket: int | None = None) -> Answer:
    """Ask for the lock."""
    return run(client, commands.acquire(KEYS, member, 30.0, ticket=ticket, priority="normal", pace=""))


def extend(client: redis.Redis, seconds: float, number: int, *, replace: bool = False) -> Extended | str:
    """Extend the lease."""
    return run(client, commands.extend(KEYS, MEMBER, seconds, number=number, replace=replace))


def test_an_extension_after_a_later_one(redis_client: redis.Redis) -> None:
    """A copy of an extension that arrives after a later one of the same lease changes nothing."""
    view = View(redis_client)
    assert isinstance(ask(redis_client), commands.Granted)
    assert isinstance(extend(redis_client, 2.8, 1, replace=True), commands.Extended)
    assert isinstance(extend(redis_client, 62, 2, replace=True), commands.Extended)
    before = view.everything()
    assert extend(redis_client, 2.8, 1, replace=True) == "late"
    assert view.everything() == before
    assert isinstance(extend(redis_client, 62, 2), commands.Extended), "the latest one may run twice"


def test_which_end_counts(redis_client: redis.Redis) -> None:
    """An extension keeps a later end, unless it replaces it."""
    assert isinstance(ask(redis_client), commands.Granted)
    for number, (seconds, replace, end) in enumerate([(60, False, 60), (5, False, 60), (5, True, 5), (8, False, 8)]):
        extended = extend(redis_client, seconds, number, replace=replace)
        assert isinstance(extended, commands.Extended)
        assert end - 1 < extended.left <= end
        assert end - 1 < View(redis_client).state.left <= end


@pytest.mark.parametrize("had", ["the lock", "a place", "nothing"])
def test_a_request_after_its_release(redis_client: redis.Redis, rival: Rival, had: str) -> None:
    """A request for the lock that arrives after its member has left gets neither the lock nor a place."""
    view = View(redis_client)
    member = f"{MEMBER}:a token with spaces"
    if had == "a place":
        rival.take()
    if had != "nothing":
        ask(redis_client, member, ticket=0)
    run(redis_client, commands.release(KEYS, member, late=True))
    for ticket in (None, 0, 1):
        assert ask(redis_client, member, ticket) == commands.Busy(0.0, "gone")
    assert not view.waiting
    assert view.state.holder == (rival.member() if had == "a place" else "")
    assert isinstance(ask(redis_client, "process:1.ab", ticket=0), commands.Granted | commands.Waiting)


def test_how_many_are_remembered(redis_client: redis.Redis) -> None:
    """Redis remembers the latest 64 members that a request may still come from."""
    for number in range(100):
        run(redis_client, commands.release(KEYS, f"process:{number}.a", late=True))
    assert isinstance(ask(redis_client, "process:35.a"), commands.Granted)
    run(redis_client, commands.release(KEYS, "process:35.a"))
    assert ask(redis_client, "process:36.a") == commands.Busy(0.0, "gone")
    assert ask(redis_client, "process:99.a") == commands.Busy(0.0, "gone")


def test_what_is_sent_once_leaves_no_trace(face: Face, valkey: Server) -> None:
    """Members whose requests went out once, over one connection, are not remembered."""
    view, lock = View(valkey.client()), face.lock(face.client(valkey))
    for _ in range(3):
        with lock.hold():
            pass
    view.until_free()
    assert not view.client.hexists(KEYS.state, "gone")


def test_a_request_whose_connection_was_given_up(face: Face, valkey: Server, proxy: MakeProxy) -> None:
    """The member of a caller that had to give up is remembered, whether or not its request has arrived."""
    view, way = View(valkey.client()), proxy(valkey)
    lock = face.lock(face.client_at(f"{way.url}?socket_timeout=0.3"))
    with lock.hold():
        pass
    way.black_hole()
    with pytest.raises(StoreUnavailable):
        lock.acquire()
    way.heal()
    eventually(lambda: view.client.hexists(KEYS.state, "gone"))
    with lock.hold(5):
        pass


def test_renewal_keeps_a_later_end(face: Face, valkey: Server) -> None:
    """A lease that was extended past its ttl keeps that end when it is renewed in the background."""
    view = View(valkey.client())
    with face.lock(face.client(valkey), ttl=1).hold(auto_renew=True) as lease:
        lease.extend(120)
        newest = view.state.last
        eventually(lambda: view.state.last != newest)
        assert view.state.left > 100
        assert lease.remaining() > 100


@pytest.mark.test_all
def test_renewal_keeps_to_what_replaced_the_ttl(face: Face, valkey: Server) -> None:
    """After a shorter end was set, the lease is renewed for that length, in time."""
    view, lock = View(valkey.client()), face.lock(face.client(valkey), ttl=60)
    seconds = by_tier(1.0, 3.0, 10.0)
    with lock.hold(auto_renew=True) as lease:
        lock.extend(1, replace_ttl=True)
        until = time.monotonic() + 1.5 + seconds
        while time.monotonic() < until:
            assert 0 < view.state.left <= 1
            time.sleep(0.05)
        assert not lease.lost
        lock.reacquire()
        assert 59 < view.state.left <= 60
