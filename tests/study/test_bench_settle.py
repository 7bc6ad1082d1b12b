"""A charged cell and its result: the ledger hears of a result once it is stored, whatever happens in between."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from pathlib import Path

import bench_world as world
import pytest
from rich.console import Console
from test_bench_charge import CAP, ST_ANNA, make_plan

from hospital_node.ledger import Ledger
from hospital_node.ledger_rules import open_releases
from hospital_node.ledger_schema import Verified
from hospital_node.state import StateFolder
from study.bench import charge as charging
from study.bench.cells import Cell
from study.bench.engine import Outcome, run_study
from study.bench.grid import Study
from study.bench.task import StudyError
from study.results import open_results

NOW = datetime.now(UTC)
REAL = charging.settle
GRID = '[[grid]]\nmethod = "masked"\nepsilon = 8\n'


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    Ledger.create(folder.ledger, ST_ANNA, NOW)
    return folder


@pytest.fixture
def study(tmp_path: Path, state: StateFolder) -> Study:
    """Two cells of private patients, both charged, as run_cell does before it trains."""
    text = world.STUDY.partition("[[grid]]")[0].replace('"synthetic"', f'"private"\nledger = "{state.path}"') + GRID
    found = world.written(tmp_path, text)
    for cell in found.cells():
        plan = make_plan(rounds=1)
        asked = charging.plan_to_approve(cell, plan, "st-anna")
        Ledger.open(state.ledger).approve(asked, "Dr Keller", "tuning", CAP, NOW)
        charging.charge(cell, plan, NOW, os.urandom)
    return found


def play(study: Study, out: Path) -> tuple[Outcome, str]:
    said = io.StringIO()
    console = Console(file=said, width=140)
    return run_study(study, out, workers=1, console=console, run=world.quick, task=world.TASK), said.getvalue()


def recorded(state: StateFolder) -> int:
    return sum(isinstance(event.entry, Verified) for event in Ledger.open(state.ledger).events())


def test_the_ledger_hears_of_a_result_that_is_stored(
    study: Study, state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def settle(cell: Cell, at: datetime) -> None:
        with open_results(tmp_path / "out") as results:
            found.append(results.states()[cell.id])
        REAL(cell, at)

    monkeypatch.setattr(charging, "settle", settle)
    assert play(study, tmp_path / "out")[0].done == 2
    assert found == ["done", "done"]
    assert recorded(state) == 2


def test_a_crash_between_both_is_made_good_at_the_next_start(
    study: Study, state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_cell: Cell, _at: datetime) -> None:
        raise SystemExit("power cut")

    monkeypatch.setattr(charging, "settle", crash)
    with pytest.raises(SystemExit):
        play(study, tmp_path / "out")
    assert recorded(state) == 0
    assert open_releases(Ledger.open(state.ledger).events()) == 2
    monkeypatch.setattr(charging, "settle", REAL)
    assert play(study, tmp_path / "out")[0].done == 2
    assert recorded(state) == 2
    assert open_releases(Ledger.open(state.ledger).events()) == 0
    assert (tmp_path / "out" / "work" / "ran").read_text().split() == [cell.id for cell in study.cells()], "each ran once"


def test_a_charged_cell_without_a_result_stays_without_one(study: Study, state: StateFolder, tmp_path: Path) -> None:
    """Its process died before the result was stored: the ledger must not say that there is one."""
    outcome = run_study(study, tmp_path / "out", workers=1, console=Console(quiet=True), run=world.dying, task=world.TASK)
    assert outcome == Outcome(done=1, failed=1, planned=0, interrupted=False)
    assert recorded(state) == 1


def test_a_ledger_that_does_not_take_it_is_named_and_asked_again(
    study: Study, state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_cell: Cell, _at: datetime) -> None:
        raise StudyError("the disk of the ledger is full")

    monkeypatch.setattr(charging, "settle", refuse)
    outcome, said = play(study, tmp_path / "out")
    assert outcome.done == 2
    assert said.count("the disk of the ledger is full; the result is kept, and the next start of this study records it") == 2
    with pytest.raises(StudyError, match="disk of the ledger"):  # nothing is charged while an old result is not recorded
        play(study, tmp_path / "out")
    monkeypatch.setattr(charging, "settle", REAL)
    play(study, tmp_path / "out")
    assert recorded(state) == 2
