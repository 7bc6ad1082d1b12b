"""The plan: one digest for one meaning, and one sentence for every mistake."""

import json
from copy import copy, deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proto.plan import Plan, PlanError, default_threshold, from_canonical, load_toml, role_of, short_name

HOSPITALS = [{"uri": f"secagg://trial/hospital/{name}", "declared_patients": 40} for name in ("a", "b", "c", "d")]


def fields(**changes):
    base = {
        "study": "trial",
        "rounds": 3,
        "network": {"labels": ["nodule"]},
        "preparation": {"modality": "CT", "spacing_xyz_mm": [2, 2, 2], "patch_zyx": [16, 16, 16]},
        "training": {"local_steps": 2},
        "privacy": {"noise_multiplier": 1.0, "inverse_sampling_rate": 4},
        "hospitals": HOSPITALS,
    }
    return base | changes


def test_canonical_bytes_give_the_same_plan_and_digest():
    plan = Plan.model_validate(fields())
    again = from_canonical(plan.canonical())
    assert again == plan
    assert again.digest() == plan.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": 4},
        {"privacy": {"noise_multiplier": 1.0000001, "inverse_sampling_rate": 4}},
        {"privacy": {"noise_multiplier": 1.0, "inverse_sampling_rate": 5}},
        {"masking": {"lanes": 4}},
        {"hospitals": HOSPITALS[:3]},
        {"training": {"local_steps": 2, "augment": False}},
    ],
)
def test_every_public_choice_changes_the_digest(change):
    assert Plan.model_validate(fields()).digest() != Plan.model_validate(fields(**change)).digest()


def test_a_copy_has_the_digest_of_its_own_fields():
    plan = Plan.model_validate(fields())
    known = plan.digest()  # kept with the plan from now on
    longer = plan.model_copy(update={"rounds": 4})
    assert longer.digest() == Plan.model_validate(fields(rounds=4)).digest() != known
    assert plan.model_copy().digest() == plan.model_copy(deep=True).digest() == plan.digest() == known


def test_a_digest_that_was_asked_for_shows_in_nothing_else():
    plan, other = Plan.model_validate(fields()), Plan.model_validate(fields())
    other.digest()
    assert plan == other
    assert hash(plan) == hash(other)
    assert plan.canonical() == other.canonical()
    assert repr(plan) == repr(other)
    assert copy(other).digest() == deepcopy(other).digest() == plan.digest()


def test_spaces_or_another_key_order_are_not_canonical():
    data = json.loads(Plan.model_validate(fields()).canonical())
    with pytest.raises(PlanError, match="canonical"):
        from_canonical(json.dumps(data).encode())


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_plan_error(data):
    with pytest.raises(PlanError):
        from_canonical(data)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rounds = 3\nstduy = 'x'", "unknown key 'stduy'"),
        ("rounds = 0", "'rounds'"),
        ("rounds = ", "not valid TOML"),
        ("rounds = 3", "key 'study' is missing"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(tmp_path: Path, text, sentence):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        load_toml(path)
    assert sentence in str(caught.value)
    assert "plan.toml" in str(caught.value)
    assert "\n" not in str(caught.value).replace(text, "")


def test_missing_file_is_a_plan_error(tmp_path: Path):
    with pytest.raises(PlanError, match="cannot read the plan"):
        load_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"privacy": {"noise_multiplier": 0, "inverse_sampling_rate": 4}}, "go together"),
        ({"privacy": {"noise_multiplier": 1, "no_guarantee": True, "inverse_sampling_rate": 4}}, "go together"),
        ({"privacy": {"noise_multiplier": 1, "inverse_sampling_rate": 4, "delta": 0.03}}, "below 1/40"),
        ({"privacy": {"noise_multiplier": float("nan"), "inverse_sampling_rate": 4}}, "noise_multiplier"),
        ({"hospitals": HOSPITALS[:2]}, "hospitals"),
        ({"hospitals": [*HOSPITALS[:3], HOSPITALS[0]]}, "twice"),
        ({"hospitals": [*HOSPITALS[:3], {"uri": "secagg://other/hospital/d", "declared_patients": 40}]}, "another study"),
        ({"hospitals": [*HOSPITALS[:3], {"uri": "http://d", "declared_patients": 40}]}, "not of the form"),
        ({"masking": {"minimum_cohort": 5}}, "exceeds"),
        ({"masking": {"minimum_cohort": 2}}, "minimum_cohort"),
    ],
)
def test_plans_that_would_break_a_promise_are_refused(change, sentence):
    with pytest.raises(PlanError, match=sentence):
        from_canonical(json.dumps(fields(**change)).encode())


def test_divisor_is_public_and_independent_of_anything_but_the_plan():
    plan = Plan.model_validate(fields())
    assert plan.expected_batch("secagg://trial/hospital/a") == 10.0
    with pytest.raises(PlanError, match="not among the hospitals"):
        plan.expected_batch("secagg://trial/hospital/z")


@pytest.mark.parametrize(("size", "threshold"), [(3, 3), (4, 3), (7, 5), (10, 7), (20, 14)])
def test_default_threshold_is_that_of_the_protocol(size, threshold):
    assert default_threshold(size) == threshold


def test_names_for_people():
    assert short_name("secagg://trial/hospital/st-anna") == "st-anna"
    assert role_of("secagg://trial/evaluator/public") == "evaluator"


def test_a_later_field_at_its_default_leaves_the_digest_alone_and_counts_otherwise():
    assert b'"participants"' not in Plan.model_validate(fields()).canonical()
    assert b'"participants":3' in Plan.model_validate(fields(participants=3)).canonical()


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("preparation", {"hounsfield_check": True}),
        ("preparation", {"equalise_below": 0.2}),
        ("preparation", {"fine_below_mm": 5.0, "fine_spacing_xyz_mm": [0.5, 0.5, 0.5]}),
        ("training", {"augment_rotation_deg": 10.0}),
        ("training", {"augment_scale": 0.1}),
        ("training", {"balance_labels": True}),
    ],
)
def test_rules_of_preparation_and_patches_are_in_the_digest_where_they_are_used(table, change):
    plain = Plan.model_validate(fields())
    used = Plan.model_validate(fields(**{table: fields()[table] | change}))
    assert all(f'"{name}"'.encode() not in plain.canonical() for name in change)
    assert all(f'"{name}"'.encode() in used.canonical() for name in change)
    assert from_canonical(used.canonical()) == used


def test_a_later_field_of_one_hospital_is_in_the_digest_and_of_none_in_no_digest():
    more = [HOSPITALS[0] | {"local_steps": 9}, *HOSPITALS[1:]]
    own, plain = Plan.model_validate(fields(hospitals=more)), Plan.model_validate(fields())
    assert plain.canonical().count(b"local_steps") == 1
    assert own.canonical().count(b'"local_steps":9') == 1
    assert from_canonical(own.canonical()) == own
    assert own.digest() != plain.digest()
    assert (own.most_local_steps, plain.most_local_steps) == (9, 2)


@pytest.mark.parametrize(
    ("name", "value"), [("precision", "bf16"), ("precision", "fp16"), ("micro_batch", 2), ("checkpointing", True)]
)
def test_savings_in_training_are_public_choices_that_old_plans_do_not_have(name, value):
    training = fields()["training"]
    plain, thrifty = Plan.model_validate(fields()), Plan.model_validate(fields(training={**training, name: value}))
    assert name.encode() not in plain.canonical()
    assert f'"{name}":{json.dumps(value)}'.encode() in thrifty.canonical()
    assert plain.digest() != thrifty.digest()
    assert from_canonical(thrifty.canonical()) == thrifty


@pytest.mark.parametrize(("name", "value"), [("precision", "fp8"), ("micro_batch", 0), ("checkpointing", "some")])
def test_a_saving_that_does_not_exist_is_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        Plan.model_validate(fields(training={**fields()["training"], name: value}))


def test_a_loss_scale_is_a_power_of_two_of_fp16_and_public():
    training = {**fields()["training"], "precision": "fp16"}
    usual, own = (Plan.model_validate(fields(training={**training, **more})) for more in ({}, {"loss_scale": 1024}))
    assert (usual.training.scale_of_loss, own.training.scale_of_loss) == (4096, 1024)
    assert b"loss_scale" not in usual.canonical()
    assert b'"loss_scale":1024' in own.canonical()
    assert from_canonical(own.canonical()) == own
    assert Plan.model_validate(fields()).training.scale_of_loss == 1


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"precision": "fp16", "loss_scale": 1000}, r"no power of two.*take 1024"),
        ({"precision": "fp16", "loss_scale": 0}, "greater than or equal to 1"),
        ({"precision": "fp16", "loss_scale": 1 << 25}, "less than or equal to 16777216"),
        ({"precision": "bf16", "loss_scale": 1024}, "bf16 has the range of float32: leave it out"),
        ({"loss_scale": 1024}, "fp32 has the range of float32: leave it out"),
    ],
)
def test_a_loss_scale_that_rounds_or_that_nothing_reads_is_refused(training, said):
    with pytest.raises(ValidationError, match=said):
        Plan.model_validate(fields(training={**fields()["training"], **training}))
