"""Who takes part in a demonstration and where their scans come from: synthetic CT, MSD Hippocampus, or a LUNA16 folder.

This file decides the roles; writing folders is sites.py, running them is demo.py.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from study import deal, synthetic

SYNTHETIC_HOSPITALS = ("st-anna", "nordklinik", "lakeside", "riverside")
SYNTHETIC_PATIENTS = 40
SYNTHETIC_TEST_PATIENTS = 16
COHORT_SEED = 20261121
EVALUATOR = "public-test"


class CastError(ValueError):
    """Data that the demonstration cannot use; the text says what it expects."""


@dataclass(frozen=True, slots=True)
class Role:
    """One party with data: a folder and, where the folder holds several, which part of it is theirs."""

    name: str
    data: Path
    patients: int  # declared, public
    site: str | None = None
    fold: str | None = None


@dataclass(frozen=True, slots=True)
class Cast:
    """Four hospitals, an evaluator, and the plan template that fits their data."""

    study: str
    template: str
    hospitals: tuple[Role, ...]
    evaluator: Role
    note: str  # one sentence about the data, for people


def choose(data: Path | None, folder: Path, progress: Callable[[str, int, int], None]) -> Cast:
    """The cast for `data`, or synthetic hospitals where it is None. Raises CastError or DealError in one sentence."""
    if data is None:
        return _synthetic(folder, progress)
    if not data.is_dir():
        raise CastError(f"the data folder {data} does not exist: name an existing folder with DATA=, or leave it out")
    if (data / "split.csv").is_file() and (data / "images").is_dir():
        return _split_sites(data)
    return _luna(data, folder)


def _synthetic(folder: Path, progress: Callable[[str, int, int], None]) -> Cast:
    roles = []
    for index, name in enumerate(SYNTHETIC_HOSPITALS):
        data = folder / name / "data"
        synthetic.write_cohort(data, index, SYNTHETIC_PATIENTS, COHORT_SEED, partial(progress, name))
        roles.append(Role(name, data, SYNTHETIC_PATIENTS))
    test = folder / EVALUATOR / "data"
    synthetic.write_public_cohort(test, SYNTHETIC_TEST_PATIENTS, COHORT_SEED, partial(progress, EVALUATOR))
    return Cast(
        study="demo-chest-ct",
        template="chest-ct",
        hospitals=tuple(roles),
        evaluator=Role(EVALUATOR, test, SYNTHETIC_TEST_PATIENTS),
        note="Synthetic chest CT in LUNA16's layout; no real patient is involved.",
    )


def _split_sites(data: Path) -> Cast:
    subjects = _subjects(data)
    sites = sorted({site for site, _ in subjects.values() if site})
    if len(sites) < 3 or not any(fold == "test" for _, fold in subjects.values()):
        raise CastError(f"{data}/split.csv needs at least three sites and a fold 'test' (columns case,site,fold)")
    roles = tuple(Role(site, data, sum(1 for own, _ in subjects.values() if own == site), site=site) for site in sites)
    tested = sum(1 for _, fold in subjects.values() if fold == "test")
    return Cast(
        study="demo-hippocampus",
        template="hippocampus",
        hospitals=roles,
        evaluator=Role(EVALUATOR, data, tested, fold="test"),
        note="MSD Hippocampus is public: its epsilon demonstrates the mechanism, it protects nobody.",
    )


def _subjects(data: Path) -> dict[str, tuple[str, str]]:
    """Subject -> (site, fold)."""
    with (data / "split.csv").open(newline="", encoding="utf-8") as handle:
        split = {row["case"]: (row["site"], row["fold"]) for row in csv.DictReader(handle)}
    with (data / "cases.csv").open(newline="", encoding="utf-8") as handle:
        return {row["subject_guess"]: split[row["case"]] for row in csv.DictReader(handle) if row["case"] in split}


def _luna(data: Path, folder: Path) -> Cast:
    dealt = deal.deal(deal.find_series(data), SYNTHETIC_HOSPITALS, EVALUATOR)
    for name, series in dealt.items():
        deal.link(folder / name / "data", data, series)
    roles = {name: Role(name, folder / name / "data", deal.patients_of(series)) for name, series in dealt.items()}
    return Cast(
        study="demo-luna16",
        template="luna16",
        hospitals=tuple(roles[name] for name in SYNTHETIC_HOSPITALS),
        evaluator=roles[EVALUATOR],
        note="Your own LUNA16 files, dealt by patient to four hospitals; one patient in seven is the public test set.",
    )
