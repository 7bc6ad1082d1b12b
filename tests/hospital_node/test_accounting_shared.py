"""Accounting of shared noise: against closed forms, dp-accounting, and privacy losses added up by brute force."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hospital_node.accounting import Mechanism, epsilon, renyi_epsilon
from hospital_node.shared_accounting import ORDERS, IntegerMechanism, divergence, integer_epsilon
from secagg.discrete_gaussian import density
from secagg.noise_shares import NoiseShares, ratio_bound

DELTA = 1e-5


def noise(variances: list[Fraction], reach: int = 200) -> np.ndarray:
    """Probabilities of a sum of discrete Gaussians at -reach ... reach."""
    total = np.ones(1)
    for variance in variances:
        part = np.array([float(density(x, variance)) for x in range(-reach, reach + 1)])
        total = np.convolve(total, part / part.sum())
    middle = len(total) // 2
    return total[middle - reach : middle + reach + 1]


def moment(upper: np.ndarray, lower: np.ndarray, order: int) -> float:
    """Renyi divergence of two distributions on the same integers, where both are seen by float64."""
    seen = (upper > 1e-250) & (lower > 1e-250)
    return math.log(float(np.sum(lower[seen] * (upper[seen] / lower[seen]) ** order))) / (order - 1)


def sampled(variances: list[Fraction], shift: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    without = noise(variances)
    moved = np.roll(without, shift)
    return without, (1 - rate) * without + rate * moved


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("order", [2, 3, 5, 8])
def test_one_step_equals_the_sum_over_all_integers_in_the_larger_direction(rate: float, shift: int, order: int) -> None:
    variances = [Fraction(9)]
    without, mixed = sampled(variances, shift, rate)
    said = divergence(IntegerMechanism(3.0, shift, rate, 1), order)
    there, back = moment(mixed, without, order), moment(without, mixed, order)
    assert said == pytest.approx(there, rel=1e-9)
    assert back <= there + 1e-12


@pytest.mark.parametrize("vector", [(1, 2, -1), (0, 0, 3), (2, 2, 2)])
def test_several_coordinates_cost_what_their_norm_says(vector: tuple[int, ...]) -> None:
    """Product of three discrete Gaussians, a quarter of the patients: the joint sum over the lattice of 61**3 points."""
    axis = noise([Fraction(6)], 30)
    joint = axis[:, None, None] * axis[None, :, None] * axis[None, None, :]
    moved = np.roll(joint, vector, axis=(0, 1, 2))
    mixed = 0.75 * joint + 0.25 * moved
    norm = math.sqrt(sum(v * v for v in vector))
    assert divergence(IntegerMechanism(math.sqrt(6), norm, 0.25, 1), 4) == pytest.approx(moment(mixed, joint, 4), rel=1e-6)


@pytest.mark.parametrize("variances", [[Fraction(1)] * 3, [Fraction(1), Fraction(1, 2), Fraction(1, 2)]])
def test_sums_of_small_shares_stay_below_the_corrected_bound(variances: list[Fraction]) -> None:
    without, mixed = sampled(variances, 1, 0.3)
    one = IntegerMechanism(math.sqrt(sum(variances)), 1.0, 0.3, 1, ratio=ratio_bound(variances))
    for order in (2, 4, 8):
        assert max(moment(mixed, without, order), moment(without, mixed, order)) <= divergence(one, order)


def brute_delta(without: np.ndarray, mixed: np.ndarray, steps: int, level: float) -> float:
    """The larger hockey-stick of both directions after `steps`, from losses on a grid rounded down: never above the truth."""
    worst = 0.0
    for upper, lower in ((mixed, without), (without, mixed)):
        seen = (upper > 1e-200) & (lower > 1e-200)
        width = 2e-3
        loss = np.floor(np.log(upper[seen] / lower[seen]) / width).astype(int)
        low = loss.min()
        mass = np.bincount(loss - low, weights=upper[seen])
        total = np.ones(1)
        for _ in range(steps):
            total = np.convolve(total, mass)
        values = (np.arange(len(total)) + steps * low) * width
        over = values > level
        worst = max(worst, float(np.sum(total[over] * -np.expm1(level - values[over]))))
    return worst


@pytest.mark.parametrize(("rate", "steps"), [(0.2, 6), (1.0, 4), (0.5, 8)])
def test_epsilon_is_above_brute_force_and_not_far(rate: float, steps: int) -> None:
    variances = [Fraction(8)] * 2
    without, mixed = sampled(variances, 4, rate)
    one = IntegerMechanism(4.0, 4.0, rate, steps, ratio=ratio_bound(variances))
    said = integer_epsilon([one], DELTA)
    assert brute_delta(without, mixed, steps, said) <= DELTA
    assert brute_delta(without, mixed, steps, 0.6 * said) > DELTA, "no looser than Renyi accounting is known to be"


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.25, 40), (2.0, 1.0, 12), (0.8, 0.05, 200)])
def test_agrees_with_the_accountants_of_the_continuous_gaussian(sigma: float, rate: float, steps: int) -> None:
    """At whole orders the formulas are one; dp-accounting also has fractional orders, PLD is lower still."""
    said = integer_epsilon([IntegerMechanism(1000 * sigma, 1000.0, rate, steps)], DELTA)
    continuous = Mechanism(sigma, rate, steps)
    assert said == pytest.approx(renyi_epsilon([continuous], DELTA, ORDERS), rel=2e-3)
    assert said >= epsilon([continuous], DELTA) - 1e-9


def test_known_answer() -> None:
    """Without sampling: the best order of a / (2 s**2) plus the conversion, by hand at order 8."""
    one = IntegerMechanism(4.0, 2.0, 1.0, 1)
    assert divergence(one, 8) == 8 * (2 / 4) ** 2 / 2
    by_hand = 1.0 + math.log(7 / 8) - math.log(8e-5) / 7
    assert integer_epsilon([one], DELTA) <= by_hand


@given(st.floats(0.5, 8), st.floats(0.01, 1), st.integers(1, 200), st.integers(1, 50))
def test_more_of_anything_costs_more(sigma: float, rate: float, steps: int, more: int) -> None:
    base = integer_epsilon([IntegerMechanism(sigma, 1.0, rate, steps)], DELTA)
    assert integer_epsilon([IntegerMechanism(sigma, 1.0, rate, steps + more)], DELTA) >= base
    assert integer_epsilon([IntegerMechanism(sigma, 1.0, min(1.0, rate * 1.5), steps)], DELTA) >= base
    assert integer_epsilon([IntegerMechanism(sigma, 1.0, rate, steps, ratio=1e-3)], DELTA) >= base
    assert integer_epsilon([IntegerMechanism(sigma, 1.0, rate, steps, left_out=1e-12)], DELTA) >= base
    assert integer_epsilon([IntegerMechanism(sigma * 1.1, 1.0, rate, steps)], DELTA) <= base


def test_corrections_that_use_up_delta_leave_no_guarantee() -> None:
    assert math.isinf(integer_epsilon([IntegerMechanism(1.0, 1.0, 0.5, 10, left_out=1e-6)], DELTA))
    assert math.isinf(integer_epsilon([IntegerMechanism(1.0, 1.0, 0.5, 10, ratio=math.inf)], DELTA))
    assert integer_epsilon([], DELTA) == 0
    assert integer_epsilon([IntegerMechanism(1.0, 1.0, 0.5, 0)], DELTA) == 0


def test_colluders_make_it_dearer_and_more_hospitals_do_not() -> None:
    """The charged reading against c = 1 is the target's; outsiders face the colluders' noise too."""
    for members in (4, 16):
        shares = NoiseShares(Fraction(4096**2), members, 0, 1)
        against = [
            integer_epsilon([IntegerMechanism(math.sqrt(shares.remaining(0, c)), 4096.0, 0.5, 10)], DELTA) for c in (1, 0)
        ]
        assert against[0] == pytest.approx(integer_epsilon([IntegerMechanism(4096.0, 4096.0, 0.5, 10)], DELTA))
        assert against[1] < against[0]


@pytest.mark.parametrize(
    "bad", [{"deviation": 0.0}, {"sensitivity": -1.0}, {"sampling_rate": 0.0}, {"steps": -1}, {"ratio": -1e-9}]
)
def test_senseless_mechanisms_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"noise|rate|corrections"):
        IntegerMechanism(**({"deviation": 1.0, "sensitivity": 1.0, "sampling_rate": 0.5, "steps": 1} | bad))


@pytest.mark.parametrize("order", [1, 0, 2.5])
def test_only_whole_orders_from_two_on(order: float) -> None:
    with pytest.raises(ValueError, match="whole orders"):
        divergence(IntegerMechanism(1.0, 1.0, 0.5, 1), order)  # type: ignore[arg-type]
