"""Lets in only what a browser sends from this very page, and tells browsers to be strict with what it gets.

A page of another site can make a browser send requests here, or have its own name point here (DNS rebinding). So the
Host must be one of ours, and whatever isn't a plain read must come from our own origin.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_READS = {"GET", "HEAD"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        hosts: the names by which browsers may call this server, without a port.
        scripts: the text of those that stand in the page itself; browsers run no others there.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], scripts: Collection[str] = ()) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
        sources = " ".join(["script-src 'self'", *(f"'sha256-{one}'" for one in hashes)])
        self._headers = {name: value.replace("script-src 'self'", sources) for name, value in _HEADERS.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the headers added."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope)

        async def strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        if problem is None:
            await self._app(scope, receive, strictly)
        elif scope["type"] == "websocket":
            await WebSocketClose(reason=problem)(scope, receive, send)
        else:
            await PlainTextResponse(problem, status_code=403)(scope, receive, strictly)

    def _problem(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _name(f"//{host}") not in self._hosts:
            return "this server isn't called so; see --name of 'slurmbus dashboard'"
        if scope["type"] == "http" and scope["method"] in _READS:
            return None
        if urlsplit(headers.get("origin", "")).netloc.lower() != host.lower():
            return "this doesn't come from the dashboard's own page"
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return "this doesn't come from the dashboard's own page"
        return None


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
