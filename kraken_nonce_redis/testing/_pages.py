"""HTML pages that a gateway, Cloudflare or a proxy sends instead of Kraken's answer. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

RATE_LIMITED: Final = 1015
"""Cloudflare's own number for too many requests. Its page has the status 429."""

_CLOUDFLARE: Final[Mapping[int, str]] = MappingProxyType(
    {
        429: "Too Many Requests",
        520: "Web server is returning an unknown error",
        521: "Web server is down",
        522: "Connection timed out",
        523: "Origin is unreachable",
        524: "A timeout occurred",
        525: "SSL handshake failed",
        526: "Invalid SSL certificate",
        527: "Railgun error",
        RATE_LIMITED: "You are being rate limited",
    }
)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_GATEWAY_TEXT: Final = (
    "<html>\n<head><title>{code} {reason}</title></head>\n"
    "<body><center><h1>{code} {reason}</h1></center></body>\n</html>\n"
)
_CLOUDFLARE_TEXT: Final = (
    "<!DOCTYPE html>\n<html>\n<head><title>api.kraken.com | {code}: {reason}</title></head>\n"
    "<body><h1>Error {code}</h1><h2>{reason}</h2><p>Performance &amp; security by Cloudflare</p></body>\n</html>\n"
)


@dataclass(frozen=True, slots=True)
class Page:
    """A page and the headers that come with it."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict[str, str])


def page(code: int, path: str) -> Page:
    """Return the page for an HTTP status, or for Cloudflare's 1015.

    Redirects lead back to `path`, the path of the request; a 407 asks for a password.
    """
    if code in _CLOUDFLARE:
        text = _CLOUDFLARE_TEXT.format(code=code, reason=_CLOUDFLARE[code])
        status = int(HTTPStatus.TOO_MANY_REQUESTS) if code == RATE_LIMITED else code
        return Page(status, text, {"Server": "cloudflare", "CF-RAY": "0123456789abcdef-FRA"})
    headers: dict[str, str] = {}
    if code in _REDIRECTS:
        headers["Location"] = path
    if code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        headers["Proxy-Authenticate"] = 'Basic realm="proxy"'
    return Page(code, _GATEWAY_TEXT.format(code=code, reason=_reason(code)), headers)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
