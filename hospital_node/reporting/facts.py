"""From the node's own verified entries to a report: the only place that decides what a report says.

Pure. Rule: no second truth. Every figure is BudgetView's, `history`'s or the statement's, every row is `what_leaves`'s; this
file arranges them and computes no epsilon. What this software cannot know is null, or the hospital's own word from its
configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hospital_node import ledger_rules as rules
from hospital_node.accounting import accountant_version, best_guess, renyi_epsilon
from hospital_node.budget import BudgetView, budget_view, history
from hospital_node.cap import plain, rounded_up
from hospital_node.ledger_chain import Event
from hospital_node.ledger_schema import (
    Approved,
    CapLowered,
    CapRaised,
    Charge,
    ClockConfirmed,
    Hold,
    Note,
    PatientWithdrawn,
    Resume,
    Withdrawn,
)
from hospital_node.progress import Leaves
from hospital_node.releases import counted
from hospital_node.reporting import model as parts
from hospital_node.reporting.changes import changes_since
from hospital_node.reports import what_leaves
from hospital_node.statement import Statement, guaranteed, statement
from proto.plan import Plan, role_of, short_name

NEWEST_RELEASES: Final = 25  # listed one by one; each needs a reading of its own, and the ledger's export holds all
NEWEST_DECISIONS: Final = 100
NOTHING_STATED: Final = parts.Governance()
NOT_PUBLISHED: Final = parts.Publication()
COVERED: Final = "every masked update, every intermediate model, the final model"
UNIT: Final = "one patient: all studies, series and patches of one person, joined by the hospital's patient id"


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a report is made of. `events` are verified; `prv` is None where no second library was asked."""

    events: Sequence[Event]
    plan: Plan | None
    leaves: Leaves | None
    prv: float | None
    number: int
    at: datetime
    security: parts.Security
    software: parts.Software
    signer: parts.Signer
    governance: parts.Governance = NOTHING_STATED
    publication: parts.Publication = NOT_PUBLISHED
    previous: parts.PrivacyReport | None = None
    previous_sha256: str | None = None


def report_of(facts: Facts) -> parts.PrivacyReport:
    """The report, without its signature."""
    events, plan = facts.events, facts.plan
    view, said = budget_view(events, plan), statement(events, plan)
    study = view.study or "none"
    leaving = _leaves(plan, facts.leaves)
    body = parts.Body(
        report_id=f"{rules.hospital_of(events)}-{study}-{facts.number:04d}",
        number=facts.number,
        issued_at=facts.at,
        as_of=_as_of(events, view, study),
        subject=_subject(events, plan, study),
        state=parts.State(
            name=view.state,
            sentence=view.sentence,
            next_round=view.next_round if view.next_epsilon is not None else None,
            next_epsilon=finite(view.next_epsilon),
        ),
        guarantee=_guarantee(events, view, said, facts.prv),
        mechanisms=_mechanisms(events),
        masking=_masking(plan),
        budget=_budget(events, view),
        composition=_composition(events, view),
        course=parts.Course(spent=_points(view.by_round), forecast=_points(view.forecast)),
        trust=_trust(plan, _reliance(view)),
        leaves=leaving,
        leaves_measured_in_round=facts.leaves.round if facts.leaves is not None and facts.leaves.last_round else None,
        unprotected_quantities=tuple(row.item for row in leaving if row.covered == "no"),
        assumptions=tuple(parts.AssumptionRow(text=a.text, state=a.state, evidence=a.evidence) for a in said.assumptions),
        releases=_releases(events),
        decisions=_decisions(events),
        statement=_words(said),
        security=facts.security,
        governance=facts.governance,
        publication=facts.publication,
        changes=parts.Changes(since=None, lines=()),
        software=facts.software,
        signer=facts.signer,
    )
    changes = changes_since(facts.previous, facts.previous_sha256, body)
    return parts.sealed(body.model_copy(update={"changes": changes}))


def finite(value: float | None) -> float | None:
    """Infinity is not JSON: null stands for "no guarantee", never 0."""
    return value if value is not None and math.isfinite(value) else None


def _as_of(events: Sequence[Event], view: BudgetView, study: str) -> parts.AsOf:
    return parts.AsOf(
        study=study,
        round=max(view.next_round - 1, 0),
        ledger_head=f"sha256:{view.head}",
        ledger_entries=view.entries,
        last_entry_at=events[-1].at,
    )


def _subject(events: Sequence[Event], plan: Plan | None, study: str) -> parts.Subject:
    hospital = rules.hospital_of(events)
    declared = None
    if plan is not None:
        own = [
            one.declared_patients
            for one in plan.hospitals
            if short_name(one.uri) == hospital and role_of(one.uri) == "hospital"
        ]
        declared = own[0] if own else None
    approved = [event.entry for event in events if isinstance(event.entry, Approved)]
    return parts.Subject(
        hospital=hospital,
        study=study,
        plan_digest=plan.digest().hex() if plan is not None else None,
        declared_patients=declared,
        data_is_public=bool(approved) and all(entry.data_is_public for entry in approved),
    )


def _guarantee(events: Sequence[Event], view: BudgetView, said: Statement, prv: float | None) -> parts.Guarantee:
    mechanisms = counted(rules.releases(events))
    holds, delta = guaranteed(view, rules.guaranteed_cap(events))
    return parts.Guarantee(
        no_guarantee=math.isinf(view.spent),
        epsilon=finite(view.spent),
        stated_epsilon=rounded_up(holds),
        delta=delta,
        unit_in_words=UNIT,
        accountant=parts.Accountant(name=view.read_by, library=accountant_version()),
        non_adaptive_epsilon=finite(view.non_adaptive),
        coarser_epsilon=finite(renyi_epsilon(mechanisms, view.delta)),
        cross_check=parts.SecondOpinion(epsilon=finite(prv)),
        profile=tuple(parts.Profile(delta=delta, epsilon=finite(reached)) for delta, reached in said.profile),
        attacker=tuple(parts.Recognised(false_alarms=share, recognised=found) for share, found in said.recognised),
        best_guess=best_guess(mechanisms),
        reliance=_reliance(view),
        releases_covered=COVERED,
    )


def _reliance(view: BudgetView) -> parts.Reliance | None:
    """Only of what has left, as the statement says it: a plan that shares noise changes nothing before its first round."""
    relies = view.relies
    if relies is None:
        return None
    return parts.Reliance(
        outsider_epsilon=finite(relies.outsider), colluders=relies.colluders, honest=relies.honest, sentence=relies.sentence
    )


def _mechanisms(events: Sequence[Event]) -> tuple[parts.Mechanism, ...]:
    """Training by (noise multiplier, rate, whose noise), then evaluations by noise multiplier."""
    charged = rules.charges(events)
    kinds = sorted({_kind(charge) for charge in charged})
    training = [_training(kind, [charge for charge in charged if _kind(charge) == kind]) for kind in kinds]
    evaluated = [charge.evaluation for charge in charged if charge.evaluation is not None]
    sums = [
        parts.Mechanism(
            name="noised_sums_of_scores",
            noise_multiplier=sigma,
            sampling="everybody",
            sampling_rate=1.0,
            steps=sum(one.noise_multiplier == sigma for one in evaluated),
            clip_norms=tuple(sorted({one.sensitivity for one in evaluated if one.noise_multiplier == sigma})),
            clip_mode=None,
            noise_of="this hospital alone",
            empty_draw=None,
        )
        for sigma in sorted({one.noise_multiplier for one in evaluated})
    ]
    return (*training, *sums)


def _kind(charge: Charge) -> tuple[float, float, bool]:
    return charge.noise_multiplier, charge.sampling_rate, charge.shared is not None


def _training(kind: tuple[float, float, bool], own: Sequence[Charge]) -> parts.Mechanism:
    sigma, rate, shared = kind
    return parts.Mechanism(
        name="dp_sgd",
        noise_multiplier=sigma,
        sampling="poisson",
        sampling_rate=rate,
        steps=sum(charge.steps for charge in own),
        clip_norms=tuple(sorted({charge.clip_norm for charge in own})),
        clip_mode="flat",
        noise_of="the hospitals together" if shared else "this hospital alone",
        empty_draw="a step of noise alone",
    )


def _masking(plan: Plan | None) -> parts.Masking | None:
    if plan is None:
        return None
    masking = plan.masking
    return parts.Masking(
        lanes=masking.lanes,
        update_clip=masking.update_clip,
        keep=masking.keep,
        minimum_cohort=masking.minimum_cohort,
        threshold=plan.threshold_of(len(plan.hospitals)),
        max_colluders=masking.max_colluders,
    )


def _budget(events: Sequence[Event], view: BudgetView) -> parts.Budget:
    return parts.Budget(
        epsilon=view.cap,
        delta=view.delta,
        agreed=rules.agreed_by(events),
        left=view.left,
        left_share=view.left_share,
        rounds_left=view.rounds_left,
        stops_after_round=view.stops_after_round,
        decided_by=view.reading,
    )


def _composition(events: Sequence[Event], view: BudgetView) -> parts.Composition:
    charged = rules.charges(events)
    return parts.Composition(
        releases=len(charged),
        rounds_done=view.rounds_done,
        rounds_planned=view.rounds_planned,
        other_studies=tuple(sorted({charge.study for charge in charged} - {view.study})),
        hospitals_per_patient=view.hospitals_per_patient,
        epsilon_across_hospitals=finite(view.across_hospitals),
        overlap_checked="no: stated in the plan, nobody compared patient lists",
        tuning="charged where this node did it; work outside this node is not seen by it",
        retries="a round is charged once and never released twice; what was charged is never refunded",
    )


def _points(points: Sequence[tuple[int, float]]) -> tuple[parts.Point, ...]:
    return tuple(parts.Point(round=number, epsilon=reached) for number, reached in points if math.isfinite(reached))


def _trust(plan: Plan | None, relies: parts.Reliance | None) -> parts.Trust:
    threshold = plan.masking.max_colluders if plan is not None else None
    apart = (
        "not for the figure above"
        if relies is None
        else f"and for the figure above, where {relies.honest - 1} of them keep their noise"
    )
    together = "single updates show, each with this hospital's full noise on it: the figure above holds all the same"
    if relies is not None:
        together = f"with more than {relies.colluders} hospitals beside the coordinator the figure above does not hold"
    return parts.Trust(
        relies_on_masking=relies is not None,
        collusion_threshold=threshold,
        actors=(
            parts.Actor(
                who="this hospital's own node", trusted_for="everything: it sees patients", if_it_fails="nothing here holds"
            ),
            parts.Actor(
                who="the coordinator", trusted_for="that rounds come about; not for confidentiality", if_it_fails=together
            ),
            parts.Actor(
                who="the other hospitals",
                trusted_for=f"masks against up to {threshold or 0} that work with the coordinator; {apart}",
                if_it_fails=together,
            ),
            parts.Actor(
                who="the issuer of certificates",
                trusted_for="names; keys were confirmed by people besides",
                if_it_fails="a stranger's key is refused: it is not on this hospital's list",
            ),
        ),
    )


def _leaves(plan: Plan | None, leaves: Leaves | None) -> tuple[parts.LeavingRow, ...]:
    if plan is None:
        return ()
    return tuple(
        parts.LeavingRow(
            item=row.item,
            how_often=row.how_often,
            sent_bytes=row.sent_bytes,
            size=row.size,
            readable_by=row.readable_by,
            covered=row.covered,
            why=row.why,
            switch_off=row.switch_off,
        )
        for row in what_leaves(plan, leaves)
    )


def _releases(events: Sequence[Event]) -> tuple[parts.ReleaseRow, ...]:
    return tuple(
        parts.ReleaseRow(
            place=one.place,
            at=one.at,
            study=one.study,
            round=one.round,
            noise_multiplier=one.noise_multiplier,
            sampling_rate=one.sampling_rate,
            steps=one.steps,
            scores=one.scores,
            epsilon=finite(one.epsilon),
            result_came=one.result_came,
        )
        for one in history(events, NEWEST_RELEASES)
    )


def _decisions(events: Sequence[Event]) -> tuple[parts.DecisionRow, ...]:
    rows = []
    for event in events:
        entry = event.entry
        by = getattr(entry, "by", "")
        if isinstance(entry, PatientWithdrawn):
            rows.append(
                parts.DecisionRow(entry=event.seq, at=event.at, who=by, what="recorded that a patient withdrew", why="")
            )
        elif by:
            second = getattr(entry, "confirmed_by", "")
            why = getattr(entry, "reason", "") or getattr(entry, "text", "")
            who = f"{by} and {second}" if second else by
            rows.append(parts.DecisionRow(entry=event.seq, at=event.at, who=who, what=decided(event), why=why))
    return tuple(rows[-NEWEST_DECISIONS:])


def decided(event: Event) -> str:
    """What an entry of people decided, in words."""
    match event.entry:
        case Approved() as entry:
            cap = "without a guarantee" if entry.no_guarantee else f"cap ε {entry.cap.epsilon:g} at δ {plain(entry.cap.delta)}"
            return f"approved study '{entry.study}', at most {entry.max_rounds} rounds, {cap}"
        case Withdrawn():
            return "took an approval back"
        case CapLowered() as entry:
            return f"lowered the cap to ε {entry.cap.epsilon:g} at δ {plain(entry.cap.delta)}"
        case CapRaised() as entry:
            return f"raised the cap to ε {entry.cap.epsilon:g} at δ {plain(entry.cap.delta)}"
        case Hold():
            return "paused the node"
        case Resume():
            return "let the node go on"
        case ClockConfirmed():
            return "confirmed the clock"
        case Note():
            return "left a note"
        case _:
            return event.kind.replace("_", " ")


def _words(said: Statement) -> parts.Words:
    fields = tuple(
        parts.WordsField(group=one.group, label=one.label, value=one.value, explanation=one.explanation) for one in said.fields
    )
    return parts.Words(paragraph=said.paragraph, fields=fields)
