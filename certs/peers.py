"""The list of keys that people confirmed: a hospital's own peers, or the parties that a coordinator admits.

Membership is decided by the SHA-256 of a key and by nothing else. A signature of the CA never suffices: a CA that mints n - 1
peers would defeat the masking of the last one. One file format serves both sides (`peers.toml`).
"""

from __future__ import annotations

import hmac
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from certs import files
from certs.party import CertificateError, Party, PartyName, Purpose

UNCONFIRMED = "nobody (development)"  # what `confirmed_by` says where no person compared the words
FINGERPRINT_BYTES = 32
MAX_NAME_LENGTH = 200
_KEYS = frozenset({"uri", "key_sha256", "confirmed_by", "confirmed_at"})


@dataclass(frozen=True, slots=True)
class Peer:
    """One confirmed key: whose it is, who compared its words, and when (an aware time)."""

    uri: str
    key_sha256: bytes
    confirmed_by: str
    confirmed_at: datetime

    def __post_init__(self) -> None:
        PartyName.parse(self.uri)
        if len(self.key_sha256) != FINGERPRINT_BYTES:
            raise CertificateError(
                f"{self.uri}: key_sha256 has {len(self.key_sha256)} bytes, a SHA-256 has {FINGERPRINT_BYTES}"
            )
        if not self.confirmed_by.isprintable() or not 0 < len(self.confirmed_by) <= MAX_NAME_LENGTH:
            raise CertificateError(
                f"{self.uri}: confirmed_by must name a person, on one line of at most {MAX_NAME_LENGTH} characters"
            )
        if self.confirmed_at.tzinfo is None:
            raise CertificateError(f"{self.uri}: confirmed_at has no time zone: write it like 2026-11-21T10:00:00Z")


@dataclass(frozen=True, slots=True)
class PeerList:
    """Confirmed keys, at most one for each party and one party for each key, all of one study."""

    peers: tuple[Peer, ...]

    def __post_init__(self) -> None:
        _refuse_repeats([peer.uri for peer in self.peers], "party")
        _refuse_repeats([peer.key_sha256.hex() for peer in self.peers], "key")
        studies = {PartyName.parse(peer.uri).study for peer in self.peers}
        if len(studies) > 1:
            raise CertificateError(f"a peer list belongs to one study, this one names {', '.join(sorted(studies))}")

    @property
    def pinned(self) -> Mapping[str, bytes]:
        """URI -> SHA-256 of its key."""
        return MappingProxyType({peer.uri: peer.key_sha256 for peer in self.peers})

    def check(self, party: Party) -> None:
        """Return if `party` is on the list with this key; CertificateError otherwise."""
        expected = self.pinned.get(party.uri)
        if expected is None:
            raise CertificateError(f"{party.uri} is not on the list of confirmed keys: compare its key words, then add it")
        if not hmac.compare_digest(expected, party.fingerprint):
            raise CertificateError(f"{party.uri} presents another key than the confirmed one: compare its key words again")

    def with_peers(self, added: Iterable[Peer]) -> PeerList:
        """A list with `added`. A party already listed with another key is refused; with the same key it is left as it was."""
        result = list(self.peers)
        for peer in added:
            present = self.pinned.get(peer.uri)
            if present is None:
                result.append(peer)
            elif present != peer.key_sha256:
                raise CertificateError(f"{peer.uri} is already listed with another key: remove the old entry by hand first")
        return PeerList(tuple(result))

    def without(self, uri: str) -> PeerList:
        """A list without a party; CertificateError where it is not on it, or would leave the list empty."""
        left = tuple(peer for peer in self.peers if peer.uri != uri)
        if len(left) == len(self.peers):
            raise CertificateError(f"{uri} is not on the list: its keys are named by secagg-certs fingerprint")
        if not left:
            raise CertificateError(f"{uri} is the only party on the list: stop the program that reads it instead")
        return PeerList(left)


AllowList = PeerList  # the coordinator's list of admitted parties is the same thing in the same format


def peer_of(party: Party, confirmed_by: str, confirmed_at: datetime) -> Peer:
    """The entry for a party whose certificate was read; a coordinator is nobody's peer."""
    if party.name.purpose is not Purpose.CLIENT:
        raise CertificateError(f"{party.uri} is a coordinator: list hospitals and evaluators only")
    return Peer(party.uri, party.fingerprint, confirmed_by, confirmed_at)


def load_peers(path: Path) -> PeerList:
    """Read a peer list; CertificateError naming the file, the entry and the reason."""
    content = files.read_bytes(path, "the peer list", "write it with secagg-certs peers")
    try:
        fields = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CertificateError(f"{path} is not valid TOML: {error}") from error
    unknown = sorted(fields.keys() - {"peer"})
    if unknown:
        raise CertificateError(f"{path}: unknown key '{unknown[0]}': a peer list holds [[peer]] entries only")
    entries = fields.get("peer", [])
    if not isinstance(entries, list) or not entries:
        raise CertificateError(f"{path} lists no peer: add [[peer]] entries with secagg-certs peers")
    try:
        return PeerList(tuple(_peer(entry, place) for place, entry in enumerate(entries, start=1)))
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from error


def write_peers(path: Path, peers: PeerList) -> None:
    """Write a peer list, replacing an older one in one step."""
    files.replace(path, "\n".join(_text(peer) for peer in peers.peers).encode(), files.PUBLIC)


def _peer(entry: Any, place: int) -> Peer:
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise CertificateError(f"entry {place} must have exactly the keys {', '.join(sorted(_KEYS))}")
    uri, key, by, at = entry["uri"], entry["key_sha256"], entry["confirmed_by"], entry["confirmed_at"]
    if not isinstance(uri, str) or not isinstance(key, str) or not isinstance(by, str) or not isinstance(at, datetime):
        raise CertificateError(f"entry {place}: uri, key_sha256 and confirmed_by are strings, confirmed_at is a date and time")
    try:
        return Peer(uri, bytes.fromhex(key), by, at)
    except CertificateError:
        raise
    except ValueError as error:
        raise CertificateError(f"entry {place}: key_sha256 is not hexadecimal") from error


def _text(peer: Peer) -> str:
    # URI and hex need no escaping; `confirmed_by` is printable, so only the two characters special to TOML strings remain
    by = peer.confirmed_by.replace("\\", "\\\\").replace('"', '\\"')
    at = peer.confirmed_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f'[[peer]]\nuri = "{peer.uri}"\nkey_sha256 = "{peer.key_sha256.hex()}"\nconfirmed_by = "{by}"\nconfirmed_at = {at}\n'


def _refuse_repeats(values: list[str], what: str) -> None:
    repeated = sorted(value for value in set(values) if values.count(value) > 1)
    if repeated:
        raise CertificateError(f"the {what} {repeated[0]} is listed twice: remove one of the entries")
