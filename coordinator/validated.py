"""What an opened round says of an evaluation on the hospitals' own patients. Part of `rounds.step`, and as pure."""

from __future__ import annotations

import math

from coordinator.events import SaveValidation
from coordinator.turn import Turn
from proto.evaluation import in_words, label_means


def validated(turn: Turn, sums: tuple[float, ...], hospitals: int) -> None:
    """What rode along of an evaluation: of the model that the round began from. Only means are kept, never the sums."""
    plan = turn.state.plan
    if plan.evaluation is None or not sums:
        return
    labels = plan.network.labels
    means = label_means(labels, sums, plan.evaluation.deviation(len(labels)) * math.sqrt(hospitals))
    turn.emit(SaveValidation(turn.state.round, turn.state.base_round, hospitals, means))
    said = ", ".join(f"{one.label} {in_words(one)}" for one in means)
    turn.record("validated", f"model of round {turn.state.base_round} on the hospitals' own patients, noised: {said}")
