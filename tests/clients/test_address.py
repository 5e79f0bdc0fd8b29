"""Where the clients send their calls: `base_url`, their own settings, `KRAKEN_API_URL`, Kraken."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import ccxt
import krakenex
import pytest

import kraken_nonce_redis.ccxt
import kraken_nonce_redis.ccxt.async_support
import kraken_nonce_redis.ccxt.pro
from kraken_nonce_redis import InvalidArgument, _address, kraken_sdk
from kraken_nonce_redis import krakenex as ours
from kraken_nonce_redis._redis import journal
from kraken_nonce_redis._redis.keyspace import Keyspace
from kraken_nonce_redis.errors import KrakenNonceError
from tests.support.helpers import Stopwatch, run
from tests.support.order_bots import REFUSALS, AsyncCcxt, AsyncSdk, Bot, Ccxt, Krakenex, Sdk, form

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kraken_nonce_redis.testing import KrakenSimulator
    from tests.support.servers import Server

KRAKEN = "https://api.kraken.com"
NOWHERE = "http://127.0.0.1:1"
SECRET = "p4ssw0rd"

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:enable_cleanup_closed:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with an environment that says nothing, and with no place told."""
    monkeypatch.delenv("KRAKEN_API_URL", raising=False)
    _address._tell.cache_clear()
    yield
    _address._tell.cache_clear()


class OurKrakenex(Krakenex):
    """`krakenex.API` of ours; its ``uri`` is set afterwards, so that it goes before all else."""

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:
        """Return the client."""
        api = ours.API(key, secret, **options)
        api.uri = uri or api.uri
        return api

    def url(self) -> str:
        """Return where it is sent."""
        return str(self.client.uri)


class Installed(OurKrakenex):
    """A stock client that was put under the lock."""

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:
        """Return the client."""
        api = krakenex.API(key, secret)
        api.uri = uri or api.uri
        return ours.install(api, **options)


class OurCcxt(Ccxt):
    """Those of ccxt."""

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:
        """Return the client."""
        urls = {"urls": {"api": {"public": uri, "private": uri}}} if uri else {}
        return self.module.kraken({"apiKey": key, "secret": secret, "enableRateLimit": False} | urls | options)

    def url(self) -> str:
        """Return where it is sent."""
        api = self.client.urls["api"]
        assert api["public"] == api["private"]
        assert "zendesk" in api
        return str(api["private"])


class OurAsyncCcxt(OurCcxt, AsyncCcxt):
    """For asyncio."""


class OurPro(OurAsyncCcxt):
    """For websockets."""

    module = kraken_nonce_redis.ccxt.pro


class OurSdk(Sdk):
    """Those of python-kraken-sdk."""

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:
        """Return the client."""
        return self.kind(key, secret, uri, **options)

    def url(self) -> str:
        """Return where it is sent."""
        return str(self.client.URL)


class OurAsyncSdk(OurSdk, AsyncSdk):
    """For asyncio, with the URL as a keyword."""

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:
        """Return the client."""
        return self.kind(key=key, secret=secret, url=uri, **options)


class OurWebsocket(OurAsyncSdk):
    """For websockets."""

    async def make(self, uri: str, key: str, secret: str, options: dict[str, Any]) -> Any:
        """Return the client, whose third argument is another one."""
        return kraken_sdk.SpotWSClient(key, secret, print, rest_url=uri or None, **options)


KINDS = [OurKrakenex, Installed, OurCcxt, OurAsyncCcxt, OurPro, OurSdk, OurAsyncSdk, OurWebsocket]
BEFORE = [kind for kind in KINDS if kind is not OurKrakenex]
"""Those that get their own URL before ours comes."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    """Name each kind of client in turn."""
    return request.param


def assert_calls_arrive(sim: KrakenSimulator, bot: Bot) -> None:
    """Assert that private calls of a bot come to the simulator."""
    client = bot.client
    if isinstance(bot, Ccxt):
        bot.run(client.private_post_balance())
        assert bot.run(client.public_get_time())["error"] == []
    else:
        bot.balance()
    assert [request.method for request in sim.requests()] == ["Balance"]


class TestOrder:
    """What goes before what."""

    def test_base_url(self, sim: KrakenSimulator, valkey: Server, kind: Any) -> None:
        """The option says where all calls go."""
        with kind("", sim.key, sim.secret, redis=valkey.url, base_url=f" {sim.url}/ ") as bot:
            assert bot.url() == sim.url
            assert_calls_arrive(sim, bot)

    def test_environment(
        self, sim: KrakenSimulator, valkey: Server, kind: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What ``kraken-nonce check`` reads, the clients read as well."""
        monkeypatch.setenv("KRAKEN_API_URL", f"{sim.url}/")
        with kind("", sim.key, sim.secret, redis=valkey.url) as bot:
            assert bot.url() == sim.url
            assert_calls_arrive(sim, bot)

    def test_own(self, sim: KrakenSimulator, valkey: Server, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the user has told the client itself goes before the environment."""
        monkeypatch.setenv("KRAKEN_API_URL", NOWHERE)
        with kind(sim.url, sim.key, sim.secret, redis=valkey.url) as bot:
            assert bot.url() == sim.url
            assert_calls_arrive(sim, bot)

    @pytest.mark.parametrize("kind", BEFORE)
    def test_base_url_before_own(self, sim: KrakenSimulator, valkey: Server, kind: Any) -> None:
        """The option goes before all else."""
        with kind(NOWHERE, sim.key, sim.secret, redis=valkey.url, base_url=sim.url) as bot:
            assert bot.url() == sim.url

    @pytest.mark.parametrize("kind", [OurCcxt, OurPro, OurSdk, OurAsyncSdk])
    def test_own_that_is_kraken(self, sim: KrakenSimulator, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """One who has told the client to use Kraken gets Kraken."""
        monkeypatch.setenv("KRAKEN_API_URL", NOWHERE)
        with kind(KRAKEN, sim.key, sim.secret, redis="redis://localhost") as bot:
            assert bot.url() == KRAKEN

    @pytest.mark.parametrize("variable", [None, "", " "])
    def test_kraken(
        self, kind: Any, variable: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without any of these it is Kraken, which nobody needs to be told."""
        if variable is not None:
            monkeypatch.setenv("KRAKEN_API_URL", variable)
        with kind("", "key", "c2VjcmV0", redis="redis://localhost") as bot:
            assert bot.url() == KRAKEN
        assert caplog.messages == []

    def test_one_of_ccxts_urls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only what the config doesn't have comes from the environment."""
        monkeypatch.setenv("KRAKEN_API_URL", NOWHERE)
        config = {"redis": "redis://localhost", "urls": {"api": {"private": KRAKEN}}}
        exchange = kraken_nonce_redis.ccxt.kraken(config)
        assert (exchange.urls["api"]["private"], exchange.urls["api"]["public"]) == (KRAKEN, NOWHERE)
        assert config["urls"] == {"api": {"private": KRAKEN}}


class TestTelling:
    """What the log says."""

    def test_once(self, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A place that is not Kraken's is told once, however many clients there are."""
        for _ in range(3):
            kind("", "key", "c2VjcmV0", redis="redis://localhost", base_url="http://localhost:8080").close()
        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("WARNING", "Calls go to http://localhost:8080 instead of Kraken")
        ]

    def test_no_password(self, caplog: pytest.LogCaptureFixture) -> None:
        """A password in the client's own URL is not told."""
        kraken_sdk.User(url=f"http://me:{SECRET}@localhost:8080", redis="redis://localhost")
        assert caplog.messages == ["Calls go to http://localhost:8080 instead of Kraken"]

    @pytest.mark.parametrize("url", ["https://api.vip.uat.kraken.com", "https://API.KRAKEN.COM"])
    def test_other_hosts_of_kraken(self, url: str, caplog: pytest.LogCaptureFixture) -> None:
        """Kraken has more than one host."""
        kraken_sdk.User(redis="redis://localhost", base_url=url)
        assert caplog.messages == []

    @pytest.mark.parametrize("url", ["http://kraken.com.example.org", "http://notkraken.com", "http://[bad"])
    def test_hosts_that_look_like_it(self, url: str, caplog: pytest.LogCaptureFixture) -> None:
        """What only looks like one is not."""
        api = krakenex.API()
        api.uri = url
        ours.install(api, redis="redis://localhost")
        assert len(caplog.messages) == ("[" not in url)


WRONG = [
    "",
    "localhost:8080",
    "ftp://localhost",
    f"http://me:{SECRET}@localhost",
    f"https://{SECRET}@localhost",
    "http://",
    "http://localhost:99999",
    "http://localhost:0",
    "http://local host",
    "http://localhost/kraken",
    "http://localhost?a=b",
    "http://localhost#a",
    "http://local\nhost",
    5,
]


@pytest.mark.parametrize("url", WRONG)
def test_wrong(kind: Any, url: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be a URL of Kraken is refused with the name of the option, and not shown."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidArgument, match=r"^base_url: must be http://HOST") as caught:
        kind("", "key", "c2VjcmV0", redis="redis://localhost", base_url=url)
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"
    assert isinstance(caught.value, ccxt.BadRequest) is issubclass(kind, Ccxt)


def test_wrong_in_the_environment(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named as what it is; no session stays open."""
    monkeypatch.setenv("KRAKEN_API_URL", f"http://me:{SECRET}@localhost")
    with pytest.raises(InvalidArgument, match=r"^KRAKEN_API_URL: must be http://HOST") as caught:
        kind("", "key", "c2VjcmV0", redis="redis://localhost")
    assert SECRET not in repr(caught.value)


def order(bot: Bot) -> Any:
    """Place an order by its form: clients ask for the markets before their own methods."""
    if isinstance(bot, Krakenex):
        return bot.order("limit")
    if isinstance(bot, Ccxt):
        return bot.run(bot.client.private_post_addorder(form("limit")))
    return bot.run(bot.client.request("POST", "/0/private/AddOrder", form("limit")))


@pytest.mark.parametrize("kind", BEFORE)
def test_own_that_is_none(sim: KrakenSimulator, valkey: Server, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is no URL is the client's own error, for an order as well: at once, with nothing pending or told."""
    took = Stopwatch()
    with (
        kind("nonsense", sim.key, sim.secret, redis=valkey.url) as bot,
        pytest.raises((*REFUSALS, ValueError)) as caught,
    ):
        order(bot)
    assert not isinstance(caught.value, KrakenNonceError)
    assert took() < 2
    assert isinstance(caught.value, ccxt.BaseError) is issubclass(kind, Ccxt)
    assert run(valkey.client(), journal.pending(Keyspace.of("kraken-nonce", sim.key))) == ()
    assert caplog.messages == []


def test_in_a_loop(sim: KrakenSimulator, valkey: Server) -> None:
    """The mixin for asyncio takes the option, too."""

    async def call() -> Any:
        client = kraken_sdk.SpotAsyncClient(sim.key, sim.secret, redis=valkey.url, base_url=sim.url)
        try:
            return await client.request("POST", "/0/private/Balance")
        finally:
            await client.close()

    assert asyncio.run(call())
