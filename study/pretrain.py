"""The public start of a study: ordinary training on public or synthetic volumes.

Rule: nothing private enters here, so nothing here is charged. Never hand this module a hospital's scan. The vector that comes
out is written by proto.modelfile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from hospital_node import network, patches
from hospital_node.patches import Case
from hospital_node.train import dice_ce
from proto.layout import Vector
from proto.plan import Network, Preparation, Training

WARM_SHARE = 0.2  # of the steps: learning rate rises, then falls to nothing
WEIGHT_DECAY = 1e-4
BALANCE = 0.5  # exponent of the class weights at the first step, falling to 0: without it a short run calls all background
GRADIENT_NORM = 5.0  # clipped against a rare bad batch; this is no privacy mechanism


Pair = tuple[patches.Image, patches.Label]


@dataclass(frozen=True, slots=True)
class _Scan:
    """One public volume, prepared as the plan says."""

    image: patches.Image
    label: patches.Label


@dataclass(frozen=True, slots=True)
class _Pool:
    """All public scans as if of one person, so that patches are drawn by the code that the nodes use."""

    cases: Sequence[Case]
    key: str = "public"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to pretrain."""

    steps: int
    batch: int = 4  # patches a step
    learning_rate: float = 1e-2  # highest of the one-cycle schedule
    threads: int = 2
    seed: int = 0  # public and reproducible: nothing here is secret


def pretrain(
    plan_network: Network, preparation: Preparation, training: Training, volumes: Iterable[Pair], schedule: Schedule
) -> Vector:
    """Train the network from scratch on prepared (image, label) pairs (taken whole, then reused); return its parameters."""
    torch.set_num_threads(schedule.threads)
    pool = _Pool(tuple(_Scan(image, label) for image, label in volumes))
    batch = training.model_copy(update={"patches_per_patient": schedule.batch})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        module = network.build(plan_network)
    rng = np.random.default_rng(schedule.seed)
    optimizer = AdamW(module.parameters(), lr=schedule.learning_rate, weight_decay=WEIGHT_DECAY)
    cycle = OneCycleLR(optimizer, schedule.learning_rate, total_steps=schedule.steps, pct_start=WARM_SHARE)
    for step in range(schedule.steps):
        images, labels = patches.draw(pool, preparation, batch, rng)
        weights = class_weights(labels, plan_network.classes, BALANCE * (1 - step / schedule.steps))
        optimizer.zero_grad()
        dice_ce(module(images), labels, weights).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
        optimizer.step()
        cycle.step()
    return network.vector_of(module)


def class_weights(labels: torch.Tensor, classes: int, exponent: float) -> torch.Tensor:
    """(voxels / voxels of the class) ** exponent for each class; a class that is absent weighs nothing."""
    counts = torch.bincount(labels.reshape(-1), minlength=classes).float()
    return torch.where(counts > 0, (labels.numel() / counts.clamp(min=1)) ** exponent, torch.zeros_like(counts))
