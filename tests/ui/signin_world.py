"""A provider process, the app's own process behind it, and a browser as small as the protocol allows."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

import tomli_w

ROOT = Path(__file__).resolve().parent.parent.parent
START_S = 180.0
SECRET = "between-the-app-and-the-provider-0123456789"
CLIENT = "secagg-ui"
PEOPLE = {
    "keller": {"sub": "keller-1", "name": "Dr K. Weber", "groups": ["secagg-officers", "staff"]},
    "lind": {"sub": "lind-2", "name": "Dr L. Lind", "groups": ["secagg-officers"]},
    "sato": {"sub": "sato-3", "name": "M. Sato", "groups": ["secagg-research"]},
    "okoro": {"sub": "okoro-4", "name": "B. Okoro", "groups": "secagg-operators"},
    "guest": {"sub": "guest-5", "name": "A Guest", "groups": ["staff"]},
}
GROUPS = {"officer": ["secagg-officers"], "researcher": ["secagg-research"], "operator": ["secagg-operators"]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Deployment:
    """Where both processes are."""

    app: str
    issuer: str
    provider: subprocess.Popen[str]
    settings: Path
    log: Path
    provider_arguments: dict[str, object] = field(default_factory=dict)

    def lie(self, kind: str = "") -> None:
        """From now on tokens are wrong in this way; in no way, where it is empty."""
        place = urlsplit(self.issuer)
        caller = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)
        caller.request("POST", "/fault", urlencode({"kind": kind}), {"Content-Type": "application/x-www-form-urlencoded"})
        assert caller.getresponse().status == 200
        caller.close()

    def stop_provider(self) -> None:
        self.provider.terminate()
        self.provider.wait(timeout=120)

    def start_provider(self) -> None:
        self.provider = start_provider(self.provider_arguments)
        assert self.provider.stdout is not None
        assert self.provider.stdout.readline().strip() == self.issuer


def start_provider(arguments: dict[str, object]) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("oidc_provider.py")), json.dumps(arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def write_settings(folder: Path, issuer: str, port: int, folders: dict[str, object], /, **further: object) -> Path:
    """ui.toml and the client's secret beside it."""
    secret = folder / "client-secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET + "\n")
    signin = {"issuer": issuer, "client_id": CLIENT, "client_secret_file": secret.name, "roles_claim": "groups"}
    signin |= {"public_url": f"http://127.0.0.1:{port}", "contact": "the study office", "roles": GROUPS, **further}
    path = folder / "ui.toml"
    path.write_text(tomli_w.dumps({**folders, "port": port, "signin": signin}))
    return path


@contextmanager
def deployment(folder: Path, folders: dict[str, object], /, **further: object) -> Iterator[Deployment]:
    """A provider and the app, each started as a user starts it, until the block ends."""
    port, issuer_port = free_port(), free_port()
    app = f"http://127.0.0.1:{port}"
    people = {user: {"password": f"{user} password", "claims": claims} for user, claims in PEOPLE.items()}
    people["sato"]["algorithm"] = "RS256"
    arguments: dict[str, object] = {
        "client_id": CLIENT,
        "secret": SECRET,
        "redirect_uris": [f"{app}/signin/back"],
        "people": people,
        "port": issuer_port,
    }
    issuer = f"http://127.0.0.1:{issuer_port}"
    settings = write_settings(folder, issuer, port, folders, **further)
    log = folder / "app.log"
    with log.open("w") as kept:
        command = [sys.executable, "-c", "from ui.cli import main; main()", "--config", str(settings)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=kept, stderr=kept, text=True)
    found = Deployment(app, issuer, start_provider(arguments), settings, log, arguments)
    try:
        assert found.provider.stdout is not None
        assert found.provider.stdout.readline().strip() == issuer
        wait_for(port, process)
        yield found
    finally:
        process.terminate()
        process.wait(timeout=120)
        found.stop_provider()


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            caller = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            caller.request("GET", "/_stcore/health")
            if caller.getresponse().status == 200:
                return
        except OSError:
            assert process.poll() is None, "the app ended by itself"
        assert time.monotonic() < deadline, "the app did not answer in time"
        time.sleep(0.1)


@dataclass
class Answer:
    """One answer. `to` is where it sends the browser."""

    status: int
    body: str
    headers: dict[str, str]
    to: str
    url: str


@dataclass
class Browser:
    """Cookies by host, and requests that follow no redirect by themselves."""

    jar: dict[str, dict[str, str]] = field(default_factory=dict)

    def get(self, url: str, **headers: str) -> Answer:
        return self._ask("GET", url, None, headers)

    def post(self, url: str, sent: dict[str, str]) -> Answer:
        return self._ask("POST", url, urlencode(sent), {"Content-Type": "application/x-www-form-urlencoded"})

    def _ask(self, method: str, url: str, body: str | None, headers: dict[str, str]) -> Answer:
        place = urlsplit(url)
        jar = self.jar.setdefault(place.netloc, {})
        sent = {"Accept": "text/html", **headers}
        if jar:
            sent.setdefault("Cookie", "; ".join(f"{name}={value}" for name, value in jar.items()))
        caller = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)
        caller.request(method, place._replace(scheme="", netloc="").geturl() or "/", body, sent)
        answer = caller.getresponse()
        text = answer.read().decode(errors="replace")
        for cookie in answer.headers.get_all("set-cookie") or ():
            name, _, rest = cookie.partition("=")
            value = rest.partition(";")[0].strip('"')
            jar.pop(name, None) if not value or "Max-Age=0" in cookie else jar.update({name: value})
        to = answer.headers.get("location", "")
        found = Answer(
            answer.status, text, {n.lower(): v for n, v in answer.headers.items()}, urljoin(url, to) if to else "", url
        )
        caller.close()
        return found

    def to_provider(self, app: str, then: str = "/", *, fresh: bool = False) -> Answer:
        """From the app's link to the provider's first answer: its form, or the way back."""
        begun = self.get(f"{app}/signin/start?" + urlencode({"to": then, **({"fresh": "1"} if fresh else {})}))
        assert begun.status == 303, begun.body
        return self.get(begun.to)

    def log_in(self, form: Answer, user: str) -> Answer:
        """Fill the provider's form in, unless it knows this browser; its answer leads back to the app."""
        if form.to:
            return form
        asked = re.search(r'name="asked" value="([^"]*)"', form.body)
        assert asked is not None, form.body
        place = urlsplit(form.url)._replace(path="/login", query="").geturl()
        return self.post(place, {"asked": unescape(asked[1]), "user": user, "password": f"{user} password"})

    def sign_in(self, app: str, user: str, then: str = "/", *, fresh: bool = False) -> Answer:
        """The whole way; the app's answer to what the provider sent back."""
        form = self.to_provider(app, then, fresh=fresh)
        return self.get(self.log_in(form, user).to)
