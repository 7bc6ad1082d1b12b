"""Labels as DICOM SEG, beside the slices that they were drawn on, so that a PACS and its viewers show them over the scan.

Rule: one segment for each label of the plan, one frame for each slice and label that holds something, at that slice's place.
Patient, study and frame of reference are copied from the slices: the file belongs to this patient and stays where scans stay.
Needs the extra `dicom` (highdicom, Herrmann et al. 2022, Journal of Digital Imaging 35).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its documentation uses
from numpy.typing import NDArray

from hospital_node.dicom_header import series_files
from hospital_node.durable import write_whole
from hospital_node.label_files import LabelFileError

NEEDS_SLICES = "DICOM SEG refers to the slices of a scan: name folders of DICOM slices, or another --format"
SERIES_NUMBER = 9700  # far above those of scanners, so that it comes last in a viewer's list
NAMED_BY_US = "99HSECAGG"  # scheme of codes that no standard has; "99" says that it is private
UTF_8 = "ISO_IR 192"
NEAR_VOXELS = 0.01  # a slice lies on its plane of the labels to this part of a gap


def write_segmentation(labels: sitk.Image, scan: Path, names: Sequence[str], study: str, digest: str, path: Path) -> None:
    """Write `labels` (uint8, in the geometry of the series in folder `scan`). Raises LabelFileError.

    `digest` names the model; `study` whose model it is.
    """
    try:
        import highdicom
        import pydicom
    except ModuleNotFoundError as error:
        raise LabelFileError(f"DICOM SEG needs {error.name}: run pip install '.[dicom]' in the repository's folder") from error
    if not scan.is_dir():
        raise LabelFileError(NEEDS_SLICES)
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in series_files(scan)]
    for each in slices:
        if not each.get("SpecificCharacterSet"):
            each.SpecificCharacterSet = UTF_8  # none or an empty one means ASCII, which highdicom does not take as it is
    planes = planes_of(labels, slices)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom's quote the patient's name
            made = _made(highdicom, slices, sitk.GetArrayFromImage(labels)[planes], names, study, digest)
    except (AttributeError, TypeError, ValueError) as error:  # what highdicom raises for slices without what a SEG has to copy
        raise LabelFileError(f"these slices cannot carry a DICOM SEG ({str(error)[:120]}): use another --format") from error
    content = io.BytesIO()
    made.save_as(content)
    write_whole(path, content.getvalue())


def _made(
    highdicom: Any, slices: Sequence[Any], values: NDArray[np.uint8], names: Sequence[str], study: str, digest: str
) -> Any:
    return highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=values,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_described(highdicom, number, name, digest) for number, name in enumerate(names, start=1)],
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="hospital-secagg",
        manufacturer_model_name=study,
        software_versions=version("hospital-secagg"),
        device_serial_number=digest[:16],
        series_description=f"{', '.join(names)} (research)"[:64],
    )


def planes_of(labels: sitk.Image, slices: Sequence[Any]) -> NDArray[np.int64]:
    """Which plane of the labels lies on each slice. Raises LabelFileError where one lies on none."""
    places = np.array(
        [labels.TransformPhysicalPointToContinuousIndex([float(one) for one in each.ImagePositionPatient]) for each in slices]
    )
    planes: NDArray[np.int64] = np.rint(places[:, 2]).astype(np.int64)
    off = np.abs(places - np.stack([np.zeros_like(planes), np.zeros_like(planes), planes], axis=1)).max()
    if off > NEAR_VOXELS or planes.min() < 0 or planes.max() >= labels.GetSize()[2] or len(set(planes)) != len(planes):
        raise LabelFileError("the labels do not lie on the slices of the scan: report this as a fault of the software")
    return planes


def _described(highdicom: Any, number: int, name: str, digest: str) -> Any:
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.BodyStructure,
        segmented_property_type=highdicom.sr.CodedConcept(f"LABEL{number}", NAMED_BY_US, name[:64]),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="hospital-secagg", version=digest[:16], family=codes.DCM.ArtificialIntelligence
        ),
    )
