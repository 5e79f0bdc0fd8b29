"""The third shell, beside those for threads and asyncio: carries out the same flows and chores in virtual time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import redis.exceptions
from redis.exceptions import NoScriptError, RedisError

from kraken_nonce_redis._core.agenda import Agenda
from kraken_nonce_redis._core.process_state import ProcessState
from kraken_nonce_redis._core.steps import Pause, Run, Tell
from kraken_nonce_redis._core.waiters import Question
from kraken_nonce_redis.errors import KrakenNonceError, raise_from_redis
from tests.simulation.pipe import Order, Pipe
from tests.simulation.scheduler import Moment, Task, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from random import Random

    from kraken_nonce_redis._core.agenda import Chore
    from kraken_nonce_redis._core.steps import Flow, Step
    from kraken_nonce_redis._core.waiters import Waiter
    from kraken_nonce_redis._redis.command import Command
    from tests.simulation.history import History
    from tests.simulation.network import Network, Subscription
    from tests.simulation.scheduler import Scheduler

T = TypeVar("T")


class _State(ProcessState):
    """What a process knows, which reports what it owes."""

    def __init__(self, name: str, agenda: Agenda, owes: Callable[[Command[Any], float], None]) -> None:
        super().__init__(agenda, process_id=name)
        self._owes = owes

    def give_back(self, command: Command[Any], seconds: float) -> None:
        """Leave a release to the agenda."""
        self._owes(command, seconds)
        super().give_back(command, seconds)


class Process:
    """One process: what it knows, its two connections, its tasks. It can be killed, and stopped for a while.

    Attributes:
        has_threads: its callers are threads, of which one reads and writes for the others, and not an event loop's
            tasks.
    """

    def __init__(self, name: str, scheduler: Scheduler, random: Random, network: Network, history: History) -> None:
        self.name = name
        self.process_state = _State(name, Agenda(self._chores_changed), functools.partial(history.owes, self))
        self.crashed = False
        self.stopped_until = 0.0
        self.cut_off_until = 0.0
        self.last_arrival = 0.0
        self.subscribed = 0
        self.has_threads = random.random() < 0.5
        self.tasks: list[Task] = []
        self._scheduler = scheduler
        self._random = random
        self._network = network
        self._history = history
        self._pipe = Pipe(self, scheduler, random, network, history)
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
        self._scheduler.at(when, functools.partial(self.happen, action))

    def happen(self, action: Callable[[], object]) -> None:
        """Let something happen in the process now, or when it goes on, or never when it is killed."""
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
        number = next(self._history.numbers)
        for release in self.process_state.owed(command):
            await self._run(release, number)
            self.process_state.returned(release)
        result = await self._run(command, number)
        if self._random.random() < 0.03:
            await self.sleep(self._random.random() * 0.05)  # a thread may have to wait here while others go on
        return result

    async def _run(self, command: Command[T], number: int, *, whole: bool = False) -> T:
        try:
            try:
                result: T = await self._finish(self._begin(command, number, whole=whole))
            except NoScriptError:
                result = await self._finish(self._begin(command, number, whole=True))
        except RedisError as error:
            raise_from_redis(error, command.name, command.key_of(error))
        return result

    def _begin(
        self,
        command: Command[Any],
        number: int,
        *,
        whole: bool = False,
        on_done: Callable[[Order], object] | None = None,
    ) -> Order:
        request = functools.partial(self.process_state.request, command, whole=whole)
        order = Order(command, request, number, on_done)
        self._pipe.begin(order)
        return order

    async def _finish(self, order: Order) -> Any:
        try:
            replies = await self._pipe.finish(order)
        finally:
            order.command.repeated |= order.sent > 1
        return self._result(order.command, replies)

    def _result(self, command: Command[T], replies: Sequence[Any]) -> T:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        result = command.result(replies[0])
        self.process_state.learn(command, result)
        self._history.answered(self, command, result)
        return result

    async def tell(self, step: Tell) -> None:
        """Hand a release over and go on, as the stores do."""
        self._history.hands_over(step.command)
        if self.process_state.owed(step.command) or not (self.has_threads or self._pipe.is_open):
            step.answered(await self.run(step.command))
            return

        def on_done(order: Order) -> None:
            step.command.repeated |= order.sent > 1
            self._history.heard(order)
            try:
                self._history.delivered(order)
                result = self._result(step.command, order.outcome())
            except (RedisError, KrakenNonceError):
                step.lost()
            else:
                self._pipe.scripts.add(step.command.name)
                step.answered(result)

        whole = step.command.name not in self._pipe.scripts
        order = self._begin(step.command, next(self._history.numbers), whole=whole, on_done=on_done)
        self._history.tells(self, order)
        await order.handed

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
        if isinstance(step, Tell):
            return await self.tell(step)
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
            except RedisError as error:
                raise_from_redis(error, "subscribe", self.process_state.channel)
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
            begun = list(filter(None, map(self._begin_chore, iter(lambda: agenda.pop(self._scheduler.now), None))))
            for chore, order in begun:
                if self.has_threads:
                    await self._finish_chore(chore, order)
                else:
                    self.start(self._finish_chore(chore, order))
            if begun:
                continue
            due = agenda.next_due()
            if due is None:
                self._changed = None
                return
            self._changed = Moment()
            self.at(due, self._changed.set)
            await self._changed

    def _begin_chore(self, chore: Chore) -> tuple[Chore, Order] | None:
        command = chore.command(self._scheduler.now)
        if command is None:
            return None
        if not isinstance(chore, Question):
            self._history.sends(self, command)
        return chore, self._begin(command, next(self._history.numbers))

    async def _finish_chore(self, chore: Chore, order: Order) -> None:
        command = order.command
        try:
            try:
                result = await self._finish(order)
            except RedisError as error:
                result = await self._run(command, order.number, whole=isinstance(error, NoScriptError))
        except KrakenNonceError as error:
            due = chore.failed(error, self._scheduler.now)
        else:
            due = chore.succeeded(command, result, self._scheduler.now)
        if due is not None:
            self.process_state.agenda.add(due, chore)
