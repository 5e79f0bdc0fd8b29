"""The handle on a simulated Kraken: starts its process, ends it, and asks it what happened."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from http.client import HTTPConnection
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

from ._exchange import PRIVATE_METHODS, decode_secret
from ._faults import Fault
from ._limits import Limits
from ._protocol import HIGHEST_NONCE
from ._records import Settings, SimulatedOrder, SimulatedRequest, SimulatedWithdrawal

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ._limits import LimitSettings

_SERVER: Final = f"{__package__}._server"
_PATIENCE: Final = 30.0  # seconds for the process to answer or to end
_KEY_BYTES, _SECRET_BYTES = 42, 64  # as long as Kraken's own


class KrakenSimulator:
    """A real HTTP server, in a process of its own, with the rules of Kraken's private API.

    It checks API keys, signatures and nonces as Kraken does, keeps orders and balances for each
    account, and logs every private request. Market orders fill at once at a fixed price, all
    others stay open. Give a client `url` as its address; nothing else about it has to change.

    Use it in `with`, or call `start` and `stop`. The process ends with the one that started it
    (and those forked from that), even if it is killed. Other processes may use `url`, `key` and
    `secret` as they like.

    Args:
        accounts: API keys with their base64 secrets, or names of accounts for which pairs are
            generated (`accounts` has them in the same order). One generated account if None.
        latency: least and most seconds that a request is delayed, drawn anew for each way: once
            before the exchange sees it, once before the client gets the answer. A spread lets
            requests overtake each other, as on a real network.
        nonce_window: how far below the highest nonce a late one is still accepted, in nonce
            ticks; 0 as in a new Kraken key.
        listing_delay: least and most seconds that a placed order takes to appear in OpenOrders, ClosedOrders
            and QueryOrders, drawn anew for each order. Cancelling it, balances and trades don't wait for that.
        faults: what goes wrong with private calls. A call is hit by one fault at most, the first of the list that
            hits it.
        seed: of the delays, of the faults and of the ids of orders. Keys are random in any case. Whether a fault
            hits the n-th call of its methods depends on the seed, its place in the list, its probability and n
            alone. Which call is the n-th is for the clients to say: calls are counted over all accounts as they
            come in, so with several clients at once it is luck.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        limits: how many calls and changes of orders it takes, as in `Limits`: `tier="pro"` counts calls
            as Kraken does for that tier. All of them are off unless given.

    Raises:
        ImportError: aiohttp is not installed.
        ValueError: an account, a delay, the window, a fault or a limit makes no sense.
    """

    def __init__(
        self,
        accounts: Mapping[str, str] | Iterable[str] | None = None,
        *,
        latency: tuple[float, float] = (0.0, 0.0),
        nonce_window: int = 0,
        listing_delay: tuple[float, float] = (0.0, 0.0),
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
        self._accounts = _named_pairs(accounts)
        self._settings = Settings(
            latency=latency, nonce_window=nonce_window, listing_delay=listing_delay, limits=Limits(**limits)
        )
        self._faults = _checked(faults)
        self._seed = seed
        self._host = host
        self._port = port
        self._address: tuple[str, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        names = ", ".join(name for name, _, _ in self._accounts)
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
        """API keys and their base64 secrets, in the order in which they were given."""
        return MappingProxyType({key: secret for _, key, secret in self._accounts})

    @property
    def key(self) -> str:
        """The first account's API key."""
        return self._accounts[0][1]

    @property
    def secret(self) -> str:
        """The first account's base64 secret."""
        return self._accounts[0][2]

    def start(self) -> None:
        """Start the process; return when it accepts connections.

        Raises:
            RuntimeError: it runs already, or the process could not start; the message says why.
        """
        if self._process is not None:
            raise RuntimeError("the simulator is running already")
        process = subprocess.Popen(  # noqa: S603 - our own module, run by this very interpreter
            [sys.executable, "-P", "-m", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            process_group=0,  # Ctrl-C is for the program under test; we end when it does
        )
        self._process = process
        try:
            self._address = self._host, self._shake_hands(process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process. Does nothing if it does not run."""
        process, self._process, self._address = self._process, None, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def requests(self) -> list[SimulatedRequest]:
        """Return the private requests since the start or the last reset, in order of arrival.

        Arrival is the moment when the exchange saw them, after the latency of the way there.
        Requests with an unknown API key or method are among them; public ones are not.
        """
        rows = self._control("GET", "requests")
        return [SimulatedRequest(**row | {"error": tuple(row["error"])}) for row in rows]

    def orders(self) -> list[SimulatedOrder]:
        """Return the orders that were placed, account by account, oldest first."""
        return [SimulatedOrder(**row) for row in self._control("GET", "orders")]

    def withdrawals(self) -> list[SimulatedWithdrawal]:
        """Return the withdrawals that were carried out, account by account, oldest first."""
        return [SimulatedWithdrawal(**row) for row in self._control("GET", "withdrawals")]

    def raise_nonce(self, nonce: int, key: str | None = None) -> None:
        """Use a nonce as another program on the same API key would: it becomes the key's highest accepted one.

        Args:
            nonce: such as `time.time_ns() + 60 * 10**9`, a minute ahead of clients that count nanoseconds.
            key: one of `accounts`; the first if None.

        Raises:
            ValueError: it is not above the key's highest nonce or no 64-bit number, or there is no such key.
        """
        names = {key: name for name, key, _ in self._accounts}
        key = self.key if key is None else key
        if key not in names:
            raise ValueError("key must be one of the simulator's accounts")
        if not 0 <= nonce <= HIGHEST_NONCE:
            raise ValueError(f"nonce must be an unsigned 64-bit integer, not {nonce}")
        before = self._control("POST", "raise_nonce", {"account": names[key], "nonce": nonce})["before"]
        if nonce <= before:
            raise ValueError(f"nonce must be above the key's highest, which is {before}, not {nonce}")

    def configure(
        self,
        *,
        latency: tuple[float, float] | None = None,
        nonce_window: int | None = None,
        listing_delay: tuple[float, float] | None = None,
        faults: Iterable[Fault] | None = None,
        **limits: Unpack[LimitSettings],
    ) -> None:
        """Change settings from now on; what is not given stays as it is, and so does what was counted.

        Requests that are under way keep the latency and the fault that they were given. A limit set to None is off.
        `faults` replaces the whole list, `[]` ends them; their calls are counted from 1 again, and the dice begin anew.

        Raises:
            ValueError: a setting makes no sense.
        """
        old = self._settings
        settings = Settings(
            latency=old.latency if latency is None else latency,
            nonce_window=old.nonce_window if nonce_window is None else nonce_window,
            listing_delay=old.listing_delay if listing_delay is None else listing_delay,
            limits=replace(old.limits, **limits),
        )
        checked = None if faults is None else _checked(faults)
        self._control("POST", "configure", {"settings": asdict(settings), "faults": _rows(checked)})
        self._settings = settings
        self._faults = self._faults if checked is None else checked

    def reset(self) -> None:
        """Forget requests, orders, balances, nonces and what was used up of the limits; settings stay.

        Faults stay, too; their calls are counted from 1 again, and the dice begin anew. A request that a fault holds
        meanwhile leaves no trace afterwards.
        """
        self._control("POST", "reset")

    def _running(self) -> tuple[str, int]:
        if self._address is None:
            raise RuntimeError("the simulator does not run: use it in `with`, or call start()")
        return self._address

    def _shake_hands(self, process: subprocess.Popen[bytes]) -> int:
        """Tell the process what to be; return the port that it listens on."""
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        startup = {
            "accounts": self._accounts,
            "settings": asdict(self._settings),
            "faults": _rows(self._faults),
            "seed": self._seed,
            "host": self._host,
            "port": self._port,
        }
        with contextlib.suppress(BrokenPipeError):  # it says why on its error output
            process.stdin.write(json.dumps(startup).encode() + b"\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the simulator's process ended at once; see its error output")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise RuntimeError(f"the simulator {said['error']}")
        return int(said["port"])

    def _control(self, verb: str, what: str, body: object = None) -> Any:
        host, port = self._running()
        connection = HTTPConnection(host, port, timeout=_PATIENCE)
        try:
            connection.request(verb, f"/simulator/{what}", json.dumps(body))
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "error" in answer:
            raise RuntimeError(f"the simulator could not do {what}: {answer['error']}")
        return answer


def _named_pairs(accounts: Mapping[str, str] | Iterable[str] | None) -> list[tuple[str, str, str]]:
    """Return name, API key and secret of each account."""
    if isinstance(accounts, str):
        raise TypeError("accounts must be a mapping or a list of names, not one string")
    if isinstance(accounts, Mapping):
        given = cast("Mapping[str, str]", accounts)
        pairs = [(f"account-{n}", *pair) for n, pair in enumerate(given.items(), start=1)]
    else:
        names = ["account-1"] if accounts is None else list(accounts)
        pairs = [(name, _token(_KEY_BYTES), _token(_SECRET_BYTES)) for name in names]
    if not pairs:
        raise ValueError("accounts must hold at least one account")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("accounts must not name an account twice")
    for _, _, secret in pairs:
        decode_secret(secret)
    return pairs


def _checked(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Return the faults if they are some, for methods that there are."""
    checked = tuple(faults)
    for fault in checked:
        if not isinstance(fault, Fault):
            raise ValueError(f"faults must be a list of Fault objects, not of {fault!r}")  # noqa: TRY004 - all are
        unknown = set(fault.methods or ()) - PRIVATE_METHODS
        if unknown:
            raise ValueError(f"the simulator has no method {min(unknown)} that a fault could hit")
    return checked


def _rows(faults: tuple[Fault, ...] | None) -> list[dict[str, object]] | None:
    return None if faults is None else [asdict(fault) for fault in faults]


def _token(size: int) -> str:
    return b64encode(secrets.token_bytes(size)).decode()
