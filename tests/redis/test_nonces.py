"""Nonces: distinct, rising, exact, and healed when Redis forgot them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kraken_nonce_redis import NonceTooFarAhead
from tests.support.faces import KEY
from tests.support.helpers import KEYS, SECOND, View, as_stored, assert_distinct_and_in_order, fails, new_process

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tests.conftest import MakeProxy
    from tests.support.faces import Face
    from tests.support.servers import AnyServer, Server

pytestmark = pytest.mark.matrix

MARGIN = SECOND
HIGHEST = 2**63 - 1


def test_nonces_are_nanoseconds_of_server_time(face: Face, server: AnyServer) -> None:
    """A nonce is a plain int of 19 digits, the time in nanoseconds, so it outranks those of other units."""
    nonces = face.allocator(face.client(server))
    before = time.time_ns() // 1000 * 1000
    nonce = nonces.next()
    assert type(nonce) is int
    assert len(str(nonce)) == 19
    assert before <= nonce <= time.time_ns()


def test_each_nonce_is_above_all_others(face: Face, server: AnyServer) -> None:
    """Allocators on one client and on several share one rising sequence."""
    client = face.client(server)
    allocators = [face.allocator(client), face.allocator(client), face.allocator(face.client(server))]
    taken = [allocator.next() for _ in range(20) for allocator in allocators]
    assert taken == sorted(set(taken))


def test_nonces_are_exact_to_the_last_digit(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """Ahead of the clock, nonces go up by one; none is skipped, doubled or rounded."""
    nonces = face.allocator(face.client(server))
    start = nonces.jump_forward(100 * SECOND)
    assert [nonces.next() for _ in range(25)] == list(range(start + 1, start + 26))
    assert redis_client.hget(KEYS.state, "nonce") == as_stored(start + 25).encode()


def test_white_space_around_a_key(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """A key from a file that ends in a line break is the same key as without it, so its callers share a sequence."""
    client = face.client(server)
    first = face.allocator(client, f" {KEY}\n").next()
    assert face.allocator(client).next() > first
    assert redis_client.keys("*") == [KEYS.state.encode()]


@pytest.mark.parametrize("stored", [10**19 // 5 - 1, 2 * 10**18 + 9_999_999_999, 9_007_199_254_740_993 * 200])
def test_carries_are_exact(face: Face, server: AnyServer, redis_client: redis.Redis, stored: int) -> None:
    """Wherever the digits roll over, the next nonce is the last one and one."""
    redis_client.hset(KEYS.state, "nonce", as_stored(stored))
    nonces = face.allocator(face.client(server))
    assert nonces.next() == stored + 1
    assert nonces.reserve(1_000_000) == range(stored + 2, stored + 1_000_002)
    assert nonces.next() == stored + 1_000_002


@pytest.mark.parametrize("count", [1, 2, 1000, 1_000_000])
def test_reserve_gives_a_block(face: Face, server: AnyServer, count: int) -> None:
    """A block is a range of consecutive nonces above all earlier ones, and those after it are above the block."""
    nonces = face.allocator(face.client(server))
    before = nonces.next()
    block = nonces.reserve(count)
    assert isinstance(block, range)
    assert (len(block), block.step) == (count, 1)
    assert before < block[0]
    assert nonces.next() > block[-1]


def test_a_block_is_one_round_trip(face: Face, valkey: Server, proxy: MakeProxy) -> None:
    """However many nonces, and next() too: Redis is asked once."""
    way = proxy(valkey)
    nonces = face.allocator(face.client_at(way.url))
    nonces.next()
    before = way.commands
    nonces.next()
    nonces.reserve(100_000)
    assert way.commands - before == 2


def test_last_looks_and_changes_nothing(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """last() is None before the first nonce and then the last one handed out by anyone, blocks included."""
    nonces, others = face.allocator(face.client(server)), face.allocator(face.client(server))
    assert nonces.last() is None
    assert redis_client.keys("*") == []
    taken = others.next()
    assert nonces.last() == taken
    taken = others.reserve(10)[-1]
    before = View(redis_client).everything()
    assert nonces.last() == taken
    assert View(redis_client).everything() == before


def test_jump_forward_raises(face: Face, server: AnyServer) -> None:
    """A jump goes ahead by at least what was asked, from the clock and from the last nonce, for everyone."""
    nonces, others = face.allocator(face.client(server)), face.allocator(face.client(server))
    now = time.time_ns()
    first = nonces.jump_forward(60 * SECOND)
    assert now + 60 * SECOND - 1000 <= first <= time.time_ns() + 60 * SECOND
    assert nonces.jump_forward(60 * SECOND) == first + 60 * SECOND
    assert others.last() == first + 60 * SECOND
    assert others.next() == first + 60 * SECOND + 1


def test_advance_to_raises_and_never_lowers(face: Face, server: AnyServer) -> None:
    """The old value of another program seeds the sequence; a lower one changes nothing."""
    nonces = face.allocator(face.client(server))
    old = time.time_ns() + 1800 * SECOND
    assert nonces.advance_to(old) == old
    assert nonces.advance_to(old) == old
    assert nonces.advance_to(1) == old
    assert nonces.advance_to(old - 1) == old
    assert nonces.next() == old + 1


def test_a_seed_in_the_past_leaves_room_for_the_clock(face: Face, server: AnyServer) -> None:
    """A seed below the clock is kept, and the next nonce is the time all the same."""
    nonces = face.allocator(face.client(server))
    assert nonces.advance_to(1_616_492_376_594) == 1_616_492_376_594
    assert nonces.last() == 1_616_492_376_594
    assert nonces.next() > time.time_ns() - 60 * SECOND


def _jump(nonces: object, ahead: int) -> int:
    return nonces.jump_forward(ahead)  # type: ignore[attr-defined, no-any-return]


def _advance(nonces: object, ahead: int) -> int:
    return nonces.advance_to(time.time_ns() + ahead)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("go", [_jump, _advance])
def test_nothing_goes_past_max_lead(
    face: Face, server: AnyServer, redis_client: redis.Redis, go: Callable[[object, int], int]
) -> None:
    """One slip of a digit can't poison the API key: past an hour is an error, and nothing was changed."""
    nonces = face.allocator(face.client(server))
    last = nonces.next()
    before = View(redis_client).everything()
    with fails(NonceTooFarAhead, KEYS.state) as caught:
        go(nonces, 3601 * SECOND)
    assert caught.value.last == last
    assert caught.value.max_lead == 3600 * SECOND
    assert 3600 * SECOND < caught.value.lead < 3602 * SECOND
    assert View(redis_client).everything() == before
    assert go(nonces, 3599 * SECOND) > last


def test_max_lead_is_a_setting(face: Face, server: AnyServer) -> None:
    """Those who need a longer way ahead, or none, say so; it holds for small jumps that add up as well."""
    client = face.client(server)
    with fails(NonceTooFarAhead):
        face.allocator(client, max_lead=0).jump_forward(1000 * SECOND)
    short, long = face.allocator(client, max_lead=5 * SECOND), face.allocator(client, max_lead=86_400 * SECOND)
    short.jump_forward(4 * SECOND)
    with fails(NonceTooFarAhead):
        short.jump_forward(4 * SECOND)
    assert long.jump_forward(80_000 * SECOND) > time.time_ns() + 80_000 * SECOND


def test_max_lead_refuses_no_nonce(face: Face, server: AnyServer) -> None:
    """A sequence that somebody else raised further goes on: calls are not stopped by the limit on raising."""
    client = face.client(server)
    far = face.allocator(client, max_lead=86_400 * SECOND).jump_forward(50_000 * SECOND)
    nonces = face.allocator(client)
    assert nonces.next() == far + 1
    assert nonces.advance_to(far) == far + 1, "a target that is reached already is no raise"


@pytest.mark.parametrize("count", [1, 3])
def test_the_last_nonces_below_int64(face: Face, server: AnyServer, redis_client: redis.Redis, count: int) -> None:
    """Kraken's type ends at 2^63 - 1: the last one is handed out, then an error says so and changes nothing."""
    redis_client.hset(KEYS.state, "nonce", as_stored(HIGHEST - count))
    nonces = face.allocator(face.client(server))
    with fails(NonceTooFarAhead, "replace it at Kraken", str(HIGHEST - count)):
        nonces.reserve(count + 1)
    assert nonces.reserve(count)[-1] == HIGHEST
    with fails(NonceTooFarAhead):
        nonces.next()
    with fails(NonceTooFarAhead), face.lock(face.client(server)).hold():
        pass
    assert nonces.last() == HIGHEST


# Lost state.


def _flush(client: redis.Redis) -> None:
    client.flushall()


def _older(client: redis.Redis) -> None:
    client.hset(KEYS.state, "nonce", as_stored(time.time_ns() - 5 * SECOND))


@pytest.mark.parametrize("lose", [_flush, _older])
def test_lost_state_is_healed(
    face: Face, server: AnyServer, redis_client: redis.Redis, lose: Callable[[redis.Redis], None]
) -> None:
    """After a FLUSHALL or the restore of an older state, nonces go on above the last, with a margin for the others."""
    nonces = face.allocator(face.client(server))
    last = nonces.jump_forward(1000 * SECOND)
    lose(redis_client)
    healed = nonces.next()
    assert healed == last + 1 + MARGIN
    assert nonces.next() == healed + 1, "the margin is added once"


@pytest.mark.parametrize("lose", [_flush, _older])
@pytest.mark.parametrize("heal", ["next", "reserve", "hold", "advance_to", "jump_forward", "extend"])
def test_every_way_of_getting_a_nonce_heals(
    face: Face, server: AnyServer, redis_client: redis.Redis, heal: str, lose: Callable[[redis.Redis], None]
) -> None:
    """Whatever the first call after the loss is, no caller that lives sees a nonce at or below one it has seen.

    Given one caller that saw the last nonce, and another that saw one shortly before;
    if state is lost and the other is first to come back,
    then both go on above all that either of them has seen.
    """
    client = face.client(server)
    behind, ahead = face.allocator(client), face.allocator(face.client(server))
    lock = face.lock(client)
    behind.jump_forward(1000 * SECOND)
    with lock.hold() as lease:
        seen = ahead.reserve(100_000)[-1]
        if heal == "extend":
            # A lease that was lost with the state can't be extended, so only the nonce is taken back.
            redis_client.hset(KEYS.state, "nonce", as_stored(time.time_ns() - 5 * SECOND))
            lease.extend(10)
            assert lease.next_nonce() > seen
            return
    lose(redis_client)
    if heal == "hold":
        with lock.hold() as lease:
            healed = lease.nonce
    elif heal == "reserve":
        healed = behind.reserve(10)[0]
    elif heal == "advance_to":
        healed = behind.advance_to(1)
    elif heal == "jump_forward":
        healed = behind.jump_forward(SECOND)
    else:
        healed = behind.next()
    assert healed > seen
    assert ahead.next() > max(healed, seen)
    assert behind.next() > max(healed, seen)


def test_a_lock_heals_what_an_allocator_saw(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """Allocators and locks on one client share what they have seen, so either one heals for both."""
    client = face.client(server)
    last = face.allocator(client).jump_forward(1000 * SECOND)
    redis_client.flushall()
    with face.lock(client).hold() as lease:
        assert lease.nonce == last + 1 + MARGIN


def test_with_nobody_alive_the_clock_takes_over(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """When state and all who saw it are gone, a new process begins at the time, not in a future nobody remembers."""
    face.allocator(face.client(server)).jump_forward(1000 * SECOND)
    redis_client.flushall()
    new_process()
    assert face.allocator(face.client(server)).next() <= time.time_ns()


def test_floors_are_kept_per_key(face: Face, server: AnyServer) -> None:
    """A jump for one API key does not raise another one's nonces."""
    client = face.client(server)
    face.allocator(client).jump_forward(1000 * SECOND)
    assert face.allocator(client, "another key").next() <= time.time_ns()


# Names.


def test_redis_knows_a_digest_only(face: Face, valkey: Server, proxy: MakeProxy) -> None:
    """The API key never reaches Redis: not in a command, not in a key, not in the name of a connection."""
    way = proxy(valkey)
    client = face.client_at(way.url)
    nonces, lock = face.allocator(client), face.lock(client)
    nonces.next()
    nonces.jump_forward(1)
    with lock.hold(), pytest.raises(TimeoutError):
        face.start(lambda: lock.hold(0.05).__enter__()).result()
    sent = b" ".join(word for command in way.log for word in command.arguments)
    digest = hashlib.sha256(KEY.encode()).hexdigest()[:16]
    assert digest.encode() in sent
    assert KEY.encode() not in sent
    assert KEY not in f"{nonces!r} {lock!r}"
    assert digest in repr(nonces)


def test_one_state_per_key_and_namespace(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """Each API key has one Redis key, named after its digest, that never expires; namespaces are apart."""
    client = face.client(server)
    last = face.allocator(client).jump_forward(1000 * SECOND)
    assert face.allocator(client, namespace="another").next() < last
    assert face.allocator(client, "another key").next() < last
    digest = hashlib.sha256(KEY.encode()).hexdigest()[:16]
    names = set(redis_client.keys("*")) - {KEYS.log.encode()}  # which tells of the jump
    assert len(names) == 3
    assert {f"kraken-nonce:{{{digest}}}".encode(), f"another:{{{digest}}}".encode()} < names
    assert {redis_client.ttl(name) for name in names} == {-1}


@pytest.mark.parametrize("options", [{"decode_responses": True}, {"protocol": 3}, {"protocol": 2}], ids=str)
def test_clients_of_any_setting(face: Face, real_server: Server, options: dict[str, object]) -> None:
    """A client that decodes replies, or speaks RESP3, serves as well as a plain one, for waiting too."""
    client = face.client(real_server, **options)
    lock = face.lock(client)
    assert face.allocator(client).next() > 10**18
    with lock.hold() as lease:
        caller = face.start(lambda: lock.acquire() and lock.release())
        View(real_server.client()).until_waiting(1)
        nonce = lease.next_nonce()
    assert caller.result() is None
    assert face.allocator(client).last() > nonce
    View(real_server.client()).assert_nothing_left()


def test_from_url(face: Face, real_server: Server) -> None:
    """A URL is enough, and all objects with the same URL share one sequence and its connections."""
    url = f"{real_server.url}?client_name=from-url-{face.name}"
    last = face.allocator_from_url(url).next()
    assert face.allocator_from_url(url, max_lead=0).last() == last
    with face.lock_from_url(url, ttl=5).hold() as lease:
        assert lease.nonce > last
        assert lease.remaining() <= 5
    named = [c for c in real_server.client(decode_responses=True).client_list() if c["name"].startswith("from-url")]
    assert len(named) == 1


# Many at once.


def test_threads_and_tasks_at_once(face: Face, server: AnyServer) -> None:
    """Callers at once get distinct nonces, each above all that were there when it was asked for."""
    clients = [face.client(server), face.client(server)]

    def take(number: int) -> list[tuple[float, float, int]]:
        nonces = face.allocator(clients[number % 2])
        taken = []
        for _ in range(25):
            asked = time.monotonic()
            nonce = nonces.next()
            taken.append((asked, time.monotonic(), nonce))
        return taken

    taken = [one for some in face.together(take, 8) for one in some]
    assert len(taken) == 200
    assert_distinct_and_in_order(taken)


@pytest.mark.test_all
@pytest.mark.once
def test_the_claim() -> None:
    """Through every kind of fault that the benchmark knows, no nonce comes twice and none goes backward."""
    script = Path(__file__).parents[2] / "benchmarks" / "claim.py"
    command = [
        sys.executable,
        script,
        "--nonces",
        "200000",
        "--processes",
        "4",
        "--faults",
        "--rest",
        "0.005",
        "--json",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    report = json.loads(ran.stdout)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    assert (report["duplicates"], report["backward"]) == (0, 0)
    assert report["nonces"] >= 200_000
    assert sum(what.startswith("fault: ") for what in report) == 10
