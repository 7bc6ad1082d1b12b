"""LUNA16's layout: volumes as .mhd with .raw or .zraw, or folders of DICOM slices; nodules as spheres in `annotations.csv`.

Columns of `annotations.csv`: seriesuid, coordX, coordY, coordZ (world mm, LPS), diameter_mm. A series without a row has no
nodule and is all background. Without that list, rows of class 1 in `candidates.csv` (seriesuid, coordX, coordY, coordZ, class)
are the nodules; they have no diameter of their own. `patients.csv` (seriesuid, patient) joins the series of one person; without
it a DICOM file names its patient, and every other series is a patient. A series missing from an existing `patients.csv` is left
out: guessing would split one person into two records.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from hospital_node.cohort import Case, Cohort, CohortError, Nodule, Nodules, SkipCount, UnreadableStudy
from hospital_node.dicom_header import SUFFIXES as SLICE_SUFFIXES
from hospital_node.dicom_header import read_header
from hospital_node.tables import one_value, rows_of

SUFFIXES = (".mhd", ".mha")
LISTS = ("annotations.csv", "candidates.csv")
CANDIDATE_DIAMETER_MM = 6.4  # the median of LUNA16's annotations
DEPTH = 4  # folders below the data folder in which slices are looked for

Found = tuple[Path, str | None]  # volume or folder of slices, and the patient whom a DICOM file names


def discover_luna(folder: Path) -> Cohort:
    """All series of a flat, `subset*` or DICOM folder. Raises CohortError where there is none or a list is malformed."""
    skipped = SkipCount()
    annotated = (folder / LISTS[0]).is_file()
    nodules = nodules_of(folder / LISTS[0]) if annotated else _candidates(folder / LISTS[1])
    patient_of = _patients(folder / "patients.csv")
    cases = []
    for series, (image, named) in _series(folder, skipped).items():
        spheres = nodules.get(series, [])
        own = series if named is None else named
        patient = own if patient_of is None else patient_of.get(series, "")
        if not patient:
            skipped.add("no-patient")
        elif None in spheres:
            skipped.add("bad-annotation")
        else:
            cases.append(Case(patient, image, Nodules(tuple(sphere for sphere in spheres if sphere is not None))))
    if not cases and not skipped:
        raise CohortError(
            f"{folder} holds {LISTS[not annotated]} but no .mhd volume, neither beside it nor in subset0 ... subset9, and no"
            " folder of DICOM slices"
        )
    return Cohort("luna16", tuple(cases), dict(skipped))


def _series(folder: Path, skipped: SkipCount) -> dict[str, Found]:
    """Volume of each series by its UID, which is the stem of a header or stands in the slices."""
    found: dict[str, Found] = {}
    for series, volume in (*_volumes(folder), *_slice_folders(folder, skipped)):
        if series in found:
            skipped.add("duplicate")
        else:
            found[series] = volume
    return found


def _volumes(folder: Path) -> Iterator[tuple[str, Found]]:
    places = [folder, *sorted(place for place in folder.glob("subset*") if place.is_dir())]
    for path in sorted(path for place in places for path in place.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            yield path.stem, (path, None)


def _slice_folders(folder: Path, skipped: SkipCount, depth: int = DEPTH) -> Iterator[tuple[str, Found]]:
    """Folders below this one that hold slices; the first slice names series and patient, the reader compares the others."""
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        slices = sorted(path for path in place.iterdir() if path.suffix.lower() in SLICE_SUFFIXES and path.name[0] != ".")
        if slices:
            try:
                header = read_header(slices[0])
            except (UnreadableStudy, OSError) as refusal:
                skipped.add(refusal.code if isinstance(refusal, UnreadableStudy) else "unreadable")
            else:
                yield header.text("series"), (place, header.text("patient"))
        elif depth > 1:
            yield from _slice_folders(place, skipped, depth - 1)


def nodules_of(path: Path) -> dict[str, list[Nodule | None]]:
    """Spheres of `annotations.csv` by series; None stands for a row that cannot be used. Raises CohortError."""
    found: dict[str, list[Nodule | None]] = {}
    for row in rows_of(path, ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")):
        found.setdefault(row["seriesuid"], []).append(_nodule(row))
    return found


def _candidates(path: Path) -> dict[str, list[Nodule | None]]:
    """Spheres of one size around the candidates that are nodules; None stands for a row that cannot be used."""
    found: dict[str, list[Nodule | None]] = {}
    for row in rows_of(path, ("seriesuid", "coordX", "coordY", "coordZ", "class")):
        if row["class"] == "1":
            found.setdefault(row["seriesuid"], []).append(_nodule(row | {"diameter_mm": str(CANDIDATE_DIAMETER_MM)}))
        elif row["class"] != "0":
            found.setdefault(row["seriesuid"], []).append(None)
    return found


def _nodule(row: dict[str, str]) -> Nodule | None:
    try:
        x, y, z, diameter = (float(row[column]) for column in ("coordX", "coordY", "coordZ", "diameter_mm"))
    except ValueError:
        return None
    usable = all(math.isfinite(value) for value in (x, y, z, diameter)) and diameter > 0
    return Nodule(x, y, z, diameter) if usable else None


def _patients(path: Path) -> dict[str, str] | None:
    return one_value(path, "seriesuid", "patient") if path.is_file() else None
