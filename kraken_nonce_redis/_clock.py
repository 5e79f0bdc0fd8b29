"""The process's own clock, for deadlines and waits; nonces take the server's."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

now: Callable[[], float] = (
    functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Seconds that only go forward, whatever is done to the wall clock.

Where the system has it (Linux), it also counts the time that the machine was suspended: a lease goes on ending
in Redis meanwhile, and its holder must not believe otherwise.
"""
