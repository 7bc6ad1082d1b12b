"""Windows over a whole volume: MONAI's result, in slabs that follow each other, with memory for one window's depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import nn

from hospital_node.sliding import Windows, likeliest, slabs

extents = st.tuples(*[st.integers(1, 21)] * 3)
patches = st.tuples(*[st.integers(2, 9)] * 3)


def network() -> nn.Module:
    """Looks at neighbours, so that windows disagree near their edges."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1)).eval()


def volume(extent: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(3).normal(size=extent).astype(np.float32)


def of_monai(module: nn.Module, image: np.ndarray, windows: Windows) -> torch.Tensor:
    inputs = torch.from_numpy(image)[None, None]
    return sliding_window_inference(
        inputs, windows.patch_zyx, 3, module, overlap=windows.overlap, mode="gaussian", cval=float(inputs.min())
    )[0]


@settings(max_examples=40, deadline=None)
@given(extents, patches, st.sampled_from([0.0, 0.25, 0.5, 0.8]), st.integers(1, 5))
def test_the_result_is_monais(extent, patch, overlap, at_once) -> None:
    module, image, windows = network(), volume(extent), Windows(patch, overlap, at_once)
    with torch.inference_mode():
        found = list(slabs(module, image, windows))
        torch.testing.assert_close(torch.cat(found, 1), of_monai(module, image, windows), rtol=1e-4, atol=1e-5)
    assert all(slab.shape[1] for slab in found)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_likeliest_class_is_that_of_argmax_and_the_first_of_equals(classes, seed) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, (classes, 3, 4, 5)).astype(np.float32))
    found = likeliest(logits)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, logits.numpy().argmax(0))


def test_progress_counts_every_window_once() -> None:
    told: list[tuple[int, int]] = []
    with torch.inference_mode():
        list(slabs(network(), volume((20, 9, 9)), Windows((8, 8, 8), 0.5, 3), lambda *one: told.append(one)))
    done, totals = zip(*told, strict=True)
    assert set(totals) == {done[-1]}
    assert list(done) == sorted(set(done))


def test_mirrored_copies_make_the_result_symmetric() -> None:
    """A network that prefers one side: the mean over mirrorings prefers none."""
    image = volume((8, 8, 8))
    mirrored = np.ascontiguousarray(image[:, :, ::-1])
    with torch.inference_mode():
        one, other = (torch.cat(list(slabs(network(), each, Windows((8, 8, 8), flips=True))), 1) for each in (image, mirrored))
        plain = torch.cat(list(slabs(network(), mirrored, Windows((8, 8, 8)))), 1)
    torch.testing.assert_close(one, other.flip(3), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, plain.flip(3), atol=1e-3)


def test_an_overlap_of_a_whole_side_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to below 1, not 1"):
        Windows((8, 8, 8), 1.0)


def test_sums_are_kept_for_one_windows_depth_whatever_the_length() -> None:
    windows = Windows((8, 8, 8), 0.5)
    with torch.inference_mode():
        deepest = max(slab.untyped_storage().nbytes() for slab in slabs(network(), volume((160, 8, 8)), windows))
    assert deepest <= 3 * 8 * 8 * 8 * 4
