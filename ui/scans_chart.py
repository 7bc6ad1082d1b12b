"""The strip of Dice by slice under the pictures of a scan: a bar a slice, the shown one and the worst one marked and named."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from ui.charts import LABEL_PX, Rows, ticks
from ui.palette import BLUE, VERMILLION, Ink
from ui.scans import SliceScore, worst

STRIP_PX = 130
LEAST_BAR = 0.02  # of Dice: a lower bar cannot be seen, a cross stands for it


def strip(scores: Sequence[SliceScore], shown: int, paper: Ink) -> alt.LayerChart:
    """Bars from 0 to Dice; where there is nothing to find there is none."""
    rows: Rows = [
        {"x": s.index + 0.5, "x2": s.index + 1.5, "slice": s.index + 1, "dice": s.dice, "low": 0, "wrong": s.wrong}
        for s in scores
        if s.dice is not None
    ]
    axis = alt.Axis(values=ticks(len(scores), 1), format=",d", grid=False)
    x = alt.X("x:Q", title="axial slice", scale=alt.Scale(domain=[0.5, len(scores) + 0.5], nice=False), axis=axis)
    y = alt.Y("dice:Q", title="Dice", scale=alt.Scale(domain=[0, 1.25], nice=False), axis=alt.Axis(values=[0, 0.5, 1]))
    tips = [
        alt.Tooltip("slice:Q", title="slice"),
        alt.Tooltip("dice:Q", title="Dice", format=".3f"),
        alt.Tooltip("wrong:Q", title="wrong voxels"),
    ]
    bars = alt.Chart(alt.InlineData(values=rows)).mark_rect(color=BLUE, stroke=paper.surface, strokeWidth=0.5)
    marks: Rows = [{"x": shown + 1, "y": 1.16, "text": f"shown: {shown + 1}", "ink": paper.strong}]
    bad = worst(scores)
    if scores[bad].wrong:
        marks.append({"x": bad + 1, "y": 1.16, "text": f"✕ worst: {bad + 1}", "ink": VERMILLION})
    if bad == shown:
        marks = [{"x": shown + 1, "y": 1.16, "text": f"✕ shown, worst: {shown + 1}", "ink": VERMILLION}]
    rules = alt.Chart(alt.InlineData(values=marks)).mark_rule(strokeWidth=1.5, strokeDash=[3, 3])
    missed: Rows = [{"x": s.index + 1, "y": 0.0} for s in scores if s.dice is not None and s.dice < LEAST_BAR]
    crosses = alt.Chart(alt.InlineData(values=missed)).mark_text(text="✕", color=VERMILLION, fontSize=LABEL_PX - 1, dy=-5)
    layers = [
        bars.encode(x=x, x2="x2:Q", y=y, y2="low:Q", tooltip=tips),
        crosses.encode(x="x:Q", y="y:Q"),
        rules.encode(x="x:Q", color=alt.Color("ink:N", scale=None)),
        *(_named(mark, len(scores), paper) for mark in marks),
    ]
    return alt.layer(*layers).properties(height=STRIP_PX)


def _named(mark: dict[str, object], slices: int, paper: Ink) -> alt.Chart:
    """A name beside its rule, on the side where there is room."""
    place = mark["x"]
    left = isinstance(place, int) and place > slices * 0.7
    text = alt.Chart(alt.InlineData(values=[mark])).mark_text(
        fontSize=LABEL_PX, align="right" if left else "left", dx=-5 if left else 5, color=paper.strong, fontWeight="bold"
    )
    return text.encode(x="x:Q", y="y:Q", text="text:N")
