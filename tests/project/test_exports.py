"""What the package gives to whoever writes ``from kraken_nonce_redis import``."""

from __future__ import annotations

import types
import typing

import pytest

import kraken_nonce_redis
import kraken_nonce_redis.asyncio
from kraken_nonce_redis import KrakenNonceError, durability, errors, pace, retries
from kraken_nonce_redis._threads import allocator, lock

pytestmark = pytest.mark.once

ANNOTATIONS = {"OnUnknown", "Priority", "Scope"}
"""The types of parameters, which are no classes."""


def public_classes(module: types.ModuleType) -> set[str]:
    """Return the classes that a module defines for users."""
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def test_exported_members() -> None:
    """Every error, what the lock and the allocator are, and what their parameters take; nothing else."""
    expected = ANNOTATIONS | {"close", "shutdown", "shutdown_on_signal"}
    for module in (errors, lock, allocator, durability, pace, retries):
        expected |= public_classes(module)
    assert set(kraken_nonce_redis.__all__) == expected
    assert list(kraken_nonce_redis.__all__) == sorted(expected)
    public = {name for name, value in vars(kraken_nonce_redis).items() if not isinstance(value, types.ModuleType)}
    assert {name for name in public if not name.startswith("_")} == expected


def test_every_error_is_one_of_ours() -> None:
    """Whoever catches `KrakenNonceError` catches all."""
    for name in public_classes(errors):
        assert issubclass(getattr(errors, name), KrakenNonceError)


@pytest.mark.parametrize("name", sorted(ANNOTATIONS))
def test_types_of_parameters(name: str) -> None:
    """The type of a parameter says which values it takes."""
    assert all(isinstance(value, str) for value in typing.get_args(getattr(kraken_nonce_redis, name)))
    assert typing.get_args(getattr(kraken_nonce_redis, name))


def test_asyncio_has_the_same_names() -> None:
    """What is different for asyncio has the same name there, and nothing else is there."""
    assert set(kraken_nonce_redis.asyncio.__all__) == public_classes(lock) | public_classes(allocator) | {
        "aclose",
        "shutdown",
    }
