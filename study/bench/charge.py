"""Tuning is training: on private patients every cell is charged to the hospital's own ledger before it trains.

Rules: approved, charged, trained, in this order. One cell is one release of the ledger: its whole training, all rounds
together, is one entry, so that either everything fits under the cap and is charged or nothing is. What was charged stays spent;
a cell that was charged and left no result never runs again under the same seed. That there is a result is recorded once it is
stored (`settle`, by the engine), never before: a crash in between is made good at the next start, and a ledger never says that
a result exists which nobody has. Public and synthetic patients are charged to nobody, and the study says so.

Why one charge covers all simulated hospitals (parallel composition): they are disjoint parts of one real hospital, and a
patient is with exactly one of them in all rounds of a cell. In each step only that part's noised sum depends on the patient;
everything else is computed from noised values. All parts run the same mechanism (noise multiplier, rate), so each patient
pays the cost of one part and never more than that of the part that takes most steps in its rounds (`Plan.most_steps`: who is
asked, and for how many steps, is public and follows from the plan alone). The deal is taken as given: what it says about
patients (counts, label shares) is covered by no epsilon, and neither are the scores of test patients, who have to be public.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

import tomli_w
from pydantic import ValidationError

from hospital_node import ledger_rules
from hospital_node.durable import write_whole
from hospital_node.ledger import Charge, Ledger, LedgerError, LedgerMissing
from hospital_node.state import NodeFile, StateFolder
from proto.plan import Evaluation, Hospital, Plan, PlanError, short_name
from study import presets
from study.bench.cells import HOSPITAL_UNITS, Cell, Data, DataKind, Method
from study.bench.task import Rand, StudyError

ONE_RELEASE: Final = 1  # number of the only round of a plan that is approved for a cell
CELLS_AT_ONCE: Final = ledger_rules.MAX_OPEN_RELEASES  # more, charged and unfinished, make the ledger pause itself
APPROVALS: Final = "studies"  # in the node's state folder: plans that wait for the officer
NOT_OF_THE_RELEASE: Final = {"study", "rounds", "participants", "hospitals", "evaluators", "start_digest"}  # fields of the plan
UPDATE_BYTES, SESSION_BYTES = 32, 16
NAME_CHARACTERS = 28  # of the study's name in the name of a cell's plan, which has 63 at most


def statement(data: Data) -> str:
    """One sentence on whose budget the study spends, for the console and the report."""
    if data.kind is DataKind.PRIVATE:
        return (
            "The patients of this study are private: every cell, settings that were only tried included, is charged for all "
            "rounds that one patient can be in to the hospital's own ledger in "
            f"{data.ledger or '(data.ledger is missing)'} before it trains, and a cell without noise is refused."
        )
    return (
        f"The patients of this study are {data.kind.value}: no ledger is charged, so settings could be tried freely, and an "
        "epsilon below says what the same training would cost a patient of a hospital, the trying not included."
    )


def refuse_hopeless(cells: Iterable[Cell]) -> None:
    """Before anything is read or charged: raise StudyError for a cell on private patients that can never run."""
    for cell in cells:
        if cell.data.kind is DataKind.PRIVATE:
            _state_of(cell)
            _refuse_without_noise(cell, silent=cell.epsilon is not None and math.isinf(cell.epsilon))


def charge(cell: Cell, plan: Plan, at: datetime, rand: Rand) -> float:
    """Charge all rounds that a patient can be in, of the cell whose whole plan is `plan`; return the ledger's epsilon after it.

    On public and synthetic data nothing is charged and 0.0 comes back. Raises StudyError for a cell without noise, where nobody
    approved this plan (the plan to approve is written and named), where it does not fit under the cap, where people hold the
    node, where the cell was charged before, and where the disk fails; only then may the charge have been kept.
    """
    if cell.data.kind is not DataKind.PRIVATE:
        return 0.0
    _refuse_without_noise(cell, silent=plan.privacy.no_guarantee)
    state = _state_of(cell)
    asked = plan_to_approve(cell, plan, _hospital_of(cell, state))
    try:
        ledger = Ledger.open(state.ledger)
        _refuse_if_charged(cell, ledger)
        if ledger.approval(asked) is None:
            raise StudyError(_ask_for_approval(cell, plan, asked, state.path / APPROVALS))
        authorization = ledger.authorize(asked, ONE_RELEASE)
        ledger.commit(authorization, rand(UPDATE_BYTES), rand(SESSION_BYTES), at)
        return ledger.budget(asked).spent
    except LedgerMissing as error:
        raise StudyError(_ask_for_approval(cell, plan, asked, state.path / APPROVALS)) from error
    except LedgerError as error:
        raise StudyError(f"cell {cell.label} does not train: {error}") from error


def settle(cell: Cell, at: datetime) -> None:
    """Record in the ledger that a charged cell has its result, which is stored by now; again, and nothing changes.

    Without it the ledger counts the charge as a release that came to nothing, and pauses itself after CELLS_AT_ONCE of them.
    Nothing to do on public and synthetic data. Raises StudyError.
    """
    if cell.data.kind is not DataKind.PRIVATE:
        return
    state = _state_of(cell)
    try:
        ledger = Ledger.open(state.ledger)
        charges = _charges_of(cell, ledger)
        if not charges:
            raise StudyError(
                f"cell {cell.label} has a result, and the ledger in {state.path} was never charged for it: put back the "
                "ledger that paid, or give the study another folder with --out"
            )
        ledger.record_result_of(charges[-1][1], at)
    except LedgerError as error:
        raise StudyError(f"the result of cell {cell.label} cannot be recorded in the ledger: {error}") from error


def plan_to_approve(cell: Cell, plan: Plan, hospital: str) -> Plan:
    """The cell's plan as the hospital's officer approves it: one release of all its steps, by this hospital.

    So many steps as one part takes at most in all its rounds cost in one round what they cost one after another, and so do all
    evaluations as one with less noise (`_all_at_once`). The study's name holds the cell's id and the digest of `plan`: approval
    and charge are for exactly this plan of exactly this cell. The one round is everybody's, so `participants` is gone. Raises
    StudyError.
    """
    study = f"{plan.study[:NAME_CHARACTERS].rstrip('-')}-{cell.id}-{plan.digest().hex()[:16]}"
    fields = plan.model_dump(mode="json", exclude=NOT_OF_THE_RELEASE)
    fields["training"] = {**fields["training"], "local_steps": plan.most_steps, "warmup_rounds": 0}  # one round has none
    fields["evaluation"] = _all_at_once(plan.evaluation, plan.rounds)
    parts = {short_name(part.uri): part.declared_patients for part in plan.hospitals}
    declared = {**parts, hospital: sum(parts.values())}
    admitted = [Hospital(uri=f"secagg://{study}/hospital/{name}", declared_patients=count) for name, count in declared.items()]
    start = None if plan.start_digest is None else bytes.fromhex(plan.start_digest)
    try:
        return presets.complete(fields, study=study, hospitals=admitted, evaluators=(), start_digest=start, rounds=ONE_RELEASE)
    except PlanError as error:
        raise StudyError(f"cell {cell.label}: {error}") from error


def write_plan_for_approval(plan: Plan, folder: Path, remark: str = "") -> Path:
    """Write a plan of `plan_to_approve` as TOML into `folder`, whole or not at all; `remark` becomes its first line."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{plan.study}.toml"
    text = tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True))
    write_whole(path, (f"# {' '.join(remark.split())}\n{text}" if remark else text).encode())
    return path


def _all_at_once(evaluation: Evaluation | None, rounds: int) -> dict[str, float] | None:
    """All evaluations as one: squared shifts of Gaussian mechanisms add, so k of them cost what one of sigma / sqrt(k) does."""
    if evaluation is None:
        return None
    once = evaluation.noise_multiplier / math.sqrt(evaluation.times(rounds))
    return {"every": 1, "share": evaluation.share, "noise_multiplier": once}


def _refuse_without_noise(cell: Cell, *, silent: bool) -> None:
    """`silent`: its plan has no noise."""
    ordinary = cell.method in {Method.POOLED, Method.LOCAL}
    if ordinary or silent or cell.method in HOSPITAL_UNITS:
        why = f"method '{cell.method.value}' is ordinary training" if ordinary else "its plan has no noise (epsilon inf)"
        if cell.method in HOSPITAL_UNITS:
            why = f"method '{cell.method.value}' trains without noise on patients and is there to compare with"
        raise StudyError(
            f"cell {cell.label} is refused: {why}, which protects nobody, and its patients are private; take it out of the "
            "study, or run it on public or synthetic data"
        )


def _state_of(cell: Cell) -> StateFolder:
    if not cell.data.ledger:
        raise StudyError(
            'data.kind = "private" needs data.ledger: the state folder of the hospital\'s node, whose ledger pays for the cells'
        )
    path = Path(os.path.expandvars(cell.data.ledger)).expanduser()
    if not path.is_dir():
        raise StudyError(
            f"data.ledger = '{cell.data.ledger}' is no folder: name the node's state folder (key 'state' of node.toml)"
        )
    return StateFolder(path)


def _hospital_of(cell: Cell, state: StateFolder) -> str:
    """Name of the hospital: its ledger's, or the node's where nothing was ever approved there."""
    try:
        return Ledger.open_readonly(state.ledger).hospital
    except LedgerMissing as missing:
        try:
            return NodeFile.model_validate_json(state.node.read_bytes()).name
        except (OSError, ValidationError):
            raise StudyError(
                f"data.ledger = '{cell.data.ledger}' holds no ledger and no node ever ran there: name the node's state folder "
                "(key 'state' of node.toml), or start the node once"
            ) from missing
    except LedgerError as error:
        raise StudyError(f"cell {cell.label} does not train: {error}") from error


def _refuse_if_charged(cell: Cell, ledger: Ledger) -> None:
    for at, _ in _charges_of(cell, ledger):
        raise StudyError(
            f"cell {cell.label} was charged on {at:%Y-%m-%d} and has no result here: it was interrupted, or its "
            "result is in another file; its budget is spent and is not given back; change the seed, which makes another "
            "cell with an approval and a charge of its own"
        )


def _charges_of(cell: Cell, ledger: Ledger) -> list[tuple[datetime, Charge]]:
    """What the ledger was charged for this cell, with the time; one entry at most, unless people edited its plan by hand."""
    return [
        (event.at, event.entry)
        for event in ledger.events()
        if isinstance(event.entry, Charge) and f"-{cell.id}-" in event.entry.study
    ]


def _ask_for_approval(cell: Cell, plan: Plan, asked: Plan, folder: Path) -> str:
    remark = (
        f"Cell {cell.id} of study {plan.study} ({cell.label}) as one release: {plan.most_steps} steps, at most "
        f"{plan.most_local_steps} a round, "
        f"charged together before training; the whole plan has {plan.rounds} rounds and the digest {plan.digest().hex()}."
    )
    path = write_plan_for_approval(asked, folder, remark)
    return (
        f"cell {cell.label} waits for approval by the hospital's privacy officer, so nothing was charged and nothing trained: "
        f"read {path}, then run `secagg-node approve --config node.toml --plan {path}` with --by and --reason"
    )
