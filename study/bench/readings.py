"""What one training costs a patient, read at the delta of its plan and at the product's default, with and without colluders.

Every figure is read from mechanisms, the way a ledger reads them (hospital_node.cap): those that the ledgers of the cell were
charged for, or, where a result was stored before it held them, those that the cell's plan foresees. The second way is trusted
only where it gives the epsilon that was stored; otherwise a figure is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from hospital_node.accounting import Mechanism, is_shared, outsider_epsilon
from hospital_node.cap import UNIFORM_SHARE, stated
from hospital_node.releases import Release, Spending, counted
from hospital_node.shared_accounting import Shares
from proto.plan import Privacy
from study.bench.cells import Cell, CellResult, Readings

DEFAULT_DELTA: float = Privacy.model_fields["delta"].default  # of every plan that says none
SAME = 1e-6  # a recomputed epsilon is the stored one up to this share of it

History = Sequence[Spending]  # of one hospital


def readings_of(histories: Iterable[History], delta: float) -> Readings:
    """Of the worst of these hospitals."""
    spent = [counted(history) for history in histories]
    shared = [one for one in spent if is_shared(one)]
    return Readings(
        at_default=_worst(stated(one, DEFAULT_DELTA) for one in spent),
        outsider=_worst(outsider_epsilon(one, UNIFORM_SHARE * delta) for one in shared),
        outsider_at_default=_worst(outsider_epsilon(one, UNIFORM_SHARE * DEFAULT_DELTA) for one in shared),
    )


def known(cell: Cell, result: CellResult) -> Readings:
    """The readings of a result: as stored, or recomputed from the cell's plan; all unknown where neither holds."""
    if result.readings is not None:
        return result.readings
    planned = None if result.epsilon is None else _planned(cell, result)
    if planned is None or not math.isclose(_stated(planned, result.delta), result.epsilon or 0.0, rel_tol=SAME):
        return Readings()
    return _readings(planned, result.delta)


def _planned(cell: Cell, result: CellResult) -> Release | None:
    """All rounds of the cell's plan at the hospital that takes most steps; None where its parts say too little of them."""
    plan = cell.plan
    if not result.noise_multiplier or any(plan.get(part) is not None for part in ("participants", "buffer", "evaluation")):
        return None
    privacy, rounds = plan["privacy"], plan["rounds"]
    steps = max(cell.partition.local_steps or (plan["training"]["local_steps"],))
    shares = None
    if privacy.get("noise_mode") == "shared":
        shares = Shares(privacy["norm_steps"], len(result.hospitals), privacy["may_drop"], privacy["may_collude"])
    return Release(Mechanism(result.noise_multiplier, 1 / privacy["inverse_sampling_rate"], rounds * steps, shares), rounds)


@lru_cache(maxsize=256)  # a page asks again for every cell whenever a round is published
def _readings(planned: Release, delta: float) -> Readings:
    return readings_of([[planned]], delta)


@lru_cache(maxsize=256)
def _stated(planned: Release, delta: float) -> float:
    return stated(counted([planned]), delta)


def _worst(values: Iterable[float]) -> float | None:
    """None where there is nothing to read, or no guarantee."""
    largest = max(values, default=math.inf)
    return largest if math.isfinite(largest) else None
