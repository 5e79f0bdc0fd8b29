"""The command `ready`."""

from __future__ import annotations

import click

from kraken_nonce_redis._redis import commands
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.cli.options import examples, namespace_option, redis_option
from kraken_nonce_redis.cli.place import Place
from kraken_nonce_redis.errors import StoreError


@click.command(
    "ready",
    short_help="Say by the exit code whether Redis can be used: a probe.",
    epilog=examples(
        "kraken-nonce ready",
    ),
)
@redis_option
@namespace_option
def ready(url: str | None, *, namespace: str) -> None:
    """Say by the exit code whether Redis answers, runs scripts and takes writes. No API key is needed.

    For the probes of containers: readiness, not liveness, since a restart of the bot does not bring Redis back. It has
    a bot's permissions. It starts a Python each time: a program that serves HTTP does better to answer its probes
    itself, with `lock.ping()`.

    Exit code 3 when Redis is away, with the reason on stderr. Nothing is printed when all is well.
    """
    place = Place(url)
    try:
        place.run(commands.ping(Keyspace.of(namespace, "ready")))
    except StoreError as error:
        raise place.failure(error, about_key=False) from None
