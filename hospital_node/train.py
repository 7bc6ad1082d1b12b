"""One round of local training: DP-SGD over patients, from the released model to an update.

Rules. The privacy unit is a patient. q, the steps, the clip norm and the divisor come from the plan, never from the data.
Model and optimizer live and die inside `train_round`, so a discarded round leaves nothing behind. After training, the
history that Opacus' accountant recorded must be the plan's (sigma, q, steps); otherwise the update is dropped.
What is learned is an `Objective`, which sees one patient at a time; who is drawn, the clip, the noise and the check are
the same for every objective. A node trains `SEGMENTATION`.
The arithmetic is in dp_optimizer.py, the randomness in noise.py; TRAINING.md lists the pitfalls and where each is closed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from opacus.accountants import RDPAccountant
from torch import nn

from hospital_node import economy, network, patches
from hospital_node.certainty import Spread
from hospital_node.chance import FirstLossWatched
from hospital_node.device import PROCESSOR, device_of
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.integer_sums import IntegerSum
from hospital_node.local_optimizer import local_optimizer, push
from hospital_node.losses import loss_of
from hospital_node.noise import NormalStream, Rand, StepCoins
from hospital_node.patches import Patient
from hospital_node.ranks import ONE_PROCESS, Ranks
from hospital_node.trained_parts import choose, values_of
from proto import precision
from proto.layout import Vector, model_digest
from proto.plan import Plan
from secagg.errors import LocalError
from secagg.params import Integers

History = tuple[tuple[float, float, int], ...]  # (noise multiplier, sampling rate, steps)


class TrainingError(RuntimeError):
    """A round that gave no usable update; the text says why. Nothing of it was kept."""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Where local training stands; holds nothing that depends on a patient."""

    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class TrainedUpdate:
    """What one round gives to be sent (precisions behind the update where the plan has them), its base and its mechanism.

    With shared noise the update is a sum in whole numbers that has no noise yet: it leaves with its share or not at all.
    """

    update: Vector | Integers
    base_digest: bytes
    history: History
    nonfinite: int  # patient gradients counted as zero; for the hospital's own eyes


class Keyed(Protocol):
    """One privacy unit, whatever else it holds."""

    @property
    def key(self) -> str:
        """Name of the patient inside this hospital; never leaves the process."""
        ...


class Objective(Protocol):
    """What is learned. Rule: `loss` depends on the module, the plan, one patient and that patient's generator, on nothing else.

    No state, no other chance (dropout draws from torch's own generator: hospital_node/chance.py), no layer that mixes patients:
    `train_round` refuses such chance and such layers.
    """

    def check(self, plan: Plan) -> None:
        """Return if this can be learned as the plan says; otherwise raise TrainingError or NetworkError with the remedy."""
        ...

    def build(self, plan: Plan) -> nn.Module:
        """A fresh network; its parameters, in order, are the vector of the federation."""
        ...

    def loss(self, module: nn.Module, plan: Plan, patient: Any, rng: np.random.Generator) -> torch.Tensor:
        """Scalar loss of one patient, whose gradient is that patient's contribution before the clip."""
        ...


class Segmentation:
    """The product's objective: the plan's loss over a few patches of one patient (hospital_node.patches.Patient)."""

    def check(self, plan: Plan) -> None:
        """A patch must fit the network: sides that it can halve as often as it does, and logits on the same grid."""
        side, patch = network.divisor(plan.network), plan.preparation.patch_zyx
        if any(extent % side for extent in patch):
            raise TrainingError(
                f"preparation.patch_zyx {list(patch)} must hold multiples of {side}, because the network of the plan halves "
                f"its grid {side.bit_length() - 1} times: correct the plan"
            )
        network.check_patch(plan.network, plan.training.patches_per_patient, patch)

    def build(self, plan: Plan) -> nn.Module:
        """A MONAI network by name."""
        return economy.economical(network.build(plan.network), plan.training)

    def loss(self, module: nn.Module, plan: Plan, patient: Patient, rng: np.random.Generator) -> torch.Tensor:
        """Mean loss of the patient's patches."""
        device = device_of(module)
        images, labels = (one.to(device) for one in patches.draw(patient, plan.preparation, plan.training, rng))
        return loss_of(plan.training.loss)(economy.logits(module, images, plan.training), labels)


SEGMENTATION = Segmentation()


def train_round(
    plan: Plan,
    uri: str,
    base: Vector,
    patients: Sequence[Keyed],
    *,
    threads: int = 1,
    round: int = 1,  # noqa: A002  the plan's word
    on_step: Callable[[StepProgress], None] = lambda _: None,
    objective: Objective = SEGMENTATION,
    rand: Rand = os.urandom,
    ranks: Ranks = ONE_PROCESS,
    device: torch.device = PROCESSOR,
    drift: Vector | None = None,
) -> TrainedUpdate:
    """Train `plan.local_steps(uri)` steps at hospital `uri` from `base` and return the difference in what is trained.

    `drift`, c - c_i of SCAFFOLD, is added to each noised mean. `base` and `patients` are not changed. Raises TrainingError,
    NetworkError or PlanError; what was trained is then gone.
    """
    _check_processes(plan, ranks)
    with ranks.round(patients):
        _check_patients(patients)
        torch.set_num_threads(threads)
        module = _loaded(plan, objective, base, device)
        trained = choose(module, plan.training, round)
        if plan.privacy.is_shared:
            return _integer_round(plan, module, trained, base, patients, FirstLossWatched(objective), rand, on_step)
        before = values_of(trained)
        optimizer = private_optimizer(module, plan, uri, round=round, normals=NormalStream(rand), ranks=ranks)
        if drift is not None:
            push(optimizer.original_optimizer, trained, drift)
        certainty = Spread(optimizer.original_optimizer, trained) if precision.is_used(plan) else None
        watched = FirstLossWatched(objective)
        accountant = RDPAccountant()
        optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(1 / plan.privacy.inverse_sampling_rate))
        steps = plan.local_steps(uri)
        for step in range(1, steps + 1):
            coins = StepCoins(ranks.key(rand))
            present = ranks.share(patients, coins, plan.privacy.inverse_sampling_rate)
            take_step(module, optimizer, plan, present, coins, watched)
            on_step(StepProgress(step, steps))
        history = tuple((sigma, rate, int(count)) for sigma, rate, count in accountant.history)
        check_history(history, plan, uri)
    update = _difference(values_of(trained), before)
    if certainty is not None:
        update = precision.weighted(update, certainty.precisions(plan.aggregation.precision_scale))
    return TrainedUpdate(update, model_digest(base), history, optimizer.nonfinite)


def _loaded(plan: Plan, objective: Objective, base: Vector, device: torch.device) -> nn.Module:
    """The objective's network on `device`, at `base`."""
    objective.check(plan)
    module = objective.build(plan)
    network.refuse_shared_statistics(module)
    network.refuse_own_chance(module)
    network.load_vector(module.to(device), network.layout_of(module), base)
    return module


def _integer_round(
    plan: Plan,
    module: nn.Module,
    trained: Sequence[nn.Parameter],
    base: Vector,
    patients: Sequence[Keyed],
    objective: Objective,
    rand: Rand,
    on_step: Callable[[StepProgress], None],
) -> TrainedUpdate:
    """The one step of a round with shared noise: a sum in whole numbers, which is noised where it is masked."""
    try:
        sums = IntegerSum(trained, plan)
    except LocalError as error:
        raise TrainingError(f"the plan's norm_steps do not fit its network: {error}") from error
    sum_up(module, sums, plan, patients, StepCoins.fresh(rand), objective)
    on_step(StepProgress(1, 1))
    history = ((plan.privacy.noise_multiplier, 1 / plan.privacy.inverse_sampling_rate, 1),)
    return TrainedUpdate(sums.values, model_digest(base), history, sums.nonfinite)


def sum_up(
    module: nn.Module,
    sums: IntegerSum,
    plan: Plan,
    patients: Sequence[Keyed],
    coins: StepCoins,
    objective: Objective = SEGMENTATION,
) -> None:
    """Each patient is drawn by a coin of its own; whoever is drawn adds one clipped gradient in whole numbers."""
    module.train()
    for patient in patients:
        if coins.drawn(patient.key, plan.privacy.inverse_sampling_rate):
            backward(module, plan, patient, coins, objective)
            sums.add(coins.rounding_key(patient.key))


def take_step(
    module: nn.Module,
    optimizer: PatientOptimizer,
    plan: Plan,
    patients: Sequence[Keyed],
    coins: StepCoins,
    objective: Objective = SEGMENTATION,
) -> None:
    """One DP-SGD step. Each patient is drawn by a coin of its own; whoever is drawn adds one clipped gradient."""
    module.train()
    optimizer.zero_grad(set_to_none=True)  # else the noised mean of the step before enters the first patient's gradient
    for patient in patients:
        if coins.drawn(patient.key, plan.privacy.inverse_sampling_rate):
            backward(module, plan, patient, coins, objective)
            optimizer.clip_and_accumulate()
    optimizer.step()


def backward(module: nn.Module, plan: Plan, patient: Keyed, coins: StepCoins, objective: Objective = SEGMENTATION) -> None:
    """Leave the gradient of one patient's loss in `p.grad`, which is None before."""
    loss = objective.loss(module, plan, patient, coins.generator(patient.key))
    economy.backward(loss, module.parameters(), plan.training)


def private_optimizer(
    module: nn.Module,
    plan: Plan,
    uri: str,
    *,
    round: int,  # noqa: A002
    normals: NormalStream,
    ranks: Ranks = ONE_PROCESS,
) -> PatientOptimizer:
    """A fresh local optimizer of what requires a gradient, with the plan's clip, noise and public divisor."""
    return ranks.optimizer(PatientOptimizer)(
        local_optimizer([p for p in module.parameters() if p.requires_grad], plan, round),
        noise_multiplier=plan.privacy.noise_multiplier,
        max_grad_norm=plan.privacy.clip_norm,
        expected_batch_size=plan.expected_batch(uri),
        normals=normals,
    )


def check_history(history: History, plan: Plan, uri: str) -> None:
    """Return if Opacus recorded exactly the plan's mechanism for `uri`; otherwise raise TrainingError."""
    wanted = ((plan.privacy.noise_multiplier, 1 / plan.privacy.inverse_sampling_rate, plan.local_steps(uri)),)
    if history != wanted:
        raise TrainingError(
            f"the accountant recorded {list(history)}, the plan says {list(wanted)}: the update was discarded, because its "
            "privacy cost is not the one approved; report this as a fault of the software"
        )


def _check_processes(plan: Plan, ranks: Ranks) -> None:
    if plan.privacy.is_shared and ranks is not ONE_PROCESS:
        raise TrainingError(
            "shared noise is trained in one process at each hospital: start the node without torchrun, or plan local noise"
        )


def _check_patients(patients: Sequence[Keyed]) -> None:
    if len({patient.key for patient in patients}) != len(patients):
        raise TrainingError("two entries of the cohort carry the same patient key: join their scans into one patient")


def _difference(after: Vector, before: Vector) -> Vector:
    update = (after - before).astype(np.float32)
    if not np.isfinite(update).all():
        raise TrainingError("the trained model is not finite: lower training.learning_rate in the plan")
    return update
