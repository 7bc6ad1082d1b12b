"""The local optimizer of a round: its kind, its learning rate, and FedProx's pull towards the model it starts from.

Rule: everything here is public or follows from noised gradients, so none of it costs privacy. Each round makes a new
optimizer: moments from a round that was discarded would carry patients into the next one. The pull is added to the noised
mean, outside the clip: it depends on the model alone, and inside the clip it would only take room from the patients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from proto.plan import Plan


def learning_rate(plan: Plan, round_number: int) -> float:
    """Rate of all local steps of one round, 1 to plan.rounds: a public function, the same at every hospital.

    During the warm-up it rises in even steps to the full rate, which the first round after it has. From there "exponential"
    falls by learning_rate_decay a round, "cosine" along half a cosine that would reach zero one round after the last, and
    "constant" stays.
    """
    training = plan.training
    warm = training.warmup_rounds
    if round_number <= warm:
        return training.learning_rate * round_number / (warm + 1)
    after = round_number - 1 - warm  # rounds since the first at the full rate
    match training.schedule:
        case "exponential":
            return training.learning_rate * float(training.learning_rate_decay**after)
        case "cosine":
            return training.learning_rate * (1 + math.cos(math.pi * after / (plan.rounds - warm))) / 2
        case "constant":
            return training.learning_rate


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
