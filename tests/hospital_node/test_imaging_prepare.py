"""Preparation: the plan's grid, right places in the world, one patient at a time; the cache is checked, never believed."""

import json
import math
import os
import shutil
import stat

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from hospital_node import prepare as prepare_module
from hospital_node.cases import discover
from hospital_node.cohort import Case, Cohort, LabelImage, Nodule, Nodules, UnreadableStudy
from hospital_node.intensity import robust_zscore, window
from hospital_node.prepare import TooManySkipped, load_case, load_scan, prepare
from hospital_node.prepared_cache import CacheError, PreparedCache
from hospital_node.resample import Grid, draw_nodules, is_oblique, resample_image, target_grid
from proto.plan import Preparation

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def plan(spacing=(2.0, 2.0, 2.0), window_hu=(-1000.0, 400.0), skipped=0.5) -> Preparation:
    return Preparation(
        modality="CT", spacing_xyz_mm=spacing, window_hu=window_hu, patch_zyx=(16, 16, 16), max_skipped_share=skipped
    )


def ball_scan(path, centre=(12.0, -7.0, 41.0), radius=6.0, spacing=(1.3, 1.7, 2.9), direction=UPRIGHT, size=(40, 36, 20)):
    """A bright ball at a known place of the world, on any grid; the volume is centred near it."""
    image = sitk.Image(size, sitk.sitkInt16)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    middle = image.TransformContinuousIndexToPhysicalPoint([extent / 2 for extent in size])
    image.SetOrigin([c - m + 2 for c, m in zip(centre, middle, strict=True)])
    points = np.array([image.TransformIndexToPhysicalPoint(tuple(map(int, i[::-1]))) for i in np.ndindex(*size[::-1])])
    inside = np.linalg.norm(points - centre, axis=1) <= radius
    voxels = np.where(inside, 200, -900).reshape(size[::-1]).astype(np.int16)
    filled = sitk.GetImageFromArray(voxels)
    filled.CopyInformation(image)
    sitk.WriteImage(filled, str(path))
    return Case("jones", path, Nodules((Nodule(*centre, 2 * radius),)))


def turned(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0)


def folder_of(path, count=4):
    """A flat LUNA16 folder; series 0 and 1 are of one patient."""
    path.mkdir(parents=True)
    rows, patients = ["seriesuid,coordX,coordY,coordZ,diameter_mm"], ["seriesuid,patient"]
    for index in range(count):
        case = ball_scan(path / f"s{index}.mhd", centre=(3.0 * index, 5.0, -20.0), size=(24, 24, 16))
        sphere = case.label.spheres[0]
        rows.append(f"s{index},{sphere.x_mm},{sphere.y_mm},{sphere.z_mm},{sphere.diameter_mm}")
        patients.append(f"s{index},jones-{max(index, 1)}")
    (path / "annotations.csv").write_text("\r\n".join(rows))
    (path / "patients.csv").write_text("\n".join(patients))
    return path


# --- places in the world


@pytest.mark.parametrize(
    "direction",
    [
        UPRIGHT,
        (-1, 0, 0, 0, -1, 0, 0, 0, 1),
        (-1, 0, 0, 0, 1, 0, 0, 0, 1),
        (0, 0, 1, 1, 0, 0, 0, -1, 0),
        turned(0.5),
        turned(9),
        turned(-40),
    ],
)
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 1.5, 3.0), (1.3, 1.7, 2.9)])
def test_the_annotated_ball_is_where_the_bright_ball_is(tmp_path, direction, spacing):
    case = ball_scan(tmp_path / "s.mha", direction=direction)
    image, label = load_case(case, plan(spacing), 1)
    assert image.shape == label.shape
    bright = image > window_value(-350)
    overlap = 2 * (bright & (label > 0)).sum() / (bright.sum() + label.sum())
    assert overlap > 0.8
    assert label.sum() * np.prod(spacing) == pytest.approx(4 / 3 * math.pi * 6**3, rel=0.2)
    middle = tuple(np.rint(np.argwhere(label).mean(axis=0)).astype(int))
    assert image[middle] == pytest.approx(window_value(200), abs=1e-5)


def window_value(hu):
    return float(window(-1000, 400).apply(np.array([hu], np.float32))[0])


def test_left_stays_left(tmp_path):
    """x runs to the patient's left: a bright left half has high x, however the file stores it."""
    voxels = np.full((6, 8, 10), -900, np.int16)
    voxels[:, :, 7:] = 100  # world x from 7 mm on
    image = sitk.GetImageFromArray(voxels)
    mirrored = sitk.Flip(image, (True, False, False))  # same world, other storage order
    assert mirrored.GetDirection()[0] == -1
    for index, one in enumerate((image, mirrored)):
        path = tmp_path / f"{index}.nii.gz"
        sitk.WriteImage(one, str(path))
        loaded, _ = load_case(Case("p", path, Nodules(())), plan((1, 1, 1)), 1)
        assert (loaded[:, :, 7:] > 0.5).all()
        assert (loaded[:, :, :7] < 0).all()


def test_image_and_label_image_move_together(tmp_path):
    case = ball_scan(tmp_path / "s.mha", direction=turned(20), spacing=(2.0, 2.0, 2.0))
    scan = sitk.ReadImage(str(case.image))
    sitk.WriteImage(sitk.Cast(scan > 0, sitk.sitkUInt8), str(tmp_path / "l.mha"))
    image, label = load_case(Case("p", case.image, LabelImage(tmp_path / "l.mha")), plan((1.5, 1.5, 1.5)), 1)
    assert set(np.unique(label)) == {0, 1}
    bright = image > window_value(-350)
    assert 2 * (bright & (label > 0)).sum() / (bright.sum() + label.sum()) > 0.9


def test_a_nodule_smaller_than_a_voxel_still_marks_its_voxel():
    grid = Grid((10, 10, 10), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0), UPRIGHT)
    label = draw_nodules([Nodule(13.0, 7.0, 25.0, 0.5)], grid)
    assert np.argwhere(label).tolist() == [[8, 2, 4]]


@pytest.mark.parametrize("point", [(-2.0, 5, 5), (5, 29.0, 5), (5, 5, 1e9)])
def test_a_nodule_outside_its_scan_is_refused(point):
    with pytest.raises(UnreadableStudy) as caught:
        draw_nodules([Nodule(*point, 8.0)], Grid((10, 10, 10), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0), UPRIGHT))
    assert caught.value.code == "annotation-outside"


@given(st.tuples(*[st.floats(0.3, 29)] * 3), st.floats(0.1, 40), st.tuples(*[st.sampled_from((0.7, 1.0, 2.6))] * 3))
def test_spheres_agree_with_the_obvious_way(centre, diameter, spacing):
    size = tuple(math.ceil(30 / step) for step in spacing)
    label = draw_nodules([Nodule(*centre, diameter)], Grid(size, spacing, (0.0, 0.0, 0.0), UPRIGHT))
    z, y, x = np.indices(size[::-1])
    distance = np.sqrt(sum((axis * step - c) ** 2 for axis, step, c in zip((x, y, z), spacing, centre, strict=True)))
    expected = distance <= diameter / 2
    on_the_edge = np.abs(distance - diameter / 2) < 1e-9  # mm; either answer is right
    expected[on_the_edge] = (label > 0)[on_the_edge]
    expected[tuple(round(c / step) for c, step in zip(centre, spacing, strict=True))[::-1]] = True
    np.testing.assert_array_equal(label > 0, expected)


@given(
    st.tuples(*[st.integers(1, 60)] * 3),
    st.tuples(*[st.floats(0.3, 6)] * 3),
    st.tuples(*[st.floats(0.5, 5)] * 3),
)
def test_target_grid_covers_the_scan_and_stays_inside(size, old, new):
    image = sitk.Image(size, sitk.sitkUInt8)
    image.SetSpacing(old)
    grid = target_grid(image, new)
    for extent, step, n, a, first in zip(grid.size_xyz, grid.spacing_xyz_mm, size, old, grid.origin_xyz_mm, strict=True):
        last = first + (extent - 1) * step
        assert -a / 2 - 1e-6 <= first
        assert last <= (n - 0.5) * a + 1e-6
        assert abs(extent * step - n * a) <= max(step, step / 2 + 1e-6)


def test_a_linear_ramp_survives_resampling():
    ramp = (np.arange(20.0)[:, None, None] + 0.5 * np.arange(30) + np.zeros((1, 4, 1))).astype(np.float32)
    image = sitk.GetImageFromArray(ramp)
    found = sitk.GetArrayFromImage(resample_image(image, target_grid(image, (1.5, 1.0, 0.8)), 1))
    z = (np.arange(found.shape[0]) + 0.5) * 0.8 - 0.5
    x = (np.arange(found.shape[2]) + 0.5) * 1.5 - 0.5
    expected = z[:, None, None] + 0.5 * x + np.zeros((1, 4, 1))
    np.testing.assert_allclose(found[1:-1, :, 1:-1], expected[1:-1, :, 1:-1], atol=1e-4)


@pytest.mark.parametrize(("degrees", "oblique"), [(0.0, False), (0.9, False), (1.1, True), (-30, True)])
def test_what_counts_as_oblique(degrees, oblique):
    image = sitk.Image([4, 4, 4], sitk.sitkUInt8)
    image.SetDirection(turned(degrees))
    assert is_oblique(image) == oblique


def test_a_grid_too_large_for_the_plan_is_refused():
    image = sitk.Image([400, 400, 400], sitk.sitkUInt8)
    image.SetSpacing((50.0, 50.0, 50.0))
    with pytest.raises(UnreadableStudy) as caught:
        target_grid(image, (1.0, 1.0, 1.0))
    assert caught.value.code == "implausible-size"


# --- intensities


def test_window_maps_its_ends_to_minus_one_and_one():
    values = np.array([-3024, -1000, -300, 400, 3071], np.float32)
    np.testing.assert_allclose(window(-1000, 400).apply(values), [-1, -1, 0, 1, 1], atol=1e-6)


@given(st.floats(1e-2, 1e4), st.floats(-1e3, 1e3))
def test_zscore_ignores_the_scale_of_a_scan(gain, offset):
    values = np.random.default_rng(0).gamma(2, 100, (8, 9, 10)).astype(np.float32)
    other = (gain * values + offset).astype(np.float32)
    ours, theirs = robust_zscore(values).apply(values.copy()), robust_zscore(other).apply(other.copy())
    assert abs(ours.mean()) < 1e-3
    assert ours.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(ours, theirs, atol=2e-2 + 1e-4 * abs(offset) / gain)


def test_one_hot_voxel_does_not_set_the_scale():
    values = np.random.default_rng(0).normal(0, 1, (10, 10, 10)).astype(np.float32)
    hot = values.copy()
    hot[0, 0, 0] = 1e7
    ours, theirs = robust_zscore(values).apply(values.copy()), robust_zscore(hot).apply(hot)
    np.testing.assert_allclose(ours[1:], theirs[1:], atol=0.1)


@pytest.mark.parametrize("hu", [None, (-1000.0, 400.0)])
def test_a_blank_scan_is_refused(tmp_path, hu):
    sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkInt16) + 7, str(tmp_path / "b.mha"))
    with pytest.raises(UnreadableStudy) as caught:
        load_case(Case("p", tmp_path / "b.mha", Nodules(())), plan(window_hu=hu), 1)
    assert caught.value.code == "blank"


# --- prepare and its cache


def test_two_series_of_one_patient_are_one_prepared_patient(tmp_path):
    prepared = prepare(discover(folder_of(tmp_path / "d")), plan(), 1, tmp_path / "c")
    assert sorted(len(patient.cases) for patient in prepared.patients) == [1, 1, 2]
    assert prepared.cases == 4
    keys = [patient.key for patient in prepared.patients]
    assert keys == sorted(keys)
    case = prepared.patients[0].cases[0]
    assert isinstance(case.image, np.memmap)
    assert (case.image.dtype, case.label.dtype) == (np.float32, np.uint8)


def test_removing_a_patient_leaves_every_other_tensor_bit_identical(tmp_path):
    everyone = discover(folder_of(tmp_path / "d"))
    fewer = Cohort(everyone.layout, tuple(case for case in everyone.cases if case.patient != "jones-2"))
    one = {
        p.key: [c.image.tobytes() + c.label.tobytes() for c in p.cases]
        for p in prepare(everyone, plan(), 1, tmp_path / "c").patients
    }
    (tmp_path / "e").mkdir()
    (tmp_path / "e/patient-key.secret").write_bytes((tmp_path / "c/patient-key.secret").read_bytes())
    other = {
        p.key: [c.image.tobytes() + c.label.tobytes() for c in p.cases]
        for p in prepare(fewer, plan(), 1, tmp_path / "e").patients
    }
    assert len(other) == len(one) - 1
    assert all(one[key] == other[key] for key in other)


def test_keys_are_opaque_secret_and_stable(tmp_path):
    cohort = discover(folder_of(tmp_path / "d"))
    first = prepare(cohort, plan(), 1, tmp_path / "c")
    again = prepare(cohort, plan(), 1, tmp_path / "c")
    elsewhere = prepare(cohort, plan(), 1, tmp_path / "e")
    assert [p.key for p in first.patients] == [p.key for p in again.patients]
    assert not {p.key for p in first.patients} & {p.key for p in elsewhere.patients}
    secret = tmp_path / "c/patient-key.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    for path in (tmp_path / "c").rglob("*"):
        assert "jones" not in path.name
        assert not path.is_file() or b"jones" not in path.read_bytes()
    assert "jones" not in repr(first)
    assert first.patients[0].key not in repr(first)


def test_keys_outlive_the_cache_where_their_secret_lies_elsewhere(tmp_path):
    cohort, secret = discover(folder_of(tmp_path / "d")), tmp_path / "patients.secret"
    first = prepare(cohort, plan(), 1, tmp_path / "c", secret=secret)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert not list((tmp_path / "c").rglob("*.secret"))
    shutil.rmtree(tmp_path / "c")
    again = prepare(cohort, plan(), 1, tmp_path / "c", secret=secret)
    assert [p.key for p in again.patients] == [p.key for p in first.patients]


def test_a_secret_found_in_the_cache_moves_and_what_was_prepared_stays(tmp_path, loads):
    cohort, secret = discover(folder_of(tmp_path / "d")), tmp_path / "patients.secret"
    first = prepare(cohort, plan(), 1, tmp_path / "c")
    prepared = len(loads)
    again = prepare(cohort, plan(), 1, tmp_path / "c", secret=secret)
    assert [p.key for p in again.patients] == [p.key for p in first.patients]
    assert len(loads) == prepared
    assert secret.exists()
    assert not (tmp_path / "c/patient-key.secret").exists()


@pytest.fixture
def loads(monkeypatch):
    """Counts how often a case is really prepared."""
    calls = []

    def counted(*arguments):
        calls.append(arguments[0])
        return load_scan(*arguments)

    monkeypatch.setattr(prepare_module, "load_scan", counted)
    return calls


def test_the_cache_is_used_and_a_changed_plan_or_file_is_not_served_from_it(tmp_path, loads):
    data = folder_of(tmp_path / "d")
    prepare(discover(data), plan(), 1, tmp_path / "c")
    prepare(discover(data), plan(), 1, tmp_path / "c")
    assert len(loads) == 4
    prepare(discover(data), plan(spacing=(3.0, 3.0, 3.0)), 1, tmp_path / "c")
    assert len(loads) == 8
    ball_scan(data / "s3.mhd", centre=(9.0, 5.0, -20.0), radius=4, size=(24, 24, 16))
    prepare(discover(data), plan(), 1, tmp_path / "c")
    assert [case.image.stem for case in loads[8:]] == ["s3"]
    text = (data / "annotations.csv").read_text()
    (data / "annotations.csv").write_text(text.replace("s1,3.0", "s1,4.0"))
    prepare(discover(data), plan(), 1, tmp_path / "c")
    assert [case.image.stem for case in loads[9:]] == ["s1"]


def test_touching_a_file_rehashes_but_does_not_prepare_it_again(tmp_path, loads):
    data = folder_of(tmp_path / "d")
    prepare(discover(data), plan(), 1, tmp_path / "c")
    os.utime(data / "s1.raw", ns=(1, 1))
    prepare(discover(data), plan(), 1, tmp_path / "c")
    assert len(loads) == 4


@pytest.mark.parametrize("ending", ["image.npy", "label.npy", "json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_noticed_and_made_again(tmp_path, loads, ending, damage):
    cohort = discover(folder_of(tmp_path / "d"))
    whole = prepare(cohort, plan(), 1, tmp_path / "c")
    expected = [case.image.tobytes() for patient in whole.patients for case in patient.cases]
    victim = min((tmp_path / "c").rglob(f"*.{ending}"))
    data = bytearray(victim.read_bytes())
    if damage == "gone":
        victim.unlink()
    else:
        data[-3] ^= 1
        victim.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    again = prepare(cohort, plan(), 1, tmp_path / "c")
    assert [case.image.tobytes() for patient in again.patients for case in patient.cases] == expected
    assert len(loads) == 5
    assert again.rebuilt == (0 if (ending, damage) == ("json", "gone") else 1)
    assert prepare(cohort, plan(), 1, tmp_path / "c").rebuilt == 0


def test_an_interrupted_run_is_taken_up_where_it_stopped(tmp_path, loads):
    cohort = discover(folder_of(tmp_path / "d"))

    def stop(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(cohort, plan(), 1, tmp_path / "c", stop)
    (entry,) = [path.parent for path in (tmp_path / "c").rglob("*.json")][:1]
    (entry / "0123.image.npy.part").write_bytes(b"half")
    seen = []
    assert prepare(cohort, plan(), 1, tmp_path / "c", lambda done, total: seen.append((done, total))).cases == 4
    assert len(loads) == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_unreadable_studies_are_skipped_counted_and_reported(tmp_path):
    data = folder_of(tmp_path / "d")
    (data / "s2.raw").unlink()
    (data / "s3.raw").write_bytes(b"short")
    (data / "patients.csv").write_text("seriesuid,patient\ns0,p\ns1,p\ns2,q\ns3,r\n")
    prepared = prepare(discover(data), plan(skipped=0.5), 1, tmp_path / "c")
    assert prepared.skipped == {"missing-data": 1, "truncated": 1}
    assert [len(patient.cases) for patient in prepared.patients] == [2]
    with pytest.raises(TooManySkipped, match=r"2 of 4 studies .*1 missing-data, 1 truncated.*allows 49%") as caught:
        prepare(discover(data), plan(skipped=0.49), 1, tmp_path / "c")
    assert caught.value.code == "too-few-patients"
    assert caught.value.skipped == {"missing-data": 1, "truncated": 1}


def test_studies_left_out_while_listing_count_too(tmp_path):
    data = folder_of(tmp_path / "d")
    (data / "patients.csv").write_text("seriesuid,patient\ns0,p\n")
    with pytest.raises(TooManySkipped, match="3 of 4 studies"):
        prepare(discover(data), plan(skipped=0.5), 1, tmp_path / "c")


def test_no_usable_patient_is_too_few_whatever_the_plan_allows(tmp_path):
    with pytest.raises(TooManySkipped, match="the folder is empty"):
        prepare(Cohort("manifest", ()), plan(skipped=1.0), 1, tmp_path / "c")


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "c").write_text("a file, not a folder")
    with pytest.raises(CacheError, match="cannot write the cache"):
        prepare(discover(folder_of(tmp_path / "d")), plan(), 1, tmp_path / "c")


def test_a_damaged_secret_stops_with_a_sentence(tmp_path):
    PreparedCache.open(tmp_path / "c", plan(), 1)
    (tmp_path / "c/patient-key.secret").write_bytes(b"short")
    with pytest.raises(CacheError, match="remove the cache folder"):
        PreparedCache.open(tmp_path / "c", plan(), 1)


def test_an_index_entry_names_digests_only(tmp_path):
    prepare(discover(folder_of(tmp_path / "d", count=1)), plan(), 1, tmp_path / "c")
    (entry,) = (tmp_path / "c").rglob("*.json")
    assert set(json.loads(entry.read_text())) == {"sources", "spheres_sha256", "image_sha256", "label_sha256"}


# --- real volumes


@pytest.mark.data
def test_hippocampus_prepares_with_both_labels_and_front_before_back(shared_data, tmp_path):
    found = discover(shared_data / "msd-hippocampus", site="site-d")
    few = Cohort(found.layout, found.cases[:6])
    mr = Preparation(modality="MR", spacing_xyz_mm=(1.0, 1.0, 1.0), patch_zyx=(32, 32, 32))
    prepared = prepare(few, mr, 2, tmp_path / "c")
    for patient in prepared.patients:
        for case in patient.cases:
            assert set(np.unique(case.label)) == {0, 1, 2}
            assert abs(float(case.image.mean())) < 0.1
            front, back = (np.argwhere(case.label == value).mean(axis=0) for value in (1, 2))
            assert front[1] < back[1]  # y runs to the back: label 1 is the anterior part
            assert front[0] < back[0]  # z runs to the head: the tail lies higher


@pytest.mark.data
def test_a_real_tumour_is_where_its_world_coordinates_say(shared_data, tmp_path):
    folder = shared_data / "ct-lung/lung-pet-ct-dx"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "A0001/dicom")))
    rows = (folder / "annotations_world.csv").read_text().splitlines()
    uid = rows[1].split(",")[0]  # the first row is A0001's
    sitk.WriteImage(reader.Execute(), str(tmp_path / f"{uid}.mhd"))
    (tmp_path / "annotations.csv").write_text("\r\n".join(rows))
    (case,) = discover(tmp_path).cases
    image, label = load_case(case, plan(), 1)
    middle = tuple(np.rint(np.argwhere(label).mean(axis=0)).astype(int))
    around = image[tuple(slice(index - 1, index + 2) for index in middle)]
    assert window_value(-150) < around.mean() < window_value(150)
