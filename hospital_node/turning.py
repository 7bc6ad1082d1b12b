"""Patches seen a little turned and a little larger or smaller: image and label through one transform about the patch's centre.

Angles and lengths are those of the world: the spacing of the grid enters, so that a turned ball stays a ball where voxels are
no cubes. All chance comes from the generator that is given, a patient's own.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Matrix = NDArray[np.float64]  # (3, 3), z, y, x: from offsets in the patch to offsets in the scan, in voxels
Triple = tuple[int, int, int]


def drawn_transform(rotation_deg: float, scale: float, spacing_zyx_mm: tuple[float, ...], rng: np.random.Generator) -> Matrix:
    """Turns about all three axes, each even in +- `rotation_deg`, and one factor even in 1 +- `scale`."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(rng.uniform(-rotation_deg, rotation_deg, 3))):
        matrix = matrix @ _turn(axis, float(angle))
    factor = 1 + rng.uniform(-scale, scale)
    spacing = np.array(spacing_zyx_mm)
    return matrix * (spacing / spacing[:, None]) / factor


def sides_needed(matrix: Matrix, patch_zyx: Triple) -> Triple:
    """Sides of the piece of the scan that holds all that a patch will show, with the parity of the patch: one centre."""
    reach = np.abs(matrix) @ ((np.array(patch_zyx) - 1) / 2)
    z, y, x = (side + 2 * max(0, math.ceil(far - (side - 1) / 2)) for far, side in zip(reach, patch_zyx, strict=True))
    return z, y, x


def seen_through(
    matrix: Matrix, image: NDArray[np.float32], label: NDArray[np.uint8], patch_zyx: Triple
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The patch in the middle of a piece, linear for the image and nearest for the label."""
    offsets = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2 for side in patch_zyx], indexing="ij"), axis=-1)
    half = (np.array(image.shape) - 1) / 2
    where = (offsets @ matrix.T) / np.maximum(half, 0.5)  # -1 and 1 are the centres of the first and last voxels
    grid = torch.from_numpy(np.ascontiguousarray(where[None, ..., ::-1], dtype=np.float32))
    turned = _sampled(image, grid, "bilinear")
    return turned, np.rint(_sampled(label.astype(np.float32), grid, "nearest")).astype(np.uint8)


def _sampled(volume: NDArray[np.float32], grid: torch.Tensor, mode: str) -> NDArray[np.float32]:
    source = torch.from_numpy(np.ascontiguousarray(volume))[None, None]
    found = functional.grid_sample(source, grid, mode=mode, padding_mode="border", align_corners=True)
    return found[0, 0].numpy()


def _turn(axis: int, angle: float) -> Matrix:
    one, other = (index for index in range(3) if index != axis)
    matrix = np.eye(3)
    matrix[one, one] = matrix[other, other] = math.cos(angle)
    matrix[one, other], matrix[other, one] = -math.sin(angle), math.sin(angle)
    return matrix
