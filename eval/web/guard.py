"""What stands before the page's own code: who may ask, how much may be sent, and what the browser may load.

    app = Guard(app, hosts=frozenset({"lab.example"}))
    await save_body(request, file, limit)       # raises TooLarge, Slow

The page has no password, so what a browser sends on behalf of another site must be refused: a Host that is a
foreign name (DNS rebinding), and an Origin that is not the page's own (forged requests). It does not protect from
people who can reach the address; bind it to loopback for that.
"""

import asyncio
import ipaddress
from collections.abc import Mapping
from typing import IO
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_SECONDS = 60.0  # an image of 32 MB at 4.5 Mbit/s
UPLOAD = "application/octet-stream"  # a type that no other site can send without asking first
HEADERS: Mapping[str, str] = {
    # Everything from here, nothing from elsewhere; blob: are the images and videos the user dropped.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
        "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}


class TooLarge(Exception):
    """A body longer than it may be."""


class Slow(Exception):
    """A body that did not arrive in time, or not at all."""


class Guard:
    """ASGI middleware: checks Host and Origin, and adds the headers above to every answer."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] = frozenset()) -> None:
        """`hosts` are names the page may be called by, besides localhost and every bare address."""
        self._app = app
        self._hosts = hosts | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to whom the page is not for; pass everything else on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        problem = self.problem(str(scope["method"]), Headers(scope=scope))
        if problem:
            refused = JSONResponse({"kind": "refused", "message": problem}, status_code=403)
            await refused(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def problem(self, method: str, headers: Headers) -> str:
        """Return why a request is refused, or nothing."""
        host = headers.get("host", "")
        if not self._may_be_called(host):
            return f"this page is not {host!r}; start it with --allow-host to give it a name"
        if method in ("GET", "HEAD"):
            return ""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return f"{origin} may not send to this page"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "another site may not send to this page"
        if headers.get("content-type") != UPLOAD:
            return f"the image's bytes are expected, as {UPLOAD}"
        return ""

    def _may_be_called(self, host: str) -> bool:
        """A bare address can't be rebound: the browser never asked a name server for it."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._hosts:
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def save_body(request: Request, file: IO[bytes], limit: int, *, seconds: float = BODY_SECONDS) -> None:
    """Write a request's body of at most `limit` bytes into a file. Raises TooLarge and Slow."""
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise TooLarge
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if file.tell() + len(chunk) > limit:
                    raise TooLarge
                file.write(chunk)
    except (TimeoutError, ClientDisconnect):
        raise Slow from None
