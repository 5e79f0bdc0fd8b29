"""The command `watch`: `status`, live."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kraken_nonce_redis import _children as children
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis import _verdict as verdicts
from kraken_nonce_redis._redis import commands, journal
from kraken_nonce_redis._texts import span
from kraken_nonce_redis._verdict import who
from kraken_nonce_redis.cli.history import History, Numbers, sparkline
from kraken_nonce_redis.cli.keyboard import presses
from kraken_nonce_redis.cli.options import examples
from kraken_nonce_redis.cli.selection import Look, colour, joint_verdict, selection_options
from kraken_nonce_redis.cli.status import WIDE
from kraken_nonce_redis.errors import ForeignValue, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

    from rich.console import RenderableType

    from kraken_nonce_redis._redis.journal import Pending
    from kraken_nonce_redis.cli.place import Master
    from kraken_nonce_redis.cli.selection import Chosen, Selection

_EVERY: Final = 1.0
"""Seconds between two looks."""
_ROUND: Final = 4
"""Looks after which journals are read anew; in other looks of the four the namespace and the Sentinels are asked."""
_MOST: Final = 50
"""API keys that are looked at."""
_FRAME: Final = 6
"""Lines that are not about an API key, as a rule."""
_MOST_TROUBLES: Final = 6
"""Lines that are kept for what is wrong with API keys."""
_BAR: Final = 20
_EXPLAINED: Final = "calls/s: by the numbers that processes give their calls; Redis counts no calls and no nonces"


class Watched:
    """What is known by now. Each look costs one command for each API key shown, and now and then a second one."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._numbers = Numbers()
        self._looks_made = 0
        self._chosen: tuple[Chosen, ...] = ()
        self._scan: Generator[set[str]] | None = None
        self._scanned: set[str] = set()
        self._pending: dict[Chosen, tuple[Pending, ...]] = {}
        self._failing_since: float | None = None
        self.histories: dict[Chosen, History] = {}
        self.looks: list[Look] = []
        self.master: Master | None = None
        self.failure = ""

    @property
    def left_out(self) -> int:
        """How many API keys are too many."""
        return max(0, len(self._chosen) - _MOST)

    @property
    def verdict(self) -> str:
        """What is wrong, in one line, or ``ok``."""
        if self.failure:
            return self.failure
        if not self.looks:
            return f"no API key is known in the namespace {self._selection.namespace}"
        return self.looks[0].verdict.text if self._selection.single else joint_verdict(self.looks)

    @property
    def redis(self) -> str:
        """Which Redis it is."""
        return self._selection.place.words(self.master)

    def begin(self) -> None:
        """Look for the first time. Raises `StoreError`, since the address may be wrong."""
        self.master = self._selection.place.master()
        self._chosen = self._selection.all()
        self._look()

    def look(self) -> None:
        """Look once more. An error of Redis becomes the verdict."""
        try:
            self._look()
        except StoreError as error:
            # It stays on the screen, with what was seen last, until Redis is back.
            self._scan = None
            self._failing_since = clock.now() if self._failing_since is None else self._failing_since
            self.failure = f"not seen for {span(clock.now() - self._failing_since)}: {error}"
        else:
            self._failing_since, self.failure = None, ""

    def _look(self) -> None:
        turn = self._looks_made % _ROUND
        self._looks_made += 1
        self.looks = [self._look_at(chosen, anew=turn == 0) for chosen in self._chosen[:_MOST]]
        if turn == 1:
            with contextlib.suppress(StoreError):  # the one from before goes on without its Sentinels
                self.master = self._selection.place.master()
        if turn == _ROUND // 2 and self._selection.chosen is None:
            self._scan_on()

    def _look_at(self, chosen: Chosen, *, anew: bool) -> Look:
        place = self._selection.place
        try:
            state = place.run(commands.inspect(chosen.keys, "waiters"))
            if anew or chosen not in self._pending:
                self._pending[chosen] = place.run(journal.pending(chosen.keys))
        except ForeignValue as error:
            return Look(chosen, None, (), verdicts.of_foreign_value(error))
        self.histories.setdefault(chosen, History()).add(state, self._numbers.calls(state))
        return self._selection.judged(chosen, state, self._pending[chosen])

    def _scan_on(self) -> None:
        """Look for new API keys, a part of the namespace at a time."""
        if self._scan is None:
            self._scan, self._scanned = self._selection.place.scanning(self._selection.namespace), set()
        tags = next(self._scan, None)
        if tags is not None:
            self._scanned |= tags
            return
        self._scan = None
        self._chosen = self._selection.of_tags(self._scanned)

    def rate(self, look: Look) -> str:
        """Return how many calls a second were begun, as text."""
        history = self.histories.get(look.chosen)
        return "-" if history is None or history.rate is None else f"{history.rate:.1f}"


@click.command(
    "watch",
    short_help="Show the same as status, live.",
    epilog=examples(
        "kraken-nonce watch",
        "kraken-nonce watch --all",
        "kraken-nonce watch --id 0123456789abcdef | tee watch.log",
    ),
)
@selection_options
def watch(selection: Selection) -> None:
    """Show live what is wrong, who holds the lock, who waits and how much goes on. q ends it. It changes nothing.

    It looks once a second, which costs the server at most two commands for each API key shown, 50 at most. Piped, it
    prints a line for each API key and second instead.

    Calls a second are an estimate over the last ten seconds: processes number their attempts to get the lock, and the
    number is in the name of each holder and waiter. Attempts of a process are counted when it is seen again, holding
    or waiting, and those that timed out are among them. "-" stands for some calls of processes that no look has seen.
    Nonces a second can't be told: Redis does not count them.
    """
    console = Console(highlight=False)
    watched = Watched(selection)
    watched.begin()
    with children.cleanup_when_terminated():
        if console.is_terminal and not console.is_dumb_terminal:
            _on_screen(console, watched)
        else:
            _in_lines(watched)


def _on_screen(console: Console, watched: Watched) -> None:
    with presses() as press, Live(console=console, screen=True, auto_refresh=False) as live:
        due = clock.now()
        while True:
            live.update(screen(watched, console.width, console.height), refresh=True)
            due = max(due + _EVERY, clock.now())
            while (left := due - clock.now()) > 0:
                if press(left).lower() == "q":
                    return
            watched.look()


def _in_lines(watched: Watched) -> None:
    # It takes no key presses: in the background, a process that touches its terminal is stopped.
    due = clock.now()
    while True:
        for line in lines(watched):
            click.echo(line)
        due = max(due + _EVERY, clock.now())
        time.sleep(max(0.0, due - clock.now()))
        watched.look()


def lines(watched: Watched) -> list[str]:
    """Return what is printed for a look where there is no terminal."""
    at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if watched.failure or not watched.looks:
        return [f"{at} {watched.verdict}"]
    return [
        f"{at} {look.chosen.label} {watched.rate(look)} calls/s, {_waits(look)}: {look.verdict.text}"
        for look in watched.looks
    ]


def screen(watched: Watched, width: int, height: int) -> RenderableType:
    """Return what a terminal of this size shows; what is too much comes last, to be cut off.

    First the verdict and which Redis it is, then a table of the API keys, or with few columns two lines for each. Those
    with trouble come first, and what is wrong with them is written out below.
    """
    wide = width >= WIDE
    looks = sorted(watched.looks, key=lambda look: not look.verdict.conditions)
    troubles = [look for look in looks if look.verdict.conditions] if len(looks) > 1 else []
    room = max(1, (height - _FRAME - min(len(troubles), _MOST_TROUBLES)) // (1 if wide else 2))
    shown = looks[:room]
    more = len(looks) - len(shown) + watched.left_out
    return Group(
        Text(watched.verdict, colour(watched.verdict)),
        _line(f"redis {watched.redis}", "dim"),
        _line(f"q quits. {_EXPLAINED}", "dim"),
        *([_table(watched, shown)] if wide else [_block(watched, look, width) for look in shown]),
        *([_line(f"and {more} more; kraken-nonce status --all shows them", "dim")] if more else []),
        *(Text(f"{look.chosen.label}: {look.verdict.text}", "red") for look in troubles),
    )


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _state(look: Look) -> Text:
    names = ", ".join(look.verdict.names) or ("ok" if look.verdict.known else "unknown")
    return _line(names, colour(look.verdict.text))


def _table(watched: Watched, looks: list[Look]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("key", no_wrap=True, width=16)
    for name in ("calls/s", "wait", "longest"):
        table.add_column(name, justify="right", no_wrap=True, width=8)
    table.add_column(f"wait, last {_BAR} s", no_wrap=True, width=_BAR)
    table.add_column("holder", no_wrap=True, ratio=2)
    table.add_column("verdict", no_wrap=True, ratio=1)
    for look in looks:
        state = look.state
        waiting = ("-", "-") if state is None else (str(state.waiting), span(verdicts.longest_wait(state)))
        cells = (look.chosen.label, watched.rate(look), *waiting, _bars(watched, look, _BAR), _holder(look))
        table.add_row(*map(_line, cells), _state(look))
    return table


def _block(watched: Watched, look: Look, width: int) -> Group:
    figures = f"  {watched.rate(look)} calls/s, {_waits(look)} "
    return Group(
        Text.assemble(f"{look.chosen.label}  ", _state(look), f"  {_holder(look)}", no_wrap=True, overflow="ellipsis"),
        _line(figures + _bars(watched, look, max(0, min(_BAR, width - len(figures))))),
    )


def _bars(watched: Watched, look: Look, width: int) -> str:
    history = watched.histories.get(look.chosen)
    return "" if history is None else sparkline(history.waiting, width)


def _holder(look: Look) -> str:
    place = None if look.state is None else look.state.place
    if look.state is None or place is None:
        return "free"
    if not look.state.leased:
        return f"next: {who(place)}"
    return f"{who(place)}, {span(place.held)}"


def _waits(look: Look) -> str:
    if look.state is None:
        return "-"
    longest = f", longest {span(verdicts.longest_wait(look.state))}" if look.state.waiting else ""
    return f"{look.state.waiting} wait{longest}"
