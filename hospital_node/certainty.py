"""How certain a hospital is of each value of its update, from the spread of the noised gradients of its own steps.

Rule: it sees gradients where the optimizer does, after clip, noise and division, so what it says is post-processing of steps
that the ledger counts one by one. It lives and dies with the round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from proto.layout import Vector


class Spread:
    """Running mean and squared deviations (Welford 1962) of the noised mean gradient of each trained value, in float64."""

    def __init__(self, optimizer: Optimizer, trained: Sequence[nn.Parameter]) -> None:
        self._trained = tuple(trained)
        self._steps = 0
        self._mean: NDArray[np.float64] = np.zeros(sum(one.numel() for one in trained))
        self._squares: NDArray[np.float64] = np.zeros_like(self._mean)
        optimizer.register_step_pre_hook(self._see)

    def precisions(self, scale: float) -> Vector:
        """scale^2 / (variance + scale^2), in the order of an update. At least two steps."""
        assert self._steps > 1, "the plan's schema asks for two steps or more"
        variance = self._squares / (self._steps - 1)
        return (scale**2 / (variance + scale**2)).astype(np.float32)

    def _see(self, *_: object) -> None:
        with torch.no_grad():
            parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in self._trained]
            fresh = torch.cat([part.reshape(-1).double().cpu() for part in parts]).numpy()
        self._steps += 1
        away = fresh - self._mean
        self._mean += away / self._steps
        self._squares += away * (fresh - self._mean)
