"""Rules of a plan that look at one scan: windows by name, Hounsfield units, contrast, finer grids; several at once."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hospital_node.cohort import Case, Cohort, LabelImage, Nodule, Nodules, UnreadableStudy
from hospital_node.intensity import (
    LEVELS,
    STEEPEST,
    contrast_of,
    equalised,
    histogram,
    looks_like_hounsfield,
    restandardised,
    robust_zscore,
    window,
)
from hospital_node.parallel import each
from hospital_node.prepare import load_case, load_scan, prepare
from hospital_node.resample import smallest_mm
from proto.plan import Preparation

CT = {"modality": "CT", "spacing_xyz_mm": (2.0, 2.0, 2.0), "patch_zyx": (8, 8, 8)}
FINE = {"fine_below_mm": 5.0, "fine_spacing_xyz_mm": (1.0, 1.0, 1.0)}


def plan(**fields) -> Preparation:
    return Preparation.model_validate(CT | {"window_hu": (-1000.0, 400.0)} | fields)


def chest(seed=0, size=(24, 22, 20)) -> np.ndarray:
    """Air outside, tissue, two lungs: the values that a CT has."""
    z, y, x = np.indices(size)
    across = (x - size[2] / 2) / (size[2] / 2), (y - size[1] / 2) / (size[1] / 2)
    body = across[0] ** 2 + across[1] ** 2 < 0.8
    lungs = ((np.abs(across[0]) - 0.4) ** 2 + across[1] ** 2 < 0.08) & (z > 3)
    noise = np.random.default_rng(seed).normal(0, 20, size)
    return (np.where(lungs, -850, np.where(body, 40, -1000)) + noise).astype(np.int16)


def write(path, values, spacing=(1.0, 1.0, 1.0)) -> Path:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


# --- the plan


@pytest.mark.parametrize(("name", "window_hu"), [("lung", [-1350, 150]), ("soft-tissue", [-160, 240]), ("bone", [-500, 1300])])
def test_a_window_by_name_is_the_same_plan_as_its_numbers(name, window_hu):
    assert plan(window_hu=name) == plan(window_hu=window_hu)
    assert json.loads(plan(window_hu=name).model_dump_json())["window_hu"] == window_hu


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"window_hu": "brain"}, "'brain' is none of lung, soft-tissue, bone"),
        ({"fine_below_mm": 3.0}, "go together"),
        ({"fine_spacing_xyz_mm": (1, 1, 1)}, "go together"),
        ({"fine_below_mm": 3.0, "fine_spacing_xyz_mm": (2, 2, 2)}, "finer"),
        ({"fine_below_mm": 3.0, "fine_spacing_xyz_mm": (1, 1, 3)}, "no axis coarser"),
        ({"modality": "MR", "window_hu": None, "hounsfield_check": True}, "hounsfield_check is for CT"),
        ({"equalise_below": 0}, "greater than 0"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(fields, text):
    with pytest.raises(ValidationError, match=text):
        plan(**fields)


# --- Hounsfield units


@pytest.mark.parametrize(
    ("change", "is_ct"),
    [
        (lambda v: v, True),
        (lambda v: v + 1024, False),  # stored values without their intercept
        (lambda v: v - 1024, False),  # the intercept twice
        (lambda v: v * 0 + 40, False),
        (lambda v: np.clip(v, -160, 240), False),  # a window burnt in
        (lambda v: np.where(v == v.min(), -3024, v), True),  # padding outside the field of view
    ],
)
def test_what_looks_like_hounsfield_units(tmp_path, change, is_ct):
    values = change(chest().astype(np.int32)).astype(np.int16)
    assert looks_like_hounsfield(values) == is_ct
    case = Case("p", write(tmp_path / "v.mha", values), Nodules(()))
    if is_ct:
        load_case(case, plan(hounsfield_check=True), 1)
    elif values.min() != values.max():
        load_case(case, plan(), 1)
        with pytest.raises(UnreadableStudy) as caught:
            load_case(case, plan(hounsfield_check=True), 1)
        assert caught.value.code == "not-hounsfield"


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["lung-pet-ct-dx/A0002/dicom", "elastix-lung/3DCT_lung.mha", "totalsegmentator/example_ct.nii.gz"]
)
def test_real_scans_look_like_hounsfield_units(shared_data, name):
    case = Case("p", shared_data / "ct-lung" / name, Nodules(()))
    assert load_scan(case, plan(hounsfield_check=True, spacing_xyz_mm=(8, 8, 8)), 1).label.any() == False  # noqa: E712


# --- equalisation


@given(st.integers(0, 5), st.floats(1, 30), st.floats(-500, 300))
def test_equalisation_is_monotone_stays_in_range_and_raises_low_contrast(seed, spread, level):
    values = np.random.default_rng(seed).normal(level, spread, (6, 7, 8)).astype(np.float32)
    before = window(-1000, 400)
    after = equalised(before, values, 0.5)
    assert after.curve is not None
    assert (np.diff(after.curve) > -1e-9).all()
    assert np.diff(after.curve).max() <= (1 + STEEPEST) * 1400 / LEVELS + 1e-9
    plain, stretched = before.apply(values.copy()), after.apply(values.copy())
    assert stretched.min() >= -1 - 1e-5
    assert stretched.max() <= 1 + 1e-5
    assert stretched.std() > plain.std()
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(stretched.reshape(-1)[order]) >= -1e-5).all()


def test_a_scan_of_enough_contrast_is_left_alone():
    values = chest()
    assert contrast_of(histogram(values, -1000, 400)) > 0.5
    assert equalised(window(-1000, 400), values, 0.5) is not None
    assert equalised(window(-1000, 400), values, 0.5).curve is None


def test_an_equalised_mr_has_mean_nought_and_deviation_one():
    values = np.random.default_rng(0).gamma(2, 3, (10, 11, 12)).astype(np.float32)
    values[0, 0, :] = 500.0
    scaling = restandardised(equalised(robust_zscore(values), values, 1.0), values)
    assert scaling.curve is not None
    found = scaling.apply(values.copy())
    assert found.mean() == pytest.approx(0, abs=0.02)
    assert found.std() == pytest.approx(1, abs=0.02)


def test_histogram_is_numpys():
    values = np.random.default_rng(0).uniform(-5, 5, (5, 6, 7))
    expected, _ = np.histogram(np.clip(values, -3, 4), LEVELS, (-3, 4))
    np.testing.assert_array_equal(histogram(values, -3.0, 4.0), expected)


# --- finer grid


@pytest.mark.parametrize(("diameters", "shape"), [((4.9, 30), (24, 22, 20)), ((5.0, 30), (12, 11, 10)), ((), (12, 11, 10))])
def test_a_scan_with_a_small_nodule_gets_the_finer_grid(tmp_path, diameters, shape):
    case = Case("p", write(tmp_path / "v.mha", chest()), Nodules(tuple(Nodule(9, 9, 9, one) for one in diameters)))
    image, label = load_case(case, plan(**FINE), 1)
    assert image.shape == label.shape == shape


@pytest.mark.parametrize(("side", "shape"), [(3, (24, 22, 20)), (6, (12, 11, 10))])
def test_a_scan_with_a_small_label_gets_the_finer_grid(tmp_path, side, shape):
    label = np.zeros((24, 22, 20), np.uint8)
    label[4 : 4 + side, 5 : 5 + side, 6 : 6 + side] = 1
    case = Case("p", write(tmp_path / "v.mha", chest()), LabelImage(write(tmp_path / "l.mha", label)))
    assert load_case(case, plan(**FINE), 1)[0].shape == shape


def test_the_size_of_a_structure_is_that_of_a_ball_of_its_volume():
    label = np.zeros((40, 40, 40), np.uint8)
    label[np.linalg.norm(np.indices(label.shape) - 20, axis=0) <= 10] = 2
    image = sitk.GetImageFromArray(label)
    image.SetSpacing((0.5, 1.0, 2.0))
    assert smallest_mm(image) == pytest.approx(20, rel=0.02)
    assert smallest_mm(image * 0) is None


# --- one patient at a time


def cohort_of(folder, count=4) -> Cohort:
    cases = []
    for index in range(count):
        values = (
            chest(index, (24, 22, 20 + index)) if index % 2 else (chest(index) // 9).astype(np.int16)
        )  # every other one flat
        spheres = (Nodule(9.0, 9.0, 9.0, 4.0 + index),)
        cases.append(Case(f"jones-{index}", write(folder / f"s{index}.mha", values), Nodules(spheres)))
    return Cohort("manifest", tuple(cases))


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("gone", range(4))
def test_removing_a_patient_leaves_every_other_tensor_bit_identical_under_every_rule(tmp_path, modality, gone):
    rules = plan(equalise_below=0.3, **FINE)
    if modality == "MR":
        rules = Preparation.model_validate(rules.model_dump() | {"modality": "MR", "window_hu": None})
    everyone = cohort_of(tmp_path)
    fewer = Cohort("manifest", tuple(case for index, case in enumerate(everyone.cases) if index != gone))
    tensors = []
    for name, cohort in (("a", everyone), ("b", fewer)):
        prepared = prepare(cohort, rules, 1, tmp_path / name, secret=tmp_path / "secret", threads=2)
        tensors.append({p.key: [c.image.tobytes() + c.label.tobytes() for c in p.cases] for p in prepared.patients})
    assert len(tensors[1]) == len(tensors[0]) - 1 == 3
    assert all(tensors[0][key] == found for key, found in tensors[1].items())
    assert len({len(one[0]) for one in tensors[0].values()}) > 1  # the finer grid was used for some


# --- several at once


def test_threads_change_no_voxel_and_count_every_scan(tmp_path):
    cohort, seen = cohort_of(tmp_path, 6), []
    one = prepare(cohort, plan(), 1, tmp_path / "a", secret=tmp_path / "s")
    two = prepare(cohort, plan(), 1, tmp_path / "b", lambda *at: seen.append(at), threads=3, secret=tmp_path / "s")
    assert seen == [(index, 6) for index in range(1, 7)]
    pairs = zip(one.patients, two.patients, strict=True)
    assert all(a.key == b.key and a.cases[0].image.tobytes() == b.cases[0].image.tobytes() for a, b in pairs)


def test_as_many_work_at_once_as_there_are_threads():
    meeting = threading.Barrier(3, timeout=120)
    assert sorted(each(lambda item: meeting.wait() * 0 + item, range(6), 3)) == [(index, index) for index in range(6)]


def test_who_stops_taking_results_keeps_nobody_working():
    begun = []
    results = each(lambda item: begun.append(item) or item, list(range(100)), 2)
    assert next(results)[1] in (0, 1)
    results.close()
    time.sleep(0.05)
    assert len(begun) <= 3


def test_what_work_raises_is_raised_to_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(each(lambda item: 1 // item, [2, 1, 0, 5], 2))
