"""Shifts of images: strength 0 changes nothing, more strength harms more, each patient by itself and the same everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from study.bench.shifts import SHIFTS, rng_of, shift_image
from study.bench.task import StudyError
from study.shapes import public_tubes

KINDS = sorted(SHIFTS)
SHAPES = st.one_of(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), hnp.array_shapes(min_dims=3, max_dims=3, max_side=7))
IMAGES = SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-4, 4, width=32)))


def scan() -> np.ndarray:
    return next(iter(public_tubes(1, seed=5, shape_zyx=(20, 26, 20))))[0]


@given(IMAGES, st.sampled_from(KINDS), st.floats(0, 1))
def test_an_image_of_any_shape_stays_an_image_of_that_shape(image: np.ndarray, by: str, strength: float) -> None:
    before = image.copy()
    shifted = shift_image(image, by, strength, rng_of(1, "p", 0))
    assert shifted.shape == image.shape
    assert shifted.dtype == np.float32
    assert np.isfinite(shifted).all()
    assert not np.shares_memory(shifted, image)
    np.testing.assert_array_equal(image, before)


@given(IMAGES, st.sampled_from(KINDS))
def test_strength_zero_gives_the_image_back(image: np.ndarray, by: str) -> None:
    np.testing.assert_array_equal(shift_image(image, by, 0.0, rng_of(1, "p", 0)), image)


@pytest.mark.parametrize("by", KINDS)
def test_more_strength_harms_more(by: str) -> None:
    image = scan()
    harm = [float(np.abs(shift_image(image, by, k / 4, rng_of(1, "p", 0)) - image).mean()) for k in range(5)]
    assert harm == sorted(harm)
    assert harm[4] > 1.3 * harm[1] > 0


@pytest.mark.parametrize("by", KINDS)
def test_a_weak_shift_is_a_small_change(by: str) -> None:
    image = scan()
    assert np.abs(shift_image(image, by, 1e-3, rng_of(1, "p", 0)) - image).mean() < 0.02


def test_noise_has_the_stated_deviation_and_differs_by_patient() -> None:
    image = scan()
    one, two = (shift_image(image, "noise", 0.5, rng_of(1, name, 0)) - image for name in ("a", "b"))
    assert one.std() == pytest.approx(0.5 * image.std(), rel=0.05)
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.05


@given(st.integers(1, 30), st.floats(0, 1), st.floats(-2, 2, width=32))
def test_resolution_keeps_a_constant_and_never_overshoots(extent: int, strength: float, value: float) -> None:
    flat = np.full((extent, 3), value, np.float32)
    np.testing.assert_allclose(shift_image(flat, "resolution", strength, rng_of(1, "p", 0)), flat, atol=1e-5)
    steps = (np.arange(extent)[:, None] % 2 * np.ones((1, 3))).astype(np.float32)
    coarse = shift_image(steps, "resolution", strength, rng_of(1, "p", 0))
    assert coarse.min() >= -1e-6
    assert coarse.max() <= 1 + 1e-6


def test_resolution_hides_what_is_finer_than_its_voxel() -> None:
    stripes = np.tile(np.array([0, 1, 0], np.float32), (12, 10))
    coarse = shift_image(stripes, "resolution", 1.0, rng_of(1, "p", 0))
    np.testing.assert_allclose(coarse, 1 / 3, atol=1e-6)


def test_intensity_lowers_contrast_within_the_range_and_lies_differently_in_each_patient() -> None:
    image = scan()
    one, two = (shift_image(image, "intensity", 1.0, rng_of(4, name, 0)) for name in ("a", "b"))
    assert one.std() < 0.7 * image.std()
    assert image.min() <= one.min() < one.max() <= image.max()
    assert np.abs(one - two).mean() > 0.01
    assert np.corrcoef(one.ravel(), image.ravel())[0, 1] > 0.8


def test_intensity_leaves_an_image_of_one_value_alone() -> None:
    flat = np.full((4, 5), 2.0, np.float32)
    np.testing.assert_array_equal(shift_image(flat, "intensity", 1.0, rng_of(1, "p", 0)), flat)


@pytest.mark.parametrize(
    ("by", "strength", "says"), [("blur", 0.5, "noise"), ("noise", 1.5, "0 to 1"), ("noise", -1, "0 to 1")]
)
def test_a_wrong_shift_is_refused(by: str, strength: float, says: str) -> None:
    with pytest.raises(StudyError, match=says):
        shift_image(np.zeros((4, 4), np.float32), by, strength, rng_of(1, "p", 0))


def test_random_numbers_are_of_the_seed_the_patient_and_the_image() -> None:
    draws = {
        tuple(rng_of(seed, name, image).integers(1 << 60, size=2))
        for seed in (1, 2)
        for name in ("a", "1a")
        for image in (0, 1)
    }
    assert len(draws) == 8
    assert rng_of(1, "1", 1).integers(1 << 60) != rng_of(11, "", 1).integers(1 << 60)


def test_the_same_on_every_machine() -> None:
    """Pinned: a study that is run again elsewhere sees the same scans."""
    bits = rng_of(7, "patient", 2).bit_generator.random_raw(4).tobytes()
    assert hashlib.sha256(bits).hexdigest()[:16] == "36ce406342dc59b7"
