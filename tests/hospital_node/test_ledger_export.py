"""The export: another person verifies it without this node, and everything that was changed in it is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ledger_world import at, make_plan, new_ledger, release
from node_world import ME, NOW_S, approve, make_folders
from node_world import make_plan as make_node_plan

from hospital_node import cli
from hospital_node.ledger import AlreadyReleased, Ledger, LedgerDamaged, LedgerMissing, LedgerRolledBack
from hospital_node.ledger_export import ExportError, check_continues, read_export, write_export
from hospital_node.ledger_schema import Row
from hospital_node.statement import statement

PLAN = make_plan()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = new_ledger(tmp_path, PLAN)
    release(made, PLAN, 1)
    release(made, PLAN, 2)
    return made


def test_an_export_says_what_the_ledger_says(ledger: Ledger, tmp_path: Path) -> None:
    write_export(ledger.rows(), tmp_path / "export.json")
    events = read_export(tmp_path / "export.json")
    assert events == ledger.events()
    assert statement(events) == statement(ledger.events())
    key = (tmp_path / "ledger.key").read_bytes().hex()
    assert key not in (tmp_path / "export.json").read_text()


def change(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda file: file["entries"][3].update({field: value})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (change("body", "{}"), "entry 4 was changed"),
        (change("at", "2026-11-21T08:00:00.000000+00:00"), "entry 4 was changed"),
        (change("kind", "note"), "entry 4 was changed"),
        (change("digest", "0" * 64), "entry 4 was changed"),
        (change("previous", "0" * 64), "entry 4 was changed"),
        (lambda file: file["entries"].pop(3), "entry 4 is missing"),
        (lambda file: file["entries"].clear(), "the first entry, which names the hospital, is missing"),
        (lambda file: file.update(format="something else"), "is no export of a ledger"),
        (change("seq", -1), "is no export of a ledger"),
    ],
)
def test_whatever_is_changed_in_an_export_is_found(
    ledger: Ledger, tmp_path: Path, edit: Callable[[dict[str, Any]], None], says: str
) -> None:
    path = tmp_path / "export.json"
    write_export(ledger.rows(), path)
    file = json.loads(path.read_text())
    edit(file)
    path.write_text(json.dumps(file))
    with pytest.raises(ExportError, match=says):
        read_export(path)


def test_a_newer_export_goes_on_from_an_older_one(ledger: Ledger, tmp_path: Path) -> None:
    older = ledger.events()
    release(ledger, PLAN, 3)
    newer = ledger.events()
    check_continues(older, newer)
    check_continues(newer, newer)
    with pytest.raises(ExportError, match="history is missing"):
        check_continues(newer, older)
    (tmp_path / "other").mkdir()
    another = new_ledger(tmp_path / "other", PLAN)
    for number in range(4):
        another.note("Dr Keller", f"remark {number}", at(5))
    with pytest.raises(ExportError, match="entry 1 is another one"):
        check_continues(older, another.events()[: len(older)])


def test_the_commands_export_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, plan = make_folders(tmp_path), make_node_plan()
    folders.state.create()
    ledger = folders.state.open_ledger(ME, at(0))
    approve(ledger, plan)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    config = ["--config", str(folders.config_file)]
    assert cli.main(["ledger", "export", "--out", str(first), *config]) == 0
    asked = ledger.authorize(plan, 1)
    ledger.commit(asked, b"u" * 32, b"s" * 16, at(NOW_S / 60 - at(0).timestamp() / 60))
    assert cli.main(["ledger", "export", "--out", str(second), *config]) == 0
    assert cli.main(["ledger", "verify", str(second), "--continues", str(first)]) == 0
    out = capsys.readouterr().out
    assert ledger.head.hex() in out
    assert "nothing was changed or removed since" in out
    assert "everything h0 has sent satisfies" in out
    assert cli.main(["ledger", "verify", str(first), "--continues", str(second)]) == 2
    assert "history is missing" in capsys.readouterr().err
    assert cli.main(["ledger", "verify", str(folders.config_file)]) == 2
    assert cli.main(["ledger", "export", "--out", str(tmp_path / "no" / "x.json"), *config]) == 2
    assert capsys.readouterr().err.count("\n") == 2


# ---- back from an export ----


@dataclass
class Lost:
    """A ledger with a second counter, an export of its newest state, and an older copy of its folder."""

    home: Path
    witness: Path
    newest: tuple[Row, ...]
    older: tuple[Row, ...]
    backup: Path

    @property
    def path(self) -> Path:
        return self.home / "ledger.db"

    def restore(self, rows: tuple[Row, ...]) -> Ledger:
        return Ledger.restore(self.path, rows, "Dr Keller", "disk failed", at(30), witness=self.witness)


@pytest.fixture
def lost(tmp_path: Path) -> Lost:
    home, witness = tmp_path / "state", tmp_path / "elsewhere.counter"
    home.mkdir()
    new_ledger(home, PLAN)
    ledger = Ledger.start_witness(home / "ledger.db", witness, "Dr Keller", "safe", at(2))
    release(ledger, PLAN, 1)
    older = ledger.rows()
    shutil.copytree(home, tmp_path / "backup")
    release(ledger, PLAN, 2)
    return Lost(home, witness, ledger.rows(), older, tmp_path / "backup")


def the_old_database_is_back(lost: Lost) -> None:
    shutil.copy(lost.backup / "ledger.db", lost.path)


def the_database_is_gone(lost: Lost) -> None:
    lost.path.unlink()


@pytest.mark.parametrize("loss", [the_old_database_is_back, the_database_is_gone], ids=lambda loss: loss.__name__)
def test_a_lost_ledger_comes_back_whole_from_its_newest_export(lost: Lost, loss: Callable[[Lost], None]) -> None:
    loss(lost)
    with pytest.raises((LedgerRolledBack, LedgerMissing)):
        Ledger.open(lost.path, witness=lost.witness)
    ledger = lost.restore(lost.newest)
    assert ledger.rows()[: len(lost.newest)] == lost.newest
    assert "disk failed" in str(ledger.events()[-1].entry)
    assert ledger.budget(PLAN).rounds_done == 2
    with pytest.raises(AlreadyReleased):
        ledger.authorize(PLAN, 2)
    release(ledger, PLAN, 3, minutes=31)
    assert Ledger.open(lost.path, witness=lost.witness).events()[-1].kind == "verified"


def test_a_restored_folder_comes_back_by_what_the_second_counter_saw(lost: Lost) -> None:
    """The counter beside the ledger is as old as the ledger here."""
    shutil.rmtree(lost.home)
    shutil.copytree(lost.backup, lost.home)
    with pytest.raises(LedgerRolledBack, match="find a newer export"):
        lost.restore(lost.older)
    assert lost.restore(lost.newest).budget(PLAN).rounds_done == 2


@pytest.mark.parametrize("loss", [the_old_database_is_back, the_database_is_gone], ids=lambda loss: loss.__name__)
def test_an_export_older_than_a_counter_brings_nothing_back(lost: Lost, loss: Callable[[Lost], None]) -> None:
    loss(lost)
    before = sorted((path.name, path.read_bytes()) for path in lost.home.iterdir())
    with pytest.raises(LedgerRolledBack, match="find a newer export"):
        lost.restore(lost.older)
    assert sorted((path.name, path.read_bytes()) for path in lost.home.iterdir()) == before


def test_an_export_of_another_ledger_or_a_shorter_one_brings_nothing_back(lost: Lost, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = new_ledger(tmp_path / "other", PLAN)
    while len(other.events()) < len(lost.newest):
        other.note("Dr Keller", "x", at(3))
    with pytest.raises(LedgerRolledBack, match="of another or a longer history"):
        lost.restore(other.rows())
    ledger = Ledger.open(lost.path, witness=lost.witness)
    counters = {path: path.read_bytes() for path in (lost.witness, lost.home / "ledger.counter")}
    ledger.note("Dr Keller", "newer than the export", at(20))
    for path, content in counters.items():  # a crash before the counters were written
        path.write_bytes(content)
    before = ledger.rows()
    with pytest.raises(LedgerDamaged, match="holds entries that are not in the export"):
        lost.restore(lost.newest)
    assert Ledger.open(lost.path, witness=lost.witness).rows() == before


def test_the_command_restores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, file = make_folders(tmp_path), tmp_path / "export.json"
    folders.state.create()
    approve(folders.state.open_ledger(ME, at(0)), make_node_plan())
    config = ["--config", str(folders.config_file)]
    assert cli.main(["ledger", "export", "--out", str(file), *config]) == 0
    folders.state.ledger.unlink()
    decision = ["--by", "Dr Keller", "--reason", "disk failed"]
    assert cli.main(["ledger", "restore", str(file), *decision, *config]) == 0
    assert "Restored by Dr Keller: 3 entries" in capsys.readouterr().out
    assert cli.main(["ledger", "restore", str(folders.config_file), *decision, *config]) == 2
    assert "is no export of a ledger" in capsys.readouterr().err
