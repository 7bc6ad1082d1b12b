"""The mechanism broken on purpose: an audit that cannot see these would prove nothing.

The rule: nothing of the installed code changes. A fault replaces one name of hospital_node.train, in this process, while its
context lasts. No fault touches what the node records, so the reported epsilon stays as if all were well: that makes it a lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import nn

from hospital_node import train
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.noise import Normals, NormalStream, Rand, StepCoins
from proto.plan import Plan


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to be wrong. `inside` is a context in which the node's training has it."""

    name: str
    sentence: str
    inside: Callable[[], AbstractContextManager[Any]]


class _Silent(PatientOptimizer):
    def add_noise(self) -> None:
        with patch.object(self, "noise_multiplier", 0.0):
            super().add_noise()


class _Quieter(PatientOptimizer):
    def add_noise(self) -> None:
        with patch.object(self, "noise_multiplier", 0.97 * self.noise_multiplier):
            super().add_noise()


class _Unclipped(PatientOptimizer):
    def clip_and_accumulate(self) -> None:
        with patch.object(self, "max_grad_norm", float("inf")):
            super().clip_and_accumulate()


class _DividedByTheDraw(PatientOptimizer):
    _drawn = 0

    def clip_and_accumulate(self) -> None:
        self._drawn += 1
        super().clip_and_accumulate()

    def scale_grad(self) -> None:
        with patch.object(self, "expected_batch_size", max(1, self._drawn)):
            super().scale_grad()
        self._drawn = 0


def _step_clipping_patches(
    module: nn.Module,
    optimizer: PatientOptimizer,
    plan: Plan,
    patients: Sequence[train.Keyed],
    coins: StepCoins,
    objective: train.Objective = train.SEGMENTATION,
) -> None:
    """What DP-SGD libraries do when a patient's patches are given to them as a batch: one clip for each patch."""
    single = plan.model_copy(update={"training": plan.training.model_copy(update={"patches_per_patient": 1})})
    module.train()
    optimizer.zero_grad(set_to_none=True)
    for patient in patients:
        if coins.drawn(patient.key, plan.privacy.inverse_sampling_rate):
            for index in range(plan.training.patches_per_patient):
                own = StepCoins(hashlib.sha256(coins.key + bytes([index])).digest())
                train.backward(module, single, patient, own, objective)
                optimizer.clip_and_accumulate()
    optimizer.step()


class _EagerCoins(StepCoins):
    def drawn(self, patient: str, inverse_rate: int) -> bool:
        return super().drawn(patient, max(1, inverse_rate // 2))


class _OneCoin(StepCoins):
    def drawn(self, patient: str, inverse_rate: int) -> bool:  # noqa: ARG002  the point of this fault
        return super().drawn("everybody", inverse_rate)


class _SameForTheProcess(NormalStream):
    def __init__(self, rand: Rand) -> None:  # noqa: ARG002  the point of this fault
        super().__init__(bytes)


class _SameForAllCoordinates(NormalStream):
    def blocks(self, count: int) -> Iterator[Normals]:
        (first,) = super().blocks(1)
        yield np.full(count, first[0])


class _SameForTheRound(NormalStream):
    _first: Normals | None = None

    def blocks(self, count: int) -> Iterator[Normals]:
        if self._first is None:
            self._first = np.concatenate(list(super().blocks(count)))
        yield np.array(self._first[:count])


def _instead(name: str, other: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: patch.object(train, name, other)


AS_BUILT = Fault("as built", "The mechanism as it is installed.", nullcontext)

# These reveal patients so clearly that a bound on epsilon shows it.
GROSS = (
    Fault("no noise", "The clipped sum leaves as it is.", _instead("PatientOptimizer", _Silent)),
    Fault("no clip", "A patient weighs as much as its gradient is long.", _instead("PatientOptimizer", _Unclipped)),
    Fault(
        "clip per patch",
        "Each patch is clipped instead of each patient, so a patient weighs as many clip norms as it has patches.",
        _instead("take_step", _step_clipping_patches),
    ),
)

# These cost privacy too, but no attack of a few thousand runs would prove it; `distributions` sees them.
SUBTLE = (
    Fault("divided by the draw", "The sum is divided by how many were drawn.", _instead("PatientOptimizer", _DividedByTheDraw)),
    Fault("doubled rate", "Patients are drawn twice as often as is charged.", _instead("StepCoins", _EagerCoins)),
    Fault("one coin for all", "One coin draws everybody or nobody.", _instead("StepCoins", _OneCoin)),
    Fault("weaker noise", "Three hundredths less than the planned deviation.", _instead("PatientOptimizer", _Quieter)),
    Fault(
        "one value",
        "Every coordinate gets the same noise.",
        _instead("NormalStream", _SameForAllCoordinates),
    ),
    Fault("noise of the process", "Every round draws the same noise.", _instead("NormalStream", _SameForTheProcess)),
    Fault("noise of the round", "Every step of a round draws the same noise.", _instead("NormalStream", _SameForTheRound)),
)
