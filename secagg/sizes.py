"""What a member's answers cost on the connection, without importing the wire.

Canonical size: each message as protobuf encodes it (README, Messages), plus five bytes of gRPC prefix and 31 bytes for every
16 KiB of HTTP/2 frame and TLS record. Words travel piece by piece between a header and a trailer. Per-call headers
are left out: they depend on the connection's compression state.
"""

from __future__ import annotations

from secagg.messages import DIGEST_BYTES, Advert, Confirmation, Revealed, RevealedShare, ShareSet, UploadSeal
from secagg.params import SESSION_BYTES
from secagg.upload import PIECE_BYTES

RECEIPT_BYTES = 32  # proof of ledger continuity, sent with the upload's header
PREFIX_BYTES = 5  # gRPC: compressed flag and length
FRAME_PAYLOAD_BYTES = 16_384  # largest HTTP/2 DATA frame by default, and largest TLS record
FRAME_BYTES = 9 + 22  # HTTP/2 frame header; TLS 1.3 record header, content type and tag


def advert_bytes(advert: Advert) -> int:
    """Phase 1."""
    keys = _field(len(advert.seal_key)) + _field(len(advert.mask_key)) + _field(len(advert.seed_commitment))
    drawn = sum(_varint(place) for place in advert.neighbours)  # packed
    noise = len(advert.noise_commitments) * _field(DIGEST_BYTES)
    return _answer(_text(advert.party) + keys + _field(len(advert.signature)) + (_field(drawn) if drawn else 0) + noise)


def share_set_bytes(share_set: ShareSet) -> int:
    """Phase 2."""
    boxes = sum(_field(_text(box.receiver) + _field(len(box.sealed))) for box in share_set.boxes)
    digests = sum(_field(_text(receiver) + _field(DIGEST_BYTES)) for receiver in share_set.digests.receivers)
    summary = _field(len(share_set.summary)) if share_set.summary else 0
    return _answer(_text(share_set.party) + boxes + digests + _field(len(share_set.signature)) + summary)


def upload_bytes(vector_bytes: int, seal: UploadSeal | None) -> int:
    """Phase 3; without a seal the upload broke off after its last word."""
    header = _field(SESSION_BYTES) + 1 + _varint(vector_bytes) + _field(RECEIPT_BYTES)
    full, rest = divmod(vector_bytes, PIECE_BYTES)
    words = full * _framed(_field(PIECE_BYTES)) + (_framed(_field(rest)) if rest else 0)
    trailer = 0 if seal is None else _framed(_field(_field(len(seal.digest)) + _field(len(seal.signature))))
    return _framed(_field(header)) + words + trailer


def confirmation_bytes(confirmation: Confirmation) -> int:
    """Phase 4."""
    return _answer(_text(confirmation.party) + _field(len(confirmation.signature)))


def revealed_bytes(revealed: Revealed) -> int:
    """Phase 5."""

    def one(item: RevealedShare) -> int:
        return _text(item.peer) + _field(len(item.share)) + (_field(len(item.noise)) if item.noise else 0)

    return _answer(sum(_field(one(item)) for item in revealed.shares))


def _answer(body: int) -> int:
    return _framed(_field(SESSION_BYTES) + _field(body))


def _text(text: str) -> int:
    return _field(len(text.encode()))


def _field(size: int) -> int:
    """A length-delimited protobuf field with a number below 16."""
    return 1 + _varint(size) + size


def _varint(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def _framed(payload: int) -> int:
    size = payload + PREFIX_BYTES
    return size + -(-size // FRAME_PAYLOAD_BYTES) * FRAME_BYTES
