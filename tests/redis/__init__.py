"""Tests of nonces, lock and pace on real servers, by threads and by asyncio."""
