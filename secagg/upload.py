"""The masked vector: encode(update) + self mask + pairwise masks modulo 2**64, made piece by piece.

Rule: a piece is a pure function of update, keys and place, so an upload is streamed and resumed byte for byte from
anywhere without being kept. Fresh rounding on a resend would cancel the masks and expose fractions; another update on a
resend would expose the difference. Both are refused before a byte leaves: a repeated piece must continue the running
digest exactly as it did the first time.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import TypeAlias

import numpy as np

from secagg.errors import LocalError
from secagg.identity import Purpose
from secagg.keystream import BLOCK_BYTES, CHUNK_WORDS, SEGMENT_WORDS, Door, Streams, buffer_of, whole_blocks
from secagg.lanes import Encoder
from secagg.messages import UploadSeal
from secagg.noised import NoisedEncoder
from secagg.params import WORD_BYTES, RoundParams, Words
from secagg.seat import Seat
from secagg.statements import upload_statement

AnyEncoder: TypeAlias = Encoder | NoisedEncoder

PIECE_BYTES = 1 << 19  # what is made, checked and handed on at once; two are alive while one is sent
PIECE_WORDS = PIECE_BYTES // WORD_BYTES


@dataclass(frozen=True, slots=True, repr=False)
class SignedMask:
    """A mask key and whether its words are added or subtracted."""

    key: bytes
    subtract: bool = False


class Masks:
    """The masks of one vector, to be added to any run of its words; contexts and buffers of one thread.

    All masks go over one chunk before the next, so that the chunk stays in a core's cache.
    """

    __slots__ = ("_combine", "_next", "_streams", "scratch")

    def __init__(self, masks: Sequence[SignedMask], door: Door) -> None:
        self._streams = Streams((), door)
        self.scratch = buffer_of(CHUNK_WORDS, 1)
        self.change(masks)

    def change(self, masks: Sequence[SignedMask]) -> None:
        """Take other masks into the same buffers."""
        self._streams.change(mask.key for mask in masks)
        self._combine = tuple(np.subtract if mask.subtract else np.add for mask in masks)
        self._next = 0

    def apply(self, words: Words, first_word: int) -> None:
        """Add or subtract every mask in place, where `words` begin at `first_word` of the vector.

        At most CHUNK_WORDS words inside one segment; `first_word` is even.
        """
        segment, within = divmod(first_word, SEGMENT_WORDS)
        block, rest = divmod(within * WORD_BYTES, BLOCK_BYTES)
        assert rest == 0, "runs begin at a block"
        if first_word != self._next or within == 0:
            self._streams.seek(segment, 0, block)
        self._next = first_word + len(words)
        view = self.scratch[: whole_blocks(len(words), WORD_BYTES)].data.cast("B")
        mask = self.scratch[: len(words)]
        source, encryptors = self._streams.step(len(view))
        for encryptor, combine in zip(encryptors, self._combine, strict=True):
            encryptor.update_into(source, view)
            combine(words, mask, words)


class PackedUpload:
    """One member's masked vector in pieces of 512 KiB: little-endian words.

    `clipped` counts the coordinates outside the clip; it is for the member's own eyes. The update must not change
    while the upload lives; if it does, a repeated piece raises LocalError instead of leaving twice.
    """

    __slots__ = ("_door", "_encoder", "_lock", "_masks", "_params", "_running", "_seal", "_seat", "clipped")

    def __init__(self, seat: Seat, encoder: AnyEncoder, masks: Sequence[SignedMask], clipped: int, door: Door) -> None:
        if len({mask.key for mask in masks}) != len(masks):
            raise LocalError("a mask key appears twice in one vector: discard this session")
        self._seat = seat
        self._params = seat.params
        self._encoder = encoder
        self._masks = tuple(masks)
        self._door = door
        self._lock = Lock()
        self._running = [hashlib.sha256()]  # state of the digest before piece k; grows as pieces first leave
        self._seal: UploadSeal | None = None
        self.clipped = clipped

    @property
    def total_bytes(self) -> int:
        """Length of the whole upload."""
        return self._params.upload_bytes

    @property
    def made_bytes(self) -> int:
        """How much of it was made so far; from anywhere up to there it can be sent again."""
        return min((len(self._running) - 1) * PIECE_BYTES, self.total_bytes)

    def pieces(self, offset_bytes: int = 0, *, threads: int = 1) -> Iterator[memoryview]:
        """The upload from a byte offset to its end, in order; call again to resend. `threads` pieces are made at once.

        LocalError where the offset is beyond what was made before, or where a repeated piece would differ.
        """
        first, skipped = divmod(offset_bytes, PIECE_BYTES)
        if not 0 <= first < len(self._running) or offset_bytes > self.total_bytes:
            raise LocalError(f"byte {offset_bytes} is neither where this upload goes on nor in what was made of it")
        return self._pieces(first, skipped, threads)

    def finish(self) -> UploadSeal:
        """Digest of the whole upload and a signature over it (step 3.6); makes the pieces that were not asked for yet."""
        if self._seal is None:
            for _ in self._pieces(len(self._running) - 1, 0, 1):
                pass
            digest = self._running[-1].digest()
            statement = upload_statement(self._seat.me, self.total_bytes, digest)
            self._seal = UploadSeal(digest, self._seat.sign(Purpose.UPLOAD, statement))
        return self._seal

    def _pieces(self, first: int, skipped: int, threads: int) -> Iterator[memoryview]:
        numbers = range(first, -(-self.total_bytes // PIECE_BYTES))
        made = self._ahead(numbers, threads) if threads > 1 else self._next(numbers)
        for number, words in zip(numbers, made, strict=True):
            yield self._checked(number, words.data.cast("B"))[skipped:]
            skipped = 0

    def _next(self, numbers: range) -> Iterator[Words]:
        if numbers:
            yield from map(self._writer().piece, numbers)

    def _ahead(self, numbers: range, threads: int) -> Iterator[Words]:
        """The same pieces in order, up to `threads` of them made before they are asked for."""
        writers: SimpleQueue[_Writer] = SimpleQueue()
        for _ in range(threads):
            writers.put(self._writer())

        def make(number: int) -> Words:
            writer = writers.get()
            try:
                return writer.piece(number)
            finally:
                writers.put(writer)

        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[Words]] = deque()
            for number in numbers:
                waiting.append(pool.submit(make, number))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _checked(self, number: int, data: memoryview) -> memoryview:
        """The piece, after its bytes proved to be those of the first time."""
        after = self._running[number].copy()
        after.update(data)
        with self._lock:
            if number + 1 == len(self._running):
                self._running.append(after)
            first = self._running[number + 1]
        if after.digest() != first.digest():
            raise LocalError("the update changed after a part of it was sent: the piece is withheld, discard this session")
        return data

    def _writer(self) -> _Writer:
        return _Writer(self._params, self._encoder, Masks(self._masks, self._door))


class _Writer:
    """Makes any piece of one masked vector, for one thread."""

    __slots__ = ("_encoder", "_masks", "_params")

    def __init__(self, params: RoundParams, encoder: AnyEncoder, masks: Masks) -> None:
        self._params = params
        self._masks = masks
        self._encoder = encoder.open(masks.scratch)

    def piece(self, number: int) -> Words:
        first = number * PIECE_WORDS
        words = buffer_of(min(PIECE_WORDS, self._params.words - first), 0)
        for start in range(0, len(words), CHUNK_WORDS):
            chunk = words[start : start + CHUNK_WORDS]
            self._encoder.encode_into(chunk, first + start)
            self._masks.apply(chunk, first + start)
        return words


assert SEGMENT_WORDS % PIECE_WORDS == 0 == PIECE_WORDS % CHUNK_WORDS, "chunks lie inside pieces, pieces inside segments"
