"""Between processes and server: delays, and bytes that are lost, late, cut anywhere, or overtaken by others."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import redis.exceptions

from kraken_nonce_redis._redis import scripts
from kraken_nonce_redis.urls import SOCKET_TIMEOUT
from tests.simulation.scheduler import Moment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from tests.simulation.history import History
    from tests.simulation.pipe import Order
    from tests.simulation.process import Process
    from tests.simulation.scheduler import Scheduler
    from tests.simulation.server import Server

_NEXT = 1e-6  # seconds from one message of a process to the one behind it
_FATES = ("request lost", "request half", "request late", "reply lost", "reply half", "reply late")
_NO_SCRIPT = b"-NOSCRIPT No matching script\r\n"
_READ_ONLY = b"-READONLY You can't write against a read only replica.\r\n"
_FULL = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
_PUSH = b">3\r\n+message\r\n+c\r\n+m\r\n"


@dataclass(eq=False)
class Subscription:
    """A connection on which a process hears of offers.

    Attributes:
        deaf: nothing arrives any more, and the process does not notice.
    """

    process: Process
    deaf: bool = False
    last: float = 0.0


class Sent(NamedTuple):
    """A request on its way.

    Attributes:
        request: its bytes.
        fate: what happens to the reply.
        seen: the highest nonce of the key that the process had seen when it sent this.
    """

    order: Order
    request: bytes
    fate: str
    seen: int


@dataclass(eq=False, slots=True)
class Connection:
    """A connection for commands: both its ends, and what is on the way between them.

    Attributes:
        readable: to be called when there is something to read, or the end.
        inbox: bytes that have come to the process's machine and that nobody has read.
        ended: nothing comes any more, and the process can see that.
        broken: what is sent from now on is lost.
        mute: nothing comes back any more.
        gone: the server has closed its end.
        demoted: it leads to a server that has become a replica.
        sent: what is on its way to the server, in order.
        unread: the beginning of a request of which the end has not come.
        torn: of what is on its way only a part arrives.
    """

    process: Process
    readable: Callable[[Connection], object]
    inbox: bytes = b""
    ended: bool = False
    broken: bool = False
    mute: bool = False
    gone: bool = False
    demoted: bool = False
    sent: deque[Sent] = field(default_factory=deque)
    unread: bytes = b""
    torn: bool = False
    arrived: float = 0.0
    came: float = 0.0

    def tear(self) -> None:
        """Let a part of what was sent last be all that arrives."""
        self.torn = True


class Network:
    """The way to the server and back.

    Attributes:
        slowest: seconds that a message takes at most.
        trouble: how likely it is that something happens to a message.
        overtaking: whether a late request may come after those that its process has sent later.
        down: nobody gets through to the server.
        stalled_until: the server does nothing until then.
        full: the server refuses to write.
        connections: those for commands.
    """

    def __init__(self, scheduler: Scheduler, random: Random, server: Server, history: History) -> None:
        self.slowest = random.choice([0.0, 0.0005, 0.005, 0.02])
        self.trouble = 0.0
        self.overtaking = False
        self.down = False
        self.stalled_until = 0.0
        self.full = False
        self.connections: list[Connection] = []
        self.subscriptions: dict[str, Subscription] = {}
        self.clock: Callable[[float], int] = lambda now: round(now * 1e6)
        self._scheduler = scheduler
        self._random = random
        self._server = server
        self._history = history
        self._known: set[str] = set()
        self._unserved: list[tuple[Connection, bytes]] = []

    def delay(self) -> float:
        """Return how long a message takes."""
        return self._random.random() * self.slowest

    # Connections

    def connect(self, process: Process, readable: Callable[[Connection], object]) -> Moment:
        """Open a connection, which takes a round trip."""
        moment, now = Moment(), self._scheduler.now
        if self._unreachable(process):
            self._fail(moment)
            return moment

        def connected() -> None:
            if self._unreachable(process):
                self._fail(moment)
                return
            connection = Connection(process, readable)
            self.connections.append(connection)
            moment.set(connection)

        self._scheduler.at(max(now, self.stalled_until) + self.delay() + self.delay(), connected)
        return moment

    def close(self, connection: Connection) -> None:
        """Close the process's end; what was sent may still arrive."""
        connection.ended = connection.broken = connection.mute = True
        if connection in self.connections:
            self.connections.remove(connection)

    def send(self, connection: Connection, data: bytes, orders: Sequence[Order]) -> None:
        """Send requests."""
        process = connection.process
        fate, struck = ("request lost", -1) if self._unreachable(process) else self.fate(process, orders)
        for number, order in enumerate(orders):
            self._history.sent(process, order)
            seen = self._history.seen_by(process, order.command)
            connection.sent.append(Sent(order, order.request, fate if number == struck else "ok", seen))
            if self.overtaking and order.sent > 1:
                self._deliver_late(connection, order, seen)
        if connection.broken:
            return
        arrives = self._scheduler.now + self.delay()
        if fate == "request late":
            arrives += self._random.random() * 2 * SOCKET_TIMEOUT
        elif fate in {"request lost", "request half"}:
            data = data[: self._random.randrange(len(data)) if fate == "request half" else 0]
            connection.broken = True
            self._end(connection)
        # Bytes of one connection never overtake each other, those of an earlier one may.
        before = connection.arrived if self.overtaking else process.last_arrival
        connection.arrived = process.last_arrival = max(arrives, before + _NEXT)
        self._scheduler.at(connection.arrived, lambda: self._arrive(connection, data))

    def _deliver_late(self, connection: Connection, order: Order, seen: int) -> None:
        """Let another copy of what was sent once more arrive late, over a connection that its process has given up."""
        words = order.request.split(b"\r\n")[2::2]
        when = self._scheduler.now + self._random.random() * 4 * SOCKET_TIMEOUT
        self._scheduler.at(when, lambda: self._run(connection, order, words, seen))

    def fate(self, process: Process, orders: Sequence[Order]) -> tuple[str, int]:
        """Return what happens to requests that go out together, and to which reply, -1 if to none."""
        if not self.trouble or self._random.random() >= self.trouble:
            return "ok", -1
        fate = self._random.choice(_FATES)
        self._history.note("network: %d requests of %s: %s", len(orders), process.name, fate)
        return fate, self._random.randrange(len(orders)) if fate.startswith("reply") else -1

    def _unreachable(self, process: Process) -> bool:
        return self.down or self._scheduler.now < process.cut_off_until

    def _end(self, connection: Connection) -> None:
        """Let the process see after a while that its connection is gone, or hear nothing more."""
        if self._random.random() < 0.5:
            self._scheduler.at(self._scheduler.now + self.delay(), lambda: self._come(connection, b"", ended=True))

    def _fail(self, moment: Moment) -> None:
        """Let an attempt come to nothing: in silence, or with an error at once."""
        now = self._scheduler.now
        if self._random.random() < 0.5:
            error: Exception = redis.exceptions.TimeoutError("no answer")
            self._scheduler.at(now + SOCKET_TIMEOUT, lambda: moment.fail(error))
        else:
            closed = redis.exceptions.ConnectionError("connection closed")
            self._scheduler.at(now + self.delay(), lambda: moment.fail(closed))

    # The server's end

    def _arrive(self, connection: Connection, data: bytes) -> None:
        if connection.gone:
            return
        if connection.torn:
            connection.gone = True
            data = data[: self._random.randrange(len(data) + 1)]
        if self._scheduler.now < self.stalled_until or self._unserved:
            if not self._unserved:
                self._scheduler.at(self.stalled_until, self._go_on)
            self._unserved.append((connection, data))
        else:
            self._serve(connection, data)

    def _go_on(self) -> None:
        """Serve all that has come while the server did nothing."""
        if self._scheduler.now < self.stalled_until:
            self._scheduler.at(self.stalled_until, self._go_on)
            return
        unserved, self._unserved = self._unserved, []
        for connection, data in unserved:
            self._serve(connection, data)

    def _serve(self, connection: Connection, data: bytes) -> None:
        """Run all requests of which the end has come, and answer."""
        answer, late = b"", 0.0
        data = connection.unread + data
        while connection.sent and data.startswith(connection.sent[0].request):
            order, request, fate, seen = connection.sent.popleft()
            data = data[len(request) :]
            reply = self._run(connection, order, request.split(b"\r\n")[2::2], seen)
            order.said.append(reply)
            if connection.mute:
                continue
            if self._random.random() < 0.02:
                answer += _PUSH
            if fate == "reply late":
                late = self._random.random() * 1.1 * SOCKET_TIMEOUT
            elif fate != "ok":
                reply = reply[: self._random.randrange(1, len(reply)) if fate == "reply half" else 0]
                connection.mute = True
                self._end(connection)
            answer += reply
        connection.unread = data
        if answer:
            self._say(connection, answer, late)

    def _run(self, connection: Connection, order: Order, words: Sequence[bytes], seen: int) -> bytes:
        verb, script, count, *rest = words
        name = _scripts()[script]
        if self.full or connection.demoted:
            return _FULL if self.full else _READ_ONLY
        if verb == b"EVALSHA" and name not in self._known:
            return _NO_SCRIPT
        self._known.add(name)
        self._server.now = self.clock(self._scheduler.now)
        arguments = [word.decode() for word in rest]
        keys = arguments[: int(count)]
        reply = self._server.run(name, keys, arguments[len(keys) :])
        self._history.ran(connection.process, order, reply, seen)
        return b"$%d\r\n%b\r\n" % (len(reply.encode()), reply.encode())

    def _say(self, connection: Connection, data: bytes, late: float) -> None:
        """Let bytes come to the process, in one piece or in two."""
        pieces = [data]
        if self._random.random() < 0.1:
            cut = self._random.randrange(len(data))
            pieces = [data[:cut], data[cut:]]
        for piece in pieces:
            when = connection.came = max(self._scheduler.now + late + self.delay(), connection.came + _NEXT)
            self._scheduler.at(when, functools.partial(self._come, connection, piece))

    @staticmethod
    def _come(connection: Connection, data: bytes, *, ended: bool = False) -> None:
        if not connection.ended:
            connection.inbox += data
            connection.ended = ended
            connection.process.happen(lambda: connection.readable(connection))

    def forget_scripts(self) -> None:
        """Flush the script cache."""
        self._known.clear()

    # Offers

    def subscribe(self, process: Process) -> Moment:
        """Let a process hear of offers from now on, over a new connection."""
        moment = Moment()
        process.subscribed += 1
        number = process.subscribed
        if self._unreachable(process) or (self.trouble and self._random.random() < self.trouble):
            self._fail(moment)
            return moment
        arrives = max(self._scheduler.now, self.stalled_until) + 3 * self.delay()

        def arrive() -> None:
            if number < process.subscribed:
                return  # it has closed this connection and opened another
            subscription = Subscription(process)
            self.subscriptions[process.process_state.channel] = subscription
            subscription.last = self._scheduler.now + self.delay()
            self._scheduler.at(subscription.last, lambda: moment.set(subscription))

        self._scheduler.at(arrives, arrive)
        return moment

    def publish(self, channel: str, message: str) -> int:
        """Call a waiter; return how many connections the server knows that it goes to."""
        self._history.published(message)
        subscription = self.subscriptions.get(channel)
        if subscription is None:
            return 0
        if subscription.deaf or self._unreachable(subscription.process):
            return 1
        if self.trouble and self._random.random() < self.trouble:
            self.cut(subscription)
            return 1
        when = subscription.last = max(self._scheduler.now + self.delay(), subscription.last + _NEXT)
        self._scheduler.at(when, lambda: subscription.process.hear(subscription, message))
        return 1

    def vanish(self, process: Process) -> None:
        """Let the server see at once that a process has ended."""
        self.subscriptions.pop(process.process_state.channel, None)

    def cut(self, subscription: Subscription) -> None:
        """Close the connection on which a process hears of offers, which it notices."""
        if self.subscriptions.get(subscription.process.process_state.channel) is subscription:
            del self.subscriptions[subscription.process.process_state.channel]
        when = self._scheduler.now + self.delay()
        self._scheduler.at(when, lambda: subscription.process.hear(subscription, None))

    def restart(self) -> None:
        """End all connections and forget the scripts, as a server does that restarts."""
        self.forget_scripts()
        for connection in self.connections:
            self._leave(connection)
        for subscription in list(self.subscriptions.values()):
            self.cut(subscription)

    def fail_over(self) -> None:
        """Go on with another server; the old one ends its connections, or refuses to write."""
        for connection in self.connections:
            if self._random.random() < 0.5:
                connection.demoted = True
            else:
                self._leave(connection)
        self.forget_scripts()
        for subscription in list(self.subscriptions.values()):
            self.cut(subscription)

    def _leave(self, connection: Connection) -> None:
        """Close the server's end: what it has said may come or not, what it has not read is lost."""
        connection.gone = connection.broken = True
        self._unserved = [entry for entry in self._unserved if entry[0] is not connection]
        when = self._scheduler.now + self.delay()
        self._scheduler.at(when, lambda: self._come(connection, b"", ended=True))


@functools.cache
def _scripts() -> dict[bytes, str]:
    """Return the names of the scripts by what they may be called by."""
    loaded = [scripts.load(name) for name in scripts.names()]
    return {text.encode(): script.name for script in loaded for text in (script.sha, script.source)}
