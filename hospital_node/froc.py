"""How well nodules are found: connected components, FROC and the CPM, by LUNA16's rule. Pure.

A scan's findings are points with a score. LUNA16 (Setio et al. 2017, arXiv 1612.08012, section 3.3) counts a nodule as found if
a finding lies within the nodule's radius of its centre; further findings there count neither way; a finding near no nodule is a
false positive. Sensitivity at a threshold is found nodules over all, read where the false positives are so many a scan on
average; the CPM is the mean of seven such sensitivities. Between two thresholds the curve is a line over the false positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from hospital_node.cohort import Nodule

CPM_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives a scan at which the CPM reads


@dataclass(frozen=True, slots=True)
class Finding:
    """One place that may be a nodule, in world coordinates (LPS, mm)."""

    x_mm: float
    y_mm: float
    z_mm: float
    score: float
    volume_mm3: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadScan:
    """Everything found in one scan, and what there is to find."""

    findings: tuple[Finding, ...]
    nodules: tuple[Nodule, ...]


@dataclass(frozen=True, slots=True)
class Froc:
    """The curve: at each threshold, false positives a scan and the share of nodules found; both rise from (0, ...)."""

    false_positives: tuple[float, ...]  # a scan
    sensitivity: tuple[float, ...]
    thresholds: tuple[float, ...]
    scans: int
    nodules: int

    def at(self, rate: float) -> float:
        """Sensitivity at so many false positives a scan: linear between thresholds, the last value beyond them."""
        return float(np.interp(rate, (0.0, *self.false_positives), (0.0, *self.sensitivity)))

    @property
    def cpm(self) -> float:
        """Mean sensitivity at LUNA16's seven rates."""
        return float(np.mean([self.at(rate) for rate in CPM_RATES]))


def findings(probability: sitk.Image, threshold: float, least_mm3: float = 0.0) -> list[Finding]:
    """Connected parts of what is at least `threshold`, the likeliest first.

    Voxels belong together where faces, edges or corners touch. A part's place is its centre of mass weighted by probability,
    its score the largest probability in it.
    """
    values = sitk.GetArrayViewFromImage(probability)
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(probability >= threshold, True))  # noqa: FBT003  fully connected
    voxel_mm3 = float(np.prod(probability.GetSpacing()))
    found = []
    for part, box in enumerate(_boxes(parts), start=1):
        inside = parts[box] == part
        volume_mm3 = voxel_mm3 * int(inside.sum())
        if volume_mm3 >= least_mm3:
            weights = np.where(inside, values[box], 0.0)
            found.append(_finding(probability, box, weights, volume_mm3))
    return sorted(found, key=lambda one: -one.score)


def froc(scans: Sequence[ReadScan]) -> Froc:
    """The curve over all scans together. ValueError where there is no nodule to find, or no scan."""
    nodules = sum(len(scan.nodules) for scan in scans)
    if nodules == 0:
        raise ValueError("a sensitivity needs at least one nodule to find: name scans whose annotations hold some")
    false, hits = [], []
    for scan in scans:
        best, wrong = _matched(scan)
        hits += best
        false += wrong
    thresholds = sorted({*false, *(score for score in hits if score > -np.inf)}, reverse=True)
    return Froc(
        tuple(sum(score >= limit for score in false) / len(scans) for limit in thresholds),
        tuple(sum(score >= limit for score in hits) / nodules for limit in thresholds),
        tuple(thresholds),
        len(scans),
        nodules,
    )


def _matched(scan: ReadScan) -> tuple[list[float], list[float]]:
    """Best score at each nodule (minus infinity where none lies there), and the scores of findings near no nodule."""
    if not scan.findings:
        return [-np.inf] * len(scan.nodules), []
    places = np.array([(one.x_mm, one.y_mm, one.z_mm) for one in scan.findings])
    scores = np.array([one.score for one in scan.findings])
    near_any = np.zeros(len(scores), np.bool_)
    best = []
    for nodule in scan.nodules:
        away_mm = np.linalg.norm(places - (nodule.x_mm, nodule.y_mm, nodule.z_mm), axis=1)
        near = away_mm <= nodule.diameter_mm / 2
        near_any |= near
        best.append(float(scores[near].max()) if near.any() else -np.inf)
    return best, [float(score) for score in scores[~near_any]]


def _boxes(parts: NDArray[np.uint32]) -> list[tuple[slice, ...]]:
    """Smallest box (z, y, x) around each part, in the order of their numbers."""
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(sitk.GetImageFromArray(parts))
    boxes: list[tuple[slice, ...]] = []
    for part in shapes.GetLabels():
        x, y, z, width, height, depth = shapes.GetBoundingBox(part)
        boxes.append((slice(z, z + depth), slice(y, y + height), slice(x, x + width)))
    return boxes


def _finding(image: sitk.Image, box: tuple[slice, ...], weights: NDArray[np.float64], volume_mm3: float) -> Finding:
    total = float(weights.sum())
    grids = np.indices(weights.shape)
    centre_zyx = [float((grid * weights).sum()) / total + side.start for grid, side in zip(grids, box, strict=True)]
    x, y, z = image.TransformContinuousIndexToPhysicalPoint(centre_zyx[::-1])
    return Finding(x, y, z, float(weights.max()), volume_mm3)
