"""What callers pass in: types, defaults, bounds, and checks, which raise `InvalidArgument`."""

from __future__ import annotations

import base64
import math
from decimal import Decimal
from typing import Final, Literal, TypeAlias, TypeVar

from kraken_nonce_redis.errors import InvalidArgument

Scope: TypeAlias = Literal["key", "global"]
"""What shares one lock and one sequence of nonces: the calls of an API key, or those of all keys of a namespace."""
Priority: TypeAlias = Literal["normal", "high"]
"""Which of the waiting callers goes first."""
OnUnknown: TypeAlias = Literal["settle", "raise", "replay"]
"""What a client does about a call that changes something and got no answer."""
DeadlineOf: TypeAlias = Literal["auto"]
"""Where an order has its deadline from, if its caller gave none."""
OnAbsent: TypeAlias = Literal["raise", "resend"]
"""What a client does about an order that is proved to be absent."""
Trail: TypeAlias = Literal["rare", "all"]
"""What is noted in the trail: what is rare, or also each lease and each reserved nonce."""
T = TypeVar("T")

DEFAULT_NAMESPACE: Final = "kraken-nonce"
DEFAULT_TTL: Final = 30.0
DEFAULT_MAX_LEAD: Final = 3_600 * 10**9
DEFAULT_WAIT_TIMEOUT: Final = 60.0
DEFAULT_CALL_TIMEOUT: Final = 10.0
DEFAULT_PATIENCE: Final = 5.0

NOT_BASE64: Final = "must be an API secret: base64, as Kraken shows it"

HIGHEST_NONCE: Final = 2**63 - 1
MOST_RESERVED: Final = 1_000_000
SHORTEST_TTL: Final = 1.0
LONGEST_TTL: Final = 3600.0
LONGEST_COOL_DOWN: Final = 86_400.0
LONGEST_LEAD: Final = 90 * 86_400 * 10**9
LONGEST_TOKEN: Final = 200


def shown(value: object) -> str:
    """Return what an error shows of a wrong value: numbers alone, since a text that was mixed up may be a secret."""
    if value is None or isinstance(value, int | float | Decimal):
        return repr(value)
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _number(name: str, value: object) -> float:
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidArgument(name, f"must be a finite number, not {shown(value)}")
    return value


def seconds(name: str, value: object, lowest: float, highest: float) -> float:
    """Return a length of time in seconds."""
    number = _number(name, value)
    if not lowest <= number <= highest:
        raise InvalidArgument(name, f"must be {lowest:g} to {highest:g} seconds, not {value!r}")
    return number


def ttl(value: object, name: str = "ttl") -> float:
    """Return the length of a lease in seconds."""
    return seconds(name, value, SHORTEST_TTL, LONGEST_TTL)


def timeout(value: object, name: str = "timeout") -> float | None:
    """Return how long to wait, in seconds; None for no limit."""
    if value is None:
        return None
    number = _number(name, value)
    if number < 0:
        raise InvalidArgument(name, f"must be None (no limit) or at least 0 seconds, not {value!r}")
    return number


def whole(name: str, value: object, lowest: int, highest: int) -> int:
    """Return a whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(name, f"must be an int, not {shown(value)}")
    if not lowest <= value <= highest:
        raise InvalidArgument(name, f"must be {lowest} to {highest}, not {value}")
    return value


def cost(value: object, name: str = "cost") -> float:
    """Return what a call costs of Kraken's REST counter."""
    number = _number(name, value)
    if number < 0:
        raise InvalidArgument(name, f"must be at least 0, not {value!r}")
    return number


def priority(value: object) -> Priority:
    """Return a priority."""
    if value == "normal":
        return "normal"
    if value == "high":
        return "high"
    raise InvalidArgument("priority", "must be 'normal' or 'high'")


def credential(name: str, value: object) -> str:
    """Return an API key or its secret. What is wrong with it is said without it."""
    if not isinstance(value, str):
        raise InvalidArgument(name, f"must be a str, not {type(value).__name__}")
    for place, character in enumerate(value):
        if not "!" <= character <= "~":
            problem = f"has the character U+{ord(character):04X} at place {place + 1} of {len(value)}, which no key has"
            raise InvalidArgument(name, problem)
    return value


def stripped(name: str, value: object) -> str:
    """Return an API key or its secret without surrounding white space, as files and variables often have it."""
    return credential(name, value.strip() if isinstance(value, str) else value)


def secret(name: str, value: object) -> str:
    """Return an API secret as `stripped` does, and check that it is base64; an empty one stands for none."""
    text = stripped(name, value)
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:
        decoded = b""
    if text and not decoded:
        raise InvalidArgument(name, NOT_BASE64)
    return text


def token(value: object) -> str | None:
    """Return a caller's own id for a lease."""
    if value is None:
        return None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not 1 <= len(text) <= LONGEST_TOKEN or any(c.isspace() for c in text):
        raise InvalidArgument("token", f"must be 1 to {LONGEST_TOKEN} characters without white space")
    return text


def instance(name: str, value: T | None, kind: type[T]) -> T | None:
    """Return a value of a kind, or None."""
    if value is not None and not isinstance(value, kind):
        raise InvalidArgument(name, f"must be a {kind.__name__} or None, not {shown(value)}")
    return value
