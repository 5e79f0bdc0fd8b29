"""`kraken-nonce watch`: what it shows against the exchange's log, what it costs the server, and its terminal."""

from __future__ import annotations

import re
import signal
import time
import uuid
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.screen import Screen

from kraken_nonce_redis import CallLock, NonceAllocator
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._arguments import DEFAULT_MAX_LEAD
from kraken_nonce_redis._redis.keyspace import Keyspace, digest
from kraken_nonce_redis.cli.history import KEPT, History, Numbers, sparkline
from kraken_nonce_redis.cli.place import Place
from kraken_nonce_redis.cli.selection import Selection
from kraken_nonce_redis.cli.watch import Watched, lines, screen
from tests.core.test_verdict import FREE, place
from tests.support.callers import Caller
from tests.support.command import Piped, Terminal
from tests.support.helpers import Rival, eventually
from tests.support.tiers import in_test_all

if TYPE_CHECKING:
    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.conftest import MakeProxy, PrivateServer
    from tests.support.servers import Server
    from tests.support.topologies import ClusterTopology, SentinelTopology

SHOWN_BY_THE_ALTERNATE_SCREEN, LEFT = "\x1b[?1049h", "\x1b[?1049l"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]m")


@pytest.fixture
def api_keys() -> list[str]:
    """Make up API keys: this process remembers the nonces of each, whatever happens to the server."""
    return [f"key-{number}-{uuid.uuid4().hex}" for number in range(3)]


def all_of(url: str) -> Watched:
    """Watch the whole namespace of a Redis."""
    return Watched(Selection.of_namespace(Place(url), "kraken-nonce", DEFAULT_MAX_LEAD))


# What it shows


@pytest.mark.test_all
@pytest.mark.simulator(accounts=("one", "two"), latency=(0.01, 0.02), own=True)
def test_eight_processes_on_two_keys(sim: KrakenSimulator, real_server: Server) -> None:
    """Calls a second, waiters and holders are those of the exchange's log, key by key."""
    accounts = list(sim.accounts.items())
    with ExitStack() as stack:
        callers = [
            stack.enter_context(Caller((sim.url, *accounts[n % 2]), real_server.url, name=f"bot-{n}")) for n in range(8)
        ]
        for caller in callers:
            caller.begin()
        keys = {digest(key): name for (key, _), name in zip(accounts, ("one", "two"), strict=True)}
        eventually(lambda: {request.account for request in sim.requests()} == {"one", "two"}, 30)
        watched = all_of(real_server.url)
        watched.begin()
        assert [look.chosen.keys.tag for look in watched.looks] == sorted(keys)
        begin = {look.chosen: look.state.now for look in watched.looks if look.state}
        waiting = [0]
        until = clock.now() + 5
        while clock.now() < until:
            time.sleep(0.25)
            watched.look()
            waiting += [look.state.waiting for look in watched.looks if look.state]
        shown = lines(watched)
        made = sum(caller.stop() for caller in callers)
    log = sim.requests()
    assert made == len(log)
    assert 2 <= max(waiting) <= 3
    for look in watched.looks:
        assert look.state is not None
        account = keys[look.chosen.keys.tag]
        # A nonce is the server's time when its lease was granted.
        nonces = [request.nonce for request in log if request.account == account and request.nonce]
        granted = sum(begin[look.chosen] < nonce <= look.state.now for nonce in nonces)
        counted = sum(watched.histories[look.chosen].calls)
        assert granted > 20
        # Each process has at most one call more or less under way at either end.
        assert abs(counted - granted) <= 2 * 4, (counted, granted)
        rate = counted / ((look.state.now - begin[look.chosen]) / 1e9)
        (line,) = (line for line in shown if look.chosen.keys.tag in line)
        assert re.search(rf" {look.chosen.keys.tag} {rate:.1f} calls/s, \d wait, longest \d\.\d s: ok$", line)
        assert look.state.place is None or look.state.place.name in {f"bot-{n}" for n in range(8)}


def test_new_keys_are_found(valkey: Server, api_keys: list[str]) -> None:
    """An API key that comes later is shown, without a restart."""
    NonceAllocator.from_url(valkey.url, api_keys[0]).next()
    watched = all_of(valkey.url)
    watched.begin()
    assert len(watched.looks) == 1
    NonceAllocator.from_url(valkey.url, api_keys[1]).next()
    for _ in range(8):
        watched.look()
    assert {look.chosen.keys.tag for look in watched.looks} == {digest(key) for key in api_keys[:2]}


def test_new_keys_are_found_in_a_cluster(cluster: ClusterTopology, api_keys: list[str]) -> None:
    """On whichever node they are."""
    for key in api_keys:
        NonceAllocator.from_url(cluster.url, key).next()
    watched = all_of(cluster.url)
    watched.begin()
    late = uuid.uuid4().hex
    NonceAllocator.from_url(cluster.url, late).next()
    for _ in range(20):
        watched.look()
    assert {look.chosen.keys.tag for look in watched.looks} == {digest(key) for key in (*api_keys, late)}
    assert watched.verdict == "ok"


def test_redis_away_and_back(private_server: PrivateServer, api_keys: list[str]) -> None:
    """It says so and for how long, keeps what it saw last, and goes on by itself."""
    server = private_server()
    NonceAllocator.from_url(server.url, api_keys[0]).next()
    watched = all_of(server.url)
    watched.begin()
    server.restart(persist=True)
    server.kill()
    for _ in range(2):
        time.sleep(0.2)
        watched.look()
    (line,) = lines(watched)
    assert re.search(r"Z not seen for 0\.\d s: inspect .* Redis can't be reached", line)
    assert len(watched.looks) == 1
    server.start()
    watched.look()
    assert watched.verdict == "ok"


def test_without_sentinels(sentinel: SentinelTopology, api_keys: list[str]) -> None:
    """The master that is known goes on being watched."""
    NonceAllocator.from_url(sentinel.url, api_keys[0]).next()
    watched = all_of(sentinel.url)
    watched.begin()
    for watcher in sentinel.watchers:
        watcher.kill()
    for _ in range(4):
        watched.look()
        assert watched.verdict == "ok"
    assert f"master 127.0.0.1:{sentinel.servers[0].port}" in watched.redis


@pytest.mark.parametrize("columns", [60, 120])
def test_a_screen_fits(valkey: Server, api_keys: list[str], columns: int) -> None:
    """Narrow and wide: every line has room, trouble comes first, and what has no room is counted."""
    keys = [*api_keys, *(uuid.uuid4().hex for _ in range(20))]
    for key in keys:
        CallLock.from_url(valkey.url, key, name="a-bot-with-a-long-name-" * 2).acquire()
    CallLock.from_url(valkey.url, keys[7]).cool_down(50, "EGeneral:Temporary lockout " * 4)
    watched = all_of(valkey.url)
    watched.begin()
    watched.look()
    console = Console(width=columns, height=16, record=True, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(Screen(screen(watched, console.width, console.height)))
    shown = capture.get().rstrip("\n").split("\n")
    assert len(shown) == 16
    assert max(map(len, shown)) <= columns
    assert shown[0].startswith(f"1 of 23 API keys: {digest(keys[7])} cool")
    assert shown[3 if columns == 60 else 4].startswith(digest(keys[7]))
    text = " ".join("".join(f"{line} " for line in shown).split())
    assert re.search(r" and \d\d more; kraken-nonce status --all", text)
    assert re.search(rf" {digest(keys[7])}: cool-down for another \d\d\.\d s: EGeneral:Temporary lockout", text)


# What it costs


@pytest.mark.test_all
@pytest.mark.parametrize("number", [1, *in_test_all(3)])
def test_two_commands_a_second_and_key(valkey: Server, proxy: MakeProxy, api_keys: list[str], number: int) -> None:
    """At the most, with all that it asks: scripts, SCAN and what a connection says of itself."""
    for key in api_keys[:number]:
        NonceAllocator.from_url(valkey.url, key).next()
    before = proxy(valkey)
    seconds = 6
    with Piped("watch", "--all", KRAKEN_NONCE_REDIS_URL=before.url) as watch:
        for _ in range(number):  # the first look
            assert " ok" in watch.line()
        begun = len(before.log)
        for _ in range(number * seconds):
            assert " ok" in watch.line()
        sent = [command.name for command in before.log[begun:]]
        assert watch.end().code == 130
    assert {"EVALSHA", "SCAN"} <= set(sent) <= {"EVALSHA", "EVAL", "SCAN"}
    assert seconds * number <= len(sent) <= 2 * seconds * number


# The terminal


@pytest.mark.long
@pytest.mark.parametrize("columns", [60, 120])
def test_q_quits_and_the_terminal_is_as_before(valkey: Server, api_keys: list[str], columns: int) -> None:
    """Its settings are restored and the screen from before is back, with exit code 0."""
    lock = CallLock.from_url(valkey.url, api_keys[0], name="a-bot")
    lock.acquire()
    Rival(valkey.client(), Keyspace.of("kraken-nonce", api_keys[0])).queue_up()
    variables = {"KRAKEN_API_KEY": api_keys[0], "KRAKEN_NONCE_REDIS_URL": valkey.url}
    with Terminal("watch", columns=columns, **variables) as terminal:
        shown = terminal.until(r"q quits(.|\n)*a-bot")
        assert terminal.settings() != terminal.before
        terminal.press("x")
        terminal.until(r"q quits(.|\n)* 0\.0 ")
        terminal.press("q")
        assert terminal.ended() == 0
        assert terminal.settings() == terminal.before
        assert LEFT in terminal.raw
        assert "\x1b[?25h" in terminal.raw.rpartition(LEFT)[0] + terminal.raw.rpartition(LEFT)[2]
    assert SHOWN_BY_THE_ALTERNATE_SCREEN in terminal.raw
    assert shown.startswith("ok")
    assert "█" in terminal.raw
    assert COLOUR.search(terminal.raw)
    assert max(len(line.rstrip()) for text in terminal.screens for line in text.split("\n")) <= columns
    assert api_keys[0] not in terminal.raw


@pytest.mark.long
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_the_terminal_as_before(
    valkey: Server, api_keys: list[str], how: signal.Signals, code: int
) -> None:
    """Ctrl-C and being ended, too: no traceback. With NO_COLOR nothing is coloured."""
    NonceAllocator.from_url(valkey.url, api_keys[0]).next()
    with Terminal("watch", "--all", KRAKEN_NONCE_REDIS_URL=valkey.url, NO_COLOR="1") as terminal:
        terminal.until("q quits")
        terminal.process.send_signal(how)
        assert terminal.ended() == code
        assert terminal.settings() == terminal.before
        assert LEFT in terminal.raw
        assert "Traceback" not in terminal.raw
        assert not COLOUR.search(terminal.raw)


@pytest.mark.test_all
def test_piped_it_prints_lines(valkey: Server, api_keys: list[str]) -> None:
    """Plain text, a line for each key and second, and no control characters; a reader that ends, ends it quietly."""
    NonceAllocator.from_url(valkey.url, api_keys[0]).next()
    with Piped("watch", "--all", KRAKEN_NONCE_REDIS_URL=valkey.url) as watch:
        got = [watch.line() for _ in range(3)]
        for line in got:
            pattern = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ {digest(api_keys[0])} (-|0\.0) calls/s, 0 wait: ok"
            assert re.fullmatch(pattern, line)
        assert watch.process.stdout is not None
        watch.process.stdout.close()
        assert watch.process.wait(10) in {0, 1}
        assert watch.process.stderr is not None
        assert watch.process.stderr.read() == ""


# Rates and bars


def test_calls_by_the_numbers_of_processes() -> None:
    """What a process did between two looks is counted once, whether it holds or waits; a new one counts from now on."""

    def seen(*members: str) -> int:
        first, *others = members
        waiters = tuple(replace(place(asked=1), member=f"{member}-1.1|x|") for member in others)
        return numbers.calls(replace(FREE, holder=f"{first}-1.1|x|", waiters=waiters))

    numbers = Numbers()
    assert seen("a:1", "b:7") == 0
    assert seen("b:8", "a:2") == 2
    assert seen("b:8", "a:2") == 0
    assert seen("c:100") == 0
    assert seen("a:9", "c:101", "a:10") == 9
    assert numbers.calls(FREE) == 0
    assert numbers.calls(replace(FREE, holder="strange")) == 0


def test_a_rate_is_over_ten_seconds() -> None:
    """It forgets what is older, and says nothing before the second look."""
    history = History()
    history.add(FREE, 0)
    assert history.rate is None
    for second in range(1, 31):
        history.add(replace(FREE, now=FREE.now + second * 10**9), 5 if second <= 15 else 1)
        if second == 15:
            assert history.rate == 5
    assert history.rate == 1
    history.add(replace(FREE, now=FREE.now + 100 * 10**9), 70)  # after a long silence
    assert history.rate == 1
    for _ in range(2 * KEPT):
        history.add(FREE, 0)
    assert len(history.waiting) == KEPT
    assert history.rate == 0


def test_calls_that_no_look_has_seen() -> None:
    """When nonces rise and nobody was seen, there are calls, and nobody knows how many."""
    history = History()
    history.add(FREE, 0)
    history.add(replace(FREE, now=FREE.now + 10**9, last=FREE.now), 0)
    assert history.rate is None
    history.add(replace(FREE, now=FREE.now + 2 * 10**9, last=FREE.now + 5), 3)
    assert history.rate == 1.5


@given(st.lists(st.integers(0, 1000)), st.integers(0, 40))
def test_bars(values: list[int], width: int) -> None:
    """One for each of the latest values, the lowest for 0 alone, the highest for the highest, higher for more."""
    bars = sparkline(values, width)
    latest = values[len(values) - len(bars) :]
    assert len(bars) == min(width, len(values))
    assert all((bar == "▁") == (value == 0) for bar, value in zip(bars, latest, strict=True))
    assert all(bar == "█" for bar, value in zip(bars, latest, strict=True) if value and value == max(latest))
    ranked = sorted(zip(latest, bars, strict=True))
    assert [bar for _, bar in ranked] == sorted(bars)
