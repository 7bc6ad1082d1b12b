"""What people may decide here, and what follows from it, in words and figures; plain Python.

The rule: what an approval would cost is the ledger's own reading of it (hospital_node.offer); what was decided is in the audit
log, which is verified before a line of it is shown. This file asks nobody and records nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from certs.audit import AuditError, Record
from certs.audit_file import AuditLog
from hospital_node.ledger import BudgetView, LedgerError
from hospital_node.offer import approval
from hospital_node.proposals import Proposal
from hospital_node.proposals import standing as standing_proposal
from proto.plan import Plan
from ui import sources
from ui.figures import Figure, Headline
from ui.sources import Hospital
from ui.store_reading import Federation
from ui.words import NO_GUARANTEE, counted, epsilon, moment, plain

PROPOSED_EPSILON = 8.0  # shown where the ledger has no cap yet; the officer types what was agreed
NEWEST_ACTIONS = 30
GROUP = 8  # hexadecimal digits that people compare at a glance
KINDS = {
    "approve": "approved the plan",
    "approve-proposed": "proposed a higher cap, which a second person has to confirm",
    "confirm": "confirmed a higher cap",
    "confirm-refused": "tried to confirm a higher cap; refused",
    "approve-refused": "tried to approve the plan; refused",
    "decline": "declined the plan",
    "decline-refused": "tried to decline the plan; refused",
    "pause": "paused the node",
    "pause-refused": "tried to pause the node; refused",
    "write-report": "had a report written",
    "write-report-refused": "asked for a report; refused",
    "patient-withdrawn": "recorded that a patient withdrew",
    "withdrawal-completed": "completed a withdrawal that was cut off",
    "resume": "let the node go on",
    "resume-refused": "tried to let the node go on; refused",
    "leave": "asked the node to leave",
    "pause-rounds": "held further rounds back",
    "resume-rounds": "let rounds go on",
    "abort-round": "ended a round",
}


@dataclass(frozen=True, slots=True)
class Consequence:
    """What approving would come to. `problem` says why the ledger would refuse it whoever asks."""

    headline: Headline
    figures: tuple[Figure, ...] = ()
    second_person: bool = False  # the cap would rise
    possible: bool = True


def standing(found: Hospital) -> Headline:
    """What there is to decide at a hospital."""
    if found.problem:
        return Headline("stop", "The ledger cannot be used: nothing can be decided here", found.problem)
    if found.plan is None:
        return Headline("plain", "No plan is offered yet", "It comes with the node's first connection to the coordinator.")
    agreed = approval(found.events, found.plan)
    if found.budget is not None and found.budget.state == "paused":
        return Headline("watch", "This hospital is paused", found.budget.sentence)
    if agreed is None:
        return Headline("watch", f"Study '{found.plan.study}' waits for a decision", "Until then this hospital sends nothing.")
    return Headline("good", f"Study '{found.plan.study}' is approved", f"By {agreed.by}: {agreed.reason}.")


def offered_terms(plan: Plan, hospital: str) -> list[dict[str, str]]:
    """The plan as an officer reads it before agreeing; the digest in groups, which can be compared and fit on any line."""
    shown = dict(sources.terms_of(plan, hospital))
    digest = shown["digest"]
    shown["digest"] = " ".join(digest[place : place + GROUP] for place in range(0, len(digest), GROUP))
    return [{"what": name, "in this plan": text} for name, text in shown.items()]


def is_approved(found: Hospital, plan: Plan) -> bool:
    """Whether an approval of exactly this plan is in force."""
    return approval(found.events, plan) is not None


def present_cap(found: Hospital) -> float | None:
    """The cap in force; None before the first approval."""
    return None if found.budget is None else found.budget.cap


def consequence(found: Hospital, plan: Plan, chosen: float) -> Consequence:
    """What approving `plan`, the one on offer, under a cap of `chosen` would come to, before anybody does."""
    try:
        view = sources.after_approval(found.folder, found.head, plan.digest(), chosen)
    except LedgerError as error:
        return Consequence(Headline("stop", "This cannot be approved", str(error)), possible=False)
    if plan.privacy.no_guarantee:
        said = "Updates would leave without noise: only public or synthetic data may take part."
        return Consequence(Headline("watch", "Approving gives no guarantee to any patient", said), (_spent(found),))
    present = present_cap(found)
    return Consequence(_after(view), _figures(found, view), second_person=present is not None and chosen > present)


def _after(view: BudgetView) -> Headline:
    left, cap = counted(len(view.forecast), "round"), f"{view.cap or 0:g}"
    if not view.forecast:
        return Headline("plain", "Approving changes nothing: the plan has no further round", "")
    if view.rounds_left == 0:
        return Headline("stop", f"Under a cap of {cap} not even one round fits", "This hospital would train nothing.")
    if view.stops_after_round is not None:
        title = f"Under a cap of {cap} this hospital stops by itself after round {view.stops_after_round}"
        return Headline("watch", title, f"Of {view.rounds_planned} planned rounds {view.rounds_left} more fit.")
    return Headline(
        "good", f"Under a cap of {cap} all {left} that are left fit", f"They end at {epsilon(view.forecast[-1][1])}."
    )


def _figures(found: Hospital, view: BudgetView) -> tuple[Figure, ...]:
    if not view.forecast:
        return (_spent(found),)
    explained = "The ledger's own reading of the moment after the approval; nothing is spent by approving."
    after = dict(view.forecast)
    last = view.next_round - 1 + view.rounds_left
    first = "" if view.next_epsilon is None else f"ε {epsilon(view.next_epsilon)}"
    end = f"ε {epsilon(after[last])}" if last in after else "–"
    delta = f"δ {plain(view.delta)} · unit: one patient"
    return (
        _spent(found),
        Figure(f"After round {view.next_round}", first or "–", delta, explained),
        Figure("At the end", end, f"after round {last}" if last in after else "no round fits", explained),
    )


def _spent(found: Hospital) -> Figure:
    explained = "What all studies of this hospital have cost so far, of its whole life."
    budget = found.budget
    if budget is None or (not budget.rounds_done and budget.spent == 0):
        return Figure("Spent so far", "nothing", "no round has left this hospital", explained)
    said = NO_GUARANTEE if budget.state == "no guarantee" else f"ε {epsilon(budget.spent)}"
    return Figure("Spent so far", said, f"δ {plain(budget.delta)} · unit: one patient", explained)


def of_rounds(seen: Federation | None) -> Headline:
    """What there is to decide at the coordinator."""
    if seen is None:
        return Headline("plain", "The coordinator has not started yet", "")
    if seen.finished:
        return Headline("plain", "The run is over", "There is nothing to decide any more.")
    _, held, why = seen.waiting.partition("paused by ")
    if held:
        return Headline("watch", "No further round is opened", f"Paused by {why}.")
    return Headline("good", "Rounds are opened as the plan says", "")


def under_way(seen: Federation | None) -> int | None:
    """The round that could be ended; None where none is open."""
    if seen is None or seen.finished or not seen.rounds:
        return None
    last = seen.rounds[-1]
    return None if last.state in {"opened", "aborted"} else last.number


def actions(folder: Path) -> tuple[Record, ...]:
    """The audit log of a state folder, verified. Raises AuditError, which names the first bad line."""
    return AuditLog.within(folder).read()


def waiting_for_a_second(found: Hospital, at: datetime) -> Proposal | None:
    """The higher cap that somebody proposed for the plan on offer; None where there is none, or the log cannot be trusted."""
    try:
        proposal = standing_proposal(actions(found.folder), at)
    except AuditError:
        return None
    offered = None if found.plan is None else found.plan.digest().hex()
    return proposal if proposal is not None and proposal.plan == offered else None


def action_rows(records: Sequence[Record], zone: tzinfo) -> list[dict[str, str]]:
    """The newest first, in words."""
    return [
        {
            "when": moment(record.at, zone),
            "who": record.action.by + _account(record),
            "what": KINDS.get(record.action.kind, record.action.kind.replace("-", " ")) + _about(record),
            "why": record.action.reason or "–",
            "kept as": _kept_as(record),
        }
        for record in records[: -NEWEST_ACTIONS - 1 : -1]
    ]


def _about(record: Record) -> str:
    fields = record.action.fields
    return f" (round {fields['round']})" if record.action.kind == "abort-round" and "round" in fields else ""


def _account(record: Record) -> str:
    """The account that was signed in; nothing where the name was typed."""
    subject = record.action.fields.get("subject")
    return f" ({subject})" if subject else ""


def _kept_as(record: Record) -> str:
    entry = record.action.fields.get("ledger entry")
    return f"ledger entry {entry}" if entry else f"record {record.seq}"


__all__ = ["AuditError", "Consequence", "actions"]
