"""The export: another person verifies it without this node, and everything that was changed in it is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledger_world import at, make_plan, new_ledger, release
from node_world import ME, NOW_S, approve, make_folders
from node_world import make_plan as make_node_plan

from hospital_node import cli
from hospital_node.ledger import Ledger
from hospital_node.ledger_export import ExportError, check_continues, read_export, write_export
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
