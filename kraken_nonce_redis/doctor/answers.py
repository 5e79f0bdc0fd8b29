"""The answers of a server, and the findings made from them; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Level: TypeAlias = Literal["ok", "note", "warning", "problem"]
LEVELS: Final[tuple[Level, ...]] = ("ok", "note", "warning", "problem")
TOPICS: Final = (
    "server",
    "settings",
    "role",
    "persistence",
    "eviction",
    "replicas",
    "clock",
    "latency",
    "scripts",
    "offers",
    "permissions",
    "keys",
    "timeouts",
)

# Why a user can't use a command, where that is known.
NO_PERMISSION: Final = "no permission"
NOT_THESE_KEYS: Final = "not on our keys"
NOT_THESE_CHANNELS: Final = "not on our channels"
NO_SUCH_COMMAND: Final = "the server has no such command"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: one of `TOPICS`.
        level: ``ok``, ``note`` (good to know), ``warning`` (works, with a risk) or ``problem`` (not fit for use).
        found: what was found.
        advice: what to do; empty when there is nothing to do.
        unseen: whether the server did not let this be seen.
    """

    topic: str
    level: Level
    found: str
    advice: str = ""
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A question that the server refused to answer.

    Attributes:
        reason: what the server said.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """One look at the server's clock; all in seconds.

    Attributes:
        server: its time since 1970.
        here: this machine's time since 1970, halfway between question and answer.
        steady: a clock that is never set, also halfway.
        trip: length of the round trip.
    """

    server: float
    here: float
    steady: float
    trip: float


@dataclass(frozen=True, slots=True)
class User:
    """The rules of an ACL user, without its passwords."""

    commands: str
    keys: str
    no_password: bool


@dataclass(frozen=True, slots=True)
class Keys:
    """The state keys of a namespace on this server.

    Attributes:
        count: number of keys that were looked at.
        complete: whether these are all keys.
        leads: how far the last nonce is ahead of the server's clock, ns, by key.
        foreign: keys with a name of ours that hold something else.
        strangers: number of keys whose name can't be ours. The names could be secrets, so they aren't kept.
    """

    count: int
    complete: bool
    leads: Mapping[str, int]
    foreign: Sequence[str]
    strangers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The answers of one server, and the client's settings.

    Attributes:
        namespace: prefix of our keys.
        fake: whether it is fakeredis.
        sentinel: whether the client asks Sentinels for the master.
        socket_timeout: the client's, in seconds.
        connect_timeout: the client's, in seconds.
        info: INFO and INFO commandstats, as redis-py reads them.
        config: CONFIG GET for the settings that matter.
        blocked: LATENCY LATEST: the longest time of each event, in seconds.
        name: the user's name.
        user: its rules.
        lacking: each command that we need and can't use, with what the server said.
        scripts: each script that does not run as it should, with the reason.
        heard: whether a published message came back.
        ticks: looks at the server's clock, in order.
        pings: seconds for each PING.
        runs: seconds for each run of a script; empty unless all scripts run.
        keys: our keys on this server.
    """

    namespace: str
    fake: bool
    sentinel: bool
    socket_timeout: float | None
    connect_timeout: float | None
    info: Mapping[str, Any] | Refused
    config: Mapping[str, str] | Refused
    blocked: Mapping[str, float] | Refused
    name: str | Refused
    user: User | Refused
    lacking: Mapping[str, str]
    scripts: Mapping[str, str]
    heard: bool | Refused
    ticks: Sequence[Tick] | Refused
    pings: Sequence[float] | Refused
    runs: Sequence[float]
    keys: Keys | Refused

    def told(self, name: str) -> Any:
        """Return a line of INFO, or None."""
        return None if isinstance(self.info, Refused) else self.info.get(name)

    def setting(self, name: str) -> str | None:
        """Return a setting, or None when it can't be seen."""
        return None if isinstance(self.config, Refused) else self.config.get(name)
