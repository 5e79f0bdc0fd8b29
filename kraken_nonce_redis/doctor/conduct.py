"""Findings about how a server behaves, and about what is on it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Final

from kraken_nonce_redis._arguments import LONGEST_LEAD
from kraken_nonce_redis._core.waiting import OFFER
from kraken_nonce_redis.doctor.answers import (
    NO_SUCH_COMMAND,
    NOT_THESE_CHANNELS,
    NOT_THESE_KEYS,
    Finding,
    Refused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis.doctor.answers import Level, Seen, Tick

SKEW_WARNING: Final = 1.0
SKEW_PROBLEM: Final = 60.0
"""Seconds between the server's clock and this machine's."""
CLOCK_STEP: Final = 0.05
"""Seconds that the server's clock may move against a steady one while it is looked at."""
MEDIAN_WARNING: Final = 0.05
"""Seconds for one round trip: every private call under the lock needs two."""
SLOWEST_WARNING: Final = OFFER / 2
"""Seconds for one round trip, or that a server does nothing: a waiter has `OFFER` seconds to take the lock."""
SCRIPT_WARNING: Final = 0.005
"""Seconds that scripts take on the server, on average."""
LEAD_WARNING: Final = 60 * 10**9
LEAD_PROBLEM: Final = LONGEST_LEAD
"""How far a last nonce may be ahead of the server's clock, ns; nothing in this library raises it beyond the latter."""


def _clock(seen: Seen) -> Iterator[Finding]:
    if isinstance(seen.ticks, Refused):
        return
    best = min(seen.ticks, key=lambda tick: tick.trip)
    skew, error = best.server - best.here, best.trip / 2
    off = max(abs(skew) - error, 0.0)
    level: Level = "problem" if off > SKEW_PROBLEM else "warning" if off > SKEW_WARNING else "ok"
    yield Finding(
        "clock",
        level,
        f"{skew * 1e3:+.1f} ms against this machine's, give or take {error * 1e3:.1f} ms",
        ""
        if level == "ok"
        else "One of the two is wrong: run NTP on both. Nonces come from the server's clock. If it is ahead, every "
        "other program with the key is refused; if it is behind, nonces that were made by a right one are above ours.",
    )
    steps = (_step(one, other) for one, other in pairwise(seen.ticks))
    step = max(steps, key=abs, default=0.0)
    if step:
        yield Finding(
            "clock",
            "warning",
            f"it was set {abs(step) * 1e3:.0f} ms {'ahead' if step > 0 else 'back'} in these few seconds",
            "Let NTP slew the server's clock and not step it: a step ahead ends leases early.",
        )


def _step(one: Tick, other: Tick) -> float:
    """Return by how much the server's clock was set between two looks, 0.0 if by nothing that could be seen."""
    moved = (other.server - one.server) - (other.steady - one.steady)
    return moved if abs(moved) > CLOCK_STEP + (one.trip + other.trip) / 2 else 0.0


def _latency(seen: Seen) -> Iterator[Finding]:
    for what, seconds in (("PING", seen.pings), ("script", seen.runs)):
        if isinstance(seconds, Refused) or not seconds:
            continue
        ordered = sorted(seconds)
        middle, late, slowest = median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1]
        slow = middle > MEDIAN_WARNING or slowest > SLOWEST_WARNING
        yield Finding(
            "latency",
            "warning" if slow else "ok",
            f"{what}: median {middle * 1e3:.2f} ms, 99th {late * 1e3:.2f} ms, max {slowest * 1e3:.2f} ms",
            "Each private call needs two round trips, and a waiter must take the lock that is offered to it within "
            f"{OFFER:g} s. Bring Redis nearer to the bots, and look for what blocks it (SLOWLOG GET)."
            if slow
            else "",
        )
    statistics = seen.told("cmdstat_evalsha")
    taken = float(statistics.get("usec_per_call", 0)) / 1e6 if isinstance(statistics, Mapping) else 0.0
    if taken > SCRIPT_WARNING:
        yield Finding(
            "latency",
            "warning",
            f"scripts take {taken * 1e3:.1f} ms on the server, on average over all programs",
            "Ours take well below 1 ms: another program's scripts stop everyone meanwhile. Look at SLOWLOG GET.",
        )
    events = {} if isinstance(seen.blocked, Refused) else seen.blocked
    longest, event = max(((seconds, event) for event, seconds in events.items()), default=(0.0, ""))
    if longest > SLOWEST_WARNING:
        yield Finding(
            "latency",
            "warning",
            f"the server was blocked for up to {longest * 1e3:.0f} ms ({event})",
            "LATENCY DOCTOR on the server says more.",
        )


def _scripts(seen: Seen) -> Iterator[Finding]:
    if not seen.scripts:
        yield Finding("scripts", "ok", "all run")
    # Servers tell the same trouble in other words for each script.
    names: dict[str, list[str]] = {}
    for name, reason in seen.scripts.items():
        names.setdefault(reason.partition(" (")[0], []).append(name)
    for trouble, concerned in names.items():
        yield Finding(
            "scripts",
            "problem",
            f"{', '.join(concerned)}: {seen.scripts[concerned[0]] if len(concerned) == 1 else trouble}",
            "This library can't work here. See role, persistence, eviction and permissions; a proxy may not let EVAL "
            "pass.",
        )


def _offers(seen: Seen) -> Iterator[Finding]:
    if seen.heard is True:
        yield Finding("offers", "ok", "a published message came back")
    else:
        reason = f": {seen.heard.reason}" if isinstance(seen.heard, Refused) else ""
        yield Finding(
            "offers",
            "problem",
            f"a published message did not come back{reason}",
            "The lock is offered over pub/sub. The user needs +publish +subscribe +unsubscribe &kraken-nonce:wake:*; "
            "a proxy may not let it pass.",
        )


def _permissions(seen: Seen) -> Iterator[Finding]:
    name = "the user" if isinstance(seen.name, Refused) else f"user {seen.name}"
    if not seen.lacking:
        yield Finding("permissions", "ok", f"{name} has all that is needed")
    commands: dict[str, list[str]] = {}
    for command, reason in seen.lacking.items():
        commands.setdefault(reason, []).append(command)
    remedies = {
        NOT_THESE_KEYS: f"Give it ~{seen.namespace}:*",
        NOT_THESE_CHANNELS: "Give it &kraken-nonce:wake:*",
        NO_SUCH_COMMAND: "The server, a proxy or rename-command keeps it from you: use a server that has it.",
    }
    for reason, concerned in commands.items():
        yield Finding(
            "permissions",
            "problem",
            f"{name} can't use {', '.join(concerned)}: {reason}",
            remedies.get(reason) or f"Give it {' '.join(f'+{command}' for command in concerned)}",
        )
    if isinstance(seen.user, Refused):
        return
    everything = seen.user.keys in ("*", "~*") and "+@all" in seen.user.commands.split()
    if seen.user.no_password and everything:
        # In protected mode a server without a password answers to its own machine alone.
        open_to_all = seen.setting("protected-mode") == "no"
        yield Finding(
            "permissions",
            "warning" if open_to_all else "note",
            f"{name} may do everything and needs no password"
            + (", and protected-mode is off: so may all who reach the port" if open_to_all else ""),
            "Give the bots a user of their own with a password and the permissions in docs/doctor.md.",
        )
    elif everything:
        yield Finding(
            "permissions",
            "note",
            f"{name} may do everything",
            "Give the bots a user of their own with the permissions in docs/doctor.md.",
        )


def _keys(seen: Seen) -> Iterator[Finding]:
    if isinstance(seen.keys, Refused):
        return
    keys = seen.keys
    more = "" if keys.complete else " were looked at, there are more"
    yield Finding("keys", "ok", f"{keys.count} of namespace {seen.namespace}{more}")
    if keys.leads:
        lead, furthest = max((lead, key) for key, lead in keys.leads.items())
        if lead > LEAD_WARNING:
            poisoned = lead > LEAD_PROBLEM
            yield Finding(
                "keys",
                "problem" if poisoned else "warning",
                f"{furthest}: the last nonce is {lead / 1e9:.0f} s ahead of the server's clock",
                "Nothing here raises a nonce so far: the API key is poisoned. Replace it at Kraken."
                if poisoned
                else "It was raised, or the server's clock was set back. Should Redis lose its data while no bot "
                "lives, Kraken refuses all calls of this API key until the clock has caught up: keep persistence on.",
            )
    if keys.foreign:
        yield Finding(
            "keys",
            "problem",
            f"{len(keys.foreign)} hold what this library did not write: {', '.join(keys.foreign[:3])}",
            "Another program uses these names: choose another namespace.",
        )
    if keys.strangers:
        yield Finding(
            "keys",
            "warning",
            f"{keys.strangers} with names that are not ours begin like ours",
            "Another program uses this namespace: choose another one.",
        )


JUDGES: Final = (_clock, _latency, _scripts, _offers, _permissions, _keys)
