"""Nonces, lock, lease and waiting as flows of steps; no I/O."""
