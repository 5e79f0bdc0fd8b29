"""The command `exporter`."""

from __future__ import annotations

import re
import threading
from typing import Final

import click

from kraken_nonce_redis import _children as children
from kraken_nonce_redis.cli.exit_codes import Failure
from kraken_nonce_redis.cli.options import examples, max_lead_option, namespace_option, note, redis_option
from kraken_nonce_redis.cli.place import Place
from kraken_nonce_redis.cli.requirements import require
from kraken_nonce_redis.cli.selection import Selection

_LISTEN: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")
_HIGHEST_PORT: Final = 65_535
_DEFAULT: Final = "127.0.0.1:9871"


def _address(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, int]:
    match = _LISTEN.fullmatch(value)
    if match is None or int(match[2]) > _HIGHEST_PORT:
        raise click.BadParameter(f"takes HOST:PORT, such as {_DEFAULT} or [::1]:9871")
    return match[1].strip("[]"), int(match[2])


@click.command(
    "exporter",
    short_help="Tell Prometheus what is in Redis.",
    epilog=examples(
        "kraken-nonce exporter",
        "kraken-nonce exporter --listen 0.0.0.0:9871 --namespace copy-trading",
        f"curl http://{_DEFAULT}/metrics",
    ),
)
@redis_option
@namespace_option
@max_lead_option
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=_DEFAULT,
    show_default=True,
    callback=_address,
    help="Where to listen. Whoever reaches it sees digests of API keys and figures, and no more.",
)
@click.option(
    "--max-keys",
    "most",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="API keys to show at the most, each with some twenty series.",
)
def exporter(*, url: str | None, namespace: str, max_lead: int, listen: tuple[str, int], most: int) -> None:
    """Tell Prometheus what is in Redis, for all API keys of a namespace, until Ctrl-C. It changes nothing.

    Redis is asked at each scrape: SCAN for the API keys, and two commands for each of them. One exporter is enough for
    all bots; what the bots themselves count, they tell Prometheus themselves. No API key is needed. docs/metrics.md has
    the names. Its URL, and nothing else, is printed on stdout.

    Needs the extra "prometheus".
    """
    require("prometheus_client")
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 - may be missing

    from kraken_nonce_redis.cli.collector import RedisCollector  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(RedisCollector(Selection.of_namespace(Place(url), namespace, max_lead), most))
    host, port = listen
    with children.cleanup_when_terminated():
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            raise Failure(f"can't listen on {host}:{port}: {error.strerror or error}; give another --listen") from None
        try:
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"http://{shown}:{server.server_port}/metrics")
            note("Press Ctrl-C to end the exporter.")
            threading.Event().wait()
        except KeyboardInterrupt:
            return
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
