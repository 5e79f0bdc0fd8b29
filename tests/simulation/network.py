"""Between processes and server: delays, and messages that are lost, late, or overtaken by others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import redis.exceptions

from kraken_nonce_redis._threads.store import SOCKET_TIMEOUT
from tests.simulation.scheduler import Moment

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from kraken_nonce_redis._redis.commands import Command
    from tests.simulation.history import History
    from tests.simulation.process import Process
    from tests.simulation.scheduler import Scheduler
    from tests.simulation.server import Server

_NEXT = 1e-6  # seconds from one message of a process to the one behind it


@dataclass(eq=False)
class Subscription:
    """A connection on which a process hears of offers.

    Attributes:
        deaf: nothing arrives any more, and the process does not notice.
    """

    process: Process
    deaf: bool = False
    last: float = 0.0


@dataclass(eq=False, slots=True)
class Request:
    """A command on its way.

    Attributes:
        generation: of the server that the connection was made to.
        fate: what happens to it on the way.
        seen: the highest nonce of the key that the process had seen when it sent this.
        moment: the reply.
    """

    process: Process
    command: Command[Any]
    words: tuple[Any, ...]
    generation: int
    fate: str
    seen: int
    moment: Moment = field(default_factory=Moment)


class Network:
    """The way to the server and back.

    Attributes:
        slowest: seconds that a message takes at most.
        trouble: how likely it is that something happens to a message.
        overtaking: whether a late request may come after those that its process has sent later.
        down: nobody gets through to the server.
        stalled_until: the server does nothing until then.
        generation: goes up with each restart of the server, which ends all connections.
    """

    def __init__(self, scheduler: Scheduler, random: Random, server: Server, history: History) -> None:
        self.slowest = random.choice([0.0, 0.0005, 0.005, 0.02])
        self.trouble = 0.0
        self.overtaking = False
        self.down = False
        self.stalled_until = 0.0
        self.generation = 0
        self.subscriptions: dict[str, Subscription] = {}
        self.clock: Callable[[float], int] = lambda now: round(now * 1e6)
        self._scheduler = scheduler
        self._random = random
        self._server = server
        self._history = history
        self._known: set[str] = set()

    def delay(self) -> float:
        """Return how long a message takes."""
        return self._random.random() * self.slowest

    # Connections

    def connect(self, process: Process) -> Moment:
        """Open a connection, which takes a round trip."""
        moment, now = Moment(), self._scheduler.now
        if self._unreachable(process):
            self._fail(moment, lost=self._random.random() < 0.5)
        else:
            self._scheduler.at(max(now, self.stalled_until) + self.delay() + self.delay(), moment.set)
        return moment

    def send(self, process: Process, command: Command[Any], words: tuple[Any, ...], generation: int) -> Moment:
        """Send a request; the moment is its reply, or the error when there is none."""
        now = self._scheduler.now
        fate = "request lost" if self._unreachable(process) else self.fate(process, command)
        if fate == "request lost" or generation != self.generation:
            moment = Moment()
            self._fail(moment, lost=generation == self.generation and self._random.random() < 0.5)
            return moment
        arrives = now + self.delay()
        if fate == "request late":
            arrives += self._random.random() * 2 * SOCKET_TIMEOUT
        if fate != "request late" or not self.overtaking:
            arrives = process.last_arrival = max(arrives, process.last_arrival + _NEXT)
        request = Request(process, command, words, self.generation, fate, self._history.seen_by(process, command))
        self._scheduler.at(arrives, lambda: self._arrive(request))
        if fate != "ok":
            self._time_out(request, now)
        return request.moment

    def fate(self, process: Process, command: Command[Any]) -> str:
        """Return what happens to a request on its way."""
        if not self.trouble or self._random.random() >= self.trouble:
            return "ok"
        fate = self._random.choice(["request lost", "reply lost", "reply late", "request late"])
        self._history.note("network: %s of %s: %s", command.name, process.name, fate)
        return fate

    def _time_out(self, request: Request, sent: float) -> None:
        error = redis.exceptions.TimeoutError("no answer")
        self._scheduler.at(sent + SOCKET_TIMEOUT, lambda: request.moment.fail(error))

    def _unreachable(self, process: Process) -> bool:
        return self.down or self._scheduler.now < process.cut_off_until

    def _fail(self, moment: Moment, *, lost: bool) -> None:
        """Let a request come to nothing: in silence, or with an error at once."""
        if lost:
            error: Exception = redis.exceptions.TimeoutError("no answer")
            self._scheduler.at(self._scheduler.now + SOCKET_TIMEOUT, lambda: moment.fail(error))
        else:
            closed = redis.exceptions.ConnectionError("connection closed")
            self._scheduler.at(self._scheduler.now + self.delay(), lambda: moment.fail(closed))

    def _arrive(self, request: Request) -> None:
        now, process, command = self._scheduler.now, request.process, request.command
        if now < self.stalled_until:
            again = process.last_arrival = max(self.stalled_until, process.last_arrival + _NEXT)
            self._scheduler.at(again, lambda: self._arrive(request))
            self._time_out(request, now)
            return
        if self.down or request.generation != self.generation:
            self._fail(request.moment, lost=False)
            return
        if request.words[0] == "EVALSHA" and command.name not in self._known:
            reply: Any = redis.exceptions.NoScriptError("NOSCRIPT No matching script")
        else:
            self._known.add(command.name)
            self._server.now = self.clock(now)
            reply = self._server.run(command.name, command.keys, request.words[3 + len(command.keys) :])
            self._history.ran(command, reply, request.seen)
        if request.fate == "reply lost":
            self._fail(request.moment, lost=self._random.random() < 0.5)
            return
        late = self._random.random() * 1.1 * SOCKET_TIMEOUT if request.fate == "reply late" else 0.0
        self._scheduler.at(now + late + self.delay(), lambda: self._answer(request.moment, reply))

    @staticmethod
    def _answer(moment: Moment, reply: Any) -> None:
        if isinstance(reply, Exception):
            moment.fail(reply)
        else:
            moment.set(reply)

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
            self._fail(moment, lost=self._random.random() < 0.5)
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

    def publish(self, channel: str, message: str) -> None:
        """Call a waiter."""
        self._history.published(message)
        subscription = self.subscriptions.get(channel)
        if subscription is None or subscription.deaf or self._unreachable(subscription.process):
            return
        if self.trouble and self._random.random() < self.trouble:
            self.cut(subscription)
            return
        when = subscription.last = max(self._scheduler.now + self.delay(), subscription.last + _NEXT)
        self._scheduler.at(when, lambda: subscription.process.hear(subscription, message))

    def cut(self, subscription: Subscription) -> None:
        """Close the connection on which a process hears of offers, which it notices."""
        if self.subscriptions.get(subscription.process.process_state.channel) is subscription:
            del self.subscriptions[subscription.process.process_state.channel]
        when = self._scheduler.now + self.delay()
        self._scheduler.at(when, lambda: subscription.process.hear(subscription, None))

    def restart(self) -> None:
        """End all connections and forget the scripts, as a server does that restarts."""
        self.generation += 1
        self.forget_scripts()
        for subscription in list(self.subscriptions.values()):
            self.cut(subscription)
