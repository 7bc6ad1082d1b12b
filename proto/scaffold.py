"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, option II) as hospital and coordinator share it.

x is the model, c the common control variate, c_i the hospital's own, y_i its last iterate after K local steps at rate eta:

    local step   y <- y - eta (g(y) - c_i + c)
    own          c_i+ = c_i - c + (x - y_i) / (K eta)
    common       c+ = c + (share of the weights that took part) * weighted mean of (c_i+ - c_i)

Rule: the hospital's change c_i+ - c_i = -c - (y_i - x) / (K eta) is an affine function of its update y_i - x with public
coefficients that are the same everywhere. So its mean follows from the opened mean of the updates: the variates travel in the
masked vector as it is, need no coordinates, no clip and no charge of their own. What is published for a round is x and c in one
vector with one digest, which the session context binds: hospitals that were shown different c cannot finish a session.

The identity needs the update as it was sent, after its clip, on both sides; `obstacle` names the plans where it would not hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from proto.layout import Layout, Vector

if TYPE_CHECKING:
    from proto.plan import Plan

RULE = "scaffold"
MOST_LANES = 4  # 16 bits a value: below, what rounding adds to c and to no c_i would grow from round to round


def is_used(plan: Plan) -> bool:
    """Whether the plan corrects local steps by control variates."""
    return plan.aggregation.rule == RULE


def obstacle(plan: Plan) -> str | None:
    """Why the variates of this plan would not be what the rule says, with the remedy; None where they are, or are not used."""
    if not is_used(plan):
        return None
    training, what = plan.training, f"aggregation.rule {RULE}"
    steps = {hospital.local_steps or training.local_steps for hospital in plan.hospitals}
    reasons = (
        (
            training.optimizer != "sgd" or training.momentum > 0,
            "takes the change of the model for a sum of gradients, which holds for sgd without momentum alone",
        ),
        (training.proximal > 0, "would count the pull of training.proximal as a gradient: leave one of them out"),
        (not training.trains_all, "needs one meaning of each value in all rounds: leave out training.parts and adapter_rank"),
        (len(steps) > 1, "reads the common variate from one mean, so that all take equally many steps: leave out local_steps"),
        (plan.masking.keep < 1, "would take values that were not sent for gradients of zero: leave out masking.keep"),
        (
            plan.masking.lanes > MOST_LANES,
            f"adds up what rounding leaves in each round: use masking.lanes of {MOST_LANES} or less",
        ),
    )
    return next((f"{what} {reason}" for found, reason in reasons if found), None)


def published_length(plan: Plan, layout: Layout) -> int:
    """Values of what is published for a round: the model, and behind it as many of the common variate."""
    return layout.length * (2 if is_used(plan) else 1)


def begun(plan: Plan, start: Vector) -> Vector:
    """What is published for the first round: variates begin at zero."""
    return np.concatenate([start, np.zeros_like(start)]) if is_used(plan) else start


def taken_apart(plan: Plan, published: Vector) -> tuple[Vector, Vector | None]:
    """The model and the common variate, None where the plan has none."""
    if not is_used(plan):
        return published, None
    model, common = np.split(published, 2)
    return model, common


def put_together(model: Vector, common: Vector | None) -> Vector:
    """Inverse of `taken_apart`."""
    return model if common is None else np.concatenate([model, common])


def path_length(plan: Plan, round_number: int) -> np.float32:
    """K eta of a round: what a constant gradient of 1 moves the model by."""
    return np.float32(plan.training.local_steps * plan.training.rate(round_number, plan.rounds))


def own_after(plan: Plan, round_number: int, drift: Vector, sent: Vector) -> Vector:
    """c_i+ from drift = c - c_i, with which the round was trained, and the update as it was sent."""
    return -drift - sent / path_length(plan, round_number)


def common_after(plan: Plan, round_number: int, common: Vector, mean: Vector, share: float) -> Vector:
    """c+ from the opened mean of the updates of those who hold `share` of all weights. Float32, IEEE operations in this order.

    ValueError where the variate would not be finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, with a remedy
        change: Vector = common + mean / path_length(plan, round_number)
        after: Vector = common - np.float32(share) * change
    if not np.isfinite(after).all():
        raise ValueError("the control variate is not finite: lower training.learning_rate")
    return after
