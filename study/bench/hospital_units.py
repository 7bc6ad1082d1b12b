"""Two ways of noising whole updates, whose epsilon is about a hospital and not about a patient: the rows to compare with.

`laplace`: every hospital clips its update in L1 and adds Laplace noise to each coordinate (Dwork et al. 2006), as systems do
that know no other way. `hospital-level`: each update is clipped in L2 and Gaussian noise is added once to their sum, by a
server that is trusted with every update (DP-FedAvg: McMahan et al. 2018, arXiv 1710.06963). Both in the form that is kindest to
them: the trainings themselves have no noise, neighbours differ by one hospital added or removed, so that a clipped update
changes a sum by its bound and no more, and the rounds are composed as tightly as is known.

Nothing here is part of the product, nothing is masked, and no ledger is charged: a node cannot run it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hospital_node.accounting import MAX_SIGMA, SIGMA_STEP, Mechanism, epsilon, noise_multiplier_for
from hospital_node.noise import NormalStream
from proto.layout import Vector
from study.bench.cells import Method, Readings, RoundRow
from study.bench.plain import Plain, play
from study.bench.readings import DEFAULT_DELTA
from study.bench.task import Rand, StudyError

if TYPE_CHECKING:
    from study.bench.cell import Setting

EVERY_ROUND: Final = 1.0  # rate of a hospital: nobody is sampled


@dataclass(frozen=True, slots=True)
class HospitalNoise:
    """`multiplier`: scale (Laplace) or deviation (Gaussian) of the noise over the most that one hospital changes."""

    method: Method
    multiplier: float

    def epsilon(self, rounds: int, delta: float) -> float:
        """What so many rounds cost a hospital that took part in all of them."""
        if not rounds:
            return 0.0
        if self.method is Method.LAPLACE:
            return laplace_epsilon(self.multiplier, rounds, delta)
        return epsilon([Mechanism(self.multiplier, EVERY_ROUND, rounds)], delta)


def run_hospital_units(
    setting: Setting, on_round: Callable[[RoundRow], None], stop: threading.Event
) -> tuple[list[RoundRow], HospitalNoise, Readings]:
    """Train the cell's rounds with noise on whole updates. Raises StudyError, WorkFailed, Interrupted."""
    cell, plan = setting.cell, setting.plan
    if plan.aggregation.rule == "scaffold" or plan.aggregation.weights == "precision":
        raise StudyError(f"cell {cell.label}: method {cell.method.value} noises plain updates: use another [aggregation]")
    noise = noise_for(cell.method, cell.epsilon, plan.privacy.delta, plan.rounds)
    federation = _Noised(plan, setting.hospitals, setting.test, setting.task, setting.draws, stop)
    federation.begin(noise, cell.hospital_clip)
    rows, _ = play(federation, setting.start, on_round)
    return rows, noise, Readings(at_default=noise.epsilon(plan.rounds, DEFAULT_DELTA))


def noise_for(method: Method, target: float | None, delta: float, rounds: int) -> HospitalNoise:
    """The smallest noise at which all rounds cost a hospital at most `target`. Raises StudyError where none does."""
    assert target is not None, "the study file is refused without an epsilon"
    try:
        if method is Method.LAPLACE:
            return HospitalNoise(method, _laplace_multiplier(target, rounds, delta))
        return HospitalNoise(method, noise_multiplier_for(target, delta, EVERY_ROUND, rounds))
    except ValueError as error:
        raise StudyError(f"method {method.value}: {error}: ask for a larger epsilon or fewer rounds") from error


@lru_cache(maxsize=256)
def laplace_epsilon(multiplier: float, rounds: int, delta: float) -> float:
    """Epsilon at `delta` of `rounds` Laplace mechanisms: the privacy loss distribution's, or rounds / multiplier if smaller."""
    from dp_accounting.pld import privacy_loss_distribution

    one = privacy_loss_distribution.from_laplace_mechanism(multiplier, use_connect_dots=True)
    return min(rounds / multiplier, float(one.self_compose(rounds).get_epsilon_for_delta(delta)))


def clipped(update: Vector, bound: float, order: int) -> Any:
    """`update` in float64, scaled down where its norm of this order (1 or 2) is above `bound`; zero where it is not finite."""
    values = update.astype(np.float64)
    norm = float(np.linalg.norm(values, order))
    if not np.isfinite(norm):
        return np.zeros_like(values)
    return values * min(1.0, bound / norm) if norm else values


def laplace(rand: Rand, length: int, scale: float) -> Any:
    """Independent Laplace values: the difference of two exponential ones, each half the square of a pair of normals."""
    normals = NormalStream(rand).draw(4 * length).reshape(4, length)
    return scale * 0.5 * (normals[0] ** 2 + normals[1] ** 2 - normals[2] ** 2 - normals[3] ** 2)


class _Noised(Plain):
    """Plain rounds whose updates are clipped as wholes and noised; hospitals count equally."""

    noise: HospitalNoise
    bound: float

    def begin(self, noise: HospitalNoise, bound: float | None) -> None:
        """Set what is added."""
        assert bound is not None, "the study file is refused without hospital_clip"
        self.noise, self.bound = noise, bound

    def mean_update(self, number: int, base: Vector, common: Vector | None, uris: Sequence[str]) -> Vector:
        """See Plain; with noise."""
        self.rounds_of.update(uris)
        scale = self.noise.multiplier * self.bound
        total: Any = 0.0
        for uri in uris:
            total = total + clipped(self.trained(number, base, uri, common), self.bound, self._order)
            if self.noise.method is Method.LAPLACE:
                total = total + laplace(self.draws(f"{uri}/noise", number), len(total), scale)
        if self.noise.method is Method.HOSPITAL_LEVEL:
            total = total + scale * NormalStream(self.draws("server/noise", number)).draw(len(total))
        return np.asarray(total / len(uris), dtype=np.float32)

    @property
    def _order(self) -> int:
        return 1 if self.noise.method is Method.LAPLACE else 2

    def row(self, number: int, model: Vector, uris: Sequence[str], began_s: float) -> RoundRow:
        """See Plain; epsilon is a hospital's."""
        row = super().row(number, model, uris, began_s)
        return row.model_copy(update={"epsilon": self.noise.epsilon(number, self.plan.privacy.delta)})


@lru_cache(maxsize=64)
def _laplace_multiplier(target: float, rounds: int, delta: float) -> float:
    """In thousandths, rounded up, as `noise_multiplier_for`. Raises ValueError where nothing reaches the target."""
    low, high = 0, round(1 / SIGMA_STEP)
    while laplace_epsilon(high * SIGMA_STEP, rounds, delta) > target:
        low, high = high, 2 * high
        if high * SIGMA_STEP > MAX_SIGMA:
            raise ValueError(f"no Laplace noise up to {MAX_SIGMA:g} times the bound reaches epsilon {target:g}")
    while high - low > 1:  # invariant: `high` fits, `low` does not (0 is no noise)
        middle = (low + high) // 2
        low, high = (low, middle) if laplace_epsilon(middle * SIGMA_STEP, rounds, delta) <= target else (middle, high)
    return round(high * SIGMA_STEP, 3)
