"""LUNA16's layout: volumes as .mhd with .raw or .zraw, nodules as spheres in `annotations.csv`.

Columns of `annotations.csv`: seriesuid, coordX, coordY, coordZ (world mm, LPS), diameter_mm. A series without a row has no
nodule and is all background. `patients.csv` (seriesuid, patient) joins the series of one person; without it each series is a
patient. A series missing from an existing `patients.csv` is left out: guessing would split one person into two records.
"""

from __future__ import annotations

import math
from pathlib import Path

from hospital_node.cohort import Case, Cohort, CohortError, Nodule, Nodules, SkipCount
from hospital_node.tables import one_value, rows_of

SUFFIXES = (".mhd", ".mha")


def discover_luna(folder: Path) -> Cohort:
    """All series of a flat or `subset*` LUNA16 folder. Raises CohortError where there is none or a list is malformed."""
    skipped = SkipCount()
    nodules = _nodules(folder / "annotations.csv")
    patient_of = _patients(folder / "patients.csv")
    cases = []
    for series, image in _series(folder, skipped).items():
        spheres = nodules.get(series, [])
        patient = series if patient_of is None else patient_of.get(series, "")
        if not patient:
            skipped.add("no-patient")
        elif None in spheres:
            skipped.add("bad-annotation")
        else:
            cases.append(Case(patient, image, Nodules(tuple(sphere for sphere in spheres if sphere is not None))))
    if not cases and not skipped:
        raise CohortError(f"{folder} holds annotations.csv but no .mhd volume, neither beside it nor in subset0 ... subset9")
    return Cohort("luna16", tuple(cases), dict(skipped))


def _series(folder: Path, skipped: SkipCount) -> dict[str, Path]:
    """Header of each series by its UID, which is the file's stem."""
    places = [folder, *sorted(place for place in folder.glob("subset*") if place.is_dir())]
    found: dict[str, Path] = {}
    for path in sorted(path for place in places for path in place.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            skipped.add("duplicate")
        else:
            found[path.stem] = path
    return found


def _nodules(path: Path) -> dict[str, list[Nodule | None]]:
    """Spheres by series; None stands for a row that cannot be used."""
    found: dict[str, list[Nodule | None]] = {}
    for row in rows_of(path, ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")):
        found.setdefault(row["seriesuid"], []).append(_nodule(row))
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
