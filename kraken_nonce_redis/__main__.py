"""Run the command: ``python -m kraken_nonce_redis``."""

from __future__ import annotations

from kraken_nonce_redis.cli import main

if __name__ == "__main__":
    main()
