"""What goes with a released model: the plan that it was trained by, where it comes from, and its privacy in one sentence.

Rule: everything here follows from the plan and the model file's own provenance; nothing is asked of a hospital. The epsilon is
that of the plan's rounds up to the model's. What a hospital's patients have spent in all is in that hospital's ledger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hospital_node.accounting import accountant_version
from hospital_node.cap import plain, rounded_up, stated
from hospital_node.ledger_rules import planned
from proto.modelfile import Model
from proto.plan import Plan, short_name

ROUND_KEY, DIGEST_KEY = "round", "digest"  # as the coordinator writes them beside a model


@dataclass(frozen=True, slots=True)
class Card:
    """The model's privacy. `epsilon` is infinite without a guarantee; `round` is None for a model that names none."""

    plan: Plan
    round: int | None
    digest: str  # of the vector that was released, also where this file holds a rounded one
    epsilon: float

    @property
    def sentence(self) -> str:
        """The guarantee, for people; what it leaves out is named."""
        after = f"round {self.round} of {self.plan.rounds}" if self.round is not None else f"all {self.plan.rounds} rounds"
        if math.isinf(self.epsilon):
            return (
                f"After {after} of study '{self.plan.study}' this model has no differential privacy guarantee: its plan adds "
                "no noise. It may reveal patients whom it was trained on."
            )
        attends = self.plan.privacy.hospitals_per_patient
        several = f" of up to {attends} hospitals" if attends > 1 else ""
        return (
            f"After {after} of study '{self.plan.study}' this model and all before it satisfy (ε = {rounded_up(self.epsilon)}, "
            f"δ = {plain(self.plan.privacy.delta)})-differential privacy for adding or removing all data of one "
            f"patient{several}, by the plan and PLD accounting ({accountant_version()}). Other studies on the same patients "
            "add to it, and a public start that was trained on private data is not covered."
        )

    def metadata(self) -> dict[str, str]:
        """For a model file: text by key."""
        return {
            "plan": self.plan.canonical().decode(),
            "plan_digest": self.plan.digest().hex(),
            "study": self.plan.study,
            "privacy": self.sentence,
            "epsilon": "inf" if math.isinf(self.epsilon) else rounded_up(self.epsilon),
            "delta": plain(self.plan.privacy.delta),
            DIGEST_KEY: self.digest,
        }


def card_of(plan: Plan, model: Model) -> Card:
    """What the plan says of this model; the hospital with most steps counts."""
    text = model.provenance.get(ROUND_KEY, "")
    number = int(text) if text.isdigit() and int(text) <= plan.rounds else None
    rounds = plan.rounds if number is None else number
    attends = plan.privacy.hospitals_per_patient
    worst = 0.0
    for name in {short_name(hospital.uri) for hospital in plan.hospitals}:
        spent = [one.times(attends) for one in planned(plan, name, rounds)]
        worst = max(worst, stated(spent, plan.privacy.delta))
    return Card(plan, number, model.provenance.get(DIGEST_KEY, model.digest.hex()), worst)
