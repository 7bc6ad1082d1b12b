"""Keys of one session: X25519 agreement (RFC 7748), HKDF-SHA256 (RFC 5869) with a named purpose, the seed commitment.

Rule: every derived key is bound to the session context, to one purpose and to all parties and public keys it comes
from. A key made here encrypts one box or masks one vector and nothing else (README, Keys).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secagg.encoding import Field, digest, encode
from secagg.errors import LocalError, RemoteError
from secagg.messages import Advert
from secagg.params import RoundParams

KEY_LABEL = "hospital-secagg key v1"
COMMITMENT_LABEL = "hospital-secagg seed commitment v1"
NOISE_LABEL = "hospital-secagg noise commitment v1"
STREAM_KEY_BYTES = 16  # AES-128: masks need 128-bit secrecy for minutes to decades; AES-256 costs 12 % more time
BOX_KEY_BYTES = 16
SECRET_BYTES = 32  # X25519 private keys and seeds
CURVE_PRIME = 2**255 - 19  # RFC 7748: coordinates at or above it are second spellings of smaller ones


class Use(Enum):
    """What a derived key is for."""

    BOX = "box"
    PAIR = "pair"
    SELF = "self"
    ROUNDING = "rounding"
    NOISE = "noise"


def derive(secret: bytes, context: bytes, use: Use, size: int, *names: Field) -> bytes:
    """HKDF-SHA256 with the context as salt and label, use and names as info."""
    return _hkdf(secret, context, encode(KEY_LABEL, use.value, *names), size)


def _hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=size, salt=salt, info=info).derive(secret)


def private_key(secret: bytes) -> X25519PrivateKey:
    """An X25519 private key from its 32 bytes."""
    if len(secret) != SECRET_BYTES:
        raise LocalError(f"an X25519 private key has {SECRET_BYTES} bytes, got {len(secret)}")
    return X25519PrivateKey.from_private_bytes(secret)


def public_of(private: X25519PrivateKey) -> bytes:
    """The 32 bytes of the public key."""
    return private.public_key().public_bytes_raw()


def check_public(key: bytes, *, blame: str) -> None:
    """RemoteError (weak-key) for a coordinate that is not reduced: it is a second spelling of another key."""
    if int.from_bytes(key, "little") >= CURVE_PRIME:
        raise RemoteError(blame, "weak-key", f"an X25519 key of {blame} is not in canonical form")


def agree(private: X25519PrivateKey, public: bytes, *, blame: str) -> bytes:
    """X25519; RemoteError (weak-key) where the result is all zero, which everybody could compute."""
    return _exchange(private, X25519PublicKey.from_public_bytes(public), blame=blame)


def _exchange(private: X25519PrivateKey, public: X25519PublicKey, *, blame: str) -> bytes:
    try:
        return private.exchange(public)
    except ValueError as error:
        raise RemoteError(blame, "weak-key", f"an X25519 key of {blame} has low order") from error


def box_key(params: RoundParams, secret: bytes, sender: Advert, receiver: Advert) -> bytes:
    """Key of the one box from `sender` to `receiver`; the other direction has another key."""
    names = (sender.party, receiver.party, sender.seal_key, receiver.seal_key)
    return derive(secret, params.context(), Use.BOX, BOX_KEY_BYTES, *names)


def pair_key(params: RoundParams, secret: bytes, one: Advert, other: Advert) -> bytes:
    """Mask key of an unordered pair: both sides sort by (fingerprint, key) and derive the same."""
    first, second = sorted((params.fingerprint(advert.party), advert.mask_key) for advert in (one, other))
    return derive(secret, params.context(), Use.PAIR, STREAM_KEY_BYTES, *first, *second)


@dataclass(frozen=True, slots=True)
class Peer:
    """A member's masking key, parsed and encoded once for all its pairs."""

    party: str
    name: tuple[bytes, bytes]  # fingerprint and masking key: what pairs are sorted by
    encoded: bytes
    key: X25519PublicKey


def peer(params: RoundParams, advert: Advert) -> Peer:
    """What the coordinator needs of a member to derive the keys of its pairs."""
    name = (params.fingerprint(advert.party), advert.mask_key)
    return Peer(advert.party, name, encode(*name), X25519PublicKey.from_public_bytes(advert.mask_key))


def pair_keys(params: RoundParams, private: X25519PrivateKey, mine: Peer, others: Iterable[Peer]) -> Iterator[bytes]:
    """`pair_key` of the member whose private key is given with each of the others, in a third of the time."""
    context, label = params.context(), encode(KEY_LABEL, Use.PAIR.value)
    for other in others:
        names = mine.encoded + other.encoded if mine.name < other.name else other.encoded + mine.encoded
        yield _hkdf(_exchange(private, other.key, blame=other.party), context, label + names, STREAM_KEY_BYTES)


def self_key(params: RoundParams, seed: bytes, party: str) -> bytes:
    """Self-mask key from the seed that is shared."""
    return derive(seed, params.context(), Use.SELF, STREAM_KEY_BYTES, party)


def rounding_key(params: RoundParams, seed: bytes, party: str) -> bytes:
    """Key of the rounding bits, from a seed that is never shared: with the bits, fractions of the update could be read."""
    return derive(seed, params.context(), Use.ROUNDING, STREAM_KEY_BYTES, party)


def seed_commitment(params: RoundParams, seed: bytes, party: str) -> bytes:
    """SHA-256 over the seed: binding, and hiding because the seed has 256 random bits."""
    return digest(COMMITMENT_LABEL, params.context(), party, seed)


def noise_key(params: RoundParams, secret: bytes, party: str, number: int) -> bytes:
    """Key of one component of one member's noise, from its place in the chain of secrets."""
    return derive(secret, params.context(), Use.NOISE, STREAM_KEY_BYTES, party, number)


def noise_commitment(params: RoundParams, secret: bytes, party: str, number: int) -> bytes:
    """SHA-256 over one secret of the chain: opened only where its component is to be taken out of the sum."""
    return digest(NOISE_LABEL, params.context(), party, number, secret)
