"""What a simulated Kraken does wrong when it is told to, at which point and for which calls."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from http.client import HTTPConnection, RemoteDisconnected
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import pytest

from kraken_nonce_redis.testing import Fault, KrakenSimulator
from kraken_nonce_redis.testing._faults import FaultPlan
from kraken_nonce_redis.testing._protocol import signature

if TYPE_CHECKING:
    from kraken_nonce_redis.testing import SimulatedRequest
    from kraken_nonce_redis.testing._faults import Point

pytestmark = [pytest.mark.once, pytest.mark.simulator(seed=7)]

ORDER = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "20000", "volume": "0.001"}
POINTS: tuple[Point, ...] = ("reading", "acting", "answering")
BAD_NONCE = "EAPI:Invalid nonce"

# Signs and sends one order and prints what came back; a test kills it meanwhile.
BOT = """
import sys

import krakenex

api = krakenex.API(*sys.argv[2:])
api.uri = sys.argv[1]
api._nonce = lambda: 1
order = {"pair": "XBTUSD", "type": "buy", "ordertype": "limit", "price": "20000", "volume": "0.001"}
print(api.query_private("AddOrder", order), flush=True)
"""


class Api:
    """Signs private calls and shows what came back over the wire, whatever it was."""

    def __init__(self, sim: KrakenSimulator) -> None:
        self.sim = sim
        self.nonce = 0

    def send(
        self, method: str, nonce: int | None = None, timeout: float = 30.0, **data: str
    ) -> tuple[int, str | None, bytes]:
        """Return status, content type and body."""
        self.nonce = self.nonce + 1 if nonce is None else nonce
        path = f"/0/private/{method}"
        body = urlencode({"nonce": self.nonce, **data}).encode()
        sign = signature(base64.b64decode(self.sim.secret), path, str(self.nonce), body)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "API-Key": self.sim.key, "API-Sign": sign}
        where = urlsplit(self.sim.url)
        connection = HTTPConnection(where.hostname or "", where.port, timeout=timeout)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type"), response.read()
        finally:
            connection.close()

    def answer(self, method: str, nonce: int | None = None, **data: str) -> dict[str, Any]:
        """Return the answer of a call, which must be in Kraken's form."""
        status, _, body = self.send(method, nonce, **data)
        assert status == 200
        parsed: dict[str, Any] = json.loads(body)
        return parsed

    def error(self, method: str, nonce: int | None = None, **data: str) -> str:
        """Return the error of a call, or an empty string."""
        return "".join(self.answer(method, nonce, **data)["error"])


@pytest.fixture
def api(sim: KrakenSimulator) -> Api:
    """Return a client on it."""
    return Api(sim)


def wait_for_request(sim: KrakenSimulator, *, finished: bool) -> SimulatedRequest:
    """Return the last request as soon as there is one, and it has finished if it shall."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        log = sim.requests()
        if log and (log[-1].finished is not None or not finished):
            return log[-1]
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


class TestFault:
    """The description of a fault."""

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"what": "explode"}, "what"),
            ({"what": "600"}, "what"),
            ({"what": 502}, "what"),
            ({"what": "EService"}, "what"),
            ({"before": "sending"}, "before"),
            ({"methods": "AddOrder"}, "methods"),
            ({"methods": []}, "methods"),
            ({"calls": 3}, "calls"),
            ({"calls": []}, "calls"),
            ({"calls": [0]}, "calls"),
            ({"probability": 1.1}, "probability"),
            ({"probability": -0.1}, "probability"),
            ({"calls": [1], "probability": 0.5}, "not both"),
            ({"seconds": -1.0}, "seconds"),
            ({"seconds": float("nan")}, "seconds"),
            ({"what": "slow"}, "seconds"),
        ],
    )
    def test_senseless(self, fields: dict[str, Any], named: str) -> None:
        """A fault that makes no sense is refused when it is written down, and the message names what is wrong."""
        with pytest.raises(ValueError, match=named):
            Fault(**({"what": "cut", "before": "reading"} | fields))

    def test_name(self) -> None:
        """A fault's name says what and where."""
        assert Fault("EService:Busy", "acting", seconds=2).name == "EService:Busy before acting"


class TestPlan:
    """Which call is hit."""

    @staticmethod
    def hits(plan: FaultPlan, methods: str) -> str:
        """Return for each method, given by its first letter, which fault hit its call."""
        names = {"A": "AddOrder", "B": "Balance"}
        faults = [plan.next(names[letter]) for letter in methods]
        return "".join(fault.what[0] if fault else "-" for fault in faults)

    def test_every_call(self) -> None:
        """A fault that says nothing about it hits every call."""
        assert self.hits(FaultPlan([Fault("cut", "reading")], 0), "ABA") == "ccc"

    def test_by_number(self) -> None:
        """Numbers count the calls of the fault's own methods, from 1."""
        faults = [Fault("cut", "reading", ["AddOrder"], calls=[2, 4]), Fault("502", "acting", calls=range(1, 3))]
        assert self.hits(FaultPlan(faults, 0), "ABABBAA") == "55c---c"

    def test_first_of_the_list(self) -> None:
        """One fault hits a call at most, the first; the others count the call all the same."""
        faults = [Fault("cut", "reading", calls=[1]), Fault("502", "acting", calls=[1, 2])]
        assert self.hits(FaultPlan(faults, 0), "AAA") == "c5-"

    def test_by_probability(self) -> None:
        """A probability is about how often it happens; 0 is never and 1 always."""
        faults = [Fault("cut", "reading", probability=0.0), Fault("502", "reading", probability=0.25)]
        seen = Counter(self.hits(FaultPlan(faults, 5), "A" * 2000))
        assert seen.keys() == {"5", "-"}
        assert 420 < seen["5"] < 580

    def test_same_seed_same_faults(self) -> None:
        """The same seed brings the same faults, also after a restart; another one brings others."""
        faults = [Fault("cut", "reading", probability=0.3), Fault("502", "reading", probability=0.3)]
        plan = FaultPlan(faults, 1)
        first = self.hits(plan, "A" * 200)
        plan.restart()
        assert first == self.hits(plan, "A" * 200) == self.hits(FaultPlan(faults, 1), "A" * 200)
        assert first != self.hits(FaultPlan(faults, 2), "A" * 200)

    def test_luck_of_its_own(self) -> None:
        """Other faults and the calls of other methods don't change which call of its methods a fault hits."""
        mine = Fault("502", "reading", ["AddOrder"], probability=0.3)
        alone = self.hits(FaultPlan([Fault("cut", "reading", ["Balance"]), mine], 1), "A" * 100)
        among = self.hits(FaultPlan([Fault("cut", "acting", ["Balance"], probability=0.5), mine], 1), "AB" * 100)
        assert among[::2] == alone
        assert "5" in alone


class TestPoints:
    """How far the exchange had come: nonce used or not, carried out or not."""

    @pytest.mark.parametrize("before", POINTS)
    @pytest.mark.parametrize("what", ["cut", "502", "EService:Unavailable"])
    def test_used_and_carried_out(self, sim: KrakenSimulator, api: Api, what: str, before: Point) -> None:
        """Before reading nothing has happened, before acting the nonce is used, before answering the order is placed.

        The client sees the same at each point, except that a cut before reading is a reset.
        """
        sim.configure(faults=[Fault(what, before, methods=["AddOrder"])])
        if what == "cut":
            with pytest.raises(ConnectionResetError) as caught:
                api.send("AddOrder", nonce=5, **ORDER)
            assert isinstance(caught.value, RemoteDisconnected) == (before != "reading")
        elif what == "502":
            status, content_type, body = api.send("AddOrder", nonce=5, **ORDER)
            assert (status, content_type) == (502, "text/html; charset=utf-8")
            assert b"502 Bad Gateway" in body
        else:
            assert api.answer("AddOrder", nonce=5, **ORDER) == {"error": [what]}
        (request,) = sim.requests()
        assert (request.fault, request.nonce, request.error) == (f"{what} before {before}", 5, ())
        assert request.finished is not None
        assert len(sim.orders()) == (before == "answering")
        assert api.error("Balance", nonce=5) == ("" if before == "reading" else BAD_NONCE)
        assert sim.requests()[-1].fault == ""

    @pytest.mark.parametrize("before", POINTS)
    def test_slow(self, sim: KrakenSimulator, api: Api, before: Point) -> None:
        """A slow call is held, and then it is as if nothing had been."""
        sim.configure(faults=[Fault("slow", before, seconds=0.2)])
        began = time.monotonic()
        assert api.error("AddOrder", **ORDER) == ""
        assert time.monotonic() - began >= 0.2
        assert len(sim.orders()) == 1

    def test_held_first(self, sim: KrakenSimulator, api: Api) -> None:
        """Every fault can be held first, as a gateway does whose patience ends."""
        sim.configure(faults=[Fault("504", "acting", seconds=0.2)])
        began = time.monotonic()
        assert api.send("Balance")[0] == 504
        assert time.monotonic() - began >= 0.2

    @pytest.mark.long
    @pytest.mark.parametrize(("before", "late_nonce_error"), [("reading", BAD_NONCE), ("acting", "")])
    def test_past_the_timeout(self, sim: KrakenSimulator, api: Api, before: Point, late_nonce_error: str) -> None:
        """A held call goes on without its client. A later nonce stops it before reading, and not before acting."""
        sim.configure(faults=[Fault("slow", before, methods=["AddOrder"], seconds=2.0)])
        with pytest.raises(TimeoutError):
            api.send("AddOrder", nonce=5, timeout=0.3, **ORDER)
        assert sim.requests()[0].finished is None
        assert api.answer("OpenOrders", nonce=6) == {"error": [], "result": {"open": {}}}
        while sim.requests()[0].finished is None:
            time.sleep(0.05)
        assert "".join(sim.requests()[0].error) == late_nonce_error
        assert len(sim.orders()) == (not late_nonce_error)

    @pytest.mark.long
    @pytest.mark.parametrize("before", POINTS)
    def test_killed_meanwhile(self, sim: KrakenSimulator, before: Point) -> None:
        """A bot that is killed while its call is held has ordered: the exchange carries out what it was sent."""
        sim.configure(faults=[Fault("slow", before, methods=["AddOrder"], seconds=2.0)])
        with subprocess.Popen(
            [sys.executable, "-c", BOT, sim.url, sim.key, sim.secret],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        ) as bot:
            held = wait_for_request(sim, finished=False)
            assert (held.fault, held.finished) == (f"slow before {before}", None)
            assert len(sim.orders()) == (before == "answering")
            bot.send_signal(signal.SIGKILL)
            assert bot.communicate()[0] == b""
        assert wait_for_request(sim, finished=True).error == ()
        assert [order.nonce for order in sim.orders()] == [1]

    def test_refused_and_hit(self, sim: KrakenSimulator, api: Api) -> None:
        """A call that is refused anyway is hit as well: the client sees the fault, and the log has both."""
        assert api.error("Balance", nonce=5) == ""
        sim.configure(faults=[Fault("502", "answering")])
        assert api.send("AddOrder", nonce=5, **ORDER)[0] == 502
        request = sim.requests()[-1]
        assert (request.error, request.fault) == ((BAD_NONCE,), "502 before answering")

    @pytest.mark.parametrize("status", [200, 204, 302, 429, 503, 520, 599])
    def test_any_status(self, sim: KrakenSimulator, api: Api, status: int) -> None:
        """Every status is possible that may end a call, with a name in the standard or without."""
        sim.configure(faults=[Fault(str(status), "acting")])
        assert api.send("Balance")[0] == status

    def test_public_methods_are_spared(self, sim: KrakenSimulator) -> None:
        """Faults are for private calls alone."""
        sim.configure(faults=[Fault("502", "reading")])
        where = urlsplit(sim.url)
        connection = HTTPConnection(where.hostname or "", where.port, timeout=30)
        connection.request("GET", "/0/public/Time")
        assert connection.getresponse().status == 200
        connection.close()


class TestSetting:
    """Giving and replacing faults."""

    @pytest.mark.test_all
    def test_at_construction(self) -> None:
        """Faults given at construction are there from the first call on."""
        with KrakenSimulator(faults=[Fault("502", "acting", calls=[1])]) as sim:
            api = Api(sim)
            assert [api.send("Balance")[0] for _ in range(3)] == [502, 200, 200]

    def test_replaced(self, sim: KrakenSimulator, api: Api) -> None:
        """New faults replace the old ones and count from 1, as after a reset; other settings leave them alone."""
        sim.configure(faults=[Fault("502", "acting", calls=[2])])
        api.send("Balance")
        sim.configure(nonce_window=0)
        assert api.send("Balance")[0] == 502
        sim.configure(faults=(fault for fault in [Fault("503", "acting", calls=[2])]))
        assert [api.send("Balance")[0] for _ in range(3)] == [200, 503, 200]
        sim.reset()
        assert [api.send("Balance")[0] for _ in range(3)] == [200, 503, 200]
        sim.configure(faults=[])
        assert [api.send("Balance")[0] for _ in range(3)] == [200, 200, 200]

    @pytest.mark.test_all
    def test_started_again(self) -> None:
        """A simulator that is stopped and started again has the faults that it was given last."""
        sim = KrakenSimulator(faults=[Fault("502", "acting")])
        with sim:
            sim.configure(faults=[Fault("503", "acting")])
        with sim:
            assert Api(sim).send("Balance")[0] == 503

    def test_same_seed(self) -> None:
        """Two simulators with one seed hit the same calls, and the log tells which."""
        tables: list[list[str]] = []
        for _ in range(2):
            faults = [Fault("502", before, probability=0.3) for before in POINTS]
            with KrakenSimulator(faults=faults, seed=3) as sim:
                api = Api(sim)
                for _ in range(40):
                    api.send("Balance")
                tables.append([request.fault for request in sim.requests()])
        assert tables[0] == tables[1]
        assert set(tables[0]) == {"", *(f"502 before {before}" for before in POINTS)}

    @pytest.mark.parametrize("faults", [["cut"], [Fault("cut", "acting", methods=["AddOrders"])]])
    def test_senseless(self, sim: KrakenSimulator, api: Api, faults: Any) -> None:
        """What is no fault, or is for a method that there is not, is refused, and the old faults stay."""
        sim.configure(faults=[Fault("502", "acting")])
        with pytest.raises(ValueError, match=r"faults must be|AddOrders"):
            sim.configure(faults=faults)
        with pytest.raises(ValueError, match=r"faults must be|AddOrders"):
            KrakenSimulator(faults=faults)
        assert api.send("Balance")[0] == 502

    def test_many_calls(self, sim: KrakenSimulator, api: Api) -> None:
        """A list of calls may be long."""
        sim.configure(faults=[Fault("502", "reading", calls=range(2, 100_000))])
        assert api.error("Balance") == ""
        assert api.send("Balance")[0] == 502

    def test_reset_forgets_held_calls(self, sim: KrakenSimulator, api: Api) -> None:
        """A call that was held while everything was reset does nothing afterwards."""
        for before in ("reading", "acting"):
            sim.configure(faults=[Fault("slow", before, methods=["AddOrder"], seconds=0.5)])
            with pytest.raises(TimeoutError):
                api.send("AddOrder", nonce=5, timeout=0.2, **ORDER)
            sim.reset()
            assert api.error("Balance", nonce=1) == ""
            time.sleep(0.6)
            assert sim.orders() == []
            assert [request.in_flight for request in sim.requests()] == [1]

    @pytest.mark.test_all
    def test_stops_while_it_holds(self) -> None:
        """A simulator that holds a call for long ends all the same when it is told to."""
        with KrakenSimulator(faults=[Fault("slow", "acting", seconds=600)]) as sim:
            with pytest.raises(TimeoutError):
                Api(sim).send("Balance", timeout=0.2)
            began = time.monotonic()
        assert time.monotonic() - began < 20


class TestRaisedNonce:
    """Another program on the same key."""

    def test_raised(self, sim: KrakenSimulator, api: Api) -> None:
        """The raised nonce is the highest accepted: it and all below are refused, and it is not in the log."""
        sim.raise_nonce(10**18)
        assert [api.error("Balance", nonce=10**18 + step) for step in (-1, 0, 1)] == [BAD_NONCE, BAD_NONCE, ""]
        assert len(sim.requests()) == 3

    def test_per_key(self) -> None:
        """Only the key that was named is raised."""
        with KrakenSimulator(["alice", "bob"]) as sim:
            sim.raise_nonce(100, key=list(sim.accounts)[1])
            assert Api(sim).error("Balance", nonce=1) == ""

    @pytest.mark.parametrize("nonce", [-1, 2**64, 5, 4])
    def test_senseless(self, sim: KrakenSimulator, nonce: int) -> None:
        """It can only be raised, and within 64 bits."""
        sim.raise_nonce(5)
        with pytest.raises(ValueError, match=f"not {nonce}"):
            sim.raise_nonce(nonce)

    def test_unknown_key(self, sim: KrakenSimulator) -> None:
        """A key that the simulator does not know is refused, and not shown."""
        with pytest.raises(ValueError, match="one of the simulator's accounts") as caught:
            sim.raise_nonce(1, key="some-key")
        assert "some-key" not in str(caught.value)
