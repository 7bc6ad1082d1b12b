"""One ledger for a hospital: shared by its studies, watched by a second counter, and its clock a matter for people."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ledger_world import CAP, DELTA, HOSPITAL, START, at, make_plan, new_ledger, release
from node_world import Folders, make_folders

from hospital_node import cli
from hospital_node.ledger import (
    BudgetExhausted,
    Cap,
    ClockJumped,
    DecisionRefused,
    Ledger,
    LedgerRolledBack,
    NotApproved,
)
from hospital_node.ledger_rules import LONGEST_SILENCE
from hospital_node.state import StateError, StateFolder

PLAN = make_plan()


# ---- a second counter ----


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    new_ledger(tmp_path / "state", PLAN)
    return tmp_path / "state"


def test_a_second_counter_is_started_by_people_and_asked_for_from_then_on(home: Path, tmp_path: Path) -> None:
    witness = tmp_path / "elsewhere" / "ledger.counter"
    witness.parent.mkdir()
    with pytest.raises(LedgerRolledBack, match="if it is a second one that this ledger never had, start it"):
        Ledger.open(home / "ledger.db", witness=witness)
    ledger = Ledger.start_witness(home / "ledger.db", witness, "Dr Keller", "a stick in the safe", at(2))
    assert ledger.events()[-1].kind == "note"
    assert "second counter: a stick in the safe" in str(ledger.events()[-1].entry)
    release(ledger, PLAN, 1)
    assert witness.read_bytes() == (home / "ledger.counter").read_bytes()
    with pytest.raises(DecisionRefused, match="exists already"):
        Ledger.start_witness(home / "ledger.db", witness, "Dr Keller", "again", at(20))
    witness.unlink()
    with pytest.raises(LedgerRolledBack, match="missing"):
        ledger.authorize(PLAN, 2)


def test_a_new_state_folder_does_not_make_the_hospital_forget(home: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ledger.counter"
    release(Ledger.start_witness(home / "ledger.db", witness, "Dr Keller", "safe", at(2)), PLAN, 1)
    (tmp_path / "new").mkdir()
    with pytest.raises(LedgerRolledBack, match=r"a ledger of \d entries existed here"):
        StateFolder(tmp_path / "new", witness).open_ledger(HOSPITAL, at(20))
    assert not (tmp_path / "new" / "ledger.db").exists()


def test_a_commit_that_cannot_reach_the_second_counter_releases_nothing(home: Path, tmp_path: Path) -> None:
    witness = tmp_path / "safe" / "ledger.counter"
    witness.parent.mkdir()
    ledger = Ledger.start_witness(home / "ledger.db", witness, "Dr Keller", "safe", at(2))
    asked = ledger.authorize(PLAN, 1)
    os.rename(witness.parent, tmp_path / "away")
    with pytest.raises(LedgerRolledBack, match="missing"):
        ledger.commit(asked, b"u" * 32, b"s" * 16, at(10))
    os.rename(tmp_path / "away", witness.parent)
    release(ledger, PLAN, 1)


# ---- one ledger for several studies ----


def test_two_studies_in_two_folders_spend_from_one_ledger(tmp_path: Path) -> None:
    shared = tmp_path / "hospital" / "ledger.db"
    shared.parent.mkdir()
    first, second = StateFolder(tmp_path / "a"), StateFolder(tmp_path / "b")
    for folder in (first, second):
        folder.create()
        folder.share_ledger(shared)
        folder.share_ledger(shared)  # once more, as at every start
    other, one_round = make_plan(study="second"), Cap(epsilon=1.7, delta=DELTA)
    mine = first.open_ledger(HOSPITAL, at(0))
    mine.approve(PLAN, "Dr Keller", "first", one_round, at(1))
    theirs = second.open_ledger("secagg://second/hospital/st-anna", at(2))
    theirs.approve(other, "Dr Keller", "second", one_round, at(2))
    release(mine, PLAN, 1)
    with pytest.raises(BudgetExhausted, match=r"above the cap of 1\.7"):
        theirs.authorize(other, 1)
    assert theirs.head == mine.head
    assert sorted(path.name for path in shared.parent.iterdir()) == ["ledger.counter", "ledger.db", "ledger.key"]


def test_a_ledger_that_is_there_already_is_not_put_aside_silently(home: Path, tmp_path: Path) -> None:
    folder = StateFolder(home)
    folder.share_ledger(None)
    with pytest.raises(StateError, match="a hospital has one, and what was spent in both counts together"):
        folder.share_ledger(tmp_path / "ledger.db")
    folder.share_ledger(home / "ledger.db")
    fresh = StateFolder(tmp_path / "x")
    fresh.create()
    with pytest.raises(StateError, match=r"the folder .* of key 'ledger' does not exist"):
        fresh.share_ledger(tmp_path / "nowhere" / "ledger.db")


def test_a_new_version_of_the_cohort_inherits_everything(tmp_path: Path) -> None:
    """The ledger knows nothing of files: whatever patients lie in the data folder, they stand under all that was spent."""
    ledger = new_ledger(tmp_path, PLAN)
    for number in (1, 2, 3, 4, 5):
        release(ledger, PLAN, number)
    larger = make_plan(study="second-version", patients=400)  # more patients are declared; the noise is the same
    with pytest.raises(NotApproved):
        ledger.authorize(larger, 1)
    ledger.approve(larger, "Dr Keller", "300 patients joined", CAP, at(20))
    with pytest.raises(BudgetExhausted):
        ledger.authorize(larger, 1)
    assert ledger.budget(larger).spent == ledger.budget(PLAN).spent > 2.8


# ---- the clock ----


@pytest.mark.parametrize("jump", [LONGEST_SILENCE + timedelta(minutes=2), timedelta(days=3650), -timedelta(days=1)])
def test_a_clock_that_jumps_either_way_records_nothing(tmp_path: Path, jump: timedelta) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    asked, head = ledger.authorize(PLAN, 1), ledger.head
    for write in (
        lambda: ledger.commit(asked, b"u" * 32, b"s" * 16, START + jump),
        lambda: ledger.note("Dr Keller", "x", START + jump),
    ):
        with pytest.raises(ClockJumped, match=r"set the clock.*secagg-node ledger clock"):
            write()
    assert ledger.head == head
    release(ledger, PLAN, 1)


@pytest.mark.parametrize("jump", [timedelta(days=3650), -timedelta(days=1)])
def test_people_confirm_a_clock_and_everything_goes_on_from_there(tmp_path: Path, jump: timedelta) -> None:
    ledger = new_ledger(tmp_path, PLAN)
    ledger.confirm_clock("Dr Keller", "the old clock was wrong", START + jump)
    release(ledger, PLAN, 1, minutes=jump / timedelta(minutes=1) + 5)
    kinds = [event.kind for event in Ledger.open(tmp_path / "ledger.db").events()]
    assert kinds[-3:] == ["clock_confirmed", "charge", "verified"]
    with pytest.raises(DecisionRefused, match="name of the person"):
        ledger.confirm_clock(" ", "x", START)


# ---- from the command line ----


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path)
    with made.config_file.open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write('ledger = "shared/ledger.db"\nledger_counter = "safe/ledger.counter"\n' + text)
    return made


def call(folders: Folders, *words: Any) -> int:
    return cli.main([*(str(word) for word in words), "--config", str(folders.config_file)])


DECISION = ("--by", "Dr Keller", "--reason", "first study")


def test_the_commands_use_the_shared_ledger_and_its_second_counter(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    from node_world import make_plan as make_node_plan

    (folders.root / "shared").mkdir()
    (folders.root / "safe").mkdir()
    plan = folders.root / "plan.json"
    plan.write_bytes(make_node_plan().canonical())
    assert call(folders, "approve", "--plan", plan, *DECISION) == 0
    assert (folders.root / "shared" / "ledger.db").is_file()
    assert (folders.root / "safe" / "ledger.counter").is_file()
    (folders.state.ledger).unlink()  # as in the new folder of a second study, before anything was approved there
    capsys.readouterr()
    assert call(folders, "budget") == 0
    assert "approved 5 rounds of 'lidc'" in capsys.readouterr().out.replace("\n", "")
    assert call(folders, "ledger", "clock", "--by", "Dr Keller", "--reason", "looked at it") == 0
    assert call(folders, "budget") == 0
    capsys.readouterr()
    backup = shutil.copytree(folders.root / "shared", folders.root / "backup")
    assert call(folders, "pause", *DECISION) == 0
    shutil.rmtree(folders.root / "shared")
    shutil.copytree(backup, folders.root / "shared")
    for words in (("budget",), ("resume", *DECISION)):
        assert call(folders, *words) == 2
        assert "a backup was restored" in capsys.readouterr().err
    assert call(folders, "ledger", "counter", *DECISION) == 2
    assert "exists already" in capsys.readouterr().err
