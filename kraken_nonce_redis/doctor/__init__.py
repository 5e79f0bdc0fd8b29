"""Checks whether a Redis server is fit for nonces and locks.

`examine` asks one server through a client of redis-py and returns the answers as `Seen`. `diagnose` turns them into a
list of `Finding`, without I/O. If the server or the user's permissions don't allow a question, that is a finding, too.
"""

from __future__ import annotations

from kraken_nonce_redis.doctor import conduct, setup
from kraken_nonce_redis.doctor.answers import LEVELS, TOPICS, Finding, Keys, Level, Refused, Seen, Tick, User
from kraken_nonce_redis.doctor.examination import examine

__all__ = ["LEVELS", "TOPICS", "Finding", "Keys", "Level", "Refused", "Seen", "Tick", "User", "diagnose", "examine"]


def diagnose(seen: Seen) -> list[Finding]:
    """Return the findings about a server, topic by topic."""
    found = [finding for judge in (*setup.JUDGES, *conduct.JUDGES) for finding in judge(seen)]
    return sorted(found, key=lambda finding: TOPICS.index(finding.topic))
