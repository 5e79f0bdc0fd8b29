"""`python -m kraken_nonce_redis.cli`: the same as `kraken-nonce`."""

from kraken_nonce_redis.cli import main

if __name__ == "__main__":
    main()
