"""The masked vector: encode(update) + self mask + pairwise masks modulo 2**64, made segment by segment.

Rule: a segment is a pure function of update, keys and segment number, so an upload is streamed and resumed byte for
byte without being kept. Fresh rounding on a resend would cancel the masks and expose fractions; another update on a
resend would expose the difference. Both are refused before a byte leaves: a repeated segment must continue the running
digest exactly as it did the first time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from secagg.errors import LocalError
from secagg.identity import Purpose
from secagg.keystream import CHUNK_WORDS, SEGMENT_WORDS, Door, Stream
from secagg.lanes import Encoder
from secagg.messages import UploadSeal
from secagg.params import WORD_BYTES, RoundParams, Words
from secagg.seat import Seat
from secagg.statements import upload_statement


@dataclass(frozen=True, slots=True, repr=False)
class SignedMask:
    """A mask key and whether its words are added or subtracted."""

    key: bytes
    subtract: bool = False


def apply_masks(words: Words, streams: Iterable[tuple[Stream, bool]], scratch: Words) -> None:
    """Add or subtract the next len(words) words of each stream in place; at most len(scratch), so that all stays in cache."""
    mask = scratch[: len(words)]
    for stream, subtract in streams:
        stream.read_into(mask)
        if subtract:
            words -= mask
        else:
            words += mask


def open_streams(masks: Sequence[SignedMask], segment: int, door: Door) -> list[tuple[Stream, bool]]:
    """The keystream of every mask at one segment."""
    return [(Stream(mask.key, segment, 0, door), mask.subtract) for mask in masks]


def segment_range(params: RoundParams, segment: int) -> range:
    """Word numbers of one segment; the last one may be short."""
    return range(segment * SEGMENT_WORDS, min((segment + 1) * SEGMENT_WORDS, params.words))


def segment_count(params: RoundParams) -> int:
    """Segments of one upload."""
    return -(-params.words // SEGMENT_WORDS)


class PackedUpload:
    """One member's masked vector as a sequence of segments; little-endian words, 2 MiB a segment.

    `clipped` counts the coordinates outside the clip; it is for the member's own eyes. The update must not change
    while the upload lives; if it does, a repeated segment raises LocalError instead of leaving twice.
    """

    __slots__ = ("_door", "_encoder", "_lock", "_masks", "_params", "_running", "_seal", "_seat", "clipped")

    def __init__(self, seat: Seat, encoder: Encoder, masks: Sequence[SignedMask], clipped: int, door: Door) -> None:
        self._seat = seat
        self._params = seat.params
        self._encoder = encoder
        self._masks = tuple(masks)
        self._door = door
        self._lock = Lock()
        self._running = [hashlib.sha256()]  # state of the digest before segment k; grows as segments first leave
        self._seal: UploadSeal | None = None
        self.clipped = clipped

    @property
    def total_bytes(self) -> int:
        """Length of the whole upload."""
        return self._params.upload_bytes

    def segments(self, first: int = 0) -> Iterator[memoryview]:
        """Segments from number `first` to the end, in order; call again to resend."""
        for segment in range(first, segment_count(self._params)):
            yield self.segment(segment)

    def segment(self, number: int) -> memoryview:
        """One segment. Numbers may repeat but not run ahead of what was made before; LocalError otherwise."""
        if not 0 <= number < min(len(self._running), segment_count(self._params)):
            raise LocalError(f"segment {number} is not the next one of this upload nor an earlier one")
        data = self._masked(number).data.cast("B")
        after = self._running[number].copy()
        after.update(data)
        with self._lock:
            if number + 1 == len(self._running):
                self._running.append(after)
            first = self._running[number + 1]
        if after.digest() != first.digest():
            raise LocalError("the update changed after a part of it was sent: the segment is withheld, discard this session")
        return data

    def finish(self) -> UploadSeal:
        """Digest of the whole upload and a signature over it (step 3.6); makes the segments that were not asked for yet."""
        for number in range(len(self._running) - 1, segment_count(self._params)):
            self.segment(number)
        if self._seal is None:
            digest = self._running[-1].digest()
            statement = upload_statement(self._seat.me, self.total_bytes, digest)
            self._seal = UploadSeal(digest, self._seat.sign(Purpose.UPLOAD, statement))
        return self._seal

    def _masked(self, number: int) -> Words:
        span = segment_range(self._params, number)
        words: Words = np.empty(len(span), dtype="<u8")
        encoder = self._encoder.open_segment(number)
        streams = open_streams(self._masks, number, self._door)
        scratch: Words = np.empty(CHUNK_WORDS, dtype="<u8")
        for start in range(0, len(span), CHUNK_WORDS):
            chunk = words[start : start + CHUNK_WORDS]
            encoder.encode_into(chunk, span.start + start)
            apply_masks(chunk, streams, scratch)
        return words


assert CHUNK_WORDS * WORD_BYTES % 16 == 0, "streams are read in whole AES blocks except at the end of a segment"
