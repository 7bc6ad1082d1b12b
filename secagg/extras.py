"""Extra coordinates: a few numbers, each with a clip of its own, whose plain sum over the survivors is wanted.

They ride behind the vector in words of two lanes. Every member has the same weight: with offset o = floor((2**32 - 1) / 2n)
a number x with clip c becomes a whole number in [0, 2 o], so no subset of n members overflows a lane (README, step 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secagg.errors import UNKNOWN, LocalError, RemoteError
from secagg.keystream import Stream
from secagg.params import EXTRA_LANES, RoundParams, Words

LANE_BITS = 64 // EXTRA_LANES
LANE_MASK = np.uint64((1 << LANE_BITS) - 1)
FRACTION_BITS = 16  # below one step: rounding is unbiased to 2**-17 of a step


def extra_words(params: RoundParams, extras: Sequence[float], rounding_key: bytes) -> Words:
    """The words of one member's numbers; number j lies in lane j % 2 of word j // 2.

    Rounded at random with 16 bits a number from lane `quantizer.lanes` of the rounding keystream. LocalError for another
    number of numbers than the session has, or one that is not finite.
    """
    values = np.asarray(extras, dtype=np.float64)
    if values.shape != (len(params.extra_clips),) or not np.isfinite(values).all():
        raise LocalError(f"the extra coordinates are {values.shape}, expected {len(params.extra_clips)} finite numbers")
    if not len(values):
        return np.empty(0, dtype=np.uint64)
    offset, clips = extra_offset(params), np.asarray(params.extra_clips)
    fixed = np.rint(np.clip(values / clips, -1, 1) * (offset << FRACTION_BITS)).astype(np.int64)
    random = Stream(rounding_key, 0, params.quantizer.lanes).words(-(-len(values) // 4)).view("<u2")[: len(values)]
    whole = (fixed + random.astype(np.int64)) >> FRACTION_BITS
    lanes: Words = np.zeros(EXTRA_LANES * params.extra_words, dtype=np.uint64)
    lanes[:] = offset
    lanes[: len(values)] = (whole + offset).astype(np.uint64)
    return lanes[0::2] | (lanes[1::2] << np.uint64(LANE_BITS))


def extra_sums(params: RoundParams, words: Words, survivors: int) -> NDArray[np.float64]:
    """The survivors' sums from the opened words. RemoteError (bad-sum) where no survivors can have sent them."""
    lanes: Words = np.empty(EXTRA_LANES * len(words), dtype=np.uint64)
    lanes[0::2], lanes[1::2] = words & LANE_MASK, words >> np.uint64(LANE_BITS)
    offset, count = extra_offset(params), len(params.extra_clips)
    if (lanes > 2 * offset * survivors).any() or (lanes[count:] != offset * survivors).any():
        text = "the opened sum holds extra coordinates that the survivors cannot have sent: an upload or a mask is wrong"
        raise RemoteError(UNKNOWN, "bad-sum", text)
    steps = lanes[:count].astype(np.int64) - offset * survivors
    return steps * (np.asarray(params.extra_clips) / offset)


def extra_offset(params: RoundParams) -> int:
    """The integer that stands for zero in every member's lane."""
    return int(LANE_MASK) // (2 * len(params.participants))
