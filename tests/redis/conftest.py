"""Fixtures of the tests on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.helpers import Rival, View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis


@pytest.fixture
def view(redis_client: redis.Redis) -> View:
    """Look into Redis."""
    return View(redis_client)


@pytest.fixture
def rival(redis_client: redis.Redis) -> Rival:
    """Make another process."""
    return Rival(redis_client)


@pytest.fixture(params=["sentinel", "cluster"])
def replicated(request: pytest.FixtureRequest, shared_topology: Callable[[str], Any]) -> Iterator[Any]:
    """Give each topology with replicas in turn, empty and well."""
    topology = shared_topology(request.param)
    yield topology
    topology.close_clients()
