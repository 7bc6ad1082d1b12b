"""Read one volume, or refuse it by name: right voxels or an UnreadableStudy, never something in between.

Order of the checks (the numbers label the code): 1 the format is known; 2 the header is sane and the file long enough, before
anything is allocated; 3 SimpleITK loads what the header said, and the file's own checksum holds; 4 spacing and axes are usable;
5 all values are finite; 6 axes are brought to LPS, by permuting and flipping with the origin moved along, so that every voxel
keeps its place in the world and left stays left. Arrays are (z, y, x): x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from hospital_node.cohort import UnreadableStudy
from hospital_node.dicom import read_series
from hospital_node.dicom_header import SUFFIXES
from hospital_node.metaimage import promised_metaimage
from hospital_node.nifti import promised_nifti
from hospital_node.nrrd import promised_nrrd
from hospital_node.wholeness import Promise, Size

AXES, PAIRS = "LPS", ("LR", "PA", "SI")
MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 50.0  # micro-CT to the thickest slices; outside, the header is wrong
ORTHOGONAL_TOLERANCE = 1e-3  # of direction cosines; headers carry six digits
FORMATS: tuple[tuple[tuple[str, ...], Callable[[Path], Promise], str], ...] = (
    ((".mhd", ".mha"), promised_metaimage, "MetaImageIO"),
    ((".nii", ".nii.gz"), promised_nifti, "NiftiImageIO"),
    ((".nrrd",), promised_nrrd, "NrrdImageIO"),
)
GRID_TOLERANCE = 0.05  # voxels: how far a label's grid may lie from its image's


@dataclass(frozen=True, slots=True)
class Volume:
    """One scan in LPS axes. `direction` is row by row; it is the identity unless the scan is oblique."""

    array: NDArray[np.float32] = field(repr=False)  # (z, y, x)
    spacing_xyz_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction: tuple[float, ...]


def read_image(path: Path) -> Volume:
    """Read a scan into memory as float32. Raises UnreadableStudy."""
    image = sitk.Cast(read_oriented(path), sitk.sitkFloat32)
    spacing, origin = image.GetSpacing(), image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), spacing, origin, image.GetDirection())


def read_oriented(path: Path) -> sitk.Image:
    """Read a scan as a SimpleITK image with axes in LPS order, in its stored pixel type. Raises UnreadableStudy."""
    return to_lps(read_stored(path))  # 6


def read_stored(path: Path) -> sitk.Image:
    """Read a scan as it is stored, its axes as they come. Raises UnreadableStudy."""
    sitk.ProcessObject.GlobalWarningDisplayOff()  # ITK's warnings on stderr quote paths, which may name patients
    load = _loader(path)  # 1
    try:
        image, size = load(path)  # 2, 3
    except OSError as error:
        raise UnreadableStudy("unreadable", f"a file cannot be opened ({error.strerror}): check its permissions") from None
    except RuntimeError:  # SimpleITK's text quotes the path, which may name a patient
        raise UnreadableStudy(
            "unreadable", "SimpleITK cannot read the volume: open it in a viewer and export it again"
        ) from None
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    _check_loaded(image, size)  # 3
    _check_geometry(image)  # 4
    _check_finite(image)  # 5
    return image


def orientation(image: sitk.Image) -> str:
    """Where the stored axes of an image point to, as three letters: LPS for left, back, head."""
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()))


def to_lps(image: sitk.Image) -> sitk.Image:
    """Permute and flip an image to LPS axes, in two steps: DICOMOrient would hold three copies at once."""
    letters = orientation(image)
    order = [next(axis for axis, letter in enumerate(letters) if letter in pair) for pair in PAIRS]
    flips = [letters[axis] not in AXES for axis in order]
    if order != [0, 1, 2]:
        image = sitk.PermuteAxes(image, order)
    return sitk.Flip(image, flips) if any(flips) else image


def read_label(path: Path, image: sitk.Image, labels: int) -> sitk.Image:
    """Read a label image as uint8 on the grid of `image` (from `read_oriented`). Raises UnreadableStudy."""
    label = read_oriented(path)
    if not same_grid(image, label):
        raise UnreadableStudy("label-mismatch", "label and image differ in size, spacing, origin or axes: resample the label")
    values = sitk.GetArrayViewFromImage(label)
    whole = values.dtype.kind != "f" or all(np.array_equal(slab, np.floor(slab)) for slab in values)
    if values.min() < 0 or values.max() > labels or not whole:
        raise UnreadableStudy("label-values", f"the label image holds other values than 0 to {labels}")
    return sitk.Cast(label, sitk.sitkUInt8)


def same_grid(one: sitk.Image, other: sitk.Image) -> bool:
    """Say whether both grids have the same size, and their corners at the same places of the world."""
    if one.GetSize() != other.GetSize():
        return False
    tolerance_mm = GRID_TOLERANCE * min(one.GetSpacing())
    far = tuple(extent - 1 for extent in one.GetSize())
    corners = ((0, 0, 0), far, (far[0], 0, 0), (0, far[1], 0))
    return all(
        math.dist(one.TransformIndexToPhysicalPoint(corner), other.TransformIndexToPhysicalPoint(corner)) <= tolerance_mm
        for corner in corners
    )


def _loader(path: Path) -> Callable[[Path], tuple[sitk.Image, Size]]:
    name = path.name.lower()
    if path.is_dir() or name.endswith(SUFFIXES):
        return read_series
    for endings, promised, image_io in FORMATS:
        if name.endswith(endings):
            return partial(_checked, promised, image_io)
    raise UnreadableStudy(
        "unsupported-format",
        "the file is neither MetaImage, NIfTI, NRRD nor a folder of DICOM slices: export it as one of these",
    )


def _checked(promised: Callable[[Path], Promise], image_io: str, path: Path) -> tuple[sitk.Image, Size]:
    promise = promised(path)  # 2
    try:
        image = sitk.ReadImage(str(path), imageIO=image_io)  # 3
    except RuntimeError:
        promise.inflate()  # it may say better why
        raise
    promise.keep(sitk.GetArrayViewFromImage(image))  # 3
    return image, promise.size_xyz


def _check_loaded(image: sitk.Image, size: Size) -> None:
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UnreadableStudy("not-scalar", "the volume has more than one value per voxel")
    if image.GetSize() != size:
        raise UnreadableStudy(
            "bad-header", "SimpleITK understands the header differently: write the volume again with SimpleITK"
        )


def _check_geometry(image: sitk.Image) -> None:
    if not all(MIN_SPACING_MM <= spacing <= MAX_SPACING_MM for spacing in image.GetSpacing()):
        raise UnreadableStudy(
            "bad-spacing", f"a spacing is not between {MIN_SPACING_MM} and {MAX_SPACING_MM} mm: correct the header"
        )
    if not all(math.isfinite(value) for value in image.GetOrigin()):
        raise UnreadableStudy("bad-header", "the origin is not finite: correct the header")
    axes = np.asarray(image.GetDirection()).reshape(3, 3)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=ORTHOGONAL_TOLERANCE):
        raise UnreadableStudy("sheared", "the axes are not at right angles (tilted gantry?): resample the scan upright")


def _check_finite(image: sitk.Image) -> None:
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not all(np.isfinite(slab).all() for slab in values):
        raise UnreadableStudy("nonfinite", "some voxels are not numbers or infinite: export the scan again")
