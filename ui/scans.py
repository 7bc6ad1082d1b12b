"""Planes of a scan as pictures: true spacing, windows, outlines of truth and prediction, Dice by slice. Plain numpy, no screen.

Radiological convention: the patient's right is at the left of axial and coronal pictures, the front is at the left of sagittal
ones, the head is up. Labels are never interpolated: a pixel of an outline belongs to a voxel of that label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hospital_node.scans import Scan, ScanEntry, ScanIndex
from ui.figures import Figure
from ui.palette import GREEN, VERMILLION
from ui.words import listing

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: dict[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}  # the axis of (z, y, x) that a slice fixes
EDGES: dict[Plane, tuple[str, str]] = {  # what is at the left and at the top of a picture
    "axial": ("right", "front"),
    "coronal": ("right", "head"),
    "sagittal": ("front", "head"),
}
SIDE_PX = 480  # of a picture
LINE_PX = 3
DASH_PX = 7
# centre and width in HU; lung and soft tissue as radiologists set them, bone wide
WINDOWS_HU: dict[str, tuple[float, float]] = {"lung": (-600, 1500), "soft tissue": (40, 400), "bone": (400, 1800)}
RELATIVE: dict[str, tuple[float, float]] = {
    "whole range": (0, 100),
    "middle 98 %": (1, 99),
    "middle 90 %": (5, 95),
}  # percentiles
OWN_WINDOW = "study's own"

Grey = NDArray[np.float32]
Labels = NDArray[np.uint8]
Picture = NDArray[np.uint8]  # (height, width, 3)


@dataclass(frozen=True, slots=True)
class Cut:
    """One slice, ready to draw: rows downwards, columns to the right."""

    image: Grey
    truth: Labels
    prediction: Labels
    row_mm: float
    column_mm: float
    longest_mm: float  # of the whole scan: what the side of a picture stands for, in all planes alike


@dataclass(frozen=True, slots=True)
class SliceScore:
    """Dice of one slice over the labels on it (None where truth and prediction hold none), and voxels labelled wrongly."""

    index: int
    dice: float | None
    wrong: int


def windows(index: ScanIndex) -> tuple[str, ...]:
    """Names of the windows that fit this set, the study's own first where images are Hounsfield units."""
    return (OWN_WINDOW, *WINDOWS_HU) if index.window_hu else tuple(RELATIVE)


def limits(name: str, index: ScanIndex, image: Grey) -> tuple[float, float]:
    """Values drawn black and white."""
    if index.window_hu:
        if name in WINDOWS_HU:
            centre, width = WINDOWS_HU[name]
            return centre - width / 2, centre + width / 2
        return index.window_hu
    low, high = np.percentile(image, RELATIVE.get(name, (0, 100)))
    return float(low), float(max(high, low + 1e-6))


def cut(scan: Scan, plane: Plane, index: int, spacing_xyz_mm: tuple[float, float, float]) -> Cut:
    """Slice `index` of a plane, the head up. Raises IndexError outside the scan."""
    x_mm, y_mm, z_mm = spacing_xyz_mm
    axis = PLANES[plane]
    if not 0 <= index < scan.truth.shape[axis]:
        raise IndexError(f"the scan has {scan.truth.shape[axis]} {plane} slices, not {index + 1}")
    longest_mm = max(count * mm for count, mm in zip(scan.truth.shape, (z_mm, y_mm, x_mm), strict=True))
    image, truth, prediction = (np.take(one, index, axis=axis) for one in (scan.image, scan.truth, scan.prediction))
    if plane == "axial":
        return Cut(image, truth, prediction, y_mm, x_mm, longest_mm)
    return Cut(image[::-1], truth[::-1], prediction[::-1], z_mm, x_mm if plane == "coronal" else y_mm, longest_mm)


def draw(shown: Cut, low: float, high: float, *, errors: bool = False, side_px: int = SIDE_PX) -> Picture:
    """Square picture in true proportions; truth as a solid green outline, prediction as a dashed vermillion one.

    `errors`: instead of outlines, voxels on which they differ are filled: missed or mistaken ones green, added ones vermillion.
    """
    rows, columns = _places(shown, side_px)
    grey = np.clip((shown.image - low) / (high - low), 0, 1)[np.ix_(rows, columns)]
    picture = np.repeat((grey * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    truth, prediction = shown.truth[np.ix_(rows, columns)], shown.prediction[np.ix_(rows, columns)]
    if errors:
        picture[(truth != prediction) & (truth > 0)] = _rgb(GREEN)
        picture[(truth != prediction) & (truth == 0)] = _rgb(VERMILLION)
        return _centred(picture, side_px)
    picture[outline(truth)] = _rgb(GREEN)
    down, across = np.indices(prediction.shape)
    picture[outline(prediction) & ((down + across) // DASH_PX % 2 == 0)] = _rgb(VERMILLION)
    return _centred(picture, side_px)


def _centred(picture: Picture, side_px: int) -> Picture:
    square = np.zeros((side_px, side_px, 3), dtype=np.uint8)
    top, left = ((side_px - size) // 2 for size in picture.shape[:2])
    square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return square


def _places(shown: Cut, side_px: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each pixel the voxel under its centre; one millimetre is equally long both ways."""
    height_mm, width_mm = shown.truth.shape[0] * shown.row_mm, shown.truth.shape[1] * shown.column_mm
    per_mm = side_px / shown.longest_mm
    sizes = (max(1, round(height_mm * per_mm)), max(1, round(width_mm * per_mm)))
    rows, columns = (
        np.minimum(((np.arange(size) + 0.5) * count / size).astype(np.intp), count - 1)
        for size, count in zip(sizes, shown.truth.shape, strict=True)
    )
    return rows, columns


def outline(labels: Labels) -> NDArray[np.bool_]:
    """Pixels of a label within LINE_PX of another label, up, down, left or right."""
    edge = np.zeros(labels.shape, dtype=bool)
    for shift in range(1, LINE_PX + 1):
        for axis in (0, 1):
            apart = np.take(labels, range(shift, labels.shape[axis]), axis) != np.take(
                labels, range(labels.shape[axis] - shift), axis
            )
            low = [slice(None), slice(None)]
            high = [slice(None), slice(None)]
            low[axis], high[axis] = slice(0, labels.shape[axis] - shift), slice(shift, None)
            edge[tuple(low)] |= apart
            edge[tuple(high)] |= apart
    return edge & (labels > 0)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return red, green, blue


def by_slice(scan: Scan, plane: Plane) -> tuple[SliceScore, ...]:
    """Every slice of a plane: Dice over the labels that truth or prediction hold there."""
    truth, prediction = (np.moveaxis(one, PLANES[plane], 0) for one in (scan.truth, scan.prediction))
    flat = (1, 2)
    labels = range(1, int(max(truth.max(initial=0), prediction.max(initial=0))) + 1)
    sums, counts = np.zeros(len(truth)), np.zeros(len(truth))
    for label in labels:
        both = ((truth == label) & (prediction == label)).sum(axis=flat)
        sizes = (truth == label).sum(axis=flat) + (prediction == label).sum(axis=flat)
        sums += np.divide(2 * both, sizes, out=np.zeros(len(truth)), where=sizes > 0)
        counts += sizes > 0
    wrong = (truth != prediction).sum(axis=flat)
    return tuple(
        SliceScore(index, float(sums[index] / counts[index]) if counts[index] else None, int(wrong[index]))
        for index in range(len(truth))
    )


def worst(scores: Sequence[SliceScore]) -> int:
    """The slice with most voxels labelled wrongly; the middle one where none is."""
    most = max(scores, key=lambda score: score.wrong)
    return most.index if most.wrong else len(scores) // 2


def strip_sentence(scores: Sequence[SliceScore], plane: Plane) -> str:
    """What the strip of slices shows."""
    known = [score.dice for score in scores if score.dice is not None]
    if not known:
        return f"Neither truth nor prediction holds anything on any of the {len(scores)} {plane} slices."
    bad = scores[worst(scores)]
    lowest = f"Dice by {plane} slice lies between {min(known):.2f} and {max(known):.2f} on {len(known)} of {len(scores)} slices"
    if not bad.wrong:
        return f"{lowest}; no voxel is wrong."
    dice = "–" if bad.dice is None else f"{bad.dice:.2f}"
    return f"{lowest}; most voxels are wrong on slice {bad.index + 1} ({bad.wrong}, Dice {dice})."


def figures(index: ScanIndex, entry: ScanEntry) -> tuple[Figure, ...]:
    """The scan, all scans, which model, how large a voxel is."""
    means = [one.mean_dice for one in index.scans if one.mean_dice is not None]
    explained = "Overlap of prediction and truth, 1 is perfect; mean over the labels that the truth of a scan holds."
    own = "none" if entry.mean_dice is None else f"{entry.mean_dice:.2f}"
    mean = f"{math.fsum(means) / len(means):.2f}" if means else "none"
    grid = " × ".join(f"{value:g}" for value in index.spacing_xyz_mm)
    model = "a model" if index.round is None else f"round {index.round}"
    return (
        Figure("Dice of this scan", own, "mean over its labels", explained),
        Figure("Dice of all scans", mean, f"mean of {len(means)}", explained),
        Figure("Model", model, f"digest {index.model[:12]}", "Which model drew the predictions."),
        Figure(
            "Voxel", f"{grid} mm", "as the study prepares them", "The grid of the study's plan; pictures keep its proportions."
        ),
    )


def drawn_words(index: ScanIndex, low: float, high: float, *, errors: bool) -> str:
    """What the colours are, and which values are black and white."""
    drawn = "Truth: solid green. Prediction: dashed vermillion."
    colours = "Missed or mistaken: green. Added: vermillion." if errors else drawn
    ends = f"Drawn from {low:.4g} (black) to {high:.4g} (white)"
    if index.window_hu is None:
        return f"{colours} {ends} in the scan's own scale."
    kept = " to ".join(f"{value:g}" for value in index.window_hu)
    return f"{colours} {ends} Hounsfield units. The study keeps {kept}; beyond that all is equal."


def rows(index: ScanIndex) -> list[dict[str, object]]:
    """One row a scan, the worst first."""
    ordered = sorted(index.scans, key=lambda one: 2.0 if one.mean_dice is None else one.mean_dice)
    return [
        {
            "scan": one.number,
            "mean Dice": "–" if one.mean_dice is None else f"{one.mean_dice:.3f}",
            **{label: "–" if (value := one.dice.get(label)) is None else f"{value:.3f}" for label in index.labels},
            "slices": one.shape_zyx[0],
        }
        for one in ordered
    ]


def scans_sentence(index: ScanIndex) -> str:
    """How the set stands, and which scan to look at first."""
    known = [one for one in index.scans if one.mean_dice is not None]
    if not known:
        return f"{len(index.scans)} scans; the truth of none holds a label."
    low = min(known, key=lambda one: one.mean_dice or 0)
    best = max(known, key=lambda one: one.mean_dice or 0)
    ends = listing([f"{low.mean_dice:.2f} (scan {low.number})", f"{best.mean_dice:.2f} (scan {best.number})"])
    return f"Mean Dice of {len(known)} scans lies between {ends}."
