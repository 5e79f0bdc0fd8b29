"""Whether a Redis is fit for nonces and locks.

`examine` asks one server over a client of redis-py and notes its answers as `Seen`; `diagnose` makes a list of
`Finding` of them, without I/O. What a server or its user's permissions refuse to tell is a finding as well.
"""

from __future__ import annotations

from kraken_nonce_redis.doctor import conduct, setup
from kraken_nonce_redis.doctor.answers import LEVELS, TOPICS, Finding, Keys, Level, Refused, Seen, Tick, User
from kraken_nonce_redis.doctor.examination import examine

__all__ = ["LEVELS", "TOPICS", "Finding", "Keys", "Level", "Refused", "Seen", "Tick", "User", "diagnose", "examine"]


def diagnose(seen: Seen) -> list[Finding]:
    """Return what there is to say about a server, topic by topic."""
    found = [finding for judge in (*setup.JUDGES, *conduct.JUDGES) for finding in judge(seen)]
    return sorted(found, key=lambda finding: TOPICS.index(finding.topic))
