"""Intensities as the network sees them. One scan at a time: no number of another scan enters.

CT values mean the same everywhere (Hounsfield units), so a fixed window of the plan maps them to [-1, 1]. MR values do not:
each scan is scaled by its own mean and deviation, after clipping its extremes, which one bright voxel could otherwise set.
A plan may ask that a scan of low contrast be equalised, and that a CT without air or tissue be refused. Arrays are looked at
slab by slab, so that no copy of a scan is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5  # clipped tails: implants, vessels and single hot voxels
LEVELS = 1024  # of the histogram between low and high
MIDDLE = (0.1, 0.9)  # quantiles whose distance, as a share of high - low, is a scan's contrast
STEEPEST = 3.0  # most that equalisation may stretch a level: more would draw noise as structure
AIR_BELOW_HU, LEAST_AIR = -300.0, 1e-3  # air around the patient, lung or gas; a whole CT always has some
TISSUE_HU, LEAST_TISSUE = (-150.0, 250.0), 0.02  # fat to blood with contrast; shifted by 1,024 these are bone or nothing

Values = NDArray[np.floating[Any] | np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Scaling:
    """A value becomes (curve(clip(value, low, high)) - centre) / width; without a curve it stays as it is before that.

    `curve`: what the LEVELS + 1 evenly spaced values from low to high become.
    """

    low: float
    high: float
    centre: float
    width: float
    curve: NDArray[np.float64] | None = field(default=None, repr=False)

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale `values` in place and return them."""
        np.clip(values, self.low, self.high, out=values)
        if self.curve is not None:
            values[...] = np.interp(values, np.linspace(self.low, self.high, LEVELS + 1), self.curve)
        values -= np.float32(self.centre)
        values /= np.float32(self.width)
        return values


def window(low_hu: float, high_hu: float) -> Scaling:
    """Map [low_hu, high_hu] to [-1, 1] and clip the rest."""
    return Scaling(low_hu, high_hu, (low_hu + high_hu) / 2, (high_hu - low_hu) / 2)


def robust_zscore(values: Values) -> Scaling:
    """Mean 0 and deviation 1 of this scan's clipped values. Raises UnreadableStudy for a scan with one single value."""
    low, high = (float(bound) for bound in np.percentile(values, (LOW_PERCENTILE, HIGH_PERCENTILE)))
    if low == high:  # nearly all voxels are equal, as in a mostly empty scan: fall back to the extremes
        low, high = float(values.min()), float(values.max())
    if low == high:
        raise UnreadableStudy("blank", "all voxels have the same value: export the scan again")
    centre = _mean(values, lambda slab: np.clip(slab, low, high))
    square = _mean(values, lambda slab: (np.clip(slab, low, high) - centre) ** 2)
    return Scaling(low, high, centre, float(np.sqrt(square)))


def contrast_of(counts: NDArray[np.int64]) -> float:
    """Share of the levels that the middle of a scan spans, 0 to 1."""
    shares = np.cumsum(counts) / max(1, counts.sum())
    first, last = np.searchsorted(shares, MIDDLE)
    return float(last - first) / LEVELS


def equalised(scaling: Scaling, values: Values, below: float) -> Scaling:
    """`scaling` with a curve where the contrast of this scan is under `below`, else as it is.

    The curve is the cumulative histogram, no level stretched by more than STEEPEST (Pizer 1987, without tiles).
    """
    counts = histogram(values, scaling.low, scaling.high)
    if contrast_of(counts) >= below:
        return scaling
    limit = STEEPEST * counts.sum() / LEVELS
    kept = np.minimum(counts, limit)
    kept += (counts.sum() - kept.sum()) / LEVELS
    rise = np.concatenate([[0.0], np.cumsum(kept)]) / kept.sum()
    curve = scaling.low + (scaling.high - scaling.low) * rise
    return Scaling(scaling.low, scaling.high, scaling.centre, scaling.width, curve)


def restandardised(scaling: Scaling, values: Values) -> Scaling:
    """The same curve with mean 0 and deviation 1 of what it gives, to the width of a level."""
    if scaling.curve is None:
        return scaling
    counts = histogram(values, scaling.low, scaling.high)
    middles = (scaling.curve[1:] + scaling.curve[:-1]) / 2
    centre = float(np.average(middles, weights=counts))
    width = float(np.sqrt(np.average((middles - centre) ** 2, weights=counts)))
    return Scaling(scaling.low, scaling.high, centre, width or 1.0, scaling.curve)


def histogram(values: Values, low: float, high: float) -> NDArray[np.int64]:
    """Voxels in each of LEVELS even steps from `low` to `high`, those outside in the first and last."""
    counts = np.zeros(LEVELS, np.int64)
    for slab in values:
        level = (np.clip(slab, low, high).astype(np.float64) - low) * (LEVELS / (high - low))
        counts += np.bincount(np.minimum(level.astype(np.int64), LEVELS - 1).reshape(-1), minlength=LEVELS)
    return counts


def looks_like_hounsfield(values: Values) -> bool:
    """Whether a CT has air and tissue where Hounsfield units have them: not raw detector values, not shifted twice."""
    seen = np.ascontiguousarray(values[::2, ::2, ::2])  # an eighth of the voxels says it as well
    air = np.count_nonzero(seen < AIR_BELOW_HU)
    tissue = np.count_nonzero((seen >= TISSUE_HU[0]) & (seen <= TISSUE_HU[1]))
    return bool(air >= LEAST_AIR * seen.size and tissue >= LEAST_TISSUE * seen.size)


def _mean(values: Values, part: Callable[[Values], NDArray[Any]]) -> float:
    """Mean of `part` of each slab, in float64."""
    return sum(float(part(slab).sum(dtype=np.float64)) for slab in values) / values.size
