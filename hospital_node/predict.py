"""One scan in, one label volume out, in the geometry of the scan's own file.

The scan is brought to the plan's grid as for training, the network runs over it slab by slab (sliding.py), and what it says
goes back: each label's probability linearly onto the file's grid, where the largest one wins. Where the file has the plan's
grid already, voxels only change places. Outside the grid all is background. A plan's finer grid for small structures needs
their label, so that scans without one are read at the plan's own spacing.

Memory beyond the scan on the plan's grid: a byte a label and voxel of that grid, about six bytes a voxel of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
import torch
from numpy.typing import NDArray
from torch import nn

from hospital_node import economy, narrow, network
from hospital_node.device import PROCESSOR, device_of
from hospital_node.prepare import checked_scaling
from hospital_node.reading import read_stored, same_grid, to_lps
from hospital_node.resample import Grid, resample_image, target_grid
from hospital_node.sliding import Progress, Windows, likeliest, slabs
from proto.modelfile import Model
from proto.plan import Plan

FULL = 255  # probability 1 as a byte
NOTHING = 0  # label of the background


@dataclass(frozen=True, slots=True)
class Segmenter:
    """A released model, ready to run. `module` is in evaluation mode."""

    plan: Plan
    module: nn.Module
    windows: Windows
    threads: int = 1
    digest: str = ""  # of the released model

    @classmethod
    def of(
        cls,
        plan: Plan,
        model: Model,
        windows: Windows | None = None,
        threads: int = 1,
        device: torch.device = PROCESSOR,
    ) -> Segmenter:
        """`windows`: the plan's patches with a quarter of overlap if left out. Raises NetworkError."""
        module = network.build(plan.network).to(device)
        network.load_vector(module, model.layout, model.vector)
        torch.set_num_threads(threads)
        economy.economical(module.eval(), plan.training)
        digest = model.provenance.get("digest", model.digest.hex())
        return cls(plan, module, windows or Windows(plan.preparation.patch_zyx), threads, digest)

    def in_precision(self, precision: str) -> Segmenter:
        """The same network computing in `fp32` or `bf16`; the latter several windows at a time where weights are narrow too."""
        training = self.plan.training.model_copy(update={"precision": precision, "checkpointing": False, "micro_batch": None})
        plan = self.plan.model_copy(update={"training": training})
        if precision == "bf16" and device_of(self.module) == PROCESSOR and narrow.fits(self.module):
            module = network.build(self.plan.network)
            module.load_state_dict(self.module.state_dict())
            windows = replace(self.windows, at_once=max(self.windows.at_once, narrow.AT_ONCE))
            return replace(self, plan=plan, module=narrow.narrowed(module), windows=windows)
        economy.economical(self.module, training)
        return replace(self, plan=plan)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of windows, float32, on the processor wherever the network runs."""
        if narrow.is_narrowed(self.module):
            return narrow.logits(self.module, windows)
        return economy.logits(self.module, windows.to(device_of(self.module)), self.plan.training).cpu()


@dataclass(frozen=True, slots=True)
class Said:
    """What the network says of one scan, on the plan's grid, and where the scan's own voxels lie."""

    grid: Grid
    reference: sitk.Image = field(repr=False)  # empty, with the geometry of the file
    labels: NDArray[np.uint8] = field(repr=False)  # (z, y, x)
    probabilities: NDArray[np.uint8] = field(repr=False)  # (labels, z, y, x), of FULL
    threads: int

    def probability(self, value: int) -> sitk.Image:
        """Of one label, 1 to the number of labels, as 0 to 1 on the plan's grid."""
        return _image_on(self.probabilities[value - 1].astype(np.float32) / FULL, self.grid)

    def on_the_scan(self) -> sitk.Image:
        """Labels (uint8) with the file's size, spacing, origin and axes."""
        on_grid = _image_on(self.labels, self.grid)
        if same_grid(to_lps(self.reference), on_grid):
            return _resampled(on_grid, self.reference, sitk.sitkNearestNeighbor, self.threads)
        return _largest([_image_on(one, self.grid) for one in self.probabilities], self.reference, self.threads)


def ask(segmenter: Segmenter, scan: Path, progress: Progress = lambda *_: None) -> Said:
    """Run the network over the scan in file `scan`. Raises UnreadableStudy."""
    grid, reference, image = _prepared(segmenter, scan)
    with torch.inference_mode():
        found = slabs(segmenter.forward, image, segmenter.windows, progress)
        labels, probabilities = _collected(found, image.shape, len(segmenter.plan.network.labels))
    return Said(grid, reference, labels, probabilities, segmenter.threads)


def segment(segmenter: Segmenter, scan: Path, progress: Progress = lambda *_: None) -> sitk.Image:
    """Labels (uint8) of the scan in file `scan`, with that file's size, spacing, origin and axes. Raises UnreadableStudy."""
    return ask(segmenter, scan, progress).on_the_scan()


def _prepared(segmenter: Segmenter, scan: Path) -> tuple[Grid, sitk.Image, NDArray[np.float32]]:
    """The plan's grid, an empty image with the geometry of the file, and what the network sees (z, y, x)."""
    stored = read_stored(scan)
    reference = sitk.Image(stored.GetSize(), sitk.sitkUInt8)
    reference.CopyInformation(stored)
    upright = to_lps(stored)
    del stored
    preparation = segmenter.plan.preparation
    grid = target_grid(upright, preparation.spacing_xyz_mm)
    scaling = checked_scaling(upright, preparation)
    image = sitk.GetArrayFromImage(resample_image(upright, grid, segmenter.threads)).astype(np.float32, copy=False)
    return grid, reference, scaling.apply(image)


def _collected(
    found: Iterator[torch.Tensor], shape: tuple[int, ...], labels: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Most likely label of each voxel, and each label's probability as a byte: (z, y, x) and (labels, z, y, x)."""
    chosen = np.empty(shape, np.uint8)
    probabilities = np.empty((labels, *shape), np.uint8)
    first = 0
    for logits in found:
        last = first + logits.shape[1]
        chosen[first:last] = likeliest(logits)
        shares = logits.softmax(0)[1:].mul_(FULL).round_()
        probabilities[:, first:last] = shares.to(torch.uint8).numpy()
        first = last
    return chosen, probabilities


def _largest(probabilities: Sequence[sitk.Image], reference: sitk.Image, threads: int) -> sitk.Image:
    """The likeliest label on the grid of `reference`, one label after another; background where none beats it."""
    shape = reference.GetSize()[::-1]
    best, label, total = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), np.zeros(shape, np.uint16)
    for value, one in enumerate(probabilities, start=1):
        shares = sitk.GetArrayFromImage(_resampled(one, reference, sitk.sitkLinear, threads))
        total += shares
        better = shares > best
        best[better] = shares[better]
        label[better] = value
    label[best + total < FULL] = NOTHING  # background's share, FULL - total, is the larger one
    image = sitk.GetImageFromArray(label)
    image.CopyInformation(reference)
    return image


def _image_on(values: NDArray[np.uint8] | NDArray[np.float32], grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(grid.spacing_xyz_mm)
    image.SetOrigin(grid.origin_xyz_mm)
    image.SetDirection(grid.direction)
    return image


def _resampled(image: sitk.Image, reference: sitk.Image, interpolator: int, threads: int) -> sitk.Image:
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(reference)
    resampler.SetInterpolator(interpolator)
    resampler.SetDefaultPixelValue(NOTHING)
    resampler.SetOutputPixelType(sitk.sitkUInt8)
    resampler.SetNumberOfThreads(threads)
    return resampler.Execute(image)
