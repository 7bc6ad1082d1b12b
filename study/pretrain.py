"""The public start of a study: ordinary training on public or synthetic volumes.

Rule: nothing private enters here, so nothing here is charged. Never hand this module a hospital's scan. The vector that comes
out is written by proto.modelfile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from hospital_node import network, patches
from hospital_node.losses import dice_ce
from hospital_node.patches import Case
from proto.layout import Vector
from proto.plan import Network, Preparation, Training

WARM_SHARE = 0.2  # of the steps: learning rate rises, then falls to nothing
WEIGHT_DECAY = 1e-4
SHORTEST_CYCLE = 10  # steps; OneCycleLR divides by zero where its rise is one step long
BALANCE = 0.5  # exponent of the class weights at the first step, falling to 0: without it a short run calls all background
CANDIDATES = 2  # random starts tried: with 4 channels about one in three never learns to call foreground
TRIAL_STEPS = 30  # for each of them; the one with the lowest loss goes on
GRADIENT_NORM = 5.0  # clipped against a rare bad batch; this is no privacy mechanism

Pair = tuple[patches.Image, patches.Label]
Batch = tuple[torch.Tensor, torch.Tensor]


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

    steps: int  # after the trials of CANDIDATES random starts
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

    def train(module: nn.Module, steps: int, balance: Callable[[float], float], *, cycle: bool) -> float:
        rng = np.random.default_rng((schedule.seed, steps))
        pairs = (patches.draw(pool, preparation, batch, rng) for _ in range(steps))
        return _train(module, pairs, steps, schedule.learning_rate, balance, cycle=cycle)

    candidates = [_fresh(plan_network, schedule.seed, number) for number in range(CANDIDATES)]
    losses = [train(module, TRIAL_STEPS, lambda _: BALANCE, cycle=False) for module in candidates]
    best = candidates[int(np.argmin(losses))]
    train(best, schedule.steps, lambda done: BALANCE * (1 - done), cycle=True)
    return network.vector_of(best)


def refine(
    parts: tuple[Network, Preparation, Training],
    base: Vector,
    cases: Sequence[Case],
    schedule: Schedule,
    count: Callable[[int, int], None] = lambda _done, _steps: None,
) -> Vector:
    """Ordinary one-cycle training from `base` on scans that may be used without privacy: the baselines of a study.

    The same optimizer, loss, patches and class weights as `pretrain`, which looks for a good random start first. `count` is
    told (steps done, steps in all) after each step and may raise to end it.
    """
    plan_network, preparation, training = parts
    torch.set_num_threads(schedule.threads)
    module = network.build(plan_network)
    network.load_vector(module, network.layout_of(module), base)
    batch = training.model_copy(update={"patches_per_patient": schedule.batch})
    rng = np.random.default_rng(schedule.seed)

    def batches() -> Iterator[Batch]:
        for done in range(schedule.steps):
            yield patches.draw(_Pool(cases), preparation, batch, rng)
            count(done + 1, schedule.steps)

    _train(module, batches(), schedule.steps, schedule.learning_rate, lambda done: BALANCE * (1 - done), cycle=True)
    return network.vector_of(module)


def held_out_loss(parts: tuple[Network, Preparation, Training], vector: Vector, volumes: Iterable[Pair], seed: int) -> float:
    """Mean loss on volumes that were not trained on; the same patches for every vector. Used to choose among starts."""
    plan_network, preparation, training = parts
    module = network.build(plan_network)
    network.load_vector(module, network.layout_of(module), vector)
    module.eval()
    rng = np.random.default_rng(seed)
    losses = []
    with torch.no_grad():
        for image, label in volumes:
            images, labels = patches.draw(_Pool((_Scan(image, label),)), preparation, training, rng)
            losses.append(float(dice_ce(module(images), labels)))
    return float(np.mean(losses))


def _fresh(plan_network: Network, seed: int, number: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(CANDIDATES * seed + number)
        return network.build(plan_network)


def _train(
    module: nn.Module, batches: Iterable[Batch], steps: int, rate: float, balance: Callable[[float], float], *, cycle: bool
) -> float:
    """Train in place and return the mean loss of the last quarter; `balance` maps the share done to the weights' exponent."""
    optimizer = AdamW(module.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    schedule = (
        OneCycleLR(optimizer, rate, total_steps=max(steps, SHORTEST_CYCLE), pct_start=WARM_SHARE)
        if cycle
        else ConstantLR(optimizer, 1.0)
    )
    losses = []
    for step, (images, labels) in enumerate(batches):
        logits = module(images)
        loss = dice_ce(logits, labels, class_weights(labels, logits.shape[1], balance(step / steps)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-max(1, steps // 4) :]))


def class_weights(labels: torch.Tensor, classes: int, exponent: float) -> torch.Tensor:
    """(voxels / voxels of the class) ** exponent for each class; a class that is absent weighs nothing."""
    counts = torch.bincount(labels.reshape(-1), minlength=classes).float()
    return torch.where(counts > 0, (labels.numel() / counts.clamp(min=1)) ** exponent, torch.zeros_like(counts))
