"""From float32 to packed integers and back: clip, scale, round at random, put `lanes` integers into each word.

Layout: word w holds in lane l the value at l * words + w (lane 0 in the lowest bits), so that every lane of a run of
words is one contiguous run of values; values past the end are zero. Integers of member i lie in [0, 2 * o_i] by
construction, which is what `params.plan_half_steps` relies on (README, Lanes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.errors import UNKNOWN, LocalError, RemoteError
from secagg.keystream import BLOCK_BYTES, CHUNK_WORDS, SEGMENT_WORDS, Door, Stream, whole_blocks
from secagg.params import NO_WORDS, RoundParams, Vector, Words

ROUNDING_BITS = 16  # random bits a value; the rounding keystream spends two bytes whatever is used of them
ROUNDING_BYTES = ROUNDING_BITS // 8
NARROW_BITS = 31  # int32 without its sign
SCAN_VALUES = 1 << 17  # 512 KiB of float32: larger runs leave the cache, smaller ones cost more calls


@dataclass(frozen=True, slots=True)
class Scaling:
    """How one member's values become integers with `fraction_bits` below the point (README, Lanes).

    float32 and int32 where at least eight fraction bits fit, float64 and int64 otherwise; both are exact enough that
    the rounding is unbiased to 2**-(fraction_bits + 1) of a step.
    """

    clip: np.float32
    factor: float  # a float32 value where narrow
    fraction_bits: int
    narrow: bool


def scaling(params: RoundParams, party: str) -> Scaling:
    """Constants of one member. The factor is lowered until clip * factor rounds to at most o_i * 2**fraction_bits."""
    offset = params.offset(party)
    room = NARROW_BITS - (2 * offset + 1).bit_length()
    narrow = room >= 8
    bits = min(ROUNDING_BITS, room) if narrow else ROUNDING_BITS
    kind = np.float32 if narrow else np.float64
    clip = clip_below(params)
    share = params.half_steps * params.weight(party) * (1 << bits) / params.total_weight
    factor = kind(share / params.quantizer.clip)
    while float(kind(clip) * factor) > offset << bits:
        factor = np.nextafter(factor, kind(0))
    return Scaling(clip, float(factor), bits, narrow)


def clip_below(params: RoundParams) -> np.float32:
    """The largest float32 not above the quantizer's clip."""
    clip = np.float32(params.quantizer.clip)
    return clip if float(clip) <= params.quantizer.clip else np.nextafter(clip, np.float32(0))


def count_clipped(params: RoundParams, coded: Vector) -> int:
    """Coordinates of a coded vector outside the clip. LocalError where one is not finite: the vector cannot be sent."""
    clip, clipped = clip_below(params), 0
    sizes, beyond = np.empty(SCAN_VALUES, dtype=np.float32), np.empty(SCAN_VALUES, dtype=np.bool_)
    for start in range(0, len(coded), SCAN_VALUES):
        run = coded[start : start + SCAN_VALUES]
        largest = np.abs(run, out=sizes[: len(run)]).max()  # NaN passes through
        if not math.isfinite(largest):
            raise LocalError("the update holds values that are not finite: it is not sent, look at the training of this round")
        if largest > clip:
            clipped += int(np.count_nonzero(np.greater(sizes[: len(run)], clip, out=beyond[: len(run)])))
    return clipped


class Encoder:
    """One member's coded vector as packed integers: a pure function of vector and key, so that any run can be made again.

    `extra` are the words of the extra coordinates, which follow.
    """

    __slots__ = ("_coded", "_door", "_extra", "_key", "_params", "_party")

    def __init__(
        self, params: RoundParams, party: str, coded: Vector, rounding_key: bytes, door: Door, extra: Words = NO_WORDS
    ) -> None:
        self._params = params
        self._party = party
        self._coded = coded
        self._extra = extra
        self._key = rounding_key
        self._door = Door.GCM if door is Door.XTS else door  # each stream is read once: preparing blocks costs what it saves

    def open(self, scratch: Words | None = None) -> RunEncoder:
        """Contexts and buffers for one thread; `scratch`, CHUNK_WORDS words, is overwritten by every run."""
        lanes = self._params.quantizer.lanes
        streams = tuple(Stream(self._key, 0, lane, self._door) for lane in range(lanes))
        scratch = np.empty(CHUNK_WORDS, dtype="<u8") if scratch is None else scratch
        return RunEncoder(self._params, self._party, self._coded, self._extra, streams, scratch)


class RunEncoder:
    """Encodes runs of words in buffers that stay in a core's cache.

    Constants are arrays without dimensions: numpy takes twice as long to begin with a number of Python's.
    """

    __slots__ = (
        *("_clip", "_coded", "_extra", "_factor", "_fixed", "_fraction", "_low_bits", "_next", "_offset_word", "_random"),
        *("_scaled", "_shifts", "_streams", "_wide", "_widened", "_words"),
    )

    def __init__(
        self, params: RoundParams, party: str, coded: Vector, extra: Words, streams: tuple[Stream, ...], scratch: Words
    ) -> None:
        quantizer, offset, scale = params.quantizer, params.offset(party), scaling(params, party)
        shifts = [lane * quantizer.lane_bits for lane in range(quantizer.lanes)]
        self._words = params.vector_words
        self._coded = coded
        self._extra = extra
        self._streams = streams
        self._clip = scale.clip
        self._low_bits = np.array((1 << scale.fraction_bits) - 1, dtype=np.uint16)
        self._shifts = [np.array(shift, dtype=np.int64) for shift in shifts]
        self._offset_word = np.array(sum(offset << shift for shift in shifts), dtype=np.uint64)
        # `scaled`, `widened` and `wide` share their memory: each is done with when the next is written
        self._scaled: NDArray[Any] = scratch.view(np.float32 if scale.narrow else np.float64)[:CHUNK_WORDS]
        self._widened: NDArray[Any] = self._scaled.view(np.int32 if scale.narrow else np.int64)
        self._wide: NDArray[np.int64] = scratch.view(np.int64)
        self._fixed = np.empty_like(self._widened)
        self._factor = np.array(scale.factor, dtype=self._scaled.dtype)
        self._fraction = np.array(scale.fraction_bits, dtype=self._fixed.dtype)
        self._random = np.empty(CHUNK_WORDS, dtype="<u2")
        self._next = 0

    def encode_into(self, out: Words, first_word: int) -> None:
        """Write words first_word ... first_word + len(out): at most CHUNK_WORDS, inside one segment.

        `first_word` is a multiple of eight, where a block of rounding bits begins.
        """
        of_vector = max(0, min(len(out), self._words - first_word))
        if of_vector:
            self._encode(out[:of_vector], first_word)
        if of_vector < len(out):
            start = first_word + of_vector - self._words
            out[of_vector:] = self._extra[start : start + len(out) - of_vector]

    def _encode(self, out: Words, first_word: int) -> None:
        self._seek(first_word, len(out))
        total, words = out.view(np.int64), self._words
        random = self._random[: whole_blocks(len(out), ROUNDING_BYTES)]
        for lane, stream in enumerate(self._streams):
            start = lane * words + first_word
            values = self._coded[start : min(start + len(out), (lane + 1) * words)]
            stream.fill(random.data.cast("B"))
            integers = self._integers(values, random[: len(values)])
            if lane == 0:
                total[...] = integers  # no vector is shorter than its first lane
                continue
            wide, head = self._wide[: len(values)], total[: len(values)]
            wide[...] = integers
            np.left_shift(wide, self._shifts[lane], out=wide)
            np.add(head, wide, out=head)  # modulo 2**64: negative ones borrow, the offset word pays back
        np.add(out, self._offset_word, out=out)

    def _seek(self, first_word: int, count: int) -> None:
        segment, within = divmod(first_word, SEGMENT_WORDS)
        block, rest = divmod(within * ROUNDING_BYTES, BLOCK_BYTES)
        assert rest == 0, "runs begin at a block of rounding bits"
        if first_word != self._next or within == 0:
            for lane, stream in enumerate(self._streams):
                stream.seek(segment, lane, block)
        self._next = first_word + count

    def _integers(self, values: Vector, random: NDArray[np.uint16]) -> NDArray[np.signedinteger[Any]]:
        """floor((rint(clip(x) * factor) + random bits) / 2**f): unbiased, and zero stays exactly zero."""
        count = len(values)
        scaled, widened, fixed = self._scaled[:count], self._widened[:count], self._fixed[:count]
        values.clip(-self._clip, self._clip, out=scaled)  # the method: np.clip costs microseconds more a call
        np.multiply(scaled, self._factor, out=scaled)
        np.rint(scaled, out=scaled)
        fixed[...] = scaled  # exact: whole numbers below 2**31 or 2**53
        np.bitwise_and(random, self._low_bits, out=random)
        widened[...] = random  # one copy and one addition are faster than an addition of mixed types
        np.add(fixed, widened, out=fixed)
        np.right_shift(fixed, self._fraction, out=fixed)
        return fixed


class Decoder:
    """From packed sums of the survivors' integers to their weighted mean; buffers of one thread."""

    __slots__ = ("_factor", "_floats", "_integers", "_lane_bits", "_lane_max", "_offset", "_params", "_zero")

    def __init__(self, params: RoundParams, survivors: Sequence[str], scratch: Words | None = None) -> None:
        """`scratch`, CHUNK_WORDS words, is overwritten by every run."""
        self._params = params
        self._offset = sum(params.offset(party) for party in survivors)
        arrived = sum(params.weight(party) for party in survivors)
        # H * w_i / (W * clip) steps per unit in member i's integers; divided by the weight that arrived
        self._factor = params.quantizer.clip * (params.total_weight / (params.half_steps * arrived))
        narrow = params.quantizer.lane_max <= np.iinfo(np.int32).max
        self._integers: NDArray[np.signedinteger[Any]] = np.empty(CHUNK_WORDS, dtype=np.int32 if narrow else np.int64)
        self._floats = (np.empty(CHUNK_WORDS, dtype="<u8") if scratch is None else scratch).view(np.float64)
        self._zero = np.array(self._offset, dtype=self._integers.dtype)  # constants without dimensions, as in `RunEncoder`
        self._lane_max = np.array(params.quantizer.lane_max, dtype=self._integers.dtype)
        self._lane_bits = np.array(params.quantizer.lane_bits, dtype=np.uint64)

    def decode_into(self, mean: Vector, words: Words, first_word: int) -> None:
        """Write the values of at most CHUNK_WORDS words of the vector into `mean`, which holds coded values.

        `words` are used up. RemoteError (bad-sum) where a lane exceeds what survivors can send, or padding or a spare bit
        is not zero.
        """
        quantizer = self._params.quantizer
        for lane in range(quantizer.lanes):
            if lane:
                np.right_shift(words, self._lane_bits, out=words)
            sums = self._lowest_lane(words, top=lane + 1 == quantizer.lanes)
            start = lane * self._params.vector_words + first_word
            kept = max(0, min(len(words), self._params.coded_length - start))
            if int(sums.max()) > 2 * self._offset or (kept < len(sums) and (sums[kept:] != self._offset).any()):
                raise _bad_sum()
            floats = self._floats[:kept]
            np.subtract(sums, self._zero, out=sums)
            floats[...] = sums[:kept]
            np.multiply(floats, self._factor, out=floats)
            mean[start : start + kept] = floats

    def _lowest_lane(self, words: Words, *, top: bool) -> NDArray[np.signedinteger[Any]]:
        """The integers of the lowest lane. Spare bits above the top one stay in it: if one is set, the sum is too large."""
        integers = self._integers[: len(words)]
        np.copyto(integers, words, casting="unsafe")  # keeps the lowest bits
        if not top:
            np.bitwise_and(integers, self._lane_max, out=integers)
        return integers


def _bad_sum() -> RemoteError:
    text = "the opened sum holds integers that the survivors cannot have sent: an upload or a mask is wrong"
    return RemoteError(UNKNOWN, "bad-sum", text)
