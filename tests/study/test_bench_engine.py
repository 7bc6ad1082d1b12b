"""Running a study: resumed by cell, stopped at once, and whatever happens to one cell happens to that cell alone."""

from __future__ import annotations

import _thread
import io
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import bench_world as world
import pytest
from rich.console import Console

from study.bench import engine, engine_processes, engine_screen
from study.bench.charge import CELLS_AT_ONCE
from study.bench.engine import Outcome, only_one, price_study, run_study
from study.bench.grid import Study
from study.bench.task import StudyError
from study.bench.worker import Run, sentence_of
from study.results import open_results

STOPS_WITHIN_S = 300.0  # on a loaded machine; the patient cell would wait an hour


def play(study: Study, out: Path, run: Run, workers: int = 2) -> tuple[Outcome, str]:
    said = io.StringIO()
    console = Console(file=said, width=140)
    return run_study(study, out, workers=workers, console=console, run=run, task=world.TASK), said.getvalue()


def runs(out: Path) -> Counter[str]:
    return Counter((out / "work" / "ran").read_text().split())


def states(out: Path) -> dict[str, str]:
    with open_results(out) as results:
        return {row.cell.label: row.state for row in results.cells()}


def interrupt_when(sign: Callable[[], bool]) -> None:
    """Ctrl-C as soon as `sign` says so."""

    def wait() -> None:
        while not sign():
            time.sleep(0.02)
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return world.written(tmp_path)


def test_a_study_says_what_it_will_cost_runs_and_does_nothing_twice(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome, said = play(study, out, world.chatty)
    assert outcome == Outcome(done=4, failed=0, planned=0, interrupted=False)
    lines = said.splitlines()
    assert lines[0] == "small: 4 cells (2 pooled, 2 masked), 0 done already"
    assert lines[1].startswith("Estimate: ")
    assert lines[1].endswith("with 2 workers (4 cells from unit costs measured just now on made-up data)")
    assert "no ledger is charged" in lines[2]
    masked = study.cells()[-1]
    scores = ("0.2095", "0.4315", "0.6535", "0.8755")
    assert [line.split(": masked")[0] for line in lines if line.startswith(masked.id)] == [
        f"{masked.id} started",
        *(f"{masked.id} round {number} of 3, score {score}" for number, score in enumerate(scores)),
        f"{masked.id} done",
    ]
    assert lines[-1] == f"4 of 4 cells done. Tables and figures: secagg-study report {out}"
    assert (out / "cells.csv").read_text().count(",done,") == 4
    again, said = play(study, out, world.chatty)
    assert again == outcome
    assert "4 done already" in said
    assert set(runs(out).values()) == {1}


def test_a_failed_cell_keeps_its_sentence_and_the_others_go_on(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome, said = play(study, out, world.failing)
    assert outcome == Outcome(done=2, failed=2, planned=0, interrupted=False)
    with open_results(out) as results:
        rows = {row.cell.label: row for row in results.cells()}
    assert rows["pooled · seed 1"].reason == "there is no folder: name one"
    masked = rows["masked · seed 1"]
    assert masked.reason == "ZeroDivisionError: division by zero"
    assert "failed: pooled · seed 1: there is no folder: name one" in said
    assert said.splitlines()[-1] == "2 of 4 cells done, 2 failed: run the same command again to try them once more"
    assert "ZeroDivisionError" in (out / "logs" / f"{masked.cell.id}.log").read_text()
    assert play(study, out, world.quick)[0] == Outcome(done=4, failed=0, planned=0, interrupted=False)


def test_a_killed_child_is_a_failed_cell_that_runs_again_from_its_first_round(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome, said = play(study, out, world.dying)
    assert outcome == Outcome(done=3, failed=1, planned=0, interrupted=False)
    assert "its process was ended by SIGKILL: the machine may be out of memory" in said
    with open_results(out) as results:
        (dead,) = [row for row in results.cells() if row.state == "failed"]
    assert [row.round for row in dead.rounds] == [0]
    assert play(study, out, world.quick)[0].done == 4
    with open_results(out) as results:
        assert [row.round for row in results.cells()[-1].rounds] == [0, 1, 2, 3]


def test_an_interrupted_study_is_resumed_by_cell(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt_when((out / "work" / "waiting").exists)
    outcome, said = play(study, out, world.patient, workers=1)
    assert (outcome.interrupted, outcome.planned) == (True, 1)
    assert (out / "work" / "stopped").exists()  # it was asked, and it heard
    assert said.splitlines()[-1] == "Stopped. 3 of 4 cells done, 1 left: run the same command again to go on"
    assert states(out)["masked · seed 2"] == "planned"
    first = runs(out)
    assert len(first) == 3
    assert play(study, out, world.quick)[0].done == 4
    assert set(runs(out).values()) == {1}


def test_a_cell_that_does_not_listen_is_ended(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_processes, "STOP_AFTER_S", 0.5)
    out = tmp_path / "out"
    interrupt_when(lambda: len(published(out)) == 2)
    outcome, _ = play(study, out, world.deaf)  # whose cell would sleep for an hour
    assert outcome == Outcome(done=0, failed=0, planned=4, interrupted=True)
    assert published(out) == []
    assert children_of(os.getpid()) == []


def published(out: Path) -> list[int]:
    """Rounds that can be read; none before the first cell started."""
    if not (out / "logs").exists():
        return []
    with open_results(out) as results:
        return [one.round for row in results.cells() for one in row.rounds]


def children_of(process: int) -> list[str]:
    listing = subprocess.run(
        ["ps", "--no-headers", "-o", "args", "--ppid", str(process)], capture_output=True, text=True, check=False
    )
    return [line for line in listing.stdout.splitlines() if "study.bench.worker" in line]


DRIVER = """
import sys
from pathlib import Path
import bench_world as world
from rich.console import Console
from study.bench import engine, engine_processes
from study.bench.charge import CELLS_AT_ONCE
from study.bench.engine import run_study
out = Path(sys.argv[1])
run_study(world.written(out.parent), out, workers=1, console=Console(width=140), run=world.patient, task=world.TASK)
"""


def test_children_end_with_a_study_that_is_killed_and_what_they_left_is_run_again(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(out)], stdout=subprocess.DEVNULL, env=environment)
    while not (out / "work" / "waiting").exists():
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    deadline_s = time.monotonic() + STOPS_WITHIN_S
    while not (out / "work" / "stopped").exists():  # the child noticed that nobody wants its cell any more
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert states(out)["masked · seed 2"] == "running"  # nobody was there to say otherwise
    assert play(study, out, world.quick)[0] == Outcome(done=4, failed=0, planned=0, interrupted=False)
    assert set(runs(out).values()) == {1}


def test_two_processes_do_not_share_a_folder(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with only_one(out), pytest.raises(StudyError, match="another process runs the study in"):
        play(study, out, world.quick)
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="name another folder with --out"):
        play(study, tmp_path / "file", world.quick)


def test_listing_a_study_runs_nothing(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned, costs = price_study(study, out, world.TASK)
    assert set(planned.values()) == {"planned"}
    assert len(costs.core_s) == 4
    assert not (out / "results.db").exists()
    play(study, out, world.failing)
    after, costs = price_study(study, out, world.TASK)
    assert Counter(after.values()) == {"done": 2, "failed": 2}
    assert (len(costs.core_s), costs.from_finished) == (2, 2)


def test_errors_become_sentences() -> None:
    assert sentence_of(StudyError("there is no\nfolder: name one")) == "there is no folder: name one"
    assert sentence_of(KeyError("x")) == "KeyError: 'x'"
    assert sentence_of(StudyError()) == "StudyError: "


def test_a_terminal_shows_bars_and_no_line_a_round(study: Study, tmp_path: Path) -> None:
    said = io.StringIO()
    console = Console(file=said, width=140, force_terminal=True, color_system=None)
    run_study(study, tmp_path / "out", workers=2, console=console, run=world.quick, task=world.TASK)
    shown = said.getvalue()
    assert "started" not in shown
    assert "0 of 4, about" in shown
    assert shown.count("done: ") == 4


def test_a_screen_names_cells_shortly_and_baselines_have_no_rounds(tmp_path: Path) -> None:
    """Names hold what tells the cells of this study apart, so that a bar fits beside them."""
    text = world.STUDY.replace(
        '["pooled", "masked"]', '["pooled", "masked"]\n"network.channels" = [[4, 8, 16]]\nrounds = [2, 3]'
    )
    study = world.written(tmp_path, text)
    outcome, said = play(study, tmp_path / "out", world.quick)
    assert outcome.done == 6
    pooled, masked = study.cells()[0], study.cells()[-1]
    assert f"{pooled.id} start, score 0.4425: pooled · seed 1" in said
    assert f"{pooled.id} after 600 steps, score 0.8975: pooled · seed 1" in said
    assert f"{masked.id} round 3 of 3, score 0.8755: masked · seed 2 · rounds 3" in said
    assert "network.channels" not in said


def test_long_preparations_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_screen, "SILENT_S", 0.0)
    said: list[str] = []
    preparing = engine_screen.Preparing(said.append)
    time.sleep(0.01)
    for done in range(3):
        preparing(done, 3)
    assert len(said) == 1
    assert said[0].startswith("Reading the patients")
    monkeypatch.setattr(engine_screen, "SILENT_S", 60.0)
    engine_screen.Preparing(said.append)(1, 3)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "needs data.ledger"),
        ('ledger = "nowhere"', "data.ledger = 'nowhere' is no folder"),
        ('ledger = "."', "method 'pooled' is ordinary training, which protects nobody"),
    ],
)
def test_private_cells_that_can_never_run_are_refused_before_anything_is_read(tmp_path: Path, more: str, said: str) -> None:
    study = world.written(tmp_path, world.STUDY.replace('"synthetic"', f'"private"\n{more}'))
    for start in (lambda: play(study, tmp_path / "out", world.quick), lambda: price_study(study, tmp_path / "out", world.TASK)):
        with pytest.raises(StudyError, match=said):
            start()
    assert not (tmp_path / "out").exists()


def test_a_private_study_without_noise_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    text = world.STUDY.replace('"synthetic"', '"private"\nledger = "."').replace(
        '["pooled", "masked"]', '"masked"\nepsilon = inf'
    )
    with pytest.raises(StudyError, match=r"its plan has no noise \(epsilon inf\)"):
        play(world.written(tmp_path, text), tmp_path / "out", world.quick)


def test_no_more_private_cells_at_once_than_a_ledger_bears(tmp_path: Path) -> None:
    public = world.written(tmp_path).cells()
    private = world.written(tmp_path, world.STUDY.replace('"synthetic"', '"private"')).cells()
    assert engine._at_once(public, 16) == 16
    assert engine._at_once(private, 16) == CELLS_AT_ONCE
    assert engine._at_once(private, 1) == 1
