"""One connection for many callers, in virtual time: the real `Pipeline` between callers and the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis.exceptions

from kraken_nonce_redis._redis.pipeline import Pipeline, Slot
from kraken_nonce_redis.errors import keeps_connection
from kraken_nonce_redis.urls import SOCKET_TIMEOUT
from tests.simulation.scheduler import Moment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from kraken_nonce_redis._redis.command import Command
    from tests.simulation.history import History
    from tests.simulation.network import Connection, Network
    from tests.simulation.process import Process
    from tests.simulation.scheduler import Scheduler


class Order(Slot):
    """A slot whose command and whose answers the simulation knows.

    Attributes:
        command: what is to be run.
        number: commands with higher ones were begun later.
        said: what the server has answered to it, as bytes of the protocol.
        moment: when it is done.
        handed: when it is with the kernel, or done.
    """

    __slots__ = ("command", "handed", "moment", "number", "said")

    def __init__(
        self,
        command: Command[Any],
        request: Callable[[], bytes],
        number: int,
        on_done: Callable[[Order], object] | None = None,
    ) -> None:
        def done(_: Slot) -> None:
            self.handed.set()
            self.moment.set()
            if on_done is not None:
                on_done(self)

        super().__init__(request(), command.due, done, request)
        self.command = command
        self.number = number
        self.said: list[bytes] = []
        self.moment = Moment()
        self.handed = Moment()


class Pipe:
    """A process's connection for commands, over all the times that it is made anew."""

    def __init__(
        self, process: Process, scheduler: Scheduler, random: Random, network: Network, history: History
    ) -> None:
        self._pipeline = Pipeline()
        self._connection: Connection | None = None
        self._attempt = 0
        self._lost = False
        self._connecting = False
        self._proven = False
        self._heard = 0.0
        self._watched = False
        self._process = process
        self._scheduler = scheduler
        self._random = random
        self._network = network
        self._history = history

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    @property
    def scripts(self) -> set[str]:
        """The names of scripts that the server is known to have."""
        return self._pipeline.scripts

    def begin(self, order: Order) -> None:
        """Send a request, at once or with what another thread is about to send."""
        self._pipeline.put(order)
        if self._random.random() < 0.1:
            self._process.soon(self._write)
        else:
            self._write()

    async def finish(self, order: Order) -> Sequence[Any]:
        """Wait for the replies to a request. An interruption may strike the one who reads or writes for the others."""
        try:
            await order.moment
        except GeneratorExit:
            order.left = True
            raise
        except BaseException:
            order.left = True
            if self._process.has_threads and self._random.random() < 0.4:
                self._strike()
            raise
        order.left = True
        self._history.delivered(order)
        return order.outcome()

    def _strike(self) -> None:
        """Lose the connection with what came in and was not parsed, and with a part of what goes out."""
        if self._connection is not None:
            self._history.note("%s loses its connection by that", self._process.name)
            self._connection.tear()
            self._lose(redis.exceptions.ConnectionError("interrupted"))
        elif self._connecting:
            self._connect()

    def _lose(self, error: Exception) -> None:
        assert self._connection is not None
        assert self._pipeline.stream is not None
        self._network.close(self._connection)
        self._connection = None
        in_flight: list[Any] = list(self._pipeline.stream.in_flight)
        self._pipeline.lose(error)
        if not self._proven:
            self._history.lost(self._process, in_flight)
        self._lost = True
        self._write()

    # Connecting

    def _connect(self) -> None:
        self._attempt += 1
        self._connecting = True
        self._process.start(self._try(self._attempt))

    async def _try(self, attempt: int) -> None:
        try:
            connection = await self._network.connect(self._process, self._read)
        except redis.exceptions.RedisError as error:
            if attempt == self._attempt:
                self._connecting = False
                self._pipeline.fail(error)
        else:
            if attempt != self._attempt:
                self._network.close(connection)
                return
            self._connecting = False
            self._connection = connection
            self._proven = False
            self._pipeline.connected()
            if self._lost:
                self._lost = False
                self._process.process_state.reconnected()
            self._write()

    # Writing and reading

    def _write(self) -> None:
        if not self._pipeline.waiting:
            return
        if self._connection is None:
            if not self._connecting:
                self._connect()
            return
        taken: list[Any] = self._pipeline.take()
        stream = self._pipeline.stream
        if stream is not None and len(stream.in_flight) == len(taken):
            self._heard = self._scheduler.now  # nothing was due before
            self._watch(self._connection)
        if taken:
            self._network.send(self._connection, b"".join([order.request for order in taken]), taken)
        for order in taken:
            order.handed.set()

    def _read(self, connection: Connection) -> None:
        """Take what has come in, for everyone."""
        stream = self._pipeline.stream
        if connection is not self._connection or stream is None:
            return
        data, connection.inbox = connection.inbox, b""
        if data:
            self._heard = self._scheduler.now
            try:
                answered = stream.hear(data)
            except redis.exceptions.InvalidResponse as error:
                self._history.violation(f"{self._process.name} can't tell whose a reply is: {error}")
            self._proven = self._proven or bool(answered)
            for order in answered:
                for reply in order.replies:
                    if isinstance(reply, Exception) and not keeps_connection(reply):
                        self._lose(redis.exceptions.ConnectionError(str(reply)))
                        return
        if connection.ended:
            self._lose(redis.exceptions.ConnectionError("connection closed"))

    def _watch(self, connection: Connection) -> None:
        """Look when a reply would be late, unless somebody does."""
        if not self._watched:
            self._watched = True
            self._process.at(self._heard + SOCKET_TIMEOUT, lambda: self._look(connection))

    def _look(self, connection: Connection) -> None:
        self._watched = False
        self._read(connection)
        if self._connection is None or not self._pipeline.due:
            return
        if self._scheduler.now < self._heard + SOCKET_TIMEOUT:
            self._watch(self._connection)
        else:
            self._lose(redis.exceptions.TimeoutError("no answer"))
