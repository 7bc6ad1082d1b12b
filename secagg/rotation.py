"""A randomised Hadamard rotation: every value becomes a signed sum of many, so that one clip and few bits suit them all.

A vector of d values is padded with zeros to B * R, where B is the smallest power of two with B * B >= d and R = ceil(d / B).
Seen as B rows of R values it goes through signs, a Walsh-Hadamard transform of each column, a transposition that spreads
every column over others, signs and a transform again, divided by B. That is orthogonal: its inverse undoes it, and
lengths stay. Signs come from a public key, so that whoever knows the session turns the mean back (README, step 0.4).

Suresh et al. 2017 (Distributed Mean Estimation with Limited Communication), section 3; here two short transforms for one long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secagg.keystream import Stream
from secagg.params import Vector, rotation_shape

TILE_BYTES = 1 << 18  # columns that are transformed together stay in a core's second-level cache
LOW_ROWS = 64
SIGN_BIT = np.uint32(1 << 31)


def rotate(vector: Vector, length: int, key: bytes) -> Vector:
    """The rotation of the `length` values, padded to what `rotation_shape` holds. `vector` is not changed."""
    rows, columns = rotation_shape(length)
    values: Vector = np.zeros(rows * columns, dtype=np.float32)
    values[:length] = vector
    _flip(values, key, 0)
    _hadamard(values.reshape(rows, columns))
    turned: Vector = np.ascontiguousarray(values.reshape(columns, rows).T).reshape(-1)
    _flip(turned, key, 1)
    _hadamard(turned.reshape(rows, columns))
    return np.multiply(turned, np.float32(1 / rows), out=turned)  # a power of two: exact


def unrotate(vector: Vector, length: int, key: bytes) -> Vector:
    """The inverse of `rotate`: `length` values. `vector` is overwritten."""
    rows, columns = rotation_shape(length)
    _hadamard(vector.reshape(rows, columns))
    _flip(vector, key, 1)
    values: Vector = np.ascontiguousarray(vector.reshape(rows, columns).T).reshape(-1)
    _hadamard(values.reshape(rows, columns))
    _flip(values, key, 0)
    return np.multiply(values[:length], np.float32(1 / rows))


def _hadamard(matrix: Vector) -> None:
    """Walsh-Hadamard transform of every column, in place, not normalised; butterflies at distance 1, 2, 4, ...

    Distances below and from LOW_ROWS on are two passes, each over few rows and long runs of values.
    """
    rows, columns = matrix.shape
    low = min(rows, LOW_ROWS)
    for block in matrix.reshape(rows // low, low, columns):
        _by_tiles(block)
    if rows > low:
        _by_tiles(matrix.reshape(rows // low, low * columns))


def _by_tiles(matrix: Vector) -> None:
    rows, columns = matrix.shape
    width = max(1, TILE_BYTES // (matrix.itemsize * rows))
    for start in range(0, columns, width):
        tile = np.ascontiguousarray(matrix[:, start : start + width])
        _butterflies(tile)
        matrix[:, start : start + width] = tile


def _butterflies(tile: Vector) -> None:
    rows, width = tile.shape
    spare: Vector = np.empty(tile.size // 2, dtype=np.float32)
    distance = 1
    while distance < rows:
        pairs = tile.reshape(rows // (2 * distance), 2, distance * width)
        first, second = pairs[:, 0], pairs[:, 1]
        difference = spare.reshape(first.shape)
        np.subtract(first, second, out=difference)
        np.add(first, second, out=first)
        second[...] = difference
        distance *= 2


def _flip(values: Vector, key: bytes, lane: int) -> None:
    """Change the sign of value i where bit i of the keystream is set (bit 0 is the lowest of the first byte)."""
    words = Stream(key, 0, lane).words(-(-len(values) // 64))
    bits = np.unpackbits(words.view(np.uint8), count=len(values), bitorder="little")
    signs: NDArray[np.uint32] = bits.astype(np.uint32)
    np.multiply(signs, SIGN_BIT, out=signs)
    raw = values.view(np.uint32)
    np.bitwise_xor(raw, signs, out=raw)
