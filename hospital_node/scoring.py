"""How well a prediction fits the truth, label by label: Dice, and distances between the two surfaces in millimetres.

Distances are MONAI's: the mean over both surfaces of the way to the other one, and its 95th percentile (Taha and Hanbury 2015).
A label that the truth lacks is not scored, as everywhere (inference.py); one that the prediction lacks has Dice 0 and no
distance.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray

from hospital_node.inference import dice

PERCENTILE = 95.0


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of one scan. Distances are None where the prediction holds nothing of it."""

    label: str
    dice: float
    surface_mm: float | None  # mean, both ways
    surface95_mm: float | None  # 95th percentile, the larger of both ways
    truth_ml: float
    predicted_ml: float


def score(prediction: sitk.Image, truth: sitk.Image, labels: Sequence[str]) -> list[LabelScore]:
    """Every label that the truth holds. Both images on one grid."""
    spacing_zyx_mm = prediction.GetSpacing()[::-1]
    found, wanted = sitk.GetArrayViewFromImage(prediction), sitk.GetArrayViewFromImage(truth)
    return [
        _scored(label, found == value, wanted == value, spacing_zyx_mm)
        for value, label in enumerate(labels, start=1)
        if (wanted == value).any()
    ]


def _scored(label: str, found: NDArray[np.bool_], wanted: NDArray[np.bool_], spacing_zyx_mm: Sequence[float]) -> LabelScore:
    overlap = dice(found.view(np.uint8), wanted.view(np.uint8), 1)
    assert overlap is not None
    mean = farthest = None
    if found.any():
        box = _box(found | wanted)
        pair = [torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (found, wanted)]
        spacing = tuple(spacing_zyx_mm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 calls its own deprecated argument
            mean = float(compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=spacing))
            farthest = float(compute_hausdorff_distance(*pair, include_background=True, percentile=PERCENTILE, spacing=spacing))
    voxel_ml = float(np.prod(spacing_zyx_mm)) / 1000
    return LabelScore(label, overlap, mean, farthest, voxel_ml * int(wanted.sum()), voxel_ml * int(found.sum()))


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Around all that is set, with one voxel of margin so that every surface has an outside."""
    sides = []
    for axis in range(mask.ndim):
        places = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        sides.append(slice(max(0, int(places[0]) - 1), int(places[-1]) + 2))
    return tuple(sides)


def table(rows: Sequence[tuple[str, LabelScore]]) -> str:
    """All scores as CSV, the worst first; the first column names the scan."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scan", "label", "dice", "mean_surface_mm", "surface95_mm", "truth_ml", "predicted_ml"])
    for scan, one in sorted(rows, key=lambda row: (row[1].dice, row[0], row[1].label)):
        distances = ("" if value is None else f"{value:.3f}" for value in (one.surface_mm, one.surface95_mm))
        writer.writerow([scan, one.label, f"{one.dice:.4f}", *distances, f"{one.truth_ml:.3f}", f"{one.predicted_ml:.3f}"])
    return text.getvalue()
