"""What a running study shows: moving bars on a terminal, one line an event otherwise. It decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from study.bench.cells import Cell, CellResult, RoundRow
from study.bench.estimate import duration
from study.bench.grid import BASELINES
from study.bench.naming import labels_of

SILENT_S = 2.0
SAID_LETTERS = 29  # "round 100 of 100, score 0.1234"


class Preparing:
    """Says once that patients are being made ready, where that takes longer than a reader waits without a word."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._speaks_at_s = time.monotonic() + SILENT_S
        self._said = False

    def __call__(self, _done: int, _total: int) -> None:
        """One more patient is ready."""
        if not self._said and time.monotonic() > self._speaks_at_s:
            self._said = True
            self._say("Reading the patients for the estimate, and preparing those that no command has prepared before ...")


@dataclass(slots=True)
class Screen:
    """Context manager around the work of a study. `core_s`: expected core-seconds of each cell still to run."""

    console: Console
    cells: Mapping[str, Cell]
    done_before: int
    core_s: Mapping[str, float]
    workers: int
    labels: Mapping[str, str] = field(init=False)  # cell id -> a name that fits beside a bar
    left: set[str] = field(init=False)
    spent: float = 0.0  # measured over expected core-seconds of the cells that ended here: corrects the rest
    expected: float = 0.0
    progress: Progress = field(init=False)
    whole: TaskID = field(init=False)
    bars: dict[str, TaskID] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.labels = labels_of(list(self.cells.values()))
        self.left = set(self.core_s)
        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[said]}", markup=False, table_column=Column(min_width=SAID_LETTERS, no_wrap=True)),
        )
        quiet = not self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, transient=True, disable=quiet, expand=True)
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
        self.bars[cell.id] = self.progress.add_task(self.labels[cell.id], total=rounds, said="preparing")
        self._line(f"{cell.id} started: {self.labels[cell.id]}")

    def round_done(self, cell: Cell, row: RoundRow) -> None:
        """A running cell ended a round."""
        said = f"{_stage(cell, row)}{_score_words(row)}"
        self.progress.update(self.bars[cell.id], completed=row.round, said=said)
        self._line(f"{cell.id} {said}: {self.labels[cell.id]}")

    def finished(self, cell: Cell, result: CellResult) -> None:
        """A cell is done."""
        self.spent += result.cpu_s
        self.expected += self.core_s[cell.id]
        self._ended(cell)
        self.say(f"{cell.id} done: {self.labels[cell.id]}: score {result.score:.4f}, {duration(result.wall_s)}")

    def failed(self, cell: Cell, reason: str) -> None:
        """A cell gave nothing."""
        self._ended(cell)
        self.say(f"{cell.id} failed: {self.labels[cell.id]}: {reason}")

    def say(self, text: str) -> None:
        """One line for people; the study goes on."""
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
        """What bars show on a terminal."""
        if not self.console.is_terminal:
            self.say(text)


def opening(study: str, cells: Sequence[Cell], done: int) -> str:
    """How many cells there are and how many of them are done."""
    kinds: dict[str, int] = {}
    for cell in cells:
        kinds[cell.method.value] = kinds.get(cell.method.value, 0) + 1
    by_method = ", ".join(f"{count} {name}" for name, count in kinds.items())
    return f"{study}: {len(cells)} cells ({by_method}), {done} done already"


def _stage(cell: Cell, row: RoundRow) -> str:
    """Where a cell stands; baselines have no rounds, only a start and an end."""
    if cell.method not in BASELINES:
        return f"round {row.round} of {cell.plan['rounds']}"
    return f"after {cell.ordinary.steps} steps" if row.round else "start"


def _score_words(row: RoundRow) -> str:
    means = [sum(values) / len(values) for values in row.scores.values() if values]
    return f", score {sum(means) / len(means):.4f}" if means else ""
