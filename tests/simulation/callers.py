"""What callers do: hold the lock, nested and renewed, too long or not long enough; reserve nonces, and raise them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._core.allocator import AllocatorCore
from kraken_nonce_redis._core.lease import LeaseCore
from kraken_nonce_redis._core.wishes import Wishes
from kraken_nonce_redis.errors import HoldTimeout, LeaseLost, NonceTooFarAhead, StoreError
from kraken_nonce_redis.events import LeaseEndedEarly
from tests.simulation.records import LONGEST_COOL_DOWN, Acquisition

if TYPE_CHECKING:
    from random import Random

    from kraken_nonce_redis._core.lock import LockCore
    from kraken_nonce_redis._core.waiting import Acquired
    from kraken_nonce_redis.events import Event
    from tests.simulation.history import History
    from tests.simulation.process import Process

HOUR = 3_600 * 10**9


class Interrupted(BaseException):
    """What Ctrl-C and cancellation are: no `Exception`."""


class Lease(LeaseCore):
    """A lease that reports when it is renewed."""

    def __init__(self, lock: LockCore[Lease], acquired: Acquired, caller: Caller, acquisition: Acquisition) -> None:
        self._acquisition = acquisition
        self._history = caller._history
        super().__init__(lock, acquired, caller)

    def _renewed(self, nonces: range, deadline: float) -> None:
        super()._renewed(nonces, deadline)
        self._history.renewed(self._acquisition)


class Caller:
    """A thread or task that uses one lock again and again.

    Attributes:
        process: where it runs.
        acquisition: the one that it is busy with.
        raises: whether it raises nonces ahead of the clock at times.
    """

    def __init__(
        self, name: str, process: Process, lock: LockCore[Lease], random: Random, history: History, *, raises: bool
    ) -> None:
        self.name = name
        self.acquisition: Acquisition | None = None
        self.process = process
        self._lock = lock
        self._random = random
        self._history = history
        self._allocator = AllocatorCore(lock.keys, HOUR, durable=False)
        self._raises = raises
        self._by_nonce: dict[int, Acquisition] = {}
        lock._on_event = self._hear

    async def live(self, sections: int, spread: float, high: float) -> None:
        """Hold the lock so many times, with pauses of up to ``spread`` seconds; ``high`` is how likely it is urgent."""
        random = self._random
        try:
            for number in range(sections):
                await self.process.sleep(random.random() * spread)
                if random.random() < 0.15:
                    await self._do_without()
                else:
                    await self._hold(f"{self.name}.{number}", high=random.random() < high)
        except Interrupted:
            pass

    async def _do_without(self) -> None:
        """Do something that takes no lock."""
        random, process = self._random, self.process
        chance = random.random()
        try:
            if chance < 0.3:
                seconds = random.choice([0, 0.1, 1, LONGEST_COOL_DOWN])
                await process.drive(self._lock.cooling_down(seconds, "EAPI:Rate limit exceeded"))
            elif chance < 0.6 and self._raises:
                await process.drive(self._allocator._jumping(random.choice([1, 10**6, 10**9, 60 * 10**9])))
            else:
                await process.run(self._allocator._reserve(random.choice([1, 2, 1000])))
        except (StoreError, NonceTooFarAhead) as error:
            self._history.note("%s gets nothing: %r", self.name, error)

    async def _hold(self, name: str, *, high: bool) -> None:
        random, lock, history = self._random, self._lock, self._history
        timeout = random.choice([None, None, None, 60.0, 5.0, 1.0, 0.3, 0])
        renews = random.random() < 0.15
        until = None if timeout is None else clock.now() + timeout
        acquisition = self.acquisition = Acquisition(name, self.process, lock.keys.state, high, until)
        history.asks(acquisition)
        lock._lease = lambda acquired, _: Lease(lock, acquired, self, acquisition)
        try:
            lease = await self.process.drive(
                lock._holding(
                    self,
                    Wishes(
                        timeout=timeout,
                        cost=random.choice([0, 0, 1, 2]) if lock.pace else 0,
                        priority="high" if high else "normal",
                        auto_renew=renews,
                        startup_protection=random.random() < 0.9,
                        token=name,
                    ),
                )
            )
        except (HoldTimeout, StoreError) as error:
            history.told(acquisition, error)
            return
        except BaseException as error:
            history.told(acquisition, error)
            raise
        history.granted(acquisition, lease)
        self._by_nonce[lease.nonce] = acquisition
        try:
            await self._work(lease, acquisition, renews=renews)
        except GeneratorExit:
            raise
        except BaseException:
            await self._leave(lease, acquisition, failed=True)
            raise
        await self._leave(lease, acquisition, failed=False)

    async def _leave(self, lease: Lease, acquisition: Acquisition, *, failed: bool) -> None:
        history = self._history
        history.releases(acquisition)
        wait = self._random.random() < 0.5
        try:
            await self.process.drive(self._lock._leaving(lease, failed=failed, wait=wait))
        except LeaseLost as error:
            history.released(acquisition, error)
        except BaseException as error:
            history.released(acquisition, error)
            raise
        else:
            history.released(acquisition)

    def _hear(self, event: Event) -> None:
        """Take note of a lease that was lost, as its holder hears after it has gone on."""
        if isinstance(event, LeaseEndedEarly):
            acquisition = self._by_nonce[event.nonce]
            self.process.soon(lambda: self._history.finds_lost(acquisition))  # a hook's own errors are swallowed

    async def _work(self, lease: Lease, acquisition: Acquisition, *, renews: bool) -> None:
        """Call Kraken a few times, and more rarely extend, nest, or dawdle past the end of the lease."""
        random = self._random
        nonce: int | None = lease.nonce
        for _ in range(random.choice([1, 1, 1, 2, 4])):
            if not lease.lost:
                nonce = lease.next_nonce() if nonce is None else nonce
                self._history.calls_kraken(acquisition, nonce)
            nonce = None
            await self.process.sleep(random.random() * random.choice([0, 0.01, 0.1, 0.1, 0.5]))
            chance = random.random()
            try:
                if chance < 0.05:
                    await self.process.drive(lease._extending(random.choice([0.5, 5.0])))
                elif chance < 0.1:
                    await self.process.drive(lease._extending(self._lock.ttl, replace=True))
                elif chance < 0.15:
                    await self._nest(lease, acquisition)
                elif chance < 0.2:
                    terms = random.choice([2.5] if renews else [0.5, 1.001, 1.5])
                    await self.process.sleep(self._lock.ttl * terms)
            except StoreError as error:
                self._history.note("%s can't extend: %r", acquisition.name, error)
            except LeaseLost:
                return

    async def _nest(self, lease: Lease, acquisition: Acquisition) -> None:
        inner = await self.process.drive(self._lock._holding(self, Wishes(timeout=0)))
        assert inner.outer is lease
        assert inner.grant is lease.grant
        if not lease.lost:
            self._history.calls_kraken(acquisition, inner.nonce)
        await self.process.drive(self._lock._leaving(inner, failed=False))
