"""Rounds to a score: the first round counts, a seed that never came there has no number, bytes end with that round."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_world import HOSPITALS, STUDY, result, row, written

from study.bench.cells import Cell, CellResult, Method
from study.bench.groups import Group
from study.bench.levels import first_round, levels_in, reached
from study.bench.report import write_report
from study.bench.task import StudyError
from study.results import StudyRow
from study.results_write import ResultsWriter

HEAD, _, GRID = STUDY.partition("[data]")
LEVELLED = f"{HEAD}levels = [0.6, 0.3, 0.99]\n[data]{GRID}"


def done(cell: Cell) -> CellResult:
    return result(cell, [row(cell, number) for number in range(4)])


def cells_of(folder: Path) -> tuple[Cell, ...]:
    return written(folder, LEVELLED).cells()


def test_the_first_round_at_or_above_the_level_counts_also_where_later_ones_fall(tmp_path: Path) -> None:
    (cell,) = [one for one in cells_of(tmp_path) if one.method is Method.MASKED and one.seed == 1]
    whole = done(cell)  # means over both labels: 0.20, 0.42, 0.64, 0.86 or nearly
    score = {one.round: sum(sum(v) / len(v) for v in one.scores.values()) / 2 for one in whole.rounds}
    assert first_round(whole, score[2]) == 2
    assert first_round(whole, score[2] + 1e-9) == 3
    falling = whole.model_copy(update={"rounds": [whole.rounds[0], whole.rounds[3], whole.rounds[1]]})
    assert first_round(falling, score[2]) == 3
    assert first_round(whole, 0.99) is None
    unmeasured = whole.model_copy(update={"rounds": [one.model_copy(update={"scores": {}}) for one in whole.rounds]})
    assert first_round(unmeasured, 0.1) is None


def test_settings_have_rounds_and_bytes_of_the_seeds_that_came_there(tmp_path: Path) -> None:
    masked = {one.seed: done(one) for one in cells_of(tmp_path) if one.method is Method.MASKED}
    pooled = [one for one in cells_of(tmp_path) if one.method is Method.POOLED]
    last = cells_of(tmp_path)[-1]
    groups = [Group(pooled[0], {1: done(pooled[0])}, 2, pooled[0].settings), Group(last, masked, 2, last.settings)]
    found = reached(groups, [0.3, 0.99])
    assert [(one.level, one.rounds) for one in found] == [(0.3, {1: 1, 2: 1}), (0.99, {})]
    by_then = (3 * 2000 + 3 * 4000) / len(HOSPITALS) / 1e6
    assert found[0].megabytes == {1: pytest.approx(by_then), 2: pytest.approx(by_then)}


def test_the_report_has_the_table_where_the_study_file_asks_for_it(tmp_path: Path) -> None:
    for name, source in (("with", LEVELLED), ("without", "text")):
        with ResultsWriter.create(tmp_path / name) as writer:
            writer.begin(StudyRow("small", "fake", "Dice", "Nobody is charged.", source), cells_of(tmp_path))
            for cell in cells_of(tmp_path):
                writer.started(cell.id, 1.0)
                writer.finished(done(cell), 2.0)
        write_report(tmp_path / name)
    report = (tmp_path / "with" / "report.md").read_text()
    assert "## Rounds to a level" in report
    assert "| masked | 0.3 | 2 of 2 | 1.0 (1 to 1) | 0.006 (0.006 to 0.006) |" in report
    assert "| masked | 0.99 | 0 of 2 | – | – |" in report
    assert "Rounds to a level" not in (tmp_path / "without" / "report.md").read_text()


def test_levels_are_scores_and_come_lowest_first(tmp_path: Path) -> None:
    assert levels_in(LEVELLED) == (0.3, 0.6, 0.99)
    assert levels_in(STUDY) == ()
    with pytest.raises(StudyError, match="levels"):
        written(tmp_path, LEVELLED.replace("0.99", "1.5"))
    assert [one.id for one in cells_of(tmp_path)] == [one.id for one in written(tmp_path, STUDY).cells()], "no new cells"
