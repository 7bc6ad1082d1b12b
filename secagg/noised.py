"""Integer sums with a member's share of the noise: what is sent where noise is shared, and what is taken out again.

Rule: everything is whole numbers. Sums are cut to the session's largest sum, which lengthens no difference between two of
them; noise comes on top and is never cut; both fit the lane by construction (params, step 0.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from secagg.discrete_gaussian import RUN_VALUES, Draws, NoiseStream
from secagg.errors import LocalError, TooFewSurvivors
from secagg.keystream import CHUNK_WORDS, Door
from secagg.noise_shares import SharedNoise
from secagg.params import NO_WORDS, Integers, RoundParams, Vector, Words


def cut_sums(params: RoundParams, shared: SharedNoise, sums: Vector | Integers) -> tuple[Draws, int]:
    """The sums inside [-largest_sum, largest_sum], in fresh memory, and how many coordinates were cut."""
    if sums.dtype != np.int64 or sums.shape != (params.length,):
        raise LocalError(f"with shared noise an update is int64 ({params.length},), got {sums.dtype} {sums.shape}")
    largest, cut = shared.largest_sum, 0
    if int(sums.max()) > largest or int(sums.min()) < -largest:
        cut = int(np.count_nonzero(sums > largest)) + int(np.count_nonzero(sums < -largest))
    return np.clip(sums, -largest, largest).astype(np.int32) if cut else sums.astype(np.int32), cut


def add_shares(params: RoundParams, shared: SharedNoise, sums: Draws, noise: Sequence[bytes], door: Door) -> Draws:
    """Add every component of a member's noise to its sums, in place. `noise`: the key of each."""
    variances = shared.shares(len(params.participants)).components()
    for key, variance in zip(noise, variances, strict=True):
        for start, run in _runs(key, variance, len(sums), door):
            np.add(sums[start : start + len(run)], run, out=sums[start : start + len(run)])
    return sums


def check_enough_noise(params: RoundParams, survivors: Sequence[str], phase: str) -> None:
    """TooFewSurvivors where more members are lost than the shares of the noise were planned for."""
    lost = len(params.participants) - len(survivors)
    if params.shared and lost > params.shared.may_drop:
        text = f"{lost} of {len(params.participants)} members are lost, the noise allows {params.shared.may_drop}"
        raise TooFewSurvivors(phase, text)


class NoisedEncoder:
    """One member's noised sums as packed integers; the counterpart of lanes.Encoder."""

    __slots__ = ("_extra", "_params", "_sums")

    def __init__(self, params: RoundParams, sums: Draws, extra: Words = NO_WORDS) -> None:
        self._params = params
        self._sums = sums
        self._extra = extra

    def open(self, scratch: Words | None = None) -> NoisedRunEncoder:
        """Buffers for one thread; `scratch`, CHUNK_WORDS words, is overwritten by every run."""
        scratch = np.empty(CHUNK_WORDS, dtype="<u8") if scratch is None else scratch
        return NoisedRunEncoder(self._params, self._sums, self._extra, scratch)


class NoisedRunEncoder:
    """Encodes runs of words; the counterpart of lanes.RunEncoder."""

    __slots__ = ("_extra", "_offset", "_params", "_scratch", "_sums")

    def __init__(self, params: RoundParams, sums: Draws, extra: Words, scratch: Words) -> None:
        self._params = params
        self._sums = sums
        self._extra = extra
        self._scratch = scratch
        self._offset = params.offset(params.participants[0])  # weights are equal

    def encode_into(self, out: Words, first_word: int) -> None:
        """Write words first_word ... first_word + len(out), at most CHUNK_WORDS."""
        of_vector = max(0, min(len(out), self._params.vector_words - first_word))
        if of_vector:
            _pack(self._params, self._sums, out[:of_vector], first_word, self._offset, self._scratch)
        if of_vector < len(out):
            start = first_word + of_vector - self._params.vector_words
            out[of_vector:] = self._extra[start : start + len(out) - of_vector]


def without_surplus(params: RoundParams, total: Words, surplus: Sequence[tuple[bytes, Fraction]], door: Door) -> Words:
    """The sum of uploads without these components, (key, variance) each. `total` is not changed."""
    if not surplus:
        return total
    noise = np.zeros(params.length, dtype=np.int64)
    for key, variance in surplus:
        for start, drawn in _runs(key, variance, params.length, door):
            noise[start : start + len(drawn)] += drawn
    left, scratch = total.copy(), np.empty(CHUNK_WORDS, dtype="<u8")
    packed: Words = np.empty(CHUNK_WORDS, dtype="<u8")
    for first in range(0, params.vector_words, CHUNK_WORDS):
        run = left[first : min(first + CHUNK_WORDS, params.vector_words)]
        _pack(params, noise, packed[: len(run)], first, 0, scratch)
        run -= packed[: len(run)]  # modulo 2**64: what lanes borrow from each other here they did there
    return left


def _runs(key: bytes, variance: Fraction, count: int, door: Door) -> Iterator[tuple[int, Draws]]:
    for number, run in enumerate(NoiseStream(key, variance, door).runs(count)):
        yield number * RUN_VALUES, run


def _pack(params: RoundParams, values: Integers | Draws, out: Words, first_word: int, offset: int, scratch: Words) -> None:
    """Words whose lane l holds offset plus the value at l * words + w, padding included, modulo 2**64."""
    quantizer, words = params.quantizer, params.vector_words
    total = out.view(np.int64)
    for lane in range(quantizer.lanes):
        start = lane * words + first_word
        part = values[start : min(start + len(out), (lane + 1) * words)]
        if lane == 0:
            total[...] = part  # no vector is shorter than its first lane
            continue
        wide, head = scratch.view(np.int64)[: len(part)], total[: len(part)]
        wide[...] = part
        np.left_shift(wide, np.int64(lane * quantizer.lane_bits), out=wide)
        np.add(head, wide, out=head)
    out += np.uint64(sum(offset << lane * quantizer.lane_bits for lane in range(quantizer.lanes)))
