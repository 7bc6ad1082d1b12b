"""The certificate authority of one study: a root, and leaves of 90 days that it signs.

A leaf says who somebody is, not that they take part: that is decided by the lists of confirmed keys (peers.py). Every
extension of a leaf is this file's own choice; from outside come a name and a public key.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs import files
from certs.identity import (
    CERTIFICATE_FILE,
    KEY_FILE,
    ROOT_FILE,
    Identity,
    key_fingerprint,
    load_identity,
    load_private_key,
)
from certs.party import (
    CertificateError,
    PartyName,
    Purpose,
    check_dates,
    fingerprint_of,
    leaf_key,
    parse_certificate,
    public_key_der_of,
)

ROOT_KEY_FILE = "ca.key"
AUTHORITY_ORIGIN = "name the folder that secagg-certs init-ca made"
RECORD_FILE = "issued.jsonl"  # append-only: one line for each certificate signed
LEAF_DAYS = 90
MAX_LEAF_DAYS = 398  # as for public web servers; there is no revocation list, so a leaf must not live long
ROOT_DAYS = 3650
CLOCK_SKEW = timedelta(minutes=5)  # a leaf is valid at once on a machine whose clock is a little behind
LOOPBACK_DNS = ("localhost",)
LOOPBACK_IP = ("127.0.0.1",)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Authority:
    """A study's root on the machine that signs."""

    study: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate = field(repr=False)

    @property
    def certificate_pem(self) -> bytes:
        """ca.crt, which every party holds."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the root's key: what a hospital compares before it trusts the root."""
        return key_fingerprint(self.key)


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is signed for one party: a name, a key, and where the party can be reached if it listens."""

    uri: str
    public_key: ec.EllipticCurvePublicKey
    dns_names: tuple[str, ...] = LOOPBACK_DNS
    ip: tuple[str, ...] = LOOPBACK_IP
    days: int = LEAF_DAYS

    def __post_init__(self) -> None:
        PartyName.parse(self.uri)
        if not 1 <= self.days <= MAX_LEAF_DAYS:
            raise CertificateError(f"a certificate lives 1 to {MAX_LEAF_DAYS} days, not {self.days}")

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the key."""
        return fingerprint_of(public_key_der_of(self.public_key))


def create_authority(folder: Path, study: str, now: datetime | None = None) -> Authority:
    """Make the root of `study`: ca.key (0600) and ca.crt. Never replaces one."""
    PartyName.parse(f"secagg://{study}/coordinator/root")  # the study's name follows the rule of URIs
    at = now or datetime.now(UTC)
    files.make_folder(folder)
    files.refuse_existing(folder, ROOT_KEY_FILE, ROOT_FILE)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, study), x509.NameAttribute(NameOID.COMMON_NAME, "secagg study root")]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - CLOCK_SKEW)
        .not_valid_after(at + timedelta(days=ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    files.write_new(folder / ROOT_KEY_FILE, private_pem(key), files.PRIVATE)
    files.write_new(folder / ROOT_FILE, certificate.public_bytes(Encoding.PEM), files.PUBLIC)
    return Authority(study, key, certificate)


def load_authority(folder: Path) -> Authority:
    """Read ca.key and ca.crt; CertificateError if they do not belong together."""
    key = load_private_key(
        files.read_private(folder / ROOT_KEY_FILE, "the root key", AUTHORITY_ORIGIN), str(folder / ROOT_KEY_FILE)
    )
    source = str(folder / ROOT_FILE)
    certificate = parse_certificate(files.read_bytes(folder / ROOT_FILE, "the root certificate", AUTHORITY_ORIGIN), source)
    if public_key_der_of(leaf_key(certificate.public_key, source)) != public_key_der_of(key.public_key()):
        raise CertificateError(
            f"{folder}: {ROOT_FILE} was made for another key than {ROOT_KEY_FILE}: use the folder of one authority"
        )
    studies = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(studies) != 1:
        raise CertificateError(f"{source} does not name its study: make the root with secagg-certs init-ca")
    return Authority(str(studies[0].value), key, certificate)


def sign_leaf(authority: Authority, leaf: Leaf, now: datetime) -> bytes:
    """The certificate (PEM) of one party. Pure but for the serial number; whoever calls it records it with `record`."""
    name = PartyName.parse(leaf.uri)
    if name.study != authority.study:
        raise CertificateError(f"{leaf.uri} belongs to another study than this authority, '{authority.study}'")
    check_dates(authority.certificate, now, "the root certificate")
    until = min(now + timedelta(days=leaf.days), authority.certificate.not_valid_after_utc)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if name.purpose is Purpose.SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.name)]))  # for people; nothing reads it
        .issuer_name(authority.certificate.subject)
        .public_key(leaf.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.SubjectAlternativeName(_names(leaf)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(leaf.public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def issue(
    authority_folder: Path,
    uri: str,
    out_folder: Path,
    *,
    days: int = LEAF_DAYS,
    dns_names: Sequence[str] = LOOPBACK_DNS,
    ip: Sequence[str] = LOOPBACK_IP,
    now: datetime | None = None,
) -> Identity:
    """Make a key and its certificate in one place: the coordinator's own, or a party of a demo. Never replaces a key.

    `dns_names` and `ip` matter for the coordinator only: the hosts under which nodes dial it.
    """
    authority = load_authority(authority_folder)
    at = now or datetime.now(UTC)
    files.refuse_existing(out_folder, KEY_FILE, CERTIFICATE_FILE, ROOT_FILE)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = Leaf(uri, key.public_key(), tuple(dns_names), tuple(ip), days)
    pem = sign_leaf(authority, leaf, at)
    files.make_folder(out_folder)
    record(authority_folder, leaf, pem, at, words_compared=False)
    files.write_new(out_folder / KEY_FILE, private_pem(key), files.PRIVATE)
    files.write_new(out_folder / CERTIFICATE_FILE, pem, files.PUBLIC)
    files.write_new(out_folder / ROOT_FILE, authority.certificate_pem, files.PUBLIC)
    return load_identity(out_folder, at)


def record(folder: Path, leaf: Leaf, pem: bytes, at: datetime, *, words_compared: bool, succeeds: bytes = b"") -> None:
    """Append the record before the certificate leaves: what was signed is in it, also after a crash.

    `succeeds` is the SHA-256 of the key whose holder named this one (certs/succession.py), in place of words.
    """
    certificate = parse_certificate(pem, leaf.uri)
    line = {
        "at": at.astimezone(UTC).isoformat(timespec="seconds"),
        "uri": leaf.uri,
        "serial": f"{certificate.serial_number:x}",
        "key_sha256": leaf.fingerprint.hex(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "words_compared": words_compared,
        **({"succeeds": succeeds.hex()} if succeeds else {}),
    }
    try:
        with (folder / RECORD_FILE).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
    except OSError as error:
        raise CertificateError(f"cannot write {folder / RECORD_FILE}: {error.strerror}") from error


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8 without passphrase: a node starts unattended; the file mode guards the key."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _names(leaf: Leaf) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(leaf.uri)]
    if PartyName.parse(leaf.uri).purpose is Purpose.SERVER:
        names += [_dns_name(text) for text in leaf.dns_names]
        names += [x509.IPAddress(_ip_address(text)) for text in leaf.ip]
    return names


def _dns_name(text: str) -> x509.DNSName:
    if not text or not text.isascii() or any(character.isspace() or character in "*/:" for character in text):
        raise CertificateError(f"'{text}' is not a host name: write it like coordinator.example.org, without port or wildcard")
    return x509.DNSName(text)


def _ip_address(text: str) -> IpAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise CertificateError(f"'{text}' is not an IP address: write it like 192.0.2.7, and names with --dns") from error


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """A CA signs certificates and lists, a leaf signs handshakes and messages; nobody both."""
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
