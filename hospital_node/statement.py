"""The privacy statement of one hospital, generated from its ledger: a paragraph to copy, fields to read, assumptions to check.

Rule: every sentence is derived from verified entries and the plan; nothing here is stored or edited. Fields that this software
cannot know (legal basis, contact, review dates) are not invented.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hospital_node import ledger_rules as rules
from hospital_node.accounting import (
    PROFILE_DELTAS,
    Mechanism,
    accountant_version,
    attacker_recognised,
    best_guess,
    is_shared,
    merged,
    renyi_epsilon,
)
from hospital_node.budget import BudgetView, budget_view
from hospital_node.cap import Cap, plain, rounded_up, stated
from hospital_node.ledger_chain import Event
from hospital_node.ledger_schema import Charge
from hospital_node.releases import counted
from proto.plan import Plan

AssumptionState: TypeAlias = Literal["holds", "unverified", "does not hold"]
FALSE_ALARMS = (0.001, 0.01, 0.05)
WHOLE_ORDERS = "Rényi divergences at whole orders, which hold for shares of discrete noise"


@dataclass(frozen=True, slots=True)
class StatementField:
    """One row of the fields table; `explanation` is one sentence for people."""

    group: str
    label: str
    value: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something that the guarantee needs and mathematics alone does not give."""

    text: str
    state: AssumptionState
    evidence: str


@dataclass(frozen=True, slots=True)
class Statement:
    """Everything that the officer's page and the report say in words."""

    paragraph: str
    fields: tuple[StatementField, ...]
    assumptions: tuple[Assumption, ...]
    profile: tuple[tuple[float, float], ...]  # (delta, epsilon by PLD); no guarantee by itself where a Renyi filter decides
    recognised: tuple[tuple[float, float], ...]  # (share of false alarms, largest share of patients recognised)


def statement(events: Sequence[Event], plan: Plan | None = None) -> Statement:
    """The statement for the ledger's whole life, worded for `plan` or for the plan approved last."""
    view = budget_view(events, plan)
    charged = rules.charges(events)
    mechanisms = merged(counted(rules.releases(events)))
    return Statement(
        paragraph=paragraph(rules.hospital_of(events), view, charged, rules.guaranteed_cap(events)),
        fields=_fields(events, view, charged, mechanisms),
        assumptions=_assumptions(view, charged),
        profile=tuple((delta, stated(mechanisms, delta)) for delta in PROFILE_DELTAS),
        recognised=tuple((share, attacker_recognised(mechanisms, share)) for share in FALSE_ALARMS),
    )


def paragraph(hospital: str, view: BudgetView, charged: Sequence[Charge], kept: Cap | None) -> str:
    """The guarantee in one paragraph, for an officer to copy. `kept` is what the filter has kept at any time so far."""
    if not charged:
        return f"Nothing computed from patients has left {hospital} so far."
    last = f"Up to and including round {charged[-1].round} of study '{charged[-1].study}'"
    if math.isinf(view.spent):
        return (
            f"{last}, what {hospital} has sent has no guarantee: at least one update left without noise. Masking hides single "
            "updates from the coordinator, but their sum may reveal patients. Use only public or synthetic data this way."
        )
    return (
        f"{last}, everything {hospital} has sent satisfies {_guarantee(view, kept)}-differential privacy for adding or "
        f"removing all data of one patient{_reading(view)}, for {_mechanisms_in_words(charged)}. This covers all "
        f"intermediate and final models. {_adaptive(view, kept)}{_trust(view)}{_several(view)}It does not "
        "cover the quantities listed under What leaves this hospital as uncovered, and it does not cover choices made by "
        "looking at results unless they are charged in the ledger."
    )


def _guarantee(view: BudgetView, kept: Cap | None) -> str:
    """The pair that holds, in words."""
    epsilon, delta = guaranteed(view, kept)
    return f"(ε = {rounded_up(epsilon)}, δ = {plain(delta)})"


def guaranteed(view: BudgetView, kept: Cap | None) -> tuple[float, float]:
    """(epsilon, delta) that hold: what was read, or the cap that was kept where the reading itself is no guarantee."""
    if view.read_by != "renyi" or kept is None:
        return view.spent, view.delta
    return kept.epsilon, kept.delta


def _reading(view: BudgetView) -> str:
    if view.read_by == "pld":
        return f", computed with PLD accounting ({accountant_version()})"
    if view.read_by == "orders":
        return f", computed with {WHOLE_ORDERS}"
    return ", which a Rényi filter enforces"


def _adaptive(view: BudgetView, kept: Cap | None) -> str:
    if view.read_by == "renyi":
        return (
            "The settings of later studies may have been chosen after seeing results, so the figure is the cap: the filter has "
            f"read ε = {rounded_up(view.spent)} of it so far. If all settings had been fixed in advance, "
            f"{_fixed(view)} would read ε = {rounded_up(view.non_adaptive)}. "
        )
    if kept is None:
        return ""
    return f"Where people stop or go on because of results, the cap kept so far (ε = {kept.epsilon:g}) is the guarantee. "


def _trust(view: BudgetView) -> str:
    if view.relies is None:
        return "It does not rely on the coordinator or on other hospitals being honest. "
    return f"{view.relies.sentence} "


def _fixed(view: BudgetView) -> str:
    """What reads a ledger as if all settings had been fixed in advance."""
    return f"PLD accounting ({accountant_version()})" if view.relies is None else WHOLE_ORDERS


def _several(view: BudgetView) -> str:
    if view.hospitals_per_patient == 1:
        return "It assumes that a patient attends one hospital only. "
    return (
        f"For a patient who attends {view.hospitals_per_patient} hospitals, where the studies allow it, ε is "
        f"{rounded_up(view.across_hospitals)}. "
    )


def _mechanisms_in_words(charged: Sequence[Charge]) -> str:
    clips = sorted({charge.clip_norm for charge in charged})
    parts = [
        f"{one.steps} steps of Poisson sampling at rate {one.sampling_rate:.4g} with "
        f"{'' if one.shares is None else 'shared '}noise multiplier {one.noise_multiplier:g}"
        for one in merged(charge.mechanism for charge in charged)
    ]
    training = " and ".join(parts) + f" and clipping norm {' or '.join(f'{clip:g}' for clip in clips)}"
    sums = [f"{count} noised sums of scores with noise multiplier {sigma:g}" for sigma, count in _evaluations(charged).items()]
    return " and ".join([training, *sums])


def _evaluations(charged: Sequence[Charge]) -> Counter[float]:
    """How many evaluations left, by noise multiplier."""
    return Counter(charge.evaluation.noise_multiplier for charge in charged if charge.evaluation is not None)


def _fields(
    events: Sequence[Event], view: BudgetView, charged: Sequence[Charge], mechanisms: Sequence[Mechanism]
) -> tuple[StatementField, ...]:
    return (
        *_identity(events, view),
        *_protection(view),
        *_strength(view, mechanisms),
        *_mechanism(charged),
        *_composition(events, view, charged),
    )


def _identity(events: Sequence[Event], view: BudgetView) -> tuple[StatementField, ...]:
    group = "identity"
    return (
        StatementField(group, "hospital", rules.hospital_of(events), "Whose patients this is about."),
        StatementField(group, "study", view.study or "none", "The study whose plan the forecast follows."),
        StatementField(
            group, "ledger", f"{view.head[:12]} after {view.entries} entries", "Names everything that the figures derive from."
        ),
        StatementField(group, "last entry", f"{events[-1].at:%Y-%m-%d %H:%M} UTC", "By this node's own clock."),
    )


def _protection(view: BudgetView) -> tuple[StatementField, ...]:
    group = "what is protected"
    attends = "one hospital" if view.hospitals_per_patient == 1 else f"up to {view.hospitals_per_patient} hospitals"
    return (
        StatementField(group, "unit", "one patient: all scans of one person", "The figures bound what any one person adds."),
        StatementField(
            group, "neighbours", "add or remove one patient", "Two data sets that the releases must not tell apart."
        ),
        StatementField(
            group, "a patient attends", attends, "Stated in the plan; several hospitals compose to a larger epsilon."
        ),
    )


def _strength(view: BudgetView, mechanisms: Sequence[Mechanism]) -> tuple[StatementField, ...]:
    group = "strength"
    recognised = 100 * attacker_recognised(mechanisms)
    fields = [
        StatementField(group, "epsilon", rounded_up(view.spent), f"At delta {plain(view.delta)}, {_by(view)}."),
        StatementField(
            group,
            "non-adaptive reading",
            rounded_up(view.non_adaptive),
            f"By {_fixed(view)}, as if all settings had been fixed in advance.",
        ),
        StatementField(
            group,
            "coarser accountant",
            rounded_up(renyi_epsilon(mechanisms, view.delta)),
            "The same releases by Rényi accounting at its best order. `secagg-node budget` shows a third one, PRV.",
        ),
        StatementField(
            group,
            "attacker",
            f"at 1 false alarm in 100 at most {math.ceil(recognised - 1e-9)} of 100 recognised",
            f"The best possible attack on anything that was sent, {_attacker(view)}.",
        ),
        StatementField(
            group,
            "best guess",
            f"{100 * best_guess(mechanisms):.1f} %",
            f"How often {_guesser(view)} can be right, from a coin flip, whether a given patient took part.",
        ),
    ]
    if view.relies is not None:
        reached = rounded_up(view.relies.outsider)
        fields.append(StatementField(group, "epsilon against outsiders", reached, view.relies.sentence))
    if view.hospitals_per_patient > 1:
        explanation = f"Composed for a patient of {view.hospitals_per_patient} hospitals, not added."
        fields.append(StatementField(group, "epsilon across hospitals", rounded_up(view.across_hospitals), explanation))
    return tuple(fields)


def _attacker(view: BudgetView) -> str:
    if view.relies is None:
        return "whatever the attacker knows"
    return f"by whoever knows the noise of at most {view.relies.colluders} of the hospitals"


def _guesser(view: BudgetView) -> str:
    """Against whom the charged epsilon holds."""
    if view.relies is None:
        return "anyone"
    return f"the coordinator, together with at most {view.relies.colluders} of the hospitals,"


def _by(view: BudgetView) -> str:
    if view.read_by == "pld":
        return f"by {accountant_version()} (PLD)"
    if view.read_by == "orders":
        return f"by {WHOLE_ORDERS}"
    return "by the Rényi filter that decides; only the cap is a guarantee"


def _mechanism(charged: Sequence[Charge]) -> tuple[StatementField, ...]:
    if not charged:
        return ()
    group = "mechanism"
    mechanisms = merged(charge.mechanism for charge in charged)
    return (
        StatementField(group, "name", "DP-SGD", "Noise is added to the sum of clipped contributions, one for each patient."),
        StatementField(
            group,
            "noise multiplier",
            ", ".join(f"{one.noise_multiplier:g}" for one in mechanisms),
            _whose_noise(mechanisms),
        ),
        StatementField(
            group,
            "sampling",
            ", ".join(f"Poisson, rate {one.sampling_rate:.4g}" for one in mechanisms),
            "Each patient enters each step by its own secret coin; an empty step is a step.",
        ),
        StatementField(
            group, "steps", f"{sum(one.steps for one in mechanisms)}", "Over all rounds and studies of this ledger."
        ),
        StatementField(
            group,
            "clipping norm",
            ", ".join(f"{clip:g}" for clip in sorted({charge.clip_norm for charge in charged})),
            "One flat clip of a patient's whole gradient.",
        ),
        *_of_evaluations(group, charged),
    )


def _whose_noise(mechanisms: Sequence[Mechanism]) -> str:
    if not is_shared(mechanisms):
        return "Deviation of the noise over the clipping norm; this hospital adds all of it itself."
    own = "; without shares this hospital adds all of it itself" if any(one.shares is None for one in mechanisms) else ""
    return f"Deviation over the most that one patient changes; with shared noise the hospitals' shares add up to it{own}."


def _of_evaluations(group: str, charged: Sequence[Charge]) -> tuple[StatementField, ...]:
    counts = _evaluations(charged)
    if not counts:
        return ()
    values = ", ".join(f"{count} with noise multiplier {sigma:g}" for sigma, count in counts.items())
    explanation = (
        "Sums of scores over validation patients, noised here; counted for every patient, also for those who are trained on."
    )
    return (StatementField(group, "evaluations", values, explanation),)


def _composition(events: Sequence[Event], view: BudgetView, charged: Sequence[Charge]) -> tuple[StatementField, ...]:
    group = "composition"
    others = sorted({charge.study for charge in charged} - {view.study})
    agreed = rules.agreed_by(events)
    cap = "none yet" if view.cap is None else f"ε = {view.cap:g} at δ = {plain(view.delta)}, agreed by {agreed}"
    judge = {"pld": "PLD", "orders": "Rényi divergences at whole orders", "renyi": "Rényi filter at one order"}[view.reading]
    return (
        StatementField(group, "releases", str(len(charged)), "Charged before they left; a crash afterwards counts as spent."),
        StatementField(group, "rounds", f"{view.rounds_done} of {view.rounds_planned}", "Of this study's plan."),
        StatementField(group, "other studies", ", ".join(others) or "none", "On the same patients; they share this budget."),
        StatementField(group, "budget", cap, "For the life of this ledger; lowered by one person, raised only by two."),
        StatementField(group, "decided by", judge, "The reading that stops this node at the cap."),
        StatementField(group, "at exhaustion", "the node stops itself", "No round runs that would cross the cap."),
        StatementField(group, "refresh", "never", "Spent budget does not come back."),
    )


def _drawn(view: BudgetView, charged: Sequence[Charge]) -> str:
    """Why the draws are believed: with shared noise no accountant of the training records them."""
    own = "The training history is compared with the plan; an update that differs is discarded."
    shared = "With shared noise the node draws them itself, once a round; there is no training history to compare."
    if view.relies is None:
        return own
    return f"{own} {shared}" if any(charge.shared is None for charge in charged) else shared


def _of_the_noise(view: BudgetView, charged: Sequence[Charge]) -> tuple[Assumption, ...]:
    full = Assumption(
        "Noise is Gaussian at full strength, from a cryptographic generator.",
        "holds",
        "Up to floating point: uniforms of at least 53 bits, tails truncated.",
    )
    if view.relies is None:
        return (full,)
    others = Assumption(
        f"With shared noise, all but {view.relies.colluders} of the hospitals in every sum keep their noise to themselves "
        f"({view.relies.honest} of {view.relies.members}).",
        "unverified",
        "This hospital's own share is exact, in whole numbers; others' shares are committed to and otherwise believed.",
    )
    own = any(charge.shared is None or charge.evaluation is not None for charge in charged)
    return (full, others) if own else (others,)


def _assumptions(view: BudgetView, charged: Sequence[Charge]) -> tuple[Assumption, ...]:
    return (
        Assumption(
            "All scans of one person are joined under one patient id.",
            "unverified",
            "Patient ids or the mapping file of this hospital.",
        ),
        Assumption(
            f"A patient attends at most {view.hospitals_per_patient} of the hospitals.",
            "unverified",
            "Stated in the plan; nobody compared patient lists.",
        ),
        Assumption(
            "Patients are drawn independently, at the plan's rate, by secret coins.",
            "holds",
            _drawn(view, charged),
        ),
        *_of_the_noise(view, charged),
        Assumption(
            "Every use of these patients is charged here, tuning and evaluation included.",
            "unverified",
            "Work outside this node is not seen by it.",
        ),
    )
