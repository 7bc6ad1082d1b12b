"""A plan's evaluation in studies: settings, the noise that is left for training, what is charged, who is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench_world import STUDY, TASK, written
from test_bench_calibrate import most_asked
from test_bench_charge import CAP, NOW, approve, charges, make_cell, make_plan, state
from test_bench_plain import by_hand, plan_of, played, units, uri

from hospital_node.accounting import Mechanism, epsilon, noise_multiplier_for
from hospital_node.cap import UNIFORM_SHARE
from hospital_node.ledger import Ledger
from hospital_node.ledger_rules import planned
from hospital_node.state import StateFolder
from hospital_node.validation import is_measured
from study.bench.calibrate import noised
from study.bench.cell import complete_plan, planned_epsilon
from study.bench.cells import Cell
from study.bench.charge import charge, plan_to_approve
from study.bench.estimate import amount

__all__ = ["state"]  # the fixture of the charging tests

HEAD = STUDY.partition("[[grid]]")[0].replace("[1, 2]", "[1]")
PART = '"evaluation.every" = 3\n"evaluation.share" = 0.25\n"evaluation.noise_multiplier" = 4.0\n'
EVALUATION = {"every": 2, "share": 0.25, "noise_multiplier": 4.0}
SIZES = {"a": 20, "b": 20, "c": 20}


def cells_of(folder: Path, grid: str) -> tuple[Cell, ...]:
    return written(folder, HEAD + grid).cells()


def test_a_study_varies_the_part_by_its_dotted_names(tmp_path: Path) -> None:
    grid = f'[[grid]]\nmethod = "masked"\n{PART.replace("4.0", "[2.0, 4.0]")}'
    cells = cells_of(tmp_path, grid)
    assert [cell.plan["evaluation"]["noise_multiplier"] for cell in cells] == [2.0, 4.0]
    assert [cell.settings["evaluation.noise_multiplier"] for cell in cells] == [2.0, 4.0]
    assert complete_plan(cells[0], SIZES).evaluation is not None


def test_tables_with_and_without_the_part_stand_in_one_study(tmp_path: Path) -> None:
    grid = f'[[grid]]\nmethod = "masked"\n{PART}\n[[grid]]\nmethod = "masked"\n'
    with_part, without = cells_of(tmp_path, grid)
    assert (with_part.plan["evaluation"] is None, without.plan["evaluation"]) == (False, None)
    assert "evaluation.every" in with_part.settings
    assert "evaluation.every" not in without.settings


def test_a_cell_without_the_part_keeps_the_id_it_had(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, '[[grid]]\nmethod = "masked"\n')
    before = cell.model_copy(update={"plan": {name: part for name, part in cell.plan.items() if name != "evaluation"}})
    assert before.id == cell.id


def test_ordinary_training_does_not_read_the_part(tmp_path: Path) -> None:
    grid = f'[[grid]]\nmethod = "pooled"\n{PART.replace("0.25", "[0.1, 0.25]")}'
    (cell,) = cells_of(tmp_path, grid)
    assert cell.plan["evaluation"] is None


def test_noise_for_an_epsilon_leaves_room_for_the_evaluations(tmp_path: Path) -> None:
    grid = f'[[grid]]\nmethod = "masked"\nepsilon = 4.0\n{PART}\n[[grid]]\nmethod = "masked"\nepsilon = 4.0\n'
    plans = [noised(cell, complete_plan(cell, SIZES)) for cell in cells_of(tmp_path, grid)]
    with_part, without = (plan.privacy.noise_multiplier for plan in plans)
    assert with_part > without
    for plan in plans:
        assert 3.9 < planned_epsilon(plan, plan.rounds) <= 4.0


def test_where_few_are_asked_the_most_asked_hospital_decides(tmp_path: Path) -> None:
    grid = f'[[grid]]\nmethod = "masked"\nepsilon = 4.0\nrounds = 12\nparticipants = 3\nhospitals = 9\n{PART}'
    (cell,) = cells_of(tmp_path, grid)
    plan = noised(cell, complete_plan(cell, {f"h{number}": 20 for number in range(9)}))
    assert 4 <= most_asked(plan) < 12
    assert planned_epsilon(plan, most_asked(plan)) <= 4.0 < planned_epsilon(plan, 12)


def test_a_target_that_the_evaluations_alone_exceed_is_refused(tmp_path: Path) -> None:
    grid = f'[[grid]]\nmethod = "masked"\nepsilon = 1.0\n{PART.replace("4.0", "1.0")}'
    with pytest.raises(ValueError, match="no noise multiplier up to 10000 reaches epsilon 1"):
        cells_of(tmp_path, grid)


def test_what_runs_beside_is_part_of_the_target() -> None:
    beside = (Mechanism(5.0, 1.0, 3),)
    sigma = noise_multiplier_for(3.0, 1e-5, 0.1, 50, beside)
    assert epsilon([Mechanism(sigma, 0.1, 50), *beside], 1e-5) <= 3.0
    assert epsilon([Mechanism(sigma - 0.002, 0.1, 50), *beside], 1e-5) > 3.0


def test_fewer_are_drawn_and_masked_hospitals_measure_the_others(tmp_path: Path) -> None:
    grid = f'[[grid]]\nmethod = ["masked", "plain"]\n{PART}\n[[grid]]\nmethod = "masked"\n'
    masked, plain, without = cells_of(tmp_path, grid)
    patients = TASK.patients(masked, tmp_path, lambda *_: None)
    found = [amount(cell, patients) for cell in (masked, plain, without)]
    assert [one.drawn for one in found] == [0.75 * found[2].drawn, 0.75 * found[2].drawn, found[2].drawn]
    scans = sum(len(unit.patient.cases) for unit in patients.training)
    assert found[0].measured - found[2].measured == round(0.25 * scans * (masked.plan["rounds"] // 3))
    assert found[1].measured == found[2].measured


# ---- private patients ----


def test_a_private_cell_is_charged_for_all_its_evaluations_at_once(state: StateFolder) -> None:
    cell, plan = make_cell(state.path), make_plan(evaluation=EVALUATION)
    asked = plan_to_approve(cell, plan, "st-anna")
    whole, once = planned(plan, "site-a", plan.rounds), planned(asked, "st-anna", 1)
    assert epsilon(once, CAP.delta) == pytest.approx(epsilon(whole, CAP.delta), rel=1e-3)
    assert epsilon(once, CAP.delta) > epsilon(planned(make_plan(), "site-a", plan.rounds), CAP.delta)
    approve(state, cell, plan)
    spent = charge(cell, plan, NOW, lambda size: b"r" * size)
    (entry,) = charges(state)
    assert entry.evaluation is not None
    assert entry.evaluation.noise_multiplier == pytest.approx(4.0 / np.sqrt(2))
    assert spent == pytest.approx(epsilon(whole, UNIFORM_SHARE * CAP.delta), rel=1e-3)
    assert Ledger.open(state.ledger).budget(asked).reading == "pld"


# ---- the baseline ----


def test_the_plain_baseline_trains_on_the_same_patients() -> None:
    plan = plan_of(evaluation={"every": 2, "share": 0.5, "noise_multiplier": 0.0})
    dealt = {uri(f"h{at}"): units(f"h{at}", 6) for at in range(3)}
    kept = {name: [unit for unit in some if not is_measured(plan, unit.patient.key)] for name, some in dealt.items()}
    assert 0 < sum(map(len, kept.values())) < 18
    assert np.array_equal(played(plan, dealt).model, by_hand(plan, kept)[-1])
