"""AES-128 counter-mode keystream, seekable by block: the only source of masks and rounding bits.

Block k of (lane, segment) is AES(key, lane as 4 bytes || segment as 8 bytes || k + 2 as 4 bytes), all big-endian
(NIST SP 800-38A, counter mode). Segment s of a mask is added to words s * SEGMENT_WORDS onwards. Three library doors give
these bytes, and which is fastest depends on the processor, hence a performance choice that changes no byte:

- counter mode itself;
- GCM (SP 800-38D), whose ciphertext of zeros is the keystream from counter 2;
- XTS (IEEE 1619) of the counter blocks. Data unit i encrypts block j to AES(key, P ^ T) ^ T with T = AES(key2, i) * x**j.
  For the i that AES(key2, .) takes to zero every T is zero, and what is left is AES(key, P), the cipher itself.

A key masks exactly one vector; `keys` derives it for one pair in one session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from secagg.params import WORD_BYTES, Words

SEGMENT_BYTES = 2 << 20  # one nonce each
SEGMENT_WORDS = SEGMENT_BYTES // WORD_BYTES
CHUNK_WORDS = 1 << 15  # 256 KiB: one chunk of words and one of keystream stay in a core's second-level cache
CHUNK_BYTES = CHUNK_WORDS * WORD_BYTES
BLOCK_BYTES = 16
CHUNK_BLOCKS = CHUNK_BYTES // BLOCK_BYTES
PAGE_BYTES = 4096
SLOT_BYTES = 1024
FIRST_COUNTER = 2  # where GCM starts to encrypt
TRIALS = 4
TRIAL_KEYS = 8  # 2 MiB a trial: a fraction of a millisecond, long enough to tell 8 from 12 GB/s

TWEAK_KEY = b"secagg: no tweak"  # public; only its inverse of zero matters
NO_TWEAK = Cipher(algorithms.AES128(TWEAK_KEY), modes.ECB()).decryptor().update(bytes(BLOCK_BYTES))  # noqa: S305 - one block

_XTS = modes.XTS(NO_TWEAK)
_ZEROS = memoryview(bytes(CHUNK_BYTES))
_NUMBERS: NDArray[np.uint32] = np.arange(CHUNK_BLOCKS, dtype=np.uint32)
_SWAPPED = (_NUMBERS + np.uint32(FIRST_COUNTER)).byteswap()  # counters of the first chunk as they lie in memory


class Door(Enum):
    """Library mode that produces the keystream."""

    CTR = "ctr"  # good everywhere
    GCM = "gcm"  # vectorised in OpenSSL where the processor has VAES (servers since 2020); it also computes a tag
    XTS = "xts"  # vectorised likewise from OpenSSL 3.5 on, and computes little else


class CounterBlocks:
    """The input of counter mode, made once for all keys that are expanded over the same words; for one thread."""

    __slots__ = ("_blocks", "_counters", "_place", "_view")

    def __init__(self) -> None:
        self._blocks: NDArray[np.uint32] = buffer_of(CHUNK_WORDS, 2).view("<u4").reshape(CHUNK_BLOCKS, BLOCK_BYTES // 4)
        self._counters = np.empty_like(_SWAPPED)
        self._view = self._blocks.data.cast("B")
        self._place = (-1, -1, -1)

    def at(self, lane: int, segment: int, block: int, size: int) -> memoryview:
        """The first `size` bytes, at most CHUNK_BYTES, from block number `block` on; valid until the next call."""
        if self._place != (lane, segment, block):
            if self._place[:2] != (lane, segment):
                for column, value in enumerate(np.frombuffer(_nonce(lane, segment), dtype="<u4")):
                    self._blocks[:, column] = value
            self._count_from(block)
            self._place = (lane, segment, block)
        return self._view[:size]

    def _count_from(self, block: int) -> None:
        if block % CHUNK_BLOCKS:
            np.add(_NUMBERS, np.uint32(block + FIRST_COUNTER), out=self._counters)
            self._counters.byteswap(inplace=True)
        else:  # the usual case: only bits above the chunk differ from the first chunk's, and in the last two counters all may
            np.add(_SWAPPED, np.uint32(_swapped(block)), out=self._counters)
            self._counters[-2:] = [_swapped(block + CHUNK_BLOCKS), _swapped(block + CHUNK_BLOCKS + 1)]
        self._blocks[:, 3] = self._counters


class Streams:
    """Keystreams of several keys in step: each `fill` goes on where the last one ended. For one thread."""

    __slots__ = ("_block", "_blocks", "_door", "_encryptors", "_keys", "_lane", "_segment")

    def __init__(self, keys: Iterable[bytes], door: Door) -> None:
        self._door = door
        self._blocks = CounterBlocks() if door is Door.XTS else None
        self.change(keys)

    def change(self, keys: Iterable[bytes]) -> None:
        """Take other keys, from their beginning."""
        self._keys = tuple(keys)
        self._encryptors: list[CipherContext] = []
        self.seek(0)

    def seek(self, segment: int, lane: int = 0, block: int = 0) -> None:
        """Go to a block. Contexts are made once, but for GCM, which has one nonce each and begins at block 0."""
        self._segment, self._lane, self._block = segment, lane, block
        counter = _nonce(lane, segment) + (FIRST_COUNTER + block).to_bytes(4, "big")
        if self._door is Door.CTR and self._encryptors:
            for encryptor in self._encryptors:
                encryptor.reset_nonce(counter)
        elif self._door is not Door.XTS or not self._encryptors:
            self._encryptors = [self._encryptor(key, counter) for key in self._keys]

    def step(self, size: int) -> tuple[memoryview, Sequence[CipherContext]]:
        """What to encrypt for the next `size` bytes of every key, whole blocks and at most CHUNK_BYTES; and a context for each.

        The caller encrypts it once with every context. No generator does that for it: between two calls that sweep a core's
        caches, Python's own steps cost more than their number says.
        """
        source = _ZEROS[:size]
        if self._blocks is not None:
            source = self._blocks.at(self._lane, self._segment, self._block, size)
        self._block += size // BLOCK_BYTES
        return source, self._encryptors

    def _encryptor(self, key: bytes, counter: bytes) -> CipherContext:
        if self._door is Door.XTS:
            return Cipher(algorithms.AES(key + TWEAK_KEY), _XTS).encryptor()
        if self._door is Door.GCM and self._block == 0:
            return Cipher(algorithms.AES128(key), modes.GCM(counter[:-4])).encryptor()
        return Cipher(algorithms.AES128(key), modes.CTR(counter)).encryptor()


class Stream:
    """Keystream of one key, read in order from where it was last put; for one thread."""

    __slots__ = ("_streams",)

    def __init__(self, key: bytes, segment: int = 0, lane: int = 0, door: Door = Door.GCM) -> None:
        self._streams = Streams((key,), door)
        self.seek(segment, lane)

    def seek(self, segment: int, lane: int = 0, block: int = 0) -> None:
        """Go to a block."""
        self._streams.seek(segment, lane, block)

    def fill(self, view: memoryview) -> None:
        """Fill `view` with the next bytes: whole blocks, at most CHUNK_BYTES."""
        source, (encryptor,) = self._streams.step(len(view))
        encryptor.update_into(source, view)

    def words(self, count: int) -> Words:
        """The next `count` words in a fresh array; what is left of the last block is passed over."""
        out: Words = np.empty(whole_blocks(count, WORD_BYTES), dtype="<u8")
        view = out.data.cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            self.fill(view[start : start + CHUNK_BYTES])
        return out[:count]


def buffer_of(count: int, slot: int) -> Words:
    """`count` words, not initialised, that begin `slot` KiB after the start of a page.

    Buffers that one loop reads and writes take different slots. numpy's own begin 16 bytes after a page starts: every wide
    access then crosses a cache line, and stores to one look like the source of loads from the other. Masks are added an eighth
    slower so.
    """
    memory = np.empty(WORD_BYTES * count + 2 * PAGE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES + slot * SLOT_BYTES
    words: Words = memory[start : start + WORD_BYTES * count].view("<u8")
    return words


def whole_blocks(count: int, item_bytes: int) -> int:
    """The items that fill the blocks that `count` items begin."""
    items = BLOCK_BYTES // item_bytes
    return -(-count // items) * items


def faster_door(clock_s: Callable[[], float]) -> Door:
    """Time the doors for a few milliseconds with the caller's clock (time.perf_counter) and return the fastest.

    A door that the library lacks, or whose bytes are not those of counter mode, is left out.
    """
    truth = Stream(bytes(16), 0, 0, Door.CTR).words(CHUNK_WORDS)
    spent = {door: min(_trials_s(door, clock_s)) for door in Door if _opens(door, truth)}
    return min(spent, key=spent.__getitem__)


def _opens(door: Door, truth: Words) -> bool:
    try:
        return bool(np.array_equal(Stream(bytes(16), 0, 0, door).words(len(truth)), truth))
    except UnsupportedAlgorithm:
        return False


def _trials_s(door: Door, clock_s: Callable[[], float]) -> Iterator[float]:
    """Seconds for one chunk of each of several keys, as masks are made; the first trial also warms the buffers."""
    chunk = memoryview(bytearray(CHUNK_BYTES))
    streams = Streams((bytes([number] * 16) for number in range(TRIAL_KEYS)), door)
    for _ in range(TRIALS):
        start = clock_s()
        source, encryptors = streams.step(len(chunk))
        for encryptor in encryptors:
            encryptor.update_into(source, chunk)
        yield clock_s() - start


def _nonce(lane: int, segment: int) -> bytes:
    return lane.to_bytes(4, "big") + segment.to_bytes(8, "big")


def _swapped(counter: int) -> int:
    return int.from_bytes(counter.to_bytes(4, "big"), "little")
