"""What people at the hospital decide, as entries of the ledger: who may decide it, and what nobody may.

Pure, like `ledger_rules`, which says what follows from the entries. Every decision names a person and a reason; what loosens
a cap names two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from hospital_node import ledger_rules as rules
from hospital_node.cap import ORDERS, Cap, best_order, plain
from hospital_node.ledger_chain import Event
from hospital_node.ledger_errors import DecisionRefused
from hospital_node.ledger_schema import Approved, CapLowered, CapRaised, EvaluationAgreed, NoiseShared
from hospital_node.releases import Program
from proto.control import Proved
from proto.evaluation import sensitivity
from proto.plan import Plan, role_of, short_name


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The second person's yes, given in a sign-in of their own."""

    proved: Proved
    reason: str


def approve_entry(
    events: Sequence[Event],
    plan: Plan,
    cap: Cap,
    *,
    by: str,
    confirmed_by: str,
    reason: str,
    accept_no_guarantee: bool,
    data_is_public: bool,
    proved: Proved | None = None,
    confirmation: Confirmation | None = None,
) -> Approved:
    """The approval to record. Raises DecisionRefused."""
    name = rules.hospital_of(events)
    declared = _declared_patients(plan, name)
    _check_guarantee(events, plan, accept_no_guarantee=accept_no_guarantee, data_is_public=data_is_public)
    if not plan.privacy.no_guarantee:
        check_delta(cap, declared)
        present = rules.current_cap(events)
        if present is not None and not cap.at_most(present):
            check_two_people(by, confirmed_by, f"raising the cap from {present} to {cap}", proved, confirmation)
    program = rules.program_of(plan, name)
    one_round = program.training
    return Approved(
        plan=plan.digest().hex(),
        study=plan.study,
        by=person(by),
        confirmed_by=confirmed_by.strip(),
        reason=said(reason),
        cap=cap,
        noise_multiplier=one_round.noise_multiplier,
        sampling_rate=one_round.sampling_rate,
        steps_per_round=one_round.steps,
        clip_norm=plan.privacy.clip_norm,
        max_rounds=plan.rounds,
        declared_patients=declared,
        hospitals_per_patient=plan.privacy.hospitals_per_patient,
        renyi_order=_order_for(events, plan, cap, program),
        no_guarantee=plan.privacy.no_guarantee,
        data_is_public=data_is_public,
        evaluation=_evaluation_of(plan),
        shared=None if one_round.shares is None else NoiseShared(**asdict(one_round.shares)),
        proved=proved,
        confirmed_proved=None if confirmation is None else confirmation.proved,
        confirmed_reason=None if confirmation is None else said(confirmation.reason),
    )


def _evaluation_of(plan: Plan) -> EvaluationAgreed | None:
    if plan.evaluation is None:
        return None
    each, bound = plan.evaluation, sensitivity(len(plan.network.labels))
    return EvaluationAgreed(noise_multiplier=each.noise_multiplier, sensitivity=bound, every=each.every)


def _order_for(events: Sequence[Event], plan: Plan, cap: Cap, program: Program) -> int:
    if plan.privacy.no_guarantee:
        return ORDERS[0]  # never used: such an approval fixes no order
    return rules.filter_order(events) or best_order(cap, program.ahead(1))


def _declared_patients(plan: Plan, name: str) -> int:
    for entry in plan.hospitals:
        if role_of(entry.uri) == "hospital" and short_name(entry.uri) == name:
            return entry.declared_patients
    raise DecisionRefused(
        f"{name} is not among the hospitals of study '{plan.study}': ask the coordinator to add it to the plan."
    )


def _check_guarantee(events: Sequence[Event], plan: Plan, *, accept_no_guarantee: bool, data_is_public: bool) -> None:
    if not plan.privacy.no_guarantee:
        return
    if not accept_no_guarantee:
        raise DecisionRefused(
            f"Study '{plan.study}' adds no noise, so there is no guarantee for any patient: approve it only by saying so "
            "(`--accept-no-guarantee`)."
        )
    if not data_is_public:
        raise DecisionRefused(
            f"Study '{plan.study}' adds no noise: it runs only on data declared public or synthetic (`--data-is-public`)."
        )
    rules.refuse_private(events, plan.study)


def lowered(events: Sequence[Event], cap: Cap, by: str, reason: str) -> CapLowered:
    """The entry for a lower cap. Raises DecisionRefused."""
    present = rules.current_cap(events)
    if present is None:
        raise DecisionRefused("There is no cap to lower yet: the first approval sets one.")
    if not cap.at_most(present):
        raise DecisionRefused(f"{cap} is not lower than {present} in both figures: raising needs two people.")
    return CapLowered(cap=cap, by=person(by), reason=said(reason))


def raised(events: Sequence[Event], cap: Cap, by: str, confirmed_by: str, reason: str, confirmed_reason: str) -> CapRaised:
    """The entry for any other cap. Raises DecisionRefused."""
    present = rules.current_cap(events)
    if present is None:
        raise DecisionRefused("There is no cap to raise yet: the first approval sets one.")
    check_two_people(by, confirmed_by, f"raising the cap from {present} to {cap}")
    approved = [event.entry for event in events if isinstance(event.entry, Approved) and not event.entry.no_guarantee]
    check_delta(cap, min(entry.declared_patients for entry in approved))
    return CapRaised(
        cap=cap,
        by=person(by),
        confirmed_by=person(confirmed_by),
        reason=said(reason),
        confirmed_reason=said(confirmed_reason),
    )


def check_delta(cap: Cap, declared_patients: int) -> None:
    """Raise DecisionRefused where delta would allow giving one patient away for free."""
    if cap.delta >= 1 / declared_patients:
        raise DecisionRefused(
            f"A cap at delta {plain(cap.delta)} is refused: it must be below 1/{declared_patients}, one over the declared size."
        )


def check_two_people(
    by: str, confirmed_by: str, what: str, proved: Proved | None = None, confirmation: Confirmation | None = None
) -> None:
    """Raise DecisionRefused unless two different people are named; who signed in is told from another by the account alone."""
    if proved is not None:
        if confirmation is None or proved.same_person(confirmation.proved):
            raise DecisionRefused(f"{what[:1].upper()}{what[1:]} needs two different people, each in a sign-in of their own.")
        return
    first, second = person(by), confirmed_by.strip()
    if not second or first.casefold() == second.casefold():
        raise DecisionRefused(
            f"{what[:1].upper()}{what[1:]} needs two different people: name the second one (`--confirmed-by`)."
        )


def person(name: str) -> str:
    """The name, trimmed; DecisionRefused where nobody is named."""
    if not name.strip():
        raise DecisionRefused("A decision needs the name of the person who takes it (`--by`).")
    return name.strip()


def said(reason: str) -> str:
    """The reason, trimmed; DecisionRefused where there is none."""
    if not reason.strip():
        raise DecisionRefused("A decision needs a reason in a few words (`--reason`).")
    return reason.strip()
