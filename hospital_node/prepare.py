"""From files to tensors, one patient at a time; nothing here looks at two scans together.

Reads (reading.py), resamples to the plan's spacing (resample.py), scales intensities (intensity.py) and keeps the result in
a checksummed cache (prepared_cache.py). A study that cannot be used is skipped and counted by code, never named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from hospital_node.cohort import Case, Cohort, LabelImage, SkipCount, UnreadableStudy
from hospital_node.intensity import robust_zscore, window
from hospital_node.prepared import PreparedCase, PreparedCohort, PreparedPatient
from hospital_node.prepared_cache import PreparedCache
from hospital_node.reading import read_label, read_oriented
from hospital_node.resample import draw_nodules, resample_image, resample_label, target_grid
from proto.plan import Preparation

__all__ = ["PreparedCase", "PreparedCohort", "PreparedPatient", "TooManySkipped", "load_case", "prepare"]

Progress = Callable[[int, int], None]  # (studies done, studies in all)


class TooManySkipped(RuntimeError):
    """More studies were unreadable than the plan allows; the node declines with `code`. `skipped` counts them by reason."""

    code = "too-few-patients"

    def __init__(self, skipped: Mapping[str, int], sentence: str) -> None:
        super().__init__(sentence)
        self.skipped = dict(skipped)


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
    """Prepare all cases of `cohort`, reusing what `cache` holds of them. Raises TooManySkipped and CacheError.

    `secret`: file behind the patients' keys, where they are to stay the same without the cache.
    """
    store = PreparedCache.open(cache, preparation, labels, secret)
    skipped = SkipCount(cohort.skipped)
    usable: dict[str, list[PreparedCase]] = {}
    for done, case in enumerate(cohort.cases, start=1):
        try:
            prepared = store.get(case, partial(load_case, case, preparation, labels, threads))
            usable.setdefault(store.patient_key(case.patient), []).append(prepared)
        except UnreadableStudy as refusal:
            skipped.add(refusal.code)
        progress(done, len(cohort.cases))
    patients = tuple(PreparedPatient(key, tuple(cases)) for key, cases in sorted(usable.items()))
    _refuse_too_many(skipped, len(cohort.cases) + sum(cohort.skipped.values()), preparation.max_skipped_share, len(patients))
    return PreparedCohort(patients, dict(skipped), store.rebuilt)


def load_case(
    case: Case, preparation: Preparation, labels: int, threads: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and label of one case on the plan's grid, (z, y, x). A function of this case and the plan alone.

    Raises UnreadableStudy.
    """
    scan = read_oriented(case.image)
    grid = target_grid(scan, preparation.spacing_xyz_mm)
    if isinstance(case.label, LabelImage):
        label = resample_label(read_label(case.label.path, scan, labels), grid, threads)
    else:
        label = draw_nodules(case.label.spheres, grid)
    values = sitk.GetArrayViewFromImage(scan)
    if values.min() == values.max():
        raise UnreadableStudy("blank", "all voxels have the same value: export the scan again")
    scaling = window(*preparation.window_hu) if preparation.window_hu else robust_zscore(values)
    return scaling.apply(resample_image(scan, grid, threads)), label


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
