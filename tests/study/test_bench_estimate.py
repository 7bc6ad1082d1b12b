"""What a study will cost, against figures reckoned by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_world import STUDY, TASK, written
from hypothesis import given
from hypothesis import strategies as st

from study.bench.cells import Cell
from study.bench.estimate import PROCESS_S, Estimate, amount, duration, estimate, from_finished, work_of

HEAD = STUDY.partition("[[grid]]")[0].replace("[1, 2]", "[1, 2, 3]")


@pytest.fixture
def cells(tmp_path: Path) -> dict[tuple[str, int], Cell]:
    grid = '[[grid]]\nmethod = ["pooled", "local", "masked"]\n"evaluate_every" = 2\n"privacy.inverse_sampling_rate" = 4\n'
    study = written(tmp_path, HEAD + grid + "[ordinary]\nsteps = 10\nbatch = 2\n")
    return {(cell.method.value, cell.seed): cell for cell in study.cells()}


@pytest.mark.parametrize(
    ("method", "drawn", "measured"),
    [
        ("pooled", 10 * 2, 2 * 2),  # steps x batch; the start and the end of two cases
        ("local", 3 * 10 * 2, (1 + 3) * 2),  # each of three hospitals
        ("masked", 3 * 16 * 60 / 4, 3 * 2),  # rounds x local steps x patients / k; the start, round 2 and the last
    ],
)
def test_the_amount_of_work(
    cells: dict[tuple[str, int], Cell], tmp_path: Path, method: str, drawn: float, measured: int
) -> None:
    cell = cells[method, 1]
    todo = amount(cell, TASK.patients(cell, tmp_path, lambda *_: None))
    assert (todo.drawn, todo.measured) == (drawn, measured)
    assert estimate([cell], [], TASK, tmp_path).core_s == {cell.id: pytest.approx(PROCESS_S + 0.1 * drawn + 0.5 * measured)}


def test_only_a_share_of_the_hospitals_trains_in_a_round(tmp_path: Path) -> None:
    grid = '[[grid]]\nmethod = "masked"\nhospitals = 30\nparticipants = [30, 3]\nseeds = 1\n'
    every, few = written(tmp_path, HEAD + grid).cells()
    patients = TASK.patients(every, tmp_path, lambda *_: None)
    assert amount(few, patients).drawn == pytest.approx(amount(every, patients).drawn / 10)


def test_finished_cells_of_the_same_work_come_first(cells: dict[tuple[str, int], Cell], tmp_path: Path) -> None:
    finished = [(cells["masked", 1], 100.0), (cells["masked", 2], 140.0)]
    todo = [cells["masked", 3], cells["pooled", 1]]
    found = estimate(todo, finished, TASK, tmp_path)
    assert found.core_s[cells["masked", 3].id] == 120.0
    assert (found.from_finished, found.from_probes) == (1, 1)
    assert "1 cell from the CPU time of finished cells like them; 1 cell from unit costs" in found.sentence(2)


def test_noise_is_no_work_but_rounds_are(tmp_path: Path) -> None:
    grid = '[[grid]]\nmethod = "masked"\n"privacy.noise_multiplier" = [0, 1]\nrounds = [3, 6]\nseeds = 1\n'
    cells = written(tmp_path, HEAD + grid).cells()
    assert [work_of(cell) == work_of(cells[0]) for cell in cells] == [True, False, True, False]
    assert set(from_finished(cells, [(cells[0], 5.0)])) == {cells[0].id, cells[2].id}


def test_the_sentence() -> None:
    costs = Estimate({"a": 3600.0, "b": 1800.0, "c": 1800.0}, from_probes=3)
    assert costs.sentence(2) == (
        "Estimate: 2 core-hours, about 1.0 h with 2 workers (3 cells from unit costs measured just now on made-up data)"
    )
    assert "about 1.0 h with 8 workers" in costs.sentence(8)  # no faster than its longest cell
    assert "about 2.0 h with 1 worker (" in costs.sentence(1)
    assert Estimate({}).sentence(2).endswith("(nothing to run)")


@given(st.floats(0, 1e7))
def test_durations_are_short_words(seconds: float) -> None:
    assert duration(seconds).split()[1] in {"s", "min", "h"}
    assert duration(90) == "2 min"
