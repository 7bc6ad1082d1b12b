"""Findings as LUNA16's tables: what was found in each scan, and how it compares with annotations."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from hospital_node.cohort import Nodule
from hospital_node.froc import CPM_RATES, Finding, Froc, ReadScan, froc
from hospital_node.label_files import LabelFileError
from hospital_node.luna import nodules_of

FINDINGS, FROC = "findings.csv", "froc.csv"
COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability", "volume_mm3")  # the first five are LUNA16's submission
PROBABLE = 0.25  # from here on a voxel belongs to a finding
LEAST_MM3 = 14.0  # a ball of 3 mm: LUNA16 annotates nothing smaller

Found = Mapping[str, Sequence[Finding]]  # by series


def series_of(scan: Path) -> str:
    """The series that a file's or folder's name says, as in LUNA16."""
    name = scan.name.removesuffix(".gz")
    return name if scan.is_dir() else name.removesuffix(Path(name).suffix)


def annotated(path: Path) -> dict[str, list[Nodule]]:
    """Nodules by series. Raises LabelFileError for a row that cannot be used, CohortError for a list that is none."""
    nodules = nodules_of(path)
    broken = sum(one is None for rows in nodules.values() for one in rows)
    if broken:
        raise LabelFileError(f"{path} has {broken} rows without a usable place and diameter: correct them")
    return {series: [one for one in rows if one is not None] for series, rows in nodules.items()}


def findings_table(found: Found) -> str:
    """One row for each finding, the likeliest of each scan first."""
    rows = [
        (series, f"{one.x_mm:.3f}", f"{one.y_mm:.3f}", f"{one.z_mm:.3f}", f"{one.score:.4f}", f"{one.volume_mm3:.1f}")
        for series, findings in found.items()
        for one in findings
    ]
    return _table(COLUMNS, rows)


def compared(found: Found, nodules: Mapping[str, Sequence[Nodule]]) -> Froc:
    """The curve over the scans that were read. Raises LabelFileError where they hold no annotated nodule."""
    try:
        return froc([ReadScan(tuple(one), tuple(nodules.get(series, ()))) for series, one in found.items()])
    except ValueError as error:
        raise LabelFileError(f"no sensitivity: {error}") from error


def froc_table(curve: Froc) -> str:
    """The curve's points, then the rates of the CPM."""
    points = zip(curve.thresholds, curve.false_positives, curve.sensitivity, strict=True)
    rows = [(f"{limit:.4f}", f"{rate:.4f}", f"{share:.4f}") for limit, rate, share in points]
    read = [("", f"{rate:g}", f"{curve.at(rate):.4f}") for rate in CPM_RATES]
    return _table(("threshold", "false_positives_per_scan", "sensitivity"), [*rows, *read, ("CPM", "", f"{curve.cpm:.4f}")])


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return text.getvalue()
