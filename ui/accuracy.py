"""Accuracy by round: mean Dice per label on the evaluator's public cases with a bootstrap interval.

The interval covers the choice of cases, not of seeds: percentile bootstrap over cases (Efron and Tibshirani 1993,
chapter 13), resampling the same cases for every label and round so that two rounds compare like with like.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from coordinator.store import ScoreRow
from ui.figures import Figure
from ui.words import counted, listing

MOST_ROUNDS = 150  # of one chart: more cannot be told apart, and each has an interval to be computed
RESAMPLES = 2000  # the end points move by less than 0.002 between runs at this count
INTERVAL = (2.5, 97.5)  # percent
SEED = 20261121  # a fixed seed: the same data always give the same picture


@dataclass(frozen=True, slots=True)
class Point:
    """Mean Dice of one label in one round; low and high are None where a single case allows no interval."""

    round: int
    label: str
    mean: float
    low: float | None
    high: float | None
    cases: int

    @property
    def spread(self) -> str:
        """The interval in words."""
        return "none" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"


@lru_cache(maxsize=4096)
def interval(values: tuple[float, ...]) -> tuple[float, float] | None:
    """95 % interval of the mean over cases; None below two cases."""
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(SEED).integers(0, len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[drawn].mean(axis=1), INTERVAL)
    return float(low), float(high)


def curve(scores: Iterable[ScoreRow]) -> tuple[Point, ...]:
    """One point per round and label in order; rows without cases are left out."""
    points = []
    for row in scores:
        values = tuple(row.per_case)
        if values:
            low, high = interval(values) or (None, None)
            points.append(Point(row.round, row.label, float(np.mean(values)), low, high, len(values)))
    return tuple(sorted(points, key=lambda point: (point.round, point.label)))


def end_means(scores: Sequence[ScoreRow]) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """(round, mean over labels and cases) of the first and the newest measurement; without intervals, which cost the most."""
    numbers = [row.round for row in scores if row.per_case]
    if not numbers:
        return None
    first, last = ((number, overall_of(scores, number)) for number in (min(numbers), max(numbers)))
    return first, last


def overall_of(scores: Iterable[ScoreRow], number: int) -> float:
    """Mean over labels of the mean over cases of one measured round."""
    return float(np.mean([np.mean(row.per_case) for row in scores if row.round == number and row.per_case]))


def shown(scores: Sequence[ScoreRow], most: int = MOST_ROUNDS) -> tuple[ScoreRow, ...]:
    """Measurements of at most about `most` rounds: every second, fifth, tenth ... one, the first and the newest.

    A round once chosen stays as long as the step does, so that a new round costs one interval and not all of them.
    """
    numbers = sorted({row.round for row in scores})
    step = next(one * ten for ten in (10**power for power in range(9)) for one in (1, 2, 5) if len(numbers) <= most * one * ten)
    kept = {number for number in numbers if number % step == 0} | set(numbers[:1] + numbers[-1:])
    return tuple(row for row in scores if row.round in kept)


def labels(points: Iterable[Point]) -> tuple[str, ...]:
    """Labels in the order of first appearance."""
    return tuple(dict.fromkeys(point.label for point in points))


def overall(points: Sequence[Point], number: int) -> float | None:
    """Mean over labels of one round."""
    means = [point.mean for point in points if point.round == number]
    return float(np.mean(means)) if means else None


def first_and_last(points: Sequence[Point]) -> tuple[int, int] | None:
    """Rounds of the first and the latest evaluation."""
    rounds = [point.round for point in points]
    return (min(rounds), max(rounds)) if rounds else None


def figures(points: Sequence[Point]) -> tuple[Figure, ...]:
    """Mean over labels now and at the start, the gain, and on how many cases."""
    ends = first_and_last(points)
    assert ends is not None  # the page shows figures only where something was evaluated
    first, last = (overall(points, number) or 0.0 for number in ends)
    cases = max(point.cases for point in points)
    explained = "Overlap of prediction and truth, 1 is perfect; mean over labels and cases."
    return (
        Figure("Mean Dice", f"{last:.2f}", f"after round {ends[1]}" if ends[1] else "of the start", explained),
        Figure("Start", f"{first:.2f}", "before round 1" if ends[0] == 0 else _named(ends[0]), explained),
        Figure("Gain", f"{last - first:+.2f}", f"over {counted(ends[1] - ends[0], 'round')}", "Difference of the two."),
        Figure("Public cases", str(cases), "at the evaluator", "Accuracy is measured on public data only."),
    )


def sentence(points: Sequence[Point]) -> str:
    """What the chart shows, in one sentence."""
    ends = first_and_last(points)
    if ends is None:
        return "Nothing was evaluated yet."
    first, last = ends
    parts = []
    for point in (p for p in points if p.round == last):
        spread = "" if point.low is None else f" ({point.spread})"
        parts.append(f"{point.label} {point.mean:.2f}{spread}")
    cases = counted(max(point.cases for point in points if point.round == last), "public case")
    begin = overall(points, first)
    if first == last or begin is None:
        return f"{_named(first).capitalize()}: mean Dice {listing(parts)} over {cases}."
    return f"After round {last} the mean Dice is {listing(parts)} over {cases}; {_named(first)} had {begin:.2f}."


def _named(number: int) -> str:
    return "the start" if number == 0 else f"round {number}"
