"""What the vector of a session holds: the update's values as they are, or clipped tensor by tensor, rotated, thinned.

Three steps, each undone on the mean; all are public and the same for every member (README, step 0.4):

1. tensor clips: a value of a tensor with clip c is multiplied by quantizer.clip / c, so that one clip serves all;
2. rotation: `rotation` spreads every value over many, so that few bits a value serve all;
3. a subset: `kept` coordinates go up, the same for every member. The mean is scaled by coordinates / kept, which keeps
   each of its values unbiased over the choice of the subset.

Rotation and subset come from the session's context, which nobody chooses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import digest
from secagg.errors import LocalError
from secagg.keystream import Stream
from secagg.lanes import clip_below
from secagg.params import RoundParams, Vector, Words, rotation_shape
from secagg.rotation import rotate, unrotate

KEY_LABEL = "hospital-secagg public stream v1"
KEY_BYTES = 16


def code(params: RoundParams, update: Vector) -> Vector:
    """The values that are quantized: `params.coded_length` of them; `update` itself where nothing is to be done.

    LocalError for an update of another type or shape. `update` is not changed.
    """
    if update.dtype != np.float32 or update.shape != (params.length,):
        raise LocalError(f"the update is {update.dtype} of shape {update.shape}, expected float32 ({params.length},)")
    quantizer, coded = params.quantizer, update
    if params.tensor_clips:
        coded = _rescale(params, coded, [(count, quantizer.clip / clip) for count, clip in params.tensor_clips])
    if quantizer.rotate:
        coded = rotate(coded, params.length, public_key(params, "rotation"))
    if quantizer.keep < 1:
        coded = coded[chosen(params)]
    return coded


def decode(params: RoundParams, mean: Vector) -> Vector:
    """The mean of the updates from the mean of what `code` gave; `mean` itself where nothing was done."""
    quantizer, length = params.quantizer, params.length
    if quantizer.keep < 1:
        whole: Vector = np.zeros(_coordinates(params), dtype=np.float32)
        whole[chosen(params)] = mean * np.float32(len(whole) / len(mean))
        mean = whole
    if quantizer.rotate:
        mean = unrotate(mean, length, public_key(params, "rotation"))
    if params.tensor_clips:
        mean = _rescale(params, mean, [(count, clip / quantizer.clip) for count, clip in params.tensor_clips])
    return mean


def as_sent(params: RoundParams, update: Vector) -> Vector:
    """What the sum holds of `update`, but for rounding at random: with the session's clip, in the update's own values."""
    clip = clip_below(params)
    return decode(params, np.clip(code(params, update), -clip, clip))


def chosen(params: RoundParams) -> NDArray[np.int64]:
    """Coordinates that go up, ascending: those whose 64 random bits are the smallest, the earlier of two equal ones."""
    tickets: Words = Stream(public_key(params, "subset")).words(_coordinates(params))
    last = np.partition(tickets, params.coded_length - 1)[params.coded_length - 1]
    sure = np.flatnonzero(tickets < last)
    tied = np.flatnonzero(tickets == last)[: params.coded_length - len(sure)]
    return np.sort(np.concatenate([sure, tied]))


def _coordinates(params: RoundParams) -> int:
    return math.prod(rotation_shape(params.length)) if params.quantizer.rotate else params.length


def public_key(params: RoundParams, use: str) -> bytes:
    """Key of a keystream that everybody in the session can make."""
    return digest(KEY_LABEL, params.context(), use)[:KEY_BYTES]


def _rescale(params: RoundParams, values: Vector, factors: Sequence[tuple[int, float]]) -> Vector:
    scaled: Vector = np.empty(params.length, dtype=np.float32)
    ends = np.cumsum([0, *(count for count, _ in factors)]).tolist()
    for (start, stop), (_, factor) in zip(pairwise(ends), factors, strict=True):
        np.multiply(values[start:stop], np.float32(factor), out=scaled[start:stop])
    return scaled
