"""What can go wrong on a `ServerStage`: each thing alone, and any of them in an order that a seed says."""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import redis

from tests.support.helpers import KEYS
from tests.support.histories import Loss
from tests.support.stages import SOCKET_TIMEOUT, TTL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.stages import ServerStage

AWAY = frozenset({"StoreUnavailable"})
"""What callers may hear when Redis can't be asked for a while."""
LATE = frozenset({"HoldTimeout", "LeaseLost"})
"""What they may hear when that takes as long as leases and waits do."""
LOST = frozenset({"LeaseLost"})
"""What those may hear who held a lease."""


@dataclass(frozen=True)
class Mishap:
    """One thing that can go wrong.

    Attributes:
        name: what, for the table.
        happen: lets it happen, and returns when it is over.
        told: the errors that callers may hear.
        rounds: how often it comes in a run of its own.
        socket_timeout: of the callers, in seconds; None for the default.
        to_the_end: how many leases, 0 to 1, of those behind the proxy are kept until they end.
        arguments: of the server.
        mixes: whether it can come in a mixture.
        loses: whether it loses state.
    """

    name: str
    happen: Callable[[ServerStage], object]
    told: frozenset[str] = frozenset()
    rounds: int = 1
    socket_timeout: float | None = SOCKET_TIMEOUT
    to_the_end: float = 0
    arguments: tuple[str, ...] = ()
    mixes: bool = True
    loses: bool = False

    @property
    def accompanies(self) -> bool:
        """Whether it can happen while something else does."""
        return self.mixes and not self.loses and self.happen not in (_server_stopped, _process_killed, _busy)


# The server


def _flushed(stage: ServerStage) -> None:
    with stage.losing():
        stage.say("FLUSHALL")


def _scripts_flushed(stage: ServerStage) -> None:
    stage.say("SCRIPT", "FLUSH")


def _busy(stage: ServerStage) -> None:
    """Another client's script runs on and on, until an operator kills it."""
    stage.say("CONFIG", "SET", "lua-time-limit", 100)

    def run_on() -> None:
        with redis.Redis.from_url(stage.server.url) as other, contextlib.suppress(redis.ResponseError):
            other.eval("while true do end", 0)

    stage.begins()
    runner = threading.Thread(target=run_on)
    runner.start()
    time.sleep(1)
    with redis.Redis.from_url(stage.server.url) as operator:
        operator.script_kill()
    runner.join()


def _connections_killed(stage: ServerStage) -> None:
    with stage.admin() as admin:
        admin.client_kill_filter(_type="normal", skipme=True)
        admin.client_kill_filter(_type="pubsub", skipme=True)


def _paused(stage: ServerStage) -> None:
    stage.say("CLIENT", "PAUSE", 1000, "WRITE")
    time.sleep(1)


def _server_stopped(stage: ServerStage) -> None:
    stage.server.pause()
    time.sleep(1.5 * TTL)
    stage.server.resume()


def _restarted_with_aof(stage: ServerStage) -> None:
    stage.server.kill()
    time.sleep(0.3)
    stage.server.start()


def _restarted_empty(stage: ServerStage) -> None:
    with stage.losing():
        stage.server.restart(persist=False)


def _heard(admin: redis.Redis, listener: Any) -> list[str]:
    """Return what was published by now, which comes before what is published now."""
    admin.publish("now", "")
    heard = []
    while (message := listener.get_message(timeout=None))["channel"] != "now" or message["type"] != "message":
        heard.append(message["data"])
    return heard


def _full(stage: ServerStage, policy: str) -> None:
    """Another program fills the server's memory for a second, half of its keys with a TTL; then it tidies up.

    Where the state can be evicted, memory is short while that program writes alone, whose commands the server takes in
    one go: else the state could be evicted twice before all have asked, and lost twice at once; docs/faults.md has what
    happens then.
    """
    loses = policy.startswith("allkeys")
    evicted = 0
    with stage.admin() as admin:
        admin.config_set("notify-keyspace-events", "Ee")
        used = admin.info("memory")["used_memory"]
        admin.config_set("maxmemory-policy", policy)
        with admin.pubsub() as listener:
            listener.subscribe("__keyevent@0__:evicted", "now")
            stage.begins()
            limit = used + 60_000  # room for few keys, of which the state is one
            if not loses:
                admin.config_set("maxmemory", limit)
            end = looked = time.monotonic()
            end += 1
            while looked < end and evicted < MOST_EVICTIONS:
                with admin.pipeline(transaction=False) as commands:
                    if loses:
                        commands.config_set("maxmemory", limit)
                    commands.set(f"filler:{secrets.token_hex(8)}", "x" * 3000, ex=secrets.choice((None, 60)))
                    if loses:
                        commands.config_set("maxmemory", 0)
                    commands.execute(raise_on_error=False)
                gone = _heard(admin, listener)
                before, looked = looked, time.monotonic()
                if KEYS.state in gone:
                    evicted += 1
                    stage.losses.append(Loss(before, looked))
                    _tidy_up(admin)
                    stage.flow()
                    end += time.monotonic() - looked
        admin.config_set("maxmemory", 0)
        _tidy_up(admin)
    if loses:
        stage.notes.append(f"the state was evicted {evicted} times")
    else:
        assert evicted == 0


def _tidy_up(admin: redis.Redis) -> None:
    for name in admin.scan_iter("filler:*", count=1000):
        admin.unlink(name)


# The network between half of the processes and the server


def _delayed(stage: ServerStage) -> None:
    stage.way.delay(0.05, replies=0.7 * TTL)
    time.sleep(4)
    stage.way.delay(0)


def _cut(stage: ServerStage) -> None:
    stage.way.cut_all()


def _messages(stage: ServerStage, fault: str) -> None:
    """Lose every fourth message, 25 in all. Only so rarely that a retry gets through."""
    for n in range(1, 100, 4):
        getattr(stage.way, fault)(n)
    until = stage.way.commands + 100
    end = time.monotonic() + 5
    while stage.way.commands < until and time.monotonic() < end:
        time.sleep(0.01)


def _dark(stage: ServerStage) -> None:
    stage.way.black_hole()
    time.sleep(1.5 * TTL)
    stage.way.heal()


# Processes


def _process_killed(stage: ServerStage) -> None:
    stage.kill_process(1)


def _process_stopped(stage: ServerStage) -> None:
    stage.stop_process(0, 1.5 * TTL)


MOST_EVICTIONS = 5
POLICIES = (
    *("noeviction", "allkeys-lru", "volatile-ttl", "allkeys-lfu", "allkeys-random"),
    *("volatile-lru", "volatile-lfu", "volatile-random"),
)

MISHAPS = (
    Mishap("FLUSHALL", _flushed, LOST, rounds=3, socket_timeout=None, loses=True),
    Mishap("SCRIPT FLUSH", _scripts_flushed, rounds=3, socket_timeout=None),
    Mishap("a script that runs on, SCRIPT KILL", _busy, AWAY | LATE),
    Mishap("CLIENT KILL of every connection", _connections_killed, rounds=3, socket_timeout=None),
    Mishap("CLIENT PAUSE WRITE, 1 s", _paused, AWAY | LATE),
    Mishap("server stopped for 1.5 leases", _server_stopped, AWAY | LATE),
    Mishap(
        "server killed, back with its AOF",
        *(_restarted_with_aof, AWAY | LATE),
        arguments=("--appendonly", "yes"),
        mixes=False,
    ),
    Mishap("server killed, back with nothing", _restarted_empty, AWAY | LATE, loses=True),
    *(
        Mishap(
            f"out of memory, {policy}",
            partial(_full, policy=policy),
            # A server that takes so much in one go may answer later than the socket timeout.
            AWAY | LATE if policy.startswith("allkeys") else AWAY | LATE | {"StoreOutOfMemory"},
            mixes=False,
            loses=policy.startswith("allkeys"),
        )
        for policy in POLICIES
    ),
    Mishap("replies late by 0.7 leases", _delayed, LATE, socket_timeout=None, to_the_end=0.5),
    Mishap("connections cut", _cut, rounds=3, socket_timeout=None),
    *(
        Mishap(f"network: {words}", partial(_messages, fault=fault), AWAY, socket_timeout=None)
        for fault, words in {
            "cut_request": "every fourth request lost",
            "drop_reply": "every fourth reply lost",
            "half_reply": "half of every fourth reply lost",
        }.items()
    ),
    Mishap("network dark for 1.5 leases", _dark, AWAY | LATE),
    Mishap("holder killed, a new process started", _process_killed, LATE, socket_timeout=None, to_the_end=0.3),
    Mishap("holder stopped for 1.5 leases", _process_stopped, AWAY | LATE, socket_timeout=None, to_the_end=0.3),
)


def mixture(stage: ServerStage, seed: int, length: int) -> list[str]:
    """Let things go wrong in an order that the seed says, one after the other, now and then two at once.

    All are well again before the next one: state that is lost twice at once is another matter; docs/faults.md has it.
    """
    chance = random.Random(seed)
    choices = [mishap for mishap in MISHAPS if mishap.mixes]
    others = [mishap for mishap in choices if mishap.accompanies]
    happened = []
    for _ in range(length):
        one = chance.choice(choices)
        other = chance.choice(others) if chance.random() < 0.4 else None
        happened.append(one.name if other in (None, one) else f"{one.name} + {other.name}")
        stage.happen(partial(_both, stage, one, other))
    return happened


def _both(stage: ServerStage, one: Mishap, other: Mishap | None) -> None:
    if other is None or other is one:
        one.happen(stage)
        return
    trouble: list[BaseException] = []

    def let_the_other() -> None:
        try:
            other.happen(stage)
        except BaseException as error:  # noqa: BLE001 - raised again below
            trouble.append(error)

    beside = threading.Thread(target=let_the_other)
    beside.start()
    one.happen(stage)
    beside.join()
    if trouble:
        raise trouble[0]
