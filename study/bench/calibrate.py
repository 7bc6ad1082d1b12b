"""The noise that meets a cell's wanted epsilon, counted over the rounds of the hospital that is asked most often.

Who is asked in a round follows from the plan's digest and is public (proto.plan.Plan.selected), so only the rounds that a
hospital is really asked in have to fit. The noise is itself part of the digest and so decides the selection. The circle is
resolved by trying: suppose that nobody is asked more than k times, take the smallest noise that bears k rounds, count in the
plan with that noise, and keep it if the count is k or less. The first k that holds is used, from the least possible one on;
k = all rounds always holds. Where hospitals take unequally many steps, k rounds are those of the one that takes most, and what
is counted are each hospital's own steps.

With shared noise the wanted epsilon is the charged one, against the plan's colluders, or the outsider's, against whoever knows
no hospital's share (`epsilon_reading`); what a ledger charges is the first of them in either case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hospital_node.accounting import Mechanism, noise_multiplier_for
from hospital_node.cap import UNIFORM_SHARE
from hospital_node.ledger_rules import shares_of_plan
from hospital_node.releases import EVERYBODY
from hospital_node.shared_accounting import Shares
from proto.frozen import parsed
from proto.plan import Evaluation, Plan
from study.bench.cells import HOSPITAL_UNITS, Cell
from study.bench.task import StudyError

SILENT: Mapping[str, Any] = {"noise_multiplier": 0.0, "no_guarantee": True}


def noised(cell: Cell, plan: Plan) -> Plan:
    """`plan`, complete but for its noise, with the noise of the cell's epsilon: no hospital's own rounds cost more.

    Without a wanted epsilon the plan comes back as it is. Raises StudyError where no noise reaches the target.
    """
    if cell.epsilon is None:
        return plan
    if math.isinf(cell.epsilon) or cell.method in HOSPITAL_UNITS:  # whose noise is no part of a plan
        return _with(cell, plan, SILENT)
    for count in range(_least_asked(plan.rounds, plan.participants, len(plan.hospitals)), plan.rounds + 1):
        steps = count * plan.most_local_steps
        beside = _evaluations(plan.evaluation, plan.rounds)
        noise = _noise_multiplier(cell, plan.privacy.model_dump(), steps, beside, shares_of_plan(plan))
        found = _with(cell, plan, {"noise_multiplier": noise, "no_guarantee": False})
        if found.most_steps <= steps:
            return found
    raise AssertionError("nobody is asked more often than there are rounds")


def refuse_unreachable(cell: Cell) -> None:
    """Before anything is dealt: raise StudyError where no noise reaches the cell's epsilon, however the selection falls."""
    if cell.epsilon is None or math.isinf(cell.epsilon) or cell.method in HOSPITAL_UNITS:
        return
    least = _least_asked(cell.plan["rounds"], cell.plan["participants"], cell.partition.hospitals)
    own = cell.partition.local_steps or (cell.plan["training"]["local_steps"],)
    steps = least * (max(own) if cell.plan["participants"] is None else min(own))
    part = cell.plan.get("evaluation")
    beside = _evaluations(None if part is None else Evaluation.model_validate(part), cell.plan["rounds"])
    _noise_multiplier(cell, cell.plan["privacy"], steps, beside, None)  # shares add nothing that shows


def _least_asked(rounds: int, participants: int | None, hospitals: int | None) -> int:
    """Rounds of the most-asked hospital if they were spread evenly; `hospitals` is None where nobody counted them yet."""
    if participants is None:
        return rounds
    return 1 if hospitals is None else math.ceil(rounds * participants / hospitals)


def _evaluations(part: Evaluation | None, rounds: int) -> tuple[Mechanism, ...]:
    """Beside which the training's noise has to find room: all of the plan, the most that any hospital is charged for."""
    return () if part is None else (Mechanism(part.noise_multiplier, EVERYBODY, part.times(rounds)),)


def _noise_multiplier(
    cell: Cell, privacy: Mapping[str, Any], steps: int, beside: tuple[Mechanism, ...], shares: Shares | None
) -> float:
    assert cell.epsilon is not None
    try:
        outsider = shares is not None and cell.epsilon_reading == "outsider"
        return _smallest(
            cell.epsilon, privacy["delta"], privacy["inverse_sampling_rate"], steps, beside, shares, outsider=outsider
        )
    except ValueError as error:
        raise StudyError(f"study {cell.study}, cell {cell.label}: {error}: ask for a larger epsilon or fewer steps") from error


@lru_cache
def _smallest(
    epsilon: float,
    delta: float,
    inverse_sampling_rate: int,
    steps: int,
    beside: tuple[Mechanism, ...],
    shares: Shares | None,
    *,
    outsider: bool,
) -> float:  # as the ledger reads it
    rate = 1 / inverse_sampling_rate
    return noise_multiplier_for(epsilon, UNIFORM_SHARE * delta, rate, steps, beside, shares, outsider=outsider)


def _with(cell: Cell, plan: Plan, privacy: Mapping[str, Any]) -> Plan:
    """The plan with these privacy fields, checked as any plan is."""
    fields = plan.model_dump(mode="json")
    return parsed(Plan, {**fields, "privacy": {**fields["privacy"], **privacy}}, f"cell {cell.label}", StudyError)
