"""The form of a private request: its signature, its body, and Kraken's refusals."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import cast
from urllib.parse import parse_qsl

HIGHEST_NONCE = 2**64 - 1
_JSON = "application/json"
_LARGEST_EXPONENT = 15  # of a volume or a price; keeps all sums within decimal's 28 digits


class Refusal(Exception):
    """Kraken refuses. `error` is its error string, such as `EAPI:Invalid nonce`."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


def bad_argument(name: str) -> Refusal:
    """Return the refusal that names the invalid parameter."""
    return Refusal(f"EGeneral:Invalid arguments:{name}")


def signature(secret: bytes, path: str, nonce: str, body: bytes) -> str:
    """Return the `API-Sign` that Kraken expects, in base64.

    Args:
        secret: the API secret, decoded from base64.
        path: path of the URL, such as `/0/private/AddOrder`.
        nonce: exactly as it is spelled in the body.
        body: exactly the bytes that are sent.
    """
    digest = hashlib.sha256(nonce.encode() + body).digest()
    return base64.b64encode(hmac.digest(secret, path.encode() + digest, "sha512")).decode()


def _read_form(body: bytes) -> dict[str, object]:
    return dict(parse_qsl(body.decode(), keep_blank_values=True))


def _read_json(body: bytes) -> dict[str, object]:
    # Numbers stay text: a 19-digit nonce keeps every digit, and the signature covers its spelling.
    parsed: object = json.loads(body, parse_int=str, parse_float=str, parse_constant=str)
    if not isinstance(parsed, dict):
        raise TypeError("not an object")
    return cast("dict[str, object]", parsed)


@dataclass(frozen=True, slots=True)
class Params:
    """The parameters in a request's body.

    A parameter that is missing or empty reads as None. Every getter raises `Refusal`
    (`EGeneral:Invalid arguments:<name>`) if the value is invalid.
    """

    values: dict[str, object] = field(default_factory=dict[str, object])

    @classmethod
    def read(cls, content_type: str, body: bytes) -> Params:
        """Read a body, form-encoded unless `content_type` says JSON.

        Raises:
            Refusal: the body can't be read.
        """
        read = _read_json if content_type == _JSON else _read_form
        try:
            return cls(read(body))
        except (TypeError, ValueError, RecursionError) as error:
            raise Refusal("EAPI:Bad request") from error

    def text(self, name: str) -> str | None:
        """Return a parameter as text."""
        value = self.values.get(name)
        if isinstance(value, bool):
            return "true" if value else "false"
        if value is not None and not isinstance(value, str):
            raise bad_argument(name)
        return value or None

    def required(self, name: str) -> str:
        """Return a required parameter as text."""
        value = self.text(name)
        if value is None:
            raise bad_argument(name)
        return value

    def choice(self, name: str, among: frozenset[str]) -> str:
        """Return a required parameter that must be one of some values."""
        value = self.required(name)
        if value not in among:
            raise bad_argument(name)
        return value

    def flag(self, name: str) -> bool:
        """Return a parameter as a truth value, in any of the spellings that clients use."""
        return (self.text(name) or "").lower() in {"true", "1"}

    def integer(self, name: str) -> int | None:
        """Return a parameter as a whole number of at most 64 bits."""
        value = self.text(name)
        if value is None:
            return None
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(HIGHEST_NONCE))):
            raise bad_argument(name)
        return int(value)

    def decimal(self, name: str) -> Decimal | None:
        """Return a parameter as a positive decimal number."""
        value = self.text(name)
        if value is None:
            return None
        try:
            number = Decimal(value)
        except InvalidOperation as error:
            raise bad_argument(name) from error
        if not (number.is_finite() and number > 0 and number.adjusted() <= _LARGEST_EXPONENT):
            raise bad_argument(name)
        return number

    def many(self, name: str) -> tuple[str, ...]:
        """Return a list, given as JSON or as text with commas. Empty if the parameter is missing."""
        value = self.values.get(name)
        if not isinstance(value, list):
            return tuple(part.strip() for part in (self.text(name) or "").split(",") if part)
        items = cast("list[object]", value)
        texts = tuple(item for item in items if isinstance(item, str))
        if len(texts) != len(items):
            raise bad_argument(name)
        return texts

    def objects(self, name: str) -> tuple[Params, ...]:
        """Return a list of objects, which only JSON can have. Empty if the parameter is missing."""
        value = self.values.get(name) or []
        if not isinstance(value, list):
            raise bad_argument(name)
        items = cast("list[object]", value)
        objects = tuple(Params(cast("dict[str, object]", item)) for item in items if isinstance(item, dict))
        if len(objects) != len(items):
            raise bad_argument(name)
        return objects


@dataclass(frozen=True, slots=True)
class Call:
    """A private request as it was received."""

    path: str
    method: str
    content_type: str
    key: str = field(repr=False)
    signature: str = field(repr=False)
    body: bytes = field(repr=False)
    sent: float | None = None
    """When its client sent it, in Unix seconds by the exchange's clock; when it is admitted, if None."""

    @property
    def is_json(self) -> bool:
        """Whether the body says that it is JSON."""
        return self.content_type == _JSON

    def params(self) -> Params:
        """Return the body's parameters. Raises `Refusal` if the body can't be read."""
        return Params.read(self.content_type, self.body)

    def is_signed_with(self, secret: bytes, nonce: str) -> bool:
        """Return whether the signature matches the body, the path and this secret."""
        expected = signature(secret, self.path, nonce, self.body)
        return hmac.compare_digest(expected.encode(), self.signature.encode(errors="replace"))


def nonce_of(params: Params) -> int:
    """Return the nonce of a request.

    Raises:
        Refusal: `EAPI:Invalid nonce` if there is none, or it is not an unsigned 64-bit integer.
    """
    try:
        nonce = params.integer("nonce")
    except Refusal:
        nonce = None
    if nonce is None or not 0 <= nonce <= HIGHEST_NONCE:
        raise Refusal("EAPI:Invalid nonce")
    return nonce
