"""Whose scan an inversion looks for: an invented body, and the two networks that a single step is trained with.

The segmentation network is the product's own. The dense one is nobody's product: its first layer has a weight for every voxel,
so that its gradient holds the scan itself, and an attack on it fails only where masking or noise made it fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hospital_node import network, patches, train
from hospital_node.noise import Rand
from hospital_node.patches import Patient
from hospital_node.train import Objective, TrainingError
from proto.layout import Vector
from proto.plan import Network, Plan, Preparation
from study.audit.canaries import URI, Setting, plan_of
from study.audit.scans import Person, Scan, public_start
from study.textures import blur

SIDE = 16  # voxels
DENSE = "task:audit-dense"
UNITS = 8  # of the dense network's first layer
DELTA = 1e-5
SPACING = (20.0, 20.0, 20.0)  # mm: a whole chest

Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Victim:
    """One patient, and the settings under which a round of one step is trained on nobody else."""

    plan: Plan
    objective: Objective
    base: Vector = field(repr=False)
    patient: Person = field(repr=False)

    @property
    def scan(self) -> Image:
        """What an attack looks for, (z, y, x)."""
        return self.patient.cases[0].image

    def module(self) -> nn.Module:
        """The network at the start of the round, in the attacker's hands: of layers that can be differentiated twice."""
        ours = self.objective is train.SEGMENTATION
        module = network.build(self.plan.network) if ours else self.objective.build(self.plan)
        network.load_vector(module, network.layout_of(module), self.base)
        return module

    def update(self, noise_multiplier: float, rand: Rand) -> Vector:
        """What the node's training gives; without noise where the multiplier is 0."""
        noise = {"noise_multiplier": noise_multiplier, "no_guarantee": noise_multiplier == 0}
        plan = self.plan.model_copy(update={"privacy": self.plan.privacy.model_copy(update=noise)})
        return train.train_round(plan, URI, self.base, [self.patient], objective=self.objective, rand=rand).update  # type: ignore[return-value]  # local noise


class Dense:
    """How much of the scan is labelled, from every voxel at once. Implements train.Objective."""

    def check(self, plan: Plan) -> None:
        """Refuse the plan of anything else."""
        if plan.network.architecture != DENSE:
            raise TrainingError(f"this network trains '{DENSE}', not '{plan.network.architecture}'")

    def build(self, plan: Plan) -> nn.Module:  # noqa: ARG002  the protocol's signature
        """Two layers."""
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**3, UNITS), nn.Tanh(), nn.Linear(UNITS, 1))

    def loss(self, module: nn.Module, plan: Plan, patient: Patient, rng: np.random.Generator) -> torch.Tensor:
        """Squared error of the share."""
        images, labels = patches.draw(patient, plan.preparation, plan.training, rng)
        loss: torch.Tensor = ((module(images)[:, 0] - labels.float().mean((1, 2, 3))) ** 2).mean()
        return loss


def segmented() -> Victim:
    """The product's network, trained as in a hospital."""
    return _victim(Network(architecture="UNet", channels=(8, 16), labels=("lesion",), norm="instance"), train.SEGMENTATION)


def dense() -> Victim:
    """The network that gives everything away."""
    return _victim(Network(architecture=DENSE, labels=("lesion",)), Dense())


def body() -> Scan:
    """A chest drawn with ellipsoids: tissue, two lungs, a spine, and a lesion in one lung, which alone is labelled."""
    z, y, x = (np.mgrid[:SIDE, :SIDE, :SIDE] + 0.5) / SIDE * 2 - 1

    def inside(at: tuple[float, float, float], radii: tuple[float, float, float]) -> NDArray[np.bool_]:
        distance = sum(((axis - centre) / radius) ** 2 for axis, centre, radius in zip((z, y, x), at, radii, strict=True))
        return np.asarray(distance < 1)

    image = np.full(z.shape, -1.0, np.float32)
    image[inside((0, 0, 0), (2.5, 0.75, 0.9))] = 0.1
    for side in (-1, 1):
        image[inside((0, -0.05, 0.42 * side), (1.2, 0.5, 0.32))] = -0.8
    image[inside((0, 0.5, 0), (3.0, 0.16, 0.16))] = 0.8
    lesion = inside((0.1, -0.1, 0.45), (0.25, 0.25, 0.2))
    image[lesion] = 0.4
    return Scan(blur(image, (0.4, 0.4, 0.4)), lesion.astype(np.uint8))


def _victim(net: Network, objective: Objective) -> Victim:
    setting = Setting(steps=1, inverse_rate=1, patches=1, delta=DELTA)
    prepared = Preparation(modality="CT", spacing_xyz_mm=SPACING, window_hu=(-1000.0, 400.0), patch_zyx=(SIDE, SIDE, SIDE))
    plan = plan_of(setting, 1.0, net, prepared)
    return Victim(plan, objective, public_start(lambda: objective.build(plan)), Person("victim", (body(),)))
