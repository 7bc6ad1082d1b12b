"""Run one cell: patients, their deal to hospitals, the plan, then the method; the same steps for every task and every method.

Methods of one study see the same patients, hospitals, test cases, start and (on public data) the same draws, so that what
differs between their results is the method.
"""

from __future__ import annotations

import fcntl
import importlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from hospital_node.accounting import Mechanism
from hospital_node.cap import Cap, plain, stated
from hospital_node.ledger_rules import evaluations_of, shares_of_plan
from hospital_node.releases import Release, counted
from hospital_node.work import Interrupted
from proto.layout import Vector, model_digest
from proto.modelfile import Model
from proto.plan import Hospital, Plan, PlanError
from study import presets
from study.bench.calibrate import noised
from study.bench.cells import Cell, CellResult, DataKind, Method, Readings, RoundRow
from study.bench.draws import draws_for
from study.bench.readings import History, readings_of
from study.bench.task import Draws, Patients, StudyError, Task, Unit

TASKS = {"segmentation": "study.bench.segmentation:TASK", "digits": "study.examples.digits:TASK"}
TEMPLATE_ONLY = ("anatomy", "start")  # keys of a plan template that are no fields of a plan
EVALUATOR = "public-test"
IN_MEMORY_TIMING = {  # hospitals train one after another here: no deadline may depend on how many there are
    "training_deadline_s": 7 * 86_400.0,
    "phase_deadline_s": 3_600.0,
    "lost_after_s": 7 * 86_400.0,
    "ready_after_s": 0.0,
}
CAP_MARGIN = 1.001  # against rounding: the cap is what the plan costs

OnRound = Callable[[RoundRow], None]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a method gave."""

    rounds: list[RoundRow]
    noise_multiplier: float
    readings: Readings


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that the methods have in common."""

    cell: Cell
    task: Task
    plan: Plan
    start: Vector
    hospitals: Mapping[str, Sequence[Unit]]  # by URI
    test: Sequence[Unit]
    draws: Draws

    @property
    def sizes(self) -> dict[str, int]:
        """Patients by hospital name."""
        return {uri.rsplit("/", 1)[-1]: len(units) for uri, units in self.hospitals.items()}


def run_cell(cell: Cell, workspace: Path, on_round: OnRound, stop: threading.Event) -> CellResult:
    """Run one cell below `workspace` (its cache is shared by all cells) and return what it gave.

    `on_round` is told each round as it ends. On private patients the caller stores the result and then settles the charge
    (study/bench/charge.py). Raises StudyError in one sentence, Interrupted once `stop` is set.
    """
    began_s, cpu_began_s = time.monotonic(), time.process_time()
    setting = prepare_cell(cell, workspace / "cache", stop)
    ran = _run(setting, workspace / "cells" / cell.id, on_round, stop)
    return CellResult(
        cell=cell.id,
        rounds=ran.rounds,
        wall_s=time.monotonic() - began_s,
        cpu_s=time.process_time() - cpu_began_s,
        vector_length=len(setting.start),
        plan_digest=setting.plan.digest().hex(),
        noise_multiplier=ran.noise_multiplier,
        epsilon=_worst(ran.rounds),
        delta=setting.plan.privacy.delta,
        readings=ran.readings,
        hospitals=setting.sizes,
    )


def prepare_cell(cell: Cell, cache: Path, stop: threading.Event) -> Setting:
    """Patients, deal, plan and start of a cell. Raises StudyError, Interrupted."""
    from study.bench.partition import deal

    task = task_of(cell.task)

    def count(_done: int, _total: int) -> None:
        if stop.is_set():
            raise Interrupted

    with one_at_a_time(cache):
        patients: Patients = task.patients(cell, cache, count)
    dealt = deal(patients.training, cell.partition, cell.seed, task.shifted, test=patients.test)
    sizes = {name: len(units) for name, units in dealt.items()}
    plan = complete_plan(cell, sizes)
    with one_at_a_time(cache):
        start = task.start(cell, plan, cache)
    plan = noised(cell, plan.model_copy(update={"start_digest": model_digest(start).hex()}))
    hospitals = {uri_of(cell.study, name): units for name, units in dealt.items()}
    return Setting(cell, task, plan, start, hospitals, patients.test, draws_for(cell.data.kind, cell.seed))


def complete_plan(cell: Cell, sizes: Mapping[str, int]) -> Plan:
    """The plan of a cell whose hospitals hold `sizes` patients by name, before its start and its noise. Raises StudyError."""
    fields = {key: value for key, value in cell.plan.items() if key not in TEMPLATE_ONLY}
    fields = {**fields, "timing": IN_MEMORY_TIMING}
    by_size = cell.partition.weights == "patients"
    own_steps = _own_steps(cell, len(sizes))
    admitted = [
        Hospital(
            uri=uri_of(cell.study, name), declared_patients=count, weight=count if by_size else 1, local_steps=own_steps[at]
        )
        for at, (name, count) in enumerate(sizes.items())
    ]
    evaluator = f"secagg://{cell.study}/evaluator/{EVALUATOR}"
    try:
        return presets.complete(
            fields, study=cell.study, hospitals=admitted, evaluators=[evaluator], start_digest=None, rounds=None
        )
    except PlanError as error:
        raise StudyError(f"cell {cell.label}: {error}") from error


def uri_of(study: str, name: str) -> str:
    """A simulated hospital's name in certificates and plan."""
    return f"secagg://{study}/hospital/{name}"


def task_of(name: str) -> Task:
    """A task by its short name or as `package.module:NAME`. Raises StudyError."""
    module, _, attribute = TASKS.get(name, name).partition(":")
    try:
        return cast("Task", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError, ValueError) as error:
        raise StudyError(f"task '{name}' cannot be loaded ({error}): use {', '.join(TASKS)}, or package.module:NAME") from error


def planned_epsilon(plan: Plan, rounds: int) -> float | None:
    """What `rounds` rounds cost one patient of the hospital that takes most steps; None where the plan gives no guarantee."""
    return epsilon_of(plan, rounds * plan.most_local_steps, rounds)


def epsilon_of(plan: Plan, steps: int, rounds: int | None = None) -> float | None:
    """What so many local steps cost one patient, as a hospital's ledger reads it; None where the plan gives no guarantee.

    Beside them as many of the plan's evaluations as `rounds` rounds can have; all where the rounds are not said.
    """
    release = release_of(plan, steps, rounds)
    if release is None:
        return None
    return stated(counted([release]), plan.privacy.delta) if steps else 0.0


def release_of(plan: Plan, steps: int, rounds: int | None = None) -> Release | None:
    """So many local steps, and the evaluations of `rounds` rounds, as a ledger holds them; None without a guarantee."""
    if plan.privacy.no_guarantee:
        return None
    mechanism = Mechanism(plan.privacy.noise_multiplier, 1 / plan.privacy.inverse_sampling_rate, steps, shares_of_plan(plan))
    return Release(mechanism, plan.rounds if rounds is None else rounds, evaluations=evaluations_of(plan))


def _own_steps(cell: Cell, hospitals: int) -> Sequence[int | None]:
    """Local steps of each hospital in the order of the deal. Raises StudyError, also for paces of other hospitals."""
    own = cell.partition.local_steps
    for name, listed in (("local_steps", own), ("paces", cell.partition.paces)):
        if listed is not None and len(listed) != hospitals:
            raise StudyError(
                f"cell {cell.label}: partition.{name} lists {len(listed)} numbers and {hospitals} hospitals are dealt "
                "patients: list one for each"
            )
    return own or [None] * hospitals


def _run(setting: Setting, folder: Path, on_round: OnRound, stop: threading.Event) -> Ran:
    if stop.is_set():  # the last moment at which nothing was paid
        raise Interrupted
    _pay(setting)
    if setting.plan.buffer is not None and setting.cell.method in {Method.PLAIN, Method.MASKED}:
        return _buffered(setting, on_round, stop)
    match setting.cell.method:
        case Method.POOLED | Method.LOCAL:
            return _charged(setting, _ordinary(setting, on_round, stop), ())
        case Method.PLAIN:
            return _plain(setting, on_round, stop)
        case Method.LAPLACE | Method.HOSPITAL_LEVEL:
            return _hospital_units(setting, on_round, stop)
        case Method.MASKED:
            return _masked(setting, folder, on_round, stop)


def _pay(setting: Setting) -> None:
    """On private patients: charge the hospital's own ledger for all rounds before anything is trained."""
    if setting.cell.data.kind is DataKind.PRIVATE:
        from study.bench.charge import charge

        charge(setting.cell, setting.plan, datetime.now(UTC), os.urandom)


def _ordinary(setting: Setting, on_round: OnRound, stop: threading.Event) -> list[RoundRow]:
    from study.bench import ordinary

    run = ordinary.run_pooled if setting.cell.method is Method.POOLED else ordinary.run_local
    rows: list[RoundRow] = run(setting, on_round, stop)
    return rows


def _plain(setting: Setting, on_round: OnRound, stop: threading.Event) -> Ran:
    from study.bench.plain import run_plain

    given: Any = run_plain(
        setting.plan, setting.start, setting.hospitals, setting.test, setting.task, setting.draws, on_round, stop
    )
    return _charged(setting, given.rounds, _histories(given.charged))


def _buffered(setting: Setting, on_round: OnRound, stop: threading.Event) -> Ran:
    from study.bench.buffered import run_buffered

    paces = dict(zip(setting.hospitals, setting.cell.partition.paces or [1.0] * len(setting.hospitals), strict=True))
    rows, charged = run_buffered(setting, paces, on_round, stop)
    return _charged(setting, rows, _histories(charged))


def _masked(setting: Setting, folder: Path, on_round: OnRound, stop: threading.Event) -> Ran:
    from study.bench.federation import Seats, run_federation

    plan, task, draws = setting.plan, setting.task, setting.draws
    seats = Seats(
        {uri: task.workshop(units, draws) for uri, units in setting.hospitals.items()}, task.workshop(setting.test, draws)
    )
    cap = cap_of(plan)
    model = Model(task.layout(plan), setting.start, {"made-by": "secagg-study"})
    public = setting.cell.data.kind is not DataKind.PRIVATE
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        done: Any = run_federation(folder, plan, model, seats, cap=cap, data_is_public=public, on_round=on_round, stop=stop)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _charged(setting, done.rounds, done.charged)


def _hospital_units(setting: Setting, on_round: OnRound, stop: threading.Event) -> Ran:
    from study.bench.hospital_units import run_hospital_units

    rounds, noise, readings = run_hospital_units(setting, on_round, stop)
    return Ran(rounds, noise.multiplier, readings)


def _charged(setting: Setting, rounds: list[RoundRow], histories: Iterable[History]) -> Ran:
    """`histories`: what each hospital's ledger was charged; none without a guarantee."""
    privacy = setting.plan.privacy
    return Ran(rounds, privacy.noise_multiplier, readings_of(histories, privacy.delta))


def _histories(charged: Release | None) -> Sequence[History]:
    return () if charged is None or not charged.training.steps else ([charged],)


def _worst(rounds: Sequence[RoundRow]) -> float | None:
    spent = [row.epsilon for row in rounds if row.epsilon is not None]
    return max(spent) if spent else None


def cap_of(plan: Plan) -> Cap | None:
    """What each hospital's ledger grants: what the whole plan costs. Raises StudyError where that has no bound."""
    whole = epsilon_of(plan, plan.most_steps)
    if whole is None:
        return None
    if math.isinf(whole):
        raise StudyError(
            f"study '{plan.study}': {plan.most_steps} steps with noise_multiplier {plan.privacy.noise_multiplier:g} have no "
            f"finite epsilon at delta {plain(plan.privacy.delta)}, and no ledger grants that: ask for more noise"
        )
    return Cap(epsilon=CAP_MARGIN * whole, delta=plan.privacy.delta)


@contextmanager
def one_at_a_time(cache: Path) -> Iterator[None]:
    """Cells that run side by side make shared files one after another; the second finds them made."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
