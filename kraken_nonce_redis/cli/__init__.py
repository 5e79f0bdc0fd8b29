"""The `kraken-nonce` command. Needs the extra ``cli``."""

from __future__ import annotations

import sys
from typing import Final

_NEEDED: Final = ("click", "rich")


def main() -> None:
    """Run the command and end the process with its exit code."""
    try:
        from kraken_nonce_redis.cli.app import app  # noqa: PLC0415 - what it needs may be missing

        app(prog_name="kraken-nonce")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        sys.stderr.write(f"kraken-nonce: {missing} is missing: pip install 'kraken-nonce-redis[cli]'\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
