"""Kraken's clock, as the `Date` of its answers tells it. This machine's own time of day doesn't count. No I/O."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from kraken_nonce_redis import _clock as clock

_AHEAD: Final = 5.0
"""Seconds from Kraken's present time to a deadline, if its clock is known well enough."""
_LEAST: Final = 2.0
_MOST: Final = 60.0
"""Within how many seconds Kraken takes a deadline."""
_ON_THE_WAY: Final = 1.0
"""Seconds that a request may take to Kraken."""
_RESOLUTION: Final = 1.0
"""Seconds of a `Date`."""
_DRIFT: Final = 0.001
"""The share by which Kraken's clock may run faster or slower than ours."""
_SHARP: Final = 2.0
"""Most seconds of doubt with which Kraken need not be asked anew."""

LONGEST_AHEAD: Final = max(_AHEAD, _LEAST + _ON_THE_WAY + _SHARP) + _SHARP
"""Most seconds from Kraken's present time to a deadline that is made while its clock is known well enough."""


class ExchangeClock:
    """What is known of Kraken's clock: between which two distances it is ahead of `clock.now`."""

    def __init__(self) -> None:
        self._known: tuple[float, float, float] | None = None
        """The least and the most distance, and when that was learned."""

    def learn(self, sent: float, received: float, date: float | None) -> None:
        """Take the `Date` of an answer, Unix seconds, and between which times on `clock.now` it was given."""
        if date is None:
            return
        told = date - received, date + _RESOLUTION - sent
        if self._known is not None:
            least, most = (bound - received for bound in _bounds(self._known, received))
            least, most = max(least, told[0]), min(most, told[1])
            if least <= most:
                self._known = least, most, received
                return
        self._known = *told, received  # the first one, or Kraken's clock or ours was set

    @property
    def is_sharp(self) -> bool:
        """Whether it is known well enough for a deadline."""
        if self._known is None:
            return False
        earliest, latest = _bounds(self._known, clock.now())
        return (latest - earliest) / 2 <= _SHARP

    def earliest(self) -> float | None:
        """Return what time it is at Kraken at least, in Unix seconds; None if that is unknown."""
        return None if self._known is None else _bounds(self._known, clock.now())[0]

    def deadline(self) -> float | None:
        """Return a deadline for a request that is sent now, in Unix seconds; None if none is sure to be valid."""
        if self._known is None:
            return None
        earliest, latest = _bounds(self._known, clock.now())
        doubt = (latest - earliest) / 2
        ahead = max(_AHEAD, _LEAST + _ON_THE_WAY + doubt)
        return None if ahead > _MOST - doubt else (earliest + latest) / 2 + ahead


def _bounds(known: tuple[float, float, float], now: float) -> tuple[float, float]:
    """Return what time it is at Kraken at least and at most."""
    least, most, learned = known
    doubt = _DRIFT * max(0.0, now - learned)
    return now + least - doubt, now + most + doubt


def written(deadline: float) -> str:
    """Return a deadline as Kraken takes it."""
    return datetime.fromtimestamp(deadline, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read(deadline: object) -> float | None:
    """Return the Unix seconds of a deadline that a caller has given; None if it is none that we can read."""
    try:
        moment = datetime.fromisoformat(deadline) if isinstance(deadline, str) else None
    except ValueError:
        return None
    return None if moment is None or moment.tzinfo is None else moment.timestamp()
