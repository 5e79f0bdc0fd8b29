"""The command `simulator`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from kraken_nonce_redis import _children as children
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import Figure, examples, note
from kraken_nonce_redis.cli.requirements import require

if TYPE_CHECKING:
    from kraken_nonce_redis.testing._limits import Tier

_TERMINAL: Final = "Copy these lines into the terminal of your bot."
_FILE: Final = "Read these lines in the terminal of your bot, such as by `. ./simulator.env`."


@click.command(
    "simulator",
    short_help="Run a simulated Kraken for development.",
    epilog=examples(
        "kraken-nonce simulator",
        "kraken-nonce simulator --port 8080 --latency 0.1 --tier starter",
        "kraken-nonce simulator --lost-answers 0.1 --lost-requests 0.1",
    ),
)
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port on loopback; by default any free one.")
@click.option(
    "--latency",
    type=Figure(0, 10),
    default=0.05,
    show_default=True,
    metavar="SECONDS",
    help="Of each way, on average.",
)
@click.option("--tier", type=click.Choice(["starter", "intermediate", "pro"]), help="Count calls as for this tier.")
@click.option(
    "--lost-answers",
    type=Figure(0, 1),
    default=0.0,
    metavar="SHARE",
    help="Share of the private calls, 0 to 1, that are carried out and get no answer.",
)
@click.option(
    "--lost-requests",
    type=Figure(0, 1),
    default=0.0,
    metavar="SHARE",
    help="Share of the private calls, 0 to 1, that are lost on their way.",
)
def simulator(*, port: int, latency: float, tier: Tier | None, lost_answers: float, lost_requests: float) -> None:
    """Run a simulated Kraken for development, until Ctrl-C. Nothing leaves this machine, and no order is a real one.

    It checks keys, signatures and nonces as Kraken does. On stdout it prints lines for a shell: its address, and an API
    key with its secret, which are made up at each start. All adapters and `kraken-nonce check` use that address. It
    listens on loopback only. Needs the extra "testing".
    """
    require("aiohttp")
    from kraken_nonce_redis.testing import Fault, KrakenSimulator  # noqa: PLC0415 - aiohttp may be missing

    if lost_answers + lost_requests > 1:
        raise click.UsageError("--lost-answers and --lost-requests are shares of all private calls: 1 at most together")
    # The second fault is for what the first has left.
    share = lost_requests and min(lost_requests / (1 - lost_answers), 1.0)
    faults = [Fault("cut", "answering", probability=lost_answers), Fault("cut", "reading", probability=share)]
    exchange = KrakenSimulator(latency=(0.5 * latency, 1.5 * latency), faults=faults, port=port, tier=tier)
    with children.cleanup_when_terminated():
        try:
            exchange.start()
        except RuntimeError as error:
            raise Failure(str(error)) from error
        try:
            click.echo(f"export KRAKEN_API_URL={exchange.url}")
            click.echo(f"export KRAKEN_API_KEY={exchange.key}")
            click.echo(f"export KRAKEN_API_SECRET={exchange.secret}")
            note(f"{_TERMINAL if sys.stdout.isatty() else _FILE} Press Ctrl-C to end the simulated Kraken.")
            exchange.wait()
        except KeyboardInterrupt:
            return
        finally:
            exchange.stop()
    raise Failure("the simulator ended by itself")
