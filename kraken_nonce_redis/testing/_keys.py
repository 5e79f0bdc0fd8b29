"""API keys: their secrets, and the nonces that they accept. No I/O."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._limits import Usage
from ._protocol import Refusal

if TYPE_CHECKING:
    from ._account import Account
    from ._limits import AccountUsage


@dataclass(frozen=True, slots=True)
class NonceWindow:
    """How far below the highest nonce a late one is still accepted.

    Kraken does not document what happens to a nonce that was used already, so there are both kinds of window.

    Raises:
        ValueError: `ticks` is below 0.
    """

    ticks: int = 0
    """Distance in nonce ticks below the highest nonce accepted; with 0 every nonce must be above it."""
    repeats: bool = False
    """Whether a nonce inside the window is accepted again after it was used."""

    def __post_init__(self) -> None:
        if self.ticks < 0:
            raise ValueError(f"nonce_window must be 0 or more ticks, not {self.ticks}")


class Nonces:
    """The nonces that one API key has accepted."""

    def __init__(self) -> None:
        self.highest = -1
        self._used: set[int] = set()

    def use(self, nonce: int, window: NonceWindow) -> None:
        """Accept a nonce and mark it as used.

        It must be above the highest one accepted, or inside the window. Inside the window it must be unused, unless
        the window accepts used nonces again.

        Raises:
            Refusal: `EAPI:Invalid nonce`; nothing has changed.
        """
        if nonce <= self.highest:
            is_inside = 0 < window.ticks >= self.highest - nonce
            if not is_inside or (nonce in self._used and not window.repeats):
                raise Refusal("EAPI:Invalid nonce")
        self._used.add(nonce)
        self.highest = max(self.highest, nonce)


@dataclass(slots=True)
class ApiKey:
    """One API key and its account, which may have other keys, too."""

    secret: bytes = field(repr=False)
    account: Account
    number: int
    """Number of this key within its account, counted from 1."""
    shared_usage: AccountUsage = field(repr=False)
    """What all keys of the account have used of their common limits."""
    nonces: Nonces = field(default_factory=Nonces, repr=False)
    usage: Usage = field(default_factory=Usage, repr=False)

    @property
    def name(self) -> str:
        """What Kraken calls it: the account's name, with a number from the account's second key on."""
        return self.account.name if self.number == 1 else f"{self.account.name}-{self.number}"


def decode_secret(secret: str) -> bytes:
    """Decode an API secret.

    Raises:
        ValueError: it is empty or not base64; the message does not show it.
    """
    try:
        decoded = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise ValueError("an account's secret must be base64 text, as Kraken shows it")
    return decoded
