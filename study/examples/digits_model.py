"""What the digits example learns: a small network, and the loss of one image (the rules: hospital_node.train.Objective).

The privacy unit is one image. The plan's `network.channels` are the widths of the two convolutions, `norm` is GroupNorm or
instance normalisation; with `training.augment` an image is shown `patches_per_patient` times, each moved by at most one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from hospital_node.economy import economical, logits
from hospital_node.train import TrainingError
from proto.plan import Network, Plan, Training

ARCHITECTURE = "task:digits"
LABEL = "accuracy"
SIDE = 8  # pixels
CLASSES = 10
GROUPS = 4  # of GroupNorm
POOLED_SIDE = SIDE // 4  # after two poolings by 2
MAX_MOVE = 1  # pixels, either way: a digit fills its frame

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DigitCase:
    """One image (1, 8, 8) in [-1, 1]; `label` of the same shape holds the digit in every pixel, as the node's code expects."""

    image: Pixels
    label: NDArray[np.uint8]

    @property
    def digit(self) -> int:
        """0 to 9."""
        return int(self.label.flat[0])


@dataclass(frozen=True, slots=True)
class DigitPatient:
    """One image as a privacy unit. Also hospital_node.patches.Patient."""

    key: str
    cases: tuple[DigitCase]


class DigitsObjective:
    """See hospital_node.train.Objective."""

    def check(self, plan: Plan) -> None:
        """The plan must name this network."""
        check(plan.network)

    def build(self, plan: Plan) -> nn.Module:
        """Two convolutions and one linear layer."""
        return economical(build(plan.network), plan.training)

    def loss(self, module: nn.Module, plan: Plan, patient: DigitPatient, rng: np.random.Generator) -> torch.Tensor:
        """Mean cross-entropy over the views of one image."""
        return image_loss(module, plan.training, patient, rng)


OBJECTIVE = DigitsObjective()


def check(network: Network) -> None:
    """Return if `network` is the one of this task; otherwise raise TrainingError."""
    if network.architecture != ARCHITECTURE or network.labels != (LABEL,):
        raise TrainingError(
            f"the digits need network.architecture = '{ARCHITECTURE}' and network.labels = ['{LABEL}'], the plan has "
            f"'{network.architecture}' and {list(network.labels)}"
        )
    if len(network.channels) != 2 or any(count < 1 or count % GROUPS for count in network.channels):
        raise TrainingError(f"network.channels of '{ARCHITECTURE}' are two multiples of {GROUPS}, for instance [16, 32]")


def build(network: Network) -> nn.Module:
    """(N, 1, 8, 8) to (N, 10) logits; fresh weights. Raises TrainingError."""
    check(network)
    first, second = network.channels
    return nn.Sequential(
        *_block(1, first, network.norm),
        *_block(first, second, network.norm),
        nn.Flatten(),
        nn.Linear(second * POOLED_SIDE**2, CLASSES),
    )


def image_loss(module: nn.Module, training: Training, patient: DigitPatient, rng: np.random.Generator) -> torch.Tensor:
    """Mean cross-entropy of one image's views; looks at that image and its generator alone."""
    case = patient.cases[0]
    shown = views(case.image, training.patches_per_patient, rng) if training.augment else case.image[None]
    scores = logits(module, torch.from_numpy(shown), training)
    return functional.cross_entropy(scores, torch.full((len(shown),), case.digit))


def views(image: Pixels, count: int, rng: np.random.Generator) -> Pixels:
    """(count, 1, 8, 8): the image moved by up to one pixel, background where it left."""
    padded = np.pad(image, ((0, 0), (MAX_MOVE, MAX_MOVE), (MAX_MOVE, MAX_MOVE)), constant_values=image.min())
    corners = rng.integers(0, 2 * MAX_MOVE + 1, (count, 2))
    return np.stack([padded[:, y : y + SIDE, x : x + SIDE] for y, x in corners])


def _block(wide_in: int, wide_out: int, norm: str) -> list[nn.Module]:
    groups = GROUPS if norm == "group" else wide_out
    return [nn.Conv2d(wide_in, wide_out, 3, padding=1), nn.GroupNorm(groups, wide_out), nn.ReLU(), nn.MaxPool2d(2)]
