"""What ``kraken-nonce check`` looks at, and what it makes of it."""
