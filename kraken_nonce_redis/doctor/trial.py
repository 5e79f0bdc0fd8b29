"""Tries the library's commands, scripts and offers, on three keys and a channel of its own."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Any, Final, Self

from redis.exceptions import MovedError, NoPermissionError, NoScriptError, RedisError, ResponseError

from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._redis import commands, journal, keyspace
from kraken_nonce_redis._redis.commands import Extended, Granted, Waiting
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis._redis.words import text
from kraken_nonce_redis.doctor.answers import (
    NO_PERMISSION,
    NO_SUCH_COMMAND,
    NOT_THESE_CHANNELS,
    NOT_THESE_KEYS,
    Refused,
)
from kraken_nonce_redis.errors import StoreError, quotable
from kraken_nonce_redis.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis
    from redis.client import PubSub

    from kraken_nonce_redis._redis.command import Command
    from kraken_nonce_redis._threads.store import Store

TAG: Final = "doctor-"
"""Prefix of the tag of the trial's keys."""

_LIFE: Final = 60_000  # milliseconds
_TERM: Final = 10.0  # seconds
_INTENT: Final = journal.intent(TAG, "Doctor", ())
_BLOCK: Final = 2
_HEARING: Final = 2.0  # seconds
_TAGS: Final = 1_000
_LONGEST_REASON: Final = 300

# By words in what servers say.
_TROUBLE: Final = (
    ("unknown command", NO_SUCH_COMMAND),
    ("channel", NOT_THESE_CHANNELS),
    ("access a key", NOT_THESE_KEYS),
    ("one of the keys", NOT_THESE_KEYS),
    ("permission", NO_PERMISSION),
    ("noperm", NO_PERMISSION),
)


class Trial:
    """The trial's keys on a server. They are deleted at the end of the ``with`` block."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._client = client
        # A node of a cluster accepts only keys of its own slots.
        for _ in range(_TAGS):
            self.keys = Keyspace(namespace, TAG + secrets.token_hex(8))
            try:
                client.exists(self.keys.state)
            except ResponseError as error:
                # redis-py 5 knows this error in its cluster client alone.
                if isinstance(error, MovedError) or str(error).startswith("MOVED"):
                    continue
            break

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RedisError):
            self._client.delete(*self.keys.for_the_lock)

    @property
    def process_id(self) -> str:
        """The id of the process that waits for the lock in this trial."""
        return self.keys.tag

    def commands(self) -> dict[str, tuple[str | int, ...]]:
        """Return each command that scripts use, with arguments that don't disturb the later ones."""
        state, queue, log = self.keys.for_the_lock
        return {
            "hset": ("HSET", state, "doctor", "1"),
            # From here on the key expires by itself if this process is killed.
            "pexpire": ("PEXPIRE", state, _LIFE),
            "hget": ("HGET", state, "doctor"),
            "hmget": ("HMGET", state, "doctor"),
            "hgetall": ("HGETALL", state),
            "hdel": ("HDEL", state, "none"),
            "zadd": ("ZADD", queue, "XX", 1, "doctor"),
            "zcount": ("ZCOUNT", queue, 0, 1),
            "zrangebyscore": ("ZRANGEBYSCORE", queue, 0, 1),
            "zscore": ("ZSCORE", queue, "doctor"),
            "zrem": ("ZREM", queue, "doctor"),
            "exists": ("EXISTS", queue),
            "del": ("DEL", queue),
            "xadd": ("XADD", log, "MAXLEN", "~", 1, "*", "kind", "doctor"),
            "xrevrange": ("XREVRANGE", log, "+", "-", "COUNT", 1),
            "time": ("TIME",),
            "info": ("INFO", "server"),
            "publish": ("PUBLISH", keyspace.channel(self.process_id), "doctor"),
            "eval": ("EVAL", "return 1", 0),
            "evalsha": ("EVALSHA", "0" * 40, 0),
        }

    def lacking(self) -> dict[str, str]:
        """Return the commands that can't be used, with the reason. Other failures show up in the scripts."""
        lacking = {name: reason for name, words in self.commands().items() if (reason := self._lacking(*words))}
        self._lacking("PEXPIRE", self.keys.log, _LIFE)
        if lacking.get("info") == NO_SUCH_COMMAND:  # scripts do without it then, as on fakeredis
            del lacking["info"]
        return lacking

    def _lacking(self, *words: str | int) -> str:
        try:
            self._client.execute_command(*words)
        except NoScriptError:
            return ""
        except ResponseError as error:
            return trouble(error)
        return ""

    def hears(self) -> bool | Refused:
        """Return whether a message to a channel of ours comes back."""
        channel = keyspace.channel(self.process_id)
        listening: PubSub
        with contextlib.closing(self._client.pubsub()) as listening:
            try:
                listening.subscribe(channel)
                if not _hears(listening, "subscribe"):
                    return False
                self._client.publish(channel, "doctor")
                return _hears(listening, "message")
            except ResponseError as error:
                return Refused(trouble(error) or quotable(error))

    def scripts(self, store: Store) -> dict[str, str]:
        """Run each script as the library does; return those that don't do what they should, with the reason."""
        reasons: dict[str, str] = {}
        for command, expected in self._steps():
            try:
                result = store.run(command)
            except StoreError as error:
                if not error.answered:
                    raise
                reason = str(error).removeprefix(f"{error.operation} {error.key}: ")[:_LONGEST_REASON]
            else:
                # After a failure, or when a command was repeated, the answers may differ.
                fine = reasons or command.repeated or expected(result)
                reason = "" if fine else "its answer is not what it should be"
            if reason:
                reasons.setdefault(command.name, reason)
        return reasons

    def _steps(self) -> Iterator[tuple[Command[Any], Callable[[Any], bool]]]:
        keys, first, second = self.keys, f"{self.process_id}:1", f"{self.process_id}:2"
        pace = Pace(min_interval=0.001, tier="pro").settings(1, startup_protection=True)
        yield commands.reserve(keys, _BLOCK), lambda block: len(block) == _BLOCK  # exact to the last digit
        yield commands.advance(keys, 1, 0), lambda last: last > 1
        yield (
            commands.acquire(keys, first, _TERM, ticket=None, priority="normal", pace=pace),
            lambda answer: isinstance(answer, Granted),
        )
        yield commands.extend(keys, first, _TERM, _INTENT), lambda result: isinstance(result, Extended)
        yield (
            commands.acquire(keys, second, _TERM, ticket=0, priority="normal", pace=""),
            lambda answer: isinstance(answer, Waiting),
        )
        yield commands.heartbeat(keys, self.process_id, second), lambda heartbeat: heartbeat.left > 0
        yield commands.cool_down(keys, _TERM, "doctor"), lambda left: left > 0
        yield commands.cool_down(keys, 0, ""), lambda left: left == 0
        yield commands.reset_startup(keys), lambda _: True
        yield commands.ping(keys), lambda _: True
        yield commands.unlock(keys, first), bool
        yield journal.pending(keys), lambda entries: len(entries) == 1
        yield journal.settle(keys, 1, "known"), lambda there: not there
        yield commands.inspect(keys), lambda state: state.holder == second
        yield commands.release(keys, second), lambda release: release == "released"


def trouble(error: RedisError) -> str:
    """Return in a few words what the user can't do, or an empty text for another kind of error."""
    said = str(error).lower()
    if isinstance(error, NoPermissionError):
        said = f"noperm {said}"
    return next((ours for theirs, ours in _TROUBLE if theirs in said), "")


def _hears(listening: PubSub, kind: str) -> bool:
    """Wait for a message of a kind."""
    until = clock.now() + _HEARING
    while (left := until - clock.now()) > 0:
        message = listening.get_message(timeout=left)
        if message is not None and text(message["type"]) == kind:
            return True
    return False
