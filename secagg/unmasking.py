"""Unmasking: from the sum of uploads and the masks that are left in it to the mean, run by run, on as many threads as asked.

Rule: the result, its digest included, is the same for any number of threads and any size of runs. Runs are independent,
and generator and arithmetic release the interpreter lock, so threads share the processor's cores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from secagg.keystream import CHUNK_WORDS, Door, buffer_of
from secagg.lanes import Decoder
from secagg.params import WORD_BYTES, RoundParams, Vector, Words
from secagg.upload import Masks, SignedMask

DIGEST_WORDS = 1 << 12  # one digest each (README, step 6.5); runs are whole multiples
DIGEST_BYTES = DIGEST_WORDS * WORD_BYTES
SHORT_WORDS = 2 * CHUNK_WORDS  # up to here threads share masks, not runs: each would spend too much on setting keys up
MASKS_AT_ONCE = 64  # their contexts fit a core's cache

T = TypeVar("T")


def unmask(
    params: RoundParams, survivors: Sequence[str], total: Words, masks: Sequence[SignedMask], threads: int, door: Door
) -> tuple[Vector, Words, list[bytes]]:
    """The survivors' weighted mean of coded values, the opened extra words and the digests of all opened words.

    `total` is not changed. RemoteError (bad-sum) where the opened words are no sum of the survivors' integers.
    """
    if params.words <= SHORT_WORDS:
        total, masks = _without(total, masks, threads, door), ()
    mean: Vector = np.empty(params.coded_length, dtype=np.float32)
    extra: Words = np.empty(params.extra_words, dtype=np.uint64)
    starts = range(0, params.words, _run_words(params.words, threads))
    digests: dict[int, list[bytes]] = {}
    left = iter(starts)  # every thread takes the next run when it is done with one

    def work() -> None:
        bank = Masks(masks, door)
        opener = _Opener(total, bank, Decoder(params, survivors, bank.scratch), mean, extra)
        for start in left:
            digests[start] = opener.open(start, min(start + starts.step, params.words))

    _on_threads(min(threads, len(starts)), work)
    return mean, extra, [part for start in starts for part in digests[start]]


def _without(total: Words, masks: Sequence[SignedMask], threads: int, door: Door) -> Words:
    """A short total without its masks: every key is set up once, in the thread that takes it next."""
    starts = range(0, len(masks), MASKS_AT_ONCE)
    left = iter(starts)

    def work() -> Words:
        part, bank = buffer_of(len(total), 0), Masks((), door)
        part[...] = 0
        for first in left:
            bank.change(masks[first : first + MASKS_AT_ONCE])
            for start in range(0, len(part), CHUNK_WORDS):
                bank.apply(part[start : start + CHUNK_WORDS], start)
        return part

    return sum(_on_threads(min(threads, len(starts)), work), start=total)


def _on_threads(count: int, work: Callable[[], T]) -> list[T]:
    """What `work` returns on each of `count` threads; one is the caller's own."""
    if count < 2:
        return [work() for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return [done.result() for done in [pool.submit(work) for _ in range(count)]]


def _run_words(words: int, threads: int) -> int:
    """A chunk, or less where threads would be left without work."""
    return min(CHUNK_WORDS, -(-words // (threads * DIGEST_WORDS)) * DIGEST_WORDS)


class _Opener:
    """Opens any run of the sum; buffers of one thread."""

    __slots__ = ("_decoder", "_extra", "_masks", "_mean", "_total", "_words")

    def __init__(self, total: Words, masks: Masks, decoder: Decoder, mean: Vector, extra: Words) -> None:
        self._total = total
        self._masks = masks
        self._decoder = decoder
        self._mean = mean
        self._extra = extra
        self._words = buffer_of(CHUNK_WORDS, 0)

    def open(self, start: int, stop: int) -> list[bytes]:
        """Write the mean of words start ... stop, at most CHUNK_WORDS; the digests of what they opened to."""
        words = self._words[: stop - start]
        words[...] = self._total[start:stop]
        self._masks.apply(words, start)
        opened = words.data.cast("B")
        digests = [hashlib.sha256(opened[at : at + DIGEST_BYTES]).digest() for at in range(0, len(opened), DIGEST_BYTES)]
        of_vector = len(self._total) - len(self._extra)
        if start < of_vector:
            self._decoder.decode_into(self._mean, words[: of_vector - start], start)
        if stop > of_vector:
            first = max(start, of_vector)
            self._extra[first - of_vector : stop - of_vector] = words[first - start :]
        return digests
