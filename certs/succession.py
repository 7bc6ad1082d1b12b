"""A renewed key: the statement with which the holder of a key names the next one, and where such statements lead.

A list of confirmed keys is written by people. A key that is replaced on the way is reached from the confirmed one by
statements, each signed by the key before it over (URI, old key, new key, validity):
(1) a statement counts only for the party that it names, and only from the key that is pinned at that point;
(2) one that was signed before people confirmed the entry does not count: they confirmed that key and no older history;
(3) of two statements of one key the first recorded counts;
(4) a statement is taken up within its validity or never; a CA's signature plays no part.
Pure but for `load_successions` and `append_succession`, which keep them one JSON object a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from certs import files
from certs.party import MALFORMED, CertificateError, PartyName, fingerprint_of, public_key_der_of
from certs.peers import Peer, PeerList
from secagg.encoding import encode

LABEL = "hospital-secagg succession v1"
LONGEST = timedelta(days=91)  # a leaf of 90 days, and the skew of two clocks
SKEW = timedelta(minutes=5)
MOST_STATEMENTS = 64  # of one party in one list: renewed every 60 days, ten years
SIGN = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
FIELDS = frozenset({"uri", "old_key", "new_key", "not_before", "not_after", "signature"})


@dataclass(frozen=True, slots=True)
class Succession:
    """One statement. Keys are SubjectPublicKeyInfo (DER), times whole seconds; its signature holds, or it cannot be made."""

    uri: str
    old_key: bytes
    new_key: bytes
    not_before: datetime
    not_after: datetime
    signature: bytes

    def __post_init__(self) -> None:
        PartyName.parse(self.uri)
        if self.old_key == self.new_key:
            raise CertificateError(f"{self.uri} names its own key as the next one: a renewal makes a new key")
        if not timedelta(0) < self.not_after - self.not_before <= LONGEST:
            raise CertificateError(f"{self.uri}: a new key is announced for at most {LONGEST.days} days")
        _p256(self.new_key, self.uri)
        try:
            _p256(self.old_key, self.uri).verify(self.signature, _statement(self), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise CertificateError(
                f"the new key of {self.uri} is not signed by its old one: do not go on, compare key words with its people"
            ) from error

    @property
    def old_sha256(self) -> bytes:
        """SHA-256 of the key that signed."""
        return fingerprint_of(self.old_key)

    @property
    def new_sha256(self) -> bytes:
        """SHA-256 of the key that is named."""
        return fingerprint_of(self.new_key)

    def encoded(self) -> bytes:
        """One line of JSON, as it is kept and as it travels."""
        fields = {
            "uri": self.uri,
            "old_key": self.old_key.hex(),
            "new_key": self.new_key.hex(),
            "not_before": int(self.not_before.timestamp()),
            "not_after": int(self.not_after.timestamp()),
            "signature": self.signature.hex(),
        }
        return json.dumps(fields, sort_keys=True).encode()


def sign_succession(
    uri: str, key: ec.EllipticCurvePrivateKey, new_key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> Succession:
    """The statement of the holder of `key` that `new_key` follows it, from now on for `life`."""
    old, new = public_key_der_of(key.public_key()), public_key_der_of(new_key)
    begin = now.replace(microsecond=0)
    end = begin + life
    statement = encode(LABEL, uri, old, new, int(begin.timestamp()), int(end.timestamp()))
    return Succession(uri, old, new, begin, end, key.sign(statement, SIGN))


def parse_succession(line: bytes, source: str) -> Succession:
    """Read one statement and check its signature; CertificateError naming `source`."""
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict) or fields.keys() != FIELDS:
            raise ValueError("other fields")  # noqa: TRY301  one sentence for every damage
        begin, end = (datetime.fromtimestamp(int(fields[name]), UTC) for name in ("not_before", "not_after"))
        old, new, signature = (bytes.fromhex(fields[name]) for name in ("old_key", "new_key", "signature"))
        uri = str(fields["uri"])
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise CertificateError(f"{source} holds no readable statement about a renewed key: ask for it again") from error
    return Succession(uri, old, new, begin, end, signature)


def chain_from(confirmed: Peer, statements: Iterable[Succession]) -> tuple[Succession, ...]:
    """The statements that lead from a confirmed key to the present one, in order; none where it was never renewed."""
    after: dict[bytes, Succession] = {}
    for one in statements:
        if one.uri == confirmed.uri and one.not_before >= confirmed.confirmed_at - SKEW:  # (1), (2)
            after.setdefault(one.old_sha256, one)  # (3)
    chain: list[Succession] = []
    key = confirmed.key_sha256
    while key in after and len(chain) < MOST_STATEMENTS:
        chain.append(after.pop(key))  # popped, so that statements in a circle end
        key = chain[-1].new_sha256
    return tuple(chain)


def present_keys(confirmed: PeerList, statements: Sequence[Succession]) -> Mapping[str, bytes]:
    """URI -> SHA-256 of the key of today, for every party of the list."""
    keys = {}
    for peer in confirmed.peers:
        chain = chain_from(peer, statements)
        keys[peer.uri] = chain[-1].new_sha256 if chain else peer.key_sha256
    return keys


def new_statements(pinned: bytes, offered: Sequence[Succession], key_sha256: bytes, now: datetime) -> tuple[Succession, ...]:
    """Those of `offered` that lead from the pinned key to `key_sha256`; CertificateError where they do not, now."""
    taken: list[Succession] = []
    key = pinned
    for one in offered[:MOST_STATEMENTS]:
        if one.old_sha256 == key:
            taken.append(one)
            key = one.new_sha256
    if key != key_sha256 or not taken:
        raise CertificateError(
            "the statements do not lead from the confirmed key to this one: compare key words with its people"
        )
    last = taken[-1]
    if not last.not_before - SKEW <= now <= last.not_after:  # (4)
        raise CertificateError(f"the new key of {last.uri} was announced for another time: compare the clocks of both machines")
    return tuple(taken)


def load_successions(path: Path) -> tuple[Succession, ...]:
    """Every statement kept in a file, each verified again; none where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}; let this user read it") from error
    return tuple(parse_succession(line, str(path)) for line in content.splitlines() if line)


def append_succession(path: Path, statement: Succession) -> None:
    """Keep one statement, durably, before it is acted on."""
    kept = load_successions(path)
    if statement not in kept:
        lines = b"".join(one.encoded() + b"\n" for one in (*kept, statement))
        files.replace(path, lines, files.PUBLIC)


def _statement(one: Succession) -> bytes:
    return encode(LABEL, one.uri, one.old_key, one.new_key, int(one.not_before.timestamp()), int(one.not_after.timestamp()))


def _p256(der: bytes, uri: str) -> ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(der)
    except MALFORMED as error:
        raise CertificateError(f"a statement about a key of {uri} holds no readable key: ask for it again") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(f"a statement about a key of {uri} names another kind of key than EC P-256")
    return key
