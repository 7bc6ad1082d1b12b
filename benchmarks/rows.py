"""One row for each target: what was measured, what was asked for, and whether it holds.

Rule: a benchmark ends with status 1 if any row falls short. What could not be measured is a row that says so.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What became of a target."""

    HOLDS = "holds"
    FALLS_SHORT = "falls short"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Row:
    """A figure with its target. `value` is None where it could not be measured; the figure then says why."""

    figure: str
    value: float | None
    unit: str
    target: float
    at_least: bool = False  # otherwise the value is at most the target

    @property
    def verdict(self) -> Verdict:
        """Figures that equal their target hold."""
        if self.value is None:
            return Verdict.NOT_MEASURED
        compare = operator.ge if self.at_least else operator.le
        return Verdict.HOLDS if compare(self.value, self.target) else Verdict.FALLS_SHORT

    def cells(self) -> tuple[str, str, str, str]:
        """Figure, value, target, verdict."""
        value = "-" if self.value is None else f"{_number(self.value)} {self.unit}".strip()
        sign = ">=" if self.at_least else "<="
        return self.figure, value, f"{sign} {_number(self.target)} {self.unit}".strip(), self.verdict.value


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, aligned."""
    cells = [("figure", "measured", "target", "verdict"), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def status(rows: Sequence[Row]) -> int:
    """Exit status: 1 if any row falls short."""
    return int(any(row.verdict is Verdict.FALLS_SHORT for row in rows))


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
