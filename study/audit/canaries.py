"""Canary patients, the plan under which they are trained, and one round of the node's own training with some of them.

Rules. What runs is `hospital_node.train.train_round` as it is installed: its draws, its clip, its noise, its divisor; a world
brings patients and an objective only. The attack sees what leaves a hospital in the clear at worst: the update, and nothing of
the steps inside. A canary's gradient is far longer than the clip norm, and in the linear world it shares its direction with
nobody, so that no patient could be easier to recognise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hospital_node.accounting import Mechanism, noise_multiplier_for
from hospital_node.noise import Rand
from hospital_node.train import Keyed, Objective, TrainedUpdate, TrainingError, train_round
from proto.layout import Vector
from proto.plan import Hospital, Network, Plan, Preparation, Privacy, Training
from study.audit.bound import Attack, Signal

STUDY = "audit"
URI = f"secagg://{STUDY}/hospital/audited"
NETWORK = "task:audit"
LENGTH = 100.0  # of a patch's gradient in clip norms: without a clip one draw would weigh so much
EXPECTED = 10  # patients a step, by the declared size

Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setting:
    """How large an audit is, and the mechanism that it audits: the noise is solved for `epsilon` at `delta`."""

    runs: int = 1200
    canaries: int = 4  # in each run by coins of their own
    bystanders: int = 1  # in every run
    steps: int = 2
    inverse_rate: int = 2
    patches: int = 12  # of each patient
    epsilon: float = 0.9
    delta: float = 1e-10  # the coins' share of it stays below the confidence
    confidence: float = 1 - 1e-6
    guessed: float = 1 / 8  # share of all coins, the highest scores; a canary that was never drawn cannot be told from nobody

    @property
    def attack(self) -> Attack:
        """What the audit's bound needs to know."""
        coins = self.runs * self.canaries
        return Attack(coins, max(1, int(coins * self.guessed)), self.delta, self.confidence)

    @property
    def noise_multiplier(self) -> float:
        """The noise that makes the node report `epsilon`."""
        return noise_multiplier_for(self.epsilon, self.delta, 1 / self.inverse_rate, self.steps)

    @property
    def signal(self) -> Signal:
        """What the best attack sees of a canary in the linear world."""
        return Signal(self.steps, 1 / self.inverse_rate, self.noise_multiplier)


@dataclass(frozen=True, slots=True)
class World:
    """Patients, the model that they are trained on, and the directions along which the attack looks for each canary."""

    plan: Plan
    objective: Objective
    base: Vector
    canaries: tuple[Keyed, ...] = field(repr=False)
    bystanders: tuple[Keyed, ...] = field(repr=False)
    directions: Reals = field(repr=False)  # (canaries, model): a row times the noised sum is that canary's score

    def train(self, canaries: Sequence[Keyed], rand: Rand) -> TrainedUpdate:
        """One round with these canaries and all bystanders."""
        people = [*canaries, *self.bystanders]
        return train_round(self.plan, URI, self.base, people, objective=self.objective, rand=rand)

    def sums(self, trained: TrainedUpdate) -> Reals:
        """The noised sum that an attack can compute, in clip norms."""
        return sums_of(trained, self.plan)

    def scores(self, trained: TrainedUpdate) -> Reals:
        """(canaries,): how much of each canary the update seems to hold, in clip norms."""
        found: Reals = self.directions @ self.sums(trained)
        return found

    def reported(self, trained: TrainedUpdate) -> tuple[Mechanism, ...]:
        """What a ledger would charge for it."""
        return reported(trained)


def sums_of(trained: TrainedUpdate, plan: Plan) -> Reals:
    """The noised sum over all steps behind an update, in clip norms: what a reader of the update can compute."""
    scale = plan.expected_batch(URI) / (plan.training.learning_rate * plan.privacy.clip_norm)
    return -trained.update.astype(np.float64) * scale


def reported(trained: TrainedUpdate) -> tuple[Mechanism, ...]:
    """The mechanism as the node recorded it: what a ledger would charge."""
    return tuple(Mechanism(sigma, rate, steps) for sigma, rate, steps in trained.history)


def coins(rand: Rand, count: int) -> NDArray[np.bool_]:
    """`count` fair coins."""
    return np.unpackbits(np.frombuffer(rand((count + 7) // 8), np.uint8))[:count].astype(np.bool_)


def plan_of(
    setting: Setting,
    noise_multiplier: float,
    network: Network,
    preparation: Preparation,
    *,
    learning_rate: float = 1.0,
    clip_norm: float = 1.0,
) -> Plan:
    """The plan of one round; plain gradient steps, so that the update is the noised mean itself, times the rate, negated."""
    names = ("audited", "second", "third")
    hospitals = (
        Hospital(uri=f"secagg://{STUDY}/hospital/{name}", declared_patients=EXPECTED * setting.inverse_rate) for name in names
    )
    training = Training(
        optimizer="sgd",
        learning_rate=learning_rate,
        local_steps=setting.steps,
        patches_per_patient=setting.patches,
        foreground_share=0.0,
        augment=False,
    )
    privacy = Privacy(
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        inverse_sampling_rate=setting.inverse_rate,
        delta=setting.delta,
    )
    return Plan(
        study=STUDY,
        rounds=1,
        network=network,
        preparation=preparation,
        training=training,
        privacy=privacy,
        hospitals=tuple(hospitals),
    )


@dataclass(frozen=True, slots=True)
class Person:
    """One patient of the linear world: each row of `patches` is the gradient of one patch."""

    key: str
    patches: NDArray[np.float32] = field(repr=False)  # (patches, model)


class Linear:
    """Loss of a patient: the mean over its patches of the product of patch and model. Implements train.Objective."""

    def __init__(self, width: int) -> None:
        self._width = width

    def check(self, plan: Plan) -> None:
        """Refuse the plan of anything else."""
        if plan.network.architecture != NETWORK:
            raise TrainingError(f"the audit trains '{NETWORK}', not '{plan.network.architecture}'")

    def build(self, plan: Plan) -> nn.Module:  # noqa: ARG002  the protocol's signature
        """One weight for each direction."""
        return nn.Linear(self._width, 1, bias=False)

    def loss(self, module: nn.Module, plan: Plan, patient: Person, rng: np.random.Generator) -> torch.Tensor:
        """Mean over the patches that the patient's own generator picks."""
        chosen = rng.integers(len(patient.patches), size=plan.training.patches_per_patient)
        loss: torch.Tensor = module(torch.from_numpy(patient.patches[chosen])).mean()
        return loss


def linear_world(setting: Setting, noise_multiplier: float | None = None, empty: int = 0) -> World:
    """One direction for each patient, and `empty` directions along which nobody has a gradient."""
    people = setting.canaries + setting.bystanders
    width = people + empty
    axes = LENGTH * np.eye(width, dtype=np.float32)
    everyone = tuple(Person(f"patient-{index}", np.tile(axes[index], (setting.patches, 1))) for index in range(people))
    network = Network(architecture=NETWORK, labels=("canary",))
    preparation = Preparation(modality="none", spacing_xyz_mm=(1.0, 1.0, 1.0), patch_zyx=(1, 1, 1))
    return World(
        plan=plan_of(setting, noise_multiplier or setting.noise_multiplier, network, preparation),
        objective=Linear(width),
        base=np.zeros(width, np.float32),
        canaries=everyone[: setting.canaries],
        bystanders=everyone[setting.canaries :],
        directions=np.eye(width)[: setting.canaries],
    )
