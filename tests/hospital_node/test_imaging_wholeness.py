"""A compressed file is whole or refused, whatever byte of it is damaged; no sum of its own fits by accident."""

import gzip
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from hospital_node import nifti
from hospital_node.cohort import UnreadableStudy
from hospital_node.reading import read_image
from hospital_node.wholeness import has_adler, has_crc

SHAPE = (7, 8, 9)


def voxels(seed=0):
    return np.random.default_rng(seed).integers(-900, 900, SHAPE).astype(np.int16)


def written(folder, name):
    """A compressed volume, and where its compressed part begins."""
    path = folder / name
    image = sitk.GetImageFromArray(voxels())
    sitk.WriteImage(image, str(path), useCompression=True)
    data = path.read_bytes()
    starts = {".nii.gz": 0, ".mha": data.find(b"LOCAL") + 6, ".nrrd": data.find(b"\n\n") + 2}
    return path, next(start for ending, start in starts.items() if name.endswith(ending))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_damage_of_the_compressed_part_is_read_as_other_voxels(tmp_path_factory, name, data):
    path, start = written(tmp_path_factory.getbasetemp(), name)
    whole = path.read_bytes()
    at = data.draw(st.integers(start, len(whole) - 1), "at")
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "append"]), "kind")
    noise = data.draw(st.binary(min_size=1, max_size=9), "noise")
    changed = {
        "flip": whole[:at] + bytes([whole[at] ^ (noise[0] or 1)]) + whole[at + 1 :],
        "cut": whole[:at],
        "insert": whole[:at] + noise + whole[at:],
        "append": whole + noise,
    }[kind]
    path.write_bytes(changed)
    try:
        found = read_image(path).array
    except UnreadableStudy:
        return
    plain = np.sort(voxels(), axis=None)  # a nifti's axes are turned, its values stay
    np.testing.assert_array_equal(np.sort(found, axis=None), plain)


def test_a_whole_file_is_not_inflated_a_second_time(tmp_path, monkeypatch):
    path, _ = written(tmp_path, "a.nii.gz")
    monkeypatch.setattr(nifti, "_check_length", lambda *_: pytest.fail("inflated again"))
    assert read_image(path).array.shape == SHAPE


@pytest.mark.parametrize(("slope", "order"), [(2.0, "<"), (1.0, ">"), (0.5, ">")])
def test_rescaled_and_swapped_files_are_inflated_and_read(tmp_path, slope, order):
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(order + "i2"))
    image = nibabel.Nifti1Image(voxels().transpose(2, 1, 0), np.diag([-1, -1, 1, 1]), header)  # stored as they are
    image.header.set_slope_inter(slope, 0)
    path = tmp_path / "a.nii.gz"
    nibabel.save(image, path)
    np.testing.assert_allclose(read_image(path).array, voxels() * slope)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UnreadableStudy) as caught:
        read_image(path)
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
def test_a_file_too_small_for_its_header_is_refused_before_anything_is_allocated(tmp_path, name, monkeypatch):
    path, _ = written(tmp_path, name)
    data = path.read_bytes()
    old = {"a.mha": b"DimSize = 9 8 7", "a.nrrd": b"sizes: 9 8 7"}.get(name)
    if old:
        path.write_bytes(data.replace(old, old.replace(b"9 8 7", b"900 800 700")))
    else:
        plain = bytearray(gzip.decompress(data))
        plain[42:48] = np.array([900, 800, 700], "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(plain)))
    monkeypatch.setattr(sitk, "ReadImage", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(UnreadableStudy) as caught:
        read_image(path)
    assert caught.value.code == "truncated"


def test_sums_are_those_of_gzip_and_zlib(tmp_path):
    values = voxels()
    (tmp_path / "g").write_bytes(gzip.compress(b"head" + values.tobytes()))
    (tmp_path / "z").write_bytes(b"before" + zlib.compress(values.tobytes()))
    assert has_crc(tmp_path / "g", b"head", values)
    assert has_adler(tmp_path / "z", values)
    for other in (voxels(1), values[:-1]):
        assert not has_crc(tmp_path / "g", b"head", other)
        assert not has_adler(tmp_path / "z", other)
    assert not has_crc(tmp_path / "g", b"Head", values)
    (tmp_path / "e").write_bytes(b"")
    assert not has_crc(tmp_path / "e", b"", values)
