"""A network over a whole volume by overlapping windows, one slab of slices at a time.

Windows lie as MONAI's do (its `dense_patch_slices`), weighted by its Gaussian, so that the result is that of
`monai.inferers.sliding_window_inference` but for rounding. It differs in what is kept: sums for one window's depth of slices,
not for the volume. A slab leaves as soon as no later window reaches it, so memory follows a slice, whatever the scan's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

import numpy as np
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from numpy.typing import NDArray
from torch.nn import functional

from hospital_node.patches import Image

Axes = tuple[int, ...]
Extent = tuple[int, int, int]  # voxels (z, y, x)


@dataclass(frozen=True, slots=True)
class Windows:
    """How a volume is cut: `patch_zyx` voxels a window, `overlap` of a side, so many windows at once, mirrored copies."""

    patch_zyx: Extent
    overlap: float = 0.25
    at_once: int = 1  # on a processor a lone window is the fastest: what it needs stays in the cache
    flips: bool = False  # mean over all eight mirrorings; eight times the work

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"windows overlap by a share from 0 to below 1, not {self.overlap}")

    def interval(self, extent: Extent) -> Extent:
        """Steps between windows, as MONAI takes them."""
        z, y, x = (
            patch if whole == patch else max(1, int(patch * (1 - self.overlap)))
            for whole, patch in zip(extent, self.patch_zyx, strict=True)
        )
        return z, y, x

    def mirrorings(self) -> Sequence[Axes]:
        """Axes of a batch (K, C, z, y, x) to mirror, one after another."""
        if not self.flips:
            return ((),)
        return tuple(tuple(axis for axis in (2, 3, 4) if chosen[axis - 2]) for chosen in product((False, True), repeat=3))


Forward = Callable[[torch.Tensor], torch.Tensor]  # (K, 1, z, y, x) to logits (K, C, z, y, x)
Progress = Callable[[int, int], None]  # (windows done, in all)


def slabs(forward: Forward, image: Image, windows: Windows, progress: Progress = lambda *_: None) -> Iterator[torch.Tensor]:
    """Logits (C, slices, y, x) of `image` (z, y, x), float32, slab by slab from its first slice to its last."""
    padded, before = _padded(image, windows.patch_zyx)
    depth, height, width = image.shape
    inside = np.s_[:, before[1] : before[1] + height, before[2] : before[2] + width]
    first, last = before[0], before[0] + depth
    for start, slab in _averaged(forward, padded, windows, progress):
        low, high = max(first, start), min(last, start + slab.shape[1])
        if low < high:
            yield slab[:, low - start : high - start][(slice(None), *inside)]


def likeliest(logits: torch.Tensor) -> NDArray[np.uint8]:
    """The class of the largest logit, the first of equals: (C, z, y, x) to (z, y, x), at most 256 classes.

    One comparison of whole grids a class: `argmax` along the slowest axis costs as much as two windows.
    """
    best, label = logits[0].clone(), torch.zeros(logits.shape[1:], dtype=torch.uint8)
    for value in range(1, len(logits)):
        label.masked_fill_(logits[value] > best, value)
        torch.maximum(best, logits[value], out=best)
    return label.numpy()


def _padded(image: Image, patch: Extent) -> tuple[NDArray[np.float32], Extent]:
    """The image with background on both sides where it is smaller than a window, and what was put before it."""
    missing = [max(0, side - extent) for side, extent in zip(patch, image.shape, strict=True)]
    z, y, x = (count // 2 for count in missing)
    whole = np.asarray(image, np.float32)
    if not any(missing):
        return whole, (z, y, x)
    sides = [(before, count - before) for before, count in zip((z, y, x), missing, strict=True)]
    return np.pad(whole, sides, constant_values=float(whole.min())), (z, y, x)


def _averaged(
    forward: Forward, image: NDArray[np.float32], windows: Windows, progress: Progress
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first slice, logits) of slabs that follow each other without a gap, over the padded image."""
    depth, height, width = image.shape
    patch = windows.patch_zyx
    places = dense_patch_slices((depth, height, width), patch, windows.interval((depth, height, width)))
    rows = [(start, list(row)) for start, row in groupby(sorted(places, key=_first), key=_first)]
    weight = compute_importance_map(patch, mode="gaussian")
    shares = torch.zeros(patch[0], height, width)
    sums: torch.Tensor | None = None
    done = 0
    for (start, row), following in zip(rows, [*(start for start, _ in rows[1:]), depth], strict=True):
        for batch in (row[k : k + windows.at_once] for k in range(0, len(row), windows.at_once)):
            logits = _logits(forward, image, batch, windows)
            sums = torch.zeros(logits.shape[1], *shares.shape) if sums is None else sums
            for place, one in zip(batch, logits, strict=True):
                sums[:, :, place[1], place[2]] += one * weight
                shares[:, place[1], place[2]] += weight
            done += len(batch)
            progress(done, len(places))
        assert sums is not None
        ready = following - start
        yield start, sums[:, :ready] / shares[:ready]
        sums, shares = _moved_on(sums, ready), _moved_on(shares, ready)


def _first(place: Sequence[slice]) -> int:
    return int(place[0].start)


def _moved_on(sums: torch.Tensor, slices: int) -> torch.Tensor:
    """The last `slices` of three or four axes gone, zeros behind."""
    axis = sums.dim() - 3
    rest = sums.narrow(axis, slices, sums.shape[axis] - slices)
    return functional.pad(rest, (0, 0, 0, 0, 0, slices))


def _logits(forward: Forward, image: NDArray[np.float32], batch: Sequence[Sequence[slice]], windows: Windows) -> torch.Tensor:
    inputs = torch.from_numpy(np.stack([image[tuple(place)] for place in batch])[:, None])
    total: torch.Tensor | None = None
    mirrorings = windows.mirrorings()
    for axes in mirrorings:
        found = forward(inputs.flip(axes) if axes else inputs)
        found = found.flip(axes) if axes else found
        total = found if total is None else total + found
    assert total is not None
    return total / len(mirrorings)
