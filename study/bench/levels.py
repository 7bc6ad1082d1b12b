"""How soon a setting reaches a score: rounds, and what a hospital has sent by then.

Rules: the score is the mean over the labels after a measured round, the first round at which it is at least the level counts
(later ones may fall below it again), and a seed that never reached it has no number: it is counted, never filled in.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from study.bench.cells import CellResult
from study.bench.groups import MEGABYTE, Group


@dataclass(frozen=True, slots=True)
class Reached:
    """When seeds of one setting reached one level: by seed that did, rounds and MB of a mean hospital, both ways."""

    group: Group
    level: float
    rounds: dict[int, int] = field(repr=False)
    megabytes: dict[int, float] = field(repr=False)


def levels_in(source: str) -> tuple[float, ...]:
    """The levels that a stored study file asks for, lowest first; it was checked when it was read."""
    try:
        return tuple(sorted(set(tomllib.loads(source).get("levels", ()))))
    except tomllib.TOMLDecodeError:  # results that were written without a study file
        return ()


def reached(groups: Sequence[Group], levels: Sequence[float]) -> list[Reached]:
    """Every federated setting at every level, level by level."""
    return [_reached(group, level) for level in levels for group in groups if group.is_federated]


def _reached(group: Group, level: float) -> Reached:
    rounds = {seed: first_round(one, level) for seed, one in group.results.items()}
    found = {seed: number for seed, number in rounds.items() if number is not None}
    return Reached(group, level, found, {seed: _megabytes(group.results[seed], number) for seed, number in found.items()})


def first_round(result: CellResult, level: float) -> int | None:
    """The first measured round of a mean score of at least `level`; None where there was none."""
    for row in result.rounds:
        means = [fmean(values) for values in row.scores.values() if values]
        if means and fmean(means) >= level:
            return row.round
    return None


def _megabytes(result: CellResult, last: int) -> float:
    sent = sum(row.upload_bytes + row.download_bytes for row in result.rounds if row.round <= last)
    return sent / len(result.hospitals) / MEGABYTE
