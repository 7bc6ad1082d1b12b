"""The part `privacy` of a plan: the mechanism that every patient is protected by, in either noise mode.

Rule: `noise_multiplier` means the same in both: the deviation of the noise over the most that one patient changes in one step.
With local noise every hospital adds it to its own sum. With shared noise the hospitals' shares add up to it in the opened sum
(proto/shared_noise.py), for as many hospitals lost and colluding as the plan says.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from proto.frozen import Frozen, Positive

SHARED_FIELDS = ("norm_steps", "may_drop", "may_collude")  # read with shared noise alone, and all of them there


class Privacy(Frozen):
    """One DP-SGD step: q = 1 / inverse_sampling_rate, noise_multiplier * clip_norm on the sum (privacy.md).

    With shared noise a patient's clipped gradient becomes whole numbers: `norm_steps` bounds its norm in integers, `may_drop`
    hospitals of a session may be lost, and `may_collude` of them may work with the coordinator.
    """

    noise_mode: Literal["local", "shared"] = "local"
    noise_multiplier: float = Field(ge=0, allow_inf_nan=False)
    no_guarantee: bool = False  # must be said aloud where noise_multiplier is 0
    clip_norm: Positive = 1.0
    inverse_sampling_rate: int = Field(ge=1)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    hospitals_per_patient: int = Field(default=1, ge=1)
    norm_steps: int | None = Field(default=None, ge=8, le=1 << 24)
    may_drop: int | None = Field(default=None, ge=0, le=100)
    may_collude: int | None = Field(default=None, ge=1)  # everybody knows its own share, so nobody is no choice

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.noise_multiplier == 0) != self.no_guarantee:
            raise ValueError("noise_multiplier = 0 and no_guarantee = true go together: without noise there is no guarantee")
        given = [name for name in SHARED_FIELDS if getattr(self, name) is not None]
        if self.noise_mode == "local" and given:
            raise ValueError(f"{' and '.join(given)} belong to noise_mode shared: leave them out, or share the noise")
        if self.noise_mode == "shared" and len(given) < len(SHARED_FIELDS):
            missing = [name for name in SHARED_FIELDS if name not in given]
            raise ValueError(f"noise_mode shared needs {' and '.join(missing)}: say how finely, and what it withstands")
        if self.noise_mode == "shared" and self.no_guarantee:
            raise ValueError("noise_mode shared needs a noise_multiplier above 0: there is no noise to share")
        return self

    @property
    def is_shared(self) -> bool:
        """Whether the hospitals share one noise."""
        return self.noise_mode == "shared"
