"""Reads the last nonces that older programs stored, as nanoseconds; no I/O.

Programs count nonces in seconds, ms, µs, ticks of 10 ns or ns since 1970. The present time has a different number of
digits in each of these units, so the size of a value tells its unit. A value that fits none of them is refused, because
raising a nonce can't be undone.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, cast

from kraken_nonce_redis.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS: Final = (
    ("seconds", 10**9),
    ("milliseconds", 10**6),
    ("microseconds", 10**3),
    ("ticks of 10 ns", 10),
    ("nanoseconds", 1),
)
"""Each unit with its length in ns."""
NAMES: Final = ("last_nonce", "last_used_nonce", "current_nonce", "highest_nonce", "previous_nonce", "nonce")
"""Names under which a JSON file may have its last nonce; ``lastNonce`` and ``last-nonce`` count as ``last_nonce``."""
LONGEST_FILE: Final = 65_536

_EARLIEST: Final = int(datetime(2011, 1, 1, tzinfo=UTC).timestamp()) * 10**9  # Kraken was founded in that year
_SLACK: Final = 366 * 86_400 * 10**9
_DECIMAL: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LONGEST_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class OldNonce:
    """A last nonce and its unit.

    Attributes:
        written: the number as it was written.
        unit: its unit, one of `UNITS`.
        nonce: the same moment in ns since 1970, rounded up.
    """

    written: str
    unit: str
    nonce: int


def recognise(number: str | Decimal, now: int) -> OldNonce:
    """Return the nonce that a single number stands for; ``now`` is the present time in ns since 1970.

    Raises `InvalidArgument` unless the number is a time between 2011 and a year from now in one of the units.
    """
    value = _plain(number)
    for unit, length in UNITS:
        # Compared before anything is computed from it: absurd exponents would cost memory.
        if Decimal(_EARLIEST) / length <= value <= Decimal(now + _SLACK) / length:
            return OldNonce(str(value), unit, math.ceil(Fraction(value) * length))
    raise InvalidArgument(
        "nonce",
        f"{_short(str(value))} is not a time between 2011 and a year from now in s, ms, µs, 10 ns or ns since 1970",
    )


def read(content: bytes, now: int) -> OldNonce:
    """Return the last nonce in a file's content: a decimal number, or JSON with one under a usual name.

    Raises `InvalidArgument` when there is none, more than one, or one that `recognise` refuses. The error shows
    nothing of the file but a number, since it may be the wrong file and contain secrets.
    """
    if len(content) > LONGEST_FILE:
        raise InvalidArgument("file", f"is longer than {LONGEST_FILE} bytes, so it has more than a last nonce in it")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InvalidArgument("file", "is not UTF-8 text") from None
    if not text:
        raise InvalidArgument("file", "is empty")
    try:
        document = json.loads(text, parse_int=Decimal, parse_float=Decimal, parse_constant=Decimal)
        found = list(_candidates(document))
    except (ValueError, ArithmeticError, RecursionError):
        raise InvalidArgument("file", "is neither one decimal number nor JSON with a last nonce") from None
    nonces = {old.nonce: old for old in (recognise(number, now) for number in found)}
    if len(nonces) > 1:
        raise InvalidArgument("file", f"has {len(nonces)} different nonces in it; pass the right one as a number")
    if not nonces:
        raise InvalidArgument("file", f"has no number under any of the names {', '.join(NAMES)}")
    return nonces.popitem()[1]


def _plain(number: str | Decimal) -> Decimal:
    """Return a number as a decimal; refuse one that has lost digits."""
    if isinstance(number, str):
        if not _DECIMAL.fullmatch(number.strip()):
            raise InvalidArgument("nonce", "must be a decimal number without sign, exponent or separators")
        return Decimal(number.strip())
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or exponent > 0:
        raise InvalidArgument("nonce", "is a rounded floating-point number: its last digits are lost")
    return number


def _short(number: str) -> str:
    return number if len(number) <= _LONGEST_SHOWN else f"a number of {len(number)} characters"


def _candidates(node: Any) -> Iterator[str | Decimal]:
    """Yield a single value, or all values with the name of a nonce, at any depth."""
    if isinstance(node, str | Decimal):
        yield node
    elif isinstance(node, list):
        items: list[Any] = node
        for item in items:
            if isinstance(item, dict | list):
                yield from _candidates(item)
    elif isinstance(node, dict):
        for key, value in cast("dict[str, Any]", node).items():
            if isinstance(value, dict | list) or _usual(key) in NAMES:
                yield from _candidates(value)


def _usual(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|-", "_", name).lower()
