"""The clients whose orders get lost, for `order_safety.py`: ours, ours in other people's code, and stock ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import ccxt
import krakenex
import requests
from kraken import spot

import kraken_nonce_redis.ccxt
import kraken_nonce_redis.krakenex
from kraken_nonce_redis import KrakenNonceError, kraken_sdk
from kraken_nonce_redis._calls import exchange_clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis import Retries
    from kraken_nonce_redis.testing import KrakenSimulator

RETRIES: Final = 3
LATE: Final = 0.2
"""Seconds after which a request that was lost on its way arrives."""
LATER: Final = 1.5
"""The same for orders with a name: after most looks at Kraken's lists, and before the order's deadline."""
PROOF_WAIT: Final = 0.1
"""Seconds from an order's deadline to the look that proves its absence."""
PATIENCE: Final = 60.0
"""Seconds after which no order of the clients that send one again may begin."""
ASKS: Final = 10
"""How often at most an order with a name is asked for."""


def volume_of(number: int) -> str:
    """Return a volume that no other order has."""
    return f"{0.0001 + number / 1e8:.8f}"


def form(volume: str) -> dict[str, str]:
    """Return the parameters of AddOrder."""
    return {"pair": "XBTUSD", "type": "buy", "ordertype": "market", "volume": volume}


def _txid(answer: Any) -> str:
    return "" if answer["error"] else str(answer["result"]["txid"][0])


# The clients. Each returns a function that places an order and returns Kraken's txid, or "" if it believes that nothing
# was placed.


def our_krakenex(sim: KrakenSimulator, key: str, **options: Any) -> Callable[[str], str]:
    """Make krakenex under the lock."""
    api = kraken_nonce_redis.krakenex.API(key, sim.accounts[key], **options)
    api.uri = sim.url
    return lambda volume: _txid(api.query_private("AddOrder", form(volume)))


def _ccxt_config(sim: KrakenSimulator, key: str) -> dict[str, Any]:
    urls = {"api": {"public": sim.url, "private": sim.url}}
    return {"apiKey": key, "secret": sim.accounts[key], "enableRateLimit": False, "urls": urls}


def _ccxt_order(exchange: Any) -> Callable[[str], str]:
    def order(volume: str) -> str:
        try:
            return str(exchange.create_order("BTC/USD", "market", "buy", float(volume))["id"])
        except KrakenNonceError:  # ours are ccxt's, too
            raise
        except ccxt.BaseError:
            return ""

    return order


def our_ccxt(sim: KrakenSimulator, key: str, **options: Any) -> Callable[[str], str]:
    """Make ccxt under the lock."""
    return _ccxt_order(kraken_nonce_redis.ccxt.kraken(_ccxt_config(sim, key) | options))


def _sdk_order(trade: Any) -> Callable[[str], str]:
    order = {"ordertype": "market", "side": "buy", "pair": "XBTUSD"}
    return lambda volume: str(trade.create_order(**order, volume=volume)["txid"][0])


def our_sdk(sim: KrakenSimulator, key: str, **options: Any) -> Callable[[str], str]:
    """Make python-kraken-sdk under the lock."""
    trade = kraken_sdk.Trade(key=key, secret=sim.accounts[key], url=sim.url, **options)
    return _sdk_order(trade)


# Ours in other people's code


class Persistent(krakenex.API):  # type: ignore[misc]
    """Repeats what had no answer, and gives up with None."""

    def query_private(self, *args: Any, **kwargs: Any) -> Any:
        """Make a call."""
        for _ in range(1 + RETRIES):
            try:
                return super().query_private(*args, **kwargs)
            except requests.RequestException:
                continue
        return None


class PersistentTrade(spot.Trade):
    """The same with python-kraken-sdk."""

    def request(self, *args: Any, **kwargs: Any) -> Any:
        """Make a call."""
        for _ in range(1 + RETRIES):
            try:
                return super().request(*args, **kwargs)
            except Exception:  # noqa: BLE001
                continue
        return None


class OurPersistentTrade(kraken_sdk.KrakenNonceMixin, PersistentTrade):
    """Such a class under our mixin."""


def retrying_krakenex(sim: KrakenSimulator, key: str, **options: Any) -> Callable[[str], str]:
    """Install us into a subclass of krakenex that makes a call again by itself."""
    api = Persistent(key, sim.accounts[key])
    api.uri = sim.url
    kraken_nonce_redis.krakenex.install(api, **options)
    return lambda volume: _txid(api.query_private("AddOrder", form(volume)))


def retrying_sdk(sim: KrakenSimulator, key: str, **options: Any) -> Callable[[str], str]:
    """Make python-kraken-sdk whose class makes a call again by itself."""
    trade = OurPersistentTrade(key=key, secret=sim.accounts[key], url=sim.url, **options)
    return _sdk_order(trade)


def wrapped_session(sim: KrakenSimulator, key: str, **options: Any) -> Callable[[str], str]:
    """Make krakenex whose session sends again by itself."""
    api = kraken_nonce_redis.krakenex.API(key, sim.accounts[key], **options)
    api.uri = sim.url
    post = api.session.post

    def post_again(*args: Any, **kwargs: Any) -> Any:
        for _ in range(RETRIES):
            try:
                response = post(*args, **kwargs)
            except requests.RequestException:
                continue
            if response.status_code < 500:
                return response
        return post(*args, **kwargs)

    api.session.post = post_again
    return lambda volume: _txid(api.query_private("AddOrder", form(volume)))


def resending_krakenex(sim: KrakenSimulator, key: str, retries: Retries, **options: Any) -> Callable[[str], str]:
    """Make krakenex that sends an order once more if it is proved to be absent."""
    retries = _hurried(retries)
    return our_krakenex(sim, key, retries=retries, deadline="auto", on_absent="resend", patience=PATIENCE, **options)


def naming_krakenex(sim: KrakenSimulator, key: str, retries: Retries, **options: Any) -> Callable[[str], str]:
    """Make krakenex each of whose orders has a name, which is its volume."""
    api = kraken_nonce_redis.krakenex.API(key, sim.accounts[key], retries=_hurried(retries), **options)
    api.uri = sim.url
    return lambda volume: _txid(api.query_private("AddOrder", form(volume) | {"once": volume}))


def _hurried(retries: Retries) -> Retries:
    """Let this process's deadlines be as soon as Kraken takes them, and look for proofs of absence soon after them."""
    exchange_clock._AHEAD, exchange_clock._ON_THE_WAY = 0.0, 0.3  # type: ignore[misc] # noqa: SLF001
    return replace(retries, proof_wait=PROOF_WAIT)


def stock_krakenex(sim: KrakenSimulator, key: str, call_timeout: float, **_: Any) -> Callable[[str], str]:
    """Make krakenex, in a loop."""
    api = krakenex.API(key, sim.accounts[key])
    api.uri = sim.url

    def order(volume: str) -> str:
        for _ in range(1 + RETRIES):
            try:
                answer = api.query_private("AddOrder", form(volume), timeout=call_timeout)
            except (requests.RequestException, ValueError):
                continue
            if not any(error.startswith(("EService:", "EAPI:Invalid nonce")) for error in answer["error"]):
                return _txid(answer)
        return ""

    return order


def stock_ccxt(sim: KrakenSimulator, key: str, call_timeout: float, **_: Any) -> Callable[[str], str]:
    """Make ccxt with its own retries."""
    options = {"maxRetriesOnFailure": RETRIES}
    exchange = ccxt.kraken(_ccxt_config(sim, key) | {"timeout": call_timeout * 1000, "options": options})
    return _ccxt_order(exchange)


@dataclass(frozen=True)
class Client:
    """A client, and the exchange it has.

    Attributes:
        make: makes it.
        window: the nonce window of its API key, in ns.
        late: seconds after which a request that was lost on its way arrives after all; None if it never does.
        patience: seconds after which none of its orders may begin; None if it has none.
        asks: how often at most it is asked for the same order.
        processes: number of processes that ask for the same orders.
    """

    make: Callable[..., Callable[[str], str]]
    window: int = 0
    late: float | None = None
    patience: float | None = 5.0
    asks: int = 1
    processes: int = 1


CLIENTS: Final[dict[str, Client]] = {
    "krakenex, ours": Client(our_krakenex),
    "ccxt, ours": Client(our_ccxt),
    "python-kraken-sdk, ours": Client(our_sdk),
    "krakenex, ours, in a class that retries": Client(retrying_krakenex),
    "python-kraken-sdk, ours, in a class that retries": Client(retrying_sdk),
    "krakenex, ours, with a session that retries": Client(wrapped_session),
    "krakenex, ours, lost requests arrive late": Client(our_krakenex, late=LATE),
    "krakenex, ours, the same with a nonce window of 10 s": Client(our_krakenex, window=10 * 10**9, late=LATE),
    "krakenex, ours, absent orders sent once more": Client(resending_krakenex, patience=PATIENCE),
    "krakenex, ours, once": Client(naming_krakenex, asks=ASKS),
    "krakenex, ours, once, four processes, requests arrive late": Client(
        naming_krakenex, late=LATER, asks=ASKS, processes=4
    ),
    "krakenex, stock": Client(stock_krakenex, patience=None),
    "ccxt, stock": Client(stock_ccxt, patience=None),
}
