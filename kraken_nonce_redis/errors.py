"""Every error that this library raises.

::

    KrakenNonceError
     ├─ InvalidArgument (ValueError)          a parameter, named in the text
     ├─ IncompatibleClient                    an exchange client without the seam that an adapter needs
     ├─ StoreError                            Redis can't be used as asked
     │   ├─ StoreUnavailable                  down, unreachable, loading, too slow
     │   │   └─ NotDurable                    done, but too few replicas have it
     │   ├─ StoreReadOnly                     a replica
     │   ├─ StorePermissionDenied             wrong password, or permissions missing
     │   ├─ StoreOutOfMemory                  over maxmemory
     │   ├─ StoreUnsupported                  no scripting or another missing ability
     │   └─ ForeignValue                      our key has another program's value
     ├─ NonceTooFarAhead                      a raise past max_lead, or past int64
     ├─ NoncesUsedUp                          the block of a lease is empty
     ├─ NoncePoisoned                         Kraken refuses every nonce up to max_lead
     ├─ CallUnsettled                         a call that changes something got no answer
     │   ├─ OutcomeUnknown                    it may or may not have been carried out
     │   └─ NotCarriedOut                     it was not, and won't be
     └─ CallLockError (redis LockError)       the lock was used wrongly, timed out or was lost
         ├─ HoldTimeout (TimeoutError)        the lock was not free in time
         │   └─ CoolDown                      Kraken wants no calls for longer than that
         └─ LeaseLost (redis LockNotOwnedError)  the lease ended before it was released

Each says by `KrakenNonceError.carried_out` what became of the call. Those that an adapter for ccxt raises are errors of
ccxt, too: see `kraken_nonce_redis.ccxt.errors`.

No text and no field carries an API key, a secret or a password. A Redis key in a text holds a digest of the
API key at most.
"""

from __future__ import annotations

import re
import ssl
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar

import redis.asyncio.sentinel
import redis.exceptions
import redis.sentinel

if TYPE_CHECKING:
    from collections.abc import Iterator


class KrakenNonceError(Exception):
    """Base of all errors of this library. They can be pickled, so they cross process boundaries.

    Attributes:
        carried_out: whether the call that this error ended has changed anything at Kraken. False: no, nothing was sent,
            or Kraken refused it, or it only reads. True: yes. None: it may or may not have, or the error is about no
            call, such as one of ``release()`` and ``extend()``: what was sent under the lease before is up to you.
    """

    carried_out: bool | None = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[KrakenNonceError], args: tuple[Any, ...], fields: dict[str, Any]) -> KrakenNonceError:
    # HoldTimeout is an OSError as well as a ValueError, and only OSError's constructor will make one.
    base = OSError if issubclass(kind, OSError) else Exception
    error: KrakenNonceError = base.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class InvalidArgument(KrakenNonceError, ValueError):
    """A parameter is out of range or of the wrong type.

    Attributes:
        parameter: the parameter's name.
    """

    def __init__(self, parameter: str, problem: str) -> None:
        super().__init__(f"{parameter}: {problem}")
        self.parameter = parameter


class IncompatibleClient(KrakenNonceError):
    """An exchange client object or version lacks the seam that an adapter needs.

    Attributes:
        client: what was given, such as ``"krakenex 3.0"``.
    """

    def __init__(self, client: str, problem: str) -> None:
        super().__init__(f"{client}: {problem}")
        self.client = client


class StoreError(KrakenNonceError):
    """Redis can't be used as asked; no nonce was made up in its place.

    Attributes:
        operation: what was being done, such as ``"acquire"``.
        key: the Redis key concerned, or ``""``.
        answered: whether the server answered what was asked, if only to refuse it; False when it was not reached in
            time or refused the login.
    """

    answered = True

    def __init__(self, operation: str, key: str, problem: str) -> None:
        super().__init__(f"{operation} {key}: {problem}" if key else f"{operation}: {problem}")
        self.operation = operation
        self.key = key


class StoreUnavailable(StoreError):
    """Redis is down, unreachable, loading or too slow. Try again later; no restart is needed."""


class NotDurable(StoreUnavailable):
    """A nonce was raised, but fewer replicas had that in time than ``durable`` asks for. It stays raised."""


class StoreReadOnly(StoreError):
    """The server is a read-only replica. Connect to the master."""


class StorePermissionDenied(StoreError):
    """The server refuses the password or the user's permissions don't suffice."""


class StoreOutOfMemory(StoreError):
    """The server is over its maxmemory and refuses to write. Nothing was changed."""


class StoreUnsupported(StoreError):
    """The server lacks something that this library needs, such as Lua scripts."""


class ForeignValue(StoreError):
    """A key of ours holds a value that this library did not write. Nothing was changed.

    Attributes:
        field: the field of the hash; ``""`` when the whole key is of another type.
    """

    field: str = ""


class NonceTooFarAhead(KrakenNonceError):
    """A nonce would be raised further ahead of the server's clock than allowed. Nothing was changed.

    Attributes:
        last: the last nonce handed out, ns since 1970; 0 when there is none.
        lead: how far the refused nonce lies ahead of the server's clock, ns.
        max_lead: how far it may, ns.
    """

    def __init__(self, problem: str, *, last: int, lead: int, max_lead: int) -> None:
        super().__init__(problem)
        self.last = last
        self.lead = lead
        self.max_lead = max_lead


class NoncesUsedUp(KrakenNonceError):
    """The block of nonces of a lease is used up. ``lease.extend()`` gives it a new one."""


class NoncePoisoned(KrakenNonceError):
    """Kraken refuses every nonce that may be used: another program has raised the API key's nonce far ahead.

    Attributes:
        nonce: the highest one that Kraken refused, ns since 1970.
        lead: how far it lay ahead of the Redis server's clock, ns.
    """

    def __init__(self, key: str, nonce: int, lead: int) -> None:
        super().__init__(
            f"Kraken refuses nonce {nonce} of {key} (EAPI:Invalid nonce), which is {lead / 1e9:.0f} s ahead of the "
            "server's clock. Another program uses the same API key, with a clock that is ahead or a smaller unit than "
            "nanoseconds: find and stop it. A nonce can't be lowered: give this program an API key of its own. If you "
            "know the last nonce that Kraken accepted and want to keep the key: kraken-nonce advance --max-lead"
        )
        self.nonce = nonce
        self.lead = lead


class CallUnsettled(KrakenNonceError):
    """A call that changes something was sent and got no answer.

    Attributes:
        carried_out: None for `OutcomeUnknown`, False for `NotCarriedOut`.
        method: Kraken's name, such as ``"AddOrder"``.
        nonce: of the request, ns since 1970.
        cl_ord_id: of the order, to look it up; separated by commas if there are several, ``""`` for none.
        known: what is known, in words.
    """

    carried_out: bool | None = None
    verdict = ""

    def __init__(self, method: str, nonce: int, cl_ord_id: str, known: str) -> None:
        order = f", cl_ord_id {cl_ord_id}" if cl_ord_id else ""
        super().__init__(f"{method} (nonce {nonce}{order}) {self.verdict}: {known}")
        self.method = method
        self.nonce = nonce
        self.cl_ord_id = cl_ord_id
        self.known = known


class OutcomeUnknown(CallUnsettled):
    """It is unknown whether a call was carried out. Look it up at Kraken before you make it again."""

    verdict = "may or may not have been carried out"


class NotCarriedOut(CallUnsettled):
    """A call got no answer and was not carried out.

    Nor will it be: Kraken has accepted a later nonce, above the API key's nonce window, and then listed no such order
    in several looks, ``settle_waits`` apart. An order that Kraken accepts but neither places nor lists for longer than
    that would be missed.

    Attributes:
        proved: whether Kraken also could not place it any more, since its deadline was over, by ``proof_wait``
            seconds, when Kraken was looked at for the last time. An order that Kraken has placed and lists later than
            that would still be missed.
    """

    carried_out = False
    verdict = "was not carried out"

    def __init__(self, method: str, nonce: int, cl_ord_id: str, known: str, *, proved: bool = False) -> None:
        super().__init__(method, nonce, cl_ord_id, known)
        self.proved = proved


class CallLockError(KrakenNonceError, redis.exceptions.LockError):
    """The lock was used wrongly, such as a release without a lease."""

    def __init__(self, problem: str, key: str = "") -> None:
        super().__init__(problem, key)

    def __str__(self) -> str:
        return str(self.args[0])


class HoldTimeout(CallLockError, TimeoutError):
    """The lock was not free within the caller's timeout. Nothing of the caller is left in the queue."""


class CoolDown(HoldTimeout):
    """Kraken wants no calls for longer than the caller would wait. Nothing was sent.

    Attributes:
        seconds: until the cool-down ends.
        reason: what Kraken said to the process that learned of it.
    """

    def __init__(self, key: str, seconds: float, reason: str) -> None:
        super().__init__(f"no calls on {key} for another {seconds:.1f} s: {reason}", key)
        self.seconds = seconds
        self.reason = reason


class ShuttingDown(CallLockError):
    """`kraken_nonce_redis.shutdown` was called, so this process acquires no more locks. Nothing was sent."""

    def __init__(self, key: str) -> None:
        super().__init__(f"this process is shutting down and acquires no lock any more{key and ': '}{key}", key)


class LeaseLost(CallLockError, redis.exceptions.LockNotOwnedError):
    """The lease ended before it was released: another caller may hold the lock.

    Sign and send nothing more under it.
    """


E = TypeVar("E", bound=KrakenNonceError)


def about_no_call(error: E) -> E:
    """Return an error that may have come after a call, and doesn't know what became of it."""
    error.carried_out = None
    return error


UNREACHABLE: Final = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
"""What redis-py raises when a server doesn't answer."""


def keeps_connection(error: BaseException) -> bool:
    """Return whether a connection is still good after an error: it was the server's answer, read to its end.

    A master that has become a replica or lost its replicas is left, so that the next connection may find the new one.
    After anything else, an interruption too, an answer that was not read would be taken for the next command's.
    """
    if not isinstance(error, redis.exceptions.ResponseError):
        return False
    said = str(error).lower()
    return not any(words in said for words in _DEPOSED)


# Before 7.0 a server wraps the errors of a script's commands, so redis-py's class says little.
_DEPOSED = ("readonly", "read only replica", "noreplicas", "masterdown")

_Reading: TypeAlias = tuple[type[StoreError], str]

_UNREACHABLE = (StoreUnavailable, "Redis can't be reached")
_FULL = (StoreOutOfMemory, "the server is over its maxmemory; nothing was changed")
_REPLICA = (StoreReadOnly, "the server is a read-only replica; connect to the master")
_PERMISSIONS = (StorePermissionDenied, "the user lacks a permission")
_LOGIN = (
    StorePermissionDenied,
    "the server refuses the user name or password; a URL has them as redis://user:password@host",
)
_NO_LOGIN = (StorePermissionDenied, "the server asks for a password and got none: redis://:password@host")
_NO_PASSWORD = (StorePermissionDenied, "the server's default user has no password; leave it out")
_NO_USERS = (StorePermissionDenied, "the server knows no user names (Redis before 6): redis://:password@host")
_SENTINEL_LOGIN = (
    StorePermissionDenied,
    "a Sentinel refuses the user name or password; a URL has them as sentinel_username and sentinel_password",
)
_NO_SENTINEL = (
    StoreUnavailable,
    "no Sentinel names a master: they are down, don't know the service, or hold its master for dead",
)
_STRANGE_SENTINEL = (
    StoreUnsupported,
    "no Sentinel answers at that address but a Redis server, whose URL begins with redis:// or rediss://",
)
_NO_MASTER = (StoreUnavailable, "the replica has lost its master")
_NO_CLUSTER = (StoreUnavailable, "the cluster is down")
_MOVING = (StoreUnavailable, "the cluster is moving the key")
_CLUSTERED = (StoreUnsupported, "the server is part of a cluster: use redis+cluster:// or a RedisCluster client")
_NO_HELLO = (StoreUnsupported, "the server doesn't know HELLO; use the option protocol=2")
_STRANGER = (StoreError, "what answers there is no Redis")
_WANTS_TLS = (
    StoreUnavailable,
    "the server closed the connection before it said anything; for TLS, use rediss:// and the certificate it wants",
)
_NO_TLS = (
    StoreUnavailable,
    "the server doesn't answer in TLS; if it has none, the URL begins with redis://",
)
_UNTRUSTED = (
    StoreUnavailable,
    "the server's certificate is not trusted; the option ssl_ca_certs names the file of its authority's",
)
_NO_CERTIFICATE = (
    StoreUnavailable,
    "the server ended the TLS connection; if it asks for a certificate, give ssl_certfile and ssl_keyfile",
)
_TLS_FILES = (StoreUnavailable, "a certificate, a key or another ssl_ option can't be used")

_NO_MASTER_FOUND = (redis.sentinel.MasterNotFoundError, redis.asyncio.sentinel.MasterNotFoundError)

# The first that fits counts: some of redis-py's errors are subclasses of others.
_KINDS: tuple[tuple[type[Exception], _Reading], ...] = (
    (redis.exceptions.AuthenticationError, _LOGIN),
    (redis.exceptions.AuthorizationError, _LOGIN),
    (redis.exceptions.TimeoutError, (StoreUnavailable, "Redis did not answer in time")),
    (redis.exceptions.BusyLoadingError, (StoreUnavailable, "the server is still loading")),
    *((theirs, _NO_SENTINEL) for theirs in _NO_MASTER_FOUND),
    (redis.exceptions.ConnectionError, _UNREACHABLE),
    (redis.exceptions.ReadOnlyError, _REPLICA),
    (redis.exceptions.OutOfMemoryError, _FULL),
    (redis.exceptions.NoPermissionError, _PERMISSIONS),
    (redis.exceptions.MasterDownError, _NO_MASTER),
    (redis.exceptions.ClusterDownError, _NO_CLUSTER),
    (redis.exceptions.TryAgainError, _MOVING),
    (redis.exceptions.MovedError, _CLUSTERED),
    (redis.exceptions.InvalidResponse, _STRANGER),
    (OSError, _UNREACHABLE),
)

# What a server says, wherever in the text: before 7.0 it wraps the errors of a script's commands.
_WORDS: tuple[tuple[str, _Reading], ...] = (
    (
        "wrongtype",
        (ForeignValue, "another program has written a value of another type; use another namespace, or DEL it"),
    ),
    ("oom command", _FULL),
    ("readonly", _REPLICA),
    ("read only replica", _REPLICA),
    ("noperm", _PERMISSIONS),
    ("no permission", _PERMISSIONS),
    ("the user executing the script can't", _PERMISSIONS),
    *((f"unknown command {quote}sentinel", _STRANGE_SENTINEL) for quote in "'`"),
    (
        "unknown command",
        (StoreUnsupported, "the server lacks a command (EVAL, EVALSHA; WAIT, WAITAOF if durable)"),
    ),
    ("noauth", _LOGIN),
    ("masterdown", _NO_MASTER),
    ("clusterdown", _NO_CLUSTER),
    ("moved ", _CLUSTERED),
    ("cluster support disabled", (StoreUnsupported, "the server is no cluster: use redis:// or a redis.Redis client")),
    ("tryagain", _MOVING),
    ("busy", (StoreUnavailable, "the server is busy with a script")),
    ("misconf", (StoreUnavailable, "the server can't persist and refuses to write")),
    ("noreplicas", (StoreUnavailable, "the server has too few replicas and refuses to write")),
)

# What a server says before the first command: to HELLO, AUTH, CLIENT SETNAME, SELECT.
_WORDS_AT_LOGIN: tuple[tuple[str, _Reading], ...] = (
    ("authentication required", _NO_LOGIN),
    ("hello must be called", _NO_LOGIN),
    ("without any password", _NO_PASSWORD),
    ("no password is set", _NO_PASSWORD),
    ("number of arguments for 'auth'", _NO_USERS),
    ("unknown command", _NO_HELLO),
    ("noproto", _NO_HELLO),
    ("max number of clients", (StoreUnavailable, "the server takes no more connections (its maxclients)")),
    (
        "protected mode",
        (StorePermissionDenied, "the server is in protected mode; it wants a password, or local clients"),
    ),
    ("client names cannot", (StoreError, "the server refuses the client_name; it may hold no spaces")),
    ("db index", (StoreError, "the server has no database of that number")),
    ("not allowed in cluster mode", (StoreUnsupported, "a cluster has only the database 0")),
    ("connection closed by server", _WANTS_TLS),
)


def from_redis(error: Exception, operation: str, key: str) -> StoreError:
    """Return the error of our tree for what redis-py raised in an operation on a key.

    It must be raised on its own, with no cause and no context, as `raise_from_redis` does: what servers and redis-py
    say can quote passwords.
    """
    kind, problem = _reading(error)
    said = quotable(error)
    failure = kind(operation, key, f"{problem} ({said})" if said else problem)
    failure.answered = not isinstance(error, (*UNREACHABLE, OSError))
    return failure


def raise_from_redis(error: Exception, operation: str, key: str) -> NoReturn:
    """Raise the error of our tree for what redis-py raised, without the latter as its cause or context."""
    failure = from_redis(error, operation, key)
    try:
        raise failure from None
    finally:
        failure.__context__ = None


def quotable(error: Exception) -> str:
    """Return as much of the text of redis-py's error as can be shown: no password, one line, not too long.

    A login is quoted by a server that does not know HELLO, and by some versions of redis-py when no Sentinel answers.
    What is said to later commands, and what the system says of a connection, knows of none.
    """
    said = str(error)
    if isinstance(error, _NO_MASTER_FOUND):
        service = re.match("No master found for ('[^']*')", said)
        return service[1] if service is not None else ""
    if _while_logging_in(error):
        system = _of_system(error)
        names = [f"'{name}'" for name in _NAMED_AT_LOGIN if f"'{name}'" in said]
        said = (system.strerror or "") if system is not None else ", ".join(names[:1])
    elif re.search(r"\b(auth|hello)\b", said, re.IGNORECASE):
        return ""
    line = " ".join(said.split())
    return "".join(each if each.isprintable() else "?" for each in line)[:_LONGEST_QUOTED]


_LONGEST_QUOTED: Final = 400
_NAMED_AT_LOGIN: Final = ("auth", "hello", "client|setname", "client|setinfo", "client", "select")
_CHAIN: Final = 8


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from; of a long chain, or a ring, the first ones."""
    each: BaseException | None = error
    for _ in range(_CHAIN):
        if each is None:
            return
        yield each
        each = each.__cause__ or each.__context__


def _functions(error: BaseException) -> list[str]:
    """Return the names of the functions that an error came through, the innermost last."""
    return [frame.f_code.co_qualname for frame, _ in traceback.walk_tb(error.__traceback__)]


def _while_logging_in(error: BaseException) -> bool:
    # redis-py's on_connect, and with some versions on_connect_check_health, is the first to talk to the server.
    return any(".on_connect" in name for each in _chain(error) for name in _functions(each))


def _of_system(error: BaseException) -> OSError | None:
    """Return the error of a socket or of TLS that an error came from."""
    return next((each for each in _chain(error) if isinstance(each, OSError)), None)


def _reading(error: Exception) -> _Reading:
    """Return what an error of redis-py means."""
    said = str(error).lower()
    logging_in = _while_logging_in(error)
    fitting: tuple[_Reading, ...] = (
        *(reading for words, reading in _WORDS_AT_LOGIN if logging_in and words in said),
        *_readings_of_connection(error, logging_in=logging_in),
        *(reading for theirs, reading in _KINDS if isinstance(error, theirs)),
        *(reading for words, reading in _WORDS if words in said),
        (StoreError, "the server refused"),
    )
    if fitting[0] is _NO_SENTINEL and "authenticationerror" in said:
        return _SENTINEL_LOGIN
    return fitting[0]


def _readings_of_connection(error: Exception, *, logging_in: bool) -> Iterator[_Reading]:
    """Yield what the system's error behind one of redis-py's means, as far as it tells of TLS."""
    system = _of_system(error)
    if system is None or not (type(error) in UNREACHABLE or error is system):
        return
    functions = [name for each in _chain(error) for name in _functions(each)]
    if isinstance(system, ssl.SSLCertVerificationError):
        yield _UNTRUSTED
    elif not _LOADING_FILES.isdisjoint(_functions(system)[-1:]):
        yield _TLS_FILES
    elif not _SHAKING_HANDS.isdisjoint(functions):
        yield _NO_CERTIFICATE if isinstance(system, ssl.SSLError) and "ALERT" in (system.reason or "") else _NO_TLS
    elif logging_in and isinstance(system, ssl.SSLError):
        yield _NO_CERTIFICATE
    elif logging_in and isinstance(system, ConnectionError):
        yield _WANTS_TLS


# Functions of redis-py that make a TLS context, for threads and asyncio, and those of Python that wait for the
# handshake. A version in which they have other names is told less precisely.
_LOADING_FILES: Final = frozenset(
    {"SSLConnection._connect", "SSLConnection._wrap_socket_with_ssl", "RedisSSLContext.get"},
)
_SHAKING_HANDS: Final = frozenset({"SSLSocket.do_handshake", "BaseEventLoop._create_connection_transport"})
