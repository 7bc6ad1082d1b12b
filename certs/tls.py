"""TLS credentials for both sides, and who is at the other end of a connection.

Mutual TLS 1.3 always: there is no function here that makes an unauthenticated or plaintext connection. Identity is read from
the TLS session only; nothing in a message can change it. Of this package only this file imports grpc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import certs

if not certs.TLS_FLOOR_SET:
    raise ImportError(
        "grpc was imported before certs, so TLS 1.2 cannot be switched off any more: put `import certs` into the "
        "__init__ of the package that uses grpc"
    )

import grpc
from cryptography import x509

from certs import files
from certs.identity import CALLERS_FILE, Identity, load_identity, stamp_of
from certs.party import CertificateError, Party, Purpose, check_dates, parse_certificate, party_named_in

KNOWN_CERTIFICATES = 1024  # of parties that call; each takes a few kB


class TlsContext(Protocol):
    """What both grpc.ServicerContext and grpc.aio.ServicerContext offer."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Properties of the TLS session."""


def server_credentials(identity_folder: Path, now: datetime | None = None) -> grpc.ServerCredentials:
    """The coordinator's side: shows its certificate and requires one of the same root (or of callers.crt) from every client.

    The folder is looked at before every handshake: a renewed certificate is shown from the next connection on, and connections
    that stand keep theirs. While a folder is half replaced, or wrong, the last whole one is shown.
    """
    _load_for(Purpose.SERVER, identity_folder, now)
    shown = _Shown(identity_folder, now)
    fetch: Any = shown.newer  # it may return None, which grpc's types do not say
    return grpc.dynamic_ssl_server_credentials(shown.current(), fetch, require_client_authentication=True)


def channel_credentials(identity_folder: Path, now: datetime | None = None) -> grpc.ChannelCredentials:
    """A node's side: shows its certificate and accepts only a server certificate of the study's root for the dialled host."""
    identity = _load_for(Purpose.CLIENT, identity_folder, now)
    return grpc.ssl_channel_credentials(
        root_certificates=identity.ca_pem, private_key=identity.key_pem, certificate_chain=identity.certificate_pem
    )


def party_of(context: TlsContext, now: datetime | None = None) -> Party:
    """Who made this call, from the TLS session; CertificateError if that cannot be said.

    (1) the connection is TLS; (2) it shows one client certificate; (3) that certificate is a valid leaf of a client, with an EC
    P-256 key, at `now` (a connection can outlive a certificate). The handshake has checked the CA's signature. The caller still
    checks the key against its allow list.
    """
    source = "the certificate of the caller"
    session = context.auth_context()
    if list(session.get("transport_security_type", ())) != [b"ssl"]:  # (1)
        raise CertificateError("the connection is not TLS: connect with the credentials of an enrolled party")
    shown = list(session.get("x509_pem_cert", ()))
    if len(shown) != 1:  # (2)
        raise CertificateError("the connection shows no client certificate: connect with the credentials of an enrolled party")
    certificate, party = _read(shown[0], source)  # (3)
    check_dates(certificate, now or datetime.now(UTC), source)
    if party.name.purpose is not Purpose.CLIENT:
        raise CertificateError(f"{party.uri} is not a party that may call: only hospitals and evaluators dial in")
    return party


def expiry_of(context: TlsContext) -> datetime:
    """When the certificate of a caller ends; the caller has been named by `party_of`."""
    certificate, _ = _read(next(iter(context.auth_context()["x509_pem_cert"])), "the certificate of the caller")
    return certificate.not_valid_after_utc


class _Shown:
    """What a server shows: read again where a file of its folder changed."""

    def __init__(self, folder: Path, now: datetime | None) -> None:
        self._folder = folder
        self._now = now
        self._stamp = stamp_of(folder)

    def current(self) -> grpc.ServerCertificateConfiguration:
        """Raises CertificateError."""
        identity = _load_for(Purpose.SERVER, self._folder, self._now)
        roots = identity.ca_pem + _callers(self._folder)
        shown = [(identity.key_pem, identity.certificate_pem)]
        return grpc.ssl_server_certificate_configuration(shown, root_certificates=roots)

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """None where nothing changed, or what is there now cannot be used."""
        stamp = stamp_of(self._folder)
        if stamp == self._stamp:
            return None
        try:
            changed = self.current()
        except CertificateError:
            return None
        self._stamp = stamp
        return changed


def _callers(folder: Path) -> bytes:
    path = folder / CALLERS_FILE
    return b"\n" + files.read_bytes(path, "the issuers of callers", "restore it") if path.exists() else b""


@lru_cache(maxsize=KNOWN_CERTIFICATES)
def _read(pem: bytes, source: str) -> tuple[x509.Certificate, Party]:
    """A certificate and whom it names: a pure function of its bytes, which every call of a connection shows again."""
    certificate = parse_certificate(pem, source)
    return certificate, party_named_in(certificate, source)


def _load_for(purpose: Purpose, folder: Path, now: datetime | None) -> Identity:
    identity = load_identity(folder, now)
    if identity.name.purpose is not purpose:
        raise CertificateError(
            f"{folder} holds the identity of {identity.uri}, which cannot stand on the {purpose} side of a connection"
        )
    return identity
