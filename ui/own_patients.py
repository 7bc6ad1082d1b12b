"""Accuracy on the hospitals' own validation patients, as opened: means that carry the hospitals' noise, and say so.

The margin is of the noise alone and two-sided, 95 %; it does not cover the choice of patients. A mean is shown as opened, even
where the noise takes it out of [0, 1]; where the noisy count is too small to divide by, there is no mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coordinator.store import ValidationRow
from proto.plan import Plan
from ui.words import counted, listing, percent

DEVIATIONS = 1.96  # two-sided 95 % of a normal distribution
NOT_TOLD = "cannot be told from the noise"


@dataclass(frozen=True, slots=True)
class OwnMean:
    """Mean of one label under the model of one round (0: the start), give or take `margin`."""

    round: int
    label: str
    mean: float
    margin: float


def means(rows: Iterable[ValidationRow]) -> tuple[OwnMean, ...]:
    """What can be drawn."""
    return tuple(
        OwnMean(row.model_round, row.label, row.mean, DEVIATIONS * row.standard_error)
        for row in rows
        if row.mean is not None and row.standard_error is not None
    )


def table(rows: Iterable[ValidationRow]) -> list[dict[str, object]]:
    """The figures, those included that the noise hides."""
    return [
        {
            "model of round": row.model_round,
            "label": row.label,
            "mean, noised": "none" if row.mean is None else f"{row.mean:.3f}",
            "give or take (noise, 95 %)": "" if row.standard_error is None else f"{DEVIATIONS * row.standard_error:.3f}",
            "patients, noised": f"{row.patients:.0f}",
            "hospitals": row.hospitals,
        }
        for row in rows
    ]


def sentence(rows: Sequence[ValidationRow]) -> str:
    """What the newest evaluation says, in one sentence."""
    if not rows:
        return "No sums over the hospitals' own patients were opened yet."
    newest = max(row.round for row in rows)
    last = [row for row in rows if row.round == newest]
    model = "The start" if last[0].model_round == 0 else f"The model of round {last[0].model_round}"
    return (
        f"{model} has a mean Dice of {listing([_said(row) for row in last])} on patients of "
        f"{counted(last[0].hospitals, 'hospital')}, noised."
    )


def _said(row: ValidationRow) -> str:
    if row.mean is None or row.standard_error is None:
        return f"{row.label}: {NOT_TOLD}"
    return f"{row.label} {row.mean:.2f} ± {DEVIATIONS * row.standard_error:.2f}"


def explained(plan: Plan) -> str:
    """What the figures are and are not."""
    part = plan.evaluation
    if part is None:
        return ""
    return (
        f"From patients of the hospitals, noised. About {percent(part.share)} of each hospital's patients are measured and "
        "never trained on. Only the hospitals' sums were opened, each with its own noise, which every hospital's budget pays "
        "for. ± is what the noise does in 95 of 100 evaluations; it says nothing about the choice of patients."
    )
