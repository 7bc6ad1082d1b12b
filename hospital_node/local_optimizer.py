"""The local optimizer of a round: its kind, its learning rate, FedProx's pull and SCAFFOLD's drift.

Rule: everything here is public or follows from noised gradients, so none of it costs privacy. Each round makes a new
optimizer: moments from a round that was discarded would carry patients into the next one. The pull is added to the noised
mean, outside the clip: it depends on the model alone, and inside the clip it would only take room from the patients. The drift
c - c_i is added in the same place: it follows from noised iterates of rounds that were charged (TRAINING.md, SCAFFOLD).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from proto.layout import Vector
from proto.plan import Plan


def learning_rate(plan: Plan, round_number: int) -> float:
    """Rate of all local steps of one round: `Training.rate`."""
    return plan.training.rate(round_number, plan.rounds)


def local_optimizer(parameters: Iterable[nn.Parameter], plan: Plan, round_number: int) -> Optimizer:
    """A fresh optimizer of `parameters`, which hold the model that the round begins with."""
    parameters, training, rate = list(parameters), plan.training, learning_rate(plan, round_number)
    optimizer: Optimizer
    match training.optimizer:
        case "adam":
            optimizer = Adam(parameters, lr=rate)
        case "adamw":
            optimizer = AdamW(parameters, lr=rate, weight_decay=training.weight_decay)
        case "sgd":
            optimizer = SGD(parameters, lr=rate, momentum=training.momentum, nesterov=training.nesterov)
    if training.proximal:
        pull_back(optimizer, training.proximal)
    return optimizer


def pull_back(optimizer: Optimizer, strength: float) -> None:
    """Add strength * (w - w as it is now) to every gradient just before each step.

    The gradient of (strength / 2) ||w - w_base||^2 (Li et al. 2020, FedProx, arXiv 1812.06127, equation 2).
    """
    pairs = [(p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]

    def add(*_: object) -> None:
        with torch.no_grad():
            for p, base in pairs:
                if p.grad is not None:
                    p.grad.add_(p - base, alpha=strength)

    optimizer.register_step_pre_hook(add)


def push(optimizer: Optimizer, trained: Sequence[nn.Parameter], drift: Vector) -> None:
    """Add `drift`, in the order of an update, to every noised mean just before each step (proto/scaffold.py)."""
    sizes = [one.numel() for one in trained]
    parts: Any = torch.split(torch.from_numpy(np.asarray(drift, dtype=np.float32)), sizes)
    pairs = [(one, part.view_as(one).to(one.device)) for one, part in zip(trained, parts, strict=True)]

    def add(*_: object) -> None:
        with torch.no_grad():
            for p, part in pairs:
                if p.grad is not None:
                    p.grad.add_(part)

    optimizer.register_step_pre_hook(add)
