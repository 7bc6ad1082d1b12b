"""The drawn hippocampi: what is said about them holds for what comes out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from proto.layout import Layout
from proto.modelfile import Model, encode_model
from study import presets, start
from study.processes import Family
from study.temporal_lobe import CROP_ZYX_MM, public_hippocampi

SPACING = (2.0, 2.0, 2.0)
VOXEL_MM3 = 8.0
COUNT = 40


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray]]:
    return list(public_hippocampi(COUNT, 5, SPACING))


def test_a_seed_gives_the_same_volumes_and_another_gives_others() -> None:
    first, again, other = (next(public_hippocampi(1, seed, SPACING)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_a_volume_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = (list(itertools.islice(public_hippocampi(count, 3, SPACING), 2)) for count in (2, 9))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(few, many, strict=True))


def test_crops_have_the_sizes_that_are_said(drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, label in drawn:
        assert image.shape == label.shape
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        for side, (least, _, most) in zip(image.shape, CROP_ZYX_MM, strict=True):
            assert least / 2 - 1 <= side <= most / 2 + 1


def test_sizes_are_those_of_textbooks(drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    head, rest = ([VOXEL_MM3 * float((label == value).sum()) for _, label in drawn] for value in (1, 2))
    assert 1_000 < np.median(head) < 2_200
    assert 800 < np.median(rest) < 2_000
    assert min(head + rest) > 200


def test_the_head_lies_before_the_rest_which_rises_and_both_are_nearly_one_piece(
    drawn: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    rises = []
    for _, label in drawn:
        head, rest = (np.argwhere(label == value).mean(0) for value in (1, 2))
        assert head[1] < rest[1]
        rises.append(rest[0] - head[0])
        pieces, count = ndimage.label(label > 0, np.ones((3, 3, 3)))
        assert max(np.bincount(pieces.ravel())[1:]) > 0.9 * (label > 0).sum(), count
    assert np.mean(rises) > 1  # voxels: the tail is higher than the head


def test_grey_matter_is_darker_than_the_white_above_it(drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    darker = [image[label > 0].mean() < image[label == 0].mean() for image, label in drawn]
    assert np.mean(darker) > 0.9


def test_spacing_changes_the_grid_and_not_the_size() -> None:
    coarse, fine = (next(public_hippocampi(1, 4, (step,) * 3))[1] for step in (2.0, 1.0))
    assert abs((coarse > 0).sum() * 8.0 / (fine > 0).sum() - 1) < 0.5
    assert all(abs(a * 2 - b) <= 2 for a, b in zip(coarse.shape, fine.shape, strict=True))


def test_the_template_draws_them() -> None:
    preset = presets.load("hippocampus-private")
    volume = next(start._volumes(preset, 1, 5))
    assert np.array_equal(volume[0], next(public_hippocampi(1, 5, SPACING))[0])


def test_a_start_of_another_anatomy_is_not_the_one_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_lobes = presets.load("hippocampus-private")
    bent_tubes = drawn_lobes.model_copy(update={"anatomy": "hippocampus"})
    made: list[str] = []

    def candidates(folder: Path, preset: presets.Preset, _family: Family) -> list[Path]:
        made.append(preset.anatomy)
        path = folder / "candidate.safetensors"
        path.write_bytes(encode_model(Model(Layout((("a", (1,)),)), np.zeros(1, np.float32), {start.LOSS_KEY: "0.5"})))
        return [path]

    monkeypatch.setattr(start, "_candidates", candidates)
    with Family(1) as family:
        kept = [start.load_or_make(tmp_path, one, family, lambda _: None) for one in (drawn_lobes, bent_tubes, drawn_lobes)]
    assert made == ["temporal-lobe", "hippocampus"]
    assert kept[0] == kept[2] != kept[1]
