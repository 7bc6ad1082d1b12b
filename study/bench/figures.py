"""Figures of a study as PNG and SVG: score against round, and score against epsilon. Only means and ranges are computed here.

Rules: colour never carries a meaning alone (every series has its own mark and dash), "no guarantee" is a place of its own at
the right of an epsilon axis and never a number, and the same results give the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from study.bench.cells import Method, Setting
from study.bench.groups import Group, levels_of, shown

WIDTH_INCHES, PANEL_INCHES, DPI = 8.0, 3.4, 100  # 800 pixels wide
LEGEND_ROW_INCHES = 0.24
TITLE_LETTERS, COLUMN_LETTERS = 95, 48  # that fit the width of a picture, and half of it
MAX_PANELS = 4  # in one picture: a taller one does not fit a page
DODGE = 1.02  # between the bars of two series at one epsilon
INFINITY_GAP = 2.0  # the place of "no guarantee" on the epsilon axis, over the largest epsilon
SIZES = {"font.size": 10.0, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "secagg-study"}
# Okabe and Ito's colours (jfly.uni-koeln.de/color) with a contrast of 2.2 and more on white; black last
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 3)))
GREYS = ("#5A606B", "#9AA0AA", "#2B2F36")  # of reference levels, by their order within a method
REFERENCE_DASHES: dict[Method, Any] = {
    Method.POOLED: (0, (8, 3)),
    Method.LOCAL: (0, (1.5, 1.5)),
    Method.PLAIN: (0, (6, 2, 1.5, 2)),
}


@dataclass(frozen=True, slots=True)
class Style:
    """How one series is drawn: distinct in colour, mark and dash at once."""

    colour: str
    mark: str
    dash: Any


def draw(groups: Sequence[Group], metric: str, folder: Path) -> list[Path]:
    """Write the figures that `groups` can fill and return their files: PNG and SVG of each."""
    measured = [group for group in groups if group.scores]
    with mpl.rc_context(SIZES):
        pictures = {**_by_round(measured, metric), **_by_epsilon(measured, metric)}
        return [path for name, figure in pictures.items() for path in _saved(figure, folder / name)]


def style(index: int) -> Style:
    """Of the series at that place."""
    return Style(COLOURS[index % len(COLOURS)], MARKS[index % len(MARKS)], DASHES[index % len(DASHES)])


def _by_round(groups: Sequence[Group], metric: str) -> dict[str, Figure]:
    """One panel for all federated settings that differ in method and epsilon alone."""
    federated = [group for group in groups if group.is_federated]
    names = _apart(federated) - {"epsilon"}
    panels: dict[str, list[Group]] = {}
    for group in federated:
        panels.setdefault(_varied(group, names), []).append(group)
    pictures = {}
    pages = [list(panels.items())[first : first + MAX_PANELS] for first in range(0, len(panels), MAX_PANELS)]
    for number, page in enumerate(pages, 1):
        name = "score_by_round" if len(pages) == 1 else f"score_by_round_{number}"
        pictures[name] = _round_picture(page, groups, metric)
    return pictures


def _round_picture(page: Sequence[tuple[str, list[Group]]], groups: Sequence[Group], metric: str) -> Figure:
    styles = {name: style(index) for index, name in enumerate(dict.fromkeys(_line(one) for _, same in page for one in same))}
    baselines = [group for group in groups if not group.is_federated]
    figure = _figure()
    for axes, (title, same) in zip(_panels(figure, len(page)), page, strict=True):
        for group in same:
            _band(axes, group, styles[_line(group)])
        _references(axes, levels_of(same[0], baselines), same)
        axes.margins(y=0.08)
        axes.set_title(textwrap.fill(title, TITLE_LETTERS), loc="left", fontsize=10)
        axes.set_ylabel(f"{metric}, mean over labels")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#E3E6EA")
    figure.axes[-1].set_xlabel("round (0: the start)")
    several = any(len(group.results) > 1 for _, same in page for group in same)
    _legend(figure, "band: lowest to highest seed" if several else "one seed: no band")
    return figure


def _band(axes: Any, group: Group, how: Style) -> None:
    """Mean over seeds as a line, lowest to highest seed as a band."""
    by_round = group.by_round()
    rounds = list(by_round)
    means = [math.fsum(values) / len(values) for values in by_round.values()]
    lows, highs = [min(values) for values in by_round.values()], [max(values) for values in by_round.values()]
    axes.fill_between(rounds, lows, highs, color=how.colour, alpha=0.18, linewidth=0)
    every = max(1, len(rounds) // 10)
    axes.plot(
        rounds, means, color=how.colour, linestyle=how.dash, marker=how.mark, markersize=4, markevery=every, label=_line(group)
    )


def _references(axes: Any, levels: Sequence[Group], same: Sequence[Group]) -> None:
    """Levels that do not depend on the axis: grey rules, one dash a method. Named without what the whole panel shares."""
    drawn: Counter[Method] = Counter()
    for level in levels:
        assert level.score is not None
        method, settings = level.cell.method, level.cell.settings
        own = {name for name in settings if any(settings[name] != one.cell.settings.get(name) for one in same)} - {"epsilon"}
        name = ", ".join(filter(None, [method.value, _varied(level, own)]))
        colour = GREYS[drawn[method] % len(GREYS)]
        axes.axhline(level.score.mean, color=colour, linestyle=REFERENCE_DASHES[method], linewidth=1.2, label=name)
        drawn[method] += 1


def _by_epsilon(groups: Sequence[Group], metric: str) -> dict[str, Figure]:
    """One panel for all masked settings that share their reference levels; nothing where no epsilon is finite."""
    masked = [group for group in groups if group.cell.method is Method.MASKED]
    finite = [group.epsilon for group in masked if group.epsilon is not None]
    if not finite:
        return {}
    panels: dict[tuple[str, ...], list[Group]] = {}
    for group in masked:
        panels.setdefault(tuple(one.name for one in levels_of(group, groups)), []).append(group)
    names = _apart(masked) - {"epsilon"}
    styles = {name: style(index) for index, name in enumerate(dict.fromkeys(_varied(one, names) for one in masked))}
    infinity = INFINITY_GAP * max(finite)
    figure = _figure()
    for axes, same in zip(_panels(figure, len(panels)), panels.values(), strict=True):
        for index, (name, how) in enumerate(styles.items()):
            beside = DODGE ** (index - (len(styles) - 1) / 2)
            _curve(axes, name or "masked", [one for one in same if _varied(one, names) == name], infinity, beside, how)
        _references(axes, levels_of(same[0], groups), same)
        _epsilon_axis(axes, finite, infinity)
        axes.set_ylabel(f"final {metric}, mean over labels")
    deltas = ", ".join(f"{delta:g}" for delta in sorted({one.delta for one in masked if one.epsilon is not None}))
    figure.axes[-1].set_xlabel(f"epsilon of the worst hospital at delta {deltas} (logarithmic; smaller protects more)")
    several = any(len(group.results) > 1 for group in masked)
    _legend(figure, "masked; bars: lowest to highest seed" if several else "masked; one seed: no bars")
    return {"score_by_epsilon": figure}


def _curve(axes: Any, name: str, groups: Sequence[Group], infinity: float, beside: float, how: Style) -> None:
    """One series over epsilon, drawn `beside` times its place; no noise is the place of infinity, joined by dots."""
    if not groups:
        return
    points = sorted((group.epsilon or infinity, group.scores.values()) for group in groups if group.score)
    places = [place * beside for place, _ in points]
    means = [math.fsum(values) / len(values) for _, values in points]
    below = [mean - min(values) for mean, (_, values) in zip(means, points, strict=True)]
    above = [max(values) - mean for mean, (_, values) in zip(means, points, strict=True)]
    ends = sum(place < infinity for place, _ in points)
    axes.errorbar(places, means, yerr=(below, above), color=how.colour, fmt=how.mark, markersize=5, capsize=3, linewidth=1.2)
    axes.plot(places[:ends], means[:ends], color=how.colour, linestyle=how.dash)
    axes.plot(places[max(ends - 1, 0) :], means[max(ends - 1, 0) :], color=how.colour, linestyle=(0, (1, 2)))
    axes.plot([], [], color=how.colour, linestyle=how.dash, marker=how.mark, markersize=5, label=name)


def _epsilon_axis(axes: Any, finite: Sequence[float], infinity: float) -> None:
    """Logarithmic, one tick for each epsilon that is apart from its neighbours, and one for no noise at all."""
    ticks: list[float] = []
    for value in sorted(finite):
        if not ticks or value > 1.15 * ticks[-1]:
            ticks.append(value)
    axes.set_xscale("log")
    axes.margins(y=0.08)
    axes.set_xlim(min(finite) / 1.3, infinity * 1.3)
    axes.xaxis.set_major_locator(FixedLocator([*ticks, infinity]))
    axes.xaxis.set_major_formatter(FixedFormatter([*(f"{value:.2g}" for value in ticks), "infinity\n(no noise)"]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#E3E6EA")
    axes.axvline(infinity / math.sqrt(INFINITY_GAP), color="#C4C9D0", linewidth=0.8)


def _line(group: Group) -> str:
    """Method and epsilon: what tells the lines of one panel apart."""
    epsilon: Setting = group.cell.settings.get("epsilon")
    return group.cell.method.value + ("" if epsilon is None else f", epsilon {shown(epsilon)}")


def _apart(groups: Sequence[Group]) -> set[str]:
    """Settings in which `groups` differ: the others need not be said in a picture."""
    settings = [group.cell.settings for group in groups]
    return {name for one in settings for name in one if any(one[name] != other.get(name) for other in settings)}


def _varied(group: Group, names: AbstractSet[str]) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in group.cell.settings.items() if name in names)


def _figure() -> Figure:
    return Figure(figsize=(WIDTH_INCHES, PANEL_INCHES), dpi=DPI, layout="constrained")


def _panels(figure: Figure, count: int) -> Iterator[Any]:
    yield from figure.subplots(count, 1, squeeze=False).flat


def _legend(figure: Figure, title: str) -> None:
    """One legend below all panels, for which the picture is made taller; an entry of several panels stands there once."""
    found: list[tuple[Any, str]] = []
    for axes in figure.axes:
        found += zip(*axes.get_legend_handles_labels(), strict=True)
    found.sort(key=lambda pair: pair[0].get_color() in GREYS)  # levels after series
    entries: dict[str, Any] = {}
    for handle, name in found:
        entries.setdefault(textwrap.fill(name, TITLE_LETTERS), handle)
    columns = 2 if max(map(len, entries)) <= COLUMN_LETTERS else 1
    lines = math.ceil(sum(name.count("\n") + 1 for name in entries) / columns)
    figure.set_size_inches(WIDTH_INCHES, len(figure.axes) * PANEL_INCHES + (lines + 1) * LEGEND_ROW_INCHES)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        title=title,
        handlelength=4,
    )


def _saved(figure: Figure, path: Path) -> list[Path]:
    """PNG and SVG without a date."""
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in files:
        part = file.with_name(f"{file.stem}.part{file.suffix}")
        figure.savefig(part, metadata={"Date": None} if file.suffix == ".svg" else {"Software": None})
        part.replace(file)
    return files
