"""DICOM SEG read back by two libraries that did not write it: the same voxels at the same place of the same patient."""

from __future__ import annotations

import sys

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from hospital_node.dicom_seg import SERIES_NUMBER, planes_of, write_segmentation
from hospital_node.label_files import LabelFileError
from hospital_node.reading import read_stored

NAMES = ("soft tissue", "bone")
DIGEST = "ab" * 32


@pytest.fixture
def scan(shared_data):
    return shared_data / "ct-lung" / "dcmqi-ct-3slice" / "dicom"


def labelled(scan) -> sitk.Image:
    """Soft tissue in all slices, bone nowhere but in the last one."""
    stored = read_stored(scan)
    values = sitk.GetArrayFromImage(stored)
    labels = (values > 0).astype(np.uint8)
    labels[-1][values[-1] > 300] = 2
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(stored)
    return image


@pytest.fixture
def written(scan, tmp_path, capfd):
    labels = labelled(scan)
    write_segmentation(labels, scan, NAMES, "trial", DIGEST, tmp_path / "seg.dcm")
    said = capfd.readouterr()
    assert "JANCT" not in said.out + said.err  # the patient's name, which the writing library warns about
    return labels, tmp_path / "seg.dcm"


def rebuilt(path, labels) -> np.ndarray:
    """The volume from each frame's own position and segment, by pydicom."""
    seg = pydicom.dcmread(path)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    volume = np.zeros(labels.GetSize()[::-1], np.uint8)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        position = [float(one) for one in groups.PlanePositionSequence[0].ImagePositionPatient]
        x, y, z = labels.TransformPhysicalPointToIndex(position)
        assert (x, y) == (0, 0)
        volume[z][frame > 0] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return volume


def test_every_voxel_comes_back_at_its_place(written):
    labels, path = written
    assert np.array_equal(rebuilt(path, labels), sitk.GetArrayFromImage(labels))
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert [float(one) for one in shared.PixelMeasuresSequence[0].PixelSpacing] == pytest.approx(labels.GetSpacing()[1::-1])
    axes = [float(one) for one in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    direction = np.array(labels.GetDirection()).reshape(3, 3)
    assert axes == pytest.approx([*direction[:, 0], *direction[:, 1]])


def test_itk_reads_the_same_frames(written):
    labels, path = written
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0
    values = sitk.GetArrayFromImage(labels)
    assert len(frames) == 3 + 1  # soft tissue in each slice, bone in one
    assert frames.sum() == (values > 0).sum()


def test_it_belongs_to_the_patient_and_the_study_and_says_who_drew_it(written, scan):
    seg, source = pydicom.dcmread(written[1]), pydicom.dcmread(scan / "01.dcm", stop_before_pixels=True)
    for field in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[field].value == source[field].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert (seg.SOPClassUID.name, seg.SeriesNumber) == ("Segmentation Storage", SERIES_NUMBER)
    assert [one.SegmentLabel for one in seg.SegmentSequence] == list(NAMES)
    assert {one.SegmentAlgorithmType for one in seg.SegmentSequence} == {"AUTOMATIC"}
    assert seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == DIGEST[:16]
    referred = {one.ReferencedSOPInstanceUID for one in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert source.SOPInstanceUID in referred
    assert len(referred) == 3


def test_labels_of_another_place_are_refused(scan):
    labels = labelled(scan)
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(scan.iterdir())]
    assert sorted(planes_of(labels, slices)) == [0, 1, 2]
    labels.SetOrigin([one + 1.0 for one in labels.GetOrigin()])
    with pytest.raises(LabelFileError, match="do not lie on the slices"):
        planes_of(labels, slices)


def test_what_is_missing_is_named(scan, tmp_path, monkeypatch):
    labels = labelled(scan)
    with pytest.raises(LabelFileError, match="name folders of DICOM slices"):
        write_segmentation(labels, scan / "01.dcm", NAMES, "trial", DIGEST, tmp_path / "a.dcm")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(LabelFileError, match=r"DICOM SEG needs highdicom: run pip install '.\[dicom\]'"):
        write_segmentation(labels, scan, NAMES, "trial", DIGEST, tmp_path / "a.dcm")
    assert not list(tmp_path.iterdir())
