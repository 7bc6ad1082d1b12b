"""NRRD: attached, whole, one value per voxel, and placed in the patient; anything else is refused by name."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hospital_node.cohort import UnreadableStudy
from hospital_node.nrrd import check_nrrd
from hospital_node.reading import read_image, read_oriented

HEADER = """NRRD0004
# a remark
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 3 2
space directions: (1.5,0,0) (0,2,0) (0,0,3)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (10,20,30)

"""
VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4)
STORED = VOXELS.tobytes()


def put(tmp_path, old="", new="", data=STORED):
    assert old in HEADER
    path = tmp_path / "jones.nrrd"
    path.write_bytes(HEADER.replace(old, new, 1).encode() + data)
    return path


def code_of(path) -> str:
    with pytest.raises(UnreadableStudy) as caught:
        read_image(path)
    assert "jones" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz"])
def test_voxels_and_place_are_those_of_the_header(tmp_path, encoding):
    data = VOXELS.tobytes() if encoding == "raw" else gzip.compress(VOXELS.tobytes())
    volume = read_image(put(tmp_path, "encoding: raw", f"encoding: {encoding}", data))
    np.testing.assert_array_equal(volume.array, VOXELS)
    assert volume.spacing_xyz_mm == (1.5, 2, 3)
    assert volume.origin_xyz_mm == (10, 20, 30)


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (-1, -1, 1)), ("left-anterior-superior", (1, -1, 1)), ("RAS", (-1, -1, 1))],
)
def test_other_spaces_are_turned_to_lps(tmp_path, space, signs):
    image = read_oriented(put(tmp_path, "left-posterior-superior", space))
    first = tuple(sign * value for sign, value in zip(signs, (10, 20, 30), strict=True))
    assert image[image.TransformPhysicalPointToIndex(first)] == 0
    step = (first[0] + signs[0] * 1.5, first[1], first[2])
    assert image[image.TransformPhysicalPointToIndex(step)] == 1


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("encoding: raw\n", "encoding: raw\ndata file: /etc/passwd\n", "outside-folder"),
        ("encoding: raw\n", "encoding: raw\ndatafile: a.raw\n", "outside-folder"),
        ("encoding: raw\n", "encoding: raw\nbyte skip: -1\n", "unsupported-header"),
        ("encoding: raw\n", "encoding: raw\nlineskip: 2\n", "unsupported-header"),
        ("encoding: raw", "encoding: bzip2", "unsupported-header"),
        ("encoding: raw", "encoding: gzip", "truncated"),
        ("sizes: 4 3 2", "sizes: 100000 100000 100", "implausible-size"),
        ("sizes: 4 3 2", "sizes: 4 3 3", "truncated"),
        ("sizes: 4 3 2", "sizes: 4 3 1", "truncated"),
        ("sizes: 4 3 2", "sizes: 4 3", "bad-header"),
        ("dimension: 3", "dimension: 4", "not-3d"),
        ("kinds: domain domain domain", "kinds: vector domain domain", "not-scalar"),
        ("space: left-posterior-superior", "space: scanner-xyz", "no-orientation"),
        ("space: left-posterior-superior\n", "", "no-orientation"),
        ("space directions: (1.5,0,0) (0,2,0) (0,0,3)", "spacings: 1.5 2 3", "no-orientation"),
        ("space directions: (1.5,0,0) (0,2,0)", "space directions: (1.5,0,0) (1,2,0)", "sheared"),
        ("type: short", "type: block", "unsupported-header"),
        ("endian: little\n", "", "bad-header"),
        ("endian: little", "endian: little\nendian: big", "bad-header"),
        ("NRRD0004", "NRRD0009", "bad-header"),
        ("\n\n", "\n", "bad-header"),
    ],
)
def test_a_bad_header_is_refused_by_name(tmp_path, old, new, code):
    assert code_of(put(tmp_path, old, new)) == code


def test_cut_and_damaged_voxels_are_refused(tmp_path):
    packed = gzip.compress(VOXELS.tobytes())
    for damaged in (packed[:-9], packed[:-1], packed[:-5] + bytes([packed[-5] ^ 1]) + packed[-4:], b""):
        assert code_of(put(tmp_path, "encoding: raw", "encoding: gzip", damaged)) == "truncated"
    assert code_of(put(tmp_path, data=VOXELS.tobytes() + b"x")) == "truncated"


@given(st.integers(0, len(HEADER)), st.binary(min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_damage_to_a_header_is_refused_or_checked_never_a_crash(tmp_path_factory, at, noise):
    path = tmp_path_factory.getbasetemp() / "noise.nrrd"
    whole = HEADER.encode() + VOXELS.tobytes()
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    try:
        assert min(check_nrrd(path)) > 0
    except UnreadableStudy:
        return
