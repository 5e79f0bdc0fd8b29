"""What the adapters for clients that send by requests have in common.

The last look at a request is in urllib3's connection, below all that a session, its adapters or a subclass of them may
do: connecting may take long, since urllib3 tries each of a host's addresses for the whole timeout. So the classes of a
session's adapters, pools and connections are replaced by subclasses, made here of whatever they are.
"""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _process
from kraken_nonce_redis._calls import leaving
from kraken_nonce_redis._calls.call import LONGEST_CALL
from kraken_nonce_redis.errors import IncompatibleClient, InvalidArgument

Timeout: TypeAlias = Any
"""What requests takes: seconds, a pair of them for connecting and reading, None for no limit, or urllib3's Timeout."""

_SHORTEST: Final = 0.001

_POOLS: Final = 10  # as requests has it
_users: Final[WeakKeyDictionary[Any, _process.Process]] = WeakKeyDictionary()

_Stock: Any = object  # stands for the class that comes after ours


class _Pool(_Stock):  # type: ignore[misc]
    """What is different in a urllib3 pool."""

    def urlopen(self, method: str, url: str, body: Any = None, headers: Any = None, *rest: Any, **more: Any) -> Any:
        with leaving.connecting(headers, body):
            return super().urlopen(method, url, body, headers, *rest, **more)

    def _make_request(self, conn: Any, *args: Any, timeout: Any, **kwargs: Any) -> Any:
        limits = self._get_timeout(timeout)
        limits.start_connect()
        _watched(conn, _Connection).limits = limits
        return super()._make_request(conn, *args, timeout=timeout, **kwargs)


class _Connection(_Stock):  # type: ignore[misc]
    """What is different in a connection of a urllib3 pool.

    Attributes:
        limits: urllib3's Timeout of the request that is about to be sent.
    """

    limits: Any

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, *rest: Any, **more: Any) -> Any:
        if self.sock is None:
            self.connect()  # as it would by itself, but before the last look
        leaving.leave(headers, body, _number(self.limits.read_timeout), seen=True)
        return super().request(method, url, body, headers, *rest, **more)


class _Transport(_Stock):  # type: ignore[misc]
    """What is different in all adapters of a session."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().send(request, *args, **kwargs)
        except Exception as failure:
            sent = _request_of(request)
            if sent is not None:
                sent.hear_failure(failure)
            raise

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy as the class that it was."""
        _, (_, *args), *rest = super().__reduce_ex__(max(protocol, 2))
        return object.__new__, (type(self).__bases__[1], *args), *rest


class _Adapter(_Transport):
    """What is different in an adapter of requests, which sends by a pool of urllib3."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        return _watched(super().get_connection_with_tls_context(*args, **kwargs), _Pool)

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:  # before requests 2.32
        return _watched(super().get_connection(*args, **kwargs), _Pool)

    def build_response(self, req: Any, resp: Any) -> Any:
        return _hear(req, super().build_response(req, resp))


class _Foreign(_Transport):
    """What is different in another adapter, which may do in ``send`` whatever it likes."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        leaving.leave(request.headers, request.body)
        return _hear(request, super().send(request, *args, **kwargs))


def _request_of(prepared: Any) -> leaving.Request | None:
    return leaving.request_of(prepared.headers, leaving.fields_of(prepared.body))


def _hear(prepared: Any, response: Any) -> Any:
    sent = _request_of(prepared)
    if sent is not None:
        sent.hear_status(response.status_code, response.headers)
        response._content = sent.hear_body(response.content)  # noqa: SLF001 - where requests keeps what was read
    return response


def _watched(thing: Any, ours: type) -> Any:
    """Give an object what is different in one of ours."""
    if not isinstance(thing, ours):
        kind: Any = type(thing)
        thing.__class__ = leaving.watching(kind, ours)
    return thing


def take_into_use(session: Any) -> None:
    """Prepare a session of requests for its next request: have that looked at before it leaves.

    If this process has not used the session yet, it gets new connections. After a fork it would share its parent's, and
    two processes that send over one connection get each other's answers.
    """
    adapters = getattr(session, "adapters", None)
    if adapters is None:
        return
    for adapter in adapters.values():
        with contextlib.suppress(TypeError):  # of a class that can't be replaced
            _watched(adapter, _Adapter if hasattr(adapter, "poolmanager") else _Foreign)
    if _users.get(session) is _process.current():
        return
    for adapter in adapters.values():
        managers: list[Any] = [getattr(adapter, "poolmanager", None), *getattr(adapter, "proxy_manager", {}).values()]
        for manager in managers:
            pools = getattr(manager, "pools", None)
            if manager is not None and pools is not None:
                # The old ones are dropped, not cleared: their lock may have been in use in the parent when it forked.
                manager.pools = type(pools)(getattr(adapter, "_pool_connections", _POOLS))
    _users[session] = _process.current()


def is_watched(session: Any, url: str) -> bool:
    """Return whether requests to an address are looked at before they leave; not if something else sends them."""
    try:
        return isinstance(session.get_adapter(url), _Transport)
    except AttributeError:
        return False
    except ValueError:  # what has no adapter, the session won't send
        return True


def refuse_repeats(session: Any, url: str) -> None:
    """Make sure that a session of requests sends a request once. Raises `IncompatibleClient`.

    A transport that repeats a POST by itself makes an order's second copy look like one that was refused for its nonce,
    so that it would be made once more.
    """
    try:
        retry = session.get_adapter(url).max_retries
        # It has no public question for a failure without a status.
        repeats = retry.is_retry("POST", 503) or (retry.total and retry._is_method_retryable("POST"))  # noqa: SLF001
    except AttributeError:
        return  # not of requests; it may have no such thing
    except ValueError:
        return  # there is no adapter for such a URL, as the client will say
    if repeats:
        raise IncompatibleClient(
            type(session).__qualname__,
            "it repeats POST requests by itself (urllib3's Retry with allowed_methods), so an order could be placed "
            "twice; mount an adapter that does not, and leave repeating to retries",
        )


def bounded(timeout: Timeout, default: float) -> float | tuple[float, float] | Any:
    """Return a timeout for requests that ends: what has no limit gets the default. Raises `InvalidArgument`.

    Args:
        timeout: what requests takes: seconds, a pair of them, None, or a Timeout of urllib3.
        default: seconds.
    """

    def limited(part: Any) -> float:
        # No socket takes a Decimal; that shows only when a connection is used again.
        return default if part is None else float(arguments.seconds("timeout", part, _SHORTEST, LONGEST_CALL))

    if isinstance(timeout, tuple):
        if len(timeout) != 2:  # noqa: PLR2004 - a pair
            raise InvalidArgument("timeout", f"must be seconds or a pair of them, not a tuple of {len(timeout)}")
        return limited(timeout[0]), limited(timeout[1])
    if not hasattr(timeout, "connect_timeout"):
        return limited(timeout)
    if _number(timeout.total) is not None:
        return timeout
    return limited(_number(timeout.connect_timeout)), limited(_number(timeout.read_timeout))


def _number(value: Any) -> float | None:
    """Return a number of urllib3's; None where it has an object that stands for none given."""
    return float(value) if isinstance(value, int | float | Decimal) else None


def longest(timeout: Timeout) -> float:
    """Return the seconds that a request may take at most: connecting and reading count apart, unless there is a total.

    The timeout is one that `bounded` returned.
    """
    if isinstance(timeout, tuple):
        return float(sum(timeout))
    return float(timeout.total) if hasattr(timeout, "total") else 2.0 * timeout
