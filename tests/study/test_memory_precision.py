"""Averaging by certainty: precisions from noised steps, the quotient of two masked sums, plans in which they mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_memory_scaffold import CURVATURE, LAYOUT, LEAST, RATE, START, STEPS, make_plan, play
from torch import nn
from torch.optim import SGD

from hospital_node.certainty import Spread
from proto import federation_pb2 as pb
from proto import precision
from proto.parts import sent_layout
from proto.plan import Plan
from proto.wire import open_params

SCALE = 0.3
PRECISE = {"weights": "precision", "precision_scale": SCALE}


def precise_plan(**fields: Any) -> Plan:
    return make_plan(**{"aggregation": PRECISE, "rounds": 3, **fields})


def printed(rounds: int, weights: tuple[int, ...]) -> np.ndarray:
    """The product of Gaussian words in float64: each hospital descends, and is as certain as its gradients were alike."""
    x = START.astype(np.float64)
    for _ in range(rounds):
        sums, precisions = np.zeros(4), np.zeros(4)
        for at, weight in enumerate(weights):
            y, seen = x.copy(), []
            for _ in range(STEPS):
                seen.append(CURVATURE[at] * (y - LEAST[at]))
                y = y - RATE * seen[-1]
            certain = SCALE**2 / (np.var(seen, axis=0, ddof=1) + SCALE**2)
            sums, precisions = sums + weight * certain * (y - x), precisions + weight * certain
        x = x + sums / precisions
    return x


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (3, 1, 2, 2)])
def test_a_federation_moves_to_the_product_of_the_hospitals_words(tmp_path: Path, weights: tuple[int, ...]) -> None:
    admitted = [
        {"uri": f"secagg://bowl/hospital/h{at}", "declared_patients": 1, "weight": weight} for at, weight in enumerate(weights)
    ]
    done, _ = play(tmp_path, precise_plan(hospitals=admitted))
    np.testing.assert_allclose(done.model, printed(3, weights), atol=1e-3)


gradients = st.lists(st.lists(st.floats(-3, 3, width=32), min_size=5, max_size=5), min_size=2, max_size=6)


@settings(max_examples=30, deadline=None)
@given(gradients)
def test_precisions_are_those_of_the_spread_of_the_steps(steps: list[list[float]]) -> None:
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    optimizer = SGD([first, second], lr=0.1)
    spread = Spread(optimizer, (first, second))
    for step in steps:
        first.grad, second.grad = torch.tensor(step[:3]), torch.tensor(step[3:])
        optimizer.step()
    wanted = SCALE**2 / (np.var(np.array(steps, np.float64), axis=0, ddof=1) + SCALE**2)
    np.testing.assert_allclose(spread.precisions(SCALE), wanted, rtol=1e-5)


def test_words_of_unequal_noise_are_averaged_better_than_by_equal_weights() -> None:
    """Three certain hospitals and one whose noise is twenty times theirs, on a value that is 1."""
    plan, rng = precise_plan(), np.random.default_rng(1)
    deviations = np.array([[0.05], [0.05], [0.05], [1.0]])
    words = (1 + deviations * rng.standard_normal((4, 2000))).astype(np.float32)
    certain = (SCALE**2 / (deviations**2 + SCALE**2)).astype(np.float32) * np.ones((4, 2000), np.float32)
    sent = np.mean([precision.weighted(word, one) for word, one in zip(words, certain, strict=True)], axis=0)
    found = precision.combined(plan, sent.astype(np.float32))
    assert np.std(found - 1) < 0.2 * np.std(words.mean(axis=0) - 1)
    alike = np.mean([precision.weighted(word, np.full(2000, 0.4, np.float32)) for word in words], axis=0)
    np.testing.assert_allclose(precision.combined(plan, alike.astype(np.float32)), words.mean(axis=0), atol=1e-5)


def test_what_is_sent_is_twice_as_long_and_precisions_have_a_clip_of_their_own() -> None:
    plan = precise_plan(masking={"update_clip": 0.25, "clip_decay": 0.5})
    sent = sent_layout(plan, LAYOUT)
    assert [name for name, _ in sent.tensors] == ["x", "precision/x"]
    assert sent_layout(make_plan(), LAYOUT) == LAYOUT
    members = [
        pb.Member(uri=h.uri, public_key=bytes([at]), weight=1, base_digest=bytes(32)) for at, h in enumerate(plan.hospitals)
    ]
    params = open_params(plan, pb.Open(session=bytes(16), round=3, members=members), sent)
    assert params.tensor_clips == ((4, 0.0625), (4, 1.0))
    assert params.length == 8


def test_a_mean_precision_near_zero_is_not_divided_by() -> None:
    found = precision.combined(precise_plan(), np.array([1e-4, 0.5, 0, 1], np.float32))
    assert found.tolist() == pytest.approx([0.1, 0.5])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"training": {"local_steps": 1}}, "2 or more"),
        ({"masking": {"keep": 0.5}}, "masking.keep"),
        ({"aggregation": {**PRECISE, "rule": "scaffold"}}, "does not read weights"),
        ({"aggregation": {"precision_scale": 0.5}}, "is for weights precision"),
    ],
)
def test_plans_in_which_precisions_mean_nothing_are_refused_with_the_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        precise_plan(**fields)


def test_plans_without_precisions_keep_their_digest() -> None:
    assert b"precision_scale" not in make_plan().canonical()
    assert b'"weights"' not in make_plan().canonical()
