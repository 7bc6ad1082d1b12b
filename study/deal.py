"""Deal one LUNA16 folder to hospitals and an evaluator: links, not copies; a patient is never split.

Rule: patients are ordered by a hash of their id, so that the deal is the same on every machine and follows nothing in
the images; one patient in seven goes to the evaluator, whose scans then act as the public test set.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EVALUATOR_SHARE = 7  # every seventh patient
MIN_PATIENTS_PER_HOSPITAL = 2


class DealError(ValueError):
    """A folder that cannot be dealt; the text says what is expected."""


@dataclass(frozen=True, slots=True)
class Series:
    """One scan of a LUNA16 folder."""

    uid: str
    patient: str
    header: Path


def find_series(folder: Path) -> list[Series]:
    """All `.mhd` files of `folder` and its `subset*` folders. Raises DealError where there is none."""
    headers = sorted([*folder.glob("*.mhd"), *folder.glob("subset*/*.mhd")])
    if not headers:
        raise DealError(f"{folder} holds no .mhd file, neither itself nor in subset0 ... subset9: is it a LUNA16 folder?")
    if not (folder / "annotations.csv").is_file():
        raise DealError(f"{folder} has no annotations.csv (seriesuid,coordX,...,diameter_mm): put LUNA16's file there")
    patients = _patients(folder / "patients.csv")
    return [Series(header.stem, patients.get(header.stem, header.stem), header) for header in headers]


def deal(series: Sequence[Series], hospitals: Sequence[str], evaluator: str) -> dict[str, list[Series]]:
    """Series by party. Raises DealError where a hospital would get too few patients."""
    by_patient: dict[str, list[Series]] = {}
    for item in series:
        by_patient.setdefault(item.patient, []).append(item)
    ordered = sorted(by_patient, key=lambda patient: hashlib.sha256(patient.encode()).digest())
    dealt: dict[str, list[Series]] = {name: [] for name in (*hospitals, evaluator)}
    rest = 0
    for index, patient in enumerate(ordered):
        if index % EVALUATOR_SHARE == EVALUATOR_SHARE - 1:
            dealt[evaluator] += by_patient[patient]
        else:
            dealt[hospitals[rest % len(hospitals)]] += by_patient[patient]
            rest += 1
    needed = MIN_PATIENTS_PER_HOSPITAL * len(hospitals)
    if rest < needed or not dealt[evaluator]:
        raise DealError(
            f"{len(ordered)} patients are too few for {len(hospitals)} hospitals and an evaluator: "
            f"at least {max(needed + 1, EVALUATOR_SHARE)} are needed"
        )
    return dealt


def link(folder: Path, source: Path, series: Sequence[Series]) -> None:
    """Make `folder` a LUNA16 folder of exactly these series, by symbolic links; stale links are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, Path] = {}
    for item in series:
        for path in item.header.parent.glob(f"{item.uid}.*"):
            wanted[path.name] = path.resolve()
    for old in folder.iterdir():
        if old.is_symlink() and old.name not in wanted:
            old.unlink()
    for name, target in wanted.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    uids = {item.uid for item in series}
    _write_rows(source / "annotations.csv", folder / "annotations.csv", uids)
    if (source / "patients.csv").is_file():
        _write_rows(source / "patients.csv", folder / "patients.csv", uids)


def patients_of(series: Sequence[Series]) -> int:
    """Distinct patients."""
    return len({item.patient for item in series})


def _patients(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as handle:
        return {row["seriesuid"]: row["patient"] for row in csv.DictReader(handle)}


def _write_rows(source: Path, target: Path, uids: set[str]) -> None:
    with source.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        rows = [row for row in reader if row.get("seriesuid") in uids]
        names = reader.fieldnames or []
    with target.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        writer.writerows(rows)
