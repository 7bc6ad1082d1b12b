"""DICOM series: even, upright stacks of alike slices become volumes in their place; everything else is refused by name."""

import math
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_world import COLUMNS, ROWS, element, series, slice_file, voxels
from hypothesis import given, settings
from hypothesis import strategies as st

from hospital_node.cohort import UnreadableStudy
from hospital_node.dicom_header import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, read_header
from hospital_node.reading import read_image, read_oriented


def code_of(path) -> str:
    with pytest.raises(UnreadableStudy) as caught:
        read_image(path)
    assert str(path) not in str(caught.value)
    return caught.value.code


def test_a_series_is_read_in_the_order_of_its_places_rescaled_once(tmp_path):
    volume = read_image(series(tmp_path / "s"))
    np.testing.assert_array_equal(volume.array, np.stack([voxels(index) - 1000 for index in range(4)]))
    assert volume.spacing_xyz_mm == (0.7, 0.8, 2.5)
    assert volume.origin_xyz_mm == (-10, 20, 0)


@pytest.mark.parametrize("syntax", [EXPLICIT_LITTLE, EXPLICIT_BIG, IMPLICIT_LITTLE])
@pytest.mark.parametrize(("signed", "stored"), [(0, 12), (1, 12), (1, 16), (0, 16)])
def test_encodings_and_signs(tmp_path, syntax, signed, stored):
    low = -30 if signed else 0
    for index in range(3):
        pixels = voxels(index) + low
        fields = {"signed": signed, "stored": stored, "high_bit": stored - 1, "intercept": "0"}
        masked = pixels & ((1 << stored) - 1)
        slice_file(tmp_path / f"{index}.dcm", masked, syntax=syntax, position=f"0\\0\\{index}", **fields)
    np.testing.assert_array_equal(read_image(tmp_path).array, np.stack([voxels(index) + low for index in range(3)]))


@pytest.mark.parametrize(("slope", "intercept"), [("0.5", "-1000"), ("2", "-1024"), ("0.125", "0.25"), ("3", "")])
def test_fractional_rescale_values_are_kept(tmp_path, slope, intercept):
    found = read_image(series(tmp_path / "s", slope=slope, intercept=intercept)).array
    expected = np.stack([voxels(index) for index in range(4)]) * float(slope) + float(intercept or 0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("places", "code"),
    [
        ((0.0, 2.5, 5.0, 5.0), "duplicate-slices"),
        ((0.0, 2.5, 5.0, 10.0), "missing-slices"),
        ((0.0, 2.5, 10.0, 12.5, 15.0), "missing-slices"),
        ((0.0, 2.5, 5.0, 9.0), "uneven-slices"),
        ((0.0, 4.22, 5.36, 12.74), "uneven-slices"),
        (("0\\0\\0", "0\\1\\2.5", "0\\2\\5"), "sheared"),
        (("0\\0\\0", "0\\0\\inf"), "bad-header"),
        (("0\\0\\0", "0\\0"), "bad-header"),
    ],
)
def test_uneven_stacks_are_refused_where_simpleitk_averages_them(tmp_path, places, code):
    assert code_of(series(tmp_path / "s", places)) == code


def test_rounded_positions_are_even_enough(tmp_path):
    volume = read_image(series(tmp_path / "s", [round(0.625 * k, 1) for k in range(9)]))
    assert volume.spacing_xyz_mm[2] == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.7"}, "not-a-scan"),
        ({"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "not-a-scan"),
        ({"frames": "3"}, "unsupported-header"),
        ({"samples": 3}, "not-scalar"),
        ({"photometric": "MONOCHROME1"}, "unsupported-header"),
        ({"photometric": "RGB"}, "unsupported-header"),
        ({"bits": 32, "stored": 32, "high_bit": 31}, "unsupported-header"),
        ({"bits": 32, "stored": 32, "high_bit": 31, "syntax": EXPLICIT_BIG}, "unsupported-header"),
        ({"high_bit": 15}, "unsupported-header"),
        ({"rows": ROWS + 1}, "truncated"),
        ({"rows": 0}, "bad-header"),
        ({"rows": 65535, "columns": 65535}, "truncated"),
        ({"pixel_spacing": None}, "bad-spacing"),
        ({"pixel_spacing": "0.8"}, "bad-spacing"),
        ({"pixel_spacing": "0.8\\0"}, "bad-spacing"),
        ({"orientation": None}, "bad-header"),
        ({"orientation": "1\\0\\0\\0.5\\1\\0"}, "sheared"),
        ({"slope": "0"}, "bad-header"),
        ({"slope": "steep"}, "bad-header"),
        ({"syntax": "1.2.840.10008.1.2.1.99"}, "unsupported-format"),
        ({"syntax": "1.2.840.10008.1.2.4.50"}, "unsupported-format"),
        ({"syntax": "1.2.840.10008.1.2.4.90"}, "bad-header"),
    ],
)
def test_slices_that_are_no_plain_scan_are_refused(tmp_path, fields, code):
    assert code_of(series(tmp_path / "s", **fields)) == code


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"series": "1.2.4"}, "several-series"),
        ({"slope": "2"}, "mixed-slices"),
        ({"intercept": "-1024"}, "mixed-slices"),
        ({"signed": 1}, "mixed-slices"),
        ({"pixel_spacing": "0.9\\0.7"}, "mixed-slices"),
        ({"orientation": "0\\1\\0\\1\\0\\0"}, "mixed-slices"),
    ],
)
def test_one_slice_unlike_the_others_is_refused(tmp_path, fields, code):
    folder = series(tmp_path / "s")
    slice_file(folder / "x.dcm", voxels(4), position="-10\\20\\10", **fields)
    assert code_of(folder) == code


def test_a_cut_slice_and_an_empty_file_are_refused(tmp_path):
    folder = series(tmp_path / "s")
    whole = (folder / "002.dcm").read_bytes()
    for kept in (len(whole) - 1, len(whole) - 20, 300, 140, 0):
        (folder / "002.dcm").write_bytes(whole[:kept])
        assert code_of(folder) in {"truncated", "unsupported-format", "not-a-scan", "bad-header"}


def test_other_files_in_the_folder_are_passed_by(tmp_path):
    folder = series(tmp_path / "s")
    (folder / "LICENSE").write_text("text")
    (folder / "._001.dcm").write_bytes(b"\0\5\26\7")
    (folder / "DICOMDIR").write_bytes(b"x" * 200)
    assert read_image(folder).array.shape == (4, ROWS, COLUMNS)
    assert code_of(tmp_path) == "missing-image"


def test_an_oblique_series_keeps_every_voxel_in_its_place(tmp_path):
    right = np.array([math.cos(0.3), math.sin(0.3), 0.0])
    down = np.array([-math.sin(0.3) * math.cos(0.2), math.cos(0.3) * math.cos(0.2), math.sin(0.2)])
    normal = np.cross(right, down)
    places = ["\\".join(f"{value:.9f}" for value in np.array([5, -7, 11]) + 3.0 * k * normal) for k in range(4)]
    cosines = "\\".join(f"{value:.9f}" for value in [*right, *down])
    image = read_oriented(series(tmp_path / "s", places, orientation=cosines))
    for k, row, column in [(0, 0, 0), (3, 4, 5), (2, 1, 3)]:
        world = np.array([5, -7, 11]) + 3.0 * k * normal + 0.7 * column * right + 0.8 * row * down
        index = image.TransformPhysicalPointToIndex(tuple(world))
        assert image[index] == voxels(k)[row, column] - 1000


@pytest.mark.parametrize("nested", [False, True])
def test_sequences_and_private_fields_are_stepped_over(tmp_path, nested):
    inside = element((0x0028, 0x0010), "US", struct.pack("<H", 99))  # rows of something else
    item = struct.pack("<2HI", 0xFFFE, 0xE000, len(inside)) + inside
    if nested:
        item = struct.pack("<2HI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inside + struct.pack("<2HI", 0xFFFE, 0xE00D, 0)
    open_end = struct.pack("<2H2sHI", 0x0029, 0x1010, b"SQ", 0, 0xFFFFFFFF) + item + struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)
    extra = open_end + element((0x0029, 0x1011), "UN", b"private!")
    assert read_image(series(tmp_path / "s", extra=extra)).array.shape == (4, ROWS, COLUMNS)


@given(st.integers(132, 900), st.binary(min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_damage_to_a_header_is_refused_or_read_never_a_crash(tmp_path_factory, at, noise):
    path = tmp_path_factory.getbasetemp() / "noise.dcm"
    whole = slice_file(path, voxels(0), position="0\\0\\0").read_bytes()
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    try:
        header = read_header(path)
    except UnreadableStudy:
        return
    assert 0 < header.pixels_at <= path.stat().st_size


def test_voxels_that_gdcm_reads_otherwise_are_refused(tmp_path, monkeypatch):
    folder = series(tmp_path / "s")
    real = sitk.ImageSeriesReader.Execute
    monkeypatch.setattr(sitk.ImageSeriesReader, "Execute", lambda reader: real(reader) - 1000)  # the intercept twice
    assert code_of(folder) == "misread"


# --- real series


@pytest.mark.data
@pytest.mark.parametrize("subject", ["A0001", "A0002"])
def test_a_real_series_agrees_with_simpleitks_own_reading(shared_data, subject):
    folder = shared_data / f"ct-lung/lung-pet-ct-dx/{subject}/dicom"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    other, ours = reader.Execute(), read_oriented(folder)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(ours), sitk.GetArrayViewFromImage(other))
    np.testing.assert_allclose(ours.GetOrigin(), other.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(ours.GetSpacing(), other.GetSpacing(), atol=1e-5)


@pytest.mark.data
@pytest.mark.parametrize("name", ["series.mhd", "series.mha", "series.nii.gz", "series.nrrd"])
def test_a_real_dicom_series_written_to_another_format_reads_back_identical(shared_data, tmp_path, name):
    folder = shared_data / "ct-lung/lung-pet-ct-dx/A0002/dicom"
    series_itself = read_oriented(folder)
    sitk.WriteImage(series_itself, str(tmp_path / name))
    again = read_oriented(tmp_path / name)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(again), sitk.GetArrayViewFromImage(series_itself))
    np.testing.assert_allclose(again.GetOrigin(), series_itself.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(again.GetSpacing(), series_itself.GetSpacing(), atol=1e-5)
