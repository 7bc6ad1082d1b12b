"""The results file: one writer, whole transactions, nothing of two runs mixed, CSV that other tools can read."""

from __future__ import annotations

import csv
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from bench_world import STUDY, result, row, written

from study.bench.cells import Cell
from study.results import FILE, ResultsError, StudyRow, open_results
from study.results_write import ResultsWriter, write_csv

ROW = StudyRow("small", "fake", "Dice", "nobody is charged", "the text")


@pytest.fixture
def cells(tmp_path: Path) -> tuple[Cell, ...]:
    *rest, last = written(tmp_path, STUDY + "epsilon = inf\n").cells()
    noisy = last.model_copy(update={"epsilon": 8.0, "settings": {"epsilon": 8.0}})  # without reckoning its noise
    return (*rest, noisy, last)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def finish(writer: ResultsWriter, cell: Cell) -> None:
    rounds = [row(cell, number) for number in range(int(cell.plan["rounds"]) + 1)]
    writer.started(cell.id, 10.0)
    for one in rounds:
        writer.round_done(cell.id, one)
    writer.finished(result(cell, rounds), 20.0)


@pytest.mark.parametrize("position", [-2, -1])
def test_a_finished_cell_comes_back_as_it_went_in(out: Path, cells: tuple[Cell, ...], position: int) -> None:
    cells = (*(one for one in cells if one is not cells[position]), cells[position])
    cell = cells[-1]
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
        finish(writer, cell)
    with open_results(out) as results:
        assert results.study() == ROW
        stored = results.cells()
    assert [one.cell for one in stored] == list(cells)
    assert [one.state for one in stored] == ["planned"] * (len(cells) - 1) + ["done"]
    rounds = [row(cell, number) for number in range(4)]
    assert stored[-1].result == result(cell, rounds)
    assert stored[-1].rounds == tuple(rounds)
    assert (stored[-1].upload_bytes, stored[-1].download_bytes) == (3 * 6000, 3 * 12000)
    assert stored[-1].started_at is not None
    assert stored[-1].software


def test_a_round_can_be_read_while_its_cell_runs(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer, open_results(out) as results:
        writer.begin(ROW, cells)
        before = results.revision()
        writer.started(cells[0].id, 1.0)
        writer.round_done(cells[0].id, row(cells[0], 0))
        assert results.revision() > before
        running = results.cells()[0]
    assert (running.state, running.rounds, running.result) == ("running", (row(cells[0], 0),), None)


def test_what_did_not_finish_is_planned_again_without_its_rounds(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
        finish(writer, cells[0])
        for cell in cells[1:3]:
            writer.started(cell.id, 1.0)
            writer.round_done(cell.id, row(cell, 0))
        writer.failed(cells[2].id, "no such folder", 2.0)
    with ResultsWriter.create(out) as writer:  # the first process is gone
        assert list(writer.states().values())[:3] == ["done", "running", "failed"]
        writer.begin(ROW, cells)
        stored = writer.cells()
    assert [one.state for one in stored[:3]] == ["done", "planned", "planned"]
    assert [len(one.rounds) for one in stored[:3]] == [2, 0, 0]
    assert stored[2].reason == ""
    assert stored[1].started_at is None


def test_an_interrupted_cell_is_planned_and_a_failed_one_keeps_its_reason(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
        for cell in cells[:2]:
            writer.started(cell.id, 1.0)
            writer.round_done(cell.id, row(cell, 0))
        writer.failed(cells[0].id, "no such folder", 2.0)
        writer.interrupted()
        stored = writer.cells()
    assert [(one.state, one.reason, len(one.rounds)) for one in stored[:2]] == [
        ("failed", "no such folder", 1),
        ("planned", "", 0),
    ]


def test_a_changed_study_file_keeps_finished_cells_aside(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
        finish(writer, cells[0])
        writer.begin(replace(ROW, source="another text"), cells[1:])
        assert [one.cell.id for one in writer.cells()] == [cell.id for cell in cells[1:]]
        assert writer.unlisted() == 1
        assert writer.study().source == "another text"
        writer.begin(ROW, cells[::-1])
        assert writer.cells()[-1].state == "done"
        assert writer.unlisted() == 0


def test_only_a_running_cell_can_end(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
        with pytest.raises(ResultsError, match="is not running"):
            writer.finished(result(cells[0], [row(cells[0], 0)]), 1.0)
        finish(writer, cells[0])
        with pytest.raises(ResultsError, match="is not planned"):
            writer.started(cells[0].id, 1.0)
        assert writer.cells()[0].rounds == tuple(row(cells[0], number) for number in (0, 1))


def test_a_failed_transaction_leaves_nothing(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
        writer.started(cells[0].id, 1.0)
        writer.round_done(cells[0].id, row(cells[0], 0))
        twice = [row(cells[0], 1), row(cells[0], 1)]
        with pytest.raises(ResultsError, match="cannot write the results"):
            writer.finished(result(cells[0], twice), 2.0)
        stored = writer.cells()[0]
    assert (stored.state, len(stored.rounds)) == ("running", 1)


def test_a_folder_belongs_to_one_study(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
        with pytest.raises(ResultsError, match="holds the results of study 'small': name another folder with --out"):
            writer.begin(replace(ROW, name="other"), cells)
        assert len(writer.states()) == len(cells)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="there are no results in"):
        open_results(tmp_path)
    (tmp_path / FILE).write_text("no database at all, but long enough to be taken for one" * 30)
    with pytest.raises(ResultsError, match="cannot read the results"):
        open_results(tmp_path)


def test_results_of_another_schema_are_refused_and_left_alone(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
    with sqlite3.connect(out / FILE) as connection:
        connection.execute("UPDATE counters SET number = 99 WHERE name = 'schema'")
    for opening in (open_results, ResultsWriter.create):
        with pytest.raises(ResultsError, match="has schema 99"):
            opening(out)


def test_a_reader_cannot_write(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
    with open_results(out) as results, pytest.raises(ResultsError, match="readonly"), results.reading() as connection:
        connection.exec_driver_sql("DELETE FROM rounds")


def test_csv_has_one_row_a_cell_and_one_a_round(out: Path, cells: tuple[Cell, ...]) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(ROW, cells)
        finish(writer, cells[0])
        finish(writer, cells[-1])
        writer.started(cells[1].id, 1.0)
        writer.failed(cells[1].id, 'a reason, with "quotes"', 2.0)
        write_csv(writer.cells(), out)
    with (out / "cells.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [one["cell"] for one in rows] == [cell.id for cell in cells]
    assert [one["state"] for one in rows[:2]] == ["done", "failed"]
    assert rows[1]["reason"] == 'a reason, with "quotes"'
    last = rows[-1]
    assert (last["method"], last["seed"], last["epsilon"], last["spent_epsilon"]) == ("masked", "2", "inf", "")
    final = row(cells[-1], 3).scores
    assert float(last["score anterior"]) == pytest.approx(sum(final["anterior"]) / 2)
    assert float(last["score"]) == pytest.approx((sum(final["anterior"]) / 2 + final["posterior"][0]) / 2)
    assert (last["upload_bytes"], last["rounds"], last["hospitals_dealt"], last["patients"]) == ("18000", "3", "3", "60")
    with (out / "rounds.csv").open(newline="") as handle:
        rounds = list(csv.DictReader(handle))
    assert [(one["cell"], one["round"]) for one in rounds] == [
        *((cells[0].id, str(number)) for number in (0, 1)),
        *((cells[-1].id, str(number)) for number in range(4)),
    ]
    assert rounds[-1]["score"] == last["score"]
    assert not list(out.glob("*.part"))
