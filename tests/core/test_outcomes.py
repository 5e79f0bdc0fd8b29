"""What answers and failures say about a call, and when a call is made again: rules without I/O."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from kraken_nonce_redis import InvalidArgument, Retries
from kraken_nonce_redis._calls import outcomes
from kraken_nonce_redis._calls.call import Call, Heard
from kraken_nonce_redis._calls.outcomes import of_answer, of_failure
from kraken_nonce_redis._kraken import Outcome, Remedy

pytestmark = pytest.mark.once

NO, MAYBE, YES = Outcome.NOT_CARRIED_OUT, Outcome.UNKNOWN, Outcome.CARRIED_OUT


@pytest.mark.parametrize(
    ("error", "outcome", "remedy"),
    [
        ("EAPI:Invalid nonce", NO, Remedy.NONCE),
        ("EAPI:Invalid key", NO, Remedy.NONE),
        ("EAPI:Invalid signature", NO, Remedy.NONE),
        ("EGeneral:Permission denied", NO, Remedy.NONE),
        ("EGeneral:Temporary lockout", NO, Remedy.NONE),
        ("EGeneral:Invalid arguments:volume", NO, Remedy.NONE),
        ("EOrder:Insufficient funds", NO, Remedy.NONE),
        ("EAPI:Rate limit exceeded", NO, Remedy.LATER),
        ("EOrder:Rate limit exceeded", NO, Remedy.LATER),
        ("EService: Throttled: 1700000000", NO, Remedy.LATER),
        ("EService:Throttled", NO, Remedy.LATER),
        ("EOrder:Domain rate limit exceeded", NO, Remedy.LATER),
        ("EGeneral:Too many requests", NO, Remedy.LATER),
        ("EAuth:Too many requests", NO, Remedy.LATER),
        ("EAuth:Rate limit exceeded", NO, Remedy.LATER),
        ("EBM:limit exceeded:CAL", NO, Remedy.NONE),
        ("EService:Deadline elapsed", NO, Remedy.NONE),
        ("EService:Market in cancel_only mode", NO, Remedy.NONE),
        ("EService:Unavailable", MAYBE, Remedy.LATER),
        ("EService:Busy", MAYBE, Remedy.LATER),
        ("EService: Timeout", MAYBE, Remedy.LATER),
        ("EGeneral:Internal error", MAYBE, Remedy.LATER),
        ("EDatabase:Internal error", MAYBE, Remedy.LATER),
        ("ESomethingNew:Who knows", MAYBE, Remedy.LATER),
    ],
)
def test_errors(error: str, outcome: Outcome, remedy: Remedy) -> None:
    """Each of Kraken's errors has its meaning, however Kraken spaces it."""
    assert of_answer({"error": [error]}) == (outcome, remedy)


def test_several_errors() -> None:
    """One error that leaves the outcome open leaves it open, whatever stands beside it; warnings say nothing."""
    assert of_answer({"error": ["EAPI:Invalid nonce", "EService:Busy"]}).outcome is MAYBE
    assert of_answer({"error": ["WGeneral:Danger"], "result": {}}).outcome is YES
    assert of_answer({"error": [], "result": {}}) == (YES, Remedy.NONE)


def test_warnings() -> None:
    """An answer without an error is shown without its warnings; one that says anything else as it is."""
    result = {"txid": ["O1"]}
    assert outcomes.without_warnings({"error": ["WA:b", "WC:d"], "result": result}) == {"error": [], "result": result}
    for errors in ([], ["WA:b", "EOrder:c"], ["EOrder:c"], ["WA:b", "other"], ["WA:b", 7]):
        answer: dict[str, Any] = {"error": errors, "result": result}
        assert outcomes.without_warnings(answer) is answer
    assert outcomes.warnings_in({"error": ["WA:b", "EOrder:c", "WC:d"]}) == ("WA:b", "WC:d")


@pytest.mark.parametrize(
    ("answer", "lacks"),
    [
        ({"error": []}, True),
        ({"error": [], "result": None}, True),
        ({"error": ["WGeneral:Danger"]}, True),
        ({"error": ["EService:Busy"]}, False),
        ({"error": None}, False),
        ({"error": [], "result": {}}, False),
        ({"error": [], "result": False}, False),
        ({"error": [], "result": []}, False),
    ],
)
def test_lacks_result(answer: dict[str, Any], *, lacks: bool) -> None:
    """A result is missing only where there is neither that nor an error; an empty one is a result."""
    assert outcomes.lacks_result(answer) is lacks


def test_doubt() -> None:
    """An answer that says nothing leaves the outcome open, whatever the client made of it."""
    heard = Heard(failure=requests.ConnectTimeout(), answer={"error": []}, doubt="an answer without a result")
    assert heard.verdict.outcome is MAYBE
    assert heard.reason == "an answer without a result"


DATE = "Fri, 27 Nov 2026 16:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 7 "}, 7),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "9" * 400}, float("inf")),
        ({"Retry-After": "-7"}, None),
        ({"Retry-After": "1e3"}, None),
        ({"Retry-After": "\u0667"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Fri, 27 Nov 2026 16:00:09 GMT"}, None),
        ({"Retry-After": "Fri, 27 Nov 2026 16:00:09 GMT", "Date": "today"}, None),
        ({"Retry-After": "Fri, 27 Nov 2026 16:00:09 GMT", "Date": DATE}, 9),
        ({"Retry-After": "Fri, 27 Nov 2026 16:00:09 -0000", "Date": DATE}, 9),
        ({"Retry-After": "Fri, 27 Nov 2026 17:00:09 +0100", "Date": DATE}, 9),
        ({"Retry-After": "Fri, 27 Nov 2026 15:59:59 GMT", "Date": DATE}, 0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """A page says for how long it wants no requests in seconds, or by a date, which is compared with its own."""
    turned_away = outcomes.TurnedAway.of(429, headers)
    assert turned_away is not None
    assert turned_away.retry_after == seconds
    assert outcomes.TurnedAway.of(503, headers) is None


@given(st.text(), st.text())
def test_any_retry_after(said: str, date: str) -> None:
    """Whatever stands there, it fails nobody."""
    outcomes.TurnedAway.of(429, {"Retry-After": said, "Date": date})
    outcomes.TurnedAway.of(429, {"Retry-After": f"Fri, {said} Nov 2026 {date}", "Date": DATE})


def _caused(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    "failure",
    [
        requests.ConnectTimeout(),
        requests.ConnectionError(
            urllib3.exceptions.MaxRetryError(
                urllib3.HTTPSConnectionPool("h"), "/", urllib3.exceptions.NewConnectionError(None, "refused")
            )
        ),
        aiohttp.ClientConnectorError(None, OSError("no")),  # type: ignore[arg-type]
        _caused(RuntimeError("ccxt"), requests.ConnectTimeout()),
        _caused(RuntimeError("name"), socket.gaierror()),
        ConnectionRefusedError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_never_sent(failure: BaseException) -> None:
    """A failure from before there was a connection means that nothing was carried out, however it is wrapped."""
    assert of_failure(failure) == (NO, Remedy.LATER)


@pytest.mark.parametrize(
    "failure",
    [
        requests.ReadTimeout(),
        requests.ConnectionError("Connection aborted.", ConnectionResetError()),
        requests.HTTPError("502"),
        requests.exceptions.SSLError(),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
        TimeoutError(),
        ValueError("no JSON"),
        None,
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_maybe_sent(failure: BaseException | None) -> None:
    """After every other failure nobody knows."""
    assert of_failure(failure).outcome is MAYBE


def test_a_call_made_while_another_failure_is_handled() -> None:
    """A bot that sends an order because an earlier call found no connection: the earlier failure says nothing of it."""

    def fail(kind: type[Exception]) -> None:
        raise kind

    failure: Exception | None = None
    try:
        fail(requests.ConnectTimeout)
    except requests.ConnectTimeout:
        try:
            fail(requests.ReadTimeout)
        except requests.ReadTimeout as error:
            failure = error
    assert failure is not None
    assert isinstance(failure.__context__, requests.ConnectTimeout)
    assert of_failure(failure).outcome is MAYBE


def test_failures_in_a_circle() -> None:
    """Exceptions that refer to each other are looked at once."""
    one, other = RuntimeError(), RuntimeError()
    one.__cause__, other.__cause__ = other, one
    assert of_failure(one).outcome is MAYBE


@pytest.mark.parametrize(("method", "params", "changes"), [
    ("Balance", {}, False),
    ("AddOrder", {}, True),
    ("AddOrder", {"validate": True}, False),
    ("AddOrder", {"validate": "true"}, False),
    ("AddOrder", {"validate": "True"}, True),
    ("AddOrder", {"validate": "1"}, True),
    ("AddOrder", {"validate": 1}, True),
    ("AddOrder", {"validate": "yes"}, True),
    ("AddOrder", {"validate": False}, True),
    ("AddStrategy", {}, True),
    ("AddStrategy", {"validate": True}, False),
    ("QueryStrategies", {}, False),
    ("CancelStrategy", {}, True),
    ("Withdraw", {"validate": True}, True),
    ("Withdraw", {}, True),
    ("SomethingNew", {}, True),
])  # fmt: skip
def test_what_changes(method: str, params: dict[str, Any], *, changes: bool) -> None:
    """Reading calls are named; what we don't know counts as a change, and a validation does not."""
    assert outcomes.changes(method, params) is changes
    assert bool(Call.of("key", method, params, 1).intent) is changes


def test_validation_in_a_form() -> None:
    """Where a client writes values as Python does, a validation leaves as Kraken documents it."""
    assert Call.of("key", "AddOrder", {"validate": True}, 1, form=True).params == {"validate": "true"}
    assert Call.of("key", "AddOrder", {"validate": True}, 1).params == {"validate": True}


def test_orders_get_an_id() -> None:
    """Each order has an id to look for it by; the caller's own stays, and its parameters are not touched."""
    params = {"pair": "XBTUSD"}
    call = Call.of("key", "AddOrder", params, 1)
    assert params == {"pair": "XBTUSD"}
    assert (call.params["cl_ord_id"],) == call.cl_ord_ids
    assert Call.of("key", "AddOrder", params, 1).cl_ord_ids != call.cl_ord_ids
    assert Call.of("key", "AddOrder", {"cl_ord_id": "mine"}, 1).cl_ord_ids == ("mine",)
    batch = Call.of("key", "AddOrderBatch", {"orders": [{"cl_ord_id": "a"}, {}]}, 1)
    assert batch.cl_ord_ids == ("a", batch.params["orders"][1]["cl_ord_id"])


@pytest.mark.parametrize(("method", "params"), [
    ("AddOrder", {"userref": 5}),
    ("AddOrderBatch", {"orders": [{}, {"userref": 5}]}),
    ("AddOrderBatch", {"orders": "[...]"}),
    ("CancelOrder", {"txid": "O"}),
    ("AddStrategy", {"symbol": "BTC/USD"}),
])  # fmt: skip
def test_no_id(method: str, params: dict[str, Any]) -> None:
    """A userref excludes an id, a strategy takes none, and what is no order has none."""
    call = Call.of("key", method, params, 1)
    assert call.cl_ord_ids == ()
    assert call.params == params


class TestRetries:
    """The policy."""

    def test_waits(self) -> None:
        """The waits come in turn, a little longer at random, and end."""
        retries = Retries()
        for attempts, least in enumerate((5, 10, 20, 40), start=1):
            wait = retries.wait(attempts)
            assert wait is not None
            assert least <= wait <= least * 1.1
        assert retries.wait(5) is None
        assert Retries(waits=()).wait(1) is None

    def test_ladder(self) -> None:
        """A minute, ten minutes, then to the limit, and no further."""
        retries = Retries()
        assert [retries.lead_after(lead) for lead in (-5, 0, 20)] == [60, 60, 60]
        assert [retries.lead_after(lead) for lead in (55, 60, 320)] == [600, 600, 600]
        assert [retries.lead_after(lead) for lead in (590, 2000)] == [3600, 3600]
        assert [retries.lead_after(lead) for lead in (3580, 90_000)] == [None, None]
        assert Retries(leads=()).lead_after(0) is None

    def test_classic(self) -> None:
        """The classic policy goes 30 s at a time."""
        assert Retries.CLASSIC.lead_after(0) == 30
        assert Retries.CLASSIC.lead_after(25) == 60

    @given(st.floats(-1e6, 1e6), st.lists(st.floats(1, 1e5), unique=True, max_size=6), st.floats(0, 86_400))
    def test_raises_within_bounds(self, refused: float, leads: list[float], max_lead: float) -> None:
        """A raise goes above what was refused, and never past the limit."""
        lead = Retries(leads=tuple(sorted(leads)), max_lead=max_lead).lead_after(refused)
        assert lead is None or refused < lead <= max_lead

    @pytest.mark.parametrize("options", [
        {"waits": 5}, {"waits": (-1,)}, {"waits": ("5",)}, {"leads": (60, 30)}, {"leads": (60, 60)},
        {"settle_waits": ()}, {"settle_waits": (1000,)}, {"jitter": 2}, {"max_lead": -1},
    ])  # fmt: skip
    def test_wrong(self, options: dict[str, Any]) -> None:
        """A wrong setting names itself."""
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            Retries(**options)
