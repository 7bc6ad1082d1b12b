"""Synthetic chest-CT cohorts in LUNA16's layout: what a hospital's folder looks like, with no patient behind it.

Each hospital has its own scanner: spacings, kernel, noise, table position and, in one of them, axes that run the other way.
Deterministic: the same arguments give the same bytes. Voxels are int16 Hounsfield units in .mhd/.raw pairs, nodules world
coordinates (LPS, mm) in `annotations.csv`, and `patients.csv` joins the two series that some patients have.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from study.anatomy import Body, Frame, make_body, render, scanner
from study.shapes import public_tubes, public_volumes
from study.textures import Triple

__all__ = ["SCANNERS", "Scanner", "public_tubes", "public_volumes", "write_cohort", "write_public_cohort"]

GENERATOR = "synthetic chest v2"  # in the marker file; raise it when the same arguments give other voxels
MARKER = "cohort.json"
SECOND_SERIES_EVERY = 8  # every eighth patient came back for a second scan
MARGIN_MM = 8.0  # air around the body
PUBLIC = 1_000_003  # seed space of public cohorts; hospitals are numbered from 0

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scanner:
    """How one hospital scans."""

    in_plane_mm: float
    slice_mm: float
    kernel_voxels: float  # deviation of the in-plane point spread
    noise_hu: float
    table_xyz_mm: Triple  # world position of the middle of the chest
    flipped: bool = False  # axes x and y run to the right and to the front, as in some LUNA16 series
    subsets: int = 0  # folders subset0 ...; 0: flat


SCANNERS = (
    Scanner(2.8, 3.0, 0.45, 18.0, (-3.5, -171.0, -212.5)),
    Scanner(3.1, 4.0, 0.60, 26.0, (12.0, 40.0, 1050.25), subsets=2),
    Scanner(2.6, 5.0, 0.70, 14.0, (0.0, -150.0, -1240.0)),
    Scanner(3.4, 2.5, 0.40, 34.0, (-21.75, 8.5, 310.0), flipped=True),
)


@dataclass(frozen=True, slots=True)
class _Series:
    uid: str
    patient: str
    body: Body
    scanner: Scanner
    noise_seed: int


def write_cohort(folder: Path, hospital_index: int, patients: int, seed: int, progress: Progress | None = None) -> bool:
    """Write the cohort of one hospital; False where `folder` already holds exactly this one.

    Replaces another synthetic cohort in `folder`; raises FileExistsError where it holds anything else.
    """
    site = SCANNERS[hospital_index % len(SCANNERS)]
    return _write(folder, [hospital_index] * patients, [site] * patients, seed, progress)


def write_public_cohort(folder: Path, patients: int, seed: int, progress: Progress | None = None) -> bool:
    """Write a public cohort for an evaluator: other people than any hospital's, scanned by all scanners in turn."""
    sites = [SCANNERS[index % len(SCANNERS)] for index in range(patients)]
    return _write(folder, [PUBLIC] * patients, sites, seed, progress)


def _write(folder: Path, spaces: list[int], sites: list[Scanner], seed: int, progress: Progress | None) -> bool:
    marker = json.dumps({"generator": GENERATOR, "spaces": spaces, "sites": [asdict(site) for site in sites], "seed": seed})
    if _holds(folder, marker):
        return False
    part = folder.with_name(folder.name + ".part")  # written aside: an interrupted run leaves no half cohort
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    series = [one for index in range(len(sites)) for one in _series_of(spaces[index], sites[index], index, seed)]
    nodules: list[tuple[object, ...]] = []
    for done, one in enumerate(series, start=1):
        _write_series(_home(part, one.scanner, done), one)
        nodules += _annotations(one)
        if progress:
            progress(done, len(series))
    _write_csv(part / "annotations.csv", ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"), nodules)
    _write_csv(part / "patients.csv", ("seriesuid", "patient"), [(one.uid, one.patient) for one in series])
    (part / MARKER).write_text(marker, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return True


def _holds(folder: Path, marker: str) -> bool:
    """Say whether `folder` holds the cohort of `marker`; only another synthetic cohort may be replaced."""
    if (folder / MARKER).is_file():
        return (folder / MARKER).read_text(encoding="utf-8") == marker
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files that are no synthetic cohort: choose an empty folder")
    return False


def _series_of(space: int, site: Scanner, index: int, seed: int) -> list[_Series]:
    """One or two scans of one person; space, index and seed fix everything."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, space, index))))
    body = make_body(rng)
    scans = 2 if index % SECOND_SERIES_EVERY == SECOND_SERIES_EVERY - 1 else 1
    return [_Series(_uid(rng), f"synthetic-{index:04d}", body, site, int(rng.integers(2**31))) for _ in range(scans)]


def _uid(rng: np.random.Generator) -> str:
    """A DICOM UID under 2.25, the root for UUIDs (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(rng.bytes(16), 'big')}"


def _home(folder: Path, site: Scanner, number: int) -> Path:
    home = folder / f"subset{number % site.subsets}" if site.subsets else folder
    home.mkdir(exist_ok=True)
    return home


def _frame(body: Body, site: Scanner) -> Frame:
    """A field of view that holds the body, centred on it."""
    spacing = (site.in_plane_mm, site.in_plane_mm, site.slice_mm)
    halves = (1.06 * body.width_mm + MARGIN_MM, body.depth_mm + MARGIN_MM, body.height_mm)
    nx, ny, nz = (2 * math.ceil(half / step) for half, step in zip(halves, spacing, strict=True))
    first = tuple(-(extent - 1) / 2 * step for extent, step in zip((nx, ny, nz), spacing, strict=True))
    return Frame((nz, ny, nx), spacing, (first[0], first[1], first[2]))


def _write_series(home: Path, one: _Series) -> None:
    frame = _frame(one.body, one.scanner)
    rng = np.random.Generator(np.random.PCG64(one.noise_seed))
    voxels = scanner(render(one.body, frame), rng, one.scanner.kernel_voxels, one.scanner.noise_hu)
    first = np.array(frame.first_xyz_mm) + one.scanner.table_xyz_mm
    turn = 1
    if one.scanner.flipped:  # the same people seen with the first voxel at the opposite corner of each slice
        voxels = voxels[:, ::-1, ::-1]
        first[:2] += (np.array(frame.shape_zyx[:0:-1]) - 1) * frame.spacing_xyz_mm[:2]
        turn = -1
    voxels.astype("<i2").tofile(home / f"{one.uid}.raw")
    (home / f"{one.uid}.mhd").write_text(_header(one.uid, voxels, first, frame.spacing_xyz_mm, turn), encoding="ascii")


def _header(uid: str, voxels: NDArray[np.int16], first: NDArray[np.float64], spacing: Triple, turn: int) -> str:
    nz, ny, nx = voxels.shape
    return "\n".join(
        [
            "ObjectType = Image",
            "NDims = 3",
            "BinaryData = True",
            "BinaryDataByteOrderMSB = False",
            "CompressedData = False",
            f"TransformMatrix = {turn} 0 0 0 {turn} 0 0 0 1",
            "Offset = " + " ".join(f"{value:.6f}" for value in first),
            "CenterOfRotation = 0 0 0",
            "ElementSpacing = " + " ".join(str(step) for step in spacing),
            f"DimSize = {nx} {ny} {nz}",
            "ElementType = MET_SHORT",
            f"ElementDataFile = {uid}.raw",
            "",
        ]
    )


def _annotations(one: _Series) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for lesion in one.body.lesions:
        world = np.array(lesion.centre_xyz_mm) + one.scanner.table_xyz_mm
        rows.append((one.uid, *(f"{value:.4f}" for value in world), lesion.diameter_mm))
    return rows


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])  # CRLF, as LUNA16 has it
