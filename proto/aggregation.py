"""What the coordinator does with the opened mean: the part `aggregation` of a plan.

All of it works on a sum that is open anyway, so it costs no privacy (post-processing). Rules: Reddi et al. 2021
(arXiv 2003.00295), algorithm 2, and Hsu et al. 2019 (arXiv 1909.06335) for momentum. Rule scaffold also corrects the local
steps, by what all parties know of earlier rounds (proto/scaffold.py).
"""

from __future__ import annotations

import math
from itertools import repeat
from typing import Literal, Self

from pydantic import Field, model_validator

from proto.frozen import Frozen, Positive

__all__ = ["ADAPTIVE", "Aggregation"]

ADAPTIVE = ("adagrad", "adam", "yogi")
UNREAD = {  # fields that a rule has no use for
    "mean": ("second_momentum", "adaptivity"),
    "adagrad": ("second_momentum",),
    "scaffold": ("momentum", "second_momentum", "adaptivity", "absent", "weights"),
}


class Aggregation(Frozen):
    """The server step. `rule` mean: FedAvg, with momentum FedAvgM; FedAdagrad, FedAdam, FedYogi; scaffold (scaffold.py)."""

    learning_rate: Positive = 1.0
    momentum: float = Field(default=0.0, ge=0, lt=1)  # beta 1 of the adaptive rules
    rule: Literal["mean", "adagrad", "adam", "yogi", "scaffold"] = "mean"
    second_momentum: float = Field(default=0.99, ge=0, lt=1)  # beta 2 of adam and yogi
    adaptivity: Positive = 1e-3  # tau, in units of the update; the second moment begins at its square
    learning_rate_decay: float = Field(default=1.0, gt=0, le=1)  # factor per round
    absent: Literal["left-out", "momentum"] = "left-out"  # who stands in for hospitals that are not in a sum
    weights: Literal["declared", "precision"] = "declared"  # precision: each value also by its certainty (proto/precision.py)
    precision_scale: Positive = 1.0  # deviation of a noised gradient value that halves its weight

    @model_validator(mode="after")
    def _check(self) -> Self:
        unused = UNREAD.get(self.rule, ())
        fields = type(self).model_fields
        strange = [name for name in unused if getattr(self, name) != fields[name].default]
        if strange:
            raise ValueError(f"aggregation.rule {self.rule} does not read {' and '.join(strange)}: leave it out")
        if self.weights == "declared" and self.precision_scale != fields["precision_scale"].default:
            raise ValueError("aggregation.precision_scale is for weights precision: leave it out, or set weights")
        return self

    @property
    def is_adaptive(self) -> bool:
        """Whether every coordinate has a rate of its own."""
        return self.rule in ADAPTIVE

    def rate(self, number: int) -> float:
        """Learning rate of a round, from 1; by products one after another, so that every machine has the same bits."""
        return math.prod(repeat(self.learning_rate_decay, number - 1), start=self.learning_rate)
