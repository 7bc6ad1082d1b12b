"""What becomes of the opened mean: the server step that the plan names.

mean     velocity <- momentum velocity + mean;  model <- base + rate velocity
         (FedAvgM, Hsu et al. 2019, arXiv 1909.06335; without momentum FedAvg)
scaffold model <- base + rate mean; the common variate follows from the same mean (proto/scaffold.py)
others   first <- momentum first + (1 - momentum) mean;  model <- base + rate first / (sqrt(second) + tau)
         adagrad  second <- second + mean^2
         adam     second <- beta2 second + (1 - beta2) mean^2
         yogi     second <- second - (1 - beta2) mean^2 sign(second - mean^2)
With `absent = "momentum"` the rules read, in the place of mean,
         estimate <- share mean + (1 - share) estimate        (in the first round mean)
where share is that of the weights in the sum: who is absent is taken to move as all did when last seen. Only the opened mean,
the list of survivors and the past of both enter. To stand in with each hospital's own last update (MIFA, Gu et al. 2021,
arXiv 2106.04159) would need updates one by one, which masks never open.
With shared noise `mean` is the noised sum of gradients over the survivors' expected patients, with the opposite sign
(proto/shared_noise.py): `mean` is then DP-SGD itself, `adam` DP-Adam, at the plan's `rate`.
Reddi et al. 2021 (arXiv 2003.00295), algorithm 2: no correction of the first rounds, second begins at tau^2. `rate` follows the
plan's decay (proto/aggregation.py).

Float32 throughout and only IEEE operations in this order, so that everyone with the same inputs has the same model digest.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from proto import precision, scaffold, shared_noise
from proto.aggregation import Aggregation
from proto.layout import Layout, Vector
from proto.parts import spread
from proto.plan import Plan


def next_model(
    plan: Plan,
    layout: Layout,
    published: Vector,
    update: Vector,
    memory: Vector | None,
    number: int,
    survivors: Collection[str],
) -> tuple[Vector, Vector | None]:
    """What round `number` publishes after the mean `update` of `survivors`, and what the rule remembers; see `apply`.

    `published` before and after is the model, and behind it the common control variate where the plan has one.
    """
    base, common = scaffold.taken_apart(plan, published)
    moved = shared_noise.as_step(plan, precision.combined(plan, update), survivors)
    mean = spread(plan, layout, moved, number)
    share = plan.share_of(survivors)
    model, memory = apply(plan.aggregation, base, mean, memory, number, share)
    if common is not None:
        common = scaffold.common_after(plan, number, common, mean, share)
    return scaffold.put_together(model, common), memory


def apply(
    settings: Aggregation, base: Vector, mean: Vector, memory: Vector | None, number: int, share: float = 1.0
) -> tuple[Vector, Vector | None]:
    """The model after round `number` and what the rule remembers: None, the velocity, or first and second moment in a row.

    `share`: of the weights of all hospitals, that of the survivors. Behind the rule's own memory lies the estimate where there
    is one. `memory` is None in the first round. Raises ValueError where shapes differ or the model would not be finite.
    """
    if base.shape != mean.shape:
        raise ValueError(f"the mean has shape {mean.shape}, the model {base.shape}")
    if settings.absent == "left-out":
        return _stepped(settings, base, mean, memory, number)
    own, last = (None, mean) if memory is None else (memory[: -len(mean)], memory[-len(mean) :])
    estimate = np.float32(share) * mean + (np.float32(1) - np.float32(share)) * last
    model, own = _stepped(settings, base, estimate, None if own is None or not len(own) else own, number)
    return model, estimate if own is None else np.concatenate([own, estimate])


def _stepped(
    settings: Aggregation, base: Vector, mean: Vector, memory: Vector | None, number: int
) -> tuple[Vector, Vector | None]:
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, with a remedy
        step, memory = _adaptive(settings, mean, memory) if settings.is_adaptive else _heavy_ball(settings, mean, memory)
        return _finite(base + np.float32(settings.rate(number)) * step), memory


def _heavy_ball(settings: Aggregation, mean: Vector, velocity: Vector | None) -> tuple[Vector, Vector | None]:
    if settings.momentum == 0:
        return mean, None
    previous = np.zeros_like(mean) if velocity is None else _of_length(velocity, len(mean))
    moved = np.float32(settings.momentum) * previous + mean
    return moved, moved


def _adaptive(settings: Aggregation, mean: Vector, memory: Vector | None) -> tuple[Vector, Vector]:
    tau, momentum = np.float32(settings.adaptivity), np.float32(settings.momentum)
    if memory is None:
        memory = np.concatenate([np.zeros_like(mean), np.full_like(mean, tau * tau)])
    first, second = np.split(_of_length(memory, 2 * len(mean)), 2)
    first = momentum * first + (np.float32(1) - momentum) * mean
    second = _second_moment(settings, mean * mean, second)
    root: Vector = np.sqrt(second) + tau
    return first / root, np.concatenate([first, second])


def _second_moment(settings: Aggregation, square: Vector, second: Vector) -> Vector:
    if settings.rule == "adagrad":
        return second + square
    beta = np.float32(settings.second_momentum)
    fresh = (np.float32(1) - beta) * square
    if settings.rule == "adam":
        return beta * second + fresh
    moved: Vector = second - fresh * np.sign(second - square)
    return moved


def _of_length(memory: Vector, length: int) -> Vector:
    if len(memory) != length:
        raise ValueError(f"the optimizer's memory holds {len(memory)} values and the plan's rule needs {length}")
    return memory


def _finite(model: Vector) -> Vector:
    if not np.isfinite(model).all():
        raise ValueError("the server step gives values that are not finite: lower aggregation.learning_rate")
    return model
