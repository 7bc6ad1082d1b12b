"""Buffered asynchronous rounds: the part `buffer` of a plan (FedBuff, Nguyen et al. 2022, arXiv 2106.06639).

Nobody waits for the slowest: a cohort forms as soon as `updates` of one model are ready, and what was trained on an older
model counts less. A staleness is the number of rounds that ended between an update's training and its sum. Its factor is
(1 + staleness)^-staleness_exponent in integers of FACTOR_ONE, because the masks' ring knows nothing else; hospital and
coordinator compute the same ones on every machine. Why the members of one cohort share one model: secagg/README.md, Bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING

from pydantic import Field

from proto.frozen import Frozen

if TYPE_CHECKING:
    from proto.plan import Plan

FACTOR_ONE = 1 << 10  # the factor of a fresh update; with the largest weight of a plan far below the ring's 2**32
UNFIT = {  # parts of a plan that belong to rounds in which everybody is at one model
    "evaluation": "evaluation: its sums are of one model, and hospitals are at several; let an evaluator measure public data",
    "participants": "participants: they are chosen before a round, and here whoever is ready takes part",
    "adapters": "training.adapter_rank: the adapters change with the round, and here updates outlive it",
    "scaffold": "aggregation.rule scaffold: its variates are of the model that all began from, and hospitals are at several",
    "absent": "aggregation.absent momentum: whoever is not in a sum is at work, not absent",
    "precision": "aggregation.weights precision: certainties are of one round, and here updates of several meet",
}
DIGITS = 40  # of the factor before it is rounded; decimal arithmetic is the same on every machine


class Buffer(Frozen):
    """Plan part [buffer]; without it every round waits for its hospitals."""

    updates: int = Field(ge=1)  # K: ready updates of one model that open a sum
    max_staleness: int = Field(default=4, ge=0, le=1000)  # rounds; an older update is let go and never leaves
    staleness_exponent: float = Field(default=0.5, ge=0, le=8, allow_inf_nan=False)

    def factor(self, staleness: int) -> int:
        """What a weight is multiplied by, in parts of FACTOR_ONE; at least one. ValueError beyond max_staleness."""
        if not 0 <= staleness <= self.max_staleness:
            raise ValueError(f"a staleness of {staleness} rounds is not between 0 and {self.max_staleness}")
        with localcontext() as context:
            context.prec = DIGITS
            share = (-Decimal(self.staleness_exponent) * Decimal(1 + staleness).ln()).exp()
            return max(1, int((FACTOR_ONE * share).to_integral_value()))

    @property
    def factors(self) -> tuple[int, ...]:
        """Of every staleness that counts, from none on."""
        return tuple(self.factor(staleness) for staleness in range(self.max_staleness + 1))


def obstacle(plan: Plan) -> str | None:
    """Why buffered rounds of this plan could not be, with the remedy; None where they can, or are not asked for."""
    buffer, least = plan.buffer, plan.masking.minimum_cohort
    if buffer is None:
        return None
    has = {
        "evaluation": plan.evaluation is not None,
        "participants": plan.participants is not None,
        "adapters": plan.training.adapter_rank is not None,
        "scaffold": plan.aggregation.rule == "scaffold",
        "absent": plan.aggregation.absent != "left-out",
        "precision": plan.aggregation.weights == "precision",
    }
    if refused := [UNFIT[name] for name, there in has.items() if there]:
        return f"[buffer] does not go with {'; nor with '.join(refused)}"
    if buffer.updates == 1:
        return (
            "buffer.updates = 1 is asynchronous training without a cohort, in which every sum is one hospital's update, "
            f"opened: say {least} or more"
        )
    if not least <= buffer.updates <= len(plan.hospitals):
        return (
            f"buffer.updates {buffer.updates} must lie between {least} (masking.minimum_cohort) and {len(plan.hospitals)}, all "
            "hospitals of the plan"
        )
    return None


def damping(weights: Sequence[int], session_weights: Sequence[int]) -> float:
    """What FedBuff's rule multiplies the opened weighted mean by: 1 where every update in it is fresh.

    The rule averages staleness factor times update with the plan's `weights`; the opened mean divided by the
    `session_weights`, which are the products of both.
    """
    return sum(session_weights) / (FACTOR_ONE * sum(weights))
