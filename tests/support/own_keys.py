"""A simulator that many tests share, each with API keys of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kraken_nonce_redis.testing import KrakenSimulator


class OwnKeys:
    """What one test sees of the simulator: of each account's API keys the one with its number.

    Attributes:
        MOST: how many API keys each account has.
        accounts: the test's API keys and their secrets.
        key: the first one.
        secret: its secret.
    """

    MOST = 250

    def __init__(self, shared: KrakenSimulator, number: int) -> None:
        self._shared = shared
        self.accounts = dict(list(shared.accounts.items())[number :: self.MOST])
        self.key, self.secret = next(iter(self.accounts.items()))

    def raise_nonce(self, nonce: int, key: str | None = None) -> None:
        """Raise the nonce of one of the test's API keys."""
        self._shared.raise_nonce(nonce, key or self.key)

    def set_nonce_window(self, ticks: int, key: str | None = None, *, repeats: bool = False) -> None:
        """Set the nonce window of one of the test's API keys."""
        self._shared.set_nonce_window(ticks, key or self.key, repeats=repeats)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the simulator's."""
        return getattr(self._shared, name)
