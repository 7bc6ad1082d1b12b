"""A party as its certificate names it: the URI in the subject alternative name and the key.

This file decides what a valid name and a valid leaf certificate are; every other file of the package asks it. It reads no file,
no clock and no socket.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

_URI = re.compile(
    r"secagg://(?P<study>[a-z0-9][a-z0-9-]{0,62})/(?P<role>hospital|evaluator|coordinator)/(?P<name>[a-z0-9][a-z0-9-]{0,62})"
)


# everything that pyca/cryptography raises on bytes that are not what they claim to be; they share no base class but Exception
MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class CertificateError(ValueError):
    """An identity, key or list that cannot be used; the text says what, where and what to do."""


class Purpose(StrEnum):
    """Which side of a TLS connection a leaf may stand on."""

    CLIENT = "client"
    SERVER = "server"


PURPOSE_OID = {
    Purpose.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    Purpose.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
}


@dataclass(frozen=True, slots=True)
class PartyName:
    """The three parts of `secagg://<study>/<role>/<name>`; build it with `parse`."""

    study: str
    role: str
    name: str

    @classmethod
    def parse(cls, uri: str) -> PartyName:
        """Read a party's URI; CertificateError if it is not one."""
        match = _URI.fullmatch(uri)
        if match is None:
            raise CertificateError(
                f"'{uri}' is not a party: write secagg://<study>/<hospital|evaluator|coordinator>/<name> "
                "in lower-case letters, digits and dashes"
            )
        return cls(match["study"], match["role"], match["name"])

    @property
    def purpose(self) -> Purpose:
        """Hospitals and evaluators dial out, the coordinator listens; nobody does both."""
        return Purpose.SERVER if self.role == "coordinator" else Purpose.CLIENT


@dataclass(frozen=True, slots=True)
class Party:
    """Who is at the other end, as its certificate says: URI, and SHA-256 of the key (SubjectPublicKeyInfo, DER)."""

    uri: str
    fingerprint: bytes
    public_key_der: bytes

    @property
    def name(self) -> PartyName:
        """The URI in parts."""
        return PartyName.parse(self.uri)


def fingerprint_of(public_key_der: bytes) -> bytes:
    """SHA-256 of a key's SubjectPublicKeyInfo: what peer lists pin and people compare."""
    return hashlib.sha256(public_key_der).digest()


def certified_key_der(certificate: x509.Certificate, source: str) -> bytes:
    """SubjectPublicKeyInfo (DER) of any kind of key: a hospital's own CA need not be P-256, only its leaves."""
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except MALFORMED as error:
        raise CertificateError(f"{source} holds a key of an unknown kind: ask for another certificate") from error


def public_key_der_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def parse_certificate(pem: bytes, source: str) -> x509.Certificate:
    """Read the first certificate of a PEM text; CertificateError naming `source`."""
    return parse_certificates(pem, source)[0]


def parse_certificates(pem: bytes, source: str) -> list[x509.Certificate]:
    """Read all certificates of a PEM text; CertificateError naming `source` if there is none or one is damaged."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except MALFORMED as error:
        raise CertificateError(f"{source} holds no readable certificate (PEM): ask for the file again") from error


def leaf_key(read: Callable[[], object], source: str) -> ec.EllipticCurvePublicKey:
    """The P-256 key that `read` (a certificate's or request's `public_key`) returns; any other kind of key is refused."""
    try:
        key = read()
    except MALFORMED as error:
        raise CertificateError(f"{source} holds a key of an unknown kind: only EC P-256 keys are accepted") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__.strip("_")
        raise CertificateError(f"{source} holds a key of the kind {kind}: only EC P-256 keys are accepted")
    return key


def uri_of(certificate: x509.Certificate, source: str) -> str:
    """The one URI of a certificate, if it is a party's."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except MALFORMED as error:
        raise CertificateError(f"{source} names no party: it has no readable subject alternative name") from error
    if len(uris) != 1:
        raise CertificateError(f"{source} names {len(uris)} parties, expected one URI: issue it again with secagg-certs")
    PartyName.parse(uris[0])
    return uris[0]


def is_ca(certificate: x509.Certificate, source: str) -> bool:
    """Whether a certificate may sign others; CertificateError if it does not say."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except MALFORMED as error:
        raise CertificateError(f"{source} does not say whether it is a CA: issue it again with secagg-certs") from error


def party_of_certificate(certificate: x509.Certificate, now: datetime, source: str) -> Party:
    """Who a leaf certificate names, after every check that does not need the CA. Raises CertificateError.

    (1) an EC P-256 key; (2) exactly one party URI; (3) not a CA; (4) the purpose of that party's role and no other;
    (5) valid at `now`. The caller still has to check the CA's signature (TLS does) and the key's pin (PeerList.check).
    """
    party = party_named_in(certificate, source)
    check_dates(certificate, now, source)  # (5)
    return party


def party_named_in(certificate: x509.Certificate, source: str) -> Party:
    """The checks (1) to (4) of `party_of_certificate`, which hold at any time."""
    key = leaf_key(certificate.public_key, source)  # (1)
    uri = uri_of(certificate, source)  # (2)
    if is_ca(certificate, source):  # (3)
        raise CertificateError(f"{source} belongs to a CA, not to a party: use the party's own certificate")
    _check_purpose(certificate, PartyName.parse(uri).purpose, source)  # (4)
    spki = public_key_der_of(key)
    return Party(uri, fingerprint_of(spki), spki)


def check_dates(certificate: x509.Certificate, now: datetime, source: str) -> None:
    """Return if `now` (aware) lies within the certificate's validity."""
    if now < certificate.not_valid_before_utc:
        start = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise CertificateError(f"{source} is valid only from {start}: compare the clocks of both machines")
    if now > certificate.not_valid_after_utc:
        raise CertificateError(
            f"{source} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: have a new one signed by the coordinator"
        )


def _check_purpose(certificate: x509.Certificate, purpose: Purpose, source: str) -> None:
    try:
        usage: list[ObjectIdentifier] = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except MALFORMED as error:
        raise CertificateError(f"{source} states no purpose: issue it again with secagg-certs") from error
    if usage != [PURPOSE_OID[purpose]]:
        raise CertificateError(
            f"{source} is not a {purpose} certificate, which its role needs: issue it again with secagg-certs"
        )
