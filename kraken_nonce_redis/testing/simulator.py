"""The handle of a simulated Kraken: it starts the process, ends it, and asks it what happened."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import secrets
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from http.client import HTTPConnection
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

from kraken_nonce_redis import _children as children

from ._faults import Fault
from ._keys import NonceWindow, decode_secret
from ._limits import Limits
from ._methods import METHODS
from ._protocol import HIGHEST_NONCE
from ._records import Settings, SimulatedOrder, SimulatedRequest, SimulatedStrategy, SimulatedWithdrawal

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ._limits import LimitSettings

_SERVER: Final = f"{__package__}._server"
_PATIENCE: Final = 30.0  # seconds for the process to answer
_KEY_BYTES, _SECRET_BYTES = 42, 64  # as long as Kraken's own


class KrakenSimulator:
    """A real HTTP server, in its own process, with the rules of Kraken's private API.

    It checks API keys, signatures and nonces as Kraken does, keeps orders and balances for each
    account, and logs every private request. Market orders fill at once at a fixed price; all
    others stay open. Give a client `url` as its address; nothing else about it has to change.

    Use it in `with`, or call `start` and `stop`. The server's process ends when the process that
    started it has ended, even if that was killed, and so have all processes forked from it. Other
    processes may use `url`, `key` and `secret`.

    Args:
        accounts: API keys with their base64 secrets, or names of accounts whose keys and secrets
            are generated (`accounts` has them in the same order). One generated account if None.
        keys: number of API keys of each account. They share its orders, balances, strategies and order limits; each
            has its own nonces and its own call counter. More than 1 only for generated keys.
        latency: least and most seconds that a request is delayed, drawn for each way: once before
            the exchange sees it, once before the client gets the answer. With a spread, requests
            overtake each other, as on a real network.
        nonce_window: how far below the highest nonce a late one is still accepted, in nonce
            ticks; 0 as in a new Kraken key.
        nonce_repeats: whether a nonce inside the window is accepted again after it was used. Kraken does not say
            whether it is.
        listing_delay: least and most seconds that a placed order takes to appear in OpenOrders, ClosedOrders
            and QueryOrders, drawn for each order, whether it is open, filled or cancelled by then. The same applies
            to strategies. Cancelling, balances and trades are not delayed.
        clock_offset: seconds by which the exchange's clock is ahead of this machine's, negative if it is behind. It
            affects deadlines, times in answers, Time and the `Date` header.
        faults: what goes wrong with private calls. At most one fault hits a call: the first in the list that
            applies.
        seed: for delays, faults and order ids. Keys are always random. Whether a fault hits the n-th call of its
            methods depends only on the seed, its place in the list, its probability and n. Calls are counted over
            all accounts in the order in which they arrive, so with several clients at once it is chance which call
            is the n-th.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        limits: rate limits, the fields of `Limits`: `tier="pro"` counts calls as Kraken does for that
            tier. All limits are off unless given.

    Raises:
        ImportError: aiohttp is not installed.
        ValueError: an account, the number of keys, a delay, the window, the clock, a fault or a limit is invalid.
    """

    def __init__(
        self,
        accounts: Mapping[str, str] | Iterable[str] | None = None,
        *,
        keys: int = 1,
        latency: tuple[float, float] = (0.0, 0.0),
        nonce_window: int = 0,
        nonce_repeats: bool = False,
        listing_delay: tuple[float, float] = (0.0, 0.0),
        clock_offset: float = 0.0,
        faults: Iterable[Fault] = (),
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        **limits: Unpack[LimitSettings],
    ) -> None:
        if importlib.util.find_spec("aiohttp") is None:
            raise ImportError(
                "KrakenSimulator needs aiohttp: pip install 'kraken-nonce-redis[testing]'",
                name="aiohttp",
            )
        self._keys = _named_keys(accounts, keys)
        self._settings = Settings(
            latency=latency,
            nonce_window=nonce_window,
            nonce_repeats=nonce_repeats,
            listing_delay=listing_delay,
            clock_offset=clock_offset,
            limits=Limits(**limits),
        )
        self._faults = _checked(faults)
        self._seed = seed
        self._host = host
        self._port = port
        self._address: tuple[str, int] | None = None
        self._process: children.Child | None = None

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(name for name, _, _ in self._keys))
        state = "stopped" if self._address is None else self.url
        return f"<{type(self).__name__} {state}, accounts: {names}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The server's address, such as `http://127.0.0.1:40123`."""
        host, port = self._running()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def accounts(self) -> Mapping[str, str]:
        """All API keys and their base64 secrets, account by account, in the order in which they were given."""
        return MappingProxyType({key: secret for _, key, secret in self._keys})

    @property
    def key(self) -> str:
        """The first account's first API key."""
        return self._keys[0][1]

    @property
    def secret(self) -> str:
        """The base64 secret of `key`."""
        return self._keys[0][2]

    def start(self) -> None:
        """Start the process; return when it accepts connections.

        Raises:
            RuntimeError: it is running already, or the process could not start; the message says why.
        """
        if self._process is not None:
            raise RuntimeError("the simulator is running already")
        self._process = children.start(_SERVER)
        try:
            self._address = self._host, self._told_to_listen(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process. Does nothing if it is not running."""
        process, self._process, self._address = self._process, None, None
        if process is None:
            return
        process.terminate()  # closing its stdin isn't enough while a forked process holds it open, too
        children.end([process])

    def wait(self) -> None:
        """Wait until the process ends, such as by a signal. Raises RuntimeError if it is not running."""
        self._running()
        if self._process is not None:
            self._process.wait()

    def requests(self) -> list[SimulatedRequest]:
        """Return the private requests since the start or the last reset, in order of arrival.

        A request arrives when the exchange sees it, after the latency of the way there.
        Requests with an unknown API key or method are included; public ones are not.
        """
        rows = self._control("GET", "requests")
        return [SimulatedRequest(**row | {"error": tuple(row["error"])}) for row in rows]

    def orders(self) -> list[SimulatedOrder]:
        """Return the orders that were placed, account by account, oldest first."""
        return [SimulatedOrder(**row) for row in self._control("GET", "orders")]

    def strategies(self) -> list[SimulatedStrategy]:
        """Return the strategies of Algo Trading that were added, account by account, oldest first."""
        return [SimulatedStrategy(**row) for row in self._control("GET", "strategies")]

    def withdrawals(self) -> list[SimulatedWithdrawal]:
        """Return the withdrawals that were carried out, account by account, oldest first."""
        return [SimulatedWithdrawal(**row) for row in self._control("GET", "withdrawals")]

    def raise_nonce(self, nonce: int, key: str | None = None) -> None:
        """Use a nonce as another program with the same API key would: it becomes the highest that the key has accepted.

        Args:
            nonce: such as `time.time_ns() + 60 * 10**9`, a minute ahead of clients that count nanoseconds.
            key: one of `accounts`; the first if None.

        Raises:
            ValueError: the nonce is not above the key's highest or is not a 64-bit number, or there is no such key.
        """
        place = self._place(key)
        if not 0 <= nonce <= HIGHEST_NONCE:
            raise ValueError(f"nonce must be an unsigned 64-bit integer, not {nonce}")
        before = self._control("POST", "raise_nonce", {"key": place, "nonce": nonce})["before"]
        if nonce <= before:
            raise ValueError(f"nonce must be above the key's highest, which is {before}, not {nonce}")

    def set_nonce_window(self, ticks: int, key: str | None = None, *, repeats: bool = False) -> None:
        """Give one API key its own nonce window, until `configure` sets one for all keys.

        Args:
            ticks: as `nonce_window`.
            key: one of `accounts`; the first if None.
            repeats: as `nonce_repeats`.

        Raises:
            ValueError: the window is below 0, or there is no such key.
        """
        window = NonceWindow(ticks, repeats)
        self._control("POST", "set_window", {"key": self._place(key), **asdict(window)})

    def configure(
        self,
        *,
        latency: tuple[float, float] | None = None,
        nonce_window: int | None = None,
        nonce_repeats: bool | None = None,
        listing_delay: tuple[float, float] | None = None,
        clock_offset: float | None = None,
        faults: Iterable[Fault] | None = None,
        **limits: Unpack[LimitSettings],
    ) -> None:
        """Change settings from now on. Settings that are not given stay the same, and so do all counters.

        Requests under way keep their latency and fault. A limit set to None is off. A nonce window applies to all API
        keys, also to those with their own window. When `clock_offset` changes, the exchange's clock jumps, and with it
        what it times, such as the decay of counters and listing delays. `faults` replaces the whole list, and `[]`
        removes all faults. Calls are then counted from 1 again, and the random draws start over.

        Raises:
            ValueError: a setting is invalid.
        """
        old = self._settings
        given = {
            "latency": latency,
            "nonce_window": nonce_window,
            "nonce_repeats": nonce_repeats,
            "listing_delay": listing_delay,
            "clock_offset": clock_offset,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        settings = replace(old, **changes, limits=replace(old.limits, **limits))
        checked = None if faults is None else _checked(faults)
        self._control(
            "POST",
            "configure",
            {
                "settings": asdict(settings),
                "faults": _rows(checked),
                "same_window": bool(changes.keys() & {"nonce_window", "nonce_repeats"}),
            },
        )
        self._settings = settings
        self._faults = self._faults if checked is None else checked

    def reset(self) -> None:
        """Forget requests, orders, balances, nonces and the use of limits. Settings stay.

        Faults stay, too, but their calls are counted from 1 again, and the random draws start over. A request that a
        fault is delaying during the reset leaves no trace.
        """
        self._control("POST", "reset")

    def _running(self) -> tuple[str, int]:
        if self._address is None:
            raise RuntimeError("the simulator is not running: use it in `with`, or call start()")
        return self._address

    def _place(self, key: str | None) -> int:
        """Return the index of an API key; of the first one if None."""
        keys = list(self.accounts)
        if key is not None and key not in keys:
            raise ValueError("key must be one of the simulator's accounts")
        return 0 if key is None else keys.index(key)

    def _told_to_listen(self, process: children.Child) -> int:
        """Tell the process what to simulate; return the port that it listens on."""
        startup = {
            "keys": self._keys,
            "settings": asdict(self._settings),
            "faults": _rows(self._faults),
            "seed": self._seed,
            "host": self._host,
            "port": self._port,
        }
        with contextlib.closing(children.said(process)) as said:
            try:
                return int(children.ask(process, startup, said)["port"])
            except RuntimeError as error:
                raise RuntimeError(f"the simulator could not start: {error}") from error

    def _control(self, verb: str, what: str, body: object = None) -> Any:
        host, port = self._running()
        connection = HTTPConnection(host, port, timeout=_PATIENCE)
        try:
            connection.request(verb, f"/simulator/{what}", json.dumps(body))
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise RuntimeError(f"the simulator failed at {what}: {answer['error']}")
        return answer


def _named_keys(accounts: Mapping[str, str] | Iterable[str] | None, number: int) -> list[tuple[str, str, str]]:
    """Return account name, key and secret of each API key; `number` is how many generated keys an account gets."""
    if isinstance(accounts, str):
        raise TypeError("accounts must be a mapping or a list of names, not a string")
    if number < 1:
        raise ValueError(f"keys must be at least 1 for each account, not {number}")
    if isinstance(accounts, Mapping):
        if number > 1:
            raise ValueError("keys must be 1 when accounts gives the API keys")
        given = cast("Mapping[str, str]", accounts)
        keys = [(f"account-{n}", *pair) for n, pair in enumerate(given.items(), start=1)]
    else:
        names = ["account-1"] if accounts is None else list(accounts)
        if len(set(names)) < len(names):
            raise ValueError("accounts must not name an account twice")
        keys = [(name, _token(_KEY_BYTES), _token(_SECRET_BYTES)) for name in names for _ in range(number)]
    if not keys:
        raise ValueError("accounts must have at least one account")
    for _, _, secret in keys:
        decode_secret(secret)
    return keys


def _checked(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Return the faults, checked for their type and for unknown methods."""
    checked = tuple(faults)
    for fault in checked:
        if not isinstance(fault, Fault):
            raise ValueError(f"faults must be a list of Fault objects, not of {fault!r}")  # noqa: TRY004 - all are
        unknown = set(fault.methods or ()) - METHODS.keys()
        if unknown:
            raise ValueError(f"a fault names the method {min(unknown)}, which the simulator does not have")
    return checked


def _rows(faults: tuple[Fault, ...] | None) -> list[dict[str, object]] | None:
    return None if faults is None else [asdict(fault) for fault in faults]


def _token(size: int) -> str:
    return b64encode(secrets.token_bytes(size)).decode()
