"""Shares of noise that add up to a target whoever is lost, and integers whose norm is bounded without exception.

Rule: with n members, of whom d may be lost and c may collude, every member adds d + 1 components of discrete Gaussian
noise. Component k has the variance V / (n - c) for k = 0 and V / ((n - k - c) * (n - k - c + 1)) for k = 1 ... d, so that
components 0 ... j together have V / (n - j - c). When j members are lost, components j + 1 ... d of the others are taken out of
the sum again from their keys: what the honest survivors, n - j - c at the least, then hold together is V, not more and not
less (the surplus-noise idea of Dordis, Jiang et al. 2024; how many are taken out follows from the signed list alone).

Their secrets form a chain, secret k + 1 a hash of secret k: whoever is given secret j + 1 can make all that is to be taken
out and nothing that stays.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from secagg.discrete_gaussian import Integers, largest_value, left_out
from secagg.encoding import encode
from secagg.errors import LocalError
from secagg.keystream import Door, Stream

CHAIN_LABEL = "hospital-secagg noise chain v1"
ROUNDING_BITS = 16
ROUNDING_TRIES = 64  # each is kept with probability >= 1 - exp(-1/2); all fail with probability below 1e-25
KEPT_ROUNDING = 0.5  # log of one over the chance that a try may fail (Kairouz, Liu and Steinke 2021, section 4.1)


@dataclass(frozen=True, slots=True)
class NoiseShares:
    """What one round's members add. `variance`: of the sum, in squared steps. LocalError where nothing would be left."""

    variance: Fraction
    members: int
    may_drop: int
    may_collude: int

    def __post_init__(self) -> None:
        if self.may_collude < 1 or self.may_drop < 0:
            raise LocalError("shared noise assumes at least one colluder: every member knows its own share")
        if self.members - self.may_drop - self.may_collude < 1:
            raise LocalError(
                f"of {self.members} members, {self.may_drop} may drop and {self.may_collude} may collude: nobody honest is "
                "left to hide the sum; lower one of them or admit more hospitals"
            )
        if self.variance <= 0:
            raise LocalError("shared noise needs a variance above zero")

    def components(self) -> tuple[Fraction, ...]:
        """Variance of each of one member's components, in order."""
        honest = self.members - self.may_collude
        later = (self.variance / ((honest - k) * (honest - k + 1)) for k in range(1, self.may_drop + 1))
        return (self.variance / honest, *later)

    def kept(self, lost: int) -> int:
        """How many components of every survivor stay in the sum. LocalError where more are lost than the plan allows."""
        if not 0 <= lost <= self.may_drop:
            raise LocalError(f"{lost} members are lost and the plan allows {self.may_drop}: the sum is not opened")
        return lost + 1

    def remaining(self, lost: int, colluders: int) -> Fraction:
        """Variance in the sum that `colluders` of the survivors do not know, once the surplus is taken out."""
        self.kept(lost)
        survivors = self.members - lost
        return self.variance * (survivors - colluders) / (survivors - self.may_collude)

    def largest(self) -> int:
        """No member's noise is further from zero than this, in any coordinate: the sampler draws no more."""
        return sum(map(largest_value, self.components()))

    def left_out(self, values: int) -> float:
        """Statistical distance of all members' components for a vector of `values` from what exact sampling gives."""
        return self.members * sum(left_out(variance, values) for variance in self.components())


def chain(secret: bytes, first: int, may_drop: int) -> tuple[bytes, ...]:
    """Secrets of components `first` ... d, `secret` being the first of them: each gives those behind it and none before it."""
    secrets = [secret]
    for number in range(first + 1, may_drop + 1):
        secrets.append(hashlib.sha256(encode(CHAIN_LABEL, secrets[-1], number)).digest())
    return tuple(secrets)


def ratio_bound(variances: list[Fraction]) -> float:
    """Log of the largest factor, at any integer, between a sum of discrete Gaussians and one of the summed variance.

    Two of them with variances a and b: completing the square leaves a sum of exp(-(y - mu)**2 / (2s)) over the integers with
    s = a*b / (a + b), which by Poisson summation differs from its mean over mu by a factor in [1 - e, 1 + e] with
    e = 2 * sum over k >= 1 of exp(-2 * pi**2 * s * k**2). Normalising costs the same once more: log((1 + e) / (1 - e)). A
    bound on the ratio survives convolution with a third, so the bounds of one addition after the other add up (Kairouz, Liu
    and Steinke 2021, arXiv 2102.06387, theorem 9 and corollary 12, for equal variances). Infinite where shares are too small.
    """
    total, bound = Fraction(0), 0.0
    for variance in sorted(variances, reverse=True):
        if total:
            harmonic = float(total * variance / (total + variance))
            excess = 2 * sum(math.exp(-2 * math.pi**2 * harmonic * k * k) for k in range(1, 9))
            if excess >= 0.5:
                return math.inf
            bound += math.log1p(excess) - math.log1p(-excess)
        total += variance
    return bound


def rounded_norm_squared(norm: float, length: int) -> int:
    """Bound on the squared norm of `length` coordinates of norm <= `norm` after conditional rounding, a whole number.

    The smaller of (norm + sqrt(length))**2, which always holds, and one that a random rounding exceeds with probability at
    most exp(-KEPT_ROUNDING) (Kairouz, Liu and Steinke 2021, equation 1 with beta = exp(-1/2)).
    """
    always = (norm + math.sqrt(length)) ** 2
    usually = norm**2 + length / 4 + math.sqrt(2 * KEPT_ROUNDING) * (norm + math.sqrt(length) / 2)
    return math.floor(min(always, usually))


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
