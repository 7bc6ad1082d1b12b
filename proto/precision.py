"""Precision-weighted averaging: hospitals weigh each value by how certain they are of it, inside the masked vector.

If a hospital's word on a value is normal with mean D and precision p, the product of all words has the mean
sum(w p D) / sum(w p): the aggregation of Gaussian posteriors with diagonal precisions (Liu et al. 2021, arXiv 2102.01936). A
hospital sends p D and, behind it, p; the plan's weights w multiply both, and the opened means give the quotient.

Here p = s^2 / (v + s^2), in (0, 1]: v is the variance of the value's noised mean gradient over the local steps of the round
(hospital_node/certainty.py), s the plan's `precision_scale`. Under noise v is at least the noise's own variance, so that a
hospital with few patients, whose mean is noisier, weighs less without anybody saying how many it has.

Rule: p is a function of noised gradients and nothing else, so it costs no privacy beyond the steps that are charged anyway; it
is masked, and leaves with the update or never. The size of what is sent doubles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from proto.layout import Vector

if TYPE_CHECKING:
    from proto.plan import Plan

PREFIX = "precision/"  # of the second half's names
CLIP = 1.0  # of a precision, whatever the clip of the update
LEAST = np.float32(1e-3)  # a smaller mean precision counts as this: rounding is enlarged a thousand times at most


def is_used(plan: Plan) -> bool:
    """Whether hospitals send precisions."""
    return plan.aggregation.weights == "precision"


def obstacle(plan: Plan) -> str | None:
    """Why precisions of this plan would mean nothing, with the remedy; None where they do, or are not used."""
    if not is_used(plan):
        return None
    fewest = min(hospital.local_steps or plan.training.local_steps for hospital in plan.hospitals)
    if fewest < 2:
        return (
            "aggregation.weights precision reads the spread of a round's steps: let each hospital take 2 or more (local_steps)"
        )
    if plan.masking.keep < 1:
        return "aggregation.weights precision divides two means that must be of the same values: leave out masking.keep"
    return None


def weighted(update: Vector, precision: Vector) -> Vector:
    """What is sent of an update."""
    return np.concatenate([precision * update, precision])


def combined(plan: Plan, mean: Vector) -> Vector:
    """The update that the opened mean stands for. Float32, IEEE operations in this order."""
    if not is_used(plan):
        return mean
    sums, precisions = np.split(mean, 2)
    divisors: Vector = np.maximum(precisions, LEAST)
    quotient: Vector = np.divide(sums, divisors)
    return quotient
