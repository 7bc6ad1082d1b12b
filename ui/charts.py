"""Altair charts from finished figures. The rules: nothing zooms on a live page, the y-axis of a budget always reaches
its cap, series are labelled where they end instead of in a legend, and colour never stands alone.

This file decides only how things look; sentences and tables beside a chart come from the modules of the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ui.accuracy import Point, labels
from ui.bandwidth import GROUPS, Bar
from ui.budget import Curve, Share
from ui.layers import Channel, Chart, Layer, Rows, chart, end, of
from ui.own_patients import OwnMean
from ui.palette import BLUE, FORECAST_DASH, GREEN, GREY, SOLID, VERMILLION, Dash, Ink, Style, on, styles
from ui.rounds import Timeline
from ui.words import duration, epsilon, phase, plain, size

HEIGHT_PX = 300
ROW_PX = 34
AXIS_PX = 70  # below rows: numbers, a title, and their distances
LABEL_PX = 13
LABEL_GAP_SHARE = 0.07  # of the axis: one line of label text on a chart of HEIGHT_PX
LABEL_ROOM_SHARE = 0.3  # of the width: what a label at a line's end may need
LETTER_SHARE = 0.0095  # of the axis: one letter of a name inside a bar of the timeline
DODGE_SHARE = 0.014  # of the axis: between the diamonds of two labels in one round
BYTE_COLOURS: dict[str, str] = dict(zip(GROUPS, (BLUE, GREEN, VERMILLION, GREY), strict=True))
PHASE_COLOURS: dict[str, str] = {  # no purple beside grey: without green cones they are the same
    "join": GREY,
    "broadcast": GREEN,
    "train": BLUE,
    "advertise": GREEN,
    "share": BLUE,
    "mask": VERMILLION,
    "confirm": GREEN,
    "reveal": BLUE,
    "result": GREY,
    "evaluate": GREY,
}


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The values moved apart to at least `gap`, keeping their order: places for labels at line ends."""
    placed = [0.0] * len(values)
    floor = float("-inf")
    for index in sorted(range(len(values)), key=values.__getitem__):
        placed[index] = max(values[index], floor)
        floor = placed[index] + gap
    return placed


def ticks(last: int, first: int = 0) -> list[int]:
    """Whole rounds for an axis, at most about twelve."""
    step = next(step * scale for scale in (1, 10, 100, 1000) for step in (1, 2, 5) if last - first <= 12 * step * scale)
    return [value for value in range(0, last + 1, step) if value >= first]


def _text(paper: Ink, rows: Rows, y_type: str = "Q", **mark: Any) -> Layer:
    settings = {"fontSize": LABEL_PX, "align": "left", "baseline": "middle", "color": paper.strong} | mark
    return Layer(rows).mark("text", **settings).encode(x=of("x:Q"), y=of(f"y:{y_type}"), text=of("text:N"))


def _rule(colour: str, dash: Dash, **place: float) -> Layer:
    """A rule across the chart at x or at y."""
    axes = {axis: of(f"{axis}:Q") for axis in place}
    return Layer([dict(place)]).mark("rule", color=colour, strokeWidth=2, strokeDash=list(dash)).encode(**axes)


def _rounds_axis(first: float, last: int, right: float, label: str = "format(datum.value, ',d')") -> Channel:
    values = ticks(last, max(0, round(first)))
    axis = {"values": values, "labelExpr": label, "grid": False, "labelFlush": False}
    return of("x:Q", title="round", scale={"domain": [first, right], "nice": False}, axis=axis)


def _value_axis(title: str, top: float, field: str = "y") -> Channel:
    scale = {"domain": [0, top], "nice": False}
    return of(f"{field}:Q", title=title, scale=scale, axis={"tickCount": 5})


def budget(curve: Curve, paper: Ink) -> Chart:
    """Epsilon by round: spent solid, the accountant's forecast dashed, the cap as a rule with its label."""
    last = curve.last_round
    top = max([curve.cap, *(reached for _, reached in (*curve.spent, *curve.forecast))]) * 1.14
    x, y = _rounds_axis(0, last, last * 1.03), _value_axis("epsilon", top)
    cap: Rows = [{"x": 0, "y": curve.cap, "text": f"cap {plain(curve.cap)} · {curve.cap_note}"}]
    spent: Rows = [{"x": number, "y": reached, "shown": epsilon(reached)} for number, reached in curve.spent]
    ahead: Rows = [{"x": number, "y": reached} for number, reached in curve.forecast]
    tips = [of("x:Q", title="after round"), of("shown:N", title="epsilon")]
    layers = [
        _rule(paper.strong, SOLID, y=curve.cap),
        _text(paper, cap, dx=6, dy=-11),
        _steps(ahead, FORECAST_DASH).encode(x=x, y=y),
        _steps(spent, SOLID).encode(x=x, y=y),
        Layer(spent).mark("point", filled=True, size=42, color=BLUE, opacity=1).encode(x=x, y=y, tooltip=tips),
    ]
    return chart([*layers, *_stop(curve, top, paper)], height=HEIGHT_PX)


def _steps(rows: Rows, dash: Dash) -> Layer:
    return Layer(rows).mark("line", interpolate="step-after", color=BLUE, strokeWidth=2.5, strokeDash=list(dash))


def _stop(curve: Curve, top: float, paper: Ink) -> tuple[Layer, ...]:
    if curve.stop is None:
        return ()
    number, text = curve.stop
    left = number > 0.6 * curve.last_round  # the label goes where there is room
    place: Rows = [{"x": number, "y": top * 0.07, "text": text}]
    label = _text(paper, place, align="right" if left else "left", dx=-7 if left else 7, fontWeight="bold")
    return _rule(VERMILLION, (3, 3), x=number), label


def shares(rows: Sequence[Share], colours: Mapping[str, Style], paper: Ink) -> Chart:
    """Horizontal bars: the share of each hospital's own cap that is spent, the nearest to its end on top."""
    data: Rows = [
        {"y": row.name, "share": row.share, "x": max(row.share, 1.0), "text": row.text, "colour": colours[row.name].colour}
        for row in rows
    ]
    axis = {"values": [0, 0.25, 0.5, 0.75, 1], "format": ".0%", "grid": False, "titleAnchor": "start"}
    x = of("share:Q", title="share of the cap that is spent", scale={"domain": [0, 1.9], "nice": False}, axis=axis)
    bars = Layer(data).mark("bar", height=ROW_PX * 0.5).encode(x=x, y=_names(rows), color=of("colour:N", scale=None))
    text = _text(paper, data, "N", dx=8).encode(y=_names(rows))
    return chart([bars, _rule(paper.strong, SOLID, x=1), text], height=ROW_PX * len(rows) + AXIS_PX)


def _names(rows: Sequence[Share]) -> Channel:
    return _party_axis([row.name for row in rows])


def _party_axis(order: Sequence[str]) -> Channel:
    axis = {"labelLimit": 180, "labelFontSize": LABEL_PX, "ticks": False, "domain": False}
    return of("y:N", sort=list(order), title=None, axis=axis)


def accuracy(points: Sequence[Point], paper: Ink, own: Sequence[OwnMean] = ()) -> Chart:
    """Mean Dice per label with its interval over public cases; round 0 is the start.

    `own`: noised means over the hospitals' patients, as diamonds with the noise's interval, not joined by a line.
    """
    names = tuple(dict.fromkeys([*labels(points), *(mean.label for mean in own)]))
    drawn = styles(names, paper)
    last = max([*(point.round for point in points), *(mean.round for mean in own)])
    width = max(last, 1)
    named = "datum.value == 0 ? 'start' : format(datum.value, ',d')"
    x, y = _rounds_axis(-0.02 * width, last, width * (1 + LABEL_ROOM_SHARE), named), _value_axis("mean Dice", 1)
    layers = [layer for name in labels(points) for layer in _dice([p for p in points if p.label == name], drawn[name], x, y)]
    for place, name in enumerate(names):
        beside = DODGE_SHARE * width * (place - (len(names) - 1) / 2)
        layers += _noised([mean for mean in own if mean.label == name], drawn[name], x, y, beside)
    line: Sequence[Point | OwnMean] = points or own
    newest = max(point.round for point in line)
    ends = [point for point in line if point.round == newest]
    places = spread([min(max(point.mean, 0.0), 1.0) for point in ends], LABEL_GAP_SHARE)
    text: Rows = [
        {"x": last, "y": place, "text": f"{point.label} {point.mean:.2f}"} for point, place in zip(ends, places, strict=True)
    ]
    return chart([*layers, _text(paper, text, dx=10, fontWeight="bold")], height=HEIGHT_PX)


def _dice(points: Sequence[Point], style: Style, x: Channel, y: Channel) -> tuple[Layer, ...]:
    data: Rows = [
        {"x": p.round, "y": p.mean, "low": p.low, "high": p.high, "label": p.label, "cases": p.cases, "spread": p.spread}
        for p in points
    ]
    tips = [
        of("label:N"),
        of("x:Q", title="round"),
        of("y:Q", title="mean Dice", format=".3f"),
        of("spread:N", title="95 % interval"),
        of("cases:Q", title="public cases"),
    ]
    band = Layer([row for row in data if row["low"] is not None])
    return (
        band.mark("area", color=style.colour, opacity=0.18).encode(x=x, y=_value_axis("mean Dice", 1, "low"), y2=end("high")),
        Layer(data).mark("line", color=style.colour, strokeDash=list(style.dash), strokeWidth=2.5).encode(x=x, y=y),
        Layer(data).mark("point", color=style.colour, filled=True, size=46, opacity=1).encode(x=x, y=y, tooltip=tips),
    )


def _noised(means: Sequence[OwnMean], style: Style, x: Channel, y: Channel, beside: float) -> tuple[Layer, ...]:
    """Diamonds with a rule from end to end of the noise's interval, kept on the axis, a little beside their round."""
    if not means:
        return ()
    data: Rows = [
        {
            "x": m.round + beside,
            "round": m.round,
            "y": min(max(m.mean, 0.0), 1.0),
            "low": min(max(m.mean - m.margin, 0.0), 1.0),
            "high": min(max(m.mean + m.margin, 0.0), 1.0),
            "label": m.label,
            "shown": f"{m.mean:.3f} ± {m.margin:.3f}",
        }
        for m in means
    ]
    tips = [
        of("label:N"),
        of("round:Q", title="model of round"),
        of("shown:N", title="hospitals' own patients, noised"),
    ]
    low = _value_axis("mean Dice", 1, "low")
    diamonds = Layer(data).mark("point", color=style.colour, shape="diamond", filled=False, size=110, strokeWidth=2)
    return (
        Layer(data).mark("rule", color=style.colour, strokeWidth=1.5).encode(x=x, y=low, y2=end("high")),
        diamonds.encode(x=x, y=y, tooltip=tips),
    )


def bandwidth(bars: Sequence[Bar], float32_bytes: int, paper: Ink) -> Chart:
    """Bytes of one hospital by round, stacked by phase, with the float32 vector as a rule."""
    first, last = min(bar.round for bar in bars), max(bar.round for bar in bars)
    data = _stacked(bars)
    highest = max(row["high"] for row in data)
    scale, unit = (1e6, "MB") if max(highest, float32_bytes) >= 1e6 else (1e3, "kB")
    for row in data:
        row.update(low=row["low"] / scale, high=row["high"] / scale, left=row["x"] - 0.36, right=row["x"] + 0.36)
    top = max(highest, float32_bytes) / scale * 1.15
    left = first - 0.5
    right = last + 0.5 + max(last - first + 1, 2) * LABEL_ROOM_SHARE * 1.4
    tips = [of("x:Q", title="round"), of("group:N", title="part"), of("amount:N", title="size")]
    stack = Layer(data).mark("rect", stroke=paper.surface, strokeWidth=1)
    stack = stack.encode(
        x=of("left:Q", title="round", scale={"domain": [left, right], "nice": False}, axis=_whole(last, first)),
        x2=end("right"),
        y=_value_axis(unit, top, "low"),
        y2=end("high"),
        color=of("colour:N", scale=None),
        tooltip=tips,
    )
    reference: Rows = [{"x": left, "y": float32_bytes / scale, "text": f"float32 {size(float32_bytes)}"}]
    rule = _rule(paper.strong, (7, 3), y=float32_bytes / scale)
    named = _text(paper, reference, dx=6, dy=-10)
    return chart([stack, rule, named, *_stack_names(data, last, top, paper)], height=HEIGHT_PX)


def _whole(last: int, first: int) -> dict[str, Any]:
    return {"values": ticks(last, first), "format": ",d", "grid": False}


def _stacked(bars: Sequence[Bar]) -> Rows:
    heights = dict.fromkeys((bar.round for bar in bars), 0.0)
    rows: Rows = []
    for bar in bars:
        low = heights[bar.round]
        heights[bar.round] = high = low + bar.bytes
        amount, colour = size(bar.bytes), BYTE_COLOURS[bar.group]
        rows.append({"x": bar.round, "group": bar.group, "low": low, "high": high, "amount": amount, "colour": colour})
    return rows


def _stack_names(data: Rows, last: int, top: float, paper: Ink) -> tuple[Layer, Layer]:
    """Names of the parts beside the last bar, in the order of the stack, each with a square of its colour."""
    ends = [row for row in data if row["x"] == last]
    places = spread([(row["low"] + row["high"]) / 2 for row in ends], LABEL_GAP_SHARE * top)
    text: Rows = [
        {"x": row["right"], "y": place, "text": f"{row['group']} {row['amount']}", "square": "■", "colour": row["colour"]}
        for row, place in zip(ends, places, strict=True)
    ]
    squares = _text(paper, text, dx=6).encode(text=of("square:N"), color=of("colour:N", scale=None))
    return squares, _text(paper, text, dx=22)


def timeline(shown: Timeline, paper: Ink) -> Chart:
    """Phases of one round by hospital; a cross where a hospital was lost."""
    data: Rows = [
        {
            "y": part.party,
            "phase": phase(part.phase),
            "start": part.start_s,
            "end": part.end_s,
            "took": duration(part.end_s - part.start_s),
            "colour": PHASE_COLOURS[part.phase],
        }
        for part in shown.segments
    ]
    y, end_s = _party_axis(sorted({part.party for part in shown.segments})), shown.end_s
    scale = {"domain": [0, end_s * 1.12], "nice": False}
    x = of("start:Q", title="seconds", scale=scale, axis={"tickCount": 8})
    tips = [of("y:N", title="hospital"), of("phase:N"), of("took:N")]
    bars = Layer(data).mark("bar", height=ROW_PX * 0.6, stroke=paper.surface, strokeWidth=1)
    bars = bars.encode(x=x, x2=end("end"), y=y, color=of("colour:N", scale=None), tooltip=tips)
    wide = [row for row in data if row["end"] - row["start"] > LETTER_SHARE * len(row["phase"]) * end_s]
    inside: Rows = [
        {"x": (row["start"] + row["end"]) / 2, "y": row["y"], "text": row["phase"], "ink": on(row["colour"])} for row in wide
    ]
    lost: Rows = [{"x": loss.at_s, "y": loss.party, "text": "✕ lost"} for loss in shown.losses]
    names = _text(paper, inside, "N", align="center", fontSize=LABEL_PX - 1)
    names = names.encode(y=y, color=of("ink:N", scale=None))
    crosses = _text(paper, lost, "N", dx=5, fontWeight="bold").encode(y=y)
    return chart([bars, names, crosses], height=ROW_PX * len({row["y"] for row in data}) + AXIS_PX)
