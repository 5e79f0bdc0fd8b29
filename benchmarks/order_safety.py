"""What becomes of orders when calls get lost: each fault at each point, on our clients and on stock ones with retries.

In each cell a client is to place so many market orders, one after the other, and a third of its AddOrder calls is hit
by one fault at one point; the seed is the same for all. In the rows `kill -9` each order has a bot of its own, on an
API key of its own, which is killed at that point; the next holder of the key makes a call and is told what was found.
Then what is at the simulated exchange is held against what the client, or the next holder, believes.

The rivals are written as users write them: krakenex in a loop that makes a call again after an exception, an
`EService:` error or an invalid nonce, and ccxt with `maxRetriesOnFailure`; both make three more attempts.

    placed      believed placed
    absent      believed not placed
    doubled     orders that are there more than once
    missing     believed placed, and not there
    unreported  there, and believed not placed, or nobody was told
    unknown     reported as unknown, with an id to look for
    begun late  sent after its patience was over

In other people's code our clients are passed more than once for a call, by loops in subclasses and sessions. Lost
requests may arrive late, also where the API key has a nonce window. Absent orders are sent once more by one of them.

Orders with a name (`once`) are asked for again after every error, up to ten times, by one process or by four at the
same time. There the same fault also hits 15 calls in a row, again and again, questions included, so that some orders
stay unknown for a while. What one of the processes was told counts for all, and each txid must be that of the order.
After `kill -9` another process asks for the same name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import platform
import shlex
import signal
import sys
import threading
import time
from bisect import bisect
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import common
import krakenex
from order_clients import CLIENTS, volume_of

import kraken_nonce_redis.krakenex
from kraken_nonce_redis import KrakenNonceError, NotCarriedOut, Retries
from kraken_nonce_redis.testing import Fault, KrakenSimulator

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from kraken_nonce_redis.testing import SimulatedOrder

FAULTS = ("cut", "502", "EService:Unavailable", "slow")
POINTS: tuple[Any, ...] = ("reading", "acting", "answering")
KILLED_AT = ("before sending", *POINTS, "before the release")
SLOW, TIMEOUT = 0.3, 0.2  # seconds that a slow call is held, and that its client waits
PROBABILITY = 1 / 3
QUESTIONS = ("GetApiKeyInfo", "OpenOrders", "ClosedOrders")
WELL, AWAY = 16, 15  # calls in a row that outages leave alone, and that they hit: longer than settling goes on
MEETING = 120.0  # seconds in which processes that ask for the same order must meet
# The last look at the lists comes after a slow or late call was carried out.
QUICK, PATIENT = Retries(settle_waits=(0.01, 0.03)), Retries(settle_waits=(0.05, 0.25))
KEYS = 20  # bots that live and die at once
ALIVE = 4.0  # seconds that such a bot waits for its answer, which never comes
LIFE = 60.0  # seconds after which such a bot ends in any case
KILLED = ("krakenex, ours", "krakenex, ours, once", "krakenex, stock")

logging.getLogger("kraken_nonce_redis").setLevel(logging.CRITICAL)  # it tells of each order that it has to look for


@dataclass
class Told:
    """What was told of orders; they are known by their volume.

    Attributes:
        beliefs: 1 for placed, 0 for not placed, -1 for unknown.
        txids: pairs of a volume and the txid that was told for it.
        asked: when each order was asked for, in seconds on the monotonic clock; on Linux all processes have the same.
    """

    beliefs: Counter[str] = field(default_factory=Counter)
    txids: set[tuple[str, str]] = field(default_factory=set)
    asked: list[float] = field(default_factory=list)

    def ask(self, place: Callable[[str], str], volume: str, times: int) -> None:
        """Ask for an order until it is placed, so many times at most; note what is believed in the end."""
        belief = 0
        for _ in range(times):
            self.asked.append(time.monotonic())
            try:
                txid = place(volume)
            except NotCarriedOut:
                belief = 0
            except KrakenNonceError as error:
                if error.carried_out is not False:  # else only this call was not carried out; an earlier one may be
                    belief = -1
            else:
                belief = int(bool(txid))
                if txid:
                    self.txids.add((volume, txid))
                    break
        self.beliefs[volume] = belief

    def join(self, other: Told) -> None:
        """Add what another process was told. What is placed for one is placed for all; else it may be unknown."""
        for volume, belief in other.beliefs.items():
            self.beliefs[volume] = max(belief, self.beliefs[volume], key=(0, -1, 1).index)
        self.txids |= other.txids
        self.asked = sorted(self.asked + other.asked)


@dataclass
class Cell:
    """One row of the table."""

    client: str
    fault: str
    before: str
    wanted: int = 0
    there: int = 0
    placed: int = 0
    absent: int = 0
    doubled: int = 0
    missing: int = 0
    unreported: int = 0
    unknown: int = 0
    begun_late: int = 0

    def count(self, orders: list[SimulatedOrder], told: Told) -> Cell:
        """Hold the orders against what was told."""
        there = Counter(order.volume for order in orders)
        placed = {volume for volume, belief in told.beliefs.items() if belief > 0}
        unknown = {volume for volume, belief in told.beliefs.items() if belief < 0}
        wrong = {volume for volume, _ in told.txids - {(order.volume, order.txid) for order in orders}}
        self.there = len(orders)
        self.placed = len(placed)
        self.absent = sum(belief == 0 for belief in told.beliefs.values())
        self.doubled = sum(number > 1 for number in there.values())
        self.missing = len((placed - set(there)) | wrong)
        self.unreported = len(set(there) - placed - unknown)
        self.unknown = len(unknown)
        return self


def run_fault(client: str, what: str, point: Any, wanted: int, server: tuple[str, str]) -> Cell:
    """Fill a cell in which calls are hit by a fault."""
    url, namespace = server
    kind, slow = CLIENTS[client], what == "slow"
    fault = Fault(
        what,
        point,
        methods=["AddOrder"],
        probability=PROBABILITY,
        seconds=SLOW if slow else 0,
        late=None if slow or point == "answering" else kind.late,
    )
    faults = [fault]
    if kind.asks > 1:
        away = [call for call in range(100 * wanted) if call % (WELL + AWAY) >= WELL]
        faults.append(replace(fault, methods=("AddOrder", *QUESTIONS), probability=1, calls=away))
    with KrakenSimulator(nonce_window=kind.window, seed=1) as sim:
        options = {"redis": url, "namespace": namespace, "retries": PATIENT if slow or fault.late else QUICK}
        sim.configure(faults=faults)
        told = _ask_together(client, sim, wanted, call_timeout=TIMEOUT if slow else 5, **options)
        time.sleep(2 * SLOW if slow else 2 * (kind.late or 0))
        cell = Cell(client, what, point, wanted).count(sim.orders(), told)
        if kind.patience is not None:
            sent = [request.received for request in sim.requests() if request.method == "AddOrder"]
            cell.begun_late = sum(at - told.asked[bisect(told.asked, at) - 1] > kind.patience for at in sent)
        return cell


def _ask_together(client: str, sim: KrakenSimulator, wanted: int, **options: Any) -> Told:
    """Have all processes of a client ask for the same orders, each order at the same time."""
    kind, fork = CLIENTS[client], multiprocessing.get_context("fork")
    meeting = fork.Barrier(kind.processes, timeout=MEETING)

    def ask_for_all(telling: Connection) -> None:
        place, told = kind.make(sim, sim.key, **options), Told()
        for number in range(wanted):
            meeting.wait()
            told.ask(place, volume_of(number), kind.asks)
        telling.send(told)

    pipes = []
    for _ in range(kind.processes):
        hearing, telling = fork.Pipe(duplex=False)
        fork.Process(target=ask_for_all, args=(telling,), daemon=True).start()
        telling.close()
        pipes.append(hearing)
    told = Told()
    for pipe in pipes:
        told.join(pipe.recv())
    return told


# kill -9


def _hang(writing: int) -> None:
    os.write(writing, b".")
    time.sleep(LIFE)
    os._exit(1)


def _live(
    client: str, access: tuple[KrakenSimulator, str], point: str, volume: str, writing: int, **options: Any
) -> None:
    """Place one order, in a child that is killed meanwhile."""
    seam: Any = krakenex.API
    query = seam._query  # noqa: SLF001 - where a child is stopped

    def hanging(self: Any, path: str, *request: Any, **named: Any) -> Any:
        if not path.endswith("/AddOrder"):
            return query(self, path, *request, **named)
        if point == "before sending":
            _hang(writing)
        os.write(writing, b".")
        answer = query(self, path, *request, **named)
        if point == "before the release":
            time.sleep(LIFE)
        return answer

    seam._query = hanging  # noqa: SLF001
    with contextlib.suppress(Exception):
        CLIENTS[client].make(*access, **options)(volume)
    os._exit(0)


def run_kill(client: str, point: str, wanted: int, server: tuple[str, str]) -> Cell:
    """Fill a cell in which each order's bot is killed."""
    url, namespace = server
    cell = Cell(client, "kill -9", point, wanted)
    # Held before reading, a call comes to life after the next holder has asked; before acting, it goes on before that.
    hold = {"reading": 3.5 * ALIVE, "acting": ALIVE, "answering": ALIVE}.get(point, 0.0)
    told = Told()
    orders: list[SimulatedOrder] = []
    options = {"redis": url, "namespace": namespace, "ttl": 1, "call_timeout": ALIVE, "retries": Retries((), 0.0)}
    learning = options | {"retries": Retries(settle_waits=(0.2, 0.4))}
    for start in range(0, wanted, KEYS):
        numbers = range(start, min(start + KEYS, wanted))
        first = range(1, 1 + len(numbers))  # who asks for an order again is not held
        faults = [Fault("slow", point, methods=["AddOrder"], calls=first, seconds=hold)] if hold else []  # type: ignore[arg-type]
        with KrakenSimulator([f"bot-{number}" for number in numbers], faults=faults, seed=1) as sim:
            keys = dict(zip(numbers, sim.accounts, strict=True))
            reading, writing = os.pipe()
            children = []
            for number, key in keys.items():
                child = os.fork()
                if not child:
                    _live(client, (sim, key), point, volume_of(number), writing, **options)
                children.append(child)
            _wait_for(reading, len(children), sim, point)
            _check_alive(sim)
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            os.close(reading)
            os.close(writing)
            if CLIENTS[client].asks > 1:
                _ask_again(client, sim, keys, learning, told)
            elif "ours" in client:
                _learn(sim, keys, learning, told)
            _until_finished(sim)
            orders += sim.orders()
    return cell.count(orders, told)


def _wait_for(reading: int, number: int, sim: KrakenSimulator, point: str) -> None:
    """Wait until all children are where they shall be killed."""
    for _ in range(number):
        os.read(reading, 1)
    if point != "before sending":
        while sum(request.method == "AddOrder" for request in sim.requests()) < number:
            time.sleep(0.01)
    if point == "before the release":
        while len(sim.orders()) < number:
            time.sleep(0.01)
        time.sleep(0.1)


def _check_alive(sim: KrakenSimulator) -> None:
    """Raise RuntimeError if a bot went on after its order, and so was not killed where it should be."""
    ordered = set()
    for request in sim.requests():
        if request.method == "AddOrder":
            ordered.add(request.account)
        elif request.account in ordered:
            raise RuntimeError("the machine is too slow: a bot gave its call up before it was killed")


def _until_finished(sim: KrakenSimulator) -> None:
    while any(request.finished is None for request in sim.requests()):
        time.sleep(0.05)


def _ask_again(client: str, sim: KrakenSimulator, keys: dict[int, str], options: Any, told: Told) -> None:
    """Be another process with each key, which asks for the same order by the same name."""

    def ask(number: int, key: str) -> None:
        told.ask(CLIENTS[client].make(sim, key, **options), volume_of(number), CLIENTS[client].asks)

    _at_once(ask, keys)


def _at_once(function: Callable[[int, str], None], keys: dict[int, str]) -> None:
    threads = [threading.Thread(target=function, args=pair) for pair in keys.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _learn(sim: KrakenSimulator, keys: dict[int, str], options: Any, told: Told) -> None:
    """Be the next holder of each key, and believe what it is told."""

    def learn(number: int, key: str) -> None:
        def hear(event: Any) -> None:
            heard[number] = {"found": 1, "absent": 0}.get(event.outcome, -1)

        api = kraken_nonce_redis.krakenex.API(key, sim.accounts[key], on_event=hear, **options)
        api.uri = sim.url
        while number not in heard:  # on a busy machine a holder may lose its lease, and the next one learns
            with contextlib.suppress(KrakenNonceError):
                api.query_private("Balance")
                break

    heard: dict[int, int] = {}
    _at_once(learn, keys)
    for number in keys:
        # Who is told nothing believes that nothing was placed.
        told.beliefs[volume_of(number)] = heard.get(number, 0)


def report(cells: list[Cell], *, as_json: bool) -> None:
    """Print the table, and the sums."""
    command = shlex.join(["python", *sys.argv])
    if as_json:
        print(json.dumps({"command": command, "cells": [asdict(cell) for cell in cells]}, indent=2))
        return
    versions = ", ".join(f"{name} {common.version_of(name)}" for name in ("krakenex", "ccxt", "python-kraken-sdk"))
    print(f"`{command}`, Python {platform.python_version()}, {versions}\n")
    header = ("wanted", "there", "placed", "absent", "doubled", "missing", "unreported", "unknown", "begun_late")
    print(f"| client | fault | {' | '.join(header)} |\n|---|---|{'---:|' * len(header)}")
    for client in CLIENTS:
        for faults, name in ((FAULTS, "all, at all points"), (("kill -9",), "kill -9, at all points")):
            some = [cell for cell in cells if cell.client == client and cell.fault in faults]
            if some:
                sums = [sum(getattr(cell, field) for cell in some) for field in header]
                print(f"| {client} | {name} | {' | '.join(map(str, sums))} |")
    print(f"\n| client | fault | before | {' | '.join(header)} |\n|---|---|---|{'---:|' * len(header)}")
    for cell in cells:
        print(f"| {' | '.join(str(value) for value in asdict(cell).values())} |")


def main() -> None:
    """Fill all cells, several at once, and report."""
    options = common.parser(__doc__, rounds=1)
    options.add_argument("--orders", type=int, default=30, help="wanted in each cell (%(default)s)")
    options.add_argument("--kills", type=int, help="in each cell with kill -9 (as many as orders)")
    options.add_argument("--clients", help="part of the names of those to run (all of them)", default="")
    options.add_argument("--workers", type=int, default=4, help="cells at once (%(default)s)")
    args = options.parse_args()
    kills = args.orders if args.kills is None else args.kills
    with (
        common.running(args.redis) as bench,
        ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool,
    ):
        server = bench.url, bench.namespace
        tasks = [
            pool.submit(run_fault, client, what, point, args.orders, server)
            for client in CLIENTS
            if args.clients in client
            for what in FAULTS
            for point in POINTS
            if args.orders
        ]
        tasks += [
            pool.submit(run_kill, client, point, kills, server)
            for client in KILLED
            if args.clients in client
            for point in KILLED_AT
        ]
        report([task.result() for task in tasks], as_json=args.json)


if __name__ == "__main__":
    main()
