"""Turned and scaled patches: one transform for image and label, angles of the world, chance of the patient alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hospital_node.patches import draw
from hospital_node.prepared import PreparedCase, PreparedPatient
from hospital_node.turning import drawn_transform, seen_through, sides_needed
from proto.plan import Preparation, Training


def rng(seed=0):
    return np.random.default_rng(seed)


def ball(shape, radius_mm, spacing):
    middle = (np.array(shape) - 1) / 2
    distance = np.sqrt(sum(((axis - c) * step) ** 2 for axis, c, step in zip(np.indices(shape), middle, spacing, strict=True)))
    return distance.astype(np.float32), (distance <= radius_mm).astype(np.uint8)


def test_no_turn_and_no_scale_is_the_identity():
    matrix = drawn_transform(0, 0, (1, 2, 3), rng())
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)
    assert sides_needed(matrix, (8, 9, 10)) == (8, 9, 10)
    image, label = rng().normal(size=(8, 9, 10)).astype(np.float32), rng().integers(0, 3, (8, 9, 10)).astype(np.uint8)
    found = seen_through(matrix, image, label, (8, 9, 10))
    np.testing.assert_allclose(found[0], image, atol=1e-4)
    np.testing.assert_array_equal(found[1], label)


@given(st.integers(0, 50), st.sampled_from([(1, 1, 1), (3, 1, 1), (2, 0.7, 1.3)]))
def test_a_turn_keeps_lengths_of_the_world(seed, spacing):
    matrix = drawn_transform(45, 0, spacing, rng(seed))
    world = np.diag(spacing) @ matrix @ np.diag(1 / np.array(spacing))
    np.testing.assert_allclose(world @ world.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(world) == pytest.approx(1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.5)])
def test_a_ball_stays_a_ball_and_its_label_goes_with_it(spacing):
    shape = (40, 44, 48)
    image, label = ball(shape, 6, spacing)
    patch = (12, 20, 16)
    matrix = drawn_transform(30, 0, spacing, rng(3))
    start = tuple((side - wide) // 2 for side, wide in zip(shape, patch, strict=True))
    sides = sides_needed(matrix, patch)
    pieces = [
        volume[tuple(slice(s - (w - p) // 2, s - (w - p) // 2 + w) for s, w, p in zip(start, sides, patch, strict=True))]
        for volume in (image, label)
    ]
    found, marked = seen_through(matrix, *pieces, patch)
    expected = ball(patch, 6, spacing)
    np.testing.assert_allclose(found, expected[0], atol=0.5)
    assert (marked != expected[1]).mean() < 0.04  # voxels at the edge
    assert marked.sum() == pytest.approx(expected[1].sum(), rel=0.1)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_larger_factor_shows_things_larger(factor):
    matrix = np.eye(3) / factor
    image, label = ball((40, 40, 40), 6, (1, 1, 1))
    sides = sides_needed(matrix, (24, 24, 24))
    low = (40 - sides[0]) // 2
    piece = (slice(low, low + sides[0]),) * 3
    _, marked = seen_through(matrix, image[piece], label[piece], (24, 24, 24))
    assert marked.sum() == pytest.approx(4 / 3 * math.pi * (6 * factor) ** 3, rel=0.08)


@given(st.integers(0, 200))
def test_the_piece_holds_all_that_the_patch_shows(seed):
    patch = (8, 12, 10)
    matrix = drawn_transform(45, 0.5, (1, 2, 0.5), rng(seed))
    sides = sides_needed(matrix, patch)
    corners = np.array([[z, y, x] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)]) * (np.array(patch) - 1) / 2
    assert (np.abs(corners @ matrix.T) <= (np.array(sides) - 1) / 2 + 1e-9).all()
    assert all((wide - side) % 2 == 0 for wide, side in zip(sides, patch, strict=True))


def plan(**fields):
    base = {"local_steps": 1, "patches_per_patient": 4, "foreground_share": 1.0, "augment_rotation_deg": 15}
    return Training.model_validate(base | {"augment_scale": 0.1} | fields)


def patient(seed=1):
    label = np.zeros((20, 24, 22), np.uint8)
    label[8:12, 9:14, 7:12] = 1
    return PreparedPatient("p", (PreparedCase(rng(seed).normal(size=label.shape).astype(np.float32), label),))


PREPARATION = Preparation(modality="MR", spacing_xyz_mm=(1, 1, 2), patch_zyx=(8, 16, 16))


def test_turned_patches_have_the_patchs_shape_their_label_and_the_patients_own_chance():
    images, labels = draw(patient(), PREPARATION, plan(), rng(5))
    assert images.shape == (4, 1, 8, 16, 16)
    assert labels.shape == (4, 8, 16, 16)
    assert all(int(one.sum()) > 0 for one in labels)
    again = draw(patient(), PREPARATION, plan(), rng(5))
    other = draw(patient(), PREPARATION, plan(), rng(6))
    assert images.equal(again[0])
    assert not images.equal(other[0])


def test_turning_needs_augment():
    with pytest.raises(ValidationError, match="need augment = true"):
        plan(augment=False)
