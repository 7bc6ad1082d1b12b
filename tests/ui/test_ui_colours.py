"""Colours that stand together, as people see them who lack one kind of cone: still apart, on light and on dark paper.

Dichromacy is simulated in linear RGB with the matrices of Machado, Oliveira and Fernandes (IEEE TVCG 15(6), 2009, severity
1.0); distance is CIE 1976 delta E in L*a*b* (D65), of which about 2.3 is just noticeable.
"""

from itertools import combinations

import numpy as np
import pytest

from ui import charts
from ui.palette import BLUE, DARK, GREEN, GREY, LIGHT, PURPLE, VERMILLION, styles

SIGHT = {
    "all cones": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
WHITE = TO_XYZ @ np.ones(3)
APART = 15.0  # six times what is just noticeable; each series has a dash, a texture or a label of its own besides
READABLE = 30.0  # a line against its paper


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a hexadecimal sRGB colour."""
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """L*a*b* of linear RGB."""
    ratio = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: str, other: str, sight: str) -> float:
    """Delta E of two colours as seen."""
    seen = [lab(SIGHT[sight] @ linear(colour)) for colour in (one, other)]
    return float(np.linalg.norm(seen[0] - seen[1]))


TOGETHER = {
    "series on light": [style.colour for style in styles("abcde", LIGHT).values()],
    "series on dark": [style.colour for style in styles("abcde", DARK).values()],
    "one of many": [BLUE, GREY],
    "outlines of a scan": [GREEN, VERMILLION],
    "bytes by phase": [*charts.BYTE_COLOURS.values()],
    "phases of a round": [*{*charts.PHASE_COLOURS.values()}],
}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("use", TOGETHER)
def test_colours_that_stand_together_can_be_told_apart(use, sight):
    found = {pair: distance(*pair, sight) for pair in combinations(TOGETHER[use], 2)}
    assert min(found.values()) >= APART, min(found, key=found.__getitem__)


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("paper", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_is_seen_on_its_paper(paper, sight):
    for colour in (BLUE, VERMILLION, GREEN, PURPLE, GREY, paper.strong, paper.soft):
        assert distance(colour, paper.surface, sight) >= READABLE, colour


def test_the_simulation_is_the_published_one():
    """Red and green of equal lightness fall together for a deuteranope; grey stays grey for everybody."""
    assert distance("#D70000", "#00A000", "all cones") > 100
    assert distance("#B08000", "#8F9A00", "deuteranopia") < APART < distance("#B08000", "#8F9A00", "all cones")
    for matrix in SIGHT.values():
        assert np.allclose(matrix.sum(axis=1), 1.0, atol=2e-6)
    assert np.allclose(lab(np.ones(3)), [100, 0, 0], atol=0.01)
