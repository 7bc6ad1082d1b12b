"""Random smooth fields and small painted shapes: the material of all synthetic volumes. Arrays are (z, y, x)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Triple = tuple[float, float, float]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], cells: Sequence[int]) -> Field:
    """Noise of about unit deviation that varies over 1/cells of each axis: a coarse random grid, interpolated."""
    field = rng.standard_normal([cell + 1 for cell in cells]).astype(np.float32)
    for axis, (extent, cell) in enumerate(zip(shape, cells, strict=True)):
        field = np.moveaxis(np.tensordot(_interpolation(extent, cell), field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def blur(field: Field, deviations_zyx: Sequence[float]) -> Field:
    """Gaussian blur with deviations in voxels, cut at three deviations; edges are repeated."""
    for axis, deviation in enumerate(deviations_zyx):
        if deviation > 0.2:  # narrower than this the kernel is one voxel
            field = _blur_axis(field, axis, deviation)
    return field


def paint_ball(field: Field, centre_zyx: NDArray[np.float64], radius_mm: float, spacing_zyx_mm: Triple, value: float) -> None:
    """Set a ball to `value`, blended over one voxel at its rim, where it is brighter than what is there. Centre in voxels."""
    place, distance_mm = ball_box(field.shape, centre_zyx, radius_mm + max(spacing_zyx_mm), spacing_zyx_mm)
    box = field[place]
    share = np.clip((radius_mm - distance_mm) / min(spacing_zyx_mm) + 0.5, 0, 1)
    np.maximum(box, box + share * (value - box), out=box)


def ball_box(
    shape: Sequence[int], centre_zyx: NDArray[np.float64], radius_mm: float, spacing_zyx_mm: Triple
) -> tuple[tuple[slice, ...], Field]:
    """The part of a volume that a ball touches, and the distances in mm of its voxels from the centre."""
    place, squares = [], []
    for extent, centre, step in zip(shape, centre_zyx, spacing_zyx_mm, strict=True):
        first = min(max(int(np.floor(centre - radius_mm / step)), 0), extent)
        last = max(min(int(np.ceil(centre + radius_mm / step)) + 1, extent), first)
        place.append(slice(first, last))
        squares.append(((np.arange(first, last, dtype=np.float32) - np.float32(centre)) * np.float32(step)) ** 2)
    return tuple(place), np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])


def wandering_path(
    rng: np.random.Generator, start: NDArray[np.float64], heading: NDArray[np.float64], steps: int, wander: float
) -> NDArray[np.float64]:
    """Points (steps, 3) of a path of unit steps whose direction drifts by `wander` a step."""
    drifts = np.cumsum(rng.normal(0, wander, (steps, 3)), axis=0)
    directions = heading + drifts
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return start + np.cumsum(directions, axis=0)


def _interpolation(extent: int, cells: int) -> Field:
    """Matrix (extent, cells + 1) of smooth-step interpolation between grid points."""
    position = np.linspace(0, cells, extent, dtype=np.float32)
    left = np.minimum(position.astype(np.int64), cells - 1)
    share = position - left
    share = share * share * (3 - 2 * share)
    matrix = np.zeros((extent, cells + 1), np.float32)
    matrix[np.arange(extent), left] = 1 - share
    matrix[np.arange(extent), left + 1] = share
    return matrix


def _blur_axis(field: Field, axis: int, deviation: float) -> Field:
    reach = int(np.ceil(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2).astype(np.float32)
    weights /= weights.sum()
    extent = field.shape[axis]
    matrix = np.zeros((extent, extent), np.float32)
    for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
        np.add.at(matrix, (np.arange(extent), np.clip(np.arange(extent) + offset, 0, extent - 1)), weight)
    return np.ascontiguousarray(np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis))
