"""Local training of a plan: every choice of a hospital's own steps, and which of them belong together.

A setting that nothing reads is refused: a plan states what was done. What each field changes and what it costs in epsilon is in
hospital_node/TRAINING.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from proto.frozen import Frozen, Positive

WHOLE_PARTS = ("all", "norms-and-biases")  # of training.parts that are no names of tensors

FP16_LOSS_SCALE = 1 << 12  # gradients from 1.5e-11 to 16 pass through float16: hospital_node/TRAINING.md, Half precision
MAX_LOSS_SCALE = 1 << 24  # gradients from 3.6e-15 to 0.004: nobody needs smaller ones

LossName = Literal["dice_ce", "dice", "ce", "focal_tversky"]  # hospital_node/losses.py


def _parts(parts: object) -> object:
    if isinstance(parts, str) and parts not in WHOLE_PARTS:
        raise ValueError(f"'{parts}' is none of {', '.join(WHOLE_PARTS)}: write beginnings of tensors' names as a list")
    return parts


Parts = Annotated[
    Literal["all", "norms-and-biases"] | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)],
    BeforeValidator(_parts),
]


def _power_of_two(scale: int) -> int:
    if scale & (scale - 1):
        raise ValueError(
            f"loss_scale {scale} is no power of two, so that dividing by it again would round: take {1 << scale.bit_length()}"
        )
    return scale


LossScale = Annotated[int, Field(ge=1, le=MAX_LOSS_SCALE), AfterValidator(_power_of_two)]


class Training(Frozen):
    """Local training of one round."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive = 1e-2
    learning_rate_decay: float = Field(default=1.0, gt=0, le=1)  # of schedule "exponential": factor per round
    momentum: float = Field(default=0.0, ge=0, lt=1)
    local_steps: int = Field(ge=1)
    patches_per_patient: int = Field(default=2, ge=1)
    foreground_share: float = Field(default=0.67, ge=0, le=1)  # patches centred on a labelled voxel
    balance_labels: bool = False  # of these, each label of the scan as often as another, however large it is
    augment: bool = True
    augment_rotation_deg: float = Field(default=0.0, ge=0, le=45)  # each patch is turned by up to this about each axis
    augment_scale: float = Field(default=0.0, ge=0, le=0.5)  # and enlarged or shrunk by up to this share
    loss: LossName = "dice_ce"
    weight_decay: float = Field(default=0.0, ge=0, le=1)  # of adamw
    nesterov: bool = False  # of sgd with momentum
    schedule: Literal["exponential", "constant", "cosine"] = "exponential"  # of the learning rate over the rounds
    warmup_rounds: int = Field(default=0, ge=0)  # the rate rises in even steps before the schedule begins
    proximal: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # mu of FedProx, pulls towards the round's base model
    parts: Parts = "all"  # which tensors are trained and sent: proto/parts.py
    adapter_rank: int | None = Field(default=None, ge=1)  # of low-rank factors in the place of tensors with two or more axes
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # inside the network; norm, clip, loss and noise are float32 or wider
    loss_scale: LossScale | None = None  # of fp16: the loss times this before the way back; None: FP16_LOSS_SCALE
    micro_batch: int | None = Field(default=None, ge=1)  # patches of a patient run at once; None: all
    checkpointing: bool = False  # inner values of each block are computed again for the gradient, not kept

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.augment_rotation_deg or self.augment_scale) and not self.augment:
            raise ValueError("augment_rotation_deg and augment_scale need augment = true: leave them out, or augment")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for sgd, {self.optimizer} keeps moments of its own: leave it out, or use sgd")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, and there is none: set momentum, or leave it out")
        if (self.optimizer == "adamw") != (self.weight_decay > 0):
            raise ValueError(
                "optimizer adamw and weight_decay go together: adamw without decay is adam, no other optimizer decays"
            )
        if self.schedule != "exponential" and self.learning_rate_decay != 1:
            raise ValueError(f"learning_rate_decay is for schedule exponential: leave it out with schedule {self.schedule}")
        if self.loss_scale is not None and self.precision != "fp16":
            raise ValueError(f"loss_scale is for precision fp16, {self.precision} has the range of float32: leave it out")
        if self.parts == "norms-and-biases" and self.adapter_rank is not None:
            raise ValueError("adapter_rank is for tensors with two or more axes, and parts leaves none: leave one of them out")
        if self.optimizer == "sgd" and self.proximal * self.learning_rate >= 1:
            raise ValueError(
                f"proximal {self.proximal:g} times learning_rate {self.learning_rate:g} is 1 or more, so that one step would "
                "throw the model past its base: lower one of them"
            )
        return self

    def rate(self, round_number: int, rounds: int) -> float:
        """Learning rate of all local steps of one round, 1 to `rounds`: a public function, the same at every hospital.

        During the warm-up it rises in even steps to the full rate, which the first round after it has. From there "exponential"
        falls by learning_rate_decay a round, "cosine" along half a cosine that would reach zero one round after the last, and
        "constant" stays.
        """
        warm = self.warmup_rounds
        if round_number <= warm:
            return self.learning_rate * round_number / (warm + 1)
        after = round_number - 1 - warm  # rounds since the first at the full rate
        match self.schedule:
            case "exponential":
                return self.learning_rate * float(self.learning_rate_decay**after)
            case "cosine":
                return self.learning_rate * (1 + math.cos(math.pi * after / (rounds - warm))) / 2
            case "constant":
                return self.learning_rate

    @property
    def scale_of_loss(self) -> int:
        """What a patient's loss is multiplied by before the way back, and its gradient divided by; 1 but for fp16."""
        return (self.loss_scale or FP16_LOSS_SCALE) if self.precision == "fp16" else 1

    @property
    def trains_all(self) -> bool:
        """Whether an update is as long as the model."""
        return self.parts == "all" and self.adapter_rank is None
