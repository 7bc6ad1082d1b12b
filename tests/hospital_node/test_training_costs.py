"""What each setting of local training costs: asked of the ledger, which every release has to pass."""

import pytest
from ledger_world import CAP, HOSPITAL, at, make_plan, new_ledger, release

from hospital_node.accounting import Mechanism
from hospital_node.ledger_rules import mechanism_of
from proto.frozen import parsed
from proto.plan import Plan, PlanError

PLAIN = make_plan()


def with_training(**changes):
    fields = PLAIN.model_dump(mode="json")
    fields["training"] |= changes
    return Plan.model_validate(fields)


def asked(folder, plan, name=HOSPITAL):
    """What one round of the plan would cost at a hospital with a new ledger: (mechanism, epsilon after it)."""
    folder.mkdir()
    ledger = new_ledger(folder)
    ledger.approve(plan, "Dr Keller", "asked", CAP, at(1))
    authorization = ledger.authorize(plan, 1)
    return authorization.mechanism, authorization.epsilon_after


FREE = {
    "an optimizer": {"optimizer": "adamw", "weight_decay": 0.01},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    "a schedule": {"schedule": "cosine", "warmup_rounds": 3},
    "FedProx": {"proximal": 0.5},
    "parts": {"parts": "norms-and-biases"},
    "adapters": {"parts": ["output_block"], "adapter_rank": 2},
    "patches": {"patches_per_patient": 8},
    "bfloat16": {"precision": "bf16"},
    "float16": {"precision": "fp16"},
    "a loss scale": {"precision": "fp16", "loss_scale": 1 << 16},
    "micro-batches": {"micro_batch": 1},
    "checkpointing": {"checkpointing": True},
}


@pytest.mark.parametrize("changes", FREE.values(), ids=FREE)
def test_what_is_public_or_works_on_noised_gradients_costs_nothing(tmp_path, changes):
    assert asked(tmp_path / "changed", with_training(**changes)) == asked(tmp_path / "plain", PLAIN)


def with_steps(**steps):
    fields = PLAIN.model_dump(mode="json")
    for hospital in fields["hospitals"]:
        hospital["local_steps"] = steps.get(hospital["uri"].rsplit("/", 1)[-1])
    return Plan.model_validate(fields)


def test_each_hospital_pays_for_its_own_steps(tmp_path):
    own, usual = with_steps(**{"st-anna": 40, "lakeside": 5}), with_training(local_steps=40)
    assert asked(tmp_path / "own", own) == asked(tmp_path / "as-many", usual)
    assert asked(tmp_path / "others", with_steps(lakeside=40)) == asked(tmp_path / "plain", PLAIN)
    assert [mechanism_of(own, name).steps for name in ("st-anna", "nordklinik", "lakeside", "a stranger")] == [40, 20, 5, 20]


def test_the_forecast_and_the_approval_count_the_hospitals_own_steps(tmp_path):
    own = with_steps(**{"st-anna": 40})
    ledger = new_ledger(tmp_path, own)
    assert ledger.approval(own).steps_per_round == 40
    release(ledger, own, 1)
    assert ledger.budget(own).next_epsilon == pytest.approx(ledger.authorize(own, 2).epsilon_after)
    assert ledger.budget(own).spent == pytest.approx(asked(tmp_path / "as-many", with_training(local_steps=40))[1])


def test_unequal_steps_are_refused_where_a_patient_may_attend_several_hospitals():
    fields = with_steps(lakeside=5).model_dump(mode="json")
    fields["privacy"]["hospitals_per_patient"] = 2
    with pytest.raises(PlanError, match=r"may attend 2 hospitals .* leave out local_steps of the hospitals"):
        parsed(Plan, fields, "the plan", PlanError)
    for hospital in fields["hospitals"]:
        hospital["local_steps"] = 5
    assert parsed(Plan, fields, "the plan", PlanError).most_local_steps == 5


def test_steps_are_what_is_paid_for(tmp_path):
    mechanism, cost = asked(tmp_path / "more", with_training(local_steps=40))
    assert mechanism == Mechanism(1.1, 1 / 20, 40)
    assert cost > asked(tmp_path / "plain", PLAIN)[1] > 0
    assert mechanism_of(PLAIN, "st-anna") == Mechanism(1.1, 1 / 20, 20)
