"""The shell for threads; `kraken_nonce_redis.asyncio` mirrors it, file by file."""
