"""Settings that were chosen anew for each epsilon: lines over epsilon stay whole, names short, and nothing is hidden."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from bench_world import result, row, written

from study.bench.cells import Cell
from study.bench.groups import grouped, place_of
from study.bench.report import write_report
from study.bench.task import StudyError
from study.results import StudyRow, open_results
from study.results_write import ResultsWriter

HEAD = """
study = "tuned"
task = "bench_world:TASK"
plan = "hippocampus"
seeds = [1, 2]
with_epsilon = ["aggregation.learning_rate"]
[data]
kind = "synthetic"
[partition]
kind = "sites"
hospitals = 4
[set]
rounds = 3
"training.local_steps" = 1
"training.optimizer" = "sgd"
"training.learning_rate" = 1.0
"training.learning_rate_decay" = 1.0
"masking.update_clip" = 1.0
"masking.lanes" = 2
"""
LOCAL = """
[[grid]]
method = "masked"
"privacy.noise_mode" = "local"
"partition.weights" = "patients"
epsilon = {epsilon}
"aggregation.learning_rate" = {rate}
"""
SHARED = """
[[grid]]
method = "masked"
"privacy.noise_mode" = "shared"
"partition.weights" = "equal"
"privacy.norm_steps" = 1000
"privacy.may_drop" = 1
"privacy.may_collude" = 1
epsilon = {epsilon}
"aggregation.learning_rate" = {rate}
"""
STUDY = HEAD + "".join(
    table.format(epsilon=epsilon, rate=rate)
    for table, rates in ((LOCAL, (1.8, 0.75)), (SHARED, (1.9, 1.3)))
    for epsilon, rate in zip((8, 2), rates, strict=True)
)


def stored(folder: Path, text: str = STUDY) -> tuple[Cell, ...]:
    listed = written(folder, text).cells()
    with ResultsWriter.create(folder / "out") as writer:
        writer.begin(StudyRow("tuned", "fake", "Dice", "Nobody is charged.", text), listed)
        for cell in listed:
            writer.started(cell.id, 1.0)
            writer.finished(result(cell, [row(cell, number) for number in range(4)]), 2.0)
    write_report(folder / "out")
    return listed


def test_one_line_for_each_noise_mode_over_all_epsilons(tmp_path: Path) -> None:
    stored(tmp_path)
    text = (tmp_path / "out" / "report.md").read_text()
    (finding,) = re.findall(r"!\[(Final Dice by epsilon[^]]*)\]", text)
    for mode in ("local", "shared"):
        assert re.search(rf"masked, noise mode {mode} 0\.\d+ at 2, 0\.\d+ at 8", finding), finding
    assert "learning rate" not in finding


def test_without_it_every_rate_is_a_line_of_its_own(tmp_path: Path) -> None:
    stored(tmp_path, STUDY.replace('with_epsilon = ["aggregation.learning_rate"]\n', ""))
    (finding,) = re.findall(r"!\[(Final Dice by epsilon[^]]*)\]", (tmp_path / "out" / "report.md").read_text())
    assert finding.count("learning rate") == 4


def test_names_leave_it_out_and_the_settings_say_it(tmp_path: Path) -> None:
    stored(tmp_path)
    text = (tmp_path / "out" / "report.md").read_text()
    scores, _, rest = text.partition("## Settings")
    assert "learning_rate" not in scores
    assert "| aggregation.learning_rate |" in rest.partition("## Costs")[0]
    with (tmp_path / "out" / "tables.csv").open() as handle:
        assert [one["aggregation.learning_rate"] for one in csv.DictReader(handle)] == ["1.8", "0.75", "1.9", "1.3"]


def test_it_changes_no_cell_and_no_setting(tmp_path: Path) -> None:
    with_it = stored(tmp_path)
    without = written(tmp_path, STUDY.replace('with_epsilon = ["aggregation.learning_rate"]\n', "")).cells()
    assert [cell.id for cell in with_it] == [cell.id for cell in without]
    with open_results(tmp_path / "out") as results:
        groups = grouped(results.cells(), STUDY)
    assert len(groups) == 4
    assert all("aggregation.learning_rate" not in one.cell.settings for one in groups)
    assert [one.settings["aggregation.learning_rate"] for one in groups] == [1.8, 0.75, 1.9, 1.3]


def test_weights_are_no_deal(tmp_path: Path) -> None:
    """Who counts how much changes no patient: both modes belong into one panel."""
    listed = stored(tmp_path)
    assert {cell.partition.weights for cell in listed} == {"patients", "equal"}
    assert len({place_of(cell) for cell in listed}) == 1


@pytest.mark.parametrize("name", ["epsilon", "training.precision", "nonsense"])
def test_only_what_a_grid_varies_can_follow_epsilon(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match=f"with_epsilon: no \\[\\[grid\\]\\] varies '{name}'"):
        written(tmp_path, STUDY.replace('["aggregation.learning_rate"]', f'["{name}"]'))
