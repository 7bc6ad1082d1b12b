"""Shared noise as plan, hospital and coordinator agree on it: what it does not go with, and what its integers are worth.

In every round each hospital draws patients once, clips every gradient to clip_norm C, multiplies it by -s / C, rounds it to
whole numbers whose norm is at most `norm_steps` D, and sums. s, the `scale`, is the largest whole number from which rounding
stays within D (secagg/integer_norm.py). The opened sum holds noise of the variance V = (noise_multiplier D)^2, rounded up, that
nobody knows: noise_multiplier is over D, the most that one patient changes, so s below D costs accuracy and no privacy.

The opened mean over the survivors, in units of the gradient, over their mean expected batch is one plain step of rate 1: the
server step of the plan (coordinator/optimizer.py) goes on from there. All of that is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from proto.layout import Vector
from secagg.errors import LocalError
from secagg.integer_norm import scale_within
from secagg.noise_shares import LARGEST_DEVIATION, NoiseShares, SharedNoise, variance_of
from secagg.params import WORD_BITS, collusion_bound

if TYPE_CHECKING:
    from proto.plan import Plan

LEAST_DEVIATION = 4  # steps, of every component: their sum is then one discrete Gaussian to 1e-59 (hospital_node/README.md)
WHAT = "privacy.noise_mode shared"


def obstacle(plan: Plan) -> str | None:
    """Why rounds of this plan could not share their noise, with the remedy; None where they can, or are not to."""
    if not plan.privacy.is_shared:
        return None
    return next(_obstacles(plan), None)


def _obstacles(plan: Plan) -> Iterator[str]:
    for found, reason in _unfit(plan):
        if found:
            yield f"{WHAT} {reason}"
    yield from _shares_obstacle(plan)


def _unfit(plan: Plan) -> tuple[tuple[bool, str], ...]:
    """Parts of the plan that would break its accounting, or that nothing would read."""
    training, masking, aggregation, privacy = plan.training, plan.masking, plan.aggregation, plan.privacy
    plain = training.optimizer == "sgd" and not (training.momentum or training.proximal or training.warmup_rounds)
    constant = training.learning_rate == 1 and training.learning_rate_decay == 1 and training.schedule != "cosine"
    bits = masking.rotate or masking.keep < 1 or masking.tensor_clips or masking.clip_decay != 1 or masking.update_clip != 1
    return (
        (plan.buffer is not None, "needs one base model in every sum: leave out [buffer]"),
        (plan.most_local_steps > 1, "takes one step a round: set training.local_steps = 1, and none for a hospital"),
        (len({hospital.weight for hospital in plan.hospitals}) > 1, "needs equal weights: leave out weight of the hospitals"),
        (aggregation.weights == "precision", "has no steps to read certainties from: leave out aggregation.weights"),
        (aggregation.rule == "scaffold", "takes one step a round, which drifts nowhere: use another aggregation.rule"),
        (
            not (plain and constant),
            (
                "sums gradients and leaves the step to the coordinator, so training.optimizer is 'sgd' with learning_rate = 1, "
                "without momentum, proximal, warm-up or decay; rate and moments belong to [aggregation]"
            ),
        ),
        (bool(bits), "sends whole numbers: leave out masking.update_clip, tensor_clips, clip_decay, rotate and keep"),
        (
            privacy.hospitals_per_patient > 1,
            (
                "puts all hospitals into one sum, which a patient of several moves several times as far: set "
                "hospitals_per_patient = 1, or use local noise"
            ),
        ),
        (
            (privacy.may_collude or 0) > masking.max_colluders,
            f"allows {privacy.may_collude} colluders and the masks {masking.max_colluders}: raise masking.max_colluders",
        ),
    )


def _shares_obstacle(plan: Plan) -> Iterator[str]:
    """Of the largest cohort, whose components are the smallest and whose sum is the largest."""
    members = plan.largest_cohort
    noise = noise_of(plan)
    assert noise is not None
    try:
        shares = noise.shares(members)
    except LocalError as error:
        yield f"{WHAT}: {error}"
        return
    threshold = plan.threshold_of(members)
    if members - noise.may_drop < threshold:
        yield (
            f"{WHAT} lets {noise.may_drop} of {members} hospitals drop and {threshold} must open the sum: "
            f"set may_drop to {max(0, members - threshold)} or less"
        )
    withstood = collusion_bound(members, threshold)
    if noise.may_collude > withstood:
        yield (
            f"{WHAT} is charged against {noise.may_collude} colluders and a threshold of {threshold} of {members} "
            f"withstands {max(withstood, 0)}: lower may_collude, or raise masking.threshold or the number of hospitals"
        )
    smallest = math.sqrt(min(shares.components()))
    if smallest < LEAST_DEVIATION:
        least = math.ceil(_norm_steps(plan) * LEAST_DEVIATION / smallest)
        yield f"{WHAT} has a share of {smallest:.2g} steps, {LEAST_DEVIATION} are needed: raise norm_steps to {least} or more"
    largest = math.sqrt(max(shares.components()))
    if largest > LARGEST_DEVIATION:
        most = math.floor(_norm_steps(plan) * LARGEST_DEVIATION / largest)
        yield f"{WHAT} has a share of {largest:.3g} steps, {LARGEST_DEVIATION} can be drawn: lower norm_steps to {most} or less"
    room, needed = (1 << WORD_BITS // plan.masking.lanes) - 1, 2 * members * noise.offset(members)
    if needed > room:
        yield (
            f"{WHAT} needs {needed.bit_length()} bits for a value of the sum and {plan.masking.lanes} lanes leave "
            f"{room.bit_length()}: use fewer masking.lanes, or fewer norm_steps"
        )


def noise_of(plan: Plan) -> SharedNoise | None:
    """What a session of this plan agrees on; None with local noise.

    A member's sum is cut to what the largest expected draw adds if every patient pushes one value with its whole norm: no
    sum comes near that, and cutting it would cost no privacy.
    """
    privacy = plan.privacy
    if not privacy.is_shared:
        return None
    assert privacy.may_drop is not None
    assert privacy.may_collude is not None
    drawn = max(1, math.ceil(max(plan.expected_batch(hospital.uri) for hospital in plan.hospitals)))
    variance = variance_of(privacy.noise_multiplier, _norm_steps(plan))
    return SharedNoise(variance, privacy.may_drop, privacy.may_collude, largest_sum=_norm_steps(plan) * drawn)


def shares_of(plan: Plan) -> NoiseShares:
    """The shares of the largest cohort of a plan with shared noise."""
    noise = noise_of(plan)
    assert noise is not None
    return noise.shares(plan.largest_cohort)


def fewest_survivors(plan: Plan, members: int) -> int:
    """Of so many members, how many must stay: with more lost the noise would not hold, and nobody reveals anything."""
    return members - (plan.privacy.may_drop or 0) if plan.privacy.is_shared else 0


def scale(plan: Plan, length: int) -> int:
    """s: steps of the clip norm for an update of `length` values. LocalError where rounding would eat most of norm_steps."""
    return scale_within(_norm_steps(plan), length)


def session_clip(plan: Plan, noise: SharedNoise, members: int, length: int) -> float:
    """What a session's offset of so many steps is worth, in units of the gradient: the opened mean then is one."""
    return noise.offset(members) * plan.privacy.clip_norm / scale(plan, length)


def as_step(plan: Plan, mean: Vector, survivors: Collection[str]) -> Vector:
    """The opened mean as one plain step on the mean gradient; with local noise `mean` itself, which is an update already."""
    if not plan.privacy.is_shared:
        return mean
    batch = math.fsum(plan.expected_batch(uri) for uri in survivors) / len(survivors)
    step: Vector = mean / np.float32(batch)
    return step


def _norm_steps(plan: Plan) -> int:
    assert plan.privacy.norm_steps is not None
    return plan.privacy.norm_steps
