"""The study page: what shares a line, where a setting stands on its axis, what is said of seeds, and every run by address."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import altair as alt
import pytest
from readings import as_lines, readings
from streamlit.testing.v1 import AppTest
from study_world import HEAD, cells_of, result, row, write, written
from test_ui_pages import as_read
from worlds import World, make_plan

from study.bench.cells import Method
from study.bench.groups import grouped
from study.results import StudyRow
from study.results_write import ResultsWriter
from ui import findings, sources, study_charts
from ui.palette import LIGHT
from ui.settings import from_arguments


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return write(folder, cells_of(folder, 5))


@pytest.fixture
def views(out):
    groups = grouped(sources.study(out).rows)
    (same,) = findings.panels(groups).values()
    return {view.axis: view for view in findings.views(same, groups, "Dice")}


def said(app: AppTest) -> str:
    return "\n".join(part.value for part in (*app.markdown, *app.caption, *app.info, *app.success, *app.warning))


def alternatives(app: AppTest) -> list[str]:
    return [chart.proto.alt for chart in app.get("vega_lite_chart")]


def test_epsilon_has_a_place_for_no_guarantee_that_is_no_number(views):
    line = [spot for spot in views["epsilon"].spots if spot.line == views["epsilon"].lines[0]]
    assert [spot.x_text for spot in line] == ["2.00", "8.00", "no guarantee"]
    assert line[-1].x > line[-2].x
    assert "without noise (no guarantee)" in findings.sentence(views["epsilon"])
    assert "inf" not in findings.sentence(views["epsilon"])


def test_settings_that_differ_in_more_than_the_axis_share_no_line(views):
    lines = {spot.line for spot in views["epsilon"].spots}
    assert len(lines) == 3  # the plan's lanes, 4 and 8
    assert all(len([spot for spot in views["epsilon"].spots if spot.line == line]) in {1, 3} for line in lines)


def test_bits_are_those_that_were_measured(views):
    # 2,000 bytes of a survivor for 1,000 values are 16 bits, a quarter of them 4; lanes of equal size stand in one place
    assert {spot.x for spot in views["bits"].spots} == {16.0, 4.0}


def test_levels_are_no_part_of_a_line(views):
    assert {level.name for level in views["epsilon"].levels} == {"pooled", "each hospital alone", "federated, no masks"}


def test_an_interval_is_drawn_from_five_seeds_on(views, tmp_path):
    assert all(spot.bar is not None for spot in views["epsilon"].spots)
    three = grouped(sources.study(write(tmp_path, cells_of(tmp_path, 3))).rows)
    (same,) = findings.panels(three).values()
    view = findings.views(same, three, "Dice")[0]
    assert all(spot.bar is None and spot.half is not None for spot in view.spots)
    assert "fewer than five seeds" in findings.explained(view, three)


def test_one_seed_has_no_interval(tmp_path):
    groups = grouped(sources.study(write(tmp_path, cells_of(tmp_path, 1))).rows)
    (same,) = findings.panels(groups).values()
    view = findings.views(same, groups, "Dice")[0]
    assert {spot.interval for spot in view.spots} == {"one seed"}
    assert "One seed" in findings.explained(view, groups)


def test_hospitals_are_an_axis_where_they_were_varied(tmp_path):
    text = HEAD + '[partition]\nkind = "iid"\n[[grid]]\nmethod = "masked"\nhospitals = [3, 6]\n'
    cells = list(written(tmp_path, text).cells())
    out = tmp_path / "study"
    with ResultsWriter.create(out) as writer:
        writer.begin(StudyRow("small", "fake", "Dice", "Nobody is charged.", "text"), cells)
        for cell in cells:
            rounds = [row(cell, number) for number in range(4)]
            writer.started(cell.id, 1.0)
            names = {f"h{number}": 10 for number in range(cell.partition.hospitals)}
            writer.finished(result(cell, rounds).model_copy(update={"hospitals": names}), 2.0)
    groups = grouped(sources.study(out).rows)
    (view,) = findings.views((), groups, "Dice")
    assert (view.axis, [spot.x_text for spot in view.spots]) == ("hospitals", ["3", "6"])


def test_names_at_line_ends_stay_inside_the_chart(views):
    for view in views.values():
        spec = study_charts.against(view, LIGHT)
        alt.LayerChart.from_dict(spec)  # raises where Vega-Lite's schema is not met
        domains = [layer["encoding"]["y"]["scale"]["domain"] for layer in spec["layer"] if "scale" in layer["encoding"]["y"]]
        low, high = domains[0]
        named = [layer["data"] for layer in spec["layer"] if layer["mark"]["type"] == "text"]
        texts = [row["y"] for data in named for row in data["values"]]
        assert texts
        assert all(low <= y <= high for y in texts)
        assert len(set(texts)) * 2 - len(view.levels) == len(texts)  # a square and a name share a place, and nothing else does


def test_the_page_shows_charts_tables_and_every_run(open_page, out):
    app = open_page(["--study", str(out)], "study")
    assert app.success[0].value.startswith("**40 of 40 runs done**")
    assert [one.split(".")[0] for one in alternatives(app)][:2] == ["Accuracy against epsilon", "Accuracy against bits"]
    assert "Nobody is charged." in said(app)
    runs = next(frame.value for frame in app.dataframe if "link" in frame.value)
    assert len(runs) == 40
    assert runs["link"].str.startswith("study?study=study&run=").all()


def test_a_run_can_be_linked_to(open_page, out):
    named = findings.runs(sources.study(out).rows)
    name = next(name for name, one in named.items() if one.cell.epsilon == 2.0)
    app = open_page(["--study", str(out)], "study", run=name)
    assert app.selectbox(key="run").value == name
    assert "One run by round" in alternatives(app)[-1]
    assert any("2.00" in said for row in readings(app)[-1] for said in row.values())


def test_a_study_that_was_not_begun_waits(open_page, tmp_path):
    for page in ("overview", "study"):
        assert "Nothing yet" in said(open_page(["--study", str(tmp_path / "none")], page))


def test_a_study_that_runs_says_how_far_it_is(open_page, tmp_path):
    out = write(tmp_path, cells_of(tmp_path, 1), done=2)
    app = open_page(["--study", str(out)], "study")
    assert "2 of 8 runs done" in app.info[0].value
    assert "2 of 8 runs done" in as_lines(open_page(["--study", str(out)]))[1]


def test_a_failed_run_is_named_with_its_reason(open_page, tmp_path):
    cells = cells_of(tmp_path, 1)
    out = write(tmp_path, cells, done=len(cells) - 1, failed="there is no folder: name one")
    app = open_page(["--study", str(out)], "study")
    assert "1 failed" in app.warning[0].value
    assert "there is no folder: name one" in as_read(app.warning[0].value)


def test_results_that_cannot_be_read_are_one_sentence(open_page, tmp_path):
    (tmp_path / "results.db").write_bytes(b"this is not a database, only text of some length\n" * 40)
    assert "results" in open_page(["--study", str(tmp_path)], "study").warning[0].value


def test_a_new_run_changes_what_the_watcher_compares(tmp_path):
    cells = cells_of(tmp_path, 1)
    settings = from_arguments(["--study", str(write(tmp_path, cells, done=1))])
    before = sources.signature(settings)
    assert sources.signature(settings) == before
    with ResultsWriter.create(settings.studies[0]) as writer:
        writer.started(cells[1].id, 3.0)
    assert sources.signature(settings) != before


def test_the_accuracy_page_sets_studies_beside_the_run_and_says_that_they_are_no_part_of_it(open_page, tmp_path):
    world = World(tmp_path, make_plan(3))
    world.start()
    folder = write(tmp_path, cells_of(tmp_path, 2))
    app = open_page([*world.arguments(hospitals=[]), "--study", str(folder)], "accuracy")
    (row,) = next(rows for rows in readings(app) if "each hospital alone" in rows[0])
    assert row["all patients pooled, without privacy"].endswith("2 seeds")
    assert row["each hospital alone"].endswith("2 seeds")
    assert any("no part of this run" in one.value for one in app.caption)
    alone = open_page(world.arguments(hospitals=[]), "accuracy")
    assert not any("For comparison" in one.value for one in alone.markdown)


def test_what_privacy_costs_is_said_of_the_same_patients_network_and_start(out):
    found = sources.study(out)
    groups = grouped(found.rows)
    pooled = next(one for one in groups if one.cell.method is Method.POOLED)
    better = {seed: SimpleNamespace(score=0.99, epsilon=one.epsilon) for seed, one in pooled.results.items()}
    elsewhere = replace(pooled, cell=pooled.cell.model_copy(update={"start": "another"}), results=better)
    best = max((one for one in groups if one.epsilon is not None), key=lambda one: one.mean)
    labels = {figure.label: figure.value for figure in findings.figures(found, [*groups, elsewhere])}
    assert labels["Dice with a guarantee"] == f"{best.mean:.2f}"
    assert labels["Dice without privacy"] == f"{pooled.mean:.2f}"
    unguarded = [one for one in groups if one.epsilon is None]
    labels = {figure.label: figure.value for figure in findings.figures(found, [*unguarded, elsewhere])}
    assert (labels["Dice with a guarantee"], labels["Dice without privacy"]) == ("none yet", "0.99")


def test_where_nothing_was_pooled_a_federation_without_noise_is_what_privacy_is_compared_with(out):
    found = sources.study(out)
    groups = [one for one in grouped(found.rows) if one.cell.method is not Method.POOLED]
    best = max((one for one in groups if one.epsilon is not None), key=lambda one: one.mean)
    silent = max(
        (one for one in groups if one.epsilon is None and one.cell.method is not Method.LOCAL), key=lambda one: one.mean
    )
    elsewhere = replace(
        silent,
        cell=silent.cell.model_copy(update={"start": "another"}),
        results={seed: SimpleNamespace(score=0.99, epsilon=None) for seed in silent.results},
    )
    shown = {figure.label: figure for figure in findings.figures(found, [*groups, elsewhere])}
    assert shown["Dice with a guarantee"].value == f"{best.mean:.2f}"
    without = shown["Dice without privacy"]
    assert (without.value, without.note) == (f"{silent.mean:.2f}", "a federation without noise")
    noisy = [one for one in groups if one.epsilon is not None]
    assert {figure.label: figure.value for figure in findings.figures(found, noisy)}["Dice without privacy"] == "none yet"


def test_a_study_of_something_else_shows_its_settings_at_once(open_page, tmp_path):
    out = write(tmp_path, [cell for cell in cells_of(tmp_path, 1) if cell.epsilon is None][:2], done=1)
    app = open_page(["--study", str(out)], "study")
    assert "No chart yet" in said(app)
    shown = [frame.value for frame in app.dataframe]
    assert list(shown[0]["Dice"]) == ["0.897"]
    assert list(shown[1]["score"]) == ["0.897", "–"]
