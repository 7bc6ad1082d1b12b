"""What correct guesses prove: published figures, an obvious computation, and a mechanism whose epsilon is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.audit import bound
from study.audit.bound import Attack, Signal


@pytest.mark.parametrize(("coins", "shown"), [(10, 1.05), (20, 1.82), (50, 2.78)])
def test_a_perfect_attack_in_one_run_shows_little(coins: int, shown: float) -> None:
    assert bound.strongest(Attack(coins, coins, 0.0, 0.95)) == pytest.approx(shown, abs=0.006)


def binomial_tail(count: int, chance: float, least: int) -> float:
    return math.fsum(math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(least, count + 1))


@given(st.integers(1, 40), st.data(), st.floats(0.0, 4.0), st.sampled_from([0.0, 1e-9, 1e-5, 1e-3]))
def test_the_p_value_is_the_theorems_written_out(guesses: int, data: st.DataObject, epsilon: float, delta: float) -> None:
    coins = data.draw(st.integers(guesses, 100))
    correct = data.draw(st.integers(0, guesses))
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = binomial_tail(guesses, chance, correct)
    alpha = max(((binomial_tail(guesses, chance, correct - i) - tail) / i for i in range(1, correct + 1)), default=0.0)
    wanted = min(1.0, tail + 2 * coins * delta * alpha)
    assert bound.p_value(Attack(coins, guesses, delta, 0.95), correct, epsilon) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@settings(max_examples=20)
@given(st.integers(20, 400), st.sampled_from([0.0, 1e-8]), st.sampled_from([0.95, 1 - 1e-6]))
def test_more_correct_guesses_never_show_less(guesses: int, delta: float, confidence: float) -> None:
    attack = Attack(2 * guesses, guesses, delta, confidence)
    shown = [bound.lower_bound(attack, correct) for correct in range(0, guesses + 1, max(1, guesses // 7))]
    assert shown == sorted(shown)
    assert shown[0] == 0
    fewest = bound.needed(attack, 0.5)
    if fewest is not None:
        assert bound.lower_bound(attack, fewest) >= 0.5 - 2 * bound.PRECISION > bound.lower_bound(attack, fewest - 1) - 1e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 2.0])
def test_randomized_response_is_refuted_as_seldom_as_promised(epsilon: float) -> None:
    """The one mechanism for which the bound is exact: each coin is shown truly with chance e^epsilon / (1 + e^epsilon)."""
    attack, chance = Attack(200, 200, 0.0, 0.9), math.exp(epsilon) / (1 + math.exp(epsilon))
    correct = np.random.default_rng(1).binomial(attack.guesses, chance, 4000)
    fewest = bound.needed(attack, epsilon)
    assert fewest is not None
    refuted = float((correct >= fewest).mean())
    assert refuted <= 0.1 + 4 * math.sqrt(0.09 / 4000)
    assert refuted > 0.03  # a bound that never refutes would pass as well
    assert bound.power(attack, epsilon, chance) == pytest.approx(refuted, abs=4 * math.sqrt(0.09 / 4000))


def test_no_attack_is_strong_enough_for_a_large_epsilon() -> None:
    attack = Attack(50, 50, 0.0, 0.95)
    assert bound.needed(attack, 2.9) is None
    assert bound.power(attack, 2.9, 1.0) == 0
    assert bound.smallest_noticed(attack, 2.9, Signal(1, 1.0, 1.0)) == math.inf


def test_a_delta_makes_a_bound_weaker() -> None:
    shown = [bound.strongest(Attack(4800, 600, delta, 1 - 1e-6)) for delta in (0.0, 1e-10, 1e-8, 1e-6)]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] > shown[2] > shown[3]


@pytest.mark.parametrize("signal", [Signal(1, 1.0, 0.5), Signal(2, 0.5, 2.0, 4.0), Signal(4, 0.25, 1.0)], ids=str)
def test_the_accuracy_of_the_best_attack_is_what_a_simulation_finds(signal: Signal) -> None:
    rng, count, share = np.random.default_rng(2), 400_000, 1 / 8
    inside = rng.random(count) < 0.5
    draws = rng.binomial(signal.steps, signal.rate, count) * inside
    scores = signal.weight * draws + signal.deviation * math.sqrt(signal.steps) * rng.standard_normal(count)
    loudest = np.argsort(-scores)[: int(share * count)]
    assert signal.accuracy(share) == pytest.approx(float(inside[loudest].mean()), abs=0.01)


def test_a_louder_patient_is_noticed_from_one_weight_on() -> None:
    attack, signal = Attack(4800, 600, 1e-10, 1 - 1e-6), Signal(2, 0.5, 5.4)
    weight = bound.smallest_noticed(attack, 0.9, signal)
    for factor, at_least, at_most in ((0.9, 0.0, 0.95), (1.01, 0.95, 1.0)):
        louder = Signal(2, 0.5, 5.4, factor * weight)
        assert at_least <= bound.power(attack, 0.9, louder.accuracy(1 / 8)) <= at_most


@pytest.mark.parametrize("fields", [(10, 0, 0.0, 0.9), (10, 11, 0.0, 0.9), (10, 5, 1.0, 0.9), (10, 5, 0.0, 1.0)])
def test_impossible_attacks_cannot_be_made(fields: tuple[int, int, float, float]) -> None:
    with pytest.raises(ValueError, match="attack"):
        Attack(*fields)


def test_more_correct_guesses_than_guesses_are_refused() -> None:
    with pytest.raises(ValueError, match="11 of 10"):
        bound.p_value(Attack(10, 10, 0.0, 0.9), 11, 1.0)
