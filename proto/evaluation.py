"""Evaluation on the hospitals' own patients: what the plan says of it, what one patient adds, what the opened sums say.

A patient of the validation part adds one vector: for each label (score - 1/2, 1/2) where the patient has the label, else
(0, 0). Every coordinate lies in [-1/2, 1/2], so the vector of L labels, scores and counts together, is at most sqrt(L / 2)
long: the one sensitivity that the noise covers. A score near 1/2 hardly moves the sum, which is why scores are centred: the
same noise hides (score, 1) at half the accuracy (proto/README.md, Evaluation).

Everything here is public arithmetic that node and coordinator share. What is opened is noised; decoding and clipping it
learns nothing more about anybody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from proto.frozen import Frozen

LIMIT = 0.5  # of the magnitude of each coordinate
GRID = 1 << 20  # steps of one: on whole steps sums are exact, so that they do not depend on who else is in them
COORDINATES = 2  # of one label: the centred score, and half of one
TAIL = 9.0  # deviations: the node's generator ends at 8.57 (hospital_node/noise.py)
SURE = 3.0  # deviations that a noisy count must lie above 0, else a quotient by it says nothing


class Evaluation(Frozen):
    """Plan part [evaluation]: in every `every`-th round each hospital measures the model that the round starts from.

    A patient belongs to validation with chance `share`, by a hash of the patient's key, for the whole study, and is never
    trained on. The noise on a hospital's sums has the deviation `noise_multiplier` times their sensitivity.
    """

    every: int = Field(ge=1)
    share: float = Field(gt=0, lt=1)
    noise_multiplier: float = Field(ge=0, allow_inf_nan=False)

    def check(self, rounds: int, *, no_guarantee: bool) -> None:
        """Return if the part can hold in a plan of so many rounds; otherwise ValueError with the remedy."""
        if self.every > rounds:
            raise ValueError(
                f"evaluation.every {self.every} exceeds the {rounds} rounds, so nothing would be measured: lower it, or leave "
                "[evaluation] out"
            )
        if self.noise_multiplier == 0 and not no_guarantee:
            raise ValueError(
                "evaluation.noise_multiplier = 0 needs privacy.no_guarantee = true: sums without noise protect no patient"
            )

    def is_due(self, round_number: int) -> bool:
        """Whether sums ride in this round."""
        return round_number % self.every == 0

    def times(self, rounds: int) -> int:
        """Evaluations in rounds 1 to `rounds`."""
        return rounds // self.every

    def deviation(self, labels: int) -> float:
        """Standard deviation of the noise of one hospital on each coordinate."""
        return self.noise_multiplier * sensitivity(labels)

    def expected_error(self, labels: int, hospitals: int, declared: int, mean: float = 0.8) -> float:
        """Standard error of a label's mean by the noise alone, if all hospitals of `declared` patients in all take part.

        For a label that every patient has.
        """
        noise = self.deviation(labels) * math.sqrt(hospitals)
        return noise * math.hypot(1.0, (mean - LIMIT) / LIMIT) / (self.share * declared)

    def clips(self, labels: int, largest_declared: int) -> tuple[float, ...]:
        """Bounds of a hospital's noised sums: all of the largest declared size could be in validation, and the noise ends."""
        return (LIMIT * largest_declared + TAIL * self.deviation(labels),) * (COORDINATES * labels)


@dataclass(frozen=True, slots=True)
class LabelMean:
    """What one evaluation says of one label. `standard_error` is of the noise alone, not of the choice of patients.

    The mean may lie outside [0, 1]. It is None where the noisy count is too near to 0 to divide by it.
    """

    label: str
    mean: float | None
    standard_error: float | None
    patients: float  # noisy count of those who have the label


def in_words(one: LabelMean) -> str:
    """0.71 ± 0.04, where the noise allows to say it."""
    if one.mean is None or one.standard_error is None:
        return "cannot be told from the noise"
    return f"{one.mean:.2f} ± {one.standard_error:.2f}"


def sensitivity(labels: int) -> float:
    """L2 bound of one patient's vector, rounded up."""
    return math.nextafter(math.sqrt(COORDINATES * labels) * LIMIT, math.inf)


def contribution(scores: Sequence[float | None]) -> tuple[int, ...]:
    """One patient's vector in steps of 1 / GRID: label by label the centred score and half of one, (0, 0) for None.

    Scores are clipped to [0, 1]; one that is not finite counts as None. Rounded towards 0, so that no coordinate grows.
    """
    half = round(LIMIT * GRID)
    vector: list[int] = []
    for score in scores:
        if score is None or not math.isfinite(score):
            vector += (0, 0)
        else:
            vector += (int((min(max(score, 0.0), 1.0) - LIMIT) * GRID), half)
    return tuple(vector)


def label_means(labels: Sequence[str], sums: Sequence[float], deviation: float) -> tuple[LabelMean, ...]:
    """The opened sums as means; `deviation` is that of the noise in each sum, of all hospitals together.

    The standard error of a quotient by its first-order expansion: sqrt(1 + (2 (mean - 1/2))^2) deviations over the count.
    """
    pairs = zip(sums[0::COORDINATES], sums[1::COORDINATES], strict=True)
    return tuple(_label_mean(label, *pair, deviation) for label, pair in zip(labels, pairs, strict=True))


def _label_mean(label: str, centred: float, halves: float, deviation: float) -> LabelMean:
    patients = halves / LIMIT
    if patients <= 0 or halves < SURE * deviation:
        return LabelMean(label, None, None, patients)
    tilt = centred / halves  # (mean - 1/2) / (1/2)
    return LabelMean(label, LIMIT * (1 + tilt), deviation * math.hypot(1.0, tilt) / patients, patients)
