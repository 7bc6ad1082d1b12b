"""The gate as the server calls it: who gets through, what the script hears of them, and when a connection is cut."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.datastructures import URL

from ui.roles import Role
from ui.sessions import CLOSING_S, HEADER, Person, Sessions, key_of
from ui.signin_settings import SignIn

pytest.importorskip("authlib", reason="Authlib is absent: install the extra 'test'")

from ui import gate as gates
from ui.gate import Gate
from ui.provider import Provider

NOW_S = 1_800_000_000.0
PUBLIC = SignIn(
    issuer="https://login.example", client_id="a", public_url="https://secagg.example", roles={Role.OFFICER: ("o",)}
)
PERSON = Person("https://login.example", "keller-1", "Dr K. Weber", frozenset({Role.OFFICER}))


class Rig:
    """A gate before an app that writes down what reaches it."""

    def __init__(self) -> None:
        self.sessions = Sessions()
        self.reached: list[dict[str, Any]] = []
        self.heard: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.now_s = NOW_S
        self.gate = Gate(self.app, PUBLIC, self.sessions, Provider(PUBLIC))
        self.gate._clock = lambda: self.now_s
        self.shown = self.sessions.open(PERSON, NOW_S, NOW_S + 100, NOW_S)

    async def app(self, scope, receive, send) -> None:
        self.reached.append(dict(scope))
        if scope["type"] == "websocket":
            while True:
                message = await receive()
                self.heard.append(message)
                if message["type"] == "websocket.disconnect":
                    return

    def ask(
        self,
        kind: str,
        path: str = "/",
        *,
        cookie: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        **headers: str,
    ) -> None:
        named = {"host": "secagg.example", "origin": "https://secagg.example", "accept": "text/html", **headers}
        if cookie is not None:
            named["cookie"] = f"__Host-secagg-443={cookie}"
        scope = {
            "type": kind,
            "method": "GET",
            "scheme": "https",
            "path": path,
            "query_string": b"",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()],
            "server": ("127.0.0.1", 8501),
        }
        left = list(messages or [])

        async def receive() -> dict[str, Any]:
            if left:
                return left.pop(0)
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        asyncio.run(asyncio.wait_for(self.gate(scope, receive, send), 120))

    def marks(self) -> list[bytes]:
        return [value for name, value in self.reached[-1]["headers"] if name == HEADER.encode()]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(gates, "LOOK_EVERY_S", 0.01)
    return Rig()


def test_the_script_hears_of_the_session_from_the_gate_alone(rig: Rig) -> None:
    rig.ask("http", cookie=rig.shown, x_secagg_session="somebody-elses")
    assert rig.marks() == [key_of(rig.shown).encode()]
    rig.ask("http", "/_stcore/health", x_secagg_session=key_of(rig.shown))
    assert rig.marks() == []  # the one address that strangers reach, and nobody on it


@pytest.mark.parametrize("cookie", [None, "", "made up", key_of("x")])
def test_a_stranger_reaches_nothing(rig: Rig, cookie: str | None) -> None:
    for kind in ("http", "websocket"):
        rig.ask(kind, "/_stcore/stream", cookie=cookie, x_secagg_session=key_of(rig.shown))
    assert rig.reached == []
    assert {message.get("status") for message in rig.sent if "status" in message} == {200}  # the page to sign in
    assert [message["code"] for message in rig.sent if message["type"] == "websocket.close"] == [1008]


@pytest.mark.parametrize("host", ["a/_stcore/health?", "secagg.example/_stcore/health?", "x/_stcore/health#", "[", "a@b/"])
@pytest.mark.parametrize("path", ["/_stcore/host-config", "/media/a.png", "/privacy"])
def test_what_is_asked_for_is_the_path_whatever_the_host_says(
    rig: Rig, host: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a Starlette that makes a request's address out of whatever the Host header says."""
    monkeypatch.setattr(gates.Request, "url", property(lambda request: URL(f"http://{request.headers['host']}{path}")))
    rig.ask("http", path, host=host)
    assert (rig.reached, rig.sent[0]["status"]) == ([], 421)
    rig.ask("http", "/_stcore/health", host=host)
    assert [scope["path"] for scope in rig.reached] == ["/_stcore/health"]


@pytest.mark.parametrize("wrong", [{"origin": "https://elsewhere.example"}, {"host": "elsewhere.example"}, {"origin": "null"}])
def test_a_live_connection_comes_from_the_apps_own_pages(rig: Rig, wrong: dict[str, str]) -> None:
    rig.ask("websocket", "/_stcore/stream", cookie=rig.shown, **wrong)
    assert rig.reached == []


def test_a_connection_is_cut_when_its_session_is_over(rig: Rig) -> None:
    def later() -> float:
        rig.now_s += 1.0  # each look is a second later
        return rig.now_s

    rig.gate._clock = later
    rig.ask("websocket", "/_stcore/stream", cookie=rig.shown, messages=[{"type": "websocket.receive", "bytes": b"a"}])
    assert [message["type"] for message in rig.heard] == ["websocket.receive", "websocket.disconnect"]
    assert NOW_S + 100 + CLOSING_S <= rig.now_s <= NOW_S + 100 + CLOSING_S + 3


def test_a_session_that_was_ended_elsewhere_is_cut_too(rig: Rig) -> None:
    rig.sessions.end(key_of(rig.shown), NOW_S)
    rig.ask("websocket", "/_stcore/stream", cookie=rig.shown)
    assert rig.reached == []


def test_cookies_of_an_encrypted_app_are_its_hosts_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.gate._provider, "authorization_url", lambda begun: "https://login.example/authorize")
    rig.ask("http", "/signin/start")
    (cookie,) = [value.decode() for name, value in rig.sent[0]["headers"] if name == b"set-cookie"]
    assert cookie.startswith("__Host-secagg-443-begun=")
    for rule in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"):
        assert rule in cookie
    assert "Domain" not in cookie
    assert "Max-Age" not in cookie


@pytest.mark.parametrize(
    ("public_url", "name"),
    [
        ("https://secagg.example:8443", "__Host-secagg-8443"),
        ("https://secagg.example:8444", "__Host-secagg-8444"),
        ("http://localhost:8501", "secagg-8501"),
        ("http://localhost", "secagg-80"),
    ],
)
def test_two_apps_on_one_host_have_cookies_of_their_own(public_url: str, name: str) -> None:
    settings = SignIn(issuer="https://login.example", client_id="a", public_url=public_url, roles={Role.OFFICER: ("o",)})
    made = Gate(Rig().app, settings, Sessions(), Provider(settings))
    assert (made._cookie, made._begun_cookie) == (name, f"{name}-begun")


def test_a_script_without_a_session_is_told_what_to_do(rig: Rig) -> None:
    rig.ask("http", "/_stcore/host-config", accept="*/*")
    assert rig.sent[0]["status"] == 401
    assert rig.sent[1]["body"] == b"Your session is over: reload this page to sign in."
