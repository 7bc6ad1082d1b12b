"""What becomes of the opened mean: one step of server gradient descent with momentum.

velocity <- momentum * velocity + mean;  model <- base + learning_rate * velocity   (Reddi et al. 2021, FedAvgM)

Float32 throughout and only IEEE + and x in this order, so that everyone with the same inputs has the same model digest.
"""

from __future__ import annotations

import numpy as np

from proto.layout import Vector
from proto.plan import Aggregation


def apply(settings: Aggregation, base: Vector, mean: Vector, velocity: Vector | None) -> tuple[Vector, Vector | None]:
    """The next model and velocity. `velocity` is None at first, and stays None where the plan has no momentum."""
    if base.shape != mean.shape:
        raise ValueError(f"the mean has shape {mean.shape}, the model {base.shape}")
    rate, momentum = np.float32(settings.learning_rate), np.float32(settings.momentum)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, with a remedy
        if settings.momentum == 0:
            return _finite(base + rate * mean), None
        previous = np.zeros_like(mean) if velocity is None else velocity
        moved = momentum * previous + mean
        return _finite(base + rate * moved), moved


def _finite(model: Vector) -> Vector:
    if not np.isfinite(model).all():
        raise ValueError("the server step gives values that are not finite: lower aggregation.learning_rate")
    return model
