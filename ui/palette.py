"""Colours, dashes and theme. The rule: colour never carries a meaning alone, and never judges an epsilon.

Okabe and Ito's colours (jfly.uni-koeln.de/color) that keep a contrast of 3:1 against white and against the dark
background: blue, vermillion, green and purple. The fifth series takes the ink of the theme. A hospital keeps its
colour on every page because it follows the order of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
GREY = "#8A8F98"  # 3.2 on white, 5.4 on the dark background: hospitals beyond the fifth, not highlighted

Dash = tuple[int, int]
SOLID: Dash = (1, 0)
DASHES: tuple[Dash, ...] = (SOLID, (7, 3), (2, 2), (10, 3), (4, 4))  # one per series: prints in grey
FORECAST_DASH: Dash = (5, 4)
MAX_COLOURED = 5  # more than five coloured lines cannot be told apart (officer's screen, charts)


@dataclass(frozen=True, slots=True)
class Ink:
    """What the theme decides: text and rules on charts."""

    strong: str
    soft: str
    grid: str
    surface: str


LIGHT = Ink(strong="#1A1C21", soft="#5A606B", grid="#E3E6EA", surface="#FFFFFF")
DARK = Ink(strong="#F2F4F8", soft="#A9B0BC", grid="#343A46", surface="#14171D")


@dataclass(frozen=True, slots=True)
class Style:
    """How one series is drawn."""

    colour: str
    dash: Dash


def ink(theme: str | None) -> Ink:
    """Ink of the browser's theme; light where the browser has not said."""
    return DARK if theme == "dark" else LIGHT


def on(fill: str) -> str:
    """Ink for text inside a fill, with a contrast of at least 4.5: white on blue, black on the others."""
    return "#FFFFFF" if fill == BLUE else "#000000"


def styles(names: Sequence[str], paper: Ink, highlighted: str | None = None) -> dict[str, Style]:
    """One style per series in the order given; beyond five, grey with the highlighted one in blue."""
    if len(names) > MAX_COLOURED:
        return {name: Style(BLUE if name == highlighted else GREY, DASHES[0]) for name in names}
    colours = (BLUE, VERMILLION, GREEN, PURPLE, paper.strong)
    return {name: Style(colour, dash) for name, colour, dash in zip(names, colours, DASHES, strict=False)}


def theme_options() -> dict[str, str]:
    """Streamlit's theme: blue for actions, so that red is left for danger."""
    return {
        "theme.primaryColor": BLUE,
        "theme.paddingTop": "1rem",
        "theme.metricValueFontSize": "1.6rem",  # the largest at which "no guarantee" is not cut off in a quarter of the page
        "theme.light.backgroundColor": LIGHT.surface,
        "theme.light.secondaryBackgroundColor": "#F4F6F8",
        "theme.light.textColor": LIGHT.strong,
        "theme.dark.primaryColor": "#56A8D8",  # the same blue, lightened: 6.9 on the dark background
        "theme.dark.backgroundColor": DARK.surface,
        "theme.dark.secondaryBackgroundColor": "#1F242D",
        "theme.dark.textColor": DARK.strong,
    }
