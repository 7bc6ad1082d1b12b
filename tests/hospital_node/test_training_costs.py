"""What each setting of local training costs: asked of the ledger, which every release has to pass."""

import pytest
from ledger_world import CAP, HOSPITAL, at, make_plan, new_ledger

from hospital_node.accounting import Mechanism
from hospital_node.ledger_rules import mechanism_of
from proto.plan import Plan

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
    "patches": {"patches_per_patient": 8},
}


@pytest.mark.parametrize("changes", FREE.values(), ids=FREE)
def test_what_is_public_or_works_on_noised_gradients_costs_nothing(tmp_path, changes):
    assert asked(tmp_path / "changed", with_training(**changes)) == asked(tmp_path / "plain", PLAIN)


def test_steps_are_what_is_paid_for(tmp_path):
    mechanism, cost = asked(tmp_path / "more", with_training(local_steps=40))
    assert mechanism == Mechanism(1.1, 1 / 20, 40)
    assert cost > asked(tmp_path / "plain", PLAIN)[1] > 0
    assert mechanism_of(PLAIN) == Mechanism(1.1, 1 / 20, 20)
