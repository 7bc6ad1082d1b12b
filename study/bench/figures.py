"""Figures of a study as PNG and SVG: score against round, and score against epsilon. Only means and ranges are computed here.

Rules: a panel holds one plan on one deal of patients from one start, and only what belongs to them; its lines are named beside
it, by what tells them apart there; "no guarantee" is a place of its own at the right of an epsilon axis and never a number; the
same results give the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from hospital_node.cap import plain as written
from study.bench.canvas import GREYS, RULE, Named, Style, name_lines, new_figure, saved, style
from study.bench.cells import Method
from study.bench.groups import Group, levels_of, place_of
from study.bench.naming import EPSILON, differing, in_words, said, shown, telling

MAX_LINES = 8  # of one panel over rounds
MAX_PANELS = 4  # in one picture: a taller one does not fit a page
DODGE = 1.02  # between the points of two series at one epsilon
INFINITY_GAP = 2.0  # the place of "no guarantee" on the epsilon axis, over the largest epsilon
NOTE_WIDTH = 80  # characters below a panel: more run off the picture
SEEDS_FOR_BARS = 5  # with fewer, a 95 % interval tells more of Student's t than of the score
REFERENCE_DASHES: dict[Method, Any] = {
    Method.POOLED: (0, (8, 3)),
    Method.LOCAL: (0, (1.5, 1.5)),
    Method.PLAIN: (0, (6, 2, 1.5, 2)),
}

Panel = tuple[str, Sequence[Group]]  # title, settings


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure on disk. `finding`: what it shows, in words, for those who do not see it."""

    name: str
    finding: str
    files: tuple[Path, Path] = field(repr=False)  # PNG, SVG


def draw(groups: Sequence[Group], metric: str, folder: Path) -> list[Picture]:
    """Write the figures that `groups` can fill."""
    measured = [group for group in groups if group.scores]
    return [*_by_round(measured, metric, folder), *_by_epsilon(measured, metric, folder)]


# ---- score against round ----


def _by_round(groups: Sequence[Group], metric: str, folder: Path) -> list[Picture]:
    """One panel for all federated settings of one place; if they are too many, one for those that differ in epsilon alone."""
    federated = [group for group in groups if group.is_federated]
    names = set(differing([group.cell.settings for group in federated])) - {EPSILON}
    panels = []
    for same in _apart(federated, lambda group: place_of(group.cell)):
        few = len(same) <= MAX_LINES
        panels += [same] if few else _apart(same, lambda group: tuple(said(group.cell.settings, names)))
    titled = list(zip(_titles(panels), panels, strict=True))
    return [_round_picture(folder / name, page, groups, metric) for name, page in _pages("score_by_round", titled)]


def _round_picture(path: Path, page: Sequence[Panel], groups: Sequence[Group], metric: str) -> Picture:
    baselines = [group for group in groups if not group.is_federated]
    figure = new_figure([title for title, _ in page], f"{metric}, mean over labels")
    lines = []
    for axes, (_, same) in zip(figure.axes, page, strict=True):
        names = {EPSILON, *telling([group.cell.settings for group in same], [group.cell.method for group in same])}
        named = [(", ".join([group.cell.method_words, *in_words(group.cell.settings, names)]), group) for group in same]
        lines.append([_band(axes, name, group, style(index)) for index, (name, group) in enumerate(named)])
        lines[-1] += _references(axes, same, baselines)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    several = any(len(group.results) > 1 for _, same in page for group in same)
    figure.axes[-1].set_xlabel("round (0: the start)" + ("; bands: lowest to highest seed" if several else ""))
    name_lines(figure, lines)
    ends = [(f"{line.name} {line.end:.3f}" for line in sorted(one, key=lambda line: -line.end)) for one in lines]
    words = [_of_panel(title, said_of) for (title, _), said_of in zip(page, ends, strict=True)]
    finding = f"{metric} after the last round. {'. '.join(words)}."
    return Picture(path.name, finding, saved(figure, path, finding))


def _band(axes: Any, name: str, group: Group, how: Style) -> Named:
    """Mean over seeds as a line, lowest to highest seed as a band."""
    by_round = group.by_round()
    rounds = list(by_round)
    means = [math.fsum(values) / len(values) for values in by_round.values()]
    lows, highs = [min(values) for values in by_round.values()], [max(values) for values in by_round.values()]
    axes.fill_between(rounds, lows, highs, color=how.colour, alpha=0.18, linewidth=0)
    every = max(1, len(rounds) // 10)
    (line,) = axes.plot(rounds, means, color=how.colour, linestyle=how.dash, marker=how.mark, markersize=4, markevery=every)
    return Named(name, means[-1], line)


# ---- score against epsilon ----


def _by_epsilon(groups: Sequence[Group], metric: str, folder: Path) -> list[Picture]:
    """One panel for all masked settings of one place; none where no epsilon of it is finite."""
    masked = [group for group in groups if group.cell.method is Method.MASKED]
    panels = _apart(masked, lambda group: place_of(group.cell))
    titled = [
        (title, same)
        for title, same in zip(_titles(panels), panels, strict=True)
        if any(group.epsilon is not None for group in same)
    ]
    return [_epsilon_picture(folder / name, page, groups, metric) for name, page in _pages("score_by_epsilon", titled)]


def _epsilon_picture(path: Path, page: Sequence[Panel], groups: Sequence[Group], metric: str) -> Picture:
    figure = new_figure([title for title, _ in page], f"final {metric}, mean over labels")
    lines, words = [], []
    for axes, (title, same) in zip(figure.axes, page, strict=True):
        curves = _curves(same)
        infinity = INFINITY_GAP * max(group.epsilon for group in same if group.epsilon is not None)
        lines.append(_drawn(axes, curves, infinity) + _references(axes, same, groups))
        _epsilon_axis(axes, same, infinity)
        words.append(_of_panel(title, (_points_in_words(name, members) for name, members in curves.items())))
    figure.axes[-1].set_xlabel(_epsilon_label([group for _, same in page for group in same]))
    name_lines(figure, lines)
    finding = f"Final {metric} by epsilon. {'. '.join(words)}."
    return Picture(path.name, finding, saved(figure, path, finding))


def _drawn(axes: Any, curves: Mapping[str, Sequence[Group]], infinity: float) -> list[Named]:
    """All curves of a panel, a little beside each other."""
    middle = (len(curves) - 1) / 2
    return [
        _curve(axes, name, members, infinity, DODGE ** (index - middle), style(index))
        for index, (name, members) in enumerate(curves.items())
    ]


def _curves(same: Sequence[Group]) -> dict[str, list[Group]]:
    """Name -> settings that differ in epsilon alone, by growing epsilon, no noise last."""
    names = set(differing([group.cell.settings for group in same])) - {EPSILON}
    ordered = sorted(same, key=lambda one: one.epsilon or math.inf)
    curves = _apart(ordered, lambda group: tuple(said(group.cell.settings, names)))
    found = [members[0].cell.settings for members in curves]
    apart = set(telling(found)) - {EPSILON}
    titles = [", ".join(["masked", *in_words(settings, apart)]) for settings in found]
    return dict(zip(titles, curves, strict=True))


def _curve(axes: Any, name: str, groups: Sequence[Group], infinity: float, beside: float, how: Style) -> Named:
    """One series over epsilon, drawn `beside` times its place; no noise is the place of infinity, joined by dots."""
    places = [beside * (group.epsilon or infinity) for group in groups]
    means = [group.mean for group in groups]
    for place, group in zip(places, groups, strict=True):
        _seeds(axes, place, group, how)
    ends = sum(group.epsilon is not None for group in groups)
    marked: dict[str, Any] = {"color": how.colour, "marker": how.mark, "markersize": 5}
    axes.plot(places[:ends], means[:ends], linestyle=how.dash, **marked)
    axes.plot(places[max(ends - 1, 0) :], means[max(ends - 1, 0) :], linestyle=(0, (1, 2)), **marked)
    return Named(name, means[-1], Line2D([], [], linestyle=how.dash, **marked), is_level=False)


def _seeds(axes: Any, place: float, group: Group, how: Style) -> None:
    """Every seed as a small dot, where there is more than one; the 95 % interval of the mean where there are enough."""
    values = list(group.scores.values())
    if len(values) > 1:
        axes.plot([place] * len(values), values, color=how.colour, marker=".", markersize=4, alpha=0.6, linestyle="none")
    if len(values) >= SEEDS_FOR_BARS and group.score is not None:
        axes.errorbar([place], [group.score.mean], yerr=[group.score.half], color=how.colour, capsize=3, linewidth=1.2)


def _epsilon_axis(axes: Any, same: Sequence[Group], infinity: float) -> None:
    """Logarithmic, one tick for each epsilon that is apart from its neighbours, and one for no noise where that was run."""
    finite = sorted(group.epsilon for group in same if group.epsilon is not None)
    ticks: list[float] = []
    for value in finite:
        if not ticks or value > 1.15 * ticks[-1]:
            ticks.append(value)
    names = [f"{value:.2g}" for value in ticks]
    silent = len(finite) < len(same)
    if silent:
        axes.axvline(infinity / math.sqrt(INFINITY_GAP), color=RULE, linewidth=0.8)
        ticks, names = [*ticks, infinity], [*names, "infinity\n(no noise)"]
    axes.set_xscale("log")
    axes.set_xlim(finite[0] / 1.3, (infinity if silent else finite[-1]) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter(names))
    axes.xaxis.set_minor_locator(NullLocator())


def _epsilon_label(groups: Sequence[Group]) -> str:
    deltas = ", ".join(written(delta) for delta in sorted({one.delta for one in groups if one.epsilon is not None}))
    seeds = [len(group.results) for group in groups]
    notes = ["small dots: seeds"] if max(seeds) > 1 else []
    notes += ["bars: 95 % interval over seeds"] if max(seeds) >= SEEDS_FOR_BARS else []
    shared = any(one.cell.plan["privacy"].get("noise_mode") == "shared" for one in groups)
    notes += ["shared noise: against the plan's colluders"] if shared else []
    label = f"epsilon of the worst hospital at delta {deltas} (logarithmic; smaller protects more)"
    return "\n".join([label, *textwrap.wrap("; ".join(notes), NOTE_WIDTH)])


# ---- both ----


def _apart(groups: Sequence[Group], key: Callable[[Group], Hashable]) -> list[list[Group]]:
    """Groups of one key together, in the order in which the keys come up."""
    found: dict[Hashable, list[Group]] = {}
    for group in groups:
        found.setdefault(key(group), []).append(group)
    return list(found.values())


def _pages(name: str, panels: Sequence[Panel]) -> list[tuple[str, Sequence[Panel]]]:
    """(file name, panels) of each picture; numbered where there are several."""
    pages = [panels[first : first + MAX_PANELS] for first in range(0, len(panels), MAX_PANELS)]
    return [(name if len(pages) == 1 else f"{name}_{number}", page) for number, page in enumerate(pages, 1)]


def _references(axes: Any, same: Sequence[Group], groups: Sequence[Group]) -> list[Named]:
    """Levels that do not depend on the axis, of any setting of the panel: grey rules, one dash a method."""
    found = {id(level): level for group in same for level in levels_of(group, groups)}
    drawn: Counter[Method] = Counter()
    lines = []
    for level in found.values():
        method = level.cell.method
        alike = [one.cell.settings for one in found.values() if one.cell.method is method]
        name = ", ".join([method.value, *in_words(level.cell.settings, set(telling(alike)) - {EPSILON})])
        colour = GREYS[drawn[method] % len(GREYS)]
        line = axes.axhline(level.mean, color=colour, linestyle=REFERENCE_DASHES[method], linewidth=1.2)
        lines.append(Named(name, level.mean, line))
        drawn[method] += 1
    return lines


def _titles(panels: Sequence[Sequence[Group]]) -> list[str]:
    """What tells each panel from the others, of the settings that are the same all over a panel."""
    within = {name for same in panels for name in differing([group.cell.settings for group in same])}
    shared = [{name: value for name, value in same[0].cell.settings.items() if name not in within} for same in panels]
    names = telling(shared)
    return [", ".join(in_words(settings, names)) for settings in shared]


def _of_panel(title: str, words: Iterable[str]) -> str:
    """What a panel shows, for a finding."""
    said_of = "; ".join(words)
    return f"{title}: {said_of}" if title else said_of


def _points_in_words(name: str, groups: Sequence[Group]) -> str:
    points = [
        f"{group.mean:.3f} " + ("without noise" if group.epsilon is None else f"at {shown(round(group.epsilon, 2))}")
        for group in groups
    ]
    return f"{name} {', '.join(points)}"
