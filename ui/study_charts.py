"""Charts of a study from finished figures: accuracy against an axis with seeds and intervals, and one run by round.

The same rules as in charts.py. "No guarantee" has a place of its own at the right of the epsilon axis and is never a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ui.charts import HEIGHT_PX, LABEL_GAP_SHARE, LABEL_PX, spread, ticks
from ui.findings import AXIS_LABELS, Spot, View
from ui.layers import Channel, Chart, Layer, Rows, chart, end, of
from ui.palette import BLUE, Dash, Ink, Style, styles

TALL_PX = HEIGHT_PX + 60
ROOM = 1.9  # of the width, beyond the last place: names at line ends
LOG_ROOM = 0.9  # of the logarithmic width, likewise
APART = 1.15  # two ticks of a logarithmic axis are at least this factor apart
LEVEL_DASHES: tuple[Dash, ...] = ((8, 3), (2, 2), (6, 2), (1, 3))


def against(view: View, paper: Ink) -> Chart:
    """Means as points on lines, seeds as dots, intervals as bars, references as grey rules."""
    low, high = _ends(view)
    xs = sorted({spot.x for spot in view.spots})
    bottom, top = _scores(view)
    scale = {"domain": [bottom, top], "nice": False}
    y = of("y:Q", title=f"mean {view.metric}", scale=scale, axis={"tickCount": 5, "format": ".2f"})
    x = of("x:Q", title=AXIS_LABELS[view.axis], scale=_scale(view, low, high), axis=_axis(view, xs))
    drawn = styles(view.lines, paper)
    layers = [_level(index, level.mean, (low, xs[-1]), y, paper) for index, level in enumerate(view.levels)]
    for line in view.lines:
        layers += _line([spot for spot in view.spots if spot.line == line], drawn[line], x, y)
    return chart([*layers, *_names(view, xs[-1], (bottom, top), paper)], height=TALL_PX)


def _scores(view: View) -> tuple[float, float]:
    """Ends of the score axis: tenths around everything drawn, because differences of a few hundredths are what is asked for."""
    every = [
        *(value for spot in view.spots for value in (*spot.seeds, *(spot.bar or ()))),
        *(level.mean for level in view.levels),
    ]
    return max(0.0, math.floor(min(every) * 10) / 10), min(1.0, math.ceil(max(every) * 10) / 10)


def _ends(view: View) -> tuple[float, float]:
    xs = [spot.x for spot in view.spots]
    low, high = min(xs), max(xs)
    if view.axis == "epsilon":
        wide = max(high / low, 4.0)
        return low / wide**0.06, high * wide**LOG_ROOM
    return 0.0, high * ROOM


def _scale(view: View, low: float, high: float) -> dict[str, Any]:
    return {"type": "log" if view.axis == "epsilon" else "linear", "domain": [low, high], "nice": False}


def _axis(view: View, xs: Sequence[float]) -> dict[str, Any]:
    """Epsilon and hospitals have a tick where something was run; bits have round numbers."""
    if view.axis == "bits":
        values = ticks(round(max(xs)) + 1)
        return {"values": values, "grid": False, "format": ",d"}
    names = {spot.x: spot.x_text for spot in view.spots}
    kept: list[float] = []
    for value in xs:
        if view.axis != "epsilon" or not kept or value > APART * kept[-1]:
            kept.append(value)
    tests = " : ".join(f"abs(datum.value - {value}) < 1e-6 ? '{names[value]}'" for value in kept)
    return {"values": kept, "grid": False, "labelExpr": f"{tests} : ''", "labelOverlap": False}


def _line(spots: Sequence[Spot], style: Style, x: Channel, y: Channel) -> list[Layer]:
    """Seeds are joined to nothing; the step to "no guarantee" is not part of the line."""
    means: Rows = [{"x": s.x, "y": s.mean, "at": s.x_text, "line": s.line, "interval": s.interval} for s in spots]
    seeds: Rows = [{"x": s.x, "y": value} for s in spots if len(s.seeds) > 1 for value in s.seeds]
    bars: Rows = [{"x": s.x, "y": s.bar[0], "y2": s.bar[1]} for s in spots if s.bar]
    joined = [row for row, spot in zip(means, spots, strict=True) if spot.finite]
    tips = [
        of("line:N", title="setting"),
        of("at:N", title="at"),
        of("y:Q", title="mean", format=".3f"),
        of("interval:N", title="95 % interval"),
    ]
    return [
        Layer(bars).mark("rule", color=style.colour, strokeWidth=2).encode(x=x, y=y, y2=end("y2")),
        Layer(joined).mark("line", color=style.colour, strokeDash=list(style.dash), strokeWidth=2.5).encode(x=x, y=y),
        Layer(seeds).mark("point", color=style.colour, size=16, filled=True, opacity=0.6).encode(x=x, y=y),
        Layer(means).mark("point", color=style.colour, size=70, filled=True, opacity=1).encode(x=x, y=y, tooltip=tips),
    ]


def _level(index: int, mean: float, ends: tuple[float, float], y: Channel, paper: Ink) -> Layer:
    """A reference from the left edge to the last place, where the names begin."""
    dash = list(LEVEL_DASHES[index % len(LEVEL_DASHES)])
    row = {"x": ends[0], "x2": ends[1], "y": mean}
    return Layer([row]).mark("rule", color=paper.soft, strokeDash=dash, strokeWidth=1.5).encode(x=of("x:Q"), x2=end("x2"), y=y)


def _names(view: View, last: float, ends: tuple[float, float], paper: Ink) -> list[Layer]:
    """Lines and references in one column beside the last place, in the order in which they end, none over another."""
    bottom, top = ends
    drawn = styles(view.lines, paper)
    places = {spot.line: (spot.mean, drawn[spot.line].colour) for spot in view.spots}
    places |= {f"{level.name} {level.mean:.2f}": (level.mean, "") for level in view.levels}
    spots = spread([mean for mean, _ in places.values()], LABEL_GAP_SHARE * (top - bottom) * HEIGHT_PX / TALL_PX)
    over = max(0.0, max(spots) - top)  # names may not leave the chart at its upper edge
    rows: Rows = [
        {"x": last, "y": place - over, "text": name, "colour": colour, "square": "■"}
        for place, (name, (_, colour)) in zip(spots, places.items(), strict=True)
    ]
    lines = [row for row in rows if row["colour"]]
    squares = _text(lines, dx=12).encode(text=of("square:N"), color=of("colour:N", scale=None))
    named = _text(lines, dx=28, color=paper.strong, fontWeight="bold")
    return [squares, named, _text([row for row in rows if not row["colour"]], dx=28, color=paper.soft)]


def _text(rows: Rows, **mark: Any) -> Layer:
    drawn = Layer(rows).mark("text", fontSize=LABEL_PX, baseline="middle", align="left", **mark)
    return drawn.encode(x=of("x:Q"), y=of("y:Q"), text=of("text:N"))


def run(points: Sequence[tuple[int, float]], metric: str) -> Chart:
    """One run by round; round 0 is the start."""
    last = max(number for number, _ in points)
    rows: Rows = [{"x": number, "y": score} for number, score in points]
    axis = {"values": ticks(last), "grid": False, "format": ",d"}
    x = of("x:Q", title="round (0: the start)", scale={"domain": [0, max(last, 1)], "nice": False}, axis=axis)
    y = of("y:Q", title=f"mean {metric}", scale={"domain": [0, 1], "nice": False}, axis={"tickCount": 5})
    tips = [of("x:Q", title="round"), of("y:Q", title=metric, format=".3f")]
    line = Layer(rows).mark("line", color=BLUE, strokeWidth=2.5).encode(x=x, y=y)
    points_ = Layer(rows).mark("point", color=BLUE, filled=True, size=46, opacity=1).encode(x=x, y=y, tooltip=tips)
    return chart([line, points_], height=HEIGHT_PX)
