"""What the entries of a ledger allow: pure decisions over verified events.

Every question is answered from the whole list each time, so nothing can be out of date. The order of `admit` is the order in
which an officer would ask: does anyone hold the node, was this plan approved, was this round released before, is there budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from hospital_node.accounting import Mechanism
from hospital_node.cap import ORDERS, Cap, CapFilter, ReadingKind, plain, rounded_up
from hospital_node.ledger_chain import Event, decisions, tallies
from hospital_node.ledger_errors import (
    AlreadyReleased,
    BudgetExhausted,
    ClockJumped,
    DecisionRefused,
    LedgerDamaged,
    NotApproved,
    Paused,
)
from hospital_node.ledger_pieces import joined_runs
from hospital_node.ledger_schema import (
    Approved,
    CapLowered,
    CapRaised,
    Charge,
    Created,
    Evaluated,
    Hold,
    NoiseShared,
    Resume,
    Verified,
    Withdrawn,
)
from hospital_node.releases import Evaluations, Program, Release, counted
from hospital_node.shared_accounting import Shares
from hospital_node.withdrawal import withdrawn_in
from proto.plan import Plan, short_name

MAX_OPEN_RELEASES: Final = 2  # in a row without a verified result: more would let forced aborts drain the budget (protocol.md)
CLOCK_TOLERANCE: Final = timedelta(minutes=10)  # time servers step a clock back by less
LONGEST_SILENCE: Final = timedelta(days=400)  # between two entries: a longer one is more likely a clock that jumped


@dataclass(frozen=True, slots=True)
class Authorization:
    """Leave to train one round. It reserves nothing: `Ledger.commit` asks everything again when it writes."""

    ledger_id: str
    plan: str  # digest, hexadecimal
    study: str
    round: int
    mechanism: Mechanism  # of the training
    clip_norm: float
    evaluation: Evaluated | None  # where sums ride in this round
    epsilon_before: float
    epsilon_after: float  # infinite for a plan without a guarantee
    reading: ReadingKind
    shared: NoiseShared | None = None  # where the noise of the training is shared
    withdrawn: int = 0  # patients who had withdrawn: what is trained on follows from it


def admit(events: Sequence[Event], plan: str, study: str, round_number: int) -> Authorization:
    """Leave to run one round of the plan with this digest. Raises Paused, NotApproved, AlreadyReleased, BudgetExhausted."""
    refuse_if_held(events)
    approved = approval_of(events, plan)
    if approved is None:
        raise NotApproved(
            f"No one at {hospital_of(events)} has approved plan {plan[:12]} of study '{study}': "
            "read it, then run `secagg-node approve`."
        )
    if not 1 <= round_number <= approved.max_rounds:
        raise NotApproved(
            f"{approved.by} approved {approved.max_rounds} rounds of study '{study}', so round {round_number} may not run."
        )
    if is_charged(events, plan, round_number):
        raise AlreadyReleased(
            f"Round {round_number} of study '{study}' was charged and released before; a round is released once, ever."
        )
    before, after, reading = _within_budget(events, approved, round_number)
    return Authorization(
        created(events).ledger_id,
        plan,
        study,
        round_number,
        approved.mechanism,
        approved.clip_norm,
        _evaluated(approved, round_number),
        before,
        after,
        reading,
        approved.shared,
        len(withdrawn_in(events)),
    )


def _evaluated(approved: Approved, round_number: int) -> Evaluated | None:
    """The evaluation that rides in this round."""
    agreed = approved.evaluation
    if agreed is None or not approved.program.released(round_number).evaluated:
        return None
    return Evaluated(noise_multiplier=agreed.noise_multiplier, sensitivity=agreed.sensitivity)


def _within_budget(events: Sequence[Event], approved: Approved, round_number: int) -> tuple[float, float, ReadingKind]:
    past = runs(events)
    if approved.no_guarantee:  # approved aloud, on data declared public: a cap has nothing to protect
        refuse_private(events, approved.study)
        return math.inf, math.inf, "pld"
    cap = current_cap(events)
    if cap is None:
        raise NotApproved("The ledger holds no cap yet: approve the plan again with one.")
    judge = filter_of(events, cap)
    asked = [*past, approved.program.released(round_number)]
    kind = judge.kind(asked)
    before, after = judge.spent(past, kind), judge.spent(asked, kind)
    if not judge.admits(cap, asked):
        raise BudgetExhausted(_exhausted(events, round_number, before, after, cap))
    return before, after, kind


def _exhausted(events: Sequence[Event], round_number: int, before: float, after: float, cap: Cap) -> str:
    unprotected = next((charge for charge in charges(events) if charge.noise_multiplier == 0), None)
    if unprotected is not None:
        return (
            f"Round {unprotected.round} of study '{unprotected.study}' was released without noise, so this ledger can never "
            "state a finite epsilon again: use data of other patients with a ledger of their own."
        )
    reach = f"to {rounded_up(after)}" if math.isfinite(after) else "beyond any bound"
    return (
        f"Round {round_number} would take epsilon from {rounded_up(before)} {reach} at delta {plain(cap.delta)}, above "
        f"the cap of {cap.epsilon:g}: this hospital stops itself here. Ask for a plan with more noise or fewer "
        "steps; only two people together can raise the cap."
    )


def refuse_if_held(events: Sequence[Event]) -> None:
    """Paused while people hold the node or while too many releases in a row came to nothing."""
    hold = held_by(events)
    if hold is not None:
        raise Paused(f"{hold.by} paused this node ('{hold.reason}'): it goes on after `secagg-node resume`.")
    waiting = open_releases(events)
    if waiting >= MAX_OPEN_RELEASES:
        raise Paused(
            f"{waiting} releases in a row were charged and no result came back, so this node paused itself before more budget "
            "is lost: ask the coordinator's operator why, then run `secagg-node resume`."
        )


def held_by(events: Sequence[Event]) -> Hold | None:
    """The hold in force, if any."""
    hold = None
    for event in decisions(events):
        if isinstance(event.entry, Hold):
            hold = event.entry
        elif isinstance(event.entry, Resume):
            hold = None
    return hold


def open_releases(events: Sequence[Event]) -> int:
    """Charges since the last verified result or resumption: releases in a row that came to nothing, so far."""
    count = 0
    for event in reversed(events):
        if isinstance(event.entry, Verified | Resume):
            break
        count += isinstance(event.entry, Charge)
    return count


def refuse_known_update(events: Sequence[Event], update_id: str) -> None:
    """AlreadyReleased where this update was charged before, in whatever round and session."""
    if not any(tally.may_hold(update_id) for tally in tallies(events)):
        return
    for charge in charges(events):
        if charge.update_id == update_id:
            raise AlreadyReleased(
                f"This update was released in round {charge.round} of study '{charge.study}'; after an aborted session it is "
                "discarded and trained anew, never sent again."
            )


def created(events: Sequence[Event]) -> Created:
    """The first entry; `read_chain` has proved that it is there."""
    first = events[0].entry
    assert isinstance(first, Created)
    return first


def hospital_of(events: Sequence[Event]) -> str:
    """Name of the hospital, without any study."""
    return created(events).hospital


def charges(events: Sequence[Event]) -> tuple[Charge, ...]:
    """Every release of the ledger's life, in order."""
    return tuple(event.entry for event in events if isinstance(event.entry, Charge))


def is_charged(events: Sequence[Event], plan: str, round_number: int) -> bool:
    """Whether this round of the plan with this digest was released."""
    return any(tally.is_charged(plan, round_number) for tally in tallies(events))


def is_verified(events: Sequence[Event], plan: str, round_number: int) -> bool:
    """Whether its result came back."""
    return any(tally.is_verified(plan, round_number) for tally in tallies(events))


def runs(events: Sequence[Event]) -> tuple[Release, ...]:
    """As `releases`, equal ones in a row as one: every reading is the same, and there are as many as plans, not as rounds."""
    foreseen = _foreseen(events)
    return tuple(_release(terms, foreseen, count) for terms, count in joined_runs(tallies(events)))


def releases(events: Sequence[Event], up_to: Callable[[Charge], bool] = lambda _: True) -> tuple[Release, ...]:
    """What every charge that `up_to` takes did, in order, each within the evaluations that its plan's approval foresees."""
    foreseen = _foreseen(events)
    return tuple(_release(charge, foreseen) for charge in charges(events) if up_to(charge))


def _foreseen(events: Sequence[Event]) -> dict[str, Evaluations | None]:
    """By plan: the evaluations that its last approval foresees."""
    approved = (event.entry for event in decisions(events) if isinstance(event.entry, Approved))
    return {entry.plan: entry.program.evaluations for entry in approved}


def _release(charge: Charge, foreseen: Mapping[str, Evaluations | None], rounds: int = 1) -> Release:
    if charge.plan not in foreseen:
        raise LedgerDamaged(
            f"Round {charge.round} of study '{charge.study}' was charged and nobody approved its plan: bring back the newest "
            "intact copy of the ledger."
        )
    return _one_release(charge.mechanism, rounds, int(charge.evaluation is not None), foreseen[charge.plan])


@lru_cache(maxsize=64)
def _one_release(training: Mechanism, rounds: int, evaluated: int, evaluations: Evaluations | None) -> Release:
    """The same release as one object: the rounds of a plan are thousands of equal ones."""
    return Release(training.times(rounds), rounds, rounds * evaluated, evaluations)


def hospitals_per_patient(events: Sequence[Event]) -> dict[str, int]:
    """By plan: how many hospitals one patient may attend, as its last approval says."""
    approved = (event.entry for event in decisions(events) if isinstance(event.entry, Approved))
    return {entry.plan: entry.hospitals_per_patient for entry in approved}


def across_hospitals(events: Sequence[Event]) -> tuple[Mechanism, ...]:
    """What a patient pays who attends as many hospitals as each study's plan allows: each release that many times."""
    several = hospitals_per_patient(events)
    plans = dict.fromkeys(charge.plan for charge in charges(events))
    return tuple(one.times(several.get(plan, 1)) for plan in plans for one in _counted_of(events, plan))


def _counted_of(events: Sequence[Event], plan: str) -> tuple[Mechanism, ...]:
    return counted(releases(events, lambda charge: charge.plan == plan))


def approval_of(events: Sequence[Event], plan: str) -> Approved | None:
    """The approval in force for this plan."""
    approved = None
    for event in decisions(events):
        entry = event.entry
        if isinstance(entry, Approved) and entry.plan == plan:
            approved = entry
        elif isinstance(entry, Withdrawn) and entry.plan == plan:
            approved = None
    return approved


def current_cap(events: Sequence[Event]) -> Cap | None:
    """The cap in force: of the last approval with a guarantee, or of the last change."""
    cap = None
    for event in decisions(events):
        entry = event.entry
        if isinstance(entry, CapLowered | CapRaised) or (isinstance(entry, Approved) and not entry.no_guarantee):
            cap = entry.cap
    return cap


def guaranteed_cap(events: Sequence[Event]) -> Cap | None:
    """What the filter has kept at any time so far: the loosest cap in force when something was charged."""
    cap, kept = None, []
    for event in events:
        entry = event.entry
        if isinstance(entry, CapLowered | CapRaised) or (isinstance(entry, Approved) and not entry.no_guarantee):
            cap = entry.cap
        elif isinstance(entry, Charge) and cap is not None:
            kept.append(cap)
    if not kept:
        return None
    return Cap(epsilon=max(one.epsilon for one in kept), delta=max(one.delta for one in kept))


def agreed_by(events: Sequence[Event]) -> str:
    """Who set the cap in force, and when; both people where it took two."""
    text = "nobody"
    for event in decisions(events):
        entry = event.entry
        if isinstance(entry, CapRaised) or (isinstance(entry, Approved) and entry.confirmed_by and not entry.no_guarantee):
            text = f"{entry.by} and {entry.confirmed_by} on {event.at:%Y-%m-%d}"
        elif isinstance(entry, CapLowered) or (isinstance(entry, Approved) and not entry.no_guarantee):
            text = f"{entry.by} on {event.at:%Y-%m-%d}"
    return text


def filter_order(events: Sequence[Event]) -> int | None:
    """Order of the Renyi filter: the first approval with a guarantee fixed it, before any charge."""
    for event in decisions(events):
        if isinstance(event.entry, Approved) and not event.entry.no_guarantee:
            return event.entry.renyi_order
    return None


def filter_of(events: Sequence[Event], cap: Cap) -> CapFilter:
    """The filter that decides against `cap`."""
    return CapFilter(delta=cap.delta, order=filter_order(events) or ORDERS[0])


def check_clock(events: Sequence[Event], at: datetime) -> None:
    """Raise ClockJumped where `at` is well before the last entry or far behind it.

    Order is by number, never by time: this is for people. An entry of a wrong far future would make every later one impossible.
    """
    if at.tzinfo is None:
        raise ValueError("a ledger entry needs a time with a time zone")
    last = events[-1].at
    if last - CLOCK_TOLERANCE <= at <= last + LONGEST_SILENCE:
        return
    raise ClockJumped(
        f"The clock of this machine says {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, but the last ledger entry is of "
        f"{last:%Y-%m-%d %H:%M} UTC: set the clock, then start again; if it is right, say so with `secagg-node ledger clock`."
    )


def mechanism_of(plan: Plan, hospital: str) -> Mechanism:
    """What the training of one round does to each patient of this hospital; of one without a place in the plan, the usual."""
    own = [plan.local_steps(entry.uri) for entry in plan.hospitals if short_name(entry.uri) == hospital]
    steps = max(own, default=plan.training.local_steps)
    return Mechanism(plan.privacy.noise_multiplier, 1 / plan.privacy.inverse_sampling_rate, steps, shares_of_plan(plan))


def shares_of_plan(plan: Plan) -> Shares | None:
    """How the plan's hospitals share one noise; None where each adds its own."""
    if not plan.privacy.is_shared:
        return None
    privacy = plan.privacy
    return Shares(privacy.norm_steps or 0, plan.largest_cohort, privacy.may_drop or 0, privacy.may_collude or 0)


def evaluations_of(plan: Plan) -> Evaluations | None:
    """What the plan says of its evaluations, the same for every hospital."""
    part = plan.evaluation
    if part is None:
        return None
    return Evaluations(plan.digest().hex(), part.noise_multiplier, part.every, part.times(plan.rounds))


def program_of(plan: Plan, hospital: str) -> Program:
    """What the rounds of the plan do to each patient of this hospital."""
    return Program(mechanism_of(plan, hospital), evaluations_of(plan))


def planned(plan: Plan, hospital: str, rounds: int) -> tuple[Mechanism, ...]:
    """What `rounds` rounds of the plan cost a patient of this hospital, as the cap counts them."""
    return counted([program_of(plan, hospital).released(1, rounds)])


def refuse_private(events: Sequence[Event], study: str) -> None:
    """Raise DecisionRefused where any approval of the ledger's life says that these patients are not public."""
    private = next((e.entry for e in decisions(events) if isinstance(e.entry, Approved) and not e.entry.data_is_public), None)
    if private is not None:
        raise DecisionRefused(
            f"{private.by} approved study '{private.study}' on these patients as private data, so study '{study}', which adds "
            "no noise, is refused: use public data with a ledger of their own."
        )
