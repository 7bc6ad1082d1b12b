"""Buffered rounds of a study: a schedule written out by hand, with and without masks, and what a study file may say of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from bench_world import written
from test_bench_plain import LENGTH, SILENT, START, TEST, Sums, plan_of, units, update_of, uri

from coordinator import optimizer
from hospital_node.work import Interrupted
from study.bench.buffered import run_buffered
from study.bench.cell import Setting, complete_plan, epsilon_of, release_of
from study.bench.cells import Cell, Data, Method, Partition
from study.bench.task import StudyError

PACES = (1.0, 1.0, 1.0, 2.5, 2.5, 2.5)
WEIGHTS = (2, 2, 2, 5, 5, 5)  # equal in each cohort of three: a heavier one would hide in too few
BUFFER = {"updates": 3, "max_staleness": 4}
FAST, SLOW = (0, 1, 2), (3, 4, 5)
SCHEDULE = [(1.0, FAST, 1), (2.0, FAST, 2), (2.5, SLOW, 1), (3.0, FAST, 3)]  # clock, who, round in which it began


def setting_of(method=Method.PLAIN, **changes):
    plan = plan_of(WEIGHTS, buffer=BUFFER, **changes)
    dealt = {uri(f"h{at}"): units(f"p{at}", at + 1) for at in range(6)}
    cell = Cell(
        study="trial",
        task="x:y",
        method=method,
        seed=1,
        data=Data(),
        partition=Partition(),
        start="random",
        plan={},
        settings={},
    )
    return Setting(cell, Sums(), plan, START, dealt, TEST, lambda party, number: None)


def played(setting, paces=PACES, stop=None):
    return play(setting, paces, stop)[0]


def play(setting, paces=PACES, stop=None):
    return run_buffered(setting, dict(zip(setting.hospitals, paces, strict=True)), lambda row: None, stop or threading.Event())


def by_hand(setting):
    """FedBuff's rule: the mean of factor times update with the plan's weights, then the server's step."""
    plan, models, memory = setting.plan, [START], None
    for number, (_, who, began) in enumerate(SCHEDULE, 1):
        factor = (1 + number - began) ** -0.5
        base, parties = models[began - 1], {uri(f"h{at}"): WEIGHTS[at] for at in who}
        sums = sum(weight * update_of(p, began, base, setting.hospitals[p]) for p, weight in parties.items())
        mean = (factor * sums / sum(WEIGHTS[at] for at in who)).astype(np.float32)
        model, memory = optimizer.apply(plan.aggregation, models[-1], mean, memory, number)
        models.append(model)
    return models


@pytest.mark.parametrize("aggregation", [{}, {"learning_rate": 0.5, "momentum": 0.9}])
def test_models_and_clock_are_those_of_the_schedule_written_out_by_hand(aggregation):
    setting = setting_of(aggregation=aggregation)
    rows = played(setting)
    assert list(accumulate(row.seconds for row in rows)) == [0.0, *(clock for clock, _, _ in SCHEDULE)]
    assert [row.survivors for row in rows] == [0, 3, 3, 3, 3]
    scores = [row.scores["near"][0] for row in rows]
    assert scores == pytest.approx([float(model[0]) for model in by_hand(setting)], abs=2e-3)
    asked = setting.task.asked
    assert {(party[-1], number) for party, number in asked} == {(str(at), began) for _, who, began in SCHEDULE for at in who}
    assert max(asked.values()) == 1, "what is let go, or never used, is not computed"


def test_through_the_masks_the_models_are_the_same_within_a_grid_step():
    plain, masked = (played(setting_of(method)) for method in (Method.PLAIN, Method.MASKED))
    assert [row.seconds for row in masked] == [row.seconds for row in plain]
    scores = [[row.scores["near"][0] for row in rows] for rows in (plain, masked)]
    assert np.allclose(*scores, atol=1e-5)
    assert scores[0] != scores[1]
    assert all(row.upload_bytes > 3 * 8 * LENGTH / 3 for row in masked[1:])


def test_a_cohort_in_which_one_would_hide_in_too_few_ends_the_cell_with_the_reason():
    setting = setting_of()
    uneven = plan_of((1, 2, 5, 1, 1, 3), buffer=BUFFER)
    with pytest.raises(StudyError, match=r"no session of round 1 can open: .* equal members.*; weigh the hospitals equally"):
        played(replace(setting, plan=uneven))


def test_epsilon_is_that_of_the_hospital_that_was_in_most_sums():
    loud = {**SILENT, "noise_multiplier": 2.0, "no_guarantee": False, "inverse_sampling_rate": 4, "delta": 1e-3}
    setting = setting_of(privacy=loud)
    rows, charged = play(setting)
    releases = [0, 1, 2, 2, 3]  # of a fast hospital
    assert [row.epsilon for row in rows] == [epsilon_of(setting.plan, 2 * count, count) for count in releases]
    assert charged == release_of(setting.plan, 2 * 3, 3)


def test_a_stop_is_noticed():
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        played(setting_of(), stop=stop)


STUDY = """
study = "small"
task = "bench_world:TASK"
plan = "hippocampus-plain"
seeds = [1]
[data]
kind = "synthetic"
[partition]
kind = "iid"
hospitals = 6
[set]
rounds = 4
[[grid]]
method = ["pooled", "plain", "masked"]
"buffer.updates" = [3, 4]
partition.paces = [[1, 1, 1, 2, 2, 2]]
[[grid]]
method = "masked"
"""


def test_a_study_file_names_updates_and_paces_and_other_cells_stay_as_they_were(tmp_path):
    cells = written(tmp_path, STUDY).cells()
    found = [(cell.method, (cell.plan["buffer"] or {}).get("updates"), cell.partition.paces) for cell in cells]
    paces = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
    assert found == [
        (Method.POOLED, None, None),
        *((method, updates, paces) for method in (Method.PLAIN, Method.MASKED) for updates in (3, 4)),
        (Method.MASKED, None, None),
    ]
    (alone,) = written(tmp_path, STUDY.partition("[[grid]]")[0] + '[[grid]]\nmethod = "masked"\n').cells()
    assert alone.id == cells[-1].id, "a cell without a buffer does not change with what is said of others"


def test_paces_of_other_hospitals_are_refused(tmp_path):
    cell = written(tmp_path, STUDY).cells()[1]
    with pytest.raises(StudyError, match=r"partition.paces lists 6 numbers and 3 hospitals are dealt patients"):
        complete_plan(cell, {"a": 5, "b": 5, "c": 5})
