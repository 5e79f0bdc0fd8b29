"""What the Kraken classes of ccxt share here, with and without asyncio.

ccxt's ``fetch2`` throttles and then, for each attempt, calls ``sign`` and passes the result to ``fetch``. Here ``sign``
only takes note of a private call, and ``fetch`` takes the lock, signs with a nonce of the lease and sends. So the lock
is not held while a call is throttled or waits for its next attempt, and each attempt has a lease of its own. Only
``fetch`` has to wait for anything, so only that is written twice. What leaves here is an error of ccxt, too.
"""

from __future__ import annotations

import contextlib
import functools
import json
from contextvars import ContextVar
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import ccxt

from kraken_nonce_redis import _arguments as arguments
from kraken_nonce_redis import _clock as clock
from kraken_nonce_redis._calls import leaving, outcomes
from kraken_nonce_redis._calls.call import Call
from kraken_nonce_redis._calls.guards import LONGEST_TIMEOUT
from kraken_nonce_redis._core.lease import logger
from kraken_nonce_redis.ccxt.errors import as_ccxt
from kraken_nonce_redis.clients import Options
from kraken_nonce_redis.errors import IncompatibleClient

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from kraken_nonce_redis._core.steps import Send

_OPTIONS: Final = tuple(Options.__annotations__)
_OF_KRAKEN: Final = ("public", "private")
"""The names of its URLs."""
_REPEATS: Final = "maxRetriesOnFailure"
_OF_CCXT: Final = (_REPEATS, "maxRetriesOnFailureDelay")
"""Parameters that are for ccxt itself. Its older versions have the request signed before they take them out."""
_PROBE_NONCE: Final = 1_700_000_000_000_000_001
_PROBE: Final[Mapping[str, Any]] = {"method": "Balance", "params": {}, "nonce": _PROBE_NONCE}

_asked: Final[ContextVar[float | None]] = ContextVar("kraken_nonce_asked", default=None)

_Stock: Any = object  # stands for ccxt's class, which comes after `Adapter` in each that is put together


@contextlib.contextmanager
def asking() -> Generator[None]:
    """Count the patience of the calls that are made inside of this block from its beginning, before ccxt throttles."""
    token = _asked.set(clock.now())
    try:
        yield
    finally:
        _asked.reset(token)


class Unsigned:
    """Stands for the body of a private call that has no nonce and no signature yet.

    Attributes:
        method: Kraken's name of the method, such as ``"AddOrder"``.
        params: without nonce.
        asked: when ccxt was asked for the call, on `clock.now`; None if that is unknown.
    """

    def __init__(self, method: str, api: Any, verb: str = "GET", params: Any = None, *rest: Any, **named: Any) -> None:
        self.method: Final = method
        self.params: Final[Mapping[str, Any]] = {
            name: value for name, value in (params or {}).items() if name not in _OF_CCXT
        }
        self.asked: Final = _asked.get()
        self._api, self._verb, self._rest, self._named = api, verb, rest, named

    def __repr__(self) -> str:
        return f"<{self.method}, not signed yet>"

    def signed(self, sign: Any, step: Send) -> Any:
        """Return the request that a ``sign`` of ccxt makes of a step of this call."""
        return sign(step.method, self._api, self._verb, dict(step.params), *self._rest, **self._named)


class _Headers(dict[str, str]):
    """The headers of a signed request; ccxt logs them at DEBUG and prints them if it is ``verbose``."""

    def __repr__(self) -> str:
        return repr({name: "***" if name.startswith("API-") else value for name, value in self.items()})


class Adapter(_Stock):  # type: ignore[misc] # it has no types
    """The methods of ccxt's Kraken classes that differ, but for ``fetch``. Comes before such a class.

    Subclasses set the attributes below.

    Attributes:
        _stock: ccxt's class.
        _guard_type: `Guard` or `AsyncGuard`.
    """

    _stock: ClassVar[Any]
    _guard_type: ClassVar[Any]
    _longest: Callable[[], float]
    timeout: Any
    urls: Any

    @as_ccxt()
    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        check_seam(self._stock)
        config = dict(config or {})
        options = {name: config.pop(name) for name in _OPTIONS if name in config}
        self._guard = self._guard_type(**options)
        if config.pop("nonce", None) is not None:
            logger.warning("%s: the config's nonce is not used; nonces come from Redis", type(self).__qualname__)
        for name, checked in (("apiKey", arguments.stripped), ("secret", arguments.secret)):
            if isinstance(config.get(name), str):
                config[name] = checked(name, config[name])
        if "call_timeout" in options:
            config.setdefault("timeout", self._guard.call_timeout * 1000)
        super().__init__(config)
        explicit = (config.get("urls") or {}).get("api") or {}
        urls = {name: self._guard.address(self.urls["api"][name], explicit=name in explicit) for name in _OF_KRAKEN}
        self.urls = self.deep_extend(self.urls, {"api": urls})

    def fetch2(
        self, path: str, api: Any = "public", method: Any = "GET", params: Any = None, *rest: Any, **named: Any
    ) -> Any:
        """Make a call as ccxt does; ``maxRetriesOnFailure`` does not repeat one that changes something."""
        params = {} if params is None else params
        if "private" in api and outcomes.changes(path, params):
            params = {**params, _REPEATS: 0}
        return super().fetch2(path, api, method, params, *rest, **named)

    def sign(self, path: str, api: Any = "public", *rest: Any, **named: Any) -> Any:
        """Sign a public call as ccxt does; take note of a private one, for ``fetch`` to sign.

        Raises what ccxt does when the API key or the secret is missing.
        """
        if "private" not in api:
            return super().sign(path, api, *rest, **named)
        self.check_required_credentials()
        return {"url": path, "method": "POST", "headers": None, "body": Unsigned(path, api, *rest, **named)}

    def nonce(self) -> Any:
        """Return the nonce of the call that is being signed, ns since 1970; outside of a call, what ccxt does."""
        request = leaving.current()
        return super().nonce() if request is None else request.step.nonce

    def incrementing_nonce(self) -> Any:
        """Return `nonce`, which rises without ccxt's help."""
        return self.nonce()

    def handle_errors(self, code: Any, reason: Any, url: Any, method: Any, *answer: Any) -> Any:
        """Raise the error that ccxt makes of an answer, with Kraken's own errors in its ``kraken_errors``."""
        try:
            return super().handle_errors(code, reason, url, method, *answer)
        except ccxt.BaseError as caught:
            error: Any = caught
            _headers, _body, response, *_ = answer
            request = leaving.current()
            if request is not None and isinstance(response, dict):
                request.hear(response)
            error.kraken_errors = response.get("error", ()) if isinstance(response, dict) else ()
            raise

    def _timeout(self) -> float:
        """Return ccxt's timeout in seconds. Raises `InvalidArgument` if there is none, or none that fits a lease."""
        if isinstance(self.timeout, Decimal):
            self.timeout = float(self.timeout)  # no socket takes the other
        timeout = self.timeout or 0
        seconds = timeout / 1000 if isinstance(timeout, int | float) else timeout
        return arguments.seconds("timeout", seconds, 0.001, LONGEST_TIMEOUT)

    def _call(self, unsigned: Unsigned) -> Call:
        method, params, longest = unsigned.method, unsigned.params, self._longest()
        return Call.of(self.apiKey, method, params, longest, self._present, secret=self.secret, asked=unsigned.asked)

    def _present(self, answer: Mapping[str, Any]) -> Any:
        """Return what ccxt's ``fetch`` does for an answer of Kraken, or raise what it does."""
        self.handle_errors(200, "OK", "", "POST", {}, json.dumps(answer), answer, {}, "")
        return answer

    def _signed(self, unsigned: Unsigned, step: Send) -> tuple[Any, Any, Any, Any]:
        """Sign a request, note it as ccxt does with what it is about to send, and return the arguments of ``fetch``."""
        request = unsigned.signed(super().sign, step)
        self.last_request_url = request["url"]
        self.last_request_headers = headers = _Headers(request["headers"])
        self.last_request_body = request["body"]
        self.lastRestRequestTimestamp = self.milliseconds()
        return request["url"], request["method"], headers, request["body"]


class _Sent(Exception):
    """Instead of a request: what would have been sent."""


@functools.cache
def check_seam(stock: Any) -> None:
    """Make sure, without a request, that a class of ccxt calls ``sign`` and ``fetch`` as this adapter needs it.

    Raises `IncompatibleClient`.
    """

    class Probe(Adapter, stock):  # type: ignore[misc] # it has no types
        def __init__(self) -> None:
            stock.__init__(self, {"apiKey": "key", "secret": "c2VjcmV0", "enableRateLimit": False})

        def fetch(self, *request: Any) -> Any:
            step = cast("Any", SimpleNamespace(**_PROBE))
            with leaving.Request(self, "key", cast("Any", None), step):
                raise _Sent(*self._signed(request[-1], step))

    seen: Any
    try:
        call = Probe().privatePostBalance()
        seen = call.send(None)  # of asyncio
    except _Sent as sent:
        url, method, headers, body = sent.args
        seen = url.endswith("/0/private/Balance"), method, "API-Sign" in headers, body
    except Exception as error:  # noqa: BLE001 - whatever goes wrong, it isn't the ccxt that we know
        seen = error
    if seen != (True, "POST", True, f"nonce={_PROBE_NONCE}"):
        raise IncompatibleClient(
            f"ccxt {getattr(ccxt, '__version__', 'of unknown version')}",
            f"{stock.__module__} does not sign private calls in sign() with a nonce from nonce() and send them "
            "through fetch(); known to work: 4.4.85 to 4.5.90",
        )
