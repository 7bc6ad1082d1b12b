"""From files to tensors, one patient at a time; nothing here looks at two scans together.

Reads (reading.py), chooses the grid and resamples (resample.py), scales intensities (intensity.py) and keeps the result in a
checksummed cache (prepared_cache.py). A study that cannot be used is skipped and counted by code, never named. Several scans
are prepared at once; each needs at most three times its own voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from hospital_node.cohort import Case, Cohort, LabelImage, SkipCount, UnreadableStudy
from hospital_node.intensity import Scaling, equalised, looks_like_hounsfield, restandardised, robust_zscore, window
from hospital_node.parallel import each
from hospital_node.prepared import PreparedCase, PreparedCohort, PreparedPatient
from hospital_node.prepared_cache import PreparedCache
from hospital_node.reading import read_label, read_oriented
from hospital_node.resample import Grid, draw_nodules, resample_image, resample_label, smallest_mm, target_grid
from proto.plan import Preparation

__all__ = ["PreparedCase", "PreparedCohort", "PreparedPatient", "TooManySkipped", "load_case", "load_scan", "prepare"]

Progress = Callable[[int, int], None]  # (studies done, studies in all)


class TooManySkipped(RuntimeError):
    """More studies were unreadable than the plan allows; the node declines with `code`. `skipped` counts them by reason."""

    code = "too-few-patients"

    def __init__(self, skipped: Mapping[str, int], sentence: str) -> None:
        super().__init__(sentence)
        self.skipped = dict(skipped)


@dataclass(frozen=True, slots=True)
class LoadedScan:
    """One scan on the plan's grid, its values still as they were read."""

    image: sitk.Image = field(repr=False)
    scaling: Scaling
    label: NDArray[np.uint8] = field(repr=False)  # (z, y, x)

    def slabs(self) -> Iterator[NDArray[np.float32]]:
        """The scaled image (y, x) by (y, x), each a new array."""
        for slab in sitk.GetArrayViewFromImage(self.image):
            yield self.scaling.apply(slab.astype(np.float32))


def _silent(_done: int, _total: int) -> None:
    """Report no progress."""


def prepare(
    cohort: Cohort,
    preparation: Preparation,
    labels: int,
    cache: Path,
    progress: Progress = _silent,
    *,
    threads: int = 1,
    secret: Path | None = None,
) -> PreparedCohort:
    """Prepare all cases of `cohort`, `threads` at a time, reusing what `cache` holds. Raises TooManySkipped and CacheError.

    `secret`: file behind the patients' keys, where they are to stay the same without the cache.
    """
    store = PreparedCache.open(cache, preparation, labels, secret)
    skipped = SkipCount(cohort.skipped)
    found: dict[int, PreparedCase] = {}

    def one(case: Case) -> PreparedCase | str:
        try:
            return store.get(case, lambda: load_scan(case, preparation, labels, max(1, threads // len(cohort.cases))))
        except UnreadableStudy as refusal:
            return refusal.code

    for done, (index, result) in enumerate(each(one, cohort.cases, threads), start=1):
        if isinstance(result, str):
            skipped.add(result)
        else:
            found[index] = result
        progress(done, len(cohort.cases))
    usable: dict[str, list[PreparedCase]] = {}
    for index, prepared in sorted(found.items()):
        usable.setdefault(store.patient_key(cohort.cases[index].patient), []).append(prepared)
    patients = tuple(PreparedPatient(key, tuple(cases)) for key, cases in sorted(usable.items()))
    _refuse_too_many(skipped, len(cohort.cases) + sum(cohort.skipped.values()), preparation.max_skipped_share, len(patients))
    return PreparedCohort(patients, dict(skipped), store.rebuilt)


def load_case(
    case: Case, preparation: Preparation, labels: int, threads: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and label of one case on the plan's grid, (z, y, x), whole in memory. Raises UnreadableStudy."""
    loaded = load_scan(case, preparation, labels, threads)
    return np.stack(list(loaded.slabs())), loaded.label


def load_scan(case: Case, preparation: Preparation, labels: int, threads: int = 1) -> LoadedScan:
    """One case on the plan's grid. A function of this case and the plan alone. Raises UnreadableStudy."""
    scan = read_oriented(case.image)
    scaling = checked_scaling(scan, preparation)
    grid, label = _label_on_grid(case, scan, preparation, labels, threads)
    return LoadedScan(resample_image(scan, grid, threads), scaling, label)


def checked_scaling(scan: sitk.Image, preparation: Preparation) -> Scaling:
    """How the intensities of one scan become those that the network sees. Raises UnreadableStudy."""
    values = sitk.GetArrayViewFromImage(scan)
    if values.min() == values.max():
        raise UnreadableStudy("blank", "all voxels have the same value: export the scan again")
    if preparation.hounsfield_check and not looks_like_hounsfield(values):
        raise UnreadableStudy(
            "not-hounsfield", "the values are no Hounsfield units: store the scan with its rescale applied once"
        )
    return _scaling(values, preparation)


def _label_on_grid(
    case: Case, scan: sitk.Image, preparation: Preparation, labels: int, threads: int
) -> tuple[Grid, NDArray[np.uint8]]:
    """The grid of this scan, which its own structures may make finer, and the label there."""
    if isinstance(case.label, LabelImage):
        label = read_label(case.label.path, scan, labels)
        grid = target_grid(scan, _spacing(preparation, smallest_mm(label) if preparation.fine_below_mm else None))
        return grid, resample_label(label, grid, threads)
    spheres = case.label.spheres
    smallest = min((sphere.diameter_mm for sphere in spheres), default=None)
    grid = target_grid(scan, _spacing(preparation, smallest))
    return grid, draw_nodules(spheres, grid)


def _spacing(preparation: Preparation, smallest: float | None) -> tuple[float, float, float]:
    fine, below = preparation.fine_spacing_xyz_mm, preparation.fine_below_mm
    if fine is None or below is None or smallest is None or smallest >= below:
        return preparation.spacing_xyz_mm
    return fine


def _scaling(values: NDArray[np.floating | np.integer], preparation: Preparation) -> Scaling:
    scaling = window(*preparation.window_hu) if preparation.window_hu else robust_zscore(values)
    if preparation.equalise_below is None:
        return scaling
    scaling = equalised(scaling, values, preparation.equalise_below)
    return scaling if preparation.window_hu else restandardised(scaling, values)


def _refuse_too_many(skipped: Mapping[str, int], total: int, allowed_share: float, patients: int) -> None:
    count = sum(skipped.values())
    if patients and count <= allowed_share * total:
        return
    reasons = ", ".join(f"{number} {code}" for code, number in sorted(skipped.items())) or "the folder is empty"
    raise TooManySkipped(
        skipped,
        f"{count} of {total} studies cannot be used ({reasons}), the plan allows {allowed_share:.0%} and needs one patient:"
        " run 'secagg-node data check', repair or remove them, and start again",
    )
