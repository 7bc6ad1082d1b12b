"""Every odd file ends as the right voxels or as a refusal by name; what is right comes from readers other than SimpleITK."""

import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from hospital_node.cohort import UnreadableStudy
from hospital_node.reading import read_image

READ = {  # file -> shape (z, y, x), lowest and highest value
    "dicom-pydicom/CT_small.dcm": ((1, 128, 128), -896, 1167),
    "dicom-pydicom/MR_small.dcm": ((1, 64, 64), 127, 2145),
    "dicom-pydicom/MR_small_RLE.dcm": ((1, 64, 64), 127, 2145),
    "dicom-pydicom/MR_small_bigendian.dcm": ((1, 64, 64), 127, 2145),
    "dicom-pydicom/MR_small_expb.dcm": ((1, 64, 64), 127, 2145),
    "dicom-pydicom/MR_small_implicit.dcm": ((1, 64, 64), 127, 2145),
    "dicom-pydicom/MR_small_jp2klossless.dcm": ((1, 64, 64), 127, 2145),
    "dicom-pydicom/MR_small_jpeg_ls_lossless.dcm": ((1, 64, 64), 127, 2145),
    "dicom-pydicom/MR_small_padded.dcm": ((1, 64, 64), 127, 2145),
    "mhd-grand-challenge/image10x10x10.mha": ((10, 10, 10), 8.34119e-05, 0.9991854),
    "mhd-grand-challenge/image10x10x10.mhd": ((10, 10, 10), 8.34119e-05, 0.9991854),
    "mhd-grand-challenge/image10x11x12.nii.gz": ((12, 11, 10), 0, 1319),
    "mhd-grand-challenge/image5x6x7.mhd": ((7, 6, 5), -10, 9),
    "msd-orphans/image_hippocampus_118.nii.gz": ((33, 52, 37), 1, 168),
    "msd-orphans/label_hippocampus_010.nii.gz": ((31, 50, 36), 0, 2),
    "msd-orphans/label_hippocampus_281.nii.gz": ((94, 512, 512), 0, 1),
    "nifti/anatomical.nii": ((25, 41, 33), -610, 30393),
    "nifti/reoriented_anat_moved.nii": ((22, 26, 21), 0, 21199.94),
    "nifti/standard.nii.gz": ((7, 5, 4), 0, 255),
    "nifti/totalseg_left_handed_512x512x20.nii.gz": ((20, 512, 512), 0, 117),
    "nrrd/breast1_image.nrrd": ((21, 120, 45), 6, 248),
    "nrrd/breast1_label.nrrd": ((21, 120, 45), 0, 1),
    "nrrd/prostate_phantom_subvolume-label.nrrd": ((13, 67, 82), 0, 9),
    "nrrd/prostate_phantom_subvolume.nrrd": ((13, 67, 82), 0, 2017),
}
REFUSED = {
    "dicom-nibabel/decimal_rescale.dcm": "not-a-scan",
    "dicom-nibabel/slicethickness_empty_string.dcm": "bad-spacing",
    "dicom-pydicom/ExplVR_BigEndNoMeta.dcm": "unsupported-format",
    "dicom-pydicom/JPEG-lossy.dcm": "unsupported-format",
    "dicom-pydicom/JPEG2000-embedded-sequence-delimiter.dcm": "unsupported-format",
    "dicom-pydicom/JPEG2000.dcm": "unsupported-format",
    "dicom-pydicom/JPGExtended.dcm": "unsupported-format",
    "dicom-pydicom/MR_truncated.dcm": "truncated",
    "dicom-pydicom/SC_rgb_small_odd.dcm": "not-a-scan",
    "dicom-pydicom/UN_sequence.dcm": "bad-header",
    "dicom-pydicom/badVR.dcm": "not-a-scan",
    "dicom-pydicom/empty_charset_LEI.dcm": "not-a-scan",
    "dicom-pydicom/image_dfl.dcm": "unsupported-format",
    "dicom-pydicom/liver_1frame.dcm": "not-a-scan",
    "dicom-pydicom/meta_missing_tsyntax.dcm": "bad-header",
    "dicom-pydicom/no_meta.dcm": "unsupported-format",
    "dicom-pydicom/rtdose.dcm": "not-a-scan",
    "dicom-pydicom/rtdose_expb.dcm": "not-a-scan",
    "dicom-pydicom/rtplan_truncated.dcm": "truncated",
    "dicom-pydicom/rtstruct.dcm": "unsupported-format",
    "dicom-pydicom/test-SR.dcm": "not-a-scan",
    "mhd-grand-challenge/image10x10x10-extra-stuff.mhd": "bad-header",
    "mhd-grand-challenge/image10x11x12x13-extra-stuff.mhd": "not-3d",
    "mhd-grand-challenge/image10x11x12x13.mhd": "not-3d",
    "mhd-grand-challenge/image128x256x3RGB.mhd": "not-scalar",
    "mhd-grand-challenge/image3x4.mhd": "not-3d",
    "mhd-grand-challenge/invalid_utf8.mhd": "bad-header",
    "mhd-grand-challenge/referring_to_system_file.mhd": "outside-folder",
    "nifti/example4d.nii.gz": "not-3d",
    "nifti/example_nifti2.nii.gz": "unsupported-format",
    "nifti/functional.nii": "not-3d",
}
NO_SCANS = ("LICENSE", "COPYING", "README", "SHA256SUMS")
SAME_VOXELS = ("", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless", "_padded")
ODD = Path(os.environ.get("SECAGG_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "odd"
FILES = sorted(str(path.relative_to(ODD)) for path in ODD.rglob("*") if path.is_file())

pytestmark = pytest.mark.data


def expected_of(name: str):
    if name.rsplit("/", 1)[-1].startswith(NO_SCANS) or name.endswith(".zraw"):
        return "unsupported-format"
    if "/window/" in name:
        return "not-3d"
    if name.startswith("dicom-gantry-tilt/"):
        return (1, 512, 512), -1500.0, None  # one slice alone is not tilted against anything
    return READ.get(name) or REFUSED[name]


@pytest.mark.parametrize("name", FILES)
def test_each_odd_file_ends_as_voxels_or_a_named_refusal(shared_data, name):
    expected = expected_of(name)
    if isinstance(expected, str):
        with pytest.raises(UnreadableStudy) as caught:
            read_image(shared_data / "odd" / name)
        assert caught.value.code == expected
        return
    shape, lowest, highest = expected
    found = read_image(shared_data / "odd" / name).array
    assert found.shape == shape
    assert found.min() == pytest.approx(lowest, rel=1e-5)
    assert highest is None or found.max() == pytest.approx(highest, rel=1e-5)


def test_the_table_names_no_file_that_is_not_there(shared_data):
    assert set(READ) | set(REFUSED) <= {str(path.relative_to(shared_data / "odd")) for path in ODD.rglob("*")}


@pytest.mark.parametrize(("folder", "code"), [("dicom-gantry-tilt", "sheared"), ("dicom-nibabel", "not-a-scan")])
def test_odd_folders_as_series(shared_data, folder, code):
    with pytest.raises(UnreadableStudy) as caught:
        read_image(shared_data / "odd" / folder)
    assert caught.value.code == code


@pytest.mark.parametrize("encoding", SAME_VOXELS)
def test_eight_encodings_of_one_slice_give_the_same_voxels(shared_data, encoding):
    folder = shared_data / "odd/dicom-pydicom"
    plain = (folder / "MR_small.dcm").read_bytes()
    start = plain.index(b"\xe0\x7f\x10\x00OW\0\0") + 12  # of the voxels: explicit little endian, no rescale
    stored = np.frombuffer(plain[start : start + 64 * 64 * 2], "<i2").reshape(1, 64, 64)
    np.testing.assert_array_equal(read_image(folder / f"MR_small{encoding}.dcm").array, stored)


@pytest.mark.parametrize("name", [name for name in READ if name.endswith((".nii", ".nii.gz"))])
def test_nifti_agrees_with_nibabel_voxel_by_voxel(shared_data, name):
    """nibabel's RAS world against ours: LPS is RAS with x and y negated, so arrays[z, y, x] runs to L, P, S."""
    volume = read_image(shared_data / "odd" / name)
    other = nibabel.as_closest_canonical(nibabel.load(shared_data / "odd" / name))
    expected = np.asarray(other.dataobj, np.float32)[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)
    last = np.array([other.shape[0] - 1, other.shape[1] - 1, 0, 1])
    np.testing.assert_allclose(volume.origin_xyz_mm, (other.affine @ last)[:3] * (-1, -1, 1), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in READ if name.endswith(".nrrd")])
def test_nrrd_agrees_with_its_own_bytes(shared_data, name):
    head, _, packed = (shared_data / "odd" / name).read_bytes().partition(b"\n\n")
    size = [int(part) for part in head.split(b"sizes: ")[1].split(b"\n")[0].split()]
    kind = "<u2" if b"type: unsigned short" in head else "<i2"
    stored = np.frombuffer(gzip.decompress(packed), kind).reshape(size[::-1])
    if b"(-0.5,0,0) (0,-0.5,0)" in head:  # stored from left and from behind
        stored = stored[:, ::-1, ::-1]
    np.testing.assert_array_equal(read_image(shared_data / "odd" / name).array, stored)
