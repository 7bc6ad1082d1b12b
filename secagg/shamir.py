"""Shamir's sharing of 32-byte secrets over the integers modulo P = 2**256 + 297 (Shamir 1979).

P is the smallest prime above 2**256, so every 32-byte value is a field element and none is ever redrawn. Shares are 33
bytes. Member k of the roster (from 0) holds the value at point k + 1; points are distinct and never zero.
Surplus shares correct bad ones: Berlekamp-Welch decoding up to half the surplus, and for small sets every subset.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations
from math import comb, prod
from operator import mul

import numpy as np
from numpy.typing import NDArray

from secagg.errors import LocalError

P = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
P_BYTES = P.to_bytes(SHARE_BYTES, "big")
DRAW_BYTES = 48  # 384 bits modulo a 257-bit prime: bias below 2**-127
MAX_SUBSETS = 500  # try every subset up to this many; one try costs microseconds
MAX_POINT = 1 << 31
BATCH_SETS = 256  # differences of 60 points each: 7 MB at a time

Rand = Callable[[int], bytes]


def draw(rand: Rand, size: int) -> bytes:
    """Random bytes of the caller's source; LocalError where it gives fewer than asked for."""
    data = rand(size)
    if len(data) != size:
        raise LocalError(f"the source of randomness gave {len(data)} bytes instead of {size}")
    return data


def split(secret: bytes, threshold: int, points: Sequence[int], rand: Rand) -> dict[int, bytes]:
    """One share for each point; any `threshold` of them give the secret, fewer give nothing."""
    if len(secret) != SECRET_BYTES:
        raise LocalError(f"a shared secret has {SECRET_BYTES} bytes, got {len(secret)}")
    if len(set(points)) != len(points) or not all(0 < point < P for point in points):
        raise LocalError("sharing points must be distinct and not zero")
    if not 0 < threshold <= len(points):
        raise LocalError(f"a threshold of {threshold} does not fit {len(points)} points")
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [int.from_bytes(draw(rand, DRAW_BYTES), "big") % P for _ in range(threshold - 1)]
    return {point: evaluate(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points}


def is_share(share: bytes) -> bool:
    """Whether these bytes are a field element in canonical form."""
    return len(share) == SHARE_BYTES and (share[0] == 0 or int.from_bytes(share, "big") < P)  # 2**256 is below P


def are_shares(shares: Collection[bytes]) -> bool:
    """`is_share` of all of them: strings of one length compare as the numbers that they spell."""
    return set(map(len, shares)) <= {SHARE_BYTES} and max(shares, default=b"") < P_BYTES


def evaluate(coefficients: Sequence[int], point: int) -> int:
    """Value of a polynomial, lowest coefficient first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % P
    return value


class Combiner:
    """Lagrange coefficients at zero for one set of points, computed once and used for every secret that it shares.

    They are kept as `top` over x_i prod (x_j - x_i): what all have in common is multiplied once a secret, not once a share.
    """

    __slots__ = ("_inverses", "_top", "points")

    def __init__(self, points: Sequence[int], inverses: Sequence[int] | None = None) -> None:
        self.points = tuple(points)
        self._top = prod(self.points) % P
        self._inverses = tuple(inverses or _inverses_of([self.points])[0])

    def combine(self, shares: Mapping[int, bytes]) -> bytes | None:
        """The secret, or None where the value is not one of 32 bytes (some share is wrong)."""
        values = [int.from_bytes(shares[point], "big") for point in self.points]
        value = self._top * sum(map(mul, self._inverses, values)) % P
        return value.to_bytes(SECRET_BYTES, "big") if value < 1 << 8 * SECRET_BYTES else None


def combiners(sets: Collection[tuple[int, ...]]) -> dict[tuple[int, ...], Combiner]:
    """A combiner for each of many sets of equal size; together they cost a tenth of what they cost one by one."""
    ordered, made = list(sets), {}
    for start in range(0, len(ordered), BATCH_SETS):
        batch = ordered[start : start + BATCH_SETS]
        made.update({points: Combiner(points, row) for points, row in zip(batch, _inverses_of(batch), strict=True)})
    return made


def likely_good(shares: Mapping[int, bytes], threshold: int) -> Iterator[tuple[int, ...]]:
    """Sets of `threshold` points to try where the first combination failed its check, the most likely first.

    The caller holds a commitment to the secret and takes the first set whose combination fits it.
    """
    values = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    bad = _error_points(values, threshold)
    if bad is not None:
        yield tuple(point for point in values if point not in bad)[:threshold]
    if comb(len(values), threshold) <= MAX_SUBSETS:
        yield from combinations(values, threshold)


def off_polynomial(good: Sequence[int], shares: Mapping[int, bytes]) -> tuple[int, ...]:
    """Points whose share is not on the polynomial through the shares at the `good` points."""
    values = {point: int.from_bytes(share, "big") for point, share in shares.items()}

    def at(where: int) -> int:
        return sum(_lagrange(good, point, where) * values[point] for point in good) % P

    return tuple(point for point, value in values.items() if point not in good and at(point) != value)


def _inverses_of(sets: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """For each set and each i: 1 / (x_i prod (x_j - x_i)). Times x_1 ... x_t that is the Lagrange coefficient at zero."""
    size, below = len(sets[0]), [product for row in _denominators(np.array(sets, dtype=np.int64)) for product in row]
    inverses = _inverses(below)
    return [inverses[at * size : (at + 1) * size] for at in range(len(sets))]


def _denominators(sets: NDArray[np.int64]) -> list[list[int]]:
    """x_i prod_{j != i} (x_j - x_i) for each set and i: 64-bit products as long as they fit, then Python's."""
    count, size = sets.shape
    if not 0 < int(sets.min()) <= int(sets.max()) <= MAX_POINT:
        raise LocalError("points to be combined lie between 1 and 2**31")
    factors = sets[:, None, :] - sets[:, :, None]
    factors[:, range(size), range(size)] = sets
    fit = 62 // int(sets.max()).bit_length()
    padded = np.ones((count, size, -(-size // fit) * fit), dtype=np.int64)
    padded[:, :, :size] = factors
    partial = padded.reshape(count, size, -1, fit).prod(axis=3).tolist()
    return [[prod(products) for products in rows] for rows in partial]


def _inverses(values: Sequence[int]) -> list[int]:
    """Inverses modulo P of many values with one inversion (Montgomery's trick)."""
    before, product = [], 1
    for value in values:
        before.append(product)
        product = product * value % P
    inverse = pow(product, -1, P)
    found = []
    for value, earlier in zip(reversed(values), reversed(before), strict=True):
        found.append(inverse * earlier % P)
        inverse = inverse * value % P
    return found[::-1]


def _lagrange(points: Sequence[int], point: int, at: int) -> int:
    """Value at `at` of the polynomial that is 1 at `point` and 0 at the other points."""
    top = bottom = 1
    for other in points:
        if other != point:
            top = top * (at - other) % P
            bottom = bottom * (point - other) % P
    return top * pow(bottom, -1, P) % P


def _error_points(values: Mapping[int, int], threshold: int) -> frozenset[int] | None:
    """Points that include every wrong value, if at most half the surplus is wrong (Berlekamp and Welch).

    Finds E (monic, degree e) and Q (degree < threshold + e) with Q(x) = y E(x) at every point. Then Q / E is the shared
    polynomial and E is zero wherever a value is wrong; its e roots leave at least `threshold` points.
    """
    errors = (len(values) - threshold) // 2
    if errors == 0:
        return None
    rows = []
    for point, value in values.items():
        powers = [pow(point, power, P) for power in range(threshold + errors)]
        rows.append([*powers, *(-value * power % P for power in powers[:errors]), value * pow(point, errors, P) % P])
    solution = _solve(rows, threshold + 2 * errors)
    if solution is None:
        return None
    locator = [*solution[threshold + errors :], 1]
    return frozenset(point for point in values if evaluate(locator, point) == 0)


def _solve(rows: list[list[int]], unknowns: int) -> list[int] | None:
    """One solution of a linear system modulo P, free unknowns set to zero; None if there is none."""
    pivots: list[int] = []
    for column in range(unknowns):
        rank = len(pivots)
        pivot = next((index for index in range(rank, len(rows)) if rows[index][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        inverse = pow(rows[rank][column], -1, P)
        rows[rank] = [entry * inverse % P for entry in rows[rank]]
        for index, row in enumerate(rows):
            if index != rank and row[column]:
                rows[index] = [(a - row[column] * b) % P for a, b in zip(row, rows[rank], strict=True)]
        pivots.append(column)
    if any(row[-1] for row in rows[len(pivots) :]):
        return None
    solution = [0] * unknowns
    for row, column in zip(rows, pivots, strict=False):
        solution[column] = row[-1]
    return solution
