"""The messages of the five phases as frozen values; each mirrors its protobuf message.

Rule: an invalid message cannot exist. Above all, `Revealed` cannot hold two shares of one peer: whoever has t shares of
both secrets of a hospital reads its update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from secagg.errors import UNKNOWN, RemoteError

KEY_BYTES = 32  # X25519
DIGEST_BYTES = 32
MAX_SIGNATURE_BYTES = 72  # DER of two 256-bit integers
MAX_BOX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Advert:
    """Phase 1: the public half of what a member drew for this session."""

    party: str
    seal_key: bytes
    mask_key: bytes
    seed_commitment: bytes
    signature: bytes
    neighbours: tuple[int, ...] = ()  # places of the members drawn as holders of my shares; () in the complete graph
    noise_commitments: tuple[bytes, ...] = ()  # to the secrets of components 1 ... d; () without shared noise

    def __post_init__(self) -> None:
        _require(self.party, len(self.seal_key) == KEY_BYTES, "the sealing key is not 32 bytes")
        _require(self.party, len(self.mask_key) == KEY_BYTES, "the masking key is not 32 bytes")
        _require(self.party, len(self.seed_commitment) == DIGEST_BYTES, "the seed commitment is not 32 bytes")
        _require(self.party, 0 < len(self.signature) <= MAX_SIGNATURE_BYTES, "the signature has an impossible length")
        _require(
            self.party, {len(item) for item in self.noise_commitments} <= {DIGEST_BYTES}, "a noise commitment is not 32 bytes"
        )
        _require(self.party, all(0 <= place < 1 << 32 for place in self.neighbours), "a neighbour's place is impossible")

    @property
    def values(self) -> tuple[bytes, ...]:
        """What no two adverts may have in common."""
        return self.seal_key, self.mask_key, self.seed_commitment, *self.noise_commitments


@dataclass(frozen=True, slots=True)
class Box:
    """One receiver's shares, sealed for that receiver alone."""

    receiver: str
    sealed: bytes

    def __post_init__(self) -> None:
        _require(UNKNOWN, 0 < len(self.sealed) <= MAX_BOX_BYTES, "a sealed box has an impossible length")


@dataclass(frozen=True, slots=True)
class BoxDigests:
    """SHA-256 of each sealed box of one sender, which signs all of them. False where there are none.

    Receivers in the order of their names, and the digests one after the other: one value and not n, of which n members would
    make n^2.
    """

    receivers: tuple[str, ...] = ()
    joined: bytes = b""

    def __post_init__(self) -> None:
        if len(self.joined) != DIGEST_BYTES * len(self.receivers):
            raise RemoteError(UNKNOWN, "malformed", "the digests of a member's boxes are not 32 bytes each")

    def __len__(self) -> int:
        return len(self.receivers)

    def of(self, receiver: str) -> bytes | None:
        """The digest of the box for `receiver`, None where there is none."""
        if receiver not in self.receivers:
            return None
        at = DIGEST_BYTES * self.receivers.index(receiver)
        return self.joined[at : at + DIGEST_BYTES]


NO_DIGESTS = BoxDigests()


@dataclass(frozen=True, slots=True)
class ShareSet:
    """Phase 2: one box for every receiver, which are all other advertised members, or those drawn in a sparse session.

    A node sends all boxes and no digests, which the coordinator computes; the coordinator relays to each receiver one
    box and all digests, and to everybody else the summary of the digests. Entries are in the order of the receivers' names.
    """

    party: str
    boxes: tuple[Box, ...]
    digests: BoxDigests
    signature: bytes
    summary: bytes = b""  # SHA-256 of all digests, for readers that are sent none

    def __post_init__(self) -> None:
        _require(self.party, 0 < len(self.signature) <= MAX_SIGNATURE_BYTES, "the signature has an impossible length")
        _require(self.party, len(self.summary) in (0, DIGEST_BYTES), "the summary of the digests is not 32 bytes")
        _require(self.party, not (self.digests and self.summary), "the digests and their summary are both there")

    def with_digests(self) -> ShareSet:
        """The same set with the digest of every box it holds; digests that are already there stay."""
        if self.digests:
            return self
        return ShareSet(self.party, self.boxes, digests_of(self.boxes), self.signature, self.summary)

    def for_receiver(self, reader: str) -> ShareSet:
        """What the coordinator relays: to a receiver its box and all digests, as to the sender; to others the summary.

        `relay.Relay` gives the same for many readers at once.
        """
        boxes = tuple([box for box in self.boxes if box.receiver == reader])
        full = self.with_digests()
        if boxes or reader == self.party:
            return ShareSet(self.party, boxes, full.digests, self.signature)
        return full.stub()

    def stub(self) -> ShareSet:
        """What is relayed to those who are sent no box: the summary of the digests."""
        return ShareSet(self.party, (), NO_DIGESTS, self.signature, summary_of(self.with_digests().digests))


@dataclass(frozen=True, slots=True)
class UploadSeal:
    """Phase 3, after the words: SHA-256 of the whole masked vector and a signature over it."""

    digest: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _require(UNKNOWN, len(self.digest) == DIGEST_BYTES, "the upload digest is not 32 bytes")
        _require(UNKNOWN, 0 < len(self.signature) <= MAX_SIGNATURE_BYTES, "the signature has an impossible length")


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Phase 4: a member's signature over the survivor list; the list itself is known to both sides."""

    party: str
    signature: bytes

    def __post_init__(self) -> None:
        _require(self.party, 0 < len(self.signature) <= MAX_SIGNATURE_BYTES, "the signature has an impossible length")


class ShareKind(Enum):
    """Which of a peer's two secrets a share belongs to."""

    SELF_MASK_SEED = "self-mask seed"  # the peer is on the survivor list
    MASK_KEY = "mask key"  # the peer shared and is not on the list


@dataclass(frozen=True, slots=True)
class RevealedShare:
    """One share of one secret of one peer; of a survivor's surplus noise a share too, where there is any."""

    peer: str
    kind: ShareKind
    share: bytes
    noise: bytes = b""

    def __post_init__(self) -> None:
        if self.noise and self.kind is ShareKind.MASK_KEY:
            raise RemoteError(UNKNOWN, "malformed", "the noise of a member that is not in the sum is not taken out")


@dataclass(frozen=True, slots=True)
class Revealed:
    """Phase 5: one share for each member that shared; by construction never two of one peer."""

    shares: tuple[RevealedShare, ...]

    def __post_init__(self) -> None:
        peers = tuple(item.peer for item in self.shares)
        if len(set(peers)) != len(peers):
            raise RemoteError(UNKNOWN, "duplicate-party", "two revealed shares are of one peer")


def digests_of(boxes: Iterable[Box]) -> BoxDigests:
    """SHA-256 of each box, in the same order."""
    boxes = tuple(boxes)
    hashes = map(hashlib.sha256, [box.sealed for box in boxes])
    return BoxDigests(tuple([box.receiver for box in boxes]), b"".join([each.digest() for each in hashes]))


def summary_of(digests: BoxDigests) -> bytes:
    """SHA-256 of the digests one after the other."""
    return hashlib.sha256(digests.joined).digest()


def _require(party: str, holds: bool, text: str) -> None:
    if not holds:
        raise RemoteError(party, "malformed", f"{text} in a message of {party}")
