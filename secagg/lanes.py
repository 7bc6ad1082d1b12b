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
from secagg.keystream import CHUNK_WORDS, Door, Stream
from secagg.params import RoundParams, Vector, Words

ROUNDING_BITS = 16  # random bits a value; the rounding keystream spends two bytes whatever is used of them
NARROW_BITS = 31  # int32 without its sign
SCAN_VALUES = 1 << 15  # 128 KiB of float32: the finiteness scan stays in cache


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


def count_clipped(params: RoundParams, update: Vector) -> int:
    """Coordinates outside the clip. LocalError for a vector that cannot be sent: wrong shape or type, not finite."""
    if update.dtype != np.float32 or update.shape != (params.length,):
        raise LocalError(f"the update is {update.dtype} of shape {update.shape}, expected float32 ({params.length},)")
    clip, clipped = clip_below(params), 0
    for start in range(0, params.length, SCAN_VALUES):
        run = update[start : start + SCAN_VALUES]
        high, low = run.max(), run.min()  # NaN passes through both
        if not (math.isfinite(high) and math.isfinite(low)):
            raise LocalError("the update holds values that are not finite: it is not sent, look at the training of this round")
        if high > clip or low < -clip:
            clipped += int(np.count_nonzero(np.abs(run) > clip))
    return clipped


class Encoder:
    """Packed integers of one update, any run of words at a time; the same run always gives the same words."""

    __slots__ = ("_door", "_key", "_offset_word", "_params", "_scaling", "_update")

    def __init__(self, params: RoundParams, party: str, update: Vector, rounding_key: bytes, door: Door) -> None:
        self._params = params
        self._update = update
        self._key = rounding_key
        self._door = door
        self._scaling = scaling(params, party)
        bits = params.quantizer.lane_bits
        self._offset_word = np.uint64(sum(params.offset(party) << (lane * bits) for lane in range(params.quantizer.lanes)))

    def open_segment(self, segment: int) -> SegmentEncoder:
        """A reader of one segment's words, in order."""
        streams = [Stream(self._key, segment, lane, self._door) for lane in range(self._params.quantizer.lanes)]
        return SegmentEncoder(self._params, self._update, self._scaling, self._offset_word, streams)


class SegmentEncoder:
    """Encodes the words of one segment in order, in buffers that stay in a core's cache."""

    __slots__ = ("_fixed", "_offset_word", "_params", "_random", "_scaled", "_scaling", "_shifted", "_streams", "_update")

    def __init__(
        self, params: RoundParams, update: Vector, scale: Scaling, offset_word: np.uint64, streams: Sequence[Stream]
    ) -> None:
        self._params = params
        self._update = update
        self._scaling = scale
        self._offset_word = offset_word
        self._streams = streams
        self._scaled = np.empty(CHUNK_WORDS, dtype=np.float32 if scale.narrow else np.float64)
        self._fixed: NDArray[np.signedinteger[Any]] = np.empty(CHUNK_WORDS, dtype=np.int32 if scale.narrow else np.int64)
        self._random = np.empty(CHUNK_WORDS, dtype="<u2")
        self._shifted = np.empty(CHUNK_WORDS, dtype=np.int64)

    def encode_into(self, out: Words, first_word: int) -> None:
        """Write words first_word ... first_word + len(out), at most CHUNK_WORDS and following those written before."""
        out.fill(self._offset_word)
        for lane, stream in enumerate(self._streams):
            start = lane * self._params.words + first_word
            values = self._update[start : min(start + len(out), (lane + 1) * self._params.words)]
            stream.read_into(self._random[: len(out)])
            shifted = self._shifted[: len(values)]
            shifted[:] = self._integers(values)
            shifted <<= lane * self._params.quantizer.lane_bits
            out[: len(values)] += shifted.view(np.uint64)  # modulo 2**64: negative ones borrow, the offset word pays back

    def _integers(self, values: Vector) -> NDArray[np.signedinteger[Any]]:
        """floor(rint(clip(x) * factor) / 2**f + uniform): unbiased, and zero stays exactly zero."""
        scale, count = self._scaling, len(values)
        scaled, fixed, random = self._scaled[:count], self._fixed[:count], self._random[:count]
        values.clip(-scale.clip, scale.clip, out=scaled)  # the method: np.clip costs four microseconds more a call
        np.multiply(scaled, scale.factor, out=scaled)
        np.rint(scaled, out=scaled)
        np.copyto(fixed, scaled, casting="unsafe")  # exact: whole numbers below 2**31 or 2**53
        np.bitwise_and(random, np.uint16((1 << scale.fraction_bits) - 1), out=random)
        np.add(fixed, random, out=fixed)
        np.right_shift(fixed, scale.fraction_bits, out=fixed)
        return fixed


class Decoder:
    """From packed sums of the survivors' integers to their weighted mean."""

    __slots__ = ("_factor", "_mask", "_offset", "_params")

    def __init__(self, params: RoundParams, survivors: Sequence[str]) -> None:
        self._params = params
        self._offset = sum(params.offset(party) for party in survivors)
        self._mask = np.uint64(params.quantizer.lane_max)
        arrived = sum(params.weight(party) for party in survivors)
        # H * w_i / (W * clip) steps per unit in member i's integers; divided by the weight that arrived
        self._factor = params.quantizer.clip * (params.total_weight / (params.half_steps * arrived))

    def decode_into(self, mean: Vector, words: Words, first_word: int) -> None:
        """Write the values of these words into `mean`; RemoteError (bad-sum) where a lane exceeds what survivors can send."""
        quantizer = self._params.quantizer
        for lane in range(quantizer.lanes):
            sums = (words >> np.uint64(lane * quantizer.lane_bits)) & self._mask
            start = lane * self._params.words + first_word
            stop = min(start + len(words), self._params.length, (lane + 1) * self._params.words)
            kept = max(0, stop - start)
            if int(sums.max()) > 2 * self._offset or not np.all(sums[kept:] == self._offset):
                raise _bad_sum()
            mean[start : start + kept] = (sums[:kept].astype(np.int64) - self._offset) * self._factor
        used_bits = quantizer.lanes * quantizer.lane_bits
        if used_bits < 64 and np.any(words >> np.uint64(used_bits)):
            raise _bad_sum()


def _bad_sum() -> RemoteError:
    text = "the opened sum holds integers that the survivors cannot have sent: an upload or a mask is wrong"
    return RemoteError(UNKNOWN, "bad-sum", text)
