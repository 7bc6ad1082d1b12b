"""Prediction of whole volumes by a sliding window, and Dice per label.

Dice of a label is reported for the cases whose truth holds the label. Where the truth holds none there is nothing to find,
and a score of 0 or 1 by convention would only measure the convention; the case is left out for that label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hospital_node.device import device_of
from hospital_node.patches import Case, Image
from hospital_node.sliding import Windows, slabs

OVERLAP = 0.25  # of a window's side; more costs time, less shows seams
WINDOWS_AT_ONCE = 4


def predict(module: nn.Module, image: Image, patch_zyx: tuple[int, int, int], overlap: float = OVERLAP) -> NDArray[np.uint8]:
    """The most likely label of each voxel of `image` (z, y, x)."""
    module.eval()
    labels = np.empty(image.shape, np.uint8)
    first = 0
    with torch.inference_mode():
        for slab in slabs(lambda windows: _forward(module, windows), image, Windows(patch_zyx, overlap, WINDOWS_AT_ONCE)):
            last = first + slab.shape[1]
            labels[first:last] = slab.argmax(0).numpy()
            first = last
    return labels


def dice(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], value: int) -> float | None:
    """2 |P and T| / (|P| + |T|) of one label; None where the truth holds none."""
    wanted = truth == value
    if not wanted.any():
        return None
    found = prediction == value
    return float(2 * np.count_nonzero(found & wanted) / (np.count_nonzero(found) + np.count_nonzero(wanted)))


def dice_per_label(
    module: nn.Module, cases: Sequence[Case], labels: Sequence[str], patch_zyx: tuple[int, int, int], overlap: float = OVERLAP
) -> dict[str, list[float]]:
    """Dice of every label for each case that holds it, in the order of the cases."""
    scores: dict[str, list[float]] = {label: [] for label in labels}
    for case in cases:
        prediction = predict(module, case.image, patch_zyx, overlap)
        for value, label in enumerate(labels, start=1):
            score = dice(prediction, np.asarray(case.label), value)
            if score is not None:
                scores[label].append(score)
    return scores


def _forward(module: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Logits on the processor, wherever the network runs."""
    windows = windows.to(device_of(module))
    # PyTorch sends a single small window to its old im2col convolution, up to 20 times slower than oneDNN on two.
    if len(windows) > 1 or windows.device.type != "cpu":
        return torch.as_tensor(module(windows)).cpu()
    return torch.as_tensor(module(windows.repeat(2, 1, 1, 1, 1))[:1])
