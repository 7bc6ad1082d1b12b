"""Readers: right voxels in the right place, or a refusal by name. Never a silent misreading."""

import gzip
import itertools
import math
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from hospital_node.cohort import SKIP_CODES, UnreadableStudy
from hospital_node.metaimage import check_metaimage
from hospital_node.reading import read_image, read_label, read_oriented, same_grid

HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 1 2 3
ElementSpacing = 1 2 3
DimSize = 4 3 2
ElementType = MET_SHORT
ElementDataFile = a.raw
"""
VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4)


def refusal(path: Path) -> str:
    with pytest.raises(UnreadableStudy) as caught:
        read_image(path)
    assert path.name not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return caught.value.code


@pytest.fixture
def pair(tmp_path):
    """A whole .mhd/.raw pair; returns a function that rewrites its header with one change."""
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes())

    def write(old="", new="", **_):
        path = tmp_path / "patient-jones.mhd"
        assert old in HEADER
        path.write_text(HEADER.replace(old, new) if old else HEADER + new)
        return path

    return write


def some_image(seed=0, size=(9, 8, 7)) -> sitk.Image:
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, size[::-1]).astype(np.int16))
    image.SetSpacing((1.5, 2.0, 2.5))
    image.SetOrigin((-10.0, 20.0, 30.0))
    return image


# --- MetaImage headers


def test_mhd_pair_is_read_as_written(pair):
    volume = read_image(pair())
    np.testing.assert_array_equal(volume.array, VOXELS)
    assert volume.array.dtype == np.float32
    assert volume.spacing_xyz_mm == (1, 2, 3)
    assert volume.origin_xyz_mm == (1, 2, 3)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("ElementDataFile = a.raw", "ElementDataFile = /etc/passwd", "outside-folder"),
        ("ElementDataFile = a.raw", "ElementDataFile = ../secret.bin", "outside-folder"),
        ("ElementDataFile = a.raw", "ElementDataFile: /etc/passwd", "outside-folder"),
        ("ElementDataFile = a.raw", "ElementDataFile = C:\\secret.bin", "outside-folder"),
        ("ElementDataFile = a.raw", "ElementDataFile = b.raw", "missing-data"),
        ("ElementDataFile = a.raw", "ElementDataFile = LIST", "unsupported-header"),
        ("ElementDataFile = a.raw", "ElementDataFile = a%03d.raw 1 2 1", "unsupported-header"),
        ("ElementDataFile = a.raw\n", "", "bad-header"),
        ("DimSize = 4 3 2", "DimSize = 100000 100000 100", "implausible-size"),
        ("DimSize = 4 3 2", "DimSize = 4 3 3", "truncated"),
        ("DimSize = 4 3 2", "DimSize = 4 3 1", "truncated"),
        ("DimSize = 4 3 2", "DimSize = 4 3 -2", "bad-header"),
        ("DimSize = 4 3 2", "DimSize = 4 3 0", "implausible-size"),
        ("DimSize = 4 3 2", "DimSize = 4 3", "bad-header"),
        ("NDims = 3", "NDims = 4", "not-3d"),
        ("NDims = 3\n", "NDims = 3\nElementNumberOfChannels = 3\n", "not-scalar"),
        ("MET_SHORT", "MET_LONG", "unsupported-header"),
        ("MET_SHORT", "MET_DOUBLE", "truncated"),
        ("BinaryData = True", "BinaryData = False", "unsupported-header"),
        ("NDims = 3\n", "NDims = 3\nHeaderSize = 4\n", "unsupported-header"),
        ("NDims = 3\n", "NDims = 3\nElementToIntensityFunctionSlope = 2\n", "unsupported-header"),
        ("CompressedData = False", "CompressedData = True", "truncated"),
        ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 3000", "bad-spacing"),
        ("TransformMatrix = 1 0 0 0 1 0", "TransformMatrix = 1 0 0 0.5 1 0", "sheared"),
        ("NDims = 3\n", "NDims = 3\nNDims = 2\n", "bad-header"),
        ("NDims = 3\n", "NDims = 3\nOrigin = 9 9 9\n", "bad-header"),
        ("NDims = 3\n", "NDims = 3\nRotation = 0 1 0 1 0 0 0 0 1\n", "bad-header"),
    ],
)
def test_a_bad_header_is_refused_by_name(pair, old, new, code):
    assert refusal(pair(old, new)) == code


def test_junk_before_the_byte_order_would_swap_all_bytes_and_is_refused(pair):
    path = pair("BinaryDataByteOrderMSB = False", "a stray remark\nBinaryDataByteOrderMSB = True")
    (path.parent / "a.raw").write_bytes(VOXELS.astype(">i2").tobytes())
    misread = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert not np.array_equal(misread, VOXELS), "SimpleITK reads this header rightly now: the rule may be relaxed"
    assert refusal(path) == "bad-header"


def test_big_endian_raw_is_read_rightly(pair):
    path = pair("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = True")
    (path.parent / "a.raw").write_bytes(VOXELS.astype(">i2").tobytes())
    np.testing.assert_array_equal(read_image(path).array, VOXELS)


def test_extra_keys_blank_lines_and_crlf_are_read(pair):
    path = pair("NDims = 3\n", 'PatientName = J\u00f6rg\n\nNDims = 3\nSome_values = "x\n')
    path.write_bytes(path.read_text().encode("latin-1").replace(b"\n", b"\r\n"))
    np.testing.assert_array_equal(read_image(path).array, VOXELS)


@pytest.mark.parametrize("change", ["cut", "padded"])
def test_raw_of_another_length_is_refused(pair, change):
    path = pair()
    data = VOXELS.tobytes()
    (path.parent / "a.raw").write_bytes(data[:-2] if change == "cut" else data + bytes(1000))
    assert refusal(path) == "truncated"


@pytest.mark.parametrize("suffix", [".mhd", ".mha"])
def test_compressed_metaimage_is_read_and_each_damage_refused(tmp_path, suffix):
    image = some_image()
    path = tmp_path / f"c{suffix}"
    sitk.WriteImage(image, str(path), useCompression=True)
    np.testing.assert_array_equal(read_image(path).array, sitk.GetArrayFromImage(image))
    data = path.with_suffix(".zraw") if suffix == ".mhd" else path
    whole = data.read_bytes()
    for damaged in (whole[:-20], whole + b"x", whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:]):
        data.write_bytes(damaged)
        assert refusal(path) == "truncated"


def test_wrong_compressed_size_is_refused(pair):
    stored = zlib.compress(VOXELS.tobytes())
    path = pair("CompressedData = False", f"CompressedData = True\nCompressedDataSize = {len(stored)}")
    (path.parent / "a.raw").write_bytes(stored)
    np.testing.assert_array_equal(read_image(path).array, VOXELS)
    path = pair("CompressedData = False", f"CompressedData = True\nCompressedDataSize = {len(stored) - 3}")
    assert refusal(path) == "truncated"


def test_a_zip_bomb_is_given_up_after_the_stated_length(pair):
    path = pair("CompressedData = False", "CompressedData = True")
    (path.parent / "a.raw").write_bytes(zlib.compress(bytes(1 << 26)))
    assert refusal(path) == "truncated"


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_header_are_refused_or_checked_never_a_crash(tmp_path_factory, noise):
    path = tmp_path_factory.getbasetemp() / "noise.mhd"
    path.write_bytes(noise)
    with pytest.raises(UnreadableStudy):
        check_metaimage(path)


# --- NIfTI


@pytest.fixture
def nifti(tmp_path):
    path = tmp_path / "jones.nii.gz"
    sitk.WriteImage(some_image(), str(path))
    return path


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.02])
def test_cut_gzip_nifti_is_refused_where_simpleitk_reads_zeros(shared_data, tmp_path, share):
    whole = (shared_data / "msd-hippocampus/images/hippocampus_003.nii.gz").read_bytes()
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(whole[: int(share * len(whole))])
    assert sitk.ReadImage(str(path)).GetSize() == (34, 52, 35)  # no error
    assert refusal(path) == "truncated"


def test_cut_plain_nifti_is_refused(nifti, tmp_path):
    plain = tmp_path / "cut.nii"
    whole = gzip.decompress(nifti.read_bytes())
    plain.write_bytes(whole)
    np.testing.assert_array_equal(read_image(plain).array, sitk.GetArrayFromImage(some_image()))
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole + b"\0", whole[:300], b""):
        plain.write_bytes(damaged)
        assert refusal(plain) in {"truncated", "bad-header"}


@pytest.mark.parametrize("where", [0.5, 0.999])
def test_flipped_byte_in_gzip_is_refused(nifti, where):
    data = bytearray(nifti.read_bytes())
    data[int(where * len(data)) - 1] ^= 0x40
    nifti.write_bytes(data)
    assert refusal(nifti) in {"truncated", "bad-header"}


@pytest.mark.parametrize(
    ("offset", "value", "code"),
    [
        (40, (4).to_bytes(2, "little") + b"\x09\0\x08\0\x07\0\x14\0", "not-3d"),
        (40, (2).to_bytes(2, "little"), "not-3d"),
        (40, (9).to_bytes(2, "little"), "bad-header"),
        (42, b"\xff\x7f\xff\x7f\xff\x7f", "implausible-size"),
        (42, b"\xff\xff", "bad-header"),
        (70, (128).to_bytes(2, "little"), "not-scalar"),
        (72, (32).to_bytes(2, "little"), "bad-header"),
        (344, b"ni1\0", "bad-header"),
    ],
)
def test_bad_nifti_header_is_refused(nifti, offset, value, code):
    plain = nifti.with_name("jones.nii")
    data = bytearray(gzip.decompress(nifti.read_bytes()))
    data[offset : offset + len(value)] = value
    plain.write_bytes(data)
    assert refusal(plain) == code


# --- axes


def world(image: sitk.Image, index) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in image.TransformIndexToPhysicalPoint(tuple(int(i) for i in index)))


SIGNED_AXES = [
    tuple(float(value) for value in (np.eye(3)[list(order)] * np.array(signs)[:, None]).ravel())
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("direction", SIGNED_AXES)
def test_every_axis_order_comes_to_lps_with_each_voxel_in_its_place(tmp_path, direction):
    image = some_image()  # half of the 48 directions are left-handed
    image.SetDirection(direction)
    path = tmp_path / "d.mhd"
    sitk.WriteImage(image, str(path))
    oriented = read_oriented(path)
    np.testing.assert_allclose(oriented.GetDirection(), np.eye(3).ravel(), atol=1e-6)
    before = {world(image, i): image[i] for i in np.ndindex(*image.GetSize())}
    after = {world(oriented, i): oriented[i] for i in np.ndindex(*oriented.GetSize())}
    assert after == before


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "msd-hippocampus/images/hippocampus_003.nii.gz",
        "ct-lung/totalsegmentator/example_ct.nii.gz",
    ],
)
def test_nifti_agrees_with_nibabel_voxel_by_voxel(shared_data, name):
    """nibabel's RAS world against ours: LPS is RAS with x and y negated, so arrays[z, y, x] runs to L, P, S."""
    volume = read_image(shared_data / name)
    other = nibabel.as_closest_canonical(nibabel.load(shared_data / name))
    expected = np.asarray(other.dataobj, np.float32)[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)
    last = np.array([other.shape[0] - 1, other.shape[1] - 1, 0, 1])
    np.testing.assert_allclose(volume.origin_xyz_mm, (other.affine @ last)[:3] * (-1, -1, 1), atol=1e-3)


# --- real files (tests of the odd ones: test_imaging_odd.py)


@pytest.mark.data
def test_the_same_voxels_in_mha_and_zraw(shared_data):
    folder = shared_data / "odd/mhd-grand-challenge"
    one, other = read_image(folder / "image10x10x10.mha"), read_image(folder / "image10x10x10.mhd")
    np.testing.assert_array_equal(one.array, other.array)
    assert one.array.min() > 0
    assert one.array.max() < 1


@pytest.mark.data
def test_luna16_header_without_its_raw_is_refused(shared_data):
    (header,) = (shared_data / "ct-lung/luna16").glob("*.mhd")
    assert refusal(header) == "missing-data"


@pytest.mark.data
def test_elastix_mha_and_its_mask_lie_together(shared_data):
    folder = shared_data / "ct-lung/elastix-lung"
    scan = read_oriented(folder / "3DCT_lung.mha")
    mask = read_label(folder / "3DCT_lung_baseline_mask.mha", scan, 1)
    values, inside = sitk.GetArrayFromImage(scan), sitk.GetArrayFromImage(mask) > 0
    assert inside.sum() == 721_043
    assert values[inside].mean() == pytest.approx(-896, abs=1)
    assert values[~inside].mean() == pytest.approx(-108, abs=1)


@pytest.mark.data
def test_a_mask_of_another_grid_is_refused(shared_data):
    folder = shared_data / "ct-lung/elastix-lung"
    scan = read_oriented(folder / "3DCT_lung.mha")
    with pytest.raises(UnreadableStudy) as caught:
        read_label(folder / "3DCT_lung_followup_mask.mha", scan, 1)
    assert caught.value.code == "label-mismatch"
    image = read_oriented(shared_data / "msd-hippocampus/images/hippocampus_003.nii.gz")
    with pytest.raises(UnreadableStudy) as caught:
        read_label(shared_data / "odd/msd-orphans/label_hippocampus_281.nii.gz", image, 2)
    assert caught.value.code == "label-mismatch"


# --- labels and values


@pytest.mark.parametrize(("value", "ok"), [(2, True), (3, False), (-1, False), (0.5, False)])
def test_label_values_are_those_of_the_plan(tmp_path, value, ok):
    image = some_image()
    label = sitk.Cast(image, sitk.sitkFloat32) * 0.0
    label[3, 3, 3] = value
    sitk.WriteImage(label, str(tmp_path / "l.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / "i.nii.gz"))
    scan = read_oriented(tmp_path / "i.nii.gz")
    if ok:
        assert sitk.GetArrayFromImage(read_label(tmp_path / "l.nii.gz", scan, 2)).max() == value
    else:
        with pytest.raises(UnreadableStudy) as caught:
            read_label(tmp_path / "l.nii.gz", scan, 2)
        assert caught.value.code == "label-values"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_voxel_that_is_no_number_is_refused(tmp_path, value):
    image = sitk.Cast(some_image(), sitk.sitkFloat32)
    image[1, 2, 3] = value
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    assert refusal(tmp_path / "x.mha") == "nonfinite"


def test_grids_that_differ_by_a_mirror_are_not_the_same():
    one, other = some_image(), some_image()
    other.SetOrigin((-10.0 + 8 * 1.5, 20.0, 30.0))
    other.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert same_grid(one, some_image(1))
    assert not same_grid(one, other)


def test_other_formats_and_unknown_codes_are_refused(tmp_path):
    (tmp_path / "scan.dcm").write_bytes(b"x")
    assert refusal(tmp_path / "scan.dcm") == "unsupported-format"
    assert refusal(tmp_path / "absent.nii.gz") == "unreadable"
    with pytest.raises(ValueError, match="SKIP_CODES"):
        UnreadableStudy("new-code", "x")
    assert all(text[0].islower() or text.startswith("SimpleITK") for text in SKIP_CODES.values())
