"""Integers whose norm is bounded without exception, from values whose norm is clipped in floating point.

Rule: what an integer vector adds to a sum is what its squared norm says, counted in integers; accounting for shared noise
takes the bound from here and nothing from float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from secagg.errors import LocalError
from secagg.keystream import Door, Stream
from secagg.params import Integers

ROUNDING_BITS = 16
ROUNDING_TRIES = 64  # each is kept with probability >= 1 - exp(-1/2); all fail with probability below 1e-25
KEPT_ROUNDING = 0.5  # log of one over the chance that a try may fail (Kairouz, Liu and Steinke 2021, section 4.1)


def rounded_norm_squared(norm: float, length: int) -> int:
    """Bound on the squared norm of `length` coordinates of norm <= `norm` after conditional rounding, a whole number.

    The smaller of (norm + sqrt(length))**2, which always holds, and one that a random rounding exceeds with probability at
    most exp(-KEPT_ROUNDING) (Kairouz, Liu and Steinke 2021, theorem 1 with beta = exp(-1/2)).
    """
    always = (norm + math.sqrt(length)) ** 2
    usually = norm**2 + length / 4 + math.sqrt(2 * KEPT_ROUNDING) * (norm + math.sqrt(length) / 2)
    return math.floor(min(always, usually))


def scale_within(norm: int, length: int) -> int:
    """The largest whole norm that `length` coordinates may have before rounding, so that rounding keeps them within `norm`.

    LocalError where that is less than half of it: the grid would be so coarse that rounding said more than the values.
    """
    low, high = 0, norm  # the bound grows with the norm: `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rounded_norm_squared(middle, length) <= norm * norm else (low, middle)
    if 2 * low < norm:
        raise LocalError(
            f"a norm of {norm} steps is too coarse for {length} values: rounding alone would take most of it; take "
            f"{math.ceil(math.sqrt(length))} steps or more"
        )
    return low


def round_within(values: NDArray[np.float64], norm_squared: int, key: bytes) -> Integers:
    """Round at random, unbiased, again and again until the squared norm in integers is at most `norm_squared`.

    A vector that no try rounds small enough is cut towards zero, which cannot lengthen it, and what is then still too long
    is dropped to zero: the bound holds without exception. `key` serves this vector only.
    """
    below = np.floor(values)
    chance = np.rint((values - below) * (1 << ROUNDING_BITS)).astype(np.int64)
    base = below.astype(np.int64)
    stream = Stream(key, door=Door.GCM)
    for number in range(ROUNDING_TRIES):
        rounded = base + (_random16(stream, number, len(values)) < chance)
        if int(np.dot(rounded, rounded)) <= norm_squared:
            return rounded
    cut: Integers = np.trunc(values).astype(np.int64)
    return cut if int(np.dot(cut, cut)) <= norm_squared else np.zeros_like(cut)


def _random16(stream: Stream, number: int, count: int) -> NDArray[np.uint16]:
    stream.seek(number)
    words = stream.words(-(-count // 4))
    return words.view("<u2")[:count]
