"""A small but real OpenID Connect provider for the tests, as a process of its own on loopback.

Authorization code flow with PKCE S256 and client authentication, discovery, published keys, a login form, a session cookie,
`prompt=login`, `max_age`, sign-out. Started with a JSON object on its command line; it prints its issuer. `POST /fault` makes
its tokens lie in one way, which is what the tests of refusal are about; a provider has no such place.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

CODE_S = 60.0
TOKEN_S = 300


class World:
    """Clients, people, keys, codes, and how tokens lie at present."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.issuer = ""
        self.client_id: str = settings["client_id"]
        self.secret: str = settings["secret"]
        self.redirect_uris: list[str] = settings["redirect_uris"]
        self.people: dict[str, dict[str, Any]] = settings["people"]  # by user name: password, claims
        self.fault = ""
        self.codes: dict[str, dict[str, Any]] = {}
        self.browsers: dict[str, tuple[str, float]] = {}  # cookie -> user name, when the password was given
        self.rotate()

    def rotate(self) -> None:
        """New keys; the old ones are published no more."""
        stamp = secrets.token_hex(4)
        self.keys = [
            ECKey.generate_key("P-256", {"kid": f"ec-{stamp}", "use": "sig", "alg": "ES256"}),
            RSAKey.generate_key(2048, {"kid": f"rsa-{stamp}", "use": "sig", "alg": "RS256"}),
        ]

    def metadata(self) -> dict[str, Any]:
        issuer = self.issuer if self.fault != "other issuer in metadata" else "https://elsewhere.example"
        return {
            "issuer": issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "end_session_endpoint": f"{self.issuer}/end",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256", "RS256"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }

    def id_token(self, code: dict[str, Any]) -> str:
        now, person = int(time.time()), self.people[code["user"]]
        claims = {
            "iss": self.issuer,
            "aud": self.client_id,
            "iat": now,
            "exp": now + TOKEN_S,
            "nonce": code["nonce"],
            "auth_time": int(code["proved_at"]),
            **person["claims"],
        }
        lies: dict[str, dict[str, Any]] = {
            "wrong audience": {"aud": "another-app"},
            "audience and party": {"aud": "another-app", "azp": self.client_id},
            "other party": {"aud": [self.client_id, "another-app"], "azp": "another-app"},
            "wrong issuer": {"iss": "https://elsewhere.example"},
            "expired": {"iat": now - 7200, "exp": now - 3600},
            "future": {"iat": now + 600, "exp": now + 900},
            "little early": {"iat": now + 20},
            "wrong nonce": {"nonce": "of-another-sign-in"},
            "proved long ago": {"auth_time": now - 4000},
        }
        claims |= lies.get(self.fault, {})
        if self.fault == "no nonce":
            del claims["nonce"]
        return self.signed(claims, code["algorithm"])

    def signed(self, claims: dict[str, Any], algorithm: str) -> str:
        key = next(one for one in self.keys if one.get("alg") == algorithm)
        header = {"alg": algorithm, "kid": key.kid}
        if self.fault == "unsigned":
            parts = [json.dumps({"alg": "none", "kid": key.kid}), json.dumps(claims)]
            return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts) + "."
        if self.fault == "shared secret":
            return jwt.encode({"alg": "HS256", "kid": key.kid}, claims, OctKey.import_key(self.secret), algorithms=["HS256"])
        if self.fault == "another key":
            return jwt.encode(header, claims, ECKey.generate_key("P-256"), algorithms=["ES256"])
        if self.fault == "unpublished key":
            return jwt.encode({**header, "kid": "nobody-knows"}, claims, key, algorithms=[algorithm])
        token = jwt.encode(header, claims, key, algorithms=[algorithm])
        return (
            token[:-8] + ("AAAAAAAA" if not token.endswith("AAAAAAAA") else "BBBBBBBB") if self.fault == "tampered" else token
        )


class Handler(BaseHTTPRequestHandler):
    """One request."""

    world: World
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(place.query).items()}
        match place.path:
            case "/.well-known/openid-configuration":
                self.json(self.world.metadata())
            case "/keys":
                self.json(KeySet(self.world.keys).as_dict(private=False))
            case "/authorize":
                self.authorize(asked, self.world.browsers.get(self.cookie()))
            case "/end":
                self.world.browsers.pop(self.cookie(), None)
                known = f"{urlsplit(self.world.redirect_uris[0])._replace(path='/signin').geturl()}"
                after = asked.get("post_logout_redirect_uri")
                self.redirect(after) if after == known else self.page("signed out")
            case _:
                self.answer(404, b"", "text/plain")

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", "0"))).decode()
        sent = {name: values[0] for name, values in parse_qs(data, keep_blank_values=True).items()}
        match urlsplit(self.path).path:
            case "/login":
                self.login(sent)
            case "/token":
                self.token(sent)
            case "/fault":
                self.world.fault = sent.get("kind", "")
                if self.world.fault == "new keys":
                    self.world.rotate()
                self.json({})
            case _:
                self.answer(404, b"", "text/plain")

    def cookie(self) -> str:
        return self.headers.get("cookie", "").partition("idp=")[2].partition(";")[0]

    def authorize(self, asked: dict[str, str], known: tuple[str, float] | None) -> None:
        """A code for whoever is known here; the login form for everybody else, and where a proof anew is asked for."""
        if asked.get("client_id") != self.world.client_id or asked.get("redirect_uri") not in self.world.redirect_uris:
            return self.answer(400, b"unknown client or redirect_uri", "text/plain")
        if asked.get("response_type") != "code" or asked.get("code_challenge_method") != "S256" or "nonce" not in asked:
            return self.back(asked, {"error": "invalid_request"})
        if self.world.fault == "denied":
            return self.back(asked, {"error": "access_denied"})
        old = known is not None and time.time() - known[1] > float(asked.get("max_age", "1e9"))
        if known is None or asked.get("prompt") == "login" or old:
            return self.form(asked)
        return self.grant(asked, *known)

    def form(self, asked: dict[str, str]) -> None:
        hidden = html.escape(json.dumps(asked), quote=True)
        self.page(
            f'<form method="post" action="/login"><input type="hidden" name="asked" value="{hidden}">'
            '<label>User <input name="user"></label><label>Password <input name="password" type="password"></label>'
            "<button>Log in</button></form>"
        )

    def login(self, sent: dict[str, str]) -> None:
        asked, person = json.loads(sent["asked"]), self.world.people.get(sent["user"])
        if person is None or not secrets.compare_digest(person["password"], sent["password"]):
            return self.form(asked)
        cookie, now = secrets.token_urlsafe(16), time.time()
        self.world.browsers[cookie] = (sent["user"], now)
        return self.grant(asked, sent["user"], now, f"idp={cookie}; Path=/; HttpOnly; SameSite=Lax")

    def grant(self, asked: dict[str, str], user: str, proved_at: float, cookie: str = "") -> None:
        code = secrets.token_urlsafe(16)
        algorithm = self.world.people[user].get("algorithm", "ES256")
        self.world.codes[code] = {**asked, "user": user, "proved_at": proved_at, "at": time.time(), "algorithm": algorithm}
        issuer = "https://elsewhere.example" if self.world.fault == "mixed up" else self.world.issuer
        self.back(asked, {"code": code, "iss": issuer}, cookie)

    def back(self, asked: dict[str, str], answer: dict[str, str], cookie: str = "") -> None:
        self.redirect(asked["redirect_uri"] + "?" + urlencode({**answer, "state": asked.get("state", "")}), cookie)

    def token(self, sent: dict[str, str]) -> None:
        if self.world.fault == "broken":
            return self.answer(500, b"sorry", "text/plain")
        basic = base64.b64encode(f"{self.world.client_id}:{self.world.secret}".encode()).decode()
        if self.headers.get("authorization") != f"Basic {basic}":
            return self.json({"error": "invalid_client"}, 401)
        code = self.world.codes.pop(sent.get("code", ""), None)
        digest = hashlib.sha256(sent.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if code is None or time.time() - code["at"] > CODE_S or code["code_challenge"] != challenge:
            return self.json({"error": "invalid_grant"}, 400)
        if sent.get("redirect_uri") != code["redirect_uri"]:
            return self.json({"error": "invalid_grant"}, 400)
        answer = {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer", "expires_in": TOKEN_S}
        if self.world.fault != "no token":
            answer["id_token"] = self.world.id_token(code)
        return self.json(answer)

    def json(self, content: object, status: int = 200) -> None:
        self.answer(status, json.dumps(content).encode(), "application/json")

    def page(self, body: str) -> None:
        self.answer(200, f"<!doctype html><title>Provider</title>{body}".encode(), "text/html; charset=utf-8")

    def redirect(self, place: str, cookie: str = "") -> None:
        self.answer(303, b"", "text/plain", {"Location": place, **({"Set-Cookie": cookie} if cookie else {})})

    def answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until the process is ended."""
    settings = json.loads(sys.argv[1])
    world = World(settings)
    server = ThreadingHTTPServer(("127.0.0.1", settings.get("port", 0)), Handler)
    world.issuer = f"http://127.0.0.1:{server.server_address[1]}"
    Handler.world = world
    print(world.issuer, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
