"""Find the cases of a data folder, whichever of the known layouts it has. Reads lists and DICOM headers, never voxels.

Layouts, in the order in which they are tried:
- `manifest.csv` with the columns image, label, patient (paths relative to the folder);
- `annotations.csv` or `candidates.csv`: LUNA16, the volumes beside it, in `subset0` ... `subset9`, or folders of DICOM slices
  (hospital_node/luna.py);
- `images/`, `labels/` and `cases.csv`: one label image for each image (hospital_node/listed.py).
"""

from __future__ import annotations

from pathlib import Path

from hospital_node import listed, luna
from hospital_node.cohort import (
    SKIP_CODES,
    Case,
    Cohort,
    CohortError,
    LabelImage,
    LabelSource,
    Nodule,
    Nodules,
    UnreadableStudy,
)

__all__ = [
    "SKIP_CODES",
    "Case",
    "Cohort",
    "CohortError",
    "LabelImage",
    "LabelSource",
    "Nodule",
    "Nodules",
    "UnreadableStudy",
    "discover",
]


def discover(folder: Path, *, site: str | None = None, fold: str | None = None) -> Cohort:
    """List the cases in `folder`; `site` and `fold` select rows of its `split.csv`. Raises CohortError."""
    if not folder.is_dir():
        raise CohortError(f"the data folder {folder} does not exist: correct 'data' in node.toml")
    selects = site is not None or fold is not None
    if (folder / "manifest.csv").is_file():
        _refuse_selection(folder, "manifest.csv", selects)
        return listed.discover_manifest(folder)
    for listing in luna.LISTS:
        if (folder / listing).is_file():
            _refuse_selection(folder, listing, selects)
            return luna.discover_luna(folder)
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return listed.discover_pairs(folder, site=site, fold=fold)
    raise CohortError(
        f"{folder} has no known layout: it needs annotations.csv beside LUNA16 volumes or folders of DICOM slices, or images/"
        " and labels/ with cases.csv, or a manifest.csv with the columns image,label,patient"
    )


def _refuse_selection(folder: Path, listing: str, selects: bool) -> None:
    if selects:
        raise CohortError(f"the {listing} of {folder} has no sites or folds: remove site and fold from node.toml")
