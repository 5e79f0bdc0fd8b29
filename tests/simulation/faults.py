"""What can go wrong, each at a time that the seed decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kraken_nonce_redis._redis import commands
from tests.simulation.callers import Interrupted
from tests.simulation.records import LONGEST_COOL_DOWN, LONGEST_PACE, RECOVERY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.world import World

# Callers that give up: not a fault, and nobody else may notice.


def interrupt(world: World) -> None:
    """Interrupt a caller, wherever it is."""
    random = world.random
    number = random.randrange(len(world.callers))
    caller, task = world.callers[number], world.tasks[number]
    if task.over or caller.acquisition is None:
        return
    acquisition = caller.acquisition
    acquisition.interrupted = acquisition.quiet = True
    if acquisition.state in {"asking", "leaving"} and acquisition.process.runs and random.random() < 0.3:
        world.history.note("%s is closed", acquisition.name)
        task.close()
    else:
        world.history.note("%s is interrupted", acquisition.name)
        task.interrupt(Interrupted())
        if random.random() < 0.2:
            world.scheduler.at(world.scheduler.now + world.network.delay(), lambda: task.interrupt(Interrupted()))


# Processes.


def crash(world: World) -> None:
    """Kill a process."""
    process = world.random.choice(world.processes)
    if not process.crashed:
        process.crashed = True
        if world.random.random() < 0.7:
            world.network.vanish(process)
        world.history.dead += 1
        world.history.fault("%s is killed", process.name)


def stop(world: World) -> None:
    """Stop a process as it stands, for a while."""
    process = world.random.choice(world.processes)
    seconds = world.random.choice([0.2, 1.0, 3.0, 20.0]) * world.random.random()
    process.stopped_until = max(process.stopped_until, world.scheduler.now + seconds)
    world.history.dead += 1
    world.history.fault("%s is stopped for %.3f s", process.name, seconds)


def end_subscription(world: World) -> None:
    """Close the connection on which a process hears of offers, or let it be dead without a sign."""
    subscriptions = list(world.network.subscriptions.values())
    if subscriptions:
        subscription = world.random.choice(subscriptions)
        if world.random.random() < 0.5:
            world.network.cut(subscription)
            world.history.fault("%s loses its subscription", subscription.process.name)
        else:
            subscription.deaf = True
            world.history.dead += 1
            world.history.fault("%s is deaf", subscription.process.name)


# The network.


def trouble(world: World) -> None:
    """Lose and delay messages for a while."""
    seconds = world.random.random() * 5
    world.network.trouble = world.random.choice([0.05, 0.3])
    world.history.fault("messages get lost for %.3f s", seconds, recovery=seconds + RECOVERY)

    def end() -> None:
        world.network.trouble = 0.0

    world.scheduler.at(world.scheduler.now + seconds, end)


def overtake(world: World) -> None:
    """Let late requests come after later ones from now on, and messages be lost for a while."""
    world.network.overtaking = True
    world.history.dead += len(world.processes)  # places of waiters that have left before they came
    trouble(world)
    world.history.fault("requests may overtake each other")


def cut_off(world: World) -> None:
    """Let a process not reach the server for a while."""
    process = world.random.choice(world.processes)
    seconds = world.random.random() * world.random.choice([1, 10, 40])
    process.cut_off_until = max(process.cut_off_until, world.scheduler.now + seconds)
    world.history.dead += 1
    world.history.fault("%s can't reach the server for %.3f s", process.name, seconds, recovery=seconds + RECOVERY)
    subscription = world.network.subscriptions.get(process.process_state.channel)
    if subscription is not None:
        if world.random.random() < 0.5:
            world.network.cut(subscription)
        else:
            subscription.deaf = True


def stall(world: World) -> None:
    """Let the server do nothing for a while."""
    seconds = world.random.random() * world.random.choice([1, 10])
    world.network.stalled_until = max(world.network.stalled_until, world.scheduler.now + seconds)
    world.history.fault("the server does nothing for %.3f s", seconds, recovery=seconds + RECOVERY)


# The server.


def forget_scripts(world: World) -> None:
    """Flush the script cache."""
    world.history.note("the server forgets its scripts")
    world.network.forget_scripts()


def fill_up(world: World) -> None:
    """Let the server refuse to write for a while."""
    seconds = world.random.random() * 5
    world.network.full = True
    world.history.fault("the server refuses to write for %.3f s", seconds, recovery=seconds + RECOVERY)

    def end() -> None:
        world.network.full = False

    world.scheduler.at(world.scheduler.now + seconds, end)


def step_clock(world: World) -> None:
    """Set the server's clock forward or back."""
    seconds = world.random.choice([1, -1]) * world.random.choice([0.001, 0.5, 10.0, 3600.0]) * world.random.random()
    world.clock_offset += seconds
    if seconds > 0:
        world.history.disturbs_locks()
    recovery = world.longest_ttl + LONGEST_COOL_DOWN + LONGEST_PACE  # each may begin anew
    world.history.fault("the server's clock is set by %.3f s", seconds, recovery=recovery)


def unlock(world: World) -> None:
    """Take the lock away from its holder, as an operator may."""
    keys = world.random.choice(world.keys)
    holder = world.command(commands.inspect(keys)).holder
    if holder:
        world.command(commands.unlock(keys, holder))
        world.history.fault("%s is taken away from %s", keys.state, holder)
        world.history.disturbs_locks()


def flush(world: World) -> None:
    """Lose everything."""
    world.server.restore()
    _lost(world, "the server loses everything")


def save(world: World) -> None:
    """Keep the state for a later failover."""
    world.snapshots.append(world.server.snapshot())


def fail_over(world: World) -> None:
    """Go on with an older state on another server, to which everyone has to connect anew."""
    if world.snapshots:
        world.server.restore(world.random.choice(world.snapshots))
        world.network.fail_over()
        world.history.dead += len(world.processes)  # places of waiters that have left since
        _lost(world, "a failover goes back to an older state")


def _lost(world: World, text: str) -> None:
    world.history.fault(text, recovery=RECOVERY)
    world.history.orphans_until = max(world.history.orphans_until, world.scheduler.now + world.longest_ttl)
    world.history.lost_state()


def restart(world: World) -> None:
    """Restart the server, with its data; nobody gets through for a while."""
    seconds = world.random.random() * 5
    world.network.down = True
    world.network.restart()
    world.history.fault("the server is down for %.3f s", seconds, recovery=seconds + RECOVERY)

    def end() -> None:
        world.network.down = False

    world.scheduler.at(world.scheduler.now + seconds, end)


GIVING_UP: list[Callable[[World], None]] = [interrupt]
PROCESSES = [interrupt, crash, stop, stop, end_subscription]
NETWORK = [interrupt, trouble, trouble, cut_off, stall, end_subscription, restart, forget_scripts, fill_up]
OVERTAKING = [interrupt, overtake, trouble, crash]
CLOCKS = [interrupt, step_clock, step_clock, stop, crash, crash]
LOSSES = [interrupt, flush, save, save, fail_over, unlock, crash]
EVERYTHING = [*PROCESSES, *NETWORK, *OVERTAKING, *CLOCKS, *LOSSES]
MIXES = [GIVING_UP, GIVING_UP, PROCESSES, NETWORK, OVERTAKING, CLOCKS, LOSSES, EVERYTHING]
"""The kinds of schedules. What goes wrong in one and what does not decides what must hold in it."""
