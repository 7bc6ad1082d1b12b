"""One grid for all scans: the plan's spacing, LPS axes, the scan's own field of view.

Linear for images, nearest for labels, both onto the same target grid. Nodules are drawn on that grid from their world
coordinates, so that they suffer no resampling. An oblique scan is turned upright; what then lies outside it gets its
lowest value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from hospital_node.cohort import Nodule, UnreadableStudy
from hospital_node.metaimage import MAX_VOXELS

OBLIQUE_TOLERANCE_DEG = 1.0  # below this a scan keeps its own axes: turning it would only blur it
SAME_SPACING = 1e-3  # relative; spacings in headers are rounded to a few digits

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the voxels of a prepared scan lie. Tuples are (x, y, z); `direction` is row by row."""

    size_xyz: tuple[int, int, int]
    spacing_xyz_mm: Triple
    origin_xyz_mm: Triple
    direction: tuple[float, ...]


def target_grid(image: sitk.Image, spacing_xyz_mm: Triple) -> Grid:
    """The grid of `spacing_xyz_mm` that covers `image`. Raises UnreadableStudy where it would be implausibly large."""
    grid = _upright_grid(image, spacing_xyz_mm) if is_oblique(image) else _own_grid(image, spacing_xyz_mm)
    if math.prod(grid.size_xyz) > MAX_VOXELS:
        raise UnreadableStudy("implausible-size", f"the scan would need more than {MAX_VOXELS} voxels at the plan's spacing")
    return grid


def is_oblique(image: sitk.Image) -> bool:
    """Say whether an axis is turned from its LPS axis by more than the tolerance."""
    cosines = np.asarray(image.GetDirection()).reshape(3, 3).diagonal()
    return bool(cosines.min() < math.cos(math.radians(OBLIQUE_TOLERANCE_DEG)))


def resample_image(image: sitk.Image, grid: Grid, threads: int) -> sitk.Image:
    """Linear interpolation onto `grid` as float32; the image itself, in its own type, where it lies there already."""
    if _is_on(image, grid):
        return image
    return _resample(image, grid, sitk.sitkLinear, float(sitk.GetArrayViewFromImage(image).min()), threads)


def resample_label(label: sitk.Image, grid: Grid, threads: int) -> NDArray[np.uint8]:
    """Nearest neighbour onto `grid`, as a new uint8 array (z, y, x); background outside the scan."""
    if not _is_on(label, grid):
        label = _resample(label, grid, sitk.sitkNearestNeighbor, 0.0, threads)
    return np.array(sitk.GetArrayViewFromImage(label), np.uint8)


def smallest_mm(label: sitk.Image) -> float | None:
    """Diameter of the ball that has the volume of the smallest label of an image; None where there is only background."""
    counts = np.bincount(sitk.GetArrayViewFromImage(label).reshape(-1))[1:]
    if not counts.any():
        return None
    volume_mm3 = float(counts[counts > 0].min()) * math.prod(label.GetSpacing())
    return float(np.cbrt(6 * volume_mm3 / math.pi))


def draw_nodules(spheres: Iterable[Nodule], grid: Grid) -> NDArray[np.uint8]:
    """Voxels whose centre lies in a sphere are 1; a sphere marks at least the voxel it is centred in.

    Raises UnreadableStudy where a centre lies outside the grid: then coordinates and volume do not belong together.
    """
    label = np.zeros(grid.size_xyz[::-1], np.uint8)
    axes = np.asarray(grid.direction).reshape(3, 3)
    for sphere in spheres:
        offset_mm = np.array([sphere.x_mm, sphere.y_mm, sphere.z_mm]) - grid.origin_xyz_mm
        centre_xyz = axes.T @ offset_mm / grid.spacing_xyz_mm  # in voxels, fractional
        _draw_ball(label, centre_xyz[::-1], sphere.diameter_mm / 2, np.array(grid.spacing_xyz_mm)[::-1])
    return label


def _draw_ball(
    label: NDArray[np.uint8], centre_zyx: NDArray[np.float64], radius_mm: float, spacing_zyx_mm: NDArray[np.float64]
) -> None:
    nearest = np.rint(centre_zyx).astype(np.int64)
    if (nearest < 0).any() or (nearest >= label.shape).any():
        raise UnreadableStudy("annotation-outside", "a nodule lies outside its scan: do coordinates and scan belong together?")
    label[tuple(nearest)] = 1
    reach = radius_mm / spacing_zyx_mm
    low = np.maximum(np.floor(centre_zyx - reach).astype(np.int64), 0)
    high = np.minimum(np.ceil(centre_zyx + reach).astype(np.int64) + 1, label.shape)
    steps_mm = [
        (np.arange(first, last) - centre) * step
        for first, last, centre, step in zip(low, high, centre_zyx, spacing_zyx_mm, strict=True)
    ]
    squared_mm2 = steps_mm[0][:, None, None] ** 2 + steps_mm[1][:, None] ** 2 + steps_mm[2] ** 2
    label[tuple(slice(first, last) for first, last in zip(low, high, strict=True))][squared_mm2 <= radius_mm**2] = 1


def _own_grid(image: sitk.Image, spacing_xyz_mm: Triple) -> Grid:
    """Keep axes and outer edge of the first voxel; the last edge moves by at most half a target voxel."""
    old = image.GetSpacing()
    if all(abs(a - b) <= SAME_SPACING * b for a, b in zip(old, spacing_xyz_mm, strict=True)):
        return Grid(image.GetSize(), old, image.GetOrigin(), image.GetDirection())
    # rounding a half down keeps the last centre inside the scan
    size = _three(max(1, math.ceil(n * a / b - 0.5)) for n, a, b in zip(image.GetSize(), old, spacing_xyz_mm, strict=True))
    first = [  # centre of the first voxel, in old voxels; of a scan thinner than a target voxel its middle, which is inside
        (n - 1) / 2 if extent == 1 else (b / a - 1) / 2
        for n, extent, a, b in zip(image.GetSize(), size, old, spacing_xyz_mm, strict=True)
    ]
    return Grid(size, spacing_xyz_mm, image.TransformContinuousIndexToPhysicalPoint(first), image.GetDirection())


def _upright_grid(image: sitk.Image, spacing_xyz_mm: Triple) -> Grid:
    """The smallest grid along the LPS axes that holds all of an oblique scan."""
    edges = [(-0.5, extent - 0.5) for extent in image.GetSize()]
    corners = np.array(
        [image.TransformContinuousIndexToPhysicalPoint((x, y, z)) for x in edges[0] for y in edges[1] for z in edges[2]]
    )
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = _three(max(1, math.ceil(extent - 1e-6)) for extent in (high - low) / spacing_xyz_mm)
    x, y, z = (float(value) for value in low + np.array(spacing_xyz_mm) / 2)
    return Grid(size, spacing_xyz_mm, (x, y, z), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def _three(extents: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = extents
    return x, y, z


def _is_on(image: sitk.Image, grid: Grid) -> bool:
    same_place = (image.GetOrigin(), image.GetDirection()) == (grid.origin_xyz_mm, grid.direction)
    return same_place and (image.GetSize(), image.GetSpacing()) == (grid.size_xyz, grid.spacing_xyz_mm)


def _resample(image: sitk.Image, grid: Grid, interpolator: int, outside: float, threads: int) -> sitk.Image:
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.size_xyz)
    resampler.SetOutputSpacing(grid.spacing_xyz_mm)
    resampler.SetOutputOrigin(grid.origin_xyz_mm)
    resampler.SetOutputDirection(grid.direction)
    resampler.SetInterpolator(interpolator)
    resampler.SetDefaultPixelValue(outside)
    resampler.SetNumberOfThreads(threads)
    if interpolator == sitk.sitkLinear:
        resampler.SetOutputPixelType(sitk.sitkFloat32)
    return resampler.Execute(image)
