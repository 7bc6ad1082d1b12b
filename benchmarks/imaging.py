"""`python -m benchmarks.imaging`: what preparing real CT costs beside bare SimpleITK; status 1 if a target falls short.

Bare means: read each scan and label with SimpleITK and resample both onto the plan's grid, trusting every file. Preparing
checks, scales, hashes and stores as well. Both take turns on one core, so that whatever else the machine does falls on both;
the ratio is the median over the turns of CPU seconds. What two threads gain can only be seen on the clock: it counts in turns
in which two threads that only hash gained as they should, and is not measured where there was none. Peaks of memory are those
of processes of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import SimpleITK as sitk  # noqa: N813 - the name its documentation uses

from benchmarks.rows import Row, status, table
from hospital_node.cases import discover
from hospital_node.cohort import Case, Cohort, LabelImage
from hospital_node.dicom_header import series_files
from hospital_node.prepare import prepare
from hospital_node.reading import read_oriented
from hospital_node.resample import Grid, target_grid
from proto.plan import Preparation

BARE_TARGET = 1.3  # preparing / bare, CPU on one core
THREADS_TARGET = 1.7  # one thread / two, on the clock
MEMORY_TARGET = 3.0  # of the largest volume, as stored or as prepared
TWO_CORES = 1.85  # gain of two threads that only hash: less means that others had a core
HASHED_BYTES = 1 << 29
LABELS = 255  # of the organ labels among the scans
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PAIRS = (  # image, label, patient
    ("elastix-lung/3DCT_lung.mha", "elastix-lung/3DCT_lung_baseline_mask.mha", "lung"),
    ("totalsegmentator/example_ct.nii.gz", "totalsegmentator/example_seg_fast_force_split.nii.gz", "trunk"),
    ("totalsegmentator/example_ct_sm.nii.gz", "totalsegmentator/example_seg.nii.gz", "trunk"),
    ("dcmqi-ct-3slice/dicom", "dcmqi-ct-3slice/liver_seg.nrrd", "liver"),
)
TUMOURS = "lung-pet-ct-dx"  # DICOM folders, and LUNA16's columns in annotations_world.csv


@dataclass(frozen=True, slots=True)
class Spent:
    """One run."""

    cpu_s: float
    wall_s: float


def rules(spacing_mm: float) -> Preparation:
    """A plan for chest CT."""
    return Preparation(
        modality="CT",
        spacing_xyz_mm=(spacing_mm, spacing_mm, spacing_mm),
        window_hu=(-1350.0, 150.0),
        patch_zyx=(64, 64, 64),
        hounsfield_check=True,
    )


def cohort_of(ct: Path, scratch: Path) -> Cohort:
    """The scans of the folder ct-lung that have a label: DICOM, MetaImage and NIfTI. Raises CohortError."""
    listed = scratch / "listed"
    listed.mkdir()
    shutil.copyfile(ct / TUMOURS / "annotations_world.csv", listed / "annotations.csv")
    for subject in ("A0001", "A0002"):
        (listed / subject).symlink_to((ct / TUMOURS / subject).resolve())
    pairs = tuple(Case(patient, ct / image, LabelImage(ct / label)) for image, label, patient in PAIRS)
    return Cohort("benchmark", discover(listed).cases + pairs)


def bare(cohort: Cohort, grids: Sequence[Grid]) -> None:
    """Read and resample with SimpleITK alone, one thread."""
    for case, grid in zip(cohort.cases, grids, strict=True):
        _resample(_read(case.image), grid, sitk.sitkLinear, sitk.sitkFloat32)
        if isinstance(case.label, LabelImage):
            _resample(_read(case.label.path), grid, sitk.sitkNearestNeighbor, sitk.sitkUInt8)


def prepared(cohort: Cohort, preparation: Preparation, folder: Path, threads: int) -> None:
    """Prepare everything into a cache of its own, which is then removed."""
    try:
        found = prepare(cohort, preparation, LABELS, folder, threads=threads)
        if found.cases != len(cohort.cases):
            raise RuntimeError(f"{len(cohort.cases) - found.cases} scans were left out: {dict(found.skipped)}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def timed(work: Callable[[], None]) -> Spent:
    """Seconds of CPU, of all threads, and of the clock."""
    cpu_s, wall_s = process_time(), perf_counter()
    work()
    return Spent(process_time() - cpu_s, perf_counter() - wall_s)


def speed_rows(cohort: Cohort, preparation: Preparation, scratch: Path, turns: int) -> list[Row]:
    """Bare, one thread and two threads in turn."""
    cache = scratch / "cache"
    grids = [target_grid(read_oriented(case.image), preparation.spacing_xyz_mm) for case in cohort.cases]
    work: dict[str, Callable[[], None]] = {
        "bare": partial(bare, cohort, grids),
        "one": partial(prepared, cohort, preparation, cache, 1),
        "two": partial(prepared, cohort, preparation, cache, 2),
        "hash": _hash_on_two,
    }
    for one in work.values():
        one()  # files into the page cache, libraries into memory
    spent = [{name: timed(one) for name, one in work.items()} for _ in range(turns)]
    ratio = statistics.median(turn["one"].cpu_s / turn["bare"].cpu_s for turn in spent)
    gain = _gain(spent)
    spacing = preparation.spacing_xyz_mm[0]
    why = "" if gain is not None else ": other work on the machine"
    return [
        Row(f"preparing / bare SimpleITK, {spacing:g} mm, one core", ratio, "times", BARE_TARGET),
        Row(f"one thread / two threads, {spacing:g} mm{why}", gain, "times", THREADS_TARGET, at_least=True),
    ]


def _gain(spent: Sequence[dict[str, Spent]]) -> float | None:
    """Median gain of two threads over the turns that had two cores; None where there was none."""
    free = [turn for turn in spent if turn["hash"].cpu_s / turn["hash"].wall_s >= TWO_CORES]
    return statistics.median(turn["one"].wall_s / turn["two"].wall_s for turn in free) if free else None


def _hash_on_two() -> None:
    """Nothing but work that needs two cores for as long as it takes."""
    block = bytes(HASHED_BYTES // 2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda data: hashlib.sha256(data).digest(), [block, block]))


def memory_row(ct: Path, preparation: Preparation, threads: int) -> Row:
    """Peak of a process that prepares everything, beyond what it had after its first scan's libraries were loaded."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        value, name = pool.apply(_peak, (ct, preparation, threads)), f"{threads} thread{'s' * (threads > 1)}"
    figure = f"peak memory / largest volume, {preparation.spacing_xyz_mm[0]:g} mm, {name}"
    return Row(figure, value, "times", MEMORY_TARGET)


def _peak(ct: Path, preparation: Preparation, threads: int) -> float | None:
    if not CLEAR_REFS.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        cohort = cohort_of(ct, scratch)
        smallest = Cohort("benchmark", (cohort.cases[-1],))
        prepare(smallest, preparation, LABELS, scratch / "first")
        CLEAR_REFS.write_text("5")
        before = _status_bytes("VmRSS")
        found = prepare(cohort, preparation, LABELS, scratch / "cache", threads=threads)
        peak = _status_bytes("VmHWM") - before
        prepared_bytes = max(case.image.nbytes for patient in found.patients for case in patient.cases)
        stored_bytes = max(_stored_bytes(case) for case in cohort.cases)
    return peak / max(prepared_bytes, stored_bytes)


def _stored_bytes(case: Case) -> int:
    image = _read(case.image)
    return int(image.GetNumberOfPixels()) * int(image.GetSizeOfPixelComponent())


def _status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _read(path: Path) -> sitk.Image:
    if not path.is_dir():
        return sitk.ReadImage(str(path))
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(path))
    assert len(names) == len(series_files(path))
    reader.SetFileNames(names)
    return reader.Execute()


def _resample(image: sitk.Image, grid: Grid, interpolator: int, kind: int) -> sitk.Image:
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    resampler.SetSize(grid.size_xyz)
    resampler.SetOutputSpacing(grid.spacing_xyz_mm)
    resampler.SetOutputOrigin(grid.origin_xyz_mm)
    resampler.SetOutputDirection(grid.direction)
    resampler.SetInterpolator(interpolator)
    resampler.SetOutputPixelType(kind)
    return resampler.Execute(image)


def run(ct: Path, spacings_mm: Sequence[float], turns: int) -> list[Row]:
    """All rows."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    rows: list[Row] = []
    for spacing_mm in spacings_mm:
        preparation = rules(spacing_mm)
        with tempfile.TemporaryDirectory() as folder:
            cohort = cohort_of(ct, Path(folder))
            rows += speed_rows(cohort, preparation, Path(folder), turns)
        rows += [memory_row(ct, preparation, threads) for threads in (1, 2)]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; status 1 where a row falls short, 2 where there are no scans."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imaging", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SECAGG_DATA", "../shared/data")))
    parser.add_argument("--spacing", type=float, nargs="+", default=[1.0, 2.0], help="grids, mm")
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args(arguments)
    ct = chosen.data / "ct-lung"
    if not ct.is_dir():
        print(f"there is no folder {ct}: name the one that holds ct-lung with --data", file=sys.stderr)
        return 2
    rows = run(ct, chosen.spacing, chosen.turns)
    print(table(rows))
    return status(rows)


if __name__ == "__main__":
    sys.exit(main())
