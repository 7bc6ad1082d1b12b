"""The same cells as tasks of a local Ray cluster of two workers: same results, same failures, stopped as promptly."""

from __future__ import annotations

import _thread
import threading
import time
from pathlib import Path

import bench_world as world
import pytest
from rich.console import Console

from study.bench.engine import Outcome, run_study
from study.bench.task import StudyError
from study.bench.worker import Engine, Run
from study.results import open_results

pytestmark = [pytest.mark.slow, pytest.mark.sockets]


@pytest.fixture(autouse=True)
def _ray(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is absent: pip install 'hospital-secagg[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def play(folder: Path, run: Run, workers: int = 2) -> Outcome:
    console = Console(quiet=True)
    study = world.written(folder)
    return run_study(study, folder / "out", workers=workers, engine=Engine.RAY, console=console, run=run, task=world.TASK)


def test_a_cluster_of_two_workers_gives_what_processes_give(tmp_path: Path) -> None:
    assert play(tmp_path, world.failing) == Outcome(done=2, failed=2, planned=0, interrupted=False)
    with open_results(tmp_path / "out") as results:
        reasons = [row.reason for row in results.cells() if row.state == "failed"]
    assert reasons == ["there is no folder: name one", "ZeroDivisionError: division by zero"]
    assert play(tmp_path, world.dying) == Outcome(done=4, failed=0, planned=0, interrupted=False)
    with open_results(tmp_path / "out") as results:
        rows = results.cells()
    for row in rows:
        rounds = [world.row(row.cell, number) for number in range(int(row.cell.plan["rounds"]) + 1)]
        assert row.result == world.result(row.cell, rounds)


def test_a_worker_that_dies_and_a_study_that_is_stopped(tmp_path: Path) -> None:
    assert play(tmp_path, world.dying) == Outcome(done=3, failed=1, planned=0, interrupted=False)
    with open_results(tmp_path / "out") as results:
        (dead,) = [row for row in results.cells() if row.state == "failed"]
    assert dead.reason.startswith("its task was lost: ")

    def interrupt() -> None:
        while not (tmp_path / "out" / "work" / "waiting").exists():
            time.sleep(0.05)
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    assert play(tmp_path, world.patient) == Outcome(done=3, failed=0, planned=1, interrupted=True)
    assert (tmp_path / "out" / "work" / "stopped").exists()


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StudyError, match="cannot reach the Ray cluster"):
        play(tmp_path, world.quick)
