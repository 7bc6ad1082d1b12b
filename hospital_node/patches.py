"""A few augmented patches of one patient: what one privacy unit shows the network in one step.

Rule: `draw` looks at one patient and at that patient's own generator, at nothing else. No statistic of a cohort, no
shared seed, no position in a list of patients enters, so a patient's contribution stays the same to the bit when another
patient comes or goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hospital_node.turning import drawn_transform, seen_through, sides_needed
from proto.plan import Preparation, Training

Image = NDArray[np.float32]
Label = NDArray[np.uint8]

# Augmentation strengths on images of about unit scale (z-scores, or windowed CT in [-1, 1]).
SCALE_SPREAD = 0.1  # factor on the intensities, uniform in 1 +- this
SHIFT_SPREAD = 0.1  # added to the intensities, uniform in +- this
NOISE_MAX = 0.1  # standard deviation of added noise, uniform in [0, this]


class Case(Protocol):
    """One prepared scan: image and label on the same (z, y, x) grid."""

    @property
    def image(self) -> Image:
        """Prepared intensities, float32."""

    @property
    def label(self) -> Label:
        """0 background, then the plan's labels 1, 2, ..."""


class Patient(Protocol):
    """All prepared scans of one person: the privacy unit."""

    @property
    def key(self) -> str:
        """Name of the patient inside this hospital; never leaves the process."""

    @property
    def cases(self) -> Sequence[Case]:
        """One or more scans."""


def draw(
    patient: Patient, preparation: Preparation, training: Training, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (K, 1, z, y, x) float32 and labels (K, z, y, x) int64 of K = training.patches_per_patient patches."""
    pairs = [_patch(patient, preparation, training, rng) for _ in range(training.patches_per_patient)]
    images = np.stack([image for image, _ in pairs])[:, None]
    labels = np.stack([label for _, label in pairs]).astype(np.int64)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _patch(patient: Patient, preparation: Preparation, training: Training, rng: np.random.Generator) -> tuple[Image, Label]:
    case = patient.cases[int(rng.integers(len(patient.cases)))]
    start = _corner(case, preparation.patch_zyx, training, rng)
    if training.augment_rotation_deg or training.augment_scale:
        image, label = _turned(case, start, preparation, training, rng)
    else:
        patch = preparation.patch_zyx
        image, label = cut(case.image, start, patch), cut(case.label, start, patch, outside=0)
    return augmented(image, label, rng) if training.augment else (image, label)


def _turned(
    case: Case, start: tuple[int, int, int], preparation: Preparation, training: Training, rng: np.random.Generator
) -> tuple[Image, Label]:
    """The patch at `start`, turned and scaled about its centre; what it shows comes from the scan, not from a border."""
    patch, spacing = preparation.patch_zyx, preparation.spacing_xyz_mm[::-1]
    matrix = drawn_transform(training.augment_rotation_deg, training.augment_scale, spacing, rng)
    sides = sides_needed(matrix, patch)
    z, y, x = (first - (wide - side) // 2 for first, wide, side in zip(start, sides, patch, strict=True))
    lowest = float(cut(case.image, start, patch).min())  # of the whole scan it would read all of it for every patch
    image, label = cut(case.image, (z, y, x), sides, outside=lowest), cut(case.label, (z, y, x), sides, outside=0)
    return seen_through(matrix, image, label, patch)


def _corner(case: Case, patch_zyx: tuple[int, int, int], training: Training, rng: np.random.Generator) -> tuple[int, int, int]:
    """First voxel of the patch: around a labelled voxel with probability `foreground_share`, else anywhere."""
    wanted = rng.random() < training.foreground_share
    labelled = np.flatnonzero(case.label) if wanted else np.empty(0, dtype=np.intp)
    if not len(labelled):
        z, y, x = (_anywhere(size, side, rng) for size, side in zip(case.image.shape, patch_zyx, strict=True))
        return z, y, x
    if training.balance_labels:
        labelled = _of_one_label(case.label, labelled, rng)
    voxel = np.unravel_index(labelled[int(rng.integers(len(labelled)))], case.label.shape)
    z, y, x = (_around(int(at), size, side, rng) for at, size, side in zip(voxel, case.image.shape, patch_zyx, strict=True))
    return z, y, x


def _of_one_label(label: Label, labelled: NDArray, rng: np.random.Generator) -> NDArray:
    """The voxels of one of the labels that the scan has, each as likely: a small structure is seen as often as a large one."""
    values = label.reshape(-1)[labelled]
    present = np.unique(values)
    return labelled[values == present[int(rng.integers(len(present)))]]


def _anywhere(size: int, side: int, rng: np.random.Generator) -> int:
    """Uniform over the patches inside the volume; a volume smaller than the patch is placed anywhere within it."""
    low, high = sorted((0, size - side))
    return int(rng.integers(low, high + 1))


def _around(at: int, size: int, side: int, rng: np.random.Generator) -> int:
    """A patch that holds voxel `at` in its middle half, moved back inside where the volume is large enough."""
    start = at - side // 4 - int(rng.integers(side - side // 2))
    low, high = sorted((0, size - side))
    return min(max(start, low), high)


def cut(
    volume: NDArray, start_zyx: tuple[int, int, int], patch_zyx: tuple[int, int, int], outside: float | None = None
) -> NDArray:
    """A copy of the patch at `start_zyx`; where it reaches out of the volume stands `outside`, by default the lowest value."""
    spans = []
    for start, side, size in zip(start_zyx, patch_zyx, volume.shape, strict=True):
        first = min(max(start, 0), size)
        spans.append((first, max(min(start + side, size), first), start))
    inside = volume[tuple(slice(first, last) for first, last, _ in spans)]
    if inside.shape == patch_zyx:
        return np.array(inside)
    out = np.full(patch_zyx, volume.min() if outside is None else outside, dtype=volume.dtype)
    if inside.size:
        out[tuple(slice(first - start, last - start) for first, last, start in spans)] = inside
    return out


def augmented(image: Image, label: Label, rng: np.random.Generator) -> tuple[Image, Label]:
    """Half the time mirrored left to right (the one mirror image that anatomy has), then other intensities and noise."""
    axes = (2,) if rng.random() < 0.5 else ()
    scale = 1 + rng.uniform(-SCALE_SPREAD, SCALE_SPREAD)
    shift = rng.uniform(-SHIFT_SPREAD, SHIFT_SPREAD)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, NOISE_MAX))
    changed = np.flip(image, axes) * np.float32(scale) + np.float32(shift) + noise
    return np.ascontiguousarray(changed, dtype=np.float32), np.ascontiguousarray(np.flip(label, axes))
