"""Losses of a segmentation, over all patches of one patient together: a patch without a label is no failure on it.

Each takes logits (K, C, z, y, x) and labels (K, z, y, x) of one patient and gives one finite number; class 0 is background and
only enters the cross-entropy. Sources: soft Dice, Milletari 2016 (arXiv 1606.04797); Tversky index, Salehi 2017
(arXiv 1706.05721); its focal power, Abraham 2019 (arXiv 1810.07842).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from proto.training import LossName

DICE_SMOOTH = 1.0  # voxels; keeps a term and its gradient finite where the patches hold none of a label
MISSED_WEIGHT, FALSE_WEIGHT = 0.7, 0.3  # of the Tversky index: a missed voxel costs more than a false one
FOCAL_POWER = 0.75  # 1 / (4/3); below 1, so that labels which are nearly right still pull
LEAST_LOSS = 1e-6  # a power below 1 has no slope at 0

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def loss_of(name: LossName) -> Loss:
    """The loss of a plan."""
    return LOSSES[name]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over all voxels."""
    return functional.cross_entropy(logits, labels)


def dice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One minus the mean soft Dice of the foreground labels."""
    found, truth, both = _voxels(logits, labels)
    return 1 - ((2 * both + DICE_SMOOTH) / (found + truth + DICE_SMOOTH)).mean()


def dice_ce(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy plus `dice`. `weights` (C) of the cross-entropy, none in a hospital."""
    return functional.cross_entropy(logits, labels, weight=weights) + dice(logits, labels)


def focal_tversky(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the foreground labels of (1 - Tversky index) to the focal power: for small structures."""
    found, truth, both = _voxels(logits, labels)
    wrong = MISSED_WEIGHT * (truth - both) + FALSE_WEIGHT * (found - both)
    index = (both + DICE_SMOOTH) / (both + wrong + DICE_SMOOTH)
    return (1 - index).clamp_min(LEAST_LOSS).pow(FOCAL_POWER).mean()


LOSSES: dict[LossName, Loss] = {"ce": cross_entropy, "dice": dice, "dice_ce": dice_ce, "focal_tversky": focal_tversky}


def _voxels(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per foreground label: voxels called so (by probability), voxels that are so, and voxels that are both."""
    probability = logits.softmax(1)[:, 1:]
    wanted = torch.arange(1, logits.shape[1]).view(1, -1, 1, 1, 1)
    truth = (labels.unsqueeze(1) == wanted).to(probability.dtype)
    axes = (0, 2, 3, 4)
    return probability.sum(axes), truth.sum(axes), (probability * truth).sum(axes)
