"""The lock's logic and the real scripts over tens of thousands of schedules, with whatever can go wrong.

Each schedule follows from a number. One that fails is run again with a trace, whose end the failure shows.

KRAKEN_NONCE_SCHEDULES=n runs so many instead, and KRAKEN_NONCE_SEED=n that one, and prints its trace.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kraken_nonce_redis import Pace
from kraken_nonce_redis._redis import commands
from tests.redis.test_properties import STUB
from tests.simulation.mutants import MUTANTS
from tests.simulation.server import Server as SmallServer
from tests.simulation.server import library
from tests.simulation.world import BEGIN, World, simulate
from tests.support.helpers import KEYS
from tests.support.tiers import by_tier

if TYPE_CHECKING:
    import redis

    from kraken_nonce_redis._redis.command import Command
    from tests.simulation.server import Lua
    from tests.support.servers import Server

SCHEDULES = int(os.environ.get("KRAKEN_NONCE_SCHEDULES", by_tier(600, 6_000, 60_000)))
PARTS = 6
"""So many tests share the schedules, for several processes to run them."""
SEED = os.environ.get("KRAKEN_NONCE_SEED")
MOST_FOR_A_MUTANT = 8000
SHOWN = 60
"""Lines of a failure's trace."""

pytestmark = pytest.mark.once


def replayed(seed: int) -> str:
    """Run a schedule again and return how to do so, and the end of its trace."""
    world = World(seed, library(), traced=True)
    try:
        world.run_to_the_end()
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        world.history.note("%r", error)
    trace = world.history.trace or []
    command = f"KRAKEN_NONCE_SEED={seed} python -m pytest -s tests/simulation/test_simulation.py -k one_schedule"
    return "\n".join([f"seed {seed}; replay it with", f"  {command}", "the end of its trace:", *trace[-SHOWN:]])


@pytest.mark.parametrize("part", range(PARTS))
def test_schedules(part: int) -> None:
    """Whatever goes wrong in whatever order, every promise of the guarantees holds."""
    for seed in range(part, SCHEDULES, PARTS):
        try:
            simulate(seed)
        except Exception as error:  # noqa: BLE001 - whatever it is, it fails the schedule
            pytest.fail(f"{error!r}\n{replayed(seed)}", pytrace=False)


@pytest.mark.skipif(SEED is None, reason="KRAKEN_NONCE_SEED names no schedule")
def test_one_schedule() -> None:
    """Run the schedule that was asked for, and print its trace."""
    world = World(int(SEED or 0), library(), traced=True)
    try:
        world.run_to_the_end()
    finally:
        print("", *(world.history.trace or []), sep="\n")


def test_a_seed_decides_everything() -> None:
    """The same schedule comes out of the same seed every time, and another one out of another."""
    traces = []
    for seed in (*range(30), *range(30)):
        world = World(seed, library(), traced=True)
        world.run_to_the_end()
        traces.append(world.history.trace)
    assert traces[:30] == traces[30:]
    assert traces[0] != traces[1]


@pytest.mark.test_all
@pytest.mark.parametrize("mistake", MUTANTS)
def test_it_notices(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    """A mistake in the library breaks a promise in one of the first schedules."""
    lua = MUTANTS[mistake].apply(monkeypatch)
    assert any(breaks(seed, lua) for seed in range(MOST_FOR_A_MUTANT))


def breaks(seed: int, lua: Lua) -> bool:
    """Return whether a schedule fails."""
    try:
        simulate(seed, lua)
    except Exception:  # noqa: BLE001 - a script that raises is noticed as well
        return True
    return False


# The small server beside a real one.

MEMBERS = st.sampled_from(["a:1", "a:2", "b:1", "b:2", "c:1"])
FLOORS = st.sampled_from([0, 1, 1_799_999_999_000_000_123, 1_800_000_100_000_000_000])
PACES = st.sampled_from(
    ["", Pace(min_interval=0.2, startup_rate=2, tier="pro").settings(2, startup_protection=True)],
)
RECORDED = STUB.replace(
    "return real",
    "if name == 'PUBLISH' then\n    real.call('RPUSH', 'published', ...)\n    return #select(2, ...) % 2\n  end\n"
    "  return real",
)


class BesideARealServer(RuleBasedStateMachine):
    """The same scripts at the same times on both servers."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self.client = client
        client.flushall()
        self.published: list[str] = []
        self.small = SmallServer(library(), self._publish)
        self.small.now = round(BEGIN * 1e6)

    def _publish(self, channel: str, message: str) -> int:
        """Let some messages be heard, and others not."""
        self.published += (channel, message)
        return len(message) % 2

    def run(self, command: Command[Any], floor: int = 0) -> None:
        """Run a command on both, and compare the replies."""
        arguments = command.args if command.highest is None else (floor, *command.args)
        real: Any = self.client.eval(
            RECORDED + command.script.source,
            len(command.keys),
            *command.keys,
            *map(str, arguments),
            str(self.small.now),
        )
        assert self.small.run(command.name, command.keys, arguments) == real.decode()

    @rule(
        member=MEMBERS,
        ticket=st.sampled_from([None, 0, 0, 1, 2, 7]),
        high=st.booleans(),
        floor=FLOORS,
        pace=PACES,
        ttl=st.sampled_from([1.0, 30.0]),
        heard=st.sampled_from(["0", "1", "?"]),
    )
    def acquire(
        self,
        member: str,
        ticket: int | None,
        high: bool,  # noqa: FBT001
        floor: int,
        pace: str,
        ttl: float,
        heard: commands.Heard,
    ) -> None:
        """Ask for the lock."""
        priority: commands.Priority = "high" if high else "normal"
        asks = commands.acquire(KEYS, member, ttl, ticket=ticket, priority=priority, pace=pace, heard=heard)
        self.run(asks, floor)

    @rule(member=MEMBERS)
    def release(self, member: str) -> None:
        """Give up whatever a member has."""
        self.run(commands.release(KEYS, member))

    @rule(member=MEMBERS, heard=st.booleans())
    def wait(self, member: str, heard: bool) -> None:  # noqa: FBT001
        """Send a heartbeat."""
        self.run(commands.heartbeat(KEYS, member[0], member, heard=heard))

    @rule(member=MEMBERS, floor=FLOORS, seconds=st.sampled_from([0.5, 30.0]))
    def extend(self, member: str, floor: int, seconds: float) -> None:
        """Extend a lease."""
        self.run(commands.extend(KEYS, member, seconds), floor)

    @rule(member=MEMBERS)
    def unlock(self, member: str) -> None:
        """Take the lock away."""
        self.run(commands.unlock(KEYS, member))

    @rule(count=st.sampled_from([1, 1000]), floor=FLOORS)
    def reserve(self, count: int, floor: int) -> None:
        """Take nonces."""
        self.run(commands.reserve(KEYS, count), floor)

    @rule(ahead=st.integers(-(10**12), 4 * 10**12), floor=FLOORS)
    def advance(self, ahead: int, floor: int) -> None:
        """Raise the last nonce."""
        self.run(commands.advance(KEYS, self.small.now * 1000 + ahead, 3_600 * 10**9), floor)

    @rule(seconds=st.sampled_from([0.0, 1.0, 15.0]))
    def cool_down(self, seconds: float) -> None:
        """Begin or end a cool-down."""
        self.run(commands.cool_down(KEYS, seconds, "EAPI:Rate limit exceeded"))

    @rule()
    def reset_startup(self) -> None:
        """Forget the startup window."""
        self.run(commands.reset_startup(KEYS))

    @rule()
    def inspect(self) -> None:
        """Look."""
        self.run(commands.inspect(KEYS, "waiters"))

    @rule(seconds=st.sampled_from([0.000001, 0.3, 0.75, 1.0, 30.0, -0.5, -3600.0]))
    def time_goes_on(self, seconds: float) -> None:
        """Let time pass, or go back; the queue's own end, in real time on the real server, is left out."""
        self.small.now += round(seconds * 1e6)
        self.small.expires.clear()

    @rule()
    def go_back_and_forth(self) -> None:
        """Put the small server's data aside and back."""
        snapshot = self.small.snapshot()
        self.small.restore()
        self.small.restore(snapshot)

    @invariant()
    def the_same_is_stored(self) -> None:
        """Compare everything stored and everything published."""
        hashes: Any = self.client.hgetall(KEYS.state)
        assert self.small.hashes.get(KEYS.state, {}) == {k.decode(): v.decode() for k, v in hashes.items()}
        scores: Any = self.client.zrange(KEYS.queue, 0, -1, withscores=True)
        assert self.small.sets.get(KEYS.queue, {}) == {member.decode(): score for member, score in scores}
        published: Any = self.client.lrange("published", 0, -1)
        assert self.published == [text.decode() for text in published]


def test_the_small_server(valkey: Server) -> None:
    """The scripts answer, store and publish the same in the simulation's server as in a real one."""
    run_state_machine_as_test(
        partial(BesideARealServer, valkey.client()),
        settings=settings(
            max_examples=by_tier(25, 60, 600),
            stateful_step_count=40,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
        ),
    )


def test_the_small_server_forgets_in_time() -> None:
    """A queue ends with its time to live on the server's clock, and not before."""
    small = SmallServer(library(), lambda *_: None)
    small.now = round(BEGIN * 1e6)
    holder = commands.acquire(KEYS, "a:1", 30.0, ticket=0, priority="normal", pace="")
    waiter = commands.acquire(KEYS, "b:1", 30.0, ticket=0, priority="normal", pace="")
    for command in (holder, waiter):
        small.run(command.name, command.keys, (0, *command.args))
    look = commands.inspect(KEYS)
    for microseconds, waiting in ((9_999_999, 1), (1, 0)):
        small.now += microseconds
        assert look.result(small.run(look.name, look.keys, look.args)).waiting == waiting
