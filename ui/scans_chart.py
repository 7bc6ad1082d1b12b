"""The strip of Dice by slice under the pictures of a scan: a bar a slice, the shown one and the worst one marked and named."""

from __future__ import annotations

from collections.abc import Sequence

from ui.charts import LABEL_PX, ticks
from ui.layers import Chart, Layer, Rows, chart, end, of
from ui.palette import BLUE, VERMILLION, Ink
from ui.scans import SliceScore, worst

STRIP_PX = 130
LEAST_BAR = 0.02  # of Dice: a lower bar cannot be seen, a cross stands for it


def strip(scores: Sequence[SliceScore], shown: int, paper: Ink) -> Chart:
    """Bars from 0 to Dice; where there is nothing to find there is none."""
    rows: Rows = [
        {"x": s.index + 0.5, "x2": s.index + 1.5, "slice": s.index + 1, "dice": s.dice, "low": 0, "wrong": s.wrong}
        for s in scores
        if s.dice is not None
    ]
    axis = {"values": ticks(len(scores), 1), "format": ",d", "grid": False}
    x = of("x:Q", title="axial slice", scale={"domain": [0.5, len(scores) + 0.5], "nice": False}, axis=axis)
    y = of("dice:Q", title="Dice", scale={"domain": [0, 1.25], "nice": False}, axis={"values": [0, 0.5, 1]})
    tips = [
        of("slice:Q", title="slice"),
        of("dice:Q", title="Dice", format=".3f"),
        of("wrong:Q", title="wrong voxels"),
    ]
    bars = Layer(rows).mark("rect", color=BLUE, stroke=paper.surface, strokeWidth=0.5)
    marks: Rows = [{"x": shown + 1, "y": 1.16, "text": f"shown: {shown + 1}", "ink": paper.strong}]
    bad = worst(scores)
    if scores[bad].wrong:
        marks.append({"x": bad + 1, "y": 1.16, "text": f"✕ worst: {bad + 1}", "ink": VERMILLION})
    if bad == shown:
        marks = [{"x": shown + 1, "y": 1.16, "text": f"✕ shown, worst: {shown + 1}", "ink": VERMILLION}]
    rules = Layer(marks).mark("rule", strokeWidth=1.5, strokeDash=[3, 3])
    missed: Rows = [{"x": s.index + 1, "y": 0.0} for s in scores if s.dice is not None and s.dice < LEAST_BAR]
    crosses = Layer(missed).mark("text", text="✕", color=VERMILLION, fontSize=LABEL_PX - 1, dy=-5)
    layers = [
        bars.encode(x=x, x2=end("x2"), y=y, y2=end("low"), tooltip=tips),
        crosses.encode(x=of("x:Q"), y=of("y:Q")),
        rules.encode(x=of("x:Q"), color=of("ink:N", scale=None)),
        *(_named(mark, len(scores), paper) for mark in marks),
    ]
    return chart(layers, height=STRIP_PX)


def _named(mark: dict[str, object], slices: int, paper: Ink) -> Layer:
    """A name beside its rule, on the side where there is room."""
    place = mark["x"]
    left = isinstance(place, int) and place > slices * 0.7
    text = Layer([mark]).mark(
        "text",
        fontSize=LABEL_PX,
        align="right" if left else "left",
        dx=-5 if left else 5,
        color=paper.strong,
        fontWeight="bold",
    )
    return text.encode(x=of("x:Q"), y=of("y:Q"), text=of("text:N"))
