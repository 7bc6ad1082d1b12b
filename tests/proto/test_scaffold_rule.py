"""SCAFFOLD's arithmetic against algorithm 1 as printed, in float64, and the plans in which its shortcut would be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import optimizer
from proto import scaffold
from proto.layout import Layout
from proto.plan import Plan, PlanError, from_canonical

LAYOUT = Layout((("x", (3,)),))
STEPS, RATE = 6, 0.15
WEIGHTS = (1, 2, 3, 2)


def make_plan(weights: tuple[int, ...] = WEIGHTS, **fields: Any) -> Plan:
    base: dict[str, Any] = {
        "study": "bowl",
        "rounds": 200,
        "network": {"labels": ["x"]},
        "preparation": {"modality": "CT", "spacing_xyz_mm": [1, 1, 1], "patch_zyx": [8, 8, 8]},
        "training": {"local_steps": STEPS, "optimizer": "sgd", "learning_rate": RATE},
        "privacy": {"noise_multiplier": 0.0, "no_guarantee": True, "inverse_sampling_rate": 1},
        "aggregation": {"rule": "scaffold"},
        "hospitals": [
            {"uri": f"secagg://bowl/hospital/h{n}", "declared_patients": 1, "weight": weight}
            for n, weight in enumerate(weights)
        ],
    }
    return Plan.model_validate({**base, **fields})


PLAN = make_plan()
NAMES = [hospital.uri for hospital in PLAN.hospitals]


class Bowls:
    """One quadratic a hospital, with other least points and other curvatures, so that averaging local descents is biased."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.curvature = rng.uniform(0.2, 3.0, (len(NAMES), 3))
        self.least = rng.uniform(-2, 2, (len(NAMES), 3))

    def gradient(self, at: int, x: np.ndarray) -> np.ndarray:
        return self.curvature[at] * (x - self.least[at])

    @property
    def best(self) -> np.ndarray:
        """Least point of the weighted mean of all bowls."""
        weights = np.array(WEIGHTS)[:, None] * self.curvature
        return (weights * self.least).sum(axis=0) / weights.sum(axis=0)


def printed(bowls: Bowls, cohorts: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Algorithm 1, option II, global step 1, line by line; x, c and all c_i at the end. Means carry the hospitals' weights."""
    x, own = np.zeros(3), np.zeros((len(NAMES), 3))
    common, whole = np.zeros(3), sum(WEIGHTS)
    for cohort in cohorts:
        total, change_x, change_c = sum(WEIGHTS[at] for at in cohort), np.zeros(3), np.zeros(3)
        for at in cohort:
            y = x.copy()
            for _ in range(STEPS):
                y = y - RATE * (bowls.gradient(at, y) - own[at] + common)
            fresh = own[at] - common + (x - y) / (STEPS * RATE)
            change_x += WEIGHTS[at] / total * (y - x)
            change_c += WEIGHTS[at] / total * (fresh - own[at])
            own[at] = fresh
        x, common = x + change_x, common + total / whole * change_c
    return x, common, own


def ours(bowls: Bowls, cohorts: list[list[int]], plan: Plan = PLAN) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same by what the product sends: the mean of the updates, and nothing else."""
    published = scaffold.begun(plan, np.zeros(3, np.float32))
    own = np.zeros((len(NAMES), 3), np.float32)
    for number, cohort in enumerate(cohorts, 1):
        x, common = scaffold.taken_apart(plan, published)
        updates = {}
        for at in cohort:
            y = x.copy()
            drift = np.zeros_like(x) if common is None else common - own[at]
            for _ in range(STEPS):
                y = y - np.float32(RATE) * (bowls.gradient(at, y).astype(np.float32) + drift)
            updates[at] = y - x
            if common is not None:
                own[at] = scaffold.own_after(plan, number, drift, updates[at])
        total = sum(WEIGHTS[at] for at in cohort)
        mean = np.sum([WEIGHTS[at] / total * updates[at] for at in cohort], axis=0).astype(np.float32)
        model, _ = optimizer.apply(plan.aggregation, x, mean, None, number)
        if common is not None:
            common = scaffold.common_after(plan, number, common, mean, total / sum(WEIGHTS))
        published = scaffold.put_together(model, common)
    x, common = scaffold.taken_apart(plan, published)
    return x, common, own


cohorts_of = st.lists(st.sets(st.integers(0, 3), min_size=3).map(sorted), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cohorts=cohorts_of)
def test_model_and_variates_are_those_of_the_printed_algorithm(seed: int, cohorts: list[list[int]]) -> None:
    for found, wanted in zip(ours(Bowls(seed), cohorts), printed(Bowls(seed), cohorts), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cohorts=cohorts_of)
def test_the_common_variate_stays_the_weighted_mean_of_all_and_the_absent_keep_theirs(
    seed: int, cohorts: list[list[int]]
) -> None:
    _, common, own = ours(Bowls(seed), cohorts)
    np.testing.assert_allclose(common, np.average(own, axis=0, weights=WEIGHTS), atol=2e-4)
    away = set(range(4)) - set(cohorts[-1])
    _, _, before = ours(Bowls(seed), cohorts[:-1])
    for at in away:
        assert np.array_equal(own[at], before[at])


def test_it_finds_the_common_least_point_from_which_plain_averaging_stays_away() -> None:
    bowls, everybody = Bowls(3), [[0, 1, 2, 3]] * 60
    plain = make_plan(aggregation={})
    assert np.abs(ours(bowls, everybody)[0] - bowls.best).max() < 1e-4
    assert np.abs(ours(bowls, everybody, plain)[0] - bowls.best).max() > 0.05


def test_what_is_published_is_the_model_and_behind_it_the_variate() -> None:
    model, common = np.arange(3, dtype=np.float32), np.ones(3, np.float32)
    published = scaffold.put_together(model, common)
    assert len(published) == scaffold.published_length(PLAN, LAYOUT) == 6
    assert [part.tolist() for part in scaffold.taken_apart(PLAN, published)] == [[0, 1, 2], [1, 1, 1]]
    plain = make_plan(aggregation={})
    assert scaffold.published_length(plain, LAYOUT) == 3
    assert scaffold.begun(plain, model) is model
    assert scaffold.taken_apart(plain, model) == (model, None)


def test_a_variate_that_overflows_is_refused_with_a_remedy() -> None:
    huge = np.full(3, 3e38, np.float32)
    with pytest.raises(ValueError, match=r"lower training.learning_rate"):
        scaffold.common_after(PLAN, 1, huge, huge, 1.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"training": {"local_steps": 2, "optimizer": "adam"}}, "sgd without momentum"),
        ({"training": {"local_steps": 2, "optimizer": "sgd", "momentum": 0.9}}, "sgd without momentum"),
        ({"training": {"local_steps": 2, "optimizer": "sgd", "proximal": 0.1}}, "training.proximal"),
        ({"training": {"local_steps": 2, "optimizer": "sgd", "adapter_rank": 2}}, "adapter_rank"),
        ({"training": {"local_steps": 2, "optimizer": "sgd", "parts": "norms-and-biases"}}, "training.parts"),
        ({"masking": {"keep": 0.5}}, "masking.keep"),
        ({"masking": {"lanes": 5}}, "masking.lanes"),
        ({"aggregation": {"rule": "scaffold", "momentum": 0.9}}, "does not read momentum"),
        (
            {
                "hospitals": [
                    {"uri": f"secagg://bowl/hospital/h{n}", "declared_patients": 1, "local_steps": 1 + n} for n in range(4)
                ]
            },
            "equally many steps",
        ),
    ],
)
def test_plans_in_which_the_variates_would_be_wrong_are_refused_with_the_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_plan(**fields)


def test_other_plans_keep_their_digest_and_the_rule_is_in_it() -> None:
    assert make_plan(aggregation={}).digest() != PLAN.digest()
    assert b"scaffold" not in make_plan(aggregation={}).canonical()
    assert from_canonical(PLAN.canonical()) == PLAN
    with pytest.raises(PlanError, match="aggregation"):
        from_canonical(PLAN.canonical().replace(b"scaffold", b"scaffole"))
