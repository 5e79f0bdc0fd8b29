"""Findings about how a server behaves, and about the keys on it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Final

from kraken_nonce_redis._arguments import LONGEST_LEAD
from kraken_nonce_redis._core.waiters import LONGEST_WAY, OFFER
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

_FOR_THE_LOG: Final = ("xadd", "xrevrange")
"""Commands without which only `kraken-nonce log` fails."""
SKEW_WARNING: Final = 1.0
SKEW_PROBLEM: Final = 60.0
"""Seconds between the server's clock and this machine's."""
CLOCK_STEP: Final = 0.05
"""Seconds by which the server's clock may deviate from a steady one during the check."""
MEDIAN_WARNING: Final = 0.05
"""Seconds for one round trip. A private call under the lock makes two."""
SLOWEST_WARNING: Final = LONGEST_WAY
"""Seconds for one round trip, or that the server is blocked; more are taken from the time that an offer lasts."""
SCRIPT_WARNING: Final = 0.005
"""Seconds that scripts take on the server, on average."""
LEAD_WARNING: Final = 60 * 10**9
LEAD_PROBLEM: Final = LONGEST_LEAD
"""How far a last nonce may be ahead of the server's clock, ns. This library never raises it beyond `LEAD_PROBLEM`."""


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
        f"{skew * 1e3:+z.1f} ms against this machine's, give or take {error * 1e3:.1f} ms",
        ""
        if level == "ok"
        else "One of the two clocks is wrong: run NTP on both machines. Nonces come from the server's clock. If it is "
        "ahead, Kraken refuses every other program with the same API key. If it is behind, nonces from a right clock "
        "are above ours.",
    )
    steps = (_step(one, other) for one, other in pairwise(seen.ticks))
    step = max(steps, key=abs, default=0.0)
    if step:
        yield Finding(
            "clock",
            "warning",
            f"it was set {abs(step) * 1e3:.0f} ms {'ahead' if step > 0 else 'back'} during this check",
            "Configure NTP to slew the server's clock instead of stepping it: a step ahead ends leases early.",
        )


def _step(one: Tick, other: Tick) -> float:
    """Return the seconds by which the server's clock was set between two looks, 0.0 if too little to tell."""
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
            "Each private call makes two round trips, and a waiter must take an offered lock within "
            f"{OFFER:g} s. Move Redis closer to the bots, and look for what blocks it (SLOWLOG GET)."
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
            "Ours take well below 1 ms. Another program's scripts block everyone while they run. Look at SLOWLOG GET.",
        )
    events = {} if isinstance(seen.blocked, Refused) else seen.blocked
    longest, event = max(((seconds, event) for event, seconds in events.items()), default=(0.0, ""))
    if longest > SLOWEST_WARNING:
        yield Finding(
            "latency",
            "warning",
            f"the server was blocked for up to {longest * 1e3:.0f} ms ({event})",
            "Run LATENCY DOCTOR on the server to find out why.",
        )


def _scripts(seen: Seen) -> Iterator[Finding]:
    if not seen.scripts:
        yield Finding("scripts", "ok", "all run")
    # Servers report the same problem in different words for each script.
    names: dict[str, list[str]] = {}
    for name, reason in seen.scripts.items():
        names.setdefault(reason.partition(" (")[0], []).append(name)
    for trouble, concerned in names.items():
        yield Finding(
            "scripts",
            "problem",
            f"{', '.join(concerned)}: {seen.scripts[concerned[0]] if len(concerned) == 1 else trouble}",
            "This library can't work here. See role, persistence, eviction and permissions. A proxy in between may "
            "block EVAL.",
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
            "The lock is offered over pub/sub. The user needs +publish +subscribe +unsubscribe &kraken-nonce:wake:*. "
            "A proxy in between may block pub/sub.",
        )


def _permissions(seen: Seen) -> Iterator[Finding]:
    name = "the user" if isinstance(seen.name, Refused) else f"user {seen.name}"
    if not seen.lacking:
        yield Finding("permissions", "ok", f"{name} has all permissions that are needed")
    commands: dict[tuple[str, Level], list[str]] = {}
    for command, reason in seen.lacking.items():
        commands.setdefault((reason, "warning" if command in _FOR_THE_LOG else "problem"), []).append(command)
    remedies = {
        NOT_THESE_KEYS: f"Give it ~{seen.namespace}:*",
        NOT_THESE_CHANNELS: "Give it &kraken-nonce:wake:*",
        NO_SUCH_COMMAND: "The server lacks it, or a proxy or rename-command hides it: use a server that has it.",
    }
    for (reason, level), concerned in commands.items():
        lost = "; all works without, but `kraken-nonce log` has nothing to show" if level == "warning" else ""
        yield Finding(
            "permissions",
            level,
            f"{name} can't use {', '.join(concerned)}: {reason}{lost}",
            remedies.get(reason) or f"Give it {' '.join(f'+{command}' for command in concerned)}",
        )
    if isinstance(seen.user, Refused):
        return
    everything = seen.user.keys in ("*", "~*") and "+@all" in seen.user.commands.split()
    if seen.user.no_password and everything:
        # In protected mode a server without a password answers only to its own machine.
        open_to_all = seen.setting("protected-mode") == "no"
        yield Finding(
            "permissions",
            "warning" if open_to_all else "note",
            f"{name} may do everything and needs no password"
            + (", and protected-mode is off: so may anyone who can reach the port" if open_to_all else ""),
            "Create a user for the bots with a password and only the permissions that kraken-nonce acl prints.",
        )
    elif everything:
        yield Finding(
            "permissions",
            "note",
            f"{name} may do everything",
            "Create a user for the bots with only the permissions that kraken-nonce acl prints.",
        )


def _keys(seen: Seen) -> Iterator[Finding]:
    if isinstance(seen.keys, Refused):
        return
    keys = seen.keys
    more = "" if keys.complete else " checked; there are more"
    yield Finding("keys", "ok", f"{keys.count} in namespace {seen.namespace}{more}")
    if keys.leads:
        lead, furthest = max((lead, key) for key, lead in keys.leads.items())
        if lead > LEAD_WARNING:
            poisoned = lead > LEAD_PROBLEM
            yield Finding(
                "keys",
                "problem" if poisoned else "warning",
                f"{furthest}: the last nonce is {lead / 1e9:.0f} s ahead of the server's clock",
                "This library never raises a nonce that far: the API key is poisoned. Replace it at Kraken."
                if poisoned
                else "It was raised, or the server's clock was set back. If Redis loses its data while no bot is "
                "running, Kraken refuses all calls of this API key until the clock has caught up. Keep persistence on.",
            )
    if keys.foreign:
        yield Finding(
            "keys",
            "problem",
            f"{len(keys.foreign)} with a value that this library did not write: {', '.join(keys.foreign[:3])}",
            "Another program uses these names: choose another namespace.",
        )
    if keys.strangers:
        yield Finding(
            "keys",
            "warning",
            f"{keys.strangers} in our namespace with names that are not ours",
            "Another program uses this namespace: choose another one.",
        )


JUDGES: Final = (_clock, _latency, _scripts, _offers, _permissions, _keys)
