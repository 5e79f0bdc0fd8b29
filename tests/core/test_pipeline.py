"""One connection for many callers, without any connection: each gets its own reply, once, whatever happens."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import redis

from kraken_nonce_redis._redis.pipeline import Pipeline, Slot, Stream
from kraken_nonce_redis._redis.resp import INCOMPLETE, Parser, Push, pack

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = 150


class Server:
    """Answers each word it is told with the same word, over one connection at a time; may lose what it says."""

    def __init__(self, choice: random.Random) -> None:
        self.choice = choice
        self.run: list[bytes] = []
        self.replies = b""
        self._parser = Parser()

    def connect(self) -> None:
        """Begin a new connection: what was not read is gone."""
        self.replies, self._parser = b"", Parser()

    def hear(self, data: bytes) -> None:
        """Take bytes of requests, all of them or the first ones."""
        self._parser.feed(data)
        while (request := self._parser.next()) is not INCOMPLETE:
            self.run.append(request[1])
            if self.choice.random() < 0.1:
                self.replies += b">2\r\n+invalidate\r\n_\r\n"
            self.replies += b"$%d\r\n%b\r\n" % (len(request[1]), request[1])

    def said(self) -> bytes:
        """Return some of the bytes that are on their way."""
        count = self.choice.randint(0, len(self.replies))
        data, self.replies = self.replies[:count], self.replies[count:]
        return data


def run_schedule(seed: int) -> None:
    """Let callers come and go, bytes be cut anywhere, and connections be lost; see what each caller was told."""
    choice = random.Random(seed)
    server, pipeline = Server(choice), Pipeline()
    slots: list[tuple[bytes, Slot]] = []
    told: list[Slot] = []
    stream: Stream | None = None
    for step in range(200):
        what = choice.random()
        if what < 0.35 and step < 150:
            words = [f"{len(slots)}-{number}".encode() for number in range(choice.choice((1, 1, 1, 2)))]
            slot = Slot(b"".join(pack(("ECHO", word.decode())) for word in words), len(words), told.append)
            slots.append((b" ".join(words), slot))
            pipeline.put(slot)
        elif what < 0.4 and slots:
            choice.choice(slots)[1].left = True
        elif what < 0.45 and stream is not None:
            requests = b"".join(slot.request for slot in pipeline.take())
            server.hear(requests if choice.random() < 0.5 else b"")
            pipeline.lose(redis.ConnectionError("cut"))
            stream = None
        elif what < 0.7:
            if stream is None:
                stream = pipeline.connected()
                server.connect()
            server.hear(b"".join(slot.request for slot in pipeline.take()))
        elif stream is not None:
            stream.hear(server.said())
    stream = pipeline.stream or pipeline.connected()
    while pipeline.waiting or pipeline.due:
        server.hear(b"".join(slot.request for slot in pipeline.take()))
        stream.hear(server.said())
    judge(slots, told, server)


def run_schedules(part: int) -> None:
    """Run a part of the schedules."""
    for seed in range(part * SEEDS, (part + 1) * SEEDS):
        run_schedule(seed)


def judge(slots: list[tuple[bytes, Slot]], told: list[Slot], server: Server) -> None:
    """See that each caller heard its own reply, or a failure, and heard it once."""
    assert len(told) == len(set(map(id, told))), "somebody was told twice"
    for words, slot in slots:
        if slot.done:
            assert slot.failure is not None or b" ".join(slot.replies) == words, "a reply went to another caller"
        else:
            assert slot.left, "a caller was forgotten"
        for word in words.split():
            assert server.run.count(word) <= slot.sent <= 2, "a request was sent more often than it says"
    first = {word: server.run.index(word) for words, _ in slots for word in words.split()[:1] if word in server.run}
    # A request that is sent again comes before all that is new, so the first runs are in the order of the callers.
    assert list(first.values()) == sorted(first.values()), "requests overtook each other"


@pytest.mark.parametrize("part", range(4))
def test_each_caller_gets_its_own_reply(part: int) -> None:
    """Over hundreds of schedules with bytes cut anywhere, connections lost and callers gone: to each its own, once."""
    run_schedules(part)


def _to_the_next(pipeline: type[Any], stream: type[Any], patch: Callable[[Any, str, Any], None]) -> None:
    """Give the reply to one slot further on, now and then."""
    real = stream.hear

    def hear(self: Any, data: bytes) -> Any:
        if len(self.in_flight) > 2 and data:
            self.in_flight.rotate(1)
        return real(self, data)

    patch(stream, "hear", hear)


def _forget_one(pipeline: type[Any], stream: type[Any], patch: Callable[[Any, str, Any], None]) -> None:
    """Reconnect without the last one in flight."""
    real = pipeline.lose

    def lose(self: Any, error: Exception) -> None:
        if self.stream is not None and self.stream.in_flight:
            self.stream.in_flight.pop()
        real(self, error)

    patch(pipeline, "lose", lose)


def _drop_those_who_left(pipeline: type[Any], stream: type[Any], patch: Callable[[Any, str, Any], None]) -> None:
    """Take a slot out when its caller leaves, though its reply is still to come."""
    real = stream.hear

    def hear(self: Any, data: bytes) -> Any:
        for slot in list(self.in_flight):
            if slot.left:
                self.in_flight.remove(slot)
        return real(self, data)

    patch(stream, "hear", hear)


def _again_in_reverse(pipeline: type[Any], stream: type[Any], patch: Callable[[Any, str, Any], None]) -> None:
    """Send again what was lost, the last one first."""
    real = pipeline.lose

    def lose(self: Any, error: Exception) -> None:
        if self.stream is not None:
            self.stream.in_flight.reverse()
        real(self, error)

    patch(pipeline, "lose", lose)


@pytest.mark.parametrize("mutant", [_to_the_next, _forget_one, _drop_those_who_left, _again_in_reverse])
def test_the_schedules_find_what_is_broken(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a reply to the wrong slot, a slot dropped, or a reconnect that forgets one, the schedules above fail."""
    mutant(Pipeline, Stream, monkeypatch.setattr)
    with pytest.raises((AssertionError, redis.InvalidResponse, TypeError)):
        run_schedules(0)


def test_a_connection_that_never_answered_is_not_tried_again() -> None:
    """What was in flight on a connection without a single reply fails; what waits behind it gets a new one."""
    pipeline = Pipeline()
    first, second = Slot(b"1"), Slot(b"2")
    pipeline.put(first)
    pipeline.connected()
    pipeline.take()
    pipeline.put(second)
    pipeline.lose(redis.TimeoutError("late"))
    assert isinstance(first.failure, redis.TimeoutError)
    assert not second.done
    assert pipeline.waiting


def test_a_request_that_is_sent_again_says_what_is_so_then() -> None:
    """What was in flight is packed anew for the next connection: the floor may have risen meanwhile."""
    pipeline = Pipeline()
    stream = pipeline.connected()
    pipeline.put(Slot(b"0"))
    pipeline.take()
    stream.hear(b"+OK\r\n")
    floor = [1]
    slot = Slot(b"1", renew=lambda: b"%d" % floor[0])
    pipeline.put(slot)
    floor[0] = 2
    assert [each.request for each in pipeline.take()] == [b"1"]
    pipeline.lose(redis.ConnectionError("cut"))
    pipeline.connected()
    assert [each.request for each in pipeline.take()] == [b"2"]


def test_a_caller_that_comes_while_another_connects_has_an_attempt_of_its_own() -> None:
    """When there is no connection to be had, those fail who waited when it was tried, and no later ones."""
    pipeline = Pipeline()
    first, second = Slot(b"1"), Slot(b"2")
    pipeline.put(first)
    waiting = pipeline.number
    pipeline.put(second)
    pipeline.fail(redis.ConnectionError("refused"), waiting)
    assert first.failure is not None
    assert not second.done
    assert pipeline.waiting


def test_nothing_is_sent_late_for_a_caller_that_is_gone() -> None:
    """A request whose caller left before it was sent, or before it would be sent again, is not sent."""
    pipeline = Pipeline()
    stream = pipeline.connected()
    proof, gone = Slot(b"0"), Slot(b"1")
    pipeline.put(proof)
    pipeline.take()
    stream.hear(b"+OK\r\n")
    pipeline.put(gone)
    gone.left = True
    assert pipeline.take() == []
    late = Slot(b"2")
    pipeline.put(late)
    assert pipeline.take() == [late]
    late.left = True
    pipeline.lose(redis.ConnectionError("cut"))
    assert not pipeline.waiting


REPLIES: tuple[tuple[bytes, Any], ...] = (
    (b"+OK\r\n", b"OK"),
    (b"$5\r\na\r\nbc\r\n", b"a\r\nbc"),
    (b"$-1\r\n", None),
    (b":-12\r\n", -12),
    (b"*2\r\n:1\r\n*1\r\n$1\r\nx\r\n", [1, [b"x"]]),
    (b"*-1\r\n", None),
    (b"_\r\n", None),
    (b"#t\r\n", True),
    (b"#f\r\n", False),
    (b",1.5\r\n", 1.5),
    (b"(12345678901234567890\r\n", 12345678901234567890),
    (b"=6\r\ntxt:ab\r\n", b"ab"),
    (b"%1\r\n+a\r\n:1\r\n", {b"a": 1}),
    (b"~1\r\n:1\r\n", [1]),
    (b">1\r\n+x\r\n", Push([b"x"])),
)


@pytest.mark.parametrize(("data", "reply"), REPLIES, ids=[repr(data) for data, _ in REPLIES])
def test_replies_are_read_however_they_are_cut(data: bytes, reply: Any) -> None:
    """Each kind of reply of both versions of the protocol, byte by byte and with another one behind it."""
    parser = Parser()
    seen = []
    for byte in data + data:
        parser.feed(bytes([byte]))
        if (one := parser.next()) is not INCOMPLETE:
            seen.append(one)
    assert seen == [reply, reply]
    assert [type(one) for one in seen] == [type(reply)] * 2


@pytest.mark.parametrize("data", [b"-NOSCRIPT no\r\n", b"!11\r\nNOSCRIPT no\r\n"])
def test_errors_are_those_of_redis_py(data: bytes) -> None:
    """An error reply is redis-py's exception of that name."""
    parser = Parser()
    parser.feed(data)
    assert isinstance(parser.next(), redis.exceptions.NoScriptError)


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b"$x\r\n", b"?\r\n", b"*1\r\n&\r\n"])
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    """Bytes of another protocol are an error, and never a reply."""
    parser = Parser()
    parser.feed(data)
    with pytest.raises(redis.InvalidResponse):
        parser.next()


def test_an_interruption_in_the_middle_of_an_answer_loses_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads for another one may be interrupted when its reply is there: the request then goes out once more."""
    pipeline = Pipeline()
    slot = Slot(b"request")
    pipeline.put(slot)
    stream = pipeline.connected()
    stream.proven = True
    pipeline.take()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(Slot, "answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.hear(b"+reply\r\n")
    pipeline.lose(ConnectionError("interrupted"))
    pipeline.connected()
    assert pipeline.take() == [slot]
