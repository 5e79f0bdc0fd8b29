"""What the first nonce after lost state is, exactly, and which losses a caller can't make up for: docs/faults.md."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis._redis import commands
from tests.support.helpers import KEYS, SECOND, as_stored, eventually, run

if TYPE_CHECKING:
    import redis

    from tests.support.servers import Server

pytestmark = pytest.mark.once


@pytest.fixture
def client(faketime_server: Server) -> redis.Redis:
    """Connect to a server whose clock a test can set."""
    return faketime_server.client()


def take(client: redis.Redis, floor: int = 0) -> int:
    """Take a nonce as a process that has seen none above the floor."""
    return run(client, commands.reserve(KEYS, 1), floor)[0]


def clock(client: redis.Redis) -> int:
    """Return the server's time in ns."""
    return run(client, commands.inspect(KEYS)).now


def step(client: redis.Redis, server: Server, seconds: float) -> None:
    """Set the server's clock; a script that it runs in the same moment may still see the old one."""
    server.clock_offset(seconds)
    eventually(lambda: abs(clock(client) / SECOND - time.time() - seconds) < 0.5)


@pytest.mark.parametrize(
    ("stored", "floor", "expected"),
    [
        (-100, -50, "clock"),
        (-100, 0, "floor + margin"),
        (None, 50, "floor + margin"),
        (50, 51, "floor + margin"),
        (50, 49, "stored"),
        (50, 50, "stored"),
        (None, None, "clock"),
        (50, None, "stored"),
    ],
)
def test_the_first_nonce_after_lost_state(
    client: redis.Redis, stored: int | None, floor: int | None, expected: str
) -> None:
    """It is above the clock, above what is stored, and a second above the floor if that is above what is stored.

    Stored and floor are in seconds from the server's clock; None: nothing is stored, a process has seen no nonce.
    """
    now = clock(client)
    if stored is not None:
        client.hset(KEYS.state, "nonce", as_stored(now + stored * SECOND))
    seen = 0 if floor is None else now + floor * SECOND
    nonce = take(client, seen)
    if expected == "clock":
        assert nonce >= now
        assert nonce % 1000 == 0
    elif expected == "stored":
        assert nonce == now + (stored or 0) * SECOND + 1
    else:
        assert nonce == seen + SECOND + 1


def test_a_replica_with_a_slow_clock(client: redis.Redis, faketime_server: Server) -> None:
    """On a replica that lacks the last nonces and whose clock is behind them, who has seen one of them is safe.

    Given a replica that lacks the last 10 s and whose clock is 30 s slow,
    if a process asks first that has seen none of what is lost, then its nonce is below some that were there before;
    if then one asks that has seen any of the last second, nonces go on above all, for everyone.
    """
    highest = take(client)
    replicated = highest - 10 * SECOND
    client.hset(KEYS.state, "nonce", as_stored(replicated))
    step(client, faketime_server, -30)
    assert take(client) == replicated + 1
    assert take(client, floor=replicated - SECOND) == replicated + 2
    assert take(client, floor=highest - SECOND // 2) > highest
    assert take(client) > highest


def test_a_slow_clock_alone(client: redis.Redis, faketime_server: Server) -> None:
    """When nothing is lost, a slow clock doesn't matter to anybody."""
    highest = take(client)
    step(client, faketime_server, -30)
    assert take(client) == highest + 1


def test_a_failover_longer_than_the_clock_is_slow(client: redis.Redis, faketime_server: Server) -> None:
    """When the clock has passed the lost nonces, it covers those who have seen none of them."""
    highest = take(client)
    client.hset(KEYS.state, "nonce", as_stored(highest - 10 * SECOND))
    step(client, faketime_server, 2 - 0.5)
    assert take(client) > highest


class LostTwice:
    """State that was lost, healed, and lost again before the clock has passed what was handed out in between."""

    def __init__(self, client: redis.Redis, server: Server) -> None:
        self.before = take(client)
        client.flushall()
        step(client, server, -1)  # however long this machine takes, the clock is not there yet
        self.healed = take(client, floor=self.before)
        assert self.healed == self.before + SECOND + 1
        client.flushall()


def test_lost_twice_and_a_new_process_asks_first(client: redis.Redis, faketime_server: Server) -> None:
    """It gets a nonce that was passed before: the clock is behind the margin, and it has no floor."""
    lost = LostTwice(client, faketime_server)
    assert take(client) < lost.healed
    assert take(client, floor=lost.healed) > lost.healed + SECOND
    assert take(client) > lost.healed + SECOND


def test_lost_twice_and_one_asks_first_that_did_not_ask_in_between(
    client: redis.Redis, faketime_server: Server
) -> None:
    """It gets the same nonce as the one that healed the first loss."""
    lost = LostTwice(client, faketime_server)
    assert take(client, floor=lost.before) == lost.healed


def test_lost_twice_and_one_asks_first_that_asked_in_between(client: redis.Redis, faketime_server: Server) -> None:
    """Nonces go on above all."""
    lost = LostTwice(client, faketime_server)
    assert take(client, floor=lost.healed) == lost.healed + SECOND + 1


def test_lost_twice_with_more_than_a_second_between(client: redis.Redis, faketime_server: Server) -> None:
    """The clock is above all: a new process may ask first."""
    lost = LostTwice(client, faketime_server)
    step(client, faketime_server, 1.5)
    assert take(client) > lost.healed
