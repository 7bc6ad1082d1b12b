"""Edited, truncated, rewritten, restored, destroyed: each ends training with a sentence. One test for each way."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from ledger_world import CAP, HOSPITAL, at, make_plan, new_ledger, release

from hospital_node.ledger import (
    CannotRecord,
    Cap,
    Ledger,
    LedgerDamaged,
    LedgerError,
    LedgerMissing,
    LedgerRolledBack,
    read_budget,
)
from hospital_node.ledger_schema import BEFORE_FIRST, FORMS, row_digest
from hospital_node.ledger_store import DDL

PLAN = make_plan()
TRIGGERS = [statement for statement in DDL if statement.startswith("CREATE TRIGGER")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with three charged rounds."""
    ledger = new_ledger(tmp_path, PLAN)
    for number in (1, 2, 3):
        release(ledger, PLAN, number)
    return tmp_path / "ledger.db"


def tamper(path: Path, change: Callable[[sqlite3.Connection], None]) -> None:
    """What somebody with the file and sqlite3 can do: lift the triggers, change, put them back."""
    with closing(sqlite3.connect(path)) as connection:
        for name in ("events_grow_at_the_end", "events_never_change", "events_never_vanish"):
            connection.execute(f"DROP TRIGGER {name}")
        change(connection)
        for statement in TRIGGERS:
            connection.execute(statement)
        connection.commit()


def rewrite(connection: sqlite3.Connection) -> None:
    """Recompute the whole chain, as somebody who knows this program would."""
    previous = BEFORE_FIRST
    for seq, stamp, kind, body in connection.execute("SELECT seq, at, kind, body FROM events ORDER BY seq").fetchall():
        digest = row_digest(seq, stamp, kind, body, previous)
        connection.execute("UPDATE events SET previous = ?, digest = ? WHERE seq = ?", (previous, digest, seq))
        previous = digest


def edit_body(seq: int, **fields: object) -> Callable[[sqlite3.Connection], None]:
    def change(connection: sqlite3.Connection) -> None:
        (body,) = connection.execute("SELECT body FROM events WHERE seq = ?", (seq,)).fetchone()
        edited = json.dumps({**json.loads(body), **fields}, sort_keys=True, separators=(",", ":"))
        connection.execute("UPDATE events SET body = ? WHERE seq = ?", (edited, seq))

    return change


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET body = '{}' WHERE seq = 3",
        "UPDATE events SET at = '2020-01-01' WHERE seq = 1",
        "DELETE FROM events WHERE seq = 3",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events SELECT seq, at, kind, '{}', previous, digest FROM events WHERE seq = 3",
        "REPLACE INTO events SELECT * FROM events WHERE seq = 5",
        "INSERT INTO events SELECT seq + 10, at, kind, body, digest, digest FROM events WHERE seq = 8",
        "INSERT INTO events SELECT seq + 1, at, kind, body, previous, digest FROM events WHERE seq = 8",
    ],
)
def test_the_database_itself_only_grows_at_its_end(path: Path, statement: str) -> None:
    before = Ledger.open_readonly(path).events()
    assert len(before) == 8
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="ledger"):
        connection.execute(statement)
    assert Ledger.open_readonly(path).events() == before


@pytest.mark.parametrize("column", ["update_id", "round"])
def test_the_database_itself_keeps_one_release_for_each_round_and_update(path: Path, column: str) -> None:
    ledger = Ledger.open(path)
    charge = ledger.events()[2]
    fields = json.loads(FORMS["charge"].dump_json(charge.entry))
    fields[column] = 9 if column == "round" else "ff" * 32  # differs in this, repeats the other
    row = (9, "x", "charge", json.dumps(fields), ledger.head, bytes(32))
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)


def test_an_edited_entry_is_found(path: Path) -> None:
    tamper(path, edit_body(3, steps=1))
    with pytest.raises(LedgerDamaged, match=r"entry 3 was changed after it was written.*trains no more"):
        Ledger.open(path)


@pytest.mark.parametrize("column", ["at", "kind", "previous", "digest"])
def test_every_column_is_covered(path: Path, column: str) -> None:
    value = {"at": "'2020-01-01T00:00:00+00:00'", "kind": "'note'", "previous": "zeroblob(32)", "digest": "zeroblob(32)"}[
        column
    ]
    tamper(path, lambda connection: connection.execute(f"UPDATE events SET {column} = {value} WHERE seq = 3"))
    with pytest.raises(LedgerDamaged):
        Ledger.open(path)


def test_a_removed_entry_is_found(path: Path) -> None:
    tamper(path, lambda connection: connection.execute("DELETE FROM events WHERE seq = 4"))
    with pytest.raises(LedgerDamaged, match="entry 4 is missing"):
        Ledger.open(path)


def test_a_truncated_chain_is_found(path: Path) -> None:
    tamper(path, lambda connection: connection.execute("DELETE FROM events WHERE seq > 5"))
    with pytest.raises(LedgerRolledBack, match="holds 5 entries, but 8 were written"):
        Ledger.open(path)


def test_a_rewritten_history_is_found(path: Path) -> None:
    def cheaper(connection: sqlite3.Connection) -> None:
        edit_body(3, steps=1)(connection)
        rewrite(connection)

    tamper(path, cheaper)
    with pytest.raises(LedgerRolledBack, match="another one than its counter saw"):
        Ledger.open(path)


def test_a_rewritten_history_that_grew_further_is_found(path: Path) -> None:
    counter = (path.with_suffix(".counter")).read_bytes()
    tamper(path, lambda c: (edit_body(3, steps=1)(c), rewrite(c)))
    path.with_suffix(".counter").write_text(json.dumps({"entries": 1, "head": head_of(path, 1)}))
    release(Ledger.open(path), PLAN, 4)
    path.with_suffix(".counter").write_bytes(counter)
    with pytest.raises(LedgerRolledBack, match="another one"):
        Ledger.open(path)


def head_of(path: Path, seq: int) -> str:
    with closing(sqlite3.connect(path)) as connection:
        (digest,) = connection.execute("SELECT digest FROM events WHERE seq = ?", (seq,)).fetchone()
    return bytes(digest).hex()


def test_a_restored_backup_stops_training(path: Path, tmp_path: Path) -> None:
    backup = shutil.copy(path, tmp_path / "backup.db")
    ledger = Ledger.open(path)
    asked = ledger.authorize(PLAN, 4)
    release(ledger, PLAN, 4)
    shutil.copy(backup, path)
    for use in (
        lambda: Ledger.open(path),
        lambda: Ledger.open_readonly(path),
        lambda: ledger.authorize(PLAN, 5),
        lambda: ledger.commit(asked, b"x" * 32, b"y" * 16, at(50)),
        lambda: ledger.note("Dr Keller", "carry on", at(50)),
    ):
        with pytest.raises(LedgerRolledBack, match="a backup was restored"):
            use()
    assert LedgerRolledBack.code == "ledger-rolled-back"


def test_a_second_counter_elsewhere_notices_a_backup_of_the_whole_folder(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "state", tmp_path / "elsewhere.counter"
    home.mkdir()
    ledger = Ledger.create(home / "ledger.db", HOSPITAL, at(0), witness=elsewhere)
    ledger.approve(PLAN, "Dr Keller", "first study", CAP, at(1))
    shutil.copytree(home, tmp_path / "backup")
    release(ledger, PLAN, 1)
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "backup", home)
    with pytest.raises(LedgerRolledBack):
        Ledger.open(home / "ledger.db", witness=elsewhere)


def test_a_counter_left_behind_by_a_crash_catches_up(path: Path) -> None:
    counter = path.with_suffix(".counter")
    before = counter.read_bytes()
    release(Ledger.open(path), PLAN, 4)
    newest = counter.read_bytes()
    counter.write_bytes(before)
    assert Ledger.open_readonly(path).budget().rounds_done == 4
    Ledger.open(path)
    assert counter.read_bytes() == newest


def test_a_missing_counter_stops_training(path: Path) -> None:
    path.with_suffix(".counter").unlink()
    with pytest.raises(LedgerRolledBack, match=r"counter .* is missing"):
        Ledger.open(path)


@pytest.mark.parametrize("text", ["", "{", '{"entries": 0, "head": ""}', '{"entries": 3}', '{"entries": 3, "head": "zz"}'])
def test_an_unreadable_counter_stops_training(path: Path, text: str) -> None:
    path.with_suffix(".counter").write_text(text)
    with pytest.raises(LedgerDamaged, match="counter"):
        Ledger.open(path)


@pytest.mark.parametrize("name", ["events_never_change", "events_never_vanish", "events_grow_at_the_end"])
def test_a_lifted_trigger_is_found(path: Path, name: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DROP TRIGGER {name}")
    with pytest.raises(LedgerDamaged, match="tables or triggers"):
        Ledger.open(path)


def test_an_added_trigger_is_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TRIGGER extra AFTER INSERT ON events BEGIN SELECT 1; END")
    with pytest.raises(LedgerDamaged, match="tables or triggers"):
        Ledger.open(path)


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("refund", "{}", "unknown kind 'refund'"),
        ("charge", "{}", "unusable body"),
        ("note", "not json", "unusable body"),
        ("note", '{"by": "x", "text": "y", "more": 1}', "unusable body: more"),
        ("created", '{"hospital": "b", "ledger_id": "' + "0" * 32 + '"}', "only the first"),
    ],
)
def test_entries_outside_of_the_closed_table_are_never_ignored(path: Path, kind: str, body: str, says: str) -> None:
    tamper(
        path,
        lambda connection: (
            connection.execute("UPDATE events SET kind = ?, body = ? WHERE seq = 8", (kind, body)),
            rewrite(connection),
        ),
    )
    path.with_suffix(".counter").write_text(json.dumps({"entries": 8, "head": head_of(path, 8)}))
    with pytest.raises(LedgerDamaged, match=says):
        Ledger.open(path)


@pytest.mark.parametrize("keep", [0, 100, 4096, 9000])
def test_a_truncated_file_is_damaged(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LedgerError, match=r"damaged|changed"):
        Ledger.open(path)


def test_garbage_is_damaged(path: Path) -> None:
    path.write_bytes(b"\x00not a database" * 600)
    with pytest.raises(LedgerDamaged, match="damaged"):
        Ledger.open(path)


def test_a_flipped_byte_anywhere_in_the_entries_is_found(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.rindex(b'"noise_multiplier":1.1')
    data[place + len(b'"noise_multiplier":')] ^= 4  # 1 becomes 5
    path.write_bytes(bytes(data))
    with pytest.raises(LedgerDamaged):
        Ledger.open(path)


def test_a_ledger_that_vanished_is_not_made_anew(path: Path) -> None:
    path.unlink()
    with pytest.raises(LedgerMissing, match="no ledger"):
        Ledger.open(path)
    with pytest.raises(LedgerRolledBack, match=r"8 entries existed here.*would forget what was spent"):
        Ledger.create(path, HOSPITAL, at(100))


def test_a_second_ledger_in_the_same_place_is_refused(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, HOSPITAL, at(100))
    assert path.read_bytes() == before


def test_creation_that_crashed_before_the_ledger_existed_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, HOSPITAL, at(0))
    path.unlink()  # what is left when the machine dies between counter and ledger
    Ledger.create(path, HOSPITAL, at(1)).approve(PLAN, "Dr Keller", "first study", CAP, at(2))


def test_the_receipt_key_is_its_owners_alone(path: Path) -> None:
    key = path.with_suffix(".key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32


@pytest.mark.parametrize("content", [None, b"short"])
def test_without_its_key_a_commit_gives_no_receipt(path: Path, content: bytes | None) -> None:
    key = path.with_suffix(".key")
    key.unlink()
    if content is not None:
        key.write_bytes(content)
    ledger = Ledger.open(path)
    asked = ledger.authorize(PLAN, 4)
    with pytest.raises(LedgerDamaged, match=r"receipt key .* restore it"):
        ledger.commit(asked, b"x" * 32, b"y" * 16, at(50))
    assert ledger.budget().rounds_done == 3  # nothing was charged for nothing


def test_the_app_shows_the_sentence_instead_of_figures(path: Path) -> None:
    assert read_budget(path).state == "near the cap"
    tamper(path, edit_body(3, steps=1))
    view = read_budget(path)
    assert view.state == "ledger damaged"
    assert "entry 3 was changed" in view.sentence
    assert (view.spent, view.rounds_left) == (float("inf"), 0)


def test_a_read_only_connection_cannot_write(path: Path) -> None:
    from hospital_node.ledger_store import _connect

    with closing(_connect(path, "ro")) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("INSERT INTO events VALUES (9, '', 'note', '{}', zeroblob(32), zeroblob(32))")


def test_a_folder_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotRecord, match="cannot be kept safe"):
        Ledger.create(tmp_path / "nowhere" / "ledger.db", HOSPITAL, at(0))


def test_a_lower_cap_survives_reopening(path: Path) -> None:
    lower = Cap(epsilon=2.5, delta=1e-6)
    Ledger.open(path).lower_cap(lower, "Dr Keller", "caution", at(60))
    assert Ledger.open(path).cap == lower
