"""What the head of a page is made of: a state before numbers, and figures that explain themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "watch", "stop", "plain"]  # judges a state against what was agreed, never an epsilon


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: a label, a value, a line below it, and an explanation of one or two sentences."""

    label: str
    value: str
    note: str
    help: str


@dataclass(frozen=True, slots=True)
class Headline:
    """State before numbers."""

    tone: Tone
    title: str
    detail: str
