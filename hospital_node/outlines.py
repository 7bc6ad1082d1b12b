"""Pictures of slices with outlines of labels, for people to look at: the prediction, and the truth where there is one.

Rule: a picture shows voxels of one slice across the body, stretched so that a millimetre is a millimetre. Colours are of
labels, lines of the truth are white; nothing is smoothed. Pictures are of patients: they are written where the labels are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

COLOURS = ((230, 80, 60), (60, 160, 240), (70, 190, 90), (240, 190, 50), (190, 100, 220), (80, 210, 210))  # told apart by eye
WHITE = (255, 255, 255)
SIDE = 512  # pixels of the longer side
GREY = (1.0, 99.0)  # percentiles of the slice that become black and white

Picture = NDArray[np.uint8]  # (y, x, 3)


def picture(scan: sitk.Image, prediction: sitk.Image, truth: sitk.Image | None = None) -> Picture:
    """The slice with most labelled voxels of truth and prediction together. All images on one grid."""
    found = sitk.GetArrayViewFromImage(prediction)
    wanted = None if truth is None else sitk.GetArrayViewFromImage(truth)
    marked = found > 0 if wanted is None else (found > 0) | (wanted > 0)
    z = int(marked.sum(axis=(1, 2)).argmax()) if marked.any() else len(found) // 2
    width_mm, height_mm = scan.GetSpacing()[:2]
    drawn = _grey(sitk.GetArrayViewFromImage(scan)[z], (height_mm, width_mm))
    if wanted is not None:
        for value in _values(wanted[z]):
            drawn[_edge(_enlarged(wanted[z] == value, drawn.shape[:2]))] = WHITE
    for value in _values(found[z]):
        drawn[_edge(_enlarged(found[z] == value, drawn.shape[:2]))] = COLOURS[(value - 1) % len(COLOURS)]
    return drawn


def write_picture(pixels: Picture, path: Path) -> None:
    """As PNG."""
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(path))


def _values(labels: NDArray[np.uint8]) -> list[int]:
    return [int(value) for value in np.unique(labels) if value]


def _grey(values: NDArray[np.float32], spacing_mm: tuple[float, float]) -> Picture:
    low, high = np.percentile(values, GREY)
    level = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1) * 255
    extent_mm = [count * step for count, step in zip(values.shape, spacing_mm, strict=True)]
    shape = tuple(max(1, round(SIDE * one / max(extent_mm))) for one in extent_mm)
    return np.repeat(_enlarged(level.astype(np.uint8), shape)[..., None], 3, axis=2)


def _enlarged(values: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Nearest voxel of every pixel, so that outlines follow voxels."""
    places = [(np.arange(new) * old) // new for old, new in zip(values.shape, shape, strict=True)]
    return values[np.ix_(*places)]


def _edge(mask: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Pixels of `mask` beside one outside of it; the picture's border counts as outside."""
    inside = np.pad(mask.astype(np.bool_), 1)
    whole = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    edge: NDArray[np.bool_] = inside[1:-1, 1:-1] & ~whole
    return edge
