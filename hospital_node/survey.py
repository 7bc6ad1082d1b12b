"""A readable fingerprint of this hospital's own studies: what there is, how it was taken, and what would go wrong.

It is made here, read here and never sent. Counts and ranges only: no id, no file name, no date, nothing of a single study but
that it exists. Training reads none of it, so that no number of the cohort can reach another patient's tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses

from hospital_node.cohort import Case, Cohort, LabelImage, UnreadableStudy
from hospital_node.intensity import looks_like_hounsfield
from hospital_node.parallel import each
from hospital_node.reading import orientation, read_label, read_stored, to_lps
from hospital_node.resample import is_oblique
from proto.frozen import Frozen

ANY_LABELS = 255  # values of a label image where no plan says how many it knows
PERCENTILES = (0.5, 50.0, 99.5)
NAMED = 8  # most frequent sizes, spacings and orientations that are listed; the rest is counted


class Range(Frozen):
    """Lowest, middle and highest over the studies."""

    lowest: float
    median: float
    highest: float

    def __str__(self) -> str:
        return f"{self.lowest:g}" if self.lowest == self.highest else f"{self.lowest:g} .. {self.median:g} .. {self.highest:g}"


class LabelSummary(Frozen):
    """One label value: in how many studies, and how large."""

    studies: int
    volume_ml: Range


class Fingerprint(Frozen):
    """What this hospital's studies are like. Never leaves it."""

    layout: str
    studies: int  # listed, usable or not
    readable: int
    patients: int  # with a readable study
    patients_with_several_studies: int
    left_out: Mapping[str, int]  # code of SKIP_CODES -> studies
    missing_labels: int
    empty_labels: int  # readable studies whose label is background only
    same_voxels_twice: int  # readable studies whose voxels were seen before
    same_voxels_two_patients: int  # of these, those seen under another patient: one person may be two records
    sizes_xyz: Mapping[str, int]
    spacings_xyz_mm: Mapping[str, int]
    spacing_mm: tuple[Range, Range, Range] | None
    orientations: Mapping[str, int]  # as stored, before they are turned to LPS
    oblique: int
    hounsfield: int  # studies whose values look like Hounsfield units
    intensities: Mapping[str, Range]  # percentile of a study -> over the studies
    labels: Mapping[str, LabelSummary]

    def lines(self) -> list[tuple[str, str]]:
        """(what, how many) for people, in the order in which they would look."""
        found = [
            ("studies", f"{self.studies} listed, {self.readable} readable ({self.layout})"),
            ("patients", f"{self.patients}, {self.patients_with_several_studies} of them with several studies"),
            ("missing labels", str(self.missing_labels)),
            ("empty labels", str(self.empty_labels)),
            ("same voxels twice", f"{self.same_voxels_twice}, {self.same_voxels_two_patients} under another patient"),
            ("sizes (x, y, z)", _listed(self.sizes_xyz)),
            ("spacings (mm)", _listed(self.spacings_xyz_mm)),
            ("orientations", f"{_listed(self.orientations)}; {self.oblique} oblique"),
            ("Hounsfield units", f"{self.hounsfield} studies look like it"),
        ]
        found += [(f"intensity, percentile {name}", str(spread)) for name, spread in self.intensities.items()]
        found += [(f"label {name}", f"in {one.studies}, {one.volume_ml} ml") for name, one in self.labels.items()]
        return found


@dataclass(frozen=True, slots=True)
class _Look:
    """One readable study."""

    patient: str = field(repr=False)
    size_xyz: tuple[int, ...]
    spacing_xyz_mm: tuple[float, ...]
    orientation: str
    oblique: bool
    hounsfield: bool
    percentiles: tuple[float, ...]
    voxels_sha256: bytes = field(repr=False)
    label_ml: Mapping[int, float]


def survey(cohort: Cohort, labels: int, threads: int, progress: Callable[[int, int], None]) -> Fingerprint:
    """Read every study of `cohort` to its last voxel and sum up what they are like; `labels` is the highest label value."""
    left_out = Counter(dict(cohort.skipped))
    found: dict[int, _Look] = {}

    def one(case: Case) -> _Look | str:
        try:
            return _look(case, labels)
        except UnreadableStudy as refusal:
            return refusal.code

    for done, (index, result) in enumerate(each(one, cohort.cases, threads), start=1):
        if isinstance(result, str):
            left_out[result] += 1
        else:
            found[index] = result
        progress(done, len(cohort.cases))
    looks = [look for _, look in sorted(found.items())]
    return _summed(cohort.layout, len(cohort.cases) + sum(cohort.skipped.values()), looks, left_out)


def _look(case: Case, labels: int) -> _Look:
    stored = read_stored(case.image)
    letters = orientation(stored)
    scan = to_lps(stored)
    values = sitk.GetArrayViewFromImage(scan)
    digest = hashlib.sha256(repr((scan.GetSize(), values.dtype.str)).encode())
    for slab in values:
        digest.update(np.ascontiguousarray(slab).data)
    voxel_ml = math.prod(scan.GetSpacing()) / 1000
    if isinstance(case.label, LabelImage):
        label = read_label(case.label.path, scan, labels)  # named: a view dies with its image
        counts = np.bincount(sitk.GetArrayViewFromImage(label).reshape(-1))
        label_ml = {value: float(count) * voxel_ml for value, count in enumerate(counts) if value and count}
    else:
        balls_ml = sum(math.pi / 6 * sphere.diameter_mm**3 for sphere in case.label.spheres) / 1000
        label_ml = {1: balls_ml} if case.label.spheres else {}
    return _Look(
        patient=case.patient,
        size_xyz=scan.GetSize(),
        spacing_xyz_mm=scan.GetSpacing(),
        orientation=letters,
        oblique=is_oblique(scan),
        hounsfield=looks_like_hounsfield(values),
        percentiles=tuple(float(value) for value in np.percentile(values, PERCENTILES)),
        voxels_sha256=digest.digest(),
        label_ml=label_ml,
    )


def _summed(layout: str, studies: int, looks: Sequence[_Look], left_out: Mapping[str, int]) -> Fingerprint:
    of_patient = Counter(look.patient for look in looks)
    twice, two_patients = _repeated(looks)
    spacings = [look.spacing_xyz_mm for look in looks]
    values = sorted({value for look in looks for value in look.label_ml})
    return Fingerprint(
        layout=layout,
        studies=studies,
        readable=len(looks),
        patients=len(of_patient),
        patients_with_several_studies=sum(count > 1 for count in of_patient.values()),
        left_out=dict(sorted(left_out.items())),
        missing_labels=left_out.get("no-label", 0),
        empty_labels=sum(not look.label_ml for look in looks),
        same_voxels_twice=twice,
        same_voxels_two_patients=two_patients,
        sizes_xyz=_most(" x ".join(str(extent) for extent in look.size_xyz) for look in looks),
        spacings_xyz_mm=_most(" x ".join(f"{step:.3g}" for step in spacing) for spacing in spacings),
        spacing_mm=(_range(s[0] for s in spacings), _range(s[1] for s in spacings), _range(s[2] for s in spacings))
        if spacings
        else None,
        orientations=_most(look.orientation for look in looks),
        oblique=sum(look.oblique for look in looks),
        hounsfield=sum(look.hounsfield for look in looks),
        intensities={
            f"{share:g}": _range(look.percentiles[at] for look in looks) for at, share in enumerate(PERCENTILES) if looks
        },
        labels={str(value): _label(value, looks) for value in values},
    )


def _label(value: int, looks: Sequence[_Look]) -> LabelSummary:
    volumes = [look.label_ml[value] for look in looks if value in look.label_ml]
    return LabelSummary(studies=len(volumes), volume_ml=_range(volumes))


def _repeated(looks: Sequence[_Look]) -> tuple[int, int]:
    """Studies with the voxels of an earlier one, and those of them that an earlier one of another patient has."""
    patients_of: dict[bytes, set[str]] = {}
    twice = two_patients = 0
    for look in looks:
        before = patients_of.setdefault(look.voxels_sha256, set())
        twice += bool(before)
        two_patients += bool(before - {look.patient})
        before.add(look.patient)
    return twice, two_patients


def _range(values: Iterable[float]) -> Range:
    every = np.array(list(values))
    lowest, median, highest = (float(f"{value:.4g}") for value in (every.min(), np.median(every), every.max()))
    return Range(lowest=lowest, median=median, highest=highest)


def _most(names: Iterable[str]) -> dict[str, int]:
    counts = Counter(names).most_common()
    further = sum(count for _, count in counts[NAMED:])
    return dict(counts[:NAMED]) | ({"other": further} if further else {})


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "-"
