"""Evaluation on the hospitals' own patients: the plan's part, the length of one patient's vector, and what sums say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import federation_pb2 as pb
from proto.evaluation import GRID, LIMIT, TAIL, Evaluation, contribution, in_words, label_means, sensitivity
from proto.layout import Layout
from proto.plan import Plan, PlanError, from_canonical
from proto.wire import WireError, extra_clips_of, open_params

LABELS = ("anterior", "posterior")
LAYOUT = Layout((("weight", (3, 4)),))
DIGEST_BEFORE = (
    "f48eac14900e4fa93248b7937daabad32b79047ab67cf6934975ecdb8b1a25aa"  # of PLAN, by the software before this part existed
)

score = st.none() | st.floats(0, 1) | st.sampled_from([math.nan, math.inf, -math.inf, -3.0, 1e300])
patients = st.lists(st.lists(score, min_size=2, max_size=2), max_size=30)


def plan_with(evaluation=None, rounds=20, sigma=1.0, **fields):
    base = {
        "study": "trial",
        "rounds": rounds,
        "network": {"labels": LABELS},
        "preparation": {"modality": "CT", "spacing_xyz_mm": [2, 2, 2], "patch_zyx": [16, 16, 16]},
        "training": {"local_steps": 2},
        "privacy": {"noise_multiplier": sigma, "inverse_sampling_rate": 4, "no_guarantee": sigma == 0},
        "hospitals": [{"uri": f"secagg://trial/hospital/{name}", "declared_patients": 40} for name in "abcd"],
    }
    return Plan.model_validate(base | fields | ({} if evaluation is None else {"evaluation": evaluation}))


EVERY_FIFTH = {"every": 5, "share": 0.25, "noise_multiplier": 3.0}


def params_of(plan, number, bases=(bytes(32),) * 4):
    members = [
        pb.Member(uri=h.uri, public_key=bytes([i]), weight=1, base_digest=bases[i]) for i, h in enumerate(plan.hospitals)
    ]
    return open_params(plan, pb.Open(session=bytes(16), round=number, members=members), LAYOUT)


# ---- the plan ----


def test_a_plan_without_evaluation_keeps_the_digest_that_it_always_had():
    assert plan_with().digest().hex() == DIGEST_BEFORE
    assert b'"evaluation"' not in plan_with().canonical()


@pytest.mark.parametrize("change", [{}, {"every": 4}, {"share": 0.2}, {"noise_multiplier": 3.5}])
def test_the_part_and_each_of_its_fields_change_the_digest(change):
    plan = plan_with(EVERY_FIFTH | change)
    assert from_canonical(plan.canonical()) == plan
    assert plan.digest() != plan_with().digest()
    assert (plan.digest() == plan_with(EVERY_FIFTH).digest()) == (not change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"every": 21}, "exceeds the 20 rounds"),
        ({"every": 0}, "greater than or equal to 1"),
        ({"share": 0.0}, "greater than 0"),
        ({"share": 1.0}, "less than 1"),
        ({"noise_multiplier": 0.0}, r"needs privacy\.no_guarantee"),
        ({"noise_multiplier": -1.0}, "greater than or equal to 0"),
        ({"noise_multiplier": math.inf}, "finite"),
        ({"metric": "dice"}, "Extra inputs"),
    ],
)
def test_a_part_that_cannot_hold_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        plan_with(EVERY_FIFTH | change)


def test_without_a_guarantee_the_sums_may_go_without_noise():
    assert plan_with(EVERY_FIFTH | {"noise_multiplier": 0.0}, sigma=0.0).evaluation.deviation(2) == 0


@given(st.integers(1, 60), st.integers(0, 300))
def test_evaluations_are_counted_as_they_fall_due(every, rounds):
    evaluation = Evaluation(every=every, share=0.5, noise_multiplier=1.0)
    assert evaluation.times(rounds) == sum(evaluation.is_due(number) for number in range(1, rounds + 1))


def test_the_divisor_of_training_leaves_validation_patients_out():
    uri = "secagg://trial/hospital/a"
    assert plan_with().expected_batch(uri) == 10
    assert plan_with(EVERY_FIFTH).expected_batch(uri) == 7.5


# ---- the session ----


def test_only_rounds_that_evaluate_carry_extra_coordinates():
    plan = plan_with(EVERY_FIFTH)
    carrying = [number for number in range(1, 21) if params_of(plan, number).extra_clips]
    assert carrying == [5, 10, 15, 20]
    assert params_of(plan, 5).extra_words == 2
    assert params_of(plan_with(), 5).extra_clips == ()


def test_the_session_context_binds_the_clips_of_the_sums():
    wider = plan_with(EVERY_FIFTH | {"noise_multiplier": 3.5})
    clips = [params_of(plan, 5).extra_clips for plan in (plan_with(EVERY_FIFTH), wider)]
    assert clips[0] != clips[1]
    contexts = {params_of(plan, 5).context() for plan in (plan_with(), plan_with(EVERY_FIFTH), wider)}
    assert len(contexts) == 3


def test_several_base_models_and_an_evaluation_are_no_session():
    plan, bases = plan_with(EVERY_FIFTH), (b"x" * 32, *[bytes(32)] * 3)
    assert params_of(plan, 4, bases).base_digests == bases
    with pytest.raises(WireError, match="extra coordinates need one base model"):
        params_of(plan, 5, bases)


@given(st.integers(1, 4), st.integers(1, 5000), st.floats(0, 100))
def test_the_clips_hold_whatever_an_honest_hospital_sends(labels, declared, noise_multiplier):
    evaluation = Evaluation(every=1, share=0.5, noise_multiplier=noise_multiplier)
    clips = evaluation.clips(labels, declared)
    loudest = 8.58 * evaluation.deviation(labels)  # where the node's generator ends
    assert len(clips) == 2 * labels
    assert min(clips) >= declared * LIMIT + loudest
    assert TAIL > 8.58


def test_the_largest_hospital_decides_about_the_clips():
    sizes = [
        {"uri": f"secagg://trial/hospital/{name}", "declared_patients": size}
        for name, size in zip("abc", (10, 70, 30), strict=True)
    ]
    assert extra_clips_of(plan_with(EVERY_FIFTH, hospitals=sizes), 5)[0] > 35


# ---- one patient ----


@given(st.lists(score, min_size=1, max_size=6))
def test_one_patient_is_never_longer_than_the_sensitivity(scores):
    vector = np.array(contribution(scores)) / GRID
    assert len(vector) == 2 * len(scores)
    assert np.abs(vector).max() <= LIMIT
    assert math.fsum(vector**2) <= sensitivity(len(scores)) ** 2


@given(patients, st.data())
def test_leaving_one_patient_out_changes_the_sums_by_that_patient_alone(scores, data):
    if not scores:
        return
    out = data.draw(st.integers(0, len(scores) - 1))
    vectors = np.array([contribution(one) for one in scores])
    change = vectors.sum(0) - np.delete(vectors, out, 0).sum(0)
    assert change.tolist() == list(contribution(scores[out])), "whole steps: exact"
    assert np.linalg.norm(change / GRID) <= sensitivity(2)


def test_the_sensitivity_is_reached_and_not_wider():
    for labels in (1, 2, 5):
        longest = np.linalg.norm(np.array(contribution([1.0] * labels)) / GRID)
        assert sensitivity(labels) == pytest.approx(longest) == pytest.approx(math.sqrt(labels / 2))


@pytest.mark.parametrize(("given", "same"), [(1.7, 1.0), (-0.2, 0.0), (math.nan, None), (math.inf, None), (-math.inf, None)])
def test_scores_outside_of_their_range_are_clipped_and_broken_ones_left_out(given, same):
    assert contribution([given]) == contribution([same])


# ---- what the sums say ----


@given(patients)
def test_sums_without_noise_give_mean_and_count_back(scores):
    sums = np.sum([contribution(one) for one in scores] or [[0] * 4], axis=0) / GRID
    means = label_means(LABELS, sums.tolist(), 0.0)
    for place, one in enumerate(means):
        found = [np.clip(row[place], 0, 1) for row in scores if row[place] is not None and math.isfinite(row[place])]
        assert one.label == LABELS[place]
        assert one.patients == len(found)
        if found:
            assert one.mean == pytest.approx(np.mean(found), abs=2 / GRID)
            assert one.standard_error == 0
        else:
            assert (one.mean, in_words(one)) == (None, "cannot be told from the noise")


def test_the_standard_error_is_the_spread_of_noised_means():
    rng, deviation, scores = np.random.default_rng(3), 6.0, [[0.9]] * 150 + [[0.5]] * 50
    sums = np.sum([contribution(one) for one in scores], axis=0) / GRID
    noised = [label_means(("x",), (sums + rng.normal(0, deviation, 2)).tolist(), deviation)[0] for _ in range(4000)]
    assert np.mean([one.mean for one in noised]) == pytest.approx(0.8, abs=0.003)
    assert np.std([one.mean for one in noised]) == pytest.approx(np.mean([one.standard_error for one in noised]), rel=0.05)
    assert Evaluation(every=1, share=0.5, noise_multiplier=deviation / sensitivity(1)).expected_error(
        1, 1, 400
    ) == pytest.approx(np.std([one.mean for one in noised]), rel=0.05)


def test_a_count_within_its_noise_gives_no_mean():
    assert label_means(("x",), (1.0, 2.9), 1.0)[0].mean is None
    assert label_means(("x",), (1.0, 3.1), 1.0)[0].mean is not None
    assert label_means(("x",), (1.0, -4.0), 1.0)[0].mean is None


def test_a_mean_in_words():
    assert in_words(label_means(("x",), (30.0, 100.0), 8.0)[0]) == "0.65 ± 0.04"


def test_a_plan_from_another_version_names_the_part():
    data = plan_with(EVERY_FIFTH).canonical().replace(b'"share"', b'"shore"')
    with pytest.raises(PlanError, match=r"evaluation\.sh"):
        from_canonical(data)
