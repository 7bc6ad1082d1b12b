"""Tables and figures from a results file: what is compared with what, the arithmetic, and the same bytes twice."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from bench_world import HOSPITALS, LENGTH, STUDY, result, row, written
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from study.bench.cells import Cell, Method
from study.bench.groups import Group, differences, grouped, levels_of
from study.bench.intervals import interval, paired
from study.bench.naming import cell_name
from study.bench.report import write_report
from study.results import CellRow, ResultsError, StudyRow, open_results
from study.results_write import ResultsWriter

HEAD = STUDY.partition("[[grid]]")[0]
GRID = """
[[grid]]
method = ["pooled", "local", "plain", "masked"]
[[grid]]
method = "masked"
"privacy.noise_multiplier" = 1.0
"privacy.inverse_sampling_rate" = [2, 4]
"""
FILES = [
    "report.md",
    "score_by_epsilon.png",
    "score_by_epsilon.svg",
    "score_by_round.png",
    "score_by_round.svg",
    "tables.csv",
]


def cells_of(folder: Path, grid: str = GRID, head: str = HEAD) -> tuple[Cell, ...]:
    """The noisy cells spend epsilon 8 in this world, which saves reckoning it."""
    cells = written(folder, head + grid).cells()
    return tuple(cell if cell.epsilon or cell.method is not Method.MASKED else spending(cell, 8.0) for cell in cells)


def spending(cell: Cell, epsilon: float) -> Cell:
    return cell.model_copy(update={"epsilon": epsilon, "settings": {**cell.settings, "epsilon": epsilon}})


def write_results(out: Path, cells: tuple[Cell, ...], failed: tuple[Cell, ...] = ()) -> None:
    with ResultsWriter.create(out) as writer:
        writer.begin(StudyRow("small", "fake", "Dice", "Nobody is charged.", "text"), [*cells, *failed])
        for cell in cells:
            rounds = [row(cell, number) for number in range(int(cell.plan["rounds"]) + 1)]
            writer.started(cell.id, 1.0)
            writer.finished(result(cell, rounds), 2.0)
        for cell in failed:
            writer.started(cell.id, 1.0)
            writer.failed(cell.id, "there is no folder", 2.0)


def rows_of(out: Path) -> list[CellRow]:
    with open_results(out) as results:
        return results.cells()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("values", "half"),
    [
        ([1.0, 3.0], 12.7062 * math.sqrt(2) / math.sqrt(2)),  # t(1) = 12.7062, deviation sqrt(2)
        ([1.0, 2.0, 3.0], 4.30265 / math.sqrt(3)),  # t(2), deviation 1
        ([0.86, 0.87, 0.88, 0.85], 3.18245 * math.sqrt(5 / 3) / 100 / 2),  # t(3)
    ],
)
def test_an_interval_reckoned_by_hand(values: list[float], half: float) -> None:
    found = interval(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.half == pytest.approx(half, rel=1e-5)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12))
def test_intervals_are_those_of_scipy(values: list[float]) -> None:
    found = interval(values)
    assert found.low is not None
    assert found.high is not None
    if found.half > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert (interval([0.5]).mean, interval([0.5]).half, interval([0.5]).low) == (0.5, None, None)
    with pytest.raises(ValueError, match="no mean of no values"):
        interval([])


def test_pairs_are_of_equal_seeds() -> None:
    found = paired({1: 0.8, 2: 0.9, 3: 0.4}, {2: 0.7, 1: 0.7, 9: 0.0})
    assert (found.mean, found.count) == (pytest.approx(0.15), 2)
    assert found.half == pytest.approx(12.7062 * 0.05, rel=1e-5)
    assert paired({1: 0.8}, {2: 0.8}) is None


def full_name(group: Group) -> str:
    return cell_name(group.cell, group.cell.settings)


def groups_of(out: Path, cells: tuple[Cell, ...]) -> list[Group]:
    write_results(out, cells)
    return grouped(rows_of(out))


def test_a_group_is_one_setting(tmp_path: Path, out: Path) -> None:
    groups = groups_of(out, cells_of(tmp_path))
    assert [(group.cell.method, list(group.results), group.listed) for group in groups] == [
        (method, [1, 2], 2) for method in ("pooled", "local", "plain", "masked", "masked", "masked")
    ]
    masked = groups[3]
    assert masked.scores == {1: pytest.approx(0.8655), 2: pytest.approx(0.8755)}  # mean of the labels' means
    assert masked.labels["posterior"].mean == pytest.approx(0.868 + 0.015 - 0.02)
    assert masked.epsilon is None
    assert groups[4].epsilon == 8.0
    assert masked.megabytes("up") == pytest.approx(3 * 3 * 2000 / len(HOSPITALS) / 1e6)
    assert masked.times_smaller == pytest.approx(4 * LENGTH / 2000)
    assert (masked.length, groups[0].length) == ("3", "600 steps")
    assert (groups[0].megabytes("up"), groups[0].times_smaller) == (None, None)
    assert list(masked.by_round()) == [0, 1, 2, 3]


def test_what_is_compared_with_what(tmp_path: Path, out: Path) -> None:
    groups = groups_of(out, cells_of(tmp_path))
    pairs = [(full_name(pair.group), full_name(pair.other), round(pair.score.mean, 6)) for pair in differences(groups)]
    names = [full_name(group) for group in groups]
    assert pairs == [
        (names[1], names[0], -0.2),
        (names[2], names[0], -0.03),
        (names[3], names[0], -0.032),
        (names[3], names[2], -0.002),
        (names[4], names[0], -0.0695),  # noise and another sampling rate: no plain partner
        (names[5], names[0], -0.0695),
    ]


def test_noise_is_compared_with_its_own_plan_without_noise(tmp_path: Path, out: Path) -> None:
    grid = '[[grid]]\nmethod = "plain"\n[[grid]]\nmethod = "masked"\n"privacy.noise_multiplier" = [0.0, 1.0]\n'
    groups = groups_of(out, cells_of(tmp_path, grid))
    assert [(pair.group.cell.epsilon, pair.other.cell.epsilon) for pair in differences(groups)] == [
        (math.inf, math.inf),
        (8.0, math.inf),
    ]


def test_two_candidates_are_no_partner(tmp_path: Path, out: Path) -> None:
    grid = '[[grid]]\nmethod = ["pooled", "plain"]\n"ordinary.steps" = [100, 200]\n'
    assert differences(groups_of(out, cells_of(tmp_path, grid))) == []


def test_levels_belong_to_their_own_deal(tmp_path: Path, out: Path) -> None:
    grid = '[[grid]]\nmethod = ["pooled", "local", "masked"]\n"partition.kind" = ["iid", "quality"]\nseeds = 1\n'
    groups = groups_of(out, cells_of(tmp_path, grid))
    iid, quality = (group for group in groups if group.cell.method is Method.MASKED)
    assert [full_name(one) for one in levels_of(iid, groups)] == ["pooled", "local · partition.kind iid"]
    assert [full_name(one) for one in levels_of(quality, groups)] == [
        "pooled · partition.kind quality",
        "local · partition.kind quality",
    ]


def test_what_another_plan_or_start_gave_is_no_level(tmp_path: Path, out: Path) -> None:
    grid = """
    [[grid]]
    method = ["pooled", "local", "plain"]
    seeds = 1
    [[grid]]
    method = ["pooled", "masked"]
    "network.channels" = [[4, 8]]
    seeds = 1
    [[grid]]
    method = "masked"
    start = "elsewhere.safetensors"
    seeds = 1
    """
    pooled, local, plain, small, masked, warm = groups_of(out, cells_of(tmp_path, grid))
    groups = [pooled, local, plain, small, masked, warm]
    assert levels_of(masked, groups) == [small]
    assert levels_of(masked, [pooled, local, plain, masked]) == []
    assert levels_of(warm, groups) == []
    assert levels_of(plain, groups) == [pooled, local]


def test_a_report_is_made_twice_byte_for_byte(tmp_path: Path, out: Path) -> None:
    cells = cells_of(tmp_path)
    write_results(out, cells)
    other = tmp_path / "other"
    write_results(other, tuple(cells[3:]) + tuple(cells[:3]))  # finished in another order
    with ResultsWriter.create(other) as writer:
        writer.begin(StudyRow("small", "fake", "Dice", "Nobody is charged.", "text"), cells)
    first = {path.name: path.read_bytes() for path in write_report(out)}
    assert sorted(first) == FILES
    for folder in (out, other):
        assert {path.name: path.read_bytes() for path in write_report(folder)} == first
    assert not list(out.glob("*.part*"))


def test_the_text_of_a_report(tmp_path: Path, out: Path) -> None:
    cells = cells_of(tmp_path)
    write_results(out, cells[:-2], failed=cells[-2:-1])
    with ResultsWriter.create(out) as writer:
        writer.begin(StudyRow("small", "fake", "Dice", "Nobody is charged.", "text"), cells[1:])
        writer.started(cells[-2].id, 1.0)
        writer.failed(cells[-2].id, "there is no folder", 2.0)
    write_report(out)
    text = (out / "report.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "# Study small"
    assert "9 of 11 cells are done, 1 failed, 1 not run yet." in text
    assert "Left out: 1 of an earlier version of the study file." in text
    assert "Nobody is charged." in text
    assert "One seed has no interval." in text
    assert "| pooled | 1 | 0.9075 | 0.9150 | 0.9000 | no guarantee | 600 steps |" in lines
    assert "| plain · privacy.inverse_sampling_rate 8 | 2 | 0.8725 ± 0.0635 |" in text
    assert "| masked · privacy.inverse_sampling_rate 2 · epsilon 8 | 2 |" in text
    assert "| masked · privacy.inverse_sampling_rate 2 · epsilon 8 | 1 | 2 | 8 |" in lines  # all of its settings
    assert f"- {cells[-2].label} ({cells[-2].id}): there is no folder" in lines
    assert any(line.startswith("![Dice after the last round. ") and line.endswith("](score_by_round.png)") for line in lines)


def test_the_table_for_other_tools(tmp_path: Path, out: Path) -> None:
    cells = cells_of(tmp_path)
    write_results(out, cells)
    write_report(out)
    with (out / "tables.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [one["method"] for one in rows] == ["pooled", "local", "plain", "masked", "masked", "masked"]
    masked = rows[3]
    assert float(masked["score"]) == pytest.approx(0.8705)
    assert float(masked["score high"]) - float(masked["score"]) == pytest.approx(12.7062 * 0.005, rel=1e-4)
    assert (masked["spent_epsilon"], rows[4]["spent_epsilon"], masked["epsilon"]) == ("", "8.0", "")
    assert float(masked["minus_plain"]) == pytest.approx(-0.002)
    assert (rows[4]["minus_plain"], rows[4]["minus_pooled_pairs"]) == ("", "2")
    assert float(masked["upload_megabytes"]) == pytest.approx(0.006)


def test_a_study_without_a_finished_cell_has_a_report_without_tables(tmp_path: Path, out: Path) -> None:
    cells = cells_of(tmp_path)
    write_results(out, (), failed=cells[:1])
    assert [path.name for path in write_report(out)] == ["report.md", "tables.csv"]
    assert "0 of 1 cells are done, 1 failed" in (out / "report.md").read_text()
    with pytest.raises(ResultsError, match="there are no results"):
        write_report(tmp_path)
