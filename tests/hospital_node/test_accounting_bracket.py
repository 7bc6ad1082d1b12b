"""Epsilon between two bounds that a page of arithmetic gives: no library of privacy, no code in common with the accountants.

The privacy loss of one Poisson-sampled Gaussian step is a known function of one number (Abadi et al. 2016, arXiv 1607.00133).
Its distribution on a grid, every loss rounded up, composes to an upper bound of delta, rounded down to a lower one, because
delta(epsilon) = E[(1 - e^(epsilon - loss))+] grows with every loss. Composition is a power of the Fourier transform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import ndtr

from hospital_node.accounting import Mechanism, epsilon

DELTA = 1e-5
REACH = 24.0  # of the grid, in units of loss: what lies beyond is counted against the bound
POINTS = 1 << 20
STEP = 2 * REACH / POINTS
GRID = -REACH + STEP * np.arange(POINTS)


@dataclass(frozen=True)
class Loss:
    """Of one step, where a patient is removed or added: `sigma` over the clip norm, `rate` of being drawn."""

    sigma: float
    rate: float
    removed: bool

    def distribution(self, loss: np.ndarray) -> np.ndarray:
        """P(loss of one step <= these); the outcome is drawn with the patient where one is removed, else without."""
        signed = loss if self.removed else -loss
        reached = np.expm1(signed) + self.rate  # density with the patient over density without, minus 1 - rate
        with np.errstate(divide="ignore", invalid="ignore"):
            outcome = self.sigma**2 * np.log(reached / self.rate) + 0.5
        without = ndtr(outcome / self.sigma)
        with_it = (1 - self.rate) * without + self.rate * ndtr((outcome - 1) / self.sigma)
        below = with_it if self.removed else 1 - without
        return np.where(reached > 0, below, 0.0 if self.removed else 1.0)


def deltas(one: Loss, steps: int, *, up: bool) -> np.ndarray:
    """delta at every epsilon of the grid, after so many steps: never too small if `up`, else never too large."""
    reached = one.distribution(GRID)
    mass = np.diff(reached, prepend=0.0) if up else np.diff(reached, append=1.0)  # a loss goes to the point above or below it
    beyond = 1 - (1 - (1 - reached[-1])) ** steps if up else 0.0  # one loss beyond the grid: nothing is promised
    centred = np.roll(mass, -POINTS // 2)
    sums = np.fft.irfft(np.fft.rfft(centred) ** steps, POINTS)
    composed = np.maximum(np.roll(sums, POINTS // 2), 0.0)
    # delta(e) = sum over loss > e of p(loss) (1 - e^(e - loss)), for all e from two running sums from above
    heavier = np.cumsum(composed[::-1])[::-1]
    weighted = np.cumsum((composed * np.exp(-GRID))[::-1])[::-1]
    return beyond + heavier - np.exp(GRID) * weighted


def bound(mechanism: Mechanism, *, up: bool) -> float:
    """Epsilon at DELTA, above or below the true one, over removing and adding a patient."""
    found = 0.0
    for removed in (True, False):
        reached = deltas(Loss(mechanism.noise_multiplier, mechanism.sampling_rate, removed), mechanism.steps, up=up)
        positive = (GRID >= 0) & (reached <= DELTA)
        first = int(np.argmax(positive))
        found = max(found, float(GRID[first if up else first - 1]))
    return found


@pytest.mark.parametrize("mechanism", [Mechanism(1.1, 0.05, 600), Mechanism(2.0, 0.10, 300), Mechanism(4.0, 0.25, 60)], ids=str)
def test_epsilon_lies_between_two_bounds_less_than_one_percent_apart(mechanism: Mechanism) -> None:
    low, high = (bound(mechanism, up=up) for up in (False, True))
    assert low < high < 1.01 * low
    assert low <= epsilon([mechanism], DELTA) <= 1.001 * high


def test_the_bounds_hold_where_the_answer_is_known() -> None:
    """Without sampling a step is one Gaussian of which the closed form is known (test_accounting_golden.py)."""
    mechanism = Mechanism(5.0, 1.0, 25)  # the same as one step of noise 1
    exact = 4.3771781  # delta = Phi(1/2 - e) - exp(e) Phi(-1/2 - e) = 1e-5
    assert bound(mechanism, up=False) <= exact <= bound(mechanism, up=True)
    assert bound(mechanism, up=True) - bound(mechanism, up=False) < 0.003


def test_the_bracket_is_narrow_enough_to_catch_one_step_in_fifty() -> None:
    mechanism = Mechanism(1.1, 0.05, 600)
    assert epsilon([Mechanism(1.1, 0.05, 588)], DELTA) < bound(mechanism, up=False)
    assert epsilon([Mechanism(1.1, 0.05, 612)], DELTA) > bound(mechanism, up=True)
