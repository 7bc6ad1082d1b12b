"""Intensities as the network sees them. One scan at a time: no number of another scan enters.

CT values mean the same everywhere (Hounsfield units), so a fixed window of the plan maps them to [-1, 1]. MR values do not:
each scan is scaled by its own mean and deviation, after clipping its extremes, which one bright voxel could otherwise set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5  # clipped tails: implants, vessels and single hot voxels


@dataclass(frozen=True, slots=True)
class Scaling:
    """A value becomes (clip(value, low, high) - centre) / width."""

    low: float
    high: float
    centre: float
    width: float

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale `values` in place and return them."""
        np.clip(values, self.low, self.high, out=values)
        values -= np.float32(self.centre)
        values /= np.float32(self.width)
        return values


def window(low_hu: float, high_hu: float) -> Scaling:
    """Map [low_hu, high_hu] to [-1, 1] and clip the rest."""
    return Scaling(low_hu, high_hu, (low_hu + high_hu) / 2, (high_hu - low_hu) / 2)


def robust_zscore(values: NDArray[np.floating[Any] | np.integer[Any]]) -> Scaling:
    """Mean 0 and deviation 1 of this scan's clipped values. Raises UnreadableStudy for a scan with one single value."""
    low, high = (float(bound) for bound in np.percentile(values, (LOW_PERCENTILE, HIGH_PERCENTILE)))
    if low == high:  # nearly all voxels are equal, as in a mostly empty scan: fall back to the extremes
        low, high = float(values.min()), float(values.max())
    if low == high:
        raise UnreadableStudy("blank", "all voxels have the same value: export the scan again")
    clipped = np.clip(values, low, high)
    centre, width = float(np.mean(clipped, dtype=np.float64)), float(np.std(clipped, dtype=np.float64))
    return Scaling(low, high, centre, width)
