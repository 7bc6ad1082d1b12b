"""A study whose cells take no time: a task of made-up patients and functions that stand in for a whole federation.

The functions are found by name in other processes, so they live in a module of their own.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hospital_node.work import Interrupted
from study.bench.cells import Cell, CellResult, Method, RoundRow
from study.bench.grid import Study, load_study
from study.bench.task import Patients, StudyError, Unit, UnitCost

OnRound = Callable[[RoundRow], None]
LENGTH = 1000
AWAY_S = 3600.0  # longer than any test may take
HOSPITALS = {"north": 10, "east": 20, "south": 30}
BASE = {Method.POOLED: 0.9, Method.LOCAL: 0.7, Method.PLAIN: 0.87, Method.MASKED: 0.868}

STUDY = """
study = "small"
task = "bench_world:TASK"
plan = "hippocampus-plain"
seeds = [1, 2]
[data]
kind = "synthetic"
[set]
rounds = 3
[[grid]]
method = ["pooled", "masked"]
"""


class FakeTask:
    """Sixty patients at three sites, two test cases, unit costs that are easy to reckon with."""

    name = "fake"
    metric = "Dice"

    def patients(self, cell: Cell, cache: Path, count: Any) -> Patients:
        site = [name for name, size in HOSPITALS.items() for _ in range(size)]
        one = SimpleNamespace(cases=(object(),))
        units = tuple(Unit(f"p{number}", one, name) for number, name in enumerate(site))
        return Patients(units, units[:2])

    def probe(self, cell: Cell) -> UnitCost:
        return UnitCost(patient_s=0.1, case_s=0.5, length=LENGTH)


TASK: Any = FakeTask()


def written(folder: Path, text: str = STUDY) -> Study:
    path = folder / "study.toml"
    path.write_text(text)
    return load_study(path)


def row(cell: Cell, number: int) -> RoundRow:
    rounds = int(cell.plan["rounds"])
    noise = 0.0 if cell.epsilon is None else 0.3 / cell.epsilon
    score = (BASE[cell.method] - noise + 0.01 * cell.seed) * (number + 1) / (rounds + 1)
    travels = cell.method in {Method.PLAIN, Method.MASKED} and number > 0
    return RoundRow(
        round=number,
        survivors=3,
        scores={"anterior": [score, score - 0.01], "posterior": [score - 0.02]},
        epsilon=None if cell.epsilon in {None, float("inf")} else cell.epsilon * number / rounds,
        upload_bytes=3 * 2000 if travels else 0,
        download_bytes=3 * 4000 if travels else 0,
        seconds=0.25,
    )


def result(cell: Cell, rounds: list[RoundRow]) -> CellResult:
    return CellResult(
        cell=cell.id,
        rounds=rounds,
        wall_s=2.0,
        cpu_s=1.5 + cell.seed,
        vector_length=LENGTH,
        plan_digest="ab" * 32,
        noise_multiplier=0.0,
        epsilon=rounds[-1].epsilon,
        delta=1e-5,
        hospitals=HOSPITALS,
    )


def quick(cell: Cell, workspace: Path, on_round: OnRound, stop: threading.Event) -> CellResult:
    """Every round at once. Each run leaves a line in the workspace, so that a test can count them."""
    workspace.mkdir(parents=True, exist_ok=True)
    with (workspace / "ran").open("a") as handle:
        handle.write(f"{cell.id}\n")
    rounds = [row(cell, number) for number in range(int(cell.plan["rounds"]) + 1)]
    for one in rounds:
        on_round(one)
    return result(cell, rounds)


def patient(cell: Cell, workspace: Path, on_round: OnRound, stop: threading.Event) -> CellResult:
    """Masked cells of seed 2 wait in round 1 until they are stopped; all others are quick."""
    if (cell.method, cell.seed) != (Method.MASKED, 2):
        return quick(cell, workspace, on_round, stop)
    on_round(row(cell, 0))
    on_round(row(cell, 1))
    (workspace / "waiting").touch()
    stop.wait(AWAY_S)
    (workspace / "stopped").touch()
    raise Interrupted


def deaf(cell: Cell, workspace: Path, on_round: OnRound, stop: threading.Event) -> CellResult:
    """Listens to nobody."""
    on_round(row(cell, 0))
    time.sleep(AWAY_S)
    raise AssertionError


def failing(cell: Cell, workspace: Path, on_round: OnRound, stop: threading.Event) -> CellResult:
    """Cells of seed 1 fail after their first round."""
    if cell.seed == 1:
        on_round(row(cell, 0))
        if cell.method is Method.POOLED:
            raise StudyError("there is no folder: name one")
        raise ZeroDivisionError("division\nby zero")
    return quick(cell, workspace, on_round, stop)


def dying(cell: Cell, workspace: Path, on_round: OnRound, stop: threading.Event) -> CellResult:
    """The process of the masked cell of seed 2 is killed after its first round."""
    if (cell.method, cell.seed) == (Method.MASKED, 2):
        on_round(row(cell, 0))
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(cell, workspace, on_round, stop)


def chatty(cell: Cell, workspace: Path, on_round: OnRound, stop: threading.Event) -> CellResult:
    """Prints where events go, as a library might."""
    print('{"result": 1}')
    return quick(cell, workspace, on_round, stop)
