"""Hospitals of a study that take unequally many local steps: whose epsilon is counted, and whose is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from memory_world import Ward, make_plan
from test_bench_calibrate import SIZES, cost, make_cell
from test_bench_charge import make_cell as private_cell
from test_bench_charge import make_plan as private_plan
from test_bench_grid import SWEEP, study_of
from test_memory_federation import play

from hospital_node.accounting import Mechanism
from hospital_node.cap import Cap, CapFilter
from hospital_node.ledger import Ledger
from proto.plan import Hospital, Plan
from study.bench import calibrate
from study.bench.calibrate import noised, refuse_unreachable
from study.bench.cell import complete_plan, epsilon_of, planned_epsilon
from study.bench.charge import plan_to_approve
from study.bench.task import StudyError

OWN = (1, 2, 2, 2, 2, 2, 2, 8)  # of the hospitals of test_bench_calibrate, in their order


def plan_for(cell) -> Plan:
    return noised(cell, complete_plan(cell, SIZES))


def with_steps(plan: Plan, steps: dict[str, int]) -> Plan:
    fields = json.loads(plan.canonical())
    for hospital in fields["hospitals"]:
        hospital["local_steps"] = steps.get(hospital["uri"].rsplit("/", 1)[-1])
    return Plan.model_validate(fields)


def test_steps_go_to_the_hospitals_in_the_order_of_the_deal() -> None:
    plan = plan_for(make_cell(None, None, partition={"local_steps": OWN}))
    assert [plan.local_steps(hospital.uri) for hospital in plan.hospitals] == list(OWN)
    assert (plan.most_local_steps, plan.most_steps) == (8, 8 * plan.rounds)


def test_the_noise_of_a_target_is_that_of_the_hospital_that_takes_most_steps() -> None:
    cell = make_cell(4.0, None, partition={"local_steps": OWN})
    noise = plan_for(cell).privacy.noise_multiplier
    assert cost(noise, 12 * 8 // 2) <= 4.0 < cost(noise - 0.002, 12 * 8 // 2)  # cost counts rounds of two steps
    assert noise > plan_for(make_cell(4.0, None)).privacy.noise_multiplier


def test_with_participants_each_hospitals_own_steps_in_its_own_rounds_count() -> None:
    plan = plan_for(make_cell(2.0, 3, partition={"local_steps": OWN}))
    for hospital in plan.hospitals:
        rounds = sum(hospital.uri in plan.selected(number) for number in range(1, plan.rounds + 1))
        assert epsilon_of(plan, rounds * plan.local_steps(hospital.uri)) <= 2.0
    assert epsilon_of(plan, plan.most_steps) <= 2.0 < epsilon_of(plan, plan.rounds * 8)
    assert planned_epsilon(plan, 1) == epsilon_of(plan, 8)


@pytest.mark.parametrize(("participants", "steps"), [(None, 12 * 8), (3, 5 * 1)])  # of 12 rounds 3 of 8 are asked in 5 at least
def test_before_the_deal_a_target_is_tried_with_the_fewest_steps_that_it_can_mean(participants, steps, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(calibrate, "_noise_multiplier", lambda _cell, _privacy, tried, _beside, _shares: asked.append(tried))
    refuse_unreachable(make_cell(1.0, participants, partition={"local_steps": OWN, "hospitals": 8}))
    assert asked == [steps]


def test_another_number_of_hospitals_is_refused_in_a_sentence() -> None:
    with pytest.raises(StudyError, match=r"partition.local_steps lists 3 numbers and 8 hospitals are dealt patients"):
        complete_plan(make_cell(None, None, partition={"local_steps": (1, 2, 3)}), SIZES)


def test_a_study_may_vary_the_steps_of_its_hospitals(tmp_path: Path) -> None:
    grid = '[[grid]]\nmethod = ["local", "masked"]\n"partition.local_steps" = [[4, 4, 4, 4], [2, 2, 4, 8]]\n'
    local, equal, unequal = study_of(tmp_path, grid, SWEEP).cells()
    assert local.partition.local_steps is None, "ordinary training takes no rounds"
    assert unequal.partition.local_steps == (2, 2, 4, 8)
    assert unequal.settings == {"partition.local_steps": [2, 2, 4, 8]}
    (plain,) = study_of(tmp_path, '[[grid]]\nmethod = "masked"\n', SWEEP).cells()
    fields = plain.model_dump(mode="json")
    assert len({plain.id, equal.id, unequal.id}) == 3
    del fields["partition"]["local_steps"]
    assert type(plain).model_validate(fields).id == plain.id
    with pytest.raises(StudyError, match=r"one value of 'partition.local_steps' is a list itself"):
        study_of(tmp_path, '[[grid]]\nmethod = "masked"\n"partition.local_steps" = [2, 4]\n', SWEEP)


def test_every_ledger_of_a_federation_charges_its_own_hospitals_steps(tmp_path: Path) -> None:
    plan = with_steps(make_plan(3, rounds=2, noise=4.0), {"h1": 6})
    done = play(tmp_path, plan, Ward(), cap=Cap(epsilon=50, delta=1e-3), public=False)
    charged = {
        name: [event.entry.steps for event in Ledger.open_readonly(tmp_path / name / "state" / "ledger.db").events()
               if event.entry.__class__.__name__ == "Charge"]
        for name in ("h0", "h1", "h2")
    }  # fmt: skip
    assert charged == {"h0": [2, 2], "h1": [6, 6], "h2": [2, 2]}
    judge = CapFilter(delta=1e-3, order=2)
    worst = [judge.spent([Mechanism(4.0, 1 / 2, 6 * rounds)] if rounds else []) for rounds in (0, 1, 2)]
    assert [row.epsilon for row in done.rounds] == [pytest.approx(value) for value in worst]


def test_a_private_cell_is_charged_for_the_part_that_takes_most_steps() -> None:
    plan = private_plan()
    first, *others = plan.hospitals
    busy = plan.model_copy(update={"hospitals": (Hospital(**{**first.model_dump(), "local_steps": 9}), *others)})
    asked = plan_to_approve(private_cell("state"), busy, "st-anna")
    assert asked.training.local_steps == 9 * plan.rounds
    assert all(hospital.local_steps is None for hospital in asked.hospitals)
