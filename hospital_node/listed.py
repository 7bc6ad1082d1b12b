"""Layouts that list their files: image and label folders with `cases.csv`, and a manifest.

The patient is the subject, never the file: left and right hippocampus of one person are one record. A case whose subject is
not listed is left out, because counting it as a person of its own could split a person into two records.
"""

from __future__ import annotations

from pathlib import Path

from hospital_node.cohort import Case, Cohort, CohortError, LabelImage, SkipCount
from hospital_node.tables import one_value, rows_of

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")


def discover_pairs(folder: Path, *, site: str | None, fold: str | None) -> Cohort:
    """Cases of `images/` and `labels/`, chosen by `split.csv`, with patients from `cases.csv`. Raises CohortError."""
    skipped = SkipCount()
    subjects = one_value(folder / "cases.csv", "case", "subject_guess")
    names = sorted(subjects) if site is None and fold is None else _selected(folder, site, fold)
    images, labels = _files(folder / "images"), _files(folder / "labels")
    cases = []
    for name in names:
        image, label, subject = images.get(name), labels.get(name), subjects.get(name, "")
        if image is None:
            skipped.add("missing-image")
        elif label is None:
            skipped.add("no-label")
        elif not subject:
            skipped.add("no-patient")
        else:
            cases.append(Case(subject, image, LabelImage(label)))
    return Cohort("pairs", tuple(cases), dict(skipped))


def discover_manifest(folder: Path) -> Cohort:
    """Cases of `manifest.csv`, paths relative to `folder`. Raises CohortError."""
    skipped = SkipCount()
    cases, seen = [], set()
    for row in rows_of(folder / "manifest.csv", ("image", "label", "patient")):
        image, label = folder / row["image"], folder / row["label"]
        if not row["image"] or not image.exists():  # a file, or a folder of DICOM slices
            skipped.add("missing-image")
        elif not row["label"] or not label.is_file():
            skipped.add("no-label")
        elif not row["patient"]:
            skipped.add("no-patient")
        elif image.resolve() in seen:
            skipped.add("duplicate")
        else:
            seen.add(image.resolve())
            cases.append(Case(row["patient"], image, LabelImage(label)))
    if not cases and not skipped:
        raise CohortError(f"{folder / 'manifest.csv'} lists no image")
    return Cohort("manifest", tuple(cases), dict(skipped))


def _selected(folder: Path, site: str | None, fold: str | None) -> list[str]:
    rows = rows_of(folder / "split.csv", ("case", "site", "fold"))
    chosen = {row["case"] for row in rows if site in (None, row["site"]) and fold in (None, row["fold"])}
    if not chosen:
        sites = ", ".join(sorted({row["site"] for row in rows} - {""}))
        folds = ", ".join(sorted({row["fold"] for row in rows} - {""}))
        raise CohortError(
            f"nothing has the site and fold of node.toml: {folder / 'split.csv'} has the sites {sites} and the folds {folds}"
        )
    return sorted(chosen)


def _files(folder: Path) -> dict[str, Path]:
    """Volumes of a folder by case name: files, or folders of DICOM slices."""
    found = {path.name: path for path in folder.iterdir() if path.is_dir()}
    for path in sorted(folder.iterdir()):
        suffix = next((ending for ending in SUFFIXES if path.name.lower().endswith(ending)), None)
        if suffix is not None and not path.name.startswith("."):
            found[path.name[: -len(suffix)]] = path
    return found
