"""One run of one script: its keys, its arguments, the bytes to send and how to read the reply; no I/O."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Self, TypeAlias, TypeVar

from kraken_nonce_redis._redis import resp, scripts
from kraken_nonce_redis._redis.words import text
from kraken_nonce_redis.errors import ForeignValue, NonceTooFarAhead, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kraken_nonce_redis.durability import Durability

Reply: TypeAlias = "Sequence[str]"
T = TypeVar("T")

_ANOTHER: Final = "if another program uses this key, use another namespace"
_REMEDIES: Final = {
    "pending": "set it with HSET {key} pending 1, so that the next call counts anew",
    "lock": "run kraken-nonce unlock, which shows it and removes it",
    "cool_down": "run kraken-nonce unlock --cool-down, which removes it",
    "pace": "call reset_startup(), which removes it",
}


@dataclass(slots=True, eq=False)  # a frozen one takes four times as long to make
class Command(Generic[T]):
    """One run of a script.

    Attributes:
        name: the script.
        keys: the keys it touches, the state first, those of the trail last.
        args: its arguments, without the floor.
        read: makes the result from the reply; raises errors of our tree.
        durability: how many servers must have its write before the result counts.
        repeated: set when the command was sent more than once, so that it may have run more than once.
        late: set when it may still arrive: it was sent more than once, or its connection was given up.
        unsent: set when it is known that the command was not sent at all.
        spare: how many of its last keys it can do without: those of the trail.
        highest: for a script that takes the caller's floor as its first argument, the highest nonce in a result.
        floor: for such a script, the floor that it was sent with last.
        until: until when on `clock.now` its caller waits while a cluster moves its slot; None if the caller has no
            timeout.
    """

    name: str
    keys: tuple[str, ...]
    args: tuple[str | int, ...]
    read: Callable[[Reply], T]
    highest: Callable[[T], int] | None = None
    spare: int = 0
    floor: int = 0
    durability: Durability | None = None
    repeated: bool = False
    late: bool = False
    unsent: bool = False
    until: float | None = None

    @property
    def script(self) -> scripts.Script:
        """The script's source and hash."""
        return scripts.load(self.name)

    def request(self, floor: int, *, whole: bool = False) -> bytes:
        """Return the bytes to send, ``whole`` for a server that lacks the script; with durability, two requests."""
        args: tuple[str | int, ...] = self.args if self.highest is None else (floor, *self.args)
        begin = _begin(self.name, self.keys, len(args), whole)
        end = b"" if self.durability is None else resp.pack(self.durability.words)
        return b"".join((begin, *[resp.pack_word(word) for word in args], end))

    @property
    def due(self) -> int:
        """How many replies its request brings."""
        return 1 if self.durability is None else 2

    @property
    def one_key(self) -> bool:
        """Whether it needs no key but one. While a cluster moves their slot, a server can't serve several."""
        return len(self.keys) - self.spare == 1

    def without_trail(self) -> bool:
        """Give up the keys of the trail, for a server that can't serve them now; return whether there were any."""
        if not self.spare:
            return False
        self.keys, self.spare = self.keys[: -self.spare], 0
        return True

    def durable(self, durability: Durability | None) -> Self:
        """Make the command count only when enough servers have its write; return it."""
        self.durability = durability
        return self

    def result(self, raw: object) -> T:
        """Read what the script returned: words with a space between them. Raises `StoreError`, `NonceTooFarAhead`."""
        reply = text(raw).split(" ")
        if reply[0] == "foreign":
            raise self._foreign(self._foreign_key(reply[1]), reply[1], " ".join(reply[2:]))
        if reply[0] == "overflow":
            raise NonceTooFarAhead(
                f"{self.keys[0]}: no nonce is left below 2^63; the last one is {reply[1]}. "
                "The API key is poisoned: replace it at Kraken",
                last=int(reply[1]),
                lead=0,
                max_lead=0,
            )
        with contextlib.suppress(ValueError, LookupError):
            return self.read(reply)
        # Outside of the block: an error that was raised in it would carry what the server said, as its context.
        raise StoreError(self.name, self.keys[0], "what answers there is no Redis: it has run none of our scripts")

    def _foreign_key(self, field: str) -> str:
        """Return the key with a field of which a script says that this library did not write it."""
        return self.keys[-1] if self.name == "once" and field != "-" else self.keys[0]

    def _foreign(self, key: str, field: str, value: str) -> ForeignValue:
        """Return the error for a field with a value that this library did not write; ``-`` stands for the whole key."""
        if field == "-":
            return ForeignValue(self.name, key, f"it is no hash; {_ANOTHER}, or remove it with DEL ({value})")
        remedy = _REMEDIES.get(field, "remove it with HDEL {key} {field}").format(key=key, field=field)
        error = ForeignValue(
            self.name,
            key,
            f"its field {field!r} holds {value[:40]!r}, which this library did not write; {_ANOTHER}, or {remedy}. "
            "What each field is for: docs/faults.md",
        )
        error.field = field
        return error

    def key_of(self, error: Exception) -> str:
        """Return the key that a server's error is about. Scripts say themselves if the state is of another type."""
        return self.keys[1] if "WRONGTYPE" in str(error) and not self.one_key else self.keys[0]


@functools.lru_cache(maxsize=4096)
def _begin(name: str, keys: tuple[str, ...], count: int, whole: bool) -> bytes:  # noqa: FBT001 - a key of the cache
    """Return the bytes of a run of a script up to its arguments."""
    script = scripts.load(name)
    run = ("EVAL", script.source) if whole else ("EVALSHA", script.sha)
    words: tuple[str | int, ...] = (*run, len(keys), *keys)
    return b"*%d\r\n" % (len(words) + count) + b"".join([resp.pack_word(word) for word in words])
