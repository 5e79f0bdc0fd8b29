"""How much a run of the tests does: the tiers of `make test`, `make test-all` and `make soak`.

- ``test``: what one runs before each commit. One server where the server doesn't matter, every server for tests marked
  ``matrix``; tests and variants marked ``test_all`` are left out.
- ``all``: every test on every server, each long one at a length that fits into CI.
- ``soak``: the same tests at full length.

The environment variable ``KRAKEN_NONCE_TIER`` names the tier; ``test`` is the default.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

TIERS = ("test", "all", "soak")
TIER = os.environ.get("KRAKEN_NONCE_TIER", "test")
"""The tier of this run."""
if TIER not in TIERS:
    raise ValueError(f"KRAKEN_NONCE_TIER is {TIER!r}; it must be one of {', '.join(TIERS)}")

EVERYTHING = TIER != "test"
"""Whether this run has every test on every server."""


def by_tier(test: T, everything: T, soak: T) -> T:
    """Return the length that a test has in this run's tier."""
    return dict(zip(TIERS, (test, everything, soak), strict=True))[TIER]


def in_test_all(*values: Any) -> list[Any]:
    """Return values of a parameter, or of several as tuples, that `make test` leaves out."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.test_all) for value in values
    ]
