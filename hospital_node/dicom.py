"""A DICOM series as one volume, or a refusal by name.

SimpleITK 2.5.7 averages uneven slice gaps, stacks a tilted gantry upright and takes the voxel type of the first slice for all,
with a warning on standard error at most. So the slices are compared here first (the numbers label the code):
1 each file is one uncoloured slice of a CT or MR scan; 2 all are of one series and alike; 3 their positions lie on one line at
right angles to the slices, at even gaps; 4 GDCM gives the grid that the headers say, and for files without compression the
stored values times slope plus intercept, applied once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy
from hospital_node.dicom_header import UNDEFINED, SliceHeader, read_header, series_files
from hospital_node.metaimage import MAX_VOXELS

SCANS = {"1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.4": "MR"}  # SOP classes: one slice a file
ALIKE = ("rows", "columns", "bits_allocated", "bits_stored", "signed")
OFF_LINE_MM = 0.1  # a slice may lie this far, or this share of a voxel, beside the line; positions are rounded
OFF_GRID = 0.1  # of a gap: how far a slice may lie from its even place
SAME_PLACE = 0.01  # of a gap: closer slices are the same slice twice
GEOMETRY_TOLERANCE = 1e-3  # mm, and direction cosines

Numbers = Sequence[float] | NDArray[np.float64]


def read_series(place: Path) -> tuple[sitk.Image, tuple[int, int, int]]:
    """The one series of a folder, or a file as a volume of one slice, and the size that its headers ask for.

    Raises UnreadableStudy, OSError, and RuntimeError where GDCM cannot read a file.
    """
    slices = [read_header(path) for path in series_files(place)]
    if not slices:
        raise UnreadableStudy("missing-image", "the folder holds no DICOM file")
    for one in slices:
        _check_slice(one)  # 1
    _check_alike(slices)  # 2
    ordered, gap_mm = _stacked(slices)  # 3
    size = (ordered[0].number("columns"), ordered[0].number("rows"), len(ordered))
    if math.prod(size) > MAX_VOXELS:
        raise UnreadableStudy("implausible-size", f"the series has more than {MAX_VOXELS} voxels")
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(one.path) for one in ordered])
    if not all(value.is_integer() for value in _rescale(ordered[0])):
        reader.SetOutputPixelType(sitk.sitkFloat32)
    image = reader.Execute()
    _check_voxels(image, ordered[len(ordered) // 2], len(ordered) // 2)  # 4
    _place(image, ordered, gap_mm)  # 4
    return image, size


def _check_slice(one: SliceHeader) -> None:
    if one.text("sop_class") not in SCANS or "LOCALIZER" in one.text("image_type").split("\\"):
        raise UnreadableStudy(
            "not-a-scan", "a DICOM file is no slice of a CT or MR scan (a scout, a secondary capture, a segmentation, a dose)"
        )
    if one.number("samples") != 1:
        raise UnreadableStudy("not-scalar", "a DICOM file holds colours: only one value per voxel is used")
    if one.text("frames") not in {"", "1"} or one.text("photometric") != "MONOCHROME2":
        raise UnreadableStudy(
            "unsupported-header", "a DICOM file holds several frames or inverted values: export single slices"
        )
    allocated, stored = one.number("bits_allocated"), one.number("bits_stored")
    if allocated not in {8, 16} or not 0 < stored <= allocated or one.number("high_bit") != stored - 1:
        raise UnreadableStudy(
            "unsupported-header", "the voxels of a DICOM file do not have 8 or 16 bits: export the scan again"
        )
    wanted_bytes = one.number("rows") * one.number("columns") * allocated // 8
    if not wanted_bytes:
        raise UnreadableStudy("bad-header", "a DICOM slice has no rows or no columns")
    if one.is_compressed != (one.pixels_bytes == UNDEFINED):
        raise UnreadableStudy("bad-header", "a DICOM file says one encoding and has another: export it again")
    whole = one.is_compressed or wanted_bytes <= one.pixels_bytes < 2 * wanted_bytes  # some writers pad
    if not whole or (not one.is_compressed and one.pixels_at + one.pixels_bytes > one.path.stat().st_size):
        raise UnreadableStudy(
            "truncated", "a DICOM file does not hold as many voxels as it says: copy it again from its source"
        )


def _check_alike(slices: Sequence[SliceHeader]) -> None:
    first = slices[0]
    if len({one.text("series") for one in slices}) > 1:
        raise UnreadableStudy("several-series", "the folder holds several DICOM series: put each into a folder of its own")
    for one in slices[1:]:
        same = all(one.number(name) == first.number(name) for name in ALIKE) and _rescale(one) == _rescale(first)
        if not same or not (_same(one, first, "orientation", _orientation) and _same(one, first, "pixel_spacing", _spacing)):
            raise UnreadableStudy(
                "mixed-slices", "the slices of a series differ in size, spacing, axes, voxel type or rescale: export one scan"
            )


def _same(one: SliceHeader, other: SliceHeader, name: str, read: Callable[[SliceHeader], Numbers]) -> bool:
    """Whether a field is the same, as it is written or to rounding."""
    return one.text(name) == other.text(name) or _near(read(one), read(other))


def _stacked(slices: Sequence[SliceHeader]) -> tuple[list[SliceHeader], float]:
    """Slices along the normal of their plane, and the gap between them."""
    normal = _normal(slices[0])
    places = np.array([_position(one) for one in slices])
    along = places @ normal
    order = np.argsort(along, kind="stable")
    ordered = [slices[index] for index in order]
    if len(slices) == 1:
        return ordered, _thickness(slices[0])
    aside = places - places[order[0]] - np.outer(along - along[order[0]], normal)
    if np.linalg.norm(aside, axis=1).max() > max(OFF_LINE_MM, OFF_LINE_MM * min(_spacing(slices[0]))):
        raise UnreadableStudy(
            "sheared", "the slices are not stacked at right angles (tilted gantry?): resample the scan upright"
        )
    return ordered, _even_gap(along[order])


def _even_gap(along_mm: NDArray[np.float64]) -> float:
    gaps = np.diff(along_mm)
    usual = float(np.median(gaps))
    if usual <= 0 or gaps.min() <= SAME_PLACE * usual:
        raise UnreadableStudy("duplicate-slices", "two slices of a series lie at the same place: keep one, or one time point")
    gap = round(float(along_mm[-1] - along_mm[0]) / len(gaps), 6)
    even = along_mm[0] + gap * np.arange(len(along_mm))
    if np.abs(along_mm - even).max() <= OFF_GRID * min(gap, usual):
        return gap
    steps = gaps / usual
    if steps.max() > 1.5 and np.abs(steps - np.rint(steps)).max() <= OFF_GRID:
        raise UnreadableStudy("missing-slices", "slices are missing inside a series: copy it again from its source")
    raise UnreadableStudy("uneven-slices", "the gaps between the slices are uneven: reconstruct the scan with one gap")


def _check_voxels(image: sitk.Image, one: SliceHeader, index: int) -> None:
    """GDCM must have given the values that the file stores, rescaled once."""
    if one.is_compressed or image.GetNumberOfComponentsPerPixel() != 1 or index >= image.GetSize()[2]:
        return  # fragments are decoded by GDCM alone; number of values and size are refused by reading.py
    slope, intercept = _rescale(one)
    expected = one.stored_values() * slope + intercept
    found = sitk.GetArrayViewFromImage(image)[index]
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-6, atol=1e-3):
        raise UnreadableStudy("misread", "SimpleITK reads other values than the DICOM file stores: export the scan again")


def _place(image: sitk.Image, ordered: Sequence[SliceHeader], gap_mm: float) -> None:
    """Put the headers' own geometry on `image`; where SimpleITK's differs in more than the gap of a single slice, refuse."""
    row_mm, column_mm = _spacing(ordered[0])
    spacing, origin = (column_mm, row_mm, gap_mm), _position(ordered[0])
    right, down = np.split(_orientation(ordered[0]), 2)
    direction = np.stack([right, down, _normal(ordered[0])], axis=1).ravel()
    known = 3 if len(ordered) > 1 else 2
    agree = _near(image.GetSpacing()[:known], spacing[:known], GEOMETRY_TOLERANCE * gap_mm) and _near(image.GetOrigin(), origin)
    if not agree or not _near(image.GetDirection(), direction):
        raise UnreadableStudy(
            "misread", "SimpleITK places a DICOM series elsewhere than its headers say: export the scan again"
        )
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(tuple(float(value) for value in direction))


def _near(one: Numbers, other: Numbers, atol: float = 1e-3) -> bool:
    return bool(np.allclose(one, other, rtol=1e-4, atol=atol))


def _spacing(one: SliceHeader) -> tuple[float, float]:
    """Between rows, between columns, in mm."""
    values = one.decimals("pixel_spacing", 2)
    if values is None or min(values) <= 0:
        raise UnreadableStudy("bad-spacing", "a DICOM slice does not give its pixel spacing: export the scan again")
    return values[0], values[1]


def _thickness(one: SliceHeader) -> float:
    """Extent of a single slice; nothing else says how far it reaches."""
    for name in ("gap", "thickness"):
        values = one.decimals(name, 1)
        if values is not None and values[0] > 0:
            return values[0]
    raise UnreadableStudy("bad-spacing", "a single DICOM slice does not give its thickness: export the whole series")


def _orientation(one: SliceHeader) -> NDArray[np.float64]:
    values = one.decimals("orientation", 6)
    if values is None:
        raise UnreadableStudy("bad-header", "a DICOM slice does not say how it lies in the patient: export the scan again")
    right, down = np.split(np.array(values), 2)
    if not _near([right @ right, down @ down, right @ down], [1, 1, 0]):
        raise UnreadableStudy("sheared", "rows and columns of a DICOM slice are not at right angles: export the scan again")
    return np.concatenate([right / np.linalg.norm(right), down / np.linalg.norm(down)])


def _normal(one: SliceHeader) -> NDArray[np.float64]:
    right, down = np.split(_orientation(one), 2)
    return np.cross(right, down)


def _position(one: SliceHeader) -> tuple[float, float, float]:
    values = one.decimals("position", 3)
    if values is None:
        raise UnreadableStudy("bad-header", "a DICOM slice does not say where it lies: export the scan again")
    return values[0], values[1], values[2]


def _rescale(one: SliceHeader) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the file gives none."""
    slope = one.decimals("slope", 1) if one.text("slope") else (1.0,)
    intercept = one.decimals("intercept", 1) if one.text("intercept") else (0.0,)
    if slope is None or intercept is None or slope[0] == 0:
        raise UnreadableStudy("bad-header", "the rescale of a DICOM slice is not two numbers with a slope other than 0")
    return slope[0], intercept[0]
