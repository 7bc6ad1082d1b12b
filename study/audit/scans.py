"""The audit's second world: the product's own segmentation network, and canaries that are volumes of noise, wrongly labelled.

The rule: nothing differs from a hospital's training but the size. The attack knows the model and every canary's scan, and so
the direction of its gradient; it looks for each canary where the others' gradients are not. Steps after the first start from
a model that it does not know; with so small a clip norm that model has hardly moved, and the directions stay nearly right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hospital_node import network, train
from hospital_node.noise import StepCoins
from proto.layout import Vector
from proto.plan import Network, Plan, Preparation
from study.audit.canaries import Reals, Setting, World, plan_of

SIDE = 8  # voxels: a whole volume is one patch
CLIP_NORM = 0.01  # far below the length of any gradient of this network
LEARNING_RATE = 0.1  # a smaller one would drown an update in the rounding of float32
START = 20261121  # of the public start: any model that everybody knows


@dataclass(frozen=True, slots=True)
class Scan:
    """A prepared volume and its label, (z, y, x)."""

    image: NDArray[np.float32] = field(repr=False)
    label: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Person:
    """One patient with one scan."""

    key: str
    cases: tuple[Scan, ...] = field(repr=False)


def person(key: str, side: int = SIDE) -> Person:
    """Voxels and labels that follow from the name alone, and from nothing that a scan would show."""
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest())))
    image = 2 * rng.standard_normal((side, side, side), dtype=np.float32)
    return Person(key, (Scan(image, (rng.random(image.shape) < rng.uniform(0.1, 0.9)).astype(np.uint8)),))


def public_start(build: Callable[[], nn.Module]) -> Vector:
    """A model that everybody has; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(START)
        return network.vector_of(build())


def scan_world(setting: Setting) -> World:
    """Canaries and bystanders for the smallest network that a node trains."""
    plan = plan_of(
        setting,
        setting.noise_multiplier,
        Network(architecture="UNet", channels=(4, 8), labels=("lesion",), norm="instance"),
        Preparation(modality="MR", spacing_xyz_mm=(1.0, 1.0, 1.0), patch_zyx=(SIDE, SIDE, SIDE)),
        learning_rate=LEARNING_RATE,
        clip_norm=CLIP_NORM,
    )
    base = public_start(lambda: network.build(plan.network))
    canaries = tuple(person(f"canary-{index}") for index in range(setting.canaries))
    return World(
        plan=plan,
        objective=train.SEGMENTATION,
        base=base,
        canaries=canaries,
        bystanders=tuple(person(f"bystander-{index}") for index in range(setting.bystanders)),
        directions=_apart(np.stack([_gradient(plan, base, one) for one in canaries])),
    )


def _gradient(plan: Plan, base: Vector, one: Person) -> Reals:
    """The direction of a patient's contribution to the first step, of length 1."""
    module = network.build(plan.network)
    network.load_vector(module, network.layout_of(module), base)
    train.backward(module, plan, one, StepCoins(bytes(32)))
    gradient: Reals = np.concatenate([p.grad.reshape(-1).double().numpy() for p in module.parameters() if p.grad is not None])
    unit: Reals = gradient / float(np.linalg.norm(gradient))
    return unit


def _apart(gradients: Reals) -> Reals:
    """Rows that answer 1 to their own gradient and 0 to the others'."""
    apart: Reals = np.linalg.pinv(gradients).T.astype(np.float64)
    return apart
