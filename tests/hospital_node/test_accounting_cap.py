"""The cap's filter against closed forms, and the forecast against the obvious scan."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hospital_node.accounting import Mechanism, epsilon
from hospital_node.cap import MIXED_SHARE, ORDERS, UNIFORM_SHARE, Cap, CapFilter, best_order
from hospital_node.forecast import MAX_POINTS, curve, rounds_left, thinned

CAP = Cap(epsilon=3.0, delta=1e-5)
ROUND = Mechanism(1.1, 0.05, 20)
OTHER = Mechanism(2.0, 0.05, 20)
JUDGE = CapFilter(delta=CAP.delta, order=7)


def renyi_by_hand(sigma: float, steps: int, order: int, delta: float) -> float:
    """Unsampled Gaussians: divergence order/(2 sigma^2) each; conversion of Canonne, Kamath, Steinke 2020, proposition 12."""
    divergence = steps * order / (2 * sigma**2)
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def test_one_kind_of_mechanism_is_read_by_pld() -> None:
    assert JUDGE.kind([]) == JUDGE.kind([ROUND, ROUND, ROUND.times(4)]) == "pld"
    assert JUDGE.spent([ROUND, ROUND]) == epsilon([ROUND.times(2)], UNIFORM_SHARE * CAP.delta)


def test_two_kinds_are_read_by_renyi_at_the_fixed_order() -> None:
    mixed = [Mechanism(3.0, 1.0, 2), Mechanism(4.0, 1.0, 5)]
    assert JUDGE.kind(mixed) == "renyi"
    divergence = 7 / 2 * (2 / 9 + 5 / 16)
    one_gaussian = renyi_by_hand(math.sqrt(1 / (2 / 9 + 5 / 16)), 1, 7, MIXED_SHARE * CAP.delta)
    assert JUDGE.spent(mixed) == pytest.approx(one_gaussian)
    assert JUDGE.spent(mixed) > divergence


def test_the_two_rules_never_use_more_than_the_whole_delta() -> None:
    assert UNIFORM_SHARE + MIXED_SHARE <= 1


def test_a_change_of_noise_or_rate_changes_the_rule_a_change_of_steps_does_not() -> None:
    assert JUDGE.kind([ROUND, Mechanism(1.1, 0.05, 3)]) == "pld"
    assert JUDGE.kind([ROUND, Mechanism(1.1, 0.1, 20)]) == "renyi"
    assert JUDGE.kind([ROUND, OTHER]) == "renyi"


def test_the_renyi_rule_is_never_looser_than_pld_on_the_same_history() -> None:
    mixed = [ROUND.times(3), OTHER.times(3)]
    assert JUDGE.spent(mixed) > epsilon(mixed, CAP.delta)


@pytest.mark.parametrize(
    "cap", [Cap(epsilon=1.0, delta=1e-5), Cap(epsilon=8.0, delta=1e-5), Cap(epsilon=3.0, delta=1e-8)], ids=str
)
def test_the_order_chosen_admits_the_most_rounds(cap: Cap) -> None:
    delta = MIXED_SHARE * cap.delta
    admitted = {  # a reading by hand is a fixed part plus order / (2 sigma^2) a step
        order: (cap.epsilon - renyi_by_hand(20.0, 0, order, delta)) / (order / (2 * 20.0**2)) for order in ORDERS
    }
    assert admitted[best_order(cap, Mechanism(20.0, 1.0, 1))] == max(admitted.values()) > 0


def test_an_infinite_reading_is_never_admitted() -> None:
    assert not JUDGE.admits(CAP, [ROUND, Mechanism(0.0, 0.05, 1)])
    assert JUDGE.admits(CAP, [ROUND])


def test_caps_compare_in_both_figures() -> None:
    assert Cap(epsilon=2, delta=1e-6).at_most(CAP)
    assert CAP.at_most(CAP)
    assert not Cap(epsilon=2, delta=1e-4).at_most(CAP)
    assert not Cap(epsilon=4, delta=1e-6).at_most(CAP)


@pytest.mark.parametrize("fields", [(0, 1e-5), (-1, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1)])
def test_impossible_caps_cannot_be_made(fields: tuple[float, float]) -> None:
    with pytest.raises(ValidationError):
        Cap(epsilon=fields[0], delta=fields[1])


@settings(max_examples=12)
@given(limit=st.floats(0.5, 6.0), done=st.integers(0, 3), at_most=st.integers(0, 12))
def test_rounds_left_is_what_a_scan_finds(limit: float, done: int, at_most: int) -> None:
    cap = Cap(epsilon=limit, delta=1e-5)
    past = [ROUND] * done
    scanned = 0
    while scanned < at_most and JUDGE.admits(cap, [*past, ROUND.times(scanned + 1)]):
        scanned += 1
    assert rounds_left(JUDGE, cap, past, ROUND, at_most) == scanned


def test_the_forecast_is_the_accountants_and_bends() -> None:
    points = curve(JUDGE, "pld", [ROUND], ROUND, 12)
    assert points == tuple((k, epsilon([ROUND.times(1 + k)], UNIFORM_SHARE * CAP.delta)) for k in range(1, 13))
    first, last = points[1][1] - points[0][1], points[-1][1] - points[-2][1]
    assert last < 0.7 * first  # a straight line would promise too few rounds


@given(st.integers(0, 10_000))
def test_long_curves_are_thinned_to_first_last_and_some_between(count: int) -> None:
    places = thinned(count)
    assert len(places) == len(set(places)) == min(count, MAX_POINTS)
    assert list(places) == sorted(places)
    if count:
        assert (places[0], places[-1]) == (1, count)
