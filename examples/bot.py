"""A bot that shares its API key with other bots. It reads the balances; with --orders it also places orders.

It takes key, secret, Redis and Kraken's address from the environment: KRAKEN_API_KEY, KRAKEN_API_SECRET,
KRAKEN_NONCE_REDIS_URL and, for a simulator, KRAKEN_API_URL. Start as many as you like. SIGTERM and Ctrl-C end it
after its round; docs/deploy.md says what that is good for, and how to run it in containers.

Its nonces count nanoseconds. After its first call Kraken refuses every client that counts in milliseconds or
microseconds on the same API key, forever: docs/migration.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

import requests

from kraken_nonce_redis import (
    InvalidArgument,
    KrakenNonceError,
    NotCarriedOut,
    OutcomeUnknown,
    ShuttingDown,
    shutdown_on_signal,
)
from kraken_nonce_redis.krakenex import API

ORDER: Final = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "1000", "volume": "0.0001"}
"""The order of --orders, far below the market."""

log = logging.getLogger("bot")


class Stop:
    """Whether a signal has asked the bot to end. The round that it is in is finished first."""

    asked = False

    def __call__(self, *_: object) -> None:
        """Handle the signal."""
        self.asked = True

    def sleep(self, seconds: float) -> None:
        """Sleep, but end that soon when asked to stop."""
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))


def main() -> int:
    """Run rounds until a signal ends the bot; return the exit code."""
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # First our handler, then the library's: it ends the calls and calls ours, which lets the round be finished. Without
    # one the process would end at once, maybe before it has seen the answer to its last order.
    stop = Stop()
    ending = (signal.SIGTERM, signal.SIGINT)
    for number in ending:
        signal.signal(number, stop)
    shutdown_on_signal(options.shutdown, ending)
    try:
        api = prepare(options)
    except KeyError as error:
        log.critical("the environment variable %s is not set or is empty", error.args[0])
        return 2
    except (InvalidArgument, ImportError, OSError) as error:
        log.critical("%s", error)
        return 2
    orders = 0
    while not stop.asked:
        try:
            read_balances(api)
            if orders < options.orders:
                place_order(api)
                orders += 1
        except ShuttingDown:
            break
        except (KrakenNonceError, requests.RequestException) as error:
            # Redis is away, other bots hold the lock for too long, or Kraken does not answer: the next round may work.
            log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400 - a traceback says no more
        if options.alive is not None:
            options.alive.touch()
        stop.sleep(options.every)
    log.info("stopped")
    return 0


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=seconds, default=10, metavar="SECONDS", help="between two rounds (default: 10)")
    parser.add_argument(
        "--orders", type=count, default=0, metavar="N", help="place N orders, one in each round (default: none)"
    )
    parser.add_argument(
        "--shutdown", type=seconds, default=20, metavar="SECONDS", help="for calls to end after SIGTERM (default: 20)"
    )
    parser.add_argument("--alive", type=Path, metavar="FILE", help="file to touch at first and after each round")
    parser.add_argument("--metrics", type=port, metavar="PORT", help="port on which Prometheus finds our metrics")
    return parser.parse_args()


def seconds(text: str) -> float:
    """Return a length of time; argparse tells of a `ValueError`."""
    value = float(text)
    if not 0 < value <= 3600:  # noqa: PLR2004 - an hour
        raise ValueError
    return value


def count(text: str) -> int:
    """Return a number of orders; argparse tells of a `ValueError`."""
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def port(text: str) -> int:
    """Return the number of a port; argparse tells of a `ValueError`."""
    value = int(text)
    if not 1 <= value <= 65535:  # noqa: PLR2004 - the highest there is
        raise ValueError
    return value


def variable(name: str) -> str:
    """Return the value of an environment variable. Raises `KeyError` if it is not set or is empty."""
    if not (value := os.environ[name].strip()):
        raise KeyError(name)
    return value


def prepare(options: argparse.Namespace) -> API:
    """Return the client; touch the file and serve the metrics. Raises what shows that the bot can't work like this."""
    if options.alive is not None:
        options.alive.touch()
    api = API(variable("KRAKEN_API_KEY"), variable("KRAKEN_API_SECRET"))
    if options.metrics is not None:
        serve_metrics(options.metrics)
    return api


def serve_metrics(port: int) -> None:
    """Serve the library's metrics of this process."""
    from prometheus_client import start_http_server  # noqa: PLC0415

    from kraken_nonce_redis.prometheus import install  # noqa: PLC0415 - needs an extra that the bot works without

    install()
    start_http_server(port)


def read_balances(api: API) -> None:
    """Read the balances, and log which assets there are."""
    answer = api.query_private("Balance")
    if answer["error"]:
        log.warning("Kraken refuses to tell the balances: %s", ", ".join(answer["error"]))
    else:
        log.info("assets: %s", ", ".join(sorted(answer["result"])) or "none")


def place_order(api: API) -> None:
    """Place one order, and log what became of it. It is never placed twice: the next round places another one."""
    try:
        answer = api.query_private("AddOrder", ORDER)
    except NotCarriedOut as error:
        log.warning("order not placed: %s", error)
    except OutcomeUnknown as error:
        log.critical("look at Kraken whether there is an order %s: %s", error.cl_ord_id, error)
    else:
        if answer["error"]:
            log.warning("order refused: %s", ", ".join(answer["error"]))
        else:
            log.info("order placed: %s", ", ".join(answer["result"]["txid"]))


if __name__ == "__main__":
    sys.exit(main())
