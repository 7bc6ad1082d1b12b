"""What a sequence of mechanisms costs one patient: epsilon, its profile over delta, and what an attacker gains from it.

Rule: everything here is a pure function of a list of (noise multiplier, sampling rate, steps); nothing is stored as truth,
and every reading is an upper bound. Neighbours differ by one patient added or removed (privacy.md). The main reading is
dp-accounting's privacy loss distribution with connect-the-dots rounding (Doroshenko et al. 2022, arXiv 2207.04380), the
second one Renyi accounting (Mironov et al. 2019, arXiv 1908.10530). Where any mechanism's noise was shared, every reading is
Renyi accounting at whole orders (shared_accounting.py), which holds for sums of discrete shares; PLD would be an
approximation and is not shown. dp-accounting is imported where it is first needed,
because that takes a second and most commands need no epsilon.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from hospital_node.shared_accounting import (
    ORDERS,
    IntegerMechanism,
    Shares,
    advantage,
    delta_at,
    integer_epsilon,
)

Accountant: TypeAlias = Literal["pld", "rdp"]

PROFILE_DELTAS: Final = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
FINEST_INTERVAL: Final = 1e-4  # width of a loss bin; dp-accounting's own default
USUAL_INTERVAL: Final = 1e-3  # ten times cheaper, equal to three decimals wherever one step's loss spreads over > 0.02
MAX_BINS: Final = 4_000_000  # of one distribution: 32 MB for each direction
SHARE_OF_SPREAD: Final = 0.05  # bin width over the spread of one step's loss; adds < 0.1 % to the variance of the sum
TAIL_DELTA: Final = 1e-15  # mass that dp-accounting truncates (and adds to delta)
SPAN_ORDERS: Final = (2, 3, 4, 6, 8, 16, 32, 64)  # integers: their series always converges
MAX_EPSILON: Final = 1e4  # beyond this the exact figure means nothing and would cost gigabytes: read as no guarantee
SIGMA_STEP: Final = 1e-3  # resolution of `noise_multiplier_for`
MAX_SIGMA: Final = 1e4
FFT_PLACES: Final = 16  # of scipy's pocketfft
KEPT_READINGS: Final = 128  # epsilons remembered: two curves of a page; a node asks for one more in every round, for years


@dataclass(frozen=True, slots=True)
class Mechanism:
    """`steps` of the Poisson-sampled Gaussian mechanism. `noise_multiplier` is the deviation over the clip norm.

    `shares`: of one discrete noise that several hospitals added; the deviation is then over their `norm_steps`.
    """

    noise_multiplier: float
    sampling_rate: float  # of each patient, independently, in each step
    steps: int
    shares: Shares | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError(f"a noise multiplier is finite and >= 0, got {self.noise_multiplier}")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"a sampling rate lies in (0, 1], got {self.sampling_rate}")
        if self.steps < 0:
            raise ValueError(f"a mechanism has >= 0 steps, got {self.steps}")

    def times(self, count: int) -> Mechanism:
        """The same mechanism run `count` times."""
        return replace(self, steps=self.steps * count)

    def in_integers(self, *, outsider: bool = False) -> IntegerMechanism:
        """As Renyi accounting at whole orders reads it; of a Gaussian of its own the same at these orders."""
        if self.shares is None:
            return IntegerMechanism(self.noise_multiplier, 1.0, self.sampling_rate, self.steps)
        return self.shares.mechanism(self.noise_multiplier, self.sampling_rate, self.steps, outsider=outsider)


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """One entry for each (noise multiplier, rate, shares), sorted: the form in which splitting and order no longer show."""

    def kind(one: Mechanism) -> tuple[float, float, tuple[Shares, ...]]:
        return one.noise_multiplier, one.sampling_rate, () if one.shares is None else (one.shares,)

    groups = (list(group) for _, group in groupby(sorted((one for one in mechanisms if one.steps), key=kind), key=kind))
    return tuple(replace(group[0], steps=sum(one.steps for one in group)) for group in groups)


def is_shared(mechanisms: Iterable[Mechanism]) -> bool:
    """Whether the noise of any of them was shared."""
    return any(one.shares is not None and one.steps for one in mechanisms)


def outsider_epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon at `delta` against whoever knows no hospital's share: the coordinator and the readers of the model."""
    _check_delta(delta)
    canonical = merged(mechanisms)
    if canonical and canonical[0].noise_multiplier == 0:
        return math.inf
    return integer_epsilon((one.in_integers(outsider=True) for one in canonical), delta)


def epsilon(mechanisms: Iterable[Mechanism], delta: float, accountant: Accountant = "pld") -> float:
    """Epsilon at `delta` of all mechanisms together: 0 for none, infinite where one of them adds no noise."""
    _check_delta(delta)
    canonical = merged(mechanisms)
    accountant = "rdp" if is_shared(canonical) else accountant
    return _epsilon(canonical, delta) if accountant == "pld" else renyi_epsilon(canonical, delta)


def attacker_recognised(mechanisms: Iterable[Mechanism], false_alarms: float = 0.01) -> float:
    """Largest share of patients that any attacker recognises when it may accuse `false_alarms` of the others wrongly.

    The minimum over epsilon of e^epsilon * false_alarms + delta(epsilon); a reading from (epsilon, delta) alone is far looser.
    """
    if not 0 < false_alarms <= 1:
        raise ValueError(f"a share of false alarms lies in (0, 1], got {false_alarms}")
    return _recognised(merged(mechanisms), false_alarms)


def best_guess(mechanisms: Iterable[Mechanism]) -> float:
    """How often anyone can be right, from a coin flip, about whether a given patient took part: (1 + delta(0)) / 2."""
    canonical = merged(mechanisms)
    if not canonical:
        return 0.5
    if is_shared(canonical):
        return 1.0 if canonical[0].noise_multiplier == 0 else 0.5 + 0.5 * advantage(one.in_integers() for one in canonical)
    loss = _losses(canonical)
    return 1.0 if loss is None else 0.5 + 0.5 * min(1.0, float(loss.get_delta_for_epsilon(0.0)))


def noise_multiplier_for(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    beside: Sequence[Mechanism] = (),
    shares: Shares | None = None,
    *,
    outsider: bool = False,
) -> float:
    """Smallest noise multiplier, in thousandths and rounded up, at which `steps` steps cost at most `target_epsilon`.

    `beside`: what runs besides and is part of the cost, such as evaluations. `outsider`: the cost is that against whoever knows
    no hospital's share (`outsider_epsilon`); a ledger charges more. Raises ValueError where nothing reaches it.
    """
    _check_delta(delta)
    if not (math.isfinite(target_epsilon) and target_epsilon > 0) or steps < 1:
        raise ValueError("planning needs a finite epsilon above 0 and at least one step")

    def fits(thousandths: int) -> bool:
        spent = [Mechanism(thousandths * SIGMA_STEP, sampling_rate, steps, shares), *beside]
        return (outsider_epsilon(spent, delta) if outsider else epsilon(spent, delta)) <= target_epsilon

    high = round(1 / SIGMA_STEP)
    while not fits(high):
        high *= 2
        if high * SIGMA_STEP > MAX_SIGMA:
            raise ValueError(f"no noise multiplier up to {MAX_SIGMA:g} reaches epsilon {target_epsilon:g} in {steps} steps")
    low = 0
    while high - low > 1:  # invariant: `high` fits, `low` does not (0 is no noise)
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return round(high * SIGMA_STEP, 3)


def renyi_epsilon(mechanisms: Iterable[Mechanism], delta: float, orders: tuple[int, ...] | None = None) -> float:
    """Renyi reading: at the best of dp-accounting's orders, or of `orders`; a Renyi filter needs exactly one."""
    _check_delta(delta)
    return _renyi_epsilon(merged(mechanisms), delta, orders)


def accountant_version() -> str:
    """Name and version of the library behind every figure, for statements."""
    try:
        return f"dp-accounting {version('dp-accounting')}"
    except PackageNotFoundError:
        return "dp-accounting"


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta lies between 0 and 1, got {delta}")


@lru_cache(maxsize=KEPT_READINGS)
def _epsilon(canonical: tuple[Mechanism, ...], delta: float) -> float:
    if not canonical:
        return 0.0
    loss = _losses(canonical)
    return math.inf if loss is None else float(loss.get_epsilon_for_delta(delta))


@lru_cache(maxsize=KEPT_READINGS)
def _renyi_epsilon(canonical: tuple[Mechanism, ...], delta: float, orders: tuple[int, ...] | None) -> float:
    if not canonical:
        return 0.0
    if canonical[0].noise_multiplier == 0:  # sorted: an entry without noise comes first
        return math.inf
    if is_shared(canonical):
        return integer_epsilon((one.in_integers() for one in canonical), delta, orders or ORDERS)
    import dp_accounting
    from dp_accounting import rdp

    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of each order left out, which only makes the bound larger
    accountant = rdp.RdpAccountant() if orders is None else rdp.RdpAccountant(list(orders))
    for one in canonical:
        step = dp_accounting.PoissonSampledDpEvent(one.sampling_rate, dp_accounting.GaussianDpEvent(one.noise_multiplier))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, one.steps))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=256)
def _recognised(canonical: tuple[Mechanism, ...], false_alarms: float) -> float:
    if not canonical:
        return false_alarms
    if is_shared(canonical):
        return _recognised_by_orders(canonical, false_alarms)
    loss = _losses(canonical)
    if loss is None:
        return 1.0
    levels = np.linspace(0.0, -math.log(false_alarms), 2001)  # at the last one e^epsilon * false_alarms is already 1
    bound = np.exp(levels) * false_alarms + loss.get_delta_for_epsilon(levels)
    return min(1.0, float(bound.min()))


def _recognised_by_orders(canonical: tuple[Mechanism, ...], false_alarms: float) -> float:
    if canonical[0].noise_multiplier == 0:
        return 1.0
    listed = [one.in_integers() for one in canonical]
    levels = np.linspace(0.0, -math.log(false_alarms), 101).tolist()
    return min(1.0, *(math.exp(level) * false_alarms + delta_at(listed, level) for level in levels))


def _losses(canonical: tuple[Mechanism, ...]) -> Any | None:
    """Privacy loss distribution of the whole list; None where its epsilon is infinite or beyond MAX_EPSILON."""
    span = _renyi_epsilon(canonical, TAIL_DELTA, SPAN_ORDERS)
    if not span < MAX_EPSILON:
        return None
    return _composed(canonical, _interval(canonical, span))


@lru_cache(maxsize=2)  # the curve of a page asks for each once; at thousands of steps one takes MBs
def _composed(canonical: tuple[Mechanism, ...], interval: float) -> Any:
    total = None
    for one in canonical:
        part = _one_step(one.noise_multiplier, one.sampling_rate, interval).self_compose(one.steps)
        total = part if total is None else total.compose(part)
    _forget_transforms()
    return total


def _forget_transforms() -> None:
    """Tiny transforms take the places of large ones in scipy's memory of the last 16 lengths, MBs where steps are many."""
    from scipy import fft

    for length in range(2, 2 + FFT_PLACES):
        fft.ifft(fft.fft(np.zeros(length)))


def forget_compositions() -> None:
    """Give back what the next reading of a longer list does not need; epsilons stay remembered."""
    _composed.cache_clear()


@lru_cache(maxsize=32)
def _one_step(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_rate, value_discretization_interval=interval, use_connect_dots=True
    )


def _interval(canonical: tuple[Mechanism, ...], span: float) -> float:
    """Bin width, a power of ten: narrow against the spread of one step's loss, wide enough that the sum fits MAX_BINS.

    Connect-the-dots adds at most (interval / 2)^2 to the variance of each step's loss and only ever overstates epsilon.
    """
    steps = sum(one.steps for one in canonical)
    spread = math.sqrt(sum(one.steps * _step_variance(one) for one in canonical) / steps)
    narrow = 10.0 ** math.floor(math.log10(SHARE_OF_SPREAD * spread))
    widest_step = max(0.5 / one.noise_multiplier**2 + 10 / one.noise_multiplier for one in canonical)
    needed = 10.0 ** math.ceil(math.log10((10 * span + 2 * widest_step) / MAX_BINS))
    return max(FINEST_INTERVAL, min(narrow, USUAL_INTERVAL), needed)


def _step_variance(one: Mechanism) -> float:
    """Rough variance of one step's privacy loss: q^2 (e^(1/sigma^2) - 1), cut off where it only says 'large'."""
    return one.sampling_rate**2 * math.expm1(min(one.noise_multiplier**-2, 20.0))
