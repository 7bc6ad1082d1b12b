"""Figures of a study: what belongs into one panel, how lines are named, and that the names can be read."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from bench_world import STUDY, result, row, written
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from study.bench import figures
from study.bench.canvas import Named, name_lines, new_figure, style
from study.bench.cells import Setting
from study.bench.figures import Picture, draw
from study.bench.groups import grouped
from study.bench.naming import in_words, shown, telling
from study.results import CellRow

HEAD = STUDY.partition("[[grid]]")[0]
TWO_PLANS = """
[[grid]]
method = ["pooled", "masked"]
[[grid]]
plan = "hippocampus"
start = "warm.safetensors"
method = ["pooled", "local", "plain", "masked"]
epsilon = inf
"training.local_steps" = 3
[[grid]]
plan = "hippocampus"
start = "warm.safetensors"
method = "masked"
epsilon = [8, 2]
"training.local_steps" = 3
"""


def rows_of(folder: Path, grid: str, head: str = HEAD) -> list[CellRow]:
    """Every cell finished; its score depends on method, seed and epsilon alone."""
    found = []
    for cell in written(folder, head + grid).cells():
        rounds = [row(cell, number) for number in range(int(cell.plan["rounds"]) + 1)]
        done = result(cell, rounds)
        found.append(
            CellRow(cell, "done", "", listed=True, started_at=None, ended_at=None, software="", rounds=(), result=done)
        )
    return found


class Drawn:
    """Pictures and the figures behind them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, grid: str, head: str = HEAD) -> None:
        self.by_name: dict[str, Figure] = {}
        kept = figures.saved

        def saved(figure: Figure, path: Path, finding: str) -> tuple[Path, Path]:
            self.by_name[path.name] = figure
            return kept(figure, path, finding)

        monkeypatch.setattr(figures, "saved", saved)
        self.pictures: list[Picture] = draw(grouped(rows_of(folder, grid, head)), "Dice", folder)

    def titles(self, name: str) -> list[str]:
        return [axes.get_title(loc="left") for axes in self.by_name[name].axes]

    def lines(self, name: str) -> list[list[str]]:
        """Names beside each panel, from top to bottom."""
        return [
            [text.get_text().replace("\n", " ") for text in axes.get_legend().get_texts()] for axes in self.by_name[name].axes
        ]


@pytest.fixture
def two_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(tmp_path, monkeypatch, TWO_PLANS)


def test_a_panel_shows_one_plan_and_what_belongs_to_it(two_plans: Drawn) -> None:
    assert two_plans.titles("score_by_round") == ["plan hippocampus-plain", "plan hippocampus"]
    assert two_plans.lines("score_by_round") == [
        ["pooled: 0.902", "masked, epsilon infinity: 0.870"],
        [
            "pooled: 0.902",
            "plain, epsilon infinity: 0.872",
            "masked, epsilon infinity: 0.870",
            "masked, epsilon 8: 0.833",
            "masked, epsilon 2: 0.721",
            "local: 0.703",
        ],
    ]


def test_a_plan_without_a_finite_epsilon_has_no_panel_against_epsilon(two_plans: Drawn) -> None:
    assert two_plans.titles("score_by_epsilon") == ["plan hippocampus"]
    assert two_plans.lines("score_by_epsilon") == [["pooled: 0.902", "plain: 0.872", "masked", "local: 0.703"]]


def test_a_picture_says_what_it_shows(two_plans: Drawn) -> None:
    by_round, by_epsilon = two_plans.pictures
    assert by_round.finding.startswith(
        "Dice after the last round. plan hippocampus-plain: pooled 0.902; masked, epsilon infinity"
    )
    assert by_epsilon.finding == "Final Dice by epsilon. plan hippocampus: masked 0.721 at 2, 0.833 at 8, 0.870 without noise."
    assert by_epsilon.finding in by_epsilon.files[1].read_text()


def test_curves_are_named_by_what_tells_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = """
    [[grid]]
    method = "masked"
    "training.local_steps" = [2, 4]
    "masking.lanes" = 3
    epsilon = [8, 4]
    [[grid]]
    method = "plain"
    "training.local_steps" = [2, 4]
    """
    drawn = Drawn(tmp_path, monkeypatch, grid)
    assert drawn.titles("score_by_epsilon") == [""]
    assert sorted(drawn.lines("score_by_epsilon")[0]) == [
        "masked, local steps 2",
        "masked, local steps 4",
        "plain, local steps 2: 0.872",
        "plain, local steps 4: 0.872",
    ]
    assert [tick.get_text() for tick in drawn.by_name["score_by_epsilon"].axes[0].get_xticklabels()] == ["4", "8"]


def test_settings_that_were_run_at_other_epsilons_are_curves_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [
        f'[[grid]]\nmethod = "masked"\nepsilon = {epsilon}\n"masking.lanes" = {lanes}\n' for epsilon, lanes in ((8, 3), (4, 2))
    ]
    drawn = Drawn(tmp_path, monkeypatch, "".join(tables))
    assert drawn.lines("score_by_epsilon") == [["masked, lanes 3", "masked, lanes 2"]]


def test_the_place_of_no_noise_is_there_where_it_was_run(two_plans: Drawn) -> None:
    ticks = [tick.get_text() for tick in two_plans.by_name["score_by_epsilon"].axes[0].get_xticklabels()]
    assert ticks == ["2", "8", "infinity\n(no noise)"]


@pytest.mark.parametrize(("seeds", "bars"), [([1], 0), ([1, 2], 0), ([1, 2, 3, 4, 5], 1)])
def test_few_seeds_are_dots_and_many_have_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: list[int], bars: int
) -> None:
    grid = '[[grid]]\nmethod = "masked"\nepsilon = 8\n'
    drawn = Drawn(tmp_path, monkeypatch, grid, HEAD.replace("seeds = [1, 2]", f"seeds = {seeds}"))
    (axes,) = drawn.by_name["score_by_epsilon"].axes
    dots = [len(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "."]
    assert dots == ([len(seeds)] if len(seeds) > 1 else [])
    assert len(axes.containers) == bars
    assert ("small dots: seeds" in axes.get_xlabel(), "95 %" in axes.get_xlabel()) == (len(seeds) > 1, bool(bars))


def panel_of(count: int) -> tuple[Figure, Any]:
    """A panel with many long names above one with a single name."""
    figure = new_figure(["above", "below"], "Dice")
    lines = []
    for index in range(count):
        (handle,) = figure.axes[0].plot([0, 1], [0, index / count])
        lines.append(Named(f"masked, local steps {index}, inverse sampling rate {index}", index / count, handle))
    (handle,) = figure.axes[1].plot([0, 1], [0, 1])
    name_lines(figure, [lines, [Named("pooled", 1.0, handle)]])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, canvas.get_renderer()


@pytest.mark.parametrize("count", [1, 6, 14])
def test_names_stand_beside_their_own_panel_and_inside_the_picture(count: int) -> None:
    figure, renderer = panel_of(count)
    boxes = [axes.get_legend().get_window_extent(renderer) for axes in figure.axes]
    for axes, box in zip(figure.axes, boxes, strict=True):
        assert box.x0 >= axes.get_window_extent(renderer).x1 - 1
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 5
    assert boxes[0].y0 >= boxes[1].y1, "the names of one panel do not run into those of the next"
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [
        f"local steps {index}," in " ".join(text.split()) for index, text in zip(reversed(range(count)), texts, strict=True)
    ]


def test_pictures_are_800_pixels_wide_and_carry_no_date(two_plans: Drawn) -> None:
    for png, svg in (picture.files for picture in two_plans.pictures):
        assert struct.unpack(">I", png.read_bytes()[16:20]) == (800,)
        content = svg.read_bytes()
        assert b"dc:date" not in content
        assert b"<svg" in content


STEPS = '[[grid]]\nmethod = ["plain", "masked"]\n"training.local_steps" = {}\nseeds = 1\n'


def test_settings_of_one_place_share_a_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(tmp_path, monkeypatch, STEPS.format([1, 2]))
    assert drawn.titles("score_by_round") == [""]
    (lines,) = drawn.lines("score_by_round")
    assert [line.partition(":")[0] for line in sorted(lines)] == [
        f"{method}, local steps {steps}" for method in ("masked", "plain") for steps in (1, 2)
    ]


def test_many_settings_are_spread_over_panels_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(tmp_path, monkeypatch, STEPS.format([1, 2, 3, 4, 5]))
    assert [picture.name for picture in drawn.pictures] == ["score_by_round_1", "score_by_round_2"]
    assert drawn.titles("score_by_round_1") == [f"local steps {steps}" for steps in (1, 2, 3, 4)]
    assert drawn.titles("score_by_round_2") == ["local steps 5"]
    assert [[line.partition(":")[0] for line in panel] for panel in drawn.lines("score_by_round_2")] == [["plain", "masked"]]


def test_neighbours_differ_in_colour_mark_and_dash() -> None:
    styles = [style(index) for index in range(35)]
    assert len({(one.colour, one.mark) for one in styles}) == 35
    assert all(
        one.colour != other.colour and one.mark != other.mark and one.dash != other.dash
        for one, other in itertools.pairwise(styles)
    )


@pytest.mark.parametrize("index", range(5))
def test_colours_are_seen_on_white(index: int) -> None:
    """Contrast of the WCAG 2.2, at least 3 for graphics."""
    parts = [int(style(index).colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 3


# ---- names ----

settings_lists = st.lists(
    st.fixed_dictionaries(
        {},
        optional={name: st.integers(0, 2) for name in ("plan", "epsilon", "training.local_steps", "masking.lanes")},
    ),
    min_size=1,
    max_size=6,
)


def keys(several: list[dict[str, Setting]], names: Iterable[str]) -> int:
    return len({tuple(shown(one.get(name)) for name in sorted(names)) for one in several})


@given(settings_lists)
def test_names_tell_apart_what_all_settings_tell_apart_and_none_is_too_many(several: list[dict[str, Setting]]) -> None:
    everything = {name for one in several for name in one} - {"epsilon"}
    kept = set(telling(several)) - {"epsilon"}
    assert keys(several, kept) == keys(several, everything)
    for name in kept:
        assert keys(several, kept - {name}) < keys(several, kept)
    assert ("epsilon" in telling(several)) == (keys(several, ["epsilon"]) > 1)


def test_what_the_method_tells_needs_no_setting() -> None:
    several: list[dict[str, Setting]] = [{}, {"rounds": 3}]
    assert telling(several, ["pooled", "masked"]) == ()
    assert telling(several, ["masked", "masked"]) == ("rounds",)


def test_words_of_a_setting_are_short_where_nothing_else_is_meant() -> None:
    settings: dict[str, Setting] = {"training.local_steps": 4, "training.learning_rate": 0.1, "epsilon": math.inf}
    assert in_words(settings, set(settings)) == ["local steps 4", "learning rate 0.1", "epsilon infinity"]
    assert in_words(settings, {"training.learning_rate", "aggregation.learning_rate"}) == ["training.learning_rate 0.1"]


@pytest.mark.parametrize(("value", "said"), [(math.inf, "infinity"), (0.5, "0.5"), (8.0, "8"), ([4, 8], "4x8"), ("iid", "iid")])
def test_settings_are_shown_shortly(value: object, said: str) -> None:
    assert shown(value) == said
