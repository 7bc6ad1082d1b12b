"""What must hold for every drawn chart: the cap is on the axis, nothing zooms, labels do not fall on each other."""

import json
from itertools import pairwise
from pathlib import Path

import altair as alt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ui import charts
from ui.accuracy import Point
from ui.bandwidth import Bar
from ui.budget import Curve, Share
from ui.own_patients import OwnMean
from ui.palette import DARK, LIGHT, styles
from ui.rounds import Loss, Segment, Timeline

CURVE = Curve(
    spent=((0, 0.0), (1, 3.1), (2, 4.1)),
    forecast=((2, 4.1), (3, 4.9), (4, 5.6)),
    cap=5.4,
    cap_note="agreed 21 Nov 2026, Dr K. Weber",
    now=2,
    stop=(3, "stops itself after round 3"),
    last_round=8,
)
POINTS = (
    Point(0, "a", 0.3, 0.2, 0.4, 9),
    Point(1, "a", 0.5, None, None, 1),
    Point(0, "b", 0.29, 0.2, 0.4, 9),
    Point(1, "b", 0.5, 0.4, 0.6, 9),
)
OWN = (OwnMean(1, "a", 0.45, 0.1), OwnMean(1, "b", 1.07, 0.2))
BARS = (Bar(1, "masked update", 180e3), Bar(1, "keys and shares", 3e3), Bar(2, "masked update", 181e3))
SHARES = (Share("st-anna", 0.94, "ε 4.13 of 4.4 · stopped itself"), Share("lakeside", 1.2, "over"))
LINE = Timeline(
    (Segment("a", "train", 0, 20), Segment("a", "mask", 20, 20.6), Segment("b", "train", 0, 20)), (Loss("b", "train", 20),)
)


def drawings(paper=LIGHT):
    return {
        "budget": charts.budget(CURVE, paper),
        "shares": charts.shares(SHARES, styles(["lakeside", "st-anna"], paper), paper),
        "accuracy": charts.accuracy(POINTS, paper),
        "accuracy and own": charts.accuracy(POINTS, paper, OWN),
        "own alone": charts.accuracy((), paper, OWN),
        "bandwidth": charts.bandwidth(BARS, 352_000, paper),
        "timeline": charts.timeline(LINE, paper),
    }


@pytest.mark.parametrize("name", list(drawings()))
@pytest.mark.parametrize("paper", [LIGHT, DARK], ids=["light", "dark"])
def test_nothing_on_a_live_page_zooms_and_the_chart_is_valid(name, paper):
    spec = drawings(paper)[name]
    alt.LayerChart.from_dict(spec)  # raises where Vega-Lite's schema is not met
    assert "params" not in spec
    assert all("params" not in layer for layer in spec["layer"])


def test_the_app_does_without_the_library_that_the_tests_check_with():
    for path in Path(charts.__file__).parent.rglob("*.py"):
        assert "import altair" not in path.read_text(), path.name


def y_domains(spec: dict) -> list[list[float]]:
    found = []
    for layer in spec["layer"]:
        domain = layer.get("encoding", {}).get("y", {}).get("scale", {}).get("domain")
        if domain:
            found.append(domain)
    return found


@settings(max_examples=25)
@given(cap=st.floats(0.1, 100), spent=st.floats(0, 100))
def test_the_cap_is_always_on_the_axis(cap, spent):
    curve = Curve(((0, 0.0), (1, spent)), ((1, spent),), cap, "agreed", 1, None, 4)
    for low, high in y_domains(charts.budget(curve, LIGHT)):
        assert low == 0
        assert high > max(cap, spent)


def test_the_float32_line_is_always_on_the_axis():
    spec = charts.bandwidth((Bar(1, "masked update", 10.0),), 4_000_000, LIGHT)
    assert all(high > 4.0 for _, high in y_domains(spec))  # MB
    assert "float32 4.0 MB" in json.dumps(spec)


def test_spent_is_solid_and_the_forecast_dashed():
    dashes = [layer["mark"].get("strokeDash") for layer in drawings()["budget"]["layer"] if layer["mark"]["type"] == "line"]
    assert dashes == [[5, 4], [1, 0]]


def test_a_point_without_an_interval_has_no_band():
    spec = drawings()["accuracy"]
    bands = [layer for layer in spec["layer"] if layer["mark"]["type"] == "area"]
    assert [len(band["data"]["values"]) for band in bands] == [1, 2]


def test_noised_means_are_diamonds_that_no_line_joins():
    plain, both, alone = (drawings()[name] for name in ("accuracy", "accuracy and own", "own alone"))

    def marks(spec, kind):
        return [layer for layer in spec["layer"] if layer["mark"]["type"] == kind]

    assert len(marks(both, "line")) == len(marks(plain, "line")) == 2
    assert marks(alone, "line") == []
    for spec in (both, alone):
        diamonds = [layer for layer in marks(spec, "point") if layer["mark"].get("shape") == "diamond"]
        rows = [row for layer in diamonds for row in layer["data"]["values"]]
        assert rows[0]["x"] < 1 < rows[1]["x"], "beside each other, around the round that both are of"
        assert [(row["label"], row["shown"]) for row in rows] == [("a", "0.450 ± 0.100"), ("b", "1.070 ± 0.200")]
        assert [(row["low"], row["y"], row["high"]) for row in rows] == [
            pytest.approx((0.35, 0.45, 0.55)),
            pytest.approx((0.87, 1.0, 1.0)),
        ], "on the axis, whatever the noise did"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_labels_keep_their_order_and_their_distance(values, gap):
    placed = charts.spread(values, gap)
    assert all(after >= before for before, after in zip(values, placed, strict=True))
    ordered = sorted(placed)
    assert all(high - low >= gap - 1e-9 for low, high in pairwise(ordered))


@given(st.integers(0, 5_000), st.integers(0, 5_000))
def test_an_axis_has_whole_rounds_and_few_of_them(last, first):
    first = min(first, last)
    values = charts.ticks(last, first)
    assert len(values) <= 14
    assert all(first <= value <= last for value in values)


def test_a_lost_hospital_is_marked_in_words():
    assert "✕ lost" in json.dumps(drawings()["timeline"], ensure_ascii=False)
