"""A plan with shared noise: what it must say, what it does not go with, and what its integers are worth."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hospital_node.config import NodePolicy
from hospital_node.study import policy_obstacle
from proto import federation_pb2 as pb
from proto import shared_noise
from proto.layout import Layout
from proto.plan import Plan, from_canonical
from proto.wire import WireError, mean_error, open_params
from secagg.errors import LocalError, RemoteError
from secagg.integer_norm import rounded_norm_squared, scale_within
from secagg.params import collusion_bound
from secagg.policy import Policy, check_session

LAYOUT = Layout((("weight", (40, 30)), ("bias", (17,))))
DIGEST_BEFORE = "948ba7468155a749468bec3425e55dedd39cb9d0247d7354489486b0fc860a80"


def fields(hospitals: int = 4, **changes):
    parts = {
        "study": "trial",
        "rounds": 5,
        "network": {"labels": ["nodule"]},
        "preparation": {"modality": "CT", "spacing_xyz_mm": [2, 2, 2], "patch_zyx": [16, 16, 16]},
        "training": {"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0},
        "privacy": {
            "noise_mode": "shared",
            "noise_multiplier": 1.1,
            "clip_norm": 0.5,
            "inverse_sampling_rate": 8,
            "norm_steps": 300,
            "may_drop": 1,
            "may_collude": 1,
        },
        "hospitals": [{"uri": f"secagg://trial/hospital/h{n}", "declared_patients": 40} for n in range(hospitals)],
    }
    for name, change in changes.items():
        parts[name] = parts[name] | change if isinstance(parts.get(name), dict) else change
    return parts


def shared_plan(hospitals: int = 4, **changes) -> Plan:
    return Plan.model_validate(fields(hospitals, **changes))


def order_for(plan: Plan, names, number: int = 1) -> pb.Open:
    members = [pb.Member(uri=uri, public_key=uri.encode(), weight=1, base_digest=bytes(32)) for uri in names]
    return pb.Open(session=bytes(16), round=number, members=members)


def test_a_plan_with_local_noise_has_no_trace_of_it_and_keeps_its_digest():
    local = {"noise_multiplier": 1.1, "inverse_sampling_rate": 8}
    plan = Plan.model_validate(fields() | {"privacy": local})
    for name in ("norm_steps", "may_drop", "may_collude"):
        assert name.encode() not in plan.canonical()
    assert plan.digest().hex() == DIGEST_BEFORE


def test_a_plan_with_shared_noise_survives_the_wire():
    plan = shared_plan()
    assert from_canonical(plan.canonical()) == plan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"noise_mode": "local"}}, "belong to noise_mode shared"),
        ({"privacy": {"may_drop": None}}, "needs may_drop"),
        ({"privacy": {"may_collude": 0}}, "may_collude"),
        ({"privacy": {"noise_multiplier": 0.0, "no_guarantee": True}}, "no noise to share"),
        ({"privacy": {"hospitals_per_patient": 2}}, "several times as far"),
        ({"privacy": {"may_collude": 2}}, "masking.max_colluders"),
        ({"privacy": {"may_collude": 2, "norm_steps": 3000}, "masking": {"max_colluders": 2}}, "3 of 4 withstands 1"),
        ({"privacy": {"may_drop": 2}}, "set may_drop to 1 or less"),
        ({"privacy": {"norm_steps": 8}}, "raise norm_steps to 9 or more"),
        ({"privacy": {"norm_steps": 1 << 20}}, "fewer masking.lanes"),
        ({"privacy": {"norm_steps": 1 << 22}, "masking": {"lanes": 2}}, "lower norm_steps to 3302158 or less"),
        ({"buffer": {"updates": 3}}, "[buffer]"),
        ({"training": {"local_steps": 2}}, "one step a round"),
        ({"training": {"optimizer": "adam"}}, "'sgd'"),
        ({"training": {"learning_rate": 0.1}}, "learning_rate = 1"),
        ({"training": {"momentum": 0.9}}, "without momentum"),
        ({"training": {"warmup_rounds": 1}}, "warm-up"),
        ({"training": {"schedule": "cosine"}}, "decay"),
        ({"masking": {"rotate": True}}, "rotate"),
        ({"masking": {"keep": 0.5}}, "keep"),
        ({"masking": {"update_clip": 0.1}}, "update_clip"),
        ({"aggregation": {"weights": "precision"}}, "precision"),
        ({"aggregation": {"rule": "scaffold"}}, "scaffold"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(changes, words):
    with pytest.raises(ValidationError) as caught:
        shared_plan(**changes)
    assert words in str(caught.value)


def test_unequal_weights_and_own_steps_are_refused():
    unequal = fields()
    unequal["hospitals"][0]["weight"] = 2
    with pytest.raises(ValidationError, match="equal weights"):
        Plan.model_validate(unequal)
    slow = fields()
    slow["hospitals"][0]["local_steps"] = 3
    with pytest.raises(ValidationError, match="one step a round"):
        Plan.model_validate(slow)


def test_the_session_has_the_variance_of_the_plan_and_a_step_of_the_grid_is_worth_clip_over_scale():
    plan = shared_plan()
    uris = [hospital.uri for hospital in plan.hospitals]
    params = open_params(plan, order_for(plan, uris), LAYOUT)
    assert params.noise_mode == "shared"
    assert params.shared is not None
    assert params.shared.variance == math.ceil(Fraction(1.1) ** 2 * 300**2)
    assert params.shared.largest_sum == 300 * 5  # 40 / 8 patients are expected
    scale = shared_noise.scale(plan, LAYOUT.length)
    assert rounded_norm_squared(scale, LAYOUT.length) <= 300**2 < rounded_norm_squared(scale + 1, LAYOUT.length)
    assert params.quantizer.clip / params.offset(uris[0]) == pytest.approx(0.5 / scale, rel=1e-12)
    assert mean_error(plan) == 0


def test_a_roster_that_cannot_lose_as_many_as_the_plan_allows_opens_no_session():
    plan = shared_plan()
    with pytest.raises(WireError, match="to drop"):
        open_params(plan, order_for(plan, [hospital.uri for hospital in plan.hospitals][:3]), LAYOUT)


def test_shares_that_only_a_small_roster_makes_too_large_to_draw_open_no_session():
    plan = shared_plan(10, privacy={"norm_steps": 1 << 22}, masking={"lanes": 2})
    names = [hospital.uri for hospital in plan.hospitals]
    assert open_params(plan, order_for(plan, names), LAYOUT).shared is not None
    with pytest.raises(WireError, match="what is drawn lies between"):
        open_params(plan, order_for(plan, names[:4]), LAYOUT)


def test_a_grid_that_is_too_coarse_for_the_network_is_refused_with_the_one_to_take():
    long = Layout((("weight", (1000, 1000)),))
    plan = shared_plan()
    with pytest.raises(WireError, match="take 1000 steps or more"):
        open_params(plan, order_for(plan, [hospital.uri for hospital in plan.hospitals]), long)


@given(st.integers(8, 1 << 20), st.integers(1, 1 << 33))
def test_rounding_from_the_scale_stays_within_the_norm(norm, length):
    try:
        scale = scale_within(norm, length)
    except LocalError:
        return
    assert rounded_norm_squared(scale, length) <= norm**2
    assert norm <= 2 * scale


def test_the_opened_mean_over_the_expected_batch_is_a_step_and_an_update_stays_what_it_is():
    plan = shared_plan()
    mean = np.array([2.0, -4.0, 0.0], dtype=np.float32)
    uris = [hospital.uri for hospital in plan.hospitals]
    assert shared_noise.as_step(plan, mean, uris).tolist() == pytest.approx([0.4, -0.8, 0.0])
    local = Plan.model_validate(fields() | {"privacy": {"noise_multiplier": 1.1, "inverse_sampling_rate": 8}})
    assert shared_noise.as_step(local, mean, uris) is mean


def test_survivors_of_other_sizes_have_another_divisor():
    uneven = fields()
    uneven["hospitals"][0]["declared_patients"] = 80
    plan = Plan.model_validate(uneven)
    uris = [hospital.uri for hospital in plan.hospitals]
    mean = np.ones(2, dtype=np.float32)
    assert shared_noise.as_step(plan, mean, uris)[0] == np.float32(1 / 6.25)
    assert shared_noise.as_step(plan, mean, uris[1:])[0] == np.float32(1 / 5)


@given(st.integers(0, 4))
def test_fewer_survivors_than_the_plan_foresees_are_known_before(lost):
    plan = shared_plan(16, privacy={"may_drop": lost})
    assert shared_noise.fewest_survivors(plan, 16) == 16 - lost


THREE_OF_TEN = {"privacy": {"may_collude": 3, "norm_steps": 3000}, "masking": {"max_colluders": 3}}


def test_a_roster_whose_threshold_does_not_withstand_the_charged_colluders_is_refused_whatever_a_node_demands():
    plan = shared_plan(10, **THREE_OF_TEN)
    names = [hospital.uri for hospital in plan.hospitals]
    for members, withstood in ((10, 3), (7, 2)):
        params = open_params(plan, order_for(plan, names[:members]), LAYOUT)
        policy = Policy({name: params.fingerprint(name) for name in names[:members]}, minimum_cohort=3, max_colluders=1)
        assert collusion_bound(members, params.threshold) == withstood
        if withstood >= 3:
            check_session(params, names[0], policy)
            continue
        with pytest.raises(RemoteError, match="withstands 2 colluders, its shared noise is charged against 3"):
            check_session(params, names[0], policy)


def test_a_node_that_knows_too_few_keys_for_the_charged_colluders_says_so_before_training():
    plan = shared_plan(10, **THREE_OF_TEN)
    names = [hospital.uri for hospital in plan.hospitals]
    pinned = {name: bytes(32) for name in names}
    assert policy_obstacle(plan, names[0], NodePolicy(), pinned) is None
    said = policy_obstacle(plan, names[0], NodePolicy(), {name: pinned[name] for name in names[:5]})
    assert "withstands the 3 colluders that its shared noise is charged against" in (said or "")
