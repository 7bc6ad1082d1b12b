"""What a round with shared noise costs one patient: Renyi accounting for Poisson-sampled sums of discrete Gaussians.

Rule: every reading is an upper bound, and holds against the coordinator together with the colluders that the plan names.
The derivation, line by line, is in README.md (Shared noise). In short, for whole orders a >= 2:

1. Integers x with P(x) ~ exp(-|x|**2 / (2V)), moved by an integer vector v: E[(P_v / P)**k] = exp((k*k - k) |v|**2 / (2V)),
   as completing the square moves the lattice by k*v onto itself (Canonne, Kamath and Steinke 2020, on concentrated privacy).
2. With rate q the moment of order a is the binomial sum of 1, as for the continuous Gaussian (Mironov, Talwar and Zhang
   2019, arXiv 1908.10530, section 3.3); the other direction is no larger (x -> v - x exchanges P and P_v).
3. The noise is a sum of shares, within e**t of one discrete Gaussian at every point (`secagg.noise_shares.ratio_bound`,
   summed over coordinates): adds t * (2a - 1) / (a - 1).
4. From order a to (epsilon, delta): Canonne, Kamath and Steinke 2020, proposition 12. What the sampler leaves out of the
   tails is a statistical distance and enters delta, from both sides: (1 + e**epsilon) times it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from secagg.noise_shares import NoiseShares, variance_of
from secagg.params import MAX_LENGTH

ORDERS = (*range(2, 65), 72, 80, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class IntegerMechanism:
    """`steps` rounds: a sum of integer vectors with norm at most `sensitivity`, each patient in it with `sampling_rate`.

    `deviation`: of the noise that no colluder knows; `ratio`: t above, over all coordinates; `left_out`: statistical distance
    of one round's noise from exact shares. Steps of the integer grid throughout.
    """

    deviation: float
    sensitivity: float
    sampling_rate: float
    steps: int
    ratio: float = 0.0
    left_out: float = 0.0

    def __post_init__(self) -> None:
        if not (self.deviation > 0 and self.sensitivity > 0 and math.isfinite(self.deviation + self.sensitivity)):
            raise ValueError("shared noise needs a deviation and a sensitivity above zero")
        if not 0 < self.sampling_rate <= 1 or self.steps < 0:
            raise ValueError("a sampling rate lies in (0, 1] and steps are not negative")
        if not (self.ratio >= 0 and self.left_out >= 0):
            raise ValueError("corrections are not negative")


@dataclass(frozen=True, slots=True, order=True)
class Shares:
    """How one noise was shared: `norm_steps` bounds a patient's integers, `members` is the plan's largest cohort.

    Fewer members on a roster leave the charged variance as it is and the outsider more of it, so the largest covers all.
    """

    norm_steps: int
    members: int
    may_drop: int
    may_collude: int

    @property
    def honest(self) -> int:
        """Of a full roster, how many must keep their noise to themselves: all but the colluders."""
        return self.members - self.may_collude

    def mechanism(self, multiplier: float, sampling_rate: float, steps: int, *, outsider: bool = False) -> IntegerMechanism:
        """What such rounds are against c colluders with the coordinator, or `outsider`: against whoever knows no share.

        With j lost an outsider does not know (n - j) / (n - j - c) times V: no less than with all there.
        """
        variance = variance_of(multiplier, self.norm_steps)
        noise = NoiseShares(variance, self.members, self.may_drop, self.may_collude)
        left = noise.remaining(0, 0) if outsider else variance
        deviation = math.nextafter(math.sqrt(left), 0.0)
        corrections = noise.ratio(MAX_LENGTH), noise.left_out(MAX_LENGTH)  # of the longest vector there can be: still nothing
        return IntegerMechanism(deviation, float(self.norm_steps), sampling_rate, steps, *corrections)


def integer_epsilon(mechanisms: Iterable[IntegerMechanism], delta: float, orders: Sequence[int] = ORDERS) -> float:
    """Epsilon at `delta` of all rounds together, by the best of `orders`; infinite where the corrections use up delta."""
    if not 0 < delta < 1:
        raise ValueError(f"delta lies between 0 and 1, got {delta}")
    listed = [one for one in mechanisms if one.steps]
    if not listed:
        return 0.0
    divergences = [(order, sum(one.steps * divergence(one, order) for one in listed)) for order in orders]
    distance = sum(one.steps * one.left_out for one in listed)
    found = min(_converted(divergences, delta), math.inf)
    while math.isfinite(found):  # delta must also carry (1 + e**epsilon) times the distance, which raises epsilon a little
        rest = delta - distance * (1 + math.exp(min(found, 700.0)))
        if rest <= 0:
            return math.inf
        again = _converted(divergences, rest)
        if again <= found * (1 + 1e-12):
            return again
        found = again
    return found


def delta_at(mechanisms: Iterable[IntegerMechanism], epsilon: float) -> float:
    """Upper bound on delta at `epsilon` of all rounds together: `integer_epsilon` solved for delta."""
    listed = [one for one in mechanisms if one.steps]

    def log_delta(order: int) -> float:
        total = sum(one.steps * divergence(one, order) for one in listed)
        return (order - 1) * (total - epsilon + math.log1p(-1 / order)) - math.log(order)

    distance = sum(one.steps * one.left_out for one in listed) * (1 + math.exp(min(epsilon, 700.0)))
    return min(1.0, math.exp(min(0.0, *map(log_delta, ORDERS))) + distance) if listed else 0.0


def advantage(mechanisms: Iterable[IntegerMechanism]) -> float:
    """Upper bound on the total variation distance of all rounds together.

    sqrt(1 - exp(-D)) of the Kullback-Leibler divergence D (Bretagnolle and Huber 1979), which order 2 bounds. What the sampler
    leaves out counts twice: both sides are truncated.
    """
    listed = [one for one in mechanisms if one.steps]
    total = sum(one.steps * divergence(one, 2) for one in listed)
    return min(1.0, math.sqrt(-math.expm1(-total)) + 2 * sum(one.steps * one.left_out for one in listed))


def divergence(mechanism: IntegerMechanism, order: int) -> float:
    """Renyi divergence of one round at a whole order, in the larger of both directions."""
    if order < 2 or order != int(order):
        raise ValueError(f"the lattice argument needs whole orders from 2 on, got {order}")
    exact = _sampled(mechanism.sampling_rate, mechanism.sensitivity / mechanism.deviation, order)
    return exact + mechanism.ratio * (2 * order - 1) / (order - 1)


@lru_cache(maxsize=4096)
def _sampled(rate: float, shift: float, order: int) -> float:
    half = shift * shift / 2
    if rate == 1:
        return order * half
    terms = [
        math.log(math.comb(order, k)) + k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) * half
        for k in range(order + 1)
    ]
    top = max(terms)
    moment = top + math.log(math.fsum(math.exp(term - top) for term in terms))
    return max(0.0, moment) / (order - 1)


def _converted(divergences: list[tuple[int, float]], delta: float) -> float:
    def at(order: int, total: float) -> float:
        return total + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)

    return max(0.0, min(at(order, total) for order, total in divergences))
