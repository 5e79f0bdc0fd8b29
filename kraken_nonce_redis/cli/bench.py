"""The command `bench`."""

from __future__ import annotations

import secrets
import statistics
import threading
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.table import Table

from kraken_nonce_redis import _children as children
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._threads.allocator import NonceAllocator
from kraken_nonce_redis._threads.lock import CallLock
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import Figure, examples, json_option, namespace_option, print_json, redis_option
from kraken_nonce_redis.cli.own_keys import removed_afterwards
from kraken_nonce_redis.cli.place import Place
from kraken_nonce_redis.errors import KrakenNonceError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WARM_UP: Final = 10
"""Times that something is done before it is measured, since the server may not know the script."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How long something took.

    Attributes:
        count: how often it was done.
        median: in ms.
        worst: the slowest of a hundred takes at least that long, in ms.
        per_second: how often it was done in a second.
    """

    count: int
    median: float
    worst: float
    per_second: float


def measured(seconds: Sequence[float]) -> Measured:
    """Return the figures for what took so many seconds each, one after the other. Needs two of them."""
    return Measured(
        len(seconds),
        statistics.median(seconds) * 1000,
        statistics.quantiles(seconds, n=100, method="inclusive")[-1] * 1000,
        len(seconds) / sum(seconds),
    )


@click.command(
    "bench",
    short_help="Measure how fast nonces and locks are on your Redis.",
    epilog=examples(
        "kraken-nonce bench",
        "kraken-nonce bench --callers 32 --seconds 5",
        "kraken-nonce bench --json | jq .lock.median",
    ),
)
@click.option(
    "--seconds", type=Figure(0.1, 60), default=2.0, show_default=True, help="Length of each of the four measurements."
)
@click.option(
    "--callers", type=click.IntRange(2, 256), default=8, show_default=True, help="Threads that want the lock at once."
)
@namespace_option
@redis_option
@json_option
def bench(url: str | None, *, namespace: str, callers: int, seconds: float, as_json: bool) -> None:
    """Measure how long Redis takes from here to answer, to give a nonce, and to give and pass on the lock.

    Nothing goes to Kraken, no API key is needed, and no other key's nonces or lock are touched: it has keys of its own
    in the namespace, and removes them. But it sends as fast as it can, so the server has less time for others
    meanwhile. It has a bot's permissions.

    \b
    round trip     a script that does nothing: what the way there and back costs
    nonce          NonceAllocator.next()
    lock           CallLock.hold() and its end, while nobody else wants it
    lock, passed   from one holder to the next of --callers threads of this process
    """  # noqa: D301 - click's mark for lines that stay as they are
    place = Place(url)
    api_key = f"bench {secrets.token_hex(8)}"
    try:
        with (
            children.cleanup_when_terminated(),
            removed_afterwards(place.client, Keyspace.of(namespace, api_key)),
            Console(stderr=True).status(f"Measuring for {4 * seconds:g} s"),
        ):
            results = _measure(place.client, api_key, namespace, callers, seconds)
    except StoreError as error:
        raise place.failure(error, about_key=False) from None
    if as_json:
        print_json({name: asdict(result) for name, result in results.items()})
    else:
        _show(results, place.words())


def _measure(source: Any, api_key: str, namespace: str, callers: int, seconds: float) -> dict[str, Measured]:
    nonces = NonceAllocator(source, api_key, namespace=namespace)
    lock = CallLock(source, api_key, namespace=namespace)

    def hold() -> None:
        with lock.hold():
            pass

    return {
        "round_trip": _repeated(lock.ping, seconds),
        "nonce": _repeated(nonces.next, seconds),
        "lock": _repeated(hold, seconds),
        "lock_passed": _passed(lock, callers, seconds),
    }


def _repeated(work: Callable[[], object], seconds: float) -> Measured:
    for _ in range(_WARM_UP):
        work()
    times = [clock.now()]
    while len(times) < 3 or times[-1] < times[0] + seconds:  # noqa: PLR2004 - for two lengths
        work()
        times.append(clock.now())
    return measured([later - earlier for earlier, later in pairwise(times)])


def _passed(lock: CallLock, callers: int, seconds: float) -> Measured:
    """Measure from one grant to the next while all callers want the lock again as soon as they have had it."""
    grants: list[float] = []
    failures: list[KrakenNonceError] = []
    over = threading.Event()
    end = clock.now() + seconds

    def call() -> None:
        try:
            while clock.now() < end and not over.is_set():
                with lock.hold():
                    grants.append(clock.now())
        except KrakenNonceError as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        over.set()  # after Ctrl-C, too, they must end before the keys are removed
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    if len(grants) < 3:  # noqa: PLR2004 - for two lengths
        raise Failure("the lock was passed on less than twice: give more --seconds")
    return measured([later - earlier for earlier, later in pairwise(sorted(grants))])


_NAMES: Final = {"round_trip": "round trip", "nonce": "nonce", "lock": "lock", "lock_passed": "lock, passed"}


def _show(results: dict[str, Measured], redis: str) -> None:
    console = Console(highlight=False)
    table = Table("", "median", "1 of 100 takes", "per second", "round trips", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    way = results["round_trip"].median
    for name, result in results.items():
        table.add_row(
            _NAMES[name],
            f"{result.median:.2f} ms",
            f"{result.worst:.2f} ms",
            f"{result.per_second:.0f}",
            f"{result.median / way:.1f}",
        )
    console.print(f"redis       {redis}", soft_wrap=not console.is_terminal)
    console.print(table)
