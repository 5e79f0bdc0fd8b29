"""Whether a request may leave, and what came of the one that did: one rule for all clients. No I/O.

The code of other people lies between a step of a call and the wire: a subclass that repeats what failed, a session that
is wrapped, a nonce of its own. So the last look is at the bytes, where each client's transport is about to send them:
they must have the nonce of a step that is under way, and no request with that nonce may have begun to leave before.
"""

from __future__ import annotations

import contextlib
import functools
import json
from contextvars import ContextVar
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast
from urllib.parse import parse_qsl

from kraken_nonce_redis._calls import outcomes
from kraken_nonce_redis._calls.call import Heard
from kraken_nonce_redis._core.lease import logger
from kraken_nonce_redis._kraken import Outcome
from kraken_nonce_redis.errors import IncompatibleClient

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from kraken_nonce_redis._calls.call import Call
    from kraken_nonce_redis._core.steps import Send

_under_way: Final[dict[tuple[str, str], Request]] = {}
"""The requests of all steps under way, by API key and nonce. Not by thread or task: a wrapper may use others."""
_keys: Final[set[str]] = set()
"""The API keys that this process has made calls with."""
_current: Final[ContextVar[Request | None]] = ContextVar("kraken_nonce_request", default=None)

_FOREIGN: Final = (
    "its request is signed with a nonce that is not of a call under way. Nothing was sent. Leave nonces to us: remove "
    "a nonce from its settings, and methods such as _nonce, get_nonce and incrementing_nonce from your subclass; and "
    "make private calls by the client's own methods only"
)
_AGAIN: Final = (
    "it would send a request again, which could place an order twice. It was sent once, and what came of that counts. "
    "Leave repeating to retries"
)
_OTHER_ORDER: Final = (
    "its request has another cl_ord_id than the call, so that an order without an answer could not be found. Nothing "
    "was sent. Give the cl_ord_id with the call's parameters"
)


class Request:
    """The request of one step, while the step lasts.

    Attributes:
        step: the step.
        entered: whether it was handed to the client's code that sends; before that, nothing can have been sent.
        answer: Kraken's answer to it, decoded from JSON, with its warnings; None while there is none.
    """

    def __init__(self, client: object, api_key: str, call: Call, step: Send) -> None:
        self.step: Final = step
        self.entered = False
        self.answer: Mapping[str, Any] | None = None
        self._client = type(client).__qualname__
        self._call = call
        self._place = api_key, str(step.nonce)
        self._failure: Exception | None = None
        self._date: float | None = None
        self._turned_away: outcomes.TurnedAway | None = None
        self._refusal: Exception | None = None
        self._again = False
        self._seen = False  # by a transport that is looked at, so that its answer is, too
        self._turn = Lock()  # a wrapper may send from several threads at a time

    def __enter__(self) -> Self:
        _keys.add(self._place[0])
        _under_way[self._place] = self
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
        _under_way.pop(self._place, None)

    @property
    def left(self) -> bool:
        """Whether it has begun to leave."""
        return self.step.left

    @left.setter
    def left(self, left: bool) -> None:
        self.step.left = left

    def leave(self, fields: Mapping[str, Any], seconds: float | None = None, *, seen: bool = False) -> None:
        """Begin to send it, with these parameters in its body; to be called last before.

        Raises `IncompatibleClient` for a second time, and for another ``cl_ord_id``; `LeaseLost` if the answer might
        come after the lease; `HoldTimeout` when it is too late.

        Args:
            fields: the parameters.
            seconds: as in `Send.check`.
            seen: whether the transport is looked at from inside, when it has a connection. That may follow for a
                request that another transport has begun to send before.
        """
        with self._turn:
            self._check_or_refuse(fields, seconds, allowed=not (self._seen if seen else self.left))
            self.left = True
            self._seen = self._seen or seen

    def _check_or_refuse(self, fields: Mapping[str, Any], seconds: float | None = None, *, allowed: bool) -> None:
        if not allowed:
            self._refuse_again()
        try:
            self._check(fields, seconds)
        except Exception as error:
            self._refusal = error
            raise

    def _check(self, fields: Mapping[str, Any], seconds: float | None) -> None:
        cl_ord_id = self.step.params.get("cl_ord_id")
        if isinstance(cl_ord_id, str) and str(fields.get("cl_ord_id")) != cl_ord_id:
            raise IncompatibleClient(self._client, _OTHER_ORDER)
        self.step.check(seconds)

    @contextlib.contextmanager
    def connecting(self, fields: Mapping[str, Any]) -> Generator[None]:
        """Look for a connection and send it inside of this block, by a transport that is looked at from inside.

        The block may be nested: a transport that got no connection may try again. Raises as `leave`, before there is
        a connection.
        """
        with self._turn:
            self._check_or_refuse(fields, allowed=not self._seen)
        try:
            yield
        except Exception as error:
            if outcomes.of_failure(error).outcome is Outcome.NOT_CARRIED_OUT:
                self.left = self._seen
            raise

    def refuse_foreign(self) -> NoReturn:
        """Say that the client would send something else instead of it. Raises `IncompatibleClient`."""
        if self.left:
            self._refuse_again()
        self._refusal = IncompatibleClient(self._client, _FOREIGN)
        raise self._refusal

    def _refuse_again(self) -> NoReturn:
        self._again = True
        logger.warning("%s: %s (nonce %d) was not sent again", self._client, self.step.method, self.step.nonce)
        error = IncompatibleClient(self._client, _AGAIN)
        error.carried_out = None if self._call.changes else False  # by the first one
        raise error

    def hear(self, answer: Mapping[str, Any] | None) -> None:
        """Take note of Kraken's answer, as the transport or the client's own code has it; None if there was none."""
        if answer is not None:
            self.answer = self.answer or answer

    def hear_status(self, status: int, headers: Mapping[str, str]) -> None:
        """Take note of the status and the headers that came back, as the client's transport has them."""
        self._turned_away = self._turned_away or outcomes.TurnedAway.of(status, headers)
        self._date = outcomes.seconds_at(headers.get("Date", ""))

    def hear_body(self, content: bytes) -> bytes:
        """Take note of what came back, and return it as the client's code is to see it."""
        answer = decoded(content)
        self.hear(answer)
        if answer is None or (shown := outcomes.without_warnings(answer)) is answer:
            return content
        return json.dumps(shown).encode()

    def take(self, value: Any) -> None:
        """Take what other people's code returned for the answer, if no transport that is looked at has sent it."""
        if isinstance(value, dict) and not self._seen:
            self.hear(value)

    def hear_failure(self, failure: Exception) -> None:
        """Take note of the exception that the client's transport raised instead of an answer."""
        if not self._again:
            self._failure = failure

    def heard(self, value: Any = None, failure: Exception | None = None) -> Heard:
        """Return what came of it, with the time at which Kraken answered. Raises as `_heard`."""
        heard = self._heard(value, failure)
        return heard if heard.answer is None else replace(heard, date=self._date)

    def _heard(self, value: Any = None, failure: Exception | None = None) -> Heard:
        """Return what came of it, when the client's code has returned a value or raised an exception.

        Raises what kept it from leaving, if nothing was sent and a later attempt would not help.
        """
        if self._again:  # then what the client's code made of the second time says nothing
            if self.answer is None:
                return Heard(failure=self._failure or failure, left=True, turned_away=self._turned_away)
            return self._presented(self.answer)
        if not self.left:
            if self._refusal is not None and self._ended_in_refusal(value, failure):
                raise self._refusal
            if failure is not None and (not self.entered or outcomes.is_hopeless(failure)):
                raise failure
        if self.answer is None:
            return Heard(value, failure, left=self.left, turned_away=self._turned_away)
        warned = not self._seen and outcomes.without_warnings(self.answer) is not self.answer
        if warned and (failure is not None or isinstance(value, dict)):  # the client's code may have seen them
            return self._presented(self.answer)
        return Heard(value, failure, self.answer, left=self.left)

    def _presented(self, answer: Mapping[str, Any]) -> Heard:
        """Return what the client makes of an answer."""
        try:
            return Heard(self._call.present(outcomes.without_warnings(answer)), answer=answer, left=True)
        except Exception as error:  # noqa: BLE001 - it is what the client raises
            return Heard(failure=error, answer=answer, left=True)

    def _ended_in_refusal(self, value: Any, failure: Exception | None) -> bool:
        """Return whether the client's code gave up when it was refused, as far as we see; it may know another way."""
        if failure is None:
            return value is None and self.answer is None
        return self._refusal in outcomes.led_to(failure)


@functools.cache
def watching(kind: type, ours: type) -> type:
    """Return a class of a client's transport with what is different in ours; it looks like the former."""
    return type(kind.__name__, (ours, kind), {"__module__": kind.__module__})


def current() -> Request | None:
    """Return the request that this thread or task is sending."""
    return _current.get()


def request_of(headers: Mapping[Any, Any], fields: Mapping[str, Any]) -> Request | None:
    """Return the request under way that has the API key and nonce of one that is about to be sent."""
    return _under_way.get((str(headers.get("API-Key")), str(fields.get("nonce"))))


def connecting(headers: Mapping[Any, Any] | None, body: object) -> contextlib.AbstractContextManager[None]:
    """Look for a connection and send a request inside of this block, as `Request.connecting`. Raises as `leave`."""
    request = _meant(headers, body)
    return contextlib.nullcontext() if request is None else request.connecting(fields_of(body))


def leave(headers: Mapping[Any, Any] | None, body: object, seconds: float | None = None, *, seen: bool = False) -> None:
    """Begin to send a request, as `Request.leave`; a public one as it is, or one of another client with its own key.

    Raises `IncompatibleClient` for a signed one that is not that of a step under way, and as `Request.leave`.
    """
    request = _meant(headers, body)
    if request is not None:
        request.leave(fields_of(body), seconds, seen=seen)


def _meant(headers: Mapping[Any, Any] | None, body: object) -> Request | None:
    if not headers or "API-Key" not in headers:
        return None
    request = request_of(headers, fields_of(body))
    if request is None:
        meant = current()
        if meant is not None:
            meant.refuse_foreign()
        if str(headers.get("API-Key")) in _keys:
            raise IncompatibleClient("the session", _FOREIGN)
    return request


def fields_of(body: object) -> Mapping[str, Any]:
    """Return the parameters in the body of a request; none for a body of another kind than Kraken takes."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    if not isinstance(text, str):
        return {}
    if not text.startswith("{"):
        return dict(parse_qsl(text, keep_blank_values=True))
    try:
        return cast("Mapping[str, Any]", json.loads(text))
    except ValueError:
        return {}


def decoded(content: bytes | str) -> Mapping[str, Any] | None:
    """Return an answer of Kraken; None if it isn't one."""
    try:
        answer = json.loads(content)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and isinstance(answer.get("error"), list) else None
