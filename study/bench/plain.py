"""The plain federated baseline: the same trainer, the same draws and the same server step, without quantizer and masks.

What the masked federation is compared to: every difference between the two is what clipping, rounding and masking do to the
sum. Updates are averaged in float64 with the plan's weights over the same participants, as federated averaging does
(McMahan et al. 2017, arXiv 1602.05629), and each participant is charged the bytes of two float32 vectors, the model that it
receives and the update of what it trained, and nothing else.
Under a plan with noise the updates are noised before they are averaged, so the hospitals' epsilon is that of the masked run.
Patients whom a plan keeps for evaluation are kept here too, and nobody measures them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from coordinator import optimizer
from hospital_node.releases import Release
from hospital_node.validation import parts
from hospital_node.work import Interrupted, Workshop, drifting
from proto import scaffold
from proto.layout import Vector
from proto.parts import sent_layout
from proto.plan import Plan
from study.bench.cell import epsilon_of, release_of
from study.bench.cells import RoundRow
from study.bench.task import Draws, StudyError, Task, Unit, scores_of

VALUE_BYTES = 4  # float32, what federated averaging sends each way


@dataclass(frozen=True, slots=True)
class Averaged:
    """What a plain federation gave."""

    rounds: list[RoundRow]
    charged: Release | None  # what a ledger of the hospital that took most steps would hold; None: no guarantee
    model: Vector = field(repr=False)  # after the last round


def run_plain(
    plan: Plan,
    start: Vector,
    hospitals: Mapping[str, Sequence[Unit]],
    test: Sequence[Unit],
    task: Task,
    draws: Draws,
    on_round: Callable[[RoundRow], None],
    stop: threading.Event,
) -> Averaged:
    """Train `plan.rounds` rounds; `on_round` is told the start (round 0) and each round as it ends.

    Models are measured where the coordinator would ask for it: the start, every `plan.evaluate_every` rounds, the last. Raises
    StudyError where `hospitals` are not the plan's, WorkFailed where a training gives nothing, Interrupted once `stop` is set.
    """
    if plan.privacy.is_shared:
        raise StudyError(f"plan '{plan.study}' shares its noise inside the masks, which method plain has not: use masked")
    federation = Plain(plan, hospitals, test, task, draws, stop)
    rows, model = play(federation, start, on_round)
    return Averaged(rows, federation.charged(), model)


def play(federation: Plain, start: Vector, on_round: Callable[[RoundRow], None]) -> tuple[list[RoundRow], Vector]:
    """All rounds of the federation's plan from `start`: their figures, and the last model."""
    plan = federation.plan
    model, layout = start, federation.task.layout(plan)
    published, memory = scaffold.begun(plan, start), None
    rows = [federation.row(0, model, (), time.perf_counter())]
    on_round(rows[0])
    for number in range(1, plan.rounds + 1):
        began_s = time.perf_counter()
        uris = plan.selected(number)
        mean = federation.mean_update(number, *scaffold.taken_apart(plan, published), uris)
        published, memory = optimizer.next_model(plan, layout, published, mean, memory, number, uris)
        model, _ = scaffold.taken_apart(plan, published)
        rows.append(federation.row(number, model, uris, began_s))
        on_round(rows[-1])
    return rows, model


def weighted_mean(updates: Iterable[tuple[int, Vector]]) -> Vector:
    """Mean of (weight, update) pairs, summed in float64 in the order given and rounded once. At least one pair."""
    total: Any = 0.0
    weights = 0
    for weight, update in updates:
        total = total + weight * update.astype(np.float64)
        weights += weight
    return np.asarray(total / weights, dtype=np.float32)


def unless_stopped(stop: threading.Event) -> None:
    """Raise Interrupted once `stop` is set."""
    if stop.is_set():
        raise Interrupted


@dataclass(eq=False)
class Plain:
    """The hospitals of one run and how often each took part."""

    plan: Plan
    hospitals: Mapping[str, Sequence[Unit]]
    test: Sequence[Unit]
    task: Task
    draws: Draws
    stop: threading.Event
    workshops: dict[str, Workshop] = field(init=False)
    patients: dict[str, Sequence[Any]] = field(init=False)
    rounds_of: Counter[str] = field(default_factory=Counter)
    variates: dict[str, Any] = field(default_factory=dict)  # the hospitals' own, where the plan has them

    def __post_init__(self) -> None:
        admitted = {entry.uri for entry in self.plan.hospitals}
        if admitted != set(self.hospitals):
            strange = ", ".join(sorted(admitted ^ set(self.hospitals)))
            raise StudyError(f"patients were dealt to other hospitals than the plan admits: {strange}")
        self.workshops = {uri: self.task.workshop(units, self.draws) for uri, units in self.hospitals.items()}
        prepared = {uri: one.prepare(self.plan, lambda *_: None) for uri, one in self.workshops.items()}
        self.patients = {uri: parts(self.plan, patients).training for uri, patients in prepared.items()}

    def mean_update(self, number: int, base: Vector, common: Vector | None, uris: Sequence[str]) -> Vector:
        """What one round gives before the server step; `common`: the control variate of all, where the plan has one."""
        self.rounds_of.update(uris)
        return weighted_mean((self.plan.hospital(uri).weight, self.trained(number, base, uri, common)) for uri in uris)

    def row(self, number: int, model: Vector, uris: Sequence[str], began_s: float) -> RoundRow:
        """The round's figures, with scores where the plan wants them."""
        unless_stopped(self.stop)
        measured = number % self.plan.evaluate_every == 0 or number == self.plan.rounds  # as the coordinator asks for it
        scores = scores_of(self.task, self.plan, model, self.test, self.draws) if measured else {}
        sent = sent_layout(self.plan, self.task.layout(self.plan)).length
        return RoundRow(
            round=number,
            survivors=len(uris),
            scores=dict(scores),
            epsilon=epsilon_of(self.plan, self._most_steps(), self._most_rounds()),
            upload_bytes=VALUE_BYTES * sent * len(uris),
            download_bytes=VALUE_BYTES * scaffold.published_length(self.plan, self.task.layout(self.plan)) * len(uris),
            seconds=time.perf_counter() - began_s,
        )

    def charged(self) -> Release | None:
        """What a ledger of the hospital that took most steps would hold; None where the plan gives no guarantee."""
        return release_of(self.plan, self._most_steps(), self._most_rounds())

    def _most_rounds(self) -> int:
        return max(self.rounds_of.values(), default=0)

    def _most_steps(self) -> int:
        """So far, of the hospital that took most."""
        return max((count * self.plan.local_steps(uri) for uri, count in self.rounds_of.items()), default=0)

    def trained(self, number: int, base: Vector, uri: str, common: Vector | None) -> Vector:
        """One hospital's update."""
        drift = None if common is None else common - self.variates.get(uri, np.float32(0))
        trained = self.workshops[uri].train(
            self.plan,
            uri,
            base,
            self.patients[uri],
            threads=1,
            round=number,
            on_step=lambda _: unless_stopped(self.stop),
            **drifting(drift),
        )
        update = cast("Vector", trained.update)  # whole numbers are of shared noise, which `run_plain` refuses
        if drift is not None:
            self.variates[uri] = scaffold.own_after(self.plan, number, drift, update)
        return update
