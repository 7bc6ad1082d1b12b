"""Epsilon against three independent sources: published figures, Opacus' PRV accountant, and closed forms."""

from __future__ import annotations

import math
import subprocess
import sys
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hospital_node import accounting
from hospital_node.accounting import (
    Mechanism,
    attacker_recognised,
    best_guess,
    epsilon,
    merged,
    noise_multiplier_for,
)

DELTA = 1e-5
NORMAL = NormalDist()

# (rate, noise multiplier, steps): epsilon by PLD, by RDP; recognised at 0.1, 1, 5 % false alarms; best guess (all in percent)
GOLDEN = {
    (0.05, 1.1, 600): (6.93, 7.61, 4.5, 16.9, 38, 74.5),
    (0.02, 1.0, 1500): (4.81, 5.30, 2.0, 9.6, 26, 68.8),
    (0.10, 2.0, 300): (4.18, 4.56, 1.6, 8.1, 23, 67.4),
}
ROWS = pytest.mark.parametrize(("setting", "figures"), GOLDEN.items(), ids=str)


def dp_sgd(rate: float, sigma: float, steps: int) -> list[Mechanism]:
    return [Mechanism(sigma, rate, steps)]


def prv(*settings_: tuple[float, float, int]) -> float:
    """Opacus' numerical composition, an independent implementation."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, steps) for rate, sigma, steps in settings_]
    return float(accountant.get_epsilon(DELTA))


@ROWS
def test_published_figures(setting: tuple[float, float, int], figures: tuple[float, ...]) -> None:
    pld, rdp, tenth, one, five, guess = figures
    mechanisms = dp_sgd(*setting)
    assert round(epsilon(mechanisms, DELTA), 2) == pytest.approx(pld, abs=0.0101)
    assert epsilon(mechanisms, DELTA, "rdp") == pytest.approx(rdp, abs=0.01)
    assert 100 * attacker_recognised(mechanisms, 0.001) == pytest.approx(tenth, abs=0.06)
    assert 100 * attacker_recognised(mechanisms) == pytest.approx(one, abs=0.06)
    assert 100 * attacker_recognised(mechanisms, 0.05) == pytest.approx(five, abs=0.6)
    assert 100 * best_guess(mechanisms) == pytest.approx(guess, abs=0.06)


def test_profile_of_the_first_row() -> None:
    expected = {1e-4: 5.99, 1e-5: 6.93, 1e-6: 7.80, 1e-7: 8.61}
    found = {delta: epsilon(dp_sgd(0.05, 1.1, 600), delta) for delta in expected}
    assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("setting", [*GOLDEN, (0.25, 2.5, 200), (1 / 93, 0.8, 400), (0.05, 1.1, 20)], ids=str)
def test_within_one_percent_of_opacus_prv(setting: tuple[float, float, int]) -> None:
    assert epsilon(dp_sgd(*setting), DELTA) == pytest.approx(prv(setting), rel=0.01)


def test_a_mixed_history_is_within_one_percent_of_opacus_prv() -> None:
    first, second = (0.05, 1.1, 200), (0.1, 2.0, 100)
    mechanisms = [*dp_sgd(*first), *dp_sgd(*second)]
    assert epsilon(mechanisms, DELTA) == pytest.approx(prv(first, second), rel=0.01)


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (2.0, 4), (5.0, 100), (0.7, 3)])
def test_without_sampling_it_is_the_closed_form(sigma: float, steps: int) -> None:
    mu = math.sqrt(steps) / sigma  # composition of Gaussians is one Gaussian (Dong, Roth, Su 2019, corollary 3.3)
    reached = epsilon(dp_sgd(1.0, sigma, steps), DELTA)
    exact = NORMAL.cdf(mu / 2 - reached / mu) - math.exp(reached) * NORMAL.cdf(-mu / 2 - reached / mu)
    assert exact == pytest.approx(DELTA, rel=0.01)
    assert exact <= DELTA  # an upper bound, never below the truth
    power = NORMAL.cdf(mu - NORMAL.inv_cdf(0.99))
    assert attacker_recognised(dp_sgd(1.0, sigma, steps)) == pytest.approx(power, rel=0.01)
    assert best_guess(dp_sgd(1.0, sigma, steps)) == pytest.approx(NORMAL.cdf(mu / 2), abs=1e-3)


@pytest.mark.parametrize("setting", [(0.01, 6.0, 1000), (0.001, 20.0, 500), (0.05, 1.1, 600)], ids=str)
def test_wide_loss_bins_cost_half_a_percent_at_most(setting: tuple[float, float, int]) -> None:
    from dp_accounting.pld import privacy_loss_distribution as pld

    rate, sigma, steps = setting
    step = pld.from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=3e-5, use_connect_dots=True)
    fine = step.self_compose(steps).get_epsilon_for_delta(DELTA)
    assert fine - 1e-9 <= epsilon(dp_sgd(*setting), DELTA) <= 1.005 * fine + 1e-3


@settings(max_examples=40)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from([(0.05, 1.1), (0.1, 2.0)]), st.integers(0, 40)).map(
            lambda p: Mechanism(p[0][1], p[0][0], p[1])
        ),
        max_size=8,
    ),
    data=st.data(),
)
def test_splitting_merging_and_reordering_change_nothing(parts: list[Mechanism], data: st.DataObject) -> None:
    split: list[Mechanism] = []
    for one in parts:
        cut = data.draw(st.integers(0, one.steps))
        split += [Mechanism(one.noise_multiplier, one.sampling_rate, steps) for steps in (cut, one.steps - cut)]
    shuffled = data.draw(st.permutations(split))
    assert merged(shuffled) == merged(parts)
    assert sum(one.steps for one in merged(shuffled)) == sum(one.steps for one in parts)
    if len(merged(parts)) == 1:  # a mixed composition is the same code on the same value; one kind keeps this fast
        assert epsilon(shuffled, DELTA) == epsilon(parts, DELTA)


def test_order_of_different_mechanisms_changes_nothing() -> None:
    a, b = Mechanism(1.1, 0.05, 30), Mechanism(2.0, 0.1, 10)
    assert epsilon([a, b, a], DELTA) == epsilon([b, a.times(2)], DELTA) == epsilon([a, a, b], DELTA)


def test_more_steps_never_cost_less() -> None:
    readings = [epsilon(dp_sgd(0.05, 1.1, steps), DELTA) for steps in range(1, 200, 7)]
    assert readings == sorted(readings)
    assert len(set(readings)) == len(readings)


def test_edges() -> None:
    assert epsilon([], DELTA) == 0
    assert epsilon(dp_sgd(0.05, 0.0, 0), DELTA) == 0  # no step was run
    assert epsilon(dp_sgd(0.05, 0.0, 1), DELTA) == math.inf
    assert epsilon(dp_sgd(0.05, 0.0, 1), DELTA, "rdp") == math.inf
    assert epsilon([*dp_sgd(0.05, 0.0, 1), *dp_sgd(0.05, 1.1, 600)], DELTA) == math.inf
    assert attacker_recognised([]) == 0.01
    assert best_guess([]) == 0.5
    assert attacker_recognised(dp_sgd(0.05, 0.0, 1)) == best_guess(dp_sgd(0.05, 0.0, 1)) == 1.0


def test_absurdly_little_noise_is_infinite_and_nothing_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_composed", None)  # the exact figure would need gigabytes
    assert epsilon(dp_sgd(1.0, 1e-3, 100), DELTA) == math.inf


@pytest.mark.parametrize(
    "fields", [(-1.0, 0.1, 1), (math.nan, 0.1, 1), (math.inf, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.5, 1), (1.0, 0.1, -1)]
)
def test_impossible_mechanisms_cannot_be_made(fields: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match=r"noise multiplier|sampling rate|steps"):
        Mechanism(*fields)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon(dp_sgd(0.05, 1.1, 1), delta)


def test_calibration_is_on_the_safe_side_and_tight() -> None:
    sigma = noise_multiplier_for(8.0, DELTA, 0.05, 600)
    assert epsilon(dp_sgd(0.05, sigma, 600), DELTA) <= 8.0
    assert epsilon(dp_sgd(0.05, sigma - 0.001, 600), DELTA) > 8.0
    assert prv((0.05, sigma, 600)) == pytest.approx(8.0, rel=0.01)


def test_calibration_refuses_what_no_noise_reaches() -> None:
    with pytest.raises(ValueError, match="no noise multiplier"):
        noise_multiplier_for(1e-9, 1e-12, 1.0, 10_000)


def test_a_patient_of_two_hospitals_pays_the_composition_not_the_sum() -> None:
    one = dp_sgd(0.05, noise_multiplier_for(8.0, DELTA, 0.05, 600), 600)
    both = epsilon([one[0].times(2)], DELTA)
    assert both == pytest.approx(prv((0.05, one[0].noise_multiplier, 1200)), rel=0.01)
    assert 8 < both < 0.8 * 16


def test_nothing_heavy_is_imported() -> None:
    modules = "hospital_node.ledger, hospital_node.accounting, hospital_node.progress, hospital_node.reports"
    heavy = "{'torch', 'opacus', 'monai', 'SimpleITK', 'grpc'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
