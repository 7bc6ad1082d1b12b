"""Files that a party signs with the key of its certificate, so that anybody checks them later, with openssl alone if need be.

The signature is ECDSA with SHA-256 over the file's own bytes, in DER. The same key signs TLS handshakes (those bytes begin with
a space) and protocol messages (they begin with a length, so with a zero); a signed file is a JSON object and begins with a
brace. So no signature of one kind is ever one of another, and nothing else is signed here. Pure but for `chain_of`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.files import read_bytes
from certs.identity import CERTIFICATE_ORIGIN, ISSUER_FILE, Identity, check_issued
from certs.party import CertificateError, Party, check_dates, parse_certificates, party_named_in

FIRST_BYTE = b"{"
ALGORITHM = ec.ECDSA(hashes.SHA256())


class SignatureWrong(CertificateError):
    """The bytes are not those that were signed, or another key signed them."""


@dataclass(frozen=True, slots=True)
class SignedBy:
    """Who signed, as the certificate beside the file says. `root_sha256` is of the certificate that vouches for it."""

    party: Party
    root_sha256: str
    not_after: datetime


def document(fields: Mapping[str, object]) -> bytes:
    """A JSON object as the bytes of a file that is signed: sorted keys, UTF-8, one line break at the end."""
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n"


def sign_file(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """The signature of `data`, a JSON object, in DER."""
    if data[:1] != FIRST_BYTE:
        raise ValueError("only a JSON object is signed here: its first byte keeps it apart from everything else this key signs")
    return key.sign(data, ALGORITHM)


def chain_of(identity: Identity, folder: Path) -> bytes:
    """The certificates that go beside a signed file, in PEM: the party's own first, then those that may have signed it."""
    own = folder / ISSUER_FILE
    issuer = read_bytes(own, "the issuer's certificate", CERTIFICATE_ORIGIN) if own.exists() else b""
    parts = parse_certificates(identity.certificate_pem + identity.ca_pem + b"\n" + issuer, str(folder))
    return b"".join(one.public_bytes(Encoding.PEM) for one in parts)


def check_chain(chain: bytes, at: datetime, source: str) -> SignedBy:
    """Who the first certificate of `chain` names, if another one of it signed that and both held at `at`. CertificateError."""
    leaf, *roots = parse_certificates(chain, source)
    party = party_named_in(leaf, source)
    check_dates(leaf, at, source)
    for root in roots:
        try:
            check_issued(leaf, root.public_bytes(Encoding.PEM), at, source)
        except CertificateError:
            continue
        return SignedBy(party, root.fingerprint(hashes.SHA256()).hex(), leaf.not_valid_after_utc)
    raise CertificateError(f"{source}: none of the {len(roots)} certificates behind the first one signed it, or it had ended")


def check_signature(data: bytes, signature: bytes, chain: bytes, source: str) -> None:
    """Return if the key of the first certificate of `chain` signed `data`; SignatureWrong otherwise."""
    key = parse_certificates(chain, source)[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey), "`check_chain` has refused every other kind"
    try:
        key.verify(signature, data, ALGORITHM)
    except InvalidSignature as error:
        raise SignatureWrong(f"{source}: the signature is not of these bytes by the key of that certificate") from error
