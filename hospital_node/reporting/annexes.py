"""Annexes of the report: the same facts in the order in which boards ask for them. Pure, from the report alone.

Orders: GDPR Article 35(7) (a) to (d); the clauses 6 to 9 of ISO/IEC 27559:2022; the levels of the pyramid of NIST SP 800-226,
from its top down. A head that only the hospital can fill says so and is left to it; nothing is invented.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hospital_node.cap import plain, rounded_up
from hospital_node.reporting.model import PrivacyReport

UNSTATED: Final = "To be stated by the hospital: this software does not know it."


@dataclass(frozen=True, slots=True)
class Annex:
    """One annex. `rows` are (head, text); `source` is the order that they follow, or empty."""

    title: str
    source: str
    rows: tuple[tuple[str, str], ...]


def annexes(report: PrivacyReport) -> tuple[Annex, ...]:
    """All annexes, in the order of the report."""
    return assessment(report), de_identification(report), pyramid(report), glossary()


def assessment(report: PrivacyReport) -> Annex:
    """Material for a data protection impact assessment."""
    subject, governance = report.subject, report.governance
    declared = "an undeclared number of" if subject.declared_patients is None else f"{subject.declared_patients} (declared)"
    where = f"study '{subject.study}' on scans of {declared} patients at {subject.hospital}"
    items = f"{len(report.leaves)} items, {len(report.unprotected_quantities)} of them not covered by epsilon"
    rows = (
        (
            "(a) The processing and its purposes",
            f"Training of one segmentation network in {where}. Scans are read there and stay there. {purpose(report)}",
        ),
        ("(a) Interests pursued, legal basis", governance.legal_basis or UNSTATED),
        (
            "(b) Necessity and proportionality",
            f"What leaves is listed item by item with its need: {items}. {_switches(report)}",
        ),
        ("(c) Risks to the rights and freedoms of patients", risk(report)),
        ("(c) Risks that epsilon does not cover", _uncovered(report)),
        ("(d) Measures: limits of what can be learned", report.statement.paragraph),
        ("(d) Measures: limits over time", limits(report)),
        ("(d) Measures: security", security(report)),
        ("(d) Measures: safeguards that rest on assumptions", assumptions(report)),
        ("Assessment that this belongs to, and who approves", _joined(governance.dpia_reference, governance.approver)),
        ("Review", governance.next_review or UNSTATED),
        ("Contact and incidents", _joined(governance.contact, governance.incident_route)),
    )
    return Annex("Material for a data protection impact assessment", "GDPR, Article 35(7)", rows)


def de_identification(report: PrivacyReport) -> Annex:
    """The heads of ISO/IEC 27559. The report makes no claim of conformity."""
    rows = (
        ("Context assessment: who may learn from what leaves", actors(report)),
        ("Context assessment: transparency", f"This report, number {report.number}, signed by {report.signer.uri}."),
        (
            "Data assessment: principals and data",
            f"{_unit(report)}. Attributes, direct identifiers included, stay at the hospital.",
        ),
        (
            "Data assessment: attack model",
            "The best attack there can be, on everything that was ever sent, with any other knowledge.",
        ),
        ("Identifiability assessment: figure", risk(report)),
        ("Identifiability assessment: tried attacks", _evidence(report)),
        ("Mitigation: the environment", security(report)),
        ("Mitigation: the data", mechanisms(report)),
        ("Mitigation: what remains", _uncovered(report)),
        ("Governance: before release", f"Budget: {report.budget.agreed}. {limits(report)}"),
        ("Governance: after release", _joined(report.governance.next_review, report.governance.incident_route)),
    )
    return Annex("Heads of a de-identification framework", "ISO/IEC 27559:2022, clauses 6 to 9; no claim of conformity", rows)


def pyramid(report: PrivacyReport) -> Annex:
    """NIST's levels: each rests on those below it."""
    rows = (
        ("Epsilon", _figure(report)),
        ("Unit of privacy", f"{_unit(report)}; neighbours differ by adding or removing one."),
        ("Algorithms and correctness", mechanisms(report)),
        (
            "Utility and bias",
            "; ".join(f"{one.kind}: {one.result}" for one in report.utility) or "No measurement is recorded at this node.",
        ),
        ("Trust model", actors(report)),
        ("Side channels", _uncovered(report)),
        ("Security and access control", security(report)),
        ("Data collection", "Scans are those that the hospital holds; this software collects none and copies none out."),
    )
    return Annex("Levels of the differential privacy pyramid", "NIST SP 800-226", rows)


def glossary() -> Annex:
    """Words of the report, each in one sentence."""
    rows = (
        (
            "Epsilon (ε)",
            "How far what was sent can shift anyone's belief about one patient; smaller is stronger, and it never goes down.",
        ),
        ("Delta (δ)", "The small probability that is left out of the bound that epsilon gives."),
        ("Unit", "What is protected as a whole: here everything of one person."),
        ("Accountant", "The method that adds up what many releases cost together: PLD, PRV and Rényi are three of them."),
        ("DP-SGD", "Training in which each patient's contribution is clipped and noise is added to their sum in every step."),
        ("Clipping norm", "The longest contribution that one patient can make to a step."),
        ("Noise multiplier", "The deviation of the noise over the clipping norm."),
        (
            "Masking",
            "Hospitals hide their updates from the coordinator, which opens only their sum; Trust says if figures rest on it.",
        ),
        ("Cap", "The most that this hospital has agreed to spend, for the life of its ledger; the node stops itself there."),
        (
            "Ledger",
            "The node's own list of all releases and decisions, in which every entry names the digest of the one before.",
        ),
    )
    return Annex("Words used", "", rows)


def purpose(report: PrivacyReport) -> str:
    """What the product is for, as the hospital says it."""
    stated = report.publication.intended_use
    return f"Intended use: {stated.rstrip('.')}." if stated else "Intended use: to be stated by the hospital."


def risk(report: PrivacyReport) -> str:
    """What an attacker gains, in patients of a hundred."""
    if report.guarantee.no_guarantee:
        return "Nothing limits what can be learned about a patient: at least one update left without noise."
    shares = [
        f"at {100 * one.false_alarms:g} % false alarms at most {percent_up(one.recognised)} of the patients are recognised"
        for one in report.guarantee.attacker
    ]
    guess = f"{100 * report.guarantee.best_guess:.1f} %"  # as the statement writes it
    return f"{'; '.join(shares).capitalize()}. From a coin flip, a guess is right at most {guess} of the time."


def percent_up(share: float) -> str:
    """A share in percent with one decimal, never rounded down."""
    return f"{math.ceil(share * 1000 - 1e-6) / 10:.1f} %"


def limits(report: PrivacyReport) -> str:
    """Cap, stop and refresh."""
    budget = report.budget
    cap = "no cap is agreed yet" if budget.epsilon is None else f"cap ε = {budget.epsilon:g} at δ = {plain(budget.delta)}"
    left = f"{budget.rounds_left} further round{'' if budget.rounds_left == 1 else 's'} fit"
    return (
        f"{cap[:1].upper()}{cap[1:]}; {left}; at exhaustion {budget.on_exhaustion}; spent budget comes back {budget.refresh}."
    )


def security(report: PrivacyReport) -> str:
    """Transport, keys, audit log."""
    kept = report.security
    log = f"An audit log of {kept.audit_records} records" if kept.audit_records else "An audit log, without records so far"
    until = f"Certificate by {kept.certificate_issuer}, until {kept.certificate_until:%Y-%m-%d}"
    return f"{kept.transport}. {until}. Key: {kept.key_at_rest}. {log}."


def assumptions(report: PrivacyReport) -> str:
    """How many stand, and those that do not."""
    open_ones = [f"{one.state[:1].upper()}{one.state[1:]}: {one.text}" for one in report.assumptions if one.state != "holds"]
    held = len(report.assumptions) - len(open_ones)
    return " ".join([f"{held} of {len(report.assumptions)} hold.", *open_ones])


def actors(report: PrivacyReport) -> str:
    """Who is trusted for what."""
    return " ".join(f"{one.who[:1].upper()}{one.who[1:]}: trusted for {one.trusted_for}." for one in report.trust.actors)


def mechanisms(report: PrivacyReport) -> str:
    """Every mechanism, with its figures."""
    if not report.mechanisms:
        return "Nothing computed from patients has left."
    parts = []
    for one in report.mechanisms:
        clips = " or ".join(f"{clip:g}" for clip in one.clip_norms)
        if one.name == "dp_sgd":
            parts.append(
                f"DP-SGD: {one.steps} steps, Poisson sampling at rate {one.sampling_rate:.4g}, noise multiplier "
                f"{one.noise_multiplier:g} (noise of {one.noise_of}), flat clip of a patient's whole gradient to {clips}"
            )
        else:
            parts.append(f"{one.steps} noised sums of scores, noise multiplier {one.noise_multiplier:g} of sensitivity {clips}")
    return f"{'; '.join(parts)}. Noise comes from a cryptographic generator seeded by the operating system."


def _unit(report: PrivacyReport) -> str:
    return report.guarantee.unit_in_words[:1].upper() + report.guarantee.unit_in_words[1:]


def _figure(report: PrivacyReport) -> str:
    guarantee = report.guarantee
    if guarantee.no_guarantee:
        return "No finite epsilon holds."
    second = guarantee.cross_check.epsilon
    beside = "" if second is None else f" A second library (PRV) reads {rounded_up(second)}."
    rests = "" if guarantee.reliance is None else f" {guarantee.reliance.sentence}"
    return f"ε = {guarantee.stated_epsilon} at δ = {plain(guarantee.delta)}, over the ledger's whole life.{beside}{rests}"


def _uncovered(report: PrivacyReport) -> str:
    if not report.leaves:
        return "No plan is known, so nothing is listed."
    items = report.unprotected_quantities
    return (
        f"Not covered by epsilon: {_listed(items)}."
        if items
        else "Every item of a personal nature that leaves is covered by epsilon."
    )


def _switches(report: PrivacyReport) -> str:
    optional = sum(row.switch_off not in {"no", "is off"} for row in report.leaves)
    return f"For {optional} of them the list says how to do without."


def _evidence(report: PrivacyReport) -> str:
    return "; ".join(f"{one.kind}: {one.result}" for one in report.evidence) or "No attack was recorded at this node."


def _listed(items: Sequence[str]) -> str:
    return "; ".join(items)


def _joined(*stated: str | None) -> str:
    known = [one for one in stated if one]
    return "; ".join(known) if known else UNSTATED
