"""What the app and the report show of a hospital besides its figures: the table of everything that leaves it.

Rule: a row exists for whatever a reader outside this hospital can see, covered by epsilon or not; sizes are measured on the
connection (progress.Leaves), never estimated. What is never sent is said too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from hospital_node.progress import Leaves
from hospital_node.statement import Assumption, Statement, StatementField, statement
from proto.plan import Plan

__all__ = ["Assumption", "Leaving", "Statement", "StatementField", "statement", "what_leaves"]

Covered: TypeAlias = Literal["yes", "no", "not personal"]

KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Leaving:
    """One item that leaves the hospital. `sent_bytes` is of the last round, None where it was not measured by itself."""

    item: str
    how_often: str
    sent_bytes: int | None
    readable_by: str
    covered: Covered
    why: str
    switch_off: str

    @property
    def size(self) -> str:
        """The size for people."""
        if self.sent_bytes is None:
            return "-"
        if self.sent_bytes < KIB:
            return f"{self.sent_bytes} B"
        if self.sent_bytes < KIB * KIB:
            return f"{self.sent_bytes / KIB:.1f} KiB"
        return f"{self.sent_bytes / (KIB * KIB):.1f} MiB"


def what_leaves(plan: Plan, leaves: Leaves | None) -> tuple[Leaving, ...]:
    """The table for one study. Without measurements the sizes are missing, the rows are not."""
    return (
        *_of_the_update(plan, leaves),
        *_of_precisions(plan),
        *_of_evaluation(plan),
        *_of_the_protocol(leaves),
        *_of_taking_part(plan, leaves),
    )


def _of_the_update(plan: Plan, leaves: Leaves | None) -> tuple[Leaving, ...]:
    covered: Covered = "no" if plan.privacy.no_guarantee else "yes"
    return (
        Leaving(
            "masked update",
            "once a round",
            leaves.bytes_of("mask") if leaves else None,
            "nobody alone; the coordinator reads only the sum over the cohort",
            covered,
            "it is the training result of this hospital",
            "decline the round",
        ),
        Leaving(
            "sum of updates and the new model",
            "once a round",
            None,
            "all members and the coordinator",
            covered,
            "it is what the study is for; every intermediate model counts as released",
            "withdraw the approval",
        ),
    )


def _of_precisions(plan: Plan) -> tuple[Leaving, ...]:
    if plan.aggregation.weights != "precision":
        return ()
    return (
        Leaving(
            "how certain this hospital is of each value, from its noised steps, inside the masked update",
            "once a round",
            None,
            "nobody alone; the coordinator reads only the sum over the cohort",
            "no" if plan.privacy.no_guarantee else "yes",
            "hospitals weigh in the mean by their certainty",
            "leave aggregation.weights out of the plan",
        ),
    )


def _of_evaluation(plan: Plan) -> tuple[Leaving, ...]:
    part = plan.evaluation
    if part is None:
        return ()
    return (
        Leaving(
            "sums of scores over validation patients, with noise, inside the masked update",
            "once a round" if part.every == 1 else f"once in {part.every} rounds",
            None,
            "nobody alone; the coordinator reads only the sum over the cohort, with the noise of each hospital",
            "yes" if part.noise_multiplier else "no",
            "it says how good the model is for the hospitals' own patients",
            "leave [evaluation] out of the plan",
        ),
    )


def _of_the_protocol(leaves: Leaves | None) -> tuple[Leaving, ...]:
    return (
        Leaving(
            "public keys, sealed key shares, signatures",
            "once a round",
            leaves.bytes_of("advertise", "share", "confirm", "reveal") if leaves else None,
            "the other hospitals; the coordinator relays them",
            "not personal",
            "masks cancel in the sum and a lost hospital's mask can be removed",
            "no",
        ),
        Leaving(
            "receipt of the privacy ledger",
            "once a round",
            None,
            "the coordinator",
            "not personal",
            "shows that the ledger goes on; it says nothing about what was spent",
            "no",
        ),
        Leaving(
            "connection, polls, software version",
            "all the time",
            leaves.bytes_of("join", "poll", "broadcast", "result") if leaves else None,
            "the coordinator",
            "not personal",
            "nodes dial out and ask for work",
            "no",
        ),
        Leaving(
            "certificate",
            "at each connection",
            None,
            "everyone on the way",
            "not personal",
            "it names a hospital, not a person",
            "no",
        ),
    )


def _of_taking_part(plan: Plan, leaves: Leaves | None) -> tuple[Leaving, ...]:
    hidden = plan.timing.ready_after_s > 0
    return (
        Leaving(
            "declared number of patients and weight",
            "once, in the plan",
            None,
            "all members and the coordinator",
            "no",
            "fixes the divisor of the noised sum; it is declared, and the true number never leaves",
            "declare a rounder number",
        ),
        Leaving(
            "training state: training, ready, declined or failed, with a coarse code",
            "a few times a round",
            leaves.bytes_of("train") if leaves else None,
            "the coordinator",
            "no",
            "the cohort forms from hospitals that are ready",
            "no",
        ),
        Leaving(
            "duration of training",
            "once a round",
            None,
            "the coordinator",
            "not personal" if hidden else "no",
            "reported at a fixed time" if hidden else "it follows the number of drawn patients",
            "only whole multiples of timing.ready_after_s show" if hidden else "set timing.ready_after_s in the plan",
        ),
        Leaving(
            f"images, losses, {_scores(plan)}, numbers of drawn patients, what the studies are like, log lines, file names",
            "never",
            0,
            "nobody outside",
            "not personal",
            "not needed: accuracy is measured on public data" + (" and by noised sums" if plan.evaluation else ""),
            "is off",
        ),
    )


def _scores(plan: Plan) -> str:
    return "scores of single patients, sums without noise" if plan.evaluation else "accuracy on own patients"
