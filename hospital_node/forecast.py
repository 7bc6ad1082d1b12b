"""What further rounds would cost, by the accountant: never a straight line, because epsilon grows roughly with a square root.

Rule: the same reading that will decide at the cap draws the curve. Long curves are computed at a bounded number of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hospital_node.cap import Cap, CapFilter, ReadingKind
from hospital_node.releases import Repeatable, Spending

MAX_POINTS: Final = 60  # of one curve; each costs 20 to 100 ms when it is computed first


def rounds_left(judge: CapFilter, cap: Cap, past: Sequence[Spending], ahead: Repeatable, at_most: int) -> int:
    """How many more rounds the cap admits, up to `at_most`."""

    def admitted(count: int) -> bool:
        return judge.admits(cap, [*past, ahead.times(count)])

    if at_most < 1 or not admitted(1):
        return 0
    low, high = 1, 2
    while high <= at_most and admitted(high):
        low, high = high, 2 * high
    high = min(high, at_most + 1)  # invariant: `low` is admitted, `high` is not (or is beyond what was asked)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if admitted(middle) else (low, middle)
    return low


def curve(
    judge: CapFilter, kind: ReadingKind, past: Sequence[Spending], ahead: Repeatable, rounds: int
) -> tuple[tuple[int, float], ...]:
    """(k, epsilon after k further rounds) for k = 1 .. rounds, thinned to MAX_POINTS."""
    return tuple((k, judge.spent([*past, ahead.times(k)], kind)) for k in thinned(rounds))


def thinned(count: int) -> tuple[int, ...]:
    """1 .. count, or MAX_POINTS of them, evenly spread, with the first and the last."""
    if count <= MAX_POINTS:
        return tuple(range(1, count + 1))
    return tuple(1 + round(k * (count - 1) / (MAX_POINTS - 1)) for k in range(MAX_POINTS))
