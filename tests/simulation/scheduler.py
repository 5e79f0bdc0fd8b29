"""Virtual time: what happens when, in an order that the seed decides, and coroutines that wait for it."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from random import Random

    Action = Callable[[], object]


class Scheduler:
    """Events by time; those of one time come in random order."""

    def __init__(self, random: Random) -> None:
        self.now = 0.0
        self._random = random.random
        self._heap: list[tuple[float, float, int, Action]] = []
        self._numbers = itertools.count()

    def at(self, when: float, action: Action) -> None:
        """Let something happen at a time, now at the earliest."""
        heapq.heappush(self._heap, (max(when, self.now), self._random(), next(self._numbers), action))

    def step(self) -> bool:
        """Let the next event happen; return whether there was one."""
        if not self._heap:
            return False
        self.now, _, _, action = heapq.heappop(self._heap)
        action()
        return True


class Moment:
    """Something that one task waits for and that happens once: a result or an error."""

    __slots__ = ("_error", "_task", "_value", "over")

    def __init__(self) -> None:
        self.over = False
        self._task: Task | None = None
        self._value: Any = None
        self._error: Exception | None = None

    def set(self, value: Any = None) -> None:
        """Let it be; the second time changes nothing."""
        if not self.over:
            self.over = True
            self._value = value
            if self._task is not None:
                self._task.wake()

    def fail(self, error: Exception) -> None:
        """Let it be an error."""
        if not self.over:
            self._error = error
            self.set()

    def waited_for_by(self, task: Task) -> None:
        """Note whom to wake."""
        self._task = task
        if self.over:
            task.wake()

    def __await__(self) -> Generator[Moment, None, Any]:
        if not self.over:
            yield self
        if self._error is not None:
            raise self._error
        return self._value


class Runs(Protocol):
    """What tasks run in."""

    def soon(self, action: Action) -> None:
        """Let something happen in a moment, as far as the process runs."""
        ...


class Task:
    """A coroutine that waits for moments."""

    def __init__(self, process: Runs, coroutine: Coroutine[Moment, None, None]) -> None:
        self.over = False
        self._process = process
        self._coroutine = coroutine
        self._moment: Moment | None = None
        self.wake()

    def wake(self) -> None:
        """Go on soon, if what it waits for has happened by then."""
        self._process.soon(self._go_on)

    def interrupt(self, error: BaseException) -> None:
        """Throw an error in where it waits, soon."""
        self._process.soon(lambda: self._go_on(error))

    def close(self) -> None:
        """End it where it waits, at once, as the garbage collector does."""
        self.over = True
        self._coroutine.close()

    def _go_on(self, error: BaseException | None = None) -> None:
        if self.over or (error is None and self._moment is not None and not self._moment.over):
            return
        try:
            moment = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        except StopIteration:
            self.over = True
        except BaseException:
            self.over = True
            raise
        else:
            self._moment = moment
            moment.waited_for_by(self)


class Turn:
    """One at a time; who is next is a matter of chance, as it is with `threading.Lock`."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._taken = False
        self._line: list[Moment] = []

    async def __aenter__(self) -> None:
        if not self._taken:
            self._taken = True
            return
        moment = Moment()
        self._line.append(moment)
        try:
            await moment
        except BaseException:
            if moment.over:
                self._leave()
            else:
                self._line.remove(moment)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._line:
            self._line.pop(self._random.randrange(len(self._line))).set()
        else:
            self._taken = False
