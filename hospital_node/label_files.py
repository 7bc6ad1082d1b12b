"""Label volumes on disk: written whole or not at all, in the format that the name's ending says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hospital_node.durable import sync_folder

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813 - the name its documentation uses

VOLUMES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
SEGMENTATION = ".dcm"  # DICOM SEG: dicom_seg.py
ENDINGS = (*VOLUMES, SEGMENTATION)
COMPRESSED = (".nii.gz", ".mha", ".nrrd")


class LabelFileError(RuntimeError):
    """A label volume that cannot be written; the text says why and what to do."""


def output_path(scan: Path, folder: Path, ending: str) -> Path:
    """Where the labels of `scan` go. Raises LabelFileError for an ending that is not in `ENDINGS`."""
    if ending not in ENDINGS:
        raise LabelFileError(f"labels cannot be written as '{ending}': use one of {', '.join(ENDINGS)}")
    name = (
        scan.name if scan.is_dir() else scan.name.removesuffix(".gz").removesuffix(Path(scan.name.removesuffix(".gz")).suffix)
    )
    return folder / f"{name}-labels{ending}"


def write_labels(image: sitk.Image, path: Path) -> None:
    """Write `image` (uint8) as one of `VOLUMES`. Raises LabelFileError; what was there stays then."""
    import SimpleITK as sitk  # noqa: N813  loads in half a second, which a command that only refuses need not wait for

    ending = next(one for one in VOLUMES if path.name.endswith(one))
    with tempfile.TemporaryDirectory(prefix=".labels-", dir=path.parent) as place:
        part = Path(place) / path.name
        try:
            sitk.WriteImage(image, str(part), useCompression=ending in COMPRESSED)
        except RuntimeError:  # SimpleITK's text quotes the path
            raise LabelFileError(f"the labels cannot be written to {path.parent}: is the disk full?") from None
        for file in sorted(Path(place).iterdir(), key=lambda one: one.name == path.name):  # voxels before the header
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            file.replace(path.parent / file.name)
    sync_folder(path.parent)
