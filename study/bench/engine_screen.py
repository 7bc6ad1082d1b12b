"""What a running study shows: moving bars on a terminal, one line an event otherwise. It decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from study.bench.cells import Cell, CellResult, RoundRow
from study.bench.estimate import duration


@dataclass(slots=True)
class Screen:
    """Context manager around the work of a study. `core_s`: expected core-seconds of each cell still to run."""

    console: Console
    cells: Mapping[str, Cell]
    done_before: int
    core_s: Mapping[str, float]
    workers: int
    left: set[str] = field(init=False)
    spent: float = 0.0  # measured over expected core-seconds of the cells that ended here: corrects the rest
    expected: float = 0.0
    progress: Progress = field(init=False)
    whole: TaskID = field(init=False)
    bars: dict[str, TaskID] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = set(self.core_s)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[said]}"))
        self.progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.whole = self.progress.add_task(
            "cells", total=len(self.cells), completed=self.done_before, said=self._whole_said(self.done_before)
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def started(self, cell: Cell) -> None:
        """A cell runs now."""
        rounds = int(cell.plan["rounds"])
        self.bars[cell.id] = self.progress.add_task(cell.label, total=rounds, said="preparing")
        self._line(f"{cell.id} started: {cell.label}")

    def round_done(self, cell: Cell, row: RoundRow) -> None:
        """A running cell ended a round."""
        said = f"round {row.round} of {cell.plan['rounds']}{_score_words(row)}"
        self.progress.update(self.bars[cell.id], completed=row.round, said=said)
        self._line(f"{cell.id} {said}: {cell.label}")

    def finished(self, cell: Cell, result: CellResult) -> None:
        """A cell is done."""
        self.spent += result.cpu_s
        self.expected += self.core_s[cell.id]
        self._ended(cell)
        self.console.print(
            f"{cell.id} done: {cell.label}: score {result.score:.4f}, {duration(result.wall_s)}", highlight=False
        )

    def failed(self, cell: Cell, reason: str) -> None:
        """A cell gave nothing."""
        self._ended(cell)
        self.console.print(f"{cell.id} failed: {cell.label}: {reason}", highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something for people to know; the study goes on."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def left_s(self) -> float:
        """Seconds on the wall until the end, from the estimate and how it compared with the cells that ended."""
        correction = self.spent / self.expected if self.expected else 1.0
        return correction * sum(self.core_s[one] for one in self.left) / max(self.workers, 1)

    def _ended(self, cell: Cell) -> None:
        self.left.discard(cell.id)
        self.progress.remove_task(self.bars.pop(cell.id))
        ended = len(self.cells) - len(self.left)
        self.progress.update(self.whole, completed=ended, said=self._whole_said(ended))

    def _whole_said(self, ended: int) -> str:
        return f"{ended} of {len(self.cells)}, about {duration(self.left_s())} left"

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def opening(study: str, cells: Sequence[Cell], done: int) -> str:
    """How many cells there are and how many of them are done."""
    kinds: dict[str, int] = {}
    for cell in cells:
        kinds[cell.method.value] = kinds.get(cell.method.value, 0) + 1
    by_method = ", ".join(f"{count} {name}" for name, count in kinds.items())
    return f"{study}: {len(cells)} cells ({by_method}), {done} done already"


def _score_words(row: RoundRow) -> str:
    means = [sum(values) / len(values) for values in row.scores.values() if values]
    return f", score {sum(means) / len(means):.4f}" if means else ""
