"""Signatures of members: ECDSA P-256 with SHA-256, always under a label, a purpose and the session context.

The same key authenticates the member's TLS connections; the label keeps the two uses apart. Signing is deterministic
(RFC 6979), so no random number can leak the key and an answer that is made again is made identically.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from secagg.encoding import encode
from secagg.errors import LocalError, RemoteError

SIGNATURE_LABEL = "hospital-secagg signature v1"
SIGN = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
VERIFY = ec.ECDSA(Prehashed(hashes.SHA256()))  # of `_hashed`


class Purpose(Enum):
    """What a signature is for; no two statements share one."""

    ADVERT = "advert"
    SHARES = "shares"
    UPLOAD = "upload"
    CONFIRM = "confirm"


def sign(key: ec.EllipticCurvePrivateKey, purpose: Purpose, context: bytes, statement: bytes) -> bytes:
    """DER signature over label, purpose, context and statement."""
    return key.sign(encode(SIGNATURE_LABEL, purpose.value, context, statement), SIGN)


def verify(key_der: bytes, purpose: Purpose, context: bytes, statement: bytes, signature: bytes, *, blame: str) -> None:
    """RemoteError (bad-signature) naming `blame` unless the holder of the key signed exactly this."""
    key = load_public_key(key_der)
    try:
        key.verify(signature, _hashed(purpose, context, statement), VERIFY)
    except InvalidSignature as error:
        text = f"a signature ({purpose.value}) does not fit its statement in this session"
        raise RemoteError(blame, "bad-signature", text) from error


@lru_cache(maxsize=1)
def _hashed(purpose: Purpose, context: bytes, statement: bytes) -> bytes:
    """SHA-256 of what is signed. Remembered: all confirmations of a round are over one statement, as long as the roster."""
    return hashlib.sha256(encode(SIGNATURE_LABEL, purpose.value, context, statement)).digest()


def public_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """SubjectPublicKeyInfo of the key's public half, DER."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=1 << 12)
def load_public_key(key_der: bytes) -> ec.EllipticCurvePublicKey:
    """A P-256 public key from DER; LocalError for anything else. Remembered, since each member signs four times."""
    try:
        key = serialization.load_der_public_key(key_der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise LocalError("a member's public key is not SubjectPublicKeyInfo in DER") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise LocalError("a member's public key is not on the curve P-256")
    return key
