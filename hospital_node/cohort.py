"""What a hospital's folder holds, before any voxel is read: cases, grouped by patient, and what was left out.

Patient ids and paths stay in this process. They are kept out of `repr`, so that no traceback and no log line can carry one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SKIP_CODES = {
    "annotation-outside": "an annotated nodule lies outside its volume",
    "bad-annotation": "an annotation is not four finite numbers with a positive diameter",
    "bad-header": "the header of a volume does not follow its format",
    "bad-spacing": "the voxel spacing of a volume is not plausible",
    "blank": "a volume has one single value in all voxels",
    "duplicate": "the same series was found twice",
    "duplicate-slices": "two slices of a DICOM series lie at the same place",
    "implausible-size": "the size stated in a header is implausible for its file",
    "label-mismatch": "a label image does not lie on the grid of its image",
    "label-values": "a label image holds values that the plan does not know",
    "misread": "SimpleITK reads other values or another place than a DICOM file holds",
    "missing-data": "a header refers to voxel data that is not there",
    "missing-image": "a listed image is not there",
    "missing-slices": "slices are missing inside a DICOM series",
    "mixed-slices": "the slices of a DICOM series are not alike",
    "no-label": "an image has no label",
    "no-orientation": "a header does not say how the volume lies in the patient",
    "no-patient": "a series is missing from the list that names its patient",
    "nonfinite": "a volume holds voxels that are not numbers",
    "not-a-scan": "a DICOM file is no slice of a CT or MR scan",
    "not-hounsfield": "a CT holds no air or no tissue where Hounsfield units have them",
    "not-3d": "a volume does not have exactly three axes",
    "not-scalar": "a volume has more than one value per voxel",
    "outside-folder": "a header refers to a file outside its own folder",
    "several-series": "a folder holds several DICOM series",
    "sheared": "the axes of a volume are not at right angles",
    "truncated": "a file is shorter or longer than its header says, or fails its checksum",
    "uneven-slices": "the gaps between the slices of a DICOM series are uneven",
    "unreadable": "SimpleITK cannot read a file",
    "unsupported-format": "a file is of a format that is not supported",
    "unsupported-header": "a header uses a feature that is not supported",
}


class CohortError(ValueError):
    """A data folder that cannot be used at all; one sentence that says what to do. Names no patient."""


class UnreadableStudy(ValueError):
    """One study that is skipped. `code` is a key of SKIP_CODES; the sentence names no patient and no file."""

    def __init__(self, code: str, sentence: str) -> None:
        if code not in SKIP_CODES:
            raise ValueError(f"'{code}' is not a code of SKIP_CODES: add it there with its sentence")
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class Nodule:
    """A sphere in world coordinates: LPS, as SimpleITK and LUNA16 have them."""

    x_mm: float
    y_mm: float
    z_mm: float
    diameter_mm: float


@dataclass(frozen=True, slots=True)
class Nodules:
    """A label given as spheres; an empty tuple is a series known to have none."""

    spheres: tuple[Nodule, ...]


@dataclass(frozen=True, slots=True)
class LabelImage:
    """A label given as an image on the grid of the scan."""

    path: Path = field(repr=False)


LabelSource = Nodules | LabelImage


@dataclass(frozen=True, slots=True)
class Case:
    """One scan of one patient, with its label."""

    patient: str = field(repr=False)
    image: Path = field(repr=False)
    label: LabelSource = field(repr=False)


@dataclass(frozen=True, slots=True)
class Cohort:
    """All usable cases of one folder. `skipped` counts, by code, the studies that were left out already."""

    layout: str
    cases: tuple[Case, ...] = field(repr=False)
    skipped: Mapping[str, int] = field(default_factory=dict)

    def by_patient(self) -> dict[str, tuple[Case, ...]]:
        """Cases of each patient; one patient is one record of the privacy count, however many scans there are."""
        grouped: dict[str, list[Case]] = {}
        for case in self.cases:
            grouped.setdefault(case.patient, []).append(case)
        return {patient: tuple(cases) for patient, cases in sorted(grouped.items())}

    @property
    def patients(self) -> int:
        """Number of distinct patients."""
        return len({case.patient for case in self.cases})


class SkipCount(Counter[str]):
    """Counts skipped studies by code; a code without a sentence is refused."""

    def add(self, code: str) -> None:
        """Count one study under `code`."""
        if code not in SKIP_CODES:
            raise ValueError(f"'{code}' is not a code of SKIP_CODES: add it there with its sentence")
        self[code] += 1
