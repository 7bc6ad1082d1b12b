"""What a study will cost, before it runs: core-seconds of each cell, and where the figure comes from.

A cell whose like has finished (same work, another seed or another amount of noise) costs what that one cost. Anything else is
counted: patients drawn in a local step, on average, times what one patient costs, measured now on made-up data.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from hospital_node.work import Count
from study.bench.cell import one_at_a_time
from study.bench.cells import Cell, Method
from study.bench.task import Patients, Task, UnitCost

PROCESS_S = 5.0  # importing torch, opacus and monai in a process of its own
ORDINARY_MEASUREMENTS = 2  # baselines measure the start and the end
WORKLESS = {"seed", "epsilon", "study", "settings", "start"}  # of a cell: none of them changes how much there is to do
WORKLESS_PRIVACY = {"noise_multiplier", "no_guarantee", "delta", "clip_norm"}
COSTLY = ("patches_per_patient", "augment", "loss", "precision", "micro_batch", "checkpointing")  # training of a patient
S_PER_HOUR, S_PER_MINUTE = 3600.0, 60.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Core-seconds by cell id."""

    core_s: Mapping[str, float] = field(repr=False)
    from_finished: int = 0  # cells whose figure is the CPU time of finished ones
    from_probes: int = 0

    def sentence(self, workers: int) -> str:
        """Core-hours, hours on the wall, and the source."""
        whole_s = sum(self.core_s.values())
        longest_s = max(self.core_s.values(), default=0.0)
        wall_s = max(whole_s / max(workers, 1), longest_s)
        return (
            f"Estimate: {whole_s / S_PER_HOUR:.2g} core-hours, about {duration(wall_s)} with {workers} "
            f"worker{'s' if workers != 1 else ''} ({self.source})"
        )

    @property
    def source(self) -> str:
        """In words."""
        kinds = [
            (self.from_finished, "from the CPU time of finished cells like them"),
            (self.from_probes, "from unit costs measured just now on made-up data"),
        ]
        return (
            "; ".join(f"{count} cell{'s' if count != 1 else ''} {words}" for count, words in kinds if count) or "nothing to run"
        )


@dataclass(frozen=True, slots=True)
class Amount:
    """What there is to do in one cell."""

    drawn: float  # patients over all local steps
    measured: int  # test cases over all measurements

    def seconds(self, cost: UnitCost) -> float:
        """Of one core."""
        return PROCESS_S + self.drawn * cost.patient_s + self.measured * cost.case_s


def work_of(cell: Cell) -> str:
    """Equal for cells that have the same amount to do."""
    fields = cell.model_dump(mode="json", exclude=WORKLESS)
    plan = fields["plan"]
    plan["privacy"] = {key: value for key, value in plan["privacy"].items() if key not in WORKLESS_PRIVACY}
    return json.dumps(fields, sort_keys=True)


def from_finished(cells: Sequence[Cell], finished: Iterable[tuple[Cell, float]]) -> dict[str, float]:
    """Core-seconds of those `cells` whose like has finished; `finished`: a cell and its CPU seconds."""
    spent: dict[str, list[float]] = defaultdict(list)
    for cell, cpu_s in finished:
        spent[work_of(cell)].append(cpu_s)
    return {cell.id: fmean(spent[work_of(cell)]) for cell in cells if work_of(cell) in spent}


def estimate(
    cells: Sequence[Cell],
    finished: Iterable[tuple[Cell, float]],
    task: Task,
    cache: Path,
    count: Count = lambda _done, _total: None,
) -> Estimate:
    """For `cells` still to run. Reads (and prepares, once) the patients of cells that must be probed. Raises StudyError.

    `count` hears of every patient that is made ready, which may take minutes the first time.
    """
    known = from_finished(cells, finished)
    rest = [cell for cell in cells if cell.id not in known]
    patients: dict[str, Patients] = {}
    costs: dict[str, UnitCost] = {}
    for cell in rest:
        of_patients, of_costs = _same_patients(cell), _same_costs(cell)
        if of_patients not in patients:
            with one_at_a_time(cache):
                patients[of_patients] = task.patients(cell, cache, count)
        if of_costs not in costs:
            costs[of_costs] = task.probe(cell)
        known[cell.id] = amount(cell, patients[of_patients]).seconds(costs[of_costs])
    return Estimate(known, from_finished=len(cells) - len(rest), from_probes=len(rest))


def amount(cell: Cell, patients: Patients) -> Amount:
    """Patients drawn and cases measured in one cell, on average."""
    cases = sum(len(unit.patient.cases) for unit in patients.test)
    sites = len({unit.site for unit in patients.training})
    hospitals = cell.partition.hospitals or sites
    if cell.method is Method.POOLED:
        return Amount(cell.ordinary.steps * cell.ordinary.batch, ORDINARY_MEASUREMENTS * cases)
    if cell.method is Method.LOCAL:
        return Amount(hospitals * cell.ordinary.steps * cell.ordinary.batch, (1 + hospitals) * cases)
    plan = cell.plan
    share = (plan["participants"] or hospitals) / hospitals if hospitals else 1.0
    part = plan.get("evaluation")
    trained, evaluations = (1.0, 0) if part is None else (1 - part["share"], plan["rounds"] // part["every"])
    steps = fmean(cell.partition.local_steps or [plan["training"]["local_steps"]])
    drawn = trained * plan["rounds"] * steps * len(patients.training) / plan["privacy"]["inverse_sampling_rate"]
    own = (1 - trained) * sum(len(unit.patient.cases) for unit in patients.training) if cell.method is Method.MASKED else 0.0
    measured = (1 + math.ceil(plan["rounds"] / plan["evaluate_every"])) * cases
    return Amount(share * drawn, measured + round(share * evaluations * own))


def duration(seconds: float) -> str:
    """About how long, for people."""
    if seconds < S_PER_MINUTE:
        return f"{seconds:.0f} s"
    if seconds < S_PER_HOUR:
        return f"{seconds / S_PER_MINUTE:.0f} min"
    return f"{seconds / S_PER_HOUR:.1f} h"


def _same_patients(cell: Cell) -> str:
    parts = (cell.task, cell.data.model_dump(mode="json"), cell.plan["preparation"], cell.plan["network"]["labels"])
    return json.dumps(parts, sort_keys=True)


def _same_costs(cell: Cell) -> str:
    training = {key: cell.plan["training"].get(key) for key in COSTLY}
    return json.dumps((cell.task, cell.plan["network"], cell.plan["preparation"], training), sort_keys=True)
