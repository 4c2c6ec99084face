"""Who may ask: a key, or on loopback a caller that means this machine."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dollyllama.serving.refusal import Refusal

#: What may be asked without the key, where there is one: whether the server is up.
OPEN_PATHS = frozenset({"/health"})


def is_loopback(host: str) -> bool:
    """Whether a host, without a port, is this machine for this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets a request through to ``app``, or answers 401 or 403.

    With api_key None the server is on loopback, and a Host header of another name is a web page's
    that had its name point here; such a page must not ask.
    """

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._check(scope["path"], Headers(scope=scope))
            if refusal is not None:
                response = JSONResponse(refusal.body, refusal.status, refusal.headers)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> Refusal | None:
        if self._expected is None:
            if is_loopback(_hostname(headers.get("host", ""))):
                return None
            return Refusal(403, "foreign_host", "this server answers to names of loopback alone")
        if path in OPEN_PATHS:
            return None
        given = headers.get("authorization")
        if given is None:
            return Refusal(
                401, "missing_api_key", "no key was given: send Authorization: Bearer KEY"
            )
        # Headers are latin-1; the comparison takes as long whatever is wrong.
        if not hmac.compare_digest(given.encode("latin-1"), self._expected):
            return Refusal(401, "invalid_api_key", "the key is not this server's")
        return None


def _hostname(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
