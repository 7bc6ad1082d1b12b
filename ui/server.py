"""The app as the server runs it: the script app.py behind headers that keep a browser from asking anybody else for anything.

The page's own inline script is allowed by its digest, which is read from the installed Streamlit at start because it changes
with its version; no other inline script runs, and none is fetched from elsewhere. Nothing with content is kept by the browser:
what is on the screen of a hospital does not stay in a cache on disk.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware

from ui import preload
from ui.settings import from_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

INDEX = Path(st.__file__).parent / "static" / "index.html"
INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
KEPT_BY_BROWSERS = "/static/"  # Streamlit's own program files, whose names hold their digest
HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def script_digests(page: str) -> tuple[str, ...]:
    """CSP sources of the inline scripts of a page."""
    digests = (hashlib.sha256(script.encode()).digest() for script in INLINE_SCRIPT.findall(page))
    return tuple(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def policy(page: str, sockets: tuple[str, ...]) -> str:
    """The content security policy. `sockets`: origins of the live connection, for browsers whose 'self' leaves ws out."""
    rules = {
        "default-src": ("'self'",),
        "script-src": ("'self'", *script_digests(page)),
        "style-src": ("'self'", "'unsafe-inline'"),  # Streamlit's styles are made while it runs
        "img-src": ("'self'", "data:", "blob:"),
        "font-src": ("'self'", "data:"),
        "connect-src": ("'self'", *sockets),
        "object-src": ("'none'",),
        "frame-src": ("'none'",),
        "base-uri": ("'self'",),
        "form-action": ("'none'",),
        "frame-ancestors": ("'none'",),
    }
    return "; ".join(" ".join((name, *sources)) for name, sources in rules.items())


def own_sockets() -> tuple[str, ...]:
    """The live connection's origins where the address is known: not behind a proxy, unless sign-in names the public one."""
    signin = from_arguments(sys.argv[1:]).signin
    if signin is not None:
        return (signin.public_url.replace("http", "ws", 1),)
    address, port = st.get_option("server.address"), st.get_option("server.port")
    names = dict.fromkeys((str(address), "localhost")) if address else {}
    return tuple(f"ws://{f'[{name}]' if ':' in name else name}:{port}" for name in names)


class Headers:
    """Adds the headers to every answer; the live connection passes untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._policy = policy(INDEX.read_text(encoding="utf-8"), own_sockets())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self._policy
                for name, value in HEADERS.items():
                    headers[name] = value
                if KEPT_BY_BROWSERS not in scope["path"]:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, with_headers)


@asynccontextmanager
async def prepared(_: object) -> AsyncIterator[None]:
    """The server listens at once; what the first page needs is read beside it."""
    preload.start(from_arguments(sys.argv[1:]))
    yield


def gates() -> list[Middleware]:
    """The gate, where people have to sign in. What it needs is an extra, so that it is imported only then."""
    settings = from_arguments(sys.argv[1:]).signin
    if settings is None:
        return []
    from ui.gate import Gate
    from ui.provider import Provider
    from ui.sessions import OPEN

    return [Middleware(Gate, settings=settings, sessions=OPEN, provider=Provider(settings))]


app = st.App(Path(__file__).parent / "app.py", middleware=[Middleware(Headers), *gates()], lifespan=prepared)
