"""What Kraken's answers mean for the calls that follow; no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kraken_nonce_redis import arguments

if TYPE_CHECKING:
    from collections.abc import Iterable

# Kraken writes "EService: Throttled: 1700000000" and "EService:Throttled".
_THROTTLED: Final = re.compile(r"EService:\s*Throttled(?::\s*(\d+))?")


@dataclass(frozen=True)
class CoolDowns:
    """How many seconds nobody calls after Kraken has refused a call for one of these reasons.

    Args:
        rate_limit: ``EAPI:Rate limit exceeded``: the key's REST counter is full, and further calls keep it so.
        throttled: ``EService:Throttled`` without a time; with one, until then.
        lockout: ``EGeneral:Temporary lockout``, which Kraken gives for about 15 minutes.

    Raises `InvalidArgument`.
    """

    rate_limit: float = 15.0
    throttled: float = 5.0
    lockout: float = 900.0

    def __post_init__(self) -> None:
        for name in ("rate_limit", "throttled", "lockout"):
            arguments.seconds(name, getattr(self, name), 0, arguments.LONGEST_COOL_DOWN)

    def after(self, errors: Iterable[str], now: float) -> tuple[float, str]:
        """Return for how many seconds nobody should call after these errors, and for which; ``(0.0, "")`` for none.

        ``now`` is the time in seconds since 1970, for Kraken's time of day in ``Throttled``.
        """
        longest = (0.0, "")
        for error in errors:
            throttled = _THROTTLED.match(error)
            if throttled is not None:
                until = throttled[1]
                seconds = self.throttled if until is None else min(float(until) - now, arguments.LONGEST_COOL_DOWN)
            elif error.startswith("EAPI:Rate limit exceeded"):
                seconds = self.rate_limit
            elif error.startswith("EGeneral:Temporary lockout"):
                seconds = self.lockout
            else:
                continue
            longest = max(longest, (seconds, error))
        return longest
