"""Whatever is wrong with budget, ledger, clock or disk: a sentence here, a code outside, no masked word, nothing half-written.

Each case goes wrong at the worst moment: the node has trained with leave, the session has passed every check, and what leaves
next would be masked words. Before training the same question is asked (test_node_refusals.py, test_node_runner.py).
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node_world import BASE, LAYOUT, ME, NOW_S, Folders, Rehearsal, approved_ledger, make_desk, make_folders, make_plan

from hospital_node import cli, ledger_store
from hospital_node.accounting import Mechanism
from hospital_node.cap import Cap, stated
from hospital_node.ledger import Charge, Ledger, LedgerError
from hospital_node.ledger_rules import LONGEST_SILENCE
from hospital_node.release import ReleaseDesk
from hospital_node.session import SessionRefused
from proto import federation_pb2 as pb
from proto.layout import model_digest
from proto.plan import DECLINE_CODES, PlanError, from_canonical

PLAN = make_plan()
NOW = datetime.fromtimestamp(NOW_S, UTC)
ROUND = Mechanism(4.0, 0.25, 2)


@dataclass
class Moment:
    """The next answer of `desk` to `order` would be masked words."""

    folders: Folders
    desk: ReleaseDesk
    order: pb.Mask
    monkeypatch: pytest.MonkeyPatch

    @property
    def path(self) -> Path:
        return self.folders.state.ledger

    def write(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)


def cap_is_lowered(moment: Moment) -> None:
    cap = Cap(epsilon=stated([ROUND], 1e-5) - 0.01, delta=1e-5)
    Ledger.open(moment.path).lower_cap(cap, "Dr Keller", "board", NOW)


def approval_is_withdrawn(moment: Moment) -> None:
    Ledger.open(moment.path).withdraw(PLAN, "Dr Keller", "board", NOW)


def somebody_pauses(moment: Moment) -> None:
    Ledger.open(moment.path).pause("Dr Keller", "audit", NOW)


def an_entry_is_edited(moment: Moment) -> None:
    trigger = "events_never_change"
    with closing(sqlite3.connect(moment.path)) as connection:
        (made,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (trigger,)).fetchone()
    edit = "UPDATE events SET body = replace(body, '\"epsilon\":8.0', '\"epsilon\":9.0') WHERE seq = 2"
    moment.write(f"DROP TRIGGER {trigger}", edit, made)


def the_file_is_damaged(moment: Moment) -> None:
    raw = bytearray(moment.path.read_bytes())
    place = raw.index(b"Dr Keller")
    raw[place : place + 100] = bytes(100)
    moment.path.write_bytes(raw)


def the_file_is_truncated(moment: Moment) -> None:
    moment.path.write_bytes(moment.path.read_bytes()[:5000])


def the_file_is_gone(moment: Moment) -> None:
    moment.path.unlink()


def a_backup_is_restored(moment: Moment) -> None:
    backup = moment.path.with_name("backup")
    shutil.copy(moment.path, backup)
    Ledger.open(moment.path).note("Dr Keller", "something that the backup does not hold", NOW)
    shutil.copy(backup, moment.path)


def the_counter_is_gone(moment: Moment) -> None:
    moment.path.with_suffix(".counter").unlink()


def the_clock_is_behind(moment: Moment) -> None:
    Ledger.open(moment.path).note("Dr Keller", "by the right clock", NOW + timedelta(hours=1))


def the_clock_is_years_ahead(moment: Moment) -> None:
    later_s = (NOW + LONGEST_SILENCE + timedelta(days=1)).timestamp()
    moment.monkeypatch.setattr(moment.desk, "_clock", lambda: later_s)


def the_disk_is_full(moment: Moment) -> None:
    """Not one page more: the last page of the file is filled before."""
    connect = ledger_store._connect

    def connected(database: Path, mode: str) -> sqlite3.Connection:
        connection = connect(database, mode)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    ledger = Ledger.open(moment.path)
    moment.monkeypatch.setattr(ledger_store, "_connect", connected)
    for size in (3000, 300, 30, 3):
        for _ in range(20):
            try:
                ledger.note("Dr Keller", "x" * size, NOW)
            except LedgerError:
                break


BAD: dict[Callable[[Moment], None], str] = {
    cap_is_lowered: "budget-exhausted",
    approval_is_withdrawn: "not-approved",
    somebody_pauses: "paused",
    an_entry_is_edited: "ledger-damaged",
    the_file_is_damaged: "ledger-damaged",
    the_file_is_truncated: "ledger-damaged",
    the_file_is_gone: "ledger-rolled-back",
    a_backup_is_restored: "ledger-rolled-back",
    the_counter_is_gone: "ledger-rolled-back",
    the_clock_is_behind: "clock-behind",
    the_clock_is_years_ahead: "clock-behind",
    the_disk_is_full: "ledger-unwritable",
}


@pytest.fixture
def moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moment:
    folders = make_folders(tmp_path)
    approved_ledger(folders, PLAN)

    def ledger() -> Ledger:
        return folders.state.open_ledger(ME, NOW)

    desk, coordinator = make_desk(folders, PLAN, ledger), Rehearsal(PLAN, folders)
    desk.hold(np.full(LAYOUT.length, 0.25, np.float32), model_digest(BASE), ledger().authorize(PLAN, 1))
    order = coordinator.take_shares(desk.share(coordinator.take_advert(desk.open(coordinator.order))))
    return Moment(folders, desk, order, monkeypatch)


@pytest.mark.parametrize("wrong", BAD, ids=lambda wrong: wrong.__name__)
def test_nothing_leaves_and_nothing_is_half_written(moment: Moment, wrong: Callable[[Moment], None]) -> None:
    wrong(moment)
    before = contents(moment.folders.state.path)
    with pytest.raises(SessionRefused) as refused:
        moment.desk.mask(moment.order)
    code = BAD[wrong]
    assert (refused.value.code, refused.value.detail) == (code, DECLINE_CODES[code])
    assert isinstance(refused.value.__cause__, LedgerError)
    sentence = str(refused.value.__cause__)
    assert len(sentence) > 40
    assert "Traceback" not in sentence
    assert contents(moment.folders.state.path) == before
    assert moment.desk.holds(1, model_digest(BASE)) is False, "an update that was refused its charge is gone"
    with pytest.raises(SessionRefused):
        moment.desk.mask(moment.order)
    assert contents(moment.folders.state.path) == before


def test_the_same_moment_with_nothing_wrong_leaves_and_is_charged(moment: Moment) -> None:
    _, upload = moment.desk.mask(moment.order)
    assert sum(len(part) for part in upload.pieces()) > 0
    assert [type(event.entry) for event in Ledger.open(moment.path).events()][-1] is Charge


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- plans and decisions that are refused before there is anything to charge ----


def changed(part: str, **fields: Any) -> bytes:
    plan = json.loads(PLAN.canonical())
    plan[part].update(fields)
    return json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"noise_multiplier": 0.0}, "no_guarantee"),
        ({"delta": 0.05}, "delta"),  # one over the declared size
        ({"delta": 0.2}, "delta"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
    ],
)
def test_a_plan_that_protects_nobody_is_refused_where_it_is_read(fields: dict[str, float], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        from_canonical(changed("privacy", **fields))


@pytest.mark.parametrize("delta", ["0.05", "0.5"])
def test_a_cap_at_a_delta_of_one_over_the_declared_size_is_refused_on_the_command_line(
    tmp_path: Path, delta: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = make_folders(tmp_path)
    (folders.root / "plan.json").write_bytes(PLAN.canonical())
    words = ["approve", "--config", folders.config_file, "--plan", folders.root / "plan.json"]
    decision = ["--by", "Dr Keller", "--reason", "x", "--epsilon", "8", "--delta", delta]
    assert cli.main([*map(str, words), *decision]) == 2
    said = capsys.readouterr().err
    assert "one over the declared size" in said
    assert said.count("\n") == 1
    assert [event.kind for event in Ledger.open(folders.state.ledger).events()] == ["created"]
