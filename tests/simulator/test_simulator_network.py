"""What lies between a client and the simulated exchange: late requests, pages, proxies, connections, clocks."""

from __future__ import annotations

import base64
import json
import time
from contextlib import closing
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPResponse, RemoteDisconnected
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlencode, urlsplit

import pytest

from kraken_nonce_redis.testing import Fault, KrakenSimulator
from kraken_nonce_redis.testing._faults import FaultPlan, Point
from kraken_nonce_redis.testing._protocol import signature

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kraken_nonce_redis.testing import SimulatedRequest

pytestmark = pytest.mark.once

ORDER = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "20000", "volume": "0.001"}
POINTS: tuple[Point, ...] = get_args(Point)
BAD_NONCE = "EAPI:Invalid nonce"
LIMITS = (
    "EGeneral:Too many requests",
    "EAuth:Too many requests",
    "EAuth:Rate limit exceeded",
    "EBM:limit exceeded:CAL",
    "EOrder:Domain rate limit exceeded",
    "EService: Throttled: 1790000000",
)


class Api:
    """Signs private calls and sends them over one connection, which it keeps alive."""

    def __init__(self, sim: KrakenSimulator) -> None:
        self.sim = sim
        self.where = urlsplit(sim.url)
        self.connection = HTTPConnection(self.where.hostname or "", self.where.port, timeout=30)
        self.nonce = 0

    def send(self, method: str, nonce: int | None = None, **data: str) -> tuple[HTTPResponse, bytes]:
        """Return the response and its body."""
        self.nonce = self.nonce + 1 if nonce is None else nonce
        path = f"/0/private/{method}"
        body = urlencode({"nonce": self.nonce, **data}).encode()
        sign = signature(base64.b64decode(self.sim.secret), path, str(self.nonce), body)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "API-Key": self.sim.key, "API-Sign": sign}
        try:
            self.connection.request("POST", path, body, headers)
            response = self.connection.getresponse()
            return response, response.read()
        except OSError:
            self.connection.close()  # the next call opens a new one
            raise

    def answer(self, method: str, nonce: int | None = None, **data: str) -> dict[str, Any]:
        """Return the answer of a call in Kraken's form."""
        response, body = self.send(method, nonce, **data)
        assert response.status == 200
        answer: dict[str, Any] = json.loads(body)
        return answer

    def error(self, method: str, nonce: int | None = None, **data: str) -> str:
        """Return the error of a call, or an empty string."""
        return "".join(self.answer(method, nonce, **data)["error"])


@pytest.fixture(scope="module")
def shared_sim() -> Iterator[KrakenSimulator]:
    """One process for all tests that leave the constructor's arguments alone."""
    with KrakenSimulator() as sim:
        yield sim


@pytest.fixture
def sim(shared_sim: KrakenSimulator) -> KrakenSimulator:
    """Return a simulator as good as new."""
    shared_sim.configure(faults=[], nonce_window=0, nonce_repeats=False, clock_offset=0.0)
    shared_sim.reset()
    return shared_sim


@pytest.fixture
def api(sim: KrakenSimulator) -> Iterator[Api]:
    """Yield a client on it."""
    api = Api(sim)
    with closing(api.connection):
        yield api


def decided(sim: KrakenSimulator, place: int = 0) -> SimulatedRequest:
    """Return a request of the log as soon as the exchange has carried it out or refused it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        request = sim.requests()[place]
        if request.decided is not None:
            return request
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def ends(api: Api, fault: Fault) -> None:
    """Send an order that a fault ends with a closed connection."""
    api.sim.configure(faults=[fault])
    with pytest.raises(ConnectionResetError):
        api.send("AddOrder", nonce=5, **ORDER)


class TestLate:
    """Requests that arrive after their client was told something else."""

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("before", "window", "fence", "error"),
        [
            ("reading", 0, None, ""),
            ("reading", 0, 6, BAD_NONCE),
            ("reading", 10, 6, ""),
            ("reading", 10, 16, BAD_NONCE),
            ("acting", 0, 6, ""),
        ],
    )
    def test_arrives(self, sim: KrakenSimulator, api: Api, before: Point, window: int, fence: int, error: str) -> None:
        """The client sees a cut at once. Later the order is placed, unless its nonce is dead by then."""
        sim.configure(nonce_window=window)
        ends(api, Fault("cut", before, methods=["AddOrder"], late=1.5))
        assert sim.requests()[0].decided is None
        assert sim.orders() == []
        if fence is not None:
            assert api.error("Balance", nonce=fence) == ""
        request = decided(sim)
        assert (request.fault, request.error) == (f"cut before {before}, late", (error,) if error else ())
        assert [order.nonce for order in sim.orders()] == ([] if error else [5])
        assert sim.orders() == [] or sim.orders()[0].opened == request.decided

    def test_after_a_page(self, sim: KrakenSimulator, api: Api) -> None:
        """A gateway has lost its patience, and the exchange carries the order out afterwards."""
        sim.configure(faults=[Fault("524", "reading", methods=["AddOrder"], late=0.2)])
        assert api.send("AddOrder", **ORDER)[0].status == 524
        assert sim.requests()[0].finished is not None
        assert decided(sim).error == ()
        assert len(sim.orders()) == 1

    def test_not_in_flight(self, sim: KrakenSimulator, api: Api) -> None:
        """A late request is not under way for the client that goes on meanwhile."""
        ends(api, Fault("cut", "reading", methods=["AddOrder"], late=0.2))
        api.error("Balance")
        assert [request.in_flight for request in sim.requests()] == [1, 1]

    def test_past_its_deadline(self, sim: KrakenSimulator, api: Api) -> None:
        """An order that arrives after its deadline is not placed."""
        deadline = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 30))
        sim.configure(faults=[Fault("cut", "acting", methods=["AddOrder"], late=0.3)])
        with pytest.raises(ConnectionResetError):
            api.send("AddOrder", deadline=deadline, **ORDER)
        sim.configure(clock_offset=31.0)
        assert decided(sim).error == ("EService:Deadline elapsed",)
        assert sim.orders() == []

    @pytest.mark.parametrize("before", ["reading", "acting"])
    def test_reset_forgets_it(self, sim: KrakenSimulator, api: Api, before: Point) -> None:
        """What was on its way before a reset does nothing afterwards."""
        ends(api, Fault("cut", before, methods=["AddOrder"], late=0.2))
        sim.reset()
        time.sleep(0.3)
        assert (sim.orders(), sim.requests()) == ([], [])

    @pytest.mark.parametrize(
        "fields",
        [
            {"late": -1.0},
            {"late": float("inf")},
            {"late": 1.0, "before": "answering"},
            {"late": 1.0, "what": "slow", "seconds": 1.0},
        ],
    )
    def test_senseless(self, fields: dict[str, Any]) -> None:
        """A call can't arrive late that was carried out before, or whose client still waits."""
        with pytest.raises(ValueError, match="late"):
            Fault(**({"what": "cut", "before": "reading"} | fields))


class TestPages:
    """Answers that are not Kraken's."""

    @pytest.mark.parametrize("code", [429, *range(520, 528), 1015])
    def test_cloudflare(self, sim: KrakenSimulator, api: Api, code: int) -> None:
        """Cloudflare's pages say who made them; 1015 is a number of its own for too many requests."""
        sim.configure(faults=[Fault(str(code), "reading")])
        response, body = api.send("Balance")
        assert response.status == (429 if code == 1015 else code)
        assert (response.getheader("Server"), response.getheader("Retry-After")) == ("cloudflare", None)
        assert response.getheader("Content-Type") == "text/html; charset=utf-8"
        assert f"Error {code}" in body.decode()

    @pytest.mark.parametrize("when", ["5", "Fri, 27 Nov 2026 01:34:48 GMT"])
    def test_retry_after(self, sim: KrakenSimulator, api: Api, when: str) -> None:
        """A page can say when to come back, in either form."""
        sim.configure(faults=[Fault("429", "reading", headers={"Retry-After": when})])
        assert api.send("Balance")[0].getheader("Retry-After") == when

    @pytest.mark.parametrize("status", ["301", "302", "307", "308"])
    def test_redirect(self, sim: KrakenSimulator, api: Api, status: str) -> None:
        """A redirect leads to where the call was sent, or to where it is told to."""
        sim.configure(
            faults=[Fault(status, "reading", calls=[1]), Fault(status, "reading", headers={"Location": "/x"})]
        )
        assert api.send("AddOrder", **ORDER)[0].getheader("Location") == "/0/private/AddOrder"
        assert api.send("AddOrder", **ORDER)[0].getheader("Location") == "/x"
        assert sim.orders() == []

    @pytest.mark.parametrize(("status", "placed"), [("302", 1), ("307", 1)])
    def test_followed(self, sim: KrakenSimulator, status: str, placed: int) -> None:
        """Stock krakenex follows: with a 307 the same bytes go out again, with a 302 they don't."""
        krakenex = pytest.importorskip("krakenex")
        sim.configure(faults=[Fault(status, "answering", calls=[1])])
        with closing(krakenex.API(sim.key, sim.secret)) as api:
            api.uri = sim.url
            answer = api.query_private("AddOrder", dict(ORDER))
        assert answer["error"] == [{"302": "EGeneral:Unknown method", "307": BAD_NONCE}[status]]
        assert len(sim.orders()) == placed

    def test_proxy(self, sim: KrakenSimulator, api: Api) -> None:
        """A proxy that wants a password: in the way of a call, or as the client's HTTPS proxy."""
        sim.configure(faults=[Fault("407", "reading")])
        response, _ = api.send("Balance")
        assert (response.status, response.getheader("Proxy-Authenticate")) == (407, 'Basic realm="proxy"')
        tunnel = HTTPConnection(api.where.hostname or "", api.where.port, timeout=30)
        tunnel.set_tunnel("api.kraken.com", 443)
        with closing(tunnel), pytest.raises(OSError, match="407 Proxy Authentication Required"):
            tunnel.request("GET", "/0/public/Time")

    def test_headers_are_for_pages(self) -> None:
        """Only a page has headers to choose."""
        with pytest.raises(ValueError, match="headers"):
            Fault("cut", "reading", headers={"Retry-After": "5"})


class TestConnections:
    """Connections that are closed under a call."""

    @pytest.mark.parametrize("before", POINTS)
    @pytest.mark.parametrize("what", ["close", "reset"])
    def test_closed(self, sim: KrakenSimulator, api: Api, what: str, before: Point) -> None:
        """With a reset or without one, however far the exchange had come: the client can't conclude from it."""
        sim.configure(faults=[Fault(what, before, methods=["AddOrder"])])
        with pytest.raises(ConnectionResetError) as caught:
            api.send("AddOrder", nonce=5, **ORDER)
        assert isinstance(caught.value, RemoteDisconnected) == (what == "close")
        assert len(sim.orders()) == (before == "answering")
        assert api.error("Balance", nonce=5) == ("" if before == "reading" else BAD_NONCE)

    def test_kept_alive(self, sim: KrakenSimulator, api: Api) -> None:
        """The first call on a connection is spared, the next one hit, and the first on a new connection spared."""
        sim.configure(faults=[Fault("close", "reading", reused=True)])
        assert api.error("Balance") == ""
        with pytest.raises(RemoteDisconnected):
            api.send("AddOrder", **ORDER)
        assert api.error("AddOrder", **ORDER) == ""
        assert [request.fault for request in sim.requests()] == ["", "close before reading", ""]

    def test_kept_alive_since_a_public_call(self, sim: KrakenSimulator, api: Api) -> None:
        """A public call uses a connection as well."""
        sim.configure(faults=[Fault("close", "reading", reused=True)])
        api.connection.request("GET", "/0/public/Time")
        api.connection.getresponse().read()
        with pytest.raises(RemoteDisconnected):
            api.send("Balance")

    def test_counts_reused_ones(self) -> None:
        """A fault for connections in use counts the calls on those."""
        plan = FaultPlan([Fault("close", "reading", reused=True, calls=[2])], 0)
        hits = [plan.next("Balance", reused=reused) is not None for reused in (True, False, True, True)]
        assert hits == [False, False, True, False]


class TestAnswers:
    """Answers in Kraken's form that are not what a client expects."""

    @pytest.mark.parametrize("warning", ["WGeneral:Deprecated", "WDatabase: Slow"])
    def test_warning(self, sim: KrakenSimulator, api: Api, warning: str) -> None:
        """A warning stands beside the result; beside an error, before it."""
        sim.configure(faults=[Fault(warning, "answering")])
        answer = api.answer("AddOrder", nonce=5, **ORDER)
        assert answer["error"] == [warning]
        assert answer["result"]["txid"] == [order.txid for order in sim.orders()]
        assert api.answer("AddOrder", nonce=5, **ORDER) == {"error": [warning, BAD_NONCE]}

    @pytest.mark.parametrize(
        ("what", "expected"), [("null result", {"error": [], "result": None}), ("no result", {"error": []})]
    )
    @pytest.mark.parametrize("before", POINTS)
    def test_without_result(
        self, sim: KrakenSimulator, api: Api, what: str, before: Point, expected: Mapping[str, object]
    ) -> None:
        """An answer has neither an error nor a result, whether the order was placed or not."""
        sim.configure(faults=[Fault(what, before)])
        assert api.answer("AddOrder", **ORDER) == expected
        assert len(sim.orders()) == (before == "answering")

    @pytest.mark.parametrize("before", ["reading", "acting"])
    def test_warning_comes_with_the_answer(self, before: Point) -> None:
        """A warning alone, without what the exchange did, is none."""
        with pytest.raises(ValueError, match="before"):
            Fault("WGeneral:Deprecated", before)

    @pytest.mark.parametrize("limit", LIMITS)
    def test_limits(self, limit: str) -> None:
        """Every limit that Kraken is known to name can be a fault, and comes as it is written."""
        assert Fault(limit, "reading").answer(None, 5.0) == {"error": [limit]}

    def test_seconds_ahead(self) -> None:
        """A time to come is counted from the exchange's clock."""
        for what, said in (("EService:Throttled: +60", "EService:Throttled: 66"), ("EGeneral:a+b", "EGeneral:a+b")):
            assert Fault(what, "reading").answer(None, 5.5) == {"error": [said]}


class TestClock:
    """The exchange's own clock."""

    def test_set_off(self, sim: KrakenSimulator, api: Api) -> None:
        """Time, times in answers, deadlines and the Date of answers go by it; a gateway's page does not."""
        sim.configure(clock_offset=-7200.0)
        there = time.time() - 7200

        def date(response: HTTPResponse) -> float:
            return parsedate_to_datetime(response.getheader("Date") or "").timestamp()

        response, _ = api.send("OpenOrders")
        assert date(response) == pytest.approx(there, abs=5)
        api.connection.request("GET", "/0/public/Time")
        response = api.connection.getresponse()
        assert json.loads(response.read())["result"]["unixtime"] == pytest.approx(there, abs=5)
        assert date(response) == pytest.approx(there, abs=5)
        deadline = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(there + 30))
        assert api.error("AddOrder", deadline=deadline, **ORDER) == ""
        assert sim.orders()[0].opened == pytest.approx(there, abs=5)
        faults = [Fault("EService:Throttled: +60", "reading", calls=[1]), Fault("429", "reading")]
        sim.configure(faults=faults)
        assert int(api.error("Balance").rpartition(" ")[2]) == pytest.approx(there + 60, abs=6)
        assert date(api.send("Balance")[0]) == pytest.approx(there + 7200, abs=5)

    def test_senseless(self, sim: KrakenSimulator) -> None:
        """An offset is a number."""
        with pytest.raises(ValueError, match="clock_offset"):
            sim.configure(clock_offset=float("nan"))
