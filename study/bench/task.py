"""What a study needs to know of a learning problem: patients, a network, one round of training, a score.

The federation around it (node, ledger, quantizer, masks, coordinator) is the same for every task; study/bench/segmentation.py
is the product's own task, study/examples/ holds another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hospital_node.work import Count, Workshop
from proto.layout import Layout, Vector
from proto.plan import Plan
from study.bench.cells import Cell, Ordinary

Rand = Callable[[int], bytes]
Draws = Callable[[str, int], Rand]  # (hospital's URI, round) -> source of all secret randomness of that training


class StudyError(ValueError):
    """A study that cannot be run as written; the text names the key or the cell and says what to do."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One patient of a study before anybody got it: the privacy unit, never split."""

    name: str = field(repr=False)  # stable on every machine; stays in the process
    patient: Any = field(repr=False)  # what the task trains on: `key` (equal to name) and `cases`
    site: str | None = None
    label_counts: tuple[float, ...] = ()  # labelled voxels (or one-hot class) by label, for label skew
    kind: str = ""  # which sort of label, image type or scanner, for label-kind and scanner skew


@dataclass(frozen=True, slots=True)
class Patients:
    """All patients of a cell: those to deal to hospitals, and the public test patients."""

    training: tuple[Unit, ...]
    test: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class UnitCost:
    """Seconds of one core, measured before a study begins, for its estimate."""

    patient_s: float  # one privacy unit in one local step
    case_s: float  # one test case measured
    length: int  # values of the model


class Task(Protocol):
    """One learning problem."""

    name: str
    metric: str  # of the scores, for tables and axes: "Dice", "accuracy"

    def patients(self, cell: Cell, cache: Path, count: Count) -> Patients:
        """Read and prepare everything once; later calls read the cache. Raises StudyError."""
        ...

    def shifted(self, units: Sequence[Unit], by: str, strength: float, seed: int) -> tuple[Unit, ...]:
        """The same patients as another scanner would show them: noise, resolution or intensity. Raises StudyError."""
        ...

    def workshop(self, units: Sequence[Unit], draws: Draws) -> Workshop:
        """What a node (or an evaluator) that holds `units` works with."""
        ...

    def layout(self, plan: Plan) -> Layout:
        """The vector layout of the plan's network."""
        ...

    def start(self, cell: Cell, plan: Plan, cache: Path) -> Vector:
        """The start of the cell: random by the cell's seed, public, or from a file. Raises StudyError."""
        ...

    def ordinary(self, plan: Plan, base: Vector, units: Sequence[Unit], recipe: Ordinary, seed: int, count: Count) -> Vector:
        """Ordinary training without privacy: the baselines `pooled` and `local`."""
        ...

    def probe(self, cell: Cell) -> UnitCost:
        """Measure what training and measuring cost under the cell's plan, on made-up data."""
        ...


def scores_of(task: Task, plan: Plan, model: Vector, units: Sequence[Unit], draws: Draws) -> Mapping[str, list[float]]:
    """Score of every label for each case that holds it, by the code that an evaluator runs."""
    score = task.workshop(units, draws).scorer(plan, model, 1)
    scored = [score(case) for unit in units for case in unit.patient.cases]
    found: dict[str, list[float]] = {}
    for label in plan.network.labels:
        values = [one.dice[label] for one in scored]
        found[label] = [value for value in values if value is not None]
    return found
