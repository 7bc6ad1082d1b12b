"""Shares of noise that add up to a target whoever is lost.

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

from secagg.encoding import encode
from secagg.errors import LocalError

CHAIN_LABEL = "hospital-secagg noise chain v1"
TAIL_DEVIATIONS = 14  # how far exact draws reach: 2 * exp(-97), 1e-42 a value, is beyond
BLOCKS_A_DEVIATION = 32  # at least; the sampler cuts the line into blocks of a power of two
PLACE_BITS = 16  # of the sampler's word, 16 to 31: they choose a place in a block
LARGEST_DEVIATION = BLOCKS_A_DEVIATION << PLACE_BITS  # two million steps, of one component
SMALLEST_VARIANCE = Fraction(1, 4)  # a share below it is mostly zeros
MAX_DROP = 100  # shares of as many secrets more fit a sealed box


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
        if self.may_drop > MAX_DROP:
            raise LocalError(f"{self.may_drop} members may drop: shared noise is planned for at most {MAX_DROP}")
        if self.variance <= 0:
            raise LocalError("shared noise needs a variance above zero")

    def components(self) -> tuple[Fraction, ...]:
        """Variance of each of one member's components, in order."""
        honest = self.members - self.may_collude
        later = (self.variance / ((honest - k) * (honest - k + 1)) for k in range(1, self.may_drop + 1))
        return (self.variance / honest, *later)

    def check_drawable(self) -> None:
        """LocalError where the sampler serves no component of some variance: nobody could make its upload."""
        for variance in self.components():
            if not is_drawable(variance):
                raise LocalError(
                    f"a share of the noise of {self.members} members has a deviation of {math.sqrt(variance):.3g} steps, what "
                    f"is drawn lies between 1/2 and {LARGEST_DEVIATION}: change the noise, or the length of a step"
                )

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

    def ratio(self, values: int) -> float:
        """Upper bound on t of `values` coordinates, for any kept components of any of a roster of this size or smaller.

        Added from the largest on, each is added to at least itself: no addition costs more than that of the two smallest.
        """
        smallest, count = min(self.components()), self.members * (self.may_drop + 1)
        return values * (count - 1) * ratio_bound([smallest, smallest])

    def left_out(self, values: int) -> float:
        """Statistical distance of all members' components for a vector of `values` from what exact sampling gives."""
        return self.members * sum(left_out(variance, values) for variance in self.components())


@dataclass(frozen=True, slots=True)
class SharedNoise:
    """What a session with shared noise agrees on besides its roster: all of it is in the context.

    `variance` of the noise that c colluders leave unknown, in squared steps; `largest_sum` of one member in a coordinate,
    which it cuts its sums to before noise comes on top. `quantizer.clip` of the session is what `offset` steps are worth.
    """

    variance: Fraction
    may_drop: int
    may_collude: int
    largest_sum: int

    def __post_init__(self) -> None:
        if self.largest_sum < 1:
            raise LocalError("a member's largest sum is at least one step")

    def shares(self, members: int) -> NoiseShares:
        """The shares of a roster of that many; LocalError where nobody honest would be left."""
        return NoiseShares(self.variance, members, self.may_drop, self.may_collude)

    def offset(self, members: int) -> int:
        """Largest size of a member's integers, noise included: noise is never clipped, because it reaches no further."""
        return self.largest_sum + self.shares(members).largest()

    def field(self) -> bytes:
        """Its encoding in the context (README, step 0.3)."""
        return encode(
            str(self.variance.numerator), str(self.variance.denominator), self.may_drop, self.may_collude, self.largest_sum
        )


def variance_of(noise_multiplier: float, norm: int) -> Fraction:
    """V: (noise_multiplier * norm)**2 in squared steps, the next whole number; exact, so that everybody has the same."""
    return Fraction(math.ceil((Fraction(noise_multiplier) * norm) ** 2))


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
    and Steinke 2021, arXiv 2102.06387, on sums of discrete Gaussians of one variance). Infinite where shares are too small.
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


def left_out(variance: Fraction, values: int) -> float:
    """Upper bound on the probability that any of `values` exact values lies in the tail that is never drawn.

    A discrete Gaussian exceeds m no more often than a Gaussian of the same parameter exceeds m - 1 (Canonne, Kamath and
    Steinke 2020, on tails).
    """
    deviation = math.sqrt(variance)
    return values * math.erfc((TAIL_DEVIATIONS * deviation - 1) / deviation / math.sqrt(2))


def is_drawable(variance: Fraction) -> bool:
    """Whether words of 64 bits serve the sampler for this variance."""
    return SMALLEST_VARIANCE <= variance <= LARGEST_DEVIATION**2


def largest_value(variance: Fraction) -> int:
    """No value drawn is further from zero."""
    return blocks_a_side(variance, block_width(variance)) * block_width(variance)


def block_width(variance: Fraction) -> int:
    """Width of the sampler's blocks, a power of two."""
    return 1 << max(0, math.frexp(math.sqrt(variance) / BLOCKS_A_DEVIATION)[1] - 1)


def blocks_a_side(variance: Fraction, width: int) -> int:
    """Blocks on each side of zero that reach TAIL_DEVIATIONS."""
    return math.ceil(TAIL_DEVIATIONS * math.sqrt(variance) / width)
