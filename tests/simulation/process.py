"""The third shell, beside those for threads and asyncio: carries out the same flows and chores in virtual time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import redis.exceptions

from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.steps import Pause, Run
from kraken_nonce_redis._core.waiting import ProcessState, doing
from kraken_nonce_redis.errors import StoreUnavailable, from_redis, keeps_connection
from tests.simulation.scheduler import Moment, Task, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from random import Random

    from kraken_nonce_redis._core.steps import Flow, Step
    from kraken_nonce_redis._core.waiting import Waiter
    from kraken_nonce_redis._redis.commands import Command
    from tests.simulation.history import History
    from tests.simulation.network import Network, Subscription
    from tests.simulation.scheduler import Scheduler

T = TypeVar("T")


class Process:
    """One process: what it knows, its two connections, its tasks. It can be killed, and stopped for a while."""

    def __init__(self, name: str, scheduler: Scheduler, random: Random, network: Network, history: History) -> None:
        self.name = name
        self.process_state = ProcessState(Agenda(self._chores_changed), process_id=name)
        self.crashed = False
        self.stopped_until = 0.0
        self.cut_off_until = 0.0
        self.last_arrival = 0.0
        self.subscribed = 0
        self.tasks: list[Task] = []
        self._scheduler = scheduler
        self._random = random
        self._network = network
        self._history = history
        self._turn = Turn(random)
        self._connected = -1  # the server's generation, or -1
        self._proven = False
        self._failures = 0
        self._failed_for = 0.0
        self._listening = Turn(random)
        self._subscription: Subscription | None = None
        self._changed: Moment | None = None

    # Life

    @property
    def runs(self) -> bool:
        """Whether it lives and is not stopped."""
        return not self.crashed and self._scheduler.now >= self.stopped_until

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Let something happen in the process at a time, or when it goes on after that, or never when it is killed."""
        self._scheduler.at(when, functools.partial(self._happen, action))

    def _happen(self, action: Callable[[], object]) -> None:
        if self.crashed:
            return
        if self._scheduler.now < self.stopped_until:
            self.at(self.stopped_until, action)
        else:
            action()

    def soon(self, action: Callable[[], object]) -> None:
        """Let something happen in the process: at once, or when a busy machine comes to it."""
        chance = self._random.random()
        self.at(self._scheduler.now + (0.02 * chance if chance < 0.05 else 0.0), action)

    def start(self, coroutine: Coroutine[Moment, None, None]) -> Task:
        """Start a task."""
        task = Task(self, coroutine)
        self.tasks.append(task)
        return task

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        moment = Moment()
        self.at(self._scheduler.now + seconds, moment.set)
        await moment

    # Commands

    async def run(self, command: Command[T]) -> T:
        """Run a command and return its result, as the stores do."""
        failures, entered = self._failures, self._scheduler.now
        async with self._turn:
            began = self._scheduler.now
            if self._failures != failures and began - entered > self._failed_for / 2:
                raise StoreUnavailable(command.name, command.keys[0], "Redis failed the call before, too")
            self._history.sends(self, command)
            try:
                try:
                    raw = await self._send(command, self.process_state.evalsha(command))
                except redis.exceptions.NoScriptError:
                    raw = await self._send(command, self.process_state.eval(command))
            except redis.exceptions.RedisError as error:
                failure = from_redis(error, command.name, command.keys[0])
                if isinstance(failure, StoreUnavailable):
                    self._failures += 1
                    self._failed_for = self._scheduler.now - began
                raise failure from error
            result = command.result(raw)
            self.process_state.learn(command, result)
            self._history.answered(self, command, result)
        if self._random.random() < 0.03:
            await self.sleep(self._random.random() * 0.05)  # a thread may have to wait here while others go on
        return result

    async def _send(self, command: Command[Any], words: tuple[Any, ...]) -> Any:
        if self._proven:
            try:
                return await self._exchange(command, words)
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                command.repeated = True
        return await self._exchange(command, words)

    async def _exchange(self, command: Command[Any], words: tuple[Any, ...]) -> Any:
        try:
            if self._connected < 0:
                await self._network.connect(self)
                self._connected = self._network.generation
            reply = await self._network.send(self, command, words, self._connected)
        except BaseException as error:
            self._proven = keeps_connection(error)
            if not self._proven:
                self._connected = -1
            raise
        self._proven = True
        return reply

    async def drive(self, flow: Flow[T]) -> T:
        """Carry out a flow's steps and return what it comes to, as the stores do."""
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._carry_out(step)
                except BaseException as error:  # noqa: BLE001 - the flow cleans up and raises it again
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Run):
            return await self.run(step.command)
        if isinstance(step, Pause):
            return await self._pause(step.waiter, step.until)
        return await self._listen()

    async def _pause(self, waiter: Waiter, until: float | None) -> None:
        waiter.signal = signal = Moment()
        if waiter.woken:
            return
        if until is not None:
            self.at(until, signal.set)
        await signal

    # Offers

    async def _listen(self) -> None:
        async with self._listening:
            if self.process_state.listening:
                return
            self._subscription = None
            try:
                try:
                    self._subscription = await self._network.subscribe(self)
                except redis.exceptions.ConnectionError:
                    self._subscription = await self._network.subscribe(self)
            except redis.exceptions.RedisError as error:
                raise from_redis(error, "subscribe", self.process_state.channel) from error
            self.process_state.hear({"type": "subscribe"})

    def hear(self, subscription: Subscription, message: str | None) -> None:
        """Take a call, or None when the connection is closed."""

        def take() -> None:
            if subscription is not self._subscription:
                return
            if message is not None:
                self.process_state.hear({"type": "message", "data": message})
                return
            self._subscription = None
            self.process_state.listening = False
            self.process_state.ask_again()

        self.soon(take)

    # Chores

    def _chores_changed(self) -> None:
        if self.crashed:
            return
        if self._changed is None:
            self._changed = Moment()
            self.start(self._do_chores())
        else:
            self._changed.set()

    async def _do_chores(self) -> None:
        agenda = self.process_state.agenda
        while True:
            chore = agenda.pop(self._scheduler.now)
            if chore is not None:
                await self.drive(doing(agenda, chore))
                continue
            due = agenda.next_due()
            if due is None:
                self._changed = None
                return
            self._changed = Moment()
            self.at(due, self._changed.set)
            await self._changed
