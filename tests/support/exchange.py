"""A simulated exchange without network and clock, for tests of its rules: each call is a time, a method, an answer."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from kraken_nonce_redis.testing._exchange import Exchange
from kraken_nonce_redis.testing._protocol import Call, signature
from kraken_nonce_redis.testing._records import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

SECRET = b"secret"
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


class Caller:
    """Signs requests to an exchange of its own. An API key is its account's name, with a number from the second on."""

    def __init__(self, accounts: Sequence[str] = ("alice",), keys: int = 1, **settings: Any) -> None:
        named = [(name, f"{name}-{n}" if n > 1 else name) for name in accounts for n in range(1, keys + 1)]
        given = [(name, key, base64.b64encode(SECRET).decode()) for name, key in named]
        self.exchange = Exchange(given, Settings(**settings), seed=0, now=0.0)
        self.nonce = 0

    def call(
        self, method: str, *, key: str = "alice", nonce: int | None = None, body: bytes | None = None,
        content_type: str = JSON, sent: float | None = None, **data: object,
    ) -> Call:  # fmt: skip
        """Return a signed call; its nonce is the next one unless given."""
        if nonce is None:
            nonce = self.nonce = self.nonce + 1
        path = f"/0/private/{method}"
        if body is None:
            fields = {"nonce": nonce, **data}
            body = (json.dumps(fields) if content_type == JSON else urlencode(fields)).encode()
        return Call(path, method, content_type, key, signature(SECRET, path, str(nonce), body), body, sent)

    def answer(self, now: float, method: str, **data: Any) -> dict[str, Any]:
        """Make a call at a time and return the whole answer."""
        call = self.call(method, **data)
        return self.exchange.admit(call, self.exchange.arrive(call, now), now)(now)

    def result(self, now: float, method: str, **data: Any) -> Any:
        """Return the result of a call that must succeed."""
        answer = self.answer(now, method, **data)
        assert answer["error"] == []
        return answer["result"]

    def error(self, now: float, method: str, **data: Any) -> str:
        """Return the error of a call, or an empty string."""
        return "".join(self.answer(now, method, **data)["error"])
