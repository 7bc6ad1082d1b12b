"""How people sign in: the table `[signin]` of the app's settings, checked before anything listens.

No secret is in it: the client's secret is in a file of its own that only its owner may read. What is passed on to the server's
process, on its command line, is this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from certs.files import read_private
from certs.party import CertificateError
from proto.frozen import Frozen
from ui.roles import Role

LONGEST_SECRET_BYTES: Final = 4096
DEFAULT_PORTS: Final = {"https": 443, "http": 80}
Text = Annotated[str, Field(min_length=1, max_length=500)]


class SignIn(Frozen):
    """One OpenID Connect provider, and which of its groups are which role here."""

    issuer: Text  # exactly as its tokens name it; its metadata stands beneath
    client_id: Text
    public_url: Text  # of this app, as browsers reach it
    client_secret_file: Path | None = None  # none: a public client, which proves itself by PKCE alone
    ca_file: Path | None = None  # of the provider's certificate, where the system does not know it
    roles_claim: Text = "roles"  # or "groups", or a path such as "realm_access.roles"
    name_claim: Text = "name"
    roles: Mapping[Role, tuple[Text, ...]]
    session_hours: float = Field(default=8.0, gt=0, le=24)  # a working day; then one signs in again
    decision_minutes: float = Field(default=15.0, gt=0, le=720)  # how long ago one may have proved oneself, for a decision
    clock_skew_s: float = Field(default=60.0, ge=0, le=300)
    contact: Text = "whoever runs this app"

    @field_validator("issuer", "public_url")
    @classmethod
    def _safe(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme == "https" and parts.hostname:
            return url
        if parts.scheme == "http" and is_this_machine(parts.hostname):
            return url
        raise ValueError("has to begin with https://; http:// is for this machine's own address only")

    @field_validator("public_url")
    @classmethod
    def _bare(cls, url: str) -> str:
        if not url.isascii():
            raise ValueError("is written as browsers send it: a name with other letters than a to z in its form xn--…")
        parts = urlsplit(url)
        if parts.path not in {"", "/"} or parts.query or parts.fragment or parts.username:
            raise ValueError("is the app's address without a path, such as https://secagg.hospital.example")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        usual = parts.port in {None, DEFAULT_PORTS[parts.scheme]}  # browsers leave it out
        return f"{parts.scheme}://{host}" + ("" if usual else f":{parts.port}")

    @model_validator(mode="after")
    def _somebody(self) -> SignIn:
        if not any(self.roles.values()):
            raise ValueError("no group has a role: nobody could see anything")
        groups = [group for named in self.roles.values() for group in named]
        if len(groups) != len(set(groups)):
            raise ValueError("a group has two roles: give each role a group of its own")
        return self

    @property
    def host(self) -> str:
        """Name and port of the app, as in a browser's Host header."""
        return urlsplit(self.public_url).netloc

    @property
    def port(self) -> int:
        """The port that browsers ask, also where their addresses leave it out."""
        parts = urlsplit(self.public_url)
        return parts.port or DEFAULT_PORTS[parts.scheme]

    @property
    def is_encrypted(self) -> bool:
        """Whether browsers reach the app over TLS."""
        return self.public_url.startswith("https:")

    @property
    def is_local(self) -> bool:
        """Whether only this machine's own browsers reach the app."""
        return is_this_machine(urlsplit(self.public_url).hostname)

    @property
    def redirect_uri(self) -> str:
        """Where the provider sends browsers back to; it has to be registered there."""
        return f"{self.public_url}/signin/back"

    def beneath(self, base: Path) -> SignIn:
        """The same with files relative to `base`."""
        named = {"client_secret_file": self.client_secret_file, "ca_file": self.ca_file}
        return self.model_copy(update={key: None if path is None else base / path for key, path in named.items()})


def is_this_machine(host: str | None) -> bool:
    """Whether a host name is this machine's own."""
    try:
        return host == "localhost" or (host is not None and ip_address(host).is_loopback)
    except ValueError:
        return False


def client_secret(settings: SignIn) -> str | None:
    """The secret from its file. Raises ValueError in one sentence: no such file, open to others, empty."""
    if settings.client_secret_file is None:
        return None
    try:
        data = read_private(settings.client_secret_file, "the client secret", "the sign-in provider's page of this client")
    except CertificateError as error:
        raise ValueError(str(error)) from error
    secret = data[:LONGEST_SECRET_BYTES].decode("utf-8", errors="replace").strip()
    if not secret or not secret.isprintable() or len(data) > LONGEST_SECRET_BYTES:
        raise ValueError(
            f"the client secret {settings.client_secret_file} is not one line of text: write the secret alone into it"
        )
    return secret
