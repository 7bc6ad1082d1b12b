"""AES-128 counter-mode keystream, seekable by segment: the only source of masks and rounding bits.

Block k of (lane, segment) is AES(key, lane as 4 bytes || segment as 8 bytes || k + 2 as 4 bytes), all big-endian
(NIST SP 800-38A, counter mode). Segment s of a mask is added to words s * SEGMENT_WORDS onwards. Two library doors give
these bytes: counter mode, and GCM (SP 800-38D), whose ciphertext of zeros is the keystream from counter 2. Which is
faster depends on the processor, hence a performance choice that changes no byte.

A key masks exactly one vector; `keys` derives it for one pair in one session.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from secagg.params import WORD_BYTES, Words

SEGMENT_BYTES = 2 << 20  # one nonce each: contexts cost 3 % at this size, and it is what a retry repeats
SEGMENT_WORDS = SEGMENT_BYTES // WORD_BYTES
CHUNK_WORDS = 1 << 15  # 256 KiB: one chunk of words and one of keystream stay in a core's second-level cache
FIRST_COUNTER = 2  # where GCM starts to encrypt
TRIAL_CHUNKS = 32  # 4 MiB a door: under a millisecond, long enough to tell 6 from 12 GB/s

_ZEROS = bytes(CHUNK_WORDS * WORD_BYTES)


class Door(Enum):
    """Library mode that produces the keystream."""

    GCM = "gcm"  # vectorised in OpenSSL where the processor has VAES (servers since 2020): twice as fast as CTR
    CTR = "ctr"  # twice as fast as GCM elsewhere


class Stream:
    """Keystream of one key, segment and lane, read in order."""

    __slots__ = ("_bytes", "_encryptor", "_words")

    def __init__(self, key: bytes, segment: int, lane: int = 0, door: Door = Door.GCM) -> None:
        nonce = lane.to_bytes(4, "big") + segment.to_bytes(8, "big")
        mode = modes.GCM(nonce) if door is Door.GCM else modes.CTR(nonce + FIRST_COUNTER.to_bytes(4, "big"))
        self._encryptor = Cipher(algorithms.AES128(key), mode).encryptor()

    def read_into(self, out: Words | NDArray[np.uint16]) -> None:
        """Fill `out` (at most CHUNK_WORDS words) with the next bytes, little-endian."""
        view = out.data.cast("B")
        self._encryptor.update_into(memoryview(_ZEROS)[: view.nbytes], view)

    def words(self, count: int) -> Words:
        """The next `count` words in a fresh array."""
        out = np.empty(count, dtype="<u8")
        for start in range(0, count, CHUNK_WORDS):
            self.read_into(out[start : start + CHUNK_WORDS])
        return out


def faster_door(clock_s: Callable[[], float]) -> Door:
    """Time both doors for a few milliseconds with the caller's clock (time.perf_counter) and return the faster."""
    spent = {door: min(_trial_s(door, clock_s) for _ in range(3)) for door in Door}
    return min(Door, key=spent.__getitem__)


def _trial_s(door: Door, clock_s: Callable[[], float]) -> float:
    chunk: Words = np.empty(CHUNK_WORDS, dtype="<u8")
    stream = Stream(bytes(16), 0, 0, door)
    start = clock_s()
    for _ in range(TRIAL_CHUNKS):
        stream.read_into(chunk)
    return clock_s() - start
