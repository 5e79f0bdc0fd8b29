"""Clients that are copied, pickled and sent to other processes, before and after they were used."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import krakenex
import pytest

import kraken_nonce_redis.ccxt
import kraken_nonce_redis.ccxt.async_support
from kraken_nonce_redis import InvalidArgument, Pace, Retries, kraken_sdk
from kraken_nonce_redis import krakenex as ours
from tests.support.order_bots import form

if TYPE_CHECKING:
    from collections.abc import Callable

    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.servers import Server

pytestmark = pytest.mark.once


class Own(krakenex.API):  # type: ignore[misc]
    """A class of a user."""

    note = ""


def our_api(sim: KrakenSimulator, **options: Any) -> Any:
    """Return a client of krakenex."""
    api = ours.API(sim.key, sim.secret, **options)
    api.uri = sim.url
    return api


def installed(sim: KrakenSimulator, **options: Any) -> Any:
    """Return a user's client that was put under the lock."""
    api = Own(sim.key, sim.secret)
    api.uri, api.note = sim.url, "mine"
    return ours.install(api, **options)


def our_sdk(sim: KrakenSimulator, **options: Any) -> Any:
    """Return a client of python-kraken-sdk."""
    return kraken_sdk.Trade(key=sim.key, secret=sim.secret, url=sim.url, **options)


def our_ccxt(sim: KrakenSimulator, **options: Any) -> Any:
    """Return a client of ccxt."""
    config = {"apiKey": sim.key, "secret": sim.secret, "urls": {"api": {"public": sim.url, "private": sim.url}}}
    return kraken_nonce_redis.ccxt.kraken(config | options)


def order(client: Any) -> Any:
    """Place an order."""
    if isinstance(client, krakenex.API):
        return client.query_private("AddOrder", form("limit"))["result"]["txid"]
    if hasattr(client, "private_post_addorder"):
        return client.private_post_addorder(form("limit"))["result"]["txid"]
    return client.create_order(
        ordertype="limit", side="buy", pair="XBTUSD", volume="0.0001", price="20000"
    )["txid"]  # fmt: skip


def by_pickle(client: Any) -> Any:
    """Copy by pickle."""
    return pickle.loads(pickle.dumps(client))


def close(client: Any) -> None:
    """Close a client's connections."""
    session = getattr(client, "session", None) or client._session
    session.close()


def order_there(client: Any) -> Any:
    """Place an order in another process, and close the client there."""
    txids = order(client)
    close(client)
    return txids, type(client).__mro__[2].__name__, getattr(client, "note", "")


CLIENTS = [our_api, installed, our_sdk, our_ccxt]


@pytest.mark.parametrize("make", CLIENTS)
@pytest.mark.parametrize("used", [False, True])
class TestCopies:
    """A client that was made with a URL."""

    @pytest.mark.parametrize("duplicate", [by_pickle, copy.deepcopy, copy.copy])
    def test_here(
        self,
        sim: KrakenSimulator,
        valkey: Server,
        make: Callable[..., Any],
        duplicate: Callable[..., Any],
        *,
        used: bool,
    ) -> None:
        """A copy works beside the original, with the same settings."""
        client = make(sim, redis=valkey.url, pace=Pace(min_interval=0.01), retries=Retries(waits=()))
        txids = order(client) if used else []
        other = duplicate(client)
        assert type(other) is type(client)
        assert other._guard._calls.retries == Retries(waits=())
        assert other._guard.lock(sim.key).pace == Pace(min_interval=0.01)
        txids = [*txids, *order(other), *order(client)]
        assert [order.txid for order in sim.orders()] == txids
        close(client)
        close(other)

    @pytest.mark.test_all
    def test_in_another_process(
        self, sim: KrakenSimulator, valkey: Server, make: Callable[..., Any], *, used: bool
    ) -> None:
        """It works in a process that is started anew."""
        client = make(sim, redis=valkey.url)
        before = order(client) if used else []
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
            txids, _, note = processes.submit(order_there, client).result(60)
        assert note == getattr(client, "note", "")
        assert [order.txid for order in sim.orders()] == [*before, *txids]
        close(client)

    def test_with_a_client_of_redis(
        self, sim: KrakenSimulator, valkey: Server, make: Callable[..., Any], *, used: bool
    ) -> None:
        """One that was made with a client object can't, and says what to do."""
        client = make(sim, redis=valkey.client())
        if used:
            order(client)
        for duplicate in (by_pickle, copy.deepcopy):
            with pytest.raises(InvalidArgument, match="URL"):
                duplicate(client)
        close(client)


def test_ccxt_for_asyncio(sim: KrakenSimulator, valkey: Server) -> None:
    """A client for asyncio can be copied as long as ccxt's can, which is before its first call."""
    client = kraken_nonce_redis.ccxt.async_support.kraken({"apiKey": sim.key, "redis": valkey.url})
    for duplicate in (by_pickle, copy.deepcopy):
        assert duplicate(client)._guard is not client._guard


def test_a_session_of_requests(sim: KrakenSimulator, valkey: Server) -> None:
    """A session that we have used can be pickled and used without us."""
    api = our_api(sim, redis=valkey.url)
    order(api)
    stock = krakenex.API(sim.key, sim.secret)
    stock.uri, stock.session = sim.url, by_pickle(api.session)
    assert stock.query_public("Time")["error"] == []
    assert {type(adapter).__module__ for adapter in stock.session.adapters.values()} == {"requests.adapters"}
    stock.close()
    api.close()
