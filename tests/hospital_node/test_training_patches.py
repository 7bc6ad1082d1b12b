"""Patches: where they are cut, what stands outside the scan, and on whose chance they depend."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_world import Person, Scan, person, plan

from hospital_node import patches
from hospital_node.prepared import PreparedCase, PreparedPatient
from proto.plan import Preparation, Training

sizes = st.tuples(*[st.integers(1, 9)] * 3)
starts = st.tuples(*[st.integers(-12, 12)] * 3)


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def one_voxel(shape, at):
    label = np.zeros(shape, np.uint8)
    label[at] = 1
    return Person("p", (Scan(label.astype(np.float32) * 5 - 1, label),))


@given(sizes, starts, st.tuples(*[st.integers(1, 8)] * 3), st.sampled_from([None, 0]))
def test_cut_equals_padding_then_slicing(shape, start, side, outside):
    volume = rng().integers(1, 100, shape)
    padded = np.pad(volume, 30, constant_values=volume.min() if outside is None else outside)
    slow = padded[tuple(slice(at + 30, at + 30 + extent) for at, extent in zip(start, side, strict=True))]
    assert np.array_equal(patches.cut(volume, start, side, outside), slow)


def test_cut_is_a_copy():
    volume = np.zeros((4, 4, 4), np.float32)
    patches.cut(volume, (0, 0, 0), (4, 4, 4))[:] = 9
    assert not volume.any()


@given(sizes, st.integers(0, 2**32))
def test_a_patch_around_a_label_holds_it_also_where_the_scan_is_smaller(shape, seed):
    at = tuple(int(rng(seed).integers(extent)) for extent in shape)
    one = plan(training={"foreground_share": 1.0, "augment": False, "patches_per_patient": 3})
    images, labels = patches.draw(one_voxel(shape, at), one.preparation, one.training, rng(seed))
    assert images.shape == (3, 1, 8, 8, 8)
    assert labels.shape == (3, 8, 8, 8)
    assert (labels.sum((1, 2, 3)) == 1).all()
    assert (images[:, 0][labels == 1] == 4).all()


@given(sizes, st.integers(0, 2**32))
def test_a_patch_anywhere_lies_inside_the_scan_or_around_it(shape, seed):
    one = plan(training={"foreground_share": 0.0, "augment": False, "patches_per_patient": 2})
    label = np.ones(shape, np.uint8)
    images, labels = patches.draw(
        Person("p", (Scan(np.ones(shape, np.float32), label),)), one.preparation, one.training, rng(seed)
    )
    assert (images == 1).all()  # air is the lowest value, here the only one
    assert (labels.sum((1, 2, 3)) == np.prod(np.minimum(shape, 8))).all()  # outside is background, whatever the scan holds


def test_foreground_share_is_the_share_of_patches_around_a_label():
    one = plan(training={"foreground_share": 0.4, "augment": False, "patches_per_patient": 1000})
    _, labels = patches.draw(one_voxel((64, 64, 64), (60, 60, 60)), one.preparation, one.training, rng())
    hit = int((labels.sum((1, 2, 3)) > 0).sum())
    assert 330 < hit < 480  # 400 and a few that met it by chance


def test_a_patient_without_labels_still_trains():
    one = plan(training={"foreground_share": 1.0})
    scan = Scan(rng().standard_normal((16, 16, 16)).astype(np.float32), np.zeros((16, 16, 16), np.uint8))
    images, labels = patches.draw(Person("healthy", (scan,)), one.preparation, one.training, rng())
    assert torch.isfinite(images).all()
    assert not labels.any()


def test_all_scans_of_a_patient_take_part():
    scans = tuple(Scan(np.full((8, 8, 8), float(n), np.float32), np.zeros((8, 8, 8), np.uint8)) for n in range(4))
    one = plan(training={"patches_per_patient": 40, "augment": False})
    images, _ = patches.draw(Person("p", scans), one.preparation, one.training, rng())
    assert set(images.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_draw_depends_on_the_patients_own_generator_alone():
    one = plan()
    np.random.seed(1)  # noqa: NPY002  the global generator must not matter
    torch.manual_seed(1)
    first = patches.draw(person("p"), one.preparation, one.training, rng(4))
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    patches.draw(person("q"), one.preparation, one.training, rng(5))
    second = patches.draw(person("p"), one.preparation, one.training, rng(4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], patches.draw(person("p"), one.preparation, one.training, rng(6))[0])


def test_augmentation_mirrors_image_and_label_together_and_only_left_to_right():
    label = np.zeros((8, 8, 8), np.uint8)
    label[1, 2, 3] = 1
    image = label * 100.0
    places = set()
    for seed in range(30):
        changed, changed_label = patches.augmented(image.astype(np.float32), label, rng(seed))
        place = np.unravel_index(int(changed_label.argmax()), label.shape)
        assert int(changed_label.sum()) == 1
        assert np.unravel_index(int(changed.argmax()), label.shape) == place
        places.add(tuple(int(at) for at in place))
    assert places == {(1, 2, 3), (1, 2, 4)}


def test_augmentation_changes_intensities_a_little():
    image = np.linspace(-1, 1, 512, dtype=np.float32).reshape(8, 8, 8)
    changed, _ = patches.augmented(image, np.zeros((8, 8, 8), np.uint8), rng(3))
    assert changed.dtype == np.float32
    assert not np.array_equal(changed, image)
    assert np.abs(changed).max() < 2


def test_without_augmentation_voxels_are_the_scans_own():
    one = plan(training={"augment": False})
    patient = person("p")
    images, _ = patches.draw(patient, one.preparation, one.training, rng())
    assert np.isin(images.numpy(), patient.cases[0].image).all()


@pytest.mark.parametrize("count", [1, 5])
def test_types_are_those_of_the_loss(count):
    one = plan(training={"patches_per_patient": count})
    images, labels = patches.draw(person("p"), one.preparation, one.training, rng())
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert len(images) == len(labels) == count


@pytest.mark.parametrize(("balanced", "share"), [(True, 0.5), (False, 0.008)])
def test_a_small_label_is_seen_as_often_as_a_large_one_where_the_plan_says_so(balanced, share):
    label = np.zeros((40, 40, 40), np.uint8)
    label[2:12, 2:12, 2:12] = 1
    label[30:32, 30:32, 30:32] = 2
    someone = PreparedPatient("p", (PreparedCase(np.zeros(label.shape, np.float32), label),))
    training = Training(local_steps=1, patches_per_patient=400, foreground_share=1, augment=False, balance_labels=balanced)
    _, labels = patches.draw(
        someone, Preparation(modality="MR", spacing_xyz_mm=(1, 1, 1), patch_zyx=(8, 8, 8)), training, rng()
    )
    assert float((labels == 2).flatten(1).any(1).float().mean()) == pytest.approx(share, abs=0.08)
