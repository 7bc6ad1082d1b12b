"""How the figures of a study look: size, colours, marks, dashes, and the names of lines beside their panel.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color) with a contrast of at least 3 on white. Every series has a mark and
a dash of its own too, so that it is found in grey print; levels that do not depend on the axis are thin grey rules.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

WIDTH_INCHES, PANEL_INCHES, DPI = 8.0, 3.4, 100  # 800 pixels wide
LINE_INCHES = 0.19  # of a name beside a panel
TITLE_LETTERS, NAME_LETTERS = 90, 27  # that fit above a panel, and beside it
LOOK = {"font.size": 10.0, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "secagg-study"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")  # blue, vermillion, green, purple, black
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
GREYS = ("#5A606B", "#2B2F36")  # of levels, by their order within a method
GRID, RULE = "#E3E6EA", "#C4C9D0"


@dataclass(frozen=True, slots=True)
class Style:
    """How one series is drawn: other neighbours differ in colour, mark and dash at once."""

    colour: str
    mark: str
    dash: Any


@dataclass(frozen=True, slots=True)
class Named:
    """A line of a panel: its name, where it ends on the value axis, and what stands for it beside the panel."""

    name: str
    end: float
    handle: Any
    is_level: bool = True  # its end is a figure of its own, worth a number; not the last point of a curve over epsilon

    @property
    def text(self) -> str:
        """Beside the panel."""
        return f"{self.name}: {self.end:.3f}" if self.is_level else self.name


def style(index: int) -> Style:
    """Of the series at that place; the first thirty-five differ in colour or mark."""
    return Style(COLOURS[index % len(COLOURS)], MARKS[index % len(MARKS)], DASHES[index % len(DASHES)])


def new_figure(titles: Sequence[str], label: str) -> Figure:
    """Panels one below the other on one value axis, each with its title and `label`."""
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH_INCHES, PANEL_INCHES * len(titles)), dpi=DPI, layout="constrained")
        for axes, title in zip(figure.subplots(len(titles), 1, squeeze=False, sharey=True).flat, titles, strict=True):
            axes.set_title(textwrap.fill(title, TITLE_LETTERS, break_long_words=False), loc="left", fontsize=10)
            axes.set_ylabel(label)
            axes.margins(y=0.08)
            axes.grid(axis="y", color=GRID)
            axes.set_axisbelow(True)
    return figure


def name_lines(figure: Figure, panels: Sequence[Sequence[Named]]) -> None:
    """Name the lines of each panel at its right side, from top to bottom as they end; panels with many grow."""
    heights = []
    for axes, lines in zip(figure.axes, panels, strict=True):
        ordered = sorted(lines, key=lambda line: -line.end)
        names = [textwrap.fill(line.text, NAME_LETTERS, break_long_words=False) for line in ordered]
        axes.legend(
            [line.handle for line in ordered],
            names,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.02),
            frameon=False,
            fontsize=9,
            handlelength=3.2,
            labelspacing=0.4,
        )
        rows = sum(name.count("\n") + 1 for name in names) + 0.4 * len(names)
        heights.append(max(PANEL_INCHES, rows * LINE_INCHES + 0.6))
    grid: Any = figure.axes[0].get_gridspec()
    grid.set_height_ratios(heights)
    figure.set_size_inches(WIDTH_INCHES, sum(heights))


def saved(figure: Figure, path: Path, finding: str) -> tuple[Path, Path]:
    """PNG and SVG without a date; `finding` is the title that a screen reader says."""
    files = path.with_suffix(".png"), path.with_suffix(".svg")
    with mpl.rc_context(LOOK):
        for file in files:
            part = file.with_name(f"{file.stem}.part{file.suffix}")
            said: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {"Software": None}
            figure.savefig(part, metadata={**said, "Title": finding})
            part.replace(file)
    return files
