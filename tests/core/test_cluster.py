"""What is done when nodes of a cluster fail or name others, without any node."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._redis import cluster, commands
from kraken_nonce_redis._redis.cluster import Exchange, Nodes, told
from kraken_nonce_redis._redis.resp import Parser, pack
from kraken_nonce_redis.errors import keeps_connection
from tests.support.helpers import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis._redis.cluster import Address

pytestmark = pytest.mark.once

A, B, C = ("a", 1), ("b", 2), ("c", 3)
REQUEST = pack(("EVALSHA", "..."))
PATIENCE = 3.0
HERE = f"{cluster.key_slot(KEYS.state.encode())}"


def slots(*owners: Address) -> list[Any]:
    """Return what a node says to CLUSTER SLOTS when these share the slots, in order."""
    share = 16384 // len(owners)
    bounds = [*range(0, share * len(owners), share), 16384]
    return [
        [first, last - 1, [host.encode(), port, b"id"]]
        for (host, port), first, last in zip(owners, bounds, bounds[1:], strict=False)
    ]


def requested(step: Exchange) -> list[str]:
    """Return the first word of each request of an exchange."""
    parser = Parser()
    parser.feed(step.request)
    return [parser.next()[0].decode() for _ in range(step.due)]


class Sky:
    """Answers for nodes as a test says, and notes what they were asked and for how long nothing was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: list[Address] = []
        self.nodes = Nodes([A], self.known.extend, PATIENCE)
        self.command = commands.reserve(KEYS, 1)
        self.asked: list[tuple[Address, str]] = []
        self.now = 0.0
        monkeypatch.setattr(clock, "now", lambda: self.now)

    def send(self, answer: Callable[[Address, str], Any]) -> Any:
        """Send the command; an answer that is an error is thrown."""
        flow = self.nodes.sending(self.command, lambda: REQUEST, 1)
        step = next(flow)
        try:
            while True:
                assert len(self.asked) < 1000, self.asked[-10:]
                if isinstance(step, Exchange):
                    words = requested(step)
                    self.asked += [(step.address, word) for word in words]
                    said = answer(step.address, words[-1])
                    step = flow.throw(told(said)) if isinstance(said, RedisError) else flow.send([*words[:-1], said])
                else:
                    self.now += step.seconds
                    step = flow.send(None)
        except StopIteration as stop:
            return stop.value[0]


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> Sky:
    """Make nodes of the test's own."""
    return Sky(monkeypatch)


def test_the_first_command_finds_its_node(sky: Sky) -> None:
    """One question to any node, and from then on none."""
    answer: Callable[[Address, str], Any] = lambda _, word: slots(B) if word == "CLUSTER" else "ok"  # noqa: E731
    assert [sky.send(answer), sky.send(answer)] == ["ok", "ok"]
    assert sky.asked == [(A, "CLUSTER"), (B, "EVALSHA"), (B, "EVALSHA")]
    assert not sky.command.repeated


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), RedisTimeoutError("slow")], ids=repr)
def test_a_node_that_fails(sky: Sky, error: RedisError) -> None:
    """Another node is asked who has the keys now, and the command is sent once more; it may have run twice."""
    sky.send(lambda _, word: slots(A, B, C) if word == "CLUSTER" else "ok")
    failed = sky.asked[-1][0]
    heir = next(node for node in (A, B, C) if node != failed)

    def answer(node: Address, word: str) -> Any:
        if node == failed:
            return error
        return slots(heir) if word == "CLUSTER" else "ok"

    del sky.asked[:]
    assert sky.send(answer) == "ok"
    assert sky.asked[0] == (failed, "EVALSHA")
    assert sky.asked[1][0] != failed
    assert sky.asked[-1] == (heir, "EVALSHA")
    assert sky.command.repeated


def test_a_node_that_goes_on_failing(sky: Sky) -> None:
    """The caller hears of it after the second time."""
    with pytest.raises(RedisConnectionError, match="gone"):
        sky.send(lambda _, word: slots(A) if word == "CLUSTER" else RedisConnectionError("gone"))
    assert [word for _, word in sky.asked].count("EVALSHA") == 2


def test_a_slow_node_is_not_waited_for_twice(sky: Sky) -> None:
    """After a long timeout, the command goes to another node or to none."""

    def answer(_: Address, word: str) -> Any:
        if word == "CLUSTER":
            return slots(A)
        sky.now += 3
        return RedisTimeoutError("slow")

    with pytest.raises(RedisTimeoutError):
        sky.send(answer)
    assert [word for _, word in sky.asked] == ["CLUSTER", "EVALSHA", "CLUSTER"]


def test_no_node_answers(sky: Sky) -> None:
    """Each node is asked, and the last one's failure is what the caller hears."""
    sky.nodes = Nodes([A, B, C], lambda _: None, PATIENCE)
    with pytest.raises(RedisConnectionError, match="gone"):
        sky.send(lambda *_: RedisConnectionError("gone"))
    assert {node for node, _ in sky.asked} == {A, B, C}


@pytest.mark.parametrize("plain", [True, False])
def test_a_slot_that_has_moved(sky: Sky, plain: bool) -> None:  # noqa: FBT001
    """The node that is named is asked, for good; an empty name is that of the node that answers."""
    said = f"{HERE} b:2"
    moved = ResponseError(f"MOVED {said}") if plain else MovedError(said)
    sky.send(lambda node, word: slots(A) if word == "CLUSTER" else moved if node == A else "ok")
    assert sky.send(lambda *_: "ok") == "ok"
    assert sky.asked == [(A, "CLUSTER"), (A, "EVALSHA"), (B, "EVALSHA"), (B, "EVALSHA")]
    sky.send(lambda node, _: MovedError(f"{HERE} :7") if node == B else "ok")
    assert sky.asked[-1] == (("b", 7), "EVALSHA")


def test_a_slot_on_its_way(sky: Sky) -> None:
    """The other node is asked for this once, and told that it is meant."""
    ask = ResponseError(f"ASK {HERE} b:2")
    sky.send(lambda node, word: slots(A) if word == "CLUSTER" else ask if node == A else "ok")
    assert sky.asked == [(A, "CLUSTER"), (A, "EVALSHA"), (B, "ASKING"), (B, "EVALSHA")]
    del sky.asked[:]
    sky.send(lambda *_: "ok")
    assert sky.asked == [(A, "EVALSHA")]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ResponseError("TRYAGAIN later"), TryAgainError),
        (ResponseError("CLUSTERDOWN down"), ClusterDownError),
        (MovedError(f"{HERE} a:1"), TryAgainError),
        (ResponseError(f"ASK {HERE} b:2"), TryAgainError),
    ],
    ids=repr,
)
def test_what_lasts_too_long(sky: Sky, error: RedisError, raised: type[RedisError]) -> None:
    """It is tried again, with pauses, as long as the caller waits; one without a timeout waits as long as a socket."""
    answer: Callable[[Address, str], Any] = (  # noqa: E731
        lambda _, word: slots(A) if word == "CLUSTER" else "ok" if word == "ASKING" else error
    )
    for until, ends in ((None, PATIENCE), (10.0, 10.0), (10.5, 10.5), (10.5, 10.5), (1.0, 10.5)):
        sky.command.until = until
        with pytest.raises(raised):
            sky.send(answer)
        assert sky.now == pytest.approx(ends)
    assert len(sky.asked) < 400
    assert not sky.command.repeated


@pytest.mark.parametrize("asking", [False, True])
def test_the_trail_while_a_slot_moves(sky: Sky, asking: bool) -> None:  # noqa: FBT001
    """A command whose other keys have not arrived yet does without the trail at once."""
    moving, ask = ResponseError("TRYAGAIN later"), ResponseError(f"ASK {HERE} b:2")

    def answer(node: Address, word: str) -> Any:
        if word == "CLUSTER":
            return slots(A)
        if asking and node == A:
            return ask
        return moving if sky.command.spare else "ok"

    assert sky.send(answer) == "ok"
    there = [(B, "ASKING"), (B, "EVALSHA")] * 2 if asking else [(A, "EVALSHA")]
    assert sky.asked == [(A, "CLUSTER"), (A, "EVALSHA"), *there]
    assert (sky.command.keys, sky.now) == ((KEYS.state,), 0.0)


def test_a_slot_that_arrives_in_time(sky: Sky) -> None:
    """What a caller waits for comes within its timeout, however long that is."""
    sky.command.until = 60.0
    moving = ResponseError("TRYAGAIN later")
    assert sky.send(lambda _, word: slots(A) if word == "CLUSTER" else "ok" if sky.now > 50 else moving) == "ok"
    assert sky.now == pytest.approx(50, abs=0.5)


def test_the_node_that_answered_last(sky: Sky) -> None:
    """It is asked first who has which slot, and listened on."""
    sky.send(lambda _, word: slots(A, B, C) if word == "CLUSTER" else "ok")
    owner = sky.asked[-1][0]

    def answer(node: Address, word: str) -> Any:
        sky.now += 0.1
        if node in silent:
            return RedisTimeoutError("slow")
        return slots(A, B, C) if word == "CLUSTER" else "ok"

    silent = {owner}
    for _ in range(20):
        sky.command.repeated = False
        with pytest.raises(RedisTimeoutError):
            sky.send(answer)
    answering = sky.asked[-1][0]
    assert {node for node, word in sky.asked[-40:] if word == "CLUSTER"} == {answering}
    assert sky.nodes.listening_post() == answering
    silent = {answering}
    sky.send(answer)
    assert sky.nodes.listening_post() == owner


def test_a_slot_that_nobody_has(sky: Sky) -> None:
    """A cluster without an owner for the slot is down, for this key."""
    with pytest.raises(ClusterDownError):
        sky.send(lambda *_: [])


def test_other_answers_are_passed_on(sky: Sky) -> None:
    """What the script or the server says is not the cluster's business."""
    with pytest.raises(NoScriptError):
        sky.send(lambda _, word: slots(A) if word == "CLUSTER" else NoScriptError("no such script"))
    assert len(sky.asked) == 2


def test_where_to_listen(sky: Sky) -> None:
    """Each time on another node than before, if there is one; on any, as long as none has answered."""
    assert [sky.nodes.listening_post() for _ in range(2)] == [A, A]
    sky.nodes = Nodes([A, B, C], lambda _: None, PATIENCE)
    posts = [sky.nodes.listening_post() for _ in range(30)]
    assert set(posts) == {A, B, C}
    assert all(one != next_one for one, next_one in pairwise(posts))
    sky.send(lambda _, word: slots(A, B, C) if word == "CLUSTER" else "ok")
    posts = [sky.nodes.listening_post() for _ in range(30)]
    assert all(one != next_one for one, next_one in pairwise(posts))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", True),
        ("READONLY You can't write against a read only replica.", False),
        ("ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a replica.", False),
        ("NOREPLICAS Not enough good replicas to write.", False),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", False),
    ],
)
def test_which_servers_are_left(said: str, kept: bool) -> None:  # noqa: FBT001
    """A server that says it is no master any more, in the words of any version, is left for the one that is."""
    assert keeps_connection(ResponseError(said)) is kept
