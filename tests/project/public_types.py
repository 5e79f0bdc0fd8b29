"""What a user's type checker makes of the public interface; checked by mypy and pyright, never run."""

from __future__ import annotations

from typing import assert_type

import redis
import redis.asyncio  # noqa: TC002 - as users write it
from redis.lock import Lock  # noqa: TC002

import kraken_nonce_redis.asyncio
from kraken_nonce_redis import CallLock, CoolDown, HoldTimeout, Lease, LeaseLost, NonceAllocator, Pace, StoreUnavailable
from kraken_nonce_redis.accounts import Account, Accounts


def threads(client: redis.Redis) -> None:
    """Use the library with threads."""
    nonces = NonceAllocator(client, "key", namespace="mine")
    assert_type(nonces.next(), int)
    assert_type(nonces.reserve(3), range)
    assert_type(nonces.last(), int | None)
    assert_type(nonces.jump_forward(10**9), int)
    lock = CallLock.from_url("redis://localhost", "key", pace=Pace(tier="pro"), scope="global")
    assert_type(lock, CallLock)
    assert_type(lock.lease, Lease | None)
    try:
        with lock.hold(timeout=1, cost=1, priority="high", auto_renew=True) as lease:
            assert_type(lease, Lease)
            assert_type(lease.nonce, int)
            assert_type(lease.next_nonce(), int)
            assert_type(lease.remaining(), float)
            assert_type(lease.lost, bool)
            lease.extend(5)
            lease.check(1)
    except CoolDown as error:
        assert_type(error.seconds, float)
        assert_type(error.reason, str)
        assert_type(error.carried_out, bool | None)
    except (HoldTimeout, LeaseLost, StoreUnavailable):
        pass
    as_of_redis: Lock | CallLock = lock
    assert_type(as_of_redis.locked(), bool)


async def tasks(client: redis.asyncio.Redis) -> None:
    """Use the library with asyncio."""
    nonces = kraken_nonce_redis.asyncio.NonceAllocator(client, "key")
    assert_type(await nonces.next(), int)
    assert_type(await nonces.reserve(3), range)
    lock = kraken_nonce_redis.asyncio.CallLock(client, "key", pace=Pace(min_interval=0.2))
    async with lock.hold(timeout=1) as lease:
        assert_type(lease, kraken_nonce_redis.asyncio.Lease)
        assert_type(lease.next_nonce(), int)
        await lease.extend(5)
    assert_type(await lock.acquire(blocking=False), bool)
    await lock.release()


def accounts() -> None:
    """Read the accounts of a master and its users."""
    all_of_them = Accounts.from_environment(pace=Pace(tier="pro"))
    assert_type(all_of_them.master, Account | None)
    assert_type(all_of_them.users["alice"].pace, Pace | None)
    assert_type([account.key for account in Accounts.from_file("accounts.toml")], list[str])
