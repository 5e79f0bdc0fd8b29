"""Fixtures of the tests on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.helpers import Rival, View

if TYPE_CHECKING:
    import redis


@pytest.fixture
def view(redis_client: redis.Redis) -> View:
    """Look into Redis."""
    return View(redis_client)


@pytest.fixture
def rival(redis_client: redis.Redis) -> Rival:
    """Make another process."""
    return Rival(redis_client)
