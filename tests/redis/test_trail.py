"""What the scripts note of what happened: which entries there are, what is in them, and that they cost nothing else."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from kraken_nonce_redis import ForeignValue
from kraken_nonce_redis._redis import commands, journal, trail
from kraken_nonce_redis._threads.store import store_for
from tests.support.faces import KEY
from tests.support.helpers import KEYS, SECOND, Rival, View, eventually, fails, run

if TYPE_CHECKING:
    import redis

    from kraken_nonce_redis._redis.trail import Entry
    from tests.support.faces import Face
    from tests.support.servers import AnyServer, Server
    from tests.support.topologies import ClusterTopology

pytestmark = pytest.mark.matrix

FULL = replace(KEYS, trail="all")
DIGEST = "0123456789abcdef"
INTENT = journal.intent(DIGEST, "AddOrder", ["an id", "another"], own_ids=True)
HOLDER, OTHER = "1111:1-5.aa|grid%20bot|AddOrder|token", "2222:1-5.bb|other|"
CALL = {"name": "grid%20bot", "method": "AddOrder", "key": DIGEST, "ids": "+an%20id,another"}
FOUND = {**CALL, "result": "found", "txids": "O-1,", "by": "me"}


def noted(client: redis.Redis, stream: str = KEYS.log) -> list[Entry]:
    """Return what is in a stream, the oldest first."""
    return list(reversed(run(client, trail.read(stream)).entries))


def kinds(client: redis.Redis) -> list[str]:
    """Return the kinds of what is in the log, the oldest first."""
    return [entry.kind for entry in noted(client)]


def fields(entry: Entry) -> dict[str, str]:
    """Return what an entry holds, without what is empty."""
    return {name: value for name, value in entry.fields.items() if value}


def take(client: redis.Redis, member: str = HOLDER, *, ttl: float = 30.0, floor: int = 0, keys: Any = KEYS) -> int:
    """Take the free lock, with an intent; return the first nonce."""
    intent = f"{INTENT} {member.split('|')[1]}"
    asks = commands.acquire(keys, member, ttl, ticket=None, priority="normal", pace="", intent=intent)
    answer = run(client, asks, floor)
    assert isinstance(answer, commands.Granted), answer
    return answer.nonces[0]


def let_it_end(client: redis.Redis) -> None:
    """Wait until the lease has run out."""
    eventually(lambda: View(client).state.left == 0)


def unknown(client: redis.Redis) -> int:
    """Leave a call with an unknown outcome; return its nonce. The log has nothing else."""
    nonce = take(client)
    assert run(client, commands.release(KEYS, HOLDER, nonce, nonce, known=False)) == "released"
    return nonce


# What is noted.


def test_a_section_leaves_nothing(redis_client: redis.Redis, view: View) -> None:
    """What goes well is not noted."""
    nonce = take(redis_client)
    extended = run(redis_client, commands.extend(KEYS, HOLDER, 5))
    assert isinstance(extended, commands.Extended)
    assert run(redis_client, commands.release(KEYS, HOLDER, nonce, nonce)) == "released"
    run(redis_client, commands.reserve(KEYS, 1))
    run(redis_client, commands.advance(KEYS, 1, SECOND))
    assert noted(redis_client) == []
    assert not redis_client.exists(KEYS.log)
    view.assert_nothing_left()


@pytest.mark.parametrize("way", ["acquire", "heartbeat", "settle"])
def test_a_lease_that_ran_out(redis_client: redis.Redis, rival: Rival, way: str) -> None:
    """Whoever finds it notes it once, with its holder and how long it held, and the call that is unknown from then."""
    if way == "heartbeat":
        nonce = take(redis_client, ttl=0.2)
        rival.queue_up()
        let_it_end(redis_client)
        rival.live()
        rival.live()
    else:
        nonce = take(redis_client, ttl=0.2)
        let_it_end(redis_client)
        if way == "acquire":
            rival.take()
        else:
            run(redis_client, journal.settle(KEYS, nonce, "known"))
    lost, gone = noted(redis_client)
    found = fields(lost)
    assert (found.pop("held"), 0 <= int(found.pop("ago")) < 60_000_000) == ("200000", True)
    assert found == {"kind": "lost", "nonce": str(nonce), "name": "grid%20bot", "method": "AddOrder"}
    assert fields(gone) == {"kind": "unknown", "nonce": str(nonce), **CALL}
    assert abs(lost.time - View(redis_client).state.now) < 60 * SECOND


def test_a_lease_of_the_first_version(redis_client: redis.Redis, rival: Rival) -> None:
    """It has no name."""
    nonce = take(redis_client)
    redis_client.hset(KEYS.state, "lock", f"{nonce} {nonce // 1000 - 9_000_000} 1000000 0 old:1")
    rival.take()
    lost, gone = noted(redis_client)
    assert (lost.fields["name"], lost.fields["method"], lost.fields["held"]) == ("", "", "1000000")
    assert gone.kind == "unknown"


def test_an_unknown_outcome(redis_client: redis.Redis) -> None:
    """A holder that doesn't know what became of its call has it noted, at its release and at the next call."""
    first = take(redis_client)
    extended = run(redis_client, commands.extend(KEYS, HOLDER, 5, f"{INTENT} grid%20bot", known=False))
    assert isinstance(extended, commands.Extended)
    second = extended.nonces[0]
    run(redis_client, commands.release(KEYS, HOLDER, first, second, known=False))
    assert [fields(entry) for entry in noted(redis_client)] == [
        {"kind": "unknown", "nonce": str(nonce), **CALL} for nonce in (first, second)
    ]


def test_a_call_that_is_settled(redis_client: redis.Redis) -> None:
    """What a later holder finds out is noted once, however often it is told."""
    nonce = unknown(redis_client)
    for how in ("new", "found", "found", "known", "known"):
        run(redis_client, journal.settle(KEYS, nonce, how, ["O-1", ""], "me"))  # type: ignore[arg-type]
    assert [fields(entry) for entry in noted(redis_client)][1:] == [{"kind": "settled", "nonce": str(nonce), **FOUND}]


def test_a_call_that_nobody_can_settle(redis_client: redis.Redis) -> None:
    """It is noted as unknown for good, and that it is listed no longer."""
    nonce = unknown(redis_client)
    for how in ("unknown", "reported", "known"):
        run(redis_client, journal.settle(KEYS, nonce, how))  # type: ignore[arg-type]
    _, settled, forgotten = noted(redis_client)
    assert fields(settled) == {"kind": "settled", "nonce": str(nonce), **CALL, "result": "unknown", "txids": "-"}
    assert fields(forgotten) == {"kind": "forgotten", "nonce": str(nonce), **CALL}


@pytest.mark.parametrize("how", ["new", "found", "reported"])
def test_a_call_that_is_cleared(redis_client: redis.Redis, how: Any) -> None:
    """Who took it off the list by hand is noted, once."""
    nonce = unknown(redis_client)
    run(redis_client, journal.settle(KEYS, nonce, how))
    for there in (True, False):
        assert run(redis_client, journal.settle(KEYS, nonce, "cleared", name="me")) is there
    *_, cleared = noted(redis_client)
    assert kinds(redis_client).count("cleared") == 1
    assert fields(cleared) == {"kind": "cleared", "nonce": str(nonce), **CALL, "by": "me"}
    assert run(redis_client, journal.pending(KEYS)) == ()


def test_a_release_that_comes_late(redis_client: redis.Redis, rival: Rival) -> None:
    """When a call's own process tells its outcome after all, that is noted, once."""
    nonce = take(redis_client, ttl=0.2)
    let_it_end(redis_client)
    rival.take()
    for _ in range(2):
        assert run(redis_client, commands.release(KEYS, HOLDER, nonce, nonce)) == "lost"
    assert kinds(redis_client) == ["lost", "unknown", "settled"]
    assert fields(noted(redis_client)[2]) == {"kind": "settled", "nonce": str(nonce), **CALL, "result": "known"}


@pytest.mark.parametrize("refused", [False, True])
def test_a_raise(redis_client: redis.Redis, refused: bool) -> None:  # noqa: FBT001
    """A raise is noted once, with what it was before, who did it, and whether Kraken had refused a nonce."""
    before = run(redis_client, commands.reserve(KEYS, 1))[0]
    target = before + 60 * SECOND
    raising = commands.advance(KEYS, target, 3600 * SECOND, target if refused else None, "me")
    assert run(redis_client, raising) == run(redis_client, raising) == target
    (entry,) = noted(redis_client)
    cause = "refused" if refused else "asked"
    assert fields(entry) == {
        "kind": "raised", "nonce": str(target), "name": "me", "stored": str(before), "cause": cause,
    }  # fmt: skip


@pytest.mark.parametrize("way", ["reserve", "acquire", "extend", "advance"])
def test_lost_state(redis_client: redis.Redis, way: str) -> None:
    """A nonce that Redis had lost and a caller still knew is noted, by each script that heals it."""
    if way == "extend":
        take(redis_client)
    stored = View(redis_client).state.last
    floor = time.time_ns() + 100 * SECOND
    if way == "reserve":
        healed = run(redis_client, commands.reserve(KEYS, 1, "me"), floor)[0]
    elif way == "acquire":
        healed = take(redis_client, floor=floor)
    elif way == "extend":
        extended = run(redis_client, commands.extend(KEYS, HOLDER, 5), floor)
        assert isinstance(extended, commands.Extended)
        healed = extended.nonces[0]
    else:
        healed = run(redis_client, commands.advance(KEYS, 1, 3600 * SECOND, None, "me"), floor)
    (entry,) = [entry for entry in noted(redis_client) if entry.kind == "healed"]
    assert healed > floor
    assert entry.fields["nonce"] == str(healed)
    assert entry.fields["floor"] == str(floor)
    assert entry.fields["stored"] == str(stored or "")
    assert entry.fields["name"] == ("grid%20bot" if way in ("acquire", "extend") else "me")


def test_an_unlock(redis_client: redis.Redis) -> None:
    """A lease that was ended by hand is noted, once, with who did it; its call is unknown from then on."""
    nonce = take(redis_client)
    assert run(redis_client, commands.unlock(KEYS, HOLDER, "me"))
    assert not run(redis_client, commands.unlock(KEYS, HOLDER, "me"))
    unlocked, gone = noted(redis_client)
    assert fields(unlocked) == {
        "kind": "unlocked", "nonce": str(nonce), "name": "grid%20bot", "method": "AddOrder", "by": "me",
    }  # fmt: skip
    assert gone.kind == "unknown"
    redis_client.hset(KEYS.state, "lock", "theirs")
    assert run(redis_client, commands.unlock(KEYS, "", "me"))
    assert fields(noted(redis_client)[2]) == {"kind": "unlocked", "by": "me"}


def test_cool_downs(redis_client: redis.Redis) -> None:
    """A cool-down is noted, and its end by hand; not one that is hardly longer than the present one."""
    assert run(redis_client, commands.cool_down(KEYS, 0, "")) == 0
    for seconds in (60, 60, 5):
        run(redis_client, commands.cool_down(KEYS, seconds, "EAPI:Rate limit exceeded", "me"))
    run(redis_client, commands.cool_down(KEYS, 90, "EAPI:Rate limit exceeded", "me"))
    for _ in range(2):
        run(redis_client, commands.end_cool_down(KEYS, "you"))
    reason = "EAPI:Rate limit exceeded"
    assert [fields(entry) for entry in noted(redis_client)] == [
        {"kind": "cool-down", "name": "me", "term": "60000000", "reason": reason},
        {"kind": "cool-down", "name": "me", "term": "90000000", "reason": reason},
        {"kind": "cool-down-ended", "name": "you", "reason": reason},
    ]


# The full trail.


def test_the_full_trail(redis_client: redis.Redis) -> None:
    """Leases, extensions and reserved nonces have a stream of their own."""
    nonce = take(redis_client, keys=FULL)
    extended = run(redis_client, commands.extend(FULL, HOLDER, 5))
    assert isinstance(extended, commands.Extended)
    for _ in range(2):
        run(redis_client, commands.release(FULL, HOLDER, nonce, nonce))
    block = run(redis_client, commands.reserve(FULL, 7, "me"))
    who = {"name": "grid%20bot", "method": "AddOrder"}
    lease = noted(redis_client, KEYS.leases)[1]
    assert abs(int(lease.fields["granted"]) * 1000 - nonce) < SECOND
    assert [fields(entry) for entry in noted(redis_client, KEYS.leases)] == [
        {"kind": "extended", "nonce": str(extended.nonces[0]), **who},
        {"kind": "lease", "nonce": str(nonce), **who, "granted": lease.fields["granted"]},
        {"kind": "reserved", "nonce": str(block[0]), "name": "me", "last": str(block[-1])},
    ]
    assert noted(redis_client) == []


def test_the_full_trail_with_waiters(redis_client: redis.Redis, rival: Rival) -> None:
    """Each lease is noted once, also where others wait; the lock goes to them as ever."""
    nonce = take(redis_client, keys=FULL)
    rival.queue_up()
    run(redis_client, commands.release(FULL, HOLDER, nonce, nonce, known=False, late=True))
    assert View(redis_client).state.holder == rival.member()
    run(redis_client, commands.release(FULL, rival.member()))  # an offer is no lease
    assert [entry.kind for entry in noted(redis_client, KEYS.leases)] == ["lease"]


def test_by_the_setting(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """`trail="all"` of a lock and an allocator notes what each does; without it nothing is."""
    client = face.client(server)
    for setting in ("rare", "all"):
        lock = face.lock(client, name="grid bot", trail=setting)
        allocator = face.allocator(client, trail=setting)
        with lock.hold(timeout=5) as lease:
            first = lease.nonce
        View(redis_client).until_free()
        block = allocator.reserve(3)
        found = [(entry.kind, int(entry.fields["nonce"])) for entry in noted(redis_client, KEYS.leases)]
        assert found == ([] if setting == "rare" else [("lease", first), ("reserved", block[0])])
    with pytest.raises(Exception, match="'rare' or 'all'"):
        face.lock(client, trail="some")


# What it costs.


@pytest.mark.parametrize(("stream", "most"), [(KEYS.log, 10_000), (KEYS.leases, 100_000)], ids=["log", "leases"])
@pytest.mark.test_all
def test_it_is_capped(real_server: Server, stream: str, most: int) -> None:
    """Neither stream grows for ever, and the newest entries stay."""
    client = real_server.client()
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(most + 500):
            pipeline.execute_command("XADD", stream, "*", "kind", "filling")
        pipeline.execute()
    if stream == KEYS.log:
        run(client, commands.cool_down(KEYS, 5, "reason"))
    else:
        run(client, commands.reserve(FULL, 1))
    assert most <= client.xlen(stream) <= most + 100
    assert noted(client, stream)[-1].kind in ("cool-down", "reserved")


def everything(client: redis.Redis) -> list[Any]:
    """Do all that is noted; return what came of it, without the nonces."""
    nonce = take(client, keys=FULL)
    results: list[Any] = [
        run(client, commands.cool_down(FULL, 5, "reason")),
        run(client, commands.end_cool_down(FULL)),
        run(client, commands.release(FULL, HOLDER, nonce, nonce, known=False)),
        run(client, journal.settle(FULL, nonce, "found", ["O-1"])),
        run(client, journal.settle(FULL, nonce, "cleared")),
    ]
    take(client, keys=FULL)
    target = time.time_ns() + 60 * SECOND
    return [
        *results,
        run(client, commands.unlock(FULL, HOLDER)),
        len(run(client, commands.reserve(FULL, 2))),
        run(client, commands.advance(FULL, target, 3600 * SECOND)) - target,
    ]


WELL = [5.0, "reason", "released", True, True, True, 2, 0]


def test_streams_of_another_type(server: AnyServer, redis_client: redis.Redis) -> None:
    """Values that are no streams cost the entries; everything else is as ever. Who reads them hears which key it is."""
    assert everything(redis_client) == WELL
    redis_client.delete(*FULL.for_the_lock)
    for stream in (FULL.log, FULL.leases):
        redis_client.set(stream, "theirs")
    assert everything(redis_client) == WELL
    for stream in (FULL.log, FULL.leases):
        assert redis_client.get(stream) == b"theirs"
        with fails(ForeignValue, stream, "DEL"):
            store_for(server.client()).run(trail.read(stream))


def test_commands_without_a_log(redis_client: redis.Redis) -> None:
    """A client that names no stream, as while a cluster moves the slot, is served as ever."""
    for command in (
        commands.reserve(FULL, 2),
        commands.advance(FULL, 1, SECOND),
        commands.cool_down(FULL, 5, "reason"),
    ):
        assert command.without_trail()
        assert not command.without_trail()
        run(redis_client, command)
    assert not redis_client.exists(FULL.log, FULL.leases)


@pytest.mark.parametrize("known", [False, True])
def test_out_of_memory(real_server: Server, known: bool) -> None:  # noqa: FBT001
    """A server that has no memory for an entry releases the lock all the same, and unlocks it."""
    client = real_server.client()
    nonce = take(client, keys=FULL)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    if known:
        assert run(client, commands.release(FULL, HOLDER, nonce, nonce)) == "released"
    else:
        assert run(client, commands.unlock(FULL, HOLDER))
    assert not client.hexists(KEYS.state, "lock")


# Secrets.


def test_nothing_secret(face: Face, server: AnyServer, redis_client: redis.Redis) -> None:
    """Neither the API key nor a caller's own id of a lease is in any entry."""
    lock = face.lock(face.client(server), name="bot", trail="all")
    for release in (True, False):
        lock.acquire(token="my-own-token")
        if release:
            lock.release()
        else:
            lock.cool_down(5, "reason")
            View(redis_client).unlock()
    face.allocator(face.client(server), trail="all").jump_forward(SECOND)
    raw = repr([redis_client.xrange(stream) for stream in (KEYS.log, KEYS.leases)])
    for kind in ("lease", "unlocked", "cool-down", "raised"):
        assert f"b'{kind}'" in raw
    assert KEY not in raw
    assert "my-own-token" not in raw


def test_a_name_with_the_key_in_it(face: Face, server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator's name comes from the environment, and is refused with the API key in it, as a lock's is."""
    monkeypatch.setenv("KRAKEN_NONCE_NAME", f"bot of {KEY}")
    with pytest.raises(ValueError, match="must not hold the API key"):
        face.allocator(face.client(server))


# Clusters.


def test_in_a_cluster(face: Face, cluster: ClusterTopology) -> None:
    """The log is in the slot of its key and moves along with it; while it moves, nonces and raises go on."""
    client = face.client(cluster)
    nonces = face.allocator(client, trail="all")
    last = nonces.jump_forward(SECOND)
    source, target = cluster.begin_migration(KEYS.state)
    assert nonces.next() > last
    last = nonces.advance_to(last + SECOND)
    cluster.move_keys(KEYS.state, source, target)
    last = nonces.advance_to(last + SECOND)
    cluster.end_migration(KEYS.state, target)
    assert nonces.jump_forward(SECOND) > last
    view = cluster.client()
    assert [fields[b"kind"] for _, fields in view.xrange(KEYS.log)].count(b"raised") >= 2
    assert cluster.master(KEYS.log) is target


# Reading.


def test_foreign_entries(redis_client: redis.Redis) -> None:
    """Whatever other programs have added is read as far as it goes."""
    redis_client.execute_command("XADD", KEYS.log, "*", "kind", b"\xff\x00 \n%|x", "a field", "", b"", "9" * 5000)
    redis_client.execute_command("XADD", KEYS.log, "*", *[word for n in range(50) for word in (f"f{n}", n)])
    run(redis_client, commands.cool_down(KEYS, 5, "a reason"))
    first, second, third = noted(redis_client)
    assert first.kind == "\ufffd\x00 \n%|x"
    assert (first.fields["a field"], len(first.fields[""])) == ("", 1000)
    assert (second.kind, len(second.fields)) == ("", 20)
    assert third.fields["reason"] == "a reason"


def test_pages(redis_client: redis.Redis) -> None:
    """What lies between two entries is read without them."""
    ids = [redis_client.execute_command("XADD", KEYS.log, f"{n}-5", "kind", f"k{n}") for n in range(1, 6)]
    assert len(ids) == 5
    page = run(redis_client, trail.read(KEYS.log, after=(1, 5), before=(5, 5)))
    assert [entry.id for entry in page.entries] == [(4, 5), (3, 5), (2, 5)]
    assert [entry.time for entry in page.entries] == [4_000_000, 3_000_000, 2_000_000]
    assert abs(page.now - View(redis_client).state.now) < 60 * SECOND
