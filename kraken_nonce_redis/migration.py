"""Last nonces as older programs wrote them down, read as nanoseconds; no I/O.

Programs count nonces in seconds, ms, µs, ticks of 10 ns or ns since 1970. The present time has another number of
digits in each of these units, so the size of a value tells which one it is. What fits none of them is refused:
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
"""Where a JSON state has its last nonce; ``lastNonce`` and ``last-nonce`` are the same as ``last_nonce``."""
LONGEST_FILE: Final = 65_536

_EARLIEST: Final = int(datetime(2011, 1, 1, tzinfo=UTC).timestamp()) * 10**9  # Kraken was founded in that year
_SLACK: Final = 366 * 86_400 * 10**9
_DECIMAL: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_LONGEST_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class OldNonce:
    """A last nonce, understood.

    Attributes:
        written: the number as it was written.
        unit: its unit, one of `UNITS`.
        nonce: the same moment in ns since 1970, rounded up.
    """

    written: str
    unit: str
    nonce: int


def recognise(number: str | Decimal, now: int) -> OldNonce:
    """Return what a single number means; ``now`` is the present time in ns since 1970.

    Raises `InvalidArgument` for what is no moment from 2011 to a year from now in any of the units.
    """
    value = _plain(number)
    for unit, length in UNITS:
        # Compared before anything is computed from it: absurd exponents would cost memory.
        if Decimal(_EARLIEST) / length <= value <= Decimal(now + _SLACK) / length:
            return OldNonce(str(value), unit, math.ceil(Fraction(value) * length))
    raise InvalidArgument(
        "nonce",
        f"{_short(str(value))} is no time from 2011 to a year from now in s, ms, µs, 10 ns or ns since 1970",
    )


def read(content: bytes, now: int) -> OldNonce:
    """Return the last nonce in a file's content: a decimal number, or a JSON state with one under a usual name.

    Raises `InvalidArgument` when there is none, more than one, or one that `recognise` refuses. The error shows
    nothing of the file but a number: it may be the wrong file, with secrets in it.
    """
    if len(content) > LONGEST_FILE:
        raise InvalidArgument("file", f"is longer than {LONGEST_FILE} bytes, so it holds more than a last nonce")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InvalidArgument("file", "is no text in UTF-8") from None
    if not text:
        raise InvalidArgument("file", "is empty")
    try:
        document = json.loads(text, parse_int=Decimal, parse_float=Decimal, parse_constant=Decimal)
        found = list(_candidates(document))
    except (ValueError, ArithmeticError, RecursionError):
        raise InvalidArgument("file", "is neither one decimal number nor JSON with a last nonce") from None
    nonces = {old.nonce: old for old in (recognise(number, now) for number in found)}
    if len(nonces) > 1:
        raise InvalidArgument("file", f"holds {len(nonces)} different nonces; say which one is meant")
    if not nonces:
        raise InvalidArgument("file", f"holds no number under any of the names {', '.join(NAMES)}")
    return nonces.popitem()[1]


def _plain(number: str | Decimal) -> Decimal:
    """Return a number whose digits are all there."""
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
    """Yield a lone value, or all that have the name of a nonce, however deep."""
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
