"""The baselines without a federation: ordinary training on all patients together, and at each hospital by itself.

Pooled is what could be reached if patients' scans were allowed to travel; local is what each hospital has today. Both begin at
the cell's start, so that a good start is not taken for a good method. Only the start and the end are measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from proto.layout import Vector
from study.bench.cell import Setting
from study.bench.cells import RoundRow
from study.bench.plain import unless_stopped
from study.bench.task import Unit, scores_of

OnRound = Callable[[RoundRow], None]
Scores = Mapping[str, list[float]]


def run_pooled(setting: Setting, on_round: OnRound, stop: threading.Event) -> list[RoundRow]:
    """The start (round 0) and the end (round `plan.rounds`) of training on all units. Raises Interrupted once `stop` is set."""
    everyone = [unit for uri in sorted(setting.hospitals) for unit in setting.hospitals[uri]]
    return _run(setting, [everyone], on_round, stop)


def run_local(setting: Setting, on_round: OnRound, stop: threading.Event) -> list[RoundRow]:
    """The start and the end; at the end a test case's score is the mean over the hospitals' own models. Raises Interrupted."""
    return _run(setting, [setting.hospitals[uri] for uri in sorted(setting.hospitals)], on_round, stop)


def mean_scores(models: Sequence[Scores]) -> dict[str, list[float]]:
    """Mean over models of each test case's score. All list the same cases: which case holds a label is the truth's matter."""
    return {label: np.mean([scores[label] for scores in models], axis=0).tolist() for label in models[0]}


def _run(setting: Setting, groups: Sequence[Sequence[Unit]], on_round: OnRound, stop: threading.Event) -> list[RoundRow]:
    """One model for each group of units, all from the same start."""
    began_s = time.perf_counter()
    rows = [_row(setting, 0, _scores(setting, setting.start), began_s)]
    on_round(rows[0])
    began_s = time.perf_counter()
    ends = [_scores(setting, _trained(setting, units, stop)) for units in groups]
    rows.append(_row(setting, setting.plan.rounds, mean_scores(ends), began_s))
    on_round(rows[1])
    return rows


def _trained(setting: Setting, units: Sequence[Unit], stop: threading.Event) -> Vector:
    cell = setting.cell

    def count(_done: int, _steps: int) -> None:
        unless_stopped(stop)

    unless_stopped(stop)
    return setting.task.ordinary(setting.plan, setting.start, units, cell.ordinary, cell.seed, count)


def _scores(setting: Setting, model: Vector) -> Scores:
    return scores_of(setting.task, setting.plan, model, setting.test, setting.draws)


def _row(setting: Setting, number: int, scores: Scores, began_s: float) -> RoundRow:
    return RoundRow(
        round=number,
        survivors=len(setting.hospitals),
        scores=dict(scores),
        epsilon=None,
        upload_bytes=0,
        download_bytes=0,
        seconds=time.perf_counter() - began_s,
    )
