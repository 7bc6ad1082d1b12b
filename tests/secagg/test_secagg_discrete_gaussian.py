"""Discrete Gaussian noise: exact, the same wherever it is drawn, and equal to the slow sampler of the paper."""

import math
import random
from collections import Counter
from fractions import Fraction
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from secagg import discrete_gaussian
from secagg.discrete_gaussian import (
    COIN_BITS,
    COINS,
    RUN_VALUES,
    SLOTS,
    NoiseStream,
    Staircase,
    below_chance,
    density,
    staircase,
)
from secagg.errors import LocalError
from secagg.keystream import Door
from secagg.noise_shares import LARGEST_DEVIATION, largest_value, left_out

KEY = bytes(range(16))
KNOWN = [599, -1366, -277, 790, 982, -1007]
VARIANCES = [Fraction(1, 4), Fraction(1), Fraction(7, 3), Fraction(90), Fraction(512**2) / 3, Fraction(100_000**2)]


def first_run(key: bytes, variance: Fraction) -> NDArray[np.int32]:
    return NoiseStream(key, variance).values(RUN_VALUES)


def chances(variance: Fraction, largest: int) -> dict[int, float]:
    weights = {x: float(density(x, variance)) for x in range(-largest, largest + 1)}
    total = math.fsum(weights.values())
    return {x: weight / total for x, weight in weights.items()}


def p_value(seen: Counter[int], expected: dict[int, float]) -> float:
    """Chi-square over single values where each is expected at least ten times, the rest in one class."""
    count = seen.total()
    often = [x for x, chance in expected.items() if chance * count >= 10]
    rest = 1 - math.fsum(expected[x] for x in often)
    observed = [seen[x] for x in often] + [count - sum(seen[x] for x in often)]
    wanted = [expected[x] * count for x in often] + [rest * count]
    if wanted[-1] < 5:
        observed[-2:], wanted[-2:] = [sum(observed[-2:])], [sum(wanted[-2:])]
    return float(stats.chisquare(observed, np.array(wanted) * count / sum(wanted)).pvalue)


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(1), Fraction(7, 3), Fraction(90), Fraction(2500)])
def test_values_come_as_often_as_the_density_says(variance: Fraction) -> None:
    values = NoiseStream(KEY, variance).values(200_000)
    assert p_value(Counter(values.tolist()), chances(variance, 14 * math.isqrt(int(variance) + 1) + 14)) > 1e-4


@pytest.mark.parametrize("variance", VARIANCES)
def test_moments_are_those_of_the_distribution(variance: Fraction) -> None:
    count, values = 300_000, NoiseStream(KEY, variance).values(300_000).astype(np.float64)
    deviation = math.sqrt(variance)
    if deviation < 50:
        exact = math.fsum(x * x * chance for x, chance in chances(variance, 200 + 14 * int(deviation)).items())
    else:
        exact = float(variance)  # to within exp(-2 pi**2 * variance)
    assert abs(values.mean()) < 5 * deviation / math.sqrt(count)
    assert abs((values**2).mean() / exact - 1) < 5 * math.sqrt(3 / count)
    if deviation > 5:
        assert abs((values**4).mean() / deviation**4 - 3) < 5 * math.sqrt(96 / count)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / math.sqrt(count)


def slow_sample(variance: Fraction, source: random.Random) -> int:
    """Canonne, Kamath and Steinke 2020, algorithms 1 to 3, in rational numbers only."""

    def bernoulli(chance: Fraction) -> bool:
        return source.randrange(chance.denominator) < chance.numerator

    def bernoulli_exp(gamma: Fraction) -> bool:
        if gamma > 1:
            return all(bernoulli_exp(Fraction(1)) for _ in range(math.floor(gamma))) and bernoulli_exp(
                gamma - math.floor(gamma)
            )
        k = 1
        while bernoulli(gamma / k):
            k += 1
        return k % 2 == 1

    scale = math.isqrt(math.floor(variance)) + 1
    while True:
        part = source.randrange(scale)
        if not bernoulli_exp(Fraction(part, scale)):
            continue
        times = 0
        while bernoulli_exp(Fraction(1)):
            times += 1
        size = part + scale * times
        negative = source.randrange(2)
        if negative and size == 0:
            continue
        if bernoulli_exp((size - variance / scale) ** 2 / (2 * variance)):
            return -size if negative else size


@pytest.mark.parametrize("variance", [Fraction(2), Fraction(30)])
def test_the_slow_exact_sampler_gives_the_same_distribution(variance: Fraction) -> None:
    source = random.Random(20261121)
    slow = Counter(slow_sample(variance, source) for _ in range(8000))
    fast = Counter(NoiseStream(KEY, variance).values(80_000).tolist())
    often = [x for x in fast if fast[x] >= 200]
    table = [[counts[x] for x in often] + [counts.total() - sum(counts[x] for x in often)] for counts in (slow, fast)]
    assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("variance", VARIANCES)
def test_rational_bounds_decide_as_float64_does(variance: Fraction, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more error allowed to float64 than it has, many coins are settled exactly: every value is the same."""
    usual = first_run(KEY, variance)
    asked: list[int] = []

    def counted(coin: int, *rest: object) -> bool:
        asked.append(coin)
        return below_chance(coin, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(discrete_gaussian, "FLOAT_ERROR", 2e-5)
    monkeypatch.setattr(discrete_gaussian, "below_chance", counted)
    assert np.array_equal(first_run(KEY, variance), usual)
    assert asked


def test_an_open_coin_reads_further_bits_until_it_is_settled() -> None:
    stairs = staircase(Fraction(90))
    value, (floor, weight) = 7, slots_of(stairs, 7)
    chance = (Fraction(density(value, stairs.variance, 200)) * stairs.scale - floor) / weight
    coin = math.floor(chance * COINS)  # the coin that its first bits leave open
    rest = chance * COINS - coin
    below, above = math.floor(rest * 2**128) - 1, math.floor(rest * 2**128) + 1
    assert below_chance(coin, repeat(below), value, (floor, weight), stairs)
    assert not below_chance(coin, repeat(above), value, (floor, weight), stairs)
    exact, more = below + 1, math.floor((rest * 2**128 - below - 1) * 2**128)  # equal in 160 bits: the next block decides
    assert below_chance(coin, iter([exact, more - 1]), value, (floor, weight), stairs)
    assert not below_chance(coin, iter([exact, more + 1]), value, (floor, weight), stairs)


def slots_of(stairs: Staircase, first: int) -> tuple[int, int]:
    """Slots of the block that begins at `first`: those that take every place, and those that toss a coin."""
    tossing = np.flatnonzero((stairs.first == first) & (stairs.weight > 0))
    floor, weight = int(stairs.floor[tossing[0]]), int(stairs.weight[tossing[0]])
    assert len(tossing) == weight
    assert np.count_nonzero(stairs.first[: stairs.sure] == first) == floor
    return floor, weight


@pytest.mark.parametrize("variance", VARIANCES)
def test_sure_slots_lie_below_the_density_and_all_slots_of_a_block_above_it(variance: Fraction) -> None:
    stairs = staircase(variance)
    assert len(stairs.first) == SLOTS
    used = stairs.sure + np.count_nonzero(stairs.weight)
    assert SLOTS - SLOTS // 8 < used <= SLOTS, "slots to spare are words wasted"
    firsts = np.unique(stairs.first[stairs.sure : used])
    assert np.array_equal(np.diff(firsts), np.full(len(firsts) - 1, stairs.width)), "blocks leave no gap"
    assert firsts[-1] + stairs.width - 1 <= largest_value(variance) == -firsts[0]
    for first in firsts[:: max(1, len(firsts) // 40)].tolist():
        floor, weight = slots_of(stairs, first)
        for value in {first, first + stairs.width - 1, first + stairs.width // 2}:
            assert floor <= Fraction(density(value, variance)) * stairs.scale < floor + weight


@given(key=st.binary(min_size=16, max_size=16), door=st.sampled_from(Door), count=st.integers(0, 2 * RUN_VALUES + 3))
def test_a_value_depends_on_key_place_and_variance_alone(key: bytes, door: Door, count: int) -> None:
    stream = NoiseStream(key, Fraction(400), door)
    whole = stream.values(count)
    assert len(whole) == count
    if count:
        run, within = divmod(count - 1, RUN_VALUES)
        out = np.empty(RUN_VALUES, dtype=np.int32)
        NoiseStream(key, Fraction(400), Door.CTR).run_into(run, out)
        assert out[within] == whole[-1]
        stream.run_into(0, out)
        assert np.array_equal(out[: min(count, RUN_VALUES)], whole[:RUN_VALUES])


def test_known_values() -> None:
    """Drawn once and kept: other values on another machine or release would leave noise in an opened sum."""
    assert NoiseStream(KEY, Fraction(10**6)).values(6).tolist() == KNOWN
    assert COIN_BITS == 32


def test_two_keys_and_two_runs_are_unrelated() -> None:
    both = NoiseStream(KEY, Fraction(10**4)).values(2 * RUN_VALUES)
    other = first_run(bytes(16), Fraction(10**4))
    for left, right in ((both[:RUN_VALUES], other), (both[:RUN_VALUES], both[RUN_VALUES:])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / math.sqrt(RUN_VALUES)


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(1, 5), Fraction(LARGEST_DEVIATION**2 + 1)])
def test_variances_that_words_do_not_serve_are_refused(variance: Fraction) -> None:
    with pytest.raises(LocalError, match="variance of discrete noise"):
        NoiseStream(KEY, variance)


def test_what_is_left_out_weighs_next_to_nothing_and_grows_with_the_vector() -> None:
    assert 0 < left_out(Fraction(10**6), 1) < 1e-40
    assert left_out(Fraction(1), 10**9) < 1e-28
    assert left_out(Fraction(1), 2000) == pytest.approx(2000 * left_out(Fraction(1), 1))
