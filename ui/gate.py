"""The gate before the app: without a session nothing of it is reached, neither page nor picture nor live connection.

Rules: (1) only the app's own public name is answered; (2) what a browser shows is looked up, never believed; (3) the script
learns of a session by a header that only this gate sets; (4) a connection whose session is over is cut; (5) no token, code or
number of a session is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.websockets import WebSocketClose

from ui import signin_pages
from ui.id_token import person_of, proved_at_s
from ui.provider import Provider, ProviderDown
from ui.sessions import HEADER, Begun, Session, Sessions, SignInRefused, key_of
from ui.signin_links import ENTRANCE
from ui.signin_settings import SignIn

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("secagg.signin")
HEALTH: Final = "/_stcore/health"
CLOSED: Final = ("/auth", "/oauth2callback", "/_stcore/agent", "/_stcore/metrics", "/_stcore/upload_file")  # the app uses none
POLICY_VIOLATION: Final = 1008  # RFC 6455, section 7.4.1
LOOK_EVERY_S: Final = 1.0
PROVIDER_THREADS: Final = 4

Answered = TypeVar("Answered")


class Gate:
    """One app behind one provider."""

    def __init__(self, app: ASGIApp, settings: SignIn, sessions: Sessions, provider: Provider) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions
        self._provider = provider
        self._clock: Callable[[], float] = time.time
        self._threads: CapacityLimiter | None = None
        prefix = "__Host-" if settings.is_encrypted else ""  # then no other host and no plain HTTP can set it
        self._cookie = f"{prefix}secagg-{settings.port}"  # a host's ports share its cookies: each app has names of its own
        self._begun_cookie = f"{self._cookie}-begun"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let through."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._live(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        own = await self._own(request)
        if own is not None:
            await own(scope, receive, send)
            return
        await self._app(_marked(scope, self._session(request)), receive, send)

    async def _own(self, request: Request) -> Response | None:
        """The gate's own answer; None where the app may answer. `request.url` is not asked: a Host header makes part of it."""
        path, wants = request.scope["path"], request.headers.get("accept-language", "")
        if path == HEALTH:
            return None
        if request.headers.get("host", "").lower() != self._settings.host:
            return signin_pages.wrong_host(self._settings.public_url, wants)
        session = self._session(request)
        match path:
            case "/signin":
                return signin_pages.sign_in(self._provider.host, request.query_params.get("to", "/"), wants)
            case "/signin/start":
                return await self._start(request, wants)
            case "/signin/back":
                return await self._back(request, wants)
            case "/signout":
                return await self._out(request, session, wants)
        if path.startswith(CLOSED):
            return signin_pages.not_found(wants)
        if session is not None:
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            query = request.scope["query_string"].decode("latin-1")
            there = path + (f"?{query}" if query else "")
            return signin_pages.sign_in(self._provider.host, there, wants)
        return PlainTextResponse("Your session is over: reload this page to sign in.", status_code=401)

    async def _start(self, request: Request, wants: str) -> Response:
        """To the provider, with a number in this browser that has to come back with it."""
        fresh = request.query_params.get("fresh") == "1"
        begun = self._sessions.begin(request.query_params.get("to", "/"), self._clock(), fresh=fresh)
        try:
            url = await self._asked(partial(self._provider.authorization_url, begun))
        except ProviderDown as error:
            return self._down(error, wants)
        answer = RedirectResponse(url, status_code=303)
        self._set(answer, self._begun_cookie, begun.browser)
        return answer

    async def _back(self, request: Request, wants: str) -> Response:
        """From the provider: check everything, then a session with a new number."""
        brought = dict(request.query_params)
        try:
            begun = self._sessions.take(brought.get("state", ""), request.cookies.get(self._begun_cookie, ""), self._clock())
            claims = await self._asked(partial(self._provider.claims, begun, brought))
            person = person_of(claims, self._settings)
        except SignInRefused as error:
            LOG.warning("sign-in refused: %s", error.code)
            return signin_pages.refused(str(error), wants)
        except ProviderDown as error:
            return self._down(error, wants)
        now_s = self._clock()
        before = self._session(request)
        if before is not None:
            self._sessions.end(before.key, now_s)
        ends_s = now_s + self._settings.session_hours * 3600
        shown = self._sessions.open(person, min(proved_at_s(claims), now_s), ends_s, now_s)
        LOG.info("signed in: subject %s as %s", person.subject, ", ".join(sorted(person.roles)) or "nobody")
        return self._let_in(begun, shown)

    def _let_in(self, begun: Begun, shown: str) -> Response:
        answer = RedirectResponse(begun.then, status_code=303)
        answer.delete_cookie(self._begun_cookie, path="/", secure=self._settings.is_encrypted, httponly=True)
        self._set(answer, self._cookie, shown)
        return answer

    async def _out(self, request: Request, session: Session | None, wants: str) -> Response:
        """End the session here, then at the provider. The link carries the session's key: no page elsewhere can do it."""
        if session is not None and request.query_params.get("session") != session.key:
            return signin_pages.refused("That link to sign out is not of your session: use the one in the app.", wants)
        if session is not None:
            self._sessions.end(session.key, self._clock())
        url = await self._asked(self._provider.sign_out_url)
        answer = RedirectResponse(url or ENTRANCE, status_code=303)
        answer.delete_cookie(self._cookie, path="/", secure=self._settings.is_encrypted, httponly=True)
        return answer

    async def _asked(self, question: Callable[[], Answered]) -> Answered:
        """What the provider is asked waits in threads of its own: strangers who ask much do not hold up who is signed in."""
        self._threads = self._threads or CapacityLimiter(PROVIDER_THREADS)
        return await to_thread.run_sync(question, limiter=self._threads)

    def _down(self, error: ProviderDown, wants: str) -> Response:
        LOG.error("%s", error)
        return signin_pages.provider_down(self._provider.host, wants)

    def _set(self, answer: Response, name: str, value: str) -> None:
        """A cookie of this browser window's life: no script reads it, no other site's form sends it."""
        answer.set_cookie(name, value, path="/", secure=self._settings.is_encrypted, httponly=True, samesite="lax")

    def _session(self, request: Request) -> Session | None:
        return self._shown(request.cookies.get(self._cookie, ""))

    def _shown(self, cookie: str) -> Session | None:
        return self._sessions.find(key_of(cookie), self._clock()) if cookie else None

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The live connection: only for a session, only from the app's own pages, and only as long as the session lasts."""
        headers = Headers(scope=scope)
        cookies = Request({**scope, "type": "http", "method": "GET"}).cookies
        session = self._shown(cookies.get(self._cookie, ""))
        own = headers.get("host", "").lower() == self._settings.host
        if session is None or not own or headers.get("origin") != self._settings.public_url:
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)
            return
        ear = _Ear(receive, partial(self._lasts, session.key))
        try:
            await self._app(_marked(scope, session), ear, send)
        finally:
            ear.close()

    def _lasts(self, key: str) -> bool:
        return self._sessions.is_connected(key, self._clock())


def _marked(scope: Scope, session: Session | None) -> Scope:
    """The request with the session's key in the gate's header, and without one that somebody else put there."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != HEADER.encode()]
    if session is not None:
        headers.append((HEADER.encode(), session.key.encode()))
    return {**scope, "headers": headers}


class _Ear:
    """Hears what a connection says, and its end when the session ends."""

    def __init__(self, receive: Receive, lasts: Callable[[], bool]) -> None:
        self._receive = receive
        self._lasts = lasts
        self._waiting: asyncio.Task[Message] | None = None

    async def __call__(self) -> Message:
        """The next message."""
        while self._lasts():
            self._waiting = self._waiting or asyncio.ensure_future(_received(self._receive))
            done, _ = await asyncio.wait({self._waiting}, timeout=LOOK_EVERY_S)
            if done:
                message, self._waiting = self._waiting.result(), None
                return message
        return {"type": "websocket.disconnect", "code": POLICY_VIOLATION, "reason": "the session is over"}

    def close(self) -> None:
        """Nobody listens any more."""
        if self._waiting is not None:
            self._waiting.cancel()


async def _received(receive: Receive) -> Message:
    return await receive()
