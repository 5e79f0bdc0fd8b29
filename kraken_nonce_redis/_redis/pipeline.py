"""One connection, many callers: who said what, and whose reply comes next; no I/O.

A caller puts a `Slot` with its bytes into the outbox. Whoever writes takes all that is there into flight, in one order,
and the server answers in that order. A caller that goes away leaves its slot, whose reply is thrown away when it comes.
When a connection that had worked is lost, what was in flight is sent once more over the next one, in the same order and
before anything new; every script of ours may run twice.

Nothing here waits or locks. The shells see to it that one thread at a time writes (`take`, `lose`, `connected`, `fail`)
and one reads (`hear`); `put` may be called by any thread at any time. No step loses a slot when an exception strikes
in the middle of it, as an interruption can.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from redis.exceptions import InvalidResponse

from kraken_nonce_redis._redis.resp import INCOMPLETE, Parser, Push

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Slot:
    """One request, or several that must stay together, and what became of it.

    Attributes:
        request: the bytes.
        renew: makes the bytes for the next time when they go out again, since what they say may be out of date: the
            floor has risen, and the server that gets them may have lost what it knew.
        due: how many replies they bring.
        replies: these, errors of the server among them; empty until all are there.
        failure: why they never came, instead.
        done: whether there are replies or a failure.
        left: whether the caller is gone, so that nobody needs the replies.
        sent: how often the request was handed to a connection.
        lock: what the caller sleeps on, for threads.
    """

    __slots__ = ("_on_done", "done", "due", "failure", "left", "lock", "renew", "replies", "request", "sent")

    def __init__(
        self,
        request: bytes,
        due: int = 1,
        on_done: Callable[[Slot], object] | None = None,
        renew: Callable[[], bytes] | None = None,
    ) -> None:
        self.request = request
        self.renew = renew
        self.due = due
        self.replies: Sequence[Any] = ()
        self.failure: Exception | None = None
        self.done = False
        self.left = False
        self.sent = 0
        self.lock: Any = None
        self._on_done = on_done

    def answer(self, replies: Sequence[Any]) -> None:
        """Take the replies and let the caller know."""
        self.replies = replies
        self._finish()

    def fail(self, error: Exception) -> None:
        """Take note that there won't be any, and let the caller know."""
        self.failure = error
        self._finish()

    @property
    def succeeded(self) -> bool:
        """Whether there are replies, and no error among them."""
        return self.done and self.failure is None and not any(isinstance(reply, Exception) for reply in self.replies)

    def outcome(self) -> Sequence[Any]:
        """Return the replies, or raise the failure."""
        if self.failure is not None:
            raise self.failure
        return self.replies

    def _finish(self) -> None:
        self.done = True
        if self._on_done is not None:
            self._on_done(self)
        self.wake()

    def wake(self) -> None:
        """Wake the caller if it sleeps."""
        if self.lock is not None:
            with contextlib.suppress(RuntimeError):  # it is awake already
                self.lock.release()


class Stream:
    """The replies of one connection, and whose they are.

    Attributes:
        in_flight: what was sent and is not answered, in order.
        proven: whether anything was answered.
        scripts: names of scripts that the server is known to have.
    """

    def __init__(self) -> None:
        self.in_flight: deque[Slot] = deque()
        self.proven = False
        self.scripts: set[str] = set()
        self._parser = Parser()
        self._replies: list[Any] = []

    def hear(self, data: bytes) -> list[Slot]:
        """Take bytes that came in; return the slots that were answered. Raises redis-py's `InvalidResponse`.

        After any exception the stream is of no use: a reply may be lost, and the next one would go to the wrong slot.
        """
        answered: list[Slot] = []
        self._parser.feed(data)
        while (reply := self._parser.next()) is not INCOMPLETE:
            if isinstance(reply, Push):
                continue
            if not self.in_flight:
                raise InvalidResponse("the server has answered more than it was asked")
            slot = self.in_flight[0]
            self._replies.append(reply)
            if len(self._replies) == slot.due:
                replies, self._replies = self._replies, []
                slot.answer(replies)
                self.in_flight.popleft()  # not before it is answered, or an interruption between the two would lose it
                answered.append(slot)
        self.proven = self.proven or bool(answered)
        return answered


class Pipeline:
    """The requests of one connection, over all the times that it is made anew.

    Args:
        resend: whether what was in flight goes out once more when a connection is lost that had worked.
    """

    def __init__(self, *, resend: bool = True) -> None:
        self.stream: Stream | None = None
        self._outbox: deque[Slot] = deque()
        self.resend = resend

    @property
    def waiting(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._outbox)

    @property
    def number(self) -> int:
        """How many requests wait to be sent."""
        return len(self._outbox)

    @property
    def due(self) -> bool:
        """Whether a reply is due."""
        return self.stream is not None and bool(self.stream.in_flight)

    @property
    def scripts(self) -> set[str]:
        """The names of scripts that the server at the other end is known to have."""
        return set() if self.stream is None else self.stream.scripts

    def put(self, slot: Slot) -> None:
        """Let a request go out with the next bytes."""
        self._outbox.append(slot)

    def sleeper(self) -> Slot | None:
        """Return the first slot whose caller sleeps."""
        in_flight = [] if self.stream is None else list(self.stream.in_flight)
        for slot in in_flight + list(self._outbox):
            if slot.lock is not None and not slot.done and not slot.left:
                return slot
        return None

    def connected(self) -> Stream:
        """Begin with a new connection."""
        self.stream = Stream()
        return self.stream

    def take(self) -> list[Slot]:
        """Take all that waits into flight and return it. A request whose caller is gone is not sent at all."""
        assert self.stream is not None  # noqa: S101 - the shells connect first
        taken: list[Slot] = []
        while self._outbox:
            slot = self._outbox[0]
            if not slot.done and not slot.left:
                if slot.sent and slot.renew is not None:
                    slot.request = slot.renew()
                self.stream.in_flight.append(slot)
                slot.sent += 1
                taken.append(slot)
            self._outbox.popleft()
        return taken

    def lose(self, error: Exception) -> None:
        """Take note that the connection is gone: what was in flight waits again, or fails."""
        stream = self.stream
        if stream is None:
            return
        again: list[Slot] = []
        for slot in list(stream.in_flight):
            if slot.done or slot.left:
                continue  # nobody wants it sent late
            if self.resend and stream.proven and slot.sent == 1:
                again.append(slot)
            else:
                slot.fail(error)
        if again and self._outbox and again[-1] is self._outbox[0]:
            again.pop()  # an interruption struck between the two
        self._outbox.extendleft(reversed(again))
        self.stream = None

    def fail(self, error: Exception, most: int | None = None) -> None:
        """Let what waits fail, the first ``most`` or all: there is no connection to be had.

        A caller that came while somebody was connecting already is owed an attempt that begins after it came.
        """
        for _ in range(len(self._outbox) if most is None else most):
            if not self._outbox:
                return
            slot = self._outbox[0]
            if not slot.done:
                slot.fail(error)
            self._outbox.popleft()
