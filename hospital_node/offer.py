"""A plan on offer, before anybody has agreed to it: what it asks of this hospital, and what agreeing would cost.

Pure. Rule: the cost is what the ledger itself would say the moment after the approval, computed from the entry that the
approval would write; there is no second arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from hospital_node.budget import BudgetView, budget_view
from hospital_node.cap import Cap, plain, rounded_up, stated
from hospital_node.ledger_chain import EPOCH, MICROSECOND, Event
from hospital_node.ledger_decisions import approve_entry
from hospital_node.ledger_rules import approval_of, mechanism_of, planned
from hospital_node.ledger_schema import BEFORE_FIRST, Approved, Created
from proto.plan import Plan, short_name

SOMEBODY, ANOTHER = "somebody", "somebody else"  # stand for the people whom the real entry will name


def if_approved(events: Sequence[Event], hospital: str, plan: Plan, cap: Cap, at: datetime) -> BudgetView:
    """The budget as it would be after approving `plan` under `cap`; `events` may be empty. Raises DecisionRefused.

    Two people, and data declared public where the plan has no noise, are taken for granted: whether they are there is decided
    when the approval is made.
    """
    known = tuple(events) or (_made(1, at, Created(hospital=hospital, ledger_id="0" * 32)),)
    entry = approve_entry(
        known,
        plan,
        cap,
        by=SOMEBODY,
        confirmed_by=ANOTHER,
        reason="what would follow",
        accept_no_guarantee=True,
        data_is_public=True,
    )
    return budget_view((*known, _made(len(known) + 1, at, entry)), plan)


def approval(events: Sequence[Event], plan: Plan) -> Approved | None:
    """The approval in force for exactly this plan."""
    return approval_of(events, plan.digest().hex()) if events else None


def terms(plan: Plan, hospital: str) -> dict[str, str]:
    """What an officer of `hospital` has to know before agreeing: the steps and the cost are this hospital's own."""
    privacy = plan.privacy
    one_round = mechanism_of(plan, hospital)
    end = stated(planned(plan, hospital, plan.rounds), privacy.delta)
    drawn = f"each draws a patient with chance 1/{privacy.inverse_sampling_rate}"
    return {
        "hospitals": ", ".join(f"{short_name(one.uri)} ({one.declared_patients} patients)" for one in plan.hospitals),
        "unit of protection": f"one patient with all scans, who attends at most {privacy.hospitals_per_patient} hospital(s)",
        "rounds": f"{plan.rounds}, of {one_round.steps} steps here; {drawn}",
        "noise": f"{privacy.noise_multiplier:g} times {_over(plan)}, {_who_adds(plan)}",
        **_evaluation(plan, hospital),
        "cost of all rounds": figure(end) if math.isinf(end) else f"{figure(end)} at delta {plain(privacy.delta)}",
        "digest": plan.digest().hex(),
    }


def _over(plan: Plan) -> str:
    """What the noise multiplier multiplies."""
    if plan.privacy.is_shared:
        return "the most that one patient changes in each sum"
    return f"the clip norm {plan.privacy.clip_norm:g} in each step"


def _who_adds(plan: Plan) -> str:
    """Where the noise comes from, and what relying on it means."""
    shares = mechanism_of(plan, "").shares
    if shares is None:
        return "added at each hospital"
    return (
        f"shared by the hospitals: it holds against the coordinator with {shares.may_collude} of them, and relies on masking "
        f"and on all but {shares.may_collude} of the hospitals in every sum keeping their noise to themselves "
        f"({shares.honest} of {shares.members}); at most {shares.may_drop} may be lost in a round"
    )


def figure(value: float) -> str:
    """Rounded up and named; infinity is no guarantee, in words."""
    return rounded_up(value) if math.isinf(value) else f"epsilon {rounded_up(value)}"


def _evaluation(plan: Plan, hospital: str) -> dict[str, str]:
    """What leaves of validation patients and what it adds to the cost; nothing where the plan has no such part."""
    part = plan.evaluation
    if part is None:
        return {}
    without = stated([mechanism_of(plan, hospital).times(plan.rounds)], plan.privacy.delta)
    cost = "" if math.isinf(without) else f"; without this the rounds cost {figure(without)}"
    return {
        "evaluation": f"{part.times(plan.rounds)} times, scores of about {part.share:.0%} of the patients, who are not trained "
        f"on: only sums leave, with noise {part.noise_multiplier:g} times what one patient can change{cost}",
    }


def _made(seq: int, at: datetime, entry: Created | Approved) -> Event:
    return Event(seq, (at - EPOCH) // MICROSECOND, entry, BEFORE_FIRST)
