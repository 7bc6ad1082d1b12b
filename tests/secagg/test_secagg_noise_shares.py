"""Shares of noise: what is left is the target whoever is lost, and integer norms are bounded without exception."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from secagg.discrete_gaussian import NoiseStream, density
from secagg.errors import LocalError
from secagg.integer_norm import round_within, rounded_norm_squared
from secagg.noise_shares import NoiseShares, chain, ratio_bound

SECRET = bytes(range(32))

cohorts = st.tuples(st.integers(3, 40), st.integers(0, 8), st.integers(1, 6)).filter(lambda c: c[0] - c[1] - c[2] >= 1)


@given(cohorts, st.fractions(1, 10**6))
def test_what_honest_survivors_keep_is_the_target_exactly(cohort: tuple[int, int, int], variance: Fraction) -> None:
    members, may_drop, may_collude = cohort
    shares = NoiseShares(variance, members, may_drop, may_collude)
    for lost in range(may_drop + 1):
        kept = sum(shares.components()[: shares.kept(lost)])
        survivors = members - lost
        assert kept * (survivors - may_collude) == variance, "c colluders subtract what they know: the target is left"
        assert kept * survivors == shares.remaining(lost, 0) == variance * survivors / (survivors - may_collude)
        for colluders in range(may_collude + 1):
            assert shares.remaining(lost, colluders) >= variance


@given(cohorts)
def test_fewer_survivors_than_planned_are_never_opened(cohort: tuple[int, int, int]) -> None:
    shares = NoiseShares(Fraction(100), *cohort)
    with pytest.raises(LocalError, match="the sum is not opened"):
        shares.kept(shares.may_drop + 1)


def test_variance_measured_after_every_dropout_is_within_a_percent() -> None:
    """Real draws of five members, of whom up to two are lost: the survivors' kept components have the promised variance."""
    shares, values = NoiseShares(Fraction(300**2), 5, 2, 1), 60_000
    drawn = {
        (member, number): NoiseStream(bytes([member, number]) * 8, variance).values(values)
        for member in range(5)
        for number, variance in enumerate(shares.components())
    }
    for lost in range(3):
        for gone in combinations(range(5), lost):
            there = [member for member in range(5) if member not in gone]
            noise = sum(drawn[member, number] for member in there for number in range(shares.kept(lost)))
            promised = float(shares.remaining(lost, 0))
            assert abs(float(np.var(noise)) / promised - 1) < 5 * math.sqrt(2 / values)
            for colluder in there:
                unknown = noise - sum(drawn[colluder, number] for number in range(shares.kept(lost)))
                assert float(np.var(unknown)) / float(shares.variance) > 1 - 5 * math.sqrt(2 / values)


@pytest.mark.parametrize("cohort", [(4, 0, 0), (4, 3, 1), (3, -1, 1), (2, 0, 2)])
def test_cohorts_without_an_honest_member_are_refused(cohort: tuple[int, int, int]) -> None:
    with pytest.raises(LocalError, match=r"colluder|honest"):
        NoiseShares(Fraction(100), *cohort)


def test_noise_has_a_largest_value_that_draws_reach_no_further_than() -> None:
    shares = NoiseShares(Fraction(40**2), 4, 1, 1)
    drawn = sum(NoiseStream(bytes([n]) * 16, variance).values(200_000) for n, variance in enumerate(shares.components()))
    deviation = math.sqrt(sum(shares.components()))
    assert 4 * deviation < np.abs(drawn).max() <= shares.largest() < 25 * deviation


def test_a_later_secret_gives_those_behind_it_and_none_before() -> None:
    whole = chain(SECRET, 0, 4)
    assert len(set(whole)) == 5
    assert chain(whole[2], 2, 4) == whole[2:]
    assert whole[1] not in chain(whole[2], 2, 4)
    assert chain(whole[2], 1, 4)[1:] != whole[3:], "a secret at another place leads elsewhere"


def exact_sum(variances: list[Fraction], reach: int) -> np.ndarray:
    """Probabilities of the sum at -reach ... reach, by convolution in float64."""
    total = np.ones(1)
    for variance in variances:
        part = np.array([float(density(x, variance)) for x in range(-reach, reach + 1)])
        total = np.convolve(total, part / part.sum())
    middle = len(total) // 2
    return total[middle - reach : middle + reach + 1]


@pytest.mark.parametrize("variances", [[Fraction(1, 2)] * 2, [Fraction(1)] * 3, [Fraction(2), Fraction(1, 2), Fraction(1)]])
def test_the_bound_on_sums_of_shares_holds_at_every_integer(variances: list[Fraction]) -> None:
    reach, total = 9, sum(variances)
    actual = exact_sum(variances, 60)[60 - reach : 60 + reach + 1]
    ideal = np.array([float(density(x, total)) for x in range(-60, 61)])
    ideal = (ideal / ideal.sum())[60 - reach : 60 + reach + 1]
    seen = float(np.abs(np.log(actual / ideal)).max())
    assert 1e-12 < seen <= ratio_bound(variances) < 60 * seen


def test_the_bound_vanishes_with_the_size_of_the_shares_and_says_when_it_cannot_hold() -> None:
    assert ratio_bound([Fraction(16)] * 8) < 1e-60
    assert ratio_bound([Fraction(5)]) == 0
    assert math.isinf(ratio_bound([Fraction(1, 100)] * 2))


@given(st.integers(1, 400), st.floats(0.01, 300), st.binary(min_size=16, max_size=16))
def test_integer_norms_stay_below_the_bound(length: int, norm: float, key: bytes) -> None:
    values = np.random.default_rng(length).normal(size=length)
    values *= norm / np.linalg.norm(values)
    bound = rounded_norm_squared(norm, length)
    assume(bound >= 1)
    rounded = round_within(values, bound, key)
    assert int(rounded @ rounded) <= bound
    assert np.abs(rounded - values).max() < 1 or not np.any(rounded)


def test_rounding_is_unbiased() -> None:
    values = np.array([0.25, -0.75, 3.5, 0.0, -2.0])
    bound = rounded_norm_squared(float(np.linalg.norm(values)) + 2, 5)
    mean = np.mean([round_within(values, bound, number.to_bytes(16, "big")) for number in range(4000)], axis=0)
    assert np.abs(mean - values).max() < 5 * 0.5 / math.sqrt(4000)
    assert mean[3] == 0
    assert mean[4] == -2


def test_a_vector_that_no_rounding_fits_is_cut_and_then_dropped() -> None:
    values = np.full(16, 0.999)
    assert not round_within(values, 3, bytes(16)).any(), "cut towards zero"
    assert not round_within(np.full(4, 5.5), 3, bytes(16)).any(), "longer than its bound even when cut"
    assert round_within(np.array([1.0, -1.0]), 2, bytes(16)).tolist() == [1, -1]


@given(st.integers(2, 10**6), st.floats(0.1, 1e5))
def test_the_usual_bound_is_taken_where_it_is_smaller(length: int, norm: float) -> None:
    bound = rounded_norm_squared(norm, length)
    assert norm**2 - 1 <= bound <= (norm + math.sqrt(length)) ** 2
