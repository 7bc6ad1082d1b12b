"""Every epsilon of a result: at two deltas, with and without colluders, stored or recomputed, and what tables show of them."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from bench_world import result, row, written
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from hospital_node.accounting import Mechanism, epsilon, outsider_epsilon
from hospital_node.cap import UNIFORM_SHARE, stated
from hospital_node.releases import Release
from hospital_node.shared_accounting import Shares
from study.bench.calibrate import noised
from study.bench.cell import cap_of, complete_plan, epsilon_of
from study.bench.cells import Cell, CellResult, Readings
from study.bench.groups import grouped
from study.bench.readings import DEFAULT_DELTA, known, readings_of
from study.bench.report import write_report
from study.bench.task import StudyError
from study.results import StudyRow, open_results
from study.results_write import ResultsWriter, write_csv

DELTA = 1e-3
SHARES = Shares(norm_steps=1000, members=4, may_drop=1, may_collude=1)
SIZES = {f"h{at}": 15 for at in range(4)}
HEAD = """
study = "curve"
task = "bench_world:TASK"
plan = "hippocampus"
seeds = [1]
[data]
kind = "synthetic"
[partition]
kind = "iid"
hospitals = 4
[set]
rounds = 3
"training.local_steps" = 1
"training.optimizer" = "sgd"
"training.learning_rate" = 1.0
"training.learning_rate_decay" = 1.0
"masking.update_clip" = 1.0
"masking.lanes" = 2
"privacy.inverse_sampling_rate" = 1
"privacy.delta" = 1e-3
"""
LOCAL = """
[[grid]]
method = "masked"
epsilon = 8
"""
SHARED = """
[[grid]]
method = "masked"
epsilon = 8
epsilon_reading = ["charged", "outsider"]
"privacy.noise_mode" = "shared"
"privacy.norm_steps" = 1000
"privacy.may_drop" = 1
"privacy.may_collude" = 1
"""


def cells_of(folder: Path, grid: str) -> tuple[Cell, ...]:
    return written(folder, HEAD + grid).cells()


def plan_of(cell: Cell) -> Any:
    return noised(cell, complete_plan(cell, SIZES))


@settings(max_examples=25, deadline=None)
@given(noise=st.floats(0.8, 6), steps=st.lists(st.integers(1, 30), min_size=1, max_size=3), shared=st.booleans())
def test_the_worst_hospital_is_read_in_every_way(noise: float, steps: list[int], shared: bool) -> None:
    shares = SHARES if shared else None
    done = [[Release(Mechanism(noise, 1.0, count, shares))] for count in steps]
    worst = Mechanism(noise, 1.0, max(steps), shares)
    read = readings_of(done, DELTA)
    assert read.at_default == stated([worst], DEFAULT_DELTA) > stated([worst], DELTA)
    if not shared:
        assert read.outsider is read.outsider_at_default is None
        return
    assert read.outsider == outsider_epsilon([worst], UNIFORM_SHARE * DELTA) < epsilon([worst], UNIFORM_SHARE * DELTA)
    assert read.outsider < read.outsider_at_default < read.at_default


def test_no_release_and_no_noise_are_no_figure() -> None:
    assert readings_of([], DELTA) == Readings()
    assert readings_of([[Release(Mechanism(0.0, 1.0, 3))]], DELTA) == Readings()


def test_noise_for_the_outsiders_reading_costs_a_colluder_more(tmp_path: Path) -> None:
    charged, outsider = cells_of(tmp_path, SHARED)
    assert (charged.epsilon_reading, outsider.epsilon_reading) == ("charged", "outsider")
    for cell, other in ((charged, False), (outsider, True)):
        plan = plan_of(cell)
        spent = Mechanism(plan.privacy.noise_multiplier, 1.0, 3, SHARES)
        less = Mechanism(plan.privacy.noise_multiplier - 0.001, 1.0, 3, SHARES)
        cost = outsider_epsilon if other else epsilon
        assert cost([spent], UNIFORM_SHARE * DELTA) <= 8 < cost([less], UNIFORM_SHARE * DELTA)
    plan = plan_of(outsider)
    assert epsilon_of(plan, 3) > 8, "the ledger goes on reading against the colluders"
    assert cap_of(plan).epsilon >= epsilon_of(plan, 3)
    assert plan.privacy.noise_multiplier < plan_of(charged).privacy.noise_multiplier


def test_the_reading_is_nothing_to_hospitals_with_noise_of_their_own(tmp_path: Path) -> None:
    grid = LOCAL + 'epsilon_reading = ["charged", "outsider"]\n'
    assert len(cells_of(tmp_path, grid)) == 1
    (cell,) = cells_of(tmp_path, grid)
    assert cell.epsilon_reading == "charged"
    assert "epsilon_reading" not in cell.settings
    assert cell.id == cells_of(tmp_path, LOCAL)[0].id


def test_a_reading_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="epsilon_reading"):
        cells_of(tmp_path, SHARED.replace('"outsider"', '"nobody"'))


def test_a_charged_cell_keeps_the_id_that_it_had(tmp_path: Path) -> None:
    charged, outsider = cells_of(tmp_path, SHARED)
    (plain,) = cells_of(tmp_path, SHARED.replace('epsilon_reading = ["charged", "outsider"]\n', ""))
    assert charged.id == plain.id != outsider.id


def test_delta_may_differ_from_grid_to_grid(tmp_path: Path) -> None:
    listed = cells_of(tmp_path, LOCAL + '"privacy.delta" = [1e-3, 1e-5]\n')
    assert [cell.plan["privacy"]["delta"] for cell in listed] == [1e-3, 1e-5]
    noises = [plan_of(cell).privacy.noise_multiplier for cell in listed]
    assert noises[0] < noises[1]


def test_a_delta_that_gives_a_patient_away_is_refused_with_the_bound(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, LOCAL.replace("epsilon = 8", 'epsilon = 8\n"privacy.delta" = 0.07'))
    with pytest.raises(StudyError, match=r"privacy\.delta 0\.07 must be below 1/15, one over the smallest declared size"):
        plan_of(cell)


def test_a_cell_without_a_finite_epsilon_is_one_sentence(tmp_path: Path) -> None:
    grid = SHARED.replace('epsilon = 8\nepsilon_reading = ["charged", "outsider"]', '"privacy.noise_multiplier" = 0.01')
    (cell,) = cells_of(tmp_path, grid)
    plan = complete_plan(cell, SIZES)
    assert math.isinf(epsilon_of(plan, 3) or 0)
    with pytest.raises(StudyError, match=r"noise_multiplier 0\.01 have no finite epsilon at delta 1e-3.*ask for more noise"):
        cap_of(plan)


# ---- stored, recomputed, shown ----


def done(cell: Cell, *, readings: Readings | None = None, spent: float | None = None) -> CellResult:
    """What the cell would give, stored by this version or (without readings) by an earlier one."""
    plan = plan_of(cell)
    rounds = [row(cell, number) for number in range(4)]
    changes = {
        "noise_multiplier": plan.privacy.noise_multiplier,
        "epsilon": spent or epsilon_of(plan, 3),
        "delta": DELTA,
        "hospitals": SIZES,
        "readings": readings,
    }
    return result(cell, rounds).model_copy(update=changes)


def store(out: Path, *results: tuple[Cell, CellResult]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(StudyRow("curve", "fake", "Dice", "Nobody is charged.", "text"), [cell for cell, _ in results])
        for cell, one in results:
            writer.started(cell.id, 1.0)
            writer.finished(one, 2.0)
        write_csv(writer.cells(), out)


def test_readings_are_stored_and_read_back(tmp_path: Path) -> None:
    cell, other = cells_of(tmp_path, SHARED)
    read = Readings(at_default=9.0, outsider=7.0, outsider_at_default=8.0)
    store(tmp_path / "out", (cell, done(cell, readings=read)), (other, done(other)))
    with open_results(tmp_path / "out") as results:
        first, second = results.cells()
    assert first.result is not None
    assert second.result is not None
    assert (first.result.readings, second.result.readings) == (read, None)
    assert known(cell, first.result) == read


@pytest.mark.parametrize("grid", [LOCAL, SHARED])
def test_an_older_result_is_read_from_its_plan(tmp_path: Path, grid: str) -> None:
    for cell in cells_of(tmp_path, grid):
        plan = plan_of(cell)
        spent = Mechanism(plan.privacy.noise_multiplier, 1.0, 3, SHARES if plan.privacy.is_shared else None)
        assert known(cell, done(cell)) == readings_of([[spent]], DELTA)
        assert known(cell, done(cell)).at_default == stated([spent], DEFAULT_DELTA)


def test_an_older_result_that_its_plan_does_not_explain_is_unknown(tmp_path: Path) -> None:
    """A hospital that stopped, say: fewer rounds were charged than the plan has."""
    (cell,) = cells_of(tmp_path, LOCAL)
    assert known(cell, done(cell, spent=5.0)) == Readings()


def test_a_file_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (cell,) = cells_of(tmp_path, LOCAL)
    store(out, (cell, done(cell)))
    engine = create_engine(f"sqlite:///{out / 'results.db'}")
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE readings"))
    engine.dispose()
    with open_results(out) as results:
        (group,) = grouped(results.cells())
    assert group.readings.at_default == known(cell, done(cell)).at_default
    write_report(out)
    assert "| epsilon at 1e-5 |" in (out / "report.md").read_text()


def test_tables_show_each_reading_that_some_row_has(tmp_path: Path) -> None:
    listed = cells_of(tmp_path, LOCAL + SHARED)
    out = tmp_path / "out"
    store(out, *((cell, done(cell)) for cell in listed))
    write_report(out)
    head, rule, *body = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("|")][:5]
    assert "| epsilon | epsilon at 1e-5 | epsilon, c = 0 | epsilon at 1e-5, c = 0 | rounds |" in head
    assert rule.count("|") == head.count("|")
    figures = [line.strip("| ").split(" | ")[-5:-1] for line in body]
    assert figures[0][2:] == ["–", "–"], "who adds noise alone has one reading"
    assert figures[0][0] == figures[1][0] == "8.00"
    assert 7.98 < float(figures[2][2]) <= 8 < float(figures[2][0])
    for cell, line in zip(listed, figures, strict=True):
        read = known(cell, done(cell))
        assert line[1] == f"{read.at_default:.2f}"
        assert line[2] == (f"{read.outsider:.2f}" if read.outsider else "–")
    with (out / "tables.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert float(rows[2]["epsilon_outsider"]) == known(listed[2], done(listed[2])).outsider
    assert rows[0]["epsilon_outsider"] == ""
    with (out / "cells.csv").open() as handle:
        assert [one["epsilon_at_default"] != "" for one in csv.DictReader(handle)] == [True] * 3


def test_at_the_usual_delta_nothing_stands_twice(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, LOCAL)
    usual = cell.model_copy(update={"plan": cell.plan | {"privacy": cell.plan["privacy"] | {"delta": DEFAULT_DELTA}}})
    spent = done(usual).model_copy(update={"delta": DEFAULT_DELTA})
    store(tmp_path / "out", (usual, spent))
    write_report(tmp_path / "out")
    written_text = (tmp_path / "out" / "report.md").read_text()
    assert "at delta 1e-5" in written_text
    assert "epsilon at 1e-5" not in written_text


def test_two_deltas_stand_beside_their_epsilons(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, LOCAL)
    (usual,) = cells_of(tmp_path, LOCAL.replace("epsilon = 8", 'epsilon = 8\n"privacy.delta" = 1e-5'))
    store(tmp_path / "out", (cell, done(cell)), (usual, done(usual).model_copy(update={"delta": 1e-5})))
    write_report(tmp_path / "out")
    assert "| epsilon | delta | epsilon at 1e-5 |" in (tmp_path / "out" / "report.md").read_text()
