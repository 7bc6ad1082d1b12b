"""One training step of each kind on the same network and the same batch: ordinary, private, and Opacus' default hooks.

The private step is the node's own: `train.take_step` with the node's optimizer, coins, noise and convolutions, and q = 1, so
that each of the batch is one patient of one patch. Patches are made beforehand, in every kind of step. The ordinary step is
plain float32 SGD on the whole batch, as PyTorch computes it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.optim import SGD

from hospital_node import economy, network
from hospital_node.dp_optimizer import PatientOptimizer
from hospital_node.losses import dice_ce
from hospital_node.noise import NormalStream, StepCoins
from hospital_node.train import private_optimizer, take_step
from proto.plan import Plan

URI = "secagg://bench/hospital/a"
LEVELS = 4
LEARNING_RATE = 1e-2
FOREGROUND = 0.1  # share of labelled voxels

Kind = Literal["plain", "fp32", "bf16", "opacus"]
Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained on: a batch of cubes, and a DynUNet of four levels that begins with so many channels."""

    side: int
    channels: int
    batch: int = 8
    noise: float = 1.0  # over the clip norm
    clip: float = 1.0

    def __str__(self) -> str:
        return f"{self.side}^3, {self.channels} channels"

    def plan(self, precision: str = "fp32", **training: object) -> Plan:
        """Of three hospitals whose declared size is the batch."""
        hospitals = [{"uri": f"secagg://bench/hospital/{name}", "declared_patients": self.batch} for name in "abc"]
        private = {"noise_multiplier": self.noise, "clip_norm": self.clip, "no_guarantee": self.noise == 0}
        return Plan.model_validate(
            {
                "study": "bench",
                "rounds": 1,
                "network": {"channels": [self.channels * 2**level for level in range(LEVELS)], "labels": ["lesion"]},
                "preparation": {"modality": "MR", "spacing_xyz_mm": [1, 1, 1], "patch_zyx": [self.side] * 3},
                "training": {
                    "local_steps": 1,
                    "optimizer": "sgd",
                    "learning_rate": LEARNING_RATE,
                    "patches_per_patient": 1,
                    "precision": precision,
                    **training,
                },
                "privacy": {**private, "inverse_sampling_rate": 1, "delta": 1e-3},
                "hospitals": hospitals,
            }
        )

    def network(self) -> nn.Module:
        """The same random weights each time."""
        torch.manual_seed(self.channels)
        return network.build(self.plan().network)

    def patients(self) -> list[Patched]:
        """The same patches each time."""
        generator = torch.Generator().manual_seed(self.side)
        shape = (1, 1, *[self.side] * 3)
        return [
            Patched(
                str(number),
                torch.randn(shape, generator=generator),
                (torch.rand(shape[1:], generator=generator) < FOREGROUND).long(),
            )
            for number in range(self.batch)
        ]


@dataclass(frozen=True, slots=True)
class Patched:
    """One patient whose patches are drawn already."""

    key: str
    images: torch.Tensor = field(repr=False)  # (1, 1, z, y, x)
    labels: torch.Tensor = field(repr=False)  # (1, z, y, x)


class GivenPatches:
    """The product's objective on patches that are there already. See hospital_node.train.Objective."""

    def check(self, plan: Plan) -> None:
        """Nothing to refuse."""

    def build(self, plan: Plan) -> nn.Module:
        """As the node builds it."""
        return economy.economical(network.build(plan.network), plan.training)

    def loss(self, module: nn.Module, plan: Plan, patient: Patched, rng: np.random.Generator) -> torch.Tensor:  # noqa: ARG002
        """The node's loss of the node's logits."""
        return dice_ce(economy.logits(module, patient.images, plan.training), patient.labels)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step that can be taken again and again, and the network that it changes."""

    step: Step
    module: nn.Module
    optimizer: PatientOptimizer | DPOptimizer | SGD


def prepare(kind: Kind, setting: Setting) -> Prepared:
    """One kind of step, ready to be taken."""
    module, patients = setting.network(), setting.patients()
    if kind == "plain":
        return _plain(module, patients)
    if kind == "opacus":
        return _opacus(module, patients, setting)
    return _private(module, patients, setting.plan(kind))


def _plain(module: nn.Module, patients: list[Patched]) -> Prepared:
    images, labels = torch.cat([one.images for one in patients]), torch.cat([one.labels for one in patients])
    optimizer = SGD(module.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        module.train()
        optimizer.zero_grad(set_to_none=True)
        dice_ce(module(images), labels).backward()
        optimizer.step()

    return Prepared(step, module, optimizer)


def _private(module: nn.Module, patients: list[Patched], plan: Plan) -> Prepared:
    economy.economical(module, plan.training)
    optimizer = private_optimizer(module, plan, URI, round=1, normals=NormalStream(os.urandom))

    def step() -> None:
        take_step(module, optimizer, plan, patients, StepCoins.fresh(os.urandom), GivenPatches())

    return Prepared(step, module, optimizer)


def _opacus(module: nn.Module, patients: list[Patched], setting: Setting) -> Prepared:
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    images, labels = torch.cat([one.images for one in patients]), [one.labels for one in patients]
    hooked = opacus_hooks(module)
    optimizer = DPOptimizer(
        SGD(module.parameters(), lr=LEARNING_RATE),
        noise_multiplier=setting.noise,
        max_grad_norm=setting.clip,
        expected_batch_size=len(patients),
    )

    def step() -> None:
        hooked.train()
        optimizer.zero_grad(set_to_none=True)
        losses = [dice_ce(one[None], truth) for one, truth in zip(hooked(images), labels, strict=True)]
        torch.stack(losses).mean().backward()
        optimizer.step()

    return Prepared(step, module, optimizer)


class _EachLayerOnce(GradSampleModule):
    """Opacus walks over children; DynUNet holds each of its blocks twice, once for a decoder that is nested."""

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        yield from dict.fromkeys(super().iterate_submodules(module))


def opacus_hooks(module: nn.Module) -> GradSampleModule:
    """`module` under Opacus' default hooks, which need each layer's output as it was."""
    for layer in module.modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.inplace = False
    return _EachLayerOnce(module)


def update_of(kind: Kind, setting: Setting) -> np.ndarray:
    """What one step changes in the parameters."""
    prepared = prepare(kind, setting)
    before = network.vector_of(prepared.module)
    prepared.step()
    return network.vector_of(prepared.module).astype(np.float64) - before


def equal_to_opacus(setting: Setting, kind: Kind) -> float:
    """How far one noiseless step lies from that of Opacus' hooks, over the length of the latter."""
    wanted = update_of("opacus", setting)
    return float(np.linalg.norm(update_of(kind, setting) - wanted) / np.linalg.norm(wanted))
