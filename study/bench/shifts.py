"""What another scanner makes of the same patient: more noise, coarser resolution, other intensities.

Rules: one patient at a time, images only, labels are never touched; strength 0 gives the image back unchanged and strength 1 is
the worst that a study can ask for. Images are float32 in the axes (z, y, x) or (y, x), of about unit scale: amounts follow the
image's own spread, so that z-scored MR, CT windowed to [-1, 1] and digits in [0, 1] are harmed alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from study.bench.task import StudyError

Image: TypeAlias = NDArray[np.float32]

SEED_LABEL: Final = b"hospital-secagg study shift v1\n"
WORST_NOISE: Final = 1.0  # deviation over the image's own: signal and noise of one size
WORST_FACTOR: Final = 3.0  # of the voxel's edge on every axis
WORST_GAMMA: Final = 2.0  # exponent on intensities scaled to [0, 1]
WORST_CONTRAST: Final = 0.5  # share of the spread that is left
WORST_BIAS: Final = 0.4  # amplitude of a multiplicative field from one side to the other, as of an MR coil
RANGE_PERCENT: Final = (0.5, 99.5)  # taken as black and white: single voxels decide nothing


def shift_image(image: Image, by: str, strength: float, rng: np.random.Generator) -> Image:
    """A shifted copy of one image, same shape. `rng` is the patient's own (`rng_of`). Raises StudyError."""
    if by not in SHIFTS:
        raise StudyError(f"partition.by = '{by}' is no shift of an image: choose one of {', '.join(sorted(SHIFTS))}")
    if not 0 <= strength <= 1:
        raise StudyError(f"a shift has a strength from 0 to 1, got {strength:g}: correct partition.strength")
    if strength == 0 or not image.size:
        return image.copy()
    shifted = SHIFTS[by](image.astype(np.float64), strength, rng)
    return np.ascontiguousarray(shifted, np.float32)


def rng_of(seed: int, patient: str, image: int) -> np.random.Generator:
    """Random numbers of one image of one patient: they depend on no other patient and on no order."""
    content = b"".join(len(part).to_bytes(8, "big") + part for part in (str(seed).encode(), patient.encode(), b"%d" % image))
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(SEED_LABEL + content).digest(), "big")))


def _noise(image: NDArray[np.float64], strength: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Independent Gaussian noise."""
    noisy: NDArray[np.float64] = image + strength * WORST_NOISE * image.std() * rng.standard_normal(image.shape)
    return noisy


def _resolution(image: NDArray[np.float64], strength: float, _rng: np.random.Generator) -> NDArray[np.float64]:
    """Every axis averaged down to fewer voxels, then interpolated back to its own number."""
    factor = 1 + (WORST_FACTOR - 1) * strength
    for axis, extent in enumerate(image.shape):
        fewer = max(1, round(extent / factor))
        there_and_back = _interpolation(fewer, extent) @ _averaging(extent, fewer)
        image = np.moveaxis(np.tensordot(there_and_back, image, axes=(1, axis)), 0, axis)
    return image


def _intensity(image: NDArray[np.float64], strength: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gamma and contrast are the scanner's, alike for all its patients; the bias field lies as each patient lay in the coil."""
    low, high = np.percentile(image, RANGE_PERCENT)
    if high <= low:
        return image
    share = np.clip((image - low) / (high - low), 0, 1) ** (WORST_GAMMA**strength)
    share *= _bias_field(image.shape, strength * WORST_BIAS, rng)
    middle = share.mean()
    flatter = middle + (share - middle) * (1 - (1 - WORST_CONTRAST) * strength)
    shifted: NDArray[np.float64] = low + flatter * (high - low)
    return shifted


Shift: TypeAlias = Callable[[NDArray[np.float64], float, np.random.Generator], NDArray[np.float64]]
SHIFTS: Final = MappingProxyType[str, Shift]({"noise": _noise, "resolution": _resolution, "intensity": _intensity})


def _bias_field(shape: tuple[int, ...], amplitude: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A linear ramp in a random direction from 1 - amplitude to 1 + amplitude across the image."""
    heading = rng.standard_normal(len(shape))
    heading /= np.abs(heading).sum()
    ramp = np.ones(shape)
    for axis, (extent, slope) in enumerate(zip(shape, heading, strict=True)):
        along = np.linspace(-1, 1, extent) if extent > 1 else np.zeros(1)
        ramp += amplitude * slope * along.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return ramp


def _averaging(extent: int, fewer: int) -> NDArray[np.float64]:
    """Matrix (fewer, extent): each new voxel is the mean of what it covers, voxels cut by its edges in proportion."""
    edges = np.linspace(0, extent, fewer + 1)
    left, right = np.arange(extent), np.arange(1, extent + 1)
    covered = np.minimum(edges[1:, None], right) - np.maximum(edges[:-1, None], left)
    weights: NDArray[np.float64] = np.clip(covered, 0, None) * (fewer / extent)
    return weights


def _interpolation(fewer: int, extent: int) -> NDArray[np.float64]:
    """Matrix (extent, fewer): linear between the centres of the wide voxels, constant beyond the outermost."""
    position = np.clip((np.arange(extent) + 0.5) * fewer / extent - 0.5, 0, fewer - 1)
    left = np.minimum(position.astype(np.int64), max(fewer - 2, 0))
    right = np.minimum(left + 1, fewer - 1)
    matrix = np.zeros((extent, fewer))
    np.add.at(matrix, (np.arange(extent), left), 1 - (position - left))
    np.add.at(matrix, (np.arange(extent), right), position - left)
    return matrix
