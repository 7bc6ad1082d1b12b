"""What a bound on epsilon is too blunt for: the divisor, the sampling and the noise, each against its own distribution.

The trick: under noise far weaker than a clip norm the noised sum tells everything apart. Its nearest whole number says how
often a patient was drawn, what is left over is the noise. Each quantity is then tested against what the plan promises. Only
`noise_multiplier` differs from the mechanism in use, and noise is made by the same code for every value of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hospital_node.noise import Rand
from study.audit.canaries import Reals, Setting, World, linear_world
from study.audit.faults import Fault

WEAK_NOISE = 0.02  # of a clip norm: draws and noise never overlap
PEOPLE = 8  # of 20 declared: a divisor taken from the patients present would show
EMPTY = 56  # directions along which nobody has a gradient: noise alone
SMALLEST_P = 1e-6  # below it a quantity is not what the plan promises


@dataclass(frozen=True, slots=True)
class Reading:
    """What the noised sums of many rounds hold, pulled apart."""

    draws: Reals  # (runs, people): how often each was drawn; whole numbers if the divisor is right
    noise: Reals  # (runs, directions): in planned deviations of a round
    steps: int
    rate: float


@dataclass(frozen=True, slots=True)
class Check:
    """One quantity against the plan. `p_value` is how often chance alone looks at least so wrong."""

    name: str
    sentence: str
    p_value: float

    @property
    def holds(self) -> bool:
        """Whether chance explains what was seen."""
        return self.p_value >= SMALLEST_P


def read(
    setting: Setting,
    runs: int,
    fault: Fault,
    rand: Rand,
    on_run: Callable[[], None] = lambda: None,
    made: Callable[[Setting, float, int], World] = linear_world,
) -> Reading:
    """Train `runs` rounds of PEOPLE patients whose directions nobody else shares."""
    world = made(replace(setting, canaries=PEOPLE, bystanders=0, patches=1), WEAK_NOISE, EMPTY)
    sums = np.empty((runs, PEOPLE + EMPTY))
    with fault.inside():
        for run in range(runs):
            sums[run] = world.sums(world.train(world.canaries, rand))
            on_run()
    draws = sums[:, :PEOPLE]
    noise = np.concatenate([draws - np.rint(draws), sums[:, PEOPLE:]], axis=1)
    return Reading(draws, noise / (WEAK_NOISE * math.sqrt(setting.steps)), setting.steps, 1 / setting.inverse_rate)


def checks(seen: Reading) -> tuple[Check, ...]:
    """Every quantity that a node promises, in the order in which a step uses them."""
    return (
        Check("rate", "each patient is drawn as often as the plan says", _rate(seen)),
        Check("coins", "patients are drawn independently of each other", _coins(seen)),
        Check("divisor", "the sum is divided by the declared size times the rate, whoever was drawn", _divisor(seen)),
        Check("shape", "the noise is normal, of the planned deviation", _kolmogorov_smirnov(seen.noise)),
        Check("deviation", "the noise is not weaker and not stronger than planned", _spread(seen.noise.reshape(-1))),
        Check("rounds", "every round draws noise of its own", _spread(_totals(seen.noise, axis=0))),
        Check("coordinates", "every coordinate has noise of its own", _spread(_totals(seen.noise, axis=1))),
    )


def _rate(seen: Reading) -> float:
    counts = np.bincount(_whole(seen).reshape(-1), minlength=seen.steps + 1)
    expected = stats.binom.pmf(np.arange(seen.steps + 1), seen.steps, seen.rate) * counts.sum()
    if len(counts) > seen.steps + 1:  # drawn more often than there are steps: possible under a fault only
        return 0.0
    return float(stats.chisquare(counts, expected).pvalue)


def _coins(seen: Reading) -> float:
    """How widely the number drawn varies: more where patients come together, less where they take turns."""
    people, mean = seen.draws.shape[1], seen.steps * seen.rate
    together = _whole(seen).sum(axis=1) - people * mean
    return _spread(together / math.sqrt(people * mean * (1 - seen.rate)))


def _divisor(seen: Reading) -> float:
    """Sums are whole numbers of clip norms only where the divisor is the public one; noise explains the rest."""
    off = (seen.draws - np.rint(seen.draws)) / (WEAK_NOISE * math.sqrt(seen.steps))
    return float(stats.chi2(off.size).sf((off**2).sum()))


def _whole(seen: Reading) -> NDArray[np.int64]:
    return np.rint(seen.draws).astype(np.int64).clip(0)


def _totals(noise: Reals, axis: int) -> Reals:
    """Sums along one axis, in their own deviations: of size 1 where the terms are independent, far larger where shared."""
    totals: Reals = noise.sum(axis=axis) / math.sqrt(noise.shape[axis])
    return totals


def _kolmogorov_smirnov(noise: Reals) -> float:
    return float(stats.kstest(noise.reshape(-1), "norm").pvalue)


def _spread(values: Reals) -> float:
    """Two-sided: whether values that should have mean 0 and deviation 1 have it."""
    law = stats.chi2(values.size)
    squares = float((values**2).sum())
    return 2 * min(float(law.cdf(squares)), float(law.sf(squares)))
