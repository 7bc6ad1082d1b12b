"""Sums of patients' gradients in whole numbers: what a hospital sends where the noise is shared.

Rule: every patient adds a vector whose squared norm, counted in integers, is at most the plan's norm_steps^2, whatever floating
point did before. No noise is added here: the sum leaves this process inside a masking session only, which adds the hospital's
share in the ring (secagg/noised.py). Gradients are added with the opposite sign, so that the sum points where the model moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from proto import shared_noise
from proto.plan import Plan
from secagg.integer_norm import round_within
from secagg.params import Integers


class IntegerSum:
    """The sum of one step. `trained`: in the order of an update; each holds one patient's gradient when `add` is called."""

    def __init__(self, trained: Sequence[nn.Parameter], plan: Plan) -> None:
        """LocalError where the plan's grid is too coarse for so many values."""
        length = sum(one.numel() for one in trained)
        assert plan.privacy.norm_steps is not None
        self.values: Integers = np.zeros(length, dtype=np.int64)
        self.nonfinite = 0  # patients whose gradient was not finite and counted as zero; stays inside the hospital
        self._trained = trained
        self._clip_norm = plan.privacy.clip_norm
        self._scale = shared_noise.scale(plan, length)
        self._norm_squared = plan.privacy.norm_steps**2

    def add(self, rounding_key: bytes) -> None:
        """Take `p.grad` as one patient's gradient: clip, scale, round, add, clear it. `rounding_key` serves nobody else."""
        gradient = np.concatenate([_flat(one) for one in self._trained])
        for one in self._trained:
            one.grad = None
        norm = float(np.sqrt(np.dot(gradient, gradient)))
        if not norm < float("inf"):  # also for NaN
            self.nonfinite += 1
            return
        np.multiply(gradient, -self._scale / max(norm, self._clip_norm), out=gradient)
        self.values += round_within(gradient, self._norm_squared, rounding_key)


def _flat(parameter: nn.Parameter) -> NDArray[np.float64]:
    if parameter.grad is None:
        return np.zeros(parameter.numel())
    flat: NDArray[np.float64] = parameter.grad.detach().to("cpu", torch.float64).reshape(-1).numpy()
    return flat
