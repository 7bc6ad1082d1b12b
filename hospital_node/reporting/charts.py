"""Two charts of the report as inline SVG: no scripts, no references, readable in grey. Pure functions of figures.

Lines differ by dash and carry their label at their end; the cap lies inside the axis always. Sizes are in SVG user units of one
pixel. Every text in a chart is escaped by the template's rule: `markupsafe.escape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from markupsafe import Markup, escape

from hospital_node.cap import rounded_up
from hospital_node.reporting.annexes import percent_up
from hospital_node.reporting.model import PrivacyReport

WIDTH: Final = 680
HEIGHT: Final = 250
LEFT, RIGHT, TOP, BOTTOM = 52, 132, 18, 40
INK, BLUE, VERMILLION, GREY = "#1a1a1a", "#0072b2", "#d55e00", "#767676"
TICKS: Final = 5
BAR: Final = 22
ROW: Final = 34

Points = Sequence[tuple[float, float]]


def spending(report: PrivacyReport) -> Markup | None:
    """Epsilon by round against the cap, spent solid and foreseen dashed; None where no epsilon can be drawn."""
    spent = [(float(one.round), one.epsilon) for one in report.course.spent]
    ahead = [(float(one.round), one.epsilon) for one in report.course.forecast]
    cap = report.budget.epsilon
    if report.guarantee.no_guarantee or not (spent or ahead):
        return None
    ahead = _to_the_cap(ahead, cap)
    last = max(round_number for round_number, _ in [*spent, *ahead])
    top = nice(max([reached for _, reached in [*spent, *ahead]] + ([cap] if cap else [])) * 1.05)
    frame = _Frame(max(last, 1.0), top)
    drawn = [frame.axes("round", "ε")]
    if cap is not None:
        drawn.append(frame.rule(cap, f"cap {cap:g}"))
    if spent:
        drawn.append(
            frame.line(spent, BLUE, "")
            + frame.dots(spent, BLUE)
            + frame.label(spent[-1], f"spent {rounded_up(spent[-1][1])}", BLUE)
        )
    if ahead:
        drawn.append(frame.line([*spent[-1:], *ahead], GREY, "5 4") + frame.label(ahead[-1], "forecast", GREY))
    return _svg(HEIGHT, spending_sentence(report), drawn)


def spending_sentence(report: PrivacyReport) -> str:
    """What the chart shows."""
    spent, cap = report.course.spent, report.budget.epsilon
    if not spent:
        return "Nothing is charged yet; the dashed line is the accountant's forecast at the plan's settings."
    of = "" if cap is None else f" of {cap:g}"
    return (
        f"After round {spent[-1].round} of study '{report.subject.study}' epsilon is {rounded_up(spent[-1].epsilon)}{of}. "
        "Solid is spent, dashed is the accountant's forecast at the plan's settings."
    )


def attacker(report: PrivacyReport) -> Markup | None:
    """The share that the best attacker recognises beside what guessing alone gives; None where nothing limits it."""
    if report.guarantee.no_guarantee or not report.guarantee.attacker:
        return None
    room = WIDTH - LEFT - RIGHT - 120
    rows = []
    for place, one in enumerate(report.guarantee.attacker):
        y = 8 + place * ROW
        long, guess = room * one.recognised, room * one.false_alarms
        rows.append(
            _text(LEFT + 112, y + BAR / 2 + 4, f"{100 * one.false_alarms:g} % false alarms", INK, "end")
            + Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>').format(LEFT + 120, y, _n(long), BAR, BLUE)
            + Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>').format(
                LEFT + 120, y, _n(max(guess, 1)), BAR, INK
            )
            + _text(LEFT + 128 + long, y + BAR / 2 + 4, f"at most {percent_up(one.recognised)}", INK)
        )
    return _svg(8 + ROW * len(rows), attacker_sentence(), rows)


def attacker_sentence() -> str:
    """What the chart shows."""
    return (
        "The largest share of patients that the best possible attacker recognises (blue), at three shares of false alarms; "
        "black is what blind guessing gives."
    )


def nice(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten, times TICKS, that is not below `value`."""
    if value <= 0:
        return 1.0
    step = value / TICKS
    power = 10.0 ** math.floor(math.log10(step))
    return TICKS * next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step - 1e-12)


class _Frame:
    """Places of data in one chart: x from 0 to `last`, y from 0 to `top`."""

    def __init__(self, last: float, top: float) -> None:
        self.last, self.top = last, top

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.last

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, self.top) / self.top

    def axes(self, below: str, beside: str) -> Markup:
        parts = []
        for k in range(TICKS + 1):
            value = self.top * k / TICKS
            parts.append(_line((LEFT, self.y(value)), (WIDTH - RIGHT, self.y(value)), "#d9d9d9", 1))
            parts.append(_text(LEFT - 8, self.y(value) + 4, f"{value:g}", INK, "end"))
        for number in _round_ticks(self.last):
            parts.append(_line((self.x(number), HEIGHT - BOTTOM), (self.x(number), HEIGHT - BOTTOM + 5), INK, 1))
            parts.append(_text(self.x(number), HEIGHT - BOTTOM + 19, f"{number:g}", INK, "middle"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, below, INK, "middle"))
        parts.append(_text(10, TOP + 4, beside, INK))
        return Markup("").join(parts)

    def rule(self, value: float, label: str) -> Markup:
        y = self.y(value)
        return _line((LEFT, y), (WIDTH - RIGHT, y), INK, 1.6) + _text(WIDTH - RIGHT + 6, y - 3, label, INK)

    def line(self, points: Points, colour: str, dash: str) -> Markup:
        path = " ".join(f"{_n(self.x(x))},{_n(self.y(y))}" for x, y in points)
        return Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="2.2" stroke-dasharray="{}"/>').format(
            path, colour, dash or "none"
        )

    def dots(self, points: Points, colour: str) -> Markup:
        if len(points) > 40:
            return Markup("")
        circle = Markup('<circle cx="{}" cy="{}" r="3" fill="{}"/>')
        return Markup("").join(circle.format(_n(self.x(x)), _n(self.y(y)), colour) for x, y in points)

    def label(self, point: tuple[float, float], words: str, colour: str) -> Markup:
        return _text(self.x(point[0]) + 8, self.y(point[1]) + 13, words, colour)


def _round_ticks(last: float) -> Iterable[int]:
    step = max(1, round(nice(last) / TICKS))
    return range(0, int(last) + 1, step)


def _to_the_cap(ahead: list[tuple[float, float]], cap: float | None) -> list[tuple[float, float]]:
    """The forecast up to the first point above the cap: what lies beyond never runs."""
    over = next((place for place, (_, reached) in enumerate(ahead) if cap is not None and reached > cap), len(ahead) - 1)
    return ahead[: over + 1]


def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">').format(
        WIDTH, _n(height), WIDTH, _n(height), title
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _line(start: tuple[float, float], end: tuple[float, float], colour: str, width: float) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-width="{}"/>').format(
        _n(start[0]), _n(start[1]), _n(end[0]), _n(end[1]), colour, width
    )


def _text(x: float, y: float, words: str, colour: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" fill="{}" text-anchor="{}" font-size="12">{}</text>').format(
        _n(x), _n(y), colour, anchor, escape(words)
    )


def _n(value: float) -> str:
    """A place with two decimals, the same on every machine."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
