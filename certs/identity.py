"""The identity of this machine's party: key, certificate and root from one folder, checked against each other.

A folder that loads is usable: whatever is wrong with it is said here, in one sentence, before a connection is tried.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from certs import files
from certs.party import (
    MALFORMED,
    CertificateError,
    PartyName,
    check_dates,
    fingerprint_of,
    parse_certificate,
    parse_certificates,
    party_of_certificate,
    public_key_der_of,
)

KEY_FILE = "node.key"
CERTIFICATE_FILE = "node.crt"
ROOT_FILE = "ca.crt"
CALLERS_FILE = "callers.crt"  # beside a coordinator's key: CAs of hospitals with a PKI of their own
ISSUER_FILE = "issuer.crt"  # of a leaf that the hospital's own CA signed; trusted for nothing else
KEY_ORIGIN = "make it with secagg-node request, a coordinator's with secagg-certs issue"
CERTIFICATE_ORIGIN = "install the signed one with secagg-node install, a coordinator's comes from secagg-certs issue"


@dataclass(frozen=True, slots=True)
class Identity:
    """One party on its own machine. The same key signs TLS handshakes and protocol messages, under different labels."""

    uri: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    key_pem: bytes = field(repr=False)
    public_key_der: bytes = field(repr=False)
    fingerprint: bytes
    certificate_pem: bytes = field(repr=False)
    ca_pem: bytes = field(repr=False)
    not_after: datetime

    @property
    def name(self) -> PartyName:
        """The URI in parts."""
        return PartyName.parse(self.uri)


def load_identity(folder: Path, now: datetime | None = None) -> Identity:
    """Read node.key, node.crt and ca.crt; raise CertificateError unless they belong together and are valid at `now`."""
    key_pem = files.read_private(folder / KEY_FILE, "the private key", KEY_ORIGIN)
    key = load_private_key(key_pem, str(folder / KEY_FILE))
    certificate_pem = files.read_bytes(folder / CERTIFICATE_FILE, "the certificate", CERTIFICATE_ORIGIN)
    ca_pem = files.read_bytes(folder / ROOT_FILE, "the root certificate", CERTIFICATE_ORIGIN)
    certificate = parse_certificate(certificate_pem, str(folder / CERTIFICATE_FILE))
    at = now or datetime.now(UTC)
    party = party_of_certificate(certificate, at, str(folder / CERTIFICATE_FILE))
    if public_key_der_of(key.public_key()) != party.public_key_der:
        raise CertificateError(
            f"{folder}: {CERTIFICATE_FILE} was made for another key than {KEY_FILE}: install the one for this key"
        )
    check_issued(certificate, ca_pem + _own_issuer(folder), at, str(folder / ROOT_FILE))
    return Identity(
        uri=party.uri,
        key=key,
        key_pem=key_pem,
        public_key_der=party.public_key_der,
        fingerprint=party.fingerprint,
        certificate_pem=certificate.public_bytes(Encoding.PEM),
        ca_pem=ca_pem,
        not_after=certificate.not_valid_after_utc,
    )


def stamp_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever a file of the folder is replaced: to read an identity again where, and only where, it changed."""
    stamps = []
    for name in (KEY_FILE, CERTIFICATE_FILE, ROOT_FILE, ISSUER_FILE, CALLERS_FILE):
        try:
            state = (folder / name).stat()
        except OSError:
            continue
        stamps.append((name, state.st_mtime_ns, state.st_ino))
    return tuple(stamps)


def _own_issuer(folder: Path) -> bytes:
    path = folder / ISSUER_FILE
    return b"\n" + files.read_bytes(path, "the issuer's certificate", CERTIFICATE_ORIGIN) if path.exists() else b""


def load_private_key(pem: bytes, source: str) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted P-256 private key; CertificateError naming `source`."""
    try:
        key = load_pem_private_key(pem, password=None)
    except MALFORMED as error:  # TypeError: the key is encrypted
        raise CertificateError(f"{source} holds no readable private key (PEM, without passphrase)") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(f"{source} is not an EC P-256 key: make one with secagg-node request")
    return key


def key_fingerprint(key: ec.EllipticCurvePrivateKey) -> bytes:
    """SHA-256 of the public half."""
    return fingerprint_of(public_key_der_of(key.public_key()))


def check_issued(certificate: x509.Certificate, ca_pem: bytes, now: datetime, source: str) -> None:
    """Return if one of the roots in `ca_pem` signed `certificate` and is valid at `now`."""
    for root in parse_certificates(ca_pem, source):
        try:
            certificate.verify_directly_issued_by(root)
        except (*MALFORMED, InvalidSignature):
            continue
        check_dates(root, now, source)
        return
    raise CertificateError(f"{source} did not sign this certificate: ask the coordinator for the root of your study")
