"""The validation part of a hospital's patients: who is in it, and their clipped, noised sums. The only way out of it.

Rules. A patient is in the validation part or in the training part of a study, by a hash of that patient's key alone, so that
nobody's part depends on anybody else. One patient adds one vector (proto/evaluation.py), the mean over that patient's scans
and of bounded length, in whole steps, so that it is the same to the bit whoever else is there. Sums leave this file with noise
on them and never without. Noise comes from the node's cryptographic generator (noise.py). Nobody in the part is a normal case:
then the sums are noise. What it costs is charged to every patient of the hospital, whichever part they are in (LEDGER.md).
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hospital_node.noise import NormalStream
from hospital_node.work import Score, WorkFailed
from proto.evaluation import COORDINATES, GRID, contribution
from proto.plan import Plan

SPLIT_LABEL = b"hospital-secagg validation v1\n"
HASH_BYTES = 8
HASH_RANGE = 1 << 64


class Keyed(Protocol):
    """One patient under an opaque key that stays the same for the whole study."""

    @property
    def key(self) -> str:
        """Name inside this hospital; never leaves the process."""
        ...


class Measurable(Keyed, Protocol):
    """One patient with all scans."""

    @property
    def cases(self) -> Sequence[Any]:
        """What a `Score` measures."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The patients of a hospital, each in one part, in their old order."""

    training: tuple[Any, ...] = field(repr=False)
    validation: tuple[Any, ...] = field(repr=False)


def parts(plan: Plan, patients: Sequence[Keyed]) -> Parts:
    """Who is trained on and who is measured; all are trained on where the plan has no evaluation.

    Raises WorkFailed where one person is listed twice, who would add two vectors.
    """
    if plan.evaluation is None:
        return Parts(tuple(patients), ())
    if len({patient.key for patient in patients}) != len(patients):
        raise WorkFailed("training-failed", "two entries of the cohort carry the same patient key: join their scans into one")
    return Parts(
        tuple(patient for patient in patients if not is_measured(plan, patient.key)),
        tuple(patient for patient in patients if is_measured(plan, patient.key)),
    )


def is_measured(plan: Plan, key: str) -> bool:
    """Whether the patient with this key is in the validation part: by the plan's study and share alone, for all its rounds."""
    if plan.evaluation is None:
        return False
    digest = hmac.digest(SPLIT_LABEL + plan.study.encode(), key.encode(), hashlib.sha256)
    return int.from_bytes(digest[:HASH_BYTES], "big") < plan.evaluation.share * HASH_RANGE


def noised_sums(plan: Plan, patients: Iterable[Measurable], score: Score, normals: NormalStream) -> tuple[float, ...]:
    """Sums of the patients' vectors with this hospital's own noise on every coordinate; for a plan with an evaluation."""
    assert plan.evaluation is not None, "only a plan with an evaluation asks for sums"
    labels = plan.network.labels
    steps = np.zeros(COORDINATES * len(labels), dtype=np.int64)
    for patient in patients:
        steps += contribution(patient_scores(patient, labels, score))
    sums = steps / GRID + plan.evaluation.deviation(len(labels)) * normals.draw(len(steps))
    return tuple(sums.tolist())


def patient_scores(patient: Measurable, labels: Sequence[str], score: Score) -> list[float | None]:
    """Label by label the mean over the scans of one patient that hold the label; None where none does."""
    scored = [score(case).dice for case in patient.cases]
    return [_mean([one[label] for one in scored]) for label in labels]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [min(max(value, 0.0), 1.0) for value in values if value is not None and math.isfinite(value)]
    return math.fsum(found) / len(found) if found else None
